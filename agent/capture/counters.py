"""What the BPF program says of its own work: records, and every way it can lose one."""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from agent.hop.record import Event

_LAYOUT = struct.Struct("=8Q8Q8Q")
"""struct counters of bpf/dnstrail.bpf.c, one element a CPU."""

COUNTERS_BYTES = _LAYOUT.size
EVENT_SLOTS = 8
COUNTERS_ASSERTION = f'_Static_assert(sizeof(struct counters) == {COUNTERS_BYTES}, "size of struct counters");\n'


class Counters(NamedTuple):
    """Sums over all CPUs since the program was loaded; they only grow."""

    records: dict[str, int]
    """Kept in the log or put into the ring, by event."""
    lost: dict[str, int]
    """Not put into the ring because it was full, by event."""
    last_lost_ns: int
    """CLOCK_MONOTONIC of the newest loss."""
    read_failed: int
    seen_failed: int
    nested: int
    """Not looked at because an interrupt hit the program at work."""
    cut: int
    """Messages not wholly in the linear part of the packet: captured in part."""
    log_full: int
    """Hops that were lost because the log of lookups had no room."""
    contended: int
    """Hops that came one by one because another program was writing at the same place."""
    crowded: int
    """Lookups that the index forgot for want of room: their later hops came one by one."""


class CounterMap:
    """The memory-mapped counters of the loaded program."""

    def __init__(self, fd: int, cpus: int) -> None:
        self._cpus = cpus
        self._map = mmap.mmap(fd, COUNTERS_BYTES * cpus, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(self) -> Counters:
        """The sums now."""
        rows = [_LAYOUT.unpack_from(self._map, cpu * COUNTERS_BYTES) for cpu in range(self._cpus)]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        return Counters(
            records={event.name.lower(): sums[event] for event in Event},
            lost={event.name.lower(): sums[EVENT_SLOTS + event] for event in Event},
            last_lost_ns=max(row[2 * EVENT_SLOTS] for row in rows),
            read_failed=sums[2 * EVENT_SLOTS + 1],
            seen_failed=sums[2 * EVENT_SLOTS + 2],
            nested=sums[2 * EVENT_SLOTS + 3],
            cut=sums[2 * EVENT_SLOTS + 4],
            log_full=sums[2 * EVENT_SLOTS + 5],
            contended=sums[2 * EVENT_SLOTS + 6],
            crowded=sums[2 * EVENT_SLOTS + 7],
        )

    def close(self) -> None:
        """Unmap."""
        self._map.close()
