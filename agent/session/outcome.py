"""What became of a session: where its ends are, which messages were seen, BitMap, Status.

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
    DADDR,
    DPORT,
    DROP,
    RX,
    SADDR,
    SOCKET_RX,
    SOCKET_TX,
    SPORT,
    TX,
    Hop,
)
from agent.session.accepted import choose
from agent.session.addressed import asked_of, is_from_unasked, server_of, times_asked
from agent.session.model import Background, hop_key
from agent.session.node_state import PathPattern
from agent.session.proxies import ends_at_proxy
from agent.wire.message import EXTENDED_ERROR, extended_rcode, options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.hop.drops import DropReason, Kernel
    from agent.session.last_answers import Told
    from agent.session.model import Message, Session, Transmission
    from agent.session.node_state import Backend, NodeState

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
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
        return self.rcode in (NOERROR, NXDOMAIN)

    @property
    def dnstap_bitmap(self) -> Bit:
        """What CoreDNS's dnstap plugin would have shown (up to 1.14.7): without a reply the server core wrote."""
        relayed = self.bits & FR and any(
            one.message.summary.rcode == self.rcode
            for exchange in self.session.upstream
            for one in exchange.replies.transmissions
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
        return [one for one in queries if asked_of(one) == server]

    @property
    def server_namespaces(self) -> set[int]:
        """Where servers of this session are on this node: several, when several were asked at once."""
        replied = {hop.netns for hop in _origins(self.session.replies.transmissions)}
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


def judge(session: Session, node_state: NodeState, lost_until_ns: int | None) -> Outcome:
    """Conclude what became of a session.

    Args:
        session: its hops are put in the order of time here.
        node_state: of the node; learns from this session.
        lost_until_ns: when records were lost last while it was open; None if none were.
    """
    shape = _known_pattern(session, node_state)
    if shape is not None:
        return _like_earlier_ones(session, node_state, shape, lossy=lost_until_ns is not None)
    strays = session.strays.transmissions if session.strays is not None else []
    for one in (*session.queries.transmissions, *session.replies.transmissions, *strays):
        _put_in_order(one)
        session.first_ns = min(session.first_ns, one.hops[0].ts_ns)
    client_netns = find_client_netns(session)
    lossy = lost_until_ns is not None
    delivered = is_delivered(session, node_state, client_netns, lossy=lossy)
    reply = final_reply(session, node_state, client_netns)
    unasked = reply is not None and is_from_unasked(reply, session, client_netns)
    server_netns = find_server_netns(session, node_state, None if unasked else reply)
    node_state.learn(session)
    if delivered:
        node_state.learn_way_back(session, client_netns)
    query_drop = newest_drop(Leg.QUERY, session.queries.transmissions, node_state, server_netns)
    reply_drop = telling_drop(session.replies.transmissions, node_state, client_netns)
    mark_refreshes(session, reply)
    seen = query_bits(session, node_state, client_netns, server_netns) | reply_bits(session, client_netns)
    seen |= upstream_bits(session, node_state, server_netns, reply)
    seen |= (QUERY_DROPPED if query_drop else 0) | (REPLY_DROPPED if reply_drop else 0)
    bits = with_proven(seen, session, client_netns, delivered=delivered)
    outcome = Outcome(
        session=session,
        status=Status.FAILED,
        bits=bits,
        client_netns=client_netns,
        server_netns=server_netns,
        reply=reply,
        rcode=None
        if reply is None or session.connecting
        else extended_rcode(reply.message.payload, reply.message.summary),
        answer_source=None if reply is None or session.connecting else answer_source(reply.message),
        query_drop=query_drop,
        reply_drop=reply_drop,
        upstream_drop=newest_upstream_drop(session, node_state, server_netns, reply),
        delivered=delivered,
        left_node=server_netns is None
        and any(node_state.has_left_node(one, session.strangers) for one in session.queries.transmissions),
        lossy=lossy,
        node_state=node_state,
        unasked=unasked,
        inferred=bits & ~seen,
        pair=session.pair,
    )
    outcome.status = status(outcome, lost_until_ns)
    outcome.backend = _learn_answer(outcome, node_state)
    _remember_pattern(outcome, node_state)
    return outcome


def translation(queries: list[Transmission]) -> tuple[Endpoint, Endpoint, Hop] | None:
    """The virtual address, the server it stood for, the newest hop that showed it; None for a query as it was sent."""
    for one in reversed(queries):
        for hop in reversed(one.hops):
            detail = hop.detail
            if not hop.flags & CONNTRACK or detail.ct_info >= REPLY_CT_INFO:
                continue
            virtual = Endpoint(detail.ct_original_daddr, detail.ct_original_dport)
            backend = Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)
            if virtual != backend:
                return virtual, backend, hop
    return None


