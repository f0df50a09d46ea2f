"""Incidents as a reader of stdout, of the metrics and of the HTTP port finds them, on a node that really breaks."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Self

import pytest

from agent.lab import Lab, Pod, wait_until
from agent.lab.faults import tc_drop
from tests.kernel.conftest import LINE_SECONDS, Line, Watch, every_line
from tests.lab.conntrack_faults import without_route
from tests.lab.scripted import scripted

pytestmark = pytest.mark.kernel

RATE = 600
STORM_SECONDS = 6
NAMES = 2000
LIVE = ("--failure-rate=1", "--max-lines=100", "--max-bytes=1M", "--timeout=2", "--metrics-address=127.0.0.1:0")
"""As it is when nothing is said."""
SAMPLE_SECONDS = 0.02
CLOSE_SECONDS = 0.6
"""Within so long of the file there is not more than within a second of the agent: it writes a turn later at most."""
FAILING = 12
SHORT = 0.02
ENDS_SECONDS = 100.0


class Growth:
    """How a file grew: its size and its lines, many times a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen: list[tuple[float, int, int]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        lines = size = 0
        with self._path.open("rb") as file:
            while not self._stopped.wait(SAMPLE_SECONDS):
                new = file.read()
                lines, size = lines + new.count(b"\n"), size + len(new)
                self.seen.append((time.monotonic(), lines, size))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def most(self) -> tuple[int, int]:
        """Lines and bytes that came closest together."""
        lines = data = 0
        for first, (begun, lines_before, bytes_before) in enumerate(self.seen):
            close = itertools.takewhile(lambda one, begun=begun: one[0] - begun < CLOSE_SECONDS, self.seen[first:])
            _, lines_after, bytes_after = list(close)[-1]
            lines, data = max(lines, lines_after - lines_before), max(data, bytes_after - bytes_before)
        return lines, data


def incidents(watch: Watch) -> list[Line]:
    return [line for line in every_line(watch.out.read_text()) if "Kind" in line]


def of_code(watch: Watch, code: str, state: str = "Opened") -> list[Line]:
    return [line for line in incidents(watch) if (line["Code"], line["State"]) == (code, state)]


def number(watch: Watch, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", watch.get("/metrics"), re.MULTILINE)
    assert found, series
    return float(found[1])


def load(lab: Lab, folder: Path, words: tuple[str, ...], rate: int, seconds: int) -> Popen[str]:
    """Ask the first server for names that begin with these words, one after the other."""
    names = names_file(folder, words)
    return ask_for(lab.clients[0], lab.servers[0].address, names, "-l", str(seconds), "-Q", str(rate))


def names_file(folder: Path, words: tuple[str, ...], zone: str = "test") -> Path:
    names = folder / f"names-{'-'.join(words)}"
    names.write_text("".join(f"{words[index % len(words)]}.x{index}.{zone} A\n" for index in range(NAMES)))
    return names


def ask_for(client: Pod, server: str, names: Path, *options: str) -> Popen[str]:
    """What dnsperf says of it is in the file beside the names."""
    with said_of(names).open("w") as said:
        return client.popen(["dnsperf", "-f", "inet", "-s", server, "-d", str(names), *options], stdout=said)


def said_of(names: Path) -> Path:
    return names.with_suffix(".said")


@contextmanager
def watching(folder: Path, *options: str) -> Iterator[Watch]:
    watch = Watch(folder, *LIVE, *options)
    try:
        yield watch
    finally:
        watch.process.kill()
        watch.process.wait()


def fail(pod: Pod, server: str) -> None:
    for index in range(FAILING):
        assert pod.ask(f"x{index}.test", server=server, seconds=SHORT) is None


@pytest.mark.slow  # an incident ends after a minute without such lookups
@pytest.mark.timeout(300)
def test_a_server_that_refuses_half_of_all_lookups_is_one_incident_from_its_beginning_to_its_end(tmp_path: Path):
    with (
        Lab("nftables", clients=1) as lab,
        scripted(lab.servers[0]),
        watching(tmp_path, "--failure-rate=unlimited") as watch,
    ):
        with Growth(watch.out) as growth:
            assert load(lab, tmp_path, ("ok", "refused"), RATE, STORM_SECONDS).wait(60) == 0
            wait_until(lambda: of_code(watch, "ServerError"), "the incident", seconds=LINE_SECONDS)
        assert number(watch, 'dnstrail_incidents_open{cause="ServerError"}') == 1
        (listed,) = json.loads(watch.get("/incidents"))["Open"]
        healthy = load(lab, tmp_path, ("ok",), 5, int(ENDS_SECONDS))
        wait_until(lambda: of_code(watch, "ServerError", "Ended"), "its end", seconds=ENDS_SECONDS)
        healthy.kill()
        healthy.wait()
        assert number(watch, 'dnstrail_incidents_open{cause="ServerError"}') == 0
        assert number(watch, 'dnstrail_incidents_total{cause="ServerError"}') == 1
        (over,) = json.loads(watch.get("/incidents"))["Ended"]
        lines, ended = watch.lines(lab), of_code(watch, "ServerError", "Ended")[0]
        told = incidents(watch)

    server = lab.servers[0].address
    assert {line["Id"] for line in told} == {listed["Id"], over["Id"]} == {ended["Id"]}
    assert [line["State"] for line in told if line["State"] != "Updated"] == ["Opened", "Ended"]
    assert ended["Server"]["Address"] == f"{server}:53"
    assert ended["Client"]["Address"] == lab.clients[0].address
    assert ended["Lookups"] == pytest.approx(RATE * STORM_SECONDS / 2, rel=0.1)
    assert 45 <= listed["SharePercent"] <= 55
    assert ended["SharePercent"] == pytest.approx(50, abs=1)
    assert listed["Client"] is None
    assert listed["Examples"] == []

    refused = [line for line in lines if line["Rcode"] == "REFUSED"]
    assert {example["Time"] for example in ended["Examples"]} <= {line["Time"] for line in refused}
    assert ended["HeldBack"] + len(refused) == ended["Lookups"]
    most_lines, most_bytes = growth.most()
    assert 0 < most_lines <= 100
    assert most_bytes <= 1 << 20


@pytest.mark.timeout(120)
def test_a_client_that_a_policy_stops_and_one_that_asks_where_nobody_listens_are_two_incidents(tmp_path: Path):
    with Lab("nftables", clients=2) as lab, watching(tmp_path) as watch:
        stopped, other = lab.clients
        with tc_drop(lab.node, stopped.node_interface, "ingress"):
            fail(stopped, lab.servers[0].address)
        fail(other, stopped.address)
        for code in ("PolicyDrop", "NoListener"):
            wait_until(lambda code=code: of_code(watch, code), f"the incident {code}", seconds=LINE_SECONDS)
        (policy,), (nobody,) = of_code(watch, "PolicyDrop"), of_code(watch, "NoListener")
        lines = watch.lines(lab)

    assert policy["Client"]["Address"] == stopped.address
    assert policy["Place"] == f"query, network namespace {lab.node.netns_id}"
    assert nobody["Client"]["Address"] == other.address
    assert nobody["Place"].endswith(f"server {stopped.address}:53")
    assert (policy["Clients"], nobody["Clients"]) == (1, 1)
    for incident in (policy, nobody):
        (example,) = incident["Examples"]
        (line,) = [one for one in lines if one["Time"] == example["Time"]]
        assert (line["TransactionId"], line["Question"]["Name"]) == (example["TransactionId"], example["Name"])
        assert line["Cause"]["Code"] == incident["Code"]


def test_healthy_lookups_and_a_single_loss_are_no_incident(tmp_path: Path):
    with Lab("nftables", clients=2) as lab, watching(tmp_path) as watch:
        for index in range(20):
            assert lab.clients[0].ask(f"x{index}.any.cluster.local")
        with tc_drop(lab.node, lab.clients[1].node_interface, "ingress"):
            assert lab.clients[1].ask("lost.any.cluster.local", seconds=SHORT) is None
        wait_until(
            lambda: any(line["Cause"] for line in watch.lines(lab)), "the line of the loss", seconds=LINE_SECONDS
        )
        time.sleep(2)
        assert not [line for line in incidents(watch) if line["Code"] == "PolicyDrop"]
        assert number(watch, 'dnstrail_incidents_total{cause="PolicyDrop"}') == 0


STORM_RATE = 3_000
"""What the agent has time for beside the generators. Beyond that, lookups are told as SampleLoss, rare ones too."""
RARE = 12
RARE_SECONDS = 0.5


@pytest.mark.slow  # three generators of load take both processors
@pytest.mark.timeout(300)
def test_a_storm_of_three_failures_is_three_incidents_in_bounded_output_and_a_rare_fourth_is_told_each_time(
    tmp_path: Path,
):
    with Lab("nftables", clients=4, servers=2) as lab, watching(tmp_path) as watch:
        stopped, unheard, refused, rare = lab.clients
        answering, unreachable = lab.servers
        to = (stopped, answering.address), (unheard, rare.address), (refused, answering.address)
        many = ("-q", "60000", "-t", "1", "-c", "8", "-l", str(STORM_SECONDS), "-Q", str(STORM_RATE // 3))
        with (
            tc_drop(lab.node, stopped.node_interface, "ingress"),
            without_route(lab, unreachable),
            Growth(watch.out) as growth,
        ):
            files = [names_file(tmp_path, (f"storm{number}",), "nowhere.example") for number in range(len(to))]
            storm = [ask_for(client, server, names, *many) for (client, server), names in zip(to, files, strict=True)]
            for index in range(RARE):
                assert rare.ask(f"rare{index}.test", server=unreachable.address, seconds=RARE_SECONDS) is None
            assert [load.wait(60) for load in storm] == [0, 0, 0]
            asked = [int(re.findall(r"Queries sent: +(\d+)", said_of(names).read_text())[0]) for names in files]
            codes = ("PolicyDrop", "NoListener", "ServerError")
            for code in codes:
                wait_until(lambda code=code: of_code(watch, code), f"the incident {code}", seconds=2 * LINE_SECONDS)
            wait_until(lambda: "rare" in watch.out.read_text(), "the rare failure", seconds=LINE_SECONDS)
            wait_until(lambda: not number(watch, "dnstrail_open_sessions"), "the end", seconds=2 * LINE_SECONDS)
        told, metrics, lines = incidents(watch), watch.get("/metrics"), watch.lines(lab)

    assert sum(asked) > 0.9 * STORM_RATE * STORM_SECONDS
    # The server refuses some by itself, and of others says what its upstream says.
    assert set(codes) <= {line["Code"] for line in told} <= {*codes, "UpstreamError"}
    by_client = list(zip((stopped, unheard, refused, rare), (*codes, "NoRoute"), strict=True))
    for client, code in by_client:
        opened = [line for line in told if (line["Code"], line["State"]) == (code, "Opened")]
        assert [line["Client"]["Address"] for line in opened if line["Client"]] in ([client.address], [])
    caused = [(line["Client"]["Netns"], line["Cause"]["Code"]) for line in lines if line["Cause"]]
    right = {(client.netns_id, code) for client, code in by_client} | {(refused.netns_id, "UpstreamError")}
    assert set(caused) <= right
    assert caused.count((rare.netns_id, "NoRoute")) == RARE
    failed = sum(float(found) for found in re.findall(r'^dnstrail_sessions_total{.*"} (\S+)$', metrics, re.MULTILINE))
    assert failed >= sum(asked) + RARE
    most_lines, most_bytes = growth.most()
    assert 0 < most_lines <= 100
    assert most_bytes <= 1 << 20
