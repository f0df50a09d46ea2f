"""A way into each network namespace: procfs shows a namespace's files under every process that lives in it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

SEARCH_SECONDS = 1.0


@dataclass(slots=True)
class NetnsProcesses:
    """Knows a process of each namespace; goes through all processes once a second at most, and only when it must.

    Needs CAP_SYS_PTRACE to look at other users' processes; without it their namespaces are "not known".
    """

    proc: Path = Path("/proc")
    _pids: dict[int, str] = field(default_factory=dict)
    _searched: float = float("-inf")

    def net_of(self, netns: int) -> str | None:
        """The /proc/PID/net of a process in the namespace; None when none is known."""
        pid = self._pid_in(netns)
        return None if pid is None else f"{self.proc}/{pid}/net"

    def netns_of(self, pid: str) -> int:
        """Inode of the process's namespace; 0 when it is gone or not ours to see."""
        try:
            return (self.proc / pid / "ns/net").stat().st_ino
        except OSError:
            return 0

    def _pid_in(self, netns: int) -> str | None:
        pid = self._pids.get(netns)
        if pid is not None and self.netns_of(pid) == netns:
            return pid
        now = time.monotonic()
        if now - self._searched > SEARCH_SECONDS:
            self._searched = now
            self._pids = {self.netns_of(path.name): path.name for path in self.proc.glob("[0-9]*")}
            self._pids.pop(0, None)
        return self._pids.get(netns)
