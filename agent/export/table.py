"""Session lines for people: one row a session, in columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.export.incident_line import ClientNames, IncidentLine, ServerNames
    from agent.export.line import Line


class Column(NamedTuple):
    """A heading, its width, and how a line fills it. Width 0: as long as it is."""

    heading: str
    width: int
    value: Callable[[Line], str]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}ms"


def _bits(line: Line) -> str:
    return f"{line.bit_map}/{line.path_bit_map}"


def _type(line: Line) -> str:
    """The record type; of what is no query, what it is: an update names its zone by an SOA question (RFC 2136 2.3)."""
    if line.question is None:
        return "-"
    return line.question.type if line.opcode in (None, "QUERY") else line.opcode


COLUMNS = (
    Column("TIME", 12, lambda line: line.time[11:23]),
    Column("STATUS", 10, lambda line: line.status),
    Column("BITS", 6, _bits),
    Column("CLIENT", 15, lambda line: line.client.process or line.client.address),
    Column("TYPE", 5, _type),
    Column("NAME", 38, lambda line: line.question.name if line.question else "(no connection)"),
    Column("RCODE", 8, lambda line: line.rcode or "-"),
    Column("TIME", 8, lambda line: _milliseconds(line.duration_seconds)),
    Column("CAUSE", 0, lambda line: f"{line.cause.code}: {line.cause.message}" if line.cause else ""),
)


def fit(text: str, width: int) -> str:
    """The text in exactly so many columns; what is cut is shown as cut, what could steer a terminal as a box."""
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    if not width:
        return text
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def heading() -> str:
    """The first row."""
    return " ".join(fit(column.heading, column.width) for column in COLUMNS).rstrip()


def row(line: Line) -> str:
    """One session."""
    return " ".join(fit(column.value(line), column.width) for column in COLUMNS).rstrip()


def incident(line: IncidentLine) -> str:
    """One incident: when, what, where, how much of it, and why."""
    share = "" if line.share_percent is None else f", {line.share_percent:g}% of all"
    held_back = f", {line.held_back} lines held back" if line.held_back else ""
    words = (
        f"INCIDENT {line.state.lower()}: {line.code} at {_server(line.server)} for {_clients(line)}: {line.lookups} "
        f"lookups{share} from {line.first[11:19]} to {line.last[11:19]}{held_back}: {line.message or line.place}"
    )
    return f"{line.time[11:23]} {fit(words, 0)}"


def _server(server: ServerNames | None) -> str:
    if server is None:
        return "several servers"
    name = server.service or server.pod
    return f"{server.address} ({name})" if name else server.address


def _clients(line: IncidentLine) -> str:
    return f"{line.clients} clients" if line.client is None else _name(line.client)


def _name(client: ClientNames) -> str:
    name = client.workload or client.pod
    return f"{client.namespace}/{name}" if name else client.address or "an unknown client"
