"""`dnstrail top`: what goes wrong now, or went wrong in files of session lines, and for whom."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from agent.capturefile.inputs import InputError
from agent.export.filters import Filter
from agent.export.line import Line
from agent.kept.incidents import KeptIncidents
from agent.kept.inputs import LineInputs
from agent.kept.lines import KeptLines
from agent.process import abandon_stdout, log, wants_colour
from agent.readers.notices import Incidents, State
from agent.readers.requests import Wanted
from agent.story.problems import bound, make_showable
from agent.story.text import Look, time_words
from agent.watch.board import Board, rows
from agent.watch.keys import ESCAPE, REDRAW
from agent.watch.live import FAILED, TICK_SECONDS, Clock, Rate, checked, follow, received
from agent.watch.losses import losses
from agent.watch.out import look_of, write
from agent.watch.screen import Screen, is_usable
from agent.watch.source import Source, SourceError, message
from agent.watch.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Iterable

USAGE, INTERRUPTED = 2, 130
ONCE_SECONDS = 1.0
REFRESH_SECONDS = 1.0
STATE_SECONDS = 90.0
"""So long the first word of an agent is waited for: one's own has a program to compile."""


class Options(NamedTuple):
    """What the user asked for."""

    files: tuple[str, ...] = ()
    """Without any it is about what happens now."""
    wanted: Filter = Filter()
    once: bool = False
    colour: str = "auto"
    socket: str = ""
    duration_seconds: float | None = None


def top(options: Options) -> int:
    """Show it.

    Returns:
        0; 1 if there is nothing to read from, or a file is damaged; 2 if a file cannot be opened; 130 after Ctrl-C
        while files were read.
    """
    return _of_files(options) if options.files else _of_now(options)


def _of_files(options: Options) -> int:
    try:
        inputs = LineInputs(options.files)
    except InputError as error:
        log(str(error))
        return USAGE
    troubles, incidents, interrupted = Troubles(), KeptIncidents(), False
    reader = KeptLines(incidents.take)
    with inputs:
        try:
            for source in inputs.all:
                for line in reader.lines(source.title, source.lines()):
                    if options.wanted.wants_line(line):
                        bound(line)
                        troubles.add(line)
        except KeyboardInterrupt:
            interrupted = True
    going = incidents.going()
    for incident in going:
        make_showable(incident)
    title = f"dnstrail top  {len(options.files):,} {'file' if len(options.files) == 1 else 'files'}"
    since = f"in these lines; {troubles.fine:,} went well"
    _print(Board(title, going, 0, troubles, since), options)
    if reader.unread:
        log(reader.in_words())
    broken = [source for source in inputs.all if source.error]
    for source in broken:
        log(f"{source.title}: {source.error}")
    return FAILED if broken else INTERRUPTED if interrupted else 0


def _of_now(options: Options) -> int:
    on_screen = not options.once and is_usable(os.environ)
    wanted = Wanted(options.wanted, problems=True, incidents=True)
    return follow(options.socket, wanted, partial(_on_screen if on_screen else _once, options), is_quiet=on_screen)


class Now:
    """What is known at the moment."""

    def __init__(self) -> None:
        self._troubles = Troubles()
        self._incidents = Incidents([], 0)
        self.knows_incidents = False
        self._first: State | None = None
        self._state: State | None = None
        self._rate = Rate()
        self._lookups_a_second: float | None = None

    @property
    def has_state(self) -> bool:
        """Whether the agent has said anything yet."""
        return self._state is not None

    def take(self, texts: Iterable[bytes]) -> None:
        """Take in what the agent sent."""
        for text in texts:
            found = checked(message(text))
            if isinstance(found, Line):
                self._troubles.add(found)
            elif isinstance(found, Incidents):
                self._incidents, self.knows_incidents = found, True
            elif isinstance(found, State):
                self._first = self._first or found
                self._state, self._lookups_a_second = found, self._rate.of(found, time.monotonic())

    def board(self) -> Board:
        """What there is to show."""
        state = self._state
        if state is None or self._first is None:
            return Board("dnstrail top  waiting for the agent", None, 0, self._troubles, "so far")
        rate = "" if self._lookups_a_second is None else f"  {self._lookups_a_second:,.0f} lookups/s"
        title = f"dnstrail top  {state.node} {time_words(state.time)}{rate}  {state.open:,} open"
        return Board(
            title,
            self._incidents.open if self.knows_incidents else None,
            self._incidents.left_out,
            self._troubles,
            f"since {self._first.time[11:19]}, when this began to look",
            losses(state, self._first),
        )


def _on_screen(options: Options, source: Source) -> None:
    colour = wants_colour(os.environ, terminal=True, choice=options.colour)
    look = look_of(sys.stdout, os.environ, options.colour)._replace(colour=colour)
    now, clock, drawn, ended = Now(), Clock(options.duration_seconds), 0.0, False
    with Screen() as screen:
        screen.listen(source)
        while not (ended or screen.is_over) and clock.left > 0:
            ready = screen.wait(min(TICK_SECONDS, clock.left))
            for key in screen.pressed(ready):
                if key == REDRAW:
                    screen.spoil()
                ended |= key in ("q", ESCAPE)
            if source.fileno() in ready:
                now.take(source.receive())
            if time.monotonic() - drawn >= REFRESH_SECONDS or screen.is_spoilt:
                drawn = time.monotonic()
                width, height = screen.size
                screen.draw(rows(now.board(), look._replace(width=width), height))


def _once(options: Options, source: Source) -> None:
    now, first_word = Now(), Clock(STATE_SECONDS)
    while not (now.has_state and now.knows_incidents) and first_word.left > 0:
        now.take(received(source, first_word))
    if not now.has_state:
        raise SourceError(f"the agent has said nothing for {STATE_SECONDS:.0f} s")
    clock = Clock(options.duration_seconds or ONCE_SECONDS)
    while clock.left > 0:
        now.take(received(source, clock))
    _print(now.board(), options)


def _print(board: Board, options: Options) -> None:
    look: Look = look_of(sys.stdout, os.environ, options.colour)
    try:
        for row in rows(board, look._replace(width=None)):
            write(row, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
