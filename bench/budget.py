"""The budget of the design, measured in one run: what the agent costs, beside no agent and beside its peers.

    python -m bench.budget [--write bench/RESULTS.md] [WORD...]     only parts whose name has one of these words

A lab of network namespaces serves as the node. What is compared is interleaved (nothing, agent, tcpdump, nothing, ...)
and medians are taken, so that a machine whose speed changes does not decide. The machine is shared by the load
generator, the DNS server and the agent, as nodes are.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

from agent.export.metrics.catalogue import STATUSES
from agent.lab import Lab, LabError
from agent.lab.faults import drop_queries
from bench.empty import empty_programs
from bench.figures import (
    Figure,
    Loaded,
    Part,
    Quiet,
    Saturated,
    failing_figures,
    flood_figures,
    growth_figures,
    log_figures,
    memory_figures,
    peer_figures,
    quiet_figures,
    run_figures,
    run_times,
    start_figures,
    table,
    throughput_figures,
    trace_figures,
)
from bench.load import UPSTREAM_ZONE, ZONE, answer_bench_names, dnsperf, pairs, require_tools, tcpdump, write_names
from bench.node import many_namespaces, many_rules
from bench.peers import COREDNS_PLUGINS, coredns_with, has_coredns
from bench.process import OWN_COMMAND, PROBLEMS, bpf_statistics, running, tracing
from bench.results import results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.load import Load, Peer

RATES = (5_000, 20_000)
TOP_RATE, TOP_SECONDS = 50_000, 60.0
SHAPES_RATE = FAILING_RATE = 20_000
LOG_RATE = 10_000
GROWTH_RATE = 5_000
QUIET_RATE, QUIET_SECONDS = 400, 10.0
NAMESPACES = (0, 50, 250)
RULES = 190
"""So that a packet costs about 4.6 µs."""
FLOOD_PORT = 9999
FLOOD_SECONDS = 2.0
FLOOD = Path(__file__).with_name("flood.py")
IDLE_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
"""By then the agent has told what is not answered: it gives it up after ten seconds."""


class Bench:
    """The lab and the files of one run, and what was measured for more than one part of it."""

    def __init__(self, lab: Lab, directory: Path, seconds: float, rounds: int) -> None:
        self.lab = lab
        self.directory = directory
        self.seconds = seconds
        self.rounds = rounds
        self.runs: list[Loaded] = []
        self._names, self._upstream_names, self._pair_names = (directory / name for name in ("names", "up", "pairs"))
        write_names(self._names)
        write_names(self._upstream_names, UPSTREAM_ZONE)
        write_names(self._pair_names, ZONE, typed=False)
        answer_bench_names(lab.servers[0])

    def load(self, rate: int | None = None, seconds: float | None = None) -> Load:
        """One round of lookups that the server answers by itself."""
        return dnsperf(self.lab, self._names, seconds or self.seconds, rate)

    def pairs(self, rate: int) -> Load:
        """The same as pairs of A and AAAA."""
        return pairs(self.lab, self._pair_names, self.seconds, rate)

    def forwarded(self, rate: int) -> Load:
        """Lookups for which the server asks its upstream."""
        return dnsperf(self.lab, self._upstream_names, self.seconds, rate)

    def loaded(
        self,
        rate: int | None = None,
        command: Path = OWN_COMMAND,
        *,
        ask: Callable[[], Load] | None = None,
        options: Sequence[str] = PROBLEMS,
    ) -> Loaded:
        """One round of lookups with the agent."""
        with running(self.lab, self.directory, command, options) as agent:
            time.sleep(IDLE_SECONDS)
            idle, before = agent.memory(), agent.cpu_seconds()
            begun = time.monotonic()
            load = ask() if ask else self.load(rate)
            if load.lost:
                agent.wait_for_sessions(load.sent, TIMEOUT_SECONDS)
            settled = agent.settle()
            cpu, after = agent.cpu_seconds() - before, agent.memory()
            states = {status: agent.sessions(status) for status in STATUSES}
            ready = agent.said_ready_seconds, agent.wall_ready_seconds
            lines, printed_bytes = agent.output()
            told = time.monotonic() - begun
            one = Loaded(load, agent.stop(), cpu, settled, idle, after, *ready, states, lines, printed_bytes, told)
        self.runs.append(one)
        return one

    def saturated(self) -> tuple[Saturated, list[Peer]]:
        """Rounds at saturation, and what tcpdump said of its own."""
        found = Saturated([], [], [], [])
        peers: list[Peer] = []
        self.load(seconds=1)
        for _ in range(self.rounds):
            found.alone.append(self.load().rate)
            found.agent.append(self.loaded())
            with tcpdump(self.lab, self.directory) as said:
                found.tcpdump.append(self.load().rate)
            peers.append(said)
            with empty_programs():
                found.empty.append(self.load().rate)
        return found, peers

    def floods(self, rules: int = 0) -> tuple[list[float], list[float]]:
        """Packets a second that are no DNS, alone and with the agent; rules make each cost more."""
        alone, agent = [], []
        with many_rules(self.lab, rules):
            for _ in range(self.rounds):
                alone.append(self.flood())
                agent.append(self.flooded())
        return alone, agent

    def flooded(self, command: Path = OWN_COMMAND) -> float:
        """The same packets a second while the agent runs."""
        with running(self.lab, self.directory, command):
            time.sleep(IDLE_SECONDS)
            return self.flood()

    def flood(self) -> float:
        """Packets a second that come through the node to a program in the server pod."""
        server = self.lab.servers[0]
        arguments = [server.address, str(FLOOD_PORT), str(FLOOD_SECONDS)]
        counted = self.directory / "flood.out"
        with counted.open("w") as out:
            receiver = server.popen([sys.executable, str(FLOOD), "receive", *arguments], stdout=out)
        while "ready" not in counted.read_text():
            if receiver.poll() is not None:
                raise LabError("the flood's receiver did not start")
            time.sleep(0.01)
        self.lab.clients[0].run([sys.executable, str(FLOOD), "send", *arguments], timeout=5 * FLOOD_SECONDS)
        receiver.wait(5 * FLOOD_SECONDS)
        packets, seconds = counted.read_text().split()[1:]
        return int(packets) / float(seconds)


def saturation(bench: Bench) -> list[Figure]:
    """DNS throughput with the agent, with tcpdump, and with programs that do nothing where the agent's are."""
    found, peers = bench.saturated()
    figures = throughput_figures(found)
    figures.append(
        Figure("tcpdump's own loss", f"{peers[-1].dropped} of {peers[-1].captured + peers[-1].dropped} packets")
    )
    return figures + run_figures(
        "saturated", sorted(found.agent, key=lambda one: one.load.rate)[len(found.agent) // 2], None
    )


def steady(bench: Bench) -> list[Figure]:
    """Losses and CPU at fixed rates."""
    figures = []
    for rate in RATES:
        figures += run_figures(f"{rate}/s", bench.loaded(rate), rate)
    one = bench.loaded(ask=lambda: bench.load(TOP_RATE, TOP_SECONDS))
    return figures + run_figures(f"{TOP_RATE}/s for {TOP_SECONDS:g} s", one, TOP_RATE)


def shapes(bench: Bench) -> list[Figure]:
    """Pairs, and lookups that a server forwards."""
    paired = bench.loaded(ask=lambda: bench.pairs(SHAPES_RATE))
    forwarded = bench.loaded(ask=lambda: bench.forwarded(SHAPES_RATE))
    # The upstream is on this machine, so each question of the server to it is a lookup, too.
    return [
        *run_figures(f"pairs, {SHAPES_RATE} lookups/s", paired, SHAPES_RATE),
        *run_figures(f"forwarded, {SHAPES_RATE}/s", forwarded, SHAPES_RATE, legs=2),
    ]


def quiet(bench: Bench) -> list[Figure]:
    """CPU without lookups, and with few."""
    with running(bench.lab, bench.directory) as agent:
        # What a start leaves to be done is done.
        agent.settle()
        shares = []
        for rate in (0, QUIET_RATE):
            wait = partial(bench.load, rate, QUIET_SECONDS) if rate else partial(time.sleep, QUIET_SECONDS)
            shares.append(Quiet(rate, agent.share_of(wait)))
    return quiet_figures(shares)


def trace(bench: Bench) -> list[Figure]:
    """CPU of `dnstrail trace` beside the agent, and what the agent does for it."""
    path = bench.directory / "trace.sock"
    shares = []
    with running(bench.lab, bench.directory, options=(*PROBLEMS, f"--trace-socket={path}")) as agent:
        agent.settle()
        for rate in (QUIET_RATE, GROWTH_RATE):
            without = agent.share_of(partial(bench.load, rate, QUIET_SECONDS))
            with tracing(bench.lab, path) as reader:
                with_it = agent.share_of(partial(bench.load, rate, QUIET_SECONDS), reader)
            shares.append(Quiet(rate, with_it - without))
    return trace_figures(shares)


def flood(bench: Bench) -> list[Figure]:
    """Packets that are no DNS."""
    return [
        *flood_figures("flood", bench.floods(), has_target=False),
        *flood_figures(f"flood through {RULES} rules", bench.floods(RULES), has_target=True),
    ]


def failing(bench: Bench) -> list[Figure]:
    """Lookups that are lost."""
    figures = []
    with drop_queries(bench.lab):
        one = bench.loaded(ask=lambda: bench.pairs(FAILING_RATE), options=())
        figures += failing_figures(f"policy drop, {FAILING_RATE}/s", one)
    server = bench.lab.servers[0]
    server.kill()
    one = bench.loaded(ask=lambda: bench.pairs(FAILING_RATE), options=())
    server.start()
    return figures + failing_figures(f"dead server, {FAILING_RATE}/s", one)


def growth(bench: Bench) -> list[Figure]:
    """Whether network namespaces without lookups cost; what rules cost is part of the flood."""
    found: dict[int, list[float]] = {count: [] for count in NAMESPACES}
    for _ in range(bench.rounds):
        for count, costs in found.items():
            with many_namespaces(count):
                costs.append(bench.loaded(GROWTH_RATE).cpu_us)
    return growth_figures(found, GROWTH_RATE)


def log_all(bench: Bench) -> list[Figure]:
    """A line for each lookup."""
    options = ("--log", "all", "--log-rate=1000000", "--max-lines=unlimited", "--max-bytes=unlimited")
    return log_figures(f"--log all at {LOG_RATE}/s", bench.loaded(LOG_RATE, options=options))


def program_times(bench: Bench) -> list[Figure]:
    """What one run of each BPF program takes, for DNS and for other packets."""
    with bpf_statistics() as counting, running(bench.lab, bench.directory) as agent:
        if not counting:
            return []
        start = agent.programs()
        bench.load(rate=RATES[0], seconds=2)
        lookups = agent.programs()
        agent.settle()
        between = agent.programs()
        bench.flood()
        return [
            *run_times("DNS (and what else passed)", start, lookups),
            *run_times("flood, no DNS", between, agent.programs()),
        ]


def peers(bench: Bench) -> list[Figure]:
    """What CoreDNS pays for telling of its lookups itself."""
    if not has_coredns():
        return [Figure("CoreDNS", "SKIPPED: not built here (`make coredns` needs Go)")]
    rates: dict[str, list[float]] = {plugin: [] for plugin in COREDNS_PLUGINS}
    watched = []
    for _ in range(bench.rounds):
        for plugin, found in rates.items():
            with coredns_with(plugin, bench.lab, bench.directory):
                found.append(bench.load().rate)
                if not plugin:
                    watched.append(bench.loaded().load.rate)
    return peer_figures(rates, watched)


def kept(bench: Bench) -> list[Figure]:
    """Memory and start, of all runs before."""
    return memory_figures(bench.runs) + start_figures(bench.runs) if bench.runs else []


PARTS: tuple[Callable[[Bench], list[Figure]], ...] = (
    saturation,
    steady,
    shapes,
    quiet,
    trace,
    flood,
    failing,
    growth,
    log_all,
    program_times,
    peers,
    kept,
)


def measure(bench: Bench, words: Sequence[str]) -> list[Part]:
    """All parts, or those with one of these words in their name."""
    found = []
    for part in PARTS:
        name = part.__name__.replace("_", " ")
        if words and not any(word in name for word in words):
            continue
        begun = time.monotonic()
        try:
            figures = part(bench)
        except LabError as error:
            figures = [Figure(name, f"could not be measured: {str(error).splitlines()[0]}")]
        found.append(Part(name, part.__doc__ or "", figures))
        print(f"bench: {name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the agent's cost in a lab on this machine; needs root.")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind (default %(default)s)")
    parser.add_argument("--write", type=Path, help="also write the results to this file, as Markdown")
    parser.add_argument("words", nargs="*", help="only parts with one of these words in their name")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 if it could not measure, whatever the figures say."""
    given = options()
    try:
        require_tools()
        with tempfile.TemporaryDirectory() as directory, Lab("nftables") as lab:
            os.environ["CACHE_DIRECTORY"] = directory
            parts = measure(Bench(lab, Path(directory), given.seconds, given.rounds), given.words)
    except (LabError, TimeoutExpired) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(table([figure for part in parts for figure in part.figures]))
    if given.write:
        given.write.write_text(results(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
