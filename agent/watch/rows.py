"""A lookup as a row: when, who, what, whom, what came of it, how long it took, and by how many hops."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from unicodedata import category, east_asian_width

from agent.export.filters import is_line_of_problem
from agent.session.outcome import Status
from agent.story.drawing import RED, YELLOW, arrows, drawing
from agent.story.problems import Group
from agent.story.telling import story
from agent.story.text import RESET, Piece, painted
from agent.story.ways import endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.export.line import HopLine, Line
    from agent.story.text import Look

DNS_PORT = 53
CUT = "…"
PLAIN_CUT = "~"


class Column(NamedTuple):
    """One of a table."""

    heading: str
    width: int
    """In a table without limits; there it is no limit either."""
    least: int
    """In a narrow terminal."""
    weight: int
    """Its part of the room that is left."""
    need: int
    """Columns of terminals that are narrower have it not."""
    value: Callable[[Line, Look], str]


def _client(line: Line, _look: Look) -> str:
    client = line.client
    who = client.address if client.pod is None else f"{client.namespace}/{client.pod}"
    return f"{who} {client.process}" if client.process else who


def _type(line: Line, _look: Look) -> str:
    if line.question is None:
        return "-"
    return line.question.type if line.opcode in (None, "QUERY") else line.opcode


def _name(line: Line, _look: Look) -> str:
    return line.question.name if line.question else "(no connection)"


def _server(line: Line, look: Look) -> str:
    server = line.server
    asked = server.address if server.port == DNS_PORT else endpoint(server.address, server.port)
    backend = server.backend.removesuffix(f":{DNS_PORT}") if server.backend else ""
    to = "→" if look.boxes else ">"
    return f"{asked}{to}{backend}" if backend else asked


def result(line: Line) -> str:
    """Why it did not go well, and what the client got."""
    rcode = line.rcode or "no reply"
    if line.cause is not None:
        return line.cause.code if line.rcode is None else f"{line.cause.code} {rcode}"
    return rcode if line.status == Status.SUCCEEDED else f"{line.status} {rcode}"


def _latency(line: Line, _look: Look) -> str:
    seconds = line.duration_seconds
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f}ms" if seconds < 1 else f"{seconds:.3f}s"


COLUMNS = (
    Column("TIME", 12, 12, 0, 0, lambda line, _: line.time[11:23]),
    Column("CLIENT", 28, 12, 3, 0, _client),
    Column("TYPE", 5, 5, 0, 50, _type),
    Column("NAME", 40, 12, 5, 0, _name),
    Column("SERVER", 22, 22, 1, 130, _server),
    Column("RESULT", 24, 16, 1, 0, lambda line, _: result(line)),
    Column("LATENCY", 8, 8, 0, 60, _latency),
    Column("HOPS", 4, 4, 0, 80, lambda line, _: str(len(line.path))),
)


def cells(text: str) -> int:
    """How many columns of a terminal a text takes (UAX 11)."""
    if text.isascii():
        return len(text)
    return sum(0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def fit(text: str, width: int, look: Look) -> str:
    """The text in exactly so many columns; that it is cut is shown."""
    size = cells(text)
    if size <= width:
        return text + " " * (width - size)
    end = len(text)
    while end and cells(text[:end]) > width - 1:
        end -= 1
    cut = f"{text[:end]}{CUT if look.boxes else PLAIN_CUT}"
    return cut + " " * (width - cells(cut))


def widths(width: int | None) -> list[tuple[Column, int]]:
    """The columns that there is room for, and how wide each is; without a limit all of them."""
    if width is None:
        return [(column, column.width) for column in COLUMNS]
    columns = [column for column in COLUMNS if width >= column.need]
    room = max(0, width - sum(column.least for column in columns) - len(columns) + 1)
    weights = sum(column.weight for column in columns)
    return [(column, column.least + room * column.weight // weights) for column in columns]


def heading(look: Look) -> str:
    """The first row."""
    return " ".join(fit(column.heading, width, look) for column, width in widths(look.width)).rstrip()


def row(line: Line, look: Look) -> str:
    """One lookup. Without a limit nothing is cut, so that programs can take it apart."""
    found = []
    for column, width in widths(look.width):
        text = column.value(line, look)
        text = text.ljust(width) if look.width is None else fit(text, width, look)
        found.append(painted(Piece(text, colour(line)), look) if column.heading == "RESULT" else text)
    return " ".join(found).rstrip()


def colour(line: Line) -> str:
    """Of what came of it."""
    if line.status == Status.FAILED:
        return RED
    return YELLOW if is_line_of_problem(line) else ""


def wide(line: Line, look: Look) -> Iterator[str]:
    """One lookup with the ways of its messages."""
    yield row(line, look)
    yield from drawing(line, look)


def detail(line: Line, look: Look) -> Iterator[str]:
    """One lookup told whole, as `dnstrail explain` tells it, and hop by hop."""
    group = Group(line, line.time, line.time)
    group.add(line)
    yield from story(group, look)
    if line.path:
        yield ""
        yield "  Hops"
        for hop in line.path:
            yield _hop(hop, look)
    yield ""


def _hop(hop: HopLine, look: Look) -> str:
    place = f"netns {hop.netns} {hop.interface or '-'}"
    ends = f"{hop.source} {arrows(look).seen} {hop.destination}"
    lost = (
        "" if hop.event != "drop" else f" {hop.reason or 'reason unknown'} in {hop.location or 'an unknown function'}"
    )
    text = f"  {hop.offset_seconds * 1000:>10.3f} ms  {hop.event:<4} {place:<28} {hop.message or '-':<15} {ends}"
    return f"{text}{painted(Piece(lost, RED), look)}"


def uncoloured(text: str) -> str:
    """A row of this module without its colours."""
    parts = text.split("\033[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def clipped(text: str, width: int) -> str:
    """A row of this module in so many columns at most; colours take none."""
    if cells(uncoloured(text)) <= width:
        return text
    kept, used = "", 0
    for number, part in enumerate(text.split("\033[")):
        code, _, rest = part.partition("m") if number else ("", "", part)
        kept += f"\033[{code}m" if number else ""
        for char in rest:
            used += cells(char)
            if used > width:
                break
            kept += char
    return f"{kept}{RESET}" if "\033[" in text else kept
