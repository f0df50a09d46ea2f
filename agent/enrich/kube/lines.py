"""Bodies of answers, put together from the parts in which they arrive, and never without a bound."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agent.enrich.kube.errors import GarbledError, SilentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def joined(chunks: Iterable[bytes], limit_bytes: int, deadline: float) -> bytes:
    """The whole body.

    Args:
        chunks: Its parts.
        limit_bytes: More is not taken.
        deadline: By `time.monotonic`: later is too late, even if something comes all the time.

    Raises:
        GarbledError: when it is too long.
        SilentError: when it takes too long.
    """
    parts, length = [], 0
    for chunk in chunks:
        parts.append(chunk)
        length += len(chunk)
        if length > limit_bytes:
            raise GarbledError(f"an answer of more than {limit_bytes} bytes")
        if time.monotonic() > deadline:
            raise SilentError("an answer that does not end")
    return b"".join(parts)


def lines(chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    """The lines of the body, each as soon as it is there; a last one without its end was cut off, and is not told.

    Raises:
        GarbledError: when one is too long.
    """
    begun: list[bytes] = []
    length = 0
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for end in complete:
            line = b"".join((*begun, end))
            begun, length = [], 0
            if line:
                yield line
        if rest:
            begun.append(rest)
            length += len(rest)
        if length > limit_bytes:
            raise GarbledError(f"an event of more than {limit_bytes} bytes")
