"""The incidents for the HTTP port: what is open, what was over lately, without the names that the port does not tell.

The event loop puts them up once a second, the HTTP server's thread takes them down: one assignment, one look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from agent.export.incident_line import ClientNames, IncidentLine
from agent.export.line import doc
from agent.export.metrics.clients import BARE

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_OPEN = 100
"""Open incidents that are told, those with most lookups first: 200 KiB at most."""
SHOWN: dict[str, tuple[str, ...]] = {
    "none": (),
    "namespace": ("namespace",),
    "workload": ("namespace", "workload"),
}
"""What is told of clients, by `--metrics-by`: what the numbers tell of them, too. Addresses never are."""


class IncidentList(msgspec.Struct, rename="pascal"):
    """The page."""

    open: Annotated[list[IncidentLine], doc("Those that go on, with most lookups first.")]
    ended: Annotated[list[IncidentLine], doc("Those that ended last, the latest first.")]
    left_out: Annotated[int, doc("Open incidents that are not listed.")]


class Board:
    """What was put up last."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._list = IncidentList([], [], 0)
        self._encoded: tuple[IncidentList | None, bytes] = (None, b"")

    def put_up(self, going: Iterable[IncidentLine], ended: Iterable[IncidentLine], metrics_by: str) -> None:
        """Show these from now on.

        Args:
            going: Open incidents, the most important ones first.
            ended: Those that are over, the latest first.
            metrics_by: What may be told of clients.
        """
        fields = SHOWN[metrics_by]
        public = [_public(line, fields) for line in going]
        over = [_public(line, fields) for line in ended]
        self._list = IncidentList(public[:MAX_OPEN], over, len(public[MAX_OPEN:]))

    def page(self) -> bytes:
        """As JSON."""
        wanted, (made_of, text) = self._list, self._encoded
        if made_of is not wanted:
            text = msgspec.json.encode(wanted)
            self._encoded = (wanted, text)
        return text


def _public(line: IncidentLine, fields: tuple[str, ...]) -> IncidentLine:
    """Without examples, without the sentence (it may have addresses), and of the client what may be told."""
    return msgspec.structs.replace(
        line,
        client=_client(line.client, fields),
        message=None,
        examples=[],
    )


def _client(client: ClientNames | None, fields: tuple[str, ...]) -> ClientNames | None:
    if client is None or not fields:
        return None
    named = ClientNames(client.namespace, client.workload or (BARE if client.pod else None))
    return ClientNames(**{field: getattr(named, field) for field in fields})
