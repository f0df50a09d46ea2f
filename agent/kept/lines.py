"""Session lines read back. Pure: bytes in, lines out, and a count of what is none."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from agent.export.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MAX_LINE_BYTES = 32 << 20
"""Longer than any line that is written: a zone transfer of 16 messages has about 10 MiB."""
_DECODER = msgspec.json.Decoder(Line)


class Unread(StrEnum):
    """Why a line of the input is no session line."""

    WITHOUT_JSON = "without JSON"
    DAMAGED = "cut off or damaged"
    OTHER_KIND = "of another kind"
    TOO_LONG = f"longer than {MAX_LINE_BYTES >> 20} MiB"


def read_line(text: bytes) -> Line | Unread:
    """One line of the input, without its line feed.

    What log tools put before the line is left out: `kubectl logs --prefix` and `--timestamps`, journals. Fields that
    are not known are left out too: a newer dnstrail may have written the line.
    """
    if len(text) > MAX_LINE_BYTES:
        return Unread.TOO_LONG
    begin = text.find(b"{")
    if begin < 0:
        return Unread.WITHOUT_JSON
    try:
        return _DECODER.decode(memoryview(text)[begin:])
    except msgspec.ValidationError:
        return Unread.OTHER_KIND
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unread.DAMAGED


class KeptLines:
    """Reads the lines of one input after another, and counts what it could not read.

    Args:
        take_other: is given lines of another kind, from their first brace; says whether it can use them.
    """

    def __init__(self, take_other: Callable[[bytes], bool] | None = None) -> None:
        self._take_other = take_other
        self.read = 0
        """Session lines."""
        self.unread: dict[Unread, int] = {}
        self._first: dict[Unread, str] = {}

    def lines(self, title: str, texts: Iterable[bytes]) -> Iterator[Line]:
        """The session lines of one input.

        Args:
            title: what people call that input.
            texts: its lines, with or without their line feeds. Blank ones hold nothing and are not counted.
        """
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                continue
            found = read_line(text)
            if found is Unread.OTHER_KIND and self._take_other and self._take_other(text[text.find(b"{") :]):
                continue
            if isinstance(found, Unread):
                self._count(found, f"line {number} of {title}")
            else:
                self.read += 1
                yield found

    def _count(self, why: Unread, place: str) -> None:
        self.unread[why] = self.unread.get(why, 0) + 1
        self._first.setdefault(why, place)

    def in_words(self) -> str:
        """What was not read, and where it begins; empty if everything was."""
        if not self.unread:
            return ""
        count = sum(self.unread.values())
        parts = [f"{self.unread[why]} {why} (first: {self._first[why]})" for why in Unread if why in self.unread]
        return (
            f"{count} {'line is no session line' if count == 1 else 'lines are no session lines'}: {', '.join(parts)}"
        )
