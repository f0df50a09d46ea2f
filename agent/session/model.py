"""What a session is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.record import DROP, FRAGMENT, ORIGIN, RX, SOCKET_RX, TCP, Hop
from agent.wire.stream import RST

if TYPE_CHECKING:
    from agent.hop.endpoint import Endpoint
    from agent.session.tcp import TcpConnection
    from agent.wire.message import Summary

MAX_HOPS = 32
MAX_TRANSMISSIONS = 16
MAX_EXCHANGES = 64
MAX_MESSAGES = 64
MAX_ERRORS = 8
MAX_STRANGERS = 64
SECOND_NS = 1_000_000_000


class Settings(NamedTuple):
    """Timeouts and bounds."""

    timeout_ns: int = 10 * SECOND_NS
    """How long an unanswered query waits for its reply or a retransmission."""
    upstream_timeout_ns: int = 7 * SECOND_NS
    """How long a query waits at least after its server last asked upstream: CoreDNS gives up after about 6 s."""
    linger_ns: int = SECOND_NS // 10
    """How long an answered session waits for late records. Longer than RESEND_NS of the kernel program, so that a
    repeat after the session was closed brings its bytes again."""
    lifetime_ns: int = 60 * SECOND_NS
    """A session is closed after so long even if its client goes on asking: somebody waits for the news."""
    max_sessions: int = 65536
    """Open at once; beyond it the oldest is closed as SampleLoss."""
    tombstones: int = 16384
    """Closed sessions remembered, so that late records of theirs do not look like new ones."""


@dataclass(slots=True, eq=False)
class Message:
    """One distinct DNS message, as bytes and as the summary that joining needs."""

    payload: bytes
    """Replaced by more of it when a later hop could read more."""
    length_bytes: int
    """By the UDP header; more than len(payload) if the capture cut it."""
    summary: Summary


@dataclass(slots=True, eq=False)
class Transmission:
    """One copy of one message on its way: its hops in the order of time."""

    message: Message
    hops: list[Hop] = field(default_factory=list)
    hop_keys: list[int] = field(default_factory=list)
    """`place()` of each hop, in the same order until the session is judged."""

    @property
    def origin(self) -> Hop | None:
        """The hop at which it left its sender's socket, if that was on this node."""
        return next((hop for hop in self.hops if hop.flags & ORIGIN), None)

    @property
    def drop(self) -> Hop | None:
        """The first drop after which it was not seen again: the packet, or the fragment without which it is nothing."""
        if not any(hop.event == DROP for hop in self.hops):
            return None
        return next((hop for index, hop in enumerate(self.hops) if self._is_fatal(index, hop)), None)

    def _is_fatal(self, index: int, hop: Hop) -> bool:
        if hop.event != DROP:
            return False
        later = (place for place in self.hops[index + 1 :] if place.event != DROP)
        if hop.flags & FRAGMENT:
            # Other fragments may go on; only the whole datagram proves that this one was not needed.
            return all(place.fragment for place in later)
        return not any(True for _ in later)

    def accepts(self, message: Message, hop: Hop, here: int) -> bool:
        """Whether this hop can be one of this copy's: its message, a new place, and not after its drop."""
        if self.message is not message or here in self.hop_keys:
            return False
        if hop.flags & ORIGIN and hop.event != DROP and self._is_from_elsewhere(hop):
            return False
        last = self.hops[-1]
        return last.event != DROP or hop.ts_ns < last.ts_ns or bool(last.flags & FRAGMENT or hop.fragment)

    def _is_from_elsewhere(self, origin: Hop) -> bool:
        """Whether this copy left another socket: two servers may say the very same."""
        known = self.origin
        return known is not None and known.netns != origin.netns

    def arrivals(self, netns: int | None) -> list[Hop]:
        """Hops at which it was taken in by that namespace."""
        return [hop for hop in self.hops if hop.netns == netns and hop.event in (RX, SOCKET_RX)]


def hop_key(hop: Hop) -> int:
    """Where and how a packet was seen, as one number: a copy passes each place once.

    Whether it was the origin belongs to it, so that the places of a copy are all that its path says.
    """
    where = hop.netns << 36 | hop.ifindex << 4 | hop.event << 1 | (hop.flags & ORIGIN and 1)
    return where | hop.fragment << 68 if hop.flags & FRAGMENT else where


@dataclass(slots=True, eq=False)
class Direction:
    """All queries, or all replies, between the client and the server of one session."""

    transmissions: list[Transmission] = field(default_factory=list)

    def add(self, hop: Hop, message: Message) -> bool:
        """Put a hop where it belongs; False when a bound keeps it out."""
        here = hop_key(hop)
        copies = self.transmissions
        if len(copies) == 1 and copies[0].accepts(message, hop, here):
            target: Transmission | None = copies[0]
        else:
            target = self._target(hop, message, here)
        if target is None or len(target.hops) >= MAX_HOPS:
            return False
        target.hops.append(hop)
        target.hop_keys.append(here)
        return True

    def _target(self, hop: Hop, message: Message, here: int) -> Transmission | None:
        free = [transmission for transmission in self.transmissions if transmission.accepts(message, hop, here)]
        if free:
            # An sk_buff keeps its address from hop to hop, so it tells copies apart; else it is the newest one's.
            same = [copy for copy in free if copy.hops[-1].skb == hop.skb]
            return (same or free)[-1]
        if len(self.transmissions) >= MAX_TRANSMISSIONS:
            return None
        self.transmissions.append(Transmission(message))
        return self.transmissions[-1]

    @property
    def sent(self) -> list[Transmission]:
        """Copies that were really sent anew: those that begin where the first one began."""
        if len(self.transmissions) < 2:  # noqa: PLR2004  a single copy was sent once
            return self.transmissions
        start = self.transmissions[0].hop_keys[0]
        return [transmission for transmission in self.transmissions if start in transmission.hop_keys]


