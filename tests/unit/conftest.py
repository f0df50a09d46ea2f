"""Hops of lookups in virtual time, as the kernel program records them on a node with a client and a server pod."""

import struct
import zlib
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import hypothesis
import pytest

from agent.hop.drops import Kernel
from agent.hop.endpoint import is_loopback
from agent.hop.record import DETAIL, STACK_FRAMES, TCP, UDP, Detail, Event, Flag, Head, Hop
from agent.session.model import Settings
from agent.session.outcome import Outcome
from agent.session.table import SessionTable
from agent.wire.stream import ACK, FIN, RST, SYN

# How long an example takes is a matter of what else the machine does; a hang is pytest-timeout's business.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

US = 1_000
MS = 1_000_000
SECOND = 1_000_000_000
START = 1_000 * SECOND
RESEND_NS = SECOND // 20
"""After so long the kernel program sends the bytes of a message once more."""
PREFIX = 96
"""A question that ends behind this byte leaves a message without a number."""

CLIENT, NODE, SERVER = 4026532177, 4026531840, 4026532300
POD, POD6 = ("172.20.2.25", 44525), ("fd00::2:25", 44525)
HOST, HOST6 = ("192.0.2.10", 44525), ("2001:db8::10", 44525)
VIP, VIP6 = ("10.96.0.10", 53), ("fd00:96::a", 53)
BACKEND, BACKEND6 = ("10.244.1.53", 53), ("fd00:244::53", 53)
UPSTREAM, UPSTREAM6 = ("100.100.2.136", 53), ("2001:db8:53::1", 53)
MASQUERADED, MASQUERADED6 = ("192.0.2.10", 61000), ("2001:db8::10", 61000)
LOCAL = {CLIENT: {POD[0], POD6[0]}, NODE: {HOST[0], HOST6[0], "169.254.20.10"}, SERVER: {BACKEND[0], BACKEND6[0]}}

REASONS = dict(
    enumerate(
        (
            "NOT_SPECIFIED",
            "NO_SOCKET",
            "NETFILTER_DROP",
            "SOCKET_RCVBUFF",
            "TC_INGRESS",
            "TC_EGRESS",
            "PACKET_SOCK_ERROR",
            "QUEUE_PURGE",
            "SKB_CONSUMED",
            "UDP_CSUM",
            "TCP_OLD_DATA",
            "FRAG_REASM_TIMEOUT",
            "IP_INNOROUTES",
            "NEIGH_FAILED",
            "IP_RPFILTER",
            "QDISC_DROP",
            "OTHERHOST",
            "PKT_TOO_BIG",
            "XDP",
            "TCP_ABORT_ON_DATA",
            "TCP_CLOSE",
        ),
        start=2,
    )
)
REASON_NUMBERS = {name: number for number, name in REASONS.items()}
SYMBOLS = (
    "nf_hook_slow",
    "nft_do_chain",
    "ip_forward",
    "ip6_forward",
    "ip_output",
    "ip_rcv",
    "ip_local_deliver",
    "__ip_local_out",
    "skb_release_data",
    "udp_destruct_common",
    "__udp4_lib_rcv",
    "udp_queue_rcv_one_skb",
    "__dev_queue_xmit",
    "kfree_skb_reason",
    "tcp_v4_rcv",
    "tcp_data_queue",
    "ip_error",
    "neigh_invalidate",
    "veth_xdp_rcv_skb",
    "br_nf_forward_ip.part.0",
    "br_nf_forward",
    "__br_forward",
    "__netif_receive_skb_core",
)
TEXT = 0xFFFFFFFF81000000
ADDRESSES = {name: TEXT + 0x1000 * index for index, name in enumerate(SYMBOLS, start=1)}
NAMES = {address >> 12: name for name, address in ADDRESSES.items()}
KERNEL = Kernel(REASONS, lambda address: NAMES.get(address >> 12))

SERVING = (b"coredns", 900)
"""Name and id of the process that answers."""
AT_SOCKET = (Event.SOCKET_TX, Event.SOCKET_RX)
NO_HEAD = dict.fromkeys(Head._fields, 0)
NO_DETAIL = dict.fromkeys(Detail._fields, 0) | {"icmp_saddr": bytes(16)}

Endpoint = tuple[str, int]


def packed(address: str) -> bytes:
    raw = ip_address(address).packed
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


