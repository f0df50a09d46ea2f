"""Why a session failed, or lost an attempt: an ordered table of rules. The first that speaks is heard.

No evidence, no accusation: when no rule speaks the cause is Unknown, with the last hop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.context.cluster import NullCluster
from agent.context.counters import NullCounters
from agent.context.who import NOBODY
from agent.explain import netfilter, proxied
from agent.explain.causes import CAPTURE_ENDED, OCTETS_MISSING, RECORDS_LOST, REPLY_CUT, TOO_MANY_OPEN, TOO_MANY_PACKETS
from agent.explain.endpoints import SAME, may_have_no_endpoints, no_endpoints
from agent.explain.evidence import (
    drop_words,
    drops,
    errors,
    icmp_words,
    interface,
    is_confirmed,
    lost_attempt,
    place,
    rise_between,
    rise_words,
    where,
)
from agent.explain.findings import FindingInput, findings
from agent.explain.floods import flooded
from agent.explain.rcodes import (
    attempts_upstream,
    doubt_words,
    is_error_delivered,
    server_error,
    spoken_error,
    upstream_error,
    upstream_timeout,
)
from agent.explain.replies import late_reply, not_translated_back, refused_untranslated
from agent.explain.rule_input import QUERIES, RuleInput
from agent.explain.signatures import PROGRAMS, QUEUE_LOCATIONS, WORDS, XDP_LOCATIONS, confidence_in, link_is_down
from agent.explain.unusable import unexpected_source, unfinished_reply, unusable_reply
from agent.explain.verdict import HIGH, LOW, MEDIUM, Cause, Confidence, Verdict, make_cause
from agent.hop.endpoint import Endpoint, address_to_text, endpoint_to_text, is_group
from agent.hop.record import FRAGMENT, RESPONSE, RX, TX
from agent.session.addressed import asked_of
from agent.session.model import SECOND_NS
from agent.session.outcome import CQ, CR, Leg, Outcome, Status, translation
from agent.session.proxies import DESTINATION_NAT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.context.cluster import Cluster
    from agent.context.counters import Ipvs, NamespaceCounters
    from agent.context.who import Who
    from agent.explain.causes import Gap
    from agent.hop.record import Detail, Hop
    from agent.session.model import Direction, Transmission
    from agent.session.outcome import PacketDrop

ORIGINAL_ESTABLISHED = 0
"""enum ip_conntrack_info: a query over an entry that has seen a reply before."""
PAIR_TYPES = {1: "A", 28: "AAAA"}
UDP_ERRORS = ("RcvbufErrors", "MemErrors")
NULL_COUNTERS = NullCounters()
NULL_CLUSTER = NullCluster()
READ_WORDS: dict[bool | None, list[str]] = {
    None: [],
    True: ["the server's program has read it"],
    False: ["no program has read it: the server is stopped, or far behind"],
}


def explain(
    outcome: Outcome,
    namespaces: NamespaceCounters = NULL_COUNTERS,
    cluster: Cluster = NULL_CLUSTER,
    who: Callable[[], Who] = lambda: NOBODY,
    wall_offset_ns: int = 0,
) -> Verdict:
    """Find the cause of a failure or of a lost attempt, and the remarks.

    Args:
        outcome: a closed session.
        namespaces: what the kernel counts of the namespaces it passed; asked only when something was lost.
        cluster: Services and their endpoints.
        who: whose lookup it was; asked only where a finding depends on it.
        wall_offset_ns: added to the hops' stamps to get the cluster's time.
    """
    found = findings(FindingInput(outcome, cluster, who))
    remarks = [f"{one.name}: {one.words}" for one in found if one.words]
    given = RuleInput(outcome, namespaces, cluster, drops(outcome), wall_offset_ns)
    return Verdict(_cause(given), [one.name for one in found], remarks)


def _cause(given: RuleInput) -> Cause | None:
    outcome = given.outcome
    if (
        outcome.status is Status.SUCCEEDED
        and not given.drops
        and not lost_attempt(outcome)
        and (len(outcome.session.replies.transmissions) < 2 or spoken_error(outcome) is None)  # noqa: PLR2004
    ):
        return None
    cause = next((cause for rule in RULES if (cause := rule(given)) is not None), None)
    if cause is None:
        return None
    cause.evidence.extend(_circumstances(outcome))
    return proxied.in_its_words(outcome, cause)


def _circumstances(outcome: Outcome) -> Iterator[str]:
    """What belongs to the picture, whatever the cause."""
    for error in errors(outcome):
        yield icmp_words(error)
    if outcome.pair is not None:
        other = PAIR_TYPES.get(outcome.pair.key.rdtype, "other")
        fate = "was answered" if outcome.pair.replies.transmissions else "was not answered either"
        yield f"the {other} query of the same socket {fate}"


def capture_loss(given: RuleInput) -> Cause | None:
    """The status says so already: this only tells what kept the missing records out."""
    outcome = given.outcome
    if outcome.status is not Status.SAMPLE_LOSS:
        return None
    session = outcome.session
    seconds = (session.interrupted_ns - session.last_ns) / SECOND_NS
    gap = next(gap for holds, gap in GAPS if holds(outcome))
    evidence = [words for holds, words in GAP_EVIDENCE if holds(outcome)]
    confidence = HIGH if outcome.lossy else MEDIUM
    return make_cause("CaptureLoss", confidence, evidence, gap=gap.words.format(seconds=seconds), advice=gap.advice)


GAPS: tuple[tuple[Callable[[Outcome], bool], Gap], ...] = (
    (lambda outcome: outcome.session.octets_missing, OCTETS_MISSING),
    (lambda outcome: outcome.session.reply_cut, REPLY_CUT),
    (lambda outcome: outcome.lossy, RECORDS_LOST),
    (lambda outcome: outcome.session.evicted, TOO_MANY_OPEN),
    (lambda outcome: outcome.session.overflowed, TOO_MANY_PACKETS),
    (lambda _outcome: True, CAPTURE_ENDED),
)
"""The first that holds is the sentence."""
GAP_EVIDENCE: tuple[tuple[Callable[[Outcome], bool], str], ...] = (
    (
        lambda outcome: outcome.session.octets_missing,
        "bytes of its TCP connection were acknowledged, or later ones arrived, and they were not captured",
    ),
    (
        lambda outcome: outcome.lossy and not outcome.session.octets_missing,
        "the agent's counters show records lost while the lookup was open",
    ),
    (lambda outcome: outcome.session.reply_cut, "a reply from the server that was asked has too few bytes to be read"),
    (lambda outcome: outcome.session.evicted, "it was the oldest open lookup when their limit was reached"),
    (
        lambda outcome: outcome.session.overflowed and not outcome.session.evicted,
        "a limit of the session table kept some of its packets out",
    ),
    (lambda outcome: bool(outcome.session.interrupted), "the capture ended while the lookup was open"),
)


def ipvs_stale_backend(given: RuleInput) -> Cause | None:
    """ip_vs holds a connection to a server that its service has no more (net/netfilter/ipvs/ip_vs_core.c, ip_vs_in)."""
    outcome = given.outcome
    if outcome.delivered and not given.drops:
        return None
    for one in reversed(outcome.session.queries.transmissions):
        for netns in dict.fromkeys(hop.netns for hop in one.hops):
            found = _stale_in(given.namespaces.ipvs(netns), outcome, one)
            if found is not None:
                evidence = [
                    f"ip_vs of network namespace {netns} bound {endpoint_to_text(*found[0])} to it",
                    "the virtual service does not list it, or lists it with weight 0",
                    *map(drop_words, given.drops[:1]),
                ]
                return make_cause("IPVSStaleBackend", HIGH, evidence, backend=endpoint_to_text(*found[1]))
    return None


def _stale_in(ipvs: Ipvs | None, outcome: Outcome, query: Transmission) -> tuple[Endpoint, Endpoint] | None:
    """The client, and the server it is bound to, if that is stale."""
    if ipvs is None:
        return None
    client, asked = outcome.session.key.client, asked_of(query)
    protocol = outcome.session.key.protocol
    server = ipvs.stale_server(protocol, client, asked) or _translated_to_stale(ipvs, protocol, asked, query)
    return None if server is None else (client, server)


def _translated_to_stale(ipvs: Ipvs, protocol: int, asked: Endpoint, query: Transmission) -> Endpoint | None:
    """What the packet's own conntrack entry says: with expire_nodest_conn, ip_vs ends its entry when it drops by it."""
    servers = ipvs.services.get((protocol, asked))
    if servers is None:
        return None
    for hop in reversed(query.hops):
        detail = hop.detail
        backend = Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)
        if is_confirmed(hop) and not detail.ct_status & DESTINATION_NAT and backend != asked:
            return None if backend in servers else backend
    return None


