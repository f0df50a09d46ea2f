"""Frames of captures as they come from other tools: DNS in UDP and TCP, IPv4 and IPv6, link layers, tunnels."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from agent.wire.packet import LinkType
from agent.wire.stream import ACK, FIN, SYN

MS = 1_000_000
PSH = 8
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
CLIENT, SERVER = "192.0.2.10", "192.0.2.53"
CLIENT6, SERVER6 = "2001:db8::10", "2001:db8::53"
UDP, TCP = 17, 6


def dns(identifier: int = 1, *, response: bool = False, name: str = "www.example.com", answers: int = 1, **header: int):
    """A message with one question; a reply has as many A records."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"
    answers = answers if response else 0
    flags = (0x8180 if response else 0x0100) | header.get("rcode", 0)
    head = struct.pack("!6H", identifier, flags, 1, answers, 0, 0)
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xcb\0\x71\1"
    return head + labels + struct.pack("!HH", header.get("rdtype", 1), 1) + record * answers


def ip(
    source: str, destination: str, protocol: int, payload: bytes, *, ident: int = 0, ttl: int = 64, total=None, frag=0
):
    """An IP packet of the family of its addresses."""
    a, b = ip_address(source).packed, ip_address(destination).packed
    if len(a) == 16:
        length = len(payload) if total is None else total
        return struct.pack("!IHBB", 6 << 28, length, protocol, ttl) + a + b + payload
    length = 20 + len(payload) if total is None else total
    return struct.pack("!BBHHHBBH", 0x45, 0, length, ident, frag, ttl, protocol, 0) + a + b + payload


def udp(sport: int, dport: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def tcp(  # noqa: PLR0917  in the order of the header
    sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes = b""
) -> bytes:
    return (
        struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 0x50, flags, 65535, 0, 0) + payload
    )


def ethernet(packet: bytes) -> bytes:
    return bytes(12) + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\0") + packet


def sll(packet: bytes, kind: int, device: int = 1) -> bytes:
    """Kind: 0 came in, 3 for somebody else, 4 went out. Device: 772 is the loopback device."""
    return struct.pack("!HHH8sH", kind, device, 6, bytes(8), 0x86DD if packet[0] >> 4 == 6 else 0x0800) + packet


def sll2(packet: bytes, kind: int, ifindex: int = 3, device: int = 1) -> bytes:
    protocol = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    return struct.pack("!HHIHBB8s", protocol, 0, ifindex, device, kind, 6, bytes(8)) + packet


@dataclass
class Capture:
    """A pcap file in the making."""

    linktype: int = LinkType.ETHERNET
    wrap: Callable[..., bytes] = ethernet
    ident: int = 1
    frames: list[tuple[int, bytes, int]] = field(default_factory=list)

    def add(self, ns: int, packet: bytes, *more: object, snap: int | None = None) -> "Capture":
        """A packet so many nanoseconds after the start; `more` goes to the link layer."""
        frame = self.wrap(packet, *more)
        self.frames.append((START + ns, frame[:snap], len(frame)))
        return self

    def datagram(self, ns: int, ends: tuple[str, int, str, int], payload: bytes, *more: object, **header: int):
        source, sport, destination, dport = ends
        self.ident += 1
        header.setdefault("ident", self.ident)
        return self.add(ns, ip(source, destination, UDP, udp(sport, dport, payload), **header), *more)

    def query(self, ns: int, identifier: int = 1, port: int = 40000, client=CLIENT, server=SERVER, **header: int):
        return self.datagram(ns, (client, port, server, 53), dns(identifier), **header)

    def reply(self, ns: int, identifier: int = 1, port: int = 40000, client=CLIENT, server=SERVER, **header: int):
        return self.datagram(ns, (server, 53, client, port), dns(identifier, response=True), **header)

    def later(self, ns: int = 100 * SECOND) -> "Capture":
        """A packet that is not DNS, so that time goes on."""
        return self.datagram(ns, (CLIENT, 9, "192.0.2.99", 9), b"x", *((4,) if self.wrap in (sll, sll2) else ()))

    def write(self, path: Path) -> str:
        raw = struct.pack("<IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, self.linktype)
        for ts_ns, frame, length in self.frames:
            raw += struct.pack("<IIII", ts_ns // SECOND, ts_ns % SECOND, len(frame), length) + frame
        path.write_bytes(raw)
        return str(path)


class Stream:
    """One TCP connection at a tap, segment by segment."""

    def __init__(self, capture: Capture, port: int = 40000, client: str = CLIENT, server: str = SERVER) -> None:
        self.capture, self.port, self.client, self.server = capture, port, client, server
        self.next = [1000, 5000]

    def segment(
        self, ns: int, data: bytes = b"", flags: int = ACK, *, response: bool = False, seen: bool = True, **header
    ):
        """One segment; not `seen`: the capture has lost it."""
        seq, ack = self.next[response], self.next[not response] if flags & ACK else 0
        ends = (53, self.port) if response else (self.port, 53)
        addresses = (self.server, self.client) if response else (self.client, self.server)
        self.next[response] += len(data) + bool(flags & (SYN | FIN))
        self.capture.ident += 1
        header.setdefault("ident", self.capture.ident)
        if seen:
            self.capture.add(ns, ip(*addresses, TCP, tcp(*ends, seq, ack, flags, data), **header))
        return self

    def open(self, ns: int) -> "Stream":
        self.segment(ns, flags=SYN)
        return self.segment(ns + MS, flags=SYN | ACK, response=True).segment(ns + 2 * MS)

    def ask(self, ns: int, identifier: int, **how):
        query = dns(identifier)
        return self.segment(ns, struct.pack("!H", len(query)) + query, PSH | ACK, **how)

    def say(self, ns: int, identifier: int, answers: int = 1, **how):
        reply = dns(identifier, response=True, answers=answers)
        return self.segment(ns, struct.pack("!H", len(reply)) + reply, PSH | ACK, response=True, **how)

    def lookup(self, ns: int, identifier: int, *, seen: bool = True):
        """A query, its reply, and the acknowledgement of that."""
        return self.ask(ns, identifier).say(ns + MS, identifier, seen=seen).segment(ns + 2 * MS)


def vxlan(frame: bytes) -> bytes:
    return tunnel(UDP, udp(5555, 4789, b"\x08" + bytes(7) + frame))


def tunnel(protocol: int, payload: bytes, *, v6: bool = False) -> bytes:
    """A packet between the ends of a tunnel."""
    return (
        ip("2001:db8:1::1", "2001:db8:1::2", protocol, payload)
        if v6
        else ip("198.51.100.1", "198.51.100.2", protocol, payload)
    )
