"""From the frames of capture files to hops, as if the kernel program had seen the packets.

A file stands for one place, so it gets a network namespace of its own, with a small number that no real one has.

- Frames with a direction (cooked captures, pcapng with flags) left or came in there. What leaves without having come
  in before has its origin there. So has what comes in by the loopback device or from the host's own address.
- Frames without one come from a tap between two ends: each left its sender, and if it is a reply it came to its
  receiver, a nanosecond later. That a query came to its server is believed when the server replies, or acknowledges
  the segment: what was sent past a tap may have got nowhere. Every address stands for a host there, so that one
  client's query to a second server does not look like the first server's own; on loopback all are one.
- Our own recordings say everything themselves.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.capturefile.vantage import HOST_BITS, LOOPBACK, LOOPBACK_NAMES, Place, Vantage, remember
from agent.hop.endpoint import Endpoint
from agent.hop.record import (
    CONNTRACK,
    DETAIL,
    DROP,
    FRAGMENT,
    ICMP,
    ORIGIN,
    RESPONSE,
    RX,
    SOCKET_RX,
    SOCKET_TX,
    STACK_FRAMES,
    TCP,
    TX,
    UDP,
    Detail,
    Hop,
    place_of,
)
from agent.wire import icmp, tunnels
from agent.wire.fragments import Reassembler
from agent.wire.packet import Flaws, cooked_header, network_layer, parse_ip, parse_tcp, parse_udp
from agent.wire.stream import ACK, FIN, SYN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.capturefile.frames import Frame
    from agent.capturefile.vantage import Translation
    from agent.wire.fragments import Incomplete
    from agent.wire.packet import Ip, Tcp, Udp

MAX_DATAGRAMS = 256
"""Fragmented datagrams that are put together at once: some 30 MiB if all are as large as can be."""
FRAGMENTS_NS = 2_000_000_000
"""How long a datagram waits for its fragments. Less than a session waits for its reply."""
PROVES_NS = 10_000_000_000
"""A reply that comes later does not prove any more that its query came: the lookup is told by then."""
MORE_FRAGMENTS = 0x2000
MAX_TUNNELS = 4
HEADER_BYTES = 12
QUESTION_FIXED = 5
MAX_LABEL = 63
MAX_NAME = 255
NAME_BYTES = 15
NUMBER_MASK = (1 << 64) - 1
SEQUENCE_MASK = 0xFFFFFFFF
NEW, ESTABLISHED_REPLY = 2, 3
"""enum ip_conntrack_info."""
_EMPTY = bytes(DETAIL.size)
_SIZES_AND_PORTS = slice(place_of("payload_bytes").start, place_of("dport").stop)
_ADDRESSES = slice(place_of("saddr").start, place_of("daddr").stop)
_IFNAME, _ACKNOWLEDGEMENT = place_of("ifname"), place_of("acknowledgement")
_pack_sizes_and_ports = struct.Struct("=IIHH").pack
_pack_number = struct.Struct("=I").pack
NOTHING: dict[str, Any] = {}


class Playback:
    """Makes hops of frames.

    Args:
        ports: UDP and TCP ports that count as DNS.

    Attributes:
        flaws: Why frames could not be read.
        other: Packets that are not DNS.
        tunnels: Packets in tunnels that are encrypted, too deep or not read here.
        copies: Packets that were captured twice at one place.
        empty: Datagrams on a DNS port without any byte.
        cut: Messages of which the capture has no byte.
        fragments: Fragments of datagrams that were put together, but the one that made them whole.
        incomplete: Datagrams of which fragments are missing.
        snap_length: Bytes of the longest frame that the capture cut; 0 if it cut none.
    """

    def __init__(self, ports: frozenset[int]) -> None:
        self.flaws = Flaws()
        self.other = self.tunnels = self.copies = self.empty = self.cut = self.fragments = self.incomplete = 0
        self.snap_length = 0
        self._ports = ports
        self._fragments = Reassembler(MAX_DATAGRAMS, FRAGMENTS_NS)
        self._taps: dict[int, Vantage] = {}
        self._places: dict[int, Vantage] = {}

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the address is one of the place's own: at a tap everything is; None where that is not known."""
        if netns in self._taps or self.is_tapped(netns) or address.startswith(LOOPBACK):
            return True
        place = self._places.get(netns)
        return True if place is not None and address in place.own else None

    def is_tapped(self, netns: int) -> bool:
        """Whether the namespace stands for a host that was only seen from a tap."""
        return netns >> HOST_BITS in self._taps

    def hops(self, frame: Frame, vantage: Vantage) -> Iterator[Hop]:
        """What was seen of DNS messages when this frame was captured."""
        ifindex, outbound, loopback = frame.interface_id + 1, frame.outbound, frame.interface_name in LOOPBACK_NAMES
        cooked = cooked_header(frame.linktype, frame.data)
        if cooked is not None:
            ifindex, loopback = cooked.ifindex or ifindex, loopback or cooked.loopback
            outbound = None if cooked.overheard else cooked.outgoing
        place = Place(frame.ts_ns, vantage, ifindex, _interface_name(frame.interface_name), outbound, loopback)
        if outbound is None:
            self._taps[vantage.netns] = vantage
        else:
            self._places[vantage.netns] = vantage
        missing = frame.original_length - len(frame.data)
        if missing > 0:
            self.snap_length = max(self.snap_length, len(frame.data))
        yield from self._in_frame(frame.linktype, frame.data, place, 0, missing)

    def answers(self, frame: Frame) -> tuple[Endpoint, int] | None:
        """Client and protocol of what this frame answers, if that is anything and not in a tunnel."""
        flaws = Flaws()
        packet = network_layer(frame.linktype, frame.data, flaws)
        ip = parse_ip(packet, flaws) if packet is not None else None
        if ip is None or ip.protocol not in (UDP, TCP):
            return None
        upper = parse_udp(ip, flaws) if ip.protocol == UDP else parse_tcp(ip, flaws)
        if upper is None or not self._is_response(upper):
            return None
        return Endpoint(ip.daddr, upper.dport), ip.protocol

    def given_up(self, now_ns: int) -> Iterator[Hop]:
        """What is to say of datagrams that did not become whole in time. To be asked before each frame."""
        if not self._fragments:
            return
        for datagram in self._fragments.expired(now_ns):
            self.incomplete += 1
            if datagram.ip.protocol == UDP and not datagram.refused and isinstance(datagram.place, Place):
                yield from self._incomplete(datagram, datagram.place._replace(ts_ns=datagram.ts_ns))

    def end(self) -> None:
        """The capture is over: datagrams that might have become whole after it are only counted."""
        self.incomplete += len(self._fragments)

    def _in_frame(self, linktype: int, data: bytes, place: Place, depth: int, missing: int) -> Iterator[Hop]:
        packet = network_layer(linktype, data, self.flaws)
        ip = parse_ip(packet, self.flaws, missing) if packet is not None else None
        if ip is not None and ip.fragment is not None:
            ip = self._fragments.add(place.ts_ns, ip, place._replace(ts_ns=0))
            self.fragments += ip is None
        if ip is None:
            return
        if ip.protocol == UDP:
            yield from self._in_datagram(ip, place, depth)
        elif ip.protocol == TCP:
            tcp = parse_tcp(ip, self.flaws)
            if tcp is not None and self._is_dns(tcp) and not self._is_copy(ip, place):
                yield from self._segment(ip, tcp, place)
        elif ip.protocol in icmp.PROTOCOLS:
            yield from self._in_error(ip, place)
        elif (tunnel := tunnels.BY_IP_PROTOCOL.get(ip.protocol)) is not None:
            yield from self._in_tunnel(tunnel(ip.payload), place, depth)
        else:
            self.other += 1

    def _in_datagram(self, ip: Ip, place: Place, depth: int) -> Iterator[Hop]:
        udp = parse_udp(ip, self.flaws)
        if udp is None:
            return
        # A DNS client may have a port of a tunnel's by chance.
        tunnel = tunnels.BY_UDP_PORT.get(udp.dport) if udp.sport not in self._ports else None
        if tunnel is not None:
            yield from self._in_tunnel(tunnel(udp.payload), place, depth)
        elif self._is_dns(udp) and not self._is_copy(ip, place) and self._is_there(udp):
            yield from self._message(ip, udp, place)

    def _in_tunnel(self, inner: tunnels.Inner | None, place: Place, depth: int) -> Iterator[Hop]:
        if inner is None or depth == MAX_TUNNELS:
            self.tunnels += 1
        else:
            yield from self._in_frame(inner.linktype, inner.data, place, depth + 1, 0)

    def _is_dns(self, upper: Udp | Tcp) -> bool:
        if upper.sport in self._ports or upper.dport in self._ports:
            return True
        self.other += 1
        return False

    def _is_copy(self, ip: Ip, place: Place) -> bool:
        copy = place.vantage.is_copy(ip, place)
        self.copies += copy
        return copy

    def _is_there(self, udp: Udp) -> bool:
        """Whether there is any byte of a message."""
        if not udp.payload_bytes:
            self.empty += 1
        elif not udp.payload:
            self.cut += 1
        return bool(udp.payload)

    def _is_response(self, upper: Udp | Tcp | Quoted) -> bool:
        """By the ports, as far as they tell."""
        return upper.sport in self._ports and upper.dport not in self._ports

    def _in_error(self, ip: Ip, place: Place) -> Iterator[Hop]:
        """An ICMP error about a DNS packet: addresses, ports and number are those of the packet that it quotes."""
        error = icmp.parse_error(ip)
        if error is None or (error.sport not in self._ports and error.dport not in self._ports):
            self.other += 1
            return
        quoted = Quoted(error.sport, error.dport, error.payload, error.payload_bytes)
        response = self._is_response(quoted)
        known = place.vantage.translations.get(_client(error.quoted, quoted, response=response))
        number = _number(error.quoted, quoted, place, known, response=response) if error.payload else 0
        about = {"icmp_type": error.kind, "icmp_code": error.code, "icmp_mtu": error.mtu, "icmp_saddr": ip.saddr}
        rest = _rest(error.quoted, quoted, place, 0, 0, about)
        event = TX if place.outbound else RX
        netns = place.vantage.host(ip.daddr) if place.outbound is None else place.vantage.netns
        protocol, sequence = error.quoted.protocol, error.sequence
        yield Hop(
            place.ts_ns, number, 0, netns, place.ifindex, 0, event, ICMP, ip.family, protocol, sequence, rest=rest
        )

    def _message(self, ip: Ip, udp: Udp, place: Place) -> Iterator[Hop]:
        """A DNS message over UDP."""
        payload, vantage = udp.payload, place.vantage
        response = len(payload) > 2 and payload[2] & 0x80 != 0  # noqa: PLR2004  QR is in the third byte
        known = vantage.translate(ip, udp, place, response=response)
        number = _number(ip, udp, place, known, response=response)
        flags = (RESPONSE if response else 0) | (CONNTRACK if known else 0)
        begins = place.is_first_of(number)
        rest = _rest(ip, udp, place, len(payload), 0, _entry(known, response=response)) + payload
        left = _seen(ip, rest, place, TX, number, flags | ORIGIN if begins else flags)
        came = _seen(ip, rest, place, RX, number, flags)
        if place.outbound is None:
            yield from _past_a_tap(ip, udp, place, left, came)
            return
        if place.outbound or (begins and place.is_within(ip)):
            if begins:
                remember(vantage.own, ip.saddr, None)
            yield left
        if not place.outbound:
            yield came

    def _segment(self, ip: Ip, tcp: Tcp, place: Place) -> Iterator[Hop]:
        """A TCP segment: at its socket where it is seen first, elsewhere at a device."""
        response, vantage = self._is_response(tcp), place.vantage
        known = vantage.translate(ip, tcp, place, response=response)
        client = known.client if known else _client(ip, tcp, response=response)
        begins = place.is_first_of(hash((client, response, tcp.seq, tcp.payload_bytes, tcp.flags)))
        ack, entry = tcp.ack if tcp.flags & ACK else 0, _entry(known, response=response)
        at_device = _rest(ip, tcp, place, 0, ack, entry)
        at_socket = _rest(ip, tcp, place, len(tcp.payload), ack, entry) + tcp.payload
        flags = (RESPONSE if response else 0) | (CONNTRACK if known else 0)
        outbound = place.outbound
        if outbound is not False or (begins and place.is_within(ip)):
            if begins and outbound:
                remember(vantage.own, ip.saddr, None)
            first = _seen(ip, at_socket, place, SOCKET_TX, 0, flags | ORIGIN) if begins else None
            left = first or _seen(ip, at_device, place, TX, 0, flags)
            yield left._replace(sequence=tcp.seq, tcp_flags=tcp.flags & 0xFF)
        if outbound:
            return
        socket = begins and outbound is not None
        came = _seen(ip, at_socket if socket else at_device, place, SOCKET_RX if socket else RX, 0, flags)
        came = came._replace(sequence=tcp.seq, tcp_flags=tcp.flags & 0xFF)
        if outbound is None:
            yield from _past_a_tap_in_order(ip, tcp, place, came, response=response)
        else:
            yield came

    def _incomplete(self, incomplete: Incomplete, place: Place) -> Iterator[Hop]:
        """A datagram whose first fragment is there: it left, and whoever takes it in cannot make it whole."""
        # Its fragments are counted as such: what they lack is no flaw of a frame.
        udp = parse_udp(incomplete.ip, Flaws())
        if udp is None or not udp.payload or not {udp.sport, udp.dport} & self._ports:
            return
        response = len(udp.payload) > 2 and udp.payload[2] & 0x80 != 0  # noqa: PLR2004  as above
        number = _number(incomplete.ip, udp, place, None, response=response)
        flags = RESPONSE if response else 0
        rest = _rest(incomplete.ip, udp, place, len(udp.payload))
        if place.outbound is not False:
            origin = flags | ORIGIN if place.is_first_of(number) else flags
            left = _seen(incomplete.ip, rest + udp.payload, place, TX, number, origin)
            yield left._replace(fragment=MORE_FRAGMENTS)
        if not place.outbound:
            rest += bytes(8 * STACK_FRAMES) + udp.payload
            lost = _seen(incomplete.ip, rest, place, DROP, number, flags | FRAGMENT)
            yield lost._replace(fragment=MORE_FRAGMENTS)


