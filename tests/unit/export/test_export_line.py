"""agent.export: the session line has the fields that were promised, and no name can break it."""

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export import table as rows
from agent.export.clock import rfc3339
from agent.export.line import Context, build

WALL = 1_795_239_674_352_334_704
LINE = {
    "Time",
    "Node",
    "Vantage",
    "Status",
    "BitMap",
    "DnstapBitMap",
    "PathBitMap",
    "Question",
    "Protocol",
    "Family",
    "TransactionId",
    "Rcode",
    "AnswerSource",
    "DurationSeconds",
    "Client",
    "Server",
    "Attempts",
    "Cause",
    "Findings",
    "Latency",
    "Path",
    "Messages",
}
ADDED = {"HeldBack", "Inferred", "Opcode", "Remarks", "Connection", "Upstream", "UpstreamOf"}
"""Fields beyond those of the specification."""
CLIENT = {"Address", "Port", "Netns", "Namespace", "Pod", "Workload", "Container", "Process", "Pid"}
SERVER = {"Address", "Port", "Service", "Backend", "BackendNetns", "Namespace", "Pod", "TranslatedBy"}
CAUSE = {"Code", "Confidence", "Message", "Evidence", "Remedy", "Doc"}
HOP = {"Message", "Event", "OffsetSeconds", "Netns", "Interface", "Source", "Destination"}
MESSAGE = {
    "type",
    "socket_family",
    "socket_protocol",
    "query_address",
    "query_port",
    "response_address",
    "response_port",
}


def context(world):
    return Context("node-a", WALL - world.START)


def built(world, outcome):
    return build(outcome, explain(outcome), context(world))


def as_json(world, outcome):
    return json.loads(msgspec.json.encode(built(world, outcome)))


def spec_example(world):
    return world.outcome(world.dropped(world.Lookup().query(), 2))


def test_the_fields_are_those_of_the_specification(world):
    line = as_json(world, spec_example(world))
    assert set(line) == LINE | ADDED
    assert set(line["Question"]) == {"Name", "Type", "Class"}
    assert set(line["Client"]) == CLIENT
    assert set(line["Server"]) - {"Process", "Pid"} == SERVER
    assert set(line["Cause"]) == CAUSE
    assert set(line["Latency"]) == {"ClientToServer", "Server", "Upstream", "ServerToClient"}
    assert [set(hop) for hop in line["Path"]] == [HOP, HOP, HOP | {"Reason", "Location"}]
    assert [set(one) for one in line["Messages"]] == [MESSAGE | {"query_time", "query_message"}]


def test_the_example_of_the_specification_comes_out_as_printed_there(world):
    line = as_json(world, spec_example(world))
    scalars = {name: value for name, value in line.items() if not isinstance(value, dict | list) and name not in ADDED}
    assert scalars == {
        "Time": "2026-11-21T05:41:14.352334704Z",
        "Node": "node-a",
        "Vantage": "client",
        "Status": "Failed",
        "BitMap": 0,
        "DnstapBitMap": 0,
        "PathBitMap": 80,
        "Protocol": "UDP",
        "Family": "INET",
        "TransactionId": 36259,
        "Rcode": None,
        "AnswerSource": None,
        "DurationSeconds": None,
        "Attempts": 1,
    }
    assert line["Question"] == {"Name": "redis-master.default.svc.cluster.local.", "Type": "A", "Class": "IN"}
    client = {"Address": "172.20.2.25", "Port": 44525, "Netns": 4026532177, "Process": "php-fpm", "Pid": 7445}
    assert client.items() <= line["Client"].items()
    assert {"Address": "10.96.0.10", "Port": 53, "BackendNetns": None}.items() <= line["Server"].items()
    assert set(line["Latency"].values()) == {None}
    place = {"Netns": 4026531840, "Interface": "vethc", "Source": "172.20.2.25:44525", "Destination": "10.96.0.10:53"}
    assert line["Path"] == [
        {
            "Message": "STUB_QUERY",
            "Event": "tx",
            "OffsetSeconds": 0.0,
            **place,
            "Netns": 4026532177,
            "Interface": "eth0",
        },
        {"Message": "STUB_QUERY", "Event": "rx", "OffsetSeconds": 0.000023, **place},
        {
            "Message": "STUB_QUERY",
            "Event": "drop",
            "OffsetSeconds": 0.000025,
            **place,
            "Reason": "NETFILTER_DROP",
            "Location": "nf_hook_slow",
        },
    ]
    assert line["Messages"] == [
        {
            "type": "STUB_QUERY",
            "socket_family": "INET",
            "socket_protocol": "UDP",
            "query_address": "172.20.2.25",
            "query_port": 44525,
            "response_address": "10.96.0.10",
            "response_port": 53,
            "query_time": "2026-11-21T05:41:14.352334704Z",
            "query_message": line["Messages"][0]["query_message"],
        }
    ]
    query = line["Messages"][0]["query_message"]
    assert {"id": 36259, "opcode": "QUERY", "rcode": "NOERROR", "flags": ["rd"], "edns": None}.items() <= query.items()
    assert query["question"] == {"name": "redis-master.default.svc.cluster.local.", "class": "IN", "type": "A"}


