"""The pods of this node whose lookups an incident is made of, each with its own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agent.context.cluster import Pod
    from agent.context.who import Who
    from agent.session.outcome import Outcome

MAX_PODS = 128
"""Of one incident: more than a node has, as a rule."""


class PodTrouble(NamedTuple):
    """One pod's part of an incident."""

    pod: Pod
    lookups: int
    """Its lookups that belong to the incident."""
    first_ns: int
    last_ns: int
    """First packets of the first and of the last of them, in the time of the records."""


class TroubledPods:
    """A bounded number of pods by UID."""

    __slots__ = ("_by_uid",)

    def __init__(self) -> None:
        self._by_uid: dict[str, PodTrouble] = {}

    def note(self, pod: Pod, first_ns: int) -> None:
        """One more lookup of a pod.

        Args:
            pod: Whose it was.
            first_ns: When it began.
        """
        self._add(PodTrouble(pod, 1, first_ns, first_ns))

    def take(self, others: TroubledPods) -> None:
        """Add what others have."""
        for trouble in others.all():
            self._add(trouble)

    def all(self) -> tuple[PodTrouble, ...]:
        """Each of them, from the one that was noted first."""
        return tuple(self._by_uid.values())

    def _add(self, new: PodTrouble) -> None:
        uid = new.pod.uid
        old = self._by_uid.get(uid)
        if old is None:
            if len(self._by_uid) < MAX_PODS:
                self._by_uid[uid] = new
            return
        first_ns, last_ns = min(old.first_ns, new.first_ns), max(old.last_ns, new.last_ns)
        self._by_uid[uid] = PodTrouble(new.pod, old.lookups + new.lookups, first_ns, last_ns)


def pod_here(outcome: Outcome, who: Who) -> Pod | None:
    """The pod on this node that made the lookup.

    None for one in the node's network namespace: lookups of different pods look alike there.
    """
    pod = who.client
    return pod if pod is not None and outcome.client_netns is not None and not pod.host_network else None
