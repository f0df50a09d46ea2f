"""An agent's socket with everything behind it but the capture: real hub, real feed, sessions of synthetic hops."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agent.context.who import NOBODY, Who
from agent.explain.incidents import Incidents
from agent.explain.rules import explain
from agent.export.line import Line
from agent.export.printer import LineOptions, Printer
from agent.lab.processes import PATIENCE
from agent.readers.feed import Feed, Numbers
from agent.readers.hub import Hub, Limits
from agent.readers.place import Place
from agent.session.outcome import Outcome
from tests.unit.conftest import World

SECONDS = 20.0 * PATIENCE


class Silent:
    """Nobody reads stdout."""

    def write(self, _text: str, /) -> None:
        pass

    def flush(self) -> None:
        pass


class SocketAgent:
    """Use as a context manager: inside it readers can come."""

    def __init__(self, path: Path, limits: Limits = Limits(), **options: object) -> None:  # noqa: B008  immutable
        self.path = str(path)
        self.hub = Hub(Place(self.path), limits)
        printer = Printer(LineOptions(log="none", node="node-a", **options), Silent(), 0)  # type: ignore[arg-type]
        self.lookups = self.lost = 0
        self.incidents = Incidents()
        self.feed = Feed(self.hub, printer, self.incidents, lambda: Numbers(self.lookups, 0, self.lost))

    def __enter__(self) -> Self:
        self.hub.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hub.stop()

    def wait_for(self, readers: int = 1) -> None:
        self.until(lambda: len(self.hub.readers) == readers, f"there are {readers} readers")

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain until {what}"
            time.sleep(0.005)

    def show(self, outcome: Outcome, who: Who = NOBODY) -> None:
        verdict = explain(outcome)
        self.lookups += 1
        self.incidents.note(outcome, verdict, lambda: who, time.monotonic_ns())
        self.feed.show(outcome, verdict, lambda: who)

    def flush(self) -> None:
        self.feed.flush(time.monotonic_ns())

    def send(self, line: Line) -> None:
        """A line as it is, to everybody."""
        for reader in self.hub.readers:
            reader.put(msgspec.json.encode(line) + b"\n")
        self.lookups += 1
        self.flush()


def outcomes(*parts: list) -> list[Outcome]:
    """Of hops, in the order of their first packets."""
    return sorted(World().outcomes(*parts), key=lambda outcome: outcome.session.first_ns)
