"""Which pod had an address at which time. Addresses are used again, sometimes within a second."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from agent.enrich.kube.facts import PodFacts

RESOLUTION_NS = SECOND_NS
"""Times of the API are whole seconds, rounded down."""
MAX_ENDED = 8192
"""Tenancies that are over and still remembered; the oldest make room."""


@dataclass(slots=True)
class Tenancy:
    """The time for which a pod has an address."""

    facts: PodFacts
    begin_ns: int
    """Not before this."""
    end_ns: int | None = None
    """None while it lasts."""

    @property
    def is_end_exact(self) -> bool:
        """Whether its end is that of the pod's containers, not the moment at which we learned of it."""
        return self.end_ns is not None and self.end_ns == self.facts.finished_ns

    def handed_over_ns(self, successor: Tenancy) -> int:
        """When the address went over to a pod that was started later.

        A pod may wait long for its address, so its start alone says little: the end of the earlier one's containers is
        best. Else it is when the later one's network was ready, to the second, or what we learned within that second.
        """
        ready_ns, end_ns = successor.facts.ready_ns or successor.begin_ns, self.end_ns
        if end_ns is None or not (self.is_end_exact or end_ns < ready_ns + RESOLUTION_NS):
            return max(successor.begin_ns, ready_ns)
        return max(successor.begin_ns, end_ns)


@dataclass(slots=True)
class AddressBook:
    """Tenancies of all addresses that are known."""

    _tenancies: dict[bytes, list[Tenancy]] = field(default_factory=dict)
    """Of each address in the order of their beginnings: nearly always one."""
    _ended: deque[tuple[int, bytes, Tenancy]] = field(default_factory=deque)
    """(when it was learned, address, tenancy) of those whose pod is gone."""

    def at(self, address: bytes, ts_ns: int) -> PodFacts | None:
        """The pod that had it at that time."""
        tenancies = self._tenancies.get(address, ())
        for index in range(len(tenancies) - 1, -1, -1):
            tenancy = tenancies[index]
            begin_ns = tenancies[index - 1].handed_over_ns(tenancy) if index else tenancy.begin_ns
            if ts_ns >= begin_ns:
                return tenancy.facts if tenancy.end_ns is None or ts_ns < tenancy.end_ns else None
        return None

    def update(self, old: PodFacts | None, new: PodFacts | None, ts_ns: int) -> None:
        """Take note of a change that was learned of at this time; None is a pod that is not there (any more)."""
        held = old.addresses if old else ()
        has = new.addresses if new else ()
        if new is not None:
            for address in has:
                self._keep(address, new, ts_ns if held and address not in held else new.start_ns)
        if old is not None:
            for address in held:
                if address not in has:
                    self._release(address, old.key, ts_ns)

    def forget(self, before_ns: int) -> None:
        """Drop what ended before that, and the oldest of what is too much."""
        while self._ended and (self._ended[0][0] < before_ns or len(self._ended) > MAX_ENDED):
            _, address, tenancy = self._ended.popleft()
            if tenancy.end_ns is not None:
                self._drop(address, tenancy)

    def _drop(self, address: bytes, tenancy: Tenancy) -> None:
        rest = [earlier for earlier in self._tenancies.get(address, ()) if earlier is not tenancy]
        if rest:
            self._tenancies[address] = rest
        else:
            self._tenancies.pop(address, None)

    def _keep(self, address: bytes, facts: PodFacts, begin_ns: int) -> None:
        tenancies = self._tenancies.setdefault(address, [])
        known = next((tenancy for tenancy in tenancies if tenancy.facts.key == facts.key), None)
        if known is None:
            tenancies.append(Tenancy(facts, begin_ns, facts.finished_ns))
            tenancies.sort(key=lambda tenancy: tenancy.begin_ns)
        else:
            known.facts, known.end_ns = facts, facts.finished_ns

    def _release(self, address: bytes, key: str, ts_ns: int) -> None:
        for tenancy in self._tenancies.get(address, ()):
            if tenancy.facts.key == key:
                tenancy.end_ns = ts_ns if tenancy.end_ns is None else min(tenancy.end_ns, ts_ns)
                self._ended.append((ts_ns, address, tenancy))
