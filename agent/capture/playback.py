"""From the frames of capture files to sightings, as if the kernel program had seen the packets.

A file stands for one place, so it gets a network namespace of its own, with a small number that no real one has.

- Frames with a direction (cooked captures, pcapng with flags) left or came in there. What leaves without having come
  in before has its origin there.
- Frames without one come from a tap between two ends: each left its sender and came to its receiver, so it is seen
  twice, a nanosecond apart. Every address stands for a host there, so that one client's query to a second server does
  not look like the first server's own; on loopback all are one.
- Our own recordings say everything themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from agent.session.sighting import (
    DETAIL,
    ORIGIN,
    RESPONSE,
    RX,
    SOCKET_RX,
    SOCKET_TX,
    TCP,
    TX,
    UDP,
    V4_MAPPED,
    Detail,
    Sighting,
)
from agent.wire.fragments import Reassembler
from agent.wire.packet import (
    VXLAN_PORTS,
    Flaws,
    LinkType,
    cooked_header,
    network_layer,
    parse_ip,
    parse_tcp,
    parse_udp,
    vxlan_inner,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.capture.frames import Frame
    from agent.wire.packet import Ip, Tcp, Udp

MAX_DATAGRAMS = 256
"""Fragmented datagrams that are put together at once: some 30 MiB if all are as large as can be."""
FRAGMENTS_NS = 2_000_000_000
"""How long a datagram waits for its fragments. Less than a session waits for its reply."""
MAX_FIRST = 65536
"""Messages and segments whose first place is remembered."""
MORE_FRAGMENTS = 0x2000
MAX_TUNNELS = 2
HOST_BITS = 20
HEADER_BYTES = 12
QUESTION_FIXED = 5
MAX_LABEL = 63
MAX_NAME = 255
NAME_BYTES = 15
NUMBER_MASK = (1 << 64) - 1
LOOPBACK = (V4_MAPPED + b"\x7f", bytes(15) + b"\x01")
_EMPTY = Detail._make(0 if isinstance(value, int) else b"" for value in DETAIL.unpack(bytes(DETAIL.size)))


@dataclass(slots=True, eq=False)
class Vantage:
    """One capture, perhaps in several files one after the other."""

    netns: int
    first: OrderedDict[int, tuple[int, bool | None]] = field(default_factory=OrderedDict)
    """At which interface, and in which direction, each message or segment was seen first."""
    hosts: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """At a tap: the namespace of each address."""
    counted: int = 0

    def host(self, address: bytes) -> int:
        """The namespace that stands for an address."""
        if address.startswith(LOOPBACK):
            return self.netns
        found = self.hosts.get(address)
        if found is None:
            self.counted += 1
            found = self.hosts[address] = self.netns << HOST_BITS | self.counted
            if len(self.hosts) > MAX_FIRST:
                self.hosts.popitem(last=False)
        return found


class Place(NamedTuple):
    """Where and when a frame was seen."""

    ts_ns: int
    vantage: Vantage
    ifindex: int
    ifname: bytes
    outbound: bool | None
    """Left there, came in there; None at a tap."""

    def is_first_of(self, number: int) -> bool:
        """Whether the message or segment was seen first at this interface and in this direction, or is seen now."""
        here = (self.ifindex, self.outbound)
        first = self.vantage.first
        found = first.setdefault(number, here)
        if len(first) > MAX_FIRST:
            first.popitem(last=False)
        return found == here


class Playback:
    """Makes sightings of frames.

    Args:
        ports: UDP and TCP ports that count as DNS.

    Attributes:
        flaws: Why frames could not be read.
        other: Packets that are not DNS, and datagrams of which no part can be read.
        incomplete: Datagrams of which fragments are missing.
    """

    def __init__(self, ports: frozenset[int]) -> None:
        self.flaws = Flaws()
        self.other = 0
        self.incomplete = 0
        self._ports = ports
        self._fragments = Reassembler(MAX_DATAGRAMS, FRAGMENTS_NS)
        self._taps: set[int] = set()

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the address is one of the place's own: at a tap everything is, elsewhere only loopback surely is."""
        tap = netns in self._taps or netns >> HOST_BITS in self._taps
        return True if tap or address.startswith(LOOPBACK) else None

    def sightings(self, frame: Frame, vantage: Vantage) -> Iterator[Sighting]:
        """What was seen of DNS messages when this frame was captured."""
        yield from self._given_up(frame.ts_ns)
        cooked = cooked_header(frame.linktype, frame.data)
        ifindex = cooked.ifindex if cooked and cooked.ifindex else frame.interface_id + 1
        outbound = cooked.outgoing if cooked else frame.outbound
        place = Place(frame.ts_ns, vantage, ifindex, _interface_name(frame.interface_name), outbound)
        if outbound is None:
            self._taps.add(vantage.netns)
        yield from self._in_frame(frame.linktype, frame.data, place, 0)

    def _in_frame(self, linktype: int, data: bytes, place: Place, depth: int) -> Iterator[Sighting]:
        packet = network_layer(linktype, data, self.flaws)
        ip = parse_ip(packet, self.flaws) if packet is not None else None
        if ip is not None and ip.fragment is not None:
            ip = self._fragments.add(place.ts_ns, ip, place._replace(ts_ns=0))
        if ip is None:
            return
        if ip.protocol == UDP:
            yield from self._in_datagram(ip, place, depth)
        elif ip.protocol == TCP:
            tcp = parse_tcp(ip, self.flaws)
            if tcp is not None and self._is_dns(tcp):
                response = tcp.sport in self._ports and tcp.dport not in self._ports
                yield from _segment(ip, tcp, place, RESPONSE if response else 0)
        else:
            self.other += 1

    def _in_datagram(self, ip: Ip, place: Place, depth: int) -> Iterator[Sighting]:
        udp = parse_udp(ip, self.flaws)
        if udp is None:
            return
        if udp.sport in self._ports or udp.dport not in VXLAN_PORTS or depth == MAX_TUNNELS:
            # A DNS client may have a port of VXLAN's by chance.
            if self._is_dns(udp):
                yield from _message(ip, udp, place)
        elif (inner := vxlan_inner(udp.payload)) is not None:
            yield from self._in_frame(LinkType.ETHERNET, inner, place, depth + 1)

    def _is_dns(self, upper: Udp | Tcp) -> bool:
        if upper.sport in self._ports or upper.dport in self._ports:
            return True
        self.other += 1
        return False

    def _given_up(self, now_ns: int) -> Iterator[Sighting]:
        """The first fragments of datagrams that never became whole: they left, and nobody could take them in."""
        for one in self._fragments.expired(now_ns):
            self.incomplete += 1
            place = one.place
            udp = parse_udp(one.ip, self.flaws) if one.ip.protocol == UDP and not one.refused else None
            if udp is None or not isinstance(place, Place) or place.outbound is False or not self._is_dns(udp):
                continue
            left = place._replace(ts_ns=one.ts_ns, outbound=True)
            for sighting in _message(one.ip, udp, left):
                yield sighting._replace(fragment=MORE_FRAGMENTS)


