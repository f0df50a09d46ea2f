"""What the agent's port says: numbers, life, readiness, and a page for people who find it."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics

from agent import __version__
from agent.export.metrics.collector import NodeCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent.export.metrics.sources import Sources

OK, UNAVAILABLE = 200, 503
JSON = "application/json"
PLAIN = "text/plain; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"
NOTHING = "default-src 'none'"
ALIVE_SECONDS = 10.0
"""A turn takes a tenth of a second, or some when the ring is full; after this long without one the loop hangs."""
START_SECONDS = 60.0
"""The same for the first turn: the BPF programs are compiled before it."""
WAIT_FOR_START_SECONDS = 25.0
"""From the start of the process: so long /startz waits for the answer that is hoped for."""
FRESH_SECONDS = 1.0
"""Whoever asks again within this time gets the same numbers: nobody can make the agent busy by asking."""


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: str
    body: bytes
    policy: str = NOTHING
    """Content-Security-Policy: what a browser may load and run for it."""


class Pages:
    """Makes the answers. All of it runs in the thread of the HTTP server."""

    def __init__(self, sources: Sources, clock: Callable[[], float] = time.monotonic) -> None:
        """Describe them.

        Args:
            sources: What is told.
            clock: Seconds that only grow.
        """
        self._sources = sources
        self._clock = clock
        self._registry = CollectorRegistry()
        self._registry.register(NodeCollector(sources))
        ProcessCollector(registry=self._registry)
        self._rendered: dict[str, tuple[float, bytes]] = {}

    @property
    def by_path(self) -> Mapping[str, Callable[[str], Page | None]]:
        """What answers for each path, or None while it is too early; it is given the request's header Accept."""
        return {
            "/": self.home,
            "/incidents": self.incidents,
            "/metrics": self.metrics,
            "/startz": self.startz,
            "/healthz": self.healthz,
            "/readyz": self.readyz,
        }

    def metrics(self, accept: str = "") -> Page:
        """All numbers, in Prometheus's own format or in OpenMetrics'; a second old at most."""
        content_type = openmetrics.CONTENT_TYPE_LATEST if OPENMETRICS in accept else CONTENT_TYPE_PLAIN_0_0_4
        now = self._clock()
        made, body = self._rendered.get(content_type, (float("-inf"), b""))
        if now - made >= FRESH_SECONDS:
            generate = openmetrics.generate_latest if OPENMETRICS in accept else generate_latest
            body = generate(self._registry)
            self._rendered[content_type] = (now, body)
        return Page(OK, content_type, body)

    def startz(self, _accept: str = "") -> Page | None:
        """Whether it has started: as soon as it is ready; the kubelet makes an event of each answer that is no.

        None while a start takes no longer than usual. After that what /healthz says: what keeps it from being ready,
        /readyz tells, and it is no reason to be started again.
        """
        if not self._sources.waiting_for():
            return _words(OK, "started")
        is_young = self._clock() - self._sources.pulse.begun < WAIT_FOR_START_SECONDS
        return None if is_young else self.healthz()

    def healthz(self, _accept: str = "") -> Page:
        """Whether the event loop turns."""
        pulse = self._sources.pulse
        age, limit = pulse.age_seconds, ALIVE_SECONDS if pulse.has_begun else START_SECONDS
        if age <= limit:
            return _words(OK, "ok" if pulse.has_begun else "starting")
        return _words(UNAVAILABLE, f"the event loop has not turned for {age:.0f} s (limit {limit:.0f} s)")

    def readyz(self, _accept: str = "") -> Page:
        """Whether everything is attached and known, and if not, what is missing."""
        missing = self._sources.waiting_for()
        return _words(UNAVAILABLE if missing else OK, "\n".join(missing) or "ready")

    def incidents(self, _accept: str = "") -> Page:
        """What goes on, and what was over lately, as JSON."""
        return Page(OK, JSON, self._sources.board.page())

    def home(self, _accept: str = "") -> Page:
        """What this is and how it is, for people."""
        health, readiness = (page.body.decode() for page in (self.healthz(), self.readyz()))
        agent = self._sources.agent
        limits = [] if agent is None else agent.capture.limits
        facts = {
            "event loop": health,
            "readiness": readiness,
            "lookups so far": "0" if agent is None else str(agent.table.counts.sessions),
            "limited": "\n".join(limits) or "by nothing",
        }
        rows = "".join(f"<dt>{name}</dt><dd><pre>{escape(text)}</pre></dd>\n" for name, text in facts.items())
        return Page(OK, "text/html; charset=utf-8", HOME.format(version=escape(__version__), rows=rows).encode())


HOME = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>dnstrail</title></head><body>
<h1>dnstrail {version}</h1>
<p>Watches every DNS message of this node and says where and why a lookup was lost.</p>
<dl>
{rows}</dl>
<p><a href="incidents">incidents</a>, <a href="metrics">metrics</a>,
<a href="healthz">healthz</a>, <a href="readyz">readyz</a></p>
</body></html>
"""


def _words(status: int, text: str) -> Page:
    return Page(status, PLAIN, f"{text.rstrip()}\n".encode())
