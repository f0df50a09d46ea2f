"""The agent as a process: start it, see what it costs, stop it, read its sums."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from agent.lab import LabError, wait_until
from agent.lab.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from subprocess import Popen

    from agent.lab import Lab

READY_SECONDS = 20.0 * PATIENCE
EXIT_SECONDS = 30.0 * PATIENCE
CPUCLOCK_SCHED = 2
QUIET_SHARE = 0.1
SCRAPE_SECONDS = 1.0
QUIET_SECONDS = 1.2
"""The agent may sleep for a second although something is left to do."""
SETTLE_SECONDS = 15.0 * PATIENCE
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_ENABLE_STATS = 32
OWN_COMMAND = Path(sys.executable).with_name("dnstrail")
PROBLEMS = ("--log", "problems")
BASE = ("--metrics-address=127.0.0.1:0", "--trace-socket=none", "--kubernetes=off")


def cpu_seconds_of(pid: int) -> float:
    """User and system time of all threads: the kernel's clock of that process, see clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


class Sums(NamedTuple):
    """What the agent says of itself when it ends, and the lines it printed."""

    sessions: int
    records: int
    lost: int
    lines: Counter[str]
    """How many lines there are of each status and cause."""


class Memory(NamedTuple):
    """From /proc/PID/status, KiB."""

    rss: int
    anon: int
    file: int
    shmem: int
    peak: int
    maps: int
    """The part of `rss` that is memory of BPF maps."""


class AgentProcess:
    """`dnstrail run` on this machine; it sees the lab's namespaces as it sees all others."""

    def __init__(
        self, lab: Lab, directory: Path, command: Path = OWN_COMMAND, options: Sequence[str] = PROBLEMS
    ) -> None:
        self._out = directory / "agent.out"
        self._said = directory / "agent.err"
        begun = time.monotonic()
        with self._out.open("w") as out, self._said.open("w") as err:
            self._process = lab.processes.popen([str(command), "run", *BASE, *options], stdout=out, stderr=err)
        wait_until(self._is_ready, "the agent to be ready", seconds=READY_SECONDS)
        self.wall_ready_seconds = time.monotonic() - begun
        self.pid = self._process.pid

    @property
    def said_ready_seconds(self) -> float:
        """By its own word."""
        return float(self._text(r"ready in ([0-9.]+) s"))

    def cpu_seconds(self) -> float:
        """User and system time of all its threads."""
        return cpu_seconds_of(self.pid)

    def share_of(self, work: Callable[[], object], reader: Popen[str] | None = None) -> float:
        """What it takes of a core while this is done; of another process too, if there is one."""
        pids = [self.pid] if reader is None else [self.pid, reader.pid]
        begun, before = time.monotonic(), sum(map(cpu_seconds_of, pids))
        work()
        return (sum(map(cpu_seconds_of, pids)) - before) / (time.monotonic() - begun)

    def memory(self) -> Memory:
        """Resident memory now."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
        fields = (int(found[name]) for name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"))
        return Memory(*fields, maps=self._maps_kib())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        address = self._text(r"metrics and health at (\S+)")
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=EXIT_SECONDS) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def sessions(self, status: str) -> int:
        """How many lookups ended so."""
        return round(self.metric("dnstrail_sessions_total", status=status))

    def wait_for_sessions(self, count: int, seconds: float) -> None:
        """Return when so many lookups are over, or after so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.metric("dnstrail_sessions_total") < count:
            time.sleep(SCRAPE_SECONDS)

    def output(self) -> tuple[int, int]:
        """Lines and bytes that it has printed."""
        text = self._out.read_bytes()
        return text.count(b"\n"), len(text)

    def settle(self) -> float:
        """Return when it has worked off what it has, after how many seconds: at most SETTLE_SECONDS."""
        begun = time.monotonic()
        while time.monotonic() < begun + SETTLE_SECONDS:
            before = self.cpu_seconds()
            time.sleep(QUIET_SECONDS)
            if self.cpu_seconds() - before < QUIET_SHARE * QUIET_SECONDS:
                break
        return time.monotonic() - begun

    def stop(self) -> Sums:
        """End it and read what it said."""
        self._process.terminate()
        self._process.wait(EXIT_SECONDS)
        pattern = r"(\d+) sessions from (\d+) records; (\d+) records lost"
        found = re.search(pattern, self._said.read_text())
        if found is None:
            raise LabError(f"the agent did not say its sums: {self._said.read_text().strip()[-300:]}")
        return Sums(int(found[1]), int(found[2]), int(found[3]), self._lines())

    def programs(self) -> dict[str, tuple[int, int]]:
        """Runs and nanoseconds of each attached program; zeros unless `bpf_statistics` is on."""
        told = [_fdinfo(path) for path in Path(f"/proc/{self.pid}/fdinfo").iterdir()]
        names = {one["prog_id"]: one["tp_name"] for one in told if "tp_name" in one and "prog_id" in one}
        return {
            names.get(one["prog_id"], one["prog_id"]): (int(one["run_cnt"]), int(one["run_time_ns"]))
            for one in told
            if "run_cnt" in one
        }

    def _maps_kib(self) -> int:
        """Resident size of the mappings of BPF maps, from smaps."""
        total, in_map = 0, False
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                in_map = "bpf-map" in line
            elif in_map and line.startswith("Rss:"):
                total += int(line.split()[1])
        return total

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise LabError(f"the agent ended: {self._said.read_text().strip()[-300:]}")
        return "ready in" in self._said.read_text()

    def _text(self, pattern: str) -> str:
        found = re.search(pattern, self._said.read_text())
        if found is None:
            raise LabError(f"the agent did not say what the bench asks for: {pattern}")
        return found[1]

    def _lines(self) -> Counter[str]:
        with self._out.open() as lines:
            return Counter(_kind(line) for line in map(json.loads, lines) if "Kind" not in line)