def stale_conntrack_entry(given: RuleInput) -> Cause | None:
    """An entry of an earlier query leads to a server that is silent, while others behind the same address answer."""
    outcome = given.outcome
    if outcome.delivered or outcome.bits & CR or outcome.session.connecting:
        return None
    found = translation(outcome.session.queries.transmissions)
    if found is None or _is_alive(given):
        return None
    virtual, backend, hop = found
    detail = hop.detail
    if detail.ct_info != ORIGINAL_ESTABLISHED or not is_confirmed(hop):
        return None
    translated = f"the conntrack entry is old: {endpoint_to_text(*virtual)} is {endpoint_to_text(*backend)}"
    listed = given.cluster.backends(virtual, outcome.session.key.protocol)
    if listed is not None and listed.lacked(backend, outcome.session.first_ns + given.wall_offset_ns):
        evidence = [translated, "that is not an endpoint of the Service", *map(drop_words, given.drops[:1])]
        return _stale(HIGH, evidence, outcome, backend)
    begun_ns = outcome.session.first_ns
    servers = outcome.node_state.backends.get((hop.netns, virtual), {})
    mine = servers.get(backend)
    others = [other for other, known in servers.items() if other != backend and known.answered_ns > begun_ns]
    if not others or (mine is not None and mine.answered_ns > begun_ns):
        return None
    evidence = [
        translated,
        f"{endpoint_to_text(*others[0])} behind the same address has answered since, and this one has not",
        *map(drop_words, given.drops[:1]),
    ]
    return _stale(MEDIUM, evidence, outcome, backend)


