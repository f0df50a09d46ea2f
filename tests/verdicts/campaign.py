"""Injects faults, and compares what dnstrail says of each lost lookup with what was broken."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.lab import (
    ANY_CLUSTER_NAME,
    ANY_UPSTREAM_NAME,
    VIP,
    VIP6,
    Lab,
    LabError,
    Pod,
    UnsupportedFaultError,
    wait_until,
)
from agent.lab.processes import PATIENCE
from agent.lab.translation import DNS_PORT, UnsupportedTranslationError
from agent.lab.wiring import ON_UPLINK, UnsupportedLinkError
from tests.kernel.conftest import Line, Watch, end_all
from tests.lab.proxies import Proxy
from tests.verdicts.case import Asked, Case, Connection, Hop, Injection, LabKind, Lost
from tests.verdicts.planes import PLANES
from tests.verdicts.stalls import Stalls

LOCK = Path("/run/dnstrail-verdicts.lock")
TIMEOUT_SECONDS = 5
"""Of the agent: the kernel needs 3 s to give a neighbour up."""
SHORT_TIMEOUT_SECONDS = min(2 * PATIENCE, TIMEOUT_SECONDS)
"""Where no fault is about neighbours."""
LINES_SECONDS = 4 * TIMEOUT_SECONDS
MOST_OTHERS = 3
NONE, MISSED = "none", "missed"
"""What stands for a code: a session without a cause, no session."""
ANY_PORT = "--metrics-address=127.0.0.1:0"
NUMBERS = re.compile(
    r"^dnstrail_(?:(?:capture|evicted|softnet|neighbour|loop_turn_duration_seconds_(?:sum|count)|ring)\w*)"
    r"(?:{[^}]*})? (?!0\.0$).*$",
    re.MULTILINE,
)
"""What an agent says of itself that may explain why it told something wrong, but for what did not happen."""
UNSUPPORTED = (UnsupportedFaultError, UnsupportedTranslationError, UnsupportedLinkError)
OWN = re.compile(rf"\b(v\d+-{os.getpid()})\.")
NO_QUESTION = b'"Question":null'
STALL_SECONDS = 0.1
"""What the agent waits for may be over by then: a late hop, the next step of a search list."""
ACCIDENTS = frozenset({"SlowServer", "SlowUpstream"})
"""Findings that a busy machine makes true; where one of them is expected the other would be a mistake."""


class Pace(NamedTuple):
    """How often each fault is injected."""

    each: int = 1
    """When the outcome is certain."""
    probabilistic: int = 20
    """When the kernel decides."""
    until_lost: bool = False
    """Whether it is enough then that something was lost."""

    def of(self, case: Case) -> int:
        """How often this one is, at most."""
        return self.probabilistic if case.probabilistic else self.each


ONCE = Pace(until_lost=True)


class Said(NamedTuple):
    """What a session line says, in short."""

    status: str
    bitmap: int | None
    code: str
    """NONE without a cause, MISSED without a session."""
    confidence: str


def said_in(line: Line) -> Said:
    """What a session line says, in short."""
    cause = line["Cause"]
    return Said(line["Status"], line["BitMap"], cause["Code"] if cause else NONE, cause["Confidence"] if cause else "")


NOT_SAID = Said("", None, MISSED, "")


@dataclass
class Result:
    """What became of one case."""

    case: Case
    unsupported: str = ""
    """Why this kernel cannot be broken so."""
    lost: int = 0
    reported: Counter[str] = field(default_factory=Counter)
    """Codes, by how many sessions of lost lookups got them; NONE without a cause, MISSED without a session."""
    said: Counter[Said] = field(default_factory=Counter)
    """The same, with all that the table of data planes shows."""
    mistakes: list[str] = field(default_factory=list)
    """Everything that is not as expected, a sentence each."""

    at_first: list[str] = field(default_factory=list)
    """The mistakes of a first try, while which the machine stood still."""

    @property
    def expected(self) -> str:
        """The code it must get, or NONE."""
        return self.case.code or NONE

    @property
    def good(self) -> bool:
        """Whether all is as the case demands."""
        return not self.mistakes


class Run(NamedTuple):
    """One injection."""

    case: Case
    injection: Injection
    lost: list[Lost]
    begun: float = 0.0
    ended: float = 0.0
    """By the monotonic clock."""


@dataclass
class Lines:
    """The session lines of an agent's output that can be about lookups of this process."""

    path: Path
    named: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    """By the label of their injection."""
    nameless: list[Line] = field(default_factory=list)
    """Of connections on which nothing was asked."""
    _read: int = 0

    def read(self) -> None:
        """Take what was written since; a line half written is left for later."""
        with self.path.open("rb") as output:
            output.seek(self._read)
            new = output.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        mark = f"-{os.getpid()}.".encode()
        for text in whole.splitlines():
            if mark in text or NO_QUESTION in text:
                self._take(json.loads(text))

    def _take(self, line: Line) -> None:
        if "Kind" in line:
            return
        if line["Question"] is None:
            self.nameless.append(line)
        elif label := OWN.search(line["Question"]["Name"]):
            self.named[label[1]].append(line)

    def of(self, injection: Injection) -> list[Line]:
        """All that are about this injection's lookups."""
        named = [line for line in self.named[injection.label] if injection.owns(line["Question"]["Name"])]
        return named + [line for line in self.nameless if _client_port(line) == injection.port]


