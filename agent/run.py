"""`dnstrail run`: capture, join, explain, print, until told to stop."""

from __future__ import annotations

import gc
import secrets
import signal
import sys
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from agent.capture.live import Capture
from agent.capture.teaching import Teacher
from agent.enrich.enrichment import Enrichment
from agent.explain.rules import explain
from agent.export.announcements import StateAnnouncer
from agent.export.clock import wall_offset_ns
from agent.export.event_teller import EventTeller
from agent.export.incident_reporter import IncidentReporter
from agent.export.loss_report import LossReport
from agent.export.metrics.clients import ByClient, Clients
from agent.export.metrics.pages import ALIVE_SECONDS, Pages
from agent.export.metrics.sources import Agent as AgentNumbers
from agent.export.metrics.sources import EventSources, Sources
from agent.export.outlet import Outlet
from agent.export.printer import LineOptions, Printer, RateLimit
from agent.export.redaction import Redaction
from agent.export.unnamed import Unnamed
from agent.process import arm_watchdog, freeze_gc, leave, log
from agent.readers.feed import Feed, Numbers
from agent.readers.hub import Hub
from agent.readers.place import Place, PlaceError
from agent.serve import Private, Server
from agent.session.model import SECOND_NS, Settings
from agent.session.table import SessionTable
from agent.session.usual import UsualLookups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from agent.capture.losses import Loss
    from agent.context.who import Who
    from agent.enrich.kube.access import Access
    from agent.explain.verdict import Verdict
    from agent.export.metrics.tally import Label
    from agent.hop.endpoint import Endpoint
    from agent.hop.lookup import Lookups
    from agent.hop.record import Hop
    from agent.page.flows import Flow, Upstream
    from agent.page.watcher import Watcher
    from agent.serve import Address
    from agent.session.outcome import Outcome

KEY_BYTES = 16
"""Of the key for the words that stand for names on the page."""
WAIT_SECONDS = 0.1
"""Between two turns of the loop while something presses, or somebody looks on."""
CALM_SECONDS = 0.25
"""While nothing presses: each turn costs a slow node as much as hundreds of lookups."""
UNHURRIED_SECONDS = 0.5
"""The same where lookups that succeed get no lines."""
IDLE_SECONDS = 1.0
"""While there are no lookups: the first one ends it. What is to be done once a second is done within two."""
REPORT_SECONDS = 10.0
STALL_SECONDS = 60.0
"""When the loop has not turned for so long, it never will. The kubelet may not find out: a full connection table keeps
its probes out."""
LOOK_NS = SECOND_NS
"""How often it is looked up which servers the cluster has."""
FINISH_SECONDS = 1.5
"""From the signal to the last line: the process has ended after 2 s, however much is open."""
LEISURE_SECONDS = 10.0
"""The same when nobody asked it to end but `--duration`."""
READ_SECONDS = 0.5
"""Of these, at most, for what waits in the ring: 16 MiB take as long."""
WRITE_SECONDS = 0.3
"""Of these, or more, for who reads the lines."""
CHUNKS_A_TURN = 8
"""Even when the ring fills as fast as it is read, a turn ends: signals and time limits are looked at."""
SHOW_SECONDS = 0.2
"""So long sessions that are over are printed before the ring is looked at again: an incident ends thousands at once.
Longer when as many wait as may be open: they take memory."""


class Options(NamedTuple):
    """What the user asked for."""

    ports: tuple[int, ...] = (53,)
    ring_bytes: int = 16 << 20
    duration_seconds: float | None = None
    settings: Settings = Settings()
    lines: LineOptions = LineOptions()
    metrics: Address | None = None
    """Where numbers and health are served; None for nowhere."""
    metrics_by: str = "none"
    """Numbers by `namespace` or `workload` too."""
    metrics_cap: int = 200
    """Of so many at most."""
    page: str = "none"
    """Whether there is a page for browsers, and how it shows names that were looked up: `redacted` or `names`."""
    access: Access | None = None
    """How to get at the Kubernetes API; None without a cluster."""
    events: bool = False
    """Whether incidents become Events there."""
    readers: str = ""
    """Path of the socket for `dnstrail trace` and its like; empty for none."""


class Together(NamedTuple):
    """What lookups have in common that are counted together."""

    label: Label
    client: tuple[int | None, bytes]
    """Namespace, if it is on this node, and address."""
    server: Endpoint
    flow: Flow | None = None
    upstream: Upstream | None = None
    """What the page counts them in, and what their server asked for them, if there is a page."""


class Audience(NamedTuple):
    """Who looks on beside those who read the lines."""

    watcher: Watcher | None = None
    """Keeps problems for the page."""
    hub: Hub | None = None
    """Programs that read along by the local socket."""


NOBODY_LOOKS = Audience()


