"""From a captured frame to addresses, ports and payload: link layer, IP, UDP, TCP. Tunnels: `agent.wire.tunnels`.

Frames are hostile input and may be cut anywhere by the capture's snap length. Nothing here raises: what cannot be read
gives None, and why is counted in `flaws`, which belongs to the caller. Checksums are not looked at: with offload, a
frame captured on its way out does not have them yet.
"""

from __future__ import annotations

import struct
from collections import Counter
from enum import IntEnum, IntFlag, StrEnum
from typing import NamedTuple

from agent.wire import tunnels

V4_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address in 16 bytes (RFC 4291 2.5.5.2)."""

TCP = 6
UDP = 17
"""IANA protocol numbers."""

MAX_TAGS = 4
"""VLAN tags skipped in one frame; QinQ has two."""
MAX_CARRIERS = 4
"""Frames in frames (MPLS) that are looked into."""
MAX_EXTENSIONS = 8
"""IPv6 extension headers walked in one packet; RFC 8200 4.1 foresees seven."""


class LinkType(IntEnum):
    """What a captured frame begins with: https://www.tcpdump.org/linktypes.html, as far as we read it."""

    NULL = 0
    """Address family in the byte order of the capturing machine: BSD's loopback."""
    ETHERNET = 1
    RAW = 101
    """IPv4 or IPv6, by the version field."""
    LOOP = 108
    """Address family in network byte order: OpenBSD's loopback."""
    LINUX_SLL = 113
    """Linux cooked capture, the older form of `tcpdump -i any`."""
    IPV4 = 228
    IPV6 = 229
    LINUX_SLL2 = 276
    """Linux cooked capture with the interface index, the newer form."""


class Flaw(StrEnum):
    """Why bytes could not be read."""

    LINK_TYPE = "link_type"
    """A link type that is not a `LinkType`."""
    NOT_IP = "not_ip"
    """Another protocol, such as ARP. Nothing is wrong with it."""
    CUT = "cut"
    """The captured bytes end inside a header."""
    LENGTHS = "lengths"
    """The header's lengths contradict each other or the packet's."""
    JUMBOGRAM = "jumbogram"
    """A length of 0 and nothing that follows: it cannot be told how long the packet was."""
    EXTENSIONS = "extensions"
    """More than `MAX_EXTENSIONS` IPv6 extension headers."""
    FRAGMENT = "fragment"
    """A fragment other than the first: it has no ports. Or a fragment of a fragment, which cannot be."""


Flaws = Counter[Flaw]
"""How many frames could not be read, by reason."""


class TcpFlag(IntFlag):
    """Control bits of the TCP header (RFC 9293 3.1)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


class Cooked(NamedTuple):
    """What Linux says of a frame in the cooked header."""

    ifindex: int
    """Index of the interface; 0 where the header has none (`LINUX_SLL`)."""
    outgoing: bool
    """Sent by this machine, not received."""
    loopback: bool = False
    """The device is the loopback device."""
    overheard: bool = False
    """Received, but addressed to another machine: a promiscuous device took it in."""


class Fragment(NamedTuple):
    """Where a fragment belongs (RFC 791 3.1, RFC 8200 4.5)."""

    identification: int
    offset_bytes: int
    more: bool
    """It is not the last."""


class Ip(NamedTuple):
    """One IP packet."""

    family: int
    """4 or 6."""
    saddr: bytes
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    daddr: bytes
    protocol: int
    """IANA protocol number. Of an IPv6 fragment: of what follows the fragment header."""
    payload: bytes
    """What follows the headers, as far as captured; padding of the link layer removed."""
    payload_bytes: int
    """The payload's length by the header: more than `len(payload)` if the capture cut it."""
    total_bytes: int
    """The packet's length by the header."""
    fragment: Fragment | None
    """None if the packet is whole."""
    ttl: int = 0
    """Time to live, or hop limit."""
    identification: int = 0
    """Of IPv4 (RFC 6864): 0 where the sender gave none, as on most packets that must not be fragmented."""


class Udp(NamedTuple):
    """One UDP datagram (RFC 768)."""

    sport: int
    dport: int
    payload: bytes
    payload_bytes: int
    """The payload's length by the header: more than `len(payload)` if it was cut or is a first fragment."""


