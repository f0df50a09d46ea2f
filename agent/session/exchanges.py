"""For whose sake a server asked something: finds pairs of a lookup and an exchange that can be counted together.

What is told of a lookup that a server forwarded takes both: the client's lookup, and the exchange by which its server
asked another one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from agent.session.alike import AHEAD, NEVER_NS, Alike, Span
from agent.session.model import SECOND_NS
from agent.session.outcome import REFRESH_NS
from agent.session.ways import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from agent.hop.lookup import Lookups
    from agent.hop.record import Hop
    from agent.session.ways import Usual

ANY_QUESTION = ANY_SERVER = 0
"""Of what came as a record of its own; of a lookup without a reply."""
MAX_WAITING = 8192
"""Questions of lookups that were handed over; beyond it the oldest are forgotten."""
MAX_EXCHANGES = 64
"""Of one question among the lookups of one turn: beyond it nothing is sure."""


class Found(NamedTuple):
    """What was found of some lookups."""

    told: set[int]
    """To be handed over: something may have been asked for their sake, and it is not sure what."""
    exchanges: dict[int, int]
    """What was asked for the sake of a lookup, where that is sure."""


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


class ExchangeFinder:
    """Tells of which lookups it is sure what their servers asked, and of which it is not.

    Args:
        serving: namespaces where DNS servers are.
    """

    def __init__(self, serving: Mapping[int, object]) -> None:
        self._serving = serving
        self._records: dict[int, list[int]] = {}
        """Namespace of a server: when it asked something itself, by hops that came one by one."""
        self._waiting: dict[tuple[int, int], int] = {}
        """Questions of lookups that were handed over, and their servers: until when those may be at work on them."""

    def note(self, query: Hop) -> None:
        """Take note of a query that came as a record."""
        if query.netns in self._serving:
            self._records.setdefault(query.netns, []).append(query.ts_ns)

    def note_waiting(self, question: int, server: int, until_ns: int) -> None:
        """Take note of a lookup that is handed over: what its server asks before `until_ns` may be for its sake."""
        before_ns = self._waiting.pop((question, server), 0)
        self._waiting[question, server] = max(until_ns, before_ns)
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def forget_before(self, now_ns: int) -> None:
        """Forget what no lookup to come can have to do with."""
        self._records = {
            netns: kept
            for netns, times in self._records.items()
            if (kept := [ts_ns for ts_ns in times if now_ns - ts_ns < SECOND_NS])
        }
        if self._waiting and self._waiting[next(iter(self._waiting))] < now_ns:
            self._waiting = {known: until_ns for known, until_ns in self._waiting.items() if until_ns > now_ns}

    def find(
        self, ways: Sequence[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int
    ) -> tuple[set[int], list[Exchange]]:
        """Look for what servers asked.

        Args:
            ways: what is known of each.
            taken: lookups.
            ahead: younger ones.
            seen_until_ns: all that began before is among them.

        Returns:
            Which of those taken are to be handed over, and pairs of which it is sure, oldest first.
        """
        spans = self._spans_if_servers_ask(taken, ahead)
        replied = taken.words("replied_ns")
        nobody_asks = not spans and not self._records and not self._waiting
        if nobody_asks and max(replied) + REFRESH_NS <= seen_until_ns:
            return set(), []
        found = Found(set(), {})
        asked = self._match(spans, found)
        first, questions = taken.words("first_ns"), taken.words("question")
        for index, usual in enumerate(ways):
            if not usual.may_count or not usual.server:
                continue
            of_server = asked.get(usual.server)
            if (
                replied[index] + REFRESH_NS > seen_until_ns
                or self._is_waited_for(questions[index], usual.server, first[index])
                or (of_server and of_server.may_be_for(questions[index], first[index], replied[index]))
            ):
                found.told.add(index)
        last, sure = taken.words("last_ns"), []
        for lookup, exchange in sorted(found.exchanges.items()):
            if ways[lookup].may_count and ways[exchange].may_count and last[exchange] <= replied[lookup]:
                sure.append(Exchange(lookup, exchange))
            else:
                found.told.add(lookup)
        return found.told, sure

    def _spans_if_servers_ask(self, taken: Lookups, ahead: Lookups) -> list[tuple[int, Span]]:
        """All lookups, each with its question; none if no server asked anything."""
        if all(self._serving.keys().isdisjoint(lookups.halves("home")) for lookups in (taken, ahead)):
            return []
        return [*_spans(taken, range(taken.count)), *_spans(ahead, repeat(AHEAD, ahead.count))]

    def _match(self, spans: list[tuple[int, Span]], found: Found) -> dict[int, Questions]:
        """Find for whose sake servers asked, by question and time.

        Returns:
            What each server asked.
        """
        exchanges: dict[int, list[Span]] = {}
        for question, span in spans:
            if span.home in self._serving:
                exchanges.setdefault(question, []).append(span)
        alike = {question: Alike() for question in exchanges}
        for question, span in spans:
            if question in alike:
                alike[question].spans.append(span)
        asked = self._records_asked()
        for question, of_question in exchanges.items():
            is_too_many = len(of_question) > MAX_EXCHANGES
            if is_too_many:
                found.told.update(alike[question].places)
            for exchange in of_question:
                somebody = not is_too_many and self._match_one(question, exchange, alike[question], found)
                of_server = asked.setdefault(exchange.home, Questions())
                of_server.add(question, exchange.first_ns, is_waited_for=somebody)
        return asked

    def _match_one(self, question: int, exchange: Span, alike: Alike, found: Found) -> bool:
        """Find the lookup for whose sake this was asked; all that may be meant are to be handed over if it is not sure.

        Returns:
            Whether somebody waited for the same question where it was asked.
        """
        under_way = alike.during(exchange.first_ns, exchange.last_ns)
        if under_way is None:
            found.told.update(alike.places)
            return False
        meant = [span for span in under_way if span is not exchange and _may_be_meant(span, exchange)]
        waiting = [span for span in meant if _waits_for(span, exchange)]
        was_handed_over = self._is_waited_for(question, exchange.home, exchange.first_ns)
        at_the_same_time = _at_the_same_time(waiting, exchange, alike)
        is_sure = (
            len(meant) == len(waiting) == 1
            and not was_handed_over
            and not at_the_same_time
            and AHEAD not in (waiting[0].place, exchange.place)
            and waiting[0].place not in found.exchanges
        )
        if is_sure:
            found.exchanges[waiting[0].place] = exchange.place
        else:
            found.told.update(span.place for span in (*waiting, *at_the_same_time) if span.place != AHEAD)
        return bool(waiting) or self._waiting.get((question, exchange.home), 0) > exchange.first_ns

    def _records_asked(self) -> dict[int, Questions]:
        """What each server asked by hops that came one by one."""
        asked: dict[int, Questions] = {}
        for netns, times in self._records.items():
            questions = asked[netns] = Questions()
            for ts_ns in times:
                questions.add(ANY_QUESTION, ts_ns)
        return asked

    def _is_waited_for(self, question: int, server: int, now_ns: int) -> bool:
        """Whether a lookup that was handed over may still wait for the answer to this question."""
        return any(self._waiting.get((question, known), 0) > now_ns for known in (server, ANY_SERVER))


def _spans(lookups: Lookups, places: Iterable[int]) -> Iterator[tuple[int, Span]]:
    """The question of each, and when it was under way."""
    ends = (
        last if replied else NEVER_NS
        for last, replied in zip(lookups.words("last_ns"), lookups.words("replied_ns"), strict=True)
    )
    times = lookups.words("first_ns"), lookups.words("asked_ns"), ends
    columns = *times, lookups.halves("home"), lookups.halves("server"), places
    return zip(lookups.words("question"), map(Span._make, zip(*columns, strict=True)), strict=True)


def _may_be_meant(span: Span, exchange: Span) -> bool:
    """Whether this may have been asked for the sake of a lookup that was under way, or both for a third one's.

    The server that was asked may have asked another one; and what other servers answered is not for this one.
    """
    asked_onward = exchange.server != 0 and span.home == exchange.server
    return not asked_onward and span.server in (0, exchange.home)


def _waits_for(span: Span, exchange: Span) -> bool:
    """Whether a lookup waited where this was asked."""
    return span.server == exchange.home and span.asked_ns <= exchange.first_ns <= span.last_ns


def _at_the_same_time(waiting: list[Span], exchange: Span, alike: Alike) -> list[Span]:
    """Others of the same question at the same server while one waits for what was asked: which is it for?

    Where a lookup is, nobody knows before its reply.
    """
    if not waiting:
        return []
    known = {id(exchange), *map(id, waiting)}
    start_ns, end_ns = min(span.first_ns for span in waiting), max(span.last_ns for span in waiting)
    under_way = alike.during(start_ns, end_ns)
    if under_way is None:
        return alike.spans
    return [
        span
        for span in under_way
        if id(span) not in known and (span.server == exchange.home or span.last_ns == NEVER_NS)
    ]
