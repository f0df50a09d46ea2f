"""What each alert must make of which numbers, for `promtool test rules`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.export.metrics.catalogue import LATENCY_BUCKETS
from deploy.prometheus.alerts import ALERTS

SCRAPE_SECONDS = 60
SCRAPES = 40
LATER = "30m"
"""When every alert that is going to fire does; the traffic goes on for 40 minutes."""
NODES = ("node-a", "node-b")

Numbers = Mapping[str, float | str]
"""Series without the target's labels, and what they do: counters by their growth a second, gauges by their value; text
is promtool's own notation."""


def target(node: str) -> dict[str, str]:
    """The labels that Prometheus gives the series of one node's agent."""
    host = node.removeprefix("node-")
    return {"instance": f"{host}:9353", "job": "dnstrail", "node": node, "pod": f"dnstrail-{host}"}


def firing(alert: str, severity: str, description: str, *, node: str | None = None, **labels: str) -> dict[str, Any]:
    """One alert as Alertmanager gets it; without a node it is about the cluster."""
    of_target = target(node) if node else {"job": "dnstrail"}
    (rule,) = [one for one in ALERTS if (one.name, one.severity) == (alert, severity)][:1]
    return {
        "exp_labels": {"severity": severity, **of_target, **labels},
        "exp_annotations": {
            "summary": rule.summary,
            "description": description,
            "runbook_url": rule.runbook,
        },
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """Numbers, and which alerts come of them."""

    what: str
    numbers: Numbers = field(default_factory=dict)
    """Of the first node, on top of a healthy one's."""
    alert: str = ""
    """The alert that fires; none at all if empty."""
    expected: tuple[dict[str, Any], ...] = ()
    without: str = ""
    """Series of this name are not there at all."""
    at: str = LATER


def lookups(a_second: float, *, within_1s: float = 1.0, within_4s: float = 1.0) -> Numbers:
    """Histogram of what clients waited: the shares that were answered in time, and all of them within 8 s."""
    shares = {edge: within_1s if edge < 2 else within_4s if edge < 8 else 1.0 for edge in (*LATENCY_BUCKETS, math.inf)}
    buckets = {
        f'dnstrail_lookup_duration_seconds_bucket{{le="{"+Inf" if edge == math.inf else f"{edge:g}"}"}}': a_second
        * share
        for edge, share in shares.items()
    }
    return {**buckets, "dnstrail_lookup_duration_seconds_count": a_second}


HEALTHY: Numbers = {
    'dnstrail_queries_total{proto="udp",qtype="A",vantage="both"}': 20,
    'dnstrail_queries_total{proto="udp",qtype="AAAA",vantage="client"}': 20,
    'dnstrail_responses_total{rcode="NOERROR",vantage="both"}': 19,
    'dnstrail_responses_total{rcode="NXDOMAIN",vantage="client"}': 20,
    'dnstrail_responses_total{rcode="SERVFAIL",vantage="both"}': 0.02,
    'dnstrail_pairs_total{vantage="both"}': 10,
    'dnstrail_pair_losses_total{lost="AAAA",vantage="both"}': 0.01,
    'dnstrail_lost_messages_total{cause="PolicyDrop",leg="query",vantage="both"}': 0.03,
    'dnstrail_lost_messages_total{cause="ServerNoReply",leg="query",vantage="both"}': 0.03,
    'dnstrail_lost_messages_total{cause="UpstreamTimeout",leg="upstream",vantage="both"}': 0.03,
    'dnstrail_upstream_responses_total{rcode="NOERROR"}': 5,
    'dnstrail_capture_records_total{event="tx"}': 160,
    'dnstrail_capture_lost_records_total{reason="full",step="ring"}': 0.1,
    'dnstrail_conntrack_entries{netns="host"}': 20_000,
    'dnstrail_conntrack_entries_limit{netns="host"}': 262_144,
    "dnstrail_ready": 1,
    "up": 1,
    **lookups(40),
}
"""A busy node with the small losses that are always there: nothing may fire."""


def lost(cause: str, a_second: float | str, leg: str = "query", vantage: str = "both") -> Numbers:
    return {f'dnstrail_lost_messages_total{{cause="{cause}",leg="{leg}",vantage="{vantage}"}}': a_second}


def queries(a_second: float) -> Numbers:
    """So many in all."""
    return {
        'dnstrail_queries_total{proto="udp",qtype="A",vantage="both"}': a_second,
        'dnstrail_queries_total{proto="udp",qtype="AAAA",vantage="client"}': 0,
    }


def responses(**a_second: float) -> Numbers:
    """So many in all, by rcode."""
    none = {"NOERROR": 0.0, "SERVFAIL": 0.0, **a_second}
    counts = {f'dnstrail_responses_total{{rcode="{rcode}",vantage="both"}}': rate for rcode, rate in none.items()}
    return {**counts, 'dnstrail_responses_total{rcode="NXDOMAIN",vantage="client"}': 0}


EVERY_NODE_LOSES = "5% of all clients' queries, or of the replies to them, are lost by ConntrackTableFull."
LOST_ON_A = "{} of the queries of clients on node-a, or of the replies, are lost by {}."
HALF_LOST = (
    "On node-a, {} of the pairs of A and AAAA lose the {}: their clients wait, usually for five seconds, and "
    "then ask again."
)
SILENT_ON_A = (
    "{} of the queries that reached DNS servers of node-a were not answered: nothing listens, or the server is silent."
)
UPSTREAM_OF_A = "{} of the queries from DNS servers of node-a to their upstreams get no answer"
TABLE_OF_A = "{} of the table is in use on node-a (host). Once full, it lets no new flow through."
CONNTRACK_ENTRIES = 'dnstrail_conntrack_entries{netns="host"}'
CONNTRACK_DROPS = 'dnstrail_conntrack_drop_total{netns="host"}'
RECORDS = 'dnstrail_capture_records_total{event="tx"}'
LOST_RECORDS = 'dnstrail_capture_lost_records_total{reason="full",step="ring"}'
PAIRS = 'dnstrail_pairs_total{vantage="both"}'
PAIR_LOSSES = 'dnstrail_pair_losses_total{lost="AAAA",vantage="both"}'
DAEMONSET = '{daemonset="dnstrail",namespace="dnstrail"}'

CASES = (
    Case(what="two healthy nodes"),
    # Symptoms.
    Case(
        what="one query of twenty is lost, all over the cluster",
        alert="DNSQueriesLost",
        numbers=lost("ConntrackTableFull", 4),
        expected=(firing("DNSQueriesLost", "critical", EVERY_NODE_LOSES, cause="ConntrackTableFull"),),
    ),
    Case(
        what="replies are lost as queries are",
        alert="DNSQueriesLost",
        numbers=lost("ConntrackTableFull", 4, "reply", "client"),
        expected=(firing("DNSQueriesLost", "critical", EVERY_NODE_LOSES, cause="ConntrackTableFull"),),
    ),
    Case(what="all that few queries are lost", numbers={**queries(0.8), **lost("ConntrackTableFull", 0.8)}),
    Case(what="a tenth of a percent is lost", numbers=lost("ConntrackTableFull", 0.04)),
    Case(what="many are lost for three minutes", numbers=lost("PolicyDrop", "0x10 0+1200x2 2400x30"), at="13m"),
    Case(
        what="lookups of clients elsewhere are lost: their nodes say so", numbers=lost("NoRoute", 4, vantage="server")
    ),
    Case(
        what="a tenth of one node's queries is lost",
        alert="DNSQueriesLostOnNode",
        numbers=lost("PolicyDrop", 8),
        expected=(
            firing(
                "DNSQueriesLostOnNode",
                "critical",
                LOST_ON_A.format("20%", "PolicyDrop"),
                node="node-a",
                cause="PolicyDrop",
            ),
            firing(
                "DNSQueriesLostOnNode",
                "warning",
                LOST_ON_A.format("20%", "PolicyDrop"),
                node="node-a",
                cause="PolicyDrop",
            ),
        ),
    ),
    Case(
        what="two percent of one node's queries are lost",
        alert="DNSQueriesLostOnNode",
        numbers=lost("LeftNode", 0.8, vantage="client"),
        expected=(
            firing(
                "DNSQueriesLostOnNode", "warning", LOST_ON_A.format("2%", "LeftNode"), node="node-a", cause="LeftNode"
            ),
        ),
    ),
    Case(
        what="of two percent of the pairs, the AAAA is lost",
        alert="DNSPairHalfLost",
        numbers={PAIR_LOSSES: 0.2},
        expected=(firing("DNSPairHalfLost", "warning", HALF_LOST.format("2%", "AAAA"), node="node-a", lost="AAAA"),),
    ),
    Case(what="half of few pairs lose one", numbers={PAIRS: 0.1, PAIR_LOSSES: 0.05}),
    Case(
        what="every tenth reply is an error",
        alert="DNSServerErrors",
        numbers={'dnstrail_responses_total{rcode="SERVFAIL",vantage="both"}': 8.62},
        expected=(
            firing("DNSServerErrors", "critical", "9.972% of all replies are SERVFAIL.", rcode="SERVFAIL"),
            firing("DNSServerErrors", "warning", "9.972% of all replies are SERVFAIL.", rcode="SERVFAIL"),
        ),
    ),
    Case(
        what="two percent of the replies are refusals",
        alert="DNSServerErrors",
        numbers={'dnstrail_responses_total{rcode="REFUSED",vantage="client"}': 1.6},
        expected=(firing("DNSServerErrors", "warning", "2.009% of all replies are REFUSED.", rcode="REFUSED"),),
    ),
    Case(
        what="most names do not exist",
        numbers={'dnstrail_responses_total{rcode="NXDOMAIN",vantage="client"}': 400},
    ),
    Case(
        what="one lookup of twenty takes more than a second",
        alert="DNSLookupsSlow",
        numbers=lookups(40, within_1s=0.9),
        expected=(firing("DNSLookupsSlow", "warning", "One lookup in a hundred takes 1.843s or longer."),),
    ),
    Case(
        what="one lookup of twenty takes as long as a resolver waits",
        alert="DNSLookupsSlow",
        numbers=lookups(40, within_1s=0.9, within_4s=0.9),
        expected=(
            firing("DNSLookupsSlow", "critical", "One lookup in a hundred takes 7.373s or longer."),
            firing("DNSLookupsSlow", "warning", "One lookup in a hundred takes 7.373s or longer."),
        ),
    ),
    # Causes.
    Case(
        what="a server's queue is served by nobody",
        alert="DNSServerNotAnswering",
        numbers={**responses(), **lost("ServerNoReply", 3)},
        expected=(firing("DNSServerNotAnswering", "critical", SILENT_ON_A.format("100%"), node="node-a"),),
    ),
    Case(
        what="one server of many has no listener",
        alert="DNSServerNotAnswering",
        numbers={**responses(NOERROR=9), **lost("NoListener", 1), **lost("ServerNoReply", 0)},
        expected=(firing("DNSServerNotAnswering", "critical", SILENT_ON_A.format("10%"), node="node-a"),),
    ),
    Case(what="a server drops a query now and then", numbers={**responses(NOERROR=19), **lost("ServerNoReply", 0.2)}),
    Case(what="one of few queries is not answered", numbers={**responses(NOERROR=0.01), **lost("ServerNoReply", 0.01)}),
    Case(
        what="the upstream is gone",
        alert="DNSUpstreamNotAnswering",
        numbers={'dnstrail_upstream_responses_total{rcode="NOERROR"}': 0, **lost("UpstreamTimeout", 5, "upstream")},
        expected=(
            firing(
                "DNSUpstreamNotAnswering",
                "critical",
                f"{UPSTREAM_OF_A.format('100%')}: names outside the cluster fail.",
                node="node-a",
            ),
            firing("DNSUpstreamNotAnswering", "warning", f"{UPSTREAM_OF_A.format('100%')}.", node="node-a"),
        ),
    ),
    Case(
        what="the upstream refuses connections over TCP",
        alert="DNSUpstreamNotAnswering",
        numbers={
            'dnstrail_upstream_responses_total{rcode="NOERROR"}': 9,
            **lost("UpstreamTimeout", 0, "upstream"),
            **lost("UpstreamTCPUnavailable", 1, "upstream", "server"),
        },
        expected=(firing("DNSUpstreamNotAnswering", "warning", f"{UPSTREAM_OF_A.format('10%')}.", node="node-a"),),
    ),
    Case(
        what="the upstream loses one of few",
        numbers={
            'dnstrail_upstream_responses_total{rcode="NOERROR"}': 0.02,
            **lost("UpstreamTimeout", 0.02, "upstream"),
        },
    ),
    Case(
        what="the connection table is filled to four fifths",
        alert="ConntrackTableNearlyFull",
        numbers={CONNTRACK_ENTRIES: 209_715},
        expected=(
            firing("ConntrackTableNearlyFull", "warning", TABLE_OF_A.format("80%"), node="node-a", netns="host"),
        ),
    ),
    Case(
        what="the connection table is all but full",
        alert="ConntrackTableNearlyFull",
        numbers={CONNTRACK_ENTRIES: 249_037},
        expected=(
            firing("ConntrackTableNearlyFull", "critical", TABLE_OF_A.format("95%"), node="node-a", netns="host"),
            firing("ConntrackTableNearlyFull", "warning", TABLE_OF_A.format("95%"), node="node-a", netns="host"),
        ),
    ),
    Case(what="the connection table is half full", numbers={CONNTRACK_ENTRIES: 131_072}),
    Case(what="there is no connection tracking", without="dnstrail_conntrack_entries"),
    Case(
        what="connection tracking drops packets",
        alert="ConntrackDropping",
        numbers={CONNTRACK_DROPS: 2},
        expected=(
            firing(
                "ConntrackDropping",
                "critical",
                "2 packets a second are dropped on node-a (host): the table is full. Users notice failing lookups "
                "first.",
                node="node-a",
                netns="host",
            ),
        ),
    ),
    Case(what="connection tracking dropped something earlier", numbers={CONNTRACK_DROPS: "0x3 100x36"}),
    Case(
        what="a server does not read its queries",
        alert="DNSReceiveBufferOverflow",
        numbers=lost("ServerSocketOverflow", 0.5),
        expected=(
            firing(
                "DNSReceiveBufferOverflow",
                "warning",
                "500m queries a second find a full receive buffer on node-a.",
                node="node-a",
            ),
        ),
    ),
    Case(what="a receive buffer was full for a moment", numbers=lost("ServerSocketOverflow", "0x3 10x36"), at="7m"),
    Case(
        what="queries go to a server that is gone",
        alert="DNSStaleBackend",
        numbers={
            **lost("IPVSStaleBackend", 0.1, vantage="client"),
            **lost("StaleConntrackEntry", 0.2, vantage="client"),
        },
        expected=tuple(
            firing(
                "DNSStaleBackend",
                "warning",
                f"{rate}m queries a second of clients on node-a go to a server that is gone ({cause}).",
                node="node-a",
                cause=cause,
            )
            for cause, rate in (("IPVSStaleBackend", 100), ("StaleConntrackEntry", 200))
        ),
    ),
    Case(what="one query went to a server that was gone", numbers=lost("StaleConntrackEntry", "0x10 1x30"), at="14m"),
    # The agent itself.
    Case(
        what="no agent at all",
        alert="DnstrailAgentMissing",
        without="up",
        expected=(
            {
                **firing(
                    "DnstrailAgentMissing",
                    "critical",
                    "No agent is known to Prometheus: no other alert about lookups can fire.",
                )
            },
        ),
    ),
    Case(
        what="an agent does not answer",
        alert="DnstrailAgentMissing",
        numbers={"up": 0},
        expected=(
            firing("DnstrailAgentMissing", "warning", "The agent on node-a does not answer Prometheus.", node="node-a"),
        ),
    ),
    Case(what="an agent is replaced", numbers={"up": "1x15 0x4 1x30"}, at="20m"),
    Case(
        what="two nodes have no agent",
        alert="DnstrailNodesUnwatched",
        numbers={
            f"kube_daemonset_status_desired_number_scheduled{DAEMONSET}": "5x40",
            f"kube_daemonset_status_number_available{DAEMONSET}": "3x40",
        },
        expected=(
            {
                "exp_labels": {
                    **target("node-a"),
                    "severity": "warning",
                    "daemonset": "dnstrail",
                    "namespace": "dnstrail",
                },
                "exp_annotations": firing(
                    "DnstrailNodesUnwatched",
                    "warning",
                    "2 nodes that the DaemonSet should watch have no working agent.",
                )["exp_annotations"],
            },
        ),
    ),
    Case(
        what="every node has its agent",
        numbers={
            f"kube_daemonset_status_desired_number_scheduled{DAEMONSET}": "5x40",
            f"kube_daemonset_status_number_available{DAEMONSET}": "5x40",
        },
    ),
    Case(
        what="an agent does not become ready",
        alert="DnstrailNotReady",
        numbers={"dnstrail_ready": 0},
        expected=(
            firing("DnstrailNotReady", "warning", "The agent on node-a runs, but its /readyz says no.", node="node-a"),
        ),
    ),
    Case(what="an agent takes a minute to become ready", numbers={"dnstrail_ready": "0x1 1x38"}),
    Case(
        what="one record of twenty is lost",
        alert="DnstrailCaptureLoss",
        numbers={RECORDS: 190, LOST_RECORDS: 10},
        expected=(
            firing(
                "DnstrailCaptureLoss",
                "warning",
                "The agent on node-a loses 5% of its records: the affected lookups are SampleLoss, and other losses "
                "may go unseen.",
                node="node-a",
            ),
        ),
    ),
    Case(what="few records are lost of few", numbers={RECORDS: 5, LOST_RECORDS: 1}),
)