class Once:
    """Finds something out the first time it is asked, and remembers it."""

    __slots__ = ("_find", "_found")

    def __init__(self, find: Callable[[], Who]) -> None:
        self._find = find
        self._found: Who | None = None

    def __call__(self) -> Who:
        """What was found."""
        if self._found is None:
            self._found = self._find()
        return self._found


class Agent:
    """One node's agent: everything between the ring and the lines."""

    def __init__(
        self,
        options: Options,
        capture: Capture,
        out: Outlet,
        sources: Sources,
        audience: Audience = NOBODY_LOOKS,
    ) -> None:
        self._options = options
        self._sources = sources
        self._capture = capture
        self._out = out
        self._watcher = audience.watcher
        self.printer = Printer(options.lines, out, wall_offset_ns())
        node = options.lines.node
        self._known = Enrichment(options.ports, capture.was_read, options.access, node, events=options.events)
        self.table = SessionTable(
            options.settings,
            kernel=capture.kernel,
            is_local=self._known.is_local,
            started_ns=capture.started_ns,
        )
        self._usual = (
            UsualLookups(self.table, self._label_of, knows_services=options.access is not None)
            if options.lines.may_skip_healthy
            else None
        )
        self._examples = RateLimit(options.lines.log_rate if options.lines.log == "all" else 0)
        self._set_clock()
        watches = (lambda: self._known.watches) if options.access else None
        teller, events = self._events(node)
        sources.agent = AgentNumbers(capture, self.table, self.printer, out, watches, events)
        self._announcer = StateAnnouncer(sources)
        self._unnamed = Unnamed()
        self._feed = Feed(audience.hub, self.printer, sources.incidents, self._numbers)
        self._reporter = IncidentReporter(sources, self.printer, options.metrics_by, audience.watcher, teller)
        self._losses = LossReport(self.printer, out)
        self._teacher = Teacher(capture, options.ports)
        self._looked_ns = 0
        self._is_behind = False
        """Whether sessions that are over wait to be shown."""
        self._stopped_at: float | None = None
        self._reported = time.monotonic()

    def _events(self, node: str) -> tuple[EventTeller | None, EventSources | None]:
        """Who makes Events of incidents, and how that fares; None where nobody asked for it."""
        live = self._known.live
        if live is None or live.events is None:
            return None, None
        teller = EventTeller(live.events, node, live.pods_here)
        return teller, EventSources(live.events.health, teller)

    def stop(self, *_signal: object) -> None:
        """End after the current turn."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._capture.end_waiting()

    def work(self) -> None:
        """Turn until stopped or the duration is over."""
        if self._known.live:
            self._known.live.start()
        arm_watchdog(STALL_SECONDS)
        limit = self._options.duration_seconds
        end = None if limit is None else time.monotonic() + limit
        while self._stopped_at is None and (end is None or time.monotonic() < end):
            self.turn(end)
        self.finish()

    def turn(self, end: float | None = None) -> None:
        """Wait a little, and not beyond `end`; take in what was recorded, print what is over."""
        pause = self._pause_seconds()
        self._capture.wait(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
        self._beat()
        now_ns = time.monotonic_ns()
        # While a backlog waits, time is that of its records: what is overdue by the clock may be answered in there.
        caught_up = self._take_in()
        self._is_behind = not self._show(self.table.expire(self._capture.settled_ns if caught_up else 0))
        self.printer.flush()
        self._look_around(now_ns)
        self._show_unnamed(time.monotonic())
        self._reporter.report(now_ns)
        self._feed.flush(now_ns)
        for line in self._announcer.lines(time.monotonic()):
            log(line)
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._report()

    def _pause_seconds(self) -> float:
        """How long to wait for records at most."""
        if self._is_behind or not self._sources.pulse.has_begun:
            return 0.0
        if self._capture.presses or self._feed.readers:
            return WAIT_SECONDS
        if not (self._capture.has_lookups or self.table.left or self._unnamed):
            return IDLE_SECONDS
        return CALM_SECONDS if self._options.lines.log == "all" else UNHURRIED_SECONDS

    def finish(self) -> None:
        """Print what is still open, as far as the time allows, and the sums."""
        signalled = self._stopped_at
        end = time.monotonic() + LEISURE_SECONDS if signalled is None else signalled + FINISH_SECONDS
        self._read_rest(time.monotonic() + READ_SECONDS)
        self._show_open(end - WRITE_SECONDS)
        self._show_unnamed(float("inf"))
        self._reporter.tell(time.monotonic_ns())
        self._feed.flush(time.monotonic_ns())
        self._out.close(max(WRITE_SECONDS, end - time.monotonic()))
        self._say_losses()
        self._known.close(max(0.0, end - time.monotonic()))
        counts = self.table.counts
        log(f"{counts.sessions} sessions from {counts.hops} records; {self._capture.losses.total} records lost")

    def _beat(self) -> None:
        """Tell the pulse; and the operator, if the loop stood still for so long that /healthz said so."""
        pulse = self._sources.pulse
        if pulse.has_begun and pulse.age_seconds > ALIVE_SECONDS:
            log(f"the event loop stood still for {pulse.age_seconds:.0f} s, and goes on; was the node overloaded?")
        pulse.beat(self._capture.backlog_bytes)

    def _take_in(self) -> bool:
        """What was recorded, and whether that was all; of a large backlog, what is over is printed on the way."""
        for _ in range(CHUNKS_A_TURN):
            more = self._capture.drain(self.table.observe, self._lose, self._sift if self._usual else None)
            self._count_usual()
            if not more:
                return True
            self._show(self.table.expire(0))
            if self._stopped_at:
                break
        return False

    def _sift(self, taken: Lookups, ahead: Lookups, hops: list[Hop], seen_until_ns: int) -> list[int]:
        """Those lookups that need a session: of the others a few do, while there is room for their lines."""
        assert self._usual is not None  # noqa: S101  the caller has seen to it
        now = time.monotonic()
        wanted = max(self._examples.take(taken.count, now), self._feed.examples(taken.count, now))
        return self._usual.sift(taken, ahead, hops, wanted, seen_until_ns)

    def _label_of(self, outcome: Outcome) -> Together | None:
        who = self._who(outcome)
        verdict = self._explain(outcome, who)
        label = self._sources.tally.usual_label(outcome, verdict, who)
        if label is None:
            return None
        client, flow, upstream = (outcome.client_netns, outcome.session.key.client.address), None, None
        if self._watcher is not None:
            flow, upstream = self._watcher.traffic_of(outcome, verdict, who, time.monotonic_ns())
        return Together(label, client, outcome.server, flow, upstream)

    def _count_usual(self) -> None:
        """Count the lookups that nobody looked at."""
        if self._usual is None:
            return
        sums, times = self._usual.take_sums()
        for together, lookups, pairs, waited_ns, exchanges, upstream_ns in sums:
            assert isinstance(together, Together)  # noqa: S101  that is what _label_of() gives
            self._sources.tally.count_together(together.label, lookups, pairs, waited_ns)
            self._sources.incidents.count(together.client, together.server, lookups)
            self.printer.hold_back(lookups)
            if together.flow is not None:
                together.flow.count_together(lookups, waited_ns)
            if together.upstream is not None:
                together.upstream.count_together(exchanges, upstream_ns)
            self._feed.pass_over(lookups)
        self._sources.tally.count_times(times)

    def _read_rest(self, end: float) -> None:
        """Take in what waits, until it is time to go."""
        self._capture.hurry()
        while not self._take_in():
            if time.monotonic() > end:
                log(f"{self._capture.backlog_bytes} bytes of records were not read: there was no time for more")
                return

    def _look_around(self, now_ns: int) -> None:
        """Keep an eye on what the kernel counts where DNS servers are: only beside a look before it tells something."""
        servers = self.table.node_state.serving
        self._known.namespaces.follow(servers.keys())
        self._known.namespaces.poll(now_ns)
        self._sources.kernel.look(self._known.namespaces, servers)
        live = self._known.live
        if live:
            live.poll()
            if now_ns - self._looked_ns > LOOK_NS:
                self._looked_ns = now_ns
                self._teacher.teach(live.dns_servers(), now_ns)

    def _show(self, outcomes: Iterable[Outcome]) -> bool:
        """Print them, as far as the time allows; the others wait for the next turn, or for the end.

        Returns:
            Whether these were all.
        """
        end = time.monotonic() + SHOW_SECONDS
        for outcome in outcomes:
            self._show_one(outcome)
            if self._stopped_at or (time.monotonic() > end and self.table.left < self._options.settings.max_sessions):
                return False
        return True

    def _show_one(self, outcome: Outcome) -> None:
        who = self._who(outcome)
        live = self._known.live
        if live and outcome.vantage == "server":
            live.expect_clients_from_elsewhere()
        verdict = self._explain(outcome, who)
        self._sources.tally.count(outcome, verdict, who)
        now_ns = time.monotonic_ns()
        incident = self._sources.incidents.note(outcome, verdict, who, now_ns)
        if self._watcher is not None:
            self._watcher.note(outcome, verdict, who, incident, now_ns)
        if self._feed.readers:
            self._feed.show(outcome, verdict, who)
        rank = self.printer.admits(outcome, verdict, who, incident)
        if rank is None:
            return
        if not (live and who().expected and self._unnamed.keeps(outcome, time.monotonic())):
            self.printer.write(outcome, verdict, who(), rank, incident)

    def _who(self, outcome: Outcome) -> Once:
        return Once(partial(self._known.who.identify, outcome))

    def _explain(self, outcome: Outcome, who: Callable[[], Who]) -> Verdict:
        known = self._known
        return explain(outcome, known.namespaces, known.cluster, who, known.who.wall_offset_ns)

    def _show_open(self, end: float) -> None:
        """Print what never ended, until it is time to go."""
        for outcome in self.table.flush(time.monotonic_ns()):
            self._show_one(outcome)
            if time.monotonic() > end and self.table.left:
                log(f"{self.table.left} open sessions have no line: there was no time for more")
                return

    def _show_unnamed(self, now: float) -> None:
        """Print those that have waited for the name of their pod."""
        for outcome in self._unnamed.due(now):
            who = self._who(outcome)
            self.printer.write(outcome, self._explain(outcome, who), who())
        for outcome in self._feed.due(now):
            who = self._who(outcome)
            self._feed.send(outcome, self._explain(outcome, who), who)

    def _numbers(self) -> Numbers:
        return Numbers(self.table.counts.sessions, len(self.table), self._capture.losses.total)

    def _lose(self, loss: Loss) -> None:
        self.table.record_loss(loss.start_ns, loss.end_ns)

    def _report(self) -> None:
        """What has to be done now and then."""
        self._reported = time.monotonic()
        arm_watchdog(STALL_SECONDS)
        gc.collect(1)
        live = self._known.live
        if self._sources.clients is not None:
            self._sources.clients.retire(live.pods_here() if live else None)
        self._say_losses()
        self._set_clock()

    def _say_losses(self) -> None:
        for sentence in self._losses.lines(self._capture.losses):
            log(sentence)

    def _set_clock(self) -> None:
        """The wall clock may be set while the records' clock runs on."""
        offset = wall_offset_ns()
        self.printer.context = self.printer.context._replace(wall_offset_ns=offset)
        self._known.who.wall_offset_ns = offset
        if self._watcher is not None:
            self._watcher.context = self.printer.context


