"""Replies that nobody took: they came too late, or under an address that nobody had asked, or both.

kube-proxy deletes the entries of a server that is no endpoint any more, and entries time out. What that server says
after that is not translated back, and no socket wants it. If the client had given up by then, that it came so late is
the cause, whatever became of its translation meanwhile.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from agent.explain import netfilter
from agent.explain.endpoints import endpoint_words
from agent.explain.evidence import came_too_late, drop_words, is_tracked
from agent.explain.verdict import HIGH, MEDIUM, Confidence, make_cause
from agent.hop.conntrack import REPLY_CT_INFO
from agent.hop.endpoint import address_to_text
from agent.hop.record import TX
from agent.session.addressed import asked_of
from agent.session.model import SECOND_NS
from agent.session.outcome import translation

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.explain.verdict import Cause
    from agent.hop.record import Hop
    from agent.session.outcome import Outcome, PacketDrop

PATIENCE_NS = 5 * SECOND_NS
"""How long resolvers wait for a reply by default: the C libraries (resolv.conf(5), RES_TIMEOUT), Go."""


class Fate(Enum):
    """Why a reply was not translated back."""

    FORGOTTEN = "the connection table had no entry for it any more: it was deleted, or had timed out"
    BYPASSED = "it bypassed the connection table of the namespace that translated the query"
    UNKNOWN = "its translation cannot be seen from here"


def refused_untranslated(given: RuleInput) -> Cause | None:
    """A rule refused the reply, as it was a packet of no connection any more: it would have passed as a reply."""
    outcome = given.outcome
    drop = outcome.reply_drop
    if drop is None or outcome.delivered or outcome.query_drop is not None or not is_untranslated(outcome):
        return None
    refused = netfilter.refusal(drop, given.namespaces, outcome.session.first_ns)
    if refused is None or refused.code != netfilter.RULE or fate_of(outcome) is not Fate.FORGOTTEN:
        return None
    return _late_untranslated(given) if is_late(outcome) else _forgotten(given)


def late_reply(given: RuleInput) -> Cause | None:
    """The client's socket was gone when the reply came: the delay is the real cause."""
    outcome = given.outcome
    if outcome.reply_drop is None or outcome.delivered or not outcome.session.queries.transmissions:
        return None
    if is_untranslated(outcome):
        return _late_untranslated(given) if outcome.reply_drop.why.no_socket and is_late(outcome) else None
    if not came_too_late(outcome):
        return None
    return make_cause("LateReply", HIGH, [drop_words(outcome.reply_drop)], delay=_delay_words(outcome))


def not_translated_back(given: RuleInput) -> Cause | None:
    """The server was asked by a virtual address, and its reply came from its own: no socket wants it."""
    outcome = given.outcome
    drop = outcome.reply_drop
    if drop is None or outcome.delivered or not drop.why.no_socket or not is_untranslated(outcome):
        return None
    fate = fate_of(outcome)
    if fate is not Fate.BYPASSED:
        return _forgotten(given)
    reason = (
        f"{_addresses(outcome)}: the reply bypassed the node's translation (where pods share a bridge, "
        "net.bridge.bridge-nf-call-iptables=0 would do that)"
    )
    return _kernel_drop(drop, HIGH, [fate.value], reason)


def is_untranslated(outcome: Outcome) -> bool:
    """Whether the reply that died comes from an address that the client never asked."""
    if outcome.reply_drop is None or not outcome.session.queries.transmissions:
        return False
    asked = {asked_of(query).address for query in outcome.session.queries.transmissions}
    return outcome.reply_drop.hop.detail.saddr not in asked


def is_late(outcome: Outcome) -> bool:
    """Whether the client had not waited for it, as far as its patience is known: it asked again, or resolvers do."""
    return _delay_ns(outcome) >= PATIENCE_NS or _asked_again_before(outcome)