def encoded(name: str | bytes) -> bytes:
    if isinstance(name, bytes):
        return name
    labels = [label.encode() for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def message(
    name: str | bytes,
    rdtype: int = 1,
    identifier: int = 36259,
    *,
    flags: int = 0x0100,
    rdclass: int = 1,
    tail=b"",
    an=0,
) -> bytes:
    """One DNS message with one question; `tail` is what follows it, `an` its number of answers."""
    return (
        struct.pack("!6H", identifier, flags, 1, an, 0, 0) + encoded(name) + struct.pack("!HH", rdtype, rdclass) + tail
    )


def question_end(content: bytes) -> int:
    at = 12
    while at < min(len(content), PREFIX):
        if not content[at]:
            return at + 5 if at + 5 <= min(len(content), PREFIX) else 0
        if content[at] > 63:
            return 0
        at += content[at] + 1
    return 0


@dataclass(frozen=True)
class PlainHop:
    """One hop before it is packed."""

    ts_ns: int
    netns: int
    ifindex: int
    ifname: bytes
    event: int
    flags: int
    source: Endpoint
    destination: Endpoint
    content: bytes
    conntrack: tuple[Endpoint, Endpoint, Endpoint, Endpoint, int] | None = None
    skb: int = 0
    reason: str = ""
    location: str = ""
    stack: tuple[str, ...] = ()
    comm: bytes = b""
    tgid: int = 0
    protocol: int = UDP
    sequence: int = 0
    tcp_flags: int = 0
    acknowledgement: int = 0
    ct_status: int = 0
    stat: tuple[int, int, int] | None = None
    """This CPU's conntrack counters: invalid, insert_failed, drop."""
    cpu: int = 0
    device_state: int = 3
    socket: tuple[int, int] = (0, 0)
    """Memory in use and allowed of the socket that refused it."""
    icmp: tuple[int, int, int, str] | None = None
    """Type, code, MTU and sender of the ICMP error that quotes this packet."""

    def later(self, ns: int) -> "Hop":
        return replace(self, ts_ns=self.ts_ns + ns)


class Recorder:
    """Packs hops as the kernel program does: same number for all hops of a message, bytes with the first alone.

    TCP segments have no number, and their bytes are read at the sockets alone.
    """

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}

    def number(self, hop: PlainHop) -> int:
        end = question_end(hop.content)
        if not end:
            return 0
        address, port = hop.destination if hop.flags & Flag.RESPONSE else hop.source
        seed = packed(address) + struct.pack("!H", port) + hop.content[:end]
        if is_loopback(packed(address)):
            seed += struct.pack("!I", hop.netns)
        return zlib.crc32(seed) << 32 | zlib.adler32(seed) or 1

    def pack(self, hop: PlainHop) -> Hop:
        stream = hop.protocol == TCP
        if not stream and len(hop.content) > 2 and hop.content[2] & 0x80:
            hop = replace(hop, flags=hop.flags | Flag.RESPONSE)
        number = 0 if stream else self.number(hop)
        known = hop.icmp or (number and number in self.sent and 0 <= hop.ts_ns - self.sent[number] < RESEND_NS)
        carried = b"" if known or (stream and hop.event not in AT_SOCKET) else hop.content
        if number and not known:
            self.sent[number] = hop.ts_ns
        tail = carried
        if hop.event == Event.DROP:
            frames = [ADDRESSES[name] + 0x20 for name in hop.stack]
            tail = struct.pack(f"={STACK_FRAMES}Q", *frames, *[0] * (STACK_FRAMES - len(frames))) + carried
        none = ("::", 0)
        tracked = hop.conntrack or (none, none, none, none, 0)
        detail = {
            "location": ADDRESSES.get(hop.location, 0),
            "reason": REASON_NUMBERS.get(hop.reason, 0),
            "socket_netns": hop.netns if hop.flags & Flag.ORIGIN else 0,
            "tgid": hop.tgid,
            "ct_status": hop.ct_status,
            "payload_bytes": len(hop.content),
            "captured_bytes": len(carried),
            "sport": hop.source[1],
            "dport": hop.destination[1],
            "ct_original_sport": tracked[0][1],
            "ct_original_dport": tracked[1][1],
            "ct_reply_sport": tracked[2][1],
            "ct_reply_dport": tracked[3][1],
            "ct_info": tracked[4],
            "acknowledgement": hop.acknowledgement,
            "stack_frames": len(hop.stack),
            "saddr": packed(hop.source[0]),
            "daddr": packed(hop.destination[0]),
            "ct_original_saddr": packed(tracked[0][0]),
            "ct_original_daddr": packed(tracked[1][0]),
            "ct_reply_saddr": packed(tracked[2][0]),
            "ct_reply_daddr": packed(tracked[3][0]),
            "comm": hop.comm,
            "ifname": hop.ifname,
            "cpu": hop.cpu,
            "device_state": hop.device_state if hop.event == Event.DROP else 0,
            "socket_rmem": hop.socket[0],
            "socket_rcvbuf": hop.socket[1],
        }
        flags = hop.flags | (Flag.CONNTRACK if hop.conntrack else 0)
        if hop.stat is not None:
            flags |= Flag.COUNTERS
            detail |= dict(zip(("stat_invalid", "stat_insert_failed", "stat_drop"), hop.stat, strict=True))
        if hop.icmp is not None:
            flags |= Flag.ICMP
            icmp = (*hop.icmp[:3], packed(hop.icmp[3]))
            detail |= dict(zip(("icmp_type", "icmp_code", "icmp_mtu", "icmp_saddr"), icmp, strict=True))
        head = {
            "ts_ns": hop.ts_ns,
            "message_id": number,
            "skb": hop.skb,
            "netns": hop.netns,
            "ifindex": hop.ifindex,
            "tail_bytes": len(tail),
            "event": hop.event,
            "flags": flags,
            "family": 6 if ":" in hop.source[0] else 4,
            "protocol": hop.protocol,
            "sequence": hop.sequence,
            "tcp_flags": hop.tcp_flags,
        }
        rest = DETAIL.pack(*Detail(**NO_DETAIL | detail)) + tail
        return Hop(*Head(**NO_HEAD | head), rest)


