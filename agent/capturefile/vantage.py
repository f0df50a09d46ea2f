"""What one place of capture remembers of its packets: where each was first, what it became, and what is a copy of it.

Everything here is bounded: beyond a bound the oldest is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.hop.record import TCP

if TYPE_CHECKING:
    from agent.hop.record import Hop
    from agent.wire.packet import Ip, Tcp, Udp

MAX_FIRST = 65536
"""Messages and segments whose first place is remembered."""
MAX_SEEN = 8192
"""Packets that are compared with later ones: a second capture follows at once."""
MAX_HELD = 16
"""Segments of one connection whose arrival is not known yet."""
HOST_BITS = 20
"""A tap's hosts have numbers of their own beyond those of the places."""
LOOPBACK = (V4_MAPPED + b"\x7f", bytes(15) + b"\x01")
LOOPBACK_NAMES = frozenset({"lo", "lo0"})

COPY_NS = 50_000_000
"""Mirror ports and bridges hand over a packet twice within so long: the same bytes with the same identification. Who
asks again makes a new packet, with an identification of its own."""
COPY_WITHOUT_ID_NS = 2_000_000
"""The same for packets without identification (IPv6, many of IPv4): nobody asks again within so long."""
PASSED_ON_NS = 10_000_000
"""How long a node takes at most to pass a packet on."""
TRANSLATED_NS = 180_000_000_000
"""How long a translation is believed without a packet that shows it: nf_conntrack_udp_timeout_stream is 120 s."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Connection = tuple[bytes, int, bytes, int]
"""Address and port of the client and of the server."""
Asked = tuple[bytes, int, bytes, int, bytes]
"""The same, and the message id."""


@dataclass(slots=True)
class Translation:
    """What a node that masquerades made of a client's address."""

    client: Endpoint
    virtual: Endpoint
    """What the client asked."""
    outside: Endpoint
    """The client's address from there on."""
    backend: Endpoint
    """Who is asked from there on."""
    seen_ns: int


