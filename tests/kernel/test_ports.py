"""DNS on other ports than 53: what a translation makes of it on a real kernel, and what must not be taken for it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.lab import VIP, VIP6, Lab, closed_port
from agent.lab.namespaces import udp_socket
from agent.lab.pods import READY_QUERY
from tests.kernel.conftest import Line, Watch
from tests.lab.bpf_planes import host_routing

if TYPE_CHECKING:
    from agent.lab import Pod

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
PORT = 5353
PROXY_PORT = 15053
MDNS_GROUP = "224.0.0.251"
FAMILIES = {VIP: "INET", VIP6: "INET6"}
Start = Callable[..., Watch]
DROP = """
table inet refused {{
  chain passing {{ type filter hook forward priority 10; udp {end} {port} drop; }}
}}
"""
REDIRECT = """
table inet caught {{
  chain out {{ type nat hook output priority -100; meta l4proto {{ udp, tcp }} th dport 53 redirect to :{port}; }}
}}
"""


@pytest.fixture(scope="module", params=["iptables", pytest.param("nftables", marks=pytest.mark.slow)])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(request.param, port=PORT) as built:
        yield built


@pytest.fixture(scope="module")
def any_lab() -> Iterator[Lab]:
    with Lab("nftables", port=PORT) as built:
        yield built


@contextmanager
def rules(pod: Pod, text: str, table: str) -> Iterator[None]:
    """Rules of nftables in a namespace, until the end of the block."""
    pod.run(["nft", "-f", "-"], stdin=text)
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "inet", table])


def backend(lab: Lab, vip: str) -> str:
    server = lab.servers[0]
    return f"[{server.address6}]:{PORT}" if vip == VIP6 else f"{server.address}:{PORT}"


def told(line: Line) -> tuple[str, int, int, str, str, str]:
    """Status, masks, family, protocol, and the server as it was asked."""
    server = line["Server"]
    asked = f"{server['Address']} {server['Port']}"
    return line["Status"], line["BitMap"], line["PathBitMap"], line["Family"], line["Protocol"], asked


def one_line(watch: Watch, lab: Lab) -> Line:
    (line,) = watch.wait_for(lab, 1)
    return line


@pytest.mark.parametrize("vip", [VIP, VIP6])
@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_a_server_behind_another_port_is_a_server_like_any_other(lab: Lab, watch: Start, vip: str, protocol: str):
    dnstrail = watch()
    assert "NOERROR" in lab.clients[0].dig(NAME, "A", vip, *(["+tcp"] if protocol == "TCP" else [])).stdout
    line = one_line(dnstrail, lab)
    assert told(line) == ("Succeeded", 3, 51, FAMILIES[vip], protocol, f"{vip} 53")
    assert line["Server"]["Backend"] == backend(lab, vip)
    assert (line["Server"]["TranslatedBy"], line["Server"]["BackendNetns"]) == ("conntrack", lab.servers[0].netns_id)
    assert len(line["Path"]) == 8
    assert line["Cause"] is None


@pytest.mark.parametrize(("end", "masks"), [("dport", (0, 80)), ("sport", (3, 179))])
def test_a_rule_behind_the_translation_is_named(lab: Lab, watch: Start, end: str, masks: tuple[int, int]):
    dnstrail = watch("--timeout", "1.5")
    with rules(lab.node, DROP.format(end=end, port=PORT), "refused"):
        lab.clients[0].dig(NAME)
        line = one_line(dnstrail, lab)
    assert (line["Status"], line["BitMap"], line["PathBitMap"] | 32) == ("Failed", masks[0], masks[1] | 32)
    assert (line["Cause"]["Code"], line["Path"][-1]["Hook"]) == ("PolicyDrop", "FORWARD")


def test_a_closed_port_behind_the_translation_is_named(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with closed_port(lab):
        lab.clients[0].dig(NAME)
        line = one_line(dnstrail, lab)
    assert (line["Status"], line["Cause"]["Code"]) == ("Failed", "NoListener")


@pytest.mark.parametrize("vip", [VIP, VIP6])
@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_programs_that_rewrite_the_port_and_redirect_past_devices_are_followed(
    any_lab: Lab, watch: Start, vip: str, protocol: str
):
    with host_routing(any_lab):
        dnstrail = watch()
        assert "NOERROR" in any_lab.clients[0].dig(NAME, "A", vip, *(["+tcp"] if protocol == "TCP" else [])).stdout
        line = one_line(dnstrail, any_lab)
    assert told(line) == ("Succeeded", 3, 51, FAMILIES[vip], protocol, f"{vip} 53")
    assert (line["Server"]["Backend"], line["Server"]["TranslatedBy"]) == (backend(any_lab, vip), "program")
    assert line["Cause"] is None


@contextmanager
def answering(pod: Pod, family: socket.AddressFamily, port: int) -> Iterator[None]:
    """A server that sends each query back as its answer."""
    with udp_socket(pod.name, family) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        sock.settimeout(0.1)
        over = threading.Event()
        thread = threading.Thread(target=answer, args=(sock, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(5)


def answer(sock: socket.socket, over: threading.Event) -> None:
    while not over.is_set():
        try:
            query, client = sock.recvfrom(512)
        except TimeoutError:
            continue
        sock.sendto(query[:2] + bytes((query[2] | 0x80,)) + query[3:], client)


def asked(pod: Pod, server: str, port: int = 53) -> bool:
    """Whether a query is answered."""
    with pod.udp_socket(server, 0, port) as sock:
        sock.settimeout(5)
        sock.send(READY_QUERY)
        return bool(sock.recv(512))


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_a_proxy_in_the_pod_is_the_server_of_what_is_redirected_to_it(any_lab: Lab, watch: Start, vip: str):
    pod = any_lab.clients[0]
    family = socket.AF_INET6 if vip == VIP6 else socket.AF_INET
    dnstrail = watch()
    with rules(pod, REDIRECT.format(port=PROXY_PORT), "caught"), answering(pod, family, PROXY_PORT):
        assert asked(pod, vip)
        line = one_line(dnstrail, any_lab)
    assert told(line) == ("Succeeded", 3, 51, FAMILIES[vip], "UDP", f"{vip} 53")
    assert line["Server"]["Backend"].endswith(f":{PROXY_PORT}")
    assert line["Server"]["TranslatedBy"] == "conntrack"
    assert line["Server"]["BackendNetns"] == pod.netns_id


def test_a_proxy_in_the_pod_that_is_gone_is_named(any_lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with rules(any_lab.clients[0], REDIRECT.format(port=PROXY_PORT), "caught"):
        any_lab.clients[0].dig(NAME)
        line = one_line(dnstrail, any_lab)
    assert (line["Status"], line["Cause"]["Code"]) == ("Failed", "NoListener")


def send(pod: Pod, port: int, to: tuple[str, int], data: bytes) -> None:
    with udp_socket(pod.name, socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(pod.address))
        sock.bind((pod.address, port))
        sock.sendto(data, to)


def test_multicast_dns_and_other_traffic_beside_a_server_on_its_port_are_no_lookups(any_lab: Lab, watch: Start):
    client, server = any_lab.clients[0], any_lab.servers[0]
    response = READY_QUERY[:2] + bytes((READY_QUERY[2] | 0x84,)) + READY_QUERY[3:]
    dnstrail = watch("--timeout", "0.5")
    assert "NOERROR" in client.dig(NAME).stdout  # from here on the server's address and port are known
    server.kill()
    try:
        for data in (READY_QUERY, response):
            send(client, PORT, (MDNS_GROUP, PORT), data)
            send(client, 40000, (MDNS_GROUP, PORT), data)
            send(server, PORT, (MDNS_GROUP, PORT), data)
            send(client, PORT, (server.address, PORT), data)
            send(server, PORT, (client.address, PORT), data)
        send(server, PORT, (client.address, 40001), response)  # an answer to one host only (RFC 6762 6.7)
        with udp_socket(server.name, socket.AF_INET) as other:
            other.bind((server.address, PORT))
            for data in (b"metrics.sent:1|c", bytes(18), bytes(11), b"\xff" * 300):
                send(client, 40002, (server.address, PORT), data)
                send(server, 40003, (client.address, PORT), data)
    finally:
        server.start()
    assert "NOERROR" in client.dig(NAME).stdout
    time.sleep(1.5)  # longer than the timeout: everything that is a lookup has its line
    dnstrail.stop()
    # The server's pod asks itself whether it is there.
    lines = [line for line in dnstrail.lines(any_lab) if line["Client"]["Netns"] != server.netns_id]
    assert [(line["Status"], line["Question"]["Name"]) for line in lines] == [("Succeeded", f"{NAME}.")] * 2
