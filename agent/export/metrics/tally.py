"""Counting lookups as they end: plain numbers in dictionaries and lists, made into samples only when somebody asks.

The thread that ends sessions counts, any other thread may ask at any time: whatever is copied, is copied by one
operation of the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.context.who import NOBODY
from agent.explain.findings import OPCODE
from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import LATENCY_BUCKETS, NOTHING_ASKED, OTHER, QTYPES, RCODES
from agent.export.metrics.clients import client_of
from agent.export.metrics.histogram import Histogram
from agent.export.metrics.losses import lost_half, lost_messages
from agent.hop.record import ORIGIN, TCP, UDP
from agent.session.accepted import rcode_of
from agent.session.addressed import servers_asked, times_asked
from agent.session.latency import latency_of
from agent.session.outcome import BITMAP, COMPLETE, FQ, FR
from agent.wire.render import rcode_to_text, rdtype_from_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.who import Who
    from agent.explain.verdict import Cause, Verdict
    from agent.export.metrics.catalogue import Metric
    from agent.export.metrics.clients import Clients
    from agent.export.metrics.histogram import Distribution
    from agent.session.model import Session
    from agent.session.outcome import Outcome
    from agent.session.usual import Times

Values = dict[tuple[str, ...], float]
"""By label values, in the order of the catalogue."""
Kind = tuple[str, str, int | None, bool, str | None, bool]
"""Vantage, type asked for, response code, whether truncated, what an upstream replied (None: none was asked), and
whether one of a pair."""
Label = tuple[tuple[str, str, int | None, bool, str | None], bool, tuple[str, str] | None, tuple[str, ...]]
"""A kind without its last part; whether the client is on this node and counted one by one, and who it is; findings."""
STEADY = frozenset({"ServerImbalance", "NodeLocalBypassed", "SearchPathNXDOMAIN"})
"""Findings that hold of all lookups of one way, and are counted with them."""

TRUNCATED = "Truncated"
"""The finding: a reply with the TC bit (RFC 1035 4.1.1)."""
COMPLETE_BITMAP = str(COMPLETE & BITMAP)
FORWARDED = FQ | FR
FORWARDED_BITMAP = str((COMPLETE | FORWARDED) & BITMAP)
SERVER_COMPLETE = COMPLETE & BITMAP
"""What is seen of a whole lookup where only the server is."""
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


class Tally:
    """What the sessions of this node amount to."""

    def __init__(self, clients: Clients | None = None) -> None:
        """Begin with zeros.

        Args:
            clients: Counts them by namespace or workload, if the user wants that.
        """
        self._clients = clients
        self._counts: dict[Metric, Values] = {metric: dict.fromkeys(metric.known, 0) for metric in _COUNTED}
        # Lookups like most others, by all that may differ between them: one addition where there would be five.
        self._usual: dict[Kind, int] = {}
        self._lookup, self._server, self._upstream, self._way_there, self._way_back = (
            Histogram(LATENCY_BUCKETS) for _ in range(5)
        )
        self._times: dict[Metric, dict[tuple[str, ...], Histogram]] = {
            catalogue.LOOKUP_SECONDS: {(): self._lookup},
            catalogue.SERVER_SECONDS: {(): self._server},
            catalogue.UPSTREAM_SECONDS: {(): self._upstream},
            catalogue.TRANSIT_SECONDS: {("query",): self._way_there, ("reply",): self._way_back},
        }

    def count(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who] = lambda: NOBODY) -> None:
        """Count one session that is over; `who` is asked only if clients are counted one by one."""
        if verdict.findings:
            for finding in verdict.findings:
                self._add(catalogue.FINDING_COUNTS, finding)
        if outcome.bits != COMPLETE or verdict.cause is not None or not self._count_usual(outcome, verdict.findings):
            self._count_unusual(outcome, verdict)
        if self._clients is not None:
            self._clients.count(outcome, verdict.cause, who)

    def usual_label(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who]) -> Label | None:
        """What lookups like this one are counted as together; None if each is to be counted by itself."""
        complete = COMPLETE if outcome.client_netns is not None else SERVER_COMPLETE
        telling = verdict.cause is not None or not STEADY.issuperset(verdict.findings)
        upstream = _upstream_rcode(outcome)
        expected = complete if upstream is None else complete | FORWARDED
        if telling or outcome.bits != expected or not _is_usual(outcome):
            return None
        here = self._clients is not None and outcome.client_netns is not None
        client = client_of(who()) if here else None
        return (*_kind_of(outcome, truncated=False)[:-2], upstream), here, client, tuple(verdict.findings)

    def count_together(self, label: Label, lookups: int, pairs: int, waited_ns: int) -> None:
        """Count lookups that were not looked at one by one.

        Args:
            label: What `usual_label` says of one of them.
            lookups: How many.
            pairs: So many of them were the later half of a pair.
            waited_ns: By all of them together.
        """
        kind, here, client, findings = label
        for finding in findings:
            self._add(catalogue.FINDING_COUNTS, finding, number=lookups)
        for paired, number in ((True, pairs), (False, lookups - pairs)):
            self._usual[*kind, paired] = self._usual.get((*kind, paired), 0) + number
        if self._clients is not None and here:
            self._clients.count_together(client, lookups, waited_ns)

    def count_times(self, times: Times) -> None:
        """Count how long these took."""
        for histogram, durations in (
            (self._lookup, times.lookup),
            (self._way_there, times.way_there),
            (self._server, times.server),
            (self._way_back, times.way_back),
            (self._upstream, times.upstream),
        ):
            if durations:
                histogram.add_all(durations)

    def counts(self) -> dict[Metric, Values]:
        """Every counter, now."""
        now = {metric: dict(values) for metric, values in self._counts.items()}
        for (vantage, qtype, rcode, truncated, upstream, paired), number in dict(self._usual).items():
            bitmap = COMPLETE_BITMAP if upstream is None else FORWARDED_BITMAP
            _add(now, catalogue.QUERIES, (vantage, "udp", qtype), number)
            _add(now, catalogue.RESPONSES, (vantage, _rcode(rcode)), number)
            _add(now, catalogue.SESSIONS, (vantage, "Succeeded", bitmap), number)
            if upstream is not None:
                _add(now, catalogue.UPSTREAM_QUERIES, ("udp",), number)
                _add(now, catalogue.UPSTREAM_RESPONSES, (upstream,), number)
            _add(now, catalogue.TRUNCATED, (vantage,), number if truncated else 0)
            _add(now, catalogue.PAIRS, (vantage,), number if paired else 0)
        return now

    def times(self) -> dict[Metric, dict[tuple[str, ...], Distribution]]:
        """Every histogram, now."""
        return {
            metric: {labels: histogram.now() for labels, histogram in histograms.items()}
            for metric, histograms in self._times.items()
        }

    def _count_usual(self, outcome: Outcome, findings: list[str]) -> bool:
        """One datagram each way, both ends here or the server elsewhere, nothing lost and nobody else asked.

        Most lookups are like that, and what is looked at here is cold: so each thing is looked at once.

        Returns:
            Whether it was one of these.
        """
        if not _is_usual(outcome):
            return False
        session = outcome.session
        sent, returned = session.first_ns, session.last_ns
        if outcome.server_netns is not None:
            arrived, replied = session.queries.transmissions[0].hops[-1], session.replies.transmissions[0].hops[0]
            self._way_there.add(arrived.ts_ns - sent)
            self._server.add(replied.ts_ns - arrived.ts_ns)
            self._way_back.add(returned - replied.ts_ns)
        self._lookup.add(returned - sent)
        kind = _kind_of(outcome, truncated=TRUNCATED in findings)
        try:
            self._usual[kind] += 1
        except KeyError:
            self._usual[kind] = 1
        return True

    def _count_unusual(self, outcome: Outcome, verdict: Verdict) -> None:
        """Any lookup."""
        session, cause = outcome.session, verdict.cause
        vantage = outcome.vantage or "transit"
        status, bitmap = outcome.status.value, str(outcome.bits & BITMAP)
        self._add(catalogue.SESSIONS, vantage, status, bitmap)
        attempts, qtype = (1, NOTHING_ASKED) if session.connecting else (outcome.attempts, _label_of(session))
        self._add(catalogue.QUERIES, vantage, _proto(session.key.protocol), qtype, number=attempts)
        if not session.connecting:
            self._add(catalogue.RETRANSMISSIONS, vantage, number=attempts - len(times_asked(session)))
        if outcome.rcode is not None:
            self._add(catalogue.RESPONSES, vantage, _rcode(outcome.rcode))
        if TRUNCATED in verdict.findings:
            self._add(catalogue.TRUNCATED, vantage)
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
            for asked in servers_asked(exchange):
                for reply in asked.replies[:1]:
                    self._add(catalogue.UPSTREAM_RESPONSES, _rcode(rcode_of(reply)))

    def _time(self, outcome: Outcome) -> None:
        if outcome.session.connecting:
            return
        measured = latency_of(outcome)
        waited = outcome.duration_ns if outcome.delivered and outcome.client_netns is not None else None
        for histogram, duration_ns in (
            (self._lookup, waited),
            (self._server, measured.server_ns),
            (self._upstream, measured.upstream_ns),
            (self._way_there, measured.client_to_server_ns),
            (self._way_back, measured.server_to_client_ns),
        ):
            if duration_ns is not None:
                histogram.add(duration_ns)

    def _add(self, metric: Metric, *labels: str, number: int = 1) -> None:
        _add(self._counts, metric, labels, number)


def _is_usual(outcome: Outcome) -> bool:
    """One datagram each way, and the server elsewhere or both ends of its part seen."""
    session = outcome.session
    queries, replies = session.queries.transmissions, session.replies.transmissions
    if session.key.protocol != UDP or len(queries) > 1 or len(replies) > 1 or replies[0].message.summary.flags & OPCODE:
        return False
    arrived, replied = queries[0].hops[-1], replies[0].hops[0]
    return outcome.server_netns is None or (arrived.netns == outcome.server_netns and bool(replied.flags & ORIGIN))


def _kind_of(outcome: Outcome, *, truncated: bool) -> Kind:
    session = outcome.session
    vantage, paired = outcome.vantage or "transit", session.pair is not None
    return vantage, _QTYPE.get(session.key.rdtype, OTHER), outcome.rcode, truncated, None, paired


def _upstream_rcode(outcome: Outcome) -> str | None:
    """What an upstream replied that was asked by one datagram, and replied by one; None for all others."""
    exchanges = outcome.exchanges
    if len(exchanges) != 1 or exchanges[0].key.protocol != UDP or exchanges[0].connecting:
        return None
    queries, replies = exchanges[0].queries.transmissions, exchanges[0].replies.transmissions
    return _rcode(rcode_of(replies[0])) if len(queries) == len(replies) == 1 else None


def _add(counts: dict[Metric, Values], metric: Metric, labels: tuple[str, ...], number: int) -> None:
    values = counts[metric]
    values[labels] = values.get(labels, 0) + number


def _label_of(session: Session) -> str:
    """The type that a query asked for; an update's or a notification's question is none (RFC 2136, RFC 1996)."""
    asked = next(iter((*session.queries.transmissions, *session.replies.transmissions)))
    return OTHER if asked.message.summary.opcode else qtype_label(session.key.rdtype)


def qtype_label(rdtype: int) -> str:
    """A record type as the catalogue has it."""
    return _QTYPE.get(rdtype, OTHER)


def _rcode(rcode: int | None) -> str:
    name = OTHER if rcode is None else rcode_to_text(rcode)
    return name if name in RCODES else OTHER


def _proto(protocol: int) -> str:
    return "tcp" if protocol == TCP else "udp"
