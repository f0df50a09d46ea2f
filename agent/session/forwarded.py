"""Lookups for which their server may have asked something itself: what is told of them takes both."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.session.model import SECOND_NS
from agent.session.outcome import REFRESH_NS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.hop.lookup import Lookups
    from agent.hop.record import Hop
    from agent.session.ways import Usual

ANY_QUESTION = 0
"""Of what came as a record of its own."""


@dataclass(slots=True)
class Questions:
    """What one server asked, and when."""

    times: list[int] = field(default_factory=list)
    by_question: dict[int, list[int]] = field(default_factory=dict)

    def add(self, question: int, ts_ns: int) -> None:
        """Take note of one."""
        insort(self.times, ts_ns)
        insort(self.by_question.setdefault(question, []), ts_ns)

    def may_be_for(self, question: int, arrived_ns: int, replied_ns: int) -> bool:
        """Whether one of them may have been asked for the sake of a lookup.

        While that waits it may be any question: a server may ask under another name. Behind the reply a server asks the
        same question, to renew what it has in its cache.
        """
        if _is_any_within(self.times, arrived_ns, replied_ns):
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

    def note(self, query: Hop) -> None:
        """Take note of a query that came as a record."""
        if query.netns in self._serving:
            self._records.setdefault(query.netns, []).append(query.ts_ns)

    def forget_before(self, now_ns: int) -> None:
        """Forget what no lookup to come can have to do with."""
        self._records = {
            netns: kept
            for netns, times in self._records.items()
            if (kept := [ts_ns for ts_ns in times if now_ns - ts_ns < SECOND_NS])
        }

    def find(self, ways: Sequence[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int) -> Iterator[int]:
        """Which of the lookups are to be handed over.

        Args:
            ways: what is known of each.
            taken: they.
            ahead: younger ones.
            seen_until_ns: all that began before is among them.
        """
        asked = self._asked(taken, ahead)
        replied = taken.words("replied_ns")
        if not asked and max(replied) <= seen_until_ns:
            return
        arrived, questions = taken.words("asked_ns"), taken.words("question")
        for index, usual in enumerate(ways):
            if not usual.may_count or not usual.server:
                continue
            of_server = asked.get(usual.server)
            if replied[index] + (REFRESH_NS if of_server else 0) > seen_until_ns or (
                of_server and of_server.may_be_for(questions[index], arrived[index], replied[index])
            ):
                yield index

    def _asked(self, taken: Lookups, ahead: Lookups) -> dict[int, Questions]:
        """What each server asked itself."""
        asked: dict[int, Questions] = {}
        for netns, times in self._records.items():
            for ts_ns in times:
                asked.setdefault(netns, Questions()).add(ANY_QUESTION, ts_ns)
        for lookups in (taken, ahead):
            homes = lookups.halves("home")
            if self._serving.keys().isdisjoint(homes):
                continue
            columns = homes, lookups.words("question"), lookups.words("first_ns")
            for home, question, first_ns in zip(*columns, strict=True):
                if home in self._serving:
                    asked.setdefault(home, Questions()).add(question, first_ns)
        return asked
