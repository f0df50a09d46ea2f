"""Lookups for which their server may have asked something itself: what is told of them takes both."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from agent.session.model import SECOND_NS
from agent.session.outcome import REFRESH_NS
from agent.session.ways import Forwarded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.hop.lookup import Lookups
    from agent.hop.record import Hop
    from agent.session.ways import Usual

ANY_QUESTION = 0
"""Of what came as a record of its own."""
AHEAD, NEVER_NS = -1, 1 << 63
MAX_WAITING = 8192
"""Questions of lookups that were handed over; beyond it the oldest are forgotten."""


class Found(NamedTuple):
    """What was found of some lookups."""

    told: set[int]
    """To be handed over: something may have been asked for their sake, and it is not sure what."""
    forwarded: list[Forwarded]
    """Of these it is sure."""


class Part(NamedTuple):
    """What is to be known of a lookup to find out what was asked for whose sake."""

    first_ns: int
    asked_ns: int
    """The newest hop of the query."""
    last_ns: int
    """Never, without a reply."""
    home: int
    server: int
    place: int
    """Which of those taken; `AHEAD` for a younger one."""


@dataclass(slots=True)
class Questions:
    """What one server asked, and when."""

    times: list[int] = field(default_factory=list)
    """Of what was asked while nobody waited for the same question there."""
    by_question: dict[int, list[int]] = field(default_factory=dict)

    def add(self, question: int, ts_ns: int, *, is_waited_for: bool = False) -> None:
        """Take note of one; `is_waited_for` if somebody waited for the same question there."""
        if not is_waited_for:
            insort(self.times, ts_ns)
        insort(self.by_question.setdefault(question, []), ts_ns)

    def may_be_for(self, question: int, first_ns: int, replied_ns: int) -> bool:
        """Whether one of them may have been asked for the sake of a lookup of another question, or to renew an answer.

        While a lookup waits it may be any question: a server may ask under another name. Behind the reply a server asks
        the same question, to renew what it has in its cache.
        """
        if _is_any_within(self.times, first_ns, replied_ns):
            return True
        until_ns = replied_ns + REFRESH_NS
        return any(
            _is_any_within(self.by_question.get(asked, ()), replied_ns, until_ns) for asked in (question, ANY_QUESTION)
        )


def _is_any_within(times: Sequence[int], start_ns: int, end_ns: int) -> bool:
    at = bisect_left(times, start_ns)
    return at < len(times) and times[at] <= end_ns


class ForwardedLookups:
    """Finds them.

    Args:
        serving: namespaces where DNS servers are.
    """

    def __init__(self, serving: Mapping[int, object]) -> None:
        self._serving = serving
        self._records: dict[int, list[int]] = {}
        """Namespace of a server: when it asked something itself, by hops that came one by one."""
        self._waiting: dict[int, tuple[int, int]] = {}
        """Questions of lookups that were handed over: until when their servers were, or may be, at work on them, and
        the namespace of the server, as far as it is known."""

    def note(self, query: Hop) -> None:
        """Take note of a query that came as a record."""
        if query.netns in self._serving:
            self._records.setdefault(query.netns, []).append(query.ts_ns)

    def note_waiting(self, question: int, server: int, until_ns: int) -> None:
        """Take note of a lookup that is handed over: what its server asks before `until_ns` may be for its sake."""
        before_ns, _ = self._waiting.pop(question, (0, 0))
        self._waiting[question] = max(until_ns, before_ns), server
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def forget_before(self, now_ns: int) -> None:
        """Forget what no lookup to come can have to do with."""
        self._records = {
            netns: kept
            for netns, times in self._records.items()
            if (kept := [ts_ns for ts_ns in times if now_ns - ts_ns < SECOND_NS])
        }
        if self._waiting and self._waiting[next(iter(self._waiting))][0] < now_ns:
            self._waiting = {question: found for question, found in self._waiting.items() if found[0] > now_ns}

    def find(self, ways: Sequence[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int) -> Found:
        """Find out of which lookups it is sure what their servers asked, and of which it is not.

        Args:
            ways: what is known of each.
            taken: they.
            ahead: younger ones.
            seen_until_ns: all that began before is among them.
        """
        parts = self._parts_if_servers_ask(taken, ahead)
        exchanges = [(question, part) for question, part in parts if part.home in self._serving]
        replied = taken.words("replied_ns")
        nobody_asks = not exchanges and not self._records and not self._waiting
        if nobody_asks and max(replied) <= seen_until_ns:
            return Found(set(), [])
        alike: dict[int, list[Part]] = {question: [] for question, _ in exchanges}
        for question, part in parts:
            if question in alike:
                alike[question].append(part)
        found, asked = self._match(ways, replied, exchanges, alike)
        found.told.update(_asked_by_two(alike))
        first, questions = taken.words("first_ns"), taken.words("question")
        for index, usual in enumerate(ways):
            if not usual.may_count or not usual.server:
                continue
            of_server = asked.get(usual.server)
            if (
                replied[index] + (REFRESH_NS if of_server else 0) > seen_until_ns
                or self._is_waited_for(questions[index], first[index])
                or (of_server and of_server.may_be_for(questions[index], first[index], replied[index]))
            ):
                found.told.add(index)
        return found

    def _parts_if_servers_ask(self, taken: Lookups, ahead: Lookups) -> list[tuple[int, Part]]:
        """All lookups, each with its question; none if no server asked anything."""
        if all(self._serving.keys().isdisjoint(lookups.halves("home")) for lookups in (taken, ahead)):
            return []
        return [*_parts(taken, range(taken.count)), *_parts(ahead, repeat(AHEAD, ahead.count))]

    def _match(
        self,
        ways: Sequence[Usual],
        replied: Sequence[int],
        exchanges: list[tuple[int, Part]],
        alike: Mapping[int, list[Part]],
    ) -> tuple[Found, dict[int, Questions]]:
        """Find for whose sake servers asked, by question and time.

        Returns:
            Where that is sure, and where not; and what each server asked.
        """
        told: set[int] = set()
        forwarded: dict[int, int] = {}
        everything = self._records_asked()
        for question, asked in exchanges:
            same = alike[question]
            waiting = [part.place for part in same if _waits_for(part, asked)]
            until_ns, server = self._waiting.get(question, (0, 0))
            was_handed_over = until_ns > asked.first_ns
            is_waited_for = bool(waiting) or (was_handed_over and server == asked.home)
            of_server = everything.setdefault(asked.home, Questions())
            of_server.add(question, asked.first_ns, is_waited_for=is_waited_for)
            lookup = AHEAD if was_handed_over or asked.place == AHEAD else _lookup_of(asked, same)
            is_sure = (
                lookup != AHEAD
                and lookup not in forwarded
                and ways[lookup].may_count
                and ways[asked.place].may_count
                and asked.last_ns <= replied[lookup]
            )
            if is_sure:
                forwarded[lookup] = asked.place
            else:
                told.update(place for place in waiting if place != AHEAD)
        return Found(told, [Forwarded(lookup, asked) for lookup, asked in forwarded.items()]), everything

    def _records_asked(self) -> dict[int, Questions]:
        """What each server asked by hops that came one by one."""
        asked: dict[int, Questions] = {}
        for netns, times in self._records.items():
            questions = asked[netns] = Questions()
            for ts_ns in times:
                questions.add(ANY_QUESTION, ts_ns)
        return asked

    def _is_waited_for(self, question: int, now_ns: int) -> bool:
        """Whether a lookup that was handed over may still wait for the answer to this question."""
        until_ns, _ = self._waiting.get(question, (0, 0))
        return until_ns > now_ns


def _parts(lookups: Lookups, places: Iterable[int]) -> Iterator[tuple[int, Part]]:
    """The question of each, and the rest."""
    ends = (
        last if replied else NEVER_NS
        for last, replied in zip(lookups.words("last_ns"), lookups.words("replied_ns"), strict=True)
    )
    times = lookups.words("first_ns"), lookups.words("asked_ns"), ends
    columns = *times, lookups.halves("home"), lookups.halves("server"), places
    return zip(lookups.words("question"), map(Part._make, zip(*columns, strict=True)), strict=True)


def _lookup_of(asked: Part, alike: list[Part]) -> int:
    """For which lookup this was asked; `AHEAD` unless that is sure.

    Args:
        asked: what a server asked.
        alike: all lookups with this question, this one too.
    """
    meant = [part for part in alike if part is not asked and _may_be_meant(part, asked)]
    return meant[0].place if len(meant) == 1 and _waits_for(meant[0], asked) else AHEAD


def _waits_for(part: Part, asked: Part) -> bool:
    """Whether a lookup waited where this was asked."""
    return part.server == asked.home and part.asked_ns <= asked.first_ns <= part.last_ns


def _may_be_meant(part: Part, asked: Part) -> bool:
    """Whether this may have been asked for the sake of a lookup, or the other way round, or both for a third one's."""
    if not _overlap(part, asked):
        return False
    # The server that was asked now may have asked another one; and what other servers answered is not for this one.
    asked_onward = asked.server != 0 and part.home == asked.server
    return not asked_onward and part.server in (0, asked.home)


def _overlap(part: Part, other: Part) -> bool:
    return part.first_ns <= other.last_ns and other.first_ns <= part.last_ns


def _asked_by_two(alike: Mapping[int, list[Part]]) -> Iterator[int]:
    """Lookups with one question that wait at one server at the same time, if that asked it too: for whose sake?"""
    for parts in alike.values():
        for part in parts:
            if part.server and part.place != AHEAD and any(_wait_together(part, other) for other in parts):
                yield part.place


def _wait_together(part: Part, other: Part) -> bool:
    """Where the other one is, nobody knows before its reply."""
    is_there = other.server == part.server or other.last_ns == NEVER_NS
    return other is not part and is_there and _overlap(part, other)
