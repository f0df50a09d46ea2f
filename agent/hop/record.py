"""What the kernel program writes for one hop of one DNS message: the core's only input.

`Head` and `Detail` are the record layout. It is defined here and nowhere else: `agent.capture.layout` makes
`bpf/record.h` of it, the compiler asserts every offset when the program is loaded, and replay builds such records.
The two parts exist for speed: joining needs only the head; the detail stays bytes until somebody asks.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Annotated, NamedTuple, get_type_hints

U8 = Annotated[int, "B", "__u8"]
U16 = Annotated[int, "H", "__u16"]
U32 = Annotated[int, "I", "__u32"]
U64 = Annotated[int, "Q", "__u64"]
Address = Annotated[bytes, "16s", "__u8"]
Name = Annotated[bytes, "16s", "char"]

STACK_FRAMES = 16


class Event(IntEnum):
    """Where in the kernel the packet was seen."""

    TX = 1
    """Handed to a device: tracepoint net:net_dev_queue."""
    RX = 2
    """Taken from a device: tracepoint net:netif_receive_skb."""
    DROP = 3
    """Freed as lost: tracepoint skb:kfree_skb. A candidate, not yet a verdict."""
    SOCKET_TX = 4
    """Leaving its socket, whole: cgroup_skb egress. Brings what tracepoints cannot read: TCP, and paged UDP."""
    SOCKET_RX = 5
    """Delivered to its socket, whole: cgroup_skb ingress."""


class Flag(IntFlag):
    """What else the program knew at that hop."""

    RESPONSE = 1
    """UDP: QR is set in the DNS header (RFC 1035 4.1.1). TCP: the segment goes from the server to the client."""
    ORIGIN = 2
    """The packet still belongs to the socket that sent it, in that socket's own namespace: its first hop."""
    PROCESS = 4
    """`tgid` and `comm` are the sender's: an origin, and the current task lives in the sender's namespace."""
    CONNTRACK = 8
    """The `ct_` fields hold the packet's conntrack entry."""
    FRAGMENT = 16
    """A later IP fragment: it has no ports and no bytes of its own; they are those of its first fragment."""
    COUNTERS = 32
    """The `stat_` fields hold this CPU's conntrack counters."""
    ICMP = 64
    """An ICMP error about a DNS packet. Message, addresses, ports, protocol are those of the packet that it quotes."""
    LEARNED = 128
    """Neither port is one of DNS: it goes to or comes from an address and port where a DNS server was seen before."""


# The hot path compares plain integers: an enum operation costs as much as a whole record's decoding.
TX, RX, DROP, SOCKET_TX, SOCKET_RX = (int(event) for event in Event)
RESPONSE, ORIGIN, PROCESS, CONNTRACK, FRAGMENT, COUNTERS, ICMP, LEARNED = (int(flag) for flag in Flag)

UDP, TCP = 17, 6
"""IANA protocol numbers."""


class Head(NamedTuple):
    """The part of the record that joining reads."""

    ts_ns: U64
    """CLOCK_MONOTONIC, nanoseconds (wall clock, in replay)."""
    message_id: U64
    """Equal for all hops of one message; 0 where the kernel could not tell. Survives DNAT, not SNAT."""
    skb: U64
    """Address of the sk_buff. Reused within 0.1 ms, so only ever a tie-breaker."""
    netns: U32
    """Inode number of the network namespace, as `lsns` prints it."""
    ifindex: U32
    """Device index in that namespace; 0 when the packet had no device yet."""
    tail_bytes: U32
    """Bytes after the fixed part: STACK_FRAMES addresses if it is a drop, then the message."""
    event: U8
    flags: U8
    family: U8
    """4 or 6."""
    protocol: U8
    """IANA protocol number: 17 UDP, 6 TCP."""
    sequence: U32 = 0
    """TCP: sequence number of the segment. IP fragments: their identification. Else 0."""
    fragment: U16 = 0
    """Fragment offset in units of 8 bytes (RFC 791), plus 0x2000 when more follow; 0 for whole packets."""
    tcp_flags: U8 = 0
    """FIN 1, SYN 2, RST 4, PSH 8, ACK 16 (RFC 9293 3.1)."""
    late: U8 = 0
    """1 where user space has taken its lookup from the program's log already (`agent.hop.lookup`)."""


