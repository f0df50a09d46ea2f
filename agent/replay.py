"""`dnstrail replay`: capture files in, the session lines out that `run` would have printed.

Time is the capture's own. What is wrong with a file is said after the sessions up to there.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from agent.capturefile.hop_comment import restore
from agent.capturefile.inputs import InputError, Inputs
from agent.capturefile.order import SETTLE_NS, Clock, in_order
from agent.capturefile.playback import Playback
from agent.capturefile.recorded_nodes import Recorded
from agent.explain.rules import explain
from agent.export.printer import LineOptions, Printer
from agent.export.progress import Progress
from agent.export.sums import Sums, in_words
from agent.process import abandon_stdout, freeze_gc, log
from agent.session.model import Settings
from agent.session.table import SessionTable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from agent.capturefile.frames import Frame
    from agent.capturefile.hop_comment import Restored
    from agent.capturefile.inputs import Input
    from agent.session.outcome import Outcome

FLUSH_SECONDS = 0.2
LOOK_EVERY = 256
"""Frames between two looks at the wall clock."""
COLLECT_EVERY = 1 << 18
"""Frames between two visits of the garbage collector."""
USAGE, PROBLEMS = 2, 1


class Options(NamedTuple):
    """What the user asked for."""

    files: tuple[str, ...]
    ports: tuple[int, ...] = (53,)
    settings: Settings = Settings()
    lines: LineOptions = LineOptions(log_rate=None)


class Replay:
    """One replay: everything between the files and the lines."""

    def __init__(self, options: Options, inputs: Inputs, out: TextIO) -> None:
        self._inputs = inputs
        self._recorded = Recorded()
        ports = frozenset((*options.ports, *recorded_ports(inputs)))
        self._playback = Playback(ports)
        self._table = SessionTable(
            options.settings,
            kernel=self._recorded.names.kernel,
            is_local=self._is_local,
            started_ns=min((entry.begins_ns for entry in inputs.all if entry.first), default=0),
            is_tapped=self._playback.is_tapped,
        )
        self._printer = Printer(options.lines, out, 0)
        self._progress = Progress(sys.stderr, inputs.size)
        self._frames = 0
        self._told = 0
        self._sessions = 0
        self._clock = Clock()
        self._flushed = time.monotonic()

    def work(self) -> None:
        """From the first frame to the last line."""
        for source, frame in in_order(self._inputs.frames(), self._clock, self._is_awaited):
            self._take(source, frame)
            self._show(self._table.expire(frame.ts_ns - SETTLE_NS))
            self._frames += 1
            if not self._frames % LOOK_EVERY or source.size is None:
                self._look_around()
        self._playback.end()
        self._show(self._table.flush(self._clock.now_ns))
        self._printer.flush()
        self._progress.clear()

    @property
    def sums(self) -> Sums:
        """What became of the frames."""
        told = self._told + self._table.counts.recalled
        return Sums(self._playback, self._table.counts, self._frames, told, self._table.unread_bytes, self._clock.steps)

    def report(self) -> None:
        """Say the sums, and what was not read."""
        words = (
            f"{_number(self._sessions, 'session')} from {_number(self._frames, 'frame')} "
            f"of {_number(len(self._inputs.all), 'file')}"
        )
        rest = in_words(self.sums)
        log(f"{words}; {', '.join(rest)}" if rest else words)

    def _is_awaited(self, frame: Frame) -> bool:
        found = self._playback.answers(frame)
        return found is not None and self._table.is_awaited(*found)

    def _take(self, source: Input, frame: Frame) -> None:
        found = self._recorded.read(source, frame)
        if found is not None:
            self._restore(found)
            self._told += 1
            return
        for hop in self._playback.given_up(frame.ts_ns):
            self._table.observe(hop)
        told = False
        for hop in self._playback.hops(frame, source.vantage):
            # What is only counted is counted once for each frame, though a tap shows two hops.
            taken = self._table.observe(hop)
            if taken is False:
                # An arrival that it proved was told before: it is that of another frame.
                told = False
                break
            told |= bool(taken)
        self._told += told

    def _is_local(self, netns: int, address: bytes) -> bool | None:
        known = self._recorded.is_local(netns, address)
        return self._playback.is_local(netns, address) if known is None else known

    def _restore(self, found: Restored) -> None:
        if self._recorded.node and not self._printer.context.node:
            self._printer.context = self._printer.context._replace(node=self._recorded.node)
        if found.lost is not None:
            self._table.record_loss(found.lost.start_ns, found.lost.end_ns)
        if found.hop is not None:
            self._table.observe(found.hop)

    def _show(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._sessions += 1
            self._progress.clear()
            if self._clock.stepped:
                offset_ns = self._clock.stamp_offset(outcome.session.first_ns)
                self._printer.context = self._printer.context._replace(wall_offset_ns=offset_ns)
            self._printer.show(outcome, explain(outcome))

    def _look_around(self) -> None:
        """What is done now and then: lines to their reader, progress, garbage."""
        self._progress.show(self._inputs.bytes_read, self._frames)
        now = time.monotonic()
        if now - self._flushed > FLUSH_SECONDS:
            self._flushed = now
            self._printer.flush()
        if not self._frames % COLLECT_EVERY:
            gc.collect(1)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def recorded_ports(inputs: Inputs) -> list[int]:
    """Ports that the recordings among the files were made of."""
    recorded = Recorded()
    found = (restore(entry.first, recorded.names) for entry in inputs.all if entry.first)
    return [port for part in found if part is not None and part.mark is not None for port in part.mark.ports]


def replay(options: Options) -> int:
    """Print the sessions of the files.

    Returns:
        0; 1 if a file is foreign, damaged or cut; 2 if one cannot be opened.
    """
    try:
        inputs = Inputs(list(options.files))
    except InputError as error:
        log(str(error))
        return USAGE
    run = Replay(options, inputs, sys.stdout)
    freeze_gc()
    try:
        run.work()
    except BrokenPipeError:
        abandon_stdout()
        return 0
    run.report()
    broken = [entry for entry in inputs.all if entry.error]
    for entry in broken:
        log(f"{entry.title}: {entry.error}")
    return PROBLEMS if broken else 0
