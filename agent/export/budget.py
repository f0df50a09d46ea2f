"""How much may be written to stdout: lines and bytes within any second, whatever happens.

What is written has a rank, and each rank has a share that the others cannot take from it: a storm of one rank leaves
the others theirs. What nobody claims is for whoever comes. Nothing here does I/O or looks at a clock.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import NamedTuple

SECOND = 1.0
USUAL_BYTES = 3 << 10
"""A session line, as a rule: so much room there has to be before one is made."""


class Rank(IntEnum):
    """What kind of news a line is."""

    INCIDENT = 0
    RARE = 1
    """A failure of a kind that had no line lately."""
    FAILURE = 2
    """Any other failure."""
    SUCCESS = 3


SHARES = {Rank.INCIDENT: 0.1, Rank.RARE: 0.15, Rank.FAILURE: 0.15, Rank.SUCCESS: 0.05}
"""What each rank has for itself. Ten incident lines a second tell of 600 incidents a minute; the others take up to two
thirds of everything while nobody else has anything to say."""


class Written(NamedTuple):
    """One line of the last second."""

    at: float
    rank: Rank
    size: int


class _Use:
    """What one limit has left for each rank, within the last second."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._own = {rank: int((limit or 0) * share) for rank, share in SHARES.items()}
        self._used = dict.fromkeys(Rank, 0)

    def add(self, rank: Rank, amount: int) -> None:
        self._used[rank] += amount

    def room(self, rank: Rank) -> int | None:
        """How much more this rank may use; None: as much as it likes."""
        if self.limit is None:
            return None
        kept = sum(max(0, own - self._used[other]) for other, own in self._own.items() if other is not rank)
        return self.limit - sum(self._used.values()) - kept


class Budget:
    """Counts what was written within the last second, and says what may be written now.

    Args:
        lines: within any second; None: no limit.
        size: bytes, likewise.
    """

    def __init__(self, lines: int | None, size: int | None) -> None:
        self.refused = 0
        """Lines that did not fit."""
        self._lines, self._bytes = _Use(lines), _Use(size)
        self._written: deque[Written] = deque()

    @property
    def is_unlimited(self) -> bool:
        """Whether everything fits."""
        return self._lines.limit is None and self._bytes.limit is None

    @property
    def lines(self) -> int | None:
        """The limit of lines."""
        return self._lines.limit

    def room(self, rank: Rank, now: float, size: int = USUAL_BYTES) -> int | None:
        """How many lines of this size there is room for; None: any number.

        Args:
            rank: Of the lines.
            now: Seconds that only grow.
            size: Bytes of each.
        """
        self._forget(now)
        rooms = self._lines.room(rank), self._bytes.room(rank)
        lines, data = rooms
        known = [room for room in (lines, None if data is None else data // size) if room is not None]
        return max(0, min(known)) if known else None

    def has_room(self, rank: Rank, now: float) -> bool:
        """Whether a line may be made; one that does not fit is counted."""
        if self.room(rank, now) == 0:
            self.refused += 1
            return False
        return True

    def take(self, rank: Rank, now: float, size: int) -> bool:
        """Whether a line of so many bytes may be written; it is counted as written, or as one that did not fit."""
        if self.is_unlimited:
            return True
        if self.room(rank, now, size) == 0:
            self.refused += 1
            return False
        self._lines.add(rank, 1)
        self._bytes.add(rank, size)
        self._written.append(Written(now, rank, size))
        return True

    def _forget(self, now: float) -> None:
        while self._written and now - self._written[0].at >= SECOND:
            _, rank, size = self._written.popleft()
            self._lines.add(rank, -1)
            self._bytes.add(rank, -size)