class Tcp(NamedTuple):
    """One TCP segment (RFC 9293 3.1)."""

    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    """`TcpFlag` bits."""
    payload: bytes
    payload_bytes: int
    """The payload's length by the IP header: more than `len(payload)` if the capture cut it."""


_IPV4_BYTES = 20
_IPV6_BYTES = 40
_UDP_BYTES = 8
_TCP_BYTES = 20
_FAMILY_BYTES = 4
_MORE_FRAGMENTS = 0x2000

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION})
_EXTENSION_BYTES = 8
"""Every extension header has at least as many."""

_ETHERTYPES_OF_IP = frozenset({0x0800, 0x86DD})
_ETHERTYPES_OF_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_ETHERTYPE_AND_PAYLOAD_AT: dict[int, tuple[int, int]] = {
    LinkType.ETHERNET: (12, 14),
    LinkType.LINUX_SLL: (14, 16),
    LinkType.LINUX_SLL2: (0, 20),
}
_BARE: frozenset[int] = frozenset({LinkType.RAW, LinkType.IPV4, LinkType.IPV6})
# AF_INET is 2 everywhere; AF_INET6 is 10 on Linux, 24 on NetBSD and OpenBSD, 28 on FreeBSD, 30 on macOS.
_FAMILIES_OF_IP = frozenset(
    family.to_bytes(_FAMILY_BYTES, order) for family in (2, 10, 24, 28, 30) for order in ("little", "big")
)
_OTHERHOST, _OUTGOING = 3, 4  # PACKET_OTHERHOST, PACKET_OUTGOING of linux/if_packet.h
_LOOPBACK_DEVICE = 772  # ARPHRD_LOOPBACK of linux/if_arp.h
_LOOPBACK_INDEX = 1  # LOOPBACK_IFINDEX of net/flow.h: in every network namespace

_read_sll = struct.Struct("!HH").unpack_from
_read_sll2 = struct.Struct("!4xIHB").unpack_from
_read_ipv4 = struct.Struct("!BxHHHBB").unpack_from
_read_ipv6 = struct.Struct("!4xHBB").unpack_from
_read_fragment = struct.Struct("!2xHI").unpack_from
_read_udp = struct.Struct("!HHH").unpack_from
_read_tcp = struct.Struct("!HHIIBB").unpack_from


def network_layer(linktype: int, frame: bytes, flaws: Flaws) -> bytes | None:
    """The IP packet in a captured frame, VLAN tags skipped; None if there is none."""
    where = _ETHERTYPE_AND_PAYLOAD_AT.get(linktype)
    if where is not None:
        return _behind_ethertype(frame, *where, flaws)
    if linktype in _BARE:
        return frame
    if linktype in (LinkType.NULL, LinkType.LOOP):
        return _behind_family(frame, flaws)
    flaws[Flaw.LINK_TYPE] += 1
    return None


def _behind_ethertype(frame: bytes, at: int, start: int, flaws: Flaws, depth: int = 0) -> bytes | None:
    """What the EtherType at byte `at` announces at byte `start`, if that is IP (IEEE 802.1Q for the tags).

    Between the two there may be headers of carriers: PPPoE, MPLS, and the frame in MPLS.
    """
    if len(frame) < start:
        flaws[Flaw.CUT] += 1
        return None
    ethertype = frame[at] << 8 | frame[at + 1]
    tags = 0
    while ethertype in _ETHERTYPES_OF_TAGS and tags < MAX_TAGS and len(frame) >= start + 4:
        ethertype = frame[start + 2] << 8 | frame[start + 3]
        start += 4
        tags += 1
    if ethertype in _ETHERTYPES_OF_IP:
        return frame[start:]
    inner = tunnels.behind_ethertype(ethertype, frame[start:])
    if inner is not None and inner.linktype == LinkType.RAW:
        return inner.data
    if inner is not None and depth < MAX_CARRIERS:
        return _behind_ethertype(inner.data, *_ETHERTYPE_AND_PAYLOAD_AT[LinkType.ETHERNET], flaws, depth + 1)
    flaws[Flaw.NOT_IP] += 1
    return None


