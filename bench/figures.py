"""The figures of the budget: what was measured in words, its target, and whether it is met."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.load import Load
    from bench.process import Memory, Sums

TARGET_RATE = 50_000
CPU_TARGET_US = 5.0
THROUGHPUT_TARGET = 0.90
FLOOD_TARGET = 0.95
RSS_TARGET_KIB = 80 * 1024
READY_TARGET_SECONDS = 2.0
IDLE_TARGET, QUIET_TARGET = 0.003, 0.005
TRACE_TARGET = 0.05
FAILING_TARGET_US = 50.0
LOG_TARGET = 0.6
LINES_A_SECOND, BYTES_A_SECOND = 100, 1 << 20
"""What is written to stdout at most, as dnstrail ships."""
GROWTH_TARGET = 1.1
"""How much more a lookup may cost where there is more of something else: what runs of one thing differ by."""
NEARLY = 0.98
"""A load that came this near to the rate asked for counts as that rate."""
MET = {True: "met", False: "**missed**", None: ""}


class Figure(NamedTuple):
    """One row of the result."""

    name: str
    measured: str
    target: str = ""
    ok: bool | None = None
    """None: there is no target, or it could not be tried."""


class Part(NamedTuple):
    """Figures that belong together."""

    name: str
    text: str
    figures: list[Figure]


class Quiet(NamedTuple):
    """What the agent takes of a core while little happens."""

    rate: int
    share: float


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
    states: dict[str, int]
    """Lookups by status, as the metrics tell them."""
    lines: int
    printed_bytes: int
    told_seconds: float
    """What was printed, and from the beginning of the load until then."""

    @property
    def is_complete(self) -> bool:
        """Whether the agent tells of each lookup what the load generator tells of it, and lost nothing."""
        told = self.states["Succeeded"], self.states["Failed"], self.sums.lost
        return told == (self.load.completed, self.load.lost, 0)

    @property
    def cpu_us(self) -> float:
        """CPU of the agent for one lookup."""
        return 1e6 * self.cpu_seconds / self.load.sent


class Saturated(NamedTuple):
    """Lookups a second at saturation, round by round."""

    alone: list[float]
    agent: list[Loaded]
    tcpdump: list[float]
    empty: list[float]
    """With programs that do nothing where the agent's are."""


def run_times(what: str, start: dict[str, tuple[int, int]], end: dict[str, tuple[int, int]]) -> list[Figure]:
    """How long one run of each BPF program took between two readings."""
    figures = []
    for name, (runs, ns) in sorted(end.items()):
        runs_before, ns_before = start.get(name, (0, 0))
        if runs > runs_before:
            each = (ns - ns_before) / (runs - runs_before)
            figures.append(Figure(f"BPF {name}: {what}", f"{each:.0f} ns/run, {runs - runs_before} runs"))
    return figures


def throughput_figures(found: Saturated) -> list[Figure]:
    """Saturation."""
    # A record that was lost cost less than one that was read: such a run cannot be within the budget.
    lost = any(one.sums.lost for one in found.agent)
    remark = ", records lost" if lost else ""
    watched = [one.load.rate for one in found.agent]
    rates = {
        "without agent": found.alone,
        "with agent": watched,
        "with tcpdump": found.tcpdump,
        "with empty programs": found.empty,
    }
    free, dumped = median(found.alone), median(found.tcpdump)
    return [
        *(Figure(f"lookups/s {what}", f"{median(each):.0f} ({_spread(each)})") for what, each in rates.items()),
        _ratio(f"DNS throughput, agent/none{remark}", median(watched) / free, THROUGHPUT_TARGET, invalid=lost),
        Figure("DNS throughput, tcpdump/none", f"{dumped / free:.3f}"),
        Figure("DNS throughput, empty programs/none", f"{median(found.empty) / free:.3f}"),
        Figure("DNS throughput, agent/tcpdump", f"{median(watched) / dumped:.3f}"),
    ]


