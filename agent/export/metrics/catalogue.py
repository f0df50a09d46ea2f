"""Every metric there is, as data: name, kind, help, labels and all their values, buckets.

Alerts, the dashboard and `docs/metrics.md` are made of this; names and labels are a promise to users.
https://prometheus.io/docs/practices/naming/ is followed, and label names that clash with target labels (type, zone,
stage, service, namespace, pod, …) are not used. No label carries a name that was asked for, an address or a pod's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import product
from typing import NamedTuple

from agent.capture.cgroup import ATTACH_TYPES
from agent.capture.loader import PROBE
from agent.enrich.kube.events import RESULTS
from agent.explain.causes import CAUSES, EVERYWHERE, Side
from agent.explain.findings import NAMES
from agent.hop.record import Event
from agent.kernel.offsets import TRACEPOINTS

SECOND_NS = 1_000_000_000
FIRST_BUCKET_NS = 250_000
BUCKETS = 16
LATENCY_BUCKETS = tuple(FIRST_BUCKET_NS * 2**index / SECOND_NS for index in range(BUCKETS))
"""Seconds, 0.25 ms to 8.192 s: those of CoreDNS's coredns_dns_request_duration_seconds, to be laid over it."""
TURN_BUCKETS = (0.01, 0.025, 0.05, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
"""Seconds. The loop sleeps in a turn, up to one second without lookups: the bounds are a little above its pauses."""
OTHER = "other"
REST = "~other"
"""Clients beyond the cap. No Kubernetes name has a tilde."""
NOBODY = "~unknown"
"""Clients that no pod of this node is known for: programs of the node itself, as a rule."""


class Kind(StrEnum):
    """What Prometheus calls the type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


class Label(NamedTuple):
    """One label."""

    name: str
    values: tuple[str, ...]
    """All of them; empty when they are known at run time only."""
    meaning: str


@dataclass(frozen=True, eq=False)
class Metric:
    """One family of series. There is one of each, so that they are told apart by identity."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    combinations: tuple[tuple[str, ...], ...] | None = None
    """Label values that are there from the start; None stands for every combination."""
    buckets: tuple[float, ...] = ()
    when: str = ""
    """What it takes for the series to be there; empty: nothing, they start at 0."""

    @property
    def unit(self) -> str:
        """The base unit, by the name; empty for plain counts."""
        words = self.name.removesuffix("_total").split("_")
        return words[-1] if words[-1] in UNITS else ""

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """In the order of the values in every sample."""
        return tuple(label.name for label in self.labels)

    @cached_property
    def known(self) -> tuple[tuple[str, ...], ...]:
        """Label values of the series that are there from the start."""
        if self.combinations is not None:
            return self.combinations
        return () if self.when else tuple(product(*(label.values for label in self.labels)))


UNITS = ("seconds", "bytes", "ratio")

RCODES = (
    *("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH"),
    *("NOTZONE", "DSOTYPENI", "BADVERS", "BADKEY", "BADTIME", "BADMODE", "BADNAME", "BADALG", "BADTRUNC", "BADCOOKIE"),
)
"""IANA, DNS RCODEs; 16 is BADVERS in a reply (and BADSIG in TSIG only)."""
QTYPES = ("A", "AAAA", "ANY", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "SVCB", "TXT")
NOTHING_ASKED = "none"
STATUSES = ("Succeeded", "Failed", "SampleLoss")
VANTAGES = ("both", "client", "server", "transit")
LEGS = {code: cause.lost for code, cause in CAUSES.items() if cause.lost}
"""Which messages each cause is the loss of; CaptureLoss lost records of ours."""
ANSWERS = ("UpstreamError", "ServerError")
"""Causes that are an answer: where the lookup failed by it, no message was lost."""
BITMAPS: dict[str, tuple[int, ...]] = {
    "Succeeded": (3, 7, 15),
    "Failed": (0, 1, 3, 5, 7, 13, 15),
    "SampleLoss": (0, 1, 3, 5, 7, 13, 15),
}
"""BitMaps that each status can have, see docs/semantics.md."""

VANTAGE = Label(
    "vantage",
    VANTAGES,
    "Ends of the lookup on this node: `both`, `client`, `server`, or none (`transit`). Both the client's node and the "
    'server\'s see a lookup between them: `vantage=~"both|client"` has each lookup of the cluster once',
)
PROTO = Label("proto", ("udp", "tcp"), "Transport")
QTYPE = Label(
    "qtype",
    (*QTYPES, OTHER, NOTHING_ASKED),
    f"Record type asked for; `{NOTHING_ASKED}`: the TCP connection failed before anything was asked",
)
RCODE = Label("rcode", (*RCODES, OTHER), "Response code as in the IANA registry")
STATUS = Label("status", STATUSES, "See docs/semantics.md")
BITMAP = Label("bitmap", tuple(map(str, range(16))), "CQ=1, CR=2, FQ=4, FR=8, see docs/semantics.md")
CAUSE = Label("cause", tuple(CAUSES), "Code, see docs/causes.md")
CONFIDENCE = Label("confidence", ("high", "medium", "low"), "How sure the verdict is")
INCIDENT_CAUSE = Label(
    "cause", tuple(code for code, text in CAUSES.items() if text.side is not Side.AGENT), "Code, see docs/causes.md"
)
LOST_BY = Label("cause", tuple(LEGS), "Code, see docs/causes.md")
LEG = Label(
    "leg",
    EVERYWHERE,
    "The client's `query`, the `reply` to it, or a message between the DNS server and its `upstream`",
)
HALF = Label("lost", ("A", "AAAA"), "Which half of the pair")
FINDING = Label("finding", NAMES, "See docs/semantics.md")
BACKGROUND = Label(
    "kind",
    ("health_check", "loop_probe", "refresh"),
    "`.` NS asked of an upstream, a server looking for its reflection, a cache renewing an answer",
)
NETNS = Label(
    "netns",
    ("host", "dns_server"),
    "Network namespaces: the agent's own (the node's), or all others that a DNS server replied from",
)
EVENT = Label("event", tuple(event.name.lower() for event in Event), "Where in the kernel the packet was")
PROGRAM = Label(
    "program",
    (*TRACEPOINTS, *ATTACH_TYPES, PROBE),
    "BPF program, by what it is attached to",
)
LOSS_STEPS = (
    ("program", "nested"),
    ("program", "skipped_run"),
    ("log", "full"),
    ("ring", "full"),
    ("join", "unmatched"),
    ("join", "overflowed"),
)
STEP = Label("step", ("program", "log", "ring", "join"), "Where on the way from the kernel to a session")
LOSS = Label(
    "reason",
    ("nested", "skipped_run", "full", "unmatched", "overflowed"),
    "`nested`: an interrupt hit the program at work; `skipped_run`: the kernel did not run it; `full`: no room in the "
    "log of lookups or in the ring; `unmatched`: the record with the message itself did not come; "
    "`overflowed`: more than a session may have",
)
IGNORED = Label(
    "reason",
    (
        "malformed",
        "cut",
        "without_question",
        "benign_drop",
        "stray_icmp",
        "fragment",
        "late",
        "started_mid_lookup",
        "unasked",
    ),
    "`malformed`: no DNS message; `cut`: its bytes were not all captured; `without_question`: it asks nothing and "
    "answers no open session; `benign_drop`: a copy nobody waits for; `stray_icmp`: about no open session; "
    "`fragment`: a later IP fragment; `late`: of a closed session; `started_mid_lookup`: asked before the agent began; "
    "`unasked`: a reply to no query, from another port than DNS's",
)
HELPER = Label("helper", ("read", "map_update"), "What the BPF program asked of the kernel in vain")
UNJOINED = Label(
    "reason",
    ("contended", "crowded"),
    "`contended`: two programs wanted the same place of the log; `crowded`: the index of the log forgot a lookup",
)
HELD_BACK = Label(
    "reason",
    ("rate_limit", "failure_rate", "budget", "slow_reader"),
    "`rate_limit`: --log-rate, for sessions that succeeded; `failure_rate`: many failures alike; `budget`: --max-lines "
    "and --max-bytes, for all lines together; `slow_reader`: stdout was not read in time, or was full",
)
HTTP_CODE = Label("code", ("200", "400", "404", "405", "408", "500", "503"), "HTTP status")
WATCH = Label("resource", (), "What is watched: pods-here, services, …")
WATCH_ERROR = Label("error", (), "One word: Unreachable, Silent, or the API server's reason, such as Forbidden")
EVENT_RESULT = Label(
    "result",
    (*RESULTS, "left_out"),
    "created; updated; gone: the pod's namespace was deleted; failed; dropped: too many waited; left_out: a pod of an "
    "incident that has ten already",
)
VERSION = Label("version", (), "Of dnstrail")
PYTHON = Label("python", (), "Of the interpreter")
KERNEL = Label("kernel", (), "Release of the running kernel")
CLIENT_NAMESPACE = Label(
    "client_namespace",
    (),
    f"Kubernetes namespace of the client, from its first lookup until it has been gone for a while; `{NOBODY}` where "
    f"it is no known pod, `{REST}` beyond the cap",
)
CLIENT_WORKLOAD = Label(
    "client_workload",
    (),
    f"`Deployment/cart`: with --metrics-by workload only; `{NOBODY}` and `{REST}` likewise",
)
FEW_RCODES = Label("rcode", ("NOERROR", "NXDOMAIN", "SERVFAIL", "REFUSED", OTHER), "Response code, the usual ones")


def _counter(
    name: str, text: str, *labels: Label, combinations: tuple[tuple[str, ...], ...] | None = None, when: str = ""
) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels, combinations, when=when)


