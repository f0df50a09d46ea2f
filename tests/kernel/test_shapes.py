"""Whatever the shape of the packets, the session is complete and right: sizes, fragments, EDNS, devices, TCP."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dns.edns
import dns.message
import pytest

from agent.lab import ANY_CLUSTER_NAME, VIP, VIP6, Lab, Pod, UnsupportedFaultError, closed_port, namespaces, wait_until
from tests.kernel.conftest import Line, Watch
from tests.kernel.named import containing, masks, new_name, of_name, payloads, wait_for, wait_for_lines, watching
from tests.lab.scripted import scripted
from tests.lab.shapes import (
    BEYOND,
    IPV4_HEADER,
    MTU,
    NODE_LOCAL,
    TaggedLink,
    TunServer,
    give_up_fragments_soon,
    lost_fragments,
    node_local_address,
    tun_server,
    vlan_device,
    vxlan,
)

pytestmark = pytest.mark.kernel

ANSWERED = ("Succeeded", 3, 51)
FORWARDED = ("Succeeded", 15, 63)
SILENT = ("Failed", 1, 17)
SIZES = (255, 256, 263, 512, 513, 1232, 4096, 65_000, 65_507)
REPLY_SECONDS = 2.0
PADDING = 12  # EDNS option code (RFC 7830)
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])
PAD_TO_8 = b"\0\0\1\4\0\0\0\0"  # next header (the kernel's business), length 0, PadN of 4 bytes (RFC 8200 4.2)
STUB = [
    *("dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root"),
    *("--pid-file=", "--bind-interfaces", "--cache-size=0", f"--server={VIP}"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab, scripted(lab.servers[0], *_addresses(lab.servers[0]), "127.0.0.1", "::1"):
        for pod in (lab.clients[0], lab.node):
            give_up_fragments_soon(pod)
        yield lab


def _addresses(pod: Pod) -> tuple[str, str]:
    return pod.address, pod.address6


@pytest.fixture(scope="module")
def old_connection(lab: Lab) -> Iterator[socket.socket]:
    """A TCP connection that has carried a lookup before dnstrail watches."""
    with connection(lab.clients[0]) as stream:
        send(stream, new_name("ok"))
        receive(stream)
        yield stream


@pytest.fixture(scope="module")
def watch(
    lab: Lab,  # noqa: ARG001  sessions of its building are none of ours
    old_connection: socket.socket,  # noqa: ARG001  it must be older
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watch]:
    with watching(tmp_path_factory.mktemp("watch"), "--timeout", "1.5") as watch:
        yield watch


def one(watch: Watch, name: str) -> Line:
    (line,) = wait_for(watch, name)
    return line


def assert_complete(line: Line) -> None:
    """All four messages, each once, none with a remark that something is wrong with it."""
    found = payloads(line)
    assert {kind: len(messages) for kind, messages in found.items()} == {
        "STUB_QUERY": 1,
        "CLIENT_QUERY": 1,
        "CLIENT_RESPONSE": 1,
        "STUB_RESPONSE": 1,
    }
    for messages in found.values():
        assert "malformed" not in messages[0]


def text_of(message: dict[str, Any]) -> str:
    return "".join(part for record in message["answer"] for part in record["data"].split('"')[1::2])


# --- sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["veth-v4", "veth-v6", "lo-v4", "lo-v6"])
def test_a_reply_of_any_size_is_there_to_the_last_byte(lab: Lab, watch: Watch, size: int, way: str):
    pod, address = {
        "veth-v4": (lab.clients[0], VIP),
        "veth-v6": (lab.clients[0], VIP6),
        "lo-v4": (lab.servers[0], "127.0.0.1"),
        "lo-v6": (lab.servers[0], "::1"),
    }[way]
    name = new_name(f"size-{size}")
    said = pod.dig(name, "TXT", address, "+bufsize=65535").stdout
    assert f"rcvd: {size}" in said
    line = one(watch, name)
    assert masks(line) == ANSWERED
    assert (line["Cause"], line["Attempts"]) == (None, 1)
    assert_complete(line)
    data_bytes = size - (12 + len(name) + 2 + 4) - 12
    for kind in ("CLIENT_RESPONSE", "STUB_RESPONSE"):
        text = text_of(payloads(line)[kind][0])
        assert len(text) == data_bytes - -(-data_bytes // 256)  # each 255 characters have their length before them


@VIPS
def test_a_query_in_fragments_is_one_query(lab: Lab, watch: Watch, vip: str):
    name = new_name("ok")
    message = dns.message.make_query(name, "A", payload=1232, options=[dns.edns.GenericOption(PADDING, bytes(3000))])
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    with namespaces.udp_socket(lab.clients[0].name, family) as sock:
        sock.settimeout(REPLY_SECONDS)
        sock.sendto(message.to_wire(max_size=65_535), (vip, 53))
        assert sock.recv(4096)
    line = one(watch, name)
    assert (*masks(line), line["Attempts"]) == (*ANSWERED, 1)
    assert_complete(line)
    assert len(payloads(line)["CLIENT_QUERY"][0]["edns"]["options"][0]["data"]) == 2 * 3000


# --- fragments that are lost, or tiny


@pytest.mark.parametrize(("vip", "place"), [(VIP, "client"), (VIP6, "client"), (VIP, "node"), (VIP6, "node")])
def test_a_reply_that_lost_a_fragment_on_this_node_did_not_reach_its_client(
    lab: Lab, watch: Watch, vip: str, place: str
):
    name = new_name("size-4096")
    with lost_fragments(lab.clients[0] if place == "client" else lab.node, 1480 // 8, 1448 // 8):
        assert "timed out" in lab.clients[0].dig(name, "TXT", vip, "+bufsize=4096").stdout
        line = one(watch, name)
    assert (line["Status"], line["BitMap"], line["Attempts"]) == ("Failed", 3, 1)
    assert line["PathBitMap"] & 128
    assert line["Cause"]["Code"] in {"PolicyDrop", "FragmentLost"}
    assert len(payloads(line)["CLIENT_RESPONSE"]) == 1


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_fragment_that_never_came_is_told_by_what_was_given_up_for_it(
    lab: Lab, watch: Watch, tun: TunServer, lost: int
):
    name = new_name("size-4096")
    tun.lost_fragments = {lost}
    try:
        assert "timed out" in lab.clients[0].dig(name, "TXT", BEYOND, "+bufsize=4096").stdout
    finally:
        tun.lost_fragments = set()
    line = one(watch, name)
    assert (line["Status"], line["Attempts"], line["Vantage"]) == ("Failed", 1, "client")
    if lost == 0:  # without the first fragment nobody knows what the others are of
        assert (line["BitMap"], line["Cause"]["Code"]) == (1, "LeftNode")
    else:
        assert (line["BitMap"], line["Cause"]["Code"]) == (3, "FragmentLost")
        assert "cut" in payloads(line)["CLIENT_RESPONSE"][0]["malformed"]


# The kernel puts a small datagram together in the room behind its first fragment's bytes, a larger one in pages.
@pytest.mark.parametrize("size", [75, 255, 900])
def test_fragments_that_cut_the_dns_header_in_two_are_understood(lab: Lab, watch: Watch, tun: TunServer, size: int):
    name = new_name(f"size-{size}")
    tun.fragment_bytes = 16
    try:
        assert f"rcvd: {size}" in lab.clients[0].dig(name, "TXT", BEYOND).stdout
    finally:
        tun.fragment_bytes = MTU - IPV4_HEADER
    line = one(watch, name)
    assert (line["Status"], line["BitMap"], line["Rcode"]) == ("Succeeded", 3, "NOERROR")
    assert not any("malformed" in message for messages in payloads(line).values() for message in messages)


def test_a_datagram_made_of_fragments_in_the_memory_of_another_packet_is_seen_too(
    lab: Lab, watch: Watch, tun: TunServer
):
    """The kernel uses sk_buffs again: those of lookups were seen to arrive, those of fragments were not."""
    names = [new_name("size-75") for _ in range(30)]
    tun.fragment_bytes = 16
    try:
        for name in names:
            lab.clients[0].ask(f"before.{ANY_CLUSTER_NAME}")
            lab.clients[0].dig(name, "TXT", BEYOND)
    finally:
        tun.fragment_bytes = MTU - IPV4_HEADER
    assert {one(watch, name)["Status"] for name in names} == {"Succeeded"}


# --- EDNS


def test_edns_of_query_and_reply_is_told_in_full(lab: Lab, watch: Watch):
    name = new_name("ok")
    options = ("+bufsize=1400", "+dnssec", "+subnet=192.0.2.0/24", "+cookie=0123456789abcdef")
    lab.clients[0].dig(name, "A", VIP, *options)
    line = one(watch, name)
    assert masks(line) == ANSWERED
    assert_complete(line)
    found = payloads(line)
    asked, replied = found["STUB_QUERY"][0]["edns"], found["STUB_RESPONSE"][0]["edns"]
    assert (asked["version"], asked["udp_size"], asked["do"]) == (0, 1400, True)
    assert (replied["version"], replied["udp_size"], replied["do"]) == (0, 1232, True)
    assert data_of(asked) == {"ECS": "192.0.2.0/24 scope/0", "COOKIE": "0123456789abcdef"}
    assert data_of(replied) == {"ECS": "192.0.2.0/24 scope/24", "COOKIE": "0123456789abcdef0001020304050607"}


def data_of(edns: dict[str, Any]) -> dict[str, str]:
    return {option["name"]: option["data"] for option in edns["options"]}


def test_an_extended_rcode_is_the_sessions(lab: Lab, watch: Watch):
    name = new_name("badvers")
    assert "BADVERS" in lab.clients[0].dig(name).stdout
    line = one(watch, name)
    assert (*masks(line), line["Rcode"]) == ("Failed", 3, 51, "BADVERS")
    assert payloads(line)["STUB_RESPONSE"][0]["rcode"] == "BADVERS"


def test_an_extended_error_is_told(lab: Lab, watch: Watch):
    name = new_name("ede")
    assert "EDE: 23" in lab.clients[0].dig(name).stdout
    line = one(watch, name)
    assert (*masks(line), line["Rcode"]) == ("Failed", 3, 51, "SERVFAIL")
    ((kind, data),) = data_of(payloads(line)["STUB_RESPONSE"][0]["edns"]).items()
    assert kind == "EDE"
    assert "as the name asked for" in data


# --- headers and devices


@pytest.mark.parametrize("header", [socket.IPV6_DSTOPTS, socket.IPV6_HOPOPTS])
def test_an_ipv6_extension_header_hides_nothing(lab: Lab, watch: Watch, header: int):
    name = new_name("ok")
    with namespaces.udp_socket(lab.clients[0].name, socket.AF_INET6) as sock:
        sock.settimeout(REPLY_SECONDS)
        sock.sendmsg([query(name)], [(socket.IPPROTO_IPV6, header, PAD_TO_8)], 0, (VIP6, 53))
        assert sock.recv(512)
    line = one(watch, name)
    assert masks(line) == ANSWERED
    assert_complete(line)


def query(name: str, rdtype: str = "A", id_: int | None = None) -> bytes:
    message = dns.message.make_query(name, rdtype)
    if id_ is not None:
        message.id = id_
    return message.to_wire()


def test_a_lookup_over_a_vlan_device_is_complete(lab: Lab, watch: Watch):
    name = new_name("ok")
    client, node = lab.clients[0], lab.node
    try:
        with vlan_device(client, node) as address, scripted(node, address):
            client.dig(name, "A", address)
            line = one(watch, name)
    except UnsupportedFaultError as missing:
        pytest.skip(f"no VLAN devices here: {missing}")
    assert masks(line) == ANSWERED
    assert_complete(line)
    assert {"vlan5"} <= {hop["Interface"] for hop in line["Path"]}


def test_dns_is_found_behind_a_vlan_tag(lab: Lab, watch: Watch):
    name, server = new_name("ok"), "192.0.2.53"
    asked = dns.message.make_query(name, "A")
    link = TaggedLink(lab.clients[0], lab.node)
    link.send_query(asked.to_wire(), 4053, server)
    link.send_reply(dns.message.make_response(asked).to_wire(), 4053, server)
    line = one(watch, name)
    assert line["BitMap"] & 2
    assert (line["Client"]["Port"], line["Server"]["Address"]) == (4053, server)
    seen = {(hop["Message"].split("_")[1], hop["Event"], hop["Interface"]) for hop in line["Path"]}
    node_end = lab.clients[0].node_interface
    assert {("QUERY", "tx", "eth0"), ("QUERY", "rx", node_end), ("RESPONSE", "tx", node_end)} <= seen
    assert ("RESPONSE", "rx", "eth0") in seen
    assert not any("malformed" in message for messages in payloads(line).values() for message in messages)


@pytest.fixture(scope="module")
def tun(lab: Lab) -> Iterator[TunServer]:
    with contextmanager(_tun_or_skip)(lab.node) as server:
        yield server


def _tun_or_skip(node: Pod) -> Iterator[TunServer]:
    try:
        with tun_server(node) as server:
            yield server
    except UnsupportedFaultError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("asker", ["pod", "node"])
def test_a_server_beyond_a_tun_device_is_beyond_this_node(lab: Lab, watch: Watch, tun: TunServer, asker: str):
    assert not tun.lost_fragments
    answered, silent = new_name("ok"), new_name("silent")
    pod = lab.clients[0] if asker == "pod" else lab.node
    for name in (answered, silent):
        pod.dig(name, "A", BEYOND)
    line = one(watch, answered)
    assert (*masks(line), line["Vantage"], line["Cause"]) == (*ANSWERED, "client", None)
    assert_complete(line)
    line = one(watch, silent)
    assert (*masks(line), line["Vantage"], line["Cause"]["Code"]) == (*SILENT, "client", "LeftNode")
    assert line["Path"][-1]["Interface"] == "tun0"


def test_a_fragmented_reply_from_beyond_is_put_together(lab: Lab, watch: Watch, tun: TunServer):
    assert not tun.lost_fragments
    name = new_name("size-4096")
    assert "rcvd: 4096" in lab.clients[0].dig(name, "TXT", BEYOND, "+bufsize=4096").stdout
    line = one(watch, name)
    assert (*masks(line), line["Vantage"]) == (*ANSWERED, "client")
    assert_complete(line)


def test_a_lookup_through_a_vxlan_overlay_is_one_session(lab: Lab, watch: Watch):
    name = new_name("ok")
    client, node, far = lab.clients[0], lab.node, lab.upstream
    try:
        with vxlan(node, far, client) as address, scripted(far, address):
            assert "status: NOERROR" in client.dig(name, "A", address).stdout
            line = one(watch, name)
    except UnsupportedFaultError as missing:
        pytest.skip(f"no VXLAN here: {missing}")
    assert (*masks(line), line["Vantage"]) == (*ANSWERED, "both")
    assert_complete(line)
    assert (line["Server"]["BackendNetns"], line["Server"]["Backend"]) == (far.netns_id, None)
    assert [hop["Interface"] for hop in line["Path"]] == [
        *("eth0", client.node_interface, "vxlan0", "vxlan0"),
        *("vxlan0", "vxlan0", client.node_interface, "eth0"),
    ]


@contextmanager
def stub_resolver(pod: Pod, address: str) -> Iterator[None]:
    """A dnsmasq that passes everything on to the Service."""
    process = pod.popen([*STUB, f"--listen-address={address}"])
    try:
        wait_until(lambda: pod.gets_reply_from(address), f"the stub resolver at {address}")
        yield
    finally:
        process.kill()
        process.wait()


def test_a_loopback_resolver_and_its_upstream_are_two_linked_sessions(lab: Lab, watch: Watch):
    name = new_name("ok")
    client = lab.clients[0]
    with stub_resolver(client, "127.0.0.53"):
        assert "status: NOERROR" in client.dig(name, "A", "127.0.0.53").stdout
        lines = wait_for(watch, name, 2)
    stub, cluster = sorted(lines, key=lambda line: line["Server"]["Address"], reverse=True)
    assert (*masks(stub), stub["Server"]["Address"]) == (*FORWARDED, "127.0.0.53")
    assert (*masks(cluster), cluster["Server"]["Address"]) == (*ANSWERED, VIP)
    assert (stub["Client"]["Process"], stub["Server"]["Process"]) == ("dig", "dnsmasq")
    assert cluster["Client"]["Process"] == "dnsmasq"
    assert cluster["UpstreamOf"]["Client"] == f"127.0.0.1:{stub['Client']['Port']}"
    assert cluster["UpstreamOf"]["TransactionId"] == stub["TransactionId"]


def test_a_node_local_cache_without_conntrack_is_a_server_like_any_other(lab: Lab, watch: Watch):
    name = new_name("ok")
    client, node = lab.clients[0], lab.node
    with node_local_address(node), stub_resolver(node, NODE_LOCAL):
        assert "status: NOERROR" in client.dig(name, "A", NODE_LOCAL).stdout
        lines = wait_for(watch, name, 2)
    local, cluster = sorted(lines, key=lambda line: line["Server"]["Address"], reverse=True)
    assert (*masks(local), local["Server"]["Address"], local["Server"]["Backend"]) == (*FORWARDED, NODE_LOCAL, None)
    assert local["Server"]["BackendNetns"] == cluster["Client"]["Netns"] == node.netns_id
    assert (*masks(cluster), cluster["Server"]["BackendNetns"]) == (*ANSWERED, lab.servers[0].netns_id)
    assert cluster["UpstreamOf"]["TransactionId"] == local["TransactionId"]


# --- TCP


@contextmanager
def connection(pod: Pod, address: str = VIP) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespaces.call_inside(pod.name, lambda: socket.socket(family, socket.SOCK_STREAM)) as stream:
        stream.settimeout(REPLY_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.connect((address, 53))
        yield stream


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2) + message


def send(stream: socket.socket, name: str, rdtype: str = "A", id_: int | None = None) -> None:
    stream.sendall(framed(query(name, rdtype, id_)))


def receive(stream: socket.socket) -> str:
    """The name that the next reply answers."""
    size = int.from_bytes(_exactly(stream, 2))
    return str(dns.message.from_wire(_exactly(stream, size)).question[0].name)


def _exactly(stream: socket.socket, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        more = stream.recv(size - len(raw))
        assert more, "the server closed the connection"
        raw += more
    return raw


def assert_answered_over_tcp(lines: Sequence[Line]) -> None:
    for line in lines:
        assert (*masks(line), line["Protocol"], line["Attempts"]) == (*ANSWERED, "TCP", 1)
        assert_complete(line)
        assert {message["socket_protocol"] for message in line["Messages"]} == {"TCP"}
        assert line["Connection"]["ResetBy"] is None


@VIPS
def test_a_lookup_over_tcp_is_one_complete_session(lab: Lab, watch: Watch, vip: str):
    name = new_name("ok")
    assert "(TCP)" in lab.clients[0].dig(name, "A", vip, "+tcp").stdout
    line = one(watch, name)
    assert_answered_over_tcp([line])
    assert len(line["Path"]) == 8
    assert line["Connection"]["ClosedBy"] == "client"


@pytest.mark.parametrize("size", [255, 256, 513, 1500, 4096, 65_535])
def test_a_reply_of_any_size_is_complete_over_tcp(lab: Lab, watch: Watch, size: int):
    name = new_name(f"size-{size}")
    assert f"rcvd: {size}" in lab.clients[0].dig(name, "TXT", VIP, "+tcp").stdout
    assert_answered_over_tcp([one(watch, name)])


@pytest.mark.parametrize("segments", [1, 3])
def test_pipelined_queries_with_replies_out_of_order_find_each_other(lab: Lab, watch: Watch, segments: int):
    base = new_name("order")
    names = [f"held.a.{base}", f"held.b.{base}", f"ok.c.{base}"]
    with connection(lab.clients[0]) as stream:
        if segments == 1:
            stream.sendall(b"".join(framed(query(name)) for name in names))
        else:
            for name in names:
                send(stream, name)
        assert [receive(stream) for _ in names] == [f"{name}." for name in reversed(names)]
    lines = wait_for(watch, base, 3)
    assert_answered_over_tcp(lines)
    assert {line["Question"]["Name"] for line in lines} == {f"{name}." for name in names}
    assert len({line["Client"]["Port"] for line in lines}) == 1
    for line in lines:
        found = payloads(line)
        assert found["STUB_RESPONSE"][0]["question"]["name"] == line["Question"]["Name"]
        assert found["STUB_RESPONSE"][0]["id"] == found["STUB_QUERY"][0]["id"] == line["TransactionId"]


def test_two_types_under_one_id_on_one_connection_are_two_sessions(lab: Lab, watch: Watch):
    name = new_name("ok")
    with connection(lab.clients[0]) as stream:
        send(stream, name, "A", 77)
        send(stream, name, "AAAA", 77)
        receive(stream)
        receive(stream)
    lines = wait_for(watch, name, 2)
    assert_answered_over_tcp(lines)
    assert {line["Question"]["Type"] for line in lines} == {"A", "AAAA"}
    assert {line["TransactionId"] for line in lines} == {77}


@VIPS
def test_a_length_prefix_may_be_split_over_segments(lab: Lab, watch: Watch, vip: str):
    name = new_name("split")
    raw = framed(query(name))
    with connection(lab.clients[0], vip) as stream:
        stream.sendall(raw[:1])
        stream.sendall(raw[1:])
        assert receive(stream) == f"{name}."
    assert_answered_over_tcp([one(watch, name)])


def test_a_query_sent_byte_by_byte_is_one_query(lab: Lab, watch: Watch):
    name = new_name("ok")
    with connection(lab.clients[0]) as stream:
        for byte in framed(query(name)):
            stream.sendall(bytes([byte]))
        assert receive(stream) == f"{name}."
    assert_answered_over_tcp([one(watch, name)])


@pytest.mark.parametrize(("direction", "mask"), [("dport", 51 + 64), ("sport", 51 + 128)])
def test_a_segment_that_was_lost_and_sent_again_by_tcp_is_a_success_with_a_cause(
    lab: Lab, watch: Watch, direction: str, mask: int
):
    name = new_name("ok")
    rule = f"tcp {direction} 53 meta length > 80 limit rate 1/day burst 1 packets counter drop;"
    hook = "type filter hook forward priority filter;"
    lab.node.run(["nft", "-f", "-"], stdin=f"table inet lossy {{ chain lose {{ {hook} {rule} }}; }}\n")
    try:
        assert "(TCP)" in lab.clients[0].dig(name, "A", VIP, "+tcp").stdout
        line = one(watch, name)
    finally:
        lab.node.run(["nft", "delete", "table", "inet", "lossy"])
    assert masks(line) == ("Succeeded", 3, mask)
    assert line["Cause"]["Code"] == "PolicyDrop"
    assert line["DurationSeconds"] > 0.15  # Linux waits 0.2 s before it sends a segment again


def test_a_connection_older_than_dnstrail_is_understood(watch: Watch, old_connection: socket.socket):
    for _ in range(2):
        name = new_name("ok")
        send(old_connection, name)
        receive(old_connection)
        assert_answered_over_tcp([one(watch, name)])


def test_a_connection_reset_by_the_server_is_told_with_the_query_it_left_unanswered(lab: Lab, watch: Watch):
    answered, unanswered = new_name("ok"), new_name("reset")
    with connection(lab.clients[0]) as stream:
        send(stream, answered)
        receive(stream)
        send(stream, unanswered)
        with pytest.raises(ConnectionResetError):
            stream.recv(1)
    assert masks(one(watch, answered)) == ANSWERED
    line = one(watch, unanswered)
    assert (*masks(line), line["Connection"]["ResetBy"]) == (*SILENT, "server")


def test_a_silent_server_behind_an_open_connection_got_the_query(lab: Lab, watch: Watch):
    name = new_name("silent")
    lab.clients[0].dig(name, "A", VIP, "+tcp")
    line = one(watch, name)
    assert (*masks(line), line["Connection"]["Refused"]) == (*SILENT, False)
    assert line["Cause"]["Code"] == "ServerNoReply"


def failed_connections(watch: Watch, port: int) -> list[Line]:
    """Sessions that never came to a question, by their client's port."""
    return [line for line in containing(watch, '"Question":null') if line["Client"]["Port"] == port]