def serving(options: Options, sources: Sources, watcher: Watcher | None) -> AbstractContextManager[Server | None]:
    """The HTTP server, before there is anything to tell: readiness begins with the reason for its lack."""
    if options.metrics is None:
        return nullcontext()
    private = None
    if watcher is not None:
        from agent.page.pages import Node, PrivatePages  # noqa: PLC0415  its memory is for those who want a page

        private = Private(PrivatePages(sources, watcher, Node(options.lines.node, options.page)).by_path)
    return Server(options.metrics, Pages(sources).by_path, sources.traffic, private=private)


def watching(options: Options, sources: Sources) -> Watcher | None:
    """What keeps problems for the page; None without one."""
    if options.page == "none":
        return None
    from agent.page.watcher import Watcher  # noqa: PLC0415  as above

    # The words are those of the lines, where these have words too.
    key = options.lines.redaction_key or secrets.token_bytes(KEY_BYTES)
    redaction = None if options.page == "names" else Redaction(key)
    return Watcher(redaction, sources.tally, time.monotonic_ns())


def hearing(path: str) -> AbstractContextManager[Hub | None]:
    """The socket for readers, where it can be had; else the reason why not is said, once."""
    if not path:
        return nullcontext()
    try:
        return Hub(Place(path))
    except PlaceError as error:
        log(f"dnstrail trace and top cannot read along: {path}: {error} (--trace-socket)")
        return nullcontext()


