"""A lookup as a picture: lanes for the places at which its messages were seen, and moves between them in order of time.

Nothing is drawn here: the browser does that. A move is made of hops of the line and of nothing else; where a message
was sent and not seen, the move says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.session.outcome import Leg
from agent.story.drawing import BROKEN, loss_words, name_of
from agent.story.telling import beginning, explanation, outcome_of
from agent.story.ways import ENDS, LOST_SIGHT, End, Place, endpoint, every_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.export.line import Exchange, Line
    from agent.page.memory import Kept
    from agent.story.ways import Stop, Way

MAX_COPIES = 4
"""Of one message that are drawn."""
MAX_EXCHANGES = 6
"""Questions to upstreams that are drawn, the last ones."""
OUT_OF_SIGHT = "not seen after that"
LaneKey = tuple[str, object]


class Lane(msgspec.Struct, rename="pascal"):
    """A place."""

    kind: str
    """client, netns, server, upstream or outside."""
    title: str
    details: list[str]
    seen: bool
    """Whether a packet was seen there."""


class Move(msgspec.Struct, rename="pascal"):
    """A message that went from one lane to another, or ended in one."""

    leg: str
    label: str
    from_: int = msgspec.field(name="From")
    to: int
    seconds: float | None
    """When it was seen where it went, or ended there; None if it was not seen."""
    seen: bool
    end: str | None = None
    """What became of it, if it went no further: dropped, refused, unanswered, not-taken or lost-sight."""
    end_words: str | None = None
    note: str = ""
    """Devices it passed, and addresses that changed."""


class Diagram(msgspec.Struct, rename="pascal"):
    """All there is to show of one problem."""

    serial: int
    title: str
    outcome: str
    status: str
    code: str | None
    confidence: str | None
    beginning: list[str]
    explanation: list[tuple[str, str]]
    """Labels and sentences; a label without text goes on with the one before."""
    lanes: list[Lane]
    moves: list[Move]
    left_out: list[str]
    """What there was and is not drawn."""


class _Lanes:
    """The places, in the order from client to upstream."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._known: dict[LaneKey, Lane] = {}

    def stop(self, stop: Stop) -> LaneKey:
        """The lane of a place at which a packet was seen."""
        if stop.place is Place.BETWEEN:
            key: LaneKey = ("netns", stop.netns)
            lane = self._known.setdefault(key, Lane("netns", f"netns {stop.netns}", [], seen=True))
        else:
            key = (stop.place.name.lower(), None)
            lane = self._end(stop.place, key)
            lane.seen = True
            _add(lane, f"netns {stop.netns}")
        for device in stop.devices:
            _add(lane, device)
        return key

    def outside(self, place: Place, address: str) -> LaneKey:
        """The lane of an end that was not seen."""
        if place is Place.BETWEEN:
            return self.upstream(address)
        key: LaneKey = (place.name.lower(), None)
        _add(self._end(place, key), address)
        return key

    def upstream(self, address: str) -> LaneKey:
        """The lane of an upstream."""
        key: LaneKey = ("upstream", address)
        self._known.setdefault(key, Lane("upstream", f"upstream {address}", [], seen=False))
        return key

    def _end(self, place: Place, key: LaneKey) -> Lane:
        if key not in self._known:
            self._known[key] = Lane(place.name.lower(), name_of(place, self._line), [], seen=False)
        return self._known[key]

    def ordered(self) -> tuple[list[Lane], dict[LaneKey, int]]:
        """All of them from left to right, and where each is."""
        order = ("client", "netns", "server", "upstream")
        keys = sorted(self._known, key=lambda key: order.index(key[0]))
        return [self._known[key] for key in keys], {key: number for number, key in enumerate(keys)}


def _add(lane: Lane, detail: str) -> None:
    named = detail in lane.title or lane.title.endswith(f" {detail.rpartition(':')[0].strip('[]')}")
    if detail not in lane.details and not named:
        lane.details.append(detail)


class _Step(msgspec.Struct):
    """A move whose lanes have no numbers yet."""

    leg: str
    label: str
    here: LaneKey
    there: LaneKey
    seconds: float | None
    seen: bool
    end: str | None = None
    end_words: str | None = None
    note: str = ""


def diagram_of(kept: Kept) -> Diagram:
    """The picture of one problem."""
    line = kept.line
    lanes, left_out = _Lanes(line), []
    parts: list[tuple[float, list[_Step]]] = []
    for way in every_way(line, MAX_COPIES):
        parts.append((way.stops[0].first_seconds, list(_steps(way, line, lanes))))
        if way.copies > MAX_COPIES and way.copy == way.copies:
            left_out.append(f"{way.copies - MAX_COPIES} of {way.copies} copies of the {way.leg} are not drawn.")
    if len(line.upstream) > MAX_EXCHANGES:
        left_out.append(f"{len(line.upstream) - MAX_EXCHANGES} earlier questions to upstreams are not drawn.")
    parts += [
        (exchange.offset_seconds, list(_asked(exchange, line, lanes))) for exchange in line.upstream[-MAX_EXCHANGES:]
    ]
    found, numbers = lanes.ordered()
    steps = [step for _, part in sorted(parts, key=lambda part: part[0]) for step in part]
    outcome = outcome_of(line)
    return Diagram(
        serial=kept.serial,
        title=line.question.name if line.question else "a TCP connection",
        outcome=outcome.words,
        status=line.status,
        code=line.cause.code if line.cause else None,
        confidence=line.cause.confidence if line.cause else None,
        beginning=list(beginning(line)),
        explanation=list(explanation(line)),
        lanes=found,
        moves=[_move(step, numbers) for step in steps],
        left_out=left_out,
    )


