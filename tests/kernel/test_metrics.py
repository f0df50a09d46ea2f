"""The agent's numbers and its health on a real kernel: they say what the session lines say, and what the kernel does.

The agent runs in the namespace of the lab's node, as with hostNetwork: that one is `host`, and the port is its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from prometheus_client.openmetrics import parser

from agent.kernel.syscall import bpf
from agent.lab import Lab, UnsupportedFaultError, closed_port, drop_queries, drop_replies, stopped_server, wait_until
from agent.lab.namespaces import call_inside
from tests.kernel.conftest import EVERY_FAILURE
from tests.lab.conntrack_faults import drop_question, full_table
from tests.lab.socket_faults import narrow_server, open_query

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
UPSTREAM_NAME = "www.upstream.test"
PORT = 9353
WHERE = f"127.0.0.1:{PORT}"
READY_SECONDS = 30.0
SECONDS = 15.0
ENABLE_STATISTICS = 32
"""BPF_ENABLE_STATS (linux/bpf.h): the kernel keeps statistics while its descriptor is open."""
OPENMETRICS = "application/openmetrics-text;version=1.0.0"

Series = tuple[tuple[str, str], ...]
Numbers = dict[tuple[str, Series], float]


class Running:
    """`dnstrail run` on the lab's node."""

    def __init__(self, lab: Lab, folder: Path, *options: str) -> None:
        self.lab = lab
        self.out, self.err = folder / "lines", folder / "diagnostics"
        command = [
            sys.executable,
            "-m",
            "agent",
            "run",
            f"--metrics-address={WHERE}",
            "--trace-socket=none",
            "--log-rate=1000000",
            *EVERY_FAILURE,
        ]
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process: Popen[str] = lab.node.popen([*command, "--timeout=1.5", *options], stdout=out, stderr=err)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        """A page, asked for on the node."""
        with self.connect() as connected:
            client = http.client.HTTPConnection("127.0.0.1", PORT)
            client.sock = connected
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.read().decode()

    def connect(self) -> socket.socket:
        """A connection to the port, from the node."""
        sock = call_inside(self.lab.node.name, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        sock.settimeout(SECONDS)
        try:
            sock.connect(("127.0.0.1", PORT))
        except OSError:
            sock.close()
            raise
        return sock

    def numbers(self) -> Numbers:
        """A scrape."""
        status, text = self.get("/metrics", Accept=OPENMETRICS)
        assert status == 200
        families = parser.text_string_to_metric_families(text)
        samples = [sample for family in families for sample in family.samples]
        return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}

    def value(self, name: str, **labels: str) -> float:
        """One number, summed over the labels that are not given."""
        return total(self.numbers(), name, **labels)

    def wait_for(self, name: str, above: float, **labels: str) -> None:
        """Until a number has grown beyond this."""
        wait_until(lambda: self.value(name, **labels) > above, f"{name}{labels} to be above {above}", seconds=SECONDS)

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, "the agent to be ready", seconds=READY_SECONDS)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.err.read_text()
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        """Its session lines so far."""
        text = self.out.read_text()
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [line for line in lines if "Kind" not in line]


def total(numbers: Numbers, name: str, **labels: str) -> float:
    """The sum over all series with these labels."""
    wanted = set(labels.items())
    found = [
        value for (known, series), value in numbers.items() if known == f"dnstrail_{name}" and wanted <= set(series)
    ]
    assert found, f"{name}{labels} is not there"
    return sum(found)


def by(numbers: Numbers, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """What is not 0, by the values of some labels."""
    sums: Counter[tuple[str, ...]] = Counter()
    for (known, series), value in numbers.items():
        if known == f"dnstrail_{name}" and value:
            sums[tuple(dict(series)[label] for label in labels)] += value  # type: ignore[assignment]
    return dict(sums)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("nftables", clients=2) as lab, port_untracked(lab):
        yield lab


@contextlib.contextmanager
def port_untracked(lab: Lab) -> Iterator[None]:
    """Scrapes need no entry in the connection table, so that they work when it is full; those of a node do need one."""
    rules = f"tcp dport {PORT} notrack; tcp sport {PORT} notrack;"
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority raw; {rules} }}\n" for hook in ("prerouting", "output")
    )
    lab.node.run(["nft", "-f", "-"], stdin=f"table inet untracked-port {{\n{chains}}}\n")
    yield


@pytest.fixture
def agent(lab: Lab, tmp_path: Path) -> Iterator[Running]:
    running = Running(lab, tmp_path)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def of_every_kind(lab: Lab) -> None:
    """Lookups that go well and lookups that do not."""
    client = lab.clients[0]
    for rdtype in ("A", "AAAA", "SRV"):
        client.dig(NAME, rdtype)
    client.dig(NAME, "A", "10.96.0.10", "+tcp")
    client.dig("nobody.default.svc.cluster.local")
    client.dig(UPSTREAM_NAME)
    client.resolve(NAME)
    for fault in (drop_queries, drop_replies, closed_port, stopped_server):
        with fault(lab):
            client.dig(NAME)
    with drop_question(lab, NAME, "AAAA"):
        client.resolve(NAME, options="timeout:1 attempts:3")


