"""Concludes what became of a session, from its packets and what is known of the node; changes neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.record import (
    DROP,
    RX,
    TX,
    Hop,
)
from agent.session.accepted import choose
from agent.session.addressed import is_from_unasked, times_asked
from agent.session.outcome import (
    CQ,
    CR,
    FQ,
    FR,
    MUST_HAVE_HAPPENED,
    QUERY_DROPPED,
    REPLY_DROPPED,
    SQ,
    SR,
    Leg,
    Outcome,
    PacketDrop,
    Status,
    answer_source,
)
from agent.session.proxies import ends_at_proxy
from agent.wire.message import extended_rcode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.model import Session, Transmission
    from agent.session.node_state import NodeState


def conclude(session: Session, node_state: NodeState, lost_until_ns: int | None) -> Outcome:
    """What became of a session.

    Args:
        session: settled.
        node_state: of the node.
        lost_until_ns: when records were lost last while it was open; None if none were.
    """
    queries, replies = session.queries.transmissions, session.replies.transmissions
    client_netns = find_client_netns(session)
    lossy = lost_until_ns is not None
    delivered = is_delivered(session, node_state, client_netns, lossy=lossy)
    reply = final_reply(session, node_state, client_netns)
    unasked = reply is not None and is_from_unasked(reply, session, client_netns)
    server_netns = find_server_netns(session, node_state, None if unasked else reply)
    query_drop = newest_drop(Leg.QUERY, queries, node_state, server_netns)
    reply_drop = telling_drop(replies, node_state, client_netns)
    seen = query_bits(session, node_state, client_netns, server_netns) | reply_bits(session, client_netns)
    seen |= upstream_bits(session, node_state, server_netns, reply)
    seen |= (QUERY_DROPPED if query_drop else 0) | (REPLY_DROPPED if reply_drop else 0)
    bits = with_proven(seen, session, client_netns, delivered=delivered)
    said = None if reply is None or session.connecting else reply.message
    left = (node_state.has_left_node(query, session.strangers) for query in queries)
    outcome = Outcome(
        session=session,
        status=Status.FAILED,
        bits=bits,
        client_netns=client_netns,
        server_netns=server_netns,
        reply=reply,
        rcode=None if said is None else extended_rcode(said.payload, said.summary),
        answer_source=None if said is None else answer_source(said),
        query_drop=query_drop,
        reply_drop=reply_drop,
        upstream_drop=newest_upstream_drop(session, node_state, server_netns, reply),
        delivered=delivered,
        left_node=server_netns is None and any(left),
        lossy=lossy,
        node_state=node_state,
        unasked=unasked,
        inferred=bits & ~seen,
        pair=session.pair,
    )
    outcome.status = status(outcome, lost_until_ns)
    return outcome


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
    ends = (node_state.end_of(query, session.strangers) for query in session.queries.transmissions)
    end = next((hop.netns for hop in ends if _is_end(hop, session, node_state)), None)
    return _owner(session, node_state) if end is None else end


def _owner(session: Session, node_state: NodeState) -> int | None:
    """Where the query came to the address it was sent to, though a copy of it went on: bridges flood."""
    arrivals = (hop for query in session.queries.transmissions for hop in reversed(query.hops) if hop.event == RX)
    return next((hop.netns for hop in arrivals if node_state.owns(hop.netns, hop.detail.daddr)), None)


def _origins(transmissions: list[Transmission]) -> Iterator[Hop]:
    return (hop for transmission in transmissions if (hop := transmission.origin) is not None)


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
        SQ
        if client_netns is not None and any(hop.netns == client_netns for query in queries for hop in query.hops)
        else 0
    )
    return bits | CQ if any(reached(query, session, node_state, server_netns) for query in queries) else bits


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
    return CR | SR if client_netns is not None and any(reply.arrivals(client_netns) for reply in replies) else CR


def upstream_bits(session: Session, node_state: NodeState, server_netns: int | None, reply: Transmission | None) -> int:
    """FQ and FR: what the server asked, and what came back to it while it was of use."""
    exchanges = [exchange for exchange in session.exchanges if not exchange.connecting]
    bits = FQ if any(exchange.queries.transmissions for exchange in exchanges) else 0
    return (
        bits | FR if any(useful_replies(exchange, reply, node_state, server_netns) for exchange in exchanges) else bits
    )


def useful_replies(
    exchange: Session, reply: Transmission | None, node_state: NodeState, server_netns: int | None
) -> list[Transmission]:
    """The upstream's replies that got to the server before it sent this reply itself."""
    return [received for received in _in_time(exchange, reply) if node_state.died(received, server_netns) is None]


def _in_time(exchange: Session, reply: Transmission | None) -> list[Transmission]:
    """The upstream's replies that were sent before the server sent this reply itself; all, if it never did."""
    replied_ns = None if reply is None else reply.hops[0].ts_ns
    return [
        received
        for received in exchange.replies.transmissions
        if replied_ns is None or received.hops[0].ts_ns <= replied_ns
    ]


def final_reply(session: Session, node_state: NodeState, client_netns: int | None) -> Transmission | None:
    """The delivered reply that the client takes. Else the last that was sent."""
    replies = session.replies.transmissions
    alive = [reply for reply in replies if node_state.died(reply, client_netns) is None]
    wanted = [reply for reply in alive if not is_from_unasked(reply, session, client_netns)] or alive
    arrived = [reply for reply in wanted if client_netns is not None and reply.arrivals(client_netns)]
    return choose(session, arrived or wanted or replies[-1:])


def is_delivered(session: Session, node_state: NodeState, client_netns: int | None, *, lossy: bool) -> bool:
    """Whether some reply reached the client as far as this node can see.

    Where no hop shows the arrival, the reply counts as taken unless something speaks against it: its drop, a client
    that asked again, a place from which earlier replies to this client were seen to go on, or records that the agent
    lost.
    """
    alive = [
        reply
        for reply in session.replies.transmissions
        if node_state.died(reply, client_netns) is None and not is_from_unasked(reply, session, client_netns)
    ]
    if client_netns is None:
        return bool(alive)
    if any(reply.arrivals(client_netns) for reply in alive):
        return True
    # What a bridge gave to others, and not to the client, is not on its way to it.
    alive = [reply for reply in alive if not node_state.bystanders(reply, session.strangers)]
    if client_netns not in node_state.receiving:
        return any(_is_last_word(reply, session) for reply in alive)
    return not lossy and any(
        _is_last_word(reply, session) and not node_state.goes_on(reply, client_netns) for reply in alive
    )


def _is_last_word(reply: Transmission, session: Session) -> bool:
    """Whether it may have been taken, as the client asked no more behind it; a first fragment alone is no reply."""
    last_ns = reply.hops[-1].ts_ns
    return not reply.hops[-1].fragment and all(query.hops[0].ts_ns <= last_ns for query in session.sent)


def newest_drop(
    leg: Leg, transmissions: list[Transmission], node_state: NodeState, end: int | None
) -> PacketDrop | None:
    """The newest loss among the copies of a message."""
    for transmission in reversed(transmissions):
        drop = node_state.died(transmission, end)
        if drop is not None and (hop := transmission.drop) is not None:
            return PacketDrop(leg, hop, drop, transmission.hops[: transmission.hops.index(hop)])
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
    wanted = [reply for reply in replies if (drop := node_state.died(reply, client_netns)) is None or not drop.unwanted]
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


def status(outcome: Outcome, lost_until_ns: int | None) -> Status:
    """Succeeded, Failed, or SampleLoss where records that are known to be missing could explain the gap."""
    session = outcome.session
    if outcome.delivered and outcome.healthy:
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
