"""The CronJob behind a Job: the API is asked once for each, in a thread of its own, if it may be asked at all."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from agent.enrich.kube import rbac
from agent.enrich.kube.backoff import Backoff
from agent.enrich.kube.errors import GarbledError, KubeError, RefusedError
from agent.enrich.kube.health import WatchHealth
from agent.enrich.kube.lines import joined
from agent.enrich.kube.objects import UNREADABLE, Marked
from agent.enrich.kube.resources import path_of
from agent.enrich.kube.transport import METADATA_ONLY

if TYPE_CHECKING:
    from agent.enrich.kube.transport import Transport
    from agent.enrich.kube.watch import Timing

MAX_KNOWN = 4096
MAX_WAITING = 256
"""Questions; a job that finds no room is asked for when its pod changes, or is seen, again."""
SECONDS_BETWEEN = 0.1
"""The API server has better things to do."""
FORBIDDEN_SECONDS = 600.0
MAX_BYTES = 1 << 20
FORBIDDEN, NOT_FOUND = 403, 404

JobName = tuple[str, str]
"""Namespace and name."""
_decode = msgspec.json.Decoder(Marked).decode


class CronJobs:
    """Knows the CronJobs of Jobs. Everything but the asking is for the agent's own thread."""

    def __init__(self, transport: Transport, timing: Timing) -> None:
        self.health = WatchHealth("jobs", required=False, resource=rbac.JOBS.resource)
        self._transport = transport
        self._timing = timing
        self._backoff = Backoff(timing.first_wait_seconds, timing.longest_wait_seconds)
        self._owners: dict[JobName, str | None] = {}
        """`CronJob/x`, or None: it has no such owner, or that is being found out."""
        self._questions: queue.Queue[JobName | None] = queue.Queue(MAX_WAITING)
        self._answers: deque[tuple[JobName, str | None]] = deque()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-jobs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End; see `Watch.stop`."""
        self._stopped.set()
        with contextlib.suppress(queue.Full):
            self._questions.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def owner(self, namespace: str, job: str) -> str | None:
        """`CronJob/x`, when it is known; a job that was never heard of is asked for."""
        name = namespace, job
        if name not in self._owners:
            with contextlib.suppress(queue.Full):
                self._questions.put_nowait(name)
                self._keep(name, None)
        return self._owners.get(name)

    def take_in(self) -> None:
        """Learn what was answered."""
        while self._answers:
            self._keep(*self._answers.popleft())
        self.health.objects = len(self._owners)

    def _keep(self, name: JobName, owner: str | None) -> None:
        self._owners[name] = owner
        if len(self._owners) > MAX_KNOWN:
            del self._owners[next(iter(self._owners))]

    def _run(self) -> None:
        while not self._stopped.wait(SECONDS_BETWEEN):
            name = self._questions.get()
            if name is not None:
                self.health.wanted = True
                self._find_out(name)

    def _find_out(self, name: JobName) -> None:
        """Ask until there is an answer, or none to be had."""
        while not self._stopped.is_set():
            try:
                self._answers.append((name, self._ask(*name)))
            except RefusedError as refusal:
                if refusal.code == NOT_FOUND:
                    # The Job is gone, and the API server works.
                    self.health.errors[refusal.reason] += 1
                    self.health.failure = None
                    return
                self.health.failed(refusal)
                self._stopped.wait(FORBIDDEN_SECONDS if refusal.code == FORBIDDEN else self._backoff.next_seconds())
            except KubeError as error:
                self.health.failed(error)
                self._stopped.wait(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                self.health.failure = None
                return

    def _ask(self, namespace: str, job: str) -> str | None:
        path = f"{path_of(rbac.JOBS, namespace)}/{job}"
        with self._transport.get(path, {}, self._timing.read_seconds, METADATA_ONLY) as reply:
            data = joined(reply.chunks(), MAX_BYTES, time.monotonic() + self._timing.page_seconds)
        self.health.heard()
        try:
            owners = _decode(data).metadata.owner_references or ()
        except UNREADABLE as error:
            raise GarbledError(f"this is no Job: {error}") from None
        return next((f"CronJob/{owner.name}" for owner in owners if owner.controller and owner.kind == "CronJob"), None)
