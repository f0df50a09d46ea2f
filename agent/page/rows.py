"""A problem as one row of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from agent.session.outcome import Bit
from agent.story.problems import client
from agent.story.ways import DROP, endpoint

if TYPE_CHECKING:
    from agent.export.line import Line
    from agent.page.memory import Kept


LOST = int(Bit.QUERY_DROPPED | Bit.REPLY_DROPPED)
"""Bits that say that a drop was a loss."""


class Row(msgspec.Struct, rename="pascal"):
    """What the list says of one problem, and what it is searched by."""

    serial: int
    time: str
    status: str
    code: str | None
    confidence: str | None
    client: str
    """The pod, or the address."""
    namespace: str | None
    workload: str | None
    process: str | None
    address: str
    server: str
    service: str | None
    backend: str | None
    name: str | None
    type: str | None
    protocol: str
    rcode: str | None
    attempts: int
    duration_seconds: float | None
    place: str | None
    """Where the message was lost, if the kernel said so."""
    incident: int | None


def row_of(kept: Kept) -> Row:
    """The row of one problem."""
    line = kept.line
    return Row(
        serial=kept.serial,
        time=line.time,
        status=line.status,
        code=line.cause.code if line.cause else None,
        confidence=line.cause.confidence if line.cause else None,
        client=client(line),
        namespace=line.client.namespace,
        workload=line.client.workload,
        process=line.client.process,
        address=line.client.address,
        server=endpoint(line.server.address, line.server.port),
        service=line.server.service,
        backend=line.server.backend,
        name=line.question.name if line.question else None,
        type=line.question.type if line.question else None,
        protocol=line.protocol,
        rcode=line.rcode,
        attempts=line.attempts,
        duration_seconds=line.duration_seconds,
        place=_place(line),
        incident=kept.incident,
    )


def _place(line: Line) -> str | None:
    if not line.path_bit_map & LOST:
        return None
    drop = next((hop for hop in reversed(line.path) if hop.event == DROP), None)
    if drop is None:
        return None
    return ", ".join(filter(None, (drop.interface, f"netns {drop.netns}", drop.reason, drop.hook)))
