"""A DNS proxy: it takes lookups that rules of the kernel lead to it, asks a server, and replies in its name.

    python -m tests.lab.forwarder --listen 127.0.0.1:15053 --ask 10.96.0.10 --ask fd00:10:96::a

How it asks is what proxies differ in: with the client's id or its own, from its own address, from the client's address,
or from the client's address and port. It asks over the protocol by which it was asked, and says SERVFAIL where it is
refused; where nothing comes it says nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from agent.lab import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

READY = "ready\n"
DNS_PORT = 53
WORKERS = 64
"""Lookups at one time; more wait."""
SECONDS = 4.0
"""How long it waits for the server by default, and keeps an idle connection."""
MAX_BYTES = 65535
SERVFAIL = 2
RESPONSE, RCODE = 0x80, 0x0F
HEADER = 12

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_ORIGDSTADDR, IPV6_ORIGDSTADDR = 20, 74
"""The options by which it is told, and the kind of the message that tells."""
SOCKADDR_BYTES = {socket.AF_INET: 16, socket.AF_INET6: 28}

Source = Literal["own", "address", "port"]
"""From where it asks: by its own address, by the client's address, by the client's address and port."""
End = tuple[str, int]


class Client(NamedTuple):
    """Who asked, and whom."""

    end: End
    server: End
    """As the client named it, where that is known."""


@dataclass(frozen=True)
class Behaviour:
    """How the proxy asks."""

    servers: tuple[str, ...] = ()
    """Whom it asks, one of each family; whom the client asked where there is none."""
    source: Source = "own"
    new_id: bool = False
    transparent: bool = False
    """Whether it takes and sends packets with others' addresses."""
    mark: int = 0
    """What its own packets are marked with."""
    patience: float = SECONDS
    """Seconds it waits for the server."""


@dataclass
class Forwarder:
    """The proxy."""

    behaviour: Behaviour
    pool: ThreadPoolExecutor
    enter: Callable[[Callable[[], socket.socket]], socket.socket]
    """Makes a socket in the namespace where it serves."""
    _turns: dict[End, threading.Lock] = field(default_factory=dict)
    """One lookup after the other of a client's port where it is the proxy's own too."""

    def listen(self, end: End) -> None:
        """Serve one address, over both protocols, for ever."""
        datagrams = self.enter(partial(self._listening, end, socket.SOCK_DGRAM))
        connections = self.enter(partial(self._listening, end, socket.SOCK_STREAM))
        connections.listen(WORKERS)
        threading.Thread(target=self._serve_datagrams, args=(datagrams,), daemon=True).start()
        threading.Thread(target=self._serve_connections, args=(connections,), daemon=True).start()

    def _listening(self, end: End, kind: socket.SocketKind) -> socket.socket:
        sock = self._socket(family_of(end), kind, shared=True)
        if self.behaviour.transparent and kind is socket.SOCK_DGRAM:
            sock.setsockopt(*told_by(sock.family), 1)
        sock.bind(end)
        return sock

    def _socket(self, family: int, kind: socket.SocketKind, *, shared: bool) -> socket.socket:
        """A socket, not bound yet; `shared` if its port may be others' too.

        With SO_REUSEADDR the kernel gives a port to two sockets at once, and a reply gets to one of them.
        """
        sock = socket.socket(family, kind)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.behaviour.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.behaviour.mark)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if self.behaviour.transparent:
            sock.setsockopt(*transparent_by(family), 1)
        return sock

    # --- UDP

    def _serve_datagrams(self, sock: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError):  # what an ICMP error told of a client that has gone
                query, told, _, source = sock.recvmsg(MAX_BYTES, 256)
                client = Client(source[:2], original(told) or sock.getsockname()[:2])
                self.pool.submit(self._forward_datagram, sock, query, client)

    def _forward_datagram(self, sock: socket.socket, query: bytes, client: Client) -> None:
        reply = self._asked(query, client, socket.SOCK_DGRAM)
        if reply is None:
            return
        with contextlib.suppress(OSError):
            if not self.behaviour.transparent:
                sock.sendto(reply, client.end)
                return
            with self._socket(sock.family, socket.SOCK_DGRAM, shared=True) as own:
                own.bind(client.server)
                own.sendto(reply, client.end)

    # --- TCP

    def _serve_connections(self, sock: socket.socket) -> None:
        while True:
            connection, source = sock.accept()
            self.pool.submit(self._serve_connection, connection, source[:2])

    def _serve_connection(self, connection: socket.socket, source: End) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            connection.settimeout(SECONDS)
            client = Client(source, connection.getsockname()[:2])
            while True:
                reply = self._asked(read_framed(connection), client, socket.SOCK_STREAM)
                if reply is not None:
                    send_framed(connection, reply)

    # --- the server

    def _asked(self, query: bytes, client: Client, kind: socket.SocketKind) -> bytes | None:
        """The reply to a query, with the client's id; None when nothing came."""
        if len(query) < HEADER:
            return None
        asked = secrets.token_bytes(2) + query[2:] if self.behaviour.new_id else query
        try:
            with self._turn(client):
                reply = self._exchange(asked, client, kind)
        except TimeoutError:
            return None
        except (OSError, EOFError):
            return failure(query)
        return query[:2] + reply[2:]

    def _turn(self, client: Client) -> contextlib.AbstractContextManager[object]:
        if self.behaviour.source != "port":
            return contextlib.nullcontext()
        return self._turns.setdefault(client.end, threading.Lock())

    def _exchange(self, query: bytes, client: Client, kind: socket.SocketKind) -> bytes:
        with self._socket(family_of(client.end), kind, shared=self.behaviour.source == "port") as sock:
            sock.settimeout(self.behaviour.patience)
            if self.behaviour.source != "own":
                sock.bind((client.end[0], client.end[1] if self.behaviour.source == "port" else 0))
            sock.connect(self._server_for(client))
            if kind is socket.SOCK_STREAM:
                send_framed(sock, query)
                return read_framed(sock)
            sock.send(query)
            while (reply := sock.recv(MAX_BYTES))[:2] != query[:2]:
                pass
            return reply

    def _server_for(self, client: Client) -> End:
        wanted = family_of(client.end)
        chosen = [server for server in self.behaviour.servers if family_of((server, 0)) == wanted]
        return (chosen[0], DNS_PORT) if chosen else client.server


