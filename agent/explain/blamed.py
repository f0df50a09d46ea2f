"""Whom or what each cause blames: that decides which failures are one incident.

A server that refuses everybody is one incident and not one for each of its clients; a policy that stops two workloads
is two. `agent.explain.causes.CAUSES` says it of each cause.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from agent.explain.causes import CAUSES, Side
from agent.session.outcome import Leg

if TYPE_CHECKING:
    from agent.explain.verdict import Cause


class Part(StrEnum):
    """One thing that may tell two failures of the same cause apart."""

    CLIENT = "client"
    """The workload, or the address where no name is known."""
    SERVER = "server"
    """The server behind the address that was asked; that address where no translation was seen."""
    UPSTREAM = "upstream"
    NETNS = "netns"
    """The network namespace of the drop."""
    DEVICE = "device"
    """Its device."""


PARTS: dict[Side, tuple[Part, ...]] = {
    Side.CLIENT: (Part.CLIENT, Part.NETNS),
    Side.SERVER: (Part.SERVER,),
    Side.UPSTREAM: (Part.UPSTREAM, Part.SERVER),
    Side.NAMESPACE: (Part.NETNS,),
    Side.DEVICE: (Part.NETNS, Part.DEVICE),
    Side.ROUTE: (Part.NETNS, Part.SERVER),
}
"""What has to be the same for two failures of one cause to be one incident."""
PLACES = frozenset({Side.NAMESPACE, Side.DEVICE, Side.ROUTE})
"""Sides that are known by a drop: without one the server is all there is to go by."""

UPSTREAM_LEGS = frozenset({Leg.UPSTREAM_QUERY, Leg.UPSTREAM_REPLY})


def side_of(cause: Cause) -> Side:
    """Whom a cause blames. Between a server and its upstream the client is that server."""
    side = CAUSES[cause.code].side
    return Side.SERVER if side is Side.CLIENT and cause.leg in UPSTREAM_LEGS else side
