"""agent.export.metrics: what a scrape says of everything that is not a lookup, and in which form."""

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from agent.capture.counters import Counters
from agent.capture.losses import Losses
from agent.context.cluster import Pod
from agent.context.counters import ConntrackCounters, NetnsCounters
from agent.context.who import NOBODY, Who
from agent.enrich.kube.errors import RefusedError
from agent.enrich.kube.events import EventHealth
from agent.enrich.kube.health import WatchHealth
from agent.explain.rules import explain
from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import METRICS, Kind
from agent.export.metrics.clients import BARE, GONE_SECONDS, IDLE_SECONDS, ByClient, Clients
from agent.export.metrics.kernel import KernelCounts
from agent.export.metrics.pages import (
    ALIVE_SECONDS,
    FRESH_SECONDS,
    PLAIN,
    START_SECONDS,
    WAIT_FOR_START_SECONDS,
    Pages,
)
from agent.export.metrics.programs import Runs, runs_of, statistics_enabled
from agent.export.metrics.pulse import PEAK_SECONDS, Pulse
from agent.export.metrics.sources import NOT_ATTACHED, Agent, EventSources, Sources

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
HOST, SERVER, OTHER_SERVER = 4026531840, 4026532300, 4026532301


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Captured:
    """The numbers of a capture that went on for a while."""

    def __init__(self):
        self.losses = Losses(ring_full=7, log_full=4, nested=8, skipped_runs=3)
        self.backlog_bytes = 4096
        self.ring_bytes = 16384
        self.programs = {}
        self.limits = ["no kprobes: <something> is not known"]

    def counters(self):
        records = {event: number for number, event in enumerate(catalogue.EVENT.values, start=10)}
        lost = dict.fromkeys(catalogue.EVENT.values, 0) | {"rx": 5, "drop": 2}
        return Counters(
            records, lost, 0, read_failed=6, seen_failed=7, nested=8, cut=9, log_full=4, contended=2, crowded=1
        )


class Failures:
    """The numbers of what limits the lines of failures."""

    held = 61


class Budgeted:
    """The numbers of what all lines share."""

    refused = 62


class Lines:
    """The numbers of a printer."""

    written, incidents_written, suppressed, failures, budget = 40, 41, 60, Failures(), Budgeted()


class Out:
    """The numbers of an outlet."""

    lost = 70


def agent(world, watches=None, events=None):
    return Agent(Captured(), world.table, Lines(), Out(), watches, events)


def scraped(sources, accept=""):
    """Every sample by name and labels, as Prometheus's own parser reads them."""
    body = Pages(sources).metrics(accept).body.decode()
    parse = openmetrics_parser if accept else parser
    families = list(parse.text_string_to_metric_families(body))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for one in families for sample in one.samples
    }


def value(samples, name, **labels):
    return samples[f"dnstrail_{name}", tuple(sorted(labels.items()))]


def expected_names(metric):
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count"), Kind.SUMMARY: ("_sum", "_count")}
    return [metric.name + suffix for suffix in suffixes.get(metric.kind, ("",))]


# A scrape as a whole


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_all_known_series_are_there_at_0_before_anything_happened(accept):
    samples = scraped(Sources(), accept)
    for metric in METRICS:
        for values in metric.known:
            labels = tuple(sorted(zip(metric.label_names, values, strict=True)))
            for name in expected_names(metric):
                found = {key: value for key, value in samples.items() if key[0] == name and set(labels) <= set(key[1])}
                assert found, (name, labels)
                if metric is not catalogue.TURN_AGE:
                    assert set(found.values()) == {0.0}, (name, labels)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_nothing_is_told_that_is_not_in_the_catalogue(world, accept):
    known = {name for metric in METRICS for name in expected_names(metric)}
    sources = Sources(Clients(ByClient()))
    sources.agent = agent(world, lambda: [WatchHealth("services", required=True)])
    told = {name for name, _ in scraped(sources, accept)}
    assert {name for name in told if not name.startswith("process_")} <= known
    assert not [name for name in told if name.endswith("_created")]
    assert "process_resident_memory_bytes" in told


