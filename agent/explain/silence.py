"""Nothing was dropped, and nothing came: the server, what lies beyond the node, upstreams over TCP, the unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.evidence import (
    interface,
    lost_attempt,
    where,
)
from agent.explain.rcodes import (
    attempts_upstream,
    doubt_words,
    is_error_delivered,
    spoken_error,
)
from agent.explain.verdict import HIGH, LOW, MEDIUM, Cause, make_cause
from agent.hop.endpoint import address_to_text, endpoint_to_text, is_group
from agent.hop.record import TX
from agent.session.outcome import CQ, CR, Leg, Outcome

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.hop.record import Detail, Hop
    from agent.session.model import Direction, Transmission

READ_WORDS: dict[bool | None, list[str]] = {
    None: [],
    True: ["the server's program has read it"],
    False: ["no program has read it: the server is stopped, or far behind"],
}


def server_no_reply(given: RuleInput) -> Cause | None:
    """The query was taken in where the server is, and no reply left."""
    outcome = given.outcome
    if not outcome.bits & CQ or outcome.server_netns is None or not _unanswered(outcome):
        return None
    query = _unanswered_query(outcome)
    hop = next(reversed(query.arrivals(outcome.server_netns)), query.hops[-1])
    if outcome.node_state.is_tapped(hop.netns) and hop.event == TX:
        return _passed_a_tap(outcome, hop)
    owned = outcome.node_state.owns(hop.netns, hop.detail.daddr)
    if is_group(hop.detail.daddr) or (outcome.session.connecting and owned is None):
        # A group is nobody's address. And the kernel answers a request for a connection, whatever the server does.
        return None
    evidence = [f"last hop of the query: {where(hop)}", "no reply left that namespace"]
    evidence += READ_WORDS[given.namespaces.was_read(hop.message_id) if hop.message_id else None]
    # Where it is not known whose the address is, the packet may have been on its way to another host.
    confidence = MEDIUM if owned is None else HIGH
    if outcome.session.connecting:
        evidence.append("it is the request for a TCP connection, which the kernel answers, not the server")
        confidence = LOW
    evidence += _reset_words(outcome)
    if outcome.session.connection is not None and outcome.session.connection.stuck:
        evidence.append("the server had begun another reply on this connection, and the rest of that never came")
        confidence = LOW
    if outcome.bits & CR:
        evidence[1] = _attempts_evidence(outcome)
        confidence = LOW
    detail = hop.detail
    return make_cause("ServerNoReply", confidence, evidence, address=endpoint_to_text(detail.daddr, detail.dport))


def left_node(given: RuleInput) -> Cause | None:
    """Out by a device whose other end is not on this node."""
    outcome = given.outcome
    if not outcome.left_node or not _unanswered(outcome):
        return None
    hop = outcome.node_state.end_of(_unanswered_query(outcome), outcome.session.strangers)
    if outcome.node_state.is_tapped(hop.netns):
        return _passed_a_tap(outcome, hop)
    if outcome.node_state.is_hidden_here(hop.detail.daddr):
        # Macvlan and the like: the other end shows no arrival, so nobody knows whether it got there.
        return None
    evidence = [f"last hop of the query: {where(hop)}", *_reset_words(outcome)]
    if outcome.bits & CR:
        evidence.append(_attempts_evidence(outcome))
    return make_cause("LeftNode", MEDIUM, evidence, left=f"left this node by {interface(hop)}", here="the node")


def _passed_a_tap(outcome: Outcome, hop: Hop) -> Cause:
    """Captured between two ends, without a direction: whether it got to the server is not in the capture."""
    detail = hop.detail
    server = endpoint_to_text(detail.daddr, detail.dport)
    what = "request for a TCP connection" if outcome.session.connecting else "query"
    evidence = [f"the capture shows the {what} on its way and does not show whether it reached {server}"]
    if is_group(detail.daddr):
        evidence.append(f"{address_to_text(detail.daddr)} is a group of hosts, not a server")
    elif outcome.node_state.lives_here(detail.daddr):
        evidence.append(f"{address_to_text(detail.daddr)} replied to other queries in this capture")
    if outcome.session.connecting:
        evidence.append(
            "the kernel of the server's host answers such a request, not the server: a firewall may be in the way"
        )
    evidence += _reset_words(outcome)
    if outcome.bits & CR:
        evidence.append(_attempts_evidence(outcome))
    left = f"was captured on its way from {address_to_text(detail.saddr)} to {server}"
    return make_cause("LeftNode", LOW, evidence, left=left, here="the place of the capture")


def _unanswered(outcome: Outcome) -> bool:
    """Whether a query got no reply at all. A lookup that failed by what it was told is none of these."""
    if is_error_delivered(outcome):
        return False
    return not outcome.bits & CR or (outcome.delivered and lost_attempt(outcome))


def _unanswered_query(outcome: Outcome) -> Transmission:
    """The last query without any reply; of a lookup that was answered in the end, the first: its retry was."""
    queries = outcome.session.queries.transmissions
    return queries[0] if outcome.bits & CR else queries[-1]


def _reset_words(outcome: Outcome) -> list[str]:
    """Who cut the connection off; a firewall may do so in anybody's name."""
    connection = outcome.session.connection
    reset_by = connection.facts.reset_by if connection is not None else None
    return [f"the {reset_by} ended the connection by RST"] if reset_by else []