def _message(ip: Ip, udp: Udp, place: Place) -> Iterator[Sighting]:
    """A DNS message over UDP."""
    payload = udp.payload
    response = len(payload) > 2 and payload[2] & 0x80  # noqa: PLR2004  QR is in the third octet
    number = _number(ip, udp, place, response=bool(response))
    rest = _rest(ip, udp, place, len(payload)) + payload
    flags = RESPONSE if response else 0
    begins = place.is_first_of(number)
    if place.outbound is not False:
        yield _seen(ip, rest, place, TX, number, flags | ORIGIN if begins else flags)
    if not place.outbound:
        yield _seen(ip, rest, place, RX, number, flags)


def _number(ip: Ip, udp: Udp, place: Place, *, response: bool) -> int:
    """Equal for all hops of a message, in all files: its client, header and question, whatever the server's address."""
    client, port = (ip.daddr, udp.dport) if response else (ip.saddr, udp.sport)
    scope = place.vantage.netns if client.startswith(LOOPBACK) else 0
    return hash((client, port, scope, udp.payload[: question_end(udp.payload)])) & NUMBER_MASK or 1


def _segment(ip: Ip, tcp: Tcp, place: Place, direction: int) -> Iterator[Sighting]:
    """A TCP segment, `direction` being RESPONSE from the server: at its socket where seen first, else at a device."""
    begins = place.is_first_of(hash((ip.saddr, tcp.sport, tcp.seq, tcp.payload_bytes, tcp.flags)))
    at_device = _rest(ip, tcp, place, 0)
    at_socket = _rest(ip, tcp, place, len(tcp.payload)) + tcp.payload
    flags = tcp.flags & 0xFF
    if place.outbound is not False:
        left = _seen(ip, at_socket, place, SOCKET_TX, 0, ORIGIN) if begins else _seen(ip, at_device, place, TX)
        yield left._replace(flags=left.flags | direction, sequence=tcp.seq, tcp_flags=flags)
    if not place.outbound:
        socket = begins and place.outbound is not None
        came = _seen(ip, at_socket, place, SOCKET_RX) if socket else _seen(ip, at_device, place, RX)
        yield came._replace(flags=direction, sequence=tcp.seq, tcp_flags=flags)


def _seen(  # noqa: PLR0917  positional for speed
    ip: Ip, rest: bytes, place: Place, event: int, number: int = 0, flags: int = 0
) -> Sighting:
    """One sighting; at a tap the arrival is a nanosecond after the departure, at another host."""
    ts_ns, vantage, ifindex, _, outbound = place
    netns, tail = vantage.netns, len(rest) - DETAIL.size
    if outbound is None:
        arrival = event == RX
        netns = vantage.host(ip.daddr if arrival else ip.saddr)
        ts_ns += arrival
    return Sighting(ts_ns, number, 0, netns, ifindex, tail, event, flags, ip.family, ip.protocol, rest=rest)


def _rest(ip: Ip, upper: Udp | Tcp, place: Place, captured: int) -> bytes:
    fixed = _EMPTY._replace(
        payload_bytes=upper.payload_bytes,
        captured_bytes=captured,
        sport=upper.sport,
        dport=upper.dport,
        saddr=ip.saddr,
        daddr=ip.daddr,
        ifname=place.ifname,
    )
    return DETAIL.pack(*fixed)


@lru_cache(maxsize=1024)
def _interface_name(name: str) -> bytes:
    """As much of it as the record has room for."""
    return name.encode()[:NAME_BYTES].decode("utf-8", "ignore").encode()


def question_end(payload: bytes) -> int:
    """Where the first question ends; where the header ends if there is none, or none that can be read."""
    at = HEADER_BYTES
    limit = min(len(payload) - QUESTION_FIXED, HEADER_BYTES + MAX_NAME)
    while at <= limit:
        label = payload[at]
        if not label:
            return at + QUESTION_FIXED
        if label > MAX_LABEL:
            break
        at += label + 1
    return HEADER_BYTES
