"""`dnstrail record` beside `dnstrail run`: the replay of the recording is what was said live."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.explain.silence import READ_WORDS
from agent.lab import BIG_NAME, VIP, VIP6, Lab, closed_port, drop_queries, drop_replies, stopped_server
from agent.lab.processes import PATIENCE
from agent.wire.render import rdtype_from_text
from tests.kernel.conftest import DNSTRAIL, READY_SECONDS, Line, Watch, end_all

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
TIMEOUT = "1.5"


class Tape:
    """`dnstrail record` in the background."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.err = folder / "diagnostics"
        with self.err.open("w") as err:
            command = [*DNSTRAIL, "record", "--write", str(folder / "dns"), *options]
            self.process = subprocess.Popen(command, stderr=err)
        deadline = time.monotonic() + READY_SECONDS
        while "ready in" not in self.err.read_text():
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> list[str]:
        """End it; its files, oldest first."""
        self.process.terminate()
        assert self.process.wait(timeout=10 * PATIENCE) == 0, self.err.read_text()
        return sorted(map(str, self.folder.glob("dns-*.pcapng")))


@pytest.fixture
def tape(tmp_path: Path) -> Iterator[Callable[..., Tape]]:
    started: list[Tape] = []

    def start(*options: str) -> Tape:
        folder = tmp_path / "tape"
        folder.mkdir()
        started.append(Tape(folder, *options))
        return started[-1]

    yield start
    end_all(one.process for one in started)


LOOKUPS = 20


def all_kinds(lab: Lab) -> None:
    """Lookups that end well, and some that do not."""
    client = lab.clients[0]
    client.dig(NAME)
    client.dig(NAME, "AAAA", VIP6)
    client.dig(NAME, "A", VIP, "+tcp")
    client.dig(NAME, "A", VIP6, "+tcp")
    client.dig(BIG_NAME, "A", VIP, "+bufsize=4096")
    client.dig("www.upstream.test")
    client.resolve("api.shop.svc.cluster.local")
    with drop_queries(lab):
        client.dig(NAME)
    with drop_replies(lab):
        client.dig(NAME, "AAAA", VIP6)
    with closed_port(lab):
        client.dig(NAME)
    with stopped_server(lab):
        client.dig(NAME)
        time.sleep(float(TIMEOUT) + 0.5)