def _client_port(line: Line) -> int | None:
    return line["Client"]["Port"] if line["Protocol"] == "TCP" else None


@contextmanager
def alone() -> Iterator[None]:
    """One campaign at a time: every dnstrail sees the packets of all labs of this machine, and has to keep up."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def agent_for(folder: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Watch]:
    """A dnstrail that prints everything; in the end it is killed, since what it would still say is about nobody."""
    dnstrail = Watch(folder, "--timeout", str(timeout_seconds), "--log-rate", "1000000", ANY_PORT)
    try:
        yield dnstrail
    finally:
        end_all([dnstrail.process])


def run(cases: Sequence[Case], pace: Pace = ONCE, *, progress: bool = False) -> list[Result]:
    """Inject each case, all of one kind of lab in one lab, and judge what is said of them.

    Args:
        cases: With names of their own.
        pace: How often.
        progress: Whether to say on stderr what is done.
    """
    results = {case.fault: Result(case) for case in cases}
    assert len(results) == len(cases), "two cases have one name"
    kinds = itertools.groupby(sorted(cases, key=lambda case: case.lab), key=lambda case: case.lab)
    campaign = _Campaign(results, pace, progress)
    with alone():
        for kind, group in kinds:
            campaign.run_kind(kind, deque(group))
    return list(results.values())


def entered(kind: LabKind, lab: Lab) -> AbstractContextManager[Sequence[Proxy]]:
    """The lab's data plane; yields its proxies."""
    return PLANES[kind.plane](lab) if kind.plane else nullcontext(())


def timeout_of(kind: LabKind) -> float:
    """The agent's timeout: on other data planes and links, only what depends on these is broken."""
    return TIMEOUT_SECONDS if kind.link == "veth" and not kind.plane else SHORT_TIMEOUT_SECONDS


@contextmanager
def watched_lab(kind: LabKind) -> Iterator[tuple[Lab, Sequence[Proxy], Watch]]:
    """A node and its dnstrail: the next node's namespaces and devices have the same numbers, and other servers."""
    with (
        tempfile.TemporaryDirectory() as folder,
        agent_for(Path(folder), timeout_of(kind)) as dnstrail,
        Lab(kind.translation, kind.clients, kind.servers, port=kind.port, link=kind.link) as lab,
        entered(kind, lab) as proxies,
    ):
        yield lab, proxies, dnstrail


