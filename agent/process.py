"""What every command needs of its process: words on stderr, quiet ends, a garbage collector that keeps still."""

from __future__ import annotations

import gc
import os
import sys


def say(text: str) -> None:
    """Diagnostics go to stderr: stdout carries data only."""
    print(f"dnstrail: {text}", file=sys.stderr, flush=True)


def abandon_stdout() -> None:
    """The reader of our lines is gone: nothing left to do, and nothing to complain about."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def spare_the_collector() -> None:
    """Keep the cyclic garbage collector from walking every open session again and again.

    The hot path makes no reference cycles, so reference counts free what it drops; the few others (exceptions) are
    collected now and then by the caller.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
