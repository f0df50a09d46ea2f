"""Search lists (resolv.conf(5)) among lookups that nobody looks at one by one.

A name without records may be followed by the next one of its client's search list. What is to be told of the one
depends on the other, so both are counted or both are handed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.session.related import ROOT, next_search_prefix
from agent.wire.message import summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.hop.lookup import Lookups

SEARCH_NS = 200_000_000
"""So long after a name without records a client may go on with the next one of its search list: Settings.linger_ns, and
as much for the client."""
AT_ONCE_NS = 20_000_000
"""Within this time a client goes on as a rule. What ended longer than this before the newest lookup taken is over."""
MAX_STEPS = 8192
"""Of search lists that are remembered; beyond it all are forgotten."""

Who = tuple[bytes, int, int]
"""A client's address, its namespace where the address is a loopback one, and a type of record."""


class Step(NamedTuple):
    """From one name of a search list to the next."""

    prefix: bytes
    """What the client is looking for: labels in wire format, without the root."""
    is_bare: bool
    """Whether the next name is that alone, without a search domain."""


class Asked(NamedTuple):
    """What a lookup is to a search list."""

    who: Who
    is_empty: bool
    """Whether the reply has no records, and the client may go on."""
    is_missing: bool
    """Whether the reply says that there is no such name."""


@dataclass(slots=True)
class Searches:
    """What was found among some lookups, which are numbers here."""

    told: set[int] = field(default_factory=set)
    """To be handed over: what follows cannot be told yet, or belongs to what was handed over."""
    followed: set[int] = field(default_factory=set)
    """Those whose client went on with the next name."""
    steps: dict[int, Step] = field(default_factory=dict)
    """How those were reached that are not the first of their list."""
    links: list[tuple[int, int]] = field(default_factory=list)
    """One behind the other: both are counted, or none."""
    onward: list[tuple[int, int]] = field(default_factory=list)
    """The same of a name without a search domain: where it is handed over, nothing is told of the one before."""
    apart: list[int] = field(default_factory=list)
    """Those behind one without records that have nothing to do with it."""
    newest: dict[Who, int] = field(default_factory=dict)
    """Those without records that nothing is behind yet."""


class SearchLists:
    """Finds search lists.

    Args:
        linger_ns: so long a lookup is kept after its reply; what begins later does not belong to it.
    """

    def __init__(self, linger_ns: int) -> None:
        self._linger_ns = linger_ns
        self._open: dict[Who, tuple[int, bytes | None]] = {}
        """Whose next lookup may go on with a search list if it begins before, and behind which name."""
        self._steps: dict[tuple[int, int, bytes], Step | None] = {}

    @property
    def is_expecting(self) -> bool:
        """Whether a lookup to come may belong to one that was handed over."""
        return bool(self._open)

    def expect(self, who: Who, name: bytes | None, last_ns: int) -> None:
        """The next lookup of this client is to be handed over, if it may belong to one that was.

        Args:
            who: the client.
            name: without records, in wire format; None if it could not be read.
            last_ns: when that was said.
        """
        if len(self._open) > MAX_STEPS:
            self._open = {client: found for client, found in self._open.items() if found[0] > last_ns}
        self._open[who] = last_ns + SEARCH_NS, name

    def find(self, asked: Sequence[Asked], taken: Lookups) -> Searches:
        """Find out which lookups go on with a search list.

        Args:
            asked: what each of them is.
            taken: the lookups, oldest first.
        """
        found = Searches()
        first, last = taken.words("first_ns"), taken.words("last_ns")
        replied, names = taken.words("replied_ns"), taken.words("name")
        for index, lookup in enumerate(asked):
            if self._open:
                self._see_expected(taken, index, lookup.who, first[index], found)
            before = found.newest.pop(lookup.who, None)
            if lookup.is_empty:
                found.newest[lookup.who] = index
            if before is None or first[index] - last[before] >= SEARCH_NS:
                continue
            if first[index] - last[before] > self._linger_ns * 9 // 10:
                # The client goes on just when its last lookup is forgotten.
                found.links.append((before, index))
            elif before in found.told and _may_go_on(name_of(taken, before), name_of(taken, index)):
                # What was looked for with it may be known to the session that it gets alone.
                found.told.add(index)
            elif replied[before] < first[index]:
                self._go_on(taken, (before, index), (names[before], names[index]), found)
            else:
                found.apart.append(index)
        found.told |= {index for index in found.newest.values() if last[index] + AT_ONCE_NS > first[-1]}
        return found

    def _see_expected(self, taken: Lookups, index: int, who: Who, first_ns: int, found: Searches) -> None:
        until_ns, name = self._open.pop(who, (0, None))
        if until_ns <= first_ns:
            return
        if _may_go_on(name, name_of(taken, index)):
            found.told.add(index)
        else:
            found.apart.append(index)

    def _go_on(self, taken: Lookups, places: tuple[int, int], names: tuple[int, int], found: Searches) -> None:
        before, index = places
        step = self._step(taken, places, names, found)
        if step is None:
            found.apart.append(index)
            return
        found.followed.add(before)
        found.steps[index] = step
        (found.onward if step.is_bare else found.links).append(places)

    def _step(self, taken: Lookups, places: tuple[int, int], names: tuple[int, int], found: Searches) -> Step | None:
        before, index = places
        known = found.steps.get(before)
        prefix = known.prefix if known else b""
        key = *names, prefix
        if key not in self._steps:
            if len(self._steps) > MAX_STEPS:
                self._steps.clear()
            self._steps[key] = _step_between(name_of(taken, before), name_of(taken, index), prefix)
        return self._steps[key]


def _step_between(before: bytes | None, name: bytes | None, prefix: bytes) -> Step | None:
    if before is None or name is None:
        return None
    found = next_search_prefix(before, name, prefix)
    return None if found is None else Step(found, name[len(found) :] == ROOT)


def _may_go_on(before: bytes | None, name: bytes | None) -> bool:
    """Whether a search list may have both names: all of its names begin alike."""
    if before is None or name is None:
        return True
    first = before[: before[0] + 1]
    return before != name and len(first) > 1 and name.startswith(first)


def name_of(taken: Lookups, index: int) -> bytes | None:
    """The name that is asked for, in wire format; None if it cannot be read."""
    question = summarize(taken.query(index)).question
    return None if question is None else question.name
