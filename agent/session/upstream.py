"""For whose sake a server asked its upstream: joining FQ and FR to the client's query.

On the wire the server's own query has another id and port, so what is left is the server's namespace, the question, an
EDNS cookie where there is one, and time: the query lies between the client's query and the reply. Identical questions
at the same time are told apart by age only, and said to be ambiguous.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.record import PROCESS, RX, SOCKET_RX, SOCKET_TX, TX
from agent.session.model import MAX_EXCHANGES, Background, Session
from agent.session.proxies import may_be_taken, poses, was_taken
from agent.wire.message import client_cookie

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.hop.record import Hop
    from agent.session.model import Message
    from agent.session.node_state import NodeState

NS, HINFO = 2, 13
SERVER_PATIENCE_NS = 7_000_000_000
"""How long a server goes on asking for one query at most."""
REWRITE_NS = 10_000_000
"""A server that asks under another name (rewrite, autopath, CNAME) does so within so long after the query."""
MAX_CONNECTS = 8
NEVER_NS = -(1 << 62)
LOOP_NAME = re.compile(rb"[\x01-\x14]\d+[\x01-\x14]\d+")
"""CoreDNS's loop plugin asks for <random>.<random>.<zone> HINFO."""


class Match(NamedTuple):
    """The lookup that an upstream query serves, and whether it was one of several that fit."""

    session: Session
    ambiguous: bool


def arrivals_at(session: Session, asked: Hop) -> list[int]:
    """When copies of the query came to the server that now asks; those passed on are not counted.

    Some CNIs hand packets to a pod without a hop, and a tap does not show arrivals: there, the query was last seen
    leaving for its address, over TCP at its socket.
    """
    ends = [query.hops[-1] for query in session.queries.transmissions]
    times = [last.ts_ns for last in ends if last.netns == asked.netns and last.event in (RX, SOCKET_RX)]
    if not times:
        source = asked.detail.saddr
        times = [last.ts_ns for last in ends if last.event in (TX, SOCKET_TX) and last.detail.daddr == source]
    return times


def is_waiting(session: Session, asked: Hop, node_state: NodeState) -> bool:
    """Whether the namespace that asks has this query and has not replied.

    A query to the very server that the waiting one went to is another client's: nobody asks himself. But a proxy that
    took it on its way there asks that server. Where the query is only passing by, who asks is another client too.
    """
    strays = session.strays.transmissions if session.strays is not None else []
    # A reply that no client can use is a reply all the same: the server is done with the query.
    replied = sum(reply.hops[0].netns == asked.netns for reply in (*session.replies.transmissions, *strays))
    if replied >= len(arrivals_at(session, asked)):
        return False
    if was_taken(session, asked, node_state) or may_be_taken(session, asked, node_state):
        return True
    passes = asked.netns in node_state.forwarding and not _is_at_its_end(session, asked, node_state)
    return not passes and not went_to(session, asked)


def is_guess(session: Session, asked: Hop, node_state: NodeState) -> bool:
    """Whether nothing shows that the query which waits where this is asked was not just passing by."""
    return not _is_at_its_end(session, asked, node_state) and not was_taken(session, asked, node_state)


def _is_at_its_end(session: Session, asked: Hop, node_state: NodeState) -> bool:
    """Whether the query came to a namespace that has, for all that is known, the address it was sent to."""
    ends = [query.hops[-1] for query in session.queries.transmissions]
    here = [last for last in ends if last.netns == asked.netns]
    return not here or any(node_state.owns(last.netns, last.detail.daddr) is not False for last in here)


def went_to(session: Session, asked: Hop) -> bool:
    """Whether the lookup was addressed to the very server that is asked now."""
    server = destination(asked)
    return any(destination(hop) == server for query in session.queries.transmissions for hop in query.hops)


def destination(hop: Hop) -> tuple[bytes, int]:
    """Where a packet is to go."""
    detail = hop.detail
    return detail.daddr, detail.dport


def find_parent(
    asking: Session, hop: Hop, query: Message, same: Iterable[Session], node_state: NodeState
) -> Match | None:
    """The open lookup with this question that the server is at work on.

    Args:
        asking: the session that the upstream query would open.
        hop: its first hop, at its socket.
        query: what it asks.
        same: open sessions with the same question, oldest first.
        node_state: of the node.
    """
    waiting = [session for session in same if session is not asking and is_waiting(session, hop, node_state)]
    open_keys = {lookup.key for lookup in waiting}
    # Where client, server and upstream share a namespace: what a server asked is not what it is asked.
    waiting = [lookup for lookup in waiting if lookup.upstream_of not in open_keys or _other_process(lookup, hop)]
    if not waiting:
        return None
    cookie = client_cookie(query.payload, query.summary)
    if cookie is not None:
        waiting = [lookup for lookup in waiting if _cookie(lookup) == cookie] or waiting
    if poses(hop, node_state):
        waiting = _of_client(asking, waiting)
    fresh = [lookup for lookup in waiting if all(exchange.connecting for exchange in lookup.upstream)]
    # The oldest that was not passed on yet; all passed on: the attempt belongs to the lookup that waits longest.
    chosen = fresh[0] if fresh else min(waiting, key=lambda lookup: lookup.upstream[-1].first_ns)
    alike = fresh or waiting
    if len(alike) > 1:
        for lookup in alike:
            lookup.ambiguous = True
    return Match(chosen, len(alike) > 1)


