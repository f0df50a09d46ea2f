"""Numbers by namespace or workload of the client, for those who want them: bounded, and gone when the client is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import EVERYWHERE
from agent.export.metrics.catalogue import FEW_RCODES, NOBODY, OTHER, REST, STATUSES
from agent.export.metrics.losses import lost_messages
from agent.session.addressed import times_asked
from agent.session.outcome import Status
from agent.wire.rcodes import NOERROR
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.context.cluster import Pod
    from agent.context.who import Who
    from agent.explain.verdict import Cause
    from agent.session.outcome import Outcome

Client = tuple[str, str]
"""Kubernetes namespace and workload (`Deployment/cart`) of whoever asked."""
NAMESPACE, WORKLOAD = "namespace", "workload"
BARE = "Pod"
"""Stands for the workload of pods that nobody controls: their names are no labels."""
GONE_SECONDS = 300.0
"""How long the series of an object that is gone stay: some scrapes, so that its last numbers are seen."""
IDLE_SECONDS = 3600.0
"""How long they stay without a lookup, where nobody knows whether it is gone."""
SUCCEEDED = Status.SUCCEEDED.value
_RCODES = {rcode: name for rcode in range(16) if (name := rcode_to_text(rcode)) in FEW_RCODES.values}


class ByClient(NamedTuple):
    """What the user asked for."""

    by: str = NAMESPACE
    """`namespace` or `workload`."""
    cap: int = 200
    """How many have series of their own; the others share those of `~other`."""


@dataclass(slots=True, eq=False)
class Numbers:
    """Of one client; they only grow."""

    seen: float = 0.0
    """When it last asked, in seconds of the clock."""
    queries: int = 0
    retransmissions: int = 0
    answered: int = 0
    waited_ns: int = 0
    """By all that were answered together."""
    sessions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    responses: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FEW_RCODES.values, 0))
    lost: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EVERYWHERE, 0))


def client_of(who: Who) -> Client | None:
    """The names behind a lookup; None when its client is no known pod."""
    return None if who.client is None else names_of(who.client)


def names_of(pod: Pod) -> Client:
    """What its numbers are counted under."""
    return pod.namespace, pod.workload or BARE


class Clients:
    """Counts sessions of clients on this node.

    One thread counts and retires, any other may look at any time.
    """

    def __init__(
        self,
        wanted: ByClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with nobody.

        Args:
            wanted: By what, and how many.
            clock: Seconds that only grow.
        """
        self.wanted = wanted
        self._clock = clock
        self._known: dict[Client, Numbers] = {}
        self._shared: dict[str, Numbers] = {}

    def count(self, outcome: Outcome, cause: Cause | None, who: Callable[[], Who]) -> None:
        """Count one session that is over; who asked is of interest only if it was on this node."""
        if outcome.client_netns is None:
            return
        numbers = self._numbers_of(client_of(who()))
        numbers.seen = self._clock()
        session = outcome.session
        attempts = 1 if session.connecting or len(session.queries.transmissions) == 1 else outcome.attempts
        numbers.queries += attempts
        if attempts > 1:
            numbers.retransmissions += attempts - len(times_asked(session))
        # Told apart by identity: an enum's hash is a function of Python.
        numbers.sessions[SUCCEEDED if outcome.status is Status.SUCCEEDED else outcome.status.value] += 1
        if outcome.rcode is not None:
            numbers.responses[_RCODES.get(outcome.rcode, OTHER)] += 1
            if outcome.delivered and (duration_ns := outcome.duration_ns) is not None:
                numbers.answered += 1
                numbers.waited_ns += duration_ns
        if cause is not None and (lost := lost_messages(outcome, cause)) is not None:
            numbers.lost[lost.leg] += lost.messages

    def count_together(self, client: Client | None, lookups: int, waited_ns: int) -> None:
        """Count answered lookups of one client on this node."""
        numbers = self._numbers_of(client)
        numbers.seen = self._clock()
        numbers.queries += lookups
        numbers.sessions[SUCCEEDED] += lookups
        numbers.responses[_RCODES[NOERROR]] += lookups
        numbers.answered += lookups
        numbers.waited_ns += waited_ns

    def retire(self, here: Iterable[Pod] | None) -> None:
        """Forget those that are gone: their series end. Called now and then.

        Args:
            here: The pods of this node; None where they are not known.
        """
        existing = set() if here is None else {self._key(names_of(pod)) for pod in here}
        patience = IDLE_SECONDS if here is None else GONE_SECONDS
        oldest = self._clock() - patience
        for client, numbers in list(self._known.items()):
            if numbers.seen < oldest and client not in existing:
                del self._known[client]

    def now(self) -> list[tuple[tuple[str, ...], Numbers]]:
        """Label values and numbers of each, by namespace alone or by namespace and workload."""
        parts = 2 if self.wanted.by == WORKLOAD else 1
        shared = [((name,) * parts, numbers) for name, numbers in list(self._shared.items())]
        return [(client[:parts], numbers) for client, numbers in list(self._known.items())] + shared

    def __len__(self) -> int:
        return len(self._known)

    def _key(self, client: Client) -> Client:
        return client if self.wanted.by == WORKLOAD else (client[0], "")

    def _numbers_of(self, client: Client | None) -> Numbers:
        if client is None:
            return self._shared.setdefault(NOBODY, Numbers())
        client = self._key(client)
        numbers = self._known.get(client)
        if numbers is None:
            if len(self._known) >= self.wanted.cap:
                return self._shared.setdefault(REST, Numbers())
            numbers = self._known[client] = Numbers()
        return numbers