def _gauge(
    name: str, text: str, *labels: Label, combinations: tuple[tuple[str, ...], ...] | None = None, when: str = ""
) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels, combinations, when=when)


def _latency(name: str, text: str, *labels: Label) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels, buckets=LATENCY_BUCKETS)


# Lookups

QUERIES = _counter(
    "dnstrail_queries_total",
    "Queries as clients sent them, retransmissions included",
    VANTAGE,
    PROTO,
    QTYPE,
    combinations=tuple(
        (vantage, proto, qtype)
        for vantage, proto, qtype in product(VANTAGES, PROTO.values, QTYPE.values)
        if proto == "tcp" or qtype != NOTHING_ASKED
    ),
)
RESPONSES = _counter(
    "dnstrail_responses_total",
    "Lookups that were replied to, by the rcode of the reply that counts: the delivered one, else the last",
    VANTAGE,
    RCODE,
)
SESSIONS = _counter(
    "dnstrail_sessions_total",
    "Lookups that are over",
    VANTAGE,
    STATUS,
    BITMAP,
    combinations=tuple(
        (vantage, status, str(bitmap)) for vantage in VANTAGES for status in STATUSES for bitmap in BITMAPS[status]
    ),
)
RETRANSMISSIONS = _counter(
    "dnstrail_retransmissions_total", "Queries that were sent to the same server again for the same lookup", VANTAGE
)
TRUNCATED = _counter(
    "dnstrail_truncated_responses_total", "Replies with the TC bit: to be asked again over TCP", VANTAGE
)
PAIRS = _counter(
    "dnstrail_pairs_total",
    "Pairs of lookups for A and AAAA of one name from one socket, as most resolvers make",
    VANTAGE,
)
FINDING_COUNTS = _counter("dnstrail_findings_total", "Lookups with a remark", FINDING)
BACKGROUND_LOOKUPS = _counter(
    "dnstrail_background_lookups_total",
    "Lookups that DNS servers made for themselves: no client waits for them",
    BACKGROUND,
)

