"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Twice as long each time, up to a cap, and never in step with the other nodes' agents."""

    first_seconds: float
    cap_seconds: float
    failures: int = 0
    """Since the last success."""

    def reset(self) -> None:
        """It worked."""
        self.failures = 0

    def next_seconds(self) -> float:
        """It failed again: how long to wait, between half of the full time and all of it."""
        full = min(self.cap_seconds, self.first_seconds * (1 << min(self.failures, 32)))
        self.failures += 1
        return full * random.uniform(0.5, 1.0)  # noqa: S311  jitter is no secret
