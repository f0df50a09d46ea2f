"""`dnstrail run`: capture, join, explain, print, until told to stop."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.capture.live import Capture
from agent.enrich.local import LocalAddresses
from agent.explain.rules import explain
from agent.export import line, table
from agent.export.clock import wall_offset_ns
from agent.export.filters import Filter, is_problem
from agent.session.model import Settings
from agent.session.table import SessionTable

if TYPE_CHECKING:
    from typing import TextIO

    from agent.capture.live import Loss
    from agent.explain.rules import Verdict
    from agent.session.outcome import Outcome
    from agent.session.sighting import Sighting

WAIT_SECONDS = 0.05
SETTLE_NS = 5_000_000
"""Sightings younger than this may still be on their way through the ring."""
REPORT_SECONDS = 10.0


class Options(NamedTuple):
    """What the user asked for."""

    ports: tuple[int, ...] = (53,)
    ring_bytes: int = 16 << 20
    output: str = "json"
    log: str = "all"
    log_rate: int = 100
    """Lines a second for succeeded sessions; others are never held back."""
    duration_seconds: float | None = None
    node: str = ""
    settings: Settings = Settings()
    filter: Filter = Filter()


@dataclass(slots=True)
class RateLimit:
    """Lets so many pass in each second."""

    rate: int
    second: int = 0
    passed: int = 0

    def passes(self, now: float) -> bool:
        """Whether one more may pass."""
        if int(now) != self.second:
            self.second, self.passed = int(now), 0
        self.passed += 1
        return self.passed <= self.rate


class Printer:
    """Writes the sessions that the user wants to see."""

    def __init__(self, options: Options, out: TextIO) -> None:
        self._options = options
        self._out = out
        self._limit = RateLimit(options.log_rate)
        self._encoder = msgspec.json.Encoder()
        self.suppressed = 0
        self.written = 0
        self.context = line.Context(options.node, wall_offset_ns())
        if options.output == "table":
            print(table.heading(), file=out, flush=True)

    def show(self, outcome: Outcome, verdict: Verdict) -> None:
        """Print the session, or count why not."""
        if not self._options.filter.wants(outcome, verdict) or self._options.log == "none":
            return
        problem = is_problem(outcome, verdict)
        if not problem and self._options.log == "problems":
            return
        if not problem and not self._limit.passes(time.monotonic()):
            self.suppressed += 1
            return
        built = line.build(outcome, verdict, self.context)
        self._out.write(table.row(built) if self._options.output == "table" else self._encoder.encode(built).decode())
        self._out.write("\n")
        self.written += 1

    def flush(self) -> None:
        """Let readers see what was written."""
        self._out.flush()


class Agent:
    """One node's agent: everything between the ring and the lines."""

    def __init__(self, options: Options, capture: Capture, out: TextIO) -> None:
        self._options = options
        self._capture = capture
        self.printer = Printer(options, out)
        self.table = SessionTable(
            options.settings,
            kernel=capture.kernel,
            is_local=LocalAddresses().is_local,
            started_ns=capture.started_ns,
            ports=frozenset(options.ports),
        )
        self._stopped = False
        self._reported = time.monotonic()
        self._suppressed_said = 0
        self._lost_said = 0

    def stop(self, *_signal: object) -> None:
        """End after the current turn."""
        self._stopped = True

    def work(self) -> None:
        """Turn until stopped or the duration is over."""
        limit = self._options.duration_seconds
        end = None if limit is None else time.monotonic() + limit
        while not self._stopped and (end is None or time.monotonic() < end):
            self.turn()
        self.finish()

    def turn(self) -> None:
        """Wait a little, take in what was recorded, print what is over."""
        self._capture.wait(WAIT_SECONDS)
        now_ns = time.monotonic_ns()
        self._capture.drain(self._take, self._lose)
        for outcome in self.table.expire(now_ns - SETTLE_NS):
            self.printer.show(outcome, explain(outcome))
        self.printer.flush()
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._report()

    def finish(self) -> None:
        """Print what is still open, and the sums."""
        self._capture.drain(self._take, self._lose)
        for outcome in self.table.flush(time.monotonic_ns()):
            self.printer.show(outcome, explain(outcome))
        self.printer.flush()
        self._report()
        counts = self.table.counts
        say(f"{counts.sessions} sessions from {counts.sightings} records; {self._capture.lost_records} records lost")

    def _take(self, sighting: Sighting) -> None:
        self.table.observe(sighting)

    def _lose(self, loss: Loss) -> None:
        self.table.record_loss(loss.start_ns, loss.end_ns)

    def _report(self) -> None:
        """Say what was held back or lost since the last time, if anything was."""
        self._reported = time.monotonic()
        gc.collect(1)
        suppressed = self.printer.suppressed - self._suppressed_said
        lost = self._capture.lost_records - self._lost_said
        if suppressed:
            say(f"{suppressed} lines of succeeded sessions held back (--log-rate {self._options.log_rate})")
        if lost:
            say(f"{lost} records lost by the capture itself: sessions concerned are SampleLoss (--ring-size)")
        self._suppressed_said += suppressed
        self._lost_said += lost
        self.printer.context = self.printer.context._replace(wall_offset_ns=wall_offset_ns())


def say(text: str) -> None:
    """Diagnostics go to stderr: stdout carries data only."""
    print(f"dnstrail: {text}", file=sys.stderr, flush=True)


def spare_the_collector() -> None:
    """Keep the cyclic garbage collector from walking every open session again and again.

    The hot path makes no reference cycles, so reference counts free what it drops; the few others (exceptions) are
    collected with the reports.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def run(options: Options) -> int:
    """Be the agent.

    Raises:
        CaptureError: when this kernel or process cannot capture.
    """
    begun = time.monotonic()
    with Capture(list(options.ports), options.ring_bytes) as capture:
        agent = Agent(options, capture, sys.stdout)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, agent.stop)
        say(
            f"watching port {', '.join(map(str, options.ports))} in all network namespaces, "
            f"ready in {time.monotonic() - begun:.2f} s; Ctrl-C stops"
        )
        for limit in capture.limits:
            say(f"limited: {limit}")
        spare_the_collector()
        try:
            agent.work()
        except BrokenPipeError:
            # The reader of our lines is gone: nothing left to do, and nothing to complain about.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


__all__ = ["Agent", "Options", "run", "say"]