def fate_of(outcome: Outcome) -> Fate:
    """What the reply's hops show, in the namespace in which the query was translated."""
    drop, found = outcome.reply_drop, translation(outcome.session.queries.transmissions)
    if drop is None or found is None:
        return Fate.UNKNOWN
    hops = [hop for hop in (*drop.before, drop.hop) if hop.netns == found[2].netns]
    if any(_opens_a_connection(hop) for hop in hops):
        return Fate.FORGOTTEN
    if drop.hop.netns == found[2].netns and drop.why.no_socket:
        # It was taken in there, for which it had to pass the connection table.
        return Fate.FORGOTTEN
    return Fate.BYPASSED if any(hop.event == TX for hop in hops) else Fate.UNKNOWN


def _opens_a_connection(reply: Hop) -> bool:
    """Whether the connection table takes it for the first packet of a connection from the server to the client."""
    detail = reply.detail
    own = (detail.ct_original_saddr, detail.ct_original_sport) == (detail.saddr, detail.sport)
    return is_tracked(reply) and detail.ct_info < REPLY_CT_INFO and own


def _late_untranslated(given: RuleInput) -> Cause:
    outcome = given.outcome
    drop, fate = outcome.reply_drop, fate_of(outcome)
    assert drop is not None  # noqa: S101  both callers have seen to it
    evidence = [drop_words(drop), f"it was not translated back: {_addresses(outcome)}"]
    evidence += [] if fate is Fate.UNKNOWN else [fate.value]
    if _asked_again_before(outcome):
        evidence.append(f"the client had asked {outcome.attempts} times by then")
    sure = fate is Fate.FORGOTTEN and _delay_ns(outcome) >= PATIENCE_NS
    evidence += _deleted_words(given)
    return make_cause("LateReply", HIGH if sure else MEDIUM, evidence, delay=_delay_words(outcome))


def _forgotten(given: RuleInput) -> Cause:
    """In time, but without a translation: somebody deleted its entry, or it was given up too soon."""
    outcome = given.outcome
    drop, fate = outcome.reply_drop, fate_of(outcome)
    assert drop is not None  # noqa: S101  both callers have seen to it
    why = (
        "the node had forgotten the translation of this lookup, or the reply bypassed it"
        if fate is Fate.UNKNOWN
        else "the node had forgotten the translation of this lookup (conntrack entry deleted or timed out)"
    )
    evidence = [fate.value, f"it came {_delay_words(outcome)} after the query", *_deleted_words(given)]
    return _kernel_drop(drop, MEDIUM, evidence, f"{_addresses(outcome)}: {why}")


def _kernel_drop(drop: PacketDrop, confidence: Confidence, evidence: list[str], reason: str) -> Cause:
    words = [drop_words(drop), *evidence]
    return make_cause("KernelDrop", confidence, words, drop=drop, reason=reason)


def _addresses(outcome: Outcome) -> str:
    drop, asked = outcome.reply_drop, asked_of(outcome.session.queries.transmissions[0]).address
    assert drop is not None  # noqa: S101  asked of replies that died only
    source = drop.hop.detail.saddr
    return f"it comes from {address_to_text(source)}, but the client had asked {address_to_text(asked)}"


def _deleted_words(given: RuleInput) -> list[str]:
    """What may have deleted the entry, by what the cluster says of the server."""
    found = translation(given.outcome.session.queries.transmissions)
    words = [] if found is None else endpoint_words(given, *found[:2])
    return [f"{word}: kube-proxy deletes the conntrack entries of such a server" for word in words]


def _asked_again_before(outcome: Outcome) -> bool:
    """Whether the client repeated its query before the reply left its server."""
    drop = outcome.reply_drop
    if drop is None:
        return False
    sent_ns = (drop.before or [drop.hop])[0].ts_ns
    return sum(query.hops[0].ts_ns < sent_ns for query in outcome.session.sent) > 1


def _delay_ns(outcome: Outcome) -> int:
    drop, queries = outcome.reply_drop, outcome.session.queries.transmissions
    return 0 if drop is None or not queries else drop.hop.ts_ns - queries[0].hops[0].ts_ns


def _delay_words(outcome: Outcome) -> str:
    return f"{_delay_ns(outcome) / SECOND_NS:.3f} s"
