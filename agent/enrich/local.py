"""Which addresses a network namespace owns, read from the /proc of any process in it. Changes nothing, needs no setns.

Needs CAP_SYS_PTRACE to look at other users' processes; without it the answer is "not known".
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent.session.sighting import V4_MAPPED

FRESH_SECONDS = 5.0
RESCAN_SECONDS = 1.0
_LOCAL_V4 = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_LOOPBACK_V4 = V4_MAPPED + b"\x7f"
"""127.0.0.0/8 is one local prefix (RFC 1122 3.2.1.3): systemd-resolved listens on 127.0.0.53."""


@dataclass(slots=True)
class LocalAddresses:
    """Answers `is_local(netns, address)`, with answers a few seconds old at most."""

    proc: Path = Path("/proc")
    _pids: dict[int, str] = field(default_factory=dict)
    _scanned: float = float("-inf")
    _addresses: dict[int, tuple[float, frozenset[bytes]]] = field(default_factory=dict)

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the namespace owns the 16-octet address; None when no process of it can be looked at."""
        now = time.monotonic()
        known = self._addresses.get(netns)
        if known is None or now - known[0] > FRESH_SECONDS:
            addresses = self._read(netns, now)
            if addresses is None:
                self._addresses.pop(netns, None)
                return None
            known = self._addresses[netns] = (now, addresses)
        return address in known[1] or address.startswith(_LOOPBACK_V4)

    def _read(self, netns: int, now: float) -> frozenset[bytes] | None:
        pid = self._pid_in(netns, now)
        if pid is None:
            return None
        try:
            v4 = _LOCAL_V4.findall((self.proc / pid / "net/fib_trie").read_text())
            v6 = (self.proc / pid / "net/if_inet6").read_text().splitlines()
        except OSError:
            return None
        return frozenset(V4_MAPPED + socket.inet_aton(text) for text in v4) | {
            bytes.fromhex(line.split()[0]) for line in v6
        }

    def _pid_in(self, netns: int, now: float) -> str | None:
        pid = self._pids.get(netns)
        if pid is not None and self._netns_of(pid) == netns:
            return pid
        if now - self._scanned > RESCAN_SECONDS:
            self._scanned = now
            self._pids = {self._netns_of(path.name): path.name for path in self.proc.glob("[0-9]*")}
            self._pids.pop(0, None)
        return self._pids.get(netns)

    def _netns_of(self, pid: str) -> int:
        """Inode of the process's namespace; 0 when it is gone or not ours to see."""
        try:
            return (self.proc / pid / "ns/net").stat().st_ino
        except OSError:
            return 0