class Key(NamedTuple):
    """What makes two packets belong to one lookup (RFC 1035 4.1; names compare without case, RFC 4343)."""

    client: Endpoint
    protocol: int
    id: int
    name: bytes
    rdtype: int
    rdclass: int
    scope: int
    """The namespace, for addresses that mean something else in each of them: loopback, and that of a client with which
    a proxy asks. Else 0."""

    @property
    def question(self) -> tuple[bytes, int, int]:
        """Name, type and class: what a server passes on."""
        return self[3:6]


def connecting_key(client: Endpoint, scope: int) -> Key:
    """The key of a client's request for a TCP connection, which has no question yet."""
    return Key(client, TCP, 0, b"", 0, 0, scope)


class Background(StrEnum):
    """Lookups that no client waits for: counted, not sessions of a client."""

    HEALTH_CHECK = "health check"
    """A server asking its upstream for the root's name servers."""
    LOOP_PROBE = "loop probe"
    """A server looking for its own reflection."""
    REFRESH = "refresh"
    """Prefetch, or renewal of a stale answer that was already given."""


@dataclass(slots=True, eq=False)
class Session:
    """One lookup of one client."""

    key: Key
    first_ns: int
    deadline_ns: int
    queries: Direction = field(default_factory=Direction)
    replies: Direction = field(default_factory=Direction)
    keys: list[Key] = field(default_factory=list)
    """Every key it can be found by: source translation gives it a second one."""
    messages: list[int] = field(default_factory=list)
    last_ns: int = 0
    upstream: list[Session] = field(default_factory=list)
    """What the server itself asked to answer it, oldest first. Each is a session too, the server being its client."""
    upstream_of: Key | None = None
    """The lookup for whose sake this one was made."""
    inner: Session | None = None
    """The next stage of the very same message: a proxy passed it on with the client's address, port and id."""
    background: Background | None = None
    connection: TcpConnection | None = None
    """The TCP connection it used."""
    strays: Direction | None = None
    """Replies to its queries that no client can use: unreadable, or with another id or question."""
    errors: list[Hop] = field(default_factory=list)
    """ICMP errors that answered its packets, one of each kind and sender."""
    pair: Session | None = None
    """The lookup of the same name, A to AAAA or AAAA to A, that came from the same socket."""
    collides: bool = False
    """Its pair has the same transaction id."""
    search_list_followed: bool = False
    """The name did not exist, and the client went on with the next name of its search path."""
    upstream_connects: list[tuple[int, tuple[bytes, int]]] = field(default_factory=list)
    """Where its server asked for connections on its behalf: namespace, and address and port."""
    search_prefix: bytes = b""
    """What the names of that search have in common at their beginning, once two of them were seen."""
    ambiguous: bool = False
    """Which client's lookup an upstream exchange belongs to was a guess among several."""
    guessed: bool = False
    """It is told with the lookup that waited where it was asked, although nothing proves that this ended there."""
    further: int = 0
    """Messages of the answer beyond those that are kept: a zone transfer has any number."""
    bytes_missing: bool = False
    """Bytes of its connection were sent and received, and are not in the record."""
    reply_cut: bool = False
    """A reply that must be meant for it came, and the capture cut it before the end of its question."""
    overflowed: bool = False
    """A bound kept something out, or closed it early."""
    evicted: bool = False
    """It was closed early because too many were open."""
    interrupted: bool = False
    """Closed because the agent, or the capture, ends."""
    interrupted_ns: int = 0
    """When that was."""
    strangers: set[tuple[int, int]] = field(default_factory=set)
    """Devices (namespace, index) at which the kernel said of its frames that they were for another host: a bridge that
    does not know where a host is gives its frames to all."""

    def __post_init__(self) -> None:
        self.last_ns = self.first_ns

    @property
    def connecting(self) -> bool:
        """Whether this is no lookup yet, but the request for the TCP connection of one."""
        return not self.key.name

    @property
    def sent(self) -> list[Transmission]:
        """Queries as the client sent them. TCP repeats segments by itself: over a connection there is one."""
        return self.queries.transmissions[:1] if self.key.protocol == TCP and self.key.name else self.queries.sent

    @property
    def refused(self) -> bool:
        """Whether the request for a connection was answered by RST."""
        return self.connecting and any(reply.message.payload[0] & RST for reply in self.replies.transmissions)

    def add_error(self, error: Hop) -> None:
        """Keep an ICMP error: the first of each kind and sender."""
        detail = error.detail
        kind = detail.icmp_type, detail.icmp_code, detail.icmp_saddr
        known = {(icmp.icmp_type, icmp.icmp_code, icmp.icmp_saddr) for icmp in (two.detail for two in self.errors)}
        if kind not in known and len(self.errors) < MAX_ERRORS:
            self.errors.append(error)

    @property
    def exchanges(self) -> list[Session]:
        """What the server asked upstream before it replied; what it asked later served nobody waiting."""
        return [exchange for exchange in self.upstream if exchange.background is None]

    def direction(self, *, response: bool) -> Direction:
        """The leg a message belongs to."""
        return self.replies if response else self.queries
