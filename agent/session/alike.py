"""Lookups of one question: which of them were under way at the same time."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

NEVER_NS = 1 << 63
AHEAD = -1
FEW = 16
"""So many are compared one by one."""
MOST = 256
"""So many are looked at for one answer at most: anybody may ask one question thousands of times a second."""


class Span(NamedTuple):
    """When a lookup was under way, and between which namespaces."""

    first_ns: int
    asked_ns: int
    """The newest hop of the query."""
    last_ns: int
    """`NEVER_NS` without a reply."""
    home: int
    """Where it began."""
    server: int
    """Where the reply came from; 0 if that was not seen."""
    place: int
    """Which of those taken it is; `AHEAD` for a younger one."""


class Alike:
    """Spans of one question, in any order."""

    __slots__ = ("_firsts", "_latest", "spans")

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._firsts: list[int] = []
        self._latest: list[int] = []
        """The latest end of each and all before it."""

    @property
    def places(self) -> list[int]:
        """Those taken."""
        return [span.place for span in self.spans if span.place != AHEAD]

    def during(self, start_ns: int, end_ns: int) -> list[Span] | None:
        """Those that were under way between two times; None if they are too many to find out."""
        if len(self.spans) <= FEW:
            return [span for span in self.spans if span.first_ns <= end_ns and span.last_ns >= start_ns]
        if not self._firsts:
            self.spans.sort()
            self._firsts = [span.first_ns for span in self.spans]
            self._latest = list(accumulate((span.last_ns for span in self.spans), max))
        found: list[Span] = []
        behind = bisect_right(self._firsts, end_ns)
        for index in range(behind - 1, max(-1, behind - 1 - MOST), -1):
            if self._latest[index] < start_ns:
                return found
            if self.spans[index].last_ns >= start_ns:
                found.append(self.spans[index])
        return found if behind <= MOST else None
