"""Clients that do what dig and getaddrinfo() cannot be told to do."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.rcode

from agent.lab import VIP, Pod, namespaces
from agent.lab.processes import wait_until
from tests.verdicts.case import Connection

PORT = 53
SILENCE = "silence"
MAX_BYTES = 65535
SECONDS = 2.0
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""struct linger."""


def says(reply: dns.message.Message | None) -> str:
    """The rcode of a reply, or SILENCE."""
    return SILENCE if reply is None else dns.rcode.to_text(reply.rcode())


def ask_over_tcp(
    pod: Pod,
    name: str,
    rdtype: str = "A",
    server: str = VIP,
    *,
    seconds: float = SECONDS,
    reset: bool = False,
    port: int = 0,
    server_port: int = PORT,
) -> dns.message.Message | None:
    """One lookup over a connection of its own, closed as soon as the reply is there.

    Args:
        pod: Where the client is.
        name: What to ask for.
        rdtype: The type.
        server: Address to ask.
        seconds: How long to wait for the connection, and for the reply.
        reset: Close by RST instead of FIN.
        port: The source port; 0 for any.
        server_port: The port to ask.

    Returns:
        None when nothing came, or no connection came about.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    sock = namespaces.call_inside(pod.name, lambda: socket.socket(family, socket.SOCK_STREAM))
    query = dns.message.make_query(name, rdtype).to_wire()
    with sock, contextlib.suppress(OSError, dns.exception.DNSException):
        sock.settimeout(seconds)
        sock.bind(("", port))
        sock.connect((server, server_port))
        sock.sendall(len(query).to_bytes(2) + query)
        size = int.from_bytes(_exactly(sock, 2))
        reply = dns.message.from_wire(_exactly(sock, size))
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        return reply
    return None


def connect(pod: Pod, port: int, server: str = VIP, *, seconds: float) -> Connection | None:
    """Ask for a TCP connection from this port; what stands for it in the session line if none came about."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespaces.call_inside(pod.name, lambda: socket.socket(family, socket.SOCK_STREAM)) as sock:
        sock.bind(("", port))
        sock.settimeout(seconds)
        with contextlib.suppress(OSError):
            sock.connect((server, PORT))
            return None
    return Connection(pod.netns_id, port)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError("closed before the reply was complete")
        data += more
    return data


@dataclass
class OneSocket:
    """A UDP socket that sends what it is told to whom it is told, as resolvers do."""

    sock: socket.socket

    def send(self, name: str, rdtype: str = "A", server: str = VIP, *, id_: int) -> None:
        """Send a query."""
        query = dns.message.make_query(name, rdtype)
        query.id = id_
        self.sock.sendto(query.to_wire(), (server, PORT))

    def replies(self, count: int, *, seconds: float = SECONDS) -> int:
        """Read so many replies; how many came."""
        self.sock.settimeout(seconds)
        with contextlib.suppress(OSError):
            for number in range(count):
                self.sock.recv(MAX_BYTES)
                if number + 1 == count:
                    return count
        return 0


@contextlib.contextmanager
def one_socket(pod: Pod, server: str = VIP):
    """A socket that is not connected, so it hears no ICMP errors and may ask several servers."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with namespaces.udp_socket(pod.name, family) as sock:
        yield OneSocket(sock)


def answered(pod: Pod, names: Sequence[str], server: str = VIP, *, rdtypes: Sequence[str] = ("A",)) -> list[str]:
    """Ask for these names one after the other, each from a socket of its own; those that were answered."""
    return [
        name
        for name in names
        if all(says(pod.ask(name, rdtype, server, seconds=SECONDS)) == "NOERROR" for rdtype in rdtypes)
    ]


def unread(sock: socket.socket) -> bool:
    """Whether a datagram waits in the socket."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return bool(sock.recv(MAX_BYTES, socket.MSG_PEEK))
    return False


def wait_unread(sock: socket.socket) -> None:
    """Return when a datagram waits in the socket."""
    wait_until(lambda: unread(sock), "a datagram to come")


def sent_datagrams(pod: Pod, *, ipv6: bool) -> int:
    """How many UDP datagrams a pod has sent."""
    shown = pod.run(["cat", "/proc/net/snmp6" if ipv6 else "/proc/net/snmp"]).stdout.splitlines()
    if ipv6:
        return next(int(line.split()[1]) for line in shown if line.startswith("Udp6OutDatagrams"))
    names, values = (line.split() for line in shown if line.startswith("Udp:"))
    return int(values[names.index("OutDatagrams")])