# Losses

LOST_MESSAGES = _counter(
    "dnstrail_lost_messages_total",
    "Messages that were lost, or not answered, also where a later attempt succeeded",
    VANTAGE,
    LOST_BY,
    LEG,
    combinations=tuple((vantage, cause, leg) for vantage in VANTAGES for cause, legs in LEGS.items() for leg in legs),
)
PAIR_LOSSES = _counter(
    "dnstrail_pair_losses_total", "Pairs of A and AAAA of which one half was lost and the other answered", VANTAGE, HALF
)
SESSION_CAUSES = _counter(
    "dnstrail_session_causes_total", "Lookups that failed or lost an attempt, by their cause", CAUSE, CONFIDENCE
)

INCIDENTS = _counter("dnstrail_incidents_total", "Incidents that began: see docs/incidents.md", INCIDENT_CAUSE)
INCIDENTS_OPEN = _gauge("dnstrail_incidents_open", "Incidents that go on", INCIDENT_CAUSE)

# Latency

LOOKUP_SECONDS = _latency(
    "dnstrail_lookup_duration_seconds",
    "What clients of this node waited: from the first query to the delivered reply, lost attempts included",
)
SERVER_SECONDS = _latency(
    "dnstrail_server_duration_seconds",
    "What DNS servers of this node took: from the query's arrival to the reply, waiting for upstreams included",
)
UPSTREAM_SECONDS = _latency(
    "dnstrail_upstream_duration_seconds",
    "Of that, waiting for upstreams: from the first question to the last reply, for each lookup that was forwarded",
)
TRANSIT_SECONDS = _latency(
    "dnstrail_transit_duration_seconds",
    "The way between client and server where both are on this node: from the socket to the other end's namespace",
    Label("leg", ("query", "reply"), "Which way"),
)

