"""The agent's HTTP port: a few small pages, for Prometheus, for probes and for people.

Written for clients that mean harm, because on a node's address anybody may knock: a thread of its own, nothing kept
alive, every wait limited, a bounded number of connections (the one that dawdled longest makes room), a bounded number
of them a second, and no byte of a request's body is looked at.
"""

from __future__ import annotations

import asyncio
import errno
import re
import signal
import socket
import sys
import threading
from contextlib import aclosing, suppress
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, NamedTuple, Self

from agent.export.metrics.pages import NOTHING, PLAIN, Page

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from types import TracebackType

    from agent.export.metrics.sources import Traffic

DEFAULT_PORT = 9353
MAX_PORT = 65535
NOWHERE = "none"
END_OF_HEAD = b"\r\n\r\n"
BACKLOG = 64
READ_BYTES = 4096
READS = 16
"""An honest request comes in one or two pieces; a client that sends byte by byte is not heard out."""
STOP_SECONDS = 1.0
ASK_AGAIN_SECONDS = 0.1
"""While it is too early for an answer."""
STUCK_SECONDS = 0.1
"""Wait so long when the system has no descriptor left for another connection."""
METHODS = ("GET", "HEAD")
HEADERS = ("accept", "host", "sec-fetch-site")
LOCAL_NAME = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
SAME_SITE = ("", "none", "same-origin")
ELSEWHERE = "this page is served on loopback only: use kubectl port-forward, or ssh -L"


class ServeError(Exception):
    """The port cannot be had; the text says why and what to do."""


class BadRequestError(Exception):
    """This is no HTTP request that makes sense."""


class Address(NamedTuple):
    """Where to listen."""

    host: str
    """An IP address; empty: all addresses, of both families."""
    port: int
    """0: any free one."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Limits(NamedTuple):
    """What clients may cost."""

    connections: int = 32
    """Open at once."""
    connections_a_second: int = 200
    """Others wait in the kernel's queue."""
    seconds: float = 10.0
    """From the connection to the last byte of the answer, without the time that it is too early for one."""
    head_bytes: int = 8192


class Request(NamedTuple):
    """What is understood of a request."""

    method: str
    path: str
    accept: str
    """The header of that name, like those below."""
    query: str = ""
    """What stands behind the question mark."""
    host: str = ""
    site: str = ""
    """Sec-Fetch-Site: how the page that asks is related to what it asks for. Only browsers say so."""


class Stream(NamedTuple):
    """An answer that goes on until the reader goes away or is too slow."""

    status: int
    content_type: str
    parts: Callable[[], AsyncGenerator[bytes, None]]
    """Each is written before the next one is made."""


class Private(NamedTuple):
    """Pages for who sits at this machine."""

    pages: Mapping[str, Callable[[Request], Page | Stream]]
    """By path, what makes the answer. Called in the server's thread."""
    streams: int = 4
    """Open at once; they are among the connections, and make room for others first."""
    stream_seconds: float = 600.0
    """A browser asks anew for a stream that ended."""


def address(text: str) -> Address | None:
    """`:9353`, `192.0.2.1:9353`, `[2001:db8::1]:9353`; `none` is None: do not listen.

    Raises:
        ValueError: It is none of these.
    """
    if text == NOWHERE:
        return None
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" not in text or not _is_port(port) or (host and not _is_ip(host)):
        raise ValueError(f"{text!r} is no address and port such as :{DEFAULT_PORT} or 192.0.2.1:{DEFAULT_PORT}")
    return Address(host, int(port))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= MAX_PORT


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse(data: bytes) -> Request:
    """Read the request line and the headers that matter (RFC 9112 2 to 5).

    Raises:
        BadRequestError: It cannot be read, or does not end.
    """
    head, end, _ = data.partition(END_OF_HEAD)
    line, *fields = head.decode("latin-1").split("\r\n")
    parts = line.split(" ")
    if not end or len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):  # noqa: PLR2004  RFC 9112 3
        raise BadRequestError(line)
    named = [(name.lower(), value.strip()) for name, _, value in (field.partition(":") for field in fields)]
    accept, host, site = (",".join(value for name, value in named if name == wanted) for wanted in HEADERS)
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, accept, query, host, site)


