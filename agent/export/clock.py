"""Wall-clock text for the kernel's monotonic stamps."""

from __future__ import annotations

import time

SECOND_NS = 1_000_000_000


def wall_offset_ns() -> int:
    """What to add to CLOCK_MONOTONIC to get UTC, nanoseconds; the tightest of a few readings."""
    readings = []
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        readings.append((after - before, wall - (before + after) // 2))
    return min(readings)[1]


def rfc3339(wall_ns: int) -> str:
    """UTC with nanoseconds: 2026-11-21T05:41:14.352334704Z."""
    seconds, rest = divmod(wall_ns, SECOND_NS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"
