"""The screen of `dnstrail trace`: a state that keys and lookups change, and the rows that show it. No I/O, no clock."""

from __future__ import annotations

from enum import Enum, auto
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from agent.story.drawing import drawing
from agent.story.text import Piece, painted, shown
from agent.watch import rows
from agent.watch.keys import (
    DOWN,
    END,
    ENTER,
    ERASE,
    ERASE_ALL,
    ESCAPE,
    HOME,
    PAGE_DOWN,
    PAGE_UP,
    UP,
)
from agent.watch.losses import losses
from agent.watch.words import WordsError, in_words, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.export.filters import Filter
    from agent.export.line import Line
    from agent.readers.notices import State
    from agent.story.text import Look

MAX_LINES = 2000
"""Lookups that can be scrolled back to; one takes 5 KiB."""
MAX_PROMPT = 500
REVERSE, BOLD = "7", "1"
SECOND_NS = 1_000_000_000
HELP = (
    "Keys",
    "",
    "  up, down, k, j        choose a lookup",
    "  page up, page down    a screen up or down",
    "  g, G                  the oldest, the newest",
    "  Enter                 open the chosen lookup: what happened, hop by hop",
    "  Escape                back",
    "  p, space              pause, go on",
    "  w                     the ways of messages under each lookup, or not",
    "  /                     filter: name:*.local type:AAAA status:Failed rcode:SERVFAIL cause:PolicyDrop",
    "                        namespace:shop pod:cart-* slow:100ms; a bare word is a part of names",
    "  q, Ctrl-C             end",
)


class Page(Enum):
    """What the screen shows."""

    LIST = auto()
    OPENED = auto()
    HELP = auto()
    PROMPT = auto()


class Rates(NamedTuple):
    """What the agent told last, and how many lookups there were a second before that."""

    state: State
    lookups_a_second: float | None


