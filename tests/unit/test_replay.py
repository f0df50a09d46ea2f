"""`dnstrail replay`: a recorded CoreDNS, and files as hostile and incomplete as they come."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.capturefile.pcap import PcapngWriter
from agent.cli import main
from agent.export.progress import Progress
from agent.wire.packet import LinkType

FIXTURE = Path(__file__).parents[1] / "fixtures/coredns-dnstap"
RECORDED = FIXTURE / "coredns193-lo.pcap"
PORTS = "1053,2053,2054,2055,2056,2057"
ARGUMENTS = ["replay", "--ports", PORTS]
SERVER = 1053

Line = dict[str, Any]

# Name asked, in the order of the README: status, BitMap, DnstapBitMap, number of upstream attempts.
CASES = [
    ("ok1.example.org.", "Succeeded", 15, 15, 1),
    ("a.hosts.test.", "Succeeded", 3, 3, 0),
    ("b.blackhole.test.", "Failed", 7, 5, 3),
    ("t.two.test.", "Succeeded", 15, 15, 2),
    ("t.tc.test.", "Succeeded", 15, 15, 2),
    ("t.tcplain.test.", "Succeeded", 15, 15, 1),
    ("t.sf.test.", "Failed", 15, 15, 1),
    ("d.drop.test.", "Failed", 1, 1, 0),
    ("x.rw.test.", "Succeeded", 15, 15, 1),
    ("x.noplug.test.", "Failed", 3, 1, 0),
    ("m1.maxc.test.", "Failed", 7, 5, 3),
    ("m2.maxc.test.", "Failed", 3, 1, 0),
    ("p.pre.test.", "Succeeded", 15, 15, 1),
    ("p.pre.test.", "Succeeded", 3, 3, 0),
    ("s.stale.test.", "Succeeded", 15, 15, 1),
    ("s.stale.test.", "Succeeded", 3, 3, 0),
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("DNSTRAIL_PORTS", raising=False)
    # The command freezes and disables the collector of its process, which here is the tests'.
    monkeypatch.setattr("agent.replay.freeze_gc", lambda: None)


@pytest.fixture
def replay(capsys):
    def run(*arguments: str, code: int = 0) -> tuple[list[Line], list[str]]:
        assert main([*ARGUMENTS, *arguments]) == code
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err.splitlines()

    return run


@pytest.fixture
def lines(replay) -> list[Line]:
    return replay(str(RECORDED))[0]


def of_clients(lines: list[Line]) -> list[Line]:
    """The sessions of the server's clients, in the order of time."""
    return sorted((line for line in lines if line["Server"]["Port"] == SERVER), key=lambda line: line["Time"])


def test_every_case_of_the_recording_has_its_masks(lines):
    found = [
        (line["Question"]["Name"], line["Status"], line["BitMap"], line["DnstapBitMap"]) for line in of_clients(lines)
    ]
    assert found == [case[:4] for case in CASES]


def test_every_upstream_attempt_is_told_with_its_lookup(lines):
    attempts = [len(line["Upstream"]) for line in of_clients(lines)]
    assert attempts == [case[4] for case in CASES]


def test_truncation_upstream_is_followed_over_tcp(lines):
    (line,) = (line for line in of_clients(lines) if line["Question"]["Name"] == "t.tc.test.")
    assert [one["Protocol"] for one in line["Upstream"]] == ["UDP", "TCP"]


def test_refreshes_and_health_checks_are_no_sessions(lines):
    assert not [line for line in lines if line["Question"]["Name"] == "."]
    assert Counter(line["Question"]["Name"] for line in lines if line["Protocol"] == "TCP") == {"t.tc.test.": 1}


def dnstap_messages() -> list[tuple[str, str, str, str]]:
    """Type, protocol, client's port or upstream's, and name of each message of CoreDNS's own dnstap."""
    found = []
    for text in (FIXTURE / "dnstap.json").read_text().splitlines():
        one = json.loads(text)["message"]
        name = re.search(r"QUESTION SECTION:\n;(\S+)", one.get("query_message") or one["response_message"])
        assert name is not None
        port = one["query_port"] if one["type"].startswith("CLIENT") else one["response_port"]
        found.append((one["type"], one["socket_protocol"], port, name[1]))
    return found


