"""Incident lines read back: what was told last of each. Pure."""

from __future__ import annotations

import msgspec

from agent.explain.incidents import State
from agent.export.incident_line import KIND, IncidentLine

MAX_KEPT = 1000
"""Beyond it the ones first told are forgotten."""
_DECODER = msgspec.json.Decoder(IncidentLine)


class KeptIncidents:
    """Takes the lines that are none of sessions."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], IncidentLine] = {}

    def take(self, text: bytes) -> bool:
        """Whether a line is one of an incident.

        Args:
            text: the line, from its first brace.
        """
        try:
            line = _DECODER.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if line.kind != KIND:
            return False
        if len(self._last) >= MAX_KEPT and (line.node, line.id) not in self._last:
            del self._last[next(iter(self._last))]
        self._last[line.node, line.id] = line
        return True

    def going(self) -> list[IncidentLine]:
        """Those of which the end was not told, those with most lookups first."""
        going = (line for line in self._last.values() if line.state != State.ENDED.value)
        return sorted(going, key=lambda line: -line.lookups)
