"""The alerts, as data. `rules` writes the files; `docs/runbooks/` has a page for each name.

Symptoms come first: they say that clients suffer, and by which cause. The causes behind them and the agent itself come
after. No ratio counts while there is too little traffic for it to mean something.

Expressions keep the labels that Prometheus gives a target: `node`, where PodMonitor sets it, tells where to look. What
is true of the cluster as a whole is summed over them. `{window}` is how far a rate looks back.
"""

from __future__ import annotations

from typing import NamedTuple

RUNBOOKS = "https://github.com/dnstrail/dnstrail/blob/main/docs/runbooks/"
"""Where the runbooks can be read from a pager."""
JOB = "dnstrail"
"""The label `job`: PodMonitor takes it from app.kubernetes.io/name."""
WINDOW_SECONDS = 300
MINUTE = 60

NODE = "{{ or $labels.node $labels.instance }}"
"""Who reports it; without Kubernetes there is no label `node`."""
SHARE = "{{ $value | humanizePercentage }}"
EVERYWHERE = "instance, node, pod"
"""The labels that tell one node's series from another's."""


class Alert(NamedTuple):
    """One alert; the same name may come back with another severity and threshold."""

    name: str
    severity: str
    """critical: somebody has to look now; warning: within the day."""
    for_seconds: int
    """How long it has to be true."""
    expression: str
    summary: str
    """One fixed sentence."""
    description: str
    """One filled in from the labels and the value."""

    @property
    def runbook(self) -> str:
        """Address of its page."""
        return f"{RUNBOOKS}{self.name}.md"


def _rate(series: str, *, without: str) -> str:
    return f"sum without ({without}) (rate({series}[{{window}}]))"


def _above(value: str, threshold: float, traffic: str, a_second: float, *, across: str = "") -> str:
    """The value where it is too large and there is enough traffic; `across` is the label that the traffic lacks."""
    link = f"and ignoring ({across})" if across else "and"
    return f"(\n  {value}\n) > {threshold:g}\n{link}\n{traffic} > {a_second:g}\n"


def _share_above(part: str, whole: str, threshold: float, a_second: float, *, across: str) -> str:
    """The same of shares, one for each value of the label `across`."""
    share = f"{part}\n  / ignoring ({across}) group_left ()\n  {whole}"
    return _above(share, threshold, whole, a_second, across=across)


CLIENTS = 'vantage=~"both|client"'
"""The lookups of clients on the node itself: summed over all nodes, each lookup once."""


def _lost_share(threshold: float, a_second: float, *, also: str = "") -> str:
    """Of the queries of clients, those that were lost, or their replies, by cause."""
    lost = _rate(f'dnstrail_lost_messages_total{{{CLIENTS}, leg=~"query|reply"}}', without=f"vantage, leg{also}")
    queries = _rate(f"dnstrail_queries_total{{{CLIENTS}}}", without=f"vantage, proto, qtype{also}")
    return _share_above(lost, queries, threshold, a_second, across="cause")


def _pair_share(threshold: float, a_second: float) -> str:
    lost = _rate(f"dnstrail_pair_losses_total{{{CLIENTS}}}", without="vantage")
    pairs = _rate(f"dnstrail_pairs_total{{{CLIENTS}}}", without="vantage")
    return _share_above(lost, pairs, threshold, a_second, across="lost")


def _error_share(threshold: float, a_second: float) -> str:
    """Of the replies, those with an error, by rcode. That a name does not exist is an answer."""
    fine = "NOERROR|NXDOMAIN"
    errors = _rate(f'dnstrail_responses_total{{{CLIENTS}, rcode!~"{fine}"}}', without=f"vantage, {EVERYWHERE}")
    replies = _rate(f"dnstrail_responses_total{{{CLIENTS}}}", without=f"vantage, rcode, {EVERYWHERE}")
    return _share_above(errors, replies, threshold, a_second, across="rcode")


def _slowest(seconds: float, a_second: float) -> str:
    """The 99th percentile of what clients waited."""
    buckets = _rate("dnstrail_lookup_duration_seconds_bucket", without=EVERYWHERE)
    count = _rate("dnstrail_lookup_duration_seconds_count", without=EVERYWHERE)
    return _above(f"histogram_quantile(0.99, {buckets})", seconds, count, a_second)


def _unanswered(silent: str, answered: str, threshold: float, a_second: float) -> str:
    """Of all that was asked of somebody, what was not answered. A server that answers nobody has no other whole."""
    share = f"{silent}\n  /\n  (\n    {silent}\n    +\n    {answered}\n  )"
    return _above(share, threshold, silent, a_second)


