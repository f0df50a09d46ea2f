"""IP packets as they must have been, rebuilt from what a hop says: for capture files that other tools read."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.record import FRAGMENT, UDP

if TYPE_CHECKING:
    from agent.hop.record import Detail, Hop

V4 = 4
IPV4_BYTES, IPV6_BYTES, UDP_BYTES, TCP_BYTES, FRAGMENT_BYTES = 20, 40, 8, 20, 8
MAX_LENGTH = 65535
NEXTHDR_FRAGMENT, NEXTHDR_NONE = 44, 59
TTL = 64
DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
OFFSET = 0x1FFF
TCP_OFFSET = TCP_BYTES // 4 << 4
WINDOW = 65535

_pack_udp = struct.Struct("!HHHH").pack
_pack_tcp = struct.Struct("!HHIIBBHHH").pack
_pack_ipv4 = struct.Struct("!BBHHHBBH4s4s").pack
_pack_ipv6 = struct.Struct("!IHBB16s16s").pack

NO_MESSAGE = _pack_ipv6(6 << 28, 0, NEXTHDR_NONE, TTL, bytes(16), bytes(16))
"""An IPv6 packet with nothing in it (RFC 8200 4.7): carries a comment that belongs to no message."""


class Packet(NamedTuple):
    """What is written of a packet."""

    data: bytes
    original_length: int
    """More than `len(data)` if not all of it is known."""


def header_bytes(family: int, protocol: int) -> int:
    """Where the payload begins in a packet that `rebuild` made, later fragments apart."""
    return (IPV4_BYTES if family == V4 else IPV6_BYTES) + (UDP_BYTES if protocol == UDP else TCP_BYTES)


def rebuild(hop: Hop, detail: Detail, payload: bytes) -> Packet:
    """The packet of a hop, with valid checksums if all of the payload is there.

    A first fragment is written as the whole datagram that it announces, cut where it ends. A later one has its header
    alone: its bytes were not captured.
    """
    if hop.flags & FRAGMENT:
        return _later_fragment(hop, detail)
    upper, length = _transport(hop, detail, payload)
    ip = _ip_header(hop, detail, length)
    return Packet(ip + upper, len(ip) + length)


def _later_fragment(hop: Hop, detail: Detail) -> Packet:
    offset_and_more = hop.fragment & (OFFSET | MORE_FRAGMENTS)
    if hop.family == V4:
        ip = _ipv4(detail, hop.protocol, detail.payload_bytes, hop.sequence & 0xFFFF, offset_and_more)
    else:
        ip = _ipv6(detail, NEXTHDR_FRAGMENT, FRAGMENT_BYTES + detail.payload_bytes)
        more = 1 if offset_and_more & MORE_FRAGMENTS else 0
        ip += struct.pack("!BxHI", hop.protocol, (offset_and_more & OFFSET) << 3 | more, hop.sequence)
    return Packet(ip, len(ip) + detail.payload_bytes)


def _transport(hop: Hop, detail: Detail, payload: bytes) -> tuple[bytes, int]:
    """UDP or TCP header with the payload, and how long that was."""
    whole = len(payload) == detail.payload_bytes
    if hop.protocol == UDP:
        length = UDP_BYTES + detail.payload_bytes
        ports = detail.sport, detail.dport, min(length, MAX_LENGTH)
        checksum = _checksum(hop, detail, _pack_udp(*ports, 0) + payload) if whole else 0
        # A sum of 0 is sent as its other spelling, because 0 says that there is none (RFC 768).
        return _pack_udp(*ports, (checksum or 0xFFFF) if whole else 0) + payload, length
    head = detail.sport, detail.dport, hop.sequence, 0, TCP_OFFSET, hop.tcp_flags, WINDOW
    checksum = _checksum(hop, detail, _pack_tcp(*head, 0, 0) + payload) if whole else 0
    return _pack_tcp(*head, checksum, 0) + payload, TCP_BYTES + detail.payload_bytes


def _ip_header(hop: Hop, detail: Detail, length: int) -> bytes:
    if hop.family == V4:
        return _ipv4(detail, hop.protocol, length, 0, DONT_FRAGMENT)
    return _ipv6(detail, hop.protocol, length)


def _ipv4(detail: Detail, protocol: int, length: int, identification: int, flags_and_offset: int) -> bytes:
    total = min(IPV4_BYTES + length, MAX_LENGTH)
    start = 0x45, 0, total, identification, flags_and_offset, TTL, protocol
    addresses = detail.saddr[12:], detail.daddr[12:]
    return _pack_ipv4(*start, _complement(_pack_ipv4(*start, 0, *addresses)), *addresses)


def _ipv6(detail: Detail, protocol: int, length: int) -> bytes:
    return _pack_ipv6(6 << 28, min(length, MAX_LENGTH), protocol, TTL, detail.saddr, detail.daddr)


def _checksum(hop: Hop, detail: Detail, upper: bytes) -> int:
    """Of UDP or TCP, with the pseudo header (RFC 9293 3.1, RFC 8200 8.1)."""
    start = 12 if hop.family == V4 else 0
    pseudo = detail.saddr[start:] + detail.daddr[start:] + struct.pack("!II", len(upper), hop.protocol)
    return _complement(pseudo + upper)


def _complement(raw: bytes) -> int:
    """The Internet checksum (RFC 1071): the sum of 16-bit words modulo 65535, complemented."""
    if len(raw) & 1:
        raw += b"\0"
    total = int.from_bytes(raw, "big") % 0xFFFF
    # Only bytes that are all zero sum up to 0; other multiples of 65535 sum up to 65535.
    return ~(total or (0xFFFF if any(raw) else 0)) & 0xFFFF