def test_the_numbers_are_those_of_the_session_lines(agent: Running, lab: Lab):
    of_every_kind(lab)
    agent.wait_for("lost_messages_total", 0, cause="LateReply")
    agent.wait_for("pair_losses_total", 0, lost="AAAA")
    numbers = agent.numbers()
    # Others may use this machine's DNS too: of those that have ended, each is a line, in this order.
    count = int(total(numbers, "sessions_total"))
    wait_until(lambda: len(agent.lines()) >= count, "all lines to be there", seconds=SECONDS)
    lines = agent.lines()[:count]
    assert by(numbers, "sessions_total", "vantage", "status", "bitmap") == Counter(
        (line["Vantage"] or "transit", line["Status"], str(line["BitMap"])) for line in lines
    )
    assert by(numbers, "responses_total", "rcode") == Counter((line["Rcode"],) for line in lines if line["Rcode"])
    assert by(numbers, "findings_total", "finding") == Counter((one,) for line in lines for one in line["Findings"])
    causes = [line["Cause"] for line in lines if line["Cause"]]
    assert by(numbers, "session_causes_total", "cause", "confidence") == Counter(
        (cause["Code"], cause["Confidence"]) for cause in causes
    )
    assert by(numbers, "queries_total", "proto") == by_attempts(lines)
    for name, part in {"server": ("Server",), "transit": ("ClientToServer", "ServerToClient")}.items():
        measured = [line["Latency"][one] for line in lines for one in part if line["Latency"][one] is not None]
        assert total(numbers, f"{name}_duration_seconds_count") == len(measured)
        assert total(numbers, f"{name}_duration_seconds_sum") == pytest.approx(sum(measured))
    delivered = [line["DurationSeconds"] for line in lines if line["Status"] == "Succeeded" and line["Client"]["Netns"]]
    assert total(numbers, "lookup_duration_seconds_count") >= len(delivered) > 0
    assert total(numbers, "log_lines_total") >= count


