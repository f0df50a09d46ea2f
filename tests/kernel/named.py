"""One dnstrail for many tests: each asks for a name of its own and finds its session lines by it."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agent.lab import wait_until
from tests.kernel.conftest import LINE_SECONDS, Line, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_numbers = itertools.count(1)


@contextmanager
def watching(folder: Path, *options: str) -> Iterator[Watch]:
    """A dnstrail that must neither complain nor fail, whatever it sees."""
    watch = Watch(folder, "--log-rate", "1000000", *options)
    try:
        yield watch
    finally:
        said = watch.stop()
    assert "Traceback" not in said
    assert watch.process.returncode == 0


def new_name(word: str) -> str:
    """A name that nobody else asks for; its first label tells the scripted server what to do."""
    return f"{word}.n{next(_numbers)}-{os.getpid()}.test"


def of_name(watch: Watch, name: str) -> list[Line]:
    """The complete lines so far about a name, whatever the resolver put before or behind it."""
    return [line for line in containing(watch, name) if name in _asked(line)]


def containing(watch: Watch, text: str) -> list[Line]:
    """The complete lines so far that contain this text; the others, of which some are long, are not even parsed."""
    written = watch.out.read_text()
    lines = written[: written.rfind("\n") + 1].splitlines()
    return [line for line in map(json.loads, (one for one in lines if text in one)) if "Kind" not in line]


def _asked(line: Line) -> str:
    return (line["Question"] or {}).get("Name", "")


def wait_for(watch: Watch, name: str, count: int = 1, seconds: float = LINE_SECONDS) -> list[Line]:
    """The lines about a name once there are so many, and no more."""
    return wait_for_lines(watch, lambda: of_name(watch, name), name, count, seconds)


def wait_for_lines(
    watch: Watch, find: Callable[[], list[Line]], what: str, count: int = 1, seconds: float = LINE_SECONDS
) -> list[Line]:
    """The lines that `find` returns once there are so many, and no more."""
    wait_until(lambda: len(find()) >= count or not _alive(watch), f"{count} lines about {what}", seconds=seconds)
    assert _alive(watch), f"dnstrail ended: {watch.diagnostics()}"
    lines = find()
    assert len(lines) == count, [(line["Question"], line["Client"], line["Server"]) for line in lines]
    return lines


def _alive(watch: Watch) -> bool:
    return watch.process.poll() is None


def masks(line: Line) -> tuple[str, int, int]:
    """Status, BitMap, PathBitMap."""
    return line["Status"], line["BitMap"], line["PathBitMap"]


def payloads(line: Line) -> dict[str, list[dict[str, Any]]]:
    """The DNS messages of a line by dnstap type, in the order of time."""
    found: dict[str, list[dict[str, Any]]] = {}
    for message in line["Messages"]:
        found.setdefault(message["type"], []).append(message.get("query_message") or message["response_message"])
    return found