class Quoted(NamedTuple):
    """What an ICMP error quotes of a datagram or segment."""

    sport: int
    dport: int
    payload: bytes
    payload_bytes: int


def _past_a_tap(ip: Ip, udp: Udp, place: Place, left: Hop, came: Hop) -> Iterator[Hop]:
    """A message that was sent; that a query came to its server is held back until the server replies."""
    vantage, identifier = place.vantage, udp.payload[:2]
    if left.flags & RESPONSE:
        arrival = vantage.asked.pop((ip.daddr, udp.dport, ip.saddr, udp.sport, identifier), None)
        if arrival is not None and place.ts_ns - arrival.ts_ns <= PROVES_NS:
            yield arrival
        yield left
        yield came
        return
    yield left
    if came.netns == vantage.netns:
        yield came
    else:
        remember(vantage.asked, (ip.saddr, udp.sport, ip.daddr, udp.dport, identifier), came)


def _past_a_tap_in_order(ip: Ip, tcp: Tcp, place: Place, came: Hop, *, response: bool) -> Iterator[Hop]:
    """The arrival of a segment; at a server it is held back until the server acknowledges it."""
    vantage = place.vantage
    if response:
        if tcp.flags & ACK:
            yield from vantage.acknowledged((ip.daddr, tcp.dport, ip.saddr, tcp.sport), tcp.ack)
        yield came
    elif came.netns == vantage.netns:
        yield came
    elif length := tcp.payload_bytes + bool(tcp.flags & SYN) + bool(tcp.flags & FIN):
        vantage.hold((ip.saddr, tcp.sport, ip.daddr, tcp.dport), tcp.seq + length & SEQUENCE_MASK, came)


