"""Lines to a descriptor whose reader may be slow, stopped or gone, without ever keeping their writer.

A container runtime that stops reading, a pager, a terminal held by Ctrl-S, a disk that hangs: a write to any of them
takes as long as they like, and the kernel's ring would overflow meanwhile. So a thread of its own writes, from a queue
that is bounded: what does not fit is lost and counted, by whole lines. A line of which the system took only a part (the
disk is full) is ended by a line feed before the next one.
"""

from __future__ import annotations

import os
import select
import threading
import time
from queue import SimpleQueue
from typing import NamedTuple

CAPACITY_BYTES = 8 << 20
"""About 2700 session lines."""
BATCH_BYTES = 256 << 10
"""So much leaves without being asked to: a busy writer may not flush for a long time."""


class _Batch(NamedTuple):
    """What was handed over at once."""

    data: bytes
    lines: int


class Outlet:
    """Writes to a descriptor, which stays the caller's, in the background.

    One thread may write, flush and close; everybody may read the counts.

    Args:
        descriptor: where to.
        capacity_bytes: what may wait for the reader; the queue alone, there is as much again in the kernel's pipe.
    """

    def __init__(self, descriptor: int, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._descriptor = descriptor
        self._capacity = capacity_bytes
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        # Each of these has one writer: the lines' writer the first three, the thread the others.
        self._refused = 0
        self._handed_lines = 0
        self._handed_bytes = 0
        self._done_lines = 0
        self._done_bytes = 0
        self._failed = 0
        self._torn = False
        self._failure: OSError | None = None
        self._closed = False
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        # A daemon: a write that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that did not fit, that the system refused to write, or that waited in vain when this was closed.

        The last ones may be fewer: of what the reader was just being given, he may have got the beginning.
        """
        waited_in_vain = self._handed_lines - self._done_lines if self._closed else 0
        return self._refused + self._failed + waited_in_vain

    @property
    def waiting_bytes(self) -> int:
        """What was written here and has not left yet."""
        return self._pending_bytes + self._handed_bytes - self._done_bytes

    @property
    def failure(self) -> str | None:
        """Why the last lines could not be written, in words; None when they could."""
        failure = self._failure
        return None if failure is None else failure.strerror

    def write(self, line: str) -> None:
        """Take one whole line, with its line feed; it leaves with the next `flush` at the latest."""
        data = line.encode()
        if self.waiting_bytes + len(data) > self._capacity:
            self._refused += 1
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > BATCH_BYTES:
            self._hand_over()

    def flush(self) -> None:
        """Let what was written leave; returns at once.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        if self._pending:
            self._hand_over()
        if isinstance(self._failure, BrokenPipeError):
            raise self._failure

    def close(self, seconds: float) -> None:
        """Wait until everything has left, at most so long; what has not is lost. Nothing can be written any more.

        Raises:
            BrokenPipeError: the reader is gone.
        """
        end = time.monotonic() + seconds
        try:
            self.flush()
        finally:
            self._queue.put(None)
            self._thread.join(max(0.0, end - time.monotonic()))
            self._closed = True
        if isinstance(self._failure, BrokenPipeError):
            raise self._failure

    def _hand_over(self) -> None:
        batch = _Batch(b"".join(self._pending), len(self._pending))
        self._handed_lines += batch.lines
        self._handed_bytes += len(batch.data)
        self._pending.clear()
        self._pending_bytes = 0
        self._queue.put(batch)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._torn and self._write(b"\n"):
                self._torn = False
            written = self._write(batch.data)
            if written:
                self._torn = not batch.data.endswith(b"\n", 0, written)
            self._failed += batch.data.count(b"\n", written)
            self._done_lines += batch.lines
            self._done_bytes += len(batch.data)

    def _write(self, data: bytes) -> int:
        """Write all of it, however long that takes; how much could be written."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError as error:
            self._failure = error
        else:
            self._failure = None
        return len(data) - len(rest)

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            # Somebody else made the descriptor non-blocking: whoever shares our stdout shares that flag.
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll()
            return 0
