"""The newest problems, in a bounded number of bytes.

A session line without its messages has 2 to 4 KB. Lines are much alike, so they are compressed by the block, and each
takes a tenth. Beyond the bound the oldest block goes, and is counted.

The event loop keeps lines, the HTTP server's thread reads them: whatever is copied, is copied by one operation of the
interpreter.
"""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.export.line import Line  # noqa: TC001  msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 2 << 20
"""Of all blocks, and of the lines that wait to be compressed."""
BLOCK_LINES = 32
BLOCK_BYTES = 128 << 10
"""A block of long lines is full earlier."""
MAX_LINE_BYTES = 64 << 10
"""Longer lines are of lookups with hundreds of hops."""


class Kept(msgspec.Struct, rename="pascal"):
    """One problem."""

    serial: int
    incident: int | None
    """The same number as that of the incident it belongs to, if there is one."""
    line: Line


class Block(NamedTuple):
    """Some problems one after the other, compressed."""

    first: int
    """Serial number of the oldest."""
    lines: int
    data: bytes


class Memory:
    """Keeps the newest lines.

    Args:
        max_bytes: What they may take together.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._blocks: deque[Block] = deque()
        self._fresh: list[bytes] = []
        self._fresh_bytes = 0
        self._block_bytes = 0
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Kept).decode
        self.next = 1
        """Serial number of the line to come."""
        self.forgotten = 0
        """Lines that made room for others."""
        self.too_long = 0
        """Lines that were not kept because of their length."""

    @property
    def kept(self) -> int:
        """How many lines there are."""
        return self.next - 1 - self.forgotten

    @property
    def size_bytes(self) -> int:
        """What they take."""
        return self._block_bytes + self._fresh_bytes

    def keep(self, line: Line, incident: int | None = None) -> None:
        """Take one more, which must have no messages any more."""
        text = self._encode(Kept(self.next, incident, line))
        if len(text) > MAX_LINE_BYTES:
            self.too_long += 1
            return
        self.next += 1
        self._fresh.append(text)
        self._fresh_bytes += len(text)
        if len(self._fresh) >= BLOCK_LINES or self._fresh_bytes >= BLOCK_BYTES:
            self._seal()
        while self.size_bytes > self._max_bytes and self._blocks:
            oldest = self._blocks.popleft()
            self._block_bytes -= len(oldest.data)
            self.forgotten += oldest.lines

    def newest(self, before: int | None, most: int) -> list[Kept]:
        """So many, the newest first.

        Args:
            before: Only such with a smaller serial number; None: all.
            most: Not more than these.
        """
        found: list[Kept] = []
        for lines in self._backwards(before):
            wanted = (kept for kept in map(self._decode, reversed(lines)) if before is None or kept.serial < before)
            for kept in wanted:
                if len(found) == most:
                    return found
                found.append(kept)
        return found

    def find(self, serial: int) -> Kept | None:
        """The one with this number; None if it was forgotten or never was."""
        found = self.newest(serial + 1, 1)
        return found[0] if found and found[0].serial == serial else None

    def _seal(self) -> None:
        data = zlib.compress(b"\n".join(self._fresh))
        self._blocks.append(Block(self.next - len(self._fresh), len(self._fresh), data))
        self._block_bytes += len(data)
        self._fresh, self._fresh_bytes = [], 0

    def _backwards(self, before: int | None) -> Iterator[list[bytes]]:
        """Lines by the block, the newest block first; of those that begin behind `before`, none."""
        # In this order: what is sealed meanwhile is there twice, and not nowhere.
        fresh, blocks = list(self._fresh), list(self._blocks)
        sealed_until = blocks[-1].first + blocks[-1].lines if blocks else 0
        if fresh and self._decode(fresh[0]).serial >= sealed_until:
            yield fresh
        for block in reversed(blocks):
            if before is None or block.first < before:
                yield zlib.decompress(block.data).split(b"\n")