def test_every_family_is_told_with_its_help_and_type_once():
    text = Pages(Sources()).metrics().body.decode()
    for metric in METRICS:
        if metric.known:
            assert text.count(f"# HELP {metric.name} {metric.help}\n") == 1
            assert text.count(f"# TYPE {metric.name} {metric.kind}\n") == 1


def test_the_format_is_the_one_that_was_asked_for():
    pages = Pages(Sources())
    assert pages.metrics("").content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert pages.metrics(OPENMETRICS).content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert pages.metrics(OPENMETRICS).body.endswith(b"# EOF\n")


def test_who_asks_too_often_gets_the_numbers_of_the_last_second():
    clock, sources = Clock(), Sources()
    pages = Pages(sources, clock)
    first = pages.metrics().body
    sources.traffic.count(200)
    clock.now += FRESH_SECONDS / 2
    assert pages.metrics().body is first
    clock.now += FRESH_SECONDS / 2
    assert b'dnstrail_http_requests_total{code="200"} 1.0\n' in pages.metrics().body


def test_lookups_may_be_counted_while_somebody_scrapes(world):
    sources, outcome = Sources(Clients(ByClient("workload", 50))), world.outcome(world.Lookup().both())
    failed = world.outcome(world.dropped(world.Lookup(port=2000).query(world.now + world.MS), 2, "TC_EGRESS", ""))
    verdicts, stop = {one: explain(one) for one in (outcome, failed)}, threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            who = Who(client=pod(f"namespace-{number % 70}"))
            for one, verdict in verdicts.items():
                sources.tally.count(one, verdict, lambda who=who: who)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        clock = Clock()
        pages, before = Pages(sources, clock), -1.0
        for _ in range(10):
            clock.now += FRESH_SECONDS
            families = parser.text_string_to_metric_families(pages.metrics().body.decode())
            samples = [sample for one in families for sample in one.samples]
            total = sum(sample.value for sample in samples if sample.name == "dnstrail_sessions_total")
            assert total >= before
            before = total
    finally:
        stop.set()
        counting.join()


# Capture, sessions, lines


def test_what_capture_did_and_lost_is_told_by_step_and_reason(world):
    sources = Sources()
    sources.agent = agent(world)
    world.table.counts.unmatched, world.table.counts.overflowed = 11, 12
    samples = scraped(sources)
    assert value(samples, "capture_records_total", event="socket_rx") == 14
    assert value(samples, "capture_lost_records_total", step="log", reason="full") == 4
    assert value(samples, "capture_lost_records_total", step="ring", reason="full") == 7
    assert value(samples, "capture_lost_records_total", step="program", reason="nested") == 8
    assert value(samples, "capture_lost_records_total", step="program", reason="skipped_run") == 3
    assert value(samples, "capture_lost_records_total", step="join", reason="unmatched") == 11
    assert value(samples, "capture_lost_records_total", step="join", reason="overflowed") == 12
    assert value(samples, "capture_helper_errors_total", helper="read") == 6
    assert value(samples, "capture_helper_errors_total", helper="map_update") == 7
    assert value(samples, "capture_cut_messages_total") == 9
    assert value(samples, "capture_limitations") == 1
    assert value(samples, "ring_size_bytes") == 16384
    assert value(samples, "ring_usage_ratio") == 0.25
    assert value(samples, "log_lines_total") == 40
    assert value(samples, "incident_lines_total") == 41
    assert value(samples, "log_lines_suppressed_total", reason="rate_limit") == 60
    assert value(samples, "log_lines_suppressed_total", reason="failure_rate") == 61
    assert value(samples, "log_lines_suppressed_total", reason="budget") == 62
    assert value(samples, "log_lines_suppressed_total", reason="slow_reader") == 70


