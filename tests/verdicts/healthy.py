"""Healthy lookups, and nothing else: `python -m tests.verdicts.healthy [--lookups N] [--rate N]`.

Nobody loses anything here, so every session has to be a success without a cause. A node for each data plane, two of
them at work at a time, with clients and servers that do what they do in a cluster: pairs by getaddrinfo(),
single lookups, long-lived TCP connections, answers of the server itself, of its cache and of an upstream, IPv4 and
IPv6, and on some nodes sniffers on every device. Exit 1 unless there is a session for each lookup, and none of them,
nor of what servers and proxies asked for their sake, is Failed, SampleLoss, or has a cause.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from agent.lab import Lab, LabError, Pod, wait_until
from agent.lab.processes import PATIENCE
from tests.kernel.conftest import DNSTRAIL, EVERY_FAILURE
from tests.verdicts.campaign import alone
from tests.verdicts.nodes import KINDS, NODES, RATE, Built, Kind, Node

LOOKUPS = 100_000
ROUND = 2_500
"""Lookups in a row, before the agent is waited for: what it records of them fits into its ring even if it sleeps."""
AT_WORK = 2
"""Nodes."""
LABEL = re.compile(r"k(\d+)-[^.]+\.n(\d+)-\d+\.")
CHUNK_BYTES = 1 << 20
RESERVE_SECONDS = 60.0 * PATIENCE
READY_SECONDS = 20.0 * PATIENCE
SETTLE_SECONDS = 20.0 * PATIENCE
QUIET_SECONDS = 1.5 * PATIENCE
MISSED_SHARE = 1e-4
"""Of the records: that the kernel skips a run because an interrupt hit the program at work cannot be helped. A full
ring loses thousands."""
REPEATS = 4
"""How often a cached name is asked for in a round: so rarely that its session is over until then."""
GETADDRINFO = """
import socket, sys, time
name, count, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
begun = time.monotonic()
for number in range(count):
    time.sleep(max(0.0, begun + number / rate - time.monotonic()))
    socket.getaddrinfo(name.replace("N", f"{number:06d}", 1), 53, type=socket.SOCK_DGRAM)
"""


# --- what the agent says


class Question(msgspec.Struct, rename="pascal"):
    name: str


class Cause(msgspec.Struct, rename="pascal"):
    code: str


class Hop(msgspec.Struct, rename="pascal"):
    netns: int


class Client(msgspec.Struct, rename="pascal"):
    netns: int | None


class Session(msgspec.Struct, rename="pascal"):
    """What of a session line counts here."""

    status: str
    question: Question | None
    cause: Cause | None
    findings: list[str]
    client: Client
    upstream_of: dict[str, object] | None
    path: list[Hop]


@dataclass
class Tally:
    """Sessions of one kind."""

    sessions: int = 0
    """Of clients."""
    exchanges: int = 0
    """Of servers, at servers of the same node, for the sake of a client's lookup."""
    alone: int = 0
    """Of servers too, but for whom is not known."""
    statuses: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)

    def add(self, session: Session, *, of_server: bool) -> None:
        """Count one."""
        self.sessions += not of_server
        self.exchanges += of_server and session.upstream_of is not None
        self.alone += of_server and session.upstream_of is None
        self.statuses[session.status] += 1
        self.findings.update(session.findings)
        if session.cause is not None:
            self.causes[session.cause.code] += 1