@contextmanager
def running(
    lab: Lab, directory: Path, command: Path = OWN_COMMAND, options: Sequence[str] = PROBLEMS
) -> Iterator[AgentProcess]:
    """Let the agent run meanwhile; whoever wants its sums stops it before the end.

    Args:
        lab: where DNS happens.
        directory: for what the agent prints.
        command: `dnstrail` of this checkout, or of another one.
        options: of `dnstrail run`.
    """
    agent = AgentProcess(lab, directory, command, options)
    try:
        yield agent
    finally:
        agent._process.kill()  # noqa: SLF001  same module
        agent._process.wait(EXIT_SECONDS)  # noqa: SLF001  same module


@contextmanager
def tracing(lab: Lab, path: Path) -> Iterator[Popen[str]]:
    """Let `dnstrail trace` read from the agent that listens there; its rows are thrown away."""
    with Path(os.devnull).open("w") as nowhere:
        reader = lab.processes.popen(
            [str(OWN_COMMAND), "trace", "--healthy-rate=100", f"--trace-socket={path}"], stdout=nowhere
        )
    # What it takes to start is not what it costs.
    time.sleep(QUIET_SECONDS)
    try:
        yield reader
    finally:
        reader.kill()
        reader.wait(EXIT_SECONDS)


@contextmanager
def bpf_statistics() -> Iterator[bool]:
    """Let the kernel count the run time of BPF programs until the end, whatever it is; False where it cannot."""
    number = BPF_SYSCALL.get(platform.machine())
    argument = ctypes.c_uint32(0)
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.sizeof(argument)
    fd = -1 if number is None else libc.syscall(number, BPF_ENABLE_STATS, ctypes.byref(argument), size)
    try:
        yield fd >= 0
    finally:
        if fd >= 0:
            os.close(fd)


def _fdinfo(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _kind(line: dict[str, object]) -> str:
    cause = line.get("Cause")
    code = cause["Code"] if isinstance(cause, dict) else "no cause"
    return f"{line['Status']}/{code}"