def test_what_the_table_holds_and_what_it_left_alone_is_told(worlds):
    world = worlds(max_sessions=2)
    sources = Sources()
    sources.agent = agent(world)
    for number in range(3):
        world.feed(world.Lookup(port=2000 + number).query(world.now + world.MS))
    samples = scraped(sources)
    assert value(samples, "open_sessions") == len(world.table) == 2
    assert value(samples, "open_sessions_limit") == 2
    assert value(samples, "evicted_sessions_total") == 1


def test_lookups_of_servers_for_themselves_are_told_by_kind(world):
    sources = Sources()
    sources.agent = agent(world)
    world.outcomes(world.Lookup(port=2000).both())
    check = world.Lookup(shape="forward", name=".", rdtype=2, client_netns=world.SERVER, comm=b"coredns", tgid=900)
    world.outcomes(check.both(world.now + world.MS))
    assert value(scraped(sources), "background_lookups_total", kind="health_check") == 1


def test_the_kernels_words_on_a_program_are_read(tmp_path: Path):
    text = "pos:\t0\nprog_type:\t17\nrun_time_ns:\t123456\nrun_cnt:\t789\nrecursion_misses:\t3\n"
    (tmp_path / "7").write_text(text)
    assert runs_of(7, tmp_path) == Runs(123456, 789)
    (tmp_path / "8").write_text("pos:\t0\nprog_type:\t17\n")
    assert runs_of(8, tmp_path) == Runs(0, 0)
    assert runs_of(9, tmp_path) is None


@pytest.mark.parametrize(("text", "enabled"), [("1\n", True), ("0\n", False), (None, False)])
def test_whether_the_kernel_keeps_statistics_is_read(tmp_path: Path, text, enabled):
    path = tmp_path / "bpf_stats_enabled"
    if text is not None:
        path.write_text(text)
    assert statistics_enabled(path) is enabled


# The loop


def test_the_time_between_turns_is_told():
    clock = Clock()
    sources = Sources()
    sources.pulse = Pulse(clock)
    for seconds in (0, 0.05, 0.05, 3):
        clock.now += seconds
        sources.pulse.beat()
    clock.now += 7
    samples = scraped(sources)
    assert value(samples, "loop_turn_duration_seconds_count") == 3
    assert value(samples, "loop_turn_duration_seconds_bucket", le="0.15") == 2
    assert value(samples, "loop_turn_duration_seconds_bucket", le="2.5") == 2
    assert value(samples, "loop_turn_duration_seconds_sum") == pytest.approx(3.1)
    assert value(samples, "loop_last_turn_age_seconds") == pytest.approx(7)


def test_a_short_peak_of_the_ring_is_seen_by_the_next_scrape_and_then_forgotten():
    clock = Clock()
    pulse = Pulse(clock)
    pulse.beat(100)
    clock.now += 1
    pulse.beat(5000)
    clock.now += 1
    pulse.beat(10)
    assert pulse.peak_bytes == 5000
    clock.now += PEAK_SECONDS
    pulse.beat(20)
    assert pulse.peak_bytes == 5000
    clock.now += PEAK_SECONDS
    pulse.beat(30)
    assert pulse.peak_bytes == 30


# The kernel's counters


