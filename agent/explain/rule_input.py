"""What a rule of `agent.explain.rules` looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.session.outcome import Leg

if TYPE_CHECKING:
    from agent.context.cluster import Cluster
    from agent.context.counters import NamespaceCounters
    from agent.session.outcome import Outcome, PacketDrop

QUERIES = frozenset({Leg.QUERY, Leg.UPSTREAM_QUERY})
"""What was on its way to a server."""


class RuleInput(NamedTuple):
    """A closed session, and everything that can be asked about it."""

    outcome: Outcome
    namespaces: NamespaceCounters
    cluster: Cluster
    drops: list[PacketDrop]
    """The losses that matter to this client."""
    wall_offset_ns: int
    """Added to the hops' stamps to get the cluster's time."""
