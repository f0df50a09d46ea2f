"""What each part of the agent says at the moment, by metric and label values: the table from fields to names."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from agent import __version__
from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import SECOND_NS
from agent.export.metrics.kernel import HOST, PER_CLASS, PER_NODE
from agent.export.metrics.programs import runs_of, statistics_enabled
from agent.session.model import Background

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.explain.incidents import Incidents
    from agent.export.metrics.catalogue import Metric
    from agent.export.metrics.clients import Clients
    from agent.export.metrics.kernel import KernelCounts
    from agent.export.metrics.sources import Agent, Sources, Traffic, WatchNumbers
    from agent.export.metrics.tally import Values

Readings = dict["Metric", "Values"]

BUILD = (__version__, platform.python_version(), platform.release())
BACKGROUND_KINDS = {
    Background.HEALTH_CHECK: "health_check",
    Background.LOOP_PROBE: "loop_probe",
    Background.REFRESH: "refresh",
}
IGNORED_FIELDS = {
    "malformed": "malformed",
    "cut": "cut",
    "without_question": "without_question",
    "benign_drop": "benign_drops",
    "stray_icmp": "stray_errors",
    "fragment": "fragments",
    "late": "late",
    "started_mid_lookup": "started_mid_lookup",
    "unasked": "unasked",
}
"""Label value and field of `agent.session.counts.Counts`."""
WATCH_FIELDS: dict[Metric, Callable[[WatchNumbers], float]] = {
    catalogue.WATCH_SYNCED: lambda watch: watch.synced,
    catalogue.WATCH_CONNECTED: lambda watch: watch.connected,
    catalogue.WATCH_WANTED: lambda watch: watch.wanted,
    catalogue.WATCH_OBJECTS: lambda watch: watch.objects,
    catalogue.WATCH_LEFT_OUT: lambda watch: watch.left_out,
    catalogue.WATCH_CONTACT: lambda watch: watch.last_contact_seconds,
    catalogue.WATCH_LISTS: lambda watch: watch.lists,
    catalogue.WATCH_OPENED: lambda watch: watch.watches,
    catalogue.WATCH_EVENTS: lambda watch: sum(dict(watch.events).values()),
    catalogue.WATCH_UNDECODABLE: lambda watch: watch.undecodable,
}


def everything(sources: Sources) -> Readings:
    """All counters and gauges; histograms and summaries are read where they are kept."""
    readings: Readings = {
        catalogue.READY: {(): not sources.waiting_for()},
        catalogue.BUILD_INFO: {BUILD: 1},
        catalogue.TURN_AGE: {(): sources.pulse.age_seconds},
        **sources.tally.counts(),
        **_incidents(sources.incidents),
        **_traffic(sources.traffic),
        **_kernel(sources.kernel),
    }
    if sources.clients is not None:
        readings |= _clients(sources.clients)
    if sources.agent is not None:
        readings |= _sessions(sources.agent) | _capture(sources.agent) | _programs(sources.agent)
        readings |= _ring(sources.agent, sources.pulse.peak_bytes) | _watches(sources.agent)
        readings |= _events(sources.agent)
    return readings


def _incidents(incidents: Incidents) -> Readings:
    return {
        catalogue.INCIDENTS: {(cause,): number for cause, number in dict(incidents.opened).items()},
        catalogue.INCIDENTS_OPEN: {(cause,): number for cause, number in incidents.open_by_cause().items()},
    }


def _traffic(traffic: Traffic) -> Readings:
    answered = dict(traffic.answered)
    return {
        catalogue.HTTP_REQUESTS: {(code,): answered.get(int(code), 0) for code in catalogue.HTTP_CODE.values},
        catalogue.HTTP_REFUSED: {(): traffic.refused},
    }


def _kernel(counts: KernelCounts) -> Readings:
    state = counts.state
    readings: Readings = {
        metric: {(kind,): getattr(grown, field) for kind, grown in state.grown.items()}
        for metric, field in PER_CLASS.items()
    }
    readings |= {metric: {(): getattr(state.grown[HOST], field)} for metric, field in PER_NODE.items()}
    limit = state.limit
    return readings | {
        catalogue.CONNTRACK_ENTRIES: {(kind,): entries for kind, entries in state.entries.items()},
        catalogue.CONNTRACK_LIMIT: {} if limit is None else {(kind,): limit for kind in state.entries},
        catalogue.SERVER_NAMESPACES: {(): state.server_namespaces},
    }


def _clients(clients: Clients) -> Readings:
    now = clients.now()
    return {
        catalogue.CLIENT_QUERIES: {who: counts.queries for who, counts in now},
        catalogue.CLIENT_RETRANSMISSIONS: {who: counts.retransmissions for who, counts in now},
        catalogue.CLIENT_SESSIONS: {
            (*who, kind): value for who, counts in now for kind, value in counts.sessions.items()
        },
        catalogue.CLIENT_RESPONSES: {
            (*who, kind): value for who, counts in now for kind, value in counts.responses.items()
        },
        catalogue.CLIENT_LOST_MESSAGES: {
            (*who, leg): value for who, counts in now for leg, value in counts.lost.items()
        },
        catalogue.CLIENTS: {(): len(clients)},
        catalogue.CLIENTS_LIMIT: {(): clients.wanted.cap},
    }


def _sessions(agent: Agent) -> Readings:
    counts = agent.table.counts
    background = dict(counts.background)
    return {
        catalogue.OPEN_SESSIONS: {(): len(agent.table)},
        catalogue.OPEN_SESSIONS_LIMIT: {(): agent.table.settings.max_sessions},
        catalogue.EVICTED_SESSIONS: {(): counts.evicted},
        catalogue.BACKGROUND_LOOKUPS: {(name,): background[kind] for kind, name in BACKGROUND_KINDS.items()},
        catalogue.IGNORED_RECORDS: {(reason,): getattr(counts, field) for reason, field in IGNORED_FIELDS.items()},
        catalogue.LOG_LINES: {(): agent.lines.written},
        catalogue.INCIDENT_LINES: {(): agent.lines.incidents_written},
        catalogue.LOG_LINES_SUPPRESSED: {
            ("rate_limit",): agent.lines.suppressed,
            ("failure_rate",): agent.lines.failures.held,
            ("budget",): agent.lines.budget.refused,
            ("slow_reader",): agent.out.lost,
        },
    }


def _capture(agent: Agent) -> Readings:
    counters, counts, losses = agent.capture.counters(), agent.table.counts, agent.capture.losses
    return {
        catalogue.RECORDS: {(event,): number for event, number in counters.records.items()},
        catalogue.LOST_RECORDS: {
            ("program", "nested"): losses.nested,
            ("program", "skipped_run"): losses.skipped_runs,
            ("log", "full"): losses.log_full,
            ("ring", "full"): losses.ring_full,
            ("join", "unmatched"): counts.unmatched,
            ("join", "overflowed"): counts.overflowed,
        },
        catalogue.HELPER_ERRORS: {("read",): counters.read_failed, ("map_update",): counters.seen_failed},
        catalogue.CUT_MESSAGES: {(): counters.cut},
        catalogue.UNJOINED_RECORDS: {("contended",): counters.contended, ("crowded",): counters.crowded},
        catalogue.LIMITATIONS: {(): len(agent.capture.limits)},
    }


def _ring(agent: Agent, peak_bytes: int) -> Readings:
    size = agent.capture.ring_bytes
    return {
        catalogue.RING_SIZE: {(): size},
        catalogue.RING_USAGE: {(): agent.capture.backlog_bytes / size},
        catalogue.RING_PEAK: {(): peak_bytes / size},
    }


def _programs(agent: Agent) -> Readings:
    known = {name: runs_of(descriptor) for name, descriptor in agent.capture.programs.items()}
    told = {(name,): runs for name, runs in known.items() if runs is not None}
    return {
        catalogue.PROGRAM_RUNS: {labels: runs.runs for labels, runs in told.items()},
        catalogue.PROGRAM_SECONDS: {labels: runs.nanoseconds / SECOND_NS for labels, runs in told.items()},
        catalogue.BPF_STATISTICS: {(): statistics_enabled()},
    }


def _watches(agent: Agent) -> Readings:
    watches = () if agent.watches is None else tuple(agent.watches())
    readings: Readings = {
        metric: {(watch.name,): read(watch) for watch in watches} for metric, read in WATCH_FIELDS.items()
    }
    errors: Values = {(watch.name, word): number for watch in watches for word, number in dict(watch.errors).items()}
    return readings | {catalogue.WATCH_ERRORS: errors}


def _events(agent: Agent) -> Readings:
    if agent.events is None:
        return {}
    results = {**dict(agent.events.health.results), "left_out": agent.events.teller.left_out}
    return {
        catalogue.EVENTS: {(result,): results.get(result, 0) for result in catalogue.EVENT_RESULT.values},
        catalogue.EVENT_ERRORS: {(word,): number for word, number in dict(agent.events.health.errors).items()},
    }
