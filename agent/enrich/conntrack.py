"""One entry of the connection table, asked for by its addresses, for lookups whose packets never showed theirs.

Through pyroute2, and never more than the one entry: reading a whole table takes seconds. The kernel answers for the
network namespace that the socket lives in, which is this process's own: on a node with hostNetwork the node's, where
kube-proxy's rules translate. What other namespaces translate is not found here.

nfnetlink asks for CAP_NET_ADMIN in the user namespace that owns the network namespace, even to read
(net/netfilter/nfnetlink.c, nfnetlink_rcv()). Without it nothing is found, and `unavailable` says why.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.context.translation import Direction, Entry
from agent.hop.endpoint import V4_MAPPED, Endpoint, address_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_SECONDS = 0.001
"""Records pile up while we wait. The kernel answers within 0.1 ms, unless somebody flushes the table just now."""
MAX_A_SECOND = 100
FRESH_SECONDS = 1.0
"""A and AAAA leave one socket: they share an entry, and an answer."""
MAX_REMEMBERED = 1024
ANSWER_SECONDS = 1.0
"""The kernel answers while it takes the question: this is for an answer that got lost."""
MAX_ANSWER_BYTES = 1 << 14
NETLINK_NETFILTER = 12
NLMSG_ERROR = 2
ANSWER = struct.Struct("=IHHIIi")
"""Of an answer: struct nlmsghdr, and the error if it is one (include/uapi/linux/netlink.h)."""
WITHOUT_TABLE = {
    errno.EPERM: "CAP_NET_ADMIN is missing",
    errno.EPROTONOSUPPORT: "this kernel has no nfnetlink",
    errno.EINVAL: "the kernel module nf_conntrack_netlink is missing",
    errno.EOPNOTSUPP: "the kernel module nf_conntrack_netlink is missing",
}
"""Errors that will not go away, and what they mean."""

Asked = tuple[int, Endpoint, Endpoint]


class _Answer(NamedTuple):
    """What the table said, and when."""

    entry: Entry | None
    at: float


class ConntrackLookup:
    """Looks entries up without ever keeping its caller: an answer that takes longer is there for who asks again.

    A thread of its own asks the kernel, one question at a time: while somebody flushes a table of 100 000 entries, the
    kernel takes 0.3 s to answer. The thread lives in the network namespace in which the first question was asked.
    pyroute2 is loaded by the first question, which is therefore not answered at once; `warm_up` takes that out of the
    way.
    """

    unavailable: str | None
    """Why nothing can be found, in words; None as far as is known."""
    late: int
    """Questions whose answer did not come in time."""
    held_back: int
    """Questions that were not asked: too many, or one was still open."""
    failed: int
    """Questions that the kernel did not answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, max_a_second: int = MAX_A_SECOND) -> None:
        self.unavailable = None
        self.late = self.held_back = self.failed = 0
        self._clock = clock
        self._max_a_second = max_a_second
        self._second = self._asked = 0
        self._answers: dict[Asked, _Answer] = {}
        self._open: tuple[Asked, Future[Entry | None]] | None = None
        self._warm: Future[socket.socket] | None = None
        self._table = _Table()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="conntrack")

    @property
    def ready(self) -> bool:
        """Whether questions are answered at once."""
        return self._warm is not None and self._warm.done()

    def warm_up(self) -> None:
        """Load what is needed in the background: 19 MiB, 0.2 s."""
        if self._warm is None:
            self._warm = self._thread.submit(self._table.open)

    def find(self, protocol: int, client: Endpoint, server: Endpoint) -> Entry | None:
        """The entry of the connection between these two, as either end's packets have them; None if none is known.

        Waits for a millisecond at most. Both directions are asked for, so it is found by the addresses before
        translation (client, virtual address) as well as by those behind it (masqueraded client, server).

        Args:
            protocol: IANA protocol number.
            client: where queries come from.
            server: where they go to.
        """
        asked = protocol, client, server
        self._collect()
        known = self._answers.get(asked)
        if known is not None and self._clock() - known.at < FRESH_SECONDS:
            return known.entry
        if self.unavailable is not None or not self._may_ask():
            return None
        was_ready = self.ready
        self.warm_up()
        answer = self._thread.submit(self._table.find, *asked)
        self._open = asked, answer
        if not was_ready or not self._comes_in_time(answer):
            return None
        self._collect()
        return self._answers[asked].entry

    def close(self) -> None:
        """Let go of the thread and its socket, without waiting for them."""
        self.unavailable = "closed"
        self._thread.submit(self._table.close)
        self._thread.shutdown(wait=False)

    def _may_ask(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._asked = second, 0
        if self._open is not None or self._asked >= self._max_a_second:
            self.held_back += 1
            return False
        self._asked += 1
        return True

    def _comes_in_time(self, answer: Future[Entry | None]) -> bool:
        in_time = bool(wait([answer], WAIT_SECONDS).done)
        self.late += not in_time
        return in_time

    def _collect(self) -> None:
        """Take the answer to the open question, if it is there."""
        if self._open is None or not self._open[1].done():
            return
        (asked, answer), self._open = self._open, None
        error = answer.exception()
        if error is not None:
            self.failed += 1
            self.unavailable = WITHOUT_TABLE.get(getattr(error, "errno", None) or 0)
        self._answers.pop(asked, None)
        self._answers[asked] = _Answer(None if error else answer.result(), self._clock())
        if len(self._answers) > MAX_REMEMBERED:
            del self._answers[next(iter(self._answers))]


class _Table:
    """The kernel's table, for one thread alone, which also opens it.

    The messages are pyroute2's, the socket is not: its NFCTSocket makes an event loop for each request, so that a
    question costs 0.4 ms; this way it is 0.1 ms.
    """

    def __init__(self) -> None:
        self._messages: Any = None
        self._socket: socket.socket | None = None
        self._sequence = itertools.count(1)

    def open(self) -> socket.socket:
        """Load pyroute2, which costs too much for nodes that never need it, and open the socket, unless it is open.

        Raises:
            OSError: this kernel has no such sockets.
        """
        from pyroute2.netlink.nfnetlink import nfctsocket  # type: ignore[import-untyped]  # noqa: PLC0415

        self._messages = nfctsocket
        if self._socket is None:
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            opened.settimeout(ANSWER_SECONDS)
            self._socket = opened
        return self._socket

    def find(self, protocol: int, client: Endpoint, server: Endpoint) -> Entry | None:
        """The entry with these addresses in its original direction, else in that of the replies.

        Raises:
            OSError: the kernel does not answer such questions.
        """
        entry = self._get(protocol, Direction(client, server))
        return entry if entry is not None else self._get(protocol, Direction(server, client))

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()

    def _get(self, protocol: int, packet: Direction) -> Entry | None:
        """The kernel looks among both directions of all entries for this one."""
        family = socket.AF_INET if packet.source.address.startswith(V4_MAPPED) else socket.AF_INET6
        sequence, table = next(self._sequence), self.open()
        table.send(self._question(family, protocol, packet, sequence))
        answer, answered, kind, error = b"", 0, 0, 0
        while answered != sequence:  # what is older answers a question that was given up
            answer = table.recv(MAX_ANSWER_BYTES)
            _, kind, _, answered, _, error = ANSWER.unpack_from(answer)
        if kind != NLMSG_ERROR:
            return self._entry(family, answer)
        if error == -errno.ENOENT:
            return None
        raise OSError(-error, os.strerror(-error))

    def _question(self, family: int, protocol: int, packet: Direction, sequence: int) -> bytes:
        source, destination = packet
        wanted = self._messages.NFCTAttrTuple(
            family=family,
            saddr=address_to_text(source.address),
            daddr=address_to_text(destination.address),
            proto=protocol,
            sport=source.port,
            dport=destination.port,
        )
        message = self._messages.nfct_msg.create_from(tuple_orig=wanted)
        message["nfgen_family"] = family
        message["header"]["type"] = self._messages.NFNL_SUBSYS_CTNETLINK << 8 | self._messages.IPCTNL_MSG_CT_GET
        message["header"]["flags"] = self._messages.NLM_F_REQUEST
        message["header"]["sequence_number"] = sequence
        message.encode()
        return bytes(message.data)

    def _entry(self, family: int, answer: bytes) -> Entry:
        message = self._messages.nfct_msg(answer)
        message.decode()
        original, reply = (
            self._direction(family, message.get_attr(name)) for name in ("CTA_TUPLE_ORIG", "CTA_TUPLE_REPLY")
        )
        return Entry(original, reply, message.get_attr("CTA_STATUS"))

    def _direction(self, family: int, attributes: Any) -> Direction:  # noqa: ANN401  pyroute2 has no types
        found = self._messages.NFCTAttrTuple.from_netlink(family, attributes)
        return Direction(_endpoint(family, found.saddr, found.sport), _endpoint(family, found.daddr, found.dport))


def _endpoint(family: int, address: str, port: int) -> Endpoint:
    packed = socket.inet_pton(family, address)
    return Endpoint(V4_MAPPED + packed if family == socket.AF_INET else packed, port)
