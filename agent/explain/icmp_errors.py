"""What a host or router on the way says by an ICMP error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.endpoints import SAME
from agent.explain.evidence import (
    errors,
    icmp_words,
)
from agent.explain.verdict import HIGH, MEDIUM, Cause, Confidence, make_cause
from agent.hop.endpoint import Endpoint, address_to_text
from agent.hop.record import RESPONSE
from agent.session.outcome import Leg, Outcome

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.hop.record import Hop

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
    return Endpoint(error.detail.daddr, error.detail.dport) in {lookup.key.client for lookup in asking}
