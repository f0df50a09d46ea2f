"""Translation as real kernels make it: what is said of it rests on what the capture really sees of each mechanism."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.capture.live import Capture
from agent.context.counters import NullCounters
from agent.context.translation import Mechanism, translate
from agent.enrich.counters import LiveCounters
from agent.enrich.local import LocalAddresses
from agent.enrich.processes import NetnsProcesses
from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.lab import VIP, VIP6, Lab, Pod, Translation
from agent.lab.namespaces import udp_socket
from agent.lab.pods import READY_QUERY
from agent.session.model import Settings
from agent.session.outcome import Outcome
from agent.session.table import SessionTable

pytestmark = pytest.mark.kernel

RING_BYTES = 1 << 20
SECONDS = 15.0
NODE_LOCAL = "169.254.20.10"
MODES: dict[Translation, Mechanism] = {
    "iptables": Mechanism.CONNTRACK,
    "nftables": Mechanism.CONNTRACK,
    "ipvs": Mechanism.IPVS,
}
HAS_IPVS = Path("/proc/self/net/ip_vs").exists()
STATELESS = """
table ip stateless {{
  chain to {{ type filter hook prerouting priority -300; ip daddr {vip} udp dport 53 {track} ip daddr set {server}; }}
  chain fro {{ type filter hook postrouting priority 300; ip saddr {server} udp sport 53 ip saddr set {vip}; }}
  chain untracked {{ type filter hook prerouting priority -300; ip saddr {server} udp sport 53 {track}; }}
}}
"""
"""Rewrites addresses before the connection table sees them, as a tc program at the pod's device does."""


def endpoint(address: str) -> Endpoint:
    if ":" in address:
        return Endpoint(socket.inet_pton(socket.AF_INET6, address), 53)
    return Endpoint(V4_MAPPED + socket.inet_aton(address), 53)


class Node:
    """What an agent has: capture, sessions, surroundings."""

    def __init__(self, capture: Capture) -> None:
        processes = NetnsProcesses()
        self.capture = capture
        self.namespaces = LiveCounters(processes)
        self.table = SessionTable(
            Settings(),
            kernel=capture.kernel,
            is_local=LocalAddresses(processes).is_local,
            started_ns=capture.started_ns,
        )

    def outcome(self, client: Endpoint) -> Outcome:
        """The lookup that came from there, once it is over."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self.capture.wait(0.05)
            more_waits = self.capture.drain(self.table.observe, lambda _loss: None)
            for outcome in self.table.expire(0 if more_waits else self.capture.settled_ns):
                if outcome.session.key.client == client:
                    return outcome
        raise AssertionError(client)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Capture([53], RING_BYTES) as capture:
        yield Node(capture)


@pytest.fixture(scope="module", params=MODES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param == "ipvs" and not HAS_IPVS:
        pytest.skip("this kernel has no IPVS")
    with Lab(request.param) as built:
        yield built


@pytest.fixture(scope="module")
def plain_lab() -> Iterator[Lab]:
    with Lab("nftables") as built:
        yield built


def ask(pod: Pod, server: str) -> Endpoint:
    """Send a query and get its answer; where it came from."""
    with pod.udp_socket(server) as sock:
        sock.settimeout(5)
        sock.send(READY_QUERY)
        assert sock.recv(512)
        address, port = sock.getsockname()[:2]
    return endpoint(address)._replace(port=port)


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_nat_rules_and_ip_vs_are_told_apart_by_what_is_on_the_packet(lab: Lab, node: Node, vip: str):
    outcome = node.outcome(ask(lab.clients[0], vip))
    server = lab.servers[0].address6 if ":" in vip else lab.servers[0].address
    found = translate(outcome, NullCounters())
    assert found == (endpoint(vip), endpoint(server), MODES["ipvs" if lab.translator == "ipvs" else "iptables"])


def test_a_program_of_the_node_itself_is_no_exception(lab: Lab, node: Node):
    found = translate(node.outcome(ask(lab.node, VIP)), NullCounters())
    assert found is not None
    assert found.by == MODES["ipvs" if lab.translator == "ipvs" else "iptables"]


def test_ip_vs_without_connection_tracking_is_found_in_its_tables(lab: Lab, node: Node):
    if lab.translator != "ipvs":
        pytest.skip("only where ip_vs translates")
    lab.node.run(["sysctl", "-qw", "net.ipv4.vs.conntrack=0"])
    try:
        outcome = node.outcome(ask(lab.clients[0], VIP))
    finally:
        lab.node.run(["sysctl", "-qw", "net.ipv4.vs.conntrack=1"])
    assert translate(outcome, node.namespaces) == (endpoint(VIP), endpoint(lab.servers[0].address), Mechanism.IPVS)


@pytest.mark.parametrize("track", ["", "notrack"])
def test_what_rewrites_addresses_past_the_connection_table_is_not_taken_for_it(plain_lab: Lab, node: Node, track: str):
    server = plain_lab.servers[0].address
    virtual = "10.96.0.77"
    with rules(plain_lab.node, STATELESS.format(vip=virtual, server=server, track=track)):
        outcome = node.outcome(ask(plain_lab.clients[0], virtual))
    assert translate(outcome, node.namespaces) == (endpoint(virtual), endpoint(server), Mechanism.PROGRAM)


@contextlib.contextmanager
def rules(pod: Pod, text: str) -> Iterator[None]:
    pod.run(["nft", "-f", "-"], stdin=text)
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "ip", "stateless"])


def test_a_cache_of_the_node_is_asked_without_translation(plain_lab: Lab, node: Node):
    plain_lab.node.run(["ip", "addr", "add", f"{NODE_LOCAL}/32", "dev", "lo"])
    with answering(plain_lab.node, NODE_LOCAL):
        outcome = node.outcome(ask(plain_lab.clients[0], NODE_LOCAL))
    assert translate(outcome, node.namespaces) == (endpoint(NODE_LOCAL), endpoint(NODE_LOCAL), Mechanism.NONE)


@contextlib.contextmanager
def answering(pod: Pod, address: str) -> Iterator[None]:
    """A server that sends the first query back as its answer."""
    with udp_socket(pod.name, socket.AF_INET) as sock:
        sock.bind((address, 53))
        sock.settimeout(5)
        thread = threading.Thread(target=answer, args=(sock,))
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


def answer(sock: socket.socket) -> None:
    query, client = sock.recvfrom(512)
    sock.sendto(query[:2] + bytes((query[2] | 0x80,)) + query[3:], client)


def test_a_server_asked_at_its_own_address_is_not_said_to_be_translated(plain_lab: Lab, node: Node):
    outcome = node.outcome(ask(plain_lab.clients[0], plain_lab.servers[0].address))
    assert translate(outcome, node.namespaces) is None