def _attempts_evidence(outcome: Outcome) -> str:
    replies = len(outcome.session.replies.transmissions)
    return f"{outcome.attempts} attempts, {replies} {'reply' if replies == 1 else 'replies'}"


def upstream_tcp_refused(given: RuleInput) -> Cause | None:
    """The kernel of the upstream said no, whatever it counts as a loss in doing so."""
    refused = any(exchange.refused for exchange in given.outcome.exchanges)
    return upstream_tcp_unavailable(given) if refused else None


def upstream_tcp_unavailable(given: RuleInput) -> Cause | None:
    """The server could not even ask: zones served over UDP only, behind a cache that asks over TCP."""
    outcome = given.outcome
    error = spoken_error(outcome)
    failed = [exchange for exchange in outcome.exchanges if exchange.connecting]
    if not failed or (outcome.healthy and error is None):
        return None
    attempts = attempts_upstream(outcome, error)
    if any(attempt.reply is not None and attempt.last_ns > failed[-1].first_ns for attempt in attempts):
        # It asked on without a connection, and was answered.
        return None
    refused = failed[-1].refused
    how = "refused" if refused else "no answer to the request for a connection"
    asked = [hop.detail for exchange in failed for hop in _first_hops(exchange.queries)]
    said = [attempt.words for attempt in attempts if attempt.reply is not None]
    doubt = [] if refused else doubt_words(outcome)
    evidence = [f"{_upstreams(asked)}: {how}", *said, *doubt]
    return make_cause("UpstreamTCPUnavailable", LOW if doubt else HIGH, evidence, address=_upstreams(asked))


def _first_hops(way: Direction) -> list[Hop]:
    return [transmission.hops[0] for transmission in way.transmissions]


def _upstreams(asked: list[Detail]) -> str:
    return ", ".join(dict.fromkeys(endpoint_to_text(detail.daddr, detail.dport) for detail in asked))


def unknown(given: RuleInput) -> Cause | None:
    """The last hop is all there is."""
    ways = ((Leg.REPLY, given.outcome.session.replies), (Leg.QUERY, given.outcome.session.queries))
    leg, way = next((leg, way) for leg, way in ways if way.transmissions)
    hop = given.outcome.node_state.end_of(way.transmissions[-1], given.outcome.session.strangers)
    return make_cause("Unknown", LOW, [f"last hop: {where(hop)}"], leg=leg, place=where(hop))