class View:
    """What a person sees.

    Args:
        wanted: the filter to begin with.
        is_wide: show the ways of messages.
        source: what is read from, in words.
    """

    def __init__(self, wanted: Filter, *, is_wide: bool, source: str) -> None:
        self.wanted = wanted
        self.ended = False
        self.ask: Filter | None = None
        """A new filter that the agent has to be told of."""
        self._is_wide = is_wide
        self._source = source
        self._lines: list[Line] = []
        self._behind: list[Line] = []
        """What came during a pause."""
        self._behind_lost = 0
        self._paused = False
        self._chosen: int | None = None
        """Position in the list; None: the newest, whichever that is."""
        self._opened: Line | None = None
        self._scroll = 0
        self._page = Page.LIST
        self._typed = ""
        self._trouble = ""
        self._rates: Rates | None = None
        self._height = 24
        self._total = 0

    def add(self, line: Line) -> None:
        """One more lookup, whose texts can be shown."""
        self._total += 1
        if self._paused:
            self._behind.append(line)
            if len(self._behind) > MAX_LINES:
                del self._behind[0]
                self._behind_lost += 1
            return
        self._lines.append(line)
        self._trim()

    def tell(self, state: State, lookups_a_second: float | None) -> None:
        """How the agent fares."""
        self._rates = Rates(state, lookups_a_second)

    def press(self, key: str) -> None:
        """A key was pressed."""
        if self._page is Page.PROMPT:
            self._type(key)
            return
        if self._page in (Page.OPENED, Page.HELP) and key in (ESCAPE, "q", ENTER):
            self._page = Page.LIST
            return
        action = (ACTIONS_OPENED if self._page is Page.OPENED else ACTIONS).get(key)
        if action is not None:
            action(self)

    def frame(self, width: int, height: int, look: Look) -> list[str]:
        """The rows of the screen, as many as it has, none wider than it is."""
        self._height = height
        look = look._replace(width=width)
        if height < 3 or width < 20:  # noqa: PLR2004  nothing can be shown there
            return ["dnstrail: the terminal is too small"[:width]][:height]
        body = self._body(look, height - 2)[: height - 2]
        body += [""] * (height - 2 - len(body))
        return [rows.clipped(row, width) for row in (self._head(look), *body, self._foot(look))]

    # What keys do.

    def move(self, step: int) -> None:
        """Choose another lookup, so many further down; at the end the newest is followed again."""
        if not self._lines:
            return
        last = len(self._lines) - 1
        chosen = max(0, (last if self._chosen is None else self._chosen) + step)
        self._chosen = None if chosen >= last else chosen

    def scroll(self, step: int) -> None:
        """So many rows further down in the opened lookup."""
        self._scroll = max(0, self._scroll + step)

    def page(self, direction: int) -> None:
        """A screen up or down."""
        step = direction * max(1, self._height - 4)
        if self._page is Page.OPENED:
            self.scroll(step)
        else:
            self.move(step)

    def open(self) -> None:
        """Show the chosen lookup whole."""
        if self._lines:
            self._opened = self._lines[-1 if self._chosen is None else self._chosen]
            self._page, self._scroll = Page.OPENED, 0

    def pause(self) -> None:
        """Stop showing what comes; or show what came meanwhile, and go on."""
        self._paused = not self._paused
        if not self._paused:
            self._lines += self._behind
            self._behind, self._behind_lost = [], 0
            self._trim()

    def end(self) -> None:
        """Show nothing any more."""
        self.ended = True

    def widen(self) -> None:
        """With the ways of messages, or without."""
        self._is_wide = not self._is_wide

    def help(self) -> None:
        """Show the keys."""
        self._page = Page.HELP

    def prompt(self) -> None:
        """Let a filter be typed."""
        self._page, self._typed, self._trouble = Page.PROMPT, in_words(self.wanted), ""

    def _type(self, key: str) -> None:
        if key == ESCAPE:
            self._page = Page.LIST
        elif key == ENTER:
            self._take_filter()
        elif key == ERASE:
            self._typed = self._typed[:-1]
        elif key == ERASE_ALL:
            self._typed = ""
        elif len(key) == 1 and len(self._typed) < MAX_PROMPT:
            self._typed += key

    def _take_filter(self) -> None:
        try:
            self.wanted = self.ask = parse(self._typed)
        except WordsError as error:
            self._trouble = str(error)
            return
        self._lines = [line for line in self._lines if self.wanted.wants_line(line)]
        self._behind = [line for line in self._behind if self.wanted.wants_line(line)]
        self._chosen, self._page = None, Page.LIST

    def _trim(self) -> None:
        beyond = len(self._lines) - MAX_LINES
        if beyond > 0:
            del self._lines[:beyond]
            if self._chosen is not None:
                self._chosen = max(0, self._chosen - beyond)

    # What the rows say.

    def _head(self, look: Look) -> str:
        parts = ["dnstrail trace"]
        if self._rates is None:
            parts.append("waiting for the agent")
        else:
            state, rate = self._rates
            parts.append(f"{shown(state.node)} {state.time[11:19]}")
            parts.append("" if rate is None else f"{rate:,.0f} lookups/s")
            parts.append(f"{state.open:,} open")
        parts.append(f"{self._total:,} shown" if self._total else "nothing to show yet")
        if self.wanted.is_narrow:
            parts.append(f"only {shown(in_words(self.wanted))}")
        if self._paused:
            behind = len(self._behind) + self._behind_lost
            lost = f", {self._behind_lost:,} of them lost" if self._behind_lost else ""
            parts.insert(1, f"PAUSED ({behind:,} more{lost})")
        return painted(Piece("  ".join(filter(None, parts)), BOLD), look)

    def _foot(self, look: Look) -> str:
        if self._page is Page.PROMPT:
            trouble = f"  ({shown(self._trouble)})" if self._trouble else ""
            return f"filter: {self._typed}_{trouble}"
        missing = losses(self._rates.state) if self._rates else ""
        return painted(Piece(f"? keys  q end  {self._source}  {missing}".rstrip(), REVERSE), look)

    def _body(self, look: Look, height: int) -> list[str]:
        if self._page is Page.HELP:
            return list(HELP)
        if self._page is Page.OPENED and self._opened is not None:
            told = list(rows.detail(self._opened, look))
            self._scroll = min(self._scroll, max(0, len(told) - height))
            return told[self._scroll :]
        return [painted(Piece(rows.heading(look), BOLD), look), *self._list(look, height - 1)]

    def _list(self, look: Look, height: int) -> list[str]:
        """The lookups that fit: the newest last, or so that the chosen one is in the middle."""
        chosen = len(self._lines) - 1 if self._chosen is None else self._chosen
        after = self._blocks(range(chosen + 1, len(self._lines)), look, 0 if self._chosen is None else height // 2)
        before = self._blocks(range(chosen, -1, -1), look, height - sum(map(len, after)))
        shown_rows = [row for block in (*reversed(before), *after) for row in block]
        return shown_rows[-height:] if self._chosen is None else shown_rows[:height]

    def _blocks(self, positions: range, look: Look, room: int) -> list[list[str]]:
        """Of these lookups as many as fit, each with its rows."""
        blocks: list[list[str]] = []
        for position in islice(positions, max(0, room)):
            block = list(self._block(position, look))
            if len(block) > room and blocks:
                break
            room -= len(block)
            blocks.append(block)
        return blocks

    def _block(self, position: int, look: Look) -> Iterator[str]:
        line = self._lines[position]
        is_chosen = position == (len(self._lines) - 1 if self._chosen is None else self._chosen)
        if is_chosen and look.colour:
            text = rows.row(line, look._replace(colour=False))
            yield painted(Piece(rows.fit(text, look.width or 0, look), REVERSE), look)
        elif is_chosen:
            yield f"> {rows.row(line, look._replace(width=(look.width or 0) - 2))}"
        else:
            yield rows.row(line, look)
        if self._is_wide:
            yield from drawing(line, look)


def _moves(step: int) -> Callable[[View], None]:
    return lambda view: view.move(step)


def _scrolls(step: int) -> Callable[[View], None]:
    return lambda view: view.scroll(step)


ACTIONS: dict[str, Callable[[View], None]] = {
    UP: _moves(-1),
    "k": _moves(-1),
    DOWN: _moves(1),
    "j": _moves(1),
    HOME: _moves(-MAX_LINES),
    "g": _moves(-MAX_LINES),
    END: _moves(MAX_LINES),
    "G": _moves(MAX_LINES),
    PAGE_UP: lambda view: view.page(-1),
    PAGE_DOWN: lambda view: view.page(1),
    ENTER: View.open,
    "p": View.pause,
    " ": View.pause,
    "w": View.widen,
    "/": View.prompt,
    "f": View.prompt,
    "?": View.help,
    "h": View.help,
    "q": View.end,
}
ACTIONS_OPENED: dict[str, Callable[[View], None]] = {
    UP: _scrolls(-1),
    "k": _scrolls(-1),
    DOWN: _scrolls(1),
    "j": _scrolls(1),
    HOME: _scrolls(-1_000_000),
    "g": _scrolls(-1_000_000),
    PAGE_UP: lambda view: view.page(-1),
    PAGE_DOWN: lambda view: view.page(1),
    " ": lambda view: view.page(1),
    "?": View.help,
}