def _behind_family(frame: bytes, flaws: Flaws) -> bytes | None:
    """What follows the address family, whatever machine wrote it."""
    if frame[:_FAMILY_BYTES] in _FAMILIES_OF_IP:
        return frame[_FAMILY_BYTES:]
    flaws[Flaw.CUT if len(frame) < _FAMILY_BYTES else Flaw.NOT_IP] += 1
    return None


def cooked_header(linktype: int, frame: bytes) -> Cooked | None:
    """Interface and direction of a cooked frame; None if the link type is another or the frame is cut."""
    if linktype == LinkType.LINUX_SLL2 and len(frame) >= _ETHERTYPE_AND_PAYLOAD_AT[LinkType.LINUX_SLL2][1]:
        ifindex, device, kind = _read_sll2(frame)
        loopback = device == _LOOPBACK_DEVICE or ifindex == _LOOPBACK_INDEX
        return Cooked(ifindex, kind == _OUTGOING, loopback, kind == _OTHERHOST)
    if linktype == LinkType.LINUX_SLL and len(frame) >= _ETHERTYPE_AND_PAYLOAD_AT[LinkType.LINUX_SLL][1]:
        kind, device = _read_sll(frame)
        return Cooked(0, kind == _OUTGOING, device == _LOOPBACK_DEVICE, kind == _OTHERHOST)
    return None


