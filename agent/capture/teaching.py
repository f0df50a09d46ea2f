"""Tells the BPF program of DNS servers that have other ports than those it watches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from agent.hop.endpoint import Endpoint

TEACH_NS = 60 * SECOND_NS
"""How often the program is told of servers that it knows already: it forgets them after five minutes."""
MAX_TAUGHT = 1024
"""Of the 4096 endpoints that the program has room for: the others are those that it learns itself."""


class Learner(Protocol):
    """The capture, as far as this module needs it."""

    def teach(self, servers: Iterable[tuple[int, Endpoint]]) -> None:
        """Watch these too, by IANA protocol number and endpoint."""


class Teacher:
    """Remembers what the program was told, and when."""

    def __init__(self, capture: Learner, ports: tuple[int, ...]) -> None:
        self._capture = capture
        self._ports = ports
        self._known: frozenset[tuple[int, Endpoint]] = frozenset()
        self._taught_ns = 0

    def teach(self, servers: AbstractSet[tuple[int, Endpoint]], now_ns: int) -> None:
        """Tell of servers behind DNS Services, if any are new or the last time was long ago."""
        others = frozenset(server for server in servers if server[1].port not in self._ports)
        if others - self._known or now_ns - self._taught_ns > TEACH_NS:
            self._capture.teach(sorted(others)[:MAX_TAUGHT])
            self._known, self._taught_ns = others, now_ns
