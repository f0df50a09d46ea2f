"""`dnstrail trace`: the lookups of this node while they happen, on a screen, or as rows where there is none."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent.export.filters import Filter
from agent.export.line import Line
from agent.process import log, wants_colour
from agent.readers.notices import State, is_notice
from agent.readers.requests import Wanted
from agent.story.drawing import drawing
from agent.watch import rows
from agent.watch.keys import REDRAW
from agent.watch.live import TICK_SECONDS, Clock, Rate, checked, follow, received
from agent.watch.losses import losses
from agent.watch.out import look_of, write
from agent.watch.screen import Screen, is_usable
from agent.watch.source import Source, message
from agent.watch.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.story.text import Look

DRAW_SECONDS = 0.1
"""The screen is drawn so often at most."""
SAY_SECONDS = 10.0
"""What is missing is said so often at most, beside rows."""
SCREENS = ("table", "wide")
HEALTHY_A_SECOND = 100
"""On a screen, unless there is a filter: nobody reads more, and each costs the agent a session and a line."""


class Options(NamedTuple):
    """What the user asked for."""

    wanted: Filter = Filter()
    output: str = "table"
    colour: str = "auto"
    socket: str = ""
    """Where the agent listens; empty to capture without it."""
    duration_seconds: float | None = None
    lookups: int | None = None
    """To end after so many."""
    healthy_a_second: int | None = None
    """So many lookups that succeeded are shown a second at most; None for what suits the output."""
    ends_with_stdin: bool = False
    """Beside rows: whether it ends when the other end of stdin is closed."""


def trace(options: Options) -> int:
    """Show lookups until told to stop.

    Returns:
        0; 1 if there is nothing to read from, or not any more.
    """
    on_screen = options.output in SCREENS and is_usable(os.environ)
    wanted = _wanted(options, options.wanted, on_screen=on_screen)
    return follow(options.socket, wanted, partial(_on_screen if on_screen else _as_rows, options), is_quiet=on_screen)


def _wanted(options: Options, lookups: Filter, *, on_screen: bool) -> Wanted:
    """What the agent is asked for."""
    healthy = options.healthy_a_second
    if healthy is None and on_screen and lookups == Filter():
        healthy = HEALTHY_A_SECOND
    return Wanted(lookups, messages=options.output == "json", healthy_a_second=healthy)


def _on_screen(options: Options, source: Source) -> None:
    view = View(
        options.wanted,
        is_wide=options.output == "wide",
        source="own capture" if source.is_own else "the agent of this node",
    )
    colour = wants_colour(os.environ, terminal=True, choice=options.colour)
    look = look_of(sys.stdout, os.environ, options.colour)._replace(colour=colour)
    clock, rate, drawn, shown = Clock(options.duration_seconds), Rate(), 0.0, 0
    with Screen() as screen:
        screen.listen(source)
        while not (view.ended or screen.is_over) and clock.left > 0 and shown != options.lookups:
            ready = screen.wait(min(TICK_SECONDS, clock.left))
            for key in screen.pressed(ready):
                if key == REDRAW:
                    screen.spoil()
                view.press(key)
            if source.fileno() in ready:
                for text in source.receive():
                    shown += _take(view, text, rate)
                    if shown == options.lookups:
                        break
            if view.ask is not None:
                source.ask(_wanted(options, view.ask, on_screen=True))
                view.ask = None
            if ready or time.monotonic() - drawn > DRAW_SECONDS:
                drawn = _draw(screen, view, look, drawn)


def _draw(screen: Screen, view: View, look: Look, drawn: float) -> float:
    """Draw, unless that was done a moment ago; when it was done last."""
    now = time.monotonic()
    if now - drawn < DRAW_SECONDS / 2:
        return drawn
    screen.draw(view.frame(*screen.size, look))
    return now


def _take(view: View, text: bytes, rate: Rate) -> int:
    """Take in a message; how many lookups that was."""
    found = checked(message(text))
    if isinstance(found, State):
        view.tell(found, rate.of(found, time.monotonic()))
    elif isinstance(found, Line):
        view.add(found)
        return 1
    return 0


def _as_rows(options: Options, source: Source) -> None:
    look = look_of(sys.stdout, os.environ, options.colour)
    in_form = FORMS[options.output]
    clock, told, shown = Clock(options.duration_seconds), Told(), 0
    if options.output in SCREENS:
        write(rows.heading(look._replace(width=None)), sys.stdout)
        sys.stdout.flush()
    try:
        while clock.left > 0 and shown != options.lookups:
            for text in received(source, clock, ends_with_stdin=options.ends_with_stdin):
                if is_notice(text):
                    told.note(text)
                    continue
                for row in in_form(text, look):
                    write(row, sys.stdout)
                shown += 1
                if shown == options.lookups:
                    break
            sys.stdout.flush()
    finally:
        told.say()


class Told:
    """Says on stderr what is missing of the rows."""

    def __init__(self) -> None:
        self._first: State | None = None
        self._last: State | None = None
        self._said: State | None = None
        self._said_at = time.monotonic()

    def note(self, text: bytes) -> None:
        """Take in a notice."""
        found = checked(message(text))
        if not isinstance(found, State):
            return
        # Records that were lost before are nothing to these rows.
        self._first = self._first or found
        self._said = self._said or self._first
        self._last = found
        if time.monotonic() - self._said_at > SAY_SECONDS:
            self.say()

    def say(self) -> None:
        """What there is to say since it was said last."""
        if self._last is None:
            return
        missing = losses(self._last, self._said)
        self._said, self._said_at = self._last, time.monotonic()
        if missing:
            log(f"not all lookups are shown: {missing}")


def _readable(text: bytes) -> Line | None:
    found = checked(message(text))
    return found if isinstance(found, Line) else None


def _json(text: bytes, _look: Look) -> Iterator[str]:
    """The line as it is; what could steer a terminal is written in JSON's own way."""
    line = text.decode(errors="replace")
    if not line.isprintable():
        line = "".join(char if char.isprintable() else _escaped(char) for char in line)
    yield line


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _formed(make: Callable[[Line, Look], Iterator[str]]) -> Callable[[bytes, Look], Iterator[str]]:
    def form(text: bytes, look: Look) -> Iterator[str]:
        line = _readable(text)
        if line is not None:
            yield from make(line, look)

    return form


def _row(line: Line, look: Look) -> Iterator[str]:
    yield rows.row(line, look._replace(width=None))


def _wide(line: Line, look: Look) -> Iterator[str]:
    yield rows.row(line, look._replace(width=None))
    yield from drawing(line, look)


FORMS: dict[str, Callable[[bytes, Look], Iterator[str]]] = {
    "json": _json,
    "table": _formed(_row),
    "wide": _formed(_wide),
    "detail": _formed(rows.detail),
}
