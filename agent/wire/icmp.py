"""ICMP and ICMPv6 errors: what went wrong, and the start of the packet that it happened to (RFC 792, RFC 4443)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from agent.wire.packet import TCP, UDP, Flaws, parse_ip

if TYPE_CHECKING:
    from agent.wire.packet import Ip

ICMP, ICMPV6 = 1, 58
"""IANA protocol numbers."""
PROTOCOLS = frozenset({ICMP, ICMPV6})
HEADER_BYTES = 8
UDP_BYTES = 8
ERRORS = {ICMP: frozenset({3, 11, 12}), ICMPV6: frozenset({1, 2, 3, 4})}
"""Types that say that a packet was lost: unreachable, time exceeded, parameter problem; for ICMPv6 too big as well."""

_read_header = struct.Struct("!BBxxI").unpack_from
_read_ports = struct.Struct("!HHI").unpack_from


class IcmpError(NamedTuple):
    """An error, and what it quotes. Only 8 bytes behind the quoted IP header are sure to be there."""

    kind: int
    code: int
    mtu: int
    """Of the next hop, where the error is about that (RFC 1191, RFC 4443 3.2); else what stands there."""
    quoted: Ip
    sport: int
    dport: int
    sequence: int
    """Of a TCP segment."""
    payload: bytes
    """Of a datagram, as far as it is quoted."""
    payload_bytes: int
    """Of the datagram, as it says itself."""


def parse_error(ip: Ip) -> IcmpError | None:
    """Read an error about a datagram or a segment; None for everything else that is ICMP."""
    payload = ip.payload
    if len(payload) < HEADER_BYTES or payload[0] not in ERRORS[ip.protocol]:
        return None
    kind, code, rest = _read_header(payload)
    quoted = parse_ip(payload[HEADER_BYTES:], Flaws())
    if quoted is None or quoted.protocol not in (TCP, UDP) or len(quoted.payload) < UDP_BYTES:
        return None
    if quoted.fragment is not None and quoted.fragment.offset_bytes:
        return None
    sport, dport, word = _read_ports(quoted.payload)
    mtu = rest & 0xFFFF if ip.protocol == ICMP else rest
    if quoted.protocol == TCP:
        return IcmpError(kind, code, mtu, quoted, sport, dport, word, b"", 0)
    message = quoted.payload[UDP_BYTES:]
    return IcmpError(kind, code, mtu, quoted, sport, dport, 0, message, max(0, (word >> 16) - UDP_BYTES))
