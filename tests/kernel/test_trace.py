"""`dnstrail trace` beside a running agent, and by itself, on a real kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.lab import Lab, drop_queries, wait_until
from agent.lab.processes import PATIENCE
from agent.lab.zones import ANY_CLUSTER_NAME
from agent.readers.requests import Wanted, write_request
from tests.kernel.conftest import DNSTRAIL, Line, Watch, end_all, whole_lines
from tests.unit.terminal import Terminal

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
SECONDS = 30.0 * PATIENCE
LOOKUPS = 23
Start = Callable[..., Watch]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


class Trace:
    """`dnstrail trace -o json` in the background."""

    def __init__(self, folder: Path, path: str, *options: str) -> None:
        self.out, self.err = folder / "traced", folder / "said"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [*DNSTRAIL, "trace", "-o", "json", "--trace-socket", path, *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def lines(self, lab: Lab) -> list[Line]:
        """Those of the lab's first client."""
        client = lab.clients[0].netns_id
        return [line for line in whole_lines(self.out.read_text()) if line["Client"]["Netns"] == client]


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Callable[..., Trace]]:
    started: list[Trace] = []

    def start(path: str, *options: str) -> Trace:
        folder = tmp_path / f"trace-{len(started)}"
        folder.mkdir()
        started.append(Trace(folder, path, *options))
        return started[-1]

    yield start
    end_all(one.process for one in started)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "trace.sock")


class Reader:
    """One who speaks to the socket himself."""

    def __init__(self, path: str) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(SECONDS)
        self.connection.connect(path)
        self.connection.sendall(write_request(Wanted()))
        self._file = self.connection.makefile("rb")

    def state(self) -> dict:
        """The next one: the agent knows that he is there."""
        while (found := json.loads(self._file.readline())).get("Kind") != "State":
            pass
        return found

    def state_once(self, condition: Callable[[dict], bool]) -> dict:
        end = time.monotonic() + SECONDS
        while not condition(state := self.state()):
            assert time.monotonic() < end, state
        return state


def usual(lab: Lab, lookups: int) -> None:
    """Lookups of one kind, so that the agent would only count them."""
    for _ in range(lookups):
        assert "status: NOERROR" in lab.clients[0].dig(NAME, "A").stdout


def test_every_healthy_lookup_is_shown_while_somebody_looks_although_the_agent_only_counts_them(
    lab: Lab, watch: Start, trace: Callable[..., Trace], path: str
):
    agent = watch("--trace-socket", path, "--log-rate", "1")
    usual(lab, 5)
    reader = Reader(path)
    shown = trace(path)
    before = reader.state()["Lookups"]
    wait_until(lambda: agent_readers(path) >= 2, "trace is connected", seconds=SECONDS)
    begun = datetime.now(UTC).isoformat()

    def lines_since() -> list[Line]:
        return [line for line in shown.lines(lab) if line["Time"] > begun]

    usual(lab, LOOKUPS)
    wait_until(lambda: len(lines_since()) >= LOOKUPS, "all lookups are shown", seconds=SECONDS)
    lines = lines_since()
    assert len(lines) == LOOKUPS
    for line in lines:
        assert (line["Status"], line["PathBitMap"], len(line["Path"])) == ("Succeeded", 51, 8)
        assert line["Messages"][-1]["response_message"]["answer"][0]["data"] == "10.96.12.7"
    state = reader.state_once(lambda state: state["Lookups"] - before >= LOOKUPS)
    assert (state["PassedOver"], state["Held"], state["Dropped"]) == (0, 0, 0)
    # On stdout they are still limited.
    assert len(agent.lines(lab)) < LOOKUPS


def agent_readers(path: str) -> int:
    """How many connections to a socket the kernel knows of."""
    return sum(line.split()[-1] == path and line.split()[5] == "03" for line in unix_sockets())


def unix_sockets() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines()[1:]


