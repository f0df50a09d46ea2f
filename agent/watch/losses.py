"""What is missing of the lookups that are shown, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.readers.notices import State

LOSSES = (
    ("lost_records", "lost records"),
    ("passed_over", "healthy ones only counted"),
    ("held", "beyond the limit"),
    ("dropped", "dropped: reader too slow"),
)
"""Fields of `State` and what they are called."""


def losses(state: State, before: State | None = None) -> str:
    """What was lost or left out since an earlier state, or at all; empty for nothing."""
    now = ((words, getattr(state, field) - (getattr(before, field) if before else 0)) for field, words in LOSSES)
    return ", ".join(f"{words}: {number:,}" for words, number in now if number)