def _client(ip: Ip, upper: Udp | Tcp | Quoted, *, response: bool) -> Endpoint:
    """The client as the packet spells it."""
    return Endpoint(ip.daddr, upper.dport) if response else Endpoint(ip.saddr, upper.sport)


def _number(ip: Ip, upper: Udp | Quoted, place: Place, known: Translation | None, *, response: bool) -> int:
    """Equal for all hops of a message, in all files: its client, header and question, whatever the server's address."""
    client, port = known.client if known else _client(ip, upper, response=response)
    scope = place.vantage.netns if client.startswith(LOOPBACK) else 0
    return hash((client, port, scope, upper.payload[: question_end(upper.payload)])) & NUMBER_MASK or 1


def _entry(known: Translation | None, *, response: bool) -> dict[str, Any]:
    """A translation that the packets show, as the connection table would have it."""
    if known is None:
        return NOTHING
    return {
        "ct_info": ESTABLISHED_REPLY if response else NEW,
        "ct_original_saddr": known.client.address,
        "ct_original_sport": known.client.port,
        "ct_original_daddr": known.virtual.address,
        "ct_original_dport": known.virtual.port,
        "ct_reply_saddr": known.backend.address,
        "ct_reply_sport": known.backend.port,
        "ct_reply_daddr": known.outside.address,
        "ct_reply_dport": known.outside.port,
    }


