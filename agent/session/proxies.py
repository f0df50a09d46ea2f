"""Programs of this node that answer for servers elsewhere: what rules redirect to, and transparent proxies.

Istio's and Docker's proxies have queries redirected to a port of their own (REDIRECT, DNAT to an address of the very
namespace); Cilium's takes them as they are (TPROXY, bpf_sk_assign()) and answers with the server's address. Such a
proxy may ask the same server that the client asked, even with the client's own address, port and message id.
"""

from __future__ import annotations

from itertools import pairwise, starmap
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.conntrack import REPLY_CT_INFO
from agent.hop.endpoint import Endpoint, is_loopback
from agent.hop.record import CONNTRACK, DROP, PROCESS, RX, SOCKET_RX
from agent.session.addressed import addressed
from agent.session.takers import DESTINATION_NAT, NOBODY, Means

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.hop.record import Hop
    from agent.session.model import Session, Transmission
    from agent.session.node_state import NodeState
    from agent.session.outcome import Outcome


def asks_what_it_took(session: Session, asked: Hop) -> bool:
    """Whether the server is asked that this query was addressed to when it came there: only proxies do so."""
    server = addressed(asked, response=False)
    return any(
        hop.netns == asked.netns and hop.event in (RX, SOCKET_RX) and addressed(hop, response=False) == server
        for query in session.queries.transmissions
        for hop in query.hops
    )


def poses(asked: Hop, node_state: NodeState) -> bool:
    """Whether a query leaves its socket with an address that its namespace does not have (IP_TRANSPARENT)."""
    return node_state.is_local(asked.netns, asked.detail.saddr) is False


def was_taken(session: Session, asked: Hop, node_state: NodeState) -> bool:
    """Whether the program that asks now has taken this query, which was not addressed to its namespace."""
    ends = (query.hops[-1] for query in session.queries.transmissions)
    here = [last for last in ends if last.netns == asked.netns and last.event in (RX, SOCKET_RX)]
    if not here:
        return False
    if poses(asked, node_state) and asked.detail.saddr == here[-1].detail.saddr:
        return True
    if not node_state.takers.is_proxys(asked):
        return False
    return any(node_state.is_local(last.netns, last.detail.daddr) is False for last in here)


def may_be_taken(session: Session, asked: Hop, node_state: NodeState) -> bool:
    """Whether a proxy is known to take such queries where this is asked, by a program that is not known."""
    if asked.flags & PROCESS:
        return False
    ends = (query.hops[-1] for query in session.queries.transmissions)
    return any(last.netns == asked.netns and node_state.takers.find(last) is not None for last in ends)


def ends_at_proxy(last: Hop, session: Session, node_state: NodeState) -> bool:
    """Whether the query was taken where it was last seen, although the address it was sent to is not of there."""
    if any(_asker(exchange) == last.netns for exchange in session.upstream):
        return True
    connection = session.connection
    if connection is not None and (last.netns, False) in connection.ends:
        return True
    return node_state.takers.find(last) is not None


def _asker(exchange: Session) -> int | None:
    return next((query.hops[0].netns for query in exchange.queries.transmissions), None)


class Proxy(NamedTuple):
    """The program of this node that took a query addressed to another server."""

    netns: int
    asked: Endpoint
    """The server that the client asked."""
    listens: Endpoint | None
    """Where a rule of this node redirects such queries to."""
    program: bytes
    """Empty where no earlier packet showed it."""


def proxy_of(outcome: Outcome) -> Proxy | None:
    """Who took the query of this lookup in the server's stead; None if nobody did, or if that is not certain.

    A server of the node's own namespace behind a Service's address gets its queries by the very same rules: what tells
    a proxy apart is that it listens on loopback or on another port, takes packets as they are, or asks that server.
    """
    server_netns = outcome.server_netns
    if server_netns is None:
        return None
    node_state, session = outcome.node_state, outcome.session
    found = redirection(session.queries.transmissions, server_netns, node_state)
    listens: Endpoint | None
    arrival = next(
        (hop for query in reversed(session.queries.transmissions) for hop in query.arrivals(server_netns)), None
    )
    if found is not None:
        asked, listens = found
        taker = (node_state.takers.find(arrival) if arrival is not None else None) or NOBODY
    elif arrival is not None and node_state.is_local(server_netns, arrival.detail.daddr) is False:
        asked = Endpoint(arrival.detail.daddr, arrival.detail.dport)
        taker = node_state.takers.find(arrival) or NOBODY
        listens = taker.listens
    else:
        return None
    program = _program(outcome, server_netns) or taker.program or _only_program(node_state, server_netns)
    is_one = (
        taker.means is Means.TRANSPARENT
        or _is_elsewhere(asked, listens)
        or node_state.takers.is_proxy(server_netns, program)
        or _asks(session, asked, server_netns)
    )
    return Proxy(server_netns, asked, listens, program) if is_one else None


def redirection(queries: list[Transmission], netns: int, node_state: NodeState) -> tuple[Endpoint, Endpoint] | None:
    """The server that was asked, and where in this namespace its own connection table has the query go instead."""
    hops = [hop for query in reversed(queries) for hop in reversed(query.hops) if hop.netns == netns]
    for found in (*map(_by_entry, hops), *starmap(_by_rewriting, pairwise(hops))):
        if found is not None and found[0] != found[1] and node_state.owns(netns, found[1].address):
            return found
    return None


def _by_entry(hop: Hop) -> tuple[Endpoint, Endpoint] | None:
    detail = hop.detail
    if not hop.flags & CONNTRACK or detail.ct_info >= REPLY_CT_INFO or not detail.ct_status & DESTINATION_NAT:
        return None
    asked = Endpoint(detail.ct_original_daddr, detail.ct_original_dport)
    return asked, Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)


def _by_rewriting(after: Hop, before: Hop) -> tuple[Endpoint, Endpoint] | None:
    """What came in with one address and died with another."""
    if before.event != RX or after.event != DROP:
        return None
    old, new = before.detail, after.detail
    return Endpoint(old.daddr, old.dport), Endpoint(new.daddr, new.dport)


def _is_elsewhere(asked: Endpoint, listens: Endpoint | None) -> bool:
    return listens is not None and (is_loopback(listens.address) or listens.port != asked.port)


def _asks(session: Session, asked: Endpoint, netns: int) -> bool:
    """Whether what has the query asks the very server that the client asked."""
    return any(
        hop.netns == netns and (addressed(hop, response=False) == asked or _poses(exchange, netns))
        for exchange in session.upstream
        for hop in _first(exchange)
    )


def _poses(exchange: Session, netns: int) -> bool:
    """Whether it was asked with the address of somebody else."""
    return exchange.key.scope == netns and not is_loopback(exchange.key.client.address)


def _first(exchange: Session) -> Iterator[Hop]:
    return (query.hops[0] for query in exchange.queries.transmissions)


def _program(outcome: Outcome, netns: int) -> bytes:
    """As the packets of this lookup show it: its replies, else what it asked."""
    session = outcome.session
    sent = [reply.origin for reply in session.replies.transmissions]
    sent += [query.origin for exchange in session.upstream for query in exchange.queries.transmissions]
    known = (hop for hop in sent if hop is not None and hop.netns == netns and hop.flags & PROCESS)
    return next((hop.detail.comm for hop in known), b"")


def _only_program(node_state: NodeState, netns: int) -> bytes:
    servers = node_state.serving.get(netns)
    return next(iter(servers.programs)) if servers is not None and len(servers.programs) == 1 else b""