def _stale(confidence: Confidence, evidence: list[str], outcome: Outcome, backend: Endpoint) -> Cause:
    port = outcome.session.key.client.port
    return make_cause("StaleConntrackEntry", confidence, evidence, backend=endpoint_to_text(*backend), port=port)


def _is_alive(given: RuleInput) -> bool:
    """Whether the server was there to take the query: then its silence is its own."""
    refused = any(drop.why.no_socket for drop in given.drops)
    return bool(given.outcome.bits & CQ) and not given.outcome.left_node and not refused


NO_PROXY = (
    "in this hook a TPROXY rule drops a packet if it finds no socket for it: a DNS proxy that is gone looks the same"
)


def refused_by_netfilter(code: str) -> Callable[[RuleInput], Cause | None]:
    """A rule for one of the reasons why a netfilter hook drops packets."""

    def rule(given: RuleInput) -> Cause | None:
        for drop in given.drops:
            found = netfilter.refusal(drop, given.namespaces, given.outcome.session.first_ns)
            if found is not None and found.code == code:
                evidence, confidence = [drop_words(drop), *found.evidence], found.confidence
                if code == netfilter.RULE and drop.why.hook == "PREROUTING" and drop.leg in QUERIES:
                    evidence.append(NO_PROXY)
                    if given.outcome.node_state.takers.has_proxy(drop.hop.netns):
                        confidence = MEDIUM
                if code == netfilter.RULE and may_have_no_endpoints(given, drop):
                    evidence, confidence = [*evidence, SAME], MEDIUM
                return make_cause(
                    code,
                    confidence,
                    evidence,
                    drop=drop,
                    mechanism=_rule(drop),
                )
        return None

    return rule


def _rule(drop: PacketDrop) -> str:
    by = "nftables, " if (drop.why.location or "").startswith("nft_do_chain") else ""
    return f"netfilter rule ({by}{drop.why.hook or 'unknown hook'})"


def program_said_no(given: RuleInput) -> Cause | None:
    """A tc, XDP or cgroup program, where the kernel shows that by its own reason or place."""
    for drop in given.drops:
        mechanism = PROGRAMS.get(drop.why.reason or "")
        if drop.why.location in XDP_LOCATIONS:
            mechanism = "XDP program"
        elif drop.why.location in QUEUE_LOCATIONS:
            mechanism = "netfilter rule (NFQUEUE: its program refused it or was not there)"
        if mechanism:
            evidence = [drop_words(drop)]
            return make_cause("PolicyDrop", HIGH, evidence, mechanism=mechanism, drop=drop)
    return None


