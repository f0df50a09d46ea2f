"""What the rules say."""

from __future__ import annotations

from typing import NamedTuple

from agent.explain.causes import CAUSES


class Cause(NamedTuple):
    """A verdict, and what it rests on."""

    code: str
    confidence: str
    """high, medium or low."""
    text: str
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
    remarks: list[str]
    """Sentences of those findings that have more to say than their name."""


def say(code: str, confidence: str, evidence: list[str], **found: object) -> Cause:
    """A cause in its own words; `found` fills the gaps of its texts."""
    text = CAUSES[code]
    return Cause(code, confidence, text.sentence.format(**found), evidence, text.remedy.format(**found))
