"""Which Events an incident has, and when they are written: one for each of its pods, up to a number, and the node's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent.explain.incidents import State
from agent.export.clock import SECOND_NS
from agent.export.incident_event import event_of_node, event_of_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.context.cluster import Pod
    from agent.enrich.kube.events import Event
    from agent.explain.incidents import Account
    from agent.explain.troubled_pods import PodTrouble
    from agent.export.line import Context

MAX_EVENTS = 10
"""Pods of one incident that have an Event of their own, those with most lookups first."""
PACE_NS = 300 * SECOND_NS
"""An Event of an incident that goes on is updated so often at most."""


class Sink(Protocol):
    """Who writes: `agent.enrich.kube.events.EventWriter`."""

    def offer(self, event: Event, /) -> None:
        """Let it be written when that can be done."""


@dataclass(slots=True)
class _Told:
    """What was written of one incident."""

    node_ns: int | None = None
    """When its node was told last; None: not yet."""
    pods_ns: dict[str, int] = field(default_factory=dict)
    """Likewise its pods, by UID."""
    left_out: set[str] = field(default_factory=set)
    """UIDs of those for which there was no room; as many as an incident tells apart."""


class EventTeller:
    """Turns what is told of incidents into Events.

    Args:
        sink: Takes them.
        node: Name of this node in the cluster.
        pods_here: The pods that this node has now; None while that is not known.
    """

    def __init__(self, sink: Sink, node: str, pods_here: Callable[[], Iterable[Pod] | None]) -> None:
        self.left_out = 0
        """Pods that had no Event, because their incident had so many."""
        self._sink = sink
        self._node = node
        self._pods_here = pods_here
        self._told: dict[str, _Told] = {}
        """By the identifier of the incident, while it is open."""

    def tell(self, account: Account, context: Context, now_ns: int) -> None:
        """Write what is due of an incident.

        Args:
            account: As it is now.
            context: Name of the node, and the wall clock.
            now_ns: Only grows.
        """
        told = self._told.setdefault(account.identifier, _Told())
        for trouble in self._chosen(account, told):
            uid = trouble.pod.uid
            if self._is_due(told.pods_ns.get(uid), account, now_ns):
                told.pods_ns[uid] = now_ns
                self._sink.offer(event_of_pod(account, trouble, context))
        if self._is_due(told.node_ns, account, now_ns):
            told.node_ns = now_ns
            self._sink.offer(event_of_node(account, len(told.pods_ns), context))
        if account.state is State.ENDED:
            del self._told[account.identifier]

    def _is_due(self, told_ns: int | None, account: Account, now_ns: int) -> bool:
        if account.state is State.ENDED:
            return told_ns is not None
        return told_ns is None or now_ns - told_ns >= PACE_NS

    def _chosen(self, account: Account, told: _Told) -> list[PodTrouble]:
        """Pods that are still here: those with an Event, and as many others as there is room for."""
        mine = self._still_here(account.pods)
        known = [trouble for trouble in mine if trouble.pod.uid in told.pods_ns]
        others = sorted(
            (trouble for trouble in mine if trouble.pod.uid not in told.pods_ns), key=lambda trouble: -trouble.lookups
        )
        room = max(0, MAX_EVENTS - len(told.pods_ns))
        left_out = {trouble.pod.uid for trouble in others[room:]} - told.left_out
        told.left_out |= left_out
        self.left_out += len(left_out)
        return known + others[:room]

    def _still_here(self, pods: Iterable[PodTrouble]) -> list[PodTrouble]:
        """A pod that was deleted gets no Event; nor does one that the cluster knows on another node."""
        found = self._pods_here()
        uids = None if found is None else {pod.uid for pod in found}
        return [
            trouble for trouble in pods if trouble.pod.node == self._node and (uids is None or trouble.pod.uid in uids)
        ]