def family_of(end: End) -> socket.AddressFamily:
    """The address family of an end."""
    return socket.AF_INET6 if ":" in end[0] else socket.AF_INET


def transparent_by(family: int) -> tuple[int, int]:
    """Level and number of the option that lets a socket have others' addresses."""
    return (socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if family == socket.AF_INET6 else (socket.SOL_IP, IP_TRANSPARENT)


def told_by(family: int) -> tuple[int, int]:
    """Level and number of the option by which a datagram comes with the address that it was sent to."""
    return (socket.IPPROTO_IPV6, IPV6_ORIGDSTADDR) if family == socket.AF_INET6 else (socket.SOL_IP, IP_ORIGDSTADDR)


def original(told: Sequence[tuple[int, int, bytes]]) -> End | None:
    """The address that a datagram was sent to, if the kernel told it."""
    for level, kind, data in told:
        if (level, kind) == told_by(socket.AF_INET):
            port, address = struct.unpack_from("!2xH4s", data)
            return socket.inet_ntop(socket.AF_INET, address), port
        if (level, kind) == told_by(socket.AF_INET6):
            port, address = struct.unpack_from("!2xH4x16s", data)
            return socket.inet_ntop(socket.AF_INET6, address), port
    return None


def failure(query: bytes) -> bytes:
    """SERVFAIL to a query, with its question and nothing else."""
    flags = bytes([query[2] | RESPONSE, query[3] & ~RCODE | SERVFAIL])
    question = query[HEADER : end_of_question(query)]
    return query[:2] + flags + query[4:6] + bytes(6) + question


def end_of_question(query: bytes) -> int:
    """Where a message's question ends."""
    at = HEADER
    while at < len(query) and query[at]:
        at += 1 + query[at]
    return at + 5


def read_framed(sock: socket.socket) -> bytes:
    """One message of a connection.

    Raises:
        EOFError: The connection ended.
    """
    return _exactly(sock, int.from_bytes(_exactly(sock, 2)))


def send_framed(sock: socket.socket, message: bytes) -> None:
    """Send one message by a connection."""
    sock.sendall(len(message).to_bytes(2) + message)


def _exactly(sock: socket.socket, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        more = sock.recv(size - len(raw))
        if not more:
            raise EOFError
        raw += more
    return raw


def _end(text: str) -> End:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def main() -> None:
    """Be the proxy."""
    parser = argparse.ArgumentParser(description="a DNS proxy")
    parser.add_argument("--listen", action="append", required=True, type=_end)
    parser.add_argument("--ask", action="append", default=[], help="a server; whom the client asked by default")
    parser.add_argument("--source", choices=("own", "address", "port"), default="own")
    parser.add_argument("--new-id", action="store_true")
    parser.add_argument("--transparent", action="store_true")
    parser.add_argument("--mark", type=int, default=0)
    parser.add_argument("--patience", type=float, default=SECONDS, help="seconds it waits for the server")
    parser.add_argument("--inside", default="", help="a network namespace to serve in; the process stays where it is")
    options = parser.parse_args()
    behaviour = Behaviour(
        servers=tuple(options.ask),
        source=options.source,
        new_id=options.new_id,
        transparent=options.transparent,
        mark=options.mark,
        patience=options.patience,
    )
    inside: str = options.inside
    pool = ThreadPoolExecutor(WORKERS, initializer=partial(namespaces.join, inside) if inside else None)
    forwarder = Forwarder(behaviour, pool, partial(namespaces.call_inside, inside) if inside else lambda make: make())
    for end in options.listen:
        forwarder.listen(end)
    sys.stdout.write(READY)
    sys.stdout.flush()
    threading.Event().wait()
    os._exit(0)


if __name__ == "__main__":
    main()
