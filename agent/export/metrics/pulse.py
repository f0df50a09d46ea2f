"""The heartbeat of the event loop: when it turned last, how long turns take, how full the ring was."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent.export.metrics.catalogue import SECOND_NS, TURN_BUCKETS
from agent.export.metrics.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

PEAK_SECONDS = 30.0
"""The peak is that of this window and the one before, so that each scrape sees it, whoever scrapes."""


class Pulse:
    """The loop beats, anybody may look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin before the first turn.

        Args:
            clock: Seconds that only grow.
        """
        self.begun = clock()
        self.turns = Histogram(TURN_BUCKETS)
        self._clock = clock
        self._last: float | None = None
        self._window_ends = 0.0
        self._peak_bytes = 0
        self._earlier_peak_bytes = 0

    def beat(self, backlog_bytes: int = 0) -> None:
        """Say that the loop turns, and how much of the ring waits to be read."""
        now = self._clock()
        if self._last is not None:
            self.turns.add(round((now - self._last) * SECOND_NS))
        self._last = now
        if now >= self._window_ends:
            is_next = now < self._window_ends + PEAK_SECONDS
            self._earlier_peak_bytes = self._peak_bytes if is_next else 0
            self._peak_bytes, self._window_ends = 0, now + PEAK_SECONDS
        self._peak_bytes = max(self._peak_bytes, backlog_bytes)

    @property
    def age_seconds(self) -> float:
        """Since the last turn; before the first one, since the start."""
        last = self._last
        return self._clock() - (self.begun if last is None else last)

    @property
    def has_begun(self) -> bool:
        """Whether there was a turn."""
        return self._last is not None

    @property
    def peak_bytes(self) -> int:
        """The most that waited in the ring, within the last 30 to 60 seconds."""
        return max(self._peak_bytes, self._earlier_peak_bytes)