def _silent_servers(threshold: float, a_second: float) -> str:
    silent = 'dnstrail_lost_messages_total{cause=~"ServerNoReply|NoListener", leg="query"}'
    return _unanswered(
        _rate(silent, without="vantage, cause, leg"),
        _rate('dnstrail_responses_total{vantage=~"both|server"}', without="vantage, rcode"),
        threshold,
        a_second,
    )


def _silent_upstreams(threshold: float, a_second: float) -> str:
    return _unanswered(
        _rate('dnstrail_lost_messages_total{leg="upstream"}', without="vantage, cause, leg"),
        _rate("dnstrail_upstream_responses_total", without="rcode"),
        threshold,
        a_second,
    )


def _table_filled(threshold: float) -> str:
    return f"dnstrail_conntrack_entries / dnstrail_conntrack_entries_limit > {threshold:g}\n"


def _lost_by(causes: str, a_second: float, *, without: str) -> str:
    lost = _rate(f"dnstrail_lost_messages_total{{{causes}}}", without=without)
    return f"{lost} > {a_second:g}\n"


def _lost_records(threshold: float, a_second: float) -> str:
    lost = _rate("dnstrail_capture_lost_records_total", without="step, reason")
    taken = _rate("dnstrail_capture_records_total", without="event")
    return _above(f"{lost}\n  /\n  (\n    {lost}\n    +\n    {taken}\n  )", threshold, taken, a_second)


QUERIES_LOST = "Clients' queries, or the replies to them, are lost."
PAIRS_LOST = "Pairs of A and AAAA lookups lose one half."
ERRORS = "DNS servers answer with errors."
SLOW = "Lookups are slow."
SILENT_SERVER = "A DNS server receives queries but does not answer."
SILENT_UPSTREAM = "The DNS servers' upstreams do not answer."
TABLE_FILLS = "The connection-tracking table is nearly full."
TABLE_DROPS = "Connection tracking drops packets."
BUFFERS = "A DNS server does not read its queries fast enough."
STALE = "Clients still send queries to DNS servers that are gone."
OWN_LOSS = "The agent loses records of the packets it watches."
AGENT_MISSING = "An agent is missing."
UNWATCHED = "Nodes have no working agent."
NOT_READY = "An agent runs but is not ready."

