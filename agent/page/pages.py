"""What the page is made of, by path: files, what goes on as a stream, and problems that are asked for.

All of it runs in the thread of the HTTP server.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import msgspec

from agent import __version__
from agent.export.clock import SECOND_NS, rfc3339, wall_offset_ns
from agent.export.metrics.pages import FRESH_SECONDS, JSON, OK, PLAIN, UNAVAILABLE, Page
from agent.export.printer import RateLimit
from agent.page.diagram import diagram_of
from agent.page.rows import row_of
from agent.page.state import State, incidents_of, legs_of, picture_now, problems_of
from agent.serve import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from agent.export.metrics.sources import Sources
    from agent.page.watcher import Watcher
    from agent.serve import Request

ASSETS = Path(__file__).with_name("assets")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HOME = "page.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only files of the agent itself, and no text ever becomes markup."""
EVENTS = "text/event-stream; charset=utf-8"
STEP_SECONDS = 1.0
"""From one state to the next."""
RETRY = b"retry: 2000\n\n"
"""After so many milliseconds a browser asks again for a stream that ended."""
MAX_ROWS = 250
"""Of one answer."""
ASKED_A_SECOND = 10
"""Answers with problems, for all who ask together: each takes a few milliseconds."""
NOT_FOUND, BAD = 404, 400


class Node(NamedTuple):
    """What the page says of the agent."""

    name: str
    names: str
    """How names of lookups are shown: names or redacted."""


class PrivatePages:
    """Makes the answers.

    Args:
        sources: What the agent tells of itself.
        watcher: What it keeps for the page.
        node: Whose page it is.
        clock: Seconds that only grow, those of the event loop.
    """

    def __init__(
        self, sources: Sources, watcher: Watcher, node: Node, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._watcher = watcher
        self._node = node
        self._clock = clock
        self._files = {path.name: Page(OK, TYPES[path.suffix], path.read_bytes(), POLICY) for path in files()}
        self._state: tuple[float, bytes] = (float("-inf"), b"")
        self._limit = RateLimit(ASKED_A_SECOND)

    @property
    def by_path(self) -> Mapping[str, Callable[[Request], Page | Stream]]:
        """What answers for each path."""
        answers: dict[str, Callable[[Request], Page | Stream]] = {
            f"/page/{name}": partial(self._file, name) for name in self._files if name != HOME
        }
        return answers | {
            "/": partial(self._file, HOME),
            "/page/events": self._events,
            "/page/state": self._state_page,
            "/page/lookups": self._lookups,
            "/page/lookup": self._lookup,
        }

    def _file(self, name: str, _request: Request) -> Page:
        return self._files[name]

    def _events(self, _request: Request) -> Stream:
        return Stream(OK, EVENTS, self._parts)

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        yield RETRY
        while True:
            yield b"event: state\ndata: " + self.state() + b"\n\n"
            await asyncio.sleep(STEP_SECONDS)

    def _state_page(self, _request: Request) -> Page:
        return Page(OK, JSON, self.state())

    def state(self) -> bytes:
        """What goes on, as JSON; a second old at most, however many ask."""
        now = self._clock()
        made, text = self._state
        if now - made >= FRESH_SECONDS:
            text = msgspec.json.encode(self._now(round(now * SECOND_NS)))
            self._state = (now, text)
        return text

    def _now(self, now_ns: int) -> State:
        watcher, agent = self._watcher, self._sources.agent
        return State(
            node=self._node.name,
            version=__version__,
            time=rfc3339(now_ns + wall_offset_ns()),
            names=self._node.names,
            waiting=self._sources.waiting_for(),
            limits=[] if agent is None else list(agent.capture.limits),
            lost_records=0 if agent is None else agent.capture.losses.total,
            going=incidents_of(watcher.going),
            ended=incidents_of(watcher.ended),
            left_out=watcher.left_out,
            picture=picture_now(watcher, now_ns),
            legs=legs_of(watcher),
            problems=problems_of(watcher),
        )

    def _lookups(self, request: Request) -> Page:
        """Problems as rows, the newest first: those older than `before`, if that is given."""
        try:
            before = _number(request, "before")
        except ValueError as error:
            return _words(BAD, str(error))
        if not self._limit.passes(time.monotonic()):
            return _busy()
        rows = [row_of(kept) for kept in self._watcher.memory.newest(before, MAX_ROWS)]
        return Page(OK, JSON, msgspec.json.encode(rows))

    def _lookup(self, request: Request) -> Page:
        """One problem as a picture."""
        try:
            serial = _number(request, "serial")
        except ValueError as error:
            return _words(BAD, str(error))
        if not self._limit.passes(time.monotonic()):
            return _busy()
        kept = None if serial is None else self._watcher.memory.find(serial)
        if kept is None:
            return _words(NOT_FOUND, "this lookup is not kept any more: newer ones took its room")
        return Page(OK, JSON, msgspec.json.encode(diagram_of(kept)))


def files() -> list[Path]:
    """Those that the page consists of."""
    return sorted(path for path in ASSETS.iterdir() if path.suffix in TYPES)


def _number(request: Request, name: str) -> int | None:
    """A number of the query; None if it is not there.

    Raises:
        ValueError: It is none.
    """
    (text, *_) = parse_qs(request.query, max_num_fields=8).get(name, [""])
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16):  # noqa: PLR2004  more is no serial number
        raise ValueError(f"{name} is a whole number")
    return int(text)


def _busy() -> Page:
    return _words(UNAVAILABLE, "too much is asked at once: ask again in a second")


def _words(status: int, text: str) -> Page:
    return Page(status, PLAIN, f"{text}\n".encode())
