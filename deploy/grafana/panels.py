"""What the dashboard shows, as data: rows of panels, each with its questions to Prometheus.

Panels that say nothing else are described by the help of their metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.export.metrics import catalogue as m
from deploy.grafana.promql import WINDOW, largest, per_second, quantile, series, share, total

if TYPE_CHECKING:
    from agent.export.metrics.catalogue import Metric

CLIENTS = "both|client"
"""The vantages that have each lookup of the cluster once."""
SERVERS = "both|server"
NODE = ("node", "instance")
NODE_NAME = "{{node}} {{instance}}"
"""Without Kubernetes there is no label `node`."""
MOST = 10
QUANTILES = (0.5, 0.9, 0.99)

COUNTS, RATES, PACKETS, SHARES, SECONDS, BYTES = "short", "reqps", "pps", "percentunit", "s", "bytes"
EXACT, YES_NO = "none", "bool_yes_no"


class Target(NamedTuple):
    """One question, and how its answers are named."""

    expression: str
    legend: str


class Panel(NamedTuple):
    """One picture."""

    title: str
    unit: str
    targets: tuple[Target, ...]
    metrics: tuple[Metric, ...] = ()
    """For the description, where there are no words of its own."""
    words: str = ""
    kind: str = "timeseries"
    width: int = 8
    """Of 24."""
    stacked: bool = False
    danger: float | None = None
    """From here on it is red."""

    @property
    def description(self) -> str:
        """What one sees."""
        return self.words or " ".join(f"{metric.help}." for metric in self.metrics)


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


def _by_label(metric: Metric, label: str, **matchers: str) -> Target:
    """The growth of a counter for each value of a label, without those at 0 all the time."""
    return Target(f"{per_second(metric, label, **matchers)} > 0", f"{{{{{label}}}}}")


def _quantiles(metric: Metric, *by: str, **matchers: str) -> tuple[Target, ...]:
    names = "".join(f" {{{{{label}}}}}" for label in by)
    return tuple(Target(quantile(part, metric, *by, **matchers), f"{part:.0%}{names}") for part in QUANTILES)


def _most(expression: str) -> str:
    return f"topk({MOST}, {expression})"


def _each(*metrics: Metric, by: tuple[str, ...] = NODE, **matchers: str) -> tuple[Target, ...]:
    """The growth of several counters beside each other."""
    names = " ".join(f"{{{{{label}}}}}" for label in by)
    return tuple(Target(per_second(one, *by, **matchers), f"{_word(one)} {names}".strip()) for one in metrics)


def _word(metric: Metric) -> str:
    return metric.name.removeprefix("dnstrail_").removesuffix("_total").replace("_", " ")


QUERIES = per_second(m.QUERIES, vantage=CLIENTS)
LOST = per_second(m.LOST_MESSAGES, vantage=CLIENTS, leg="query|reply")
REPLIES = per_second(m.RESPONSES, vantage=CLIENTS)
ERRORS = f"{REPLIES}\n-\n{per_second(m.RESPONSES, vantage=CLIENTS, rcode='NOERROR|NXDOMAIN')}"
LOOKUPS = per_second(m.SESSIONS, vantage=CLIENTS)
UNFINISHED = per_second(m.SESSIONS, vantage=CLIENTS, status="SampleLoss")
NOT_ANSWERED = per_second(m.LOST_MESSAGES, "cause", cause="ServerNoReply|NoListener|ServerSocketOverflow", leg="query")
UPSTREAM_LOST = per_second(m.LOST_MESSAGES, leg="upstream")
UPSTREAM_REPLIES = per_second(m.UPSTREAM_RESPONSES)
RECORDS = per_second(m.RECORDS)
LOST_RECORDS = per_second(m.LOST_RECORDS)

OVERVIEW = Row(
    "Overview",
    (
        Panel("Lookups", RATES, (Target(LOOKUPS, "lookups"),), (m.SESSIONS,), kind="stat", width=4),
        Panel(
            "Queries lost",
            SHARES,
            (Target(share(LOST, QUERIES), "lost"),),
            words="Share of the queries of clients that were lost, or whose replies were.",
            kind="stat",
            width=4,
            danger=0.01,
        ),
        Panel(
            "Errors",
            SHARES,
            (Target(share(f"(\n{ERRORS}\n)", REPLIES), "errors"),),
            words="Share of the replies that are neither NOERROR nor NXDOMAIN.",
            kind="stat",
            width=4,
            danger=0.01,
        ),
        Panel(
            "Slowest of a hundred",
            SECONDS,
            (Target(quantile(0.99, m.LOOKUP_SECONDS), "99%"),),
            (m.LOOKUP_SECONDS,),
            kind="stat",
            width=4,
            danger=1,
        ),
        Panel(
            "Not known",
            SHARES,
            (Target(share(UNFINISHED, LOOKUPS), "SampleLoss"),),
            words="Share of the lookups of which the agent itself lost a part: SampleLoss.",
            kind="stat",
            width=4,
            danger=0.01,
        ),
        Panel("Agents ready", EXACT, (Target(total(m.READY), "ready"),), (m.READY,), kind="stat", width=4),
        Panel(
            "Lookups by status",
            RATES,
            (Target(per_second(m.SESSIONS, "status", vantage=CLIENTS), "{{status}}"),),
            (m.SESSIONS,),
            stacked=True,
        ),
        Panel(
            "Replies by code",
            RATES,
            (_by_label(m.RESPONSES, "rcode", vantage=CLIENTS),),
            (m.RESPONSES,),
            stacked=True,
        ),
        Panel(
            "Queries by type",
            RATES,
            (_by_label(m.QUERIES, "qtype", vantage=CLIENTS),),
            (m.QUERIES,),
            stacked=True,
        ),
        Panel(
            "Lookups by BitMap",
            RATES,
            (_by_label(m.SESSIONS, "bitmap", vantage=CLIENTS),),
            words="What got to the DNS servers and back: 0 never got there, 1 was not answered, 3 was answered by the "
            "server itself, 15 by its upstream, 5 and 7 had a silent upstream.",
        ),
        Panel(
            "Asked again, and cut replies",
            RATES,
            _each(m.RETRANSMISSIONS, m.TRUNCATED, by=(), vantage=CLIENTS),
            (m.RETRANSMISSIONS, m.TRUNCATED),
        ),
        Panel("Remarks", RATES, (_by_label(m.FINDING_COUNTS, "finding"),), (m.FINDING_COUNTS,)),
    ),
)
LOSSES = Row(
    "Losses by cause",
    (
        Panel(
            "Messages lost, by cause",
            PACKETS,
            (_by_label(m.LOST_MESSAGES, "cause", vantage=CLIENTS),),
            (m.LOST_MESSAGES,),
            width=12,
            stacked=True,
        ),
        Panel(
            "Share of queries lost, by node",
            SHARES,
            (
                Target(
                    _most(
                        share(
                            per_second(m.LOST_MESSAGES, *NODE, vantage=CLIENTS, leg="query|reply"),
                            per_second(m.QUERIES, *NODE, vantage=CLIENTS),
                        )
                    ),
                    NODE_NAME,
                ),
            ),
            words="The ten nodes whose clients lose the largest share of their queries, or of the replies.",
            width=12,
            danger=0.01,
        ),
        Panel(
            "Messages lost, by leg",
            PACKETS,
            (Target(per_second(m.LOST_MESSAGES, "leg", vantage=CLIENTS), "{{leg}}"),),
            (m.LOST_MESSAGES,),
        ),
        Panel(
            "Pairs of A and AAAA that lose one",
            SHARES,
            (
                Target(
                    share(
                        per_second(m.PAIR_LOSSES, "lost", vantage=CLIENTS),
                        per_second(m.PAIRS, vantage=CLIENTS),
                        over="lost",
                    ),
                    "{{lost}} lost",
                ),
            ),
            words="Share of the pairs of which one half was lost and the other answered: the five-second delay.",
            danger=0.01,
        ),
        Panel(
            "Verdicts",
            RATES,
            (Target(f"{per_second(m.SESSION_CAUSES, 'cause', 'confidence')} > 0", "{{cause}} {{confidence}}"),),
            (m.SESSION_CAUSES,),
        ),
        Panel(
            "Incidents that go on, by cause",
            COUNTS,
            (Target(f"{total(m.INCIDENTS_OPEN, 'cause')} > 0", "{{cause}}"),),
            (m.INCIDENTS_OPEN,),
            width=12,
            stacked=True,
        ),
        Panel(
            "Incidents that began, by cause",
            RATES,
            (_by_label(m.INCIDENTS, "cause"),),
            (m.INCIDENTS,),
            width=12,
        ),
    ),
)
LATENCY = Row(
    "Path and latency, leg by leg",
    (
        Panel("Whole lookups", SECONDS, _quantiles(m.LOOKUP_SECONDS), (m.LOOKUP_SECONDS,)),
        Panel("On the way", SECONDS, _quantiles(m.TRANSIT_SECONDS, "leg"), (m.TRANSIT_SECONDS,)),
        Panel(
            "Slowest of a hundred, by node",
            SECONDS,
            (Target(_most(quantile(0.99, m.LOOKUP_SECONDS, *NODE)), NODE_NAME),),
            (m.LOOKUP_SECONDS,),
        ),
    ),
)
SERVERS_ROW = Row(
    "DNS servers",
    (
        Panel("Time in the server", SECONDS, _quantiles(m.SERVER_SECONDS), (m.SERVER_SECONDS,)),
        Panel(
            "Not answered",
            RATES,
            (Target(f"{NOT_ANSWERED} > 0", "{{cause}}"),),
            words="Queries that got to a DNS server and were not answered: it was silent, nothing listened, or its "
            "receive buffer was full.",
        ),
        Panel(
            "Replies by node of the server",
            RATES,
            (Target(_most(per_second(m.RESPONSES, *NODE, vantage=SERVERS)), NODE_NAME),),
            words="How evenly the work is spread over the nodes with DNS servers.",
        ),
        Panel(
            "Receive buffers overflowed",
            PACKETS,
            (Target(per_second(m.UDP_RECEIVE_BUFFER_ERRORS, *NODE, "netns"), f"{{{{netns}}}} {NODE_NAME}"),),
            (m.UDP_RECEIVE_BUFFER_ERRORS,),
        ),
        Panel(
            "Network namespaces with DNS servers",
            EXACT,
            (Target(total(m.SERVER_NAMESPACES, *NODE), NODE_NAME),),
            (m.SERVER_NAMESPACES,),
        ),
        Panel(
            "Asked for themselves",
            RATES,
            (Target(per_second(m.BACKGROUND_LOOKUPS, "kind"), "{{kind}}"),),
            (m.BACKGROUND_LOOKUPS,),
        ),
    ),
)
UPSTREAMS = Row(
    "Upstreams",
    (
        Panel(
            "Asked upstream",
            RATES,
            (Target(per_second(m.UPSTREAM_QUERIES, "proto"), "{{proto}}"),),
            (m.UPSTREAM_QUERIES,),
            width=6,
        ),
        Panel(
            "Replies of upstreams",
            RATES,
            (_by_label(m.UPSTREAM_RESPONSES, "rcode"),),
            (m.UPSTREAM_RESPONSES,),
            width=6,
        ),
        Panel(
            "Not answered by upstreams",
            SHARES,
            (Target(share(UPSTREAM_LOST, f"(\n{UPSTREAM_LOST}\n+\n{UPSTREAM_REPLIES}\n)"), "not answered"),),
            words="Share of what DNS servers asked their upstreams that was lost, or not answered.",
            width=6,
            danger=0.05,
        ),
        Panel("Waiting for upstreams", SECONDS, _quantiles(m.UPSTREAM_SECONDS), (m.UPSTREAM_SECONDS,), width=6),
    ),
)
KERNEL = Row(
    "Connection tracking and the kernel",
    (
        Panel(
            "Connection table in use",
            SHARES,
            (
                Target(
                    _most(
                        share(largest(m.CONNTRACK_ENTRIES, *NODE, "netns"), largest(m.CONNTRACK_LIMIT, *NODE, "netns"))
                    ),
                    f"{{{{netns}}}} {NODE_NAME}",
                ),
            ),
            (m.CONNTRACK_ENTRIES, m.CONNTRACK_LIMIT),
            width=6,
            danger=0.75,
        ),
        Panel(
            "Dropped by connection tracking",
            PACKETS,
            _each(m.CONNTRACK_DROPS, m.CONNTRACK_INSERT_FAILED, by=(*NODE, "netns")),
            (m.CONNTRACK_DROPS, m.CONNTRACK_INSERT_FAILED),
            width=6,
        ),
        Panel(
            "Entries given up, packets invalid",
            PACKETS,
            _each(m.CONNTRACK_EARLY_DROPS, m.CONNTRACK_INVALID, by=(*NODE, "netns")),
            (m.CONNTRACK_EARLY_DROPS, m.CONNTRACK_INVALID),
            width=6,
        ),
        Panel(
            "Backlog and neighbour tables full",
            PACKETS,
            _each(m.SOFTNET_DROPPED, m.NEIGHBOUR_TABLE_FULLS),
            (m.SOFTNET_DROPPED, m.NEIGHBOUR_TABLE_FULLS),
            width=6,
        ),
    ),
)
AGENT = Row(
    "The agents",
    (
        Panel("Records", RATES, (Target(per_second(m.RECORDS, "event"), "{{event}}"),), (m.RECORDS,), stacked=True),
        Panel(
            "Records lost",
            SHARES,
            (
                Target(
                    share(
                        per_second(m.LOST_RECORDS, "step", "reason"),
                        f"(\n{LOST_RECORDS}\n+\n{RECORDS}\n)",
                        over="step, reason",
                    ),
                    "{{step}} {{reason}}",
                ),
            ),
            (m.LOST_RECORDS,),
            danger=0.01,
        ),
        Panel(
            "Records without a session, and cut ones",
            RATES,
            (
                _by_label(m.IGNORED_RECORDS, "reason"),
                _by_label(m.HELPER_ERRORS, "helper"),
                Target(per_second(m.CUT_MESSAGES), "cut"),
                _by_label(m.UNJOINED_RECORDS, "reason"),
            ),
            (m.IGNORED_RECORDS, m.HELPER_ERRORS, m.CUT_MESSAGES, m.UNJOINED_RECORDS),
        ),
        Panel(
            "Ring",
            SHARES,
            (
                Target(largest(m.RING_PEAK, *NODE), f"peak {NODE_NAME}"),
                Target(largest(m.RING_USAGE, *NODE), f"now {NODE_NAME}"),
            ),
            (m.RING_PEAK, m.RING_USAGE),
            danger=0.5,
        ),
        Panel(
            "Open lookups",
            SHARES,
            (Target(share(total(m.OPEN_SESSIONS, *NODE), total(m.OPEN_SESSIONS_LIMIT, *NODE)), NODE_NAME),),
            (m.OPEN_SESSIONS, m.OPEN_SESSIONS_LIMIT),
            danger=0.8,
        ),
        Panel(
            "Closed before their time, lines held back",
            RATES,
            _each(m.EVICTED_SESSIONS, m.LOG_LINES_SUPPRESSED, m.LOG_LINES, m.INCIDENT_LINES),
            (m.EVICTED_SESSIONS, m.LOG_LINES_SUPPRESSED, m.LOG_LINES, m.INCIDENT_LINES),
        ),
        Panel(
            "Event loop",
            SECONDS,
            (
                Target(quantile(0.99, m.TURN_SECONDS, *NODE), f"99% {NODE_NAME}"),
                Target(largest(m.TURN_AGE, *NODE), f"since the last turn {NODE_NAME}"),
            ),
            (m.TURN_SECONDS, m.TURN_AGE),
            danger=1,
        ),
        Panel(
            "One run of a BPF program",
            SECONDS,
            (
                Target(
                    share(per_second(m.PROGRAM_SECONDS, "program"), per_second(m.PROGRAM_RUNS, "program")),
                    "{{program}}",
                ),
            ),
            (m.PROGRAM_SECONDS, m.BPF_STATISTICS),
        ),
        Panel(
            "CPU",
            COUNTS,
            (
                Target(
                    f'rate(process_cpu_seconds_total{{job=~"$job", instance=~"$instance"}}[{WINDOW}])', "{{instance}}"
                ),
            ),
            words="CPUs that each agent uses, without the kernel's share.",
        ),
        Panel(
            "Memory",
            BYTES,
            (Target('process_resident_memory_bytes{job=~"$job", instance=~"$instance"}', "{{instance}}"),),
            words="Resident memory of each agent; the ring and the log of lookups are part of it.",
        ),
        Panel(
            "What runs where",
            EXACT,
            (Target(series(m.BUILD_INFO), f"{{{{version}}}} {{{{kernel}}}} {NODE_NAME}"),),
            (m.BUILD_INFO,),
        ),
        Panel(
            "Limitations",
            EXACT,
            (Target(largest(m.LIMITATIONS, *NODE), NODE_NAME),),
            (m.LIMITATIONS,),
        ),
    ),
)
KUBERNETES = Row(
    "Kubernetes, where there is one",
    (
        Panel(
            "Taken in",
            YES_NO,
            (Target(f"min by (resource) ({series(m.WATCH_SYNCED)})", "{{resource}}"),),
            (m.WATCH_SYNCED,),
            width=6,
        ),
        Panel(
            "Last contact",
            SECONDS,
            (Target(f"time() - min by (resource) ({series(m.WATCH_CONTACT)})", "{{resource}}"),),
            words="How long ago the API server was heard of, on the node where that is longest.",
            width=6,
        ),
        Panel(
            "Objects known",
            COUNTS,
            (Target(total(m.WATCH_OBJECTS, "resource"), "{{resource}}"),),
            (m.WATCH_OBJECTS,),
            width=6,
        ),
        Panel(
            "Events and errors",
            RATES,
            (
                Target(per_second(m.WATCH_EVENTS, "resource"), "{{resource}}"),
                Target(per_second(m.WATCH_ERRORS, "resource", "error"), "{{resource}} {{error}}"),
            ),
            (m.WATCH_EVENTS, m.WATCH_ERRORS),
            width=6,
        ),
    ),
)
CLIENT = ("client_namespace", "client_workload")
CLIENT_NAME = "{{client_namespace}} {{client_workload}}"
CLIENTS_ROW = Row(
    "Clients, with --metrics-by",
    (
        Panel(
            "Who asks most",
            RATES,
            (Target(_most(per_second(m.CLIENT_QUERIES, *CLIENT)), CLIENT_NAME),),
            (m.CLIENT_QUERIES,),
        ),
        Panel(
            "Who loses most",
            PACKETS,
            (Target(_most(per_second(m.CLIENT_LOST_MESSAGES, *CLIENT)), CLIENT_NAME),),
            (m.CLIENT_LOST_MESSAGES,),
        ),
        Panel(
            "Who waits longest",
            SECONDS,
            (
                Target(
                    _most(
                        share(
                            per_second(m.CLIENT_SECONDS, *CLIENT, part="sum"),
                            per_second(m.CLIENT_SECONDS, *CLIENT, part="count"),
                        )
                    ),
                    CLIENT_NAME,
                ),
            ),
            (m.CLIENT_SECONDS,),
        ),
    ),
)
ROWS = (OVERVIEW, LOSSES, LATENCY, SERVERS_ROW, UPSTREAMS, KERNEL, AGENT, KUBERNETES, CLIENTS_ROW)
