"""What a reader is sent beside session lines: JSON objects with `Kind`, each on a line."""

from __future__ import annotations

import msgspec

from agent.export.incident_line import IncidentLine  # noqa: TC001  msgspec reads the annotation


class State(msgspec.Struct, rename="pascal", tag_field="Kind", tag="State"):
    """How the agent and this reader fare, once a second."""

    time: str
    """UTC, RFC 3339."""
    node: str
    version: str
    lookups: int
    """All that the agent saw since its start. It may step back by one that turns out to be a part of another."""
    open: int
    """Lookups that are not over."""
    lost_records: int
    """By the capture, since its start."""
    passed_over: int
    """Healthy lookups since the reader came that were only counted, because there were too many. Whether the reader's
    filter would have let them pass is not known."""
    held: int
    """Lookups that the reader wanted and that are beyond what one reader gets in a second."""
    dropped: int
    """Lines that the reader was too slow for."""


class Incidents(msgspec.Struct, rename="pascal", tag_field="Kind", tag="Incidents"):
    """The open incidents, once a second, those with most lookups first."""

    open: list[IncidentLine]
    left_out: int


class Refused(msgspec.Struct, rename="pascal", tag_field="Kind", tag="Refused"):
    """Why the agent closes the connection."""

    reason: str


Notice = State | Incidents | Refused
_BEGIN = b'{"Kind":'
_DECODER: msgspec.json.Decoder[Notice] = msgspec.json.Decoder(Notice)


def is_notice(line: bytes) -> bool:
    """Whether a line of the socket is none of a session."""
    return line.startswith(_BEGIN)


def read_notice(line: bytes) -> Notice:
    """What such a line says.

    Raises:
        msgspec.DecodeError: It is of a kind that is not known, or damaged.
    """
    return _DECODER.decode(line)


def write_notice(notice: Notice) -> bytes:
    """As a line."""
    return msgspec.json.encode(notice) + b"\n"