def server_socket_overflow(given: RuleInput) -> Cause | None:
    """What was sent to the server, and found its socket's receive buffer full."""
    return _socket_overflow(given, "ServerSocketOverflow", (Leg.QUERY, Leg.UPSTREAM_REPLY))


def client_socket_overflow(given: RuleInput) -> Cause | None:
    """A reply that found the client's receive buffer full."""
    return _socket_overflow(given, "ClientSocketOverflow", (Leg.REPLY,))


def _socket_overflow(given: RuleInput, code: str, legs: tuple[Leg, ...]) -> Cause | None:
    for drop in given.drops:
        confidence = confidence_in("SocketOverflow", drop.why)
        if confidence is not None and drop.leg in legs:
            evidence = [drop_words(drop), *_buffer_words(drop), *_udp_words(given, drop)]
            return make_cause(code, confidence, evidence, drop=drop)
    return None


def _buffer_words(drop: PacketDrop) -> list[str]:
    detail = drop.hop.detail
    if not detail.socket_rcvbuf:
        return []
    return [f"{detail.socket_rmem} of {detail.socket_rcvbuf} bytes of the socket's receive buffer are in use"]


def _udp_words(given: RuleInput, drop: PacketDrop) -> list[str]:
    before, now = given.namespaces.counters(drop.hop.netns, given.outcome.session.first_ns)
    if before is None or now is None:
        return []
    rose = {name: now.udp.get(name, 0) - before.udp.get(name, 0) for name in UDP_ERRORS}
    return [f"UDP {name} of that namespace +{value} since" for name, value in rose.items() if value]


def no_listener(given: RuleInput) -> Cause | None:
    """The kernel found no socket for it, here or where the ICMP error comes from. Over TCP its RST says the same."""
    outcome = given.outcome
    if outcome.session.refused:
        detail = outcome.session.queries.transmissions[-1].hops[-1].detail
        return _nothing_at(detail, ["RST answered the request for a connection"], leg=Leg.QUERY)
    for drop in given.drops:
        if drop.leg in QUERIES and drop.why.no_socket:
            return _nothing_at(drop.hop.detail, [drop_words(drop)], drop=drop)
    return None


def _nothing_at(
    detail: Detail, evidence: list[str], *, drop: PacketDrop | None = None, leg: Leg | None = None
) -> Cause:
    address = address_to_text(detail.daddr)
    return make_cause("NoListener", HIGH, evidence, drop=drop, leg=leg, address=address, port=detail.dport)


def interface_down(given: RuleInput) -> Cause | None:
    """The device refused it for want of a carrier, or is switched off."""
    for drop in given.drops:
        queue, down = (confidence_in(code, drop.why) for code in ("QueueOverflow", "InterfaceDown"))
        if (queue is not None and link_is_down(drop)) or down is not None:
            evidence = [drop_words(drop), "the device has no carrier or is not up"]
            hop = drop.hop
            return make_cause(
                "InterfaceDown",
                queue or down or MEDIUM,
                evidence,
                interface=interface(hop),
                place=f"network namespace {hop.netns}",
                drop=drop,
            )
    return None


def damaged(given: RuleInput) -> Cause | None:
    """Connection tracking called a query invalid and did not translate it, whatever became of it then."""
    for one in given.outcome.session.queries.transmissions:
        for before, after in zip(one.hops, one.hops[1:], strict=False):
            rise = rise_between(before, after)
            invalid = rise is not None and rise.invalid and before.event == RX
            if rise is not None and invalid and _got_nowhere(given):
                evidence = [rise_words(rise), f"not translated: {where(after)}"]
                return make_cause("ChecksumError", MEDIUM, evidence, leg=Leg.QUERY, place=place(before))
    return None


def _got_nowhere(given: RuleInput) -> bool:
    """Whether it did not come to the address it was sent to: what does so needed no translation."""
    node_state = given.outcome.node_state
    ends = [drop.hop for drop in given.drops if drop.leg is Leg.QUERY]
    return not given.outcome.delivered and not any(node_state.owns(hop.netns, hop.detail.daddr) for hop in ends)


