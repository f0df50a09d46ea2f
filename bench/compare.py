"""What a change costs: this checkout's agent beside another checkout's, round by round in one run.

    python -m bench.compare ../before     another checkout, with its own .venv (make setup)

Rounds are interleaved (nothing, before, after, nothing, ...) and medians are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from agent.lab import Lab, LabError
from bench.budget import Bench
from bench.load import require_tools
from bench.process import OWN_COMMAND

if TYPE_CHECKING:
    from bench.figures import Loaded

RATES = (1_000, 5_000)
"""Lookups a second at which neither side loses records: what is lost costs nothing."""


class Rounds:
    """The values of one figure, by what ran."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.values: dict[str, list[float]] = {"none": [], "before": [], "after": []}

    def row(self) -> str:
        """Medians, the spread of each, and the ratios."""
        told = [
            f"{key} {median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for key, values in self.values.items()
            if values
        ]
        none, before, after = (median(values) if values else 0.0 for values in self.values.values())
        ratios = [f"after/before {after / before:.3f}"]
        if none:
            ratios = [f"before/none {before / none:.3f}", f"after/none {after / none:.3f}", *ratios]
        return f"{self.name} [{self.unit}]: {', '.join(told)}; {', '.join(ratios)}"


def measure(bench: Bench, other: Path, rounds: int) -> list[Rounds]:
    """Everything, interleaved."""
    commands = {"before": other, "after": OWN_COMMAND}
    saturated = Rounds("DNS throughput at saturation", "lookups/s")
    flood = Rounds("flood of other packets", "packets/s")
    cpu = {rate: Rounds(f"agent CPU a lookup at {rate}/s", "us") for rate in RATES}
    lost = {rate: Rounds(f"records lost at {rate}/s", "records, +1") for rate in RATES}
    ready = Rounds("ready, from exec", "s")
    bench.load(seconds=1)
    for _ in range(rounds):
        saturated.values["none"].append(bench.load().rate)
        flood.values["none"].append(bench.flood())
        for key, command in commands.items():
            saturated.values[key].append(bench.loaded(command=command).load.rate)
            flood.values[key].append(bench.flooded(command))
            for rate in RATES:
                one = bench.loaded(rate, command)
                _note(one, key, cpu[rate], lost[rate], ready)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [saturated, flood, *cpu.values(), *lost.values(), ready]


def _note(one: Loaded, key: str, cpu: Rounds, lost: Rounds, ready: Rounds) -> None:
    cpu.values[key].append(one.cpu_us)
    lost.values[key].append(one.sums.lost + 1)
    ready.values[key].append(one.wall_ready_seconds)


def main() -> int:
    """Measure and print; 1 if it could not measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default %(default)s)")
    given = parser.parse_args()
    other = given.other / ".venv/bin/dnstrail"
    if not other.exists():
        parser.error(f"{other} does not exist: run `make setup` in {given.other}")
    try:
        require_tools()
        with tempfile.TemporaryDirectory() as directory, Lab("nftables") as lab:
            found = measure(Bench(lab, Path(directory), given.seconds, given.rounds), other, given.rounds)
    except LabError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print("\n".join(one.row() for one in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
