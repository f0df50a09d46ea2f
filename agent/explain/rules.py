"""Why a session failed, or lost an attempt: an ordered table of rules. The first that speaks is heard.

No evidence, no accusation: when no rule speaks the cause is Unknown, with the last hop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import CAUSES
from agent.session.outcome import Bit, Outcome, Status
from agent.session.sighting import Event, address_to_text, endpoint_to_text, name_text
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.session.drops import Drop
    from agent.session.sighting import Sighting

TC_REASONS = {"TC_INGRESS": "tc program (ingress)", "TC_EGRESS": "tc program (egress)"}
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
    lost_something = outcome.query_drop is not None or outcome.reply_drop is not None
    if outcome.status is Status.SUCCEEDED and not lost_something:
        return None
    return next((cause for rule in RULES if (cause := rule(outcome)) is not None), None)


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
    """UDP found no socket for the query: certain."""
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
    return [(message, *death) for message, death in named if death is not None]


def server_no_reply(outcome: Outcome) -> Cause | None:
    """The query was taken in where the server is, and no reply left."""
    if Bit.CQ not in outcome.path or Bit.CR in outcome.path or outcome.server_netns is None:
        return None
    hop = outcome.session.queries.transmissions[-1].hops[-1]
    evidence = [f"last sighting of the query: {_where(hop)}", "no reply left that namespace"]
    detail = hop.detail
    return _say("ServerNoReply", "high", evidence, address=endpoint_to_text(detail.daddr, detail.dport))


def left_node(outcome: Outcome) -> Cause | None:
    """Out by a device whose other end is not on this node."""
    if not outcome.left_node or Bit.CR in outcome.path:
        return None
    hop = outcome.session.queries.transmissions[-1].hops[-1]
    return _say("LeftNode", "medium", [f"last sighting of the query: {_where(hop)}"], interface=_interface(hop))


def server_error(outcome: Outcome) -> Cause | None:
    """A bare error, as a server's core writes it."""
    if outcome.answer_source != "server-error" or outcome.rcode is None:
        return None
    evidence = [f"{rcode_to_text(outcome.rcode)} with AA=0, RA=0 and no records"]
    return _say("ServerError", "medium", evidence, rcode=rcode_to_text(outcome.rcode))


def upstream_error(outcome: Outcome) -> Cause | None:
    """An error that carries the flags of a forwarded answer."""
    if outcome.answer_source != "forward" or outcome.rcode is None:
        return None
    evidence = [f"{rcode_to_text(outcome.rcode)} with AA=0, RA=1"]
    return _say("UpstreamError", "low", evidence, rcode=rcode_to_text(outcome.rcode))


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
    kernel_drop,
    server_no_reply,
    left_node,
    server_error,
    upstream_error,
    unknown,
)

FINDINGS: dict[str, Callable[[Outcome], bool]] = {
    "Retransmitted": lambda outcome: outcome.attempts > 1,
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