@dataclass
class _Campaign:
    results: dict[str, Result]
    pace: Pace
    progress: bool
    done: int = 0
    again: set[str] = field(default_factory=set)

    def run_kind(self, kind: LabKind, cases: deque[Case]) -> None:
        """Inject the cases in one lab; in a new one when a case left it broken."""
        while cases:
            try:
                with watched_lab(kind) as (lab, proxies, dnstrail), Stalls() as stalls:
                    runs = self._inject_while_whole(lab, proxies, cases)
                    lines = Lines(dnstrail.out)
                    wait_for_lines(lines, runs)
                    for one in runs:
                        judge(self.results[one.case.fault], one, lines.of(one.injection))
                    slowed = self._ask_why(dnstrail, runs, stalls)
                cases.extend(self._begin_again(slowed))
            except UNSUPPORTED as error:
                for case in cases:
                    self.results[case.fault].unsupported = str(error)
                return

    def _ask_why(self, dnstrail: Watch, runs: Sequence[Run], stalls: Stalls) -> list[Case]:
        """Of what was told wrong, add what the agent says of itself: it may have lost records.

        Returns:
            Those cases during which the machine stood still.
        """
        wrong = [one for one in runs if self.results[one.case.fault].mistakes]
        said = numbers_of(dnstrail) if wrong else []
        slowed = {}
        for one in wrong:
            seconds = stalls.longest_seconds(one.begun, one.ended + timeout_of(one.case.lab))
            self.results[one.case.fault].mistakes += [
                f"dnstrail says of itself: {said}",
                f"the machine stood still for {seconds:.2f} s at most",
            ]
            if seconds > STALL_SECONDS:
                slowed[one.case.fault] = one.case
        return list(slowed.values())

    def _begin_again(self, wrong: Sequence[Case]) -> Iterator[Case]:
        """Those that are tried once more, because the machine stood still: then clients and servers are slow, too."""
        for case in wrong:
            if case.fault not in self.again:
                self.again.add(case.fault)
                first = self.results[case.fault].mistakes
                print(f"once more: {case.fault}: {first}", file=sys.stderr, flush=True)
                self.results[case.fault] = Result(case, at_first=first)
                yield case

    def _inject_while_whole(self, lab: Lab, proxies: Sequence[Proxy], cases: deque[Case]) -> list[Run]:
        runs: list[Run] = []
        while cases:
            case = cases.popleft()
            runs += self._timed(case, lab, proxies)
            broken = what_is_broken(lab, by_service=case.lab.link not in ON_UPLINK)
            if broken:
                self.results[case.fault].mistakes.append(f"it leaves the lab broken: {broken}")
                break
            # A port that comes again must find no entry: rules let old flows pass, and translate them as before.
            lab.node.run(["conntrack", "--flush"])
        return runs

    def _timed(self, case: Case, lab: Lab, proxies: Sequence[Proxy]) -> list[Run]:
        begun = time.monotonic()
        runs = self._inject(case, lab, proxies)
        self.done += 1
        if self.progress:
            seconds = time.monotonic() - begun
            print(f"{self.done:4}/{len(self.results)} {seconds:6.1f} s  {case.fault}", file=sys.stderr, flush=True)
        return runs

    def _inject(self, case: Case, lab: Lab, proxies: Sequence[Proxy]) -> list[Run]:
        result, runs = self.results[case.fault], []
        try:
            with case.setup(lab):
                for _ in range(self.pace.of(case)):
                    injection = Injection(lab, proxies)
                    begun = time.monotonic()
                    lost = list(case.inject(injection))
                    runs.append(Run(case, injection, lost, begun, time.monotonic()))
                    if case.probabilistic and self.pace.until_lost and runs[-1].lost:
                        break
        except UnsupportedFaultError as error:
            result.unsupported = str(error)
        except (AssertionError, LabError, OSError, subprocess.SubprocessError) as error:
            result.mistakes.append(f"the injection failed: {type(error).__name__} {error}")
        if case.probabilistic and not result.unsupported and not any(one.lost for one in runs):
            result.mistakes.append(f"nothing was lost by {len(runs)} injections")
        return runs


