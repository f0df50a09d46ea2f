"""Counting lookups as they end: plain numbers in dictionaries and lists, made into samples only when somebody asks.

The thread that ends sessions counts, any other thread may ask at any time: whatever is copied, is copied by one
operation of the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import METRICS, NOTHING_ASKED, OTHER, QTYPES, RCODES, Kind
from agent.export.metrics.histogram import Histogram
from agent.export.metrics.latency import arrival, departure, spans
from agent.export.metrics.losses import lost_half, lost_messages
from agent.session.outcome import BITMAP, COMPLETE
from agent.session.sighting import TCP
from agent.wire.message import extended_rcode
from agent.wire.render import rcode_to_text, rdtype_from_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.explain.verdict import Cause, Verdict
    from agent.export.metrics.catalogue import Metric
    from agent.export.metrics.clients import Clients
    from agent.export.metrics.histogram import Distribution
    from agent.session.model import Session
    from agent.session.outcome import Outcome

Values = dict[tuple[str, ...], float]
"""By label values, in the order of the catalogue."""

TC = 0x0200
"""In octets 2 and 3 of a message: truncated (RFC 1035 4.1.1)."""
COMPLETE_BITMAP = str(COMPLETE & BITMAP)
_QTYPE = {rdtype_from_text(name): name for name in QTYPES}
_COUNTED = (
    catalogue.QUERIES,
    catalogue.RESPONSES,
    catalogue.SESSIONS,
    catalogue.RETRANSMISSIONS,
    catalogue.TRUNCATED,
    catalogue.PAIRS,
    catalogue.FINDING_COUNTS,
    catalogue.LOST_MESSAGES,
    catalogue.PAIR_LOSSES,
    catalogue.SESSION_CAUSES,
    catalogue.UPSTREAM_QUERIES,
    catalogue.UPSTREAM_RESPONSES,
)
_TIMED = tuple(metric for metric in METRICS if metric.kind is Kind.HISTOGRAM and metric is not catalogue.TURN_SECONDS)


class Tally:
    """What the sessions of this node amount to."""

    def __init__(self, clients: Clients | None = None) -> None:
        """Begin with zeros.

        Args:
            clients: Counts them by namespace or workload, if the user wants that.
        """
        self._clients = clients
        self._counts: dict[str, Values] = {metric.name: dict.fromkeys(metric.known, 0) for metric in _COUNTED}
        self._times = {(metric.name, labels): Histogram(metric.buckets) for metric in _TIMED for labels in metric.known}
        # Lookups like most others, by all that may differ between them: one addition where there would be five.
        self._usual: dict[tuple[bool, int, str, int | None, int, bool], int] = {}
        self._lookup, self._server, self._upstream, self._way_there, self._way_back = (
            self._times[key]
            for key in (
                (catalogue.LOOKUP_SECONDS.name, ()),
                (catalogue.SERVER_SECONDS.name, ()),
                (catalogue.UPSTREAM_SECONDS.name, ()),
                (catalogue.TRANSIT_SECONDS.name, ("query",)),
                (catalogue.TRANSIT_SECONDS.name, ("reply",)),
            )
        )

    def count(self, outcome: Outcome, verdict: Verdict) -> None:
        """Count one session that is over."""
        session = outcome.session
        queries, replies = session.queries.transmissions, session.replies.transmissions
        if outcome.bits == COMPLETE and verdict.cause is None and len(queries) == len(replies) == 1:
            self._count_usual(outcome, session)
        else:
            self._count_unusual(outcome, verdict.cause)
        if verdict.findings:
            for finding in verdict.findings:
                self._add(catalogue.FINDING_COUNTS, finding)
        if self._clients is not None:
            self._clients.count(outcome, verdict.cause)

    def counts(self) -> dict[str, Values]:
        """Every counter by the name of its metric, now."""
        now = {name: dict(values) for name, values in self._counts.items()}
        for (away, protocol, qtype, rcode, truncated, paired), number in dict(self._usual).items():
            vantage = "client" if away else "both"
            _add(now, catalogue.QUERIES, (vantage, _proto(protocol), qtype), number)
            _add(now, catalogue.RESPONSES, (vantage, _rcode(rcode)), number)
            _add(now, catalogue.SESSIONS, (vantage, "Succeeded", COMPLETE_BITMAP), number)
            _add(now, catalogue.TRUNCATED, (vantage,), number if truncated else 0)
            _add(now, catalogue.PAIRS, (vantage,), number if paired else 0)
        return now

    def times(self) -> Mapping[tuple[str, tuple[str, ...]], Distribution]:
        """Every histogram by metric and label values, now."""
        return {key: histogram.now() for key, histogram in self._times.items()}

    def _count_usual(self, outcome: Outcome, session: Session) -> None:
        """One query, one reply, seen from the client's socket and back, nothing lost and nobody else asked."""
        key, reply = session.key, session.replies.transmissions[0]
        asked, answered = session.queries.transmissions[0].hops, reply.hops
        there = outcome.server_netns
        kind = (
            there is None,
            key.protocol,
            _QTYPE.get(key.rdtype, OTHER),
            outcome.rcode,
            reply.wire.summary.flags & TC,
            session.pair is not None,
        )
        try:
            self._usual[kind] += 1
        except KeyError:
            self._usual[kind] = 1
        if there is None:
            self._lookup.add(answered[-1].ts_ns - asked[0].ts_ns)
            return
        home = outcome.client_netns
        sent, arrived, replied = departure(asked), arrival(asked, there), departure(answered)
        returned = None if home is None else arrival(answered, home)
        if sent is None or arrived is None or replied is None or returned is None:
            self._time(outcome)
            return
        self._lookup.add(answered[-1].ts_ns - asked[0].ts_ns)
        self._way_there.add(max(0, arrived - sent))
        self._server.add(max(0, replied - arrived))
        self._way_back.add(max(0, returned - replied))

    def _count_unusual(self, outcome: Outcome, cause: Cause | None) -> None:
        """Any lookup."""
        session = outcome.session
        vantage = outcome.vantage or "transit"
        status, bitmap = outcome.status.value, str(outcome.bits & BITMAP)
        self._add(catalogue.SESSIONS, vantage, status, bitmap)
        attempts, qtype = (
            (1, NOTHING_ASKED) if session.connecting else (outcome.attempts, qtype_label(session.key.rdtype))
        )
        self._add(catalogue.QUERIES, vantage, _proto(session.key.protocol), qtype, number=attempts)
        if not session.connecting:
            self._add(catalogue.RETRANSMISSIONS, vantage, number=attempts - len(session.asked))
        if outcome.rcode is not None and outcome.reply is not None:
            self._add(catalogue.RESPONSES, vantage, _rcode(outcome.rcode))
            self._add(catalogue.TRUNCATED, vantage, number=1 if outcome.reply.wire.summary.flags & TC else 0)
        if session.pair is not None:
            # Of two relatives the one that ends first is forgotten by the other, so each pair has one such end.
            self._add(catalogue.PAIRS, vantage)
        if cause is not None:
            self._count_cause(outcome, cause, vantage)
        if session.upstream:
            self._count_upstream(outcome)
        self._time(outcome)

    def _count_cause(self, outcome: Outcome, cause: Cause, vantage: str) -> None:
        self._add(catalogue.SESSION_CAUSES, cause.code, cause.confidence)
        lost = lost_messages(outcome, cause)
        if lost is None:
            return
        self._add(catalogue.LOST_MESSAGES, vantage, cause.code, lost.leg, number=lost.messages)
        half = lost_half(outcome, lost)
        if half is not None:
            self._add(catalogue.PAIR_LOSSES, vantage, half)

    def _count_upstream(self, outcome: Outcome) -> None:
        for exchange in outcome.exchanges:
            if exchange.connecting:
                continue
            self._add(catalogue.UPSTREAM_QUERIES, _proto(exchange.key.protocol), number=len(exchange.sent))
            for reply in exchange.replies.transmissions[:1]:
                rcode = extended_rcode(reply.wire.payload, reply.wire.summary)
                self._add(catalogue.UPSTREAM_RESPONSES, _rcode(rcode))

    def _time(self, outcome: Outcome) -> None:
        if outcome.session.connecting:
            return
        measured = spans(outcome)
        waited = outcome.duration_ns if outcome.delivered and outcome.client_netns is not None else None
        for histogram, duration_ns in (
            (self._lookup, waited),
            (self._server, measured.server),
            (self._upstream, measured.upstream),
            (self._way_there, measured.client_to_server),
            (self._way_back, measured.server_to_client),
        ):
            if duration_ns is not None:
                histogram.add(duration_ns)

    def _add(self, metric: Metric, *labels: str, number: int = 1) -> None:
        _add(self._counts, metric, labels, number)


def _add(counts: dict[str, Values], metric: Metric, labels: tuple[str, ...], number: int) -> None:
    values = counts[metric.name]
    values[labels] = values.get(labels, 0) + number


def qtype_label(rdtype: int) -> str:
    """A record type as the catalogue has it."""
    return _QTYPE.get(rdtype, OTHER)


def _rcode(rcode: int | None) -> str:
    name = OTHER if rcode is None else rcode_to_text(rcode)
    return name if name in RCODES else OTHER


def _proto(protocol: int) -> str:
    return "tcp" if protocol == TCP else "udp"
