"""Several capture files as one stream of frames in the order of time, in bounded memory.

A file is opened when the stream gets to its first frame and closed at its end, so a rotated capture of hundreds of
files has one or two of them open at a time.
"""

from __future__ import annotations

import heapq
import re
import sys
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from agent.capturefile.pcap import PcapError, read_frames
from agent.capturefile.vantage import Vantage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.capturefile.frames import Frame

STDIN = "-"
_DIGITS = re.compile(r"\d+")


class InputError(Exception):
    """A file that cannot be opened, as one sentence."""


class Counted:
    """A file that counts what is read of it."""

    def __init__(self, file: BinaryIO, entry: Input) -> None:
        self._read = getattr(file, "read1", file.read)
        self._entry = entry

    def read(self, count: int = -1) -> bytes:
        """As that of a file."""
        data: bytes = self._read(count)
        self._entry.bytes_read += len(data)
        return data


@dataclass(slots=True, eq=False)
class Input:
    """One file, or standard input."""

    name: str
    size: int | None = None
    """Bytes; None if that cannot be known."""
    first: Frame | None = None
    """Its first frame, if it was looked at beforehand."""
    error: str = ""
    """What is wrong with it, once that was found out."""
    bytes_read: int = 0
    vantage: Vantage = field(default_factory=lambda: Vantage(0))

    @property
    def title(self) -> str:
        """Its name for people."""
        return "standard input" if self.name == STDIN else self.name

    @property
    def begins_ns(self) -> int:
        """Time of its first frame; before all others if it cannot be looked at beforehand."""
        return self.first.ts_ns if self.first else -1

    @property
    def stem(self) -> tuple[str, str]:
        """What the files of a rotated capture have in common: the name without its numbers."""
        path = Path(self.name)
        return str(path.parent), _DIGITS.sub("", path.name)

    def look(self) -> None:
        """Find out its size and when it begins.

        Raises:
            InputError: It cannot be opened.
        """
        if self.name == STDIN:
            return
        path = Path(self.name)
        try:
            if not S_ISREG(path.stat().st_mode) and not path.is_dir():
                return  # a pipe: what is read of it cannot be read again
            with path.open("rb", buffering=0) as file:
                self.size = path.stat().st_size
                self.first = next(read_frames(file), None)
        except PcapError as error:
            self.error = str(error)
        except OSError as error:
            raise InputError(f"cannot open {self.name}: {error.strerror}") from error

    def frames(self) -> Iterator[Frame]:
        """All its frames; what is wrong with it is kept as `error`, after all frames before that place."""
        try:
            with ExitStack() as stack:
                if self.name == STDIN:
                    file: BinaryIO = sys.stdin.buffer
                else:
                    file = stack.enter_context(Path(self.name).open("rb", buffering=0))
                yield from read_frames(cast("BinaryIO", Counted(file, self)))
        except PcapError as error:
            self.error = str(error)
        except OSError as error:
            self.error = f"cannot be read: {error.strerror}"


class _Waiting(NamedTuple):
    """A frame that is next in its file."""

    ts_ns: int
    order: int
    frame: Frame
    rest: Iterator[Frame]
    source: Input


class Inputs:
    """All files of one replay.

    Raises:
        InputError: One of them cannot be opened.
    """

    def __init__(self, names: list[str]) -> None:
        self.all = [Input(name) for name in names]
        for entry in self.all:
            entry.look()
        self._ended: dict[tuple[str, str], Vantage] = {}
        self._vantages = 0
        self._opened = 0

    @property
    def size(self) -> int | None:
        """Bytes of all files; None if that cannot be known."""
        sizes = [entry.size for entry in self.all]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def bytes_read(self) -> int:
        """How many of them were read."""
        return sum(entry.bytes_read for entry in self.all)

    def frames(self) -> Iterator[tuple[Input, Frame]]:
        """Every frame of every file, in the order of time as far as each file is in order."""
        readable = (entry for entry in self.all if not entry.error and (entry.first or entry.size is None))
        pending = deque(sorted(readable, key=lambda entry: entry.begins_ns))
        heap: list[_Waiting] = []
        while pending or heap:
            while pending and (not heap or pending[0].begins_ns < heap[0].ts_ns):
                self._open(pending.popleft(), heap)
            if heap:
                yield heap[0].source, heap[0].frame
                self._go_on(heap)

    def _open(self, source: Input, heap: list[_Waiting]) -> None:
        source.vantage = self._vantage(source, [waiting.source for waiting in heap])
        self._opened += 1
        rest = source.frames()
        frame = next(rest, None)
        if frame is not None:
            heapq.heappush(heap, _Waiting(frame.ts_ns, self._opened, frame, rest, source))

    def _go_on(self, heap: list[_Waiting]) -> None:
        """Put the next frame of the file whose turn it was in the place of the last one."""
        done = heap[0]
        frame = next(done.rest, None)
        if frame is None:
            heapq.heappop(heap)
            self._ended[done.source.stem] = done.source.vantage
        else:
            heapq.heapreplace(heap, done._replace(ts_ns=frame.ts_ns, frame=frame))

    def _vantage(self, source: Input, others: list[Input]) -> Vantage:
        """Where the file was captured: where the last one of a like name was, if that has ended. It was rotated."""
        before = self._ended.get(source.stem)
        if before is not None and all(other.vantage is not before for other in others):
            return before
        self._vantages += 1
        return Vantage(self._vantages)
