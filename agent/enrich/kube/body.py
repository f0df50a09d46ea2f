"""What a request sends, and the forms in which the API takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"


class Body(NamedTuple):
    """The body of a request."""

    content: Mapping[str, Any]
    content_type: str
