"""The figures of the budget: what was measured in words, its target, and whether it is met."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from load import Load
    from process import Memory, Sums

TARGET_RATE = 50_000
CPU_TARGET_US = 5.0
THROUGHPUT_TARGET = 0.90
FLOOD_TARGET = 0.95
RSS_TARGET_KIB = 80 * 1024
READY_TARGET_SECONDS = 2.0
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


def run_times(what: str, start: dict[str, tuple[int, int]], end: dict[str, tuple[int, int]]) -> list[Figure]:
    """How long one run of each BPF program took between two readings."""
    figures = []
    for name, (runs, ns) in sorted(end.items()):
        runs_before, ns_before = start.get(name, (0, 0))
        if runs > runs_before:
            each = (ns - ns_before) / (runs - runs_before)
            figures.append(Figure(f"BPF {name}: {what}", f"{each:.0f} ns/run, {runs - runs_before} runs"))
    return figures


def throughput_figures(alone: list[float], agent: list[Loaded], peer: list[float]) -> list[Figure]:
    """Saturation."""
    # A record that was lost cost less than one that was read: such a run cannot be within the budget.
    lost = any(one.sums.lost for one in agent)
    remark = ", records lost" if lost else ""
    free, watched, dumped = median(alone), median(one.load.rate for one in agent), median(peer)
    return [
        Figure("lookups/s without agent", f"{free:.0f} ({_spread(alone)})"),
        Figure("lookups/s with agent", f"{watched:.0f} ({_spread([one.load.rate for one in agent])})"),
        Figure("lookups/s with tcpdump", f"{dumped:.0f} ({_spread(peer)})"),
        _ratio(f"DNS throughput, agent/none{remark}", watched / free, THROUGHPUT_TARGET, invalid=lost),
        Figure("DNS throughput, tcpdump/none", f"{dumped / free:.3f}"),
        Figure("DNS throughput, agent/tcpdump", f"{watched / dumped:.3f}"),
    ]


def _spread(values: list[float]) -> str:
    return f"{min(values):.0f}..{max(values):.0f}"


def _ratio(name: str, value: float, target: float, *, invalid: bool = False) -> Figure:
    return Figure(name, f"{value:.3f}", f">= {target}", value >= target and not invalid)


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


def table(figures: list[Figure]) -> str:
    """The result for people."""
    words = {True: "ok", False: "MISS", None: ""}
    rows = [("figure", "measured", "target", ""), *((*one[:3], words[one.ok]) for one in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(text.rstrip() for text in texts)


def flood_figures(free: list[float], watched: list[float]) -> list[Figure]:
    """A flood that is no DNS."""
    return [
        Figure("flood packets/s without agent", f"{median(free):.0f} ({_spread(free)})"),
        Figure("flood packets/s with agent", f"{median(watched):.0f} ({_spread(watched)})"),
        Figure("flood, agent's cost for a packet", f"{1e9 / median(watched) - 1e9 / median(free):.0f} ns"),
        _ratio("flood, agent/none", median(watched) / median(free), FLOOD_TARGET),
    ]
