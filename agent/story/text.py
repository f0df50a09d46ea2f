"""Text for terminals: nothing in it steers them, and it fits."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.evidence import duration_words
from agent.export.clock import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_CHARACTERS = 1000
"""Of one name or sentence of a line. Those that dnstrail writes are shorter."""
MAX_SECONDS = 1e9
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d\.\d{3})\d*Z")
RESET = "\033[0m"


class Look(NamedTuple):
    """What the reader's terminal can show."""

    width: int | None = None
    """Columns; None: lines are as long as they are."""
    colour: bool = False
    boxes: bool = True
    """Whether the encoding has the characters of which arrows are made."""


class Piece(NamedTuple):
    """A part of a row that is not broken, and its colour (ECMA-48 8.3.117)."""

    text: str
    colour: str = ""


def shown(text: str) -> str:
    """Text of a line as a terminal may get it: what could steer it is escaped, as Python does; the rest is cut."""
    text = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def time_words(time: str) -> str:
    """`2026-11-28 08:36:17.123 UTC`; what is no time as it is."""
    found = _TIME.fullmatch(time)
    return f"{found[1]} {found[2]} UTC" if found else shown(time)


def seconds_words(seconds: float) -> str:
    """A duration for a sentence."""
    return duration_words(round(min(max(seconds, 0.0), MAX_SECONDS) * SECOND_NS))


def number(count: int, noun: str) -> str:
    """`1 lookup`, `2 lookups`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def paragraph(text: str, look: Look, first: str, rest: str) -> Iterator[str]:
    """Text on as many rows as it takes.

    Args:
        text: one or more sentences.
        look: how much room there is.
        first: what the first row begins with.
        rest: what the others begin with.
    """
    if look.width is None:
        yield f"{first}{text}"
        return
    yield from textwrap.wrap(
        text,
        max(look.width, len(first) + 20),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def row(pieces: Iterable[Piece], look: Look, first: str, rest: str) -> Iterator[str]:
    """Pieces on as many rows as it takes, none of them broken."""
    begun, length = first, len(first)
    filled = False
    for piece in pieces:
        if filled and look.width is not None and length + 1 + len(piece.text) > look.width:
            yield begun
            begun, length, filled = rest, len(rest), False
        space = " " if filled else ""
        begun += space + painted(piece, look)
        length += len(space) + len(piece.text)
        filled = True
    yield begun


def painted(piece: Piece, look: Look) -> str:
    """In its colour, if there are any."""
    return f"\033[{piece.colour}m{piece.text}{RESET}" if piece.colour and look.colour else piece.text