def _spread(values: list[float]) -> str:
    return f"{min(values):.0f}..{max(values):.0f}"


def _ratio(name: str, value: float, target: float, *, invalid: bool = False) -> Figure:
    return Figure(name, f"{value:.3f}", f">= {target}", value >= target and not invalid)


def run_figures(name: str, one: Loaded, rate: int | None, legs: int = 1) -> list[Figure]:
    """A run under load: losses, sessions, CPU.

    Args:
        name: of the run.
        one: what was measured.
        rate: lookups a second that were asked for; None for as many as go, which has no targets.
        legs: lookups that each of the client's becomes: what one costs is that of each.
    """
    reached = rate is not None and one.load.rate >= NEARLY * rate
    states = ", ".join(f"{count} {status}" for status, count in one.states.items() if count) or "none"
    # Records that were lost cost nothing: only a run that lost none can be within the budget.
    each = one.cpu_us / legs
    within = each <= CPU_TARGET_US and not one.sums.lost
    return [
        Figure(f"{name}: lookups", f"{one.load.sent} sent, {one.load.lost} unanswered, {one.load.rate:.0f}/s"),
        Figure(
            f"{name}: sessions",
            states,
            "as the generator" if legs == 1 else "",
            one.is_complete if reached and legs == 1 else None,
        ),
        Figure(
            f"{name}: records lost",
            f"{one.sums.lost} of {one.sums.records + one.sums.lost}",
            "0",
            _of(tried=reached, met=not one.sums.lost),
        ),
        Figure(
            f"{name}: agent CPU a lookup",
            f"{one.cpu_us:.1f} µs",
            f"<= {CPU_TARGET_US:g} µs",
            _of(tried=reached, met=within),
        ),
        Figure(f"{name}: worked on after the load", f"{one.settle_seconds:.1f} s"),
    ]


def _of(*, tried: bool, met: bool) -> bool | None:
    """Whether a target is met; None where it was not tried."""
    return met if tried else None


def trace_figures(shares: list[Quiet]) -> list[Figure]:
    """While somebody looks on."""
    return [
        Figure(
            f"trace at {one.rate} lookups/s: CPU of it and of the agent for it",
            f"{one.share:.1%} of a core",
            f"<= {TRACE_TARGET:.0%}",
            one.share <= TRACE_TARGET,
        )
        for one in shares
    ]


def quiet_figures(shares: list[Quiet]) -> list[Figure]:
    """While little happens."""
    return [
        Figure(
            f"agent CPU at {one.rate} lookups/s" if one.rate else "agent CPU idle",
            f"{one.share:.2%} of a core",
            f"<= {target:.1%}",
            one.share <= target,
        )
        for one, target in zip(shares, (IDLE_TARGET, QUIET_TARGET), strict=True)
    ]


def failing_figures(name: str, one: Loaded) -> list[Figure]:
    """Lookups that are lost: none without being counted, at a bounded price."""
    told = sum(one.states.values())
    seconds = one.told_seconds
    missing = one.load.sent - told
    each = one.cpu_us
    limit = LINES_A_SECOND * (seconds + 1), BYTES_A_SECOND * (seconds + 1)
    return [
        Figure(
            f"{name}: lookups",
            f"{one.load.sent} sent, {one.load.lost} unanswered, {one.load.sent / one.load.seconds:.0f}/s",
        ),
        Figure(
            f"{name}: lookups without a session",
            f"{missing}; records lost and counted: {one.sums.lost}",
            "none uncounted",
            missing <= 0 or one.sums.lost > 0,
        ),
        Figure(
            f"{name}: agent CPU a lookup", f"{each:.1f} µs", f"<= {FAILING_TARGET_US:g} µs", each <= FAILING_TARGET_US
        ),
        Figure(
            f"{name}: lines",
            f"{one.lines} lines, {one.printed_bytes >> 10} KiB in {seconds:.0f} s",
            f"<= {LINES_A_SECOND}/s, {BYTES_A_SECOND >> 20} MiB/s",
            one.lines <= limit[0] and one.printed_bytes <= limit[1],
        ),
    ]


