"""The log of lookups that the BPF program keeps: the reader's end, by mapped memory.

The program and the reader agree without a lock. The program writes into a lookup only while it has marked it as busy,
and after it has looked whether it is open. The reader closes the lookup, and then looks whether it is busy. So one of
the two sees the other, and each hop is told once: with its lookup, or as a record of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from bisect import bisect_left

from agent.capture.fence import Fence
from agent.hop.lookup import BODY_BYTES, HEAD_BYTES, Lookups

LOOKUPS = 8192
"""Places in the log, a power of two of at most 65,536 (TAG_POSITION in bpf/protocols.h)."""
WAKE_AT = LOOKUPS // 8
"""So many of them wake the reader; with fewer it may sleep for a while."""
CONSUMED_AT = 64
LOG_BYTES = 192
LOG_ASSERTION = (
    "#ifdef LOOKUPS\n"
    f'_Static_assert(__builtin_offsetof(struct log, consumed) == {CONSUMED_AT}, "consumed");\n'
    f'_Static_assert(sizeof(struct log) == {LOG_BYTES}, "size of struct log");\n'
    "#endif\n"
)
_WORD = struct.Struct("=Q")


class LookupLog:
    """The maps `lookups`, `bodies` and `logs` of the loaded program."""

    def __init__(self, lookups_fd: int, bodies_fd: int, log_fd: int) -> None:
        writable = mmap.PROT_READ | mmap.PROT_WRITE
        self._map = mmap.mmap(lookups_fd, LOOKUPS * HEAD_BYTES, mmap.MAP_SHARED, writable)
        self._heads = memoryview(self._map)
        self._bodies_map = mmap.mmap(bodies_fd, LOOKUPS * BODY_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
        self._bodies = memoryview(self._bodies_map)
        self._ends = mmap.mmap(log_fd, LOG_BYTES, mmap.MAP_SHARED, writable)
        # An aligned 8-byte store: the kernel must never see half of one.
        self._consumed = ctypes.c_uint64.from_buffer(self._ends, CONSUMED_AT)
        self._fence = Fence()
        self._taken = int(self._consumed.value)

    @property
    def produced(self) -> int:
        """Lookups ever begun."""
        (position,) = _WORD.unpack_from(self._ends)
        return int(position)

    @property
    def waiting(self) -> int:
        """Lookups that were begun and not taken."""
        return self.produced - self._taken

    def oldest_ns(self) -> int | None:
        """When the next lookup to be taken began; None if there is none, or it is only just being written."""
        return next(iter(self._next(1).words("first_ns")), None)

    def take(self, until_ns: int, spare: int) -> Lookups:
        """Take lookups, oldest first: each is closed, so that its later hops come as records.

        Their memory may be read until `give_back()`. Those that wrap around the end of the log come at the next call.

        Args:
            until_ns: those that began before.
            spare: and younger ones while more than so many wait.
        """
        ready = self._next(self.waiting)
        count = max(bisect_left(ready.words("first_ns"), until_ns), min(ready.count, self.waiting - spare))
        closed = self._lookups(ready.start, count)
        closed.close()
        self._fence()
        # The program is still writing to one that is busy: it is asked for again the next time.
        busy = closed.words("busy")
        self._fence()
        taken = self._lookups(ready.start, busy.index(1) if any(busy) else count)
        self._taken += taken.count
        return taken

    def peek(self, until_ns: int) -> tuple[Lookups, int]:
        """Lookups that were not taken and began before; the program may still be writing.

        Returns:
            They, and up to when they are all: less than asked for where the log begins anew, or one is being begun.
        """
        waiting = self.waiting
        ready = self._next(waiting)
        first_ns = ready.words("first_ns")
        count = bisect_left(first_ns, until_ns)
        if count == ready.count < waiting:
            until_ns = first_ns[-1] if first_ns else 0
        return self._lookups(ready.start, count), until_ns

    def give_back(self) -> None:
        """Let the program use the places of all that was taken; it wakes the reader by that for the next one."""
        self._consumed.value = self._taken
        self._fence()

    def _lookups(self, start: int, count: int) -> Lookups:
        return Lookups(self._heads, self._bodies, start, count)

    def _next(self, count: int) -> Lookups:
        """Of the next so many those that have been begun for good, up to the end of the log."""
        position = self._taken + 1
        start = position % LOOKUPS
        found = self._lookups(start, min(count, self.waiting, LOOKUPS - start))
        positions = found.words("position")
        if positions == list(range(position, position + found.count)):
            return found
        begun = next(index for index, value in enumerate(positions) if value != position + index)
        return self._lookups(start, begun)

    def close(self) -> None:
        """Unmap."""
        del self._consumed
        self._ends.close()
        for memory, of in ((self._heads, self._map), (self._bodies, self._bodies_map)):
            memory.release()
            of.close()
