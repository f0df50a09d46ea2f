"""Session lines on stdout: which ones, in which form, and how many a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from agent.context.who import NOBODY
from agent.export import line, table
from agent.export.failures import UNLIMITED, FailureLimit, FailureRates, kind_of
from agent.export.filters import Filter, is_problem
from agent.export.redaction import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.who import Who
    from agent.explain.verdict import Verdict
    from agent.session.outcome import Outcome


class Out(Protocol):
    """What takes lines: a text stream, or `agent.export.outlet.Outlet`."""

    def write(self, text: str, /) -> object:
        """Take a whole line."""

    def flush(self) -> object:
        """Let readers see what was written."""


class LineOptions(NamedTuple):
    """What the user wants to see of the sessions."""

    output: str = "json"
    log: str = "all"
    log_rate: int | None = 100
    """Lines a second for succeeded sessions that lost nothing. None: no limit."""
    node: str = ""
    filter: Filter = Filter()
    redaction_key: bytes | None = None
    """Names are replaced by words made with it; None: they are shown."""
    failures: FailureRates = UNLIMITED
    """Lines a second for all others."""


@dataclass(slots=True)
class RateLimit:
    """Lets so many pass in each second."""

    rate: int | None
    second: int = 0
    passed: int = 0

    def passes(self, now: float) -> bool:
        """Whether one more may pass."""
        if self.rate is None:
            return True
        if int(now) != self.second:
            self.second, self.passed = int(now), 0
        self.passed += 1
        return self.passed <= self.rate


class Printer:
    """Writes the sessions that the user wants to see.

    Args:
        options: which ones, and how.
        out: where to.
        wall_offset_ns: added to the hops' stamps to get UTC.
    """

    def __init__(self, options: LineOptions, out: Out, wall_offset_ns: int) -> None:
        self.options = options
        self._out = out
        self._limit = RateLimit(options.log_rate)
        self.failures = FailureLimit(options.failures)
        self._redaction = Redaction(options.redaction_key) if options.redaction_key else None
        self._encoder = msgspec.json.Encoder()
        self.suppressed = 0
        self.written = 0
        self.context = line.Context(options.node, wall_offset_ns)
        if options.output == "table":
            out.write(f"{table.heading()}\n")
            out.flush()

    def show(self, outcome: Outcome, verdict: Verdict, who: Who = NOBODY) -> None:
        """Print the session, or count why not."""
        if self.admits(outcome, verdict, lambda: who):
            self.write(outcome, verdict, who)

    def admits(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who]) -> bool:
        """Whether the session is to be printed; a line is counted as used or held back. `who` is asked if need be.

        It is decided before the line is made, which costs more than all that was found out before.
        """
        if self.options.log == "none" or not self.options.filter.wants(outcome, verdict, who):
            return False
        if is_problem(outcome, verdict):
            return self._admits_failure(outcome, verdict)
        if self.options.log == "problems":
            return False
        if not self._limit.passes(time.monotonic()):
            self.suppressed += 1
            return False
        return True

    def write(self, outcome: Outcome, verdict: Verdict, who: Who) -> None:
        """Print the session."""
        limited = not self.failures.is_unlimited and is_problem(outcome, verdict)
        built = line.build(outcome, verdict, self.context, who)
        if limited:
            built.held_back = self.failures.held_before(kind_of(outcome, verdict))
        if self._redaction:
            self._redaction.apply(built)
        text = table.row(built) if self.options.output == "table" else self._encoder.encode(built).decode()
        if limited:
            self.failures.charge(len(text))
        self._out.write(f"{text}\n")
        self.written += 1

    def _admits_failure(self, outcome: Outcome, verdict: Verdict) -> bool:
        if self.failures.is_unlimited:
            return True
        return self.failures.admits(kind_of(outcome, verdict), outcome.client_netns, time.monotonic())

    def flush(self) -> None:
        """Let readers see what was written."""
        self._out.flush()