def _move(step: _Step, numbers: dict[LaneKey, int]) -> Move:
    return Move(
        leg=step.leg,
        label=step.label,
        from_=numbers[step.here],
        to=numbers[step.there],
        seconds=step.seconds,
        seen=step.seen,
        end=step.end,
        end_words=step.end_words,
        note=step.note,
    )


def _steps(way: Way, line: Line, lanes: _Lanes) -> Iterator[_Step]:
    """One copy of one message, from place to place, to its end."""
    leg, label = str(way.leg), f"{way.leg} {way.copy} of {way.copies}" if way.copies > 1 else str(way.leg)
    near, far = ENDS[way.leg]
    if way.leg is Leg.REPLY and line.rcode is not None:
        label = f"{label} {line.rcode}"
    here = None if way.is_sent_here else lanes.outside(near, way.source)
    before = way.source, way.destination
    for stop in way.stops:
        there, note = lanes.stop(stop), _note(stop, before)
        yield _Step(leg, label, there if here is None else here, there, stop.first_seconds, seen=True, note=note)
        here, before = there, (stop.source, stop.destination)
    assert here is not None  # noqa: S101  a way has a stop
    yield from _end(way, line, lanes, _Step(leg, label, here, here, way.stops[-1].last_seconds, seen=True), far)


def _note(stop: Stop, before: tuple[str, str]) -> str:
    """What a packet shows at a place: the devices, and its addresses where they changed."""
    now = (
        "" if stop.source == before[0] else f"from {stop.source}",
        "" if stop.destination == before[1] else f"to {stop.destination}",
    )
    changed = " ".join(filter(None, now))
    return ", ".join(filter(None, (*stop.devices, f"now {changed}" if changed else "")))


def _end(way: Way, line: Line, lanes: _Lanes, last: _Step, far: Place) -> Iterator[_Step]:
    """What became of it behind the last place."""
    if way.end in (End.DROPPED, End.LOST_SIGHT):
        # Where it should have gone is a lane too: no packet was seen there.
        lanes.outside(far, way.stops[-1].destination)
    if way.end is End.DROPPED:
        yield _ended(last, "dropped", loss_words(way.drop))
        return
    if way.end is End.LOST_SIGHT:
        yield _ended(last, "lost-sight", OUT_OF_SIGHT)
        return
    if not way.is_taken_here:
        there = lanes.outside(far, way.stops[-1].destination)
        words = "must have arrived" if way.inferred else ""
        yield _Step(last.leg, last.label, last.here, there, None, seen=False, note=words)
        last = _Step(last.leg, last.label, there, there, None, seen=False)
    if way.end in BROKEN:
        yield _ended(last, way.end.name.lower().replace("_", "-"), _words(way.end, line))


def _words(end: End, line: Line) -> str:
    if end is End.UNANSWERED and line.cause is not None and line.cause.code in LOST_SIGHT:
        return OUT_OF_SIGHT
    return BROKEN[end]


def _ended(last: _Step, end: str, words: str) -> _Step:
    return _Step(last.leg, last.label, last.here, last.here, last.seconds, last.seen, end, words)


def _asked(exchange: Exchange, line: Line, lanes: _Lanes) -> Iterator[_Step]:
    """One question of the server to an upstream, and what came back."""
    server = lanes.outside(Place.SERVER, line.server.backend or endpoint(line.server.address, line.server.port))
    upstream = lanes.upstream(endpoint(exchange.address, exchange.port))
    name = exchange.name if exchange.name and line.question and exchange.name != line.question.name else ""
    note = " ".join(filter(None, ("over TCP" if exchange.protocol == "TCP" else "", f"for {name}" if name else "")))
    arrived = exchange.refused or exchange.rcode is not None
    query, reply = str(Leg.UPSTREAM_QUERY), str(Leg.UPSTREAM_REPLY)
    yield _Step(query, query, server, upstream, exchange.offset_seconds, arrived, note=note)
    if exchange.refused:
        yield _Step(query, query, upstream, upstream, None, seen=True, end="refused", end_words=BROKEN[End.REFUSED])
    elif exchange.rcode is None:
        yield _Step(
            query, query, upstream, upstream, None, seen=False, end="unanswered", end_words=BROKEN[End.UNANSWERED]
        )
    else:
        took = exchange.duration_seconds
        since = None if took is None else exchange.offset_seconds + took
        yield _Step(reply, f"{reply} {exchange.rcode}", upstream, server, since, seen=True)
