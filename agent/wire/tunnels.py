"""What tunnels carry: the header of each is skipped, and what follows is a frame or a packet again.

Nothing here raises. What a header does not allow to be read gives None: the caller counts it as a tunnel.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

ETHERNET, RAW = 1, 101
"""Link types of what is inside: `agent.wire.packet.LinkType`."""

VXLAN_PORTS = frozenset({4789, 8472})
"""Where VXLAN is sent: as assigned (RFC 7348 8), and what Linux used before and flannel and Cilium still do."""

_IPV4, _IPV6 = 0x0800, 0x86DD
_ETHERNET_BRIDGED = 0x6558
_PPP = 0x880B
_PPPOE = 0x8864
_MPLS, _MPLS_UPSTREAM = 0x8847, 0x8848
_ERSPAN, _ERSPAN_III = 0x88BE, 0x22EB
"""EtherTypes, which GRE and Geneve use as well (IEEE registry)."""

_PPP_OF_IP = frozenset({0x0021, 0x0057})
"""IPv4 and IPv6 in PPP (RFC 1332 2, RFC 5072 2)."""
_PPP_ALL_STATIONS = b"\xff\x03"
_VXLAN_BYTES = 8
_GENEVE_BYTES = 8
_GTP_BYTES = 8
_PPPOE_BYTES = 6
_LABEL_BYTES = 4
_MAX_LABELS = 16
_MAX_GTP_EXTENSIONS = 8
_GTP_DATA = 255
_GTP_OPTIONAL = 0x07
_GTP_EXTENSION = 0x04

_read_gre = struct.Struct("!HH").unpack_from
_CHECKSUM, _ROUTING, _KEY, _SEQUENCE, _ACKNOWLEDGEMENT = 0x8000, 0x4000, 0x2000, 0x1000, 0x0080
_GRE_VERSION = 7


class Inner(NamedTuple):
    """What a tunnel carries."""

    linktype: int
    """`ETHERNET` or `RAW`: what it begins with."""
    data: bytes


def vxlan(payload: bytes) -> Inner | None:
    """The frame in a VXLAN datagram (RFC 7348 5)."""
    # The I bit must be set. With the P bit it is VXLAN-GPE, which may carry anything (draft-ietf-nvo3-vxlan-gpe 3.1).
    if len(payload) < _VXLAN_BYTES or payload[0] & 0x0C != 0x08:  # noqa: PLR2004  the sentence above
        return None
    return Inner(ETHERNET, payload[_VXLAN_BYTES:])


def vxlan_gpe(payload: bytes) -> Inner | None:
    """What follows a VXLAN-GPE header, by its next protocol (draft-ietf-nvo3-vxlan-gpe 3.2)."""
    if len(payload) < _VXLAN_BYTES or not payload[0] & 0x08:
        return None
    if not payload[0] & 0x04:
        return Inner(ETHERNET, payload[_VXLAN_BYTES:])
    linktype = {1: RAW, 2: RAW, 3: ETHERNET}.get(payload[3])
    return None if linktype is None else Inner(linktype, payload[_VXLAN_BYTES:])


def geneve(payload: bytes) -> Inner | None:
    """What follows a Geneve header and its options (RFC 8926 3.4); control messages carry nothing."""
    if len(payload) < _GENEVE_BYTES or payload[0] >> 6 or payload[1] & 0x80:
        return None
    start = _GENEVE_BYTES + (payload[0] & 0x3F) * 4
    return behind_ethertype(payload[2] << 8 | payload[3], payload[start:])


def gtp(payload: bytes) -> Inner | None:
    """The packet of a subscriber in GTP-U (3GPP TS 29.281 5.1), extension headers skipped."""
    if len(payload) < _GTP_BYTES or payload[0] >> 4 != 3 or payload[1] != _GTP_DATA:  # noqa: PLR2004  version 1, GTP
        return None
    start = _GTP_BYTES
    if payload[0] & _GTP_OPTIONAL:
        start += 4
        following = payload[start - 1] if payload[0] & _GTP_EXTENSION and len(payload) >= start else 0
        for _ in range(_MAX_GTP_EXTENSIONS):
            if not following:
                break
            if len(payload) <= start or not payload[start]:
                return None
            start += payload[start] * 4
            following = payload[start - 1] if len(payload) >= start else 0
    return Inner(RAW, payload[start:])


def mpls(payload: bytes) -> Inner | None:
    """What is below the label stack (RFC 3032 2.1): IP by its version, else a frame with a control word (RFC 4448)."""
    for start in range(0, min(len(payload), _MAX_LABELS * _LABEL_BYTES) - _LABEL_BYTES + 1, _LABEL_BYTES):
        if payload[start + 2] & 1:
            return _below_labels(payload[start + _LABEL_BYTES :])
    return None


def _below_labels(data: bytes) -> Inner | None:
    version = data[0] >> 4 if data else 0
    if version in (4, 6):
        return Inner(RAW, data)
    return Inner(ETHERNET, data[4:]) if data and not version else None


def pppoe(payload: bytes) -> Inner | None:
    """The packet in a PPPoE session frame (RFC 2516 4); its length leaves the padding of the frame behind."""
    if len(payload) < _PPPOE_BYTES or payload[0] != 0x11 or payload[1]:  # noqa: PLR2004  version and type 1, code 0
        return None
    return ppp(payload[_PPPOE_BYTES : _PPPOE_BYTES + (payload[4] << 8 | payload[5])])


def ppp(payload: bytes) -> Inner | None:
    """The packet in a PPP frame (RFC 1661 2), with or without the address and control bytes of RFC 1662 3.1."""
    start = 2 if payload.startswith(_PPP_ALL_STATIONS) else 0
    if len(payload) < start + 2:
        return None
    compressed = payload[start] & 1  # RFC 1661 6.5: the leading 0 may be left out, and only the last byte is odd
    protocol = payload[start] if compressed else payload[start] << 8 | payload[start + 1]
    return Inner(RAW, payload[start + (1 if compressed else 2) :]) if protocol in _PPP_OF_IP else None


def gre(payload: bytes) -> Inner | None:
    """What follows a GRE header (RFC 2784 2, RFC 2890 2; version 1: RFC 2637 4.1)."""
    if len(payload) < 4:  # noqa: PLR2004  flags and protocol
        return None
    flags, protocol = _read_gre(payload)
    version = flags & _GRE_VERSION
    if version > 1 or flags & _ROUTING:
        return None
    optional = [_CHECKSUM, _KEY, _SEQUENCE] + ([_ACKNOWLEDGEMENT] if version else [])
    start = 4 + 4 * sum(bool(flags & bit) for bit in optional)
    if protocol == _ERSPAN:
        # Type II has a sequence number and a header of its own, type I has neither (draft-foschiano-erspan 4).
        return Inner(ETHERNET, payload[start + (8 if flags & _SEQUENCE else 0) :])
    return behind_ethertype(protocol, payload[start:])


def _erspan_iii(payload: bytes) -> Inner | None:
    """A mirrored frame behind a header of 12 bytes, and 8 more where its last bit says so."""
    if len(payload) < 12:  # noqa: PLR2004  the sentence above
        return None
    return Inner(ETHERNET, payload[12 + 8 * (payload[11] & 1) :])


def ethernet_in_ip(payload: bytes) -> Inner | None:
    """The frame behind the two bytes of an EtherIP header (RFC 3378 3)."""
    return Inner(ETHERNET, payload[2:]) if payload[:1] == b"\x30" else None


def packet(payload: bytes) -> Inner | None:
    """An IP packet in an IP packet without any header between (RFC 2003, RFC 4213, RFC 2473)."""
    return Inner(RAW, payload) if payload else None


def _frame(payload: bytes) -> Inner | None:
    return Inner(ETHERNET, payload)


def unreadable(_payload: bytes) -> Inner | None:
    """Nothing: it is encrypted, or of a kind that is not read here."""
    return None


BY_ETHERTYPE: dict[int, Callable[[bytes], Inner | None]] = {
    _IPV4: packet,
    _IPV6: packet,
    _ETHERNET_BRIDGED: _frame,
    _PPP: ppp,
    _PPPOE: pppoe,
    _MPLS: mpls,
    _MPLS_UPSTREAM: mpls,
    _ERSPAN_III: _erspan_iii,
}
BY_IP_PROTOCOL: dict[int, Callable[[bytes], Inner | None]] = {
    4: packet,
    41: packet,
    47: gre,
    97: ethernet_in_ip,
    137: mpls,
    50: unreadable,  # ESP
    115: unreadable,  # L2TP
}
"""IANA protocol numbers: IPv4 and IPv6 in IP, GRE, EtherIP, MPLS in IP."""
BY_UDP_PORT: dict[int, Callable[[bytes], Inner | None]] = {
    **dict.fromkeys(VXLAN_PORTS, vxlan),
    4790: vxlan_gpe,
    6081: geneve,
    2152: gtp,
    6635: mpls,
    1701: unreadable,  # L2TP
    4500: unreadable,  # ESP in UDP
    51820: unreadable,  # WireGuard
}
"""Destination ports as assigned (IANA); MPLS in UDP: RFC 7510."""


def behind_ethertype(ethertype: int, data: bytes) -> Inner | None:
    """What an EtherType announces, as far as it leads to IP."""
    read = BY_ETHERTYPE.get(ethertype)
    return read(data) if read is not None else None
