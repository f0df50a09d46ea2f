"""Injects faults, and compares what dnstrail says of each lost lookup with what was broken."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.lab import Lab, UnsupportedFaultError
from tests.kernel.conftest import Line, Watch
from tests.verdicts.case import Case, Hop, Injection, Lost

LOCK = Path("/run/dnstrail-verdicts.lock")
TIMEOUT_SECONDS = 5
"""Of the agent: the kernel needs 3 s to give a neighbour up."""
LINES_SECONDS = 4 * TIMEOUT_SECONDS
LOST_MESSAGE = {"query": "STUB_QUERY", "reply": "STUB_RESPONSE"}


@dataclass
class Result:
    """What became of one case."""

    case: Case
    unsupported: str = ""
    """Why this kernel cannot be broken so."""
    lost: int = 0
    reported: Counter[str] = field(default_factory=Counter)
    """Codes, by how many lost lookups got them; `none` without a cause, `missed` without a session."""
    mistakes: list[str] = field(default_factory=list)
    """Everything that is not as expected, a sentence each."""

    @property
    def good(self) -> bool:
        """Whether all is as the case demands."""
        return not self.mistakes


@dataclass
class _Run:
    injection: Injection
    lost: list[tuple[str, str | None]]


@dataclass
class Lines:
    """The session lines of an agent's output that are about names of this process; read on from where it was left."""

    path: Path
    own: list[Line] = field(default_factory=list)
    _read: int = 0

    def read(self) -> None:
        """Take what was written since; a line half written is left for later."""
        with self.path.open("rb") as output:
            output.seek(self._read)
            new = output.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        mark = f"-{os.getpid()}.".encode()
        found = (json.loads(line) for line in whole.splitlines() if mark in line)
        self.own += [line for line in found if line["Question"]]


def _lost(one: Lost) -> tuple[str, str | None]:
    return (one, None) if isinstance(one, str) else one


@contextmanager
def alone() -> Iterator[None]:
    """One campaign at a time: every dnstrail sees the packets of all labs of this machine, and has to keep up."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def agent_for(folder: Path) -> Iterator[Watch]:
    """A dnstrail that prints everything."""
    dnstrail = Watch(folder, "--timeout", str(TIMEOUT_SECONDS), "--log-rate", "1000000")
    try:
        yield dnstrail
    finally:
        dnstrail.stop()


def run(cases: Sequence[Case], repetitions: int = 1, *, progress: bool = False) -> list[Result]:
    """Inject each case so often, all of one kind of lab in one lab."""
    results = {case.fault: Result(case) for case in cases}
    assert len(results) == len(cases), "two cases have one name"
    kinds = itertools.groupby(sorted(cases, key=lambda case: case.lab), key=lambda case: case.lab)
    with alone(), tempfile.TemporaryDirectory() as folder, agent_for(Path(folder)) as dnstrail:
        all_lines = Lines(dnstrail.out)
        for kind, group in kinds:
            with Lab(kind.translation, kind.clients, kind.servers) as lab:
                runs = {}
                for case in group:
                    begun = time.monotonic()
                    runs[case.fault] = _inject(case, lab, repetitions, results[case.fault])
                    if progress:
                        print(f"{time.monotonic() - begun:6.1f} s  {case.fault}", flush=True)
                lines = _collect(all_lines, lab, [one for several in runs.values() for one in several])
                for fault, several in runs.items():
                    for one in several:
                        _compare(results[fault], lab, one, lines)
    return list(results.values())


def _inject(case: Case, lab: Lab, repetitions: int, result: Result) -> list[_Run]:
    runs = []
    try:
        with case.setup(lab):
            for _ in range(repetitions):
                injection = Injection(lab)
                runs.append(_Run(injection, [_lost(one) for one in case.inject(injection)]))
    except UnsupportedFaultError as error:
        result.unsupported = str(error)
    return runs


def _collect(lines: Lines, lab: Lab, runs: list[_Run]) -> list[Line]:
    """All session lines of our own, once each lost lookup has one or the time is over."""
    wanted = [one for run in runs for one in run.lost]
    deadline = time.monotonic() + LINES_SECONDS
    while True:
        time.sleep(0.3)
        lines.read()
        asked = {(line["Question"]["Name"], line["Question"]["Type"]) for line in lines.own if is_client(line, lab)}
        names = {name for name, _ in asked}
        there = all(f"{name}." in names if kind is None else (f"{name}.", kind) in asked for name, kind in wanted)
        if there or time.monotonic() > deadline:
            return lines.own


def _compare(result: Result, lab: Lab, run: _Run, lines: Iterable[Line]) -> None:
    own = [line for line in lines if run.injection.owns(line["Question"]["Name"])]
    if not run.lost and not result.case.probabilistic:
        result.mistakes.append("the fault did not lose anything")
    for name, kind in run.lost:
        result.lost += 1
        asked = [line for line in own if line["Question"]["Name"] == f"{name}." and is_client(line, lab)]
        mine = [line for line in asked if kind in (None, line["Question"]["Type"])]
        if not mine:
            result.reported["missed"] += 1
            result.mistakes.append(f"{name} {kind or ''}: no session")
        for line in mine:
            code = (line["Cause"] or {}).get("Code", "none")
            result.reported[code] += 1
            result.mistakes += [f"{name} {kind or ''}: {one}" for one in mistakes_of(result.case, lab, line)]
    expected = {(name, kind) for name, kind in run.lost}
    for line in own:
        question = line["Question"]["Name"].removesuffix("."), line["Question"]["Type"]
        if result.case.code is not None and (question in expected or (question[0], None) in expected):
            continue
        if line["Cause"] is not None:
            result.mistakes.append(f"{question[0]} {question[1]} was not lost, and is given {line['Cause']['Code']}")


def is_client(line: Line, lab: Lab) -> bool:
    """Whether it is a lookup of a client, not of a server pod at the upstream."""
    return line["Client"]["Netns"] not in {server.netns_id for server in lab.servers}


def mistakes_of(case: Case, lab: Lab, line: Line) -> Iterator[str]:
    """What of a lost lookup's line is not as expected."""
    cause = line["Cause"]
    code = cause["Code"] if cause else None
    if code != case.code and code not in case.also:
        said = f"{code} ({cause['Message']} {cause['Evidence']})" if cause else code
        yield f"{said} instead of {case.code}; path {[short(hop) for hop in line['Path']]}"
    elif cause and code == case.code and case.confidence and cause["Confidence"] != case.confidence:
        yield f"{code} with confidence {cause['Confidence']} instead of {case.confidence}: {cause['Evidence']}"
    if line["Status"] != case.status:
        yield f"Status {line['Status']} instead of {case.status}"
    if case.findings - set(line["Findings"]):
        yield f"findings {line['Findings']} lack {sorted(case.findings - set(line['Findings']))}"
    if case.last_hop is not None and not _has_last_hop(line, case.last_hop(lab)):
        yield f"the last hop is not {case.last_hop(lab)}: {[short(hop) for hop in line['Path']]}"


def _has_last_hop(line: Line, wanted: Hop) -> bool:
    last = {}
    for hop in line["Path"]:
        last[hop["Message"]] = hop
    return any(
        (hop["Event"], hop["Netns"]) == (wanted.event, wanted.netns) and wanted.interface in (None, hop["Interface"])
        for hop in last.values()
    )


def short(hop: Line) -> str:
    """A hop in a few words."""
    words = [hop["Message"], hop["Event"], f"{hop['Netns']}/{hop['Interface']}", hop.get("Reason"), hop.get("Location")]
    return " ".join(str(word) for word in words if word)
