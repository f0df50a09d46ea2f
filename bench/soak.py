"""Whether the agent's memory grows: mixed load with faults that come and go, for an hour.

    python -m bench.soak [--minutes MINUTES]

Each round has lookups that the server answers, lookups that it forwards, pairs, and lookups that a policy drops.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.lab import Lab, LabError
from agent.lab.faults import drop_queries
from bench.budget import Bench
from bench.figures import RSS_TARGET_KIB, Figure, table
from bench.load import pairs, require_tools
from bench.process import running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.process import AgentProcess

RATE, FORWARDED_RATE, PAIRS_RATE, FAILING_RATE = 1_000, 500, 500, 200
SECONDS, FAILING_SECONDS = 5.0, 2.0
SLOPE_TARGET = 2.0
"""MiB an hour: a container of 512 MiB would last for days."""
LEAST_MINUTES = 3.0


class Sample(NamedTuple):
    """Memory at a time."""

    hours: float
    rss_mib: float


def one_round(bench: Bench, names: Path) -> int:
    """Some of each; how many lookups these were."""
    loads = [bench.load(RATE, SECONDS), bench.forwarded(FORWARDED_RATE)]
    loads.append(pairs(bench.lab, names, SECONDS, PAIRS_RATE))
    with drop_queries(bench.lab):
        loads.append(pairs(bench.lab, names, FAILING_SECONDS, FAILING_RATE))
    return sum(load.sent for load in loads)


def watch(bench: Bench, agent: AgentProcess, minutes: float) -> tuple[int, list[Sample]]:
    """Rounds until the time is over: how many lookups, and the memory after each round."""
    names = bench.directory / "pairs"
    begun, lookups, samples = time.monotonic(), 0, []
    while (elapsed := time.monotonic() - begun) < 60 * minutes:
        lookups += one_round(bench, names)
        samples.append(Sample(elapsed / 3600, agent.memory().rss / 1024))
        print(f"{elapsed / 60:5.1f} min {lookups} lookups, {samples[-1].rss_mib:.1f} MiB", file=sys.stderr, flush=True)
    return lookups, samples


def slope_of(samples: Sequence[Sample]) -> float:
    """MiB an hour by least squares."""
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


def soak(bench: Bench, minutes: float) -> list[Figure]:
    """Let the agent run under mixed load, and say what became of its memory."""
    # As shipped, but for the address of the metrics: what is printed takes memory, too.
    with running(bench.lab, bench.directory, options=()) as agent:
        agent.settle()
        first = agent.memory()
        lookups, samples = watch(bench, agent, minutes)
        agent.settle()
        last, sums = agent.memory(), agent.stop()
    half = samples[len(samples) // 2 :]
    return [
        Figure("lookups", f"{lookups} in {minutes:g} min"),
        Figure("sessions", str(sums.sessions)),
        Figure("records lost", f"{sums.lost} of {sums.records + sums.lost}", "0", sums.lost == 0),
        Figure("RSS before", f"{first.rss / 1024:.1f} MiB, of which {first.maps / 1024:.1f} are BPF maps"),
        Figure(
            "RSS afterwards",
            f"{last.rss / 1024:.1f} MiB",
            f"<= {RSS_TARGET_KIB // 1024} MiB",
            last.rss <= RSS_TARGET_KIB,
        ),
        Figure("RSS, highest", f"{last.peak / 1024:.1f} MiB"),
        Figure(
            "RSS, slope of the second half",
            f"{slope_of(half):+.2f} MiB an hour",
            f"<= {SLOPE_TARGET:g} MiB an hour",
            slope_of(half) <= SLOPE_TARGET,
        ),
    ]


def main() -> int:
    """Measure and print; 1 if it could not measure."""
    parser = argparse.ArgumentParser(description="Whether the agent's memory grows under mixed load; needs root.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default %(default)s)")
    given = parser.parse_args()
    if given.minutes < LEAST_MINUTES:
        parser.error(f"--minutes: {LEAST_MINUTES:g} at least, for a slope")
    try:
        require_tools()
        with tempfile.TemporaryDirectory() as directory, Lab("nftables") as lab:
            os.environ["CACHE_DIRECTORY"] = directory
            print(table(soak(Bench(lab, Path(directory), SECONDS, 1), given.minutes)))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