def numbers_of(dnstrail: Watch) -> list[str]:
    """Its metrics about itself, but for those that are 0; why not, if it does not answer."""
    try:
        return NUMBERS.findall(dnstrail.get("/metrics"))
    except OSError as error:
        return [f"no metrics: {error}"]


def wait_for_lines(lines: Lines, runs: Sequence[Run]) -> None:
    """Read on until each lost lookup has its line, or the time is over."""
    waiting = [one for one in runs if one.lost]
    deadline = time.monotonic() + LINES_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(0.3)
        lines.read()
        waiting = [one for one in waiting if not is_complete(one, lines.of(one.injection))]


def is_complete(one: Run, lines: Sequence[Line]) -> bool:
    """Whether each of its lost lookups has a line."""
    own = [line for line in lines if is_client(line, one.injection.lab)]
    return all(any(is_about(line, lost) for line in own) for lost in one.lost)


def what_is_broken(lab: Lab, *, by_service: bool = True) -> str:
    """Say what does not work in a lab that should be whole again; nothing if all does.

    Where the Service has several servers it is not asked: one that was away would be seen to answer, and nobody would
    believe that an old translation led to nothing.
    """
    client, name = lab.clients[0], f"whole.{ANY_CLUSTER_NAME}"
    lookups = [
        (client, name, address, lab.port) for server in lab.servers for address in (server.address, server.address6)
    ]
    if len(lab.servers) == 1 and by_service:
        lookups += [(pod, name, vip, DNS_PORT) for pod in (*lab.clients, lab.node) for vip in (VIP, VIP6)]
        lookups += [(client, f"whole.{ANY_UPSTREAM_NAME}", VIP, DNS_PORT)]
    for pod, name, server, port in lookups:
        what = f"{name} from {pod.name} at {server} is answered"
        try:
            wait_until(lambda: answers(pod, name, server, port), what)  # noqa: B023  called at once
        except LabError as error:
            return str(error)
    return ""


def answers(pod: Pod, name: str, server: str, port: int) -> bool:
    """Whether a server answers a pod."""
    return pod.ask(name, server=server, server_port=port, seconds=1) is not None


def judge(result: Result, one: Run, lines: Sequence[Line]) -> None:
    """Compare what is said of an injection's lookups with what the case expects."""
    case, lab = result.case, one.injection.lab
    if not one.lost and not case.probabilistic:
        result.mistakes.append("the fault did not lose anything")
    for lost in one.lost:
        result.lost += 1
        mine = [line for line in lines if is_client(line, lab) and is_about(line, lost)]
        if not mine:
            result.reported[MISSED] += 1
            result.said[NOT_SAID] += 1
            result.mistakes.append(f"{words_of(lost)}: no session{others(lines)}")
        for line in mine:
            result.reported[line["Cause"]["Code"] if line["Cause"] else NONE] += 1
            result.said[said_in(line)] += 1
            result.mistakes += [f"{words_of(lost)}: {mistake}" for mistake in mistakes_of(case, lab, line)]
    for line in lines:
        if case.code is not None and any(is_about(line, lost) or is_for(line, lost) for lost in one.lost):
            continue
        if line["Cause"] is not None:
            result.mistakes.append(f"{asked_of(line)} was not lost, and is given {line['Cause']['Code']}")


def others(lines: Sequence[Line]) -> str:
    """What was said of the same name, where nothing was of the lookup itself."""
    said = (f"{line['Status']} for {line['Client']}, path {list(map(short, line['Path']))}" for line in lines)
    return "".join(f"; but {words}" for words in itertools.islice(said, MOST_OTHERS))


def is_about(line: Line, lost: Lost) -> bool:
    """Whether a line is a lost lookup's."""
    question = line["Question"]
    if isinstance(lost, Connection):
        return question is None and (line["Client"]["Netns"], _client_port(line)) == lost
    if question is None:
        return False
    if isinstance(lost, Asked):
        return (question["Name"], line["Client"]["Netns"], line["Client"]["Port"]) == (f"{lost.name}.", *lost[1:])
    name, rdtype = (lost, question["Type"]) if isinstance(lost, str) else lost
    return (question["Name"], question["Type"]) == (f"{name}.", rdtype)


