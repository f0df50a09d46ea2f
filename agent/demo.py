"""`dnstrail demo`: real lookups in a lab, real faults one after the other, and what the agent said of each."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from agent.kernel.errors import CaptureError
from agent.lab import (
    VIP,
    VIP6,
    Lab,
    LabError,
    closed_port,
    drop_first_query,
    drop_queries,
    drop_replies,
    wait_until,
)
from agent.session.outcome import Bit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from agent.lab import Translation

TIMEOUT_SECONDS = 3
DURATION_SECONDS = 60
"""The agent ends by itself after so long, whatever becomes of us."""
LOG_RATE = 100_000
"""Whatever else happens on the machine must not hold back the lab's lines."""
READY_SECONDS = 40.0
LINES_SECONDS = TIMEOUT_SECONDS + 5.0
END_SECONDS = 10.0

ANSWERED = Bit.SQ | Bit.CQ | Bit.CR | Bit.SR
UPSTREAM = Bit.FQ | Bit.FR
"""The lab's servers cache nothing: what they do not know themselves they ask every time."""
ROW = "{:<46} {:<10} {:>6}  {:<14} {}"


class Expected(NamedTuple):
    """What the agent must say of a step."""

    status: str
    path: Bit
    cause: str | None


FINE = Expected("Succeeded", ANSWERED, None)
FORWARDED = Expected("Succeeded", ANSWERED | UPSTREAM, None)


class Step(NamedTuple):
    """One look-up, perhaps with a fault. No two steps look up the same name and type: that is what tells them apart."""

    done: str
    name: str
    types: tuple[str, ...]
    look_up: Callable[[Lab, Step], object]
    expected: Expected = FINE
    fault: Callable[[Lab], AbstractContextManager[object]] = contextlib.nullcontext


Line = dict[str, Any]
"""A session line, as `dnstrail run -o json` writes it."""


class Row(NamedTuple):
    """A step beside what was said of it; None when nothing was."""

    step: Step
    rdtype: str
    line: Line | None

    @property
    def recognised(self) -> bool:
        """Whether the agent said what it had to say."""
        return self.line is not None and said(self.line) == self.step.expected


def said(line: Line) -> Expected:
    """The part of a session line that is known beforehand."""
    cause = line["Cause"]
    return Expected(line["Status"], Bit(line["PathBitMap"]), cause and cause["Code"])


def dig(lab: Lab, step: Step) -> None:
    """Ask the Service over IPv4, once."""
    lab.clients[0].dig(step.name, step.types[0], VIP)


def dig6(lab: Lab, step: Step) -> None:
    """Ask the Service over IPv6, once."""
    lab.clients[0].dig(step.name, step.types[0], VIP6)


def getaddrinfo(lab: Lab, step: Step) -> None:
    """Resolve as a program does, by the C library."""
    family = socket.AF_UNSPEC if len(step.types) > 1 else socket.AF_INET
    lab.clients[0].resolve(step.name, family, options="timeout:1 attempts:2")


@contextlib.contextmanager
def left_stopped(lab: Lab) -> Iterator[None]:
    """Suspend the server for good: a late answer would be another story. It dies with the lab."""
    lab.servers[0].stop()
    yield


STEPS = (
    Step("A by dig, IPv4", "redis-master.default.svc.cluster.local", ("A",), dig),
    Step("AAAA by dig, IPv6", "redis-master.default.svc.cluster.local", ("AAAA",), dig6),
    Step("getaddrinfo() of the C library", "api.shop.svc.cluster.local", ("A", "AAAA"), getaddrinfo),
    Step("a name that does not exist", "no-such-service.default.svc.cluster.local", ("A",), dig),
    Step("a name the upstream knows", "www.upstream.test", ("A",), dig, FORWARDED),
    Step(
        "FAULT: a policy drops the query",
        "kubernetes.default.svc.cluster.local",
        ("A",),
        dig,
        Expected("Failed", Bit.SQ | Bit.QUERY_DROPPED, "PolicyDrop"),
        drop_queries,
    ),
    Step(
        "FAULT: a policy drops the reply",
        "kubernetes.default.svc.cluster.local",
        ("AAAA",),
        dig6,
        Expected("Failed", Bit.SQ | Bit.CQ | Bit.CR | Bit.REPLY_DROPPED, "PolicyDrop"),
        drop_replies,
    ),
    Step(
        "FAULT: first query lost, C library asks again",
        "mail.upstream.test",
        ("A",),
        getaddrinfo,
        Expected("Succeeded", ANSWERED | UPSTREAM | Bit.QUERY_DROPPED, "PolicyDrop"),
        drop_first_query,
    ),
    Step(
        "FAULT: nothing listens on the server's port",
        "kube-dns.kube-system.svc.cluster.local",
        ("A",),
        dig,
        Expected("Failed", Bit.SQ | Bit.QUERY_DROPPED, "NoListener"),
        closed_port,
    ),
    Step(
        "FAULT: the server is stopped (SIGSTOP)",
        "kube-dns.kube-system.svc.cluster.local",
        ("AAAA",),
        dig6,
        Expected("Failed", Bit.SQ | Bit.CQ, "ServerNoReply"),
        left_stopped,
    ),
)
"""In this order: the last one leaves the server stopped."""