def connect_in_vain(pod: Pod) -> tuple[int, Exception]:
    stream = namespaces.call_inside(pod.name, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with stream:
        stream.bind((pod.address, 0))
        stream.settimeout(1.5)
        try:
            stream.connect((VIP, 53))
        except OSError as error:
            return stream.getsockname()[1], error
    raise AssertionError("the connection was accepted")


def test_a_refused_connection_is_a_session_of_its_own(watch: Watch):
    with Lab() as other, closed_port(other):
        port, error = connect_in_vain(other.clients[0])
        assert isinstance(error, ConnectionRefusedError)
        (line,) = wait_for_lines(watch, lambda: failed_connections(watch, port), "a refused connection")
    assert (line["Status"], line["BitMap"], line["Protocol"]) == ("Failed", 0, "TCP")
    assert (line["Connection"]["Refused"], line["Cause"]["Code"]) == (True, "NoListener")
    assert line["TransactionId"] is None


def test_a_connection_that_nobody_answers_is_a_session_of_its_own(lab: Lab, watch: Watch):
    rule = "type filter hook forward priority filter; tcp dport 53 counter drop;"
    lab.node.run(["nft", "-f", "-"], stdin=f"table inet no-tcp {{ chain drop-tcp {{ {rule} }}; }}\n")
    try:
        port, error = connect_in_vain(lab.clients[0])
        assert isinstance(error, TimeoutError)
        (line,) = wait_for_lines(watch, lambda: failed_connections(watch, port), "an unanswered connection")
    finally:
        lab.node.run(["nft", "delete", "table", "inet", "no-tcp"])
    assert (*masks(line), line["Protocol"]) == ("Failed", 0, 80, "TCP")
    assert line["Connection"]["SynRetransmissions"] == line["Attempts"] - 1 == 1
    assert line["Cause"]["Code"] == "PolicyDrop"


def test_nothing_was_lost_by_the_capture(watch: Watch):
    assert "records lost by the capture" not in watch.diagnostics()
    assert not of_name(watch, "nobody-asked-for-this")