def is_loopback(connection: socket.socket) -> bool:
    """Whether the client connected to a loopback address of this host."""
    try:
        local = ip_address(connection.getsockname()[0].partition("%")[0])
    except (OSError, ValueError):
        return False
    mapped = local.ipv4_mapped if isinstance(local, IPv6Address) else None
    return (mapped or local).is_loopback


def why_not_private(request: Request) -> str | None:
    """Why a request over loopback gets no private page; None if it does.

    A page of another site that a browser shows may point a name of its own at this host (DNS rebinding): the name that
    the browser asked for stands in Host. Or it may ask straight: then the browser says that it is of another site.
    """
    if not LOCAL_NAME.fullmatch(request.host):
        return "ask for this page as localhost, 127.0.0.1 or [::1]"
    if request.site not in SAME_SITE:
        return "this page is not for other sites: type its address"
    return None


class Server:
    """Serves pages from a thread of its own. Use as a context manager: inside it the port is open.

    Raises:
        ServeError: when the port cannot be had.
    """

    def __init__(
        self,
        where: Address,
        pages: Mapping[str, Callable[[str], Page | None]],
        traffic: Traffic,
        limits: Limits = Limits(),  # noqa: B008  immutable
        private: Private | None = None,
    ) -> None:
        """Open the port; connections wait until the context is entered.

        Args:
            where: To listen.
            pages: By path, what makes the answer from the header Accept, or None as long as the client shall wait.
                Called in the server's thread.
            traffic: Counts what happens.
            limits: What clients may cost.
            private: Pages for clients on loopback alone.
        """
        self._listener = listen(where)
        self.address = Address(where.host, self._listener.getsockname()[1])
        self._pages = pages
        self._traffic = traffic
        self._limits = limits
        self._private = private or Private({})
        self._streams: dict[asyncio.Task[None], None] = {}
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._started = threading.Event()
        self._open: dict[asyncio.Task[None], None] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and end the thread; whoever is being answered is cut off. May be called twice."""
        if self._loop is not None and self._accepting is not None:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._accepting.cancel)
            self._thread.join(STOP_SECONDS)
        self._listener.close()

    def _run(self) -> None:
        # Signals are the main thread's: here they would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with suppress(asyncio.CancelledError):
            asyncio.run(self._work())

    async def _work(self) -> None:
        self._loop, self._accepting = asyncio.get_running_loop(), asyncio.current_task()
        self._started.set()
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(STUCK_SECONDS)
                continue
            self._admit(connection)
            await asyncio.sleep(1 / self._limits.connections_a_second)

    def _admit(self, connection: socket.socket) -> None:
        if len(self._open) >= self._limits.connections:
            # An honest client needs a millisecond, so it is not the oldest. A stream is asked for anew.
            next(iter(self._streams or self._open)).cancel()
            self._traffic.refused += 1
        task = asyncio.create_task(self._serve(connection))
        self._open[task] = None
        task.add_done_callback(self._open.pop)

    async def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                async with asyncio.timeout(self._limits.seconds) as limit:
                    stream = await self._converse(connection, limit)
            except TimeoutError:
                self._traffic.count(HTTPStatus.REQUEST_TIMEOUT)
                return
            if stream is not None:
                await self._go_on(connection, stream)

    async def _converse(self, connection: socket.socket, limit: asyncio.Timeout) -> Stream | None:
        """Answer; a stream is left to the caller."""
        loop = asyncio.get_running_loop()
        head = await self._read_head(connection)
        if not head:
            return None
        while (answer := self._answer(head, connection)) is None:
            limit.reschedule(loop.time() + self._limits.seconds)
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        page, wants_body = answer
        self._traffic.count(page.status)
        if isinstance(page, Stream) and wants_body:
            self._note_stream()
        await loop.sock_sendall(connection, _head_of(page))
        if isinstance(page, Stream):
            return page if wants_body else None
        if wants_body:
            await loop.sock_sendall(connection, page.body)
        # Closed with unread bytes, a connection is reset, and the client may lose the answer.
        connection.shutdown(socket.SHUT_WR)
        for _ in range(READS):
            if not await loop.sock_recv(connection, READ_BYTES):
                break
        return None

    async def _go_on(self, connection: socket.socket, stream: Stream) -> None:
        """Write a stream, until its reader is gone or takes too long for one part of it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._private.stream_seconds
        try:
            async with aclosing(stream.parts()) as parts:
                async for part in parts:
                    async with asyncio.timeout(self._limits.seconds):
                        await loop.sock_sendall(connection, part)
                    if loop.time() > end:
                        return
        except TimeoutError:
            self._traffic.count(HTTPStatus.REQUEST_TIMEOUT)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  as with pages
            print(f"dnstrail: a stream failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _note_stream(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  each connection has one
        self._streams[task] = None
        task.add_done_callback(self._streams.pop)

    async def _read_head(self, connection: socket.socket) -> bytes:
        """The request line and the header, or what came instead; nothing if the client went away."""
        loop, head = asyncio.get_running_loop(), b""
        for _ in range(READS):
            data = await loop.sock_recv(connection, READ_BYTES)
            head += data
            if not data or END_OF_HEAD in head or len(head) > self._limits.head_bytes:
                return head[: self._limits.head_bytes] if data else b""
        return head

    def _answer(self, head: bytes, connection: socket.socket) -> tuple[Page | Stream, bool] | None:
        """The answer, and whether its body is wanted; None as long as it is too early."""
        try:
            request = parse(head)
        except BadRequestError:
            return _problem(HTTPStatus.BAD_REQUEST), True
        if request.method not in METHODS:
            return _problem(HTTPStatus.METHOD_NOT_ALLOWED), True
        wants_body = request.method == "GET"
        try:
            page = self._page_of(request, here=is_loopback(connection))
        except Exception as error:  # noqa: BLE001  a page that fails must not take the port with it
            print(f"dnstrail: {request.path}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR), True
        return None if page is None else (page, wants_body)

    def _page_of(self, request: Request, *, here: bool) -> Page | Stream | None:
        """A private page for a client on loopback (`here`), else a public one."""
        public, private = self._pages.get(request.path), self._private.pages.get(request.path)
        if private is None or (public is not None and not here):
            return _problem(HTTPStatus.NOT_FOUND) if public is None else public(request.accept)
        reason = why_not_private(request) if here else ELSEWHERE
        if reason is not None:
            return _problem(HTTPStatus.FORBIDDEN, reason)
        found = private(request)
        if isinstance(found, Stream) and len(self._streams) >= self._private.streams:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{len(self._streams)} are looking at this page already")
        return found


def listen(where: Address) -> socket.socket:
    """The open port.

    Raises:
        ServeError: It cannot be had.
    """
    both = not where.host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in where.host else socket.AF_INET
    try:
        listener = socket.create_server((where.host, where.port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise ServeError(f"cannot listen on {where}: {_reason(error)}") from error
    listener.setblocking(False)
    return listener


def _reason(error: OSError) -> str:
    remedy = "choose another one by --metrics-address, or none to do without metrics"
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use, perhaps by another dnstrail on this host; {remedy}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"no device of this host has that address; {remedy}"
    return f"{error.strerror}; {remedy}"


def _problem(status: HTTPStatus, reason: str = "") -> Page:
    words = f"{status.value} {status.phrase}" + (f": {reason}" if reason else "")
    return Page(status, PLAIN, f"{words}\n".encode())


def _head_of(page: Page | Stream) -> bytes:
    lines = (
        f"HTTP/1.1 {page.status} {HTTPStatus(page.status).phrase}",
        f"Content-Type: {page.content_type}",
        *([f"Content-Length: {len(page.body)}"] if isinstance(page, Page) else []),
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cross-Origin-Resource-Policy: same-origin",
        f"Content-Security-Policy: {page.policy if isinstance(page, Page) else NOTHING}",
        *(["Allow: GET, HEAD"] if page.status == HTTPStatus.METHOD_NOT_ALLOWED else []),
        "Connection: close",
    )
    return "\r\n".join(lines).encode() + END_OF_HEAD
