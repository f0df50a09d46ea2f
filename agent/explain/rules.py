"""Why a session failed, or lost an attempt: an ordered table of rules. The first that speaks is heard.

No evidence, no accusation: when no rule speaks the cause is Unknown, with the last hop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import CAUSES
from agent.session.outcome import CQ, CR, FQ, FR, NOERROR, NXDOMAIN, Outcome, Status
from agent.session.sighting import Event, address_to_text, endpoint_to_text, name_text
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.session.drops import Drop
    from agent.session.model import Leg, Transmission
    from agent.session.sighting import Detail, Sighting

TC_REASONS = {"TC_INGRESS": "tc program (ingress)", "TC_EGRESS": "tc program (egress)"}
HEALTHY = frozenset({NOERROR, NXDOMAIN})
HEADER_RCODE = 0xF
"""The lower bits of an extended rcode, which are in the header (RFC 6891 6.1.3)."""
UNSAID = frozenset({None, "NOT_SPECIFIED"})
RECEIVE = frozenset({"__udp4_lib_rcv", "__udp6_lib_rcv", "tcp_v4_rcv", "tcp_v6_rcv"})
FRAGMENT_EXPIRY = frozenset({"ip_expire", "ip6frag_expire_frag_queue", "ip6_frag_expire"})
EVENT_WORDS = {Event.TX: "leaving by", Event.RX: "arriving at", Event.DROP: "dying at"}


class Cause(NamedTuple):
    """A verdict, and what it rests on."""

    code: str
    confidence: str
    """high, medium or low."""
    message: str
    evidence: list[str]
    remedy: str

    @property
    def doc(self) -> str:
        """Where the code is explained."""
        return f"docs/causes.md#{self.code.lower()}"


class Verdict(NamedTuple):
    """What is said about a session beside its status."""

    cause: Cause | None
    findings: list[str]


def explain(outcome: Outcome) -> Verdict:
    """Find the cause of a failure or of a lost attempt, and the remarks."""
    return Verdict(_cause(outcome), [name for name, holds in FINDINGS.items() if holds(outcome)])


def _cause(outcome: Outcome) -> Cause | None:
    lost_something = bool(_drops(outcome)) or lost_attempt(outcome)
    if outcome.status is Status.SUCCEEDED and not lost_something:
        return None
    return next((cause for rule in RULES if (cause := rule(outcome)) is not None), None)


def lost_attempt(outcome: Outcome) -> bool:
    """Whether the client sent the query more often than it was answered: an attempt was lost somewhere."""
    if outcome.repeats <= 1 or outcome.lossy:
        return False
    return outcome.repeats > len(outcome.session.replies.transmissions)


def _say(code: str, confidence: str, evidence: list[str], **found: object) -> Cause:
    text = CAUSES[code]
    return Cause(code, confidence, text.sentence.format(**found), evidence, text.remedy)


def capture_loss(outcome: Outcome) -> Cause | None:
    """The status says so already."""
    if outcome.status is not Status.SAMPLE_LOSS:
        return None
    evidence = [f"BitMap {int(outcome.bitmap)}"]
    if outcome.lossy:
        evidence.append("records were lost while the session was open")
    if outcome.session.interrupted:
        evidence.append("the agent ended while the session was open")
    if outcome.session.overflowed:
        evidence.append("a bound of the session table closed it early or kept hops out")
    return _say("CaptureLoss", "high" if outcome.lossy else "medium", evidence)


def no_listener(outcome: Outcome) -> Cause | None:
    """The kernel found no socket for it: certain. Over TCP its RST says the same."""
    if outcome.session.refused:
        detail = outcome.session.queries.transmissions[-1].hops[-1].detail
        return _say(
            "NoListener",
            "high",
            ["RST answered the request for a connection"],
            address=address_to_text(detail.daddr),
            port=detail.dport,
        )
    if outcome.query_drop is None or outcome.query_drop[1].reason != "NO_SOCKET":
        return None
    hop, drop = outcome.query_drop
    detail = hop.detail
    return _say(
        "NoListener", "high", [_drop_evidence(hop, drop)], address=address_to_text(detail.daddr), port=detail.dport
    )


def policy_drop(outcome: Outcome) -> Cause | None:
    """A rule or program said no, where the kernel shows that by its own location or reason."""
    for message, hop, drop in _drops(outcome):
        mechanism = TC_REASONS.get(drop.reason or "")
        if drop.reason == "NETFILTER_DROP" and (drop.location or "").startswith("nft_do_chain"):
            mechanism = f"netfilter rule (nftables, {drop.hook or 'unknown hook'})"
        if mechanism:
            evidence = [_drop_evidence(hop, drop)]
            return _say("PolicyDrop", "high", evidence, mechanism=mechanism, place=_place(hop), message=message)
    return None


def late_reply(outcome: Outcome) -> Cause | None:
    """The client's socket was gone when the reply came: the delay is the real cause."""
    if outcome.reply_drop is None or outcome.delivered or not _came_too_late(outcome):
        return None
    hop, drop = outcome.reply_drop
    if not outcome.session.queries.transmissions:
        return None
    delay = (hop.ts_ns - outcome.session.queries.transmissions[0].hops[0].ts_ns) / 1e9
    return _say("LateReply", "high", [_drop_evidence(hop, drop)], delay=f"{delay:.3f} s")


