"""One watch of the API: a list, then the changes since, for as long as it takes, in a thread of its own.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes is the contract. What can
go wrong, and what is done: the connection breaks, or nothing comes for too long: it is opened again where it was. The
API server has forgotten what happened since (410): everything is listed anew. It does not answer, or refuses: it is
asked again, less and less often. The agent does not take what is handed over: the thread waits, and with it the API
server.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, NamedTuple

import msgspec

from agent.enrich.kube.backoff import Backoff
from agent.enrich.kube.errors import GarbledError, KubeError, RefusedError, SilentError, UnreachableError
from agent.enrich.kube.health import WatchHealth
from agent.enrich.kube.lines import joined, lines
from agent.enrich.kube.mirror import Facts, Step
from agent.enrich.kube.objects import UNREADABLE, Event, Marked, Page, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.enrich.kube.client import Reply
    from agent.enrich.kube.mirror import Selection
    from agent.enrich.kube.resources import Resource
    from agent.enrich.kube.transport import Transport

BATCH = 100
"""Objects of a list in one step: what the agent's thread takes in at once."""
MAX_STEPS = 64
"""Handed over and not yet taken."""
MAX_PAGE_BYTES = 256 << 20
MAX_EVENT_BYTES = 8 << 20
"""etcd takes objects of 1.5 MiB."""
DOUBTS_UNTIL_LIST = 3
"""So many attempts to go on are answered, and not as they should be, before everything is listed anew."""
GONE, TOO_MANY_REQUESTS = 410, 429
OFFER_SECONDS = 0.2

_decode_page = msgspec.json.Decoder(Page).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_marked = msgspec.json.Decoder(Marked).decode
_decode_status = msgspec.json.Decoder(Status).decode


class Timing(NamedTuple):
    """How long things may take."""

    read_seconds: float = 30.0
    """Between two parts of a list."""
    page_seconds: float = 120.0
    """A page of a list, as a whole."""
    watch_seconds: int = 300
    """After so long, a fifth more or less, the API server ends a watch, and may put the next one elsewhere."""
    silence_seconds: float = 90.0
    """A watch in which nothing comes for so long may be dead: the API server sends bookmarks, about once a minute."""
    settled_seconds: float = 5.0
    """A watch that lasted so long, or told something, was a success."""
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0


class _Interrupted(Exception):  # noqa: N818  no error
    """Something else is wanted now, or nothing."""