def in_capture(message: tuple[str, str, str, str]) -> bool:
    """All but dig's retry over TCP: the capture's filter left out TCP to the server's port."""
    kind, protocol, _, _ = message
    return protocol == "UDP" or kind.startswith("FORWARDER")


def wire_messages(lines: list[Line]) -> list[tuple[str, str, str, str]]:
    return [
        (
            one["type"],
            one["socket_protocol"],
            one["query_port"] if one["type"].startswith("CLIENT") else one["response_port"],
            (one.get("query_message") or one["response_message"])["question"]["name"],
        )
        for line in of_clients(lines)
        for one in line["Messages"]
    ]


def test_every_message_of_dnstap_is_in_the_messages_of_its_session(lines):
    background = {
        (kind, "TCP", 2055 if name == "t.tcplain.test." else 2057, name)
        for kind in ("FORWARDER_QUERY", "FORWARDER_RESPONSE")
        for name in ("t.tcplain.test.", "p.pre.test.", "s.stale.test.")
    }
    expected = Counter(one for one in dnstap_messages() if in_capture(one) and one not in background)
    missing = expected - Counter(wire_messages(lines))
    assert not missing


def test_a_file_cut_anywhere_gives_the_sessions_up_to_there_and_one_error(tmp_path, replay):
    content = RECORDED.read_bytes()
    for size in (25, 39, 41, 100, 2000, 5000, len(content) - 1):
        path = tmp_path / f"cut-at-{size}"
        path.write_bytes(content[:size])
        found, err = replay(str(path), code=1)
        assert re.fullmatch(
            rf"dnstrail: {re.escape(str(path))}: the file ends inside .* \(byte \d+ of the file\)", err[-1]
        )
        assert sum("byte" in line for line in err) == 1
        assert bool(found) == (size >= 2000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0", "too short"),
        (b"GET / HTTP/1.1\r\n\r\n", "neither pcap nor pcapng"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "zcat"),
        (b"\n\r\r\n" + bytes(40), "byte-order"),
    ],
)
def test_a_foreign_file_is_named_and_nothing_is_printed(content, words, tmp_path, replay):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    found, err = replay(str(path), code=1)
    assert not found
    assert err[-1].startswith(f"dnstrail: {path}: ")
    assert words in err[-1]
    assert "(byte 0 of the file)" in err[-1]


def test_a_foreign_file_does_not_hinder_the_others(tmp_path, replay, lines):
    path = tmp_path / "foreign"
    path.write_bytes(b"nonsense")
    found, err = replay(str(path), str(RECORDED), code=1)
    assert len(found) == len(lines)
    assert str(path) in err[-1]


@pytest.mark.parametrize("name", ["missing.pcap", "."])
def test_what_cannot_be_opened_is_a_usage_error(name, tmp_path, replay):
    found, err = replay(str(RECORDED), str(tmp_path / name), code=2)
    assert not found
    assert err == [
        f"dnstrail: cannot open {tmp_path / name}: {'No such file or directory' if name != '.' else 'Is a directory'}"
    ]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent", *ARGUMENTS, *arguments]


def test_standard_input_is_a_file_like_any_other(lines):
    with RECORDED.open("rb") as file:
        done = subprocess.run(command("-"), stdin=file, capture_output=True, check=True)
    assert [json.loads(line)["Time"] for line in done.stdout.splitlines()] == [line["Time"] for line in lines]


def test_a_pipe_is_a_file_like_any_other(lines):
    done = subprocess.run(
        ["bash", "-c", '"$@" <(cat "$0")', str(RECORDED), *command()], capture_output=True, check=True
    )
    assert len(done.stdout.splitlines()) == len(lines)


def test_a_reader_that_goes_away_is_no_error():
    pipeline = 'set -o pipefail; "$@" | true; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", pipeline, "sh", *command(str(RECORDED))], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr


