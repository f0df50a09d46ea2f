"""What the agent lost or held back since it last said so, in words for the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.capture.losses import NOTHING, Losses

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.export.outlet import Outlet
    from agent.export.printer import Printer


@dataclass(slots=True)
class LossReport:
    """Compares numbers that only grow with what they were at the last report."""

    printer: Printer
    outlet: Outlet
    _suppressed: int = 0
    _beyond: int = 0
    _lines: int = 0
    _records: Losses = NOTHING

    def lines(self, lost_records: Losses) -> Iterator[str]:
        """A sentence for each kind of loss that there was.

        Args:
            lost_records: by the capture, since it began.
        """
        suppressed = self.printer.suppressed - self._suppressed
        records = lost_records.since(self._records)
        lines = self.outlet.lost - self._lines
        if suppressed:
            yield f"{suppressed} lines of succeeded sessions held back (--log-rate {self.printer.options.log_rate})"
        for held in self.printer.failures.summary():
            yield f"{held} (--failure-rate, --max-lines, --max-bytes)"
        beyond = self.printer.budget.refused - self._beyond
        if beyond:
            yield f"{beyond} lines held back by --max-lines and --max-bytes in all"
        if records.total:
            yield f"records lost by the capture itself, sessions concerned are SampleLoss: {records}"
        if lines:
            yield f"{lines} lines lost: {self.outlet.failure or 'nobody reads stdout'}"
        self._suppressed += suppressed
        self._beyond += beyond
        self._records = lost_records
        self._lines += lines
