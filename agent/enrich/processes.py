"""Who lives in each network namespace: procfs shows a namespace's files under every process that lives in it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SEARCH_SECONDS = 1.0
NEW_A_SEARCH = 4096
"""Processes looked at for the first time, 8 µs each: a search takes 40 ms at most, and the next one does the rest."""
KNOWN_A_SEARCH = 256
"""Processes looked at once more, those first whose last look is oldest: they may have moved."""
NODE_PROCESSES = ("1", "2", "self")


class _Process(NamedTuple):
    """What was last seen of a process."""

    inode: int
    """Of its directory: the kernel makes another one for another process with the same number."""
    netns: int


@dataclass(slots=True)
class NetnsProcesses:
    """Knows the processes of each namespace; looks through /proc once a second at most, and only when it must.

    The list of all processes costs 1.2 µs each, a look at one 8 µs, so only new ones are looked at, and of the others a
    few in turn: 5 ms a search among 3 000, where looking at all of them takes 35. Needs CAP_SYS_PTRACE to look at other
    users' processes; without it their namespaces are "not known".
    """

    proc: Path = Path("/proc")
    clock: Callable[[], float] = time.monotonic
    """Seconds."""
    _known: dict[int, _Process] = field(default_factory=dict)
    """By number, in the order of their last look."""
    _members: dict[int, set[int]] = field(default_factory=dict)
    """Numbers of the processes last seen in each namespace."""
    _young: list[int] = field(default_factory=list)
    """Seen for the first time at the last search: a process that a runtime has just made moves on to its namespace."""
    _searched: float = float("-inf")
    _node_netns: int = 0

    def net_of(self, netns: int) -> str | None:
        """The /proc/PID/net of a process in the namespace; None when none is known."""
        pid = next(self.pids_in(netns), None)
        return None if pid is None else self.net_by(pid)

    def net_by(self, pid: int) -> str:
        """The /proc/PID/net of a process."""
        return f"{self.proc}/{pid}/net"

    def netns_of(self, pid: int | str) -> int:
        """Inode of the process's namespace; 0 when it is gone or not ours to see."""
        try:
            return os.stat(f"{self.proc}/{pid}/ns/net").st_ino  # noqa: PTH116  pathlib doubles what a search costs
        except OSError:
            return 0

    @property
    def host_netns(self) -> int:
        """The node's own namespace; 0 when it cannot be told.

        That of process 1; where that one protects itself, of process 2, which is in the namespace of the machine; where
        there is none, of this process. On a node that is a container itself (kind), process 1 is that container's.
        """
        if not self._node_netns:
            self._node_netns = next((netns for pid in NODE_PROCESSES if (netns := self.netns_of(pid))), 0)
        return self._node_netns

    def pids_in(self, netns: int) -> Iterator[int]:
        """Processes that are in the namespace now; searches for more when the known ones are gone."""
        found = False
        for pid in self._present(netns):
            found = True
            yield pid
        if not found and self.search():
            yield from self._present(netns)

    def search(self) -> bool:
        """Look for processes that are new or have moved, if the last time was long enough ago; whether it was."""
        if self.clock() - self._searched <= SEARCH_SECONDS:
            return False
        self._searched = self.clock()
        listed = dict(self._list())
        for pid in [pid for pid, process in self._known.items() if listed.get(pid) != process.inode]:
            self._forget(pid)
        again = [*self._young[-KNOWN_A_SEARCH:], *self._first_known(KNOWN_A_SEARCH)]
        self._young = [pid for pid in listed if pid not in self._known][:NEW_A_SEARCH]
        self._look_at((pid for pid in (*again, *self._young) if pid in listed), listed)
        return True

    def _present(self, netns: int) -> Iterator[int]:
        for pid in sorted(self._members.get(netns, ())):
            if self.netns_of(pid) == netns:
                yield pid
            else:
                self._forget(pid)

    def _list(self) -> Iterator[tuple[int, int]]:
        """Number and inode of every process."""
        with os.scandir(self.proc) as entries:
            for entry in entries:
                if entry.name.isdecimal():
                    yield int(entry.name), entry.inode()

    def _first_known(self, count: int) -> list[int]:
        return [pid for pid, _ in zip(self._known, range(count), strict=False)]

    def _look_at(self, pids: Iterable[int], inodes: dict[int, int]) -> None:
        for pid in pids:
            self._forget(pid)
            netns = self.netns_of(pid)
            self._known[pid] = _Process(inodes[pid], netns)
            if netns:
                self._members.setdefault(netns, set()).add(pid)

    def _forget(self, pid: int) -> None:
        process = self._known.pop(pid, None)
        members = self._members.get(process.netns) if process else None
        if process is None or members is None:
            return
        members.discard(pid)
        if not members:
            del self._members[process.netns]
