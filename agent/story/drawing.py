"""Ways as plain text: `client dig (eth0) ──► netns 4026532177 (vethc1) ──✗ dropped`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from agent.session.outcome import Leg
from agent.story.text import Piece, row, seconds_words
from agent.story.ways import CLIENTS, ENDS, End, Place, endpoint, ways

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.export.line import Exchange, HopLine, Line
    from agent.story.text import Look
    from agent.story.ways import Stop, Way

RED, YELLOW = "31", "33"
MAX_EXCHANGES = 4
"""Questions to upstreams that are drawn, the last ones. Servers that ask more have asked for the same again."""
LABEL_COLUMNS = 9
INDENT = "  "


class Arrows(NamedTuple):
    """What stands between two places."""

    seen: str
    unseen: str
    """The packet was not seen on its way there."""
    broken: str
    lost_sight: str


BOXES = Arrows("──►", "╌╌►", "──✗", "──?")
ASCII = Arrows("-->", "..>", "--x", "--?")


def arrows(look: Look) -> Arrows:
    """Those that the reader's terminal can show."""
    return BOXES if look.boxes else ASCII


BROKEN = {
    End.REFUSED: "refused",
    End.UNANSWERED: "no reply seen",
    End.NOT_TAKEN: "clients do not take it",
}
"""Ends that are a break, in words; of drops the kernel says more."""


def drawing(line: Line, look: Look) -> Iterator[str]:
    """The ways of a line's messages, each on a row or more."""
    arrow = arrows(look)
    found = ways(line)
    for way in (way for way in found if way.leg in CLIENTS):
        copy = f" {way.copy}/{way.copies}" if way.copies > 1 else ""
        yield from _row(f"{way.leg}{copy}", _pieces(way, line, arrow), look)
    exchanges = (_upstream(exchange, line, arrow) for exchange in line.upstream)
    asked = [(pieces, len(list(same))) for pieces, same in groupby(exchanges)]
    if len(asked) > MAX_EXCHANGES:
        yield from _row("upstream", [Piece("(earlier ones are left out)")], look)
    for pieces, count in asked[-MAX_EXCHANGES:]:
        yield from _row("upstream", [*pieces, *([Piece(f"({count} times)")] if count > 1 else [])], look)
    for way in (way for way in found if way.leg not in CLIENTS):
        yield from _row("upstream", _pieces(way, line, arrow), look)


def _row(label: str, pieces: list[Piece], look: Look) -> Iterator[str]:
    first = f"{INDENT}{label:<{LABEL_COLUMNS}} "
    return row(pieces, look, first, " " * (len(first) + len(INDENT)))


def _pieces(way: Way, line: Line, arrow: Arrows) -> list[Piece]:
    pieces, into = ([], "") if way.is_sent_here else ([Piece(way.source)], f"{arrow.unseen} ")
    source, destination = way.source, way.destination
    for stop in way.stops:
        pieces.append(Piece(f"{into}{_stop(stop, source, destination, line)}"))
        source, destination, into = stop.source, stop.destination, f"{arrow.seen} "
    pieces += _end(way, line, arrow)
    if way.leg is Leg.REPLY and way.end is End.WENT_ON and line.rcode is not None:
        pieces[-1] = Piece(f"{pieces[-1].text} = {line.rcode}")
    return pieces


def _stop(stop: Stop, source: str, destination: str, line: Line) -> str:
    """A place, its devices, and the addresses under which the packet went on where they are not those of before."""
    name = f"netns {stop.netns}" if stop.place is Place.BETWEEN else name_of(stop.place, line)
    now_from = () if stop.source == source else (f"now from {stop.source}",)
    now_to = () if stop.destination == destination else (f"now to {stop.destination}",)
    details = (*stop.devices, *now_from, *now_to)
    return f"{name} ({', '.join(details)})" if details else name


def name_of(place: Place, line: Line) -> str:
    """An end of the lookup, by what is known of it: its pod, its program, or else its address."""
    end = line.client if place is Place.CLIENT else line.server
    pod = None if end.pod is None else f"{end.namespace}/{end.pod}"
    backend = line.server.backend if place is Place.SERVER else None
    return f"{place.name.lower()} {pod or end.process or backend or end.address}"


def _end(way: Way, line: Line, arrow: Arrows) -> list[Piece]:
    if way.end is End.DROPPED:
        return [Piece(f"{arrow.broken} {loss_words(way.drop)}", RED)]
    far = ENDS[way.leg][1]
    beyond = name_of(far, line) if way.inferred else way.stops[-1].destination
    rest = [] if way.is_taken_here or way.end is End.LOST_SIGHT else [Piece(f"{arrow.unseen} {beyond}")]
    if way.end in BROKEN:
        return [*rest, Piece(f"{arrow.broken} {BROKEN[way.end]}", RED)]
    if way.end is End.LOST_SIGHT:
        return [Piece(f"{arrow.lost_sight} not seen after that", YELLOW)]
    return rest


def loss_words(drop: HopLine | None) -> str:
    """That the packet was dropped, if the kernel said so, and what it said."""
    if drop is None or not (drop.reason or drop.location):
        return "lost"
    place = f" in {drop.location}" if drop.location else ""
    hook = f", hook {drop.hook}" if drop.hook else ""
    return f"dropped: {drop.reason or 'reason unknown'}{place}{hook}"


def _upstream(exchange: Exchange, line: Line, arrow: Arrows) -> list[Piece]:
    """One question of the server to an upstream."""
    over = " over TCP" if exchange.protocol == "TCP" else ""
    name = "" if exchange.name is None or _is_asked(exchange.name, line) else f" for {exchange.name}"
    arrived = exchange.refused or exchange.rcode is not None
    asked = f"{arrow.seen if arrived else arrow.unseen} {endpoint(exchange.address, exchange.port)}{over}{name}"
    return [Piece(name_of(Place.SERVER, line)), Piece(asked), _upstream_end(exchange, arrow)]


def _is_asked(name: str, line: Line) -> bool:
    return line.question is not None and name.lower() == line.question.name.lower()


def _upstream_end(exchange: Exchange, arrow: Arrows) -> Piece:
    if exchange.refused:
        return Piece(f"{arrow.broken} {BROKEN[End.REFUSED]}", RED)
    if exchange.rcode is None:
        return Piece(f"{arrow.broken} {BROKEN[End.UNANSWERED]}", RED)
    after = "" if exchange.duration_seconds is None else f" after {seconds_words(exchange.duration_seconds)}"
    return Piece(f"= {exchange.rcode}{after}")
