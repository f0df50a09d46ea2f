"""The budget's figures, measured in one run: what the agent costs, beside no agent and beside tcpdump.

A lab of network namespaces serves as the node. Rounds are interleaved (nothing, agent, tcpdump, nothing, ...) and
medians are compared, so that a machine whose speed changes does not decide. The machine is shared by the load
generator, the DNS server and the agent, as nodes are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from load import answer_bench_names, dnsperf, require_tools, tcpdump, write_names
from process import bpf_statistics, running

from agent.lab import Lab, LabError

if TYPE_CHECKING:
    from load import Load, Peer
    from process import Memory, Sums

RATES = (5_000, 20_000, 50_000)
TARGET_RATE = 50_000
CPU_TARGET_US = 5.0
THROUGHPUT_TARGET = 0.90
FLOOD_TARGET = 0.95
RSS_TARGET_KIB = 80 * 1024
READY_TARGET_SECONDS = 2.0
FLOOD_PORT = 9999
FLOOD_SECONDS = 2.0
FLOOD = Path(__file__).with_name("flood.py")
IDLE_SECONDS = 0.5
NEARLY = 0.98
"""A load that came this near to the rate asked for counts as that rate."""


class Figure(NamedTuple):
    """One row of the result."""

    name: str
    measured: str
    target: str = ""
    ok: bool | None = None
    """None: there is no target, or it could not be tried."""


class Loaded(NamedTuple):
    """One run of the agent under load."""

    load: Load
    sums: Sums
    cpu_seconds: float
    settle_seconds: float
    idle: Memory
    after: Memory
    said_ready_seconds: float
    wall_ready_seconds: float

    @property
    def cpu_us(self) -> float:
        """CPU of the agent for one lookup."""
        return 1e6 * self.cpu_seconds / self.load.sent


class Bench:
    """The lab and the files of one run."""

    def __init__(self, lab: Lab, directory: Path, seconds: float, rounds: int) -> None:
        self._lab = lab
        self._directory = directory
        self._seconds = seconds
        self._rounds = rounds
        self.peers: list[Peer] = []
        """What tcpdump said in each round."""
        self._names = directory / "names"
        write_names(self._names)
        answer_bench_names(lab.servers[0])

    def load(self, rate: int | None = None, seconds: float | None = None) -> Load:
        """One round of lookups."""
        return dnsperf(self._lab, self._names, seconds or self._seconds, rate)

    def loaded(self, rate: int | None = None) -> Loaded:
        """One round of lookups with the agent."""
        with running(self._lab, self._directory) as agent:
            time.sleep(IDLE_SECONDS)
            idle, before = agent.memory(), agent.cpu_seconds()
            load = self.load(rate)
            settled = agent.settle()
            cpu, after = agent.cpu_seconds() - before, agent.memory()
            ready = agent.said_ready_seconds, agent.wall_ready_seconds
            return Loaded(load, agent.stop(), cpu, settled, idle, after, *ready)

    def saturated(self) -> tuple[list[float], list[Loaded], list[float]]:
        """Rounds at saturation: lookups a second alone, runs with the agent, lookups a second with tcpdump."""
        alone, agent, peer = [], [], []
        self.load(seconds=1)
        for _ in range(self._rounds):
            alone.append(self.load().rate)
            agent.append(self.loaded())
            with tcpdump(self._lab, self._directory) as said:
                peer.append(self.load().rate)
            self.peers.append(said)
        return alone, agent, peer

    def floods(self) -> tuple[list[float], list[float]]:
        """Packets a second that are no DNS, alone and with the agent."""
        alone, agent = [], []
        for _ in range(self._rounds):
            alone.append(self.flood())
            with running(self._lab, self._directory):
                time.sleep(IDLE_SECONDS)
                agent.append(self.flood())
        return alone, agent

    def flood(self) -> float:
        """Packets a second that come through the node to a program in the server pod."""
        server = self._lab.servers[0]
        arguments = [server.address, str(FLOOD_PORT), str(FLOOD_SECONDS)]
        counted = self._directory / "flood.out"
        with counted.open("w") as out:
            receiver = server.popen([sys.executable, str(FLOOD), "receive", *arguments], stdout=out)
        while "ready" not in counted.read_text():
            if receiver.poll() is not None:
                raise LabError("the flood's receiver did not start")
            time.sleep(0.01)
        self._lab.clients[0].run([sys.executable, str(FLOOD), "send", *arguments], timeout=5 * FLOOD_SECONDS)
        receiver.wait(5 * FLOOD_SECONDS)
        packets, seconds = counted.read_text().split()[1:]
        return int(packets) / float(seconds)

    def program_times(self) -> list[Figure]:
        """What one run of each BPF program takes, for DNS and for other packets."""
        with bpf_statistics() as counting, running(self._lab, self._directory) as agent:
            if not counting:
                return []
            start = agent.programs()
            self.load(rate=RATES[0], seconds=2)
            lookups = agent.programs()
            agent.settle()
            between = agent.programs()
            self.flood()
            return [
                *_run_times("DNS (and what else passed)", start, lookups),
                *_run_times("flood, no DNS", between, agent.programs()),
            ]


def _run_times(what: str, start: dict[str, tuple[int, int]], end: dict[str, tuple[int, int]]) -> list[Figure]:
    figures = []
    for name, (runs, ns) in sorted(end.items()):
        runs_before, ns_before = start.get(name, (0, 0))
        if runs > runs_before:
            each = (ns - ns_before) / (runs - runs_before)
            figures.append(Figure(f"BPF {name}: {what}", f"{each:.0f} ns/run, {runs - runs_before} runs"))
    return figures


def throughput_figures(alone: list[float], agent: list[Loaded], peer: list[float]) -> list[Figure]:
    """Saturation."""
    free, watched, dumped = median(alone), median(one.load.rate for one in agent), median(peer)
    return [
        Figure("lookups/s without agent", f"{free:.0f} ({_spread(alone)})"),
        Figure("lookups/s with agent", f"{watched:.0f} ({_spread([one.load.rate for one in agent])})"),
        Figure("lookups/s with tcpdump", f"{dumped:.0f} ({_spread(peer)})"),
        _ratio("DNS throughput, agent/none", watched / free, THROUGHPUT_TARGET),
        Figure("DNS throughput, tcpdump/none", f"{dumped / free:.3f}"),
        Figure("DNS throughput, agent/tcpdump", f"{watched / dumped:.3f}"),
    ]


def _spread(values: list[float]) -> str:
    return f"{min(values):.0f}..{max(values):.0f}"


def _ratio(name: str, value: float, target: float) -> Figure:
    return Figure(name, f"{value:.3f}", f">= {target}", value >= target)


def run_figures(name: str, one: Loaded, rate: int | None) -> list[Figure]:
    """A run under load: losses, sessions, CPU."""
    reached = rate is None or one.load.rate >= NEARLY * rate
    must_not_lose = rate is None or rate <= TARGET_RATE
    lost_ok = (one.sums.lost == 0 if reached else None) if rate is not None and must_not_lose else None
    # Records that were lost cost nothing: only a run that lost none can be within the budget.
    cpu_ok = one.cpu_us <= CPU_TARGET_US and one.sums.lost == 0 if rate is not None else None
    lines = ", ".join(f"{count} {kind}" for kind, count in one.sums.lines.most_common(3)) or "none"
    return [
        Figure(f"{name}: lookups", f"{one.load.sent} sent, {one.load.lost} unanswered, {one.load.rate:.0f}/s"),
        Figure(f"{name}: records lost", f"{one.sums.lost} of {one.sums.records + one.sums.lost}", "0", lost_ok),
        Figure(f"{name}: sessions/lookups", f"{one.sums.sessions / one.load.sent:.4f}"),
        Figure(f"{name}: lines of problems", lines),
        Figure(f"{name}: agent CPU/lookup", f"{one.cpu_us:.1f} us", f"<= {CPU_TARGET_US:g} us", cpu_ok),
        Figure(f"{name}: agent CPU/record taken in", f"{1e6 * one.cpu_seconds / max(1, one.sums.records):.2f} us"),
        Figure(f"{name}: records/lookup", f"{one.sums.records / one.load.sent:.2f}"),
        Figure(f"{name}: worked on after the load", f"{one.settle_seconds:.1f} s"),
    ]


def memory_figures(runs: list[Loaded]) -> list[Figure]:
    """Resident memory, the largest of all runs."""
    idle = max(runs, key=lambda one: one.idle.rss).idle
    after = max(runs, key=lambda one: one.after.rss).after
    peak = max(one.after.peak for one in runs)
    target = f"<= {RSS_TARGET_KIB // 1024} MiB"
    return [
        Figure("RSS idle", _memory(idle), target, idle.rss <= RSS_TARGET_KIB),
        Figure("RSS after load", _memory(after), target, after.rss <= RSS_TARGET_KIB),
        Figure("RSS peak", f"{peak / 1024:.0f} MiB"),
    ]


def _memory(memory: Memory) -> str:
    parts = {"anon": memory.anon, "file": memory.file, "shmem": memory.shmem, "of it ring": memory.ring}
    told = ", ".join(f"{name} {kib / 1024:.0f}" for name, kib in parts.items())
    return f"{memory.rss / 1024:.0f} MiB ({told})"


def start_figures(runs: list[Loaded]) -> list[Figure]:
    """Start-up."""
    said = median(one.said_ready_seconds for one in runs)
    wall = median(one.wall_ready_seconds for one in runs)
    target = f"<= {READY_TARGET_SECONDS:g} s"
    return [
        Figure("ready, by its own word", f"{said:.2f} s"),
        Figure("ready, from exec", f"{wall:.2f} s", target, wall <= READY_TARGET_SECONDS),
    ]


def measure(bench: Bench) -> list[Figure]:
    """Everything."""
    _say("saturation")
    alone, saturated, peer = bench.saturated()
    figures = throughput_figures(alone, saturated, peer)
    last = bench.peers[-1]
    figures.append(Figure("tcpdump's own loss", f"{last.dropped} of {last.captured + last.dropped} packets"))
    figures += run_figures("saturated", saturated[-1], None)
    runs = list(saturated)
    for rate in RATES:
        _say(f"{rate} lookups/s")
        runs.append(bench.loaded(rate))
        figures += run_figures(f"{rate}/s", runs[-1], rate)
    figures += memory_figures(runs) + start_figures(runs)
    _say("flood of other packets")
    free, watched = bench.floods()
    figures += [
        Figure("flood packets/s without agent", f"{median(free):.0f} ({_spread(free)})"),
        Figure("flood packets/s with agent", f"{median(watched):.0f} ({_spread(watched)})"),
        _ratio("flood, agent/none", median(watched) / median(free), FLOOD_TARGET),
    ]
    _say("run time of the BPF programs")
    return figures + bench.program_times()


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def table(figures: list[Figure]) -> str:
    """The result for people."""
    words = {True: "ok", False: "MISS", None: ""}
    rows = [("figure", "measured", "target", ""), *((*one[:3], words[one.ok]) for one in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(text.rstrip() for text in texts)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the agent's cost in a lab on this machine; needs root.")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 if it could not measure, whatever the figures say."""
    given = options()
    try:
        require_tools()
        with tempfile.TemporaryDirectory() as directory, Lab("nftables") as lab:
            figures = measure(Bench(lab, Path(directory), given.seconds, given.rounds))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
