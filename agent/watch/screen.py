"""A terminal as a whole screen: taken over, drawn, and given back as it was, whatever happens."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING

from agent.watch.keys import keys
from agent.watch.out import encodable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType
    from typing import Self

    from agent.watch.source import Source

# The other screen, no cursor, no wrapping of rows (xterm's control sequences); and back.
TAKE, GIVE_BACK = "\033[?1049h\033[?25l\033[?7l", "\033[?7h\033[?25h\033[?1049l"
BEGIN, END_OF_ROW, CLEAR_BELOW = "\033[H", "\033[K", "\033[J"
READ_BYTES = 1024
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def is_usable(environment: Mapping[str, str]) -> bool:
    """Whether a person sits at a terminal that can be drawn on."""
    streams = (sys.stdin, sys.stdout)
    usable = all(stream is not None and stream.isatty() for stream in streams)
    return usable and environment.get("TERM", "dumb") not in ("", "dumb")


class Screen:
    """The terminal of this process, to be used as a context."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._encoding = sys.stdout.encoding or "ascii"
        self._attributes = termios.tcgetattr(self._in)
        self._wake, self._woken = os.pipe()
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        self._poll = select.poll()
        for descriptor in (self._in, self._wake):
            self._poll.register(descriptor, select.POLLIN)
        self._last: list[str] = []
        self.is_spoilt = True
        """What the terminal shows is not what was drawn last."""
        self.is_over = False
        """The process was told to end, or the terminal is gone."""

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._end) for number in ENDING}
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._redraw)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stop)
        self._fd_before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._take()
        return self

    def __exit__(self, *_error: object) -> None:
        with suppress(OSError, termios.error):
            self._give_back()
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._woken)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            return 80, 24
        return columns or 80, lines or 24

    def listen(self, source: Source) -> None:
        """Let `wait` end when something comes from there, too."""
        self._poll.register(source.fileno(), select.POLLIN)

    def wait(self, seconds: float) -> set[int]:
        """Descriptors from which something has come, after at most so long."""
        ready = {descriptor for descriptor, _ in self._poll.poll(max(0, seconds) * 1000)}
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.read(self._wake, READ_BYTES)
        return ready

    def pressed(self, ready: set[int]) -> Iterator[str]:
        """The keys that were pressed."""
        if self._in not in ready:
            return
        try:
            data = os.read(self._in, READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self.is_over = True
        yield from keys(data)

    def spoil(self) -> None:
        """Draw everything anew the next time."""
        self.is_spoilt = True

    def draw(self, rows: list[str]) -> None:
        """Show these rows; only those that changed are written."""
        parts = [BEGIN]
        if self.is_spoilt:
            self.is_spoilt, self._last = False, []
            parts.append("\033[2J")
        for number, row in enumerate(rows):
            if number >= len(self._last) or self._last[number] != row:
                parts.append(f"\033[{number + 1};1H{row}{END_OF_ROW}")
        if len(rows) < len(self._last):
            parts.append(f"\033[{len(rows) + 1};1H{CLEAR_BELOW}")
        self._last = rows
        if len(parts) > 1:
            self._write("".join(parts))

    def _take(self) -> None:
        tty.setcbreak(self._in)
        self._write(TAKE)
        self.spoil()

    def _give_back(self) -> None:
        self._write(GIVE_BACK)
        termios.tcsetattr(self._in, termios.TCSADRAIN, self._attributes)

    def _write(self, text: str) -> None:
        rest = memoryview(encodable(text, self._encoding).encode(self._encoding))
        try:
            while rest:
                rest = rest[os.write(self._out, rest) :]
        except OSError:
            self.is_over = True

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self.is_over = True

    def _redraw(self, _number: int, _frame: FrameType | None) -> None:
        self.spoil()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the shell has the terminal until it lets this go on."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()