# Upstream

UPSTREAM_QUERIES = _counter(
    "dnstrail_upstream_queries_total", "Queries that DNS servers of this node sent to answer a client's", PROTO
)
UPSTREAM_RESPONSES = _counter("dnstrail_upstream_responses_total", "Replies to those, by rcode", RCODE)

# Kernel

_CONNTRACK = "connection tracking is loaded and can be read, and for `dns_server` there is one"
CONNTRACK_ENTRIES = _gauge(
    "dnstrail_conntrack_entries",
    "Entries of the connection-tracking table; of several namespaces, the fullest one's",
    NETNS,
    when=_CONNTRACK,
)
CONNTRACK_LIMIT = _gauge(
    "dnstrail_conntrack_entries_limit",
    "nf_conntrack_max: how many entries each namespace may have, the same for all",
    NETNS,
    when=_CONNTRACK,
)
CONNTRACK_DROPS = _counter(
    "dnstrail_conntrack_drop_total", "Packets dropped because the table was full or could not take the entry", NETNS
)
CONNTRACK_EARLY_DROPS = _counter(
    "dnstrail_conntrack_early_drop_total", "Entries thrown out before their time to make room for new ones", NETNS
)
CONNTRACK_INSERT_FAILED = _counter(
    "dnstrail_conntrack_insert_failed_total",
    "Entries that lost a race for their place, so that the packet was dropped",
    NETNS,
)
CONNTRACK_INVALID = _counter(
    "dnstrail_conntrack_invalid_total", "Packets that connection tracking could not make sense of", NETNS
)
UDP_RECEIVE_BUFFER_ERRORS = _counter(
    "dnstrail_udp_receive_buffer_errors_total", "UDP datagrams that found their socket's receive buffer full", NETNS
)
SOFTNET_DROPPED = _counter(
    "dnstrail_softnet_dropped_total", "Packets of this node that found a CPU's backlog full (netdev_max_backlog)"
)
NEIGHBOUR_TABLE_FULLS = _counter(
    "dnstrail_neighbour_table_full_total", "New neighbours that found no room in the tables of this node (gc_thresh3)"
)
SERVER_NAMESPACES = _gauge(
    "dnstrail_dns_server_namespaces", "Network namespaces of this node that DNS servers replied from"
)

# Capture

RECORDS = _counter("dnstrail_capture_records_total", "Records that the BPF programs made of packets", EVENT)
LOST_RECORDS = _counter(
    "dnstrail_capture_lost_records_total",
    "Records of our own that were lost, so that lookups may be SampleLoss",
    STEP,
    LOSS,
    combinations=LOSS_STEPS,
)
IGNORED_RECORDS = _counter("dnstrail_capture_ignored_records_total", "Records that belong to no session", IGNORED)
HELPER_ERRORS = _counter("dnstrail_capture_helper_errors_total", "What BPF programs could not read or remember", HELPER)
CUT_MESSAGES = _counter(
    "dnstrail_capture_cut_messages_total", "Messages that the BPF programs could not read whole where they were seen"
)
UNJOINED_RECORDS = _counter(
    "dnstrail_capture_unjoined_records_total",
    "Occasions on which the BPF programs sent the hops of a lookup one by one; nothing is lost by that",
    UNJOINED,
)
RING_SIZE = _gauge("dnstrail_ring_size_bytes", "Size of the ring between the BPF programs and the agent")
RING_USAGE = _gauge("dnstrail_ring_usage_ratio", "Part of the ring that waits to be read, now")
RING_PEAK = _gauge(
    "dnstrail_ring_usage_peak_ratio",
    "The largest part of the ring that waited to be read within the last 30 to 60 seconds",
)
PROGRAM_RUNS = _counter(
    "dnstrail_bpf_program_runs_total",
    "Runs of each BPF program, while the kernel keeps statistics",
    PROGRAM,
)
PROGRAM_SECONDS = _counter(
    "dnstrail_bpf_program_run_seconds_total",
    "Time spent in each BPF program, while the kernel keeps statistics",
    PROGRAM,
)
BPF_STATISTICS = _gauge(
    "dnstrail_bpf_statistics_enabled",
    "1 if the kernel was told to keep statistics of BPF programs: sysctl kernel.bpf_stats_enabled",
)
LIMITATIONS = _gauge(
    "dnstrail_capture_limitations",
    "What this kernel or these privileges keep the agent from seeing: see `dnstrail check`",
)

