"""Judges a session: settle, conclude, learn; and a short way for lookups like earlier ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.record import (
    DADDR,
    DPORT,
    RX,
    SADDR,
    SOCKET_RX,
    SOCKET_TX,
    SPORT,
    TX,
    Hop,
)
from agent.session.conclude import conclude, final_reply, find_client_netns
from agent.session.model import Background, hop_key
from agent.session.node_state import PathPattern
from agent.session.outcome import (
    COMPLETE,
    MAX_PATTERNS,
    REFRESH_NS,
    Outcome,
    Status,
    answer_source,
    translation,
)
from agent.wire.message import extended_rcode
from agent.wire.rcodes import ANSWERED

if TYPE_CHECKING:
    from agent.session.model import Session, Transmission
    from agent.session.node_state import Backend, NodeState


def judge(session: Session, node_state: NodeState, lost_until_ns: int | None) -> Outcome:
    """Settle, conclude, learn.

    Args:
        session: its hops are put in the order of time here.
        node_state: of the node; learns from this session.
        lost_until_ns: when records were lost last while it was open; None if none were.
    """
    pattern = _known_pattern(session, node_state)
    if pattern is not None:
        return _like_earlier_ones(session, node_state, pattern, lossy=lost_until_ns is not None)
    settle(session, node_state)
    node_state.learn(session)
    outcome = conclude(session, node_state, lost_until_ns)
    learn(outcome)
    return outcome


def settle(session: Session, node_state: NodeState) -> None:
    """Put the hops in the order of time, and set apart what served nobody who waited."""
    strays = session.strays.transmissions if session.strays is not None else []
    for query in (*session.queries.transmissions, *session.replies.transmissions, *strays):
        _put_in_order(query)
        session.first_ns = min(session.first_ns, query.hops[0].ts_ns)
    if session.upstream:
        mark_refreshes(session, final_reply(session, node_state, find_client_netns(session)))


def learn(outcome: Outcome) -> None:
    """Take note of what this session shows of the node, for the next ones."""
    node_state = outcome.node_state
    if outcome.delivered:
        node_state.learn_way_back(outcome.session, outcome.client_netns)
    outcome.backend = _learn_answer(outcome, node_state)
    _remember_pattern(outcome, node_state)


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
    pattern = None if key is None else node_state.path_patterns.get(key)
    if pattern is not None and pattern.inferred and pattern.ways_known != len(node_state.continues):
        # What was learned since may have shown that its reply is seen coming in after all.
        return None
    return pattern


def _like_earlier_ones(session: Session, node_state: NodeState, pattern: PathPattern, *, lossy: bool) -> Outcome:
    reply = session.replies.transmissions[0]
    rcode = extended_rcode(reply.message.payload, reply.message.summary)
    if pattern.backend is not None:
        pattern.backend.count(session.last_ns)
    return Outcome(
        session=session,
        status=Status.SUCCEEDED if rcode in ANSWERED else Status.FAILED,
        bits=pattern.path,
        client_netns=pattern.client_netns,
        server_netns=pattern.server_netns,
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
        inferred=pattern.inferred,
        backend=pattern.backend,
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


def _put_in_order(transmission: Transmission) -> None:
    """Sort the hops by time; a socket's hop only stands where the tracepoint at its device saw nothing."""
    hops = sorted(transmission.hops)
    if any(hop.event in (SOCKET_TX, SOCKET_RX) for hop in hops):
        hops = _without_doubles(hops)
    if hops != transmission.hops:
        transmission.hops = hops
        transmission.hop_keys = [hop_key(hop) for hop in hops]


def _without_doubles(hops: list[Hop]) -> list[Hop]:
    devices = {(hop.netns, hop.event) for hop in hops}
    plain = {SOCKET_TX: TX, SOCKET_RX: RX}
    kept = (hop for hop in hops if (hop.netns, plain.get(hop.event)) not in devices)
    return [hop._replace(event=plain.get(hop.event, hop.event)) for hop in kept]


def mark_refreshes(session: Session, reply: Transmission | None) -> None:
    """A cached answer was not waited for: what the server asked just before it renews its cache."""
    if reply is None or answer_source(reply.message) != "cache":
        return
    sent_ns = reply.hops[0].ts_ns
    for exchange in session.upstream:
        replies = exchange.replies.transmissions
        if exchange.first_ns >= sent_ns - REFRESH_NS and (not replies or replies[0].hops[-1].ts_ns > sent_ns):
            exchange.background = Background.REFRESH