def _of_client(asking: Session, waiting: list[Session]) -> list[Session]:
    """Those whose client a proxy poses as: by its address, its port and the message's id, as far as those are kept."""
    client = asking.key.client
    for mine in (
        [lookup for lookup in waiting if lookup.key.client.address == client.address],
        [lookup for lookup in waiting if lookup.key.client == client],
        [
            lookup
            for lookup in waiting
            if lookup.key.client.address == client.address and lookup.key.id == asking.key.id
        ],
    ):
        waiting = mine or waiting
    return waiting


def _other_process(session: Session, asked: Hop) -> bool:
    """Whether the session's client is known to be another program than the one that asks now."""
    origin = session.queries.transmissions[0].origin
    if origin is None or not origin.flags & asked.flags & PROCESS:
        return False
    return origin.detail.tgid != asked.detail.tgid


def _cookie(session: Session) -> bytes | None:
    query = session.queries.transmissions[0].message
    return client_cookie(query.payload, query.summary)


def idle_since(session: Session, asked: Hop) -> int:
    """When the server got the query or the newest reply for it; never, while it waits for one."""
    exchanges = [exchange for exchange in session.upstream if not exchange.connecting]
    if not exchanges:
        return min(arrivals_at(session, asked))
    if not all(exchange.replies.transmissions for exchange in exchanges):
        return NEVER_NS
    return max(exchange.replies.transmissions[-1].hops[-1].ts_ns for exchange in exchanges)


def swap_upstream(
    session: Session, others: Iterable[Session], hop: Hop, reply: Message, node_state: NodeState
) -> Session | None:
    """Mend a guess: a server that relays a reply has one, so if this lookup has none, it has another's.

    Returns:
        The lookup of the same question that it swapped its upstream exchanges with; None if there was nothing to mend.
    """
    if reply.summary.aa or not reply.summary.ra or _was_told(session, reply):
        return None
    for other in others:
        if (
            other is not session
            and session not in other.upstream
            and _was_told(other, reply)
            and is_waiting(other, hop, node_state)
        ):
            session.upstream, other.upstream = other.upstream, session.upstream
            for parent in (session, other):
                parent.ambiguous = True
                for child in parent.upstream:
                    child.upstream_of, child.ambiguous = parent.key, True
            return other
    return None


def _was_told(session: Session, reply: Message) -> bool:
    """Whether an upstream has replied with this rcode."""
    replies = (received for exchange in session.upstream for received in exchange.replies.transmissions)
    return any(received.message.summary.rcode == reply.summary.rcode for received in replies)


def find_rewritten(asking: Session, hop: Hop, recent: Iterable[Session], node_state: NodeState) -> Session | None:
    """The one young query at this server that was not passed on: it may have been, under another name.

    Args:
        asking: the session that the upstream query would open.
        hop: its first hop.
        recent: open sessions, newest first.
        node_state: of the node.
    """
    fresh = takewhile(lambda lookup: hop.ts_ns - lookup.first_ns <= SERVER_PATIENCE_NS, recent)
    young = [
        lookup
        for lookup in fresh
        if lookup is not asking
        and not lookup.connecting
        and is_waiting(lookup, hop, node_state)
        and hop.ts_ns - idle_since(lookup, hop) <= REWRITE_NS
    ]
    return young[0] if len(young) == 1 else None


def siblings(asking: Session, hop: Hop, same: Iterable[Session]) -> Iterator[Session]:
    """Earlier attempts of this server at the same question, under whatever names its clients asked."""
    for session in same:
        queries = session.queries.transmissions
        if session is not asking and session.upstream_of is not None and queries[0].hops[0].netns == hop.netns:
            yield session


def background_of(asking: Session) -> Background | None:
    """What kind of query of a server's own this is, by its question alone."""
    name, rdtype, _ = asking.key.question
    if name == b"\0" and rdtype == NS:
        return Background.HEALTH_CHECK
    if rdtype == HINFO and LOOP_NAME.match(name):
        return Background.LOOP_PROBE
    return None


def attach(parent: Session, child: Session, *, ambiguous: bool) -> bool:
    """Make the exchange one of the parent's; False when it has too many already.

    A refused connection may be asked for again without end: of those, a few tell everything.
    """
    if child.connecting and sum(exchange.connecting for exchange in parent.upstream) >= MAX_CONNECTS:
        child.upstream_of = parent.key
        return True
    if len(parent.upstream) >= MAX_EXCHANGES:
        parent.overflowed = True
        return False
    parent.upstream.append(child)
    child.upstream_of = parent.key
    parent.ambiguous |= ambiguous
    child.ambiguous |= parent.ambiguous
    return True
