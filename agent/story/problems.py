"""Problems that are one problem for a person: each is kept once, with how often, since when, and for whom.

Everything is bounded: what comes when there is no room left is counted by its cause.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.explain.causes import CAUSES
from agent.export.filters import Filter, is_line_of_problem
from agent.session.outcome import Leg, Status
from agent.story.text import shown
from agent.story.ways import endpoint, ways

if TYPE_CHECKING:
    from agent.export.line import Line
    from agent.story.ways import Way

MAX_OF_CAUSE = 50
"""Problems told apart of each cause. A flood of one cause hides no problem that has another."""
MAX_CLIENTS = 200
"""Told apart of one problem."""
MAX_CLIENT_CHARACTERS = 320
"""A namespace and a pod have 63 and 253 (RFC 1123)."""
MAX_EXAMPLES = 3
"""Names and clients of one problem that are told."""
MAX_ITEMS = 400
"""Of a list in a line that is kept."""
MAX_KEPT_BYTES = 32 << 20
"""Of all lines that are kept. One has 3 KiB as a rule."""
SEVERITY = {Status.FAILED: 0, Status.SAMPLE_LOSS: 1}
"""What is told first; all others come last."""
NO_CAUSE = ""
ANYTHING = Filter()
OTHER_CODE = "other"
"""Stands for all codes that this version does not know."""


class Problem(NamedTuple):
    """What makes two lookups the same problem. Neither the name nor the type that was asked for, nor the client's port.

    It is the measure by which the agent limits the lines of failures (`agent.export.failures.Kind`), and the node.
    """

    node: str
    status: str
    cause: str
    protocol: str
    server: str
    rcode: str
    place: tuple[str, ...]
    """Each message that died, with namespace, reason, function and hook. Without a drop, where the query was last."""
    upstream: str
    """The last one that was asked, where the cause is an upstream's."""


def problem_of(line: Line) -> Problem:
    """Which problem a lookup has."""
    cause = line.cause.code if line.cause else NO_CAUSE
    last = line.upstream[-1] if line.upstream and cause.startswith("Upstream") else None
    return Problem(
        node=shown(line.node),
        status=shown(line.status),
        cause=shown(cause),
        protocol=shown(line.protocol),
        server=shown(endpoint(line.server.address, line.server.port)),
        rcode=shown(line.rcode or ""),
        place=tuple(shown(word) for word in _place(ways(line))),
        upstream=shown(endpoint(last.address, last.port)) if last else "",
    )


def _place(found: list[Way]) -> list[str]:
    lost = [way for way in found if way.drop is not None]
    if lost:
        return [
            word or ""
            for way in lost
            if way.drop is not None
            for word in (way.leg, str(way.drop.netns), way.drop.reason, way.drop.location, way.drop.hook)
        ]
    queries = [way.stops[-1] for way in found if way.leg is Leg.QUERY]
    return [word for stop in queries for word in (str(stop.netns), stop.destination)]


@dataclass(slots=True)
class Group:
    """All lookups of one problem."""

    example: Line
    """The first one, without its messages."""
    first: str
    last: str
    lines: int = 0
    held: int = 0
    """Lookups that have no line of their own: the agent held them back."""
    names: dict[str, None] = field(default_factory=dict)
    """The examples, and one more if there are more."""
    clients: dict[str, None] = field(default_factory=dict)
    more_clients: bool = False

    def add(self, line: Line) -> None:
        """One more lookup of this problem."""
        self.lines += 1
        self.held += max(0, line.held_back)
        time = shown(line.time)
        self.first, self.last = min(self.first, time), max(self.last, time)
        _remember(self.names, _name(line), MAX_EXAMPLES + 1)
        self.more_clients |= not _remember(self.clients, client(line), MAX_CLIENTS)

    @property
    def lookups(self) -> int:
        """With a line of their own or without."""
        return self.lines + self.held


def _remember(known: dict[str, None], word: str, most: int) -> bool:
    """Whether there was room for it."""
    if word not in known and len(known) >= most:
        return False
    known[word] = None
    return True


def _name(line: Line) -> str:
    if line.question is None:
        return "a TCP connection"
    return f"{shown(line.question.name)} ({shown(line.question.type)})"


def client(line: Line) -> str:
    """Who asked, in a word: the pod, or the address."""
    if line.client.pod is None:
        return shown(line.client.address)[:MAX_CLIENT_CHARACTERS]
    return shown(f"{line.client.namespace}/{line.client.pod}")[:MAX_CLIENT_CHARACTERS]


@dataclass(slots=True)
class Counts:
    """Of lookups, but for the first."""

    kinds: int = 0
    """Problems that are told."""
    troubled: int = 0
    fine: int = 0
    unwanted: int = 0
    """Left out by the filters."""


class Problems:
    """Lookups in, groups out.

    Args:
        wanted: which lookups count.
        tell_all: keep those that had no problem, too.
    """

    def __init__(self, wanted: Filter = ANYTHING, *, tell_all: bool = False) -> None:
        self._wanted = wanted
        self._tell_all = tell_all
        self._groups: dict[Problem, Group] = {}
        self._of_cause: Counter[str] = Counter()
        self._room = MAX_KEPT_BYTES
        self.counts = Counts()
        self.beyond: Counter[str] = Counter()
        """Lookups whose problem is not kept apart, by cause."""

    def add(self, line: Line) -> None:
        """Put a lookup to others like it. The line is changed and kept if it is the first of its problem."""
        lookups = 1 + max(0, line.held_back)
        if not self._wanted.wants_line(line):
            self.counts.unwanted += lookups
        elif is_line_of_problem(line):
            self.counts.troubled += lookups
            self._put(line, lookups)
        else:
            self.counts.fine += lookups
            if self._tell_all:
                self._put(line, lookups)

    def _put(self, line: Line, lookups: int) -> None:
        problem = problem_of(line)
        group = self._groups.get(problem) or self._begin(problem, line)
        if group is None:
            self.beyond[_budget(problem)] += lookups
        else:
            group.add(line)

    def _begin(self, problem: Problem, line: Line) -> Group | None:
        if self._of_cause[_budget(problem)] >= MAX_OF_CAUSE or self._room <= 0:
            return None
        self._of_cause[_budget(problem)] += 1
        self.counts.kinds += is_line_of_problem(line)
        bound(line)
        self._room -= len(msgspec.json.encode(line))
        group = self._groups[problem] = Group(line, line.time, line.time)
        return group

    def told(self) -> list[Group]:
        """The worst and most frequent first."""
        return sorted(self._groups.values(), key=_rank)


def _rank(group: Group) -> tuple[int, bool, int, str]:
    line = group.example
    severity = next((rank for status, rank in SEVERITY.items() if line.status == status), len(SEVERITY))
    return severity, line.cause is None, -group.lookups, group.first


def _budget(problem: Problem) -> str:
    """The cause whose room a problem takes."""
    return problem.cause if problem.cause in CAUSES or not problem.cause else OTHER_CODE


def bound(line: Line) -> None:
    """Take the messages out of a line, and make none of its texts and lists larger than those that dnstrail writes.

    All its texts can be shown on a terminal afterwards.
    """
    line.messages = []
    make_showable(line)


def make_showable(struct: msgspec.Struct) -> None:
    """The same of what is part of a line, or is another kind of line."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, list):
            setattr(struct, name, [_bounded(item) for item in value[:MAX_ITEMS]])
        else:
            setattr(struct, name, _bounded(value))


def _bounded(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        make_showable(value)
    return shown(value) if isinstance(value, str) else value
