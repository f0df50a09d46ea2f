"""What every command needs of its process: words on stderr, quiet ends, a garbage collector that keeps still."""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import sys
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

TERMINATION_LOG = "/dev/termination-log"
"""terminationMessagePath of a container in Kubernetes, unless it says otherwise."""
MAX_CHARACTERS = 1000
"""Of one diagnostic. It fits into a pipe that has room for anything (PIPE_BUF)."""


def log(text: str) -> None:
    """Diagnostics go to stderr: stdout carries data only. One line, cut if need be; lost if nobody reads them."""
    line = f"dnstrail: {' '.join(text.splitlines())}"[:MAX_CHARACTERS]
    if _stderr_takes_more():
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def _stderr_takes_more() -> bool:
    """Whether a write returns at once: capture must not wait for a reader."""
    try:
        descriptor = sys.stderr.fileno()
    except OSError:
        return True  # no file: it is kept in memory
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))


def tell_kubelet(error: str, place: str = TERMINATION_LOG) -> None:
    """Say in the status of the container why it ends, where a kubelet has made a file for that.

    The last lines of the log, which the kubelet could take instead, are about lookups of others.
    """
    with suppress(OSError):
        descriptor = os.open(place, os.O_WRONLY | os.O_TRUNC)  # not created: elsewhere nobody reads it
        with os.fdopen(descriptor, "w") as file:
            file.write(error[:MAX_CHARACTERS])


def wants_colour(environment: Mapping[str, str], *, terminal: bool, choice: str = "auto") -> bool:
    """Only for a terminal that can, and a user who has not said no (no-color.org: unset or empty).

    Args:
        environment: the variables of the process.
        terminal: whether that is what the text goes to.
        choice: what the user said for this command: auto, always or never.
    """
    if choice != "auto":
        return choice == "always"
    return terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


def abandon_stdout() -> None:
    """The reader of our lines is gone: nothing left to do, and nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def arm_watchdog(seconds: float) -> None:
    """A thread of C ends the process in so long, with what every thread was at on stderr; each call begins anew.

    For loops that must go on: whoever started the process starts it again.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=_stderr_that_never_waits())


@cache
def _stderr_that_never_waits() -> int:
    """The end must come although nobody reads.

    It is opened anew, for O_NONBLOCK belongs to what others write to as well. A socket cannot be opened by its name:
    there the words wait for their reader.
    """
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    except OSError:
        return 2


def leave() -> NoReturn:
    """End the process with success, at once: to free thousands of open sessions one by one takes half a second."""
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


def freeze_gc() -> None:
    """Keep the cyclic garbage collector from walking every open session again and again.

    The hot path makes no reference cycles, so reference counts free what it drops; the few others (exceptions) are
    collected now and then by the caller.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
