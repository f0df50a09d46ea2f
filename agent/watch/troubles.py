"""Who and what has most trouble: lookups that did not go well, by workload, by name and by server.

Everything is bounded: what comes when there is no room left is counted together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.export.filters import is_line_of_problem
from agent.session.outcome import Status
from agent.story.ways import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.export.line import Line

MAX_APART = 2000
"""Of each table."""
MAX_CAUSES = 16
"""Of each row. Others are not told."""


@dataclass(slots=True)
class Trouble:
    """Of one workload, name or server."""

    who: str
    lookups: int = 0
    """That did not go well."""
    failed: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def add(self, line: Line, lookups: int) -> None:
        """Some more, of which this is one."""
        self.lookups += lookups
        self.failed += lookups if line.status == Status.FAILED else 0
        cause = line.cause.code if line.cause else line.rcode or line.status
        if cause in self.causes or len(self.causes) < MAX_CAUSES:
            self.causes[cause] += lookups
        self.last = max(self.last, line.time)


def workload(line: Line) -> str:
    """Who asked: the workload, the pod, or the address."""
    client = line.client
    name = client.workload or client.pod
    return f"{client.namespace}/{name}" if name else client.address


def name(line: Line) -> str:
    """What was asked for."""
    return line.question.name if line.question else "(no connection)"


def server(line: Line) -> str:
    """Who was asked."""
    asked = endpoint(line.server.address, line.server.port)
    return f"{asked} {line.server.service}" if line.server.service else asked


KINDS: dict[str, Callable[[Line], str]] = {"WORKLOAD": workload, "NAME": name, "SERVER": server}


class Troubles:
    """Lookups in, tables out."""

    def __init__(self) -> None:
        self._tables: dict[str, dict[str, Trouble]] = {kind: {} for kind in KINDS}
        self.lookups = 0
        """That did not go well."""
        self.fine = 0
        self.beyond: Counter[str] = Counter()
        """Lookups for which a table had no room, by its kind."""

    def add(self, line: Line) -> None:
        """One lookup, and those like it that have no line."""
        lookups = 1 + max(0, line.held_back)
        if not is_line_of_problem(line):
            self.fine += lookups
            return
        self.lookups += lookups
        for kind, key_of in KINDS.items():
            self._add(kind, key_of(line), line, lookups)

    def _add(self, kind: str, key: str, line: Line, lookups: int) -> None:
        table = self._tables[kind]
        if key not in table:
            if len(table) >= MAX_APART:
                self.beyond[kind] += lookups
                return
            table[key] = Trouble(key)
        table[key].add(line, lookups)

    def worst(self, kind: str, most: int) -> list[Trouble]:
        """Those with most trouble."""
        return sorted(self._tables[kind].values(), key=lambda trouble: (-trouble.lookups, trouble.who))[:most]

    def apart(self, kind: str) -> int:
        """How many there are of a kind."""
        return len(self._tables[kind])
