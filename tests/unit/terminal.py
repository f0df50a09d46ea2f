"""A terminal of our own: a command runs at it, and what a person would see of it is kept as rows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from typing import Self

from agent.lab.processes import PATIENCE

SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
SECONDS = 20.0 * PATIENCE


class Shown:
    """What the sequences and characters of a program leave on the screen. A sequence that is not known is an error."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.size = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = self.most_column = self.cleared = 0
        self.modes: dict[str, bool] = {}
        self.colours: set[str] = set()
        self._begun = ""

    def take(self, text: str) -> None:
        text = self._begun + text
        self._begun = ""
        while text:
            found = SEQUENCE.match(text)
            if found:
                self._obey(found[1], found[2])
                text = text[found.end() :]
            elif text[0] == "\x1b":
                if len(text) < 12:
                    self._begun = text
                    return
                raise AssertionError(f"not a sequence that is known: {text[:12]!r}")
            else:
                self._put(text[0])
                text = text[1:]

    def rows(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.cells]

    def _put(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self.row = min(self.row + 1, self.size - 1)
        else:
            assert char.isprintable(), f"a control character reached the terminal: {char!r}"
            if self.row < self.size and self.column < self.columns:
                self.cells[self.row][self.column] = char
            self.column += 1
            self.most_column = max(self.most_column, self.column)

    def _obey(self, words: str, what: str) -> None:
        if what == "H":
            row, _, column = words.partition(";")
            self.row, self.column = min(int(row or 1), self.size) - 1, min(int(column or 1), self.columns) - 1
        elif what == "K":
            self.cells[self.row][self.column :] = [" "] * (self.columns - self.column)
        elif what == "J":
            if words == "2":  # drawn anew, for the size that it has now
                self.cleared, self.most_column = self.cleared + 1, 0
            first = 0 if words == "2" else self.row
            self.cells[first:] = [[" "] * self.columns for _ in range(self.size - first)]
        elif what in "hl":
            self.modes[words] = what == "h"
        elif what == "m":
            self.colours.add(words)
        else:
            raise AssertionError(f"not a sequence that is known: {words!r} {what!r}")


class Terminal:
    """A command at a terminal. Use as a context manager."""

    def __init__(self, command: Sequence[str], columns: int = 120, rows: int = 24, **variables: str) -> None:
        self._leader, follower = pty.openpty()
        self.before = termios.tcgetattr(follower)
        self.resize(columns, rows)
        own = {name: value for name, value in os.environ.items() if not name.startswith("DNSTRAIL_")}
        environment = own | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"} | variables
        self._name = os.ttyname(follower)
        self.process = subprocess.Popen(
            command, stdin=follower, stdout=follower, stderr=follower, env=environment, process_group=0
        )
        os.close(follower)
        self.raw = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._leader)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        self.shown = Shown(columns, rows)
        if hasattr(self, "process"):  # the kernel tells the foreground group of a controlling terminal alone
            self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def until(self, condition: Callable[[list[str]], object], what: str, seconds: float = SECONDS) -> list[str]:
        """The rows, once they are so."""
        end = time.monotonic() + seconds
        while not condition(self.shown.rows()):
            assert time.monotonic() < end, f"waited in vain until {what}: {self.shown.rows()}"
            self._read(0.05)
        return self.shown.rows()

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, with everything read up to then."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it did not end: {self.shown.rows()}"
            self._read(0.05)
        self._read(0.0)
        return self.process.returncode

    def attributes(self) -> list[object]:
        """How the terminal is set."""
        descriptor = os.open(self._name, os.O_RDONLY | os.O_NOCTTY)
        try:
            return termios.tcgetattr(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, seconds: float) -> None:
        while select.select([self._leader], [], [], seconds)[0]:
            try:
                data = os.read(self._leader, 65536)
            except OSError:
                return  # how Linux says that nobody has the other end open any more
            if not data:
                return
            self.raw += data
            self.shown.take(data.decode(errors="replace"))
            seconds = 0.0