def is_for(line: Line, lost: Lost) -> bool:
    """Whether a line is of what a proxy asked for the sake of a lost lookup."""
    return isinstance(lost, Asked) and line["Question"] is not None and line["Question"]["Name"] == f"{lost.name}."


def words_of(lost: Lost) -> str:
    """A lookup in words."""
    if isinstance(lost, Connection):
        return f"connection from port {lost.port}"
    if isinstance(lost, Asked):
        return f"{lost.name} from port {lost.port}"
    return lost if isinstance(lost, str) else " ".join(lost)


def asked_of(line: Line) -> str:
    """A line's lookup in words."""
    question = line["Question"]
    return f"{question['Name']} {question['Type']}" if question else f"connection from port {_client_port(line)}"


def is_client(line: Line, lab: Lab) -> bool:
    """Whether it is a lookup of a client, not of a server pod at the upstream."""
    return line["Client"]["Netns"] not in {server.netns_id for server in lab.servers}


def mistakes_of(case: Case, lab: Lab, line: Line) -> Iterator[str]:
    """What of a lost lookup's line is not as expected."""
    yield from _mistakes_of_cause(case, line)
    if line["Status"] != case.status:
        yield f"Status {line['Status']} instead of {case.status}"
    if case.bitmaps and line["BitMap"] not in case.bitmaps:
        yield f"BitMap {line['BitMap']} instead of {sorted(case.bitmaps)}"
    if case.wrong is not None and (wrong := case.wrong(lab, line)):
        yield wrong
    findings = frozenset(line["Findings"])
    if case.findings - findings:
        yield f"findings {line['Findings']} lack {sorted(case.findings - findings)}"
    tolerated = frozenset() if case.findings & ACCIDENTS else ACCIDENTS
    if case.exact and findings - case.findings - tolerated:
        yield f"findings {line['Findings']} instead of {sorted(case.findings)}"
    if case.last_hop is not None and not _has_last_hop(line, case.last_hop(lab)):
        yield f"the last hop is not {case.last_hop(lab)}: {[short(hop) for hop in line['Path']]}"


def _mistakes_of_cause(case: Case, line: Line) -> Iterator[str]:
    cause = line["Cause"]
    code = cause["Code"] if cause else None
    if code != case.code and code not in case.also:
        said = f"{code} ({cause['Message']} {cause['Evidence']})" if cause else code
        yield f"{said} instead of {case.code}; path {[short(hop) for hop in line['Path']]}"
    elif cause and code != case.code and cause["Confidence"] == "high":
        yield f"{code} is said to be certain: {cause['Evidence']}"
    elif cause and code == case.code:
        if case.confidence not in (None, cause["Confidence"]):
            yield f"{code} with confidence {cause['Confidence']} instead of {case.confidence}: {cause['Evidence']}"
        said = " ".join([cause["Message"], *cause["Evidence"]])
        missing = [word for word in case.says if word not in said]
        if missing:
            yield f"{code} does not speak of {missing}: {said}"


def _has_last_hop(line: Line, wanted: Hop) -> bool:
    """Whether any message ends there; of handshakes there may be several, which only their ports tell apart."""
    last = {hop["Message"] or _ports(hop): hop for hop in line["Path"]}
    return any(
        (hop["Event"], hop["Netns"]) == (wanted.event, wanted.netns) and wanted.interface in (None, hop["Interface"])
        for hop in last.values()
    )


def _ports(hop: Line) -> frozenset[str]:
    return frozenset(hop[end].rpartition(":")[2] for end in ("Source", "Destination"))


def short(hop: Line) -> str:
    """A hop in a few words."""
    words = [hop["Message"], hop["Event"], f"{hop['Netns']}/{hop['Interface']}", hop.get("Reason"), hop.get("Location")]
    return " ".join(str(word) for word in words if word)