class Agent:
    """A dnstrail whose lines are counted as they come.

    They go to a file (4 KB each): dnstrail waits for no reader of a pipe, and this process has much else to do.
    """

    def __init__(self, folder: Path, labs: Sequence[Lab]) -> None:
        self.tallies: dict[str, Tally] = {one.name: Tally() for one in (*KINDS, *NODES)}
        """By kind of lookup, and by node."""
        self.examples: list[str] = []
        """The first lines that say that something went wrong."""
        self._servers = {pod.netns_id for lab in labs for pod in (*lab.servers, lab.upstream)}
        self._netns = self._servers | {pod.netns_id for lab in labs for pod in (lab.node, *lab.clients)}
        self._said = folder / "diagnostics"
        lines = folder / "lines"
        with self._said.open("w") as err, lines.open("wb") as out:
            argv = [
                *DNSTRAIL,
                "run",
                "--metrics-address=none",
                "--trace-socket=none",
                "--timeout",
                "5",
                "--log-rate",
                "1000000",
                *EVERY_FAILURE,
            ]
            self._process = subprocess.Popen(argv, stdout=out, stderr=err)
        self._counter = threading.Thread(target=self._count_all, args=(lines,))
        self._counter.start()
        wait_until(lambda: "ready in" in self._said.read_text(), "the agent to be ready", seconds=READY_SECONDS)

    @property
    def sessions(self) -> int:
        """How many sessions of clients there were."""
        return sum(self.tallies[kind.name].sessions for kind in KINDS)

    def catch_up(self, lookups: int) -> None:
        """Return when there are so many sessions, or no more come."""
        deadline = time.monotonic() + SETTLE_SECONDS
        seen, quiet_since = self.sessions, time.monotonic()
        while seen < lookups and time.monotonic() < min(deadline, quiet_since + QUIET_SECONDS):
            time.sleep(0.05)
            if self.sessions != seen:
                seen, quiet_since = self.sessions, time.monotonic()

    def stop(self) -> str:
        """End it; its last words."""
        self._process.terminate()
        self._process.wait(SETTLE_SECONDS)
        self._counter.join(SETTLE_SECONDS)
        return self._said.read_text()

    def _count_all(self, path: Path) -> None:
        decoder, rest = msgspec.json.Decoder(Session), b""
        with path.open("rb") as file:
            while True:
                ended = self._process.poll() is not None
                chunk = file.read(CHUNK_BYTES)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    session = decoder.decode(line)
                    if any(hop.netns in self._netns for hop in session.path):
                        self._count(session, line)
                if ended and not chunk:
                    return
                time.sleep(0.02)

    def _count(self, session: Session, line: bytes) -> None:
        label = LABEL.match(session.question.name) if session.question else None
        names = (KINDS[int(label[1])].name, NODES[int(label[2])].name) if label else ("other",)
        of_server = session.client.netns in self._servers or session.upstream_of is not None
        for name in names:
            self.tallies.setdefault(name, Tally()).add(session, of_server=of_server)
        if (session.cause is not None or session.status != "Succeeded") and len(self.examples) < 5:
            self.examples.append(line.decode().strip())


# --- the lookups