def by_attempts(lines: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    sums: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        sums[line["Protocol"].lower(),] += line["Attempts"] if line["Question"] else 1
    return dict(sums)


def test_each_fault_is_a_lost_message_of_its_cause_and_leg(agent: Running, lab: Lab):
    client = lab.clients[0]
    cases = (
        (drop_queries, "PolicyDrop", "query"),
        (drop_replies, "PolicyDrop", "reply"),
        (closed_port, "NoListener", "query"),
        (stopped_server, "ServerNoReply", "query"),
    )
    for fault, cause, leg in cases:
        before = agent.value("lost_messages_total", cause=cause, leg=leg)
        with fault(lab):
            client.dig(NAME)
            agent.wait_for("lost_messages_total", before, cause=cause, leg=leg)


@pytest.mark.parametrize("lost", ["A", "AAAA"])
def test_the_lost_half_of_a_pair_is_told(agent: Running, lab: Lab, lost: str):
    lab.clients[0].resolve(NAME)
    agent.wait_for("pairs_total", 0, vantage="both")
    with drop_question(lab, NAME, lost):
        lab.clients[0].resolve(NAME, options="timeout:1 attempts:3")
    agent.wait_for("pair_losses_total", 0, lost=lost)
    assert agent.value("pair_losses_total") == agent.value("pair_losses_total", lost=lost)
    assert agent.value("retransmissions_total") > 0


def test_a_full_connection_table_is_seen_in_the_hosts_counters(agent: Running, lab: Lab):
    lab.clients[0].dig(NAME)
    agent.wait_for("sessions_total", 0)
    limit = agent.value("conntrack_entries_limit", netns="host")
    assert 0 < agent.value("conntrack_entries", netns="host") < limit / 2
    try:
        with full_table(lab) as table:
            agent.wait_for("conntrack_entries", 0.99 * limit, netns="host")
            table.fill()
            lab.clients[0].dig(NAME)
            agent.wait_for("conntrack_drop_total", 0, netns="host")
            agent.wait_for("lost_messages_total", 0, cause="ConntrackTableFull", leg="query")
    except UnsupportedFaultError as error:
        pytest.skip(str(error))
    assert agent.value("conntrack_drop_total", netns="dns_server") == 0


def test_a_servers_full_receive_buffer_is_seen_in_its_namespaces_counters(agent: Running, lab: Lab):
    lab.clients[0].dig(NAME)
    agent.wait_for("dns_server_namespaces", 0)
    # What was there before the agent looked is not its business.
    assert agent.value("udp_receive_buffer_errors_total", netns="dns_server") == 0
    with narrow_server(lab.servers[0]) as narrow, open_query(lab.clients[1], NAME) as query:
        narrow.fill(query.send)
    agent.wait_for("udp_receive_buffer_errors_total", 0, netns="dns_server")
    agent.wait_for("lost_messages_total", 0, cause="ServerSocketOverflow", leg="query")


def test_records_and_program_runs_are_the_kernels_own_count(agent: Running, lab: Lab):
    statistics = bpf(ENABLE_STATISTICS, 0)
    try:
        runs = agent.value("bpf_program_runs_total", program="net_dev_queue")
        before = agent.value("capture_records_total", event="tx")
        lab.clients[0].dig(NAME)
        agent.wait_for("capture_records_total", before + 3, event="tx")
        agent.wait_for("bpf_program_runs_total", runs + 3, program="net_dev_queue")
        assert agent.value("bpf_program_run_seconds_total", program="net_dev_queue") > 0
    finally:
        os.close(statistics)
    assert agent.value("ring_size_bytes") == 16 << 20
    assert 0 <= agent.value("ring_usage_ratio") < 1
    assert agent.value("loop_turn_duration_seconds_count") > 0
    assert agent.value("loop_last_turn_age_seconds") < SECONDS


def test_readiness_begins_with_what_is_missing_and_life_goes_on_all_the_while(lab: Lab, tmp_path: Path):
    running = Running(lab, tmp_path)
    said: dict[str, list[tuple[int, str]]] = {"/readyz": [], "/healthz": []}

    def has_said_all() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            for path, answers in said.items():
                answers.append(running.get(path))
        return bool(said["/readyz"]) and said["/readyz"][-1] == (200, "ready\n")

    try:
        wait_until(has_said_all, "readiness", seconds=READY_SECONDS)
    finally:
        running.process.kill()
        running.process.wait()
    assert said["/readyz"][0] == (503, "the BPF programs are not attached yet\n")
    assert {status for status, _ in said["/healthz"]} == {200}


def test_a_second_agent_on_the_same_port_says_so_and_leaves_the_first_alone(agent: Running, lab: Lab, tmp_path: Path):
    folder = tmp_path / "second"
    folder.mkdir()
    second = Running(lab, folder)
    assert second.process.wait(timeout=READY_SECONDS) == 1
    said = second.err.read_text()
    assert said.count("\n") == 1
    assert f"cannot listen on {WHERE}: the port is in use" in said
    assert agent.get("/healthz")[0] == 200


def test_without_an_address_there_is_no_port(lab: Lab, tmp_path: Path):
    running = Running(lab, tmp_path, "--metrics-address=none")
    try:
        wait_until(lambda: "ready in" in running.err.read_text(), "the agent to be ready", seconds=READY_SECONDS)
        with pytest.raises(ConnectionRefusedError):
            running.connect()
    finally:
        running.process.kill()
        running.process.wait()


def hostile(running: Running, stop: threading.Event) -> None:
    """Half requests, silence, requests for the largest page that are never read, and connections that are reset."""
    held: list[socket.socket] = []
    habits = (b"GET /metrics HTTP/1.1\r\nX: ", b"", b"GET /metrics HTTP/1.1\r\n\r\n", b"\xff" * 4096)
    while not stop.is_set():
        for data in habits:
            with contextlib.suppress(OSError):
                sock = running.connect()
                held.append(sock)
                sock.sendall(data)
        for sock in held[:-60]:
            sock.close()
        held = held[-60:]
    for sock in held:
        sock.close()


def test_hostile_clients_of_the_port_cost_no_record_and_probes_are_answered(agent: Running, lab: Lab):
    stop = threading.Event()
    crowd = [threading.Thread(target=hostile, args=(agent, stop)) for _ in range(3)]
    before = agent.numbers()
    for one in crowd:
        one.start()
    try:
        lookups = 200
        for _ in range(lookups // 20):
            lab.clients[0].run(["dig", "-r", "@10.96.0.10", *[NAME, "A"] * 20, "+time=1", "+tries=1"], check=False)
            assert agent.get("/healthz")[0] == 200
        agent.wait_for("sessions_total", total(before, "sessions_total") + lookups - 1)
    finally:
        stop.set()
        for one in crowd:
            one.join()
    after = agent.numbers()
    assert total(after, "capture_lost_records_total", step="ring") == 0
    assert total(after, "sessions_total", status="SampleLoss") == total(before, "sessions_total", status="SampleLoss")
    assert total(after, "http_refused_connections_total") > 0


def test_the_agent_ends_in_time_although_clients_hang_on_its_port(agent: Running):
    with contextlib.ExitStack() as clients:
        for _ in range(10):
            clients.enter_context(agent.connect()).sendall(b"GET /metrics HTTP/1.1\r\n")
        begun = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(timeout=10) == 0
        assert time.monotonic() - begun < 2
    assert "Traceback" not in agent.err.read_text()