@dataclass(slots=True, eq=False)
class Vantage:
    """One capture, perhaps in several files one after the other."""

    netns: int
    first: OrderedDict[int, tuple[int, bool | None]] = field(default_factory=OrderedDict)
    """At which interface, and in which direction, each message or segment was seen first."""
    hosts: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """At a tap: the namespace of each address."""
    own: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """Addresses from which packets left that had not come in before."""
    seen: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """When each packet was seen at its place: a second capture of it tells nothing new."""
    arrived: OrderedDict[int, tuple[int, Ip, int, int]] = field(default_factory=OrderedDict)
    """Packets to servers as they came in, to be recognised when they leave: time, packet, source and destination
    port."""
    translations: OrderedDict[Endpoint, Translation] = field(default_factory=OrderedDict)
    """By the client's address behind the translation."""
    asked: OrderedDict[Asked, Hop] = field(default_factory=OrderedDict)
    """At a tap: arrivals of queries at servers that no reply has proved yet."""
    unacknowledged: OrderedDict[Connection, list[tuple[int, Hop]]] = field(default_factory=OrderedDict)
    """At a tap: arrivals of segments at servers that no acknowledgement has proved yet."""
    counted: int = 0

    def host(self, address: bytes) -> int:
        """The namespace that stands for an address."""
        if address.startswith(LOOPBACK):
            return self.netns
        found = self.hosts.get(address)
        if found is None:
            self.counted += 1
            found = self.hosts[address] = self.netns << HOST_BITS | self.counted
            bound(self.hosts)
        return found

    def is_copy(self, ip: Ip, place: Place) -> bool:
        """Whether this very packet was captured at this very place a moment ago."""
        number = hash((place.ifindex, place.outbound, ip.identification, ip.saddr, ip.daddr, ip.payload))
        before = self.seen.get(number)
        within = COPY_NS if ip.identification else COPY_WITHOUT_ID_NS
        if before is not None and abs(place.ts_ns - before) <= within:
            return True
        self.seen[number] = place.ts_ns
        if len(self.seen) > MAX_SEEN:
            self.seen.popitem(last=False)
        return False

    def translate(self, ip: Ip, upper: Udp | Tcp, place: Place, *, response: bool) -> Translation | None:
        """What is known to have changed the client's address, before this packet or by this node."""
        if response:
            known = self.translations.get(Endpoint(ip.daddr, upper.dport)) if self.translations else None
            return known if known and place.ts_ns - known.seen_ns <= TRANSLATED_NS else None
        if place.outbound is None:
            return None
        number = _identity(ip, upper)
        if not place.outbound:
            self.arrived[number] = (place.ts_ns, ip, upper.sport, upper.dport)
            if len(self.arrived) > MAX_SEEN:
                self.arrived.popitem(last=False)
            return None
        return self._passed_on(ip, upper, place, number)

    def _passed_on(self, ip: Ip, upper: Udp | Tcp, place: Place, number: int) -> Translation | None:
        """The same bytes that came in a moment ago, in the same packet, one hop older: the node translated it.

        A proxy that asks on its own behalf makes a packet of its own, with a fresh time to live.
        """
        source = Endpoint(ip.saddr, upper.sport)
        came_ns, came, sport, dport = self.arrived.get(number) or (0, ip, 0, 0)
        if (
            came.ttl == ip.ttl + 1
            and came.identification == ip.identification
            and 0 <= place.ts_ns - came_ns <= PASSED_ON_NS
        ):
            client, virtual = Endpoint(came.saddr, sport), Endpoint(came.daddr, dport)
            if client == source:
                return None
            found = Translation(client, virtual, source, Endpoint(ip.daddr, upper.dport), place.ts_ns)
            remember(self.translations, source, found)
            return found
        known = self.translations.get(source) if self.translations else None
        if known is not None and ip.protocol == TCP:
            return known  # a segment need not leave as it came: devices join and split them
        if known is not None:
            del self.translations[source]  # the node itself uses that port now
        return None

    def hold(self, connection: Connection, end: int, arrival: Hop) -> None:
        """At a tap: keep the arrival of a segment whose last byte is before `end` until that is acknowledged."""
        held = self.unacknowledged.setdefault(connection, [])
        if len(held) < MAX_HELD:
            held.append((end, arrival))
        bound(self.unacknowledged)

    def acknowledged(self, connection: Connection, number: int) -> list[Hop]:
        """At a tap: the arrivals that an acknowledgement up to this sequence number proves."""
        held = self.unacknowledged.pop(connection, None)
        if held is None:
            return []
        rest = [chunk for chunk in held if _is_after(chunk[0], number)]
        if rest:
            self.unacknowledged[connection] = rest
        return [arrival for end, arrival in held if not _is_after(end, number)]


class Place(NamedTuple):
    """Where and when a frame was seen."""

    ts_ns: int
    vantage: Vantage
    ifindex: int
    ifname: bytes
    outbound: bool | None
    """Left there, came in there; None at a tap."""
    loopback: bool = False
    """The device is the loopback device: what comes in there has left there."""

    def is_first_of(self, number: int) -> bool:
        """Whether the message or segment was seen first at this interface and in this direction, or is seen now."""
        here = (self.ifindex, self.outbound)
        first = self.vantage.first
        found = first.setdefault(number, here)
        if len(first) > MAX_FIRST:
            first.popitem(last=False)
        return found == here

    def is_within(self, ip: Ip) -> bool:
        """Whether a packet that came in here comes from this very host, so that it left here too.

        Captures show such packets once, as they come in.
        """
        own = self.vantage.own
        return self.loopback or ip.saddr.startswith(LOOPBACK) or ip.saddr == ip.daddr or (bool(own) and ip.saddr in own)


def _identity(ip: Ip, upper: Udp | Tcp) -> int:
    """Equal for a packet before and behind a translation: what no translation changes."""
    if ip.protocol == TCP:
        return hash((TCP, ip.payload[4:14], upper.payload))
    return hash(upper.payload)


def _is_after(stamp: int, other: int) -> bool:
    """Whether a sequence number lies behind another (RFC 9293 3.4)."""
    return 0 < (stamp - other) & 0xFFFFFFFF < 1 << 31


def remember(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    """Add it, the newest at the end, and forget the oldest beyond the bound."""
    known[key] = value
    known.move_to_end(key)
    bound(known)


def bound(known: OrderedDict[Key, Value]) -> None:
    """Forget the oldest beyond the bound."""
    if len(known) > MAX_FIRST:
        known.popitem(last=False)
