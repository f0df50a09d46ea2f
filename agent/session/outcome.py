"""What became of a session: Status, bits, ends, drops. `agent.session.conclude` fills it in.

The bits are those of dnstap's message types as CoreDNS users know them; `docs/semantics.md` has the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.conntrack import REPLY_CT_INFO
from agent.hop.endpoint import Endpoint
from agent.hop.record import (
    CONNTRACK,
    Hop,
)
from agent.session.addressed import asked_of, server_of, times_asked
from agent.wire.message import EXTENDED_ERROR, options
from agent.wire.rcodes import ANSWERED, FORMERR, NOTIMP, REFUSED, SERVFAIL

if TYPE_CHECKING:
    from agent.hop.drops import DropReason, Kernel
    from agent.session.model import Message, Session, Transmission
    from agent.session.node_state import Backend, NodeState

SERVER_WRITTEN = frozenset({SERVFAIL, REFUSED, FORMERR, NOTIMP})
"""Rcodes that CoreDNS's server core writes itself, past the dnstap plugin (plugin.ClientWrite)."""
MAX_PATTERNS = 4096
"""Beyond that all are forgotten, and those still in use are learned again: pods come and go, and their devices with
them."""
REFRESH_NS = 5_000_000
"""How long before a cached reply the question that renews it may go out, and how long after."""


class Bit(IntFlag):
    """PathBitMap; the lowest four are BitMap."""

    CQ = 1
    CR = 2
    FQ = 4
    FR = 8
    SQ = 16
    SR = 32
    QUERY_DROPPED = 64
    REPLY_DROPPED = 128


CQ, CR, FQ, FR, SQ, SR, QUERY_DROPPED, REPLY_DROPPED = (int(bit) for bit in Bit)
BITMAP = CQ | CR | FQ | FR
COMPLETE = SQ | CQ | CR | SR
MUST_HAVE_HAPPENED = ((FR, FQ), (FQ, CQ), (CR, CQ))
"""What each bit proves, in the order in which one proof makes the next: an upstream that replied was asked, and a
server that asked or replied had the query."""


