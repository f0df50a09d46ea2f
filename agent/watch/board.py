"""The screen of `dnstrail top`: the open incidents, and the tables of who and what has most trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.story.drawing import RED
from agent.story.text import Piece, number, painted
from agent.watch.rows import clipped, fit
from agent.watch.troubles import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.export.incident_line import IncidentLine
    from agent.story.text import Look
    from agent.watch.troubles import Trouble, Troubles

BOLD = "1"
ROWS = 10
"""Of each table where the height is not limited."""
MAX_CAUSES_SHOWN = 3


class Board(NamedTuple):
    """All that there is to show."""

    title: str
    incidents: list[IncidentLine] | None
    """None: they are not known yet."""
    incidents_left_out: int
    troubles: Troubles
    since: str
    """What the tables are made of, in words."""
    missing: str = ""
    """What is missing, in words."""


class Column(NamedTuple):
    """One of the incidents' table. Width 0: as long as it is."""

    heading: str
    width: int
    value: Callable[[IncidentLine], str]


def _share(line: IncidentLine) -> str:
    return "-" if line.share_percent is None else f"{line.share_percent:g}%"


def _whose(line: IncidentLine) -> str:
    client = line.client
    if client is None:
        return number(line.clients, "client")
    name = client.workload or client.pod
    return f"{client.namespace}/{name}" if name else client.address or "unknown"


def _asked(line: IncidentLine) -> str:
    server = line.server
    if server is None:
        return "several servers"
    name = server.service or server.pod
    return f"{server.address} {name}" if name else server.address


INCIDENTS = (
    Column("CAUSE", 21, lambda line: line.code),
    Column("SINCE", 8, lambda line: line.first[11:19]),
    Column("LAST", 8, lambda line: line.last[11:19]),
    Column("LOOKUPS", 8, lambda line: f"{line.lookups:,}"),
    Column("SHARE", 6, _share),
    Column("FOR", 26, _whose),
    Column("AT", 28, _asked),
    Column("WHAT", 0, lambda line: line.message or line.place),
)


def rows(board: Board, look: Look, height: int | None = None) -> list[str]:
    """The board.

    Args:
        board: what there is.
        look: how wide rows may be; without a limit nothing is cut.
        height: how many rows there may be; None for as many as are good to read.
    """
    told = list(_rows(board, look, *_room(board, height)))
    told = told if height is None else told[:height]
    return told if look.width is None else [clipped(row, look.width) for row in told]


def _room(board: Board, height: int | None) -> tuple[int, int]:
    """For incidents, and for each of the tables."""
    if height is None:
        return max(1, len(board.incidents or ())), ROWS
    heads = 4 + 2 * (1 + len(KINDS))
    room = max(4, height - heads)
    incidents = max(1, min(len(board.incidents or ()), room // 2))
    return incidents, max(1, (room - incidents) // len(KINDS))


def _rows(board: Board, look: Look, incidents: int, troubles: int) -> Iterator[str]:
    yield painted(Piece(board.title, BOLD), look)
    if board.missing:
        yield f"not all lookups are counted below: {board.missing}"
    yield ""
    yield from _incidents(board, look, incidents)
    yield ""
    yield f"{number(board.troubles.lookups, 'lookup')} that did not go well {board.since}"
    for kind in KINDS:
        yield from _table(kind, board.troubles, look, troubles)


def _incidents(board: Board, look: Look, room: int) -> Iterator[str]:
    lines = board.incidents
    if lines is None:
        yield "Incidents are not known yet"
        return
    if not lines:
        yield "No open incidents"
        return
    heading = _cells(look, *((column.heading, column.width) for column in INCIDENTS))
    yield painted(Piece(heading, BOLD), look)
    for line in lines[:room]:
        yield _cells(look, *((column.value(line), column.width) for column in INCIDENTS))
    beyond = len(lines[room:]) + board.incidents_left_out
    if beyond:
        yield f"({number(beyond, 'more open incident')})"


def _table(kind: str, troubles: Troubles, look: Look, room: int) -> Iterator[str]:
    found = troubles.worst(kind, room)
    if not found:
        return
    yield ""
    yield painted(Piece(_cells(look, (kind, 50), ("LOOKUPS", 8), ("FAILED", 8), ("LAST", 8), ("WHY", 0)), BOLD), look)
    for trouble in found:
        failed = painted(Piece(fit(f"{trouble.failed:,}", 8, look), RED if trouble.failed else ""), look)
        rest = _cells(look, (trouble.last[11:19], 8), (_why(trouble), 0))
        yield f"{_cells(look, (trouble.who, 50), (f'{trouble.lookups:,}', 8)):<59} {failed} {rest}"
    beyond = troubles.apart(kind) - len(found)
    if beyond:
        yield f"({beyond:,} more)"
    if troubles.beyond[kind]:
        yield f"({number(troubles.beyond[kind], 'lookup')} of still others)"


def _why(trouble: Trouble) -> str:
    causes = [f"{cause} {count:,}" for cause, count in trouble.causes.most_common(MAX_CAUSES_SHOWN)]
    return ", ".join([*causes, *(["…"] if len(trouble.causes) > MAX_CAUSES_SHOWN else [])])


def _cells(look: Look, *texts: tuple[str, int]) -> str:
    """Texts in columns; without a limited width none is cut."""
    return " ".join(
        text if not width else text.ljust(width) if look.width is None else fit(text, width, look)
        for text, width in texts
    ).rstrip()