def fragments_missing(given: RuleInput) -> Cause | None:
    """Nobody says why: the first fragment was captured, and what makes the datagram whole never was."""
    for drop in given.drops:
        if drop.hop.flags & FRAGMENT and not drop.why.reason and not drop.why.location:
            detail = drop.hop.detail
            evidence = [
                f"a fragment of the {drop.leg} from {address_to_text(detail.saddr)} was seen, and not all others",
                f"the {drop.leg} had {detail.payload_bytes} bytes",
            ]
            return make_cause("FragmentLost", MEDIUM, evidence, drop=drop, place=address_to_text(detail.daddr))
    return None


def kernel_says(code: str) -> Callable[[RuleInput], Cause | None]:
    """A rule for a code that the kernel's own words stand for."""

    def rule(given: RuleInput) -> Cause | None:
        for drop in given.drops:
            confidence = confidence_in(code, drop.why)
            if confidence is not None:
                return make_cause(code, confidence, [drop_words(drop)], drop=drop, **_ends(drop))
        return None

    return rule


def _ends(drop: PacketDrop) -> dict[str, Any]:
    detail = drop.hop.detail
    return {"source": address_to_text(detail.saddr), "destination": address_to_text(detail.daddr)}


def kernel_drop(given: RuleInput) -> Cause | None:
    """Any other drop, named."""
    for drop in given.drops:
        why = drop.why
        reason = f"{why.reason or 'no reason given'} in {why.location or 'a function whose name is hidden'}"
        if why.hook:
            reason += f", netfilter hook {why.hook}"
        known = WORDS.get(why.reason or "")
        reason = f"{known} ({reason})" if known else reason
        confidence = HIGH if known else MEDIUM
        return make_cause("KernelDrop", confidence, [drop_words(drop)], drop=drop, reason=reason)
    return None


ICMP_VERDICTS: dict[tuple[int, int, int], tuple[str, Confidence]] = {
    (4, 3, 3): ("NoListener", HIGH),
    (6, 1, 4): ("NoListener", HIGH),
    (4, 3, 9): ("PolicyDrop", HIGH),
    (4, 3, 10): ("PolicyDrop", HIGH),
    (4, 3, 13): ("PolicyDrop", HIGH),
    (6, 1, 1): ("PolicyDrop", HIGH),
    (6, 1, 5): ("PolicyDrop", HIGH),
    (6, 1, 6): ("PolicyDrop", HIGH),
    (4, 3, 0): ("NoRoute", HIGH),
    (6, 1, 0): ("NoRoute", HIGH),
    (4, 3, 1): ("NeighbourFailure", MEDIUM),
    (6, 1, 3): ("NeighbourFailure", MEDIUM),
    (4, 3, 4): ("KernelDrop", HIGH),
    (6, 2, 0): ("KernelDrop", HIGH),
    (4, 11, 0): ("KernelDrop", HIGH),
    (6, 3, 0): ("KernelDrop", HIGH),
}
"""What an ICMP error from elsewhere stands for, by IP version, type and code. A firewall may lie: hence `medium`."""


def told_by_icmp(given: RuleInput) -> Cause | None:
    """Nothing died here, but somebody on the way says that he could not or would not pass it on."""
    outcome = given.outcome
    if outcome.delivered or given.drops:
        return None
    for error in errors(outcome):
        if error.flags & RESPONSE:
            # The client says so of a reply: nothing that became of the query.
            continue
        detail = error.detail
        verdict = ICMP_VERDICTS.get((error.family, detail.icmp_type, detail.icmp_code))
        if verdict is None or _is_about_a_reply(error, outcome):
            continue
        code, confidence = verdict
        evidence = []
        if code == "NoListener" and detail.icmp_saddr != detail.daddr:
            # A host says so of its own address. Who says so of another's has a rule that refuses.
            code, confidence, evidence = "PolicyDrop", MEDIUM, [f"the error did not come from the server: {SAME}"]
        sender = address_to_text(detail.icmp_saddr)
        return make_cause(
            code,
            confidence,
            evidence,
            address=address_to_text(detail.daddr),
            port=detail.dport,
            destination=address_to_text(detail.daddr),
            leg=Leg.QUERY if error in outcome.session.errors else Leg.UPSTREAM_QUERY,
            place=f"the router or host {sender}",
            mechanism="firewall rule",
            reason=icmp_words(error),
        )
    return None