def growth_figures(found: dict[int, list[float]], rate: int) -> list[Figure]:
    """What a lookup costs among so many more namespaces, compared with none."""
    figures = []
    least = median(next(iter(found.values())))
    for count, costs in found.items():
        cost = median(costs)
        figures.append(
            Figure(
                f"{count} more namespaces: agent CPU a lookup at {rate}/s",
                f"{cost:.1f} µs ({min(costs):.1f}..{max(costs):.1f})",
                f"<= {GROWTH_TARGET} of none" if count else "",
                cost <= GROWTH_TARGET * least if count else None,
            )
        )
    return figures


def log_figures(name: str, one: Loaded) -> list[Figure]:
    """A line for each lookup."""
    share = one.cpu_seconds / one.load.seconds
    return [
        Figure(f"{name}: lines", f"{one.lines} of {one.load.sent}", "all", one.lines >= one.load.sent),
        Figure(f"{name}: records lost", f"{one.sums.lost}", "0", not one.sums.lost),
        Figure(f"{name}: agent CPU", f"{share:.0%} of a core", f"<= {LOG_TARGET:.0%}", share <= LOG_TARGET),
    ]


def peer_figures(rates: dict[str, list[float]], watched: list[float]) -> list[Figure]:
    """What CoreDNS keeps of its throughput with a plugin, and with the agent beside it."""
    plain = median(rates[""])
    rows = {f"CoreDNS with `{plugin}`": found for plugin, found in rates.items() if plugin}
    rows["CoreDNS, dnstrail beside it"] = watched
    return [
        Figure("CoreDNS: lookups/s", f"{plain:.0f} ({_spread(rates[''])})"),
        *(
            Figure(f"{name}: throughput kept", f"{median(found) / plain:.3f} ({_spread(found)})")
            for name, found in rows.items()
        ),
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
    parts = {"anon": memory.anon, "file": memory.file, "shmem": memory.shmem, "of it BPF maps": memory.maps}
    told = ", ".join(f"{name} {kib / 1024:.0f}" for name, kib in parts.items())
    return f"{memory.rss / 1024:.0f} MiB ({told})"


def start_figures(runs: list[Loaded]) -> list[Figure]:
    """Start-up."""
    first, *others = (one.wall_ready_seconds for one in runs)
    target = f"<= {READY_TARGET_SECONDS:g} s"
    figures = [Figure("ready, at the first start", f"{first:.2f} s", target, first <= READY_TARGET_SECONDS)]
    if others:
        again = median(others)
        name = "ready, with the compiled program kept"
        figures.append(Figure(name, f"{again:.2f} s", target, again <= READY_TARGET_SECONDS))
    return figures


def table(figures: list[Figure]) -> str:
    """The result for people."""
    words = {True: "ok", False: "MISS", None: ""}
    rows = [("figure", "measured", "target", ""), *((*one[:3], words[one.ok]) for one in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(text.rstrip() for text in texts)


def flood_figures(name: str, alone: tuple[list[float], list[float]], *, has_target: bool) -> list[Figure]:
    """A flood that is no DNS."""
    free, watched = (median(found) for found in alone)
    ratio = watched / free
    return [
        Figure(f"{name}: packets/s without agent", f"{free:.0f} ({_spread(alone[0])}), {1e6 / free:.1f} µs each"),
        Figure(f"{name}: packets/s with agent", f"{watched:.0f} ({_spread(alone[1])})"),
        Figure(f"{name}: agent's cost for a packet", f"{1e9 / watched - 1e9 / free:.0f} ns"),
        _ratio(f"{name}: agent/none", ratio, FLOOD_TARGET)
        if has_target
        else Figure(f"{name}: agent/none", f"{ratio:.3f}"),
    ]