def _came_too_late(outcome: Outcome) -> bool:
    """Whether the reply that died did so for want of the client's socket."""
    if outcome.reply_drop is None:
        return False
    hop, drop = outcome.reply_drop
    return _no_socket(drop) and hop.netns == outcome.client_netns


def _no_socket(drop: Drop) -> bool:
    return drop.reason == "NO_SOCKET" or (drop.reason in UNSAID and drop.location in RECEIVE)


def fragment_lost(outcome: Outcome) -> Cause | None:
    """Reassembly gave up: what lost the fragment itself would be told by its own drop."""
    for message, hop, drop in _drops(outcome):
        if (drop.reason or "").startswith("FRAG_") or drop.location in FRAGMENT_EXPIRY:
            return _say("FragmentLost", "high", [_drop_evidence(hop, drop)], message=message, place=_place(hop))
    return None


def kernel_drop(outcome: Outcome) -> Cause | None:
    """Any other death, named."""
    for message, hop, drop in _drops(outcome):
        reason = f"{drop.reason or 'no reason given'} in {drop.location or 'a function that may not be named'}"
        if drop.hook:
            reason += f", netfilter hook {drop.hook}"
        return _say(
            "KernelDrop", "medium", [_drop_evidence(hop, drop)], message=message, place=_place(hop), reason=reason
        )
    return None


def _drops(outcome: Outcome) -> list[tuple[str, Sighting, Drop]]:
    named = (("query", outcome.query_drop), ("reply", outcome.reply_drop))
    own = [(message, *death) for message, death in named if death is not None]
    if outcome.delivered and _came_too_late(outcome):
        # The slower of several servers, or the second answer to a repeated query: the client had what it wanted.
        own = [one for one in own if one[0] == "query"]
    return own + _upstream_drops(outcome)


def _upstream_drops(outcome: Outcome) -> list[tuple[str, Sighting, Drop]]:
    """Deaths upstream that matter to this client.

    A server that lost an attempt and answered well all the same needs no explanation; nor does a reply that came when
    the server had given up: what made it late is the cause.
    """
    if outcome.upstream_drop is None or outcome.rcode in HEALTHY:
        return []
    _, hop, drop = outcome.upstream_drop
    return [] if _no_socket(drop) and hop.netns == outcome.server_netns else [outcome.upstream_drop]


def server_no_reply(outcome: Outcome) -> Cause | None:
    """The query was taken in where the server is, and no reply left."""
    if not outcome.bits & CQ or outcome.server_netns is None or not _unanswered(outcome):
        return None
    hop = _unanswered_query(outcome).hops[-1]
    evidence = [f"last sighting of the query: {_where(hop)}", "no reply left that namespace"]
    confidence = "high"
    if outcome.session.connection is not None and outcome.session.connection.facts.reset_by:
        evidence.append(f"the {outcome.session.connection.facts.reset_by} ended the connection by RST")
    if outcome.bits & CR:
        evidence[1] = _attempts_evidence(outcome)
        confidence = "low"
    detail = hop.detail
    return _say("ServerNoReply", confidence, evidence, address=endpoint_to_text(detail.daddr, detail.dport))


def left_node(outcome: Outcome) -> Cause | None:
    """Out by a device whose other end is not on this node."""
    if not outcome.left_node or not _unanswered(outcome):
        return None
    hop = _unanswered_query(outcome).hops[-1]
    evidence = [f"last sighting of the query: {_where(hop)}"]
    if outcome.bits & CR:
        evidence.append(_attempts_evidence(outcome))
    return _say("LeftNode", "medium", evidence, interface=_interface(hop))


def _unanswered(outcome: Outcome) -> bool:
    return not outcome.bits & CR or (outcome.delivered and lost_attempt(outcome))


def _unanswered_query(outcome: Outcome) -> Transmission:
    """The last query without any reply; of a lookup that was answered in the end, the first: its retry was."""
    queries = outcome.session.queries.transmissions
    return queries[0] if outcome.bits & CR else queries[-1]


def _attempts_evidence(outcome: Outcome) -> str:
    replies = len(outcome.session.replies.transmissions)
    return f"{outcome.attempts} attempts, {replies} {'reply' if replies == 1 else 'replies'}"


def upstream_tcp_unavailable(outcome: Outcome) -> Cause | None:
    """The server could not even ask: zones served over UDP only, behind a cache that asks over TCP."""
    failed = [one for one in outcome.exchanges if one.connecting]
    if not failed or outcome.bits & FR or outcome.rcode in HEALTHY:
        return None
    how = "refused" if failed[-1].refused else "no answer to the request for a connection"
    asked = [hop.detail for one in failed for hop in _first_hops(one.queries)]
    return _say("UpstreamTCPUnavailable", "high", [f"{_upstreams(asked)}: {how}"], address=_upstreams(asked))


