"""Incidents on stdout: their lines, the thinned lines of their sessions, and that nothing else is hidden by them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import types
from pathlib import Path

import msgspec
import pytest

from agent.context.cluster import Pod, Service
from agent.context.who import NOBODY, Who
from agent.explain.incidents import UPDATE_NS, Incidents, State
from agent.explain.rules import explain
from agent.explain.verdict import HIGH, Verdict, make_cause
from agent.export import incident_line, table
from agent.export import printer as printing
from agent.export.failures import BURST, LineRates
from agent.export.filters import Filter
from agent.export.incident_line import IncidentLine
from agent.export.incident_reporter import IncidentReporter
from agent.export.metrics.sources import Sources
from agent.export.printer import LineOptions, Printer
from agent.session.outcome import Outcome
from tests.unit.conftest import SECOND, START, Lookup, World, dropped, packed

ROOT = Path(__file__).parents[3]
REFUSED = 5
RATES = LineRates(alike=1, lines=100, size=1 << 20)
LOUD = RATES._replace(alike=None)
STORM = 600
"""Failing lookups a second."""
KEY = bytes(range(16))
CART = Pod("uid-1", "shop", "cart-1", "Deployment/cart", "node-a", False, "ClusterFirst", ())
DNS = Service("kube-system", "kube-dns", False, (packed("10.96.0.10"),))

Session = tuple[Outcome, Verdict]


def concluded(hops: list) -> Session:
    outcome = World().outcome(hops)
    return outcome, explain(outcome)


def refused(name: str = "hush.example.", client: str = "172.20.2.25") -> Session:
    return concluded(Lookup(name=name, client=(client, 44525)).both(rcode=REFUSED, aa=False))


def stopped(client: str = "172.20.2.26") -> Session:
    lookup = Lookup(name="quiet.example.", client=(client, 44525))
    return concluded(dropped(lookup.query(), 2, location="nft_do_chain"))


class Node:
    """An agent without its kernel: sessions in, lines out, in the time that the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
        self.now_ns = START
        clock = types.SimpleNamespace(monotonic=lambda: self.now_ns / SECOND, monotonic_ns=lambda: self.now_ns)
        monkeypatch.setattr(printing, "time", clock)
        self.written: list[tuple[float, str]] = []
        self.sources = Sources()
        self.printer = Printer(LineOptions(**({"rates": RATES} | options)), self, 0)
        self.metrics_by = "none"
        self.reporter = IncidentReporter(self.sources, self.printer, self.metrics_by)

    def write(self, text: str) -> None:
        self.written.append((self.now_ns / SECOND, text))

    def flush(self) -> None:
        """Nothing waits."""

    def see(self, session: Session, who: Who = NOBODY) -> None:
        """What `agent.run` does with a session that is over."""
        outcome, verdict = session
        outcome.session.first_ns = self.now_ns
        incident = self.sources.incidents.note(outcome, verdict, lambda: who, self.now_ns)
        rank = self.printer.admits(outcome, verdict, lambda: who, incident)
        if rank is not None:
            self.printer.write(outcome, verdict, who, rank, incident)
        self.reporter.report(self.now_ns)

    def see_many(self, session: Session, seconds: float, rate: int = STORM, who: Who = NOBODY) -> None:
        for _ in range(int(seconds * rate)):
            self.see(session, who)
            self.now_ns += SECOND // rate

    def later(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_ns += SECOND
            self.reporter.report(self.now_ns)

    @property
    def lines(self) -> list[dict]:
        return [json.loads(text) for _, text in self.written]

    @property
    def incidents(self) -> list[dict]:
        return [line for line in self.lines if "Kind" in line]

    @property
    def sessions(self) -> list[dict]:
        return [line for line in self.lines if "Kind" not in line]

    def most_in_a_second(self) -> tuple[int, int]:
        """Lines and bytes of the second that had most of each."""
        windows = [
            [len(text) for at, text in self.written if begin <= at < begin + 1.0]
            for begin in {at for at, _ in self.written}
        ]
        return max(map(len, windows)), max(map(sum, windows))


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


# A storm


@pytest.mark.parametrize("rates", [RATES, LOUD], ids=["as it is", "without --failure-rate"])
def test_a_storm_is_one_opened_line_and_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch, rates: LineRates):
    node = Node(monkeypatch, rates=rates)
    node.see_many(refused(), seconds=20)
    assert [line["State"] for line in node.incidents] == ["Opened"]
    lines, data = node.most_in_a_second()
    assert lines <= 100
    assert data <= 1 << 20


@pytest.mark.parametrize("rates", [RATES, LOUD], ids=["as it is", "without --failure-rate"])
def test_every_line_of_another_problem_is_written_while_the_storm_goes_on(
    monkeypatch: pytest.MonkeyPatch, rates: LineRates
):
    node = Node(monkeypatch, rates=rates)
    storm, other = refused(), stopped()
    for number in range(20 * STORM):
        node.see(storm)
        if number % STORM == STORM // 2:
            node.see(other)
        node.now_ns += SECOND // STORM
    quiet = [line for line in node.sessions if line["Question"]["Name"] == "quiet.example."]
    assert len(quiet) == 20
    assert {line["Code"] for line in node.incidents if line["State"] == "Opened"} == {"ServerError", "PolicyDrop"}


