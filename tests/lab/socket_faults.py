"""Faults at sockets: no room for another datagram, a filter that refuses them all, a server that hangs."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dns.message

from agent.lab import namespaces
from agent.lab.processes import LabError, wait_until
from agent.lab.translation import VIP
from tests.lab.scripted import PORT, Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.lab.node import Lab
    from agent.lab.pods import DnsServer, Pod

SO_MEMINFO = 55
MEMINFO_WORDS = 9
RECEIVED_BYTES, DROPS = 0, 8
"""Words of SO_MEMINFO (linux/sock_diag.h): what lies in the receive buffer, and how much found no room in it."""
SO_ATTACH_FILTER = 26
REFUSE_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""The classic BPF program `return 0`."""
ROOM_FOR = 64
"""More datagrams than the smallest receive buffer takes."""
MAX_MESSAGE = 65535


@dataclass(frozen=True)
class Query:
    """A query that a program can send again: from the same socket and with the same id, as resolvers do."""

    sock: socket.socket
    message: bytes

    def send(self) -> None:
        """Send it; an error that the kernel reports is the fault's business."""
        with contextlib.suppress(OSError):
            self.sock.send(self.message)

    def reply(self, seconds: float) -> bytes | None:
        """Wait for a reply; None when none came."""
        self.sock.settimeout(seconds)
        with contextlib.suppress(OSError):
            return self.sock.recv(MAX_MESSAGE)
        return None


@contextmanager
def open_query(pod: Pod, name: str, rdtype: str = "A", server: str = VIP) -> Iterator[Query]:
    """A query of this pod, to be sent while the block lasts."""
    with pod.udp_socket(server) as sock:
        yield Query(sock, dns.message.make_query(name, rdtype).to_wire())


@dataclass(frozen=True)
class NarrowSocket:
    """A socket that nobody reads, with the smallest receive buffer there is: it takes a few datagrams."""

    sock: socket.socket

    def takes(self, send: Callable[[], object]) -> bool:
        """Have a datagram sent to it, and tell whether there was room for it."""
        received, drops = self._memory()
        send()
        wait_until(lambda: self._memory() != (received, drops), "a datagram to reach a socket")
        return self._memory()[1] == drops

    def fill(self, send: Callable[[], object]) -> None:
        """Have datagrams sent until there is no room left."""
        if all(self.takes(send) for _ in range(ROOM_FOR)):
            raise LabError("the receive buffer is larger than expected")

    def read(self) -> Iterator[tuple[bytes, tuple[str, int]]]:
        """Take out all that is in the buffer: datagrams, and where they came from."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.sock.recvfrom(MAX_MESSAGE)

    def answer(self) -> None:
        """Read one query, once it is there, and answer it."""
        self.sock.settimeout(1)
        query, client = self.sock.recvfrom(MAX_MESSAGE)
        reply = Script(always="ok").reply(dns.message.from_wire(query), tcp=False)
        self.sock.sendto(reply or b"", client)

    def _memory(self) -> tuple[int, int]:
        size = MEMINFO_WORDS * 4
        words = struct.unpack(f"{MEMINFO_WORDS}I", self.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, size))
        return words[RECEIVED_BYTES], words[DROPS]


@contextmanager
def narrow_client(pod: Pod, server: str = VIP) -> Iterator[NarrowSocket]:
    """A client's socket, connected to a DNS server."""
    with pod.udp_socket(server) as sock:
        yield _narrow(sock)


@contextmanager
def narrow_server(server: DnsServer, address: str = "") -> Iterator[NarrowSocket]:
    """A socket on a server pod's port in place of its dnsmasq, on the pod's IPv4 address by default."""
    with _own_socket(server, address) as sock:
        yield _narrow(sock)


@contextmanager
def filtered_server(server: DnsServer, address: str = "") -> Iterator[None]:
    """The same with a socket filter that refuses everything."""
    with _own_socket(server, address) as sock:
        program = ctypes.create_string_buffer(REFUSE_ALL)
        one_instruction = struct.pack("HL", 1, ctypes.addressof(program))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, one_instruction)
        yield


@contextmanager
def hung_server(lab: Lab, index: int = 0) -> Iterator[DnsServer]:
    """Suspend a DNS server for good: what it did not read until the end is never answered, not even late."""
    server = lab.servers[index]
    server.stop()
    try:
        yield server
    finally:
        server.kill()
        server.start()


def _narrow(sock: socket.socket) -> NarrowSocket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    return NarrowSocket(sock)


@contextmanager
def _own_socket(server: DnsServer, address: str) -> Iterator[socket.socket]:
    """The port of a server pod, taken over from its dnsmasq."""
    address = address or server.address
    server.kill()
    try:
        with namespaces.udp_socket(server.name, socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.bind((address, PORT))
            yield sock
    finally:
        server.start()