def _learn_answer(outcome: Outcome, node_state: NodeState) -> Backend | None:
    found = translation(outcome.session.queries.transmissions) if outcome.delivered else None
    if found is None or outcome.reply is None or len(outcome.session.queries.transmissions) > 1:
        return None
    virtual, backend, hop = found
    return node_state.learn_answer((hop.netns, virtual), backend, outcome.reply.hops[-1].ts_ns)


def _pattern_key(session: Session) -> tuple[tuple[int, ...], tuple[int, ...], bytes] | None:
    """The places of a lookup of one query and one reply, address and port asked, and those that the reply came from.

    None where more than that decides.
    """
    queries, replies = session.queries.transmissions, session.replies.transmissions
    if len(queries) != 1 or len(replies) != 1 or session.upstream or session.overflowed or session.connecting:
        return None
    asked, said = queries[0].hops[0].rest, replies[0].hops[-1].rest
    ends = asked[DADDR] + asked[DPORT] + said[SADDR] + said[SPORT]
    return tuple(queries[0].hop_keys), tuple(replies[0].hop_keys), ends


def _known_pattern(session: Session, node_state: NodeState) -> PathPattern | None:
    key = _pattern_key(session)
    shape = None if key is None else node_state.path_patterns.get(key)
    if shape is not None and shape.inferred and shape.ways_known != len(node_state.continues):
        # What was learned since may have shown that its reply is seen coming in after all.
        return None
    return shape


def _like_earlier_ones(session: Session, node_state: NodeState, shape: PathPattern, *, lossy: bool) -> Outcome:
    reply = session.replies.transmissions[0]
    rcode = extended_rcode(reply.message.payload, reply.message.summary)
    if shape.backend is not None:
        shape.backend.count(session.last_ns)
    return Outcome(
        session=session,
        status=Status.SUCCEEDED if rcode in (NOERROR, NXDOMAIN) else Status.FAILED,
        bits=shape.path,
        client_netns=shape.client_netns,
        server_netns=shape.server_netns,
        reply=reply,
        rcode=rcode,
        answer_source=answer_source(reply.message),
        query_drop=None,
        reply_drop=None,
        upstream_drop=None,
        delivered=True,
        left_node=False,
        lossy=lossy,
        node_state=node_state,
        inferred=shape.inferred,
        backend=shape.backend,
    )


def _remember_pattern(outcome: Outcome, node_state: NodeState) -> None:
    """Only what does not depend on anything but the places: both ends known, nothing dropped, nothing out of order."""
    key = _pattern_key(outcome.session)
    if key is None or outcome.bits != COMPLETE or not outcome.delivered:
        return
    if outcome.client_netns is None or outcome.server_netns is None or (outcome.inferred and outcome.lossy):
        return
    if len(node_state.path_patterns) >= MAX_PATTERNS and key not in node_state.path_patterns:
        node_state.path_patterns.clear()
    ends = outcome.client_netns, outcome.server_netns
    node_state.path_patterns[key] = PathPattern(
        *ends, outcome.bits, outcome.inferred, len(node_state.continues), outcome.backend
    )


def _put_in_order(one: Transmission) -> None:
    """Sort the hops by time; a socket's hop only stands where the tracepoint at its device saw nothing."""
    hops = sorted(one.hops)
    if any(hop.event in (SOCKET_TX, SOCKET_RX) for hop in hops):
        hops = _without_doubles(hops)
    if hops != one.hops:
        one.hops = hops
        one.hop_keys = [hop_key(hop) for hop in hops]


def _without_doubles(hops: list[Hop]) -> list[Hop]:
    devices = {(hop.netns, hop.event) for hop in hops}
    plain = {SOCKET_TX: TX, SOCKET_RX: RX}
    kept = (hop for hop in hops if (hop.netns, plain.get(hop.event)) not in devices)
    return [hop._replace(event=plain.get(hop.event, hop.event)) for hop in kept]


def find_client_netns(session: Session) -> int | None:
    """Where the query left its socket; None when that was not on this node."""
    return next((hop.netns for hop in _origins(session.queries.transmissions)), None)


def find_server_netns(session: Session, node_state: NodeState, reply: Transmission | None) -> int | None:
    """Where the server is: where the reply that counts left its socket, else where a query ended that went no further.

    Args:
        session: in order.
        node_state: of the node.
        reply: the one that counts; None if there is none, or none that the server that was asked sent.
    """
    replies = session.replies.transmissions if reply is not None else []
    if reply is not None and (reply.origin is not None or len(times_asked(session)) > 1):
        # Of several servers that were asked, some may be elsewhere.
        replies = [reply]
    replied = next((hop.netns for hop in _origins(replies)), None)
    if replied is not None or replies:
        return replied
    ends = (node_state.end_of(one, session.strangers) for one in session.queries.transmissions)
    end = next((hop.netns for hop in ends if _is_end(hop, session, node_state)), None)
    return _owner(session, node_state) if end is None else end