def packets(content: bytes) -> list[bytes]:
    """The packets of a little-endian pcap file, with their headers."""
    found, at = [], 24
    while at < len(content):
        length = struct.unpack_from("<I", content, at + 8)[0]
        found.append(content[at : at + 16 + length])
        at += 16 + length
    return found


def test_a_rotated_capture_gives_what_the_whole_gives(tmp_path, replay, lines):
    content = RECORDED.read_bytes()
    every = packets(content)
    names = []
    for number, start in enumerate(range(0, len(every), 10)):
        path = tmp_path / f"dns.pcap{number:03}"
        path.write_bytes(content[:24] + b"".join(every[start : start + 10]))
        names.append(str(path))
    found, _ = replay(*reversed(names))
    assert found == lines


def test_the_same_packets_in_two_files_are_two_places_of_one_lookup(tmp_path, replay):
    copy = tmp_path / "other.pcap"
    copy.write_bytes(remote(RECORDED.read_bytes()))
    original = tmp_path / "one.pcap"
    original.write_bytes(remote(RECORDED.read_bytes()))
    found, _ = replay(str(copy), str(original))
    one = next(line for line in found if line["Question"]["Name"] == "a.hosts.test.")
    assert (one["Attempts"], one["Status"]) == (1, "Succeeded")
    assert len({hop["Netns"] for hop in one["Path"]}) == 2


def remote(content: bytes) -> bytes:
    """The recording as if 127.0.0.1 were 192.0.2.1, which means the same host in every file."""
    return content.replace(b"\x7f\0\0\1", b"\xc0\0\2\1")


def test_filters_choose(replay):
    assert {line["Status"] for line in replay("--status", "Failed", str(RECORDED))[0]} == {"Failed"}
    assert {line["Rcode"] for line in replay("--rcode", "REFUSED", str(RECORDED))[0]} == {"REFUSED"}
    assert {line["Question"]["Name"] for line in replay("--name", "*.hosts.test", str(RECORDED))[0]} == {
        "a.hosts.test."
    }
    assert replay("--log", "none", str(RECORDED))[0] == []


