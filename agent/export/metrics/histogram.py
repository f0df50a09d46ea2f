"""Distribution of durations, cheap enough for every lookup."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from agent.export.metrics.catalogue import SECOND_NS


class Distribution(NamedTuple):
    """A histogram at one moment."""

    buckets: tuple[tuple[str, int], ...]
    """Upper edge as Prometheus spells it, and how many were not above it; the last edge is +Inf."""
    sum_seconds: float


class Histogram:
    """Counts durations by the bucket they fall in.

    One thread adds; any other may look at any time, and at worst sees a duration in the sum that is in no bucket yet.
    """

    __slots__ = ("_counts", "_edges_ns", "_names", "_sum_ns")

    def __init__(self, edges: tuple[float, ...]) -> None:
        """Begin with nothing.

        Args:
            edges: Upper edges of the buckets in seconds, ascending, without +Inf.
        """
        self._names = (*map(str, edges), "+Inf")
        self._edges_ns = [round(edge * SECOND_NS) for edge in edges]
        self._counts = [0] * len(self._names)
        self._sum_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one more."""
        self._counts[bisect_left(self._edges_ns, duration_ns)] += 1
        self._sum_ns += duration_ns

    def add_all(self, durations_ns: list[int]) -> None:
        """Count many; the list is put in order."""
        durations_ns.sort()
        before = 0
        for index, edge in enumerate(self._edges_ns):
            reached = bisect_right(durations_ns, edge)
            self._counts[index] += reached - before
            before = reached
        self._counts[-1] += len(durations_ns) - before
        self._sum_ns += sum(durations_ns)

    def now(self) -> Distribution:
        """What was counted so far, with cumulative buckets as Prometheus has them."""
        sum_ns, reached, buckets = self._sum_ns, 0, []
        for name, count in zip(self._names, tuple(self._counts), strict=True):
            reached += count
            buckets.append((name, reached))
        return Distribution(tuple(buckets), sum_ns / SECOND_NS)