def test_the_first_lines_of_an_incident_are_whole_then_some_and_the_rest_is_counted(node: Node):
    node.see_many(refused(), seconds=90)
    sessions = node.sessions
    assert len(sessions) == pytest.approx(BURST + 90, abs=2)
    last = node.incidents[-1]
    assert last["State"] == "Updated"
    seen = last["HeldBack"] + len([line for line in sessions if line["Time"] <= last["Time"]])
    assert last["Lookups"] == pytest.approx(seen, abs=2)
    assert last["HeldBack"] > 30_000


def test_incident_lines_that_find_no_room_come_a_second_later(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, rates=RATES._replace(lines=20))
    places = [concluded(Lookup(vip=(f"10.96.1.{n}", 53), dnat=False).both(rcode=REFUSED, aa=False)) for n in range(9)]
    for _ in range(10):
        for place in places:
            node.see(place)
    node.later(8)
    assert len(node.incidents) == 9
    assert node.most_in_a_second()[0] <= 20


def test_what_began_in_the_last_second_is_told_at_the_end(node: Node):
    node.see_many(refused(), seconds=0.5, rate=40)
    assert node.incidents == []
    node.reporter.tell(node.now_ns)
    assert [line["State"] for line in node.incidents] == ["Opened"]


def test_healthy_lookups_and_single_failures_write_no_incident_line(node: Node):
    fine = concluded(Lookup().both())
    for number in range(3000):
        node.see(stopped("172.20.2.25") if number % 400 == 0 else fine)
        node.now_ns += SECOND // 10
    node.later(60)
    assert node.incidents == []


# The line


def opened(node: Node, session: Session, who: Who = NOBODY) -> dict:
    node.see_many(session, seconds=1, rate=20, who=who)
    node.later(2)
    return node.incidents[-1]


def test_a_line_says_what_where_whose_and_how_much(node: Node):
    line = opened(node, refused(), Who(client=CART, service=DNS))
    assert list(line)[:3] == ["Kind", "Time", "Node"]
    assert (line["Kind"], line["State"], line["Code"]) == ("Incident", "Opened", "ServerError")
    assert line["Client"] == {"Namespace": "shop", "Workload": "Deployment/cart", "Pod": None, "Address": None}
    assert line["Server"]["Address"] == "10.96.0.10:53"
    assert line["Server"]["Service"] == "kube-system/kube-dns"
    assert line["Place"] == "server 10.244.1.53:53"
    assert (line["Clients"], line["SharePercent"]) == (1, 100.0)
    assert line["Message"].startswith("The DNS server itself answered REFUSED")
    assert line["Doc"] == "docs/causes.md#servererror"
    assert (ROOT / "docs/causes.md").is_file()


def test_a_line_leads_to_session_lines_that_were_printed(node: Node):
    line = opened(node, refused())
    (example,) = line["Examples"]
    found = [
        one
        for one in node.sessions
        if one["Time"] == example["Time"] and f"{one['Client']['Address']}:{one['Client']['Port']}" == example["Client"]
    ]
    assert found
    assert (example["Name"], example["Type"]) == ("hush.example.", "A")
    assert found[0]["TransactionId"] == example["TransactionId"]


def test_the_place_of_a_drop_is_said(node: Node):
    line = opened(node, stopped())
    assert line["Place"] == f"query, network namespace {World.NODE}"
    assert line["Client"]["Address"] == "172.20.2.26"


def test_an_incident_is_told_until_its_end_under_one_id(node: Node):
    node.see_many(refused(), seconds=130, rate=2)
    fine = concluded(Lookup().both())
    for _ in range(90):
        node.see(fine)
        node.later(1)
    states = [line["State"] for line in node.incidents]
    assert (states[0], states[-1]) == (State.OPENED, State.ENDED)
    assert set(states[1:-1]) == {State.UPDATED}
    assert len({line["Id"] for line in node.incidents}) == 1
    assert node.incidents[-1]["Last"] > node.incidents[-1]["First"]


def test_in_the_table_an_incident_is_one_readable_row(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, output="table")
    node.see_many(refused(), seconds=1, rate=20, who=Who(client=CART, service=DNS))
    node.later(2)
    (row,) = [text for _, text in node.written if "INCIDENT" in text]
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} INCIDENT opened: ServerError at 10\.96\.0\.10:53 \(kube-system/kube-dns\) for "
        r"shop/Deployment/cart: \d+ lookups, 100% of all from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d: The DNS server",
        row,
    )
    assert row.count("\n") == 1


def test_what_could_steer_a_terminal_is_shown_as_a_box(node: Node):
    account = node.sources.incidents
    node.see_many(refused(), seconds=1, rate=20)
    line = node.printer.incident_line(account.accounts()[0])
    line.message = "a\x1b[2Jb"
    assert "\x1b" not in table.incident(line)