def upstream_timeout(outcome: Outcome) -> Cause | None:
    """The server asked upstream, nothing came back, and so it had nothing to say or said SERVFAIL."""
    if not outcome.bits & FQ or outcome.bits & FR or outcome.rcode in HEALTHY:
        return None
    asked = [hop.detail for one in outcome.exchanges for hop in _first_hops(one.queries)]
    evidence = [f"{len(asked)} queries to {_upstreams(asked)}, no reply"]
    return _say(
        "UpstreamTimeout", "medium" if outcome.session.ambiguous else "high", evidence, address=_upstreams(asked)
    )


def _first_hops(leg: Leg) -> list[Sighting]:
    return [one.hops[0] for one in leg.transmissions]


def _upstreams(asked: list[Detail]) -> str:
    return ", ".join(dict.fromkeys(endpoint_to_text(detail.daddr, detail.dport) for detail in asked))


def server_error(outcome: Outcome) -> Cause | None:
    """An error that nobody upstream was seen to give."""
    if outcome.rcode is None or outcome.rcode in HEALTHY or not outcome.delivered:
        return None
    evidence = [f"{rcode_to_text(outcome.rcode)} with {_flags(outcome)}"]
    bare = outcome.answer_source == "server-error"
    return _say("ServerError", "medium" if bare else "low", evidence, rcode=rcode_to_text(outcome.rcode))


def _flags(outcome: Outcome) -> str:
    if outcome.answer_source == "server-error":
        return "AA=0, RA=0 and no records"
    assert outcome.reply is not None  # noqa: S101  there is no rcode without a reply
    summary = outcome.reply.wire.summary
    return f"AA={summary.aa:d}, RA={summary.ra:d}"


def upstream_error(outcome: Outcome) -> Cause | None:
    """An error that an upstream was seen to give, or that carries the flags of a forwarded answer."""
    if outcome.rcode is None or outcome.rcode in HEALTHY or not outcome.delivered:
        return None
    rcode = rcode_to_text(outcome.rcode)
    relayed = [
        one.hops[0].detail
        for exchange in outcome.exchanges
        for one in exchange.replies.transmissions
        if one.wire.summary.rcode == outcome.rcode & HEADER_RCODE
    ]
    if relayed:
        address = endpoint_to_text(relayed[-1].saddr, relayed[-1].sport)
        confidence = "medium" if outcome.session.ambiguous else "high"
        return _say("UpstreamError", confidence, [f"{address} answered {rcode}"], rcode=rcode, address=f" {address}")
    if outcome.answer_source != "forward":
        return None
    return _say("UpstreamError", "low", [f"{rcode} with {_flags(outcome)}"], rcode=rcode, address="")


def unknown(outcome: Outcome) -> Cause | None:
    """The last hop is all there is."""
    legs = (("reply", outcome.session.replies), ("query", outcome.session.queries))
    message, leg = next((name, leg) for name, leg in legs if leg.transmissions)
    hop = leg.transmissions[-1].hops[-1]
    return _say("Unknown", "low", [f"last sighting: {_where(hop)}"], message=message, place=_where(hop))


RULES: tuple[Callable[[Outcome], Cause | None], ...] = (
    capture_loss,
    no_listener,
    policy_drop,
    late_reply,
    fragment_lost,
    kernel_drop,
    upstream_tcp_unavailable,
    upstream_timeout,
    server_no_reply,
    left_node,
    upstream_error,
    server_error,
    unknown,
)


def _upstream_retried(outcome: Outcome) -> bool:
    """Whether the server asked on after silence; that it asks again over TCP after a truncated reply is no retry."""
    unanswered = [one for one in outcome.exchanges if not one.replies.transmissions]
    repeated = any(len(one.sent) > 1 for one in outcome.exchanges)
    return repeated or (bool(unanswered) and len(outcome.exchanges) > 1)


FINDINGS: dict[str, Callable[[Outcome], bool]] = {
    "Retransmitted": lambda outcome: outcome.repeats > 1,
    "ParallelNameservers": lambda outcome: len(outcome.session.sent) > 1 and len(outcome.session.asked) > 1,
    "UpstreamRetried": _upstream_retried,
    "AmbiguousUpstream": lambda outcome: outcome.session.ambiguous,
    "Truncated": lambda outcome: outcome.reply is not None and outcome.reply.wire.summary.tc,
}


def _interface(hop: Sighting) -> str:
    return name_text(hop.detail.ifname) or "no device yet"


def _place(hop: Sighting) -> str:
    return f"network namespace {hop.netns} ({_interface(hop)})"


def _where(hop: Sighting) -> str:
    return f"{EVENT_WORDS[Event(hop.event)]} {_interface(hop)} in network namespace {hop.netns}"


def _drop_evidence(hop: Sighting, drop: Drop) -> str:
    words = [f"kfree_skb reason {drop.reason or 'unknown'}", f"location {drop.location or 'unknown'}"]
    if drop.hook:
        words.append(f"hook {drop.hook}")
    return f"{', '.join(words)}; {_where(hop)}"
