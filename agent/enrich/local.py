"""Which addresses a network namespace owns, read from the /proc of any process in it: changes nothing, no setns."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from agent.enrich.processes import NetnsProcesses
from agent.session.sighting import V4_MAPPED

FRESH_SECONDS = 5.0
_LOCAL_V4 = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_LOOPBACK_V4 = V4_MAPPED + b"\x7f"
"""127.0.0.0/8 is one local prefix (RFC 1122 3.2.1.3): systemd-resolved listens on 127.0.0.53."""


@dataclass(slots=True)
class LocalAddresses:
    """Answers `is_local(netns, address)`, with answers a few seconds old at most."""

    processes: NetnsProcesses = field(default_factory=NetnsProcesses)
    _addresses: dict[int, tuple[float, frozenset[bytes]]] = field(default_factory=dict)

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the namespace owns the 16-octet address; None when no process of it can be looked at."""
        now = time.monotonic()
        known = self._addresses.get(netns)
        if known is None or now - known[0] > FRESH_SECONDS:
            addresses = self._read(netns)
            if addresses is None:
                self._addresses.pop(netns, None)
                return None
            known = self._addresses[netns] = (now, addresses)
        return address in known[1] or address.startswith(_LOOPBACK_V4)

    def _read(self, netns: int) -> frozenset[bytes] | None:
        net = self.processes.net_of(netns)
        if net is None:
            return None
        try:
            v4 = _LOCAL_V4.findall(Path(net, "fib_trie").read_text())
            v6 = Path(net, "if_inet6").read_text().splitlines()
        except OSError:
            return None
        return frozenset(V4_MAPPED + socket.inet_aton(text) for text in v4) | {
            bytes.fromhex(line.split()[0]) for line in v6
        }