def _seen(  # noqa: PLR0917  positional for speed
    ip: Ip, rest: bytes, place: Place, event: int, number: int = 0, flags: int = 0
) -> Hop:
    """One hop; at a tap the arrival is a nanosecond after the departure, at another host."""
    ts_ns, vantage, ifindex, _, outbound, _ = place
    netns, tail, copy = vantage.netns, len(rest) - DETAIL.size, 0
    if outbound is None:
        arrival = event in (RX, DROP)
        netns = vantage.host(ip.daddr if arrival else ip.saddr)
        copy = ts_ns  # both are of one packet, also if more like it are sent
        ts_ns += arrival
    return Hop(ts_ns, number, copy, netns, ifindex, tail, event, flags, ip.family, ip.protocol, rest=rest)


def _rest(  # noqa: PLR0917  as above
    ip: Ip,
    upper: Udp | Tcp | Quoted,
    place: Place,
    captured: int,
    acknowledgement: int = 0,
    more: dict[str, Any] = NOTHING,
) -> bytes:
    """The record behind its head. Field by field: to pack all of them takes four times as long."""
    fields = bytearray(_EMPTY)
    fields[_SIZES_AND_PORTS] = _pack_sizes_and_ports(upper.payload_bytes, captured, upper.sport, upper.dport)
    fields[_ADDRESSES] = ip.saddr + ip.daddr
    fields[_IFNAME] = place.ifname
    if acknowledgement:
        fields[_ACKNOWLEDGEMENT] = _pack_number(acknowledgement)
    if more:
        return DETAIL.pack(*Detail._make(DETAIL.unpack(fields))._replace(**more))
    return bytes(fields)


@lru_cache(maxsize=1024)
def _interface_name(name: str) -> bytes:
    """As much of it as the record has room for, and no byte less."""
    return name.encode()[:NAME_BYTES].decode("utf-8", "ignore").encode().ljust(NAME_BYTES + 1, b"\0")


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