def run(options: Options) -> NoReturn:
    """Be the agent, to the end of the process.

    Raises:
        ServeError: when the port for numbers and health cannot be had.
        CaptureError: when this kernel or process cannot capture.
    """
    begun = time.monotonic()
    clients = None if options.metrics_by == "none" else Clients(ByClient(options.metrics_by, options.metrics_cap))
    sources = Sources(clients)
    watcher = watching(options, sources)
    with (
        serving(options, sources, watcher) as server,
        hearing(options.readers) as hub,
        Capture(list(options.ports), options.ring_bytes) as capture,
    ):
        agent = Agent(options, capture, Outlet(sys.stdout.fileno()), sources, Audience(watcher, hub))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, agent.stop)
        log(
            f"watching port {', '.join(map(str, options.ports))} in all network namespaces, "
            f"ready in {time.monotonic() - begun:.2f} s; Ctrl-C stops"
        )
        if server is not None:
            log(f"metrics and health at {server.address}")
            if watcher is not None:
                log(f"a page for browsers at http://localhost:{server.address.port}/, on loopback only")
        for limit in capture.limits:
            log(f"limited: {limit}")
        freeze_gc()
        try:
            with suppress(BrokenPipeError):  # the reader of our lines is gone
                agent.work()
        finally:
            if server is not None:
                # Before the memory that it reads is gone.
                server.stop()
            if hub is not None:
                hub.stop()
    leave()
