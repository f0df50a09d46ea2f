"""What the event loop tells the page. Where there is no page there is no watcher, and none of this costs anything."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.export.filters import is_problem
from agent.export.line import Context, build
from agent.export.metrics import catalogue
from agent.page.course import Course
from agent.page.flows import Flows
from agent.page.memory import Memory
from agent.session.model import SECOND_NS
from agent.story.problems import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.context.who import Who
    from agent.explain.incident_key import Key
    from agent.explain.incidents import Account, Incident
    from agent.explain.verdict import Verdict
    from agent.export.incident_line import IncidentLine
    from agent.export.line import Line
    from agent.export.metrics.histogram import Distribution
    from agent.export.metrics.tally import Tally
    from agent.export.redaction import Redaction
    from agent.page.flows import Flow, Upstream
    from agent.session.outcome import Outcome

MAX_ALIKE = 10
"""Problems of one cause that are kept of one second: making a line costs as much as all that was found out before."""
MAX_A_SECOND = 50
"""Of all causes together."""
MAX_OPEN = 50
"""Incidents that go on and are shown, those with most lookups first."""
LEGS = {
    "lookup": (catalogue.LOOKUP_SECONDS, ()),
    "query": (catalogue.TRANSIT_SECONDS, ("query",)),
    "server": (catalogue.SERVER_SECONDS, ()),
    "upstream": (catalogue.UPSTREAM_SECONDS, ()),
    "reply": (catalogue.TRANSIT_SECONDS, ("reply",)),
}
"""What the latencies of all lookups are called here."""
TAG_BITS = (1 << 48) - 1
"""As many as a number of JavaScript holds exactly."""


class Told(NamedTuple):
    """One incident as it is shown."""

    line: IncidentLine
    tag: int
    """Problems of it have the same number."""
    course: Course


class _Lines:
    """Makes the line of a lookup when it is asked for, once."""

    def __init__(self, make: Callable[[], Line]) -> None:
        self._make = make

    @cached_property
    def line(self) -> Line:
        """Without messages."""
        return self._make()


class Watcher:
    """Keeps what the page shows.

    Args:
        redaction: Hides the names that were looked up; None: they are shown.
        tally: Has the latencies of all lookups.
        now_ns: When it begins, in the time of the event loop.
    """

    def __init__(self, redaction: Redaction | None, tally: Tally, now_ns: int) -> None:
        self._redaction = redaction
        self._tally = tally
        self.context = Context("", 0)
        """For lines; the event loop renews it."""
        self._second = 0
        self._kept_of: Counter[str] = Counter()
        self._courses: dict[str, Course] = {}
        self.memory = Memory()
        self.flows = Flows(now_ns)
        self.not_kept = 0
        """Problems that were counted and not kept, because there were too many within a second."""
        self.going: list[Told] = []
        self.ended: list[Told] = []
        self.left_out = 0
        """Open incidents that are not shown."""
        begun = self._legs()
        self.latencies = begun, begun
        """Of all lookups when the present window began, and the one before it."""

    def note(
        self,
        outcome: Outcome,
        verdict: Verdict,
        who: Callable[[], Who],
        incident: Incident | None,
        now_ns: int,
    ) -> None:
        """Take note of a lookup that is over and has a session."""
        lines = _Lines(lambda: build(outcome, verdict, self.context, who(), with_messages=False))
        self.flows.count(outcome, verdict.cause, lambda: lines.line, now_ns)
        if is_problem(outcome, verdict) and self._has_room(verdict, now_ns):
            line = lines.line
            if self._redaction is not None:
                self._redaction.apply(line)
            bound(line)
            self.memory.keep(line, None if incident is None else tag_of(incident.key))

    def traffic_of(
        self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who], now_ns: int
    ) -> tuple[Flow, Upstream | None]:
        """Where lookups like this one are counted when nobody looks at them one by one, and what was asked for them."""
        flow = self.flows.flow_of(
            outcome, lambda: build(outcome, verdict, self.context, who(), with_messages=False), now_ns
        )
        return flow, self.flows.upstream_of(outcome, now_ns)

    def latencies_now(self) -> dict[str, Distribution]:
        """Of all lookups so far; any thread may ask."""
        return self._legs()

    def put_up(
        self,
        going: Iterable[tuple[Account, IncidentLine]],
        ended: Iterable[tuple[Account, IncidentLine]],
        now_ns: int,
    ) -> None:
        """Show these incidents from now on; called once a second."""
        every = list(going)
        self.going = [self._told(account, line, now_ns) for account, line in every[:MAX_OPEN]]
        self.ended = [self._told(account, line, None) for account, line in ended]
        self.left_out = len(every) - len(self.going)
        self._courses = {told.line.id: told.course for told in (*self.going, *self.ended)}
        if self.flows.turn(now_ns):
            self.latencies = self.latencies[1], self._legs()

    def _told(self, account: Account, line: IncidentLine, now_ns: int | None) -> Told:
        """One of them; `now_ns` is None if nothing more will happen to it."""
        course = self._courses.get(line.id)
        if course is None:
            until_ns = account.last_ns if now_ns is None else now_ns
            course = Course(account.first_ns, until_ns, account.lookups)
        elif now_ns is not None:
            course.follow(now_ns, account.lookups)
        return Told(msgspec.structs.replace(line, examples=[]), tag_of(account.key), course)

    def _has_room(self, verdict: Verdict, now_ns: int) -> bool:
        second = now_ns // SECOND_NS
        if second != self._second:
            self._second = second
            self._kept_of.clear()
        code = verdict.cause.code if verdict.cause else ""
        if self._kept_of[code] >= MAX_ALIKE or self._kept_of.total() >= MAX_A_SECOND:
            self.not_kept += 1
            return False
        self._kept_of[code] += 1
        return True

    def _legs(self) -> dict[str, Distribution]:
        times = self._tally.times()
        return {leg: times[metric][labels] for leg, (metric, labels) in LEGS.items()}


def tag_of(key: Key) -> int:
    """A number for incidents with this key, which is another one in each run."""
    return hash(key) & TAG_BITS