# Agent

OPEN_SESSIONS = _gauge("dnstrail_open_sessions", "Lookups that are not over")
OPEN_SESSIONS_LIMIT = _gauge("dnstrail_open_sessions_limit", "How many there may be: --max-sessions")
EVICTED_SESSIONS = _counter(
    "dnstrail_evicted_sessions_total", "Lookups closed before their time because there were too many: SampleLoss"
)
LOG_LINES = _counter("dnstrail_log_lines_total", "Session lines made for stdout")
INCIDENT_LINES = _counter("dnstrail_incident_lines_total", "Incident lines made for stdout")
LOG_LINES_SUPPRESSED = _counter("dnstrail_log_lines_suppressed_total", "Lines held back, or lost at stdout", HELD_BACK)
TURN_SECONDS = Metric(
    "dnstrail_loop_turn_duration_seconds",
    Kind.HISTOGRAM,
    "Time from one turn of the event loop to the next, with its sleep: up to a second without lookups",
    buckets=TURN_BUCKETS,
)
TURN_AGE = _gauge("dnstrail_loop_last_turn_age_seconds", "How long ago the event loop turned last")
READY = _gauge("dnstrail_ready", "1 if /readyz says so")
HTTP_REQUESTS = _counter("dnstrail_http_requests_total", "Requests to this port that were answered", HTTP_CODE)
HTTP_REFUSED = _counter(
    "dnstrail_http_refused_connections_total",
    "Connections to this port that were closed at once because of too many others",
)
BUILD_INFO = _gauge(
    "dnstrail_build_info",
    "1; the labels say what runs here",
    VERSION,
    PYTHON,
    KERNEL,
    combinations=(),
)

# Kubernetes

_KUBERNETES = "the agent knows a Kubernetes API server"
WATCH_SYNCED = _gauge(
    "dnstrail_kubernetes_watch_synced", "1 if all that there was has been taken in", WATCH, when=_KUBERNETES
)
WATCH_CONNECTED = _gauge("dnstrail_kubernetes_watch_connected", "1 while the watch is open", WATCH, when=_KUBERNETES)
WATCH_WANTED = _gauge("dnstrail_kubernetes_watch_wanted", "1 if it is needed at present", WATCH, when=_KUBERNETES)
WATCH_OBJECTS = _gauge("dnstrail_kubernetes_watch_objects", "Objects known by it", WATCH, when=_KUBERNETES)
WATCH_LEFT_OUT = _gauge(
    "dnstrail_kubernetes_watch_objects_left_out", "Objects not kept because there are too many", WATCH, when=_KUBERNETES
)
WATCH_CONTACT = _gauge(
    "dnstrail_kubernetes_watch_last_contact_timestamp_seconds",
    "Unix time of the last bytes from the API server; 0 before the first",
    WATCH,
    when=_KUBERNETES,
)
WATCH_LISTS = _counter(
    "dnstrail_kubernetes_watch_lists_total", "How often everything was listed", WATCH, when=_KUBERNETES
)
WATCH_OPENED = _counter("dnstrail_kubernetes_watch_opened_total", "How often it was opened", WATCH, when=_KUBERNETES)
WATCH_EVENTS = _counter("dnstrail_kubernetes_watch_events_total", "Events that it told", WATCH, when=_KUBERNETES)
WATCH_UNDECODABLE = _counter(
    "dnstrail_kubernetes_watch_undecodable_objects_total", "Objects that could not be read", WATCH, when=_KUBERNETES
)
WATCH_ERRORS = _counter(
    "dnstrail_kubernetes_watch_errors_total",
    "What went wrong, once it did",
    WATCH,
    WATCH_ERROR,
    when=_KUBERNETES,
)

_EVENTS = "--events is given"
EVENTS = _counter(
    "dnstrail_kubernetes_events_total",
    "Kubernetes Events of incidents: what became of each",
    EVENT_RESULT,
    when=_EVENTS,
)
EVENT_ERRORS = _counter(
    "dnstrail_kubernetes_event_errors_total",
    "Attempts to write one that failed, once one did",
    WATCH_ERROR,
    when=_EVENTS,
)

