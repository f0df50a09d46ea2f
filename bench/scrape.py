"""What numbers cost: counting a lookup, and being scraped meanwhile, by Prometheus and by somebody who means harm.

Lookups come out of the real session table, from records as bench/core.py makes them, and are counted at a steady rate
by the real counting function, while another process asks for /metrics over the real port. How long a turn of the
counting loop was held up tells how much it was disturbed: the ring has to hold the records of that time. What the turn
itself took, and waited for a CPU that other programs had, is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from agent.context.cluster import Pod
from agent.context.who import NOBODY, Who
from agent.explain.rules import explain
from agent.export.metrics.clients import ByClient, Clients
from agent.export.metrics.pages import Pages
from agent.export.metrics.sources import Sources
from agent.process import freeze_gc
from agent.serve import Address, Server
from agent.session.table import SessionTable
from bench.core import BATCH, PAUSE_NS, FileRing, recorded, starts
from bench.figures import Figure, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.explain.verdict import Verdict
    from agent.session.outcome import Outcome

    Counted = tuple[Outcome, Verdict, Callable[[], Who]]

TICK_SECONDS = 0.02
"""The agent gathers records for so long."""
LOOKUPS = 20_000
SHORT = 500
"""Lookups whose records are all in the CPU's cache when they are counted once more."""
ROUNDS = 40
BUDGET_NS = 1500
SCRAPES_A_SECOND = 2
SCRAPER = """
import http.client, json, sys, time
port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
end, took, size = time.monotonic() + seconds, [], 0
while time.monotonic() < end:
    begun = time.monotonic()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("GET", "/metrics")
    size = len(client.getresponse().read())
    client.close()
    took.append(time.monotonic() - begun)
    time.sleep(max(0, 1 / rate - took[-1]))
print(json.dumps({"took": took, "bytes": size}))
"""
ATTACKER = """
import socket, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[3])
end, held = time.monotonic() + seconds, []
habits = (b"GET /metrics HTTP/1.1\\r\\n\\r\\n", b"", b"GET /metrics HTTP/1.1\\r\\nX: ", b"\\xff" * 4096)
while time.monotonic() < end:
    for bytes in habits:
        try:
            client = socket.create_connection(("127.0.0.1", port), 1)
            client.setblocking(False)
            client.sendall(bytes)
            held.append(client)
        except OSError:
            pass
    for client in held[:-200]:
        client.close()
    held = held[-200:]
"""


class Scraped(NamedTuple):
    """What a scraper saw."""

    seconds: list[float]
    size_bytes: int


class Run(NamedTuple):
    """Some seconds of counting."""

    held_up_seconds: list[float]
    """How long each turn waited for our own threads."""
    cpu_seconds: float
    """Of the whole process."""
    counted: int
    scraped: Scraped | None


def outcomes() -> list[Outcome]:
    """Lookups through a Service address, as the table closes them; the first of each shape are left out."""
    ring, sessions, found = FileRing(), SessionTable(), []
    for first, begun_ns in starts(LOOKUPS + BATCH):
        reader = ring.fill(recorded(first, begun_ns))
        reader.drain(sessions.observe, reader.produced())
        reader.close()
        found += sessions.expire(begun_ns + PAUSE_NS)
    return found[BATCH:]


def who_is(number: int, workloads: int) -> Callable[[], Who]:
    """A pod of one of so many workloads; nobody when there are none."""
    if not workloads:
        return lambda: NOBODY
    name = f"workload-{number % workloads}"
    pod = Pod("uid", "shop", f"{name}-7d9f-x2x", f"Deployment/{name}", "node-1", False, "", ())
    who = Who(client=pod)
    return lambda: who


def sources(workloads: int) -> Sources:
    """Where the numbers are kept; by workload, if there are any."""
    return Sources(Clients(ByClient("workload", workloads)) if workloads else None)


def count_all(numbers: Sources, lookups: list[Counted]) -> None:
    """Count them."""
    count = numbers.tally.count
    for outcome, verdict, who in lookups:
        count(outcome, verdict, who)


def cost_ns(numbers: Sources, lookups: list[Counted]) -> float:
    """CPU time of counting one; the best of some rounds, because other programs make a round worse, never better."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.thread_time_ns()
        count_all(numbers, lookups)
        rounds.append((time.thread_time_ns() - begun) / len(lookups))
    return min(rounds)


def count_for(numbers: Sources, lookups: list[Counted], rate: int, seconds: float) -> list[float]:
    """Count at this rate, as the agent's loop does; how long each turn was held up."""
    a_tick, held_up = int(rate * TICK_SECONDS), []
    done, at = time.monotonic(), 0
    begun = done
    for tick in range(int(seconds / TICK_SECONDS)):
        due = max(done, begun + tick * TICK_SECONDS)
        time.sleep(max(0.0, due - time.monotonic()))
        busy = busy_seconds()
        numbers.pulse.beat()
        count_all(numbers, lookups[at : at + a_tick])
        at = (at + a_tick) % (len(lookups) - a_tick)
        done = time.monotonic()
        held_up.append(max(0.0, done - due - (busy_seconds() - busy)))
    return held_up


