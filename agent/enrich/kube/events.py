"""Writes Kubernetes Events, in a thread of its own: whatever the API server does, nobody waits for it.

Events are those of the core group (v1). Those of events.k8s.io/v1 are the same objects, but there the API server
refuses to change the sentence and the count, and `kubectl describe` reads the core group's.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.enrich.kube import rbac
from agent.enrich.kube.backoff import Backoff
from agent.enrich.kube.body import JSON, MERGE_PATCH, Body
from agent.enrich.kube.errors import KubeError, RefusedError
from agent.enrich.kube.health import Failure
from agent.enrich.kube.lines import joined
from agent.enrich.kube.resources import path_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.enrich.kube.transport import Transport
    from agent.enrich.kube.watch import Timing

CHANGING = ("count", "lastTimestamp", "message")
"""Fields that an update sends."""
MAX_WAITING = 256
"""Events that wait; one more is dropped. What is new of one that waits replaces it."""
MAX_WRITTEN = 4096
"""Events that are remembered as written. One that is forgotten costs a request more."""
TRIES = 4
"""So often an Event is sent before it is dropped; what is newer comes with the incident's next update."""
SECONDS_BETWEEN = 1.0
"""Between two requests: the API server has better things to do."""
LONGEST_PAUSE_SECONDS = 300.0
"""However long the API server asks to be left alone."""
MAX_BYTES = 1 << 20
UNAUTHORIZED, NOT_FOUND, CONFLICT, TOO_MANY, SERVER_ERROR = 401, 404, 409, 429, 500
ENDING_NAMESPACE = "is being terminated"
"""What the API server says when something is to be made in a namespace that is deleted (403)."""
RESULTS = CREATED, UPDATED, GONE, FAILED, DROPPED = "created", "updated", "gone", "failed", "dropped"


class Event(NamedTuple):
    """What is to be written."""

    namespace: str
    name: str
    body: Mapping[str, Any]
    """The whole object."""
    may_be_gone: bool
    """Whether its namespace may be deleted at any time: one of users."""


@dataclass(slots=True)
class EventHealth:
    """How writing fares. The thread writes, everybody may read."""

    results: Counter[str] = field(default_factory=Counter)
    """What became of Events, by `RESULTS`."""
    errors: Counter[str] = field(default_factory=Counter)
    """Attempts that failed, by one word as in `agent.enrich.kube.health.WatchHealth.errors`."""
    failure: Failure | None = None
    """The newest of them; None after it was overcome."""

    def failed(self, error: KubeError) -> None:
        """It did not work."""
        self.errors[error.reason] += 1
        self.failure = Failure(error.reason, str(error))

    def succeeded(self, result: str) -> None:
        """It did."""
        self.failure = None
        self.results[result] += 1


class EventWriter:
    """Takes Events at any time and writes them when it can."""

    def __init__(self, transport: Transport, timing: Timing, seconds_between: float = SECONDS_BETWEEN) -> None:
        self.health = EventHealth()
        self._transport = transport
        self._timing = timing
        self._seconds_between = seconds_between
        self._backoff = Backoff(timing.first_wait_seconds, timing.longest_wait_seconds)
        self._waiting: OrderedDict[str, Event] = OrderedDict()
        self._written: dict[str, None] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-events", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; see `Watch.stop`. What waits is lost."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def offer(self, event: Event) -> None:
        """Let it be written, in place of an older one of this name that still waits; never blocks."""
        with self._changed:
            if event.name not in self._waiting and len(self._waiting) >= MAX_WAITING:
                self.health.results[DROPPED] += 1
                return
            self._waiting[event.name] = event
            self._changed.notify()

    def _run(self) -> None:
        while (event := self._next()) is not None:
            self._write(event)
            self._stopped.wait(self._seconds_between)

    def _next(self) -> Event | None:
        """The one that waits for longest; None when it is time to end."""
        with self._changed:
            while not self._waiting and not self._stopped.is_set():
                self._changed.wait()
            return None if self._stopped.is_set() else self._waiting.popitem(last=False)[1]

    def _write(self, event: Event) -> None:
        """Send it until it is taken, refused for good, or has failed too often."""
        for _ in range(TRIES):
            try:
                self.health.succeeded(self._put(event))
            except KubeError as error:
                if is_gone(event, error):
                    self.health.results[GONE] += 1
                    return
                self.health.failed(error)
                self._stopped.wait(self._pause_seconds(error))
                if self._stopped.is_set() or not may_work_later(error):
                    break
                event = self._newer(event)
            else:
                self._backoff.reset()
                return
        self.health.results[FAILED] += 1

    def _newer(self, event: Event) -> Event:
        """What came for it meanwhile."""
        with self._changed:
            return self._waiting.pop(event.name, event)

    def _pause_seconds(self, error: KubeError) -> float:
        asked = error.retry_after_seconds if isinstance(error, RefusedError) else 0.0
        return min(LONGEST_PAUSE_SECONDS, max(asked, self._backoff.next_seconds()))

    def _put(self, event: Event) -> str:
        """Update it where it was written before, else create it."""
        if event.name in self._written:
            try:
                return self._update(event)
            except RefusedError as refusal:
                if refusal.code != NOT_FOUND:
                    raise
                # The API server forgets Events after an hour.
                del self._written[event.name]
        try:
            self._send("POST", path_of(rbac.EVENTS, event.namespace), Body(event.body, JSON))
        except RefusedError as refusal:
            if refusal.code != CONFLICT:
                raise
            # The first attempt got there, and its answer did not get here.
            return self._update(event)
        self._remember(event.name)
        return CREATED

    def _update(self, event: Event) -> str:
        changes = {name: event.body[name] for name in CHANGING}
        path = f"{path_of(rbac.EVENTS, event.namespace)}/{event.name}"
        self._send("PATCH", path, Body(changes, MERGE_PATCH))
        self._remember(event.name)
        return UPDATED

    def _remember(self, name: str) -> None:
        self._written[name] = None
        if len(self._written) > MAX_WRITTEN:
            del self._written[next(iter(self._written))]

    def _send(self, method: str, path: str, body: Body) -> None:
        with self._transport.send(method, path, {}, self._timing.read_seconds, body) as reply:
            # A connection whose answer was read to its end is used again.
            joined(reply.chunks(), MAX_BYTES, time.monotonic() + self._timing.page_seconds)


def is_gone(event: Event, error: KubeError) -> bool:
    """Whether the namespace was deleted, or is just being so, and nobody asks for its Events any more."""
    if not event.may_be_gone or not isinstance(error, RefusedError):
        return False
    return error.code == NOT_FOUND or ENDING_NAMESPACE in str(error)


def may_work_later(error: KubeError) -> bool:
    """Whether the same request may succeed in a while."""
    if not isinstance(error, RefusedError):
        return True
    return error.code in (UNAUTHORIZED, TOO_MANY) or error.code >= SERVER_ERROR