@dataclass
class Lookup:
    """One lookup, and the hops its packets take.

    `shape` says where its ends are: `pod` (both are pods here), `host` (a process of the node asks a pod), `loopback`,
    `client` (the server is on another node), `server` (the client is), `local` (a server in the node's namespace),
    `forward` (the server's pod asks beyond the node), `outward` (a process of the node does).
    """

    name: str | bytes = "redis-master.default.svc.cluster.local."
    rdtype: int = 1
    rdclass: int = 1
    identifier: int = 36259
    shape: str = "pod"
    v6: bool = False
    client: Endpoint | None = None
    vip: Endpoint | None = None
    snat: bool = False
    dnat: bool = True
    client_netns: int = CLIENT
    port: int | None = None
    comm: bytes = b"php-fpm"
    tgid: int = 7445
    copies: int = field(default=0)

    def __post_init__(self) -> None:
        kind = {
            "host": (HOST, HOST6),
            "outward": (HOST, HOST6),
            "loopback": (("127.0.0.1", 40000), ("::1", 40000)),
            "forward": ((BACKEND[0], 33000), (BACKEND6[0], 33000)),
        }.get(self.shape, (POD, POD6))
        self.client = self.client or kind[self.v6]
        if self.port is not None:
            self.client = (self.client[0], self.port)
        loopback = (("127.0.0.53", 53), ("::1", 53))[self.v6]
        addressed = {"loopback": loopback, "local": ("169.254.20.10", 53)}.get(self.shape, (VIP, VIP6)[self.v6])
        self.dnat = self.dnat and self.shape not in ("loopback", "local", "server", "forward", "outward")
        backend = (BACKEND, BACKEND6)[self.v6]
        if self.shape in ("forward", "outward"):
            addressed = (UPSTREAM, UPSTREAM6)[self.v6]
        if self.shape == "server":
            addressed = backend
        self.vip = self.vip or addressed
        self.backend = backend if self.dnat else self.vip
        self.outside = (MASQUERADED, MASQUERADED6)[self.v6] if self.snat else self.client

    def at(self, place: str) -> tuple[int, int, bytes]:
        return {
            "client": (self.client_netns, 2, b"eth0"),
            "lo": (self.client_netns, 1, b"lo"),
            "vethc": (NODE, 10, b"vethc"),
            "vethd": (NODE, 11, b"vethd"),
            "uplink": (NODE, 3, b"eth0"),
            "node": (NODE, 1, b"lo"),
            "server": (SERVER, 2, b"eth0"),
        }[place]

    def tracked(
        self, *, response: bool, first: bool = True
    ) -> tuple[Endpoint, Endpoint, Endpoint, Endpoint, int] | None:
        if not (self.dnat or self.snat):
            return None
        info = 3 if response else 2 if first else 0
        return self.client, self.vip, self.backend, self.outside, info

    def steps(self, *, response: bool) -> list[tuple[float, str, int, int, Endpoint, Endpoint, bool]]:
        """Offset in microseconds, place, event, flags, source, destination, whether conntrack is visible."""
        tx, rx, own = Event.TX, Event.RX, Flag.ORIGIN | Flag.PROCESS
        ask, asked = (self.client, self.vip), (self.outside, self.backend)
        say, said = asked[::-1], ask[::-1]
        queries = {
            "pod": [
                (0, "client", tx, own, *ask, False),
                (23, "vethc", rx, 0, *ask, False),
                (46.1, "vethd", tx, 0, *asked, True),
                (47.5, "server", rx, 0, *asked, False),
            ],
            "host": [(0, "vethd", tx, own, *asked, True), (20, "server", rx, 0, *asked, False)],
            "loopback": [(0, "lo", tx, own, *ask, False), (5, "lo", rx, 0, *ask, False)],
            "local": [(0, "client", tx, own, *ask, False), (9, "vethc", rx, 0, *ask, False)],
            "client": [
                (0, "client", tx, own, *ask, False),
                (23, "vethc", rx, 0, *ask, False),
                (46, "uplink", tx, 0, *asked, True),
            ],
            "server": [
                (0, "uplink", rx, 0, *asked, False),
                (20, "vethd", tx, 0, *asked, False),
                (22, "server", rx, 0, *asked, False),
            ],
            "forward": [
                (0, "server", tx, own, *ask, False),
                (3, "vethd", rx, 0, *ask, False),
                (9, "uplink", tx, 0, *asked, self.snat),
            ],
            "outward": [(0, "uplink", tx, own, *asked, self.snat)],
        }
        replies = {
            "pod": [
                (0, "server", tx, own, *say, False),
                (3, "vethd", rx, 0, *say, False),
                (12, "vethc", tx, 0, *said, True),
                (13, "client", rx, 0, *said, False),
            ],
            "host": [(0, "server", tx, own, *say, False), (3, "vethd", rx, 0, *say, False)],
            "loopback": [(0, "lo", tx, own, *say, False), (5, "lo", rx, 0, *say, False)],
            "local": [(0, "vethc", tx, own, *say, False), (9, "client", rx, 0, *say, False)],
            "client": [
                (0, "uplink", rx, 0, *say, False),
                (12, "vethc", tx, 0, *said, True),
                (13, "client", rx, 0, *said, False),
            ],
            "server": [
                (0, "server", tx, own, *say, False),
                (3, "vethd", rx, 0, *say, False),
                (12, "uplink", tx, 0, *say, False),
            ],
            "forward": [
                (0, "uplink", rx, 0, *say, False),
                (4, "vethd", tx, 0, *said, self.snat),
                (5, "server", rx, 0, *said, False),
            ],
            "outward": [(0, "uplink", rx, 0, *say, False)],
        }
        return (replies if response else queries)[self.shape]

    def _hops(self, content: bytes, ts_ns: int, *, response: bool) -> list[PlainHop]:
        self.copies += 1
        skb = zlib.crc32(content) << 16 | self.copies
        hops = []
        for offset, place, event, flags, source, destination, tracked in self.steps(response=response):
            netns, ifindex, ifname = self.at(place)
            process = SERVING if response else (self.comm, self.tgid)
            comm, tgid = process if flags & Flag.PROCESS else (b"", 0)
            entry = self.tracked(response=response, first=self.copies == 1) if tracked else None
            ts = ts_ns + int(offset * US)
            hops.append(
                PlainHop(
                    ts,
                    netns,
                    ifindex,
                    ifname,
                    event,
                    flags,
                    source,
                    destination,
                    content,
                    entry,
                    skb,
                    comm=comm,
                    tgid=tgid,
                )
            )
        return hops

    def query(self, ts_ns: int = START, *, content: bytes | None = None) -> list[PlainHop]:
        """The hops of one copy of the query, all the way to the server, or out of the node."""
        return self._hops(content or self.question(), ts_ns, response=False)

    def reply(
        self,
        ts_ns: int = START + 125_600,
        *,
        content: bytes | None = None,
        **said: bool | int,
    ) -> list[PlainHop]:
        """The hops of one reply, all the way to the client, or out of the node."""
        return self._hops(content or self.answer(**said), ts_ns, response=True)

    def question(self, tail: bytes = b"") -> bytes:
        """The query's bytes."""
        return message(self.name, self.rdtype, self.identifier, rdclass=self.rdclass, tail=tail)

    def answer(
        self, *, rcode: int = 0, aa: bool = True, ra: bool = False, tc: bool = False, an: int = 0, tail: bytes = b""
    ) -> bytes:
        """The reply's bytes."""
        flags = 0x8100 | aa << 10 | tc << 9 | ra << 7 | rcode
        return message(self.name, self.rdtype, self.identifier, flags=flags, rdclass=self.rdclass, an=an, tail=tail)

    def onward(self, shape: str = "forward", **changes: object) -> "Lookup":
        """What the server of this lookup asks its upstream: the same question under another id and from its own port.

        `shape` is `forward` for a server in a pod, `outward` for one of the node, `host` for one of the node that asks
        the server in the pod.
        """
        comm, tgid = SERVING
        own = {"identifier": self.identifier + 1, "client_netns": SERVER if shape == "forward" else NODE}
        asked = {"name": self.name, "rdtype": self.rdtype, "rdclass": self.rdclass, "v6": self.v6}
        return Lookup(**{"shape": shape, "comm": comm, "tgid": tgid, **own, **asked, **changes})

    def both(self, ts_ns: int = START, **reply: object) -> list[PlainHop]:
        """A whole lookup."""
        return [*self.query(ts_ns), *self.reply(ts_ns + 125_600, **reply)]


