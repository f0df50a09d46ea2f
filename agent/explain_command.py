"""`dnstrail explain`: session lines in, each problem told as a short story.

Nothing is told before the end of the input, because only then it is known how often a problem occurred. Ctrl-C ends it.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from agent.capturefile.inputs import STDIN, InputError
from agent.export.filters import Filter
from agent.kept.inputs import LineInputs
from agent.kept.lines import KeptLines
from agent.process import abandon_stdout, log
from agent.story.problems import Problems
from agent.story.telling import stories
from agent.watch.out import look_of, write

USAGE, PROBLEMS, INTERRUPTED = 2, 1, 130


class Options(NamedTuple):
    """What the user asked for."""

    files: tuple[str, ...] = (STDIN,)
    wanted: Filter = Filter()
    tell_all: bool = False
    colour: str = "auto"


def explain(options: Options) -> int:
    """Tell the problems of the files.

    Returns:
        0; 1 if a file is cut off, damaged or cannot be read; 2 if one cannot be opened; 130 after Ctrl-C.
    """
    try:
        inputs = LineInputs(options.files)
    except InputError as error:
        log(str(error))
        return USAGE
    problems, reader = Problems(options.wanted, tell_all=options.tell_all), KeptLines()
    with inputs:
        interrupted = _read(inputs, reader, problems)
    try:
        look = look_of(sys.stdout, os.environ, options.colour)
        for text in stories(problems, look):
            write(text, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
        return 0
    return _report(inputs, reader) or (INTERRUPTED if interrupted else 0)


def _read(inputs: LineInputs, reader: KeptLines, problems: Problems) -> bool:
    """Whether the user ended it: what was read up to then is told."""
    if any(source.is_stdin for source in inputs.all) and sys.stdin.isatty():
        log("reading session lines from the terminal; Ctrl-D ends them")
    try:
        for source in inputs.all:
            for line in reader.lines(source.title, source.lines()):
                problems.add(line)
    except KeyboardInterrupt:
        return True
    return False


def _report(inputs: LineInputs, reader: KeptLines) -> int:
    """Say what was not read; the exit code."""
    unread = reader.in_words()
    if unread:
        log(unread)
    broken = [source for source in inputs.all if source.error]
    for source in broken:
        log(f"{source.title}: {source.error}")
    return PROBLEMS if broken else 0
