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
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from figures import (
    Figure,
    Loaded,
    flood_figures,
    memory_figures,
    run_figures,
    run_times,
    start_figures,
    table,
    throughput_figures,
)
from load import answer_bench_names, dnsperf, require_tools, tcpdump, write_names
from process import OWN_COMMAND, bpf_statistics, running

from agent.lab import Lab, LabError

if TYPE_CHECKING:
    from load import Load, Peer

RATES = (5_000, 20_000, 50_000)
FLOOD_PORT = 9999
FLOOD_SECONDS = 2.0
FLOOD = Path(__file__).with_name("flood.py")
IDLE_SECONDS = 0.5


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

    def loaded(self, rate: int | None = None, command: Path = OWN_COMMAND) -> Loaded:
        """One round of lookups with the agent."""
        with running(self._lab, self._directory, command) as agent:
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
            agent.append(self.flooded())
        return alone, agent

    def flooded(self, command: Path = OWN_COMMAND) -> float:
        """The same packets a second while the agent runs."""
        with running(self._lab, self._directory, command):
            time.sleep(IDLE_SECONDS)
            return self.flood()

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
                *run_times("DNS (and what else passed)", start, lookups),
                *run_times("flood, no DNS", between, agent.programs()),
            ]


def measure(bench: Bench) -> list[Figure]:
    """Everything."""
    _say("saturation")
    alone, saturated, peer = bench.saturated()
    figures = throughput_figures(alone, saturated, peer)
    last = bench.peers[-1]
    figures.append(Figure("tcpdump's own loss", f"{last.dropped} of {last.captured + last.dropped} packets"))
    figures += run_figures("saturated", sorted(saturated, key=lambda one: one.load.rate)[len(saturated) // 2], None)
    runs = list(saturated)
    for rate in RATES:
        _say(f"{rate} lookups/s")
        runs.append(bench.loaded(rate))
        figures += run_figures(f"{rate}/s", runs[-1], rate)
    figures += memory_figures(runs) + start_figures(runs)
    _say("flood of other packets")
    figures += flood_figures(*bench.floods())
    _say("run time of the BPF programs")
    return figures + bench.program_times()


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


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
    except (LabError, TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
