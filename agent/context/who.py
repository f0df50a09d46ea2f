"""Whose lookup it was, and who was asked: the names behind a session's addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agent.context.cluster import Pod, Service
    from agent.context.translation import Translation


class Who(NamedTuple):
    """Everything may be unknown."""

    client: Pod | None = None
    container: str | None = None
    """Name of the client's container; its id where nobody knows a name."""
    server: Pod | None = None
    service: Service | None = None
    """The Service that the client asked."""
    translation: Translation | None = None
    expected: bool = False
    """A container of a pod asked that the cluster has not told of yet: asking again in a moment may help."""


NOBODY = Who()
