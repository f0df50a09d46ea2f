"""Records that are missing: why nothing is said of how a lookup ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.causes import BYTES_MISSING, CAPTURE_ENDED, RECORDS_LOST, REPLY_CUT, TOO_MANY_OPEN, TOO_MANY_PACKETS
from agent.explain.verdict import HIGH, MEDIUM, Cause, make_cause
from agent.session.model import SECOND_NS
from agent.session.outcome import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.explain.causes import Gap
    from agent.explain.rule_input import RuleInput


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
    (lambda outcome: outcome.session.bytes_missing, BYTES_MISSING),
    (lambda outcome: outcome.session.reply_cut, REPLY_CUT),
    (lambda outcome: outcome.lossy, RECORDS_LOST),
    (lambda outcome: outcome.session.evicted, TOO_MANY_OPEN),
    (lambda outcome: outcome.session.overflowed, TOO_MANY_PACKETS),
    (lambda _outcome: True, CAPTURE_ENDED),
)
"""The first that holds is the sentence."""
GAP_EVIDENCE: tuple[tuple[Callable[[Outcome], bool], str], ...] = (
    (
        lambda outcome: outcome.session.bytes_missing,
        "bytes of its TCP connection were acknowledged, or later ones arrived, and they were not captured",
    ),
    (
        lambda outcome: outcome.lossy and not outcome.session.bytes_missing,
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
