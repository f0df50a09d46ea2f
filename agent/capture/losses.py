"""What the capture itself lost, by what lost it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Losses(NamedTuple):
    """Records that never reached user space; each number only grows."""

    ring_full: int = 0
    log_full: int = 0
    nested: int = 0
    skipped_runs: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    def since(self, earlier: Losses) -> Losses:
        """What was lost after an earlier look."""
        return Losses._make(now - before for now, before in zip(self, earlier, strict=True))

    def __str__(self) -> str:
        """The reasons with their numbers, for the log."""
        return "; ".join(f"{number} {WHY[name]}" for name, number in self._asdict().items() if number)


NOTHING = Losses()


class Loss(NamedTuple):
    """Records lost by the capture itself some time in an interval, CLOCK_MONOTONIC."""

    lost: Losses
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class LossWatch:
    """Tells what was lost between two looks.

    What the kernel skipped is counted where it costs a system call to look, so that is looked at less often.

    Args:
        looked_ns: when it was looked at last; at first, when the capture began.
    """

    looked_ns: int
    known: Losses = NOTHING
    _runs_looked_ns: int = 0

    def look(self, lost: Losses, runs_looked_ns: int, now_ns: int) -> Loss | None:
        """What was lost since the last look; None if nothing was.

        Args:
            lost: since the capture began.
            runs_looked_ns: as of when its `skipped_runs` are.
            now_ns: as of when the others are.
        """
        new = lost.since(self.known)
        start_ns = (self._runs_looked_ns or self.looked_ns) if new.skipped_runs else self.looked_ns
        loss = Loss(new, min(start_ns, self.looked_ns), now_ns) if new.total else None
        self.known, self.looked_ns, self._runs_looked_ns = lost, now_ns, runs_looked_ns
        return loss


WHY = {
    "ring_full": "because the ring was full (--ring-size)",
    "log_full": "because the agent had too little CPU time to take them",
    "nested": "because an interrupt hit a program at work",
    "skipped_runs": "because the kernel skipped a program that an interrupt hit at work",
}
"""By field: what lost them, and the option that helps if there is one."""
