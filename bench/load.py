"""DNS load by dnsperf, and the peer that watches the same traffic: tcpdump."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.lab import ANY_UPSTREAM_NAME, VIP, LabError, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab import DnsServer, Lab

ZONE = "bench.cluster.local"
UPSTREAM_ZONE = f"bench.{ANY_UPSTREAM_NAME}"
NAMES = 100_000
"""dnsperf reuses its few message ids at once: only names that differ make each of its lookups a session of its own."""
CLIENTS = 16
WAITING = 100
MARGIN_SECONDS = 20.0
PAIRS = Path(__file__).with_name("pairs.py")


class Load(NamedTuple):
    """What dnsperf did."""

    sent: int
    completed: int
    lost: int
    seconds: float

    @property
    def rate(self) -> float:
        """Completed lookups a second."""
        return self.completed / self.seconds


def require_tools() -> None:
    """Raise LabError unless the programs of the bench are installed."""
    for tool in ("dnsperf", "tcpdump"):
        if shutil.which(tool) is None:
            raise LabError(f"the bench needs the program {tool}: install the Debian package {tool}")


def name_of(number: int, zone: str) -> str:
    """One of the bench's names."""
    return f"api-{number:06d}.shop.{zone}"


def write_names(path: Path, zone: str = ZONE, *, typed: bool = True) -> None:
    """Write names of a usual length, for dnsperf with A and AAAA in turn."""
    types = (" A", " AAAA") if typed else ("",)
    lines = (f"{name_of(number, zone)}{types[number % len(types)]}\n" for number in range(NAMES))
    path.write_text("".join(lines))


def answer_bench_names(server: DnsServer) -> None:
    """Let a server answer every name under the bench's zone by itself."""
    server.kill()
    server.arguments = [*server.arguments, f"--address=/{ZONE}/10.96.9.9", f"--address=/{ZONE}/fd00:10:96::909"]
    server.start()


def dnsperf(lab: Lab, names: Path, seconds: float, rate: int | None = None, waiting: int = WAITING) -> Load:
    """Look names up from the client pod through the Service's address: so many a second, or as many as go.

    Args:
        lab: whose first client asks.
        names: what it asks for.
        seconds: how long.
        rate: lookups a second.
        waiting: so many at most wait for their replies.
    """
    argv = ["dnsperf", "-f", "inet", "-s", VIP, "-d", str(names), "-c", str(CLIENTS), "-T", "1", "-t", "1"]
    argv += ["-q", str(waiting), "-l", f"{seconds:g}", *(["-Q", str(rate)] if rate else [])]
    text = lab.clients[0].run(argv, timeout=seconds + MARGIN_SECONDS).stdout
    return Load(
        sent=int(_figure(text, "Queries sent")),
        completed=int(_figure(text, "Queries completed")),
        lost=int(_figure(text, "Queries lost")),
        seconds=_figure(text, r"Run time \(s\)"),
    )


def pairs(lab: Lab, names: Path, seconds: float, rate: int) -> Load:
    """Pairs of A and AAAA at that rate of lookups; see `bench/pairs.py`."""
    argv = [sys.executable, str(PAIRS), VIP, str(rate), f"{seconds:g}", str(names)]
    sent, answered = map(int, lab.clients[0].run(argv, timeout=seconds + MARGIN_SECONDS).stdout.split())
    return Load(sent, answered, sent - answered, seconds)


def _figure(text: str, label: str) -> float:
    found = re.search(rf"{label}:\s+([0-9.]+)", text)
    if found is None:
        raise LabError(f"dnsperf did not print {label}: {text.strip()[-200:]}")
    return float(found[1])


@dataclass
class Peer:
    """What tcpdump said of itself at its end."""

    captured: int = 0
    dropped: int = 0


@contextmanager
def tcpdump(lab: Lab, directory: Path) -> Iterator[Peer]:
    """Let tcpdump take in the DNS packets of all devices of the node."""
    said = directory / "tcpdump.err"
    with said.open("w") as stderr:
        argv = ["tcpdump", "-n", "-w", "/dev/null", "-i", "any", "port", "53"]
        process = lab.node.popen(argv, stderr=stderr)
    wait_until(lambda: "listening on" in said.read_text(), "tcpdump to listen")
    peer = Peer()
    try:
        yield peer
    finally:
        process.terminate()
        process.wait(MARGIN_SECONDS)
        peer.captured = _count(said, "packets? captured")
        peer.dropped = _count(said, "packets? dropped by kernel")


def _count(said: Path, what: str) -> int:
    found = re.search(rf"(\d+) {what}", said.read_text())
    return int(found[1]) if found else 0