class Detail(NamedTuple):
    """The rest of the fixed part. Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d (RFC 4291 2.5.5.2)."""

    location: U64
    """Kernel text address that freed the packet; 0 unless a drop."""
    reason: U32
    """enum skb_drop_reason of this kernel; 0 when it has none."""
    socket_netns: U32
    """Namespace of the socket on the packet (the receiver's, for drops since 6.11); 0 when there is none."""
    tgid: U32
    ct_status: U32
    """enum ip_conntrack_status bits."""
    payload_bytes: U32
    """Length of the DNS message by the UDP header; of the TCP segment's payload."""
    captured_bytes: U32
    """How much of it follows the record; 0 when it was sent with an earlier hop."""
    sport: U16
    dport: U16
    ct_original_sport: U16
    ct_original_dport: U16
    ct_reply_sport: U16
    ct_reply_dport: U16
    ct_info: U8
    """enum ip_conntrack_info."""
    stack_frames: U8
    """How many of the STACK_FRAMES kernel return addresses at the start of a drop's tail are filled, 8 bytes each."""
    device_state: U16
    """Of a drop: bits of enum netdev_state_t (include/linux/netdevice.h) of its device, 0 being up and 2 no carrier."""
    saddr: Address
    daddr: Address
    ct_original_saddr: Address
    ct_original_daddr: Address
    ct_reply_saddr: Address
    ct_reply_daddr: Address
    comm: Name
    """Name of the sending process (the thread group leader's)."""
    ifname: Name
    acknowledgement: U32 = 0
    """TCP: what the sender has of the other direction (RFC 9293 3.1)."""
    stat_invalid: U32 = 0
    """This CPU's conntrack counters in this namespace (struct ip_conntrack_stat), at arrivals and drops. Between the
    two a packet stays on its CPU, so what rose in between rose for its sake."""
    stat_insert_failed: U32 = 0
    stat_drop: U32 = 0
    socket_rcvbuf: U32 = 0
    """Of a drop at a socket: how many bytes of memory its receive queue may take."""
    socket_rmem: U32 = 0
    """Of a drop at a socket: how many it takes."""
    icmp_mtu: U32 = 0
    """Of "fragmentation needed" and "packet too big" (RFC 1191, RFC 4443 3.2): the next hop's MTU."""
    cpu: U16 = 0
    icmp_type: U8 = 0
    icmp_code: U8 = 0
    icmp_saddr: Address = bytes(16)
    """Who sent the ICMP error."""


def struct_format(part: type[NamedTuple]) -> str:
    """Struct module format of one part: little or big endian as this machine, no padding of its own."""
    return "=" + "".join(hint.__metadata__[0] for hint in get_type_hints(part, include_extras=True).values())


HEAD = struct.Struct(struct_format(Head))
DETAIL = struct.Struct(struct_format(Detail))


def place_of(field: str) -> slice:
    """Where one field of the detail lies, for those who cannot wait for all of it to be decoded."""
    hints = get_type_hints(Detail, include_extras=True)
    before = list(hints)[: list(hints).index(field)]
    start = struct.calcsize("=" + "".join(hints[name].__metadata__[0] for name in before))
    return slice(start, start + struct.calcsize("=" + hints[field].__metadata__[0]))


DECODED = 64
"""So many details are kept decoded: a lookup that is concluded is asked for the same ones dozens of times."""
SADDR, SPORT = place_of("saddr"), place_of("sport")
DADDR, DPORT = place_of("daddr"), place_of("dport")


@lru_cache(maxsize=DECODED)
def _detail_of(rest: bytes) -> Detail:
    return Detail._make(DETAIL.unpack_from(rest))


class Hop(NamedTuple):
    """One hop as the core keeps it: the head's fields and the undecoded rest of the record."""

    ts_ns: int
    message_id: int
    skb: int
    netns: int
    ifindex: int
    tail_bytes: int
    event: int
    flags: int
    family: int
    protocol: int
    sequence: int = 0
    fragment: int = 0
    tcp_flags: int = 0
    late: int = 0
    rest: bytes = b""
    """The detail, then the tail."""

    @property
    def detail(self) -> Detail:
        """Everything else about this hop."""
        return _detail_of(self.rest)

    @property
    def stack(self) -> tuple[int, ...]:
        """Kernel return addresses of a drop, innermost first."""
        frames = self.detail.stack_frames
        return struct.unpack_from(f"={frames}Q", self.rest, DETAIL.size)

    def payload(self, detail: Detail) -> bytes:
        """The captured bytes of the DNS message: empty when an earlier hop brought them."""
        start = DETAIL.size + (8 * STACK_FRAMES if self.event == Event.DROP else 0)
        return self.rest[start : start + detail.captured_bytes]


def name_text(name: bytes) -> str:
    """A kernel name field (process, device) as text; bytes that are not UTF-8 are shown as escapes."""
    return name.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
