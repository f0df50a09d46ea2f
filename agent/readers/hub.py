"""Sends lines to readers on this host, without ever keeping the agent's loop.

A thread of its own accepts, reads what is wanted and writes. Between the loop and each reader is a bounded queue: what
does not fit is lost for that reader, counted, and told to him.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from agent.export.printer import RateLimit
from agent.readers.notices import Refused, write_notice
from agent.readers.requests import MAX_REQUEST_BYTES, BadRequestError, Wanted, read_request

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from agent.readers.place import Place

STUCK_SECONDS = 0.1
"""Wait so long when the system has no descriptor left for another connection."""
STOP_SECONDS, LAST_SECONDS = 1.0, 0.3
"""For the thread to end; for what still waits to be taken by its reader."""
BATCH_BYTES = 256 << 10
READ_BYTES = 4096
CREDENTIALS = struct.Struct("3i")
"""Of the other end: process, user, group (unix(7), SO_PEERCRED)."""
ROOT = 0


class Limits(NamedTuple):
    """What readers may cost."""

    readers: int = 8
    """At once."""
    lookups_a_second: int = 1000
    """Healthy ones to each of them, and as many others."""
    queue_bytes: int = 4 << 20
    """What may wait for one that is slow."""
    request_seconds: float = 5.0
    """From the connection to the end of the request."""


class Reader:
    """One of them, as the agent's loop sees him. The loop puts lines in, the hub's thread takes them out."""

    def __init__(self, limits: Limits, wanted: Wanted) -> None:
        self._capacity = limits.queue_bytes
        self._most = limits.lookups_a_second
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._notices: dict[str, bytes] = {}
        self._waiting_bytes = 0
        self.healthy, self.others = RateLimit(self._most), RateLimit(self._most)
        self.ask(wanted)
        self.passed_over = 0
        self.held = 0
        self.dropped = 0

    def ask(self, wanted: Wanted) -> None:
        """Say what he wants from now on."""
        self.wanted = wanted
        self.healthy.rate = min(self._most, wanted.healthy_a_second or self._most)

    @property
    def examples(self) -> int:
        """So many healthy lookups a second are to be handed over for him."""
        return (self.healthy.rate or 0) if self.wanted.wants_healthy else 0

    def put(self, line: bytes) -> None:
        """A line of a session, if there is room for it."""
        with self._lock:
            if self._waiting_bytes + len(line) > self._capacity:
                self.dropped += 1
                return
            self._waiting_bytes += len(line)
            self._lines.append(line)

    def tell(self, kind: str, line: bytes) -> None:
        """A notice; it replaces one of its kind that was not taken yet, so there is always room."""
        with self._lock:
            self._notices[kind] = line

    def take(self) -> tuple[bytes, int]:
        """What is to be sent next, and how much of it `sent` has to be told of."""
        taken: list[bytes] = []
        size = 0
        with self._lock:
            while self._lines and size < BATCH_BYTES:
                line = self._lines.popleft()
                taken.append(line)
                size += len(line)
            if not self._lines:
                taken += self._notices.values()
                self._notices.clear()
        return b"".join(taken), size

    def sent(self, size: int) -> None:
        """So much does not wait any more."""
        with self._lock:
            self._waiting_bytes -= size


class Requests:
    """The lines of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._begun = b""

    async def next(self) -> Wanted | None:
        """The next request; None when there is none any more.

        Raises:
            BadRequestError: It is none.
        """
        loop = asyncio.get_running_loop()
        while b"\n" not in self._begun:
            if len(self._begun) > MAX_REQUEST_BYTES:
                raise BadRequestError(f"the request has more than {MAX_REQUEST_BYTES} bytes")
            data = await loop.sock_recv(self._connection, READ_BYTES)
            if not data:
                return None
            self._begun += data
        text, _, self._begun = self._begun.partition(b"\n")
        return read_request(text)


class Hub:
    """Serves readers at a place. Use as a context manager: inside it readers can come."""

    def __init__(self, place: Place, limits: Limits = Limits()) -> None:  # noqa: B008  immutable
        self.place = place
        self.limits = limits
        self.readers: tuple[Reader, ...] = ()
        """Those who have said what they want."""
        self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._wakes: dict[Reader, asyncio.Event] = {}
        self._ends = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wake(self) -> None:
        """Let readers have what was put into their queues; returns at once."""
        if self._loop is not None and self.readers:
            with suppress(RuntimeError):  # the thread has ended
                self._loop.call_soon_threadsafe(self._wake_all)

    def stop(self) -> None:
        """Give readers a moment for what waits, and end. May be called twice."""
        if self._loop is not None and self._accepting is not None:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._accepting.cancel)
            self._thread.join(STOP_SECONDS)
        self.place.close()

    def _wake_all(self) -> None:
        for event in self._wakes.values():
            event.set()

    def _run(self) -> None:
        # Signals are the main thread's: here they would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with suppress(asyncio.CancelledError):
            asyncio.run(self._work())

    async def _work(self) -> None:
        self._loop, self._accepting = asyncio.get_running_loop(), asyncio.current_task()
        self._started.set()
        try:
            while True:
                await self._accept()
        finally:
            self._ends = True
            self._wake_all()
            if self._open:
                await asyncio.wait(self._open, timeout=LAST_SECONDS)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = await loop.sock_accept(self.place.socket)
        except OSError:
            await asyncio.sleep(STUCK_SECONDS)
            return
        task = asyncio.create_task(self._serve(connection, is_one_too_many=len(self._open) >= self.limits.readers))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, connection: socket.socket, *, is_one_too_many: bool) -> None:
        with connection, suppress(OSError, TimeoutError):
            connection.setblocking(False)
            if not _may_read(connection):
                return
            try:
                if is_one_too_many:
                    raise BadRequestError(f"there are {self.limits.readers} readers already")  # noqa: TRY301  as below
                await self._converse(connection)
            except BadRequestError as error:
                await self._refuse(connection, str(error))

    async def _converse(self, connection: socket.socket) -> None:
        requests = Requests(connection)
        async with asyncio.timeout(self.limits.request_seconds):
            wanted = await requests.next()
        if wanted is None:
            return
        reader, wake = Reader(self.limits, wanted), asyncio.Event()
        self._wakes[reader] = wake
        self.readers = (*self.readers, reader)
        sending = asyncio.create_task(self._send(connection, reader, wake))
        hearing = asyncio.create_task(_hear(requests, reader))
        try:
            await asyncio.wait((sending, hearing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.readers = tuple(other_reader for other_reader in self.readers if other_reader is not reader)
            del self._wakes[reader]
            for task in (sending, hearing):
                task.cancel()
            ends = await asyncio.gather(sending, hearing, return_exceptions=True)
        for end in ends:
            if isinstance(end, BadRequestError):
                raise end

    async def _send(self, connection: socket.socket, reader: Reader, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data, size = reader.take()
            if data:
                await loop.sock_sendall(connection, data)
                reader.sent(size)
            elif self._ends:
                return
            else:
                await wake.wait()
                wake.clear()

    async def _refuse(self, connection: socket.socket, reason: str) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self.limits.request_seconds):
            await loop.sock_sendall(connection, write_notice(Refused(reason)))


async def _hear(requests: Requests, reader: Reader) -> None:
    """Take in what he wants from now on, until he goes away."""
    while (wanted := await requests.next()) is not None:
        reader.ask(wanted)


def _may_read(connection: socket.socket) -> bool:
    """The file's mode says so already; it may have been changed."""
    _, user, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return user in (ROOT, os.geteuid())
