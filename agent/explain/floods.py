"""Frames that a bridge gave to all its ports, because it does not know any more where their destination is.

That is so when a pod was torn down and its neighbours still know its link-layer address: its port is gone, and what the
bridge had learned of it. Every pod on the bridge then sees the packet arrive, and its kernel drops it as another host's
(PACKET_OTHERHOST). That it arrived there is no arrival.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.endpoints import endpoint_words
from agent.explain.evidence import place, where
from agent.explain.verdict import HIGH, MEDIUM, make_cause
from agent.hop.endpoint import address_to_text
from agent.hop.record import RX, TX
from agent.session.model import MAX_STRANGERS
from agent.session.outcome import Leg, translation

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.explain.verdict import Cause
    from agent.hop.record import Hop
    from agent.session.model import Transmission


def flooded(given: RuleInput) -> Cause | None:
    """It was given to all, and it was nobody's."""
    outcome = given.outcome
    if outcome.delivered or given.drops or outcome.left_node:
        return None
    leg, message = _last(given)
    others = outcome.node_state.bystanders(message, outcome.session.strangers)
    if not others or _came_home(given, message, others):
        return None
    end = outcome.node_state.end_of(message, outcome.session.strangers)
    namespaces = len({hop.netns for hop in others})
    came_to = "1 network namespace" if namespaces == 1 else f"{namespaces} network namespaces"
    evidence = [
        f"last hop on its way: {where(end)}",
        f"a bridge sent it to all its ports: it reached {came_to}, all for another host, and none with that address",
    ]
    found = translation(outcome.session.queries.transmissions)
    gone = [] if found is None or leg is Leg.REPLY else endpoint_words(given, *found[:2])
    destination = address_to_text(others[-1].detail.daddr)
    confidence = HIGH if gone else MEDIUM
    return make_cause(
        "NeighbourFailure", confidence, [*evidence, *gone], leg=leg, place=place(end), destination=destination
    )


def _last(given: RuleInput) -> tuple[Leg, Transmission]:
    replies, queries = given.outcome.session.replies.transmissions, given.outcome.session.queries.transmissions
    return (Leg.REPLY, replies[-1]) if replies else (Leg.QUERY, queries[-1])


def _came_home(given: RuleInput, transmission: Transmission, others: list[Hop]) -> bool:
    """Whether a copy came to its destination as well.

    To who has the address, as far as that can be found out; or to a namespace that neither sent it on nor refused it:
    the kernel refuses what has another host's link-layer address, and of that so many namespaces are remembered.
    """
    outcome = given.outcome
    came = [hop for hop in transmission.hops if hop.event == RX]
    if any(outcome.node_state.owns(hop.netns, hop.detail.daddr) for hop in came):
        return True
    if len(outcome.session.strangers) >= MAX_STRANGERS:
        return False
    sent_on = {hop.netns for hop in transmission.hops if hop.event == TX}
    return any(hop not in others and hop.netns not in sent_on for hop in came)