class Watch(Generic[Facts]):
    """Follows one resource. `select`, `take`, `start` and `stop` are for the agent's own thread."""

    def __init__(self, resource: Resource[Facts], transport: Transport, timing: Timing) -> None:
        self.resource = resource
        self.health = WatchHealth(resource.name, required=resource.required, resource=resource.rule.resource)
        self._transport = transport
        self._timing = timing
        self._backoff = Backoff(timing.first_wait_seconds, timing.longest_wait_seconds)
        self._steps: queue.Queue[Step[Facts]] = queue.Queue(MAX_STEPS)
        self._thread = threading.Thread(target=self._run, name=f"kube-{resource.name}", daemon=True)
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._stopped = False
        self._selection: Selection | None = None
        self._reply: Reply | None = None
        # What follows belongs to the thread.
        self._version: str | None = None
        """Up to which everything was told; None when it has to be listed."""
        self._listed: Selection | None = None
        self._has_told = False
        self._doubts = 0

    def start(self) -> None:
        """Begin with what is selected, or when something is."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; a thread that does not end in time is left behind, it dies with the process."""
        self._stopped = True
        self._interrupt()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def select(self, selection: Selection | None) -> None:
        """Say what is wanted from now on; None is nothing. A list of it follows, unless it is wanted already."""
        self.health.wanted = selection is not None
        if selection == self._selection:
            return
        self._selection = selection
        self._interrupt()

    def take(self) -> Step[Facts] | None:
        """The next step; None when there is none yet."""
        try:
            return self._steps.get_nowait()
        except queue.Empty:
            return None

    def _interrupt(self) -> None:
        self._news.set()
        with self._lock:
            if self._reply is not None:
                self._reply.interrupt()

    def _run(self) -> None:
        while not self._stopped:
            selection = self._selection
            try:
                if selection is None:
                    self._rest()
                else:
                    self._follow(selection)
            except _Interrupted:
                continue
            except KubeError as error:
                self._fail(error, selection)
            except Exception as error:  # noqa: BLE001  a watch must not end by what nobody has thought of
                self._fail(KubeError(f"{type(error).__name__}: {error}"), selection)

    def _rest(self) -> None:
        """Nothing is wanted, so nothing is known."""
        self.health.connected = False
        if self._has_told:
            self._offer(Step(time.time_ns(), restart=True, complete=True))
            self._version, self._has_told = None, False
        self._news.wait()
        self._news.clear()

    def _follow(self, selection: Selection) -> None:
        if self._version is None or self._listed != selection:
            self._list(selection)
        self._watch(selection)

    def _fail(self, error: KubeError, selection: Selection | None) -> None:
        self.health.connected = False
        if self._is_outdated(selection):
            return
        self.health.failed(error)
        self._doubts += _doubts(error)
        if self._doubts >= DOUBTS_UNTIL_LIST:
            self._version, self._doubts = None, 0
        asked = error.retry_after_seconds if isinstance(error, RefusedError) else 0
        self._news.wait(max(self._backoff.next_seconds(), min(asked, self._timing.longest_wait_seconds)))
        self._news.clear()

    def _is_outdated(self, selection: Selection | None) -> bool:
        return self._stopped or self._selection != selection

    def _list(self, selection: Selection) -> None:
        """All that there is, in steps."""
        self._news.clear()
        selectors = {**self.resource.selectors(selection), "limit": str(self.resource.page)}
        query = {**selectors, "resourceVersion": "0"} if self.resource.cached and not self.health.lists else selectors
        restart = self._has_told = True
        while True:
            page = self._page(query, selection)
            facts = self._read_all(page.items or [])
            for start in range(0, max(1, len(facts)), BATCH):
                self._offer(Step(time.time_ns(), put=facts[start : start + BATCH], restart=restart))
                restart = False
            if not page.metadata.continue_:
                break
            query = {**selectors, "continue": page.metadata.continue_}
        self._offer(Step(time.time_ns(), complete=True, selection=selection))
        self._version, self._listed = page.metadata.resource_version, selection
        self.health.lists += 1

    def _page(self, query: dict[str, str], selection: Selection) -> Page:
        with self._asking(query, self._timing.read_seconds, selection) as reply:
            data = joined(reply.chunks(), MAX_PAGE_BYTES, time.monotonic() + self._timing.page_seconds)
        self.health.heard()
        try:
            return _decode_page(data)
        except UNREADABLE as error:
            raise GarbledError(f"this is no list: {error}") from None

    def _watch(self, selection: Selection) -> None:
        """Changes since, until the API server or we have enough of it."""
        begun, told = time.monotonic(), self.health.events.total()
        query, silence = self._watch_query(selection), self._timing.silence_seconds
        self.health.connected = False
        try:
            with self._asking(query, silence, selection) as reply:
                self._read_events(reply, selection)
        finally:
            lasted = time.monotonic() - begun > self._timing.settled_seconds
            if self.health.events.total() > told or (lasted and self.health.connected):
                self._backoff.reset()
                self._doubts = 0
        if not lasted:
            raise UnreachableError("the watch ended early")

    def _watch_query(self, selection: Selection) -> dict[str, str]:
        seconds = self._timing.watch_seconds * random.uniform(0.8, 1.2)  # noqa: S311  jitter is no secret
        return {
            **self.resource.selectors(selection),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(max(1, round(seconds))),
        }

    def _read_events(self, reply: Reply, selection: Selection) -> None:
        self.health.watches += 1
        self.health.connected = True
        self.health.failure = None
        self.health.heard()
        try:
            for line in lines(reply.chunks(), MAX_EVENT_BYTES):
                self._go_on_with(selection)
                self.health.heard()
                self._tell(line)
        except SilentError:
            # Bookmarks are not promised, and were seen to be left out: whether it is an error, the next watch shows.
            self.health.silences += 1

    def _tell(self, line: bytes) -> None:
        try:
            event = _decode_event(line)
            if event.type == "ERROR":
                raise _refusal(event.object)
            version = _decode_marked(event.object).metadata.resource_version
        except UNREADABLE as error:
            raise GarbledError(f"this is no event: {error}") from None
        if event.type != "BOOKMARK":
            facts = self._read_all([event.object])
            is_gone = event.type == "DELETED"
            self._offer(Step(time.time_ns(), put=() if is_gone else facts, gone=facts if is_gone else ()))
        self._version = version or self._version
        self.health.events[event.type] += 1

    def _read_all(self, items: list[msgspec.Raw]) -> tuple[Facts, ...]:
        found = []
        for item in items:
            try:
                found.append(self.resource.read(item))
            except UNREADABLE:
                self.health.undecodable += 1
        return tuple(found)

    def _offer(self, step: Step[Facts]) -> None:
        """Hand over; wait while the agent has enough to do."""
        while not self._stopped:
            try:
                self._steps.put(step, timeout=OFFER_SECONDS)
            except queue.Full:
                continue
            return
        raise _Interrupted

    @contextmanager
    def _asking(self, query: dict[str, str], seconds: float, selection: Selection) -> Iterator[Reply]:
        """An answer that `select` and `stop` can interrupt."""
        with self._transport.get(self.resource.path, query, seconds) as reply:
            with self._lock:
                self._reply = reply
            try:
                self._go_on_with(selection)
                yield reply
            finally:
                with self._lock:
                    self._reply = None
        self._go_on_with(selection)

    def _go_on_with(self, selection: Selection) -> None:
        if self._is_outdated(selection):
            raise _Interrupted


def _doubts(error: KubeError) -> int:
    """How much speaks against going on from where it was: nothing, if the API server could not be asked."""
    if isinstance(error, UnreachableError) or (isinstance(error, RefusedError) and error.code == TOO_MANY_REQUESTS):
        return 0
    return DOUBTS_UNTIL_LIST if isinstance(error, RefusedError) and error.code == GONE else 1


def _refusal(data: msgspec.Raw) -> KubeError:
    status = _decode_status(data)
    return RefusedError(status.code, status.reason or "Failed", status.message)