@dataclass
class Load:
    """All lookups of one node in one turn."""

    node: Node
    lab: Lab
    within: Sequence[str]
    """What the clients' programs are started by."""
    folder: Path
    lookups: int
    turn: int
    """Each has names of its own, because addresses and ids are the same."""
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Start all kinds at once, and wait for their end."""
        kinds = [(number, kind) for number, kind in enumerate(KINDS) if self.node.server(self.lab, kind)]
        with ExitStack() as stack:
            running = [(kind, *stack.enter_context(self._started(number, kind))) for number, kind in kinds]
            deadline = time.monotonic() + self.lookups / self.node.rate + RESERVE_SECONDS
            for kind, process, said, count in running:
                process.wait(max(0.1, deadline - time.monotonic()))
                answered = self._answered(kind, process, said, count)
                for name in (kind.name, self.node.name):
                    self.asked[name] += count
                    self.answered[name] += answered

    @property
    def _node_number(self) -> int:
        return [node.name for node in NODES].index(self.node.name)

    @contextmanager
    def _started(self, number: int, kind: Kind) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
        count = max(2, round(self.lookups * kind.share / 2) * 2)
        said = self.folder / f"{self.lab.id}-{self.turn}-{number}.said"
        with said.open("w") as out:
            argv = [*self.within, *self._argv(number, kind, count)]
            yield self._client(number).popen(argv, stdout=out, stderr=out), said, count

    def _client(self, number: int) -> Pod:
        return self.lab.clients[number % len(self.lab.clients)]

    def _argv(self, number: int, kind: Kind, count: int) -> list[str]:
        rate = self.node.rate * kind.share
        server = self.node.server(self.lab, kind)
        label = f"n{self._node_number}-{self.turn}"
        if kind.mode == "pair":
            name = f"k{number}-N.{label}.{kind.zone}."
            program = [sys.executable, "-c", GETADDRINFO, name, str(count // 2), f"{rate / 2:.3f}"]
            return self._client(number).resolver_argv(program, nameserver=server)
        names = self.folder / f"{self.lab.id}-{self.turn}-{number}.names"
        different = max(2, 2 * (count // (2 * REPEATS))) if kind.repeated else count
        lines = (
            f"k{number}-{one % different:06d}.{label}.{kind.zone} {'AAAA' if one & 1 else 'A'}\n"
            for one in range(count)
        )
        names.write_text("".join(lines))
        family = "inet6" if ":" in server else "inet"
        argv = ["dnsperf", "-f", family, "-m", kind.mode, "-s", server, "-d", str(names), "-n", "1"]
        return [*argv, "-c", "4", "-T", "1", "-t", "5", "-Q", f"{max(1, round(rate))}"]

    @staticmethod
    def _answered(kind: Kind, process: subprocess.Popen[str], said: Path, count: int) -> int:
        if kind.mode == "pair":
            return count if process.returncode == 0 else 0
        found = re.search(r"Queries completed:\s+(\d+)", said.read_text())
        if found is None:
            raise LabError(f"dnsperf did not say what it did: {said.read_text().strip()[-200:]}")
        return int(found[1])


# --- the report


@dataclass
class Report:
    """What was asked, and what the agent said of it."""

    asked: Counter[str]
    answered: Counter[str]
    tallies: dict[str, Tally]
    examples: list[str]
    seconds: float
    last_words: str

    @property
    def records(self) -> tuple[int, int]:
        """How many the agent had, and how many it lost, by its own count."""
        found = re.search(r"from (\d+) records; (\d+) records lost\n?$", self.last_words)
        if found is None:
            raise LabError(f"the agent did not say its sums: {self.last_words.strip()[-200:]}")
        return int(found[1]), int(found[2])

    @property
    def mistakes(self) -> list[str]:
        """Everything that is not as it must be."""
        records, lost = self.records
        said = [f"{lost} records lost by the agent"] if lost > MISSED_SHARE * records else []
        for name, tally in self.tallies.items():
            if self.answered[name] != self.asked[name]:
                said.append(f"{name}: {self.asked[name] - self.answered[name]} lookups were really lost")
            if tally.sessions != self.asked[name] and name in self.asked:
                said.append(f"{name}: {tally.sessions} sessions of {self.asked[name]} lookups")
            said += [f"{name}: {count} {status}" for status, count in tally.statuses.items() if status != "Succeeded"]
            said += [f"{name}: {count} blamed of {code}" for code, count in tally.causes.items()]
        return said

    def __str__(self) -> str:
        head = f"{'':30}{'lookups':>9}{'answered':>10}{'sessions':>10}{'upstream':>10}{'alone':>7}"
        head += f"{'Succeeded':>11}{'Failed':>8}{'SampleLoss':>12}{'causes':>8}  findings"
        lines = [head, *(self._row(name, tally) for name, tally in self.tallies.items())]
        total = sum(self.asked[kind.name] for kind in KINDS)
        lines += ["", f"{total} lookups in {self.seconds:.0f} s; {self.last_words.strip().splitlines()[-1]}"]
        return "\n".join([*lines, *self.mistakes, *self.examples])

    def _row(self, name: str, tally: Tally) -> str:
        statuses = tally.statuses
        row = f"{name:30}{self.asked[name]:9}{self.answered[name]:10}"
        row += f"{tally.sessions:10}{tally.exchanges:10}{tally.alone:7}"
        row += f"{statuses['Succeeded']:11}{statuses['Failed']:8}{statuses['SampleLoss']:12}{tally.causes.total():8}  "
        return row + ", ".join(f"{count} {one}" for one, count in tally.findings.items())


def run(lookups: int = LOOKUPS, speed: float = 1.0) -> Report:
    """Look so many names up on all nodes, and count what the agent says.

    Args:
        lookups: On all nodes together.
        speed: How many times as fast as usual.
    """
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        folder = Path(directory)
        stack.enter_context(alone())
        nodes = [replace(node, rate=node.rate * speed) for node in NODES]
        built = [stack.enter_context(node.built()) for node in nodes]
        agent = Agent(folder, [lab for lab, _ in built])
        begun = time.monotonic()
        asked: Counter[str] = Counter()
        answered: Counter[str] = Counter()
        try:
            for number, loads in enumerate(turns(list(zip(nodes, built, strict=True)), folder, lookups)):
                if number * AT_WORK >= len(nodes) and sum(asked[kind.name] for kind in KINDS) >= lookups:
                    break
                with ThreadPoolExecutor(len(loads)) as pool:
                    list(pool.map(Load.run, loads))
                for load in loads:
                    asked += load.asked
                    answered += load.answered
                agent.catch_up(sum(asked[kind.name] for kind in KINDS))
        finally:
            last_words = agent.stop()
        return Report(asked, answered, agent.tallies, agent.examples, time.monotonic() - begun, last_words)


def turns(nodes: Sequence[tuple[Node, Built]], folder: Path, lookups: int) -> Iterator[list[Load]]:
    """Two nodes at work at a time, one after the other, without end; so many lookups in one round of all, or less."""
    count = min(ROUND // AT_WORK, -(-lookups // len(nodes)))
    order = itertools.cycle(nodes)
    loads = (Load(node, lab, within, folder, count, turn) for turn, (node, (lab, within)) in enumerate(order))
    while turn := list(itertools.islice(loads, AT_WORK)):
        yield turn


def main() -> int:
    parser = argparse.ArgumentParser(description="healthy lookups, none of which may be said to have failed")
    parser.add_argument("--lookups", type=int, default=LOOKUPS)
    parser.add_argument("--rate", type=float, default=RATE, help="lookups a second")
    options = parser.parse_args()
    report = run(options.lookups, options.rate / RATE)
    print(report)
    print(f"{os.uname().release}: {'good' if not report.mistakes else 'BAD'}")
    return 1 if report.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