def test_an_answered_lookup_shows_all_hops_messages_and_latencies(world):
    line = as_json(world, world.outcome(world.Lookup().both()))
    assert [(hop["Message"], hop["Event"]) for hop in line["Path"]] == [
        ("STUB_QUERY", "tx"),
        ("STUB_QUERY", "rx"),
        ("STUB_QUERY", "tx"),
        ("CLIENT_QUERY", "rx"),
        ("CLIENT_RESPONSE", "tx"),
        ("CLIENT_RESPONSE", "rx"),
        ("CLIENT_RESPONSE", "tx"),
        ("STUB_RESPONSE", "rx"),
    ]
    messages = [(one["type"], one["response_address"]) for one in line["Messages"]]
    assert messages == [
        ("STUB_QUERY", "10.96.0.10"),
        ("CLIENT_QUERY", "10.244.1.53"),
        ("CLIENT_RESPONSE", "10.244.1.53"),
        ("STUB_RESPONSE", "10.96.0.10"),
    ]
    assert {one["query_port"] for one in line["Messages"]} == {44525}
    assert [set(one) & {"query_time", "response_time"} for one in line["Messages"]] == [
        {"query_time"},
        {"query_time"},
        {"response_time"},
        {"response_time"},
    ]
    assert line["Latency"] == {
        "ClientToServer": pytest.approx(47.5e-6),
        "Server": pytest.approx(78.1e-6),
        "Upstream": None,
        "ServerToClient": pytest.approx(13e-6),
    }
    assert line["DurationSeconds"] == pytest.approx(138.6e-6)
    server = {
        "Backend": "10.244.1.53:53",
        "BackendNetns": 4026532300,
        "TranslatedBy": "conntrack",
        "Process": "coredns",
    }
    assert server.items() <= line["Server"].items()
    assert (line["Rcode"], line["AnswerSource"], line["Cause"], line["Findings"]) == ("NOERROR", "local", None, [])


def test_a_query_that_left_the_node_became_a_client_query_where_it_left(world):
    line = as_json(world, world.outcome(world.Lookup(shape="client").both()))
    assert [one["type"] for one in line["Messages"]] == [
        "STUB_QUERY",
        "CLIENT_QUERY",
        "CLIENT_RESPONSE",
        "STUB_RESPONSE",
    ]
    assert (line["Server"]["Backend"], line["Server"]["BackendNetns"]) == ("10.244.1.53:53", None)
    assert line["Latency"]["Server"] is None


def test_where_only_the_server_is_here_nothing_is_claimed_of_the_client(world):
    line = as_json(world, world.outcome(world.Lookup(shape="server").both()))
    assert {"Netns": None, "Process": None, "Pid": None}.items() <= line["Client"].items()
    assert [one["type"] for one in line["Messages"]] == ["CLIENT_QUERY", "CLIENT_RESPONSE"]
    assert (line["Server"]["Backend"], line["Server"]["TranslatedBy"]) == (None, None)


