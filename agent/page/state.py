"""What the page shows at one moment, as JSON: made at most once a second, and only while somebody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.export.clock import SECOND_NS
from agent.export.incident_line import IncidentLine  # noqa: TC001  msgspec reads the annotation
from agent.page.picture import Picture, picture_of

if TYPE_CHECKING:
    from agent.export.metrics.histogram import Distribution
    from agent.page.watcher import Told, Watcher

HUNDREDTHS = 0.99


class Shown(msgspec.Struct, rename="pascal"):
    """An incident."""

    line: IncidentLine
    tag: int
    """The `Incident` of its problems."""
    course: list[float]
    """Lookups of each part of time, the oldest first."""
    early: int
    """So many of the first parts are an average."""
    step_seconds: float


class Latency(msgspec.Struct, rename="pascal"):
    """How long one leg took, of all lookups of the node in the picture's time for which both its ends were seen."""

    lookups: int
    mean_seconds: float | None
    most_seconds: float | None
    """Ninety-nine of a hundred were not slower; None if there was none, or beyond the last bucket."""


class Problems(msgspec.Struct, rename="pascal"):
    """What is kept of them."""

    next: int
    """Serial number of the one to come."""
    kept: int
    forgotten: int
    """They made room for newer ones."""
    not_kept: int
    """There were too many at once, or their line was too long."""
    kept_bytes: int


class State(msgspec.Struct, rename="pascal"):
    """All of it."""

    node: str
    version: str
    time: str
    """Wall clock of the node."""
    names: str
    """How names of lookups are shown: names or redacted."""
    waiting: list[str]
    """What is missing before the agent sees everything."""
    limits: list[str]
    """What this kernel or process keeps it from seeing."""
    lost_records: int
    """Since the agent began; what they were of is not known."""
    going: list[Shown]
    ended: list[Shown]
    left_out: int
    picture: Picture
    legs: dict[str, Latency]
    problems: Problems


def incidents_of(told: list[Told]) -> list[Shown]:
    """As they are shown."""
    return [_incident(incident) for incident in told]


def _incident(told: Told) -> Shown:
    parts = told.course.parts
    lookups = [round(part, 2) for part in tuple(parts.lookups)]
    return Shown(told.line, told.tag, lookups, parts.early, parts.step_ns / SECOND_NS)


def problems_of(watcher: Watcher) -> Problems:
    """What is kept of them."""
    memory = watcher.memory
    return Problems(memory.next, memory.kept, memory.forgotten, watcher.not_kept + memory.too_long, memory.size_bytes)


def picture_now(watcher: Watcher, now_ns: int) -> Picture:
    """The node."""
    return picture_of(watcher.flows, now_ns)


def legs_of(watcher: Watcher) -> dict[str, Latency]:
    """Latencies in the time of the picture."""
    begun, now = watcher.latencies[0], watcher.latencies_now()
    return {leg: _between(begun[leg], now[leg]) for leg in now}


def _between(begun: Distribution, now: Distribution) -> Latency:
    """What came to a histogram between two moments."""
    counts = [(edge, count - before) for (edge, count), (_, before) in zip(now.buckets, begun.buckets, strict=True)]
    lookups = counts[-1][1]
    if lookups <= 0:
        return Latency(0, None, None)
    edge = next((edge for edge, count in counts if count >= HUNDREDTHS * lookups), "+Inf")
    mean = max(0.0, now.sum_seconds - begun.sum_seconds) / lookups
    return Latency(lookups, mean, None if edge == "+Inf" else float(edge))
