"""The server as its client addressed it: one definition for the line, the findings, the rules, names and metrics.

A packet spells the server's address as it is at that hop. Where its conntrack entry hangs on it, the entry tells how
the client spelled it, whichever side sent the packet that opened the entry.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.conntrack import REPLY_CT_INFO
from agent.hop.endpoint import Endpoint
from agent.hop.record import CONNTRACK, UDP

if TYPE_CHECKING:
    from agent.hop.record import Hop
    from agent.session.model import Session, Transmission


class Asked(NamedTuple):
    """One server that a lookup was addressed to."""

    server: Endpoint
    queries: list[Transmission]
    """Copies that were sent to it, oldest first."""
    replies: list[Transmission]
    """What came from it."""


def addressed(hop: Hop, *, response: bool) -> Endpoint:
    """The server as the client addressed it, by one hop of a query or of a reply.

    Args:
        hop: of either.
        response: whether it is a reply's.
    """
    detail = hop.detail
    if not hop.flags & CONNTRACK or not detail.ct_original_dport:
        return source(hop) if response else Endpoint(detail.daddr, detail.dport)
    if (detail.ct_info >= REPLY_CT_INFO) == response:
        return Endpoint(detail.ct_original_daddr, detail.ct_original_dport)
    # The entry was opened by the server's packet: what the client sends is the entry's reply direction.
    return Endpoint(detail.ct_reply_daddr, detail.ct_reply_dport)


def source(hop: Hop) -> Endpoint:
    """Where a packet says that it comes from."""
    detail = hop.detail
    return Endpoint(detail.saddr, detail.sport)


def asked_of(query: Transmission) -> Endpoint:
    """The server that a copy of the query was sent to, as the client addressed it."""
    return addressed(query.hops[0], response=False)


def times_asked(session: Session) -> Counter[Endpoint]:
    """Servers as the client addressed them, and how often it asked each."""
    return Counter(map(asked_of, session.sent))


def server_of(session: Session, reply: Transmission | None) -> Endpoint:
    """The server of the reply, as the client addressed it; the first one asked, if it is not the reply of any.

    Args:
        session: with a query or a reply at least.
        reply: the one that counts; None where there is none.
    """
    queries = session.queries.transmissions
    if not queries:
        return addressed((reply or session.replies.transmissions[0]).hops[-1], response=True)
    if reply is None or len(queries) == 1:
        return asked_of(queries[0])
    servers = list(dict.fromkeys(map(asked_of, queries)))
    if len(servers) == 1:
        return servers[0]
    said = addressed(reply.hops[-1], response=True)
    if said in servers:
        return said
    return asked_of(next((query for query in queries if is_from(reply, query)), queries[0]))


def is_from(reply: Transmission, query: Transmission) -> bool:
    """Whether the reply comes from where this copy of the query went, at any hop of either."""
    asked_ends = {Endpoint(detail.daddr, detail.dport) for detail in (hop.detail for hop in query.hops)}
    asked_ends.add(asked_of(query))
    return any(source(hop) in asked_ends or addressed(hop, response=True) in asked_ends for hop in reply.hops)


def servers_asked(session: Session) -> list[Asked]:
    """Every server that the lookup was addressed to, in the order in which it was asked, with what came from it."""
    queries, replies = session.queries.transmissions, session.replies.transmissions
    by_server: dict[Endpoint, list[Transmission]] = {}
    for query in queries:
        by_server.setdefault(asked_of(query), []).append(query)
    if len(by_server) == 1:
        return [Asked(server, sent, replies) for server, sent in by_server.items()]
    return [
        Asked(
            server,
            sent,
            [reply for reply in replies if server_of(session, reply) == server and is_from(reply, sent[0])],
        )
        for server, sent in by_server.items()
    ]


def is_from_unasked(reply: Transmission, session: Session, client_netns: int | None) -> bool:
    """Whether the reply came into the client's own namespace from an address or port that the client did not ask.

    Resolvers discard such a reply, and the kernel itself does where the socket is connected. Before it is in that
    namespace nothing can be told: wherever the query was translated, the reply may be translated back further on.

    Args:
        reply: with a hop in that namespace, or it is not judged.
        session: whose reply it is.
        client_netns: the client's namespace.
    """
    if client_netns is None or reply.hops[-1].netns != client_netns or reply.hops[-1].protocol != UDP:
        return False
    asked: set[Endpoint] = set()
    for query in session.queries.transmissions:
        for hop in query.hops:
            if hop.netns == client_netns:
                asked |= _spellings(hop)
    last = reply.hops[-1]
    return bool(asked) and source(last) not in asked and addressed(last, response=True) not in asked


def _spellings(query: Hop) -> set[Endpoint]:
    """The server's address as a query has it at a hop, as the client wrote it, and as the reply will have it there."""
    detail = query.detail
    found = {Endpoint(detail.daddr, detail.dport), addressed(query, response=False)}
    if query.flags & CONNTRACK:
        found |= {
            Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport),
            Endpoint(detail.ct_original_daddr, detail.ct_original_dport),
        }
    return found
