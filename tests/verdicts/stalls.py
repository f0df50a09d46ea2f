"""Whether the machine stood still: what is told then of a lookup may be true of the machine, not of the fault."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

EVERY_SECONDS = 0.02
LEAST_SECONDS = 0.05
"""Shorter ones are not noted."""


class Stalls:
    """Watches, while it is entered, how much later than it should a thread that only sleeps goes on."""

    def __init__(self) -> None:
        self._found: list[tuple[float, float]] = []
        """When each ended, by the monotonic clock, and how long it was."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(EVERY_SECONDS):
            now = time.monotonic()
            if (seconds := now - before - EVERY_SECONDS) > LEAST_SECONDS:
                self._found.append((now, seconds))
            before = now

    def longest_seconds(self, begun: float, ended: float) -> float:
        """The longest stall of an interval of the monotonic clock."""
        return max((seconds for at, seconds in self._found if begun <= at <= ended + seconds), default=0.0)
