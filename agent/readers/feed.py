"""What readers are sent: the agent's loop shows every lookup that is over, and each reader gets those he wants."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent import __version__
from agent.export.clock import SECOND_NS, rfc3339
from agent.export.filters import is_problem
from agent.export.metrics.board import MAX_OPEN
from agent.export.printer import RateLimit
from agent.export.unnamed import Unnamed
from agent.readers.notices import Incidents, State, write_notice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.context.who import Who
    from agent.explain.incidents import Incidents as NodeIncidents
    from agent.explain.verdict import Verdict
    from agent.export.printer import Printer
    from agent.readers.hub import Hub, Reader
    from agent.session.outcome import Outcome

TELL_NS = SECOND_NS


class Numbers(NamedTuple):
    """What the agent tells of itself."""

    lookups: int
    open: int
    lost_records: int


class Feed:
    """Between the agent's loop and its readers. Without readers it costs a look at an empty tuple.

    Args:
        hub: Where the readers are; None where nobody can come.
        printer: Makes lines as those on stdout are made, names redacted or not.
        incidents: Of the node.
        numbers: Asked once a second, while there are readers.
    """

    def __init__(
        self, hub: Hub | None, printer: Printer, incidents: NodeIncidents, numbers: Callable[[], Numbers]
    ) -> None:
        self._hub = hub
        self._printer = printer
        self._incidents = incidents
        self._numbers = numbers
        self._encoder = msgspec.json.Encoder()
        self._examples = RateLimit(0)
        self._unnamed = Unnamed()
        self._told_ns = 0

    @property
    def readers(self) -> tuple[Reader, ...]:
        """Those who are connected."""
        return self._hub.readers if self._hub else ()

    def examples(self, lookups: int, now: float) -> int:
        """How many of so many lookups, which seem to be usual, are to be handed over; `now` is in seconds."""
        self._examples.rate = max((reader.examples for reader in self.readers), default=0)
        return self._examples.take(lookups, now)

    def pass_over(self, lookups: int) -> None:
        """Take note of healthy lookups that were not handed over."""
        for reader in self.readers:
            if reader.wanted.wants_healthy:
                reader.passed_over += lookups

    def show(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who]) -> None:
        """Send a lookup to those who want it; one whose pod is not known yet a moment later."""
        if not is_problem(outcome, verdict) and not self._somebody_wants_healthy():
            return  # whose it is costs more to find out
        if not (who().expected and self._unnamed.keeps(outcome, time.monotonic())):
            self.send(outcome, verdict, who)

    def due(self, now: float) -> Iterator[Outcome]:
        """Lookups that have waited long enough for the name of their pod: to be sent now; `now` is in seconds."""
        return self._unnamed.due(now)

    def send(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who]) -> None:
        """Send a lookup to those who want it."""
        encoded: dict[bool, bytes] = {}
        for reader in self.readers:
            wanted = reader.wanted
            if not wanted.wants(outcome, verdict, who):
                continue
            limit = reader.others if is_problem(outcome, verdict) else reader.healthy
            if not limit.passes(time.monotonic()):
                reader.held += 1
                continue
            if wanted.messages not in encoded:
                built = self._printer.build(outcome, verdict, who(), with_messages=wanted.messages)
                encoded[wanted.messages] = self._encoder.encode(built) + b"\n"
            reader.put(encoded[wanted.messages])

    def flush(self, now_ns: int) -> None:
        """Let readers have what they were sent, and once a second the state; `now_ns` only grows."""
        if self._hub is None or not self._hub.readers:
            return
        if now_ns - self._told_ns >= TELL_NS:
            self._told_ns = now_ns
            self._tell()
        self._hub.wake()

    def _somebody_wants_healthy(self) -> bool:
        return any(reader.wanted.wants_healthy for reader in self.readers)

    def _tell(self) -> None:
        numbers = self._numbers()
        context = self._printer.context
        now = rfc3339(time.monotonic_ns() + context.wall_offset_ns)
        for reader in self.readers:
            state = State(
                time=now,
                node=context.node,
                version=__version__,
                lookups=numbers.lookups,
                open=numbers.open,
                lost_records=numbers.lost_records,
                passed_over=reader.passed_over,
                held=reader.held,
                dropped=reader.dropped,
            )
            reader.tell("State", write_notice(state))
        if any(reader.wanted.incidents for reader in self.readers):
            self._tell_incidents()

    def _tell_incidents(self) -> None:
        accounts = self._incidents.accounts()
        lines = [self._printer.incident_line(account) for account in accounts[:MAX_OPEN]]
        notice = write_notice(Incidents(lines, len(accounts[MAX_OPEN:])))
        for reader in self.readers:
            if reader.wanted.incidents:
                reader.tell("Incidents", notice)
