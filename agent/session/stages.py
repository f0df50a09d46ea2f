"""One message on two legs: a proxy passes a query on with its client's address, port and id, so that both look alike.

Each leg is a session of its own, the stage, and the first one knows the next (`Session.inner`). A hop belongs to the
stage that passes its place. Where no stage has passed it yet: queries go on at the innermost stage and replies come
back from it, and what a proxy's namespace sends or takes in tells on which side of the proxy it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.record import DROP, ORIGIN, PROCESS, RX, SOCKET_RX
from agent.session import proxies
from agent.session.model import hop_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.hop.record import Hop
    from agent.session.model import Session
    from agent.session.node_state import NodeState

MAX_STAGES = 4
ARRIVALS = (RX, SOCKET_RX)


def all_stages(outermost: Session) -> list[Session]:
    """The client's own lookup first."""
    found = [outermost]
    while (inner := found[-1].inner) is not None:
        found.append(inner)
    return found


def asks_from(session: Session) -> int | None:
    """The namespace where its query left the asker's socket; None when it came from elsewhere."""
    return next((hop.netns for query in session.queries.transmissions if (hop := query.origin) is not None), None)


def begins(outermost: Session, query: Hop, node_state: NodeState) -> Session | None:
    """The stage at whose end this copy of its query leaves a socket again; None for any other hop.

    It had come to that namespace and went no further, or the address it leaves with is not of there.
    """
    if not query.flags & ORIGIN or (query.event == DROP and query.ifindex):
        # A packet that has its socket already, because it came to it, looks the same when it dies.
        return None
    stages = all_stages(outermost)
    if len(stages) >= MAX_STAGES or query.netns in map(asks_from, stages):
        return None
    ends = (sent.hops[-1] for sent in stages[-1].queries.transmissions)
    arrived = any(last.netns == query.netns and last.event in ARRIVALS and last.ts_ns < query.ts_ns for last in ends)
    return stages[-1] if arrived or proxies.poses(query, node_state) else None


def stage_of(outermost: Session, hop: Hop, *, response: bool) -> Session:
    """The stage that this hop of the message belongs to."""
    stages = all_stages(outermost)
    if hop.flags & ORIGIN and not (hop.event == DROP and hop.ifindex):
        return _sender(stages, hop, response=response)
    return _passed(stages, hop, response=response) or _next(stages, hop, response=response)


def _sender(stages: list[Session], hop: Hop, *, response: bool) -> Session:
    """A query leaves where its stage begins, a reply where the next stage begins: the proxy is at both."""
    for outer, inner in zip(reversed(stages[:-1]), reversed(stages[1:]), strict=True):
        if asks_from(inner) == hop.netns:
            return outer if response else inner
    return stages[-1] if response else stages[0]


def _passed(stages: list[Session], hop: Hop, *, response: bool) -> Session | None:
    """The stage that was seen at this place before, or that died at the device where it was seen."""
    here = hop_key(hop)
    legs = [(stage, stage.direction(response=response).transmissions) for stage in reversed(stages)]
    for stage, copies in legs:
        if any(here in copy.hop_keys for copy in copies):
            return stage
    for stage, copies in legs:
        if any((hop.netns, hop.ifindex) == (each.netns, each.ifindex) for copy in copies for each in copy.hops):
            return stage
    return None


def _next(stages: list[Session], hop: Hop, *, response: bool) -> Session:
    if response:
        # Replies are passed from the inside to the outside.
        return next((stage for stage in stages if stage.replies.transmissions), stages[-1])
    for outer, inner in zip(reversed(stages[:-1]), reversed(stages[1:]), strict=True):
        if hop.event in ARRIVALS and asks_from(inner) == hop.netns:
            return outer
    return stages[-1]


def quoted_in(outermost: Session, error: Hop) -> Session:
    """The stage whose packet an ICMP error is about: it goes to who sent that."""
    stages = all_stages(outermost)
    return next((stage for stage in reversed(stages) if asks_from(stage) == error.netns), stages[0])


def asked_meanwhile(session: Session, reply: Hop, same: Iterable[Session]) -> list[Session]:
    """Lookups of the same question that the process which now replies made while it had the query; nobody's so far.

    Args:
        session: the lookup that is answered.
        reply: the first hop of its first reply, at its sender's socket.
        same: open sessions with the same question, oldest first.
    """
    if not reply.flags & PROCESS:
        return []
    ends = (query.hops[-1] for query in session.queries.transmissions)
    arrived_ns = min((last.ts_ns for last in ends if last.netns == reply.netns), default=None)
    if arrived_ns is None:
        return []
    tgid = reply.detail.tgid
    return [
        other
        for other in same
        if other is not session
        and other.upstream_of is None
        and other.background is None
        and arrived_ns <= other.first_ns <= reply.ts_ns
        and _is_of(other, reply.netns, tgid)
    ]


def confirm_guesses(session: Session, reply: Hop) -> list[Session]:
    """What the process asked that replies now was asked for this lookup: those exchanges of which that was a guess."""
    if not reply.flags & PROCESS:
        return []
    tgid = reply.detail.tgid
    confirmed = [exchange for exchange in session.upstream if exchange.guessed and _is_of(exchange, reply.netns, tgid)]
    for exchange in confirmed:
        exchange.guessed = False
    return confirmed


def _is_of(session: Session, netns: int, tgid: int) -> bool:
    origins = (query.origin for query in session.queries.transmissions)
    return any(
        hop is not None and hop.netns == netns and bool(hop.flags & PROCESS) and hop.detail.tgid == tgid
        for hop in origins
    )