class Watcher:
    """`dnstrail run` as a user would start it, in a process of its own that ends with the lab."""

    def __init__(self, lab: Lab, out: IO[bytes], words: IO[bytes]) -> None:
        self._out = out
        self._words = words
        self._clients = {client.netns_id for client in lab.clients}
        self._process = lab.processes.popen(command(), stdout=out.fileno(), stderr=words.fileno())

    def wait_ready(self) -> None:
        """Return when it watches.

        Raises:
            CaptureError: it ended instead; the text is its own.
        """
        wait_until(
            lambda: "watching" in self.words() or self._process.poll() is not None,
            "the agent to start",
            seconds=READY_SECONDS,
        )
        if self._process.poll() is not None:
            raise CaptureError(self.words().removeprefix("dnstrail: ") or "the agent ended without a word")

    def words(self) -> str:
        """All it said on stderr."""
        return contents(self._words).decode("utf-8", "replace").strip()

    def lines(self) -> list[Line]:
        """The sessions of the lab's clients up to now; a line half written is left for later."""
        whole = contents(self._out).split(b"\n")[:-1]
        lines: list[Line] = [msgspec.json.decode(text) for text in whole]
        return [line for line in lines if "Kind" not in line and line["Client"]["Netns"] in self._clients]

    def stop(self) -> str:
        """End it and return its last words: the sums."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"the agent did not end within {END_SECONDS} s") from late
        return self.words().rpartition("\n")[2].removeprefix("dnstrail: ")


def contents(file: IO[bytes]) -> bytes:
    """What a program has written to a file up to now; its own position in it, which it shares with us, stays."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def command() -> list[str]:
    """How the agent is started: it prints the names of the steps alone, and no DNSTRAIL_ variable changes that."""
    unset = [f"--unset={key}" for key in os.environ if key.startswith("DNSTRAIL_")]
    names = [f"--name={name}" for name in dict.fromkeys(step.name for step in STEPS)]
    limits = [f"--timeout={TIMEOUT_SECONDS}", f"--duration={DURATION_SECONDS}", f"--log-rate={LOG_RATE}"]
    limits += ["--failure-rate=unlimited", "--max-lines=unlimited", "--max-bytes=unlimited"]
    return [
        "env",
        *unset,
        sys.executable,
        "-P",
        "-m",
        "agent",
        "run",
        "--output=json",
        "--metrics-address=none",
        "--trace-socket=none",
        *limits,
        *names,
    ]


def perform(lab: Lab) -> None:
    """Take every step."""
    for step in STEPS:
        with step.fault(lab):
            step.look_up(lab, step)


def rows(lines: list[Line]) -> list[Row]:
    """Each step beside the session it made."""
    by_question = {(line["Question"]["Name"], line["Question"]["Type"]): line for line in lines}
    return [Row(step, rdtype, by_question.get((f"{step.name}.", rdtype))) for step in STEPS for rdtype in step.types]


def watch(lab: Lab) -> tuple[list[Row], int, str]:
    """Take every step under the agent's eyes.

    Returns:
        The rows, the number of sessions of the lab's clients, and the agent's sums.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as words:
        watcher = Watcher(lab, out, words)
        watcher.wait_ready()
        perform(lab)
        # A row that is missing in the end is a result like any other, and is shown.
        with contextlib.suppress(LabError):
            wait_until(lambda: _complete(watcher), "all sessions", seconds=LINES_SECONDS)
        sums = watcher.stop()
        lines = watcher.lines()
        return rows(lines), len(lines), sums


def _complete(watcher: Watcher) -> bool:
    time.sleep(0.1)  # reading all lines anew is not for every 2 ms
    return all(row.line for row in rows(watcher.lines()))


def render(row: Row) -> Iterator[str]:
    """One row: what was done, what was said of it, and the sentence."""
    done = f"{row.step.done}{f' ({row.rdtype})' if len(row.step.types) > 1 else ''}"
    if row.line is None:
        yield ROW.format(done, "-", "-", "-", "MISSED")
        return
    cause = row.line["Cause"]
    bits = f"{row.line['BitMap']}/{row.line['PathBitMap']}"
    verdict = "yes" if row.recognised else "NO"
    yield ROW.format(done, row.line["Status"], bits, cause["Code"] if cause else "-", verdict)
    if cause:
        yield f"    {cause['Message']}"
    if not row.recognised:
        yield f"    expected: {_expectation(row.step.expected)}"


def _expectation(expected: Expected) -> str:
    return f"{expected.status}, PathBitMap {int(expected.path)}, cause {expected.cause or 'none'}"


def report(found: list[Row], sessions: int, sums: str) -> str:
    """The whole table, and where to go from here."""
    lines = [ROW.format("WHAT WAS DONE", "STATUS", "BITS", "CAUSE", "AS EXPECTED")]
    lines += [text for row in found for text in render(row)]
    good = sum(row.recognised for row in found)
    lines += [
        "",
        f"{good} of {len(found)} as expected; {sessions} sessions of the lab's clients. The whole machine: {sums}.",
        "On this host, for real: dnstrail run -o table",
    ]
    return "\n".join(lines)


def show(translation: Translation) -> int:
    """Build the lab, take the steps, print the table."""
    with Lab(translation) as lab:
        print(f"dnstrail: a lab stands, its Service made by {lab.translator}; ten seconds, please", file=sys.stderr)
        found, sessions, sums = watch(lab)
    print(report(found, sessions, sums))
    return 0 if all(row.recognised for row in found) else 1


def main(translation: Translation) -> int:
    """`dnstrail demo`.

    Args:
        translation: how the lab's node makes the Service's address.

    Returns:
        0 when every fault was recognised, 1 otherwise.
    """
    try:
        return show(translation)
    except (CaptureError, LabError) as error:
        print(f"dnstrail: {error}", file=sys.stderr)
        return 1