class Status(StrEnum):
    """What the user is told first."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SAMPLE_LOSS = "SampleLoss"


class Leg(StrEnum):
    """A part of the way of a lookup: which message was there."""

    QUERY = "query"
    REPLY = "reply"
    UPSTREAM_QUERY = "upstream query"
    """What the server asked."""
    UPSTREAM_REPLY = "upstream reply"


class PacketDrop(NamedTuple):
    """One message that was lost on this node."""

    leg: Leg
    hop: Hop
    why: DropReason
    before: list[Hop]
    """The hops of that copy before it died, oldest first."""


class Told(NamedTuple):
    """One answer to a client, as `agent.session.last_answers` remembers it."""

    rdtype: int
    rcode: int
    server: bytes
    """Its address, 16 bytes, as the query had it at its first hop."""
    ts_ns: int


@dataclass(slots=True, eq=False)
class Outcome:
    """A closed session and everything concluded from its packets alone."""

    session: Session
    status: Status
    bits: int
    """PathBitMap, as a plain number."""
    client_netns: int | None
    server_netns: int | None
    reply: Transmission | None
    """The reply that counts: the delivered one, else the last."""
    rcode: int | None
    answer_source: str | None
    query_drop: PacketDrop | None
    reply_drop: PacketDrop | None
    upstream_drop: PacketDrop | None
    """The newest drop of a message between the server and its upstream."""
    delivered: bool
    """Some reply reached the client as far as this node can see."""
    left_node: bool
    """The last hop of the query is its departure by a device that has no other end on this node."""
    lossy: bool
    """The agent lost records while the session was open."""
    node_state: NodeState
    """Of the node."""
    contradicted: Told | None = None
    """What the client was told of the name just before, where that says otherwise whether it exists."""
    unasked: bool = False
    """The reply that counts came from an address that the client did not ask: resolvers discard it."""
    inferred: int = 0
    """Those of `bits` that no hop showed: what was seen proves that they happened."""
    backend: Backend | None = None
    """The server behind a virtual address that answered."""
    pair: Session | None = None
    """The other half, if this was one of an A/AAAA pair and was not answered like all others."""

    @property
    def kernel(self) -> Kernel:
        """Names the drops."""
        return self.node_state.kernel

    def drop_of(self, hop: Hop) -> DropReason:
        """The words for a drop hop."""
        return self.kernel.describe(hop)

    @property
    def path(self) -> Bit:
        """PathBitMap."""
        return Bit(self.bits)

    @property
    def bitmap(self) -> Bit:
        """CQ, CR, FQ, FR."""
        return Bit(self.bits & BITMAP)

    @property
    def healthy(self) -> bool:
        """Whether the reply that counts is no error."""
        return self.rcode in ANSWERED

    @property
    def dnstap_bitmap(self) -> Bit:
        """What CoreDNS's dnstap plugin would have shown (up to 1.14.7): without a reply the server core wrote."""
        relayed = self.bits & FR and any(
            reply.message.summary.rcode == self.rcode
            for exchange in self.session.upstream
            for reply in exchange.replies.transmissions
        )
        written = self.answer_source == "server-error" and not relayed
        return Bit(self.bits & BITMAP & ~CR) if written else self.bitmap

    @property
    def vantage(self) -> str | None:
        """Which ends of the session lie on this node."""
        if self.client_netns is not None and self.server_netns is not None:
            return "both"
        if self.client_netns is None and self.server_netns is None:
            return None
        return "client" if self.server_netns is None else "server"

    @property
    def attempts(self) -> int:
        """How often the client sent the query."""
        return len(self.session.sent)

    @property
    def repeats(self) -> int:
        """How often it sent it to the server that it asked most often."""
        return self.attempts if self.attempts <= 1 else max(times_asked(self.session).values())

    @property
    def server(self) -> Endpoint:
        """The server of the reply that counts, as the client addressed it; the first one asked, if none replied."""
        return server_of(self.session, self.reply)

    @property
    def queries(self) -> list[Transmission]:
        """The copies of the query that were sent to that server."""
        queries = self.session.queries.transmissions
        if len(queries) < 2:  # noqa: PLR2004  there is nothing to choose
            return queries
        server = self.server
        return [query for query in queries if asked_of(query) == server]

    @property
    def server_namespaces(self) -> set[int]:
        """Where servers of this session are on this node: several, when several were asked at once."""
        replied = {hop.netns for reply in self.session.replies.transmissions if (hop := reply.origin) is not None}
        return replied if self.server_netns is None else replied | {self.server_netns}

    @property
    def exchanges(self) -> list[Session]:
        """What the server asked upstream for the client that waited."""
        return self.session.exchanges

    @property
    def duration_ns(self) -> int | None:
        """From the first hop of the query to the last one of the reply; None without both, or if clocks differ."""
        if self.reply is None or not self.session.queries.transmissions:
            return None
        duration_ns = self.reply.hops[-1].ts_ns - self.session.queries.transmissions[0].hops[0].ts_ns
        return duration_ns if duration_ns >= 0 else None


def translation(queries: list[Transmission]) -> tuple[Endpoint, Endpoint, Hop] | None:
    """The virtual address, the server it stood for, the newest hop that showed it; None for a query as it was sent."""
    for query in reversed(queries):
        for hop in reversed(query.hops):
            detail = hop.detail
            if not hop.flags & CONNTRACK or detail.ct_info >= REPLY_CT_INFO:
                continue
            virtual = Endpoint(detail.ct_original_daddr, detail.ct_original_dport)
            backend = Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)
            if virtual != backend:
                return virtual, backend, hop
    return None


def answer_source(message: Message) -> str | None:
    """Where the answer came from, by the reply's AA and RA flags, as CoreDNS sets them in every version looked at."""
    reply = message.summary
    if reply.rcode in SERVER_WRITTEN and not (reply.aa or reply.ra or reply.ancount or reply.nscount):
        # The acl plugin refuses in the same shape, but says why in an extended error (RFC 8914).
        explained = any(code == EXTENDED_ERROR for code, _ in options(message.payload, reply))
        return None if explained else "server-error"
    if reply.aa:
        return "cache" if reply.ra else "local"
    return "forward" if reply.ra else None
