"""How dnstrail ends, whatever it is doing and whoever ends it; and that nobody who reads its output can keep it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import dns.message
import pytest

from agent.lab import VIP, Lab, drop_queries, wait_until
from agent.lab.namespaces import udp_socket
from agent.lab.processes import PATIENCE
from tests.kernel.conftest import ALONE, DNSTRAIL, EVERY_FAILURE, Line, Watch, end_all

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
EXIT_SECONDS = 2.0 * PATIENCE
RUN = [*DNSTRAIL, "run", *ALONE, *EVERY_FAILURE]
READY_SECONDS = 20.0 * PATIENCE
LINE_SECONDS = 15.0 * PATIENCE
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
MAX_SESSIONS = 65_536
"""The default of --max-sessions."""
BURSTS = 16
IDLE_SECONDS = min(0.02 * PATIENCE, 0.06)
"""It works for less than this in a tenth of a second when nothing waits."""
CPUCLOCK_SCHED = 2
"""See clock_getcpuclockid(3)."""
GET_FD_BY_ID = {"prog": 13, "map": 14, "link": 30}
"""enum bpf_cmd: BPF_PROG_GET_FD_BY_ID and so on."""
SUMS = re.compile(r"(\d+) sessions from (\d+) records; (\d+) records lost")
WITHOUT_LINE = re.compile(r"(\d+) open sessions have no line")
LINES_LOST = re.compile(r"(\d+) lines lost")
Start = Callable[..., Watch]
KernelObject = tuple[str, int]


class Sums(NamedTuple):
    """What it says of itself at the end."""

    sessions: int
    records: int
    lost: int
    without_line: int
    lines_lost: int


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=2) as lab:
        yield lab


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    end_all(processes)


def sums(diagnostics: str) -> Sums:
    found = SUMS.search(diagnostics)
    assert found is not None, diagnostics
    without_line = sum(map(int, WITHOUT_LINE.findall(diagnostics)))
    return Sums(*map(int, found.groups()), without_line, sum(map(int, LINES_LOST.findall(diagnostics))))


def stop(process: subprocess.Popen[bytes]) -> float:
    """End it as Kubernetes does; the seconds that took, without those in which this machine had no CPU for it."""
    begun, waited = time.monotonic(), queued_seconds(process.pid)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: has_ended(process.pid), "it to end", seconds=READY_SECONDS)
    took = time.monotonic() - begun - (queued_seconds(process.pid) - waited)
    assert process.wait() == 0
    return took


def queued_seconds(pid: int) -> float:
    """How long its first thread was ready to run and did not (Documentation/scheduler/sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def has_ended(pid: int) -> bool:
    """Whether it is a zombie: it stays one until it is waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def query(number: int) -> bytes:
    return dns.message.make_query(f"n{number}.default.svc.cluster.local", "A", id=number & 0xFFFF).to_wire()


def has_lines(dnstrail: Watch, count: int, seconds: float = LINE_SECONDS) -> None:
    """Wait for so many lines, whosesoever: to read and parse them while they come would be a load of its own."""
    wait_until(lambda: dnstrail.out.read_bytes().count(b"\n") >= count, f"{count} lines", seconds=seconds)


def ask_in_vain(lab: Lab, count: int) -> None:
    """Send queries, each a lookup of its own."""
    with udp_socket(lab.clients[0].name, socket.AF_INET) as sock:
        for number in range(count):
            sock.sendto(query(number), (VIP, 53))


def leave_open(lab: Lab, dnstrail: Watch, count: int) -> None:
    """Send so many queries in vain, no faster than they are taken in."""
    for _ in range(BURSTS):
        ask_in_vain(lab, count // BURSTS + 1)
        wait_until(lambda: is_idle(dnstrail.process.pid), "it to take them in", seconds=3 * LINE_SECONDS)


def is_idle(pid: int) -> bool:
    """Whether a tenth of a second passes in which it has time to spare."""
    clock = ~pid << 3 | CPUCLOCK_SCHED
    before = time.clock_gettime(clock)
    time.sleep(0.1)
    return time.clock_gettime(clock) - before < IDLE_SECONDS


def kernel_objects(pid: int) -> set[KernelObject]:
    """What a process holds of BPF: kind and number of each program, map and link."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        fields = dict(line.split(":", 1) for line in text_of(path).splitlines() if ":" in line)
        kind = next((kind for kind in ("link", "map", "prog") if f"{kind}_id" in fields), None)
        if kind is not None:
            found.add((kind, int(fields[f"{kind}_id"])))
    return found


def text_of(path: Path) -> str:
    """Of a file under /proc; nothing if it is gone since it was listed."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def exists(one: KernelObject) -> bool:
    """Whether the kernel still has it: attached, pinned or open somewhere."""
    kind, number = one
    attributes = (ctypes.c_uint32 * 32)(number)
    libc = ctypes.CDLL(None, use_errno=True)
    command = GET_FD_BY_ID[kind]
    descriptor = libc.syscall(BPF_SYSCALL[platform.machine()], command, attributes, ctypes.sizeof(attributes))
    if descriptor >= 0:
        os.close(descriptor)
        return True
    assert ctypes.get_errno() == errno.ENOENT
    return False


def all_gone(objects: set[KernelObject]) -> bool:
    return not any(map(exists, objects))


def held_by(process: subprocess.Popen[bytes]) -> set[KernelObject]:
    """Its BPF objects, all kinds of them."""
    objects = kernel_objects(process.pid)
    assert {kind for kind, _ in objects} == {"prog", "map", "link"}
    assert all(map(exists, objects))
    return objects


class Load:
    """Healthy lookups at a steady rate, in the background: on a slow machine as many, over a longer time."""

    def __init__(self, lab: Lab, rate: int, seconds: float) -> None:
        self.rate, seconds = round(rate / PATIENCE), seconds * PATIENCE
        names = Path(lab.clients[1].directory, "names")
        names.write_text("".join(f"n{number}.default.svc.cluster.local A\n" for number in range(50_000)))
        pace = ["-Q", str(self.rate), "-l", f"{seconds:g}"]
        argv = ["dnsperf", "-s", VIP, "-d", str(names), *pace, "-c", "8", "-t", "2"]
        self._process = lab.clients[1].popen(argv, stdout=subprocess.PIPE)
        self._wait = seconds + 20 * PATIENCE

    def completed(self) -> int:
        """How many lookups were answered, once it has ended; all of them, or this machine is no measure."""
        text, _ = self._process.communicate(timeout=self._wait)
        figures = {name: int(value) for name, value in re.findall(r"Queries (sent|completed): +(\d+)", text)}
        assert figures["sent"] == figures["completed"], text
        return figures["completed"]


def test_sigterm_under_load_ends_within_two_seconds_and_marks_what_was_open(lab: Lab, watch: Start):
    unanswered = round(997 / PATIENCE)  # as many as have a line in time
    dnstrail = watch("--log-rate", "1000000")
    objects = held_by(dnstrail.process)
    with drop_queries(lab):
        ask_in_vain(lab, unanswered)
    load = Load(lab, rate=1000, seconds=4)
    has_lines(dnstrail, unanswered + 11)
    assert stop(dnstrail.process) < EXIT_SECONDS
    load.completed()
    told = sums(dnstrail.diagnostics())
    assert dnstrail.out.read_text().endswith("\n")
    assert (told.without_line, told.lines_lost) == (0, 0)
    open_ones = [
        line for line in dnstrail.lines(lab) if line["Question"]["Name"].startswith("n") and not answered(line)
    ]
    assert len(open_ones) in range(unanswered, unanswered + 100)
    for line in open_ones:
        assert line["Status"] == "Failed" or ended_while_open(line)
    wait_until(lambda: all_gone(objects), "the kernel to detach everything")


def answered(line: Line) -> bool:
    return line["Rcode"] is not None


def ended_while_open(line: Line) -> bool:
    evidence = line["Cause"]["Evidence"]
    return line["Status"] == "SampleLoss" and "the capture ended while the lookup was open" in evidence


@pytest.mark.slow  # 65,536 lookups are opened first
def test_sigterm_with_as_many_open_sessions_as_it_keeps_ends_within_two_seconds_and_counts_those_without_a_line(
    lab: Lab, watch: Start
):
    dnstrail = watch("--timeout", f"{120 * PATIENCE:g}", "--log-rate", "1000000")
    with drop_queries(lab):
        leave_open(lab, dnstrail, MAX_SESSIONS)
        assert stop(dnstrail.process) < EXIT_SECONDS
    assert_that_each_is_accounted_for(dnstrail)


@pytest.mark.slow
def test_sigterm_while_thousands_of_sessions_time_out_at_once_ends_within_two_seconds(lab: Lab, watch: Start):
    timeout_seconds = 25 * PATIENCE
    dnstrail = watch("--timeout", f"{timeout_seconds:g}", "--log-rate", "1000000")
    with drop_queries(lab):
        leave_open(lab, dnstrail, MAX_SESSIONS)
        has_lines(dnstrail, 3000, timeout_seconds + LINE_SECONDS)
        assert stop(dnstrail.process) < EXIT_SECONDS
    assert_that_each_is_accounted_for(dnstrail)


def assert_that_each_is_accounted_for(dnstrail: Watch) -> None:
    """By a line or by a number; and that there was no time for all."""
    told = sums(dnstrail.diagnostics())
    assert told.lost == 0
    assert told.sessions > MAX_SESSIONS
    assert told.without_line > 0
    assert len(dnstrail.lines()) + told.without_line + told.lines_lost == told.sessions


def test_sigkill_leaves_nothing_in_the_kernel(lab: Lab, watch: Start):
    dnstrail = watch()
    objects = held_by(dnstrail.process)
    pins = sorted(Path("/sys/fs/bpf").glob("*"))
    assert lab.clients[0].dig(NAME).returncode == 0
    dnstrail.process.kill()
    dnstrail.process.wait(READY_SECONDS)
    wait_until(lambda: all_gone(objects), "the kernel to detach everything")
    assert sorted(Path("/sys/fs/bpf").glob("*")) == pins


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_ended_while_it_loads_it_leaves_no_process_and_nothing_in_the_kernel(
    started: list[subprocess.Popen[bytes]], how: signal.Signals
):
    process = subprocess.Popen([*RUN], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started.append(process)
    wait_until(lambda: loader_of(process.pid) is not None, "the loader to start", seconds=READY_SECONDS)
    loader = loader_of(process.pid)
    assert loader is not None
    objects: set[KernelObject] = set()

    def has_loaded() -> bool:
        objects.update(kernel_objects(loader))
        return any(kind == "prog" for kind, _ in objects)

    wait_until(has_loaded, "the loader to load a program", seconds=READY_SECONDS)
    process.send_signal(how)
    process.wait(READY_SECONDS)
    wait_until(lambda: not is_running(loader), "the loader to end", seconds=READY_SECONDS)
    wait_until(lambda: all_gone(objects), "the kernel to detach everything")


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody waits for, which has no arguments any more."""
    return text_of(Path(f"/proc/{pid}/cmdline")) != ""


def loader_of(pid: int) -> int | None:
    """The child that compiles, once it is that program."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        if b"agent.capture.loader" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def test_the_next_start_takes_the_compiled_program_and_sees_the_same(
    lab: Lab, watch: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = tmp_path / "programs"
    monkeypatch.setenv("CACHE_DIRECTORY", str(kept))
    seen = []
    for spoilt in (False, False, True):
        if spoilt:
            (next(kept.glob("*.bpf"))).write_bytes(b"no program")
        dnstrail = watch()
        before = {path.name for path in kept.iterdir()}
        lab.clients[0].dig(NAME, "A", VIP, "+tcp")
        lab.clients[0].dig(NAME)
        has_lines(dnstrail, 2)
        stop(dnstrail.process)
        assert len(before) == 1
        seen.append(sorted((line["Protocol"], line["PathBitMap"], len(line["Path"])) for line in dnstrail.lines(lab)))
    assert seen == [seen[0]] * 3
    assert len(seen[0]) == 2


@pytest.mark.slow  # two agents under load, one behind the other
def test_a_restart_under_load_misses_only_the_time_between_and_accuses_nobody(lab: Lab, watch: Start):
    first = watch("--log-rate", "1000000")
    load = Load(lab, rate=500, seconds=16)
    has_lines(first, 503)
    stopped = time.monotonic()
    stop(first.process)
    second = watch("--log-rate", "1000000")
    gap = time.monotonic() - stopped
    completed = load.completed()
    has_lines(second, 251)
    stop(second.process)
    assert (sums(first.diagnostics()).lost, sums(second.diagnostics()).lost) == (0, 0)
    lines = first.lines(lab) + second.lines(lab)
    assert {line["Status"] for line in lines} <= {"Succeeded", "SampleLoss"}
    assert all(line["Cause"] is None or line["Cause"]["Code"] == "CaptureLoss" for line in lines)
    missed = completed - sum(line["Status"] == "Succeeded" for line in lines)
    assert 0 <= missed <= load.rate * gap + load.rate / 10


def test_a_reader_who_stops_reading_stops_neither_capture_nor_the_end(
    lab: Lab, started: list[subprocess.Popen[bytes]], tmp_path: Path
):
    """64 KiB fit the pipe and 8 MiB the queue; the rest is lost and counted, and nothing of it is a loss of capture."""
    err = tmp_path / "diagnostics"
    with err.open("w") as diagnostics:
        process = subprocess.Popen([*RUN, "--log-rate", "1000000"], stdout=subprocess.PIPE, stderr=diagnostics)
    started.append(process)
    wait_until(lambda: "ready in" in err.read_text(), "it to be ready", seconds=READY_SECONDS)
    completed = Load(lab, rate=1000, seconds=6).completed()
    assert stop(process) < EXIT_SECONDS
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    whole = [json.loads(line) for line in lines[:-1]]  # the last one may be cut
    told = sums(err.read_text())
    assert told.sessions >= completed
    assert told.lost == 0
    assert told.records >= 8 * completed
    assert told.lines_lost > 2000
    in_pipe = (64 << 10) // 2500
    assert completed <= told.lines_lost + len(lines)
    assert told.lines_lost + len(whole) <= told.sessions + in_pipe
    assert "nobody reads stdout" in err.read_text()


def test_a_reader_who_comes_back_gets_whole_lines_again(
    lab: Lab, started: list[subprocess.Popen[bytes]], tmp_path: Path
):
    err = tmp_path / "diagnostics"
    with err.open("w") as diagnostics:
        process = subprocess.Popen([*RUN, "--log-rate", "1000000"], stdout=subprocess.PIPE, stderr=diagnostics)
    started.append(process)
    wait_until(lambda: "ready in" in err.read_text(), "it to be ready", seconds=READY_SECONDS)
    completed = Load(lab, rate=500, seconds=2).completed()
    assert process.stdout is not None
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.extend(process.stdout or ()))
    reader.start()
    wait_until(lambda: len(received) >= completed, "all the lines", seconds=LINE_SECONDS)
    stop(process)
    reader.join(LINE_SECONDS)
    assert [json.loads(line).get("Status") for line in received].count("Succeeded") >= completed
    assert sums(err.read_text()).lines_lost == 0


def test_diagnostics_that_nobody_reads_stop_nothing(lab: Lab, started: list[subprocess.Popen[bytes]], tmp_path: Path):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    out = tmp_path / "lines"
    with out.open("w") as lines:
        process = subprocess.Popen([*RUN], stdout=lines, stderr=writer)
    started.append(process)
    os.close(writer)

    def is_seen() -> bool:
        lab.clients[0].dig(NAME)
        return bool(out.read_text())

    wait_until(is_seen, "it to see a lookup", seconds=READY_SECONDS)
    assert stop(process) < EXIT_SECONDS
    os.close(reader)


def test_a_reader_who_leaves_ends_it_quietly(lab: Lab, started: list[subprocess.Popen[bytes]], tmp_path: Path):
    err = tmp_path / "diagnostics"
    with err.open("w") as diagnostics:
        process = subprocess.Popen([*RUN], stdout=subprocess.PIPE, stderr=diagnostics)
    started.append(process)
    wait_until(lambda: "ready in" in err.read_text(), "it to be ready", seconds=READY_SECONDS)
    assert process.stdout is not None
    process.stdout.close()

    def notices() -> bool:
        lab.clients[0].dig(NAME)
        return process.poll() is not None

    wait_until(notices, "it to end", seconds=LINE_SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in err.read_text()
