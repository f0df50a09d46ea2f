"""Text on stdout: what its reader can be shown, and rows in the encoding that it has."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from agent.process import wants_colour
from agent.story.drawing import BOXES
from agent.story.text import Look

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

MAX_WIDTH = 120
"""Longer rows are hard to read."""


def look_of(out: TextIO, environment: Mapping[str, str], colour: str) -> Look:
    """What the reader can be shown. Only for a terminal, or a width that the user has set, rows are broken."""
    terminal = out.isatty()
    known = terminal or environment.get("COLUMNS", "").isdecimal()
    width = min(shutil.get_terminal_size().columns, MAX_WIDTH) if known else None
    return Look(width, wants_colour(environment, terminal=terminal, choice=colour), _can_show("".join(BOXES), out))


def _can_show(text: str, out: TextIO) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def encodable(text: str, encoding: str) -> str:
    """What the encoding does not have is escaped."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def write(text: str, out: TextIO) -> None:
    """A row; what the encoding does not have is escaped."""
    out.write(f"{encodable(text, out.encoding or 'ascii')}\n")