def test_nothing_is_read_from_ports_that_are_not_asked_for(capsys):
    assert main(["replay", str(RECORDED)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "packets of other protocols or ports" in err


def dns(*, response: bool = False, name: bytes = b"\3www\7example\3org\0") -> bytes:
    return struct.pack("!6H", 7, 0x8180 if response else 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"


def ip(source: bytes, destination: bytes, sport: int, dport: int, payload: bytes, *, identification: int = 1) -> bytes:
    udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), identification, 0, 64, 17, 0, source, destination) + udp


A, B = b"\xc0\0\2\1", b"\xc0\0\2\x35"
QUERY, REPLY = ip(A, B, 40000, 53, dns()), ip(B, A, 53, 40000, dns(response=True))


def capture(path: Path, linktype: int, *frames: tuple[bytes, bool | None]) -> str:
    with path.open("wb") as file:
        writer = PcapngWriter(file)
        writer.add_interface("eth0", linktype=linktype)
        for number, (data, outbound) in enumerate(frames):
            writer.write(0, 10**18 + number * 10**6, data, outbound=outbound)
    return str(path)


def ethernet(packet: bytes) -> bytes:
    return bytes(12) + b"\x08\0" + packet


def sll2(packet: bytes, kind: int) -> bytes:
    return struct.pack("!HHIHBB8s", 0x0800, 0, 3, 1, kind, 6, bytes(8)) + packet


def one_line(replay, *arguments: str) -> Line:
    (line,) = replay("--ports", "53", *arguments)[0]
    return line


@pytest.mark.parametrize(
    ("linktype", "wrap"),
    [
        (LinkType.ETHERNET, ethernet),
        (LinkType.RAW, bytes),
        (LinkType.ETHERNET, lambda packet: bytes(12) + b"\x81\0\0\7\x08\0" + packet),
        (LinkType.ETHERNET, lambda packet: ethernet(ip(A, B, 5555, 4789, b"\x08" + bytes(7) + ethernet(packet)))),
    ],
    ids=["ethernet", "raw", "vlan", "vxlan"],
)
def test_a_tap_sees_both_ends(linktype, wrap, tmp_path, replay):
    line = one_line(replay, capture(tmp_path / "tap", linktype, (wrap(QUERY), None), (wrap(REPLY), None)))
    assert (line["BitMap"], line["PathBitMap"], line["Vantage"]) == (3, 51, "both")
    assert [hop["Event"] for hop in line["Path"]] == ["tx", "rx", "tx", "rx"]


def test_at_the_client_a_query_leaves_and_a_reply_comes(tmp_path, replay):
    line = one_line(replay, capture(tmp_path / "client", LinkType.RAW, (QUERY, True), (REPLY, False)))
    assert (line["PathBitMap"], line["Vantage"], line["Attempts"]) == (51, "client", 1)


def test_at_the_server_a_query_comes_and_a_reply_leaves(tmp_path, replay):
    frames = ((sll2(QUERY, 0), None), (sll2(REPLY, 4), None))
    line = one_line(replay, capture(tmp_path / "server", LinkType.LINUX_SLL2, *frames))
    assert (line["BitMap"], line["Vantage"]) == (3, "server")


def test_a_client_that_asks_again_is_one_session(tmp_path, replay):
    again = ip(A, B, 40000, 53, dns(), identification=2)
    frames = ((QUERY, True), (again, True), (REPLY, False))
    line = one_line(replay, capture(tmp_path / "client", LinkType.RAW, *frames))
    assert (line["Attempts"], line["Status"]) == (2, "Succeeded")


def test_a_client_that_asks_two_servers_at_a_tap_is_not_taken_for_a_server(tmp_path, replay):
    other = ip(A, b"\xc0\0\2\x36", 40001, 53, dns(name=b"\5other\3org\0"))
    answer = ip(b"\xc0\0\2\x36", A, 53, 40001, dns(response=True, name=b"\5other\3org\0"))
    frames = [(ethernet(one), None) for one in (QUERY, other, answer, REPLY)]
    found, _ = replay("--ports", "53", capture(tmp_path / "tap", LinkType.ETHERNET, *frames))
    assert [line["BitMap"] for line in found] == [3, 3]


def test_fragments_are_put_together(tmp_path, replay):
    whole = ip(B, A, 53, 40000, dns(response=True) + bytes(1400))
    upper = whole[20:]
    pieces = []
    for start in range(0, len(upper), 800):
        piece = upper[start : start + 800]
        more = 0x2000 if start + 800 < len(upper) else 0
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(piece), 9, more | start >> 3, 64, 17, 0, B, A)
        pieces.append((head + piece, None))
    line = one_line(replay, capture(tmp_path / "fragments", LinkType.RAW, (QUERY, None), *pieces))
    assert line["BitMap"] == 3
    lost = one_line(replay, capture(tmp_path / "lost", LinkType.RAW, (QUERY, None), pieces[0]))
    assert lost["Rcode"] is None


@given(st.lists(st.tuples(st.integers(24, RECORDED.stat().st_size - 1), st.integers(0, 255)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_never_crashes_it(capsys, tmp_path_factory, changes):
    content = bytearray(RECORDED.read_bytes())
    for at, value in changes:
        content[at] = value
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(content)
    assert main([*ARGUMENTS, str(path)]) in {0, 1}
    for line in capsys.readouterr().out.splitlines():
        json.loads(line)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_is_for_terminals_and_drawn_ten_times_a_second_at_most():
    now = [0.0]
    terminal, file = Terminal(), io.StringIO()
    shown, hidden = Progress(terminal, 2_000_000, lambda: now[0]), Progress(file, 2_000_000, lambda: now[0])
    for step in range(1000):
        now[0] = step / 1000
        for one in (shown, hidden):
            one.show(step * 2000, step)
    shown.clear()
    assert file.getvalue() == ""
    assert 5 <= terminal.getvalue().count("of 2.0 MB") <= 10
    assert "50%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
