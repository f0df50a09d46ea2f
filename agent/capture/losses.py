"""What the capture itself lost, by what lost it."""

from __future__ import annotations

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
WHY = {
    "ring_full": "because the ring was full (--ring-size)",
    "log_full": "because the agent had too little CPU time to take them",
    "nested": "because an interrupt hit a program at work",
    "skipped_runs": "because the kernel skipped a program that an interrupt hit at work",
}
"""By field: what lost them, and the option that helps if there is one."""
