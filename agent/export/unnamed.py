"""Sessions that wait for the name of their pod: the API tells of a new pod some time after its first query."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.outcome import Outcome

WAIT_SECONDS = 1.0
MAX_WAITING = 1000
"""Beyond that they are printed without a name."""


@dataclass(slots=True)
class Unnamed:
    """A queue in the order of time."""

    _waiting: deque[tuple[float, Outcome]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._waiting)

    def keeps(self, outcome: Outcome, now: float) -> bool:
        """Whether there is room for one more, which then waits."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append((now + WAIT_SECONDS, outcome))
        return True

    def due(self, now: float) -> Iterator[Outcome]:
        """Those that have waited long enough."""
        while self._waiting and self._waiting[0][0] <= now:
            yield self._waiting.popleft()[1]
