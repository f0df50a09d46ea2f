"""Which messages a lookup lost: the verdict in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.export.metrics.catalogue import ANSWERS, LEGS
from agent.session.outcome import Leg
from agent.session.related import AAAA, A

if TYPE_CHECKING:
    from agent.explain.verdict import Cause
    from agent.session.outcome import Outcome

LABELS = {Leg.QUERY: "query", Leg.REPLY: "reply", Leg.UPSTREAM_QUERY: "upstream", Leg.UPSTREAM_REPLY: "upstream"}
HALVES = {A: "A", AAAA: "AAAA"}


class Lost(NamedTuple):
    """Messages of one leg."""

    leg: str
    messages: int


def lost_messages(outcome: Outcome, cause: Cause) -> Lost | None:
    """What this cause cost; None where it is no loss of a message: an error that was delivered, or a gap of our own."""
    if cause.code not in LEGS or (cause.code in ANSWERS and not outcome.healthy):
        return None
    leg = _leg(cause)
    return Lost(leg, max(1, COUNTS[leg](outcome)))


def lost_half(outcome: Outcome, lost: Lost) -> str | None:
    """The half of an A/AAAA pair that was lost while the other was answered at once; None if it was not so."""
    other = outcome.pair
    if other is None or lost.leg == "upstream" or len(other.sent) > len(other.replies.transmissions):
        return None
    return HALVES.get(outcome.session.key.rdtype)


def _leg(cause: Cause) -> str:
    """What was lost there: for most causes it can only be one thing, else the cause says it."""
    legs = LEGS[cause.code]
    if len(legs) == 1 or cause.leg is None:
        return legs[0]
    return LABELS[cause.leg]


def _unanswered_queries(outcome: Outcome) -> int:
    return 1 if outcome.session.connecting else outcome.attempts - len(outcome.session.replies.transmissions)


def _dropped_replies(outcome: Outcome) -> int:
    replies = outcome.session.replies.transmissions
    return sum(outcome.node_state.died(reply, outcome.client_netns) is not None for reply in replies)


def _unanswered_exchanges(outcome: Outcome) -> int:
    return sum(not exchange.replies.transmissions for exchange in outcome.exchanges)


COUNTS = {"query": _unanswered_queries, "reply": _dropped_replies, "upstream": _unanswered_exchanges}