def test_ipv6_is_spelled_as_people_do(world):
    line = as_json(world, world.outcome(world.Lookup(v6=True).both()))
    assert (line["Family"], line["Client"]["Address"], line["Messages"][0]["socket_family"]) == (
        "INET6",
        "fd00::2:25",
        "INET6",
    )
    assert line["Path"][0]["Source"] == "[fd00::2:25]:44525"
    assert line["Server"]["Backend"] == "[fd00:244::53]:53"


def test_every_attempt_and_its_messages_are_shown(world):
    lookup = world.Lookup()
    again = world.START + 5 * world.SECOND
    line = as_json(
        world, world.outcome(world.dropped(lookup.query(), 2), lookup.query(again), lookup.reply(again + 90_000))
    )
    assert (line["Attempts"], len(line["Path"])) == (2, 11)
    assert [one["type"] for one in line["Messages"]].count("STUB_QUERY") == 2
    assert line["DurationSeconds"] == pytest.approx(5, abs=0.001)
    assert line["Latency"]["ClientToServer"] == pytest.approx(47.5e-6)


@pytest.mark.parametrize(
    ("wall_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (WALL, "2026-11-21T05:41:14.352334704Z"),
        (WALL - 352_334_703, "2026-11-21T05:41:14.000000001Z"),
    ],
)
def test_times_are_rfc_3339_with_nanoseconds(wall_ns, text):
    assert rfc3339(wall_ns) == text


def test_all_times_of_a_line_are_utc_with_nanoseconds(world):
    line = as_json(world, world.outcome(world.Lookup().both()))
    times = [line["Time"], *(value for one in line["Messages"] for key, value in one.items() if key.endswith("_time"))]
    assert len(times) == 5
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", text) for text in times)


labels = st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=3)


def is_harmless(text):
    return not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u2028\u2029\u202e" for char in text)


@given(labels=labels, comm=st.binary(max_size=15), rdtype=st.integers(1, 65535), rdclass=st.integers(0, 65535))
def test_no_name_breaks_the_json_line(worlds, labels, comm, rdtype, rdclass):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    world = worlds()
    one = world.outcome(world.Lookup(name=name, comm=comm, rdtype=rdtype, rdclass=rdclass).both())
    text = msgspec.json.encode(built(world, one)).decode()
    assert not re.search(r"[\x00-\x1f]", text)
    assert json.loads(text)["Question"]["Name"].isascii()


@given(labels=labels)
def test_no_name_puts_control_characters_into_the_table(worlds, labels):
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    world = worlds()
    assert is_harmless(rows.row(built(world, world.outcome(world.Lookup(name=name).both()))))


@pytest.mark.parametrize("comm", [b"\x1b[2Jevil", b"two\nlines", b"a\rb", b"\xc2\x9b31m", "\u202eevil".encode()])
def test_no_process_puts_control_characters_into_the_table(world, comm):
    assert is_harmless(rows.row(built(world, world.outcome(world.Lookup(comm=comm).both()))))


def test_no_device_puts_control_characters_into_the_table(world):
    hops = world.dropped(world.Lookup().query(), 2, "TC_EGRESS")
    evil = [world.PlainHop(**(vars(hop) | {"ifname": b"\x1b]0;x\x07"})) for hop in hops]
    assert is_harmless(rows.row(built(world, world.outcome(evil))))


def test_rows_align_with_their_heading(world):
    row = rows.row(built(world, world.outcome(world.Lookup(name="x" * 60 + ".local.").both())))
    heading = rows.heading()
    assert "…" in row
    assert row.index("Succeeded") == heading.index("STATUS")
    assert row.index("3/51") == heading.index("BITS")
    assert row.index("NOERROR") == heading.index("RCODE")
    assert row.startswith("00:00") or re.match(r"\d\d:\d\d:\d\d\.\d{3} ", row)
