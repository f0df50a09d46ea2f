"""Whether the machine stood still: what is told then of a lookup may be true of the machine, not of the fault."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

EVERY_SECONDS = 0.02


class Stalls:
    """Watches, while it is entered, how much later than it should a thread that only sleeps goes on."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
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
            self.longest_seconds = max(self.longest_seconds, now - before - EVERY_SECONDS)
            before = now