SYMPTOMS = (
    Alert(
        "DNSQueriesLost",
        "critical",
        5 * MINUTE,
        _lost_share(0.02, 1, also=f", {EVERYWHERE}"),
        QUERIES_LOST,
        f"{SHARE} of all clients' queries, or of the replies to them, are lost by {{{{ $labels.cause }}}}.",
    ),
    Alert(
        "DNSQueriesLostOnNode",
        "critical",
        5 * MINUTE,
        _lost_share(0.1, 1),
        QUERIES_LOST,
        f"{SHARE} of the queries of clients on {NODE}, or of the replies, are lost by {{{{ $labels.cause }}}}.",
    ),
    Alert(
        "DNSQueriesLostOnNode",
        "warning",
        10 * MINUTE,
        _lost_share(0.01, 1),
        QUERIES_LOST,
        f"{SHARE} of the queries of clients on {NODE}, or of the replies, are lost by {{{{ $labels.cause }}}}.",
    ),
    Alert(
        "DNSPairHalfLost",
        "warning",
        10 * MINUTE,
        _pair_share(0.01, 0.2),
        PAIRS_LOST,
        f"On {NODE}, {SHARE} of the pairs of A and AAAA lose the {{{{ $labels.lost }}}}: their clients wait, usually "
        "for five seconds, and then ask again.",
    ),
    Alert(
        "DNSServerErrors",
        "critical",
        10 * MINUTE,
        _error_share(0.05, 1),
        ERRORS,
        f"{SHARE} of all replies are {{{{ $labels.rcode }}}}.",
    ),
    Alert(
        "DNSServerErrors",
        "warning",
        10 * MINUTE,
        _error_share(0.01, 1),
        ERRORS,
        f"{SHARE} of all replies are {{{{ $labels.rcode }}}}.",
    ),
    Alert(
        "DNSLookupsSlow",
        "critical",
        10 * MINUTE,
        _slowest(4, 1),
        SLOW,
        "One lookup in a hundred takes {{ $value | humanizeDuration }} or longer.",
    ),
    Alert(
        "DNSLookupsSlow",
        "warning",
        10 * MINUTE,
        _slowest(1, 1),
        SLOW,
        "One lookup in a hundred takes {{ $value | humanizeDuration }} or longer.",
    ),
)
CAUSES = (
    Alert(
        "DNSServerNotAnswering",
        "critical",
        5 * MINUTE,
        _silent_servers(0.05, 0.05),
        SILENT_SERVER,
        f"{SHARE} of the queries that reached DNS servers of {NODE} were not answered: nothing listens, or the server "
        "is silent.",
    ),
    Alert(
        "DNSUpstreamNotAnswering",
        "critical",
        5 * MINUTE,
        _silent_upstreams(0.5, 0.05),
        SILENT_UPSTREAM,
        f"{SHARE} of the queries from DNS servers of {NODE} to their upstreams get no answer: names outside the "
        "cluster fail.",
    ),
    Alert(
        "DNSUpstreamNotAnswering",
        "warning",
        10 * MINUTE,
        _silent_upstreams(0.05, 0.05),
        SILENT_UPSTREAM,
        f"{SHARE} of the queries from DNS servers of {NODE} to their upstreams get no answer.",
    ),
    Alert(
        "ConntrackTableNearlyFull",
        "critical",
        5 * MINUTE,
        _table_filled(0.9),
        TABLE_FILLS,
        f"{SHARE} of the table is in use on {NODE} ({{{{ $labels.netns }}}}). Once full, it lets no new flow through.",
    ),
    Alert(
        "ConntrackTableNearlyFull",
        "warning",
        5 * MINUTE,
        _table_filled(0.75),
        TABLE_FILLS,
        f"{SHARE} of the table is in use on {NODE} ({{{{ $labels.netns }}}}). Once full, it lets no new flow through.",
    ),
    Alert(
        "ConntrackDropping",
        "critical",
        2 * MINUTE,
        "rate(dnstrail_conntrack_drop_total[{window}]) > 0\n",
        TABLE_DROPS,
        f"{{{{ $value | humanize }}}} packets a second are dropped on {NODE} ({{{{ $labels.netns }}}}): the table is "
        "full. Users notice failing lookups first.",
    ),
    Alert(
        "DNSReceiveBufferOverflow",
        "warning",
        5 * MINUTE,
        _lost_by('cause="ServerSocketOverflow"', 0.05, without="vantage, leg, cause"),
        BUFFERS,
        f"{{{{ $value | humanize }}}} queries a second find a full receive buffer on {NODE}.",
    ),
    Alert(
        "DNSStaleBackend",
        "warning",
        2 * MINUTE,
        _lost_by('cause=~"IPVSStaleBackend|StaleConntrackEntry"', 0.01, without="vantage, leg"),
        STALE,
        f"{{{{ $value | humanize }}}} queries a second of clients on {NODE} go to a server that is gone "
        "({{ $labels.cause }}).",
    ),
)
AGENT = (
    Alert(
        "DnstrailAgentMissing",
        "critical",
        10 * MINUTE,
        f'absent(up{{job="{JOB}"}})\n',
        AGENT_MISSING,
        "No agent is known to Prometheus: no other alert about lookups can fire.",
    ),
    Alert(
        "DnstrailAgentMissing",
        "warning",
        10 * MINUTE,
        f'up{{job="{JOB}"}} == 0\n',
        AGENT_MISSING,
        f"The agent on {NODE} does not answer Prometheus.",
    ),
    Alert(
        "DnstrailNodesUnwatched",
        "warning",
        15 * MINUTE,
        f'kube_daemonset_status_desired_number_scheduled{{daemonset="{JOB}"}}\n'
        f'- kube_daemonset_status_number_available{{daemonset="{JOB}"}} > 0\n',
        UNWATCHED,
        "{{ $value }} nodes that the DaemonSet should watch have no working agent.",
    ),
    Alert(
        "DnstrailNotReady",
        "warning",
        10 * MINUTE,
        "dnstrail_ready == 0\n",
        NOT_READY,
        f"The agent on {NODE} runs, but its /readyz says no.",
    ),
    Alert(
        "DnstrailCaptureLoss",
        "warning",
        10 * MINUTE,
        _lost_records(0.01, 10),
        OWN_LOSS,
        f"The agent on {NODE} loses {SHARE} of its records: the affected lookups are SampleLoss, and other losses "
        "may go unseen.",
    ),
)
GROUPS: dict[str, tuple[Alert, ...]] = {
    "dnstrail-symptoms": SYMPTOMS,
    "dnstrail-causes": CAUSES,
    "dnstrail-agent": AGENT,
}
ALERTS: tuple[Alert, ...] = tuple(alert for group in GROUPS.values() for alert in group)
