"""Reading the BPF ring buffer by memory mapping: a tenth of the cost of BCC's callback.

Layout (kernel/bpf/ringbuf.c): page 0 holds the consumer position, page 1 the producer position, then the data, which
may be mapped twice in a row so that a record never wraps. Of the second time as much as one record takes is enough: the
rest would only count as memory of this process. A record is a 4-byte length with two flag bits, 4 bytes of page offset,
then the data, padded to 8.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from typing import TYPE_CHECKING

from agent.capture.fence import Fence
from agent.hop.record import DETAIL, HEAD, Hop

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = 1 << 31
DISCARD = 1 << 30
LENGTH = DISCARD - 1
RECORD_HEADER = struct.Struct("=II")
HEAD_AT = RECORD_HEADER.size
REST_AT = HEAD_AT + HEAD.size
REST_FIXED = DETAIL.size
WEAKLY_ORDERED = platform.machine() != "x86_64"
"""Whether this CPU may load what stands behind a length before the length, unless it is told not to."""
LONGEST_BYTES = 128 << 10
"""More than the longest record has (bpf/record.h, struct record, with the bytes and the stack behind it)."""
GIVE_BACK = 255
"""Mask: how often the consumer's position is published, in records."""


class Ring:
    """The consumer's end of one BPF ring buffer of `size` bytes (a power of two)."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._consumer_page = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        length = mmap.PAGESIZE + size + min(size, LONGEST_BYTES)
        self._data = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE)
        # One aligned 8-byte store: the kernel must never see half a position.
        self._consumer = ctypes.c_uint64.from_buffer(self._consumer_page)
        # What the kernel's own reader has smp_load_acquire() and smp_store_release() for (tools/lib/bpf/ringbuf.c).
        self._fence = Fence()

    def produced(self) -> int:
        """The producer's position: bytes ever reserved."""
        (position,) = struct.unpack_from("=Q", self._data)
        return int(position)

    def consumed(self) -> int:
        """The consumer's position: bytes ever read."""
        return int(self._consumer.value)

    def drain(self, take: Callable[[Hop], object], until: int) -> int:
        """Hand over every finished record up to a position; returns how many.

        A record that is still being written ends the batch: those behind it are newer. Room is given back in steps, so
        that the kernel can go on while a large batch is read.
        """
        if WEAKLY_ORDERED:
            until = self._finished(until)
        data, mask, consumer = self._data, self.size - 1, self._consumer
        position = consumer.value
        taken = 0
        unpack_header, unpack_head, make = RECORD_HEADER.unpack_from, HEAD.unpack_from, Hop._make
        while position < until:
            at = mmap.PAGESIZE + (position & mask)
            length, _ = unpack_header(data, at)
            if length & BUSY:
                break
            if not length & DISCARD:
                head = unpack_head(data, at + HEAD_AT)
                rest = at + REST_AT
                take(make((*head, data[rest : rest + REST_FIXED + head[5]])))
                taken += 1
            position += (length & LENGTH) + 15 & ~7
            if not taken & GIVE_BACK:
                self._give_back(position)
        self._give_back(position)
        return taken

    def _finished(self, until: int) -> int:
        """Where the first record begins that is still being written, or `until`; those before it can be read now."""
        data, mask = self._data, self.size - 1
        position = self._consumer.value
        while position < until:
            length, _ = RECORD_HEADER.unpack_from(data, mmap.PAGESIZE + (position & mask))
            if length & BUSY:
                break
            position += (length & LENGTH) + 15 & ~7
        self._fence()
        return position

    def _give_back(self, position: int) -> None:
        """Let the kernel write over everything before this position, all of which has been read."""
        if WEAKLY_ORDERED:
            self._fence()
        self._consumer.value = position

    def backlog_bytes(self) -> int:
        """How much of the ring waits to be read."""
        return self.produced() - self.consumed()

    def close(self) -> None:
        """Unmap; the file descriptor stays the caller's."""
        del self._consumer
        self._consumer_page.close()
        self._data.close()