def parse_ip(packet: bytes, flaws: Flaws, missing: int = 0) -> Ip | None:
    """Read the IP header, and the extension headers of IPv6 up to the fragment header of a fragment.

    A length of 0 with more bytes behind it is what a sender's segmentation offload (TSO, BIG TCP: RFC 2675) leaves to
    be filled in: then the packet is as long as the frame.

    Args:
        packet: Its bytes, as far as captured.
        flaws: Counts why it is None.
        missing: How many more there were on the wire.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:  # noqa: PLR2004  the names of the two protocols say it
        return _parse_ipv4(packet, flaws, missing)
    if version == 6:  # noqa: PLR2004  as above
        return _parse_ipv6(packet, flaws, missing)
    flaws[Flaw.NOT_IP if packet else Flaw.CUT] += 1
    return None


def _parse_ipv4(packet: bytes, flaws: Flaws, missing: int) -> Ip | None:
    """Read an IPv4 packet (RFC 791 3.1)."""
    if len(packet) < _IPV4_BYTES:
        flaws[Flaw.CUT] += 1
        return None
    first, total, identification, flags_and_offset, ttl, protocol = _read_ipv4(packet)
    header = (first & 0xF) * 4
    if not total and len(packet) > header:
        total = len(packet) + missing
    if header < _IPV4_BYTES or total < header or header > len(packet):
        flaws[_ipv4_flaw(header, total)] += 1
        return None
    fragment = None
    if flags_and_offset & 0x3FFF:
        more = flags_and_offset & _MORE_FRAGMENTS != 0
        fragment = Fragment(identification, (flags_and_offset & 0x1FFF) * 8, more)
    saddr, daddr = V4_MAPPED + packet[12:16], V4_MAPPED + packet[16:20]
    payload = packet[header:total]
    return Ip(4, saddr, daddr, protocol, payload, total - header, total, fragment, ttl, identification)


def _ipv4_flaw(header: int, total: int) -> Flaw:
    """Why these lengths, of which one is wrong, are."""
    if not total:
        return Flaw.JUMBOGRAM
    return Flaw.LENGTHS if header < _IPV4_BYTES or total < header else Flaw.CUT


def _parse_ipv6(packet: bytes, flaws: Flaws, missing: int) -> Ip | None:
    """Read an IPv6 packet (RFC 8200 3)."""
    if len(packet) < _IPV6_BYTES:
        flaws[Flaw.CUT] += 1
        return None
    length, protocol, hop_limit = _read_ipv6(packet)
    if not length:
        length = len(packet) + missing - _IPV6_BYTES
        if not length:
            flaws[Flaw.JUMBOGRAM] += 1
            return None
    total = _IPV6_BYTES + length
    payload = packet[_IPV6_BYTES:total]
    ip = Ip(6, packet[8:24], packet[24:40], protocol, payload, length, total, None, hop_limit)
    return skip_extensions(ip, flaws) if protocol in _EXTENSIONS else ip


def skip_extensions(ip: Ip, flaws: Flaws) -> Ip | None:
    """Walk the extension headers (RFC 8200 4, RFC 4302 2) at the start of an IPv6 payload.

    The walk ends at the fragment header of a fragment: what follows may be the middle of something. It goes on when
    the datagram is whole again.

    Args:
        ip: A packet whose `protocol` is that of the first header in the payload.
        flaws: Counts why it is None.

    Returns:
        The packet with protocol and payload of the upper layer, or of the fragment.
    """
    protocol, payload, at = ip.protocol, ip.payload, 0
    for _ in range(MAX_EXTENSIONS + 1):
        if protocol not in _EXTENSIONS:
            return ip._replace(protocol=protocol, payload=payload[at:], payload_bytes=ip.payload_bytes - at)
        end = at + _extension_bytes(protocol, payload, at)
        if end > len(payload):
            flaws[Flaw.LENGTHS if end > ip.payload_bytes else Flaw.CUT] += 1
            return None
        if protocol == _FRAGMENT and (fragment := _parse_fragment_header(payload, at)):
            left = ip.payload_bytes - end
            return ip._replace(protocol=payload[at], payload=payload[end:], payload_bytes=left, fragment=fragment)
        protocol, at = payload[at], end
    flaws[Flaw.EXTENSIONS] += 1
    return None


def _extension_bytes(protocol: int, payload: bytes, at: int) -> int:
    """Length of the extension header at byte `at`; the least possible if it is cut before it says so."""
    if protocol == _FRAGMENT or len(payload) < at + _EXTENSION_BYTES:
        return _EXTENSION_BYTES
    # RFC 4302 2.2: the authentication header counts words of 4 bytes, less 2; all others words of 8, less 1.
    return (payload[at + 1] + 2) * 4 if protocol == _AUTHENTICATION else (payload[at + 1] + 1) * 8


def _parse_fragment_header(payload: bytes, at: int) -> Fragment | None:
    """The fragment header at byte `at`; None if it is an atomic fragment, which is a whole packet (RFC 6946)."""
    offset_and_more, identification = _read_fragment(payload, at)
    if not offset_and_more & 0xFFF9:
        return None
    return Fragment(identification, offset_and_more & 0xFFF8, offset_and_more & 1 != 0)


def parse_udp(ip: Ip, flaws: Flaws) -> Udp | None:
    """Read the UDP header of a packet whose protocol is `UDP`, whole or a first fragment."""
    payload = ip.payload
    if len(payload) < _UDP_BYTES or (ip.fragment and ip.fragment.offset_bytes):
        flaws[_start_flaw(ip, _UDP_BYTES)] += 1
        return None
    sport, dport, length = _read_udp(payload)
    length = length or ip.payload_bytes  # segmentation offload, as above; RFC 2675 4
    if length < _UDP_BYTES or (length > ip.payload_bytes and not ip.fragment):
        flaws[Flaw.LENGTHS if length else Flaw.JUMBOGRAM] += 1
        return None
    return Udp(sport, dport, payload[_UDP_BYTES:length], length - _UDP_BYTES)


def parse_tcp(ip: Ip, flaws: Flaws) -> Tcp | None:
    """Read the TCP header of a packet whose protocol is `TCP`, whole or a first fragment."""
    payload = ip.payload
    if len(payload) < _TCP_BYTES or (ip.fragment and ip.fragment.offset_bytes):
        flaws[_start_flaw(ip, _TCP_BYTES)] += 1
        return None
    sport, dport, seq, ack, offset, flags = _read_tcp(payload)
    header = (offset >> 4) * 4
    if header < _TCP_BYTES or header > len(payload):
        flaws[Flaw.CUT if _TCP_BYTES <= header <= ip.payload_bytes else Flaw.LENGTHS] += 1
        return None
    return Tcp(sport, dport, seq, ack, flags, payload[header:], ip.payload_bytes - header)


def _start_flaw(ip: Ip, header: int) -> Flaw:
    """Why an upper layer's header of so many bytes is not there."""
    if ip.fragment and ip.fragment.offset_bytes:
        return Flaw.FRAGMENT
    return Flaw.LENGTHS if ip.payload_bytes < header else Flaw.CUT