def _is_about_a_reply(error: Hop, outcome: Outcome) -> bool:
    """Whether it was a reply that could not be delivered: that comes of what went wrong before."""
    asking = [outcome.session, *outcome.exchanges]
    return Endpoint(error.detail.daddr, error.detail.dport) in {one.key.client for one in asking}


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
    refused = any(one.refused for one in given.outcome.exchanges)
    return upstream_tcp_unavailable(given) if refused else None


def upstream_tcp_unavailable(given: RuleInput) -> Cause | None:
    """The server could not even ask: zones served over UDP only, behind a cache that asks over TCP."""
    outcome = given.outcome
    error = spoken_error(outcome)
    failed = [one for one in outcome.exchanges if one.connecting]
    if not failed or (outcome.healthy and error is None):
        return None
    attempts = attempts_upstream(outcome, error)
    if any(one.reply is not None and one.last_ns > failed[-1].first_ns for one in attempts):
        # It asked on without a connection, and was answered.
        return None
    refused = failed[-1].refused
    how = "refused" if refused else "no answer to the request for a connection"
    asked = [hop.detail for one in failed for hop in _first_hops(one.queries)]
    said = [one.words for one in attempts if one.reply is not None]
    doubt = [] if refused else doubt_words(outcome)
    evidence = [f"{_upstreams(asked)}: {how}", *said, *doubt]
    return make_cause("UpstreamTCPUnavailable", LOW if doubt else HIGH, evidence, address=_upstreams(asked))


def _first_hops(way: Direction) -> list[Hop]:
    return [one.hops[0] for one in way.transmissions]


def _upstreams(asked: list[Detail]) -> str:
    return ", ".join(dict.fromkeys(endpoint_to_text(detail.daddr, detail.dport) for detail in asked))


def unknown(given: RuleInput) -> Cause | None:
    """The last hop is all there is."""
    ways = ((Leg.REPLY, given.outcome.session.replies), (Leg.QUERY, given.outcome.session.queries))
    leg, way = next((leg, way) for leg, way in ways if way.transmissions)
    hop = given.outcome.node_state.end_of(way.transmissions[-1], given.outcome.session.strangers)
    return make_cause("Unknown", LOW, [f"last hop: {where(hop)}"], leg=leg, place=where(hop))


def of_outcome(speak: Callable[[Outcome], Cause | None]) -> Callable[[RuleInput], Cause | None]:
    """A rule that needs nothing but the session."""
    return lambda given: speak(given.outcome)


RULES: tuple[Callable[[RuleInput], Cause | None], ...] = (
    capture_loss,
    # Refused. ip_vs refuses in netfilter's name, and kube-proxy by its rules for Services without endpoints.
    ipvs_stale_backend,
    refused_by_netfilter("ConntrackTableFull"),
    refused_by_netfilter("ConntrackRace"),
    proxied.proxy_gone,
    no_endpoints,
    refused_untranslated,
    refused_by_netfilter("PolicyDrop"),
    program_said_no,
    # An old translation: how the packet died then is its consequence.
    stale_conntrack_entry,
    server_socket_overflow,
    client_socket_overflow,
    upstream_tcp_refused,
    proxied.redirected_to_nobody,
    no_listener,
    late_reply,
    not_translated_back,
    of_outcome(unexpected_source),
    # Lost on the way.
    fragments_missing,
    kernel_says("ChecksumError"),
    damaged,
    interface_down,
    kernel_says("NoRoute"),
    kernel_says("NeighbourFailure"),
    kernel_says("ReversePathFilter"),
    kernel_says("FragmentLost"),
    kernel_says("QueueOverflow"),
    kernel_drop,
    proxied.refused_where_it_came,
    told_by_icmp,
    flooded,
    # At the server or beyond.
    of_outcome(unusable_reply),
    of_outcome(unfinished_reply),
    upstream_tcp_unavailable,
    of_outcome(upstream_timeout),
    server_no_reply,
    left_node,
    of_outcome(upstream_error),
    of_outcome(server_error),
    unknown,
)
