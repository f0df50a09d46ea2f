"""A progress bar in plain text, for a terminal only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

INTERVAL_SECONDS = 0.1
WIDTH = 24
ERASE = "\r\x1b[K"
MEGABYTE = 1_000_000


class Progress:
    """Says how far a replay is; silent unless `out` is a terminal.

    Args:
        out: where to.
        total: bytes in all, None if that cannot be known.
        clock: seconds that only grow.
    """

    def __init__(self, out: TextIO, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.wanted = out.isatty()
        self._out = out
        self._total = total
        self._clock = clock
        self._begun = clock()
        self._next = self._begun + INTERVAL_SECONDS
        self._drawn = False

    def show(self, done_bytes: int, frames: int) -> None:
        """Draw it, at most ten times a second."""
        now = self._clock()
        if not self.wanted or now < self._next:
            return
        self._next = now + INTERVAL_SECONDS
        rate = frames / (now - self._begun)
        self._out.write(f"{ERASE}{self._how_far(done_bytes)}, {frames} frames, {rate:.0f}/s")
        self._out.flush()
        self._drawn = True

    def clear(self) -> None:
        """Give the line back before something else is written."""
        if self._drawn:
            self._out.write(ERASE)
            self._out.flush()
            self._drawn = False

    def _how_far(self, done_bytes: int) -> str:
        megabytes = f"{done_bytes / MEGABYTE:.1f}"
        if not self._total:
            return f"{megabytes} MB"
        part = min(1.0, done_bytes / self._total)
        done = int(part * WIDTH)
        return f"[{'#' * done}{'.' * (WIDTH - done)}] {part:4.0%} {megabytes} of {self._total / MEGABYTE:.1f} MB"
