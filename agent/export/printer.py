"""Lines on stdout, of sessions and of incidents: which ones, in which form, and how many a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from agent.context.who import NOBODY
from agent.explain.incidents import Example
from agent.export import incident_line, line, table
from agent.export.budget import Budget, Rank
from agent.export.clock import rfc3339
from agent.export.failures import UNLIMITED, FailureLimit, LineRates, kind_of
from agent.export.filters import Filter, is_problem
from agent.export.redaction import Redaction, unquoted
from agent.hop.endpoint import endpoint_to_text
from agent.wire.message import name_to_text
from agent.wire.render import rdtype_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.who import Who
    from agent.explain.incidents import Account, Incident
    from agent.explain.verdict import Verdict
    from agent.session.outcome import Outcome


class Out(Protocol):
    """What takes lines: a text stream, or `agent.export.outlet.Outlet`."""

    def write(self, text: str, /) -> object:
        """Take a whole line."""

    def flush(self) -> object:
        """Let readers see what was written."""


class LineOptions(NamedTuple):
    """What the user wants to see of the sessions."""

    output: str = "json"
    log: str = "all"
    log_rate: int | None = 100
    """Lines a second for succeeded sessions that lost nothing. None: no limit."""
    node: str = ""
    filter: Filter = Filter()
    redaction_key: bytes | None = None
    """Names are replaced by words made with it; None: they are shown."""
    rates: LineRates = UNLIMITED
    """What all others may cost, and everything together."""

    @property
    def may_skip_healthy(self) -> bool:
        """Whether lookups without a problem may be counted without anybody looking at what they are."""
        return self.log != "all" or (self.log_rate is not None and self.filter == Filter())


@dataclass(slots=True)
class RateLimit:
    """Lets so many pass in each second."""

    rate: int | None
    second: int = 0
    passed: int = 0

    def passes(self, now: float) -> bool:
        """Whether one more may pass."""
        return self.take(1, now) == 1

    def take(self, number: int, now: float) -> int:
        """How many of so many may pass."""
        if self.rate is None:
            return number
        if int(now) != self.second:
            self.second, self.passed = int(now), 0
        # The rate may have been lowered within this second.
        passing = max(0, min(number, self.rate - self.passed))
        self.passed += passing
        return passing


class Printer:
    """Writes the sessions that the user wants to see.

    Args:
        options: which ones, and how.
        out: where to.
        wall_offset_ns: added to the hops' stamps to get UTC.
    """

    def __init__(self, options: LineOptions, out: Out, wall_offset_ns: int) -> None:
        self.options = options
        self._out = out
        self._limit = RateLimit(options.log_rate)
        self.budget = Budget(options.rates.lines, options.rates.size)
        self.failures = FailureLimit(options.rates.alike, self.budget)
        self._redaction = Redaction(options.redaction_key) if options.redaction_key else None
        self._encoder = msgspec.json.Encoder()
        self.suppressed = 0
        self.written = 0
        """Lines of sessions."""
        self.incidents_written = 0
        """Lines of incidents."""
        self.context = line.Context(options.node, wall_offset_ns)
        if options.output == "table":
            out.write(f"{table.heading()}\n")
            out.flush()

    def show(self, outcome: Outcome, verdict: Verdict, who: Who = NOBODY) -> None:
        """Print the session, or count why not."""
        rank = self.admits(outcome, verdict, lambda: who)
        if rank is not None:
            self.write(outcome, verdict, who, rank)

    def admits(
        self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who], incident: Incident | None = None
    ) -> Rank | None:
        """What the session is printed as; None if it is not. A line is counted as used or held back.

        It is decided before the line is made, which costs more than all that was found out before.

        Args:
            outcome: Of the session.
            verdict: What is said of it.
            who: Asked if need be.
            incident: That the session belongs to.
        """
        if self.options.log == "none" or not self.options.filter.wants(outcome, verdict, who):
            return None
        if incident is not None:
            incident.is_wanted = True
        if self.options.log == "incidents":
            self._give_example(incident, outcome)
            return None
        if is_problem(outcome, verdict):
            return self._admits_failure(outcome, verdict, incident)
        if self.options.log == "problems":
            return None
        return self._admits_success()

    def hold_back(self, lookups: int) -> None:
        """Take note of lookups without a problem that were not looked at."""
        if self.options.log == "all":
            self.suppressed += lookups

    def write(
        self,
        outcome: Outcome,
        verdict: Verdict,
        who: Who,
        rank: Rank = Rank.RARE,
        incident: Incident | None = None,
    ) -> None:
        """Print the session, if there is room for its line now that it is known how long it is.

        Args:
            outcome: Of the session.
            verdict: What is said of it.
            who: Whose it is.
            rank: What it was admitted as.
            incident: That it belongs to.
        """
        kind = None
        built = self.build(outcome, verdict, who)
        if not self.failures.is_unlimited and is_problem(outcome, verdict):
            kind = kind_of(outcome, verdict)
            built.held_back = self.failures.held_before(kind)
        text = table.row(built) if self.options.output == "table" else self._encoder.encode(built).decode()
        if self._put(text, rank):
            self._give_example(incident, outcome)
        elif kind is not None:
            self.failures.hold(kind, built.held_back + 1)
            _hold_back(incident)

    def build(self, outcome: Outcome, verdict: Verdict, who: Who, *, with_messages: bool = True) -> line.Line:
        """The line of a session, as it may be shown: names are redacted where the user has said so."""
        built = line.build(outcome, verdict, self.context, who, with_messages=with_messages)
        if self._redaction:
            self._redaction.apply(built)
        return built

    def room_for_incidents(self) -> int | None:
        """How many of their lines may be written now; None: any number."""
        return self.budget.room(Rank.INCIDENT, time.monotonic(), incident_line.MAX_BYTES)

    def write_incident(self, incident: Incident, account: Account) -> None:
        """Print what is told of an incident, if one of its lookups is among those that the user wants to see."""
        if self.options.log == "none" or not incident.is_wanted:
            return
        built = self.incident_line(account)
        text = table.incident(built) if self.options.output == "table" else self._encoder.encode(built).decode()
        if self._put(text, Rank.INCIDENT):
            self.incidents_written += 1

    def incident_line(self, account: Account) -> incident_line.IncidentLine:
        """The line of an incident, as of now."""
        now_ns = time.monotonic_ns() + self.context.wall_offset_ns
        built = incident_line.build(account, self.context, now_ns)
        if self._redaction and built.message is not None:
            built.message = unquoted(built.message)
        return built

    def flush(self) -> None:
        """Let readers see what was written."""
        self._out.flush()

    def _put(self, text: str, rank: Rank) -> bool:
        data = f"{text}\n"
        if not self.budget.take(rank, time.monotonic(), len(data.encode())):
            return False
        self._out.write(data)
        self.written += rank is not Rank.INCIDENT
        return True

    def _admits_success(self) -> Rank | None:
        now = time.monotonic()
        if not self._limit.passes(now):
            self.suppressed += 1
            return None
        return Rank.SUCCESS if self.budget.has_room(Rank.SUCCESS, now) else None

    def _admits_failure(self, outcome: Outcome, verdict: Verdict, incident: Incident | None) -> Rank | None:
        if self.failures.is_unlimited:
            return Rank.FAILURE
        rank = self.failures.admits(kind_of(outcome, verdict), outcome.client_netns, time.monotonic())
        if rank is None:
            _hold_back(incident)
        return rank

    def _give_example(self, incident: Incident | None, outcome: Outcome) -> None:
        """Name the lookup in what is told of its incident."""
        if incident is None or not incident.wants_examples:
            return
        key, named = outcome.session.key, not outcome.session.connecting
        name = name_to_text(key.name) if named else None
        if name is not None and self._redaction:
            name = self._redaction.word(name)
        incident.show(
            Example(
                time=rfc3339(outcome.session.first_ns + self.context.wall_offset_ns),
                client=endpoint_to_text(*key.client),
                transaction_id=key.id if named else None,
                name=name,
                rdtype=rdtype_to_text(key.rdtype) if named else None,
            )
        )


def _hold_back(incident: Incident | None) -> None:
    if incident is not None:
        incident.held_back += 1
