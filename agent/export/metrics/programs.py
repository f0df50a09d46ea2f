"""What the kernel says of our BPF programs: how often they ran and how long, when it keeps statistics."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
FDINFO = Path("/proc/self/fdinfo")
_FIELDS = (b"run_time_ns:", b"run_cnt:")


class Runs(NamedTuple):
    """Of one program, since it was loaded; both stand still while the kernel keeps no statistics."""

    nanoseconds: int
    runs: int


def runs_of(descriptor: int, fdinfo: Path = FDINFO) -> Runs | None:
    """What the kernel says (bpf_prog_show_fdinfo() in kernel/bpf/syscall.c); None when the descriptor is closed."""
    try:
        text = (fdinfo / str(descriptor)).read_bytes()
    except OSError:
        return None
    said = dict(line.split()[:2] for line in text.splitlines() if line.startswith(_FIELDS))
    return Runs(*(int(said.get(field, 0)) for field in _FIELDS))


def statistics_enabled(path: Path = STATISTICS) -> bool:
    """Whether the kernel keeps them now (sysctl kernel.bpf_stats_enabled)."""
    try:
        return path.read_bytes().strip() == b"1"
    except OSError:
        return False