def _owner(session: Session, node_state: NodeState) -> int | None:
    """Where the query came to the address it was sent to, though a copy of it went on: bridges flood."""
    arrivals = (hop for one in session.queries.transmissions for hop in reversed(one.hops) if hop.event == RX)
    return next((hop.netns for hop in arrivals if node_state.owns(hop.netns, hop.detail.daddr)), None)


def _origins(transmissions: list[Transmission]) -> Iterator[Hop]:
    return (hop for one in transmissions if (hop := one.origin) is not None)


def _is_end(last: Hop, session: Session, node_state: NodeState) -> bool:
    """Whether the last hop of an unanswered query is its destination.

    A namespace that owns the address is, and one where a proxy took it; where that cannot be found out, one that never
    passed a packet on.
    """
    if last.event == TX:
        return False
    if last.event == DROP and not node_state.kernel.describe(last).at_socket:
        return node_state.owns(last.netns, last.detail.daddr) is True
    local = node_state.owns(last.netns, last.detail.daddr)
    if local is False:
        # A drop at a socket: there was one for it.
        return last.event == DROP or ends_at_proxy(last, session, node_state)
    if local:
        return True
    return last.netns not in node_state.forwarding and last.netns != find_client_netns(session)


def query_bits(session: Session, node_state: NodeState, client_netns: int | None, server_netns: int | None) -> int:
    """SQ and CQ."""
    queries = session.queries.transmissions
    bits = (
        SQ if client_netns is not None and any(hop.netns == client_netns for one in queries for hop in one.hops) else 0
    )
    return bits | CQ if any(reached(one, session, node_state, server_netns) for one in queries) else bits


def with_proven(seen: int, session: Session, client_netns: int | None, *, delivered: bool) -> int:
    """The bits that hops showed, and those that must have happened for these to be.

    A data plane may hide any hop: bpf_redirect_peer() hands a packet to a pod without an arrival there, a macvlan
    device shows none. A connection that was accepted shows that the request for it got there.
    """
    bits = seen
    for proof, proven in MUST_HAVE_HAPPENED:
        if bits & proof:
            bits |= proven
    if session.connecting and session.replies.transmissions and session.queries.transmissions and not session.refused:
        bits |= CQ
    return bits | SR if bits & CR and client_netns is not None and delivered else bits


def reached(query: Transmission, session: Session, node_state: NodeState, server_netns: int | None) -> bool:
    """Whether a copy of the query got to the server; beyond the node, whether it left towards it."""
    if server_netns is None:
        return node_state.has_left_node(query, session.strangers)
    drop = node_state.died(query, server_netns)
    return bool(query.arrivals(server_netns)) and (drop is None or drop.at_socket)


def reply_bits(session: Session, client_netns: int | None) -> int:
    """CR and SR. A refused connection is the kernel's answer, not the server's."""
    replies = session.replies.transmissions
    if not replies or session.connecting:
        return 0
    return CR | SR if client_netns is not None and any(one.arrivals(client_netns) for one in replies) else CR


def upstream_bits(session: Session, node_state: NodeState, server_netns: int | None, reply: Transmission | None) -> int:
    """FQ and FR: what the server asked, and what came back to it while it was of use."""
    exchanges = [one for one in session.exchanges if not one.connecting]
    bits = FQ if any(one.queries.transmissions for one in exchanges) else 0
    return bits | FR if any(useful_replies(one, reply, node_state, server_netns) for one in exchanges) else bits


def useful_replies(
    exchange: Session, reply: Transmission | None, node_state: NodeState, server_netns: int | None
) -> list[Transmission]:
    """The upstream's replies that got to the server before it sent this reply itself."""
    return [one for one in _in_time(exchange, reply) if node_state.died(one, server_netns) is None]


def _in_time(exchange: Session, reply: Transmission | None) -> list[Transmission]:
    """The upstream's replies that were sent before the server sent this reply itself; all, if it never did."""
    replied_ns = None if reply is None else reply.hops[0].ts_ns
    return [one for one in exchange.replies.transmissions if replied_ns is None or one.hops[0].ts_ns <= replied_ns]


def mark_refreshes(session: Session, reply: Transmission | None) -> None:
    """A cached answer was not waited for: what the server asked just before it renews its cache."""
    if reply is None or answer_source(reply.message) != "cache":
        return
    sent_ns = reply.hops[0].ts_ns
    for exchange in session.upstream:
        replies = exchange.replies.transmissions
        if exchange.first_ns >= sent_ns - REFRESH_NS and (not replies or replies[0].hops[-1].ts_ns > sent_ns):
            exchange.background = Background.REFRESH