def test_a_lost_lookup_is_followed_to_where_it_was_dropped(lab: Lab, watch: Start, path: str):
    watch("--trace-socket", path, "--timeout", "1.5", "--log", "none")
    command = [*DNSTRAIL, "trace", "--trace-socket", path, "-o", "detail", "--cause", "PolicyDrop", "--count", "1"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as shown:
        wait_until(lambda: agent_readers(path), "trace is connected", seconds=SECONDS)
        with drop_queries(lab):
            lab.clients[0].dig(NAME)
        out, _ = shown.communicate(timeout=SECONDS)
    rows = out.splitlines()
    assert rows[0].startswith("PolicyDrop on ")
    assert any("──✗ dropped: " in row for row in rows)
    hops = rows[rows.index("  Hops") + 1 :]
    assert f"netns {lab.clients[0].netns_id} eth0" in hops[0]
    assert " drop " in hops[2]


def test_beyond_the_bound_the_reader_is_told_how_many_were_only_counted(
    lab: Lab, watch: Start, path: str, tmp_path: Path
):
    agent = watch("--trace-socket", path, "--log", "none")
    names = tmp_path / "names"
    names.write_text("".join(f"n{number}.{ANY_CLUSTER_NAME} A\n" for number in range(20_000)))
    reader = Reader(path)
    before = reader.state()
    lab.clients[0].run(
        ["dnsperf", "-s", lab.servers[0].address, "-d", str(names), "-l", "4", "-Q", "4000", "-c", "8"], timeout=60
    )
    state = reader.state_once(lambda state: state["PassedOver"] > 0)
    assert 2000 < state["PassedOver"] < state["Lookups"] - before["Lookups"]
    assert state["LostRecords"] == before["LostRecords"]
    reader.connection.close()
    assert "records lost" in agent.stop()


def test_a_reader_that_stands_still_keeps_nobody(lab: Lab, watch: Start, trace: Callable[..., Trace], path: str):
    agent = watch("--trace-socket", path, "--log-rate", "1000000", "--max-lines", "unlimited")
    stopped, quick = trace(path), trace(path)
    wait_until(lambda: agent_readers(path) >= 2, "both are connected", seconds=SECONDS)
    stopped.process.send_signal(signal.SIGSTOP)
    usual(lab, LOOKUPS)
    wait_until(lambda: len(quick.lines(lab)) >= LOOKUPS, "the other has all", seconds=SECONDS)
    assert len(agent.wait_for(lab, LOOKUPS)) >= LOOKUPS
    began = time.monotonic()
    agent.stop()
    assert time.monotonic() - began < 2.0 * PATIENCE


def test_garbage_on_the_socket_does_not_disturb_the_agent(lab: Lab, watch: Start, path: str):
    agent = watch("--trace-socket", path)
    for data in (b"\0" * 100_000, b"GET / HTTP/1.1\r\n\r\n", b'{"Names":', os.urandom(5000) + b"\n"):
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(path)
            try:
                visitor.sendall(data)
            except OSError:
                continue  # it hung up already
    usual(lab, 3)
    assert len(agent.wait_for(lab, 3)) == 3
    assert "Traceback" not in agent.stop()


def test_the_next_agent_takes_over_what_a_killed_one_left_and_a_second_one_goes_without(watch: Start, path: str):
    first = watch("--trace-socket", path)
    first.process.kill()
    first.process.wait()
    assert Path(path).exists()
    second = watch("--trace-socket", path)
    Reader(path).state()
    third = watch("--trace-socket", path)
    assert third.diagnostics().count("another dnstrail listens there") == 1
    third.stop()
    Reader(path).state()
    second.stop()
    assert not Path(path).exists()


def test_without_an_agent_it_captures_by_itself_and_leaves_nothing(
    lab: Lab, trace: Callable[..., Trace], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(own))
    monkeypatch.setenv("DNSTRAIL_OUTPUT", "table")
    shown = trace(path)
    wait_until(lambda: "ready in" in shown.err.read_text(), "it captures", seconds=SECONDS)
    usual(lab, 5)
    wait_until(lambda: len(shown.lines(lab)) >= 5, "its lookups are shown", seconds=SECONDS)
    (child,) = Path(f"/proc/{shown.process.pid}/task/{shown.process.pid}/children").read_text().split()
    shown.process.terminate()
    assert shown.process.wait(SECONDS) == 0
    assert not Path(f"/proc/{child}").exists()
    assert list(own.iterdir()) == []
    assert "no agent listens at" in shown.err.read_text().splitlines()[0]


def test_an_agent_of_its_own_ends_even_where_it_is_killed(trace: Callable[..., Trace], path: str):
    shown = trace(path)
    wait_until(lambda: "ready in" in shown.err.read_text(), "it captures", seconds=SECONDS)
    (child,) = Path(f"/proc/{shown.process.pid}/task/{shown.process.pid}/children").read_text().split()
    shown.process.kill()
    shown.process.wait()
    wait_until(lambda: not is_alive(child), "its agent has ended", seconds=SECONDS)


def is_alive(pid: str) -> bool:
    """Whether it runs: of an orphan its end may be left to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_keeps_it_from_capturing_is_said_in_one_sentence(path: str):
    command = [*DNSTRAIL, "trace", "--trace-socket", path]
    dropped = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups"]
    done = subprocess.run([*dropped, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (1, 0) or done.stdout.startswith("TIME")
    assert "CAP_BPF" in done.stderr or "root" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_screen_shows_lookups_of_its_own_capture(lab: Lab, path: str):
    with Terminal([*DNSTRAIL, "trace", "--trace-socket", path], 160, 30) as terminal:
        terminal.until(lambda rows: "open" in rows[0], "it captures", SECONDS)
        assert "own capture" in terminal.shown.rows()[-1]
        usual(lab, 3)
        terminal.until(
            lambda rows: sum("redis-master.default" in row for row in rows) >= 3, "lookups are shown", SECONDS
        )
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.attributes() == terminal.before
