"""`dnstrail top`: the real command, over files and beside a real socket."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cli import main
from agent.export.incident_line import ClientNames, IncidentLine, ServerNames
from agent.export.line import Line
from agent.watch.troubles import MAX_APART, Troubles
from tests.unit.agents import SECONDS, SocketAgent, outcomes
from tests.unit.conftest import MS, START, Lookup, dropped
from tests.unit.terminal import Terminal

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests/fixtures/lines/node-a.jsonl"
COMMAND = [sys.executable, "-m", "agent", "top"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in os.environ if name.startswith("DNSTRAIL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SocketAgent]:
    with SocketAgent(tmp_path / "trace.sock") as agent:
        yield agent


@pytest.fixture
def top(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str | Path, code: int = 0) -> tuple[list[str], list[str]]:
        assert main(["top", *map(str, arguments)]) == code
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    return run


def incident(state: str, **fields: object) -> bytes:
    known = {
        "kind": "Incident",
        "time": "2026-11-21T05:42:00.000000000Z",
        "node": "node-a",
        "state": state,
        "id": "one",
        "code": "PolicyDrop",
        "confidence": "high",
        "message": "A netfilter rule dropped the query.",
        "place": "query in network namespace 4026531840",
        "client": ClientNames("shop", "Deployment/cart"),
        "server": ServerNames("10.96.0.10:53", None, "kube-system/kube-dns"),
        "lookups": 12,
        "clients": 1,
        "first": "2026-11-21T05:41:00.000000000Z",
        "last": "2026-11-21T05:41:59.000000000Z",
        "share_percent": 50.0,
        "held_back": 0,
        "examples": [],
        "remedy": "",
        "doc": "",
    }
    return msgspec.json.encode(IncidentLine(**known | fields)) + b"\n"


def table(rows: list[str], kind: str) -> list[list[str]]:
    """The rows of a table, in words."""
    begin = next(number for number, row in enumerate(rows) if row.startswith(kind)) + 1
    found = []
    for row in rows[begin:]:
        if not row:
            break
        found.append(row.split())
    return found


def test_a_file_is_told_by_workload_name_and_server(top):
    rows, err = top(KEPT)
    assert "5 lookups that did not go well in these lines; 1 went well" in rows
    assert table(rows, "WORKLOAD")[0][:3] == ["shop/Deployment/cart", "3", "2"]
    assert table(rows, "NAME")[-1] == ["www.example.net.", "1", "1", "05:41:30", "ServerError", "1"]
    assert table(rows, "SERVER")[0][:4] == ["10.96.0.10:53", "kube-system/kube-dns", "5", "4"]
    assert "No open incidents" in rows
    assert err == []


def test_incidents_of_a_file_are_told_as_they_were_told_last(top, tmp_path: Path):
    file = tmp_path / "lines"
    later = incident("Updated", lookups=40)
    ended = incident("Opened", id="two") + incident("Ended", id="two")
    file.write_bytes(incident("Opened") + KEPT.read_bytes() + ended + later)
    rows, err = top(file)
    assert [words[:4] for words in table(rows, "CAUSE")] == [["PolicyDrop", "05:41:00", "05:41:59", "40"]]
    assert "shop/Deployment/cart" in "".join(table(rows, "CAUSE")[0])
    assert err == []


def test_files_are_read_as_explain_reads_them(top, tmp_path: Path):
    packed = tmp_path / "old.gz"
    packed.write_bytes(gzip.compress(b"dnstrail: words\n" + b"[pod/x] 2026-11-28T08:36:17Z " + KEPT.read_bytes()))
    rows, err = top(packed, KEPT)
    assert any(row.startswith("10 lookups that did not go well") for row in rows)
    assert err == [f"dnstrail: 1 line is no session line: 1 without JSON (first: line 1 of {packed})"]


def test_filters_hold_for_files(top):
    rows, _ = top(KEPT, "--cause", "ServerError", "--slow", "0.05ms")
    assert [row[0] for row in table(rows, "NAME")] == ["www.example.net."]


def test_standard_input_is_a_file():
    done = subprocess.run([*COMMAND, "-"], input=KEPT.read_bytes(), capture_output=True, check=True)
    assert b"5 lookups that did not go well" in done.stdout
    assert b"\x1b" not in done.stdout


def test_a_file_that_cannot_be_opened_is_a_usage_error(top, tmp_path: Path):
    assert top(tmp_path / "missing", code=2) == (
        [],
        [f"dnstrail: cannot open {tmp_path / 'missing'}: No such file or directory"],
    )


def test_a_damaged_file_is_named_after_what_could_be_read(top, tmp_path: Path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(KEPT.read_bytes())[:-20])
    rows, err = top(cut, code=1)
    assert rows[0] == "dnstrail top  1 file"
    assert err[-1] == f"dnstrail: {cut}: the compressed file is cut off or damaged"


def test_hostile_texts_of_a_file_reach_nobody_raw(top, tmp_path: Path):
    file = tmp_path / "lines"
    evil = "\x1b[2J\u202e\r"
    line = KEPT.read_bytes().splitlines()[0].replace(b"redis-master", b"\\u001b[2Jevil\\u202e")
    file.write_bytes(line + b"\n" + incident("Opened", code=evil, message=evil, client=ClientNames(evil, evil)))
    rows, _ = top(file, "--color", "never")
    assert [char for char in "".join(rows) if not char.isprintable()] == []
    assert "evil" in "".join(rows)


def test_a_line_that_stands_for_others_counts_for_all_of_them(top, tmp_path: Path):
    line = msgspec.json.decode(KEPT.read_bytes().splitlines()[0], type=Line)
    line.held_back = 99
    file = tmp_path / "lines"
    file.write_bytes(msgspec.json.encode(line))
    assert table(top(file)[0], "NAME")[0][1:3] == ["100", "100"]


def test_a_flood_of_names_is_bounded_and_the_rest_is_counted():
    troubles = Troubles()
    line = msgspec.json.decode(KEPT.read_bytes().splitlines()[0], type=Line)
    for number in range(MAX_APART + 10):
        line.question.name = f"name-{number}."
        troubles.add(line)
    assert troubles.apart("NAME") == MAX_APART
    assert troubles.beyond == {"NAME": 10}
    assert troubles.worst("WORKLOAD", 1)[0].lookups == MAX_APART + 10


def trouble(agent: SocketAgent, lookups: int) -> None:
    parts = []
    for number in range(lookups):
        one = Lookup(port=40000 + number, identifier=number)
        parts.append(dropped(one.query(START + number * MS), 2, location="nft_do_chain"))
    for outcome in outcomes(*parts):
        agent.show(outcome)


def keep_telling(agent: SocketAgent, over: threading.Event) -> None:
    while not over.wait(0.05):
        agent.flush()


@pytest.fixture
def telling(agent: SocketAgent) -> Iterator[None]:
    """The agent's loop turns."""
    over = threading.Event()
    thread = threading.Thread(target=keep_telling, args=(agent, over))
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("telling")
def test_once_prints_incidents_and_tables_of_now(agent: SocketAgent):
    command = [*COMMAND, "--trace-socket", agent.path, "--once", "--duration", "1.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        agent.wait_for(1)
        trouble(agent, 15)
        out, err = child.communicate(timeout=SECONDS)
    rows = out.decode().splitlines()
    assert (child.returncode, err) == (0, b"")
    assert "\x1b" not in out.decode()
    assert rows[0].startswith("dnstrail top  node-a ")
    assert table(rows, "CAUSE")[0][0] == "PolicyDrop"
    assert table(rows, "WORKLOAD")[0][1:3] == ["15", "15"]


@pytest.mark.usefixtures("telling")
def test_a_pipe_gets_it_once(agent: SocketAgent):
    command = [*COMMAND, "--trace-socket", agent.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert "No open incidents" in done.stdout


@pytest.mark.usefixtures("telling")
def test_at_a_terminal_it_is_renewed_each_second(agent: SocketAgent):
    with Terminal([*COMMAND, "--trace-socket", agent.path], 140, 30) as terminal:
        agent.wait_for(1)
        terminal.until(lambda rows: "No open incidents" in rows and "node-a" in rows[0], "it is drawn")
        trouble(agent, 15)
        rows = terminal.until(lambda rows: any(row.startswith("PolicyDrop") for row in rows), "the incident is shown")
        assert any(row.startswith("NAME") for row in rows)
        terminal.resize(60, 12)
        terminal.until(lambda rows: rows[0].startswith("dnstrail top"), "it is drawn anew")
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.shown.modes["?1049"] is False
        assert terminal.attributes() == terminal.before


def test_a_reader_that_goes_away_is_no_error(agent: SocketAgent):
    command = [*COMMAND, "--trace-socket", agent.path, "--once"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        agent.wait_for(1)
        child.stdout.close()
        assert child.wait(SECONDS) == 0
        assert child.stderr.read() == b""


def test_what_is_not_known_yet_is_said_so(agent: SocketAgent):
    with Terminal([*COMMAND, "--trace-socket", agent.path], 100, 20) as terminal:
        agent.wait_for(1)
        rows = terminal.until(lambda rows: "waiting for the agent" in rows[0], "it is drawn")
        assert "Incidents are not known yet" in rows
        assert "No open incidents" not in rows


def test_an_agent_that_ends_is_said(agent: SocketAgent):
    with subprocess.Popen(
        [*COMMAND, "--trace-socket", agent.path, "--once"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        agent.wait_for(1)
        agent.hub.stop()
        out, err = child.communicate(timeout=SECONDS)
    assert (child.returncode, out, err) == (1, b"", b"dnstrail: the agent has ended\n")
