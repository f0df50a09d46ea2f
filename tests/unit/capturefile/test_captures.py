"""Captures that are easily told wrong: what `replay` says of each, and of others of its kind."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from agent.capturefile.inputs import Inputs
from agent.cli import main
from agent.replay import Options, Replay
from agent.wire.packet import LinkType
from agent.wire.stream import ACK, RST, SYN
from tests.unit.frames import (
    CLIENT,
    CLIENT6,
    MS,
    SECOND,
    SERVER,
    SERVER6,
    TCP,
    UDP,
    Capture,
    Stream,
    dns,
    ethernet,
    ip,
    sll,
    sll2,
    tcp,
    tunnel,
    udp,
    vxlan,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"
FAMILIES = [(CLIENT, SERVER), (CLIENT6, SERVER6)]
US = 1000
both_families = pytest.mark.parametrize(("client", "server"), FAMILIES, ids=["IPv4", "IPv6"])

Line = dict[str, Any]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("DNSTRAIL_PORTS", raising=False)
    # The command freezes and disables the collector of its process, which here is the tests'.
    monkeypatch.setattr("agent.replay.freeze_gc", lambda: None)


@pytest.fixture
def replay(capsys, tmp_path):
    """Lines in the order of time, and the summary."""

    def run(capture: Capture | str) -> tuple[list[Line], str]:
        if isinstance(capture, Capture):
            path = capture.write(tmp_path / "file.pcap")
        else:
            (path,) = map(str, (FIXTURES / "cases").glob(f"{capture}-*.pcap"))
        assert main(["replay", path]) == 0
        out, err = capsys.readouterr()
        lines = [json.loads(line) for line in out.splitlines()]
        return sorted(lines, key=lambda line: line["Time"]), err.splitlines()[-1]

    return run


@pytest.fixture
def one(replay):
    """The only line."""

    def run(capture: Capture | str) -> Line:
        ((line,), _) = replay(capture)
        return line

    return run


def told(line: Line) -> tuple[str, int, int]:
    return line["Status"], line["BitMap"], line["PathBitMap"]


def cause(line: Line) -> tuple[str, str] | None:
    return line["Cause"] and (line["Cause"]["Code"], line["Cause"]["Confidence"])


def answered(line: Line) -> bool:
    """A complete lookup and nothing to remark."""
    return (told(line), line["Attempts"], line["Findings"], line["Cause"]) == (("Succeeded", 3, 51), 1, [], None)


# Loopback: what comes in there has left there.


def test_loopback_in_a_capture_of_all_devices_shows_both_ends(one):
    line = one("01")
    assert answered(line)
    assert [hop["Event"] for hop in line["Path"]] == ["tx", "rx", "tx", "rx"]


@pytest.mark.parametrize("wrap", [sll, sll2], ids=["SLL", "SLL2"])
@pytest.mark.parametrize(("client", "server"), [("127.0.0.1", "127.0.0.53"), ("::1", "::1")])
def test_loopback_addresses_come_from_this_host(one, wrap, client, server):
    linktype = LinkType.LINUX_SLL if wrap is sll else LinkType.LINUX_SLL2
    capture = Capture(linktype, lambda packet, kind=0: wrap(packet, kind))
    assert answered(one(capture.query(0, client=client, server=server).reply(MS, client=client, server=server).later()))


@pytest.mark.parametrize(
    ("linktype", "wrap"),
    [
        (LinkType.LINUX_SLL, lambda packet, kind=0: sll(packet, kind, 772)),
        (LinkType.LINUX_SLL2, lambda packet, kind=0: sll2(packet, kind, 3, 772)),
        (LinkType.LINUX_SLL2, lambda packet, kind=0: sll2(packet, kind, 1)),
    ],
    ids=["SLL by its kind", "SLL2 by its kind", "SLL2 by its index"],
)
@both_families
def test_what_comes_in_by_the_loopback_device_left_there(one, linktype, wrap, client, server):
    capture = Capture(linktype, wrap)
    assert answered(one(capture.query(0, client=client, server=server).reply(MS, client=client, server=server).later()))


def test_a_loopback_packet_that_is_shown_leaving_and_coming_is_one(one):
    capture = Capture(LinkType.LINUX_SLL2, lambda packet, kind=4: sll2(packet, kind, 1))
    for at, message, ends in ((0, dns(), (40000, 53)), (MS, dns(response=True), (53, 40000))):
        packet = ip("127.0.0.1", "127.0.0.1", UDP, udp(*ends, message), ident=at // MS + 7)
        capture.add(at, packet, 4).add(at + 10 * US, packet, 0)
    assert answered(one(capture.later()))


def test_a_host_that_asks_its_own_address_is_both_ends(one):
    capture = Capture(LinkType.LINUX_SLL, sll)
    packet = ip(CLIENT, CLIENT, UDP, udp(40000, 53, dns()), ident=3)
    reply = ip(CLIENT, CLIENT, UDP, udp(53, 40000, dns(response=True)), ident=4)
    assert answered(one(capture.add(0, packet, 0).add(MS, reply, 0).later()))


def test_loopback_over_tcp_shows_both_ends(one):
    capture = Capture(LinkType.LINUX_SLL2, lambda packet, kind=0: sll2(packet, kind, 1))
    Stream(capture, client="127.0.0.1", server="127.0.0.1").open(0).lookup(3 * MS, 7)
    assert answered(one(capture.later()))


# TCP with gaps.


def test_an_acknowledged_segment_that_is_not_there_costs_its_own_lookup_alone(replay):
    lines, summary = replay("02")
    assert [line["Status"] for line in lines] == ["Succeeded", "SampleLoss", *["Succeeded"] * 4]
    assert cause(lines[1]) == ("CaptureLoss", "high")
    assert "bytes of its TCP connection" in lines[1]["Cause"]["Message"]
    assert "64 bytes of TCP connections not read" in summary


@both_families
def test_several_gaps_on_several_connections_stay_where_they_are(replay, client, server):
    capture = Capture()
    for port in (40000, 40001):
        stream = Stream(capture, port, client, server).open(port * MS)
        for number in range(8):
            stream.lookup((port + 10 * number + 5) * MS, number + port, seen=number not in (2, 3, 6))
    lines, _ = replay(capture.later())
    lost = {number + port for number in (2, 3, 6) for port in (40000, 40001)}
    assert {line["TransactionId"] for line in lines if line["Status"] == "SampleLoss"} == lost
    assert len([line for line in lines if answered(line)]) == 10


@pytest.mark.parametrize("end", ["fin", "rst", "nothing"])
def test_whatever_ends_a_connection_releases_what_waits_behind_a_gap(replay, end):
    """Without an acknowledgement: the end, or time, says that nothing more will come."""
    capture = Capture()
    stream = Stream(capture).open(0).lookup(5 * MS, 1)
    stream.ask(10 * MS, 2).ask(11 * MS, 3).say(12 * MS, 2, seen=False).say(13 * MS, 3)
    if end == "rst":
        stream.segment(20 * MS, flags=RST, response=True)
    elif end == "fin":
        stream.segment(20 * MS, flags=1 | ACK).segment(21 * MS, flags=1 | ACK, response=True).segment(22 * MS)
    lines, _ = replay(capture if end == "nothing" else capture.later())
    assert [(line["TransactionId"], line["Status"]) for line in lines] == [
        (1, "Succeeded"),
        (2, "SampleLoss"),
        (3, "Succeeded"),
    ]


def test_only_one_side_of_a_connection_does_not_accuse_the_server(replay):
    capture = Capture()
    stream = Stream(capture)
    for number in range(3):
        stream.ask(10 * number * MS, number).say((10 * number + 1) * MS, number, seen=False).segment(
            (10 * number + 2) * MS
        )
    lines, summary = replay(capture.later())
    assert [(line["Status"], cause(line)) for line in lines] == [("SampleLoss", ("CaptureLoss", "high"))] * 3
    assert "bytes of TCP connections not read" in summary


def test_a_lost_query_is_no_reply_from_before_the_capture(replay):
    capture = Capture()
    stream = Stream(capture).open(0).ask(5 * MS, 1, seen=False).say(6 * MS, 1).segment(7 * MS)
    stream.lookup(10 * MS, 2)
    lines, summary = replay(capture.later())
    assert [line["TransactionId"] for line in lines] == [1, 2]
    assert "before the capture" not in summary


@both_families
def test_replies_to_lost_queries_for_the_same_name_are_lookups_of_their_own(replay, client, server):
    capture = Capture()
    stream = Stream(capture, client=client, server=server).open(0)
    for number in range(1, 7):
        stream.ask(10 * number * MS, number, seen=number not in (2, 5)).say((10 * number + 1) * MS, number)
        stream.segment((10 * number + 2) * MS)
    lines, _ = replay(capture.later())
    assert [(line["TransactionId"], line["Status"]) for line in lines] == [(n, "Succeeded") for n in range(1, 7)]
    assert [line["Findings"] for line in lines] == [[], ["QueryNotSeen"], [], [], ["QueryNotSeen"], []]


def test_a_silent_server_on_a_whole_connection_is_not_hidden_by_it(one):
    capture = Capture()
    stream = Stream(capture).open(0).ask(5 * MS, 1)
    stream.segment(6 * MS, response=True)
    line = one(capture.later())
    assert (line["Status"], line["Cause"]["Code"]) == ("Failed", "ServerNoReply")


# Segmentation offload.


def test_a_length_of_zero_is_segmentation_offload(one):
    assert answered(one("20"))


@both_families
def test_offload_of_a_large_reply_over_tcp(one, client, server):
    capture = Capture()
    stream = Stream(capture, client=client, server=server).open(0).ask(3 * MS, 7)
    stream.say(4 * MS, 7, answers=400, total=0).segment(5 * MS)
    line = one(capture.later())
    assert answered(line)
    assert len(line["Messages"][-1]["response_message"]["answer"]) == 400


# ICMP errors.


def test_an_icmp_error_names_who_said_no(one):
    line = one("03")
    assert (told(line)[:2], cause(line)) == (("Failed", 1), ("NoListener", "high"))
    assert "ICMP port unreachable (3/3) from 192.0.2.53" in line["Cause"]["Evidence"]


ICMP_KINDS = [
    (1, 3, 3, "NoListener"),
    (1, 3, 13, "PolicyDrop"),
    (1, 3, 10, "PolicyDrop"),
    (1, 3, 0, "NoRoute"),
    (1, 3, 1, "NeighbourFailure"),
    (1, 11, 0, "KernelDrop"),
    (58, 1, 4, "NoListener"),
    (58, 1, 1, "PolicyDrop"),
    (58, 1, 0, "NoRoute"),
    (58, 1, 3, "NeighbourFailure"),
    (58, 3, 0, "KernelDrop"),
]


def icmp(protocol: int, kind: int, code: int, quoted: bytes, sender: str) -> bytes:
    client = CLIENT if protocol == 1 else CLIENT6
    return ip(sender, client, protocol, struct.pack("!BBHI", kind, code, 0, 0) + quoted, ident=99)


@pytest.mark.parametrize("error", ICMP_KINDS)
@pytest.mark.parametrize("raw", [28, 500], ids=["short", "whole"])
@pytest.mark.parametrize("upper", [UDP, TCP])
def test_every_icmp_error_says_what_it_stands_for(one, error, raw, upper):
    protocol, kind, code, expected = error
    client, server = FAMILIES[protocol == 58]
    router = "198.51.100.1" if protocol == 1 else "2001:db8:1::1"
    sender = server if expected == "NoListener" else router  # only the host itself knows who listens there
    payload = udp(40000, 53, dns()) if upper == UDP else tcp(40000, 53, 1000, 0, SYN)
    query = ip(client, server, upper, payload, ident=5)
    header = 20 if protocol == 1 else 40
    capture = Capture().add(0, query).add(MS, icmp(protocol, kind, code, query[: header - 20 + raw], sender))
    line = one(capture.later())
    assert (line["Status"], line["Cause"]["Code"]) == ("Failed", expected)
    assert any(f"({kind}/{code}) from {sender}" in words for words in line["Cause"]["Evidence"])


def test_an_icmp_error_about_no_lookup_is_counted(replay):
    quoted = ip(CLIENT, SERVER, UDP, udp(40000, 53, dns()), ident=5)
    _, summary = replay(Capture().add(0, icmp(1, 3, 3, quoted, SERVER)).later())
    assert "1 ICMP error about no open lookup" in summary


# A node that masquerades.

OUTSIDE, VIRTUAL, BACKEND = ("192.0.2.1", 61000), "10.96.0.10", "10.244.2.5"
OUTSIDE6, VIRTUAL6, BACKEND6 = ("2001:db8::1", 61000), "fd00:96::a", "fd00:244::5"
PLACES = [(CLIENT, VIRTUAL, OUTSIDE, BACKEND), (CLIENT6, VIRTUAL6, OUTSIDE6, BACKEND6)]


def masqueraded(places, *, reply: bool = True, ttl: int = 63, ident: int = 5) -> Capture:
    client, virtual, outside, backend = places
    capture = Capture(LinkType.LINUX_SLL2, sll2)
    query, answer = dns(42), dns(42, response=True)
    capture.add(0, ip(client, virtual, UDP, udp(33242, 53, query), ident=5), 0, 7)
    capture.add(20 * US, ip(outside[0], backend, UDP, udp(outside[1], 53, query), ident=ident, ttl=ttl), 4, 2)
    if reply:
        capture.add(MS, ip(backend, outside[0], UDP, udp(53, outside[1], answer), ident=8), 0, 2)
        packet = ip(virtual, client, UDP, udp(53, 33242, answer), ident=8, ttl=63)
        capture.add(MS + 20 * US, packet, 4, 7)
    return capture.later()


def test_a_masqueraded_query_is_one_packet_that_goes_on(one):
    line = one("04")
    assert (told(line)[:2], cause(line), line["Upstream"]) == (("Failed", 1), ("LeftNode", "medium"), [])
    assert line["Server"]["Backend"] == "10.244.2.5:53"


@pytest.mark.parametrize("places", PLACES, ids=["IPv4", "IPv6"])
def test_an_answer_to_a_masqueraded_query_is_that_of_the_client(one, places):
    line = one(masqueraded(places))
    assert (line["Status"], line["BitMap"], line["Upstream"], line["Attempts"]) == ("Succeeded", 3, [], 1)
    assert (line["Client"]["Address"], line["Client"]["Port"]) == (places[0], 33242)
    assert line["Server"]["Address"] == places[1]


@pytest.mark.parametrize("places", PLACES, ids=["IPv4", "IPv6"])
def test_an_unanswered_masqueraded_query_left_the_node(one, places):
    line = one(masqueraded(places, reply=False))
    assert (line["BitMap"], cause(line), line["Upstream"]) == (1, ("LeftNode", "medium"), [])


@pytest.mark.parametrize(("ttl", "ident"), [(64, 900), (64, 5), (63, 900)])
def test_a_proxy_that_keeps_the_id_makes_a_packet_of_its_own(replay, ttl, ident):
    lines, _ = replay(masqueraded(PLACES[0], reply=False, ttl=ttl, ident=ident))
    assert all(line["Server"]["Backend"] is None for line in lines)


def test_masqueraded_tcp_is_one_connection(one):
    capture = Capture(LinkType.LINUX_SLL2, sll2)
    query, answer = (struct.pack("!H", len(one)) + one for one in (dns(7), dns(7, response=True)))
    steps = [(False, SYN, b""), (True, SYN | ACK, b""), (False, ACK, query), (True, ACK, answer), (False, ACK, b"")]
    numbers = [1000, 5000]
    for number, (response, flags, data) in enumerate(steps):
        seq, ack = numbers[response], numbers[not response] if flags & ACK else 0
        numbers[response] += len(data) + bool(flags & SYN)
        inside, outside = (33000, 53), (61000, 53)
        first, second = ((CLIENT, VIRTUAL), inside, 0, 7), ((OUTSIDE[0], BACKEND), outside, 4, 2)
        if response:
            first, second = ((BACKEND, OUTSIDE[0]), outside[::-1], 0, 2), ((VIRTUAL, CLIENT), inside[::-1], 4, 7)
        for later, (addresses, ports, kind, device) in enumerate((first, second)):
            packet = ip(*addresses, TCP, tcp(*ports, seq, ack, flags, data), ident=50 + number, ttl=64 - later)
            capture.add(number * MS + later * 20 * US, packet, kind, device)
    line = one(capture.later())
    assert (line["Status"], line["BitMap"], line["Client"]["Port"], line["Upstream"]) == ("Succeeded", 3, 33000, [])


# Order and clocks.


def test_a_reply_50_us_before_its_query_belongs_to_it(one):
    assert answered(one("05"))


@pytest.mark.parametrize("early", [50 * US, MS, 36 * MS, 49 * MS])
@pytest.mark.parametrize("at", [0, 30 * SECOND])
@both_families
def test_frames_may_be_out_of_order(one, early, at, client, server):
    capture = (
        Capture()
        .reply(at + early, client=client, server=server)
        .query(at, client=client, server=server)
        .later(at + 100 * SECOND)
    )
    assert answered(one(capture))


def test_a_reply_whose_stamp_is_a_little_older_than_its_querys_belongs_to_it(one):
    line = one(Capture().query(20 * MS).reply(0).later())
    assert (line["Status"], line["BitMap"], line["DurationSeconds"]) == ("Succeeded", 3, None)


def test_tcp_segments_may_be_out_of_order(one):
    capture = Capture()
    Stream(capture).open(0).lookup(5 * MS, 7)
    capture.frames[3], capture.frames[4] = capture.frames[4], capture.frames[3]
    capture.frames[0], capture.frames[1] = capture.frames[1], capture.frames[0]
    assert answered(one(capture.later()))


def test_a_clock_that_is_set_back_closes_nothing_early(replay):
    lines, summary = replay("27")
    assert [answered(line) for line in lines] == [True] * 3
    assert [line["Time"] for line in lines] == [f"2023-11-14T22:14:{second:02}.000000000Z" for second in (20, 21, 22)]
    assert "1 step of the clock" in summary


@pytest.mark.parametrize("step", [-86400, -40, -2, 90, 3600, 10**6])
def test_a_clock_that_is_set_between_query_and_reply_loses_no_reply(one, step):
    line = one(Capture().query(10**7 * SECOND).reply((10**7 + step) * SECOND + MS).later((10**7 + step + 100) * SECOND))
    assert told(line) == ("Succeeded", 3, 51)


def test_files_joined_in_the_wrong_order_are_told_with_their_own_times(replay):
    capture = Capture()
    for number, hour in enumerate((3, 1, 2)):
        capture.query(hour * 3600 * SECOND, number).reply(hour * 3600 * SECOND + MS, number)
    lines, _ = replay(capture.later(4 * 3600 * SECOND))
    assert [line["TransactionId"] for line in lines] == [1, 2, 0]
    assert all(answered(line) for line in lines)


def test_one_stray_stamp_ends_no_lookup(replay):
    capture = Capture().query(1000 * SECOND, 1).datagram(0, (CLIENT, 9, SERVER, 9), b"x")
    capture.reply(1000 * SECOND + MS, 1).query(1001 * SECOND, 2).reply(1001 * SECOND + MS, 2)
    lines, _ = replay(capture.later(1100 * SECOND))
    assert [answered(line) for line in lines] == [True, True]


def test_a_server_that_answers_after_its_clients_patience_is_not_taken_for_a_set_clock(replay):
    lines, _ = replay(Capture().query(0).reply(12 * SECOND).later())
    assert lines[0]["Status"] == "Failed"


# Captured twice.


def test_a_packet_captured_twice_is_no_retransmission(replay):
    (line,), summary = replay("16")
    assert answered(line)
    assert "1 packet captured twice" in summary


@both_families
@pytest.mark.parametrize("apart", [5 * US, 900 * US])
def test_queries_and_replies_captured_twice_are_one_each(one, client, server, apart):
    capture = Capture()
    for at, message, ends in (
        (0, dns(), (client, 40000, server, 53)),
        (5 * MS, dns(response=True), (server, 53, client, 40000)),
    ):
        for copy in range(2):
            capture.datagram(at + copy * apart, ends, message, ident=7 + at // MS)
    assert answered(one(capture.later()))


def test_a_connection_captured_twice_is_one(one):
    capture = Capture()
    Stream(capture).open(0).lookup(5 * MS, 7)
    capture.frames = [(ts + copy * 40 * US, *rest) for ts, *rest in capture.frames for copy in range(2)]
    assert answered(one(capture.later()))


@both_families
@pytest.mark.parametrize("apart", [5 * MS, 5 * SECOND])
def test_a_client_that_asks_again_does_so_with_another_packet(one, client, server, apart):
    capture = Capture().query(0, client=client, server=server).query(apart, client=client, server=server)
    line = one(capture.reply(apart + MS, client=client, server=server).later())
    assert (line["Attempts"], line["Findings"]) == (2, ["Retransmitted"])


# Long answers.


def test_a_zone_transfer_is_no_loss(replay):
    (line,), summary = replay("15")
    assert (told(line), line["Findings"], line["Cause"]) == (("Succeeded", 3, 51), ["ManyMessages"], None)
    assert line["Remarks"] == ["ManyMessages: the answer came in 17 messages; the first 16 are shown"]
    assert "1 further message of a long answer" in summary


@both_families
def test_zone_transfers_of_hundreds_of_messages_over_several_connections(replay, client, server):
    capture = Capture()
    for port in (40000, 40001, 40002):
        stream = Stream(capture, port, client, server).open(port * MS).ask((port + 5) * MS, 7)
        for number in range(300):
            stream.say((port + 6) * MS + number * 100 * US, 7, answers=1 + number)
        stream.segment((port + 60) * MS)
    lines, summary = replay(capture.later())
    assert [(told(line), line["Remarks"]) for line in lines] == [
        (("Succeeded", 3, 51), ["ManyMessages: the answer came in 300 messages; the first 16 are shown"])
    ] * 3
    assert "852 further messages of long answers" in summary


# The end of the capture.


def test_the_end_of_the_capture_is_told_as_such(one):
    line = one("17")
    assert (line["Status"], cause(line)) == ("SampleLoss", ("CaptureLoss", "medium"))
    assert "the capture ended 1.000 s after its last packet" in line["Cause"]["Message"]


# Between two ends.


def test_a_query_past_a_tap_may_have_got_nowhere(replay):
    lines, _ = replay("24")
    assert [(told(line), cause(line)) for line in lines] == [(("Failed", 1, 17), ("LeftNode", "low"))] * 2
    assert "224.0.0.251 is a group of hosts, not a server" in lines[1]["Cause"]["Evidence"]


@both_families
def test_a_server_that_answers_others_is_not_blamed_for_what_a_tap_cannot_know(replay, client, server):
    capture = Capture()
    for number in range(5):
        capture.query(number * SECOND, number, client=client, server=server)
        if number != 2:
            capture.reply(number * SECOND + MS, number, client=client, server=server)
    lines, _ = replay(capture.later())
    assert [line["Status"] for line in lines] == ["Succeeded", "Succeeded", "Failed", "Succeeded", "Succeeded"]
    assert (lines[2]["BitMap"], cause(lines[2])) == (1, ("LeftNode", "low"))
    assert f"{server} replied to other queries in this capture" in lines[2]["Cause"]["Evidence"]


def test_an_unanswered_attempt_past_a_tap_is_not_the_servers(one):
    line = one(Capture().query(0).query(5 * SECOND).reply(5 * SECOND + MS).later())
    assert (line["Status"], line["Attempts"], cause(line)) == ("Succeeded", 2, ("LeftNode", "low"))


@pytest.mark.parametrize("group", ["224.0.0.251", "ff02::fb", "255.255.255.255"])
def test_a_group_is_never_the_server(one, group):
    client = CLIENT6 if ":" in group else CLIENT
    for wrap, linktype in (
        (ethernet, LinkType.ETHERNET),
        (lambda packet, kind=2: sll(packet, kind), LinkType.LINUX_SLL),
    ):
        line = one(Capture(linktype, wrap).query(0, client=client, server=group).later())
        assert line["Cause"]["Code"] in {"LeftNode", "Unknown"}
        assert line["Cause"]["Confidence"] == "low"


def test_a_packet_for_another_host_is_seen_in_passing(one):
    capture = Capture(LinkType.LINUX_SLL2, lambda packet, kind=3: sll2(packet, kind))
    assert cause(one(capture.query(0).later())) == ("LeftNode", "low")


def test_an_unanswered_request_for_a_connection_is_not_the_servers_fault(one):
    line = one("25")
    assert (told(line)[:2], line["Attempts"], cause(line)) == (("Failed", 1), 3, ("LeftNode", "low"))


@pytest.mark.parametrize("kind", [0, 4])
@both_families
def test_an_unanswered_syn_accuses_no_server_in_any_direction(one, kind, client, server):
    capture = Capture(LinkType.LINUX_SLL2, lambda packet, kind=kind: sll2(packet, kind))
    capture.add(0, ip(client, server, TCP, tcp(40000, 53, 1, 0, SYN)))
    assert one(capture.later())["Cause"]["Code"] in {"LeftNode", "Unknown"}


# Fragments.


def test_a_first_fragment_alone_reached_nobody(one):
    line = one("22")
    assert (line["Status"], cause(line)) == ("Failed", ("FragmentLost", "medium"))


@pytest.mark.parametrize(
    ("linktype", "wrap"),
    [(LinkType.ETHERNET, ethernet), (LinkType.LINUX_SLL, lambda packet, kind=0: sll(packet, kind))],
    ids=["tap", "incoming"],
)
def test_a_query_of_which_only_the_first_fragment_came_reached_nobody(one, linktype, wrap):
    whole = udp(40000, 53, dns() + bytes(2000))
    capture = Capture(linktype, wrap).add(0, ip(CLIENT, SERVER, UDP, whole[:1400], ident=9, frag=0x2000))
    line = one(capture.later())
    assert (line["Status"], line["BitMap"], cause(line)) == ("Failed", 0, ("FragmentLost", "medium"))


# Tunnels.


def gre(protocol: int, inner: bytes, *, checksum: bool = False, key: bool = False, sequence: bool = False) -> bytes:
    flags = checksum << 15 | key << 13 | sequence << 12
    return struct.pack("!HH", flags, protocol) + bytes(4 * (checksum + key + sequence)) + inner


def pptp(inner: bytes) -> bytes:
    return struct.pack("!HHHHII", 0x3081, 0x880B, len(inner), 1, 2, 3) + inner


def ppp(packet: bytes) -> bytes:
    return (b"\x00\x57" if packet[0] >> 4 == 6 else b"\x00\x21") + packet


def pppoe(packet: bytes) -> bytes:
    return bytes(12) + b"\x88\x64" + struct.pack("!BBHH", 0x11, 0, 1, len(packet) + 2) + ppp(packet) + bytes(6)


def mpls(packet: bytes) -> bytes:
    return bytes(12) + b"\x88\x47" + struct.pack("!II", 16 << 12, 17 << 12 | 1 << 8) + packet


def geneve(protocol: int, inner: bytes, options: int = 0) -> bytes:
    return udp(5000, 6081, struct.pack("!BBHI", options // 4, 0, protocol, 0x100) + bytes(options) + inner)


def gtp(packet: bytes, *, extended: bool = False) -> bytes:
    more = b"\0\1\0\x85" + b"\1\0\0\0" if extended else b""
    head = struct.pack("!BBHI", 0x34 if extended else 0x30, 255, len(packet) + len(more), 1)
    return udp(2152, 2152, head + more + packet)


def ethertype(packet: bytes) -> int:
    return 0x86DD if packet[0] >> 4 == 6 else 0x0800


CARRIERS = {
    "IPIP": lambda packet: ethernet(tunnel(41 if packet[0] >> 4 == 6 else 4, packet)),
    "IP in IPv6": lambda packet: ethernet(tunnel(41 if packet[0] >> 4 == 6 else 4, packet, v6=True)),
    "GRE": lambda packet: ethernet(tunnel(47, gre(ethertype(packet), packet))),
    "GRE with all": lambda packet: ethernet(
        tunnel(47, gre(ethertype(packet), packet, checksum=True, key=True, sequence=True))
    ),
    "GRE of frames": lambda packet: ethernet(tunnel(47, gre(0x6558, ethernet(packet), key=True))),
    "PPTP": lambda packet: ethernet(tunnel(47, pptp(b"\xff\x03" + ppp(packet)))),
    "PPP in GRE, compressed": lambda packet: ethernet(tunnel(47, gre(0x880B, ppp(packet)[1:]))),
    "ERSPAN": lambda packet: ethernet(tunnel(47, gre(0x88BE, bytes(8) + ethernet(packet), sequence=True))),
    "PPPoE": pppoe,
    "MPLS": mpls,
    "frame in MPLS": lambda packet: mpls(bytes(4) + ethernet(packet)),
    "Geneve": lambda packet: ethernet(tunnel(UDP, geneve(ethertype(packet), packet))),
    "Geneve of frames": lambda packet: ethernet(tunnel(UDP, geneve(0x6558, ethernet(packet), options=8))),
    "GTP-U": lambda packet: ethernet(tunnel(UDP, gtp(packet))),
    "GTP-U extended": lambda packet: ethernet(tunnel(UDP, gtp(packet, extended=True))),
    "VXLAN": lambda packet: ethernet(vxlan(ethernet(packet))),
    "VXLAN in GRE in IPIP": lambda packet: ethernet(tunnel(4, tunnel(47, gre(0x0800, vxlan(ethernet(packet)))))),
    "PPPoE in Geneve": lambda packet: ethernet(tunnel(UDP, geneve(0x6558, pppoe(packet)))),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@both_families
def test_lookups_in_tunnels_are_told(one, carrier, client, server):
    capture = Capture(LinkType.ETHERNET, CARRIERS[carrier])
    capture.query(0, client=client, server=server).reply(MS, client=client, server=server)
    capture.wrap = ethernet
    assert answered(one(capture.later()))


def test_what_two_tunnels_carried_is_told(replay):
    assert [answered(line) for line in replay("26")[0]] == [True, True]


def test_tunnels_that_are_not_read_are_named(replay):
    deep = ip(CLIENT, SERVER, UDP, udp(40000, 53, dns()))
    for _ in range(9):
        deep = tunnel(4, deep)
    capture = Capture().add(0, deep).add(1, tunnel(50, bytes(40))).add(2, tunnel(UDP, udp(51820, 51820, bytes(40))))
    lines, summary = replay(capture.later())
    assert not lines
    assert "3 packets in tunnels that are not read" in summary


# The summary.


def test_messages_without_a_question_are_named_and_counted_once(replay):
    lines, summary = replay("18")
    assert not lines
    assert "2 messages without a question (QUERY)" in summary
    assert "not readable" not in summary


@pytest.mark.parametrize(("opcode", "name"), [(1, "IQUERY"), (2, "STATUS"), (6, "DSO")])
@pytest.mark.parametrize(("client", "server"), FAMILIES)
def test_the_opcode_of_a_message_without_a_question_is_told(replay, opcode, name, client, server):
    message = struct.pack("!6H", 1, opcode << 11, 0, 0, 0, 0)
    capture = Capture().datagram(0, (client, 40000, server, 53), message).later()
    assert f"1 message without a question ({name})" in replay(capture)[1]


def test_what_servers_ask_for_themselves_and_empty_datagrams_are_named(replay):
    lines, summary = replay("19")
    assert len(lines) == 1
    assert summary.startswith("dnstrail: 1 session from 5 frames of 1 file; ")
    assert "1 datagram without bytes" in summary
    assert "1 health check or priming (unanswered)" in summary


def test_what_the_snap_length_cut_is_named(replay):
    lines, summary = replay("21")
    assert not lines
    assert "2 messages cut by the capture (snap length 60): capture with -s 0" in summary


@pytest.mark.parametrize("snap", [14, 30, 40, 42, 50, 54, 60])
def test_a_frame_cut_anywhere_before_the_end_of_its_question_is_cut_and_not_damaged(replay, snap):
    capture = Capture().add(0, ip(CLIENT, SERVER, UDP, udp(40000, 53, dns())), snap=snap)
    _, summary = replay(capture.later())
    assert f"1 message cut by the capture (snap length {snap}): capture with -s 0" in summary


def test_a_reply_cut_by_the_snap_length_is_a_reply(one):
    capture = (
        Capture().query(0).add(MS, ip(SERVER, CLIENT, UDP, udp(53, 40000, dns(response=True, answers=30))), snap=90)
    )
    line = one(capture.later())
    assert (told(line), line["Rcode"]) == (("Succeeded", 3, 51), "NOERROR")


@both_families
@pytest.mark.parametrize("bits", [4, 0, None], ids=["at the client", "at the server", "between them"])
def test_a_reply_over_tcp_that_never_became_whole_is_not_silence(one, client, server, bits):
    def wrap(packet: bytes) -> bytes:
        to_server = packet[20:22] != b"\0\x35" and packet[40:42] != b"\0\x35"
        return sll(packet, bits if to_server else 4 - bits)

    capture = Capture() if bits is None else Capture(LinkType.LINUX_SLL, wrap)
    stream = Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1)
    reply = dns(1, response=True, answers=100)
    stream.segment(6 * MS, (struct.pack("!H", len(reply)) + reply)[:500], response=True).segment(7 * MS)
    capture.wrap = ethernet if bits is None else lambda packet, kind=4: sll(packet, kind)
    line = one(capture.later())
    assert (line["Status"], cause(line)) == ("Failed", ("MalformedReply", "medium"))
    assert line["Cause"]["Evidence"][0] == "498 of 1633 bytes of the reply came over the connection, and then no more"


def test_a_lookup_that_waits_behind_such_a_reply_does_not_accuse_the_server_with_confidence(replay):
    capture = Capture()
    stream = Stream(capture).open(0).ask(5 * MS, 1).ask(5 * MS + 1, 2)
    reply = dns(1, response=True, answers=100)
    stream.segment(6 * MS, (struct.pack("!H", len(reply)) + reply)[:500], response=True).segment(7 * MS)
    lines, _ = replay(capture.later())
    assert [cause(line) for line in lines] == [("MalformedReply", "medium"), ("ServerNoReply", "low")]


@both_families
def test_who_cut_the_connection_off_is_told_where_the_query_only_left(one, client, server):
    capture = Capture()
    Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1).segment(6 * MS, flags=RST, response=True)
    line = one(capture.later())
    assert cause(line) == ("LeftNode", "low")
    assert "the server ended the connection by RST" in line["Cause"]["Evidence"]


# Replies of other shapes, and servers that are asked over TCP.


@both_families
@pytest.mark.parametrize("raw", [1, 8, 11])
def test_a_reply_over_tcp_that_is_shorter_than_a_header_is_a_reply(replay, client, server, raw):
    capture = Capture()
    stream = Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1)
    stream.segment(6 * MS, struct.pack("!H", raw) + dns(1, response=True)[:raw], response=True).segment(7 * MS)
    lines, _ = replay(stream.lookup(10 * MS, 2).capture.later())
    assert [cause(line) for line in lines] == [("MalformedReply", "medium"), None]


@both_families
@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_a_query_that_is_sent_back_is_no_question_of_the_servers(one, client, server, protocol):
    capture = Capture()
    if protocol == UDP:
        capture.query(0, client=client, server=server).datagram(MS, (server, 53, client, 40000), dns())
    else:
        stream = Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1)
        stream.segment(6 * MS, struct.pack("!H", len(dns())) + dns(), response=True).segment(7 * MS)
    line = one(capture.later())
    assert (line["BitMap"], cause(line)) == (1, ("MismatchedReply", "medium"))
    assert "it is marked as a query" in line["Cause"]["Message"]


@both_families
def test_a_reply_with_another_id_and_question_over_a_whole_connection_is_no_silence(one, client, server):
    capture = Capture()
    stream = Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1)
    reply = dns(99, response=True, name="other.example.net")
    stream.segment(6 * MS, struct.pack("!H", len(reply)) + reply, response=True).segment(7 * MS)
    assert cause(one(capture.later())) == ("MismatchedReply", "medium")


@both_families
def test_a_server_that_is_asked_over_tcp_asks_its_upstream_for_its_client(replay, client, server):
    upstream = "198.51.100.53" if "." in server else "2001:db8:5::53"
    capture = Capture()
    stream = Stream(capture, client=client, server=server).open(0).ask(5 * MS, 1)
    capture.datagram(6 * MS, (server, 40400, upstream, 53), dns(77))
    capture.datagram(7 * MS, (upstream, 53, server, 40400), dns(77, response=True, rcode=2, answers=0))
    reply = dns(1, response=True, rcode=2, answers=0)
    stream.segment(8 * MS, struct.pack("!H", len(reply)) + reply, response=True)
    lines, _ = replay(capture.later())
    assert (lines[0]["BitMap"], cause(lines[0])) == (15, ("UpstreamError", "high"))


@both_families
@pytest.mark.parametrize("lost", ["the whole reply", "its question"])
def test_an_upstream_whose_reply_was_not_captured_is_not_blamed_of_silence(replay, client, server, lost):
    upstream = "198.51.100.53" if "." in server else "2001:db8:5::53"
    capture = Capture().query(0, client=client, server=server)
    if lost == "the whole reply":
        Stream(capture, 45000, server, upstream).open(MS).ask(5 * MS, 88).say(6 * MS, 88, seen=False).segment(7 * MS)
    else:
        reply = ip(upstream, server, UDP, udp(53, 45000, dns(88, response=True)))
        cut = len(ethernet(reply)) - len(dns(88, response=True)) + 20
        capture.datagram(MS, (server, 45000, upstream, 53), dns(88)).add(2 * MS, reply, snap=cut)
    capture.datagram(SECOND, (server, 53, client, 40000), dns(response=True, rcode=2, answers=0))
    line = replay(capture.later())[0][0]
    assert cause(line) == ("UpstreamError", "low")
    assert any("was not captured" in words for words in line["Cause"]["Evidence"])


def test_an_upstream_whose_reply_never_became_whole_is_not_called_silent(replay):
    capture = Capture().query(0)
    stream = Stream(capture, 45000, SERVER, "198.51.100.53").open(MS).ask(5 * MS, 88)
    reply = dns(88, response=True, answers=100)
    stream.segment(6 * MS, (struct.pack("!H", len(reply)) + reply)[:500], response=True)
    capture.datagram(SECOND, (SERVER, 53, CLIENT, 40000), dns(response=True, rcode=2, answers=0))
    line = replay(capture.later())[0][0]
    assert cause(line) == ("UpstreamTimeout", "high")
    assert "no reply that the server could use (1 came)" in line["Cause"]["Evidence"][0]


@both_families
def test_an_upstream_that_refuses_a_connection_is_told_with_the_lookup(replay, client, server):
    upstream = "198.51.100.53" if "." in server else "2001:db8:5::53"
    capture = Capture().query(0, client=client, server=server)
    stream = Stream(capture, 45000, server, upstream).segment(MS, flags=SYN)
    stream.segment(2 * MS, flags=RST | ACK, response=True)
    capture.datagram(20 * MS, (server, 53, client, 40000), dns(response=True, rcode=2, answers=0))
    lines, _ = replay(capture.later())
    assert cause(lines[0]) == ("UpstreamTCPUnavailable", "high")


@both_families
@pytest.mark.parametrize("raw", [2, 12, 20])
def test_a_reply_that_alone_was_cut_by_the_snap_length_is_not_silence(replay, client, server, raw):
    reply = ip(server, client, UDP, udp(53, 40000, dns(response=True)))
    header = len(ethernet(reply)) - len(dns(response=True))
    capture = Capture().query(0, client=client, server=server).add(MS, reply, snap=header + raw)
    (line,), summary = replay(capture.later())
    assert (line["Status"], cause(line)) == ("SampleLoss", ("CaptureLoss", "medium"))
    assert "the capture cut it" in line["Cause"]["Message"]
    assert "1 message cut by the capture" in summary


def test_an_attempt_whose_reply_was_cut_was_not_lost(one):
    reply = ip(SERVER, CLIENT, UDP, udp(53, 40000, dns(response=True)), ident=9)
    capture = Capture().query(0).add(MS, reply, snap=60).query(5 * SECOND).reply(5 * SECOND + MS)
    line = one(capture.later())
    assert (told(line), line["Attempts"], line["Cause"]) == (("Succeeded", 3, 51), 2, None)


def test_a_reply_40_s_late_does_not_make_its_server_silent_with_confidence(one):
    line = one(Capture().query(0).reply(40 * SECOND).later())
    assert cause(line) == ("LeftNode", "low")


@both_families
def test_fragments_without_the_first_are_in_one_sum(replay, client, server):
    payload = udp(53, 40000, dns(response=True, answers=180))
    capture = Capture().query(0, client=client, server=server)
    if "." in server:
        capture.add(MS, ip(server, client, UDP, payload[1480:], frag=1480 // 8))
    else:
        capture.add(MS, ip(server, client, 44, struct.pack("!BBHI", UDP, 0, 1480, 7) + payload[1480:]))
    _, summary = replay(capture.later())
    assert "1 datagram with fragments missing" in summary
    assert "not readable" not in summary


EVERY = sorted([*(FIXTURES / "cases").glob("*.pcap"), *FIXTURES.glob("coredns-dnstap/*.pcap")])


@pytest.mark.parametrize("path", EVERY, ids=[path.stem for path in EVERY])
def test_every_frame_is_in_a_line_or_in_exactly_one_sum(path, capsys):
    for ports in ((53,), (1053, 2053, 2054, 2055, 2056, 2057)):
        run = Replay(Options((str(path),), ports), Inputs([str(path)]), FakeOut())
        run.work()
        assert run.sums.unaccounted() == 0
    capsys.readouterr()


@both_families
@pytest.mark.parametrize("raw", [2, 12, 20])
def test_a_reply_that_was_cut_is_in_one_sum_and_its_query_in_a_line(tmp_path, client, server, raw):
    reply = ip(server, client, UDP, udp(53, 40000, dns(response=True)))
    header = len(ethernet(reply)) - len(dns(response=True))
    capture = Capture().query(0, client=client, server=server).add(MS, reply, snap=header + raw)
    path = capture.later().write(tmp_path / "file.pcap")
    run = Replay(Options((path,)), Inputs([path]), FakeOut())
    run.work()
    assert run.sums.unaccounted() == 0


def test_a_stray_over_tcp_does_not_hide_what_comes_after_it_from_the_sums(tmp_path):
    capture = Capture()
    stream = Stream(capture).open(0).ask(5 * MS, 1)
    stream.segment(6 * MS, struct.pack("!H", 3) + b"abc", response=True)
    path = capture.datagram(7 * MS, (CLIENT, 40001, SERVER, 53), b"abc").later().write(tmp_path / "file.pcap")
    run = Replay(Options((path,)), Inputs([path]), FakeOut())
    run.work()
    assert run.sums.unaccounted() == 0


class FakeOut:
    """Takes lines and keeps none."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""
