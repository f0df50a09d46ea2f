"""What the rules conclude, as values. Sentences are made of it last, where they are shown."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import CAUSES, LEG_WORDS, CauseText
from agent.explain.evidence import place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.session.outcome import Leg, PacketDrop


class Confidence(StrEnum):
    """How far the evidence excludes other causes."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


HIGH, MEDIUM, LOW = Confidence
CONFIDENCE_WORDS = {
    HIGH: "the evidence leaves no other cause",
    MEDIUM: "the evidence speaks for it, and other causes are possible",
    LOW: "the evidence is weak, and other causes are as possible",
}
"""For sentences."""


class Cause(NamedTuple):
    """Why a lookup failed or lost an attempt, and what that rests on."""

    code: str
    confidence: Confidence
    evidence: list[str]
    words: CauseText
    facts: Mapping[str, object]
    """What fills the gaps of the words."""
    leg: Leg | None = None
    """Where the message was that was lost; None where the code says so, or no message was lost."""
    drop: PacketDrop | None = None
    """The drop that it rests on, if it rests on one."""

    @property
    def text(self) -> str:
        """The sentence."""
        return self.words.sentence.format(**self.facts)

    @property
    def remedy(self) -> str:
        """What to do."""
        return self.words.remedy.format(**self.facts)

    @property
    def doc(self) -> str:
        """Where the code is explained."""
        return f"docs/causes.md#{self.code.lower()}"


class Verdict(NamedTuple):
    """What is said about a session beside its status."""

    cause: Cause | None
    findings: list[str]
    remarks: list[str]
    """Sentences of those findings that have more to say than their name."""


def make_cause(
    code: str,
    confidence: Confidence,
    evidence: list[str],
    *,
    drop: PacketDrop | None = None,
    leg: Leg | None = None,
    words: CauseText | None = None,
    **facts: object,
) -> Cause:
    """A cause.

    Args:
        code: A key of `CAUSES`.
        confidence: How sure it is.
        evidence: What was seen, a sentence each.
        drop: What it rests on; fills the gaps `message` and `place`.
        leg: Where it was lost, without a drop; fills the gap `message`.
        words: Instead of those of the code.
        facts: What fills the other gaps.
    """
    if drop is not None:
        leg = drop.leg
        facts = {"place": place(drop.hop), **facts}
    if leg is not None:
        facts = {"message": LEG_WORDS[leg], **facts}
    return Cause(code, confidence, evidence, words or CAUSES[code], facts, leg, drop)