def final_reply(session: Session, node_state: NodeState, client_netns: int | None) -> Transmission | None:
    """The delivered reply that the client takes. Else the last that was sent."""
    replies = session.replies.transmissions
    alive = [one for one in replies if node_state.died(one, client_netns) is None]
    wanted = [one for one in alive if not is_from_unasked(one, session, client_netns)] or alive
    arrived = [one for one in wanted if client_netns is not None and one.arrivals(client_netns)]
    return choose(session, arrived or wanted or replies[-1:])


def is_delivered(session: Session, node_state: NodeState, client_netns: int | None, *, lossy: bool) -> bool:
    """Whether some reply reached the client as far as this node can see.

    Where no hop shows the arrival, the reply counts as taken unless something speaks against it: its drop, a client
    that asked again, a place from which earlier replies to this client were seen to go on, or records that the agent
    lost.
    """
    alive = [
        one
        for one in session.replies.transmissions
        if node_state.died(one, client_netns) is None and not is_from_unasked(one, session, client_netns)
    ]
    if client_netns is None:
        return bool(alive)
    if any(one.arrivals(client_netns) for one in alive):
        return True
    # What a bridge gave to others, and not to the client, is not on its way to it.
    alive = [one for one in alive if not node_state.bystanders(one, session.strangers)]
    if client_netns not in node_state.receiving:
        return any(_is_last_word(one, session) for one in alive)
    return not lossy and any(_is_last_word(one, session) and not node_state.goes_on(one, client_netns) for one in alive)


def _is_last_word(reply: Transmission, session: Session) -> bool:
    """Whether it may have been taken, as the client asked no more behind it; a first fragment alone is no reply."""
    last_ns = reply.hops[-1].ts_ns
    return not reply.hops[-1].fragment and all(one.hops[0].ts_ns <= last_ns for one in session.sent)


def newest_drop(
    leg: Leg, transmissions: list[Transmission], node_state: NodeState, end: int | None
) -> PacketDrop | None:
    """The newest loss among the copies of a message."""
    for one in reversed(transmissions):
        drop = node_state.died(one, end)
        if drop is not None and (hop := one.drop) is not None:
            return PacketDrop(leg, hop, drop, one.hops[: one.hops.index(hop)])
    return None


def telling_drop(
    replies: list[Transmission], node_state: NodeState, client_netns: int | None, leg: Leg = Leg.REPLY
) -> PacketDrop | None:
    """The newest loss of a reply; one that its client did not wait for any more only if no other was lost before it.

    The kernel repeats a SYN-ACK that a rule refuses, and a server answers each repeated query: what comes when the
    client has given up dies of that.
    """
    newest = newest_drop(leg, replies, node_state, client_netns)
    if newest is None or not newest.why.unwanted:
        return newest
    wanted = [one for one in replies if (drop := node_state.died(one, client_netns)) is None or not drop.unwanted]
    return newest_drop(leg, wanted, node_state, client_netns) or newest


def newest_upstream_drop(
    session: Session, node_state: NodeState, server_netns: int | None, reply: Transmission | None
) -> PacketDrop | None:
    """The newest loss between the server and its upstreams."""
    for exchange in reversed(session.exchanges):
        drop = telling_drop(_in_time(exchange, reply), node_state, server_netns, Leg.UPSTREAM_REPLY)
        drop = drop or newest_drop(Leg.UPSTREAM_QUERY, exchange.queries.transmissions, node_state, None)
        if drop is not None:
            return drop
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


def status(outcome: Outcome, lost_until_ns: int | None) -> Status:
    """Succeeded, Failed, or SampleLoss where records that are known to be missing could explain the gap."""
    session = outcome.session
    if outcome.delivered and outcome.rcode in (NOERROR, NXDOMAIN):
        return Status.SUCCEEDED
    if session.overflowed or session.reply_cut:
        # A bound keeps the newest out, so what it kept out came last. So did the reply that nobody can read.
        lost_until_ns = max(lost_until_ns or 0, session.last_ns)
    if session.interrupted or lost_until_ns is not None:
        return Status.FAILED if _is_proven(outcome, lost_until_ns or 0) else Status.SAMPLE_LOSS
    return Status.FAILED


def _is_proven(outcome: Outcome, lost_until_ns: int) -> bool:
    """Whether no missing record could change it: a delivered error, or a drop after which nothing was lost."""
    if outcome.delivered and outcome.rcode is not None:
        return True
    drops = (drop.hop.ts_ns for drop in (outcome.query_drop, outcome.reply_drop) if drop is not None)
    return any(ts_ns > lost_until_ns for ts_ns in drops)