# Clients, on request

_BY = "--metrics-by is given"
_CLIENT = (CLIENT_NAMESPACE, CLIENT_WORKLOAD)
CLIENT_QUERIES = _counter(
    "dnstrail_client_queries_total", "Queries of clients of this node, retransmissions included", *_CLIENT, when=_BY
)
CLIENT_SESSIONS = _counter("dnstrail_client_sessions_total", "Their lookups", *_CLIENT, STATUS, when=_BY)
CLIENT_RESPONSES = _counter(
    "dnstrail_client_responses_total", "Replies to them, by rcode", *_CLIENT, FEW_RCODES, when=_BY
)
CLIENT_LOST_MESSAGES = _counter(
    "dnstrail_client_lost_messages_total", "Messages of theirs that were lost or not answered", *_CLIENT, LEG, when=_BY
)
CLIENT_RETRANSMISSIONS = _counter(
    "dnstrail_client_retransmissions_total", "Queries that they had to send again", *_CLIENT, when=_BY
)
CLIENT_SECONDS = Metric(
    "dnstrail_client_lookup_duration_seconds",
    Kind.SUMMARY,
    "What they waited for delivered replies: _sum and _count, no quantiles",
    _CLIENT,
    when=_BY,
)
CLIENTS = _gauge("dnstrail_clients", "Clients with series of their own", when=_BY)
CLIENTS_LIMIT = _gauge("dnstrail_clients_limit", "How many there may be: --metrics-cap", when=_BY)

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Lookups": (
        QUERIES,
        RESPONSES,
        SESSIONS,
        RETRANSMISSIONS,
        TRUNCATED,
        PAIRS,
        FINDING_COUNTS,
        BACKGROUND_LOOKUPS,
    ),
    "Losses": (LOST_MESSAGES, PAIR_LOSSES, SESSION_CAUSES),
    "Incidents": (INCIDENTS, INCIDENTS_OPEN),
    "Latency": (LOOKUP_SECONDS, SERVER_SECONDS, UPSTREAM_SECONDS, TRANSIT_SECONDS),
    "Upstreams": (UPSTREAM_QUERIES, UPSTREAM_RESPONSES),
    "Kernel": (
        CONNTRACK_ENTRIES,
        CONNTRACK_LIMIT,
        CONNTRACK_DROPS,
        CONNTRACK_EARLY_DROPS,
        CONNTRACK_INSERT_FAILED,
        CONNTRACK_INVALID,
        UDP_RECEIVE_BUFFER_ERRORS,
        SOFTNET_DROPPED,
        NEIGHBOUR_TABLE_FULLS,
        SERVER_NAMESPACES,
    ),
    "Capture": (
        RECORDS,
        LOST_RECORDS,
        IGNORED_RECORDS,
        HELPER_ERRORS,
        CUT_MESSAGES,
        UNJOINED_RECORDS,
        RING_SIZE,
        RING_USAGE,
        RING_PEAK,
        PROGRAM_RUNS,
        PROGRAM_SECONDS,
        BPF_STATISTICS,
        LIMITATIONS,
    ),
    "Agent": (
        OPEN_SESSIONS,
        OPEN_SESSIONS_LIMIT,
        EVICTED_SESSIONS,
        LOG_LINES,
        INCIDENT_LINES,
        LOG_LINES_SUPPRESSED,
        TURN_SECONDS,
        TURN_AGE,
        READY,
        HTTP_REQUESTS,
        HTTP_REFUSED,
        BUILD_INFO,
    ),
    "Kubernetes": (
        WATCH_SYNCED,
        WATCH_CONNECTED,
        WATCH_WANTED,
        WATCH_OBJECTS,
        WATCH_LEFT_OUT,
        WATCH_CONTACT,
        WATCH_LISTS,
        WATCH_OPENED,
        WATCH_EVENTS,
        WATCH_UNDECODABLE,
        WATCH_ERRORS,
    ),
    "Kubernetes Events": (EVENTS, EVENT_ERRORS),
    "Clients": (
        CLIENT_QUERIES,
        CLIENT_SESSIONS,
        CLIENT_RESPONSES,
        CLIENT_LOST_MESSAGES,
        CLIENT_RETRANSMISSIONS,
        CLIENT_SECONDS,
        CLIENTS,
        CLIENTS_LIMIT,
    ),
}
METRICS: tuple[Metric, ...] = tuple(metric for section in SECTIONS.values() for metric in section)
