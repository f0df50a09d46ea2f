"""Recordings: every hop is written as a packet and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.capturefile.hop_comment import Lost, Mark, Names, comment_of, restore
from agent.capturefile.inputs import Input
from agent.capturefile.pcap import read_frames
from agent.capturefile.rebuild import _complement, rebuild
from agent.capturefile.recorded_nodes import Recorded
from agent.capturefile.rotation import FileRing
from agent.capturefile.writer import KnownBytes, Recorder, Setting
from agent.cli import main
from agent.hop.drops import Kernel
from agent.hop.endpoint import V4_MAPPED
from agent.hop.record import DETAIL, DROP, ORIGIN, PROCESS, RX, SOCKET_TX, STACK_FRAMES, TX, Detail, Hop
from agent.wire.packet import Flaws, parse_ip, parse_tcp, parse_udp

QUERY = bytes.fromhex("8da301000001000000000000076578616d706c65036f72670000010001")
A, B = V4_MAPPED + bytes([192, 0, 2, 1]), V4_MAPPED + bytes([192, 0, 2, 53])
A6, B6 = bytes.fromhex("20010db8") + bytes(11) + b"\1", bytes.fromhex("20010db8") + bytes(11) + b"\x35"
EMPTY = DETAIL.unpack(bytes(DETAIL.size))
NOTHING = Detail._make(EMPTY)
SYMBOLS = {0xFFFF0010: "nft_do_chain", 0xFFFF001F: "nf_hook_slow", 0xFFFF002F: "ip_forward"}
KERNEL = Kernel({7: "NETFILTER_DROP"}, SYMBOLS.get)
START = 5_000_000_000
OFFSET = 1_700_000_000_000_000_000


def record(event: int = TX, payload: bytes = QUERY, *, v6: bool = False, tcp: bool = False, **detail: object) -> Hop:
    fixed = NOTHING._replace(
        **{
            "payload_bytes": len(QUERY),
            "captured_bytes": len(payload),
            "sport": 40000,
            "dport": 53,
            "saddr": A6 if v6 else A,
            "daddr": B6 if v6 else B,
            "ifname": b"eth0",
            **detail,
        }
    )
    stack = b""
    if event == DROP:
        frames = [0xFFFF0020, 0xFFFF0030]
        stack = b"".join(one.to_bytes(8, "little") for one in frames) + bytes(8 * (STACK_FRAMES - 2))
    tail = stack + payload
    return Hop(
        START,
        0xDEADBEEFDEADBEEF,
        0xFFFF888012345678,
        4026532177,
        2,
        len(tail),
        event,
        0,
        6 if v6 else 4,
        6 if tcp else 17,
        sequence=77 if tcp else 0,
        tcp_flags=24 if tcp else 0,
        rest=DETAIL.pack(*fixed) + tail,
    )


class Tape:
    """A recording in a folder."""

    def __init__(self, folder: Path, max_bytes: int = 1 << 20, max_files: int = 10, node: str = "node-a") -> None:
        self.folder = folder
        setting = Setting(KERNEL, lambda _netns, address: address == B, OFFSET, node, (53,), max_bytes)
        self.recorder = Recorder(FileRing(str(folder / "dns.pcapng"), max_files), setting, START)

    def end(self) -> list[Path]:
        self.recorder.end(START + 10**9)
        return sorted(self.folder.glob("dns-*.pcapng"))

    def restored(self):
        recorded, names = Recorded(), self.end()
        found = []
        for path in names:
            with path.open("rb") as file:
                found += [recorded.read(Input(str(path)), frame) for frame in read_frames(file)]
        return recorded, found


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("event", [TX, RX, SOCKET_TX])
def test_a_hop_comes_back_as_it_was(event, tcp, v6, tmp_path):
    tape = Tape(tmp_path)
    seen = record(event, v6=v6, tcp=tcp, comm=b'\xff"{]\0dig', tgid=7, ct_info=3, ct_original_saddr=A, ct_reply_dport=9)
    seen = seen._replace(flags=ORIGIN | PROCESS)
    tape.recorder.take(seen)
    _, (begin, found, end) = tape.restored()
    assert (begin.mark, end.mark) == (Mark("begin", "node-a", (53,), first=True), Mark("end"))
    assert found.hop == seen._replace(ts_ns=START + OFFSET, skb=1)


def test_a_drop_keeps_its_names_and_no_kernel_address(tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.take(record(DROP, reason=7, location=0xFFFF0010, stack_frames=2))
    recorded, (_, found, _) = tape.restored()
    drop = recorded.names.kernel.describe(found.hop)
    assert drop == ("NETFILTER_DROP", "nft_do_chain", "FORWARD")
    text = next(tmp_path.glob("*")).read_bytes()
    assert b"drop NETFILTER_DROP in nft_do_chain (FORWARD) at eth0 in netns 4026532177" in text
    assert str(0xFFFF0010).encode() not in text
    assert str(0xFFFF888012345678).encode() not in text


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("v6", [False, True])
def test_the_packet_says_what_the_hop_says_with_valid_checksums(v6, tcp):
    for payload in (QUERY, QUERY + b"\0", b"", b"\xff\xff"):
        seen = record(v6=v6, tcp=tcp, payload_bytes=len(payload))
        packet = rebuild(seen, seen.detail, payload)
        flaws = Flaws()
        found = parse_ip(packet.data, flaws)
        assert found is not None
        upper = parse_tcp(found, flaws) if tcp else parse_udp(found, flaws)
        assert not flaws
        assert (upper.sport, upper.dport, upper.payload) == (40000, 53, payload)
        assert packet.original_length == len(packet.data)
        start = 0 if v6 else 12
        pseudo = found.saddr[start:] + found.daddr[start:] + found.payload_bytes.to_bytes(4, "big")
        assert _complement(pseudo + (6 if tcp else 17).to_bytes(4, "big") + found.payload) == 0
        assert v6 or _complement(packet.data[:20]) == 0


def test_later_hops_carry_the_message_in_the_file_and_come_back_without(tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.take(record(TX))
    tape.recorder.take(record(RX, b""))
    path, *_ = tape.end()
    with path.open("rb") as file:
        assert [frame.data.endswith(QUERY) for frame in read_frames(file)] == [False, True, True, False]
    recorded = Recorded()
    with path.open("rb") as file:
        found = [recorded.read(Input("x"), frame) for frame in read_frames(file)]
    assert [one.hop.detail.captured_bytes for one in found[1:3]] == [len(QUERY), 0]


def test_a_hop_whose_first_hop_is_gone_brings_the_message(tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.take(record(TX))
    tape.recorder.take(record(RX, b""))
    path, *_ = tape.end()
    with path.open("rb") as file:
        later = list(read_frames(file))[2]
    found = Recorded().read(Input("x"), later)
    assert found is not None
    assert found.hop.payload(found.hop.detail) == QUERY


def test_bytes_are_kept_for_a_while_only():
    known = KnownBytes(max_bytes=100)
    for number in range(1, 50):
        one = record()._replace(message_id=number)
        known.of(one, one.detail)
    last, first = record(RX, b"")._replace(message_id=49), record(RX, b"")._replace(message_id=1)
    assert known.of(last, last.detail) == QUERY
    assert known.of(first, first.detail) == b""


def test_losses_are_said_with_the_next_packet(tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.lose(3, START, START + 10)
    tape.recorder.lose(4, START + 10, START + 20)
    tape.recorder.take(record())
    tape.recorder.lose(1, START + 30, START + 40)
    _, (_, found, end) = tape.restored()
    assert found.lost == Lost(7, OFFSET + START, OFFSET + START + 20)
    assert end.lost == Lost(1, OFFSET + START + 30, OFFSET + START + 40)
    assert b"7 records were lost before this" in next(tmp_path.glob("*")).read_bytes()


def test_whose_address_it_was_is_remembered(tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.take(record(RX))
    recorded, _ = tape.restored()
    assert recorded.is_local(4026532177, B) is True
    assert recorded.is_local(4026532177, A) is None


def test_the_ring_keeps_the_newest_files_across_restarts(tmp_path):
    other = tmp_path / "dns-note.pcapng"
    other.touch()
    for _ in range(2):
        tape = Tape(tmp_path, max_bytes=2000, max_files=3)
        for _ in range(40):
            tape.recorder.take(record())
        tape.end()
    kept = [path.name for path in sorted(tmp_path.glob("dns-0*"))]
    assert len(kept) == 3
    assert int(kept[-1][4:9]) == int(kept[0][4:9]) + 2 > 10
    assert other.exists()
    assert all(path.stat().st_size < 4000 for path in tmp_path.iterdir())
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("dns-0*")} == {0o600}


def test_two_nodes_are_told_apart(tmp_path, capsys):
    names = []
    for node in ("node-a", "node-b"):
        (tmp_path / node).mkdir()
        tape = Tape(tmp_path / node, node=node)
        tape.recorder.take(record()._replace(flags=ORIGIN))
        names += map(str, tape.end())
    assert main(["replay", *names]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [hop["Netns"] for hop in line["Path"]] == [4026532177, 4026532177 + (1 << 32)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"dnstrail":1', '"dnstrail":2'),
        ('"event":1', '"event":9'),
        ('"family":4', '"family":5'),
        ('"protocol":17', '"protocol":1'),
        ('"netns":4026532177', '"netns":-1'),
        ('"netns":4026532177', '"netns":"x"'),
        ('"ifindex":2', '"ifindex":{}'),
        ('"saddr":"192.0.2.1"', '"saddr":"nowhere"'),
        ('"sport":40000', '"sport":70000'),
        ('"ifname":"eth0"', '"ifname":"\N{SNOWMAN}"'),
        ('"captured_bytes":29', '"captured_bytes":"x"'),
        ('"ifname":"eth0"', '"lost":[1]'),
        ('"ifname":"eth0"', '"drop":3'),
        ("}", ""),
    ],
)
def test_a_comment_that_somebody_changed_is_only_a_comment(old, new, tmp_path):
    tape = Tape(tmp_path)
    tape.recorder.take(record())
    (path,) = tape.end()
    with path.open("rb") as file:
        frame = list(read_frames(file))[1]
    assert restore(frame, Names()) is not None
    (comment,) = frame.comments
    assert old in comment
    assert restore(frame._replace(comments=(comment.replace(old, new),)), Names()) is None


def test_a_process_cannot_forge_a_record_by_its_name():
    seen = record(comm=b'{"dnstrail":1}', tgid=5)
    comment = comment_of(seen, seen.detail, KERNEL)
    assert comment.rfind('{"dnstrail":') == comment.index('{"dnstrail":1,')
