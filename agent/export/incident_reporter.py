"""Tells of incidents: lines on stdout, the list for the HTTP port, and Events where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.export.clock import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.explain.incidents import Account
    from agent.export.event_teller import EventTeller
    from agent.export.incident_line import IncidentLine
    from agent.export.metrics.sources import Sources
    from agent.export.printer import Printer

LOOK_NS = SECOND_NS
"""How often it is looked whether there is something to tell: soon enough for a person."""


class IncidentWatcher(Protocol):
    """Who else wants to see them."""

    def put_up(
        self,
        going: Iterable[tuple[Account, IncidentLine]],
        ended: Iterable[tuple[Account, IncidentLine]],
        now_ns: int,
        /,
    ) -> None:
        """Take them: those that go on, the most important ones first, and those that are over, the latest first."""


class IncidentReporter:
    """Looks at the incidents once a second.

    Args:
        sources: Where they are, and where the list is put up.
        printer: Writes their lines.
        metrics_by: What the HTTP port may tell of clients.
        watcher: Gets all of them once a second, if there is a page.
        events: Makes Kubernetes Events of them, if that was asked for.
    """

    def __init__(
        self,
        sources: Sources,
        printer: Printer,
        metrics_by: str,
        watcher: IncidentWatcher | None = None,
        events: EventTeller | None = None,
    ) -> None:
        self._incidents = sources.incidents
        self._board = sources.board
        self._printer = printer
        self._metrics_by = metrics_by
        self._watcher = watcher
        self._events = events
        self._looked_ns = -LOOK_NS

    def report(self, now_ns: int) -> None:
        """Tell what there is to tell, if that was not done within the last second; `now_ns` only grows."""
        if now_ns - self._looked_ns >= LOOK_NS:
            self.tell(now_ns)

    def tell(self, now_ns: int) -> None:
        """Write the lines that are due, as many as there is room for, and put up the list."""
        self._looked_ns = now_ns
        for incident, account in self._incidents.due(now_ns, self._printer.room_for_incidents()):
            self._printer.write_incident(incident, account)
            if self._events is not None:
                self._events.tell(account, self._printer.context, now_ns)
        line = self._printer.incident_line
        going = [(account, line(account)) for account in self._incidents.accounts()]
        ended = [(account, line(account)) for account in reversed(self._incidents.recent)]
        self._board.put_up(
            [incident_line for _, incident_line in going],
            [incident_line for _, incident_line in ended],
            self._metrics_by,
        )
        if self._watcher is not None:
            self._watcher.put_up(going, ended, now_ns)