def prefixed(*messages: bytes) -> bytes:
    """DNS messages as they follow one another in a TCP stream."""
    return b"".join(struct.pack("!H", len(one)) + one for one in messages)


class Tcp:
    """One TCP connection between the ends of a lookup, segment by segment.

    Acknowledgements alone leave no record. At each end that is on this node the socket's program sees the segment too.
    """

    def __init__(self, lookup: Lookup, starts: tuple[int, int] = (1000, 5000)) -> None:
        self.lookup = lookup
        self.starts = starts
        self.next = [start + 1 for start in starts]

    def segment(
        self, ts_ns: int, data: bytes = b"", flags: int = ACK, *, response: bool = False, sequence: int | None = None
    ) -> list[PlainHop]:
        """The hops of one segment: the first or the next of its direction, unless its sequence number is given."""
        if sequence is None and flags & SYN:
            sequence = self.starts[response]
        elif sequence is None:
            sequence = self.next[response] & 0xFFFFFFFF
            self.next[response] += len(data) + bool(flags & FIN)
        seen = self.starts[not response] + 1 if flags & SYN else self.next[not response]
        acknowledged = seen & 0xFFFFFFFF if flags & ACK else 0
        direction = Flag.RESPONSE if response else Flag(0)
        hops = [
            replace(
                hop,
                flags=hop.flags | direction,
                protocol=TCP,
                sequence=sequence,
                tcp_flags=flags,
                acknowledgement=acknowledged,
            )
            for hop in self.lookup._hops(data, ts_ns, response=response)
        ]
        if hops[0].flags & Flag.ORIGIN:
            hops.insert(0, replace(hops[0], event=Event.SOCKET_TX))
        last = hops[-1]
        if last.event == Event.RX:
            hops.append(replace(last, ts_ns=last.ts_ns + US // 2, event=Event.SOCKET_RX))
        return hops

    def open(self, ts_ns: int = START) -> list[PlainHop]:
        """SYN, and SYN-ACK 0.1 ms later."""
        return [*self.segment(ts_ns, flags=SYN), *self.segment(ts_ns + MS // 10, flags=SYN | ACK, response=True)]

    def ask(self, ts_ns: int, *messages: bytes) -> list[PlainHop]:
        """These queries in one segment, or that of the lookup."""
        return self.segment(ts_ns, prefixed(*messages or (self.lookup.question(),)))

    def say(self, ts_ns: int, *messages: bytes, **said: bool | int) -> list[PlainHop]:
        """These replies in one segment, or that of the lookup."""
        return self.segment(ts_ns, prefixed(*messages or (self.lookup.answer(**said),)), response=True)

    def close(self, ts_ns: int, flags: int = FIN | ACK, *, response: bool = False) -> list[PlainHop]:
        """One side ends it; with RST if it says so."""
        return self.segment(ts_ns, flags=flags, response=response)

    def refuse(self, ts_ns: int = START) -> list[PlainHop]:
        """SYN, its drop for want of a listener, if that is on this node, and RST."""
        asked = self.segment(ts_ns, flags=SYN)
        if asked[-1].event == Event.SOCKET_RX:
            asked = dropped(asked[:-1], len(asked) - 1, "NO_SOCKET", "tcp_v4_rcv")
        return [*asked, *self.segment(ts_ns + MS // 10, flags=RST | ACK, response=True, sequence=0)]

    def whole(self, ts_ns: int = START, **said: bool | int) -> list[PlainHop]:
        """A connection for one lookup, from SYN to FIN."""
        return [
            *self.open(ts_ns),
            *self.ask(ts_ns + MS),
            *self.say(ts_ns + 2 * MS, **said),
            *self.close(ts_ns + 3 * MS),
            *self.close(ts_ns + 4 * MS, response=True),
        ]


def dropped(  # noqa: PLR0917  what, how far and why, in this order
    hops: list[PlainHop],
    after: int,
    reason: str = "NETFILTER_DROP",
    location: str = "nf_hook_slow",
    stack: Sequence[str] = (),
    delay: int = 2 * US,
    **evidence: object,
) -> list[PlainHop]:
    """The first `after` of the hops, then its drop where it was seen last; `evidence` is what the record adds."""
    last = hops[after - 1]
    own = last.flags & Flag.ORIGIN if last.event == Event.TX else 0
    end = replace(
        last,
        ts_ns=last.ts_ns + delay,
        event=Event.DROP,
        flags=own | last.flags & Flag.RESPONSE,
        reason=reason,
        location=location,
        stack=tuple(stack),
        **evidence,
    )
    return [*hops[:after], end]


def icmp(hop: PlainHop, kind: int, code: int, sender: str, mtu: int = 0) -> PlainHop:
    """The arrival of an ICMP error that quotes the packet of this hop, in the same namespace."""
    about = replace(hop, ts_ns=hop.ts_ns + 20 * US, event=Event.RX, flags=0, icmp=(kind, code, mtu, sender))
    return replace(about, conntrack=None)


class World:
    """A node, its table of sessions and the kernel program that feeds it."""

    START, US, MS, SECOND = START, US, MS, SECOND
    CLIENT, NODE, SERVER = CLIENT, NODE, SERVER
    KERNEL, SYMBOLS, REASONS = KERNEL, SYMBOLS, REASONS
    PlainHop, Lookup, Recorder, Tcp = PlainHop, Lookup, Recorder, Tcp
    dropped = staticmethod(dropped)
    icmp = staticmethod(icmp)
    message = staticmethod(message)
    encoded = staticmethod(encoded)
    prefixed = staticmethod(prefixed)

    def __init__(self, *, knows_addresses: bool = True, started_ns: int = 0, **settings: int) -> None:
        self.recorder = Recorder()
        self.knows_addresses = knows_addresses
        self.addresses = {netns: set(own) for netns, own in LOCAL.items()}
        self.table = SessionTable(Settings(**settings), kernel=KERNEL, is_local=self.is_local, started_ns=started_ns)
        self.now = START

    @property
    def books(self) -> dict[str, Sized]:
        """What the table keeps, by the name of the attribute."""
        table = self.table
        rooms = (table, table._index, table._deadlines, table._forwarding)
        return {name: book for room in rooms for name, book in vars(room).items() if isinstance(book, Sized)}

    def is_local(self, netns: int, address: bytes) -> bool | None:
        if not self.knows_addresses:
            return None
        return is_loopback(address) or any(packed(own) == address for own in self.addresses.get(netns, ()))

    def feed(self, *parts: Iterable[PlainHop]) -> "World":
        """Record the hops in the order given."""
        for part in parts:
            for hop in part:
                self.table.observe(self.recorder.pack(hop))
                self.now = max(self.now, hop.ts_ns)
        return self

    def later(self, ns: int) -> list[Outcome]:
        """What closes while so much time passes."""
        self.now += ns
        return list(self.table.expire(self.now))

    def outcomes(self, *parts: Iterable[PlainHop]) -> list[Outcome]:
        """Everything that these hops (and those before) come to, when all timeouts have passed."""
        return self.feed(*parts).later(60 * SECOND)

    def outcome(self, *parts: Iterable[PlainHop]) -> Outcome:
        """The same, when it must be one session."""
        (only,) = self.outcomes(*parts)
        return only


@pytest.fixture(scope="session")
def worlds() -> type[World]:
    """The class, for tests that need a fresh node in every example."""
    return World


@pytest.fixture
def world() -> World:
    """A node whose addresses are known."""
    return World()
