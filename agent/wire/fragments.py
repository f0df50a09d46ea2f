"""Putting fragments of IP datagrams together again (RFC 791 3.2, RFC 8200 4.5), and saying which never became whole.

Fragments that overlap are refused with their whole datagram, for IPv6 as RFC 5722 demands and for IPv4 as well: no
sender makes them, only those who want two readers to see different messages. Time is the caller's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.wire.packet import Flaw, Flaws, skip_extensions

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from agent.wire.packet import Fragment, Ip

MAX_FRAGMENTS = 128
"""Fragments of one datagram: 65535 bytes need 119 of the 576 bytes that every IPv4 host takes (RFC 791 3.1)."""
MAX_DATAGRAM = 65535
_V6 = 6
_FRAGMENT_HEADER_BYTES = 8

_Key = tuple["Hashable", int, bytes, bytes, int, int]


class Incomplete(NamedTuple):
    """A datagram that did not become whole in time."""

    ts_ns: int
    """When its first sighted fragment was seen."""
    place: Hashable
    ip: Ip
    """The first fragment if it was seen (offset 0: it has the ports), else the one that was sighted first."""
    fragments: int
    """How many different ones were seen."""
    received_bytes: int
    """Payload in them."""
    total_bytes: int | None
    """Payload of the whole datagram; None if the last fragment was not seen."""
    refused: bool
    """Fragments overlapped, contradicted each other or were too many: nothing of them is known but `ip`."""


@dataclass(slots=True)
class _Datagram:
    """What is there of one datagram."""

    ts_ns: int
    place: Hashable
    ip: Ip
    starts: list[int] = field(default_factory=list)
    pieces: dict[int, Ip] = field(default_factory=dict)
    received: int = 0
    total: int | None = None
    refused: bool = False

    def take(self, ip: Ip, fragment: Fragment) -> bool:
        """Add one fragment; False if the datagram must be refused for it."""
        start = fragment.offset_bytes
        if self.pieces.get(start) == ip:
            return True
        if not self._fits(start, start + ip.payload_bytes, more=fragment.more):
            return False
        self.starts.insert(bisect_left(self.starts, start), start)
        self.pieces[start] = ip
        self.received += ip.payload_bytes
        if not start:
            self.ip = ip
        return True

    def _fits(self, start: int, end: int, *, more: bool) -> bool:
        """Whether these bytes can belong to the datagram, given what is there; the last ones say how long it is."""
        if start == end or end > MAX_DATAGRAM or len(self.starts) == MAX_FRAGMENTS or (more and end & 7):
            return False
        at = bisect_left(self.starts, start)
        if at and self._end(self.starts[at - 1]) > start:
            return False
        if at < len(self.starts) and (self.starts[at] < end or not more):
            return False
        if self.total is not None and (end > self.total or not more):
            return False
        self.total = self.total if more else end
        return True

    def _end(self, start: int) -> int:
        """Offset after the piece that starts there."""
        return start + self.pieces[start].payload_bytes

    def is_whole(self) -> bool:
        """No byte is missing: pieces do not overlap, so counting them is enough."""
        return self.received == self.total

    def refuse(self) -> None:
        """Forget the fragments; the datagram stays, so that its later fragments are refused too."""
        self.refused = True
        self.pieces.clear()
        self.starts.clear()
        self.received, self.total = 0, None

    def join(self) -> Ip:
        """The datagram in one piece; the payload ends where the capture cut the first of the fragments."""
        payloads = []
        for start in self.starts:
            piece = self.pieces[start]
            payloads.append(piece.payload)
            if len(piece.payload) < piece.payload_bytes:
                break
        headers = self.ip.total_bytes - self.ip.payload_bytes - (_FRAGMENT_HEADER_BYTES if self.ip.family == _V6 else 0)
        return self.ip._replace(
            payload=b"".join(payloads),
            payload_bytes=self.received,
            total_bytes=headers + self.received,
            fragment=None,
        )

    def incomplete(self) -> Incomplete:
        """What there is to say of it."""
        return Incomplete(self.ts_ns, self.place, self.ip, len(self.starts), self.received, self.total, self.refused)


class Reassembler:
    """The datagrams of which some fragments are missing.

    Memory: per datagram at most 64 KiB of payload and 128 fragments' bookkeeping, some 120 KiB in all.

    Attributes:
        evicted: Datagrams given up for newer ones because the table was full.
        refused: Datagrams refused because their fragments overlapped, contradicted each other or were too many.
        flaws: Why a datagram that became whole could not be read.
    """

    def __init__(self, max_datagrams: int, timeout_ns: int) -> None:
        self.evicted = 0
        self.refused = 0
        self.flaws = Flaws()
        self._max_datagrams = max_datagrams
        self._timeout_ns = timeout_ns
        self._open: OrderedDict[_Key, _Datagram] = OrderedDict()
        self._done: OrderedDict[_Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, ts_ns: int, ip: Ip, place: Hashable = None) -> Ip | None:
        """Take one packet.

        Call `expired` with the same time before, so that an identification used anew does not meet old fragments.

        Args:
            ts_ns: When it was seen.
            ip: A fragment, or a whole packet, which is returned as it is.
            place: Where it was seen, such as the interface: fragments seen at different places are kept apart, because
                one fragment is seen at each.

        Returns:
            The datagram, if this was the fragment that it lacked.
        """
        fragment = ip.fragment
        if fragment is None:
            return ip
        # RFC 791 counts the protocol in, RFC 8200 4.5 does not: there each fragment may name another.
        protocol = 0 if ip.family == _V6 else ip.protocol
        key = (place, ip.family, ip.saddr, ip.daddr, protocol, fragment.identification)
        datagram = self._find(key, ts_ns, ip)
        if datagram.refused:
            return None
        if not datagram.take(ip, fragment):
            datagram.refuse()
            self.refused += 1
        elif datagram.is_whole():
            return self._finish(key, ts_ns)
        return None

    def _find(self, key: _Key, ts_ns: int, ip: Ip) -> _Datagram:
        """The datagram that the fragment belongs to, perhaps a new one in the place of the oldest."""
        datagram = self._open.get(key)
        if datagram is None:
            if len(self._open) >= self._max_datagrams:
                self._open.popitem(last=False)
                self.evicted += 1
            datagram = self._open[key] = _Datagram(ts_ns, key[0], ip)
        return datagram

    def _finish(self, key: _Key, ts_ns: int) -> Ip | None:
        """Close a datagram that has all its fragments."""
        self._done.pop(key, None)
        if len(self._done) >= self._max_datagrams:
            self._done.popitem(last=False)
        self._done[key] = ts_ns
        whole = self._open.pop(key).join()
        return self._upper_layer(whole) if whole.family == _V6 else whole

    def _upper_layer(self, whole: Ip) -> Ip | None:
        """What follows the extension headers, which a sender may have fragmented too."""
        upper = skip_extensions(whole, self.flaws)
        if upper is None or upper.fragment is None:
            return upper
        self.flaws[Flaw.FRAGMENT] += 1
        return None

    def expired(self, now_ns: int) -> Iterator[Incomplete]:
        """Give up the datagrams that are incomplete for as long as the timeout, oldest first.

        Fragments that came once more after their datagram was whole are no loss and are dropped silently.
        """
        while self._open:
            key, datagram = next(iter(self._open.items()))
            if now_ns - datagram.ts_ns < self._timeout_ns:
                return
            del self._open[key]
            done = self._done.get(key)
            if done is None or abs(datagram.ts_ns - done) > self._timeout_ns:
                yield datagram.incomplete()