@pytest.mark.parametrize("output", ["json", "table"])
@pytest.mark.parametrize("log", ["all", "incidents"])
def test_with_redaction_no_incident_line_tells_what_was_looked_up(
    monkeypatch: pytest.MonkeyPatch, output: str, log: str
):
    node = Node(monkeypatch, output=output, redaction_key=KEY, log=log)
    node.see_many(refused(), seconds=1, rate=20)
    node.later(2)
    text = "".join(text for _, text in node.written)
    assert "ncident" in text or "INCIDENT" in text
    assert "hush" not in text
    assert output == "table" or "redacted-" in text


def test_with_redaction_no_incident_line_tells_what_a_server_wrote(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, redaction_key=KEY)
    cause = make_cause("ServerError", HIGH, [], deed='answered SERVFAIL, extended error 3: "hush"')
    line = opened(node, (refused()[0], Verdict(cause, [], [])))
    assert line["Message"] == "The DNS server answered SERVFAIL, extended error 3: redacted."


def test_an_example_is_found_after_the_wall_clock_was_set(node: Node):
    line = opened(node, refused())
    node.printer.context = node.printer.context._replace(wall_offset_ns=12345)
    node.see_many(refused(), seconds=UPDATE_NS // SECOND + 2, rate=2)
    (example,) = node.incidents[-1]["Examples"]
    assert node.incidents[-1]["State"] == "Updated"
    assert example == line["Examples"][0]
    assert example["Time"] in {one["Time"] for one in node.sessions}


def test_redacted_examples_have_the_word_of_the_session_lines(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, redaction_key=KEY)
    line = opened(node, refused())
    assert {one["Question"]["Name"] for one in node.sessions} == {line["Examples"][0]["Name"]}


# What is asked for


def test_incidents_alone_can_be_asked_for_and_still_name_lookups(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, log="incidents")
    line = opened(node, refused())
    assert node.sessions == []
    assert line["Examples"][0]["Name"] == "hush.example."


def test_who_wants_no_lines_gets_none(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, log="none")
    node.see_many(refused(), seconds=5)
    node.later(90)
    assert node.written == []


def test_a_filter_keeps_incidents_out_of_which_no_lookup_passes(monkeypatch: pytest.MonkeyPatch):
    node = Node(monkeypatch, filter=Filter(causes=("PolicyDrop",)))
    node.see_many(refused(), seconds=1, rate=20)
    node.see_many(stopped(), seconds=1, rate=20)
    node.later(2)
    assert {line["Code"] for line in node.incidents} == {"PolicyDrop"}
    assert node.sources.incidents.opened == {"ServerError": 1, "PolicyDrop": 1}


# Bounds


def test_no_line_is_longer_than_its_bound(node: Node):
    """Kubernetes allows names of 253 bytes (RFC 1123), DNS names of 1004 when each byte is escaped (RFC 4343 2.1)."""
    long = "x" * 253
    who = Who(client=CART._replace(namespace=long, workload=f"Deployment/{long}"), service=DNS._replace(name=long))
    name = ".".join("\\000" * 49 for _ in range(5)) + "."
    for number in range(30):
        outcome, verdict = refused(client=f"172.20.2.{number + 1}")
        node.see((outcome, verdict), who)
    account = node.sources.incidents.accounts()[0]
    long_names = tuple(one._replace(name=name) for one in account.examples)
    line = node.printer.incident_line(account._replace(examples=long_names))
    assert len(line.examples) == 3
    assert len(msgspec.json.encode(line)) <= incident_line.MAX_BYTES


# Readers of lines


def commands() -> list[str]:
    """The shell commands of the page, after the functions that they use."""
    text = (ROOT / "docs/logs.md").read_text()
    setup, *found = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [f"{setup}\n{command}" for command in found]


@pytest.mark.parametrize("command", commands())
def test_the_queries_of_the_documents_answer_the_same_with_incident_lines_among_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
):
    assert shutil.which("jq"), "install the Debian package jq"
    node = Node(monkeypatch)
    node.see(concluded(Lookup(name="www.upstream.test.").both()))
    for name in ("policy.any.cluster.local.", "hush.example."):
        node.see_many(refused(name), seconds=1, rate=20)
    node.see_many(stopped(), seconds=1, rate=20)
    node.later(UPDATE_NS // SECOND)
    assert len(node.incidents) >= 2
    answers = []
    for keep in (lambda line: "Kind" not in line, lambda _: True):
        log = tmp_path / "log"
        log.write_text("".join(text for _, text in node.written if keep(json.loads(text))))
        kubectl = 'kubectl() { cat "$LOG"; }\n'
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", kubectl + command],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LOG": str(log), "LC_ALL": "C"},
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1]


def test_an_incident_line_is_known_by_its_first_field():
    assert IncidentLine.__struct_encode_fields__[0] == "Kind"
    assert Incidents().accounts() == []
