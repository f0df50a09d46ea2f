"""What commands that watch have in common: when to end, how fast lookups come, what has come."""

from __future__ import annotations

import select
import signal
import sys
import time
from typing import TYPE_CHECKING

from agent.export.line import Line
from agent.process import abandon_stdout, log
from agent.readers.notices import Refused
from agent.story.problems import bound, make_showable
from agent.watch.source import Source, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.readers.notices import Notice, State
    from agent.readers.requests import Wanted

FAILED = 1
TICK_SECONDS = 0.25
"""So long at most until a key, a new size or the end is noticed."""


def end_by_signals() -> None:
    """What asks this process to end is like Ctrl-C: whatever was begun is cleared away."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def follow(socket: str, wanted: Wanted, show: Callable[[Source], None], *, is_quiet: bool) -> int:
    """Show what an agent sends, until that or its reader ends, or somebody ends this process.

    Args:
        socket: where the agent listens; empty to capture without it.
        wanted: what it is asked for.
        show: shows it.
        is_quiet: what a capture of its own says is kept from the terminal, and told if it fails.

    Returns:
        0; 1 if there is nothing to read from, or not any more.
    """
    end_by_signals()
    try:
        with Source(socket, wanted, is_quiet=is_quiet) as source:
            show(source)
    except SourceError as error:
        if str(error):
            log(str(error))
        return FAILED
    except BrokenPipeError:
        abandon_stdout()
    except KeyboardInterrupt:
        pass  # that is how it is ended
    return 0


class Clock:
    """When it is over."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return float("inf") if self._end is None else self._end - time.monotonic()


class Rate:
    """Lookups a second, from one state of the agent to the next."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def of(self, state: State, now: float) -> float | None:
        """What it is now; None if that cannot be said yet. `now` is in seconds."""
        before, self._before = self._before, (now, state.lookups)
        if before is None or now <= before[0]:
            return None
        return max(0, state.lookups - before[1]) / (now - before[0])


def checked(found: Line | Notice | None) -> Line | Notice | None:
    """A message with texts that can be shown, if the agent goes on.

    Raises:
        SourceError: It refuses to.
    """
    if isinstance(found, Line):
        bound(found)
    elif found is not None:
        make_showable(found)
    if isinstance(found, Refused):
        raise SourceError(f"the agent refuses: {found.reason}")
    return found


def received(source: Source, clock: Clock, *, ends_with_stdin: bool = False) -> Iterator[bytes]:
    """Lines, after waiting for them a little.

    Raises:
        BrokenPipeError: nobody reads stdout any more, or the other end of stdin is closed and that matters.
    """
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    poll.register(sys.stdout.fileno(), 0)  # errors alone
    if ends_with_stdin and sys.stdin is not None:
        poll.register(sys.stdin.fileno(), 0)
    ready = dict(poll.poll(max(0.0, min(TICK_SECONDS, clock.left)) * 1000))
    if ready.get(sys.stdout.fileno(), 0) & select.POLLERR:
        raise BrokenPipeError
    if ends_with_stdin and sys.stdin is not None and ready.get(sys.stdin.fileno(), 0) & select.POLLHUP:
        raise BrokenPipeError
    if source.fileno() in ready:
        yield from source.receive()
