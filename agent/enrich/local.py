"""Which addresses a network namespace owns, read from the /proc of any process in it: changes nothing, no setns."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent.enrich.processes import NetnsProcesses
from agent.hop.endpoint import V4_MAPPED

FRESH_SECONDS = 5.0
"""How long it is believed that a namespace has an address."""
ABSENT_SECONDS = 1.0
"""How long it is believed that it does not: addresses are set after their namespace was made, and move."""
PAUSE_SECONDS = 0.1
"""Between two readings of one namespace: a pod that is being set up gets its address after its namespace."""
MAX_OTHERS = 4096
_LOCAL_V4 = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_LOOPBACK_V4 = V4_MAPPED + b"\x7f"
"""127.0.0.0/8 is one local prefix (RFC 1122 3.2.1.3): systemd-resolved listens on 127.0.0.53."""


@dataclass(slots=True)
class Read:
    """The addresses of one namespace."""

    at: float
    """`time.monotonic()`."""
    local: frozenset[bytes]
    pid: int
    """The process by which they were read."""
    seen: float
    """When it was seen to be there last."""
    others: set[bytes] = field(default_factory=set)
    """Those that were asked for and not found, up to `MAX_OTHERS`."""
    had: frozenset[bytes] = frozenset()
    """Those that it does not have any more; of this very namespace, not of an earlier one with its number."""

    def has(self, address: bytes) -> bool:
        """Whether the address is one of the namespace's."""
        return address in self.local or address.startswith(_LOOPBACK_V4)

    def says(self, address: bytes) -> bool | None:
        """Whether the namespace owns the address; None for one that it had: what was sent to it then is its own."""
        return True if self.has(address) else None if address in self.had else False

    def pause_seconds(self, address: bytes) -> float:
        """How long to wait before the address is looked for again."""
        return ABSENT_SECONDS if address in self.others else PAUSE_SECONDS


@dataclass(slots=True)
class LocalAddresses:
    """Answers `is_local(netns, address)`, with answers a few seconds old at most."""

    processes: NetnsProcesses = field(default_factory=NetnsProcesses)
    _known: dict[int, Read] = field(default_factory=dict)

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the namespace owns the 16-byte address; None when it had it, or no process of it can be looked at.

        An address that was not asked for before is looked for anew if it is not among those that are known.
        """
        now = time.monotonic()
        before = read = self._known.get(netns)
        if read is not None and now - read.at > FRESH_SECONDS:
            read = None
        if read is not None and self._holds(read, netns, address, now):
            return read.says(address)
        found = self._read(netns)
        if found is None:
            # A namespace may outlive its processes: what it had is believed as long as nobody else is there.
            if read is not None and read.has(address):
                read.seen = now
                return True
            self._known.pop(netns, None)
            return None
        pid, local = found
        others = read.others - local if read is not None else set()
        is_same = before is not None and self.processes.netns_of(before.pid) == netns
        had = (before.had | before.local) - local if before is not None and is_same else frozenset()
        read = self._known[netns] = Read(now, local, pid, now, others, had)
        if not read.has(address) and len(others) < MAX_OTHERS:
            others.add(address)
        return read.says(address)

    def _holds(self, read: Read, netns: int, address: bytes, now: float) -> bool:
        """Whether what was read need not be read again for this address.

        The kernel gives the number of a namespace that is gone to the next one, so the process is looked for.
        """
        if not read.has(address):
            return now - read.at <= read.pause_seconds(address)
        if now - read.seen > PAUSE_SECONDS:
            if self.processes.netns_of(read.pid) != netns:
                return False
            read.seen = now
        return True

    def _read(self, netns: int) -> tuple[int, frozenset[bytes]] | None:
        """A process in the namespace, and the addresses that it sees."""
        pid = next(self.processes.pids_in(netns), None)
        if pid is None:
            return None
        net = self.processes.net_by(pid)
        try:
            v4 = _LOCAL_V4.findall(Path(net, "fib_trie").read_text())
            v6 = Path(net, "if_inet6").read_text().splitlines()
        except OSError:
            return None
        return pid, frozenset(V4_MAPPED + socket.inet_aton(text) for text in v4) | {
            bytes.fromhex(line.split()[0]) for line in v6
        }