def busy_seconds() -> float:
    """How long this thread has been on a CPU or waited for one that others had, see the kernel's sched-stats.rst."""
    _, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return (time.thread_time_ns() + int(waited)) / 1e9


def run(numbers: Sources, lookups: list[Counted], rate: int, seconds: float, program: str | None) -> Run:
    """Count while another process does this to the port."""
    pages = Pages(numbers)
    with Server(Address("127.0.0.1", 0), pages.by_path, numbers.traffic) as server:
        command = [sys.executable, "-c", program or "", str(server.address.port), str(SCRAPES_A_SECOND), str(seconds)]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        cpu = time.process_time()
        held_up = count_for(numbers, lookups, rate, seconds)
        cpu = time.process_time() - cpu
        said, _ = other.communicate(timeout=60)
    told = json.loads(said) if said.strip() else None
    scraped = Scraped(told["took"], told["bytes"]) if told else None
    return Run(held_up, cpu, int(rate * TICK_SECONDS) * len(held_up), scraped)


def render_ms(numbers: Sources) -> float:
    """CPU time of one scrape, without the network."""
    best = []
    for _ in range(10):
        pages = Pages(numbers)
        begun = time.thread_time_ns()
        pages.metrics()
        best.append((time.thread_time_ns() - begun) / 1e6)
    return min(best)


def series(numbers: Sources) -> int:
    """How many there are."""
    lines = Pages(numbers).metrics().body.decode().splitlines()
    return sum(not line.startswith("#") for line in lines)


def rows(workloads: int, found: list[Outcome], rate: int, seconds: float) -> list[Figure]:
    """All figures for so many workloads."""
    numbers, name = sources(workloads), f"{workloads} workloads"
    lookups = [(one, explain(one), who_is(index, workloads)) for index, one in enumerate(found)]
    warm, cold = cost_ns(numbers, lookups[:SHORT]), cost_ns(numbers, lookups)
    quiet = run(numbers, lookups, rate, seconds, None)
    asked = run(numbers, lookups, rate, seconds, SCRAPER)
    attacked = run(numbers, lookups, rate, seconds, ATTACKER)
    scraped = asked.scraped or Scraped([0.0], 0)
    target = f"<= {BUDGET_NS} ns" if not workloads else ""
    return [
        Figure(f"{name}: counting a lookup, in cache", f"{warm:.0f} ns", target, warm <= BUDGET_NS if target else None),
        Figure(f"{name}: the same, among {LOOKUPS} others", f"{cold:.0f} ns"),
        Figure(f"{name}: series", str(series(numbers))),
        Figure(f"{name}: a scrape, CPU", f"{render_ms(numbers):.1f} ms"),
        Figure(f"{name}: a scrape, size", f"{scraped.size_bytes / 1024:.0f} KiB"),
        Figure(f"{name}: a scrape at {rate}/s, answered in", f"{1e3 * median(scraped.seconds):.0f} ms"),
        Figure(f"{name}: loop held up, nobody asks", held_up(quiet)),
        Figure(f"{name}: loop held up, {SCRAPES_A_SECOND} scrapes/s", held_up(asked)),
        Figure(f"{name}: loop held up, attacked", held_up(attacked)),
        Figure(f"{name}: CPU of the attack", f"{(attacked.cpu_seconds - quiet.cpu_seconds) / seconds:.1%} of one"),
    ]


def held_up(one: Run) -> str:
    """Turns, in the order of their delay."""
    times = sorted(one.held_up_seconds)
    words = (f"{1e3 * times[len(times) * percent // 100]:.1f} ms at {percent} %" for percent in (50, 90, 99))
    return ", ".join(words)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=int, default=50_000, help="lookups a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run (%(default)s)")
    parser.add_argument("--workloads", type=int, nargs="*", default=[0, 200], help="(%(default)s)")
    given = parser.parse_args()
    found = outcomes()
    freeze_gc()
    figures = [figure for one in given.workloads for figure in rows(one, found, given.rate, given.seconds)]
    print(table(figures))


if __name__ == "__main__":
    main()