class Looks:
    """What was last seen of each namespace."""

    def __init__(self):
        self.node_netns = HOST
        self.seen = {}

    def latest(self, netns):
        return self.seen.get(netns)

    def see(self, netns, *, drop=0, insert_failed=0, early_drop=0, rcvbuf=0, entries=10, dropped=0, fulls=None):
        # Half of each on another CPU: what counts is the sum.
        cpus = tuple(ConntrackCounters(0, insert_failed // 2, drop // 2, early_drop // 2) for _ in range(2))
        udp = {"InDatagrams": 5, "RcvbufErrors": rcvbuf}
        self.seen[netns] = NetnsCounters(0, entries, 262144, cpus, udp, fulls, dropped)


def test_counters_of_the_host_and_of_dns_servers_are_kept_apart_and_summed_from_the_first_look_on():
    looks, clock, sources = Looks(), Clock(), Sources()
    sources.kernel = KernelCounts(clock)
    looks.see(HOST, drop=1000, dropped=50, fulls=4)
    looks.see(SERVER, rcvbuf=70)
    looks.see(OTHER_SERVER)
    sources.kernel.look(looks, [HOST, SERVER, OTHER_SERVER])
    looks.see(HOST, drop=1006, insert_failed=2, early_drop=4, entries=131072, dropped=51, fulls=6)
    looks.see(SERVER, rcvbuf=75, entries=20)
    looks.see(OTHER_SERVER, rcvbuf=3, entries=30)
    clock.now += 1
    sources.kernel.look(looks, [HOST, SERVER, OTHER_SERVER])
    samples = scraped(sources)
    assert value(samples, "conntrack_drop_total", netns="host") == 6
    assert value(samples, "conntrack_early_drop_total", netns="host") == 4
    assert value(samples, "conntrack_insert_failed_total", netns="host") == 2
    assert value(samples, "conntrack_drop_total", netns="dns_server") == 0
    assert value(samples, "udp_receive_buffer_errors_total", netns="dns_server") == 8
    assert value(samples, "conntrack_entries", netns="host") == 131072
    assert value(samples, "conntrack_entries", netns="dns_server") == 30
    assert value(samples, "conntrack_entries_limit", netns="dns_server") == 262144
    assert value(samples, "softnet_dropped_total") == 1
    assert value(samples, "neighbour_table_full_total") == 2
    assert value(samples, "dns_server_namespaces") == 3


def test_counters_never_fall_when_namespaces_come_and_go():
    looks, clock = Looks(), Clock()
    kernel = KernelCounts(clock)

    def errors_after(**seen: int) -> int:
        looks.seen.clear()
        for netns, errors in seen.items():
            looks.see(int(netns[1:]), rcvbuf=errors)
        clock.now += 1
        kernel.look(looks, [SERVER, OTHER_SERVER])
        return kernel.state.grown["dns_server"].udp_receive_buffer_errors

    assert errors_after(**{f"n{SERVER}": 100}) == 0
    assert errors_after(**{f"n{SERVER}": 110, f"n{OTHER_SERVER}": 1000}) == 10
    assert errors_after(**{f"n{OTHER_SERVER}": 1001}) == 11
    # Gone for a moment, and what was counted meanwhile is not forgotten.
    assert errors_after(**{f"n{SERVER}": 115, f"n{OTHER_SERVER}": 1001}) == 16
    # Another namespace with the same number begins anew.
    assert errors_after(**{f"n{SERVER}": 2, f"n{OTHER_SERVER}": 1001}) == 16
    assert errors_after(**{f"n{SERVER}": 4, f"n{OTHER_SERVER}": 1001}) == 18


def test_what_is_not_known_of_conntrack_is_not_told():
    looks, sources = Looks(), Sources()
    looks.seen[HOST] = NetnsCounters(0, None, None, (), {"RcvbufErrors": 0}, None, None)
    sources.kernel.look(looks, [])
    samples = scraped(sources)
    assert not [key for key in samples if key[0].startswith("dnstrail_conntrack_entries")]
    assert value(samples, "conntrack_drop_total", netns="host") == 0


# Kubernetes


def test_how_the_watches_fare_is_told(world):
    health = WatchHealth("services", required=True)
    health.wanted = health.connected = True
    health.objects, health.lists, health.watches, health.last_contact_seconds = 12, 1, 4, 1795000000.5
    health.events.update(ADDED=3, BOOKMARK=4)
    health.errors = Counter(Unreachable=2)
    sources = Sources()
    sources.agent = agent(world, lambda: [health])
    samples = scraped(sources)
    assert value(samples, "kubernetes_watch_synced", resource="services") == 0
    assert value(samples, "kubernetes_watch_connected", resource="services") == 1
    assert value(samples, "kubernetes_watch_wanted", resource="services") == 1
    assert value(samples, "kubernetes_watch_objects", resource="services") == 12
    assert value(samples, "kubernetes_watch_events_total", resource="services") == 7
    assert value(samples, "kubernetes_watch_errors_total", resource="services", error="Unreachable") == 2
    assert value(samples, "kubernetes_watch_last_contact_timestamp_seconds", resource="services") == 1795000000.5


def test_what_became_of_events_is_told_where_they_are_asked_for(world):
    health = EventHealth()
    health.results.update(created=3, failed=1)
    health.errors["Forbidden"] = 1
    sources = Sources()
    sources.agent = agent(world, events=EventSources(health, SimpleNamespace(left_out=5)))
    samples = scraped(sources)
    told = {"created": 3, "updated": 0, "gone": 0, "failed": 1, "dropped": 0, "left_out": 5}
    assert {result: value(samples, "kubernetes_events_total", result=result) for result in told} == told
    assert value(samples, "kubernetes_event_errors_total", error="Forbidden") == 1
    sources.agent = agent(world)
    assert not [key for key in scraped(sources) if key[0].startswith("dnstrail_kubernetes_event")]


def test_without_a_cluster_nothing_is_said_of_one(world):
    sources = Sources()
    sources.agent = agent(world)
    assert not [name for name, _ in scraped(sources) if "kubernetes" in name]


# Clients


def pod(namespace="shop", workload: str | None = "Deployment/cart"):
    return Pod("uid", namespace, "cart-7d9f-x2x", workload, "node-a", host_network=False, dns_policy="", nameservers=())


def count_for(clients, outcome, *pods):
    for one in pods:
        clients.count(outcome, explain(outcome).cause, lambda one=one: Who(client=one) if one else NOBODY)


def test_clients_are_told_by_workload_when_that_is_wanted(world):
    clients = Clients(ByClient("workload"))
    count_for(clients, world.outcome(world.Lookup().both(rcode=3)), pod(), pod())
    dead = world.dropped(world.Lookup(port=2000).query(world.now + world.MS), 2, "TC_EGRESS", "")
    count_for(clients, world.outcome(dead), pod(), pod("shop", None), None)
    samples, cart = scraped(Sources(clients)), {"client_namespace": "shop", "client_workload": "Deployment/cart"}
    assert value(samples, "client_queries_total", **cart) == 3
    assert value(samples, "client_sessions_total", status="Succeeded", **cart) == 2
    assert value(samples, "client_sessions_total", status="Failed", **cart) == 1
    assert value(samples, "client_responses_total", rcode="NXDOMAIN", **cart) == 2
    assert value(samples, "client_lost_messages_total", leg="query", **cart) == 1
    assert value(samples, "client_lost_messages_total", leg="upstream", **cart) == 0
    assert value(samples, "client_retransmissions_total", **cart) == 0
    assert value(samples, "client_lookup_duration_seconds_count", **cart) == 2
    assert value(samples, "client_lookup_duration_seconds_sum", **cart) == pytest.approx(2 * 138.6e-6)
    assert value(samples, "client_queries_total", client_namespace="shop", client_workload=BARE) == 1
    assert value(samples, "client_queries_total", client_namespace="~unknown", client_workload="~unknown") == 1
    assert value(samples, "clients") == 2
    assert value(samples, "clients_limit") == 200


def test_by_namespace_there_is_no_label_for_the_workload(world):
    clients = Clients(ByClient("namespace"))
    count_for(clients, world.outcome(world.Lookup().both()), pod(), pod(workload="Deployment/web"), pod("bank"))
    samples = scraped(Sources(clients))
    assert value(samples, "client_queries_total", client_namespace="shop") == 2
    assert value(samples, "client_queries_total", client_namespace="bank") == 1
    assert not [labels for _, labels in samples if "client_workload" in dict(labels)]


def test_clients_beyond_the_cap_share_one_series(world):
    clients = Clients(ByClient("namespace", cap=3))
    outcome = world.outcome(world.Lookup().both())
    count_for(clients, outcome, *(pod(f"namespace-{number}") for number in range(10)))
    samples = scraped(Sources(clients))
    named = {dict(labels)["client_namespace"] for name, labels in samples if name == "dnstrail_client_queries_total"}
    assert named == {"namespace-0", "namespace-1", "namespace-2", "~other"}
    assert value(samples, "client_queries_total", client_namespace="~other") == 7


def test_series_of_objects_that_are_gone_end_and_make_room(world):
    clock = Clock()
    clients = Clients(ByClient("namespace", cap=2), clock)
    outcome = world.outcome(world.Lookup().both())
    count_for(clients, outcome, pod("shop"), pod("bank"), pod("late"))
    here = [pod("shop")]
    clients.retire(here)
    assert len(clients) == 2
    clock.now += GONE_SECONDS + 1
    clients.retire(here)
    assert [labels for labels, _ in clients.now()] == [("shop",), ("~other",)]
    count_for(clients, outcome, pod("late"))
    assert ("late",) in [labels for labels, _ in clients.now()]


def test_where_nobody_knows_whether_a_client_is_gone_it_is_after_an_hour_of_silence(world):
    clock = Clock()
    clients = Clients(ByClient("workload"), clock=clock)
    count_for(clients, world.outcome(world.Lookup().both()), pod())
    clock.now += IDLE_SECONDS
    clients.retire(None)
    assert len(clients) == 1
    clock.now += 1
    clients.retire(None)
    assert len(clients) == 0


def test_clients_on_other_nodes_are_counted_there(world):
    clients = Clients(ByClient())
    count_for(clients, world.outcome(world.Lookup(shape="server").both()), pod())
    assert clients.now() == []


# Life and readiness


def test_the_agent_is_alive_while_its_loop_turns():
    clock = Clock()
    sources = Sources()
    sources.pulse = Pulse(clock)
    pages = Pages(sources)
    clock.now += START_SECONDS
    assert pages.healthz().status == 200
    clock.now += 1
    assert pages.healthz().status == 503
    sources.pulse.beat()
    clock.now += ALIVE_SECONDS
    assert (pages.healthz().status, pages.healthz().body) == (200, b"ok\n")
    clock.now += 1
    assert (pages.healthz().status, pages.healthz().body) == (
        503,
        b"the event loop has not turned for 11 s (limit 10 s)\n",
    )


def test_who_asks_whether_it_has_started_waits_while_a_start_may_take_so_long_and_then_learns_whether_it_lives(world):
    clock = Clock()
    sources = Sources()
    sources.pulse = Pulse(clock)
    pages = Pages(sources, clock)
    assert pages.startz() is None
    services = WatchHealth("services", required=True)
    services.wanted = True
    sources.agent = agent(world, lambda: [services])
    sources.pulse.beat()
    assert pages.startz() is None
    clock.now += WAIT_FOR_START_SECONDS
    sources.pulse.beat()
    assert pages.startz()[:3] == (200, PLAIN, b"ok\n")
    clock.now += ALIVE_SECONDS + 1
    assert pages.startz().status == 503
    services.synced = True
    assert pages.startz()[:3] == (200, PLAIN, b"started\n")


def test_the_agent_is_ready_when_all_is_attached_and_the_cluster_is_known_and_says_what_is_missing(world):
    sources = Sources()
    pages = Pages(sources)
    assert (pages.readyz().status, pages.readyz().body.decode()) == (503, f"{NOT_ATTACHED}\n")
    services, sets = WatchHealth("services", required=True), WatchHealth("statefulsets", required=False)
    services.wanted = sets.wanted = True
    services.failed(RefusedError(403, "Forbidden", "not allowed"))
    sources.agent = agent(world, lambda: (services, sets))
    said = pages.readyz()
    assert said.status == 503
    assert said.body.decode() == "Kubernetes: services have not been taken in yet (403 Forbidden: not allowed)\n"
    services.synced = True
    assert (pages.readyz().status, pages.readyz().body) == (200, b"ready\n")
    assert value(scraped(sources), "ready") == 1


def test_the_page_for_people_says_what_this_is_and_escapes_what_others_wrote(world):
    sources = Sources()
    sources.agent = agent(world)
    text = Pages(sources).home().body.decode()
    assert "dnstrail" in text
    assert "ready" in text
    assert "&lt;something&gt;" in text