def replayed(*arguments: str) -> list[Line]:
    done = subprocess.run([*DNSTRAIL, "replay", *arguments], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


ONLY_LIVE = {words for one in READ_WORDS.values() for words in one}
"""Evidence that is asked of the running kernel, where that has kprobes: no recording holds it."""


def recordable(cause: Line | None) -> Line | None:
    """A cause with the evidence that a recording can hold."""
    return cause and cause | {"Evidence": [words for words in cause["Evidence"] if words not in ONLY_LIVE]}


def essence(line: Line) -> dict[str, object]:
    """All but the times, which two programs read from the clock one after the other."""
    return {
        "who": (line["Client"]["Port"], line["TransactionId"], line["Question"], line["Protocol"]),
        "masks": (line["Status"], line["BitMap"], line["DnstapBitMap"], line["PathBitMap"], line["Rcode"]),
        "ends": (line["Vantage"], line["Client"], line["Server"], line["Attempts"], line["Findings"]),
        "cause": recordable(line["Cause"]),
        "path": [{key: value for key, value in hop.items() if key != "OffsetSeconds"} for hop in line["Path"]],
        "messages": [
            {key: value for key, value in one.items() if not key.endswith("_time")} for one in line["Messages"]
        ],
    }


def essences(lines: list[Line]) -> list[str]:
    return sorted(json.dumps(essence(line), sort_keys=True) for line in lines)


class Recorded(NamedTuple):
    """A recording of a lab's lookups of all kinds."""

    names: list[str]
    """Its files, oldest first."""
    said: list[Line]
    """What was said live."""
    client: int
    """The namespace of the lab's client."""
    places: set[int]
    """All of the lab's namespaces."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    with Lab("nftables") as lab, ExitStack() as stack:
        recording = Tape(tmp_path_factory.mktemp("tape"))
        stack.callback(end_all, [recording.process])
        live = Watch(tmp_path_factory.mktemp("live"), "--timeout", TIMEOUT)
        stack.callback(end_all, [live.process])
        all_kinds(lab)
        live.wait_for(lab, 12)
        live.stop()
        return Recorded(recording.stop(), live.lines(lab), lab.clients[0].netns_id, places_of(lab))


def places_of(lab: Lab) -> set[int]:
    """The namespaces of a lab."""
    return {pod.netns_id for pod in (lab.node, *lab.clients, *lab.servers, lab.upstream)}


def test_a_replayed_recording_says_what_was_said_live(recorded: Recorded):
    said, again = recorded.said, replayed("--timeout", TIMEOUT, *recorded.names)
    assert {line["Status"] for line in said} == {"Succeeded", "Failed"}
    assert {line["Protocol"] for line in said} == {"UDP", "TCP"}
    assert {"PolicyDrop", "NoListener", "ServerNoReply"} <= {line["Cause"]["Code"] for line in said if line["Cause"]}
    in_lab = [line for line in again if any(hop["Netns"] in recorded.places for hop in line["Path"])]
    assert essences(in_lab) == essences(said)


def test_the_ring_of_files_is_bounded_and_replays(tape: Callable[..., Tape]):
    with Lab() as lab:
        recording = tape("--max-size", "256K", "--max-files", "3")
        burst = [NAME, "A", f"@{VIP}", "+tries=1"]
        for _ in range(4):
            lab.clients[0].run(["dig", "-r", *(burst * 100)], timeout=60)
        names = recording.stop()
    sizes = [Path(name).stat().st_size for name in names]
    assert len(names) == 3
    assert "-00001" not in names[0]
    assert all(size < (256 << 10) + 2000 for size in sizes)
    lines = replayed(*names)
    # What began in files that are gone is not known; everything else is.
    assert sum(line["Status"] == "Succeeded" and line["PathBitMap"] == 51 for line in lines) >= len(lines) - 1 > 20


def test_duration_ends_it(tmp_path: Path):
    command = [*DNSTRAIL, "record", "--write", str(tmp_path / "dns.pcapng"), "--duration", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30 * PATIENCE)
    assert "0 records lost" in done.stderr
    assert len(list(tmp_path.glob("dns-00001.pcapng"))) == 1


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path):
    command = [*DNSTRAIL, "record", "--write", str(tmp_path / "none/dns")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30 * PATIENCE)
    assert done.returncode == 1
    assert done.stderr == f"dnstrail: cannot write {tmp_path / 'none'}: No such file or directory\n"


def tshark(name: str, *options: str) -> list[list[str]]:
    """The rows of some fields, as Wireshark's dissectors see the file."""
    checks = [word for kind in ("ip", "udp", "tcp") for word in ("-o", f"{kind}.check_checksum:TRUE")]
    command = ["tshark", "-r", name, *checks, "-T", "fields", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


Found = tuple[int, bool, str, int, int]
"""Id, whether it is a reply, name, type and client's port: one DNS message of one lookup."""
FIELDS = (
    "dns.id",
    "dns.flags.response",
    "dns.qry.name",
    "dns.qry.type",
    "frame.interface_name",
    "udp.port",
    "tcp.port",
)


def seen_by_tshark(name: str, lab: set[int]) -> set[Found]:
    """Every DNS message in these namespaces, but for the lab's own look whether a server is ready."""
    found = set()
    for row in tshark(name, "-Y", "dns", *(word for field in FIELDS for word in ("-e", field))):
        identifier, response, asked, rdtype, interface, *ports = row
        if int(interface.partition("@")[2]) in lab and not asked.startswith("ready."):
            # Both ports of the datagram or segment: the client's is the one that is not 53.
            client = next(int(port) for pair in ports for port in pair.split(",") if port and int(port) != 53)
            found.add((int(identifier, 16), response in ("1", "True"), asked.lower() + ".", int(rdtype), client))
    return found


def of_client(line: Line) -> set[Found]:
    """The messages between the client and the server of one session."""
    found = set()
    for message in line["Messages"]:
        response = "response_message" in message
        if not message["type"].startswith("FORWARDER"):
            content = message["response_message" if response else "query_message"]
            asked = content["question"]
            found.add((content["id"], response, asked["name"], rdtype_from_text(asked["type"]), message["query_port"]))
    return found


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs the Debian package tshark")
def test_every_message_that_tshark_finds_is_in_exactly_one_session(tape: Callable[..., Tape]):
    with Lab("iptables") as lab:
        recording = tape()
        all_kinds(lab)
        (name,) = recording.stop()
        places = places_of(lab)
    told = Counter(message for line in replayed("--timeout", TIMEOUT, name) for message in of_client(line))
    seen = seen_by_tshark(name, places)
    # The stopped server's reply came when its lookup had been given up and told; it is counted as late.
    late = {one for one in seen - set(told) if one[1]}
    assert len(late) <= 1
    assert seen - late <= set(told)
    assert {told[one] for one in seen - late} == {1}
    assert len(seen) > LOOKUPS


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs the Debian package tshark")
def test_tshark_reads_every_message_and_shows_the_comments(recorded: Recorded):
    (name,) = recorded.names
    lines = replayed("--timeout", TIMEOUT, name)
    told = {line["TransactionId"] for line in lines}
    found = tshark(name, "-Y", "dns", "-e", "dns.id", "-e", "frame.comment", "-e", "frame.interface_name")
    assert {int(identifier, 16) for identifier, *_ in found} == told
    assert any(comment.startswith(f"tx eth0 in netns {recorded.client}, dig[") for _, comment, _ in found)
    assert any(comment.startswith("drop NETFILTER_DROP in ") and "(FORWARD)" in comment for _, comment, _ in found)
    assert {f"eth0@{recorded.client}"} <= {interface for *_, interface in found}
    bad = tshark(name, "-Y", "ip.checksum.status == 0 || udp.checksum.status == 0", "-e", "frame.number")
    assert not bad
    assert not tshark(name, "-Y", "_ws.malformed", "-e", "frame.number")
