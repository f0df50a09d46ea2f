"""One entry of a real connection table, asked for by its addresses."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.context.translation import DESTINATION_NAT, Direction, Entry, mechanism
from agent.enrich.conntrack import FRESH_SECONDS, MAX_A_SECOND, ConntrackLookup
from agent.explain.evidence import CONFIRMED
from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.hop.record import TCP, UDP
from agent.lab import CLUSTER_NAMES, VIP, VIP6, Lab, Pod, Translation, wait_until
from agent.lab.namespaces import call_inside
from agent.lab.pods import READY_QUERY

pytestmark = pytest.mark.kernel

NAME = next(iter(CLUSTER_NAMES))
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])
HAS_IPVS = Path("/proc/self/net/ip_vs").exists()
LOAD_SECONDS = 30.0
"""On an emulated processor reading the modules from the disk takes a while."""
MODES: list[Translation] = ["iptables", "nftables", "ipvs"]
WITHOUT_THE_CAPABILITY = """
from agent.enrich.conntrack import ConntrackLookup
from agent.hop.endpoint import Endpoint
lookup = ConntrackLookup()
address = bytes(10) + b"\\xff\\xff\\x7f\\0\\0\\1"
for _ in range(1000):
    found = lookup.find(17, Endpoint(address, 1), Endpoint(address, 53))
    if lookup.unavailable:
        break
    import time; time.sleep(0.01)
print(found, lookup.unavailable, lookup.failed)
lookup.close()
"""


def endpoint(address: str, port: int = 53) -> Endpoint:
    if ":" in address:
        return Endpoint(socket.inet_pton(socket.AF_INET6, address), port)
    return Endpoint(V4_MAPPED + socket.inet_aton(address), port)


@pytest.fixture(scope="module", params=MODES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param == "ipvs" and not HAS_IPVS:
        pytest.skip("this kernel has no IPVS")
    with Lab(request.param) as built:
        yield built


@pytest.fixture
def lookup(lab: Lab) -> Iterator[ConntrackLookup]:
    """One that lives in the node's namespace, as an agent with hostNetwork does."""
    made = started(lab.node)
    yield made
    made.close()


def started(pod: Pod, clock: Callable[[], float] = time.monotonic, max_a_second: int = MAX_A_SECOND) -> ConntrackLookup:
    def start() -> ConntrackLookup:
        made = ConntrackLookup(clock, max_a_second)
        made.warm_up()
        return made

    made = call_inside(pod.name, start)
    wait_until(lambda: made.ready, "pyroute2 to be loaded", seconds=LOAD_SECONDS)
    return made


def find(lookup: ConntrackLookup, protocol: int, client: Endpoint, server: Endpoint) -> Entry:
    """Ask until the answer is there: a busy machine takes longer than we would wait."""
    found: list[Entry] = []

    def answered() -> bool:
        entry = lookup.find(protocol, client, server)
        found.extend([entry] if entry is not None else [])
        return bool(found)

    wait_until(answered, "the entry to be found")
    return found[0]


def udp_client(pod: Pod, server: str) -> Endpoint:
    """Where a query came from that was sent and answered just now."""
    with pod.udp_socket(server) as sock:
        sock.settimeout(5)
        sock.send(READY_QUERY)
        assert sock.recv(512)
        return endpoint(*sock.getsockname()[:2])


@VIPS
def test_the_server_behind_a_virtual_address_is_found(lab: Lab, lookup: ConntrackLookup, vip: str):
    client = udp_client(lab.clients[0], vip)
    entry = find(lookup, UDP, client, endpoint(vip))
    server = endpoint(lab.servers[0].address6 if ":" in vip else lab.servers[0].address)
    assert entry.original == Direction(client, endpoint(vip))
    assert entry.reply == Direction(server, client)
    assert (entry.client, entry.virtual, entry.backend) == (client, endpoint(vip), server)


@VIPS
def test_the_entry_tells_by_what_it_was_translated(lab: Lab, lookup: ConntrackLookup, vip: str):
    entry = find(lookup, UDP, udp_client(lab.clients[0], vip), endpoint(vip))
    assert entry.status & CONFIRMED
    assert bool(entry.status & DESTINATION_NAT) == (lab.translator != "ipvs")
    assert mechanism(entry.status) == ("ipvs" if lab.translator == "ipvs" else "conntrack")


def test_connections_over_tcp_are_found_too(lab: Lab, lookup: ConntrackLookup):
    family_and_address = (socket.AF_INET, (VIP, 53))
    sock = call_inside(lab.clients[0].name, lambda: socket.socket(family_and_address[0], socket.SOCK_STREAM))
    with sock:
        sock.settimeout(5)
        sock.connect(family_and_address[1])
        client = endpoint(*sock.getsockname())
        entry = find(lookup, TCP, client, endpoint(VIP))
    assert entry.backend == endpoint(lab.servers[0].address)


def test_a_masqueraded_client_is_found_by_what_its_server_sees(lab: Lab, lookup: ConntrackLookup):
    server = lab.servers[0]
    client = udp_client(server, VIP)
    entry = find(lookup, UDP, client, endpoint(VIP))
    seen = entry.reply.destination
    assert seen.address != client.address
    assert find(lookup, UDP, seen, endpoint(server.address)) == entry


def test_what_is_not_in_the_table_is_not_found(lab: Lab, lookup: ConntrackLookup):
    client = udp_client(lab.clients[0], VIP)
    other = client._replace(port=client.port ^ 1)
    assert lookup.find(TCP, client, endpoint(VIP)) is None
    assert lookup.find(UDP, other, endpoint(VIP)) is None
    assert lookup.unavailable is None
    assert lookup.failed == 0


def test_entries_of_other_namespaces_are_not_found(lab: Lab):
    elsewhere = started(lab.servers[0])
    try:
        client = udp_client(lab.clients[0], VIP)
        wait_until(lambda: answers(elsewhere, client) == 1, "an answer")
        assert elsewhere.find(UDP, client, endpoint(VIP)) is None
    finally:
        elsewhere.close()


def answers(lookup: ConntrackLookup, client: Endpoint) -> int:
    lookup.find(UDP, client, endpoint(VIP))
    return len(lookup._answers)


def test_the_first_question_loads_what_is_needed_and_is_answered_later(lab: Lab):
    client = udp_client(lab.clients[0], VIP)
    cold = call_inside(lab.node.name, lambda: asked(client))
    try:
        assert find(cold, UDP, client, endpoint(VIP)).client == client
    finally:
        cold.close()


def asked(client: Endpoint) -> ConntrackLookup:
    """One that was asked before it was ready."""
    cold = ConntrackLookup()
    assert not cold.ready
    assert cold.find(UDP, client, endpoint(VIP)) is None
    return cold


def test_an_answer_is_good_for_a_second(lab: Lab):
    now = [100.0]
    lookup = started(lab.node, clock=lambda: now[0])
    try:
        client = udp_client(lab.clients[0], VIP)
        entry = find(lookup, UDP, client, endpoint(VIP))
        lab.node.run(["conntrack", "--flush"])
        now[0] += FRESH_SECONDS * 0.9
        assert lookup.find(UDP, client, endpoint(VIP)) == entry
        now[0] += FRESH_SECONDS * 0.2
        assert lookup.find(UDP, client, endpoint(VIP)) is None
    finally:
        lookup.close()


def test_no_more_questions_are_asked_than_allowed(lab: Lab):
    now = [100.0]
    few = started(lab.node, lambda: now[0], max_a_second=5)
    try:
        for port in range(1, 21):
            few.find(UDP, endpoint("192.0.2.1", port), endpoint(VIP))
            wait_until(lambda: few._open is None or few._open[1].done(), "the answer")
        assert few.held_back == 15
        now[0] += 1
        few.find(UDP, endpoint("192.0.2.1", 21), endpoint(VIP))
        assert few.held_back == 15
    finally:
        few.close()


def test_while_the_table_is_flushed_the_caller_goes_on(lab: Lab):
    """The kernel answers nobody meanwhile; only the thread that asks it waits."""
    fill(lab.node, 30_000)
    lookup = started(lab.node)
    flush = lab.node.popen(["conntrack", "--flush"])
    try:
        spent = [spend(lookup, port) for port in range(1, 1000) if flush.poll() is None]
    finally:
        flush.wait(timeout=10)
        lookup.close()
    assert spent
    # A busy machine may stop us for longer now and then: never most of the time.
    assert sorted(spent)[len(spent) // 2] < 0.005


def spend(lookup: ConntrackLookup, port: int) -> float:
    begun = time.monotonic()
    lookup.find(UDP, endpoint("192.0.2.1", port), endpoint(VIP))
    return time.monotonic() - begun


def fill(pod: Pod, count: int) -> None:
    addresses = (f"10.200.{number >> 8}.{number & 255}" for number in range(count))
    lines = (
        f"-A -t 300 -u SEEN_REPLY -s {one} -d 10.99.0.1 -r 10.99.0.1 -q {one} -p udp --sport 1 --dport 2 "
        "--reply-port-src 2 --reply-port-dst 1\n"
        for one in addresses
    )
    pod.run(["conntrack", "--load-file", "-"], stdin="".join(lines), timeout=60)
    assert int(pod.run(["conntrack", "--count"]).stdout) >= count


def test_without_the_capability_it_says_so_and_does_not_ask_again():
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", WITHOUT_THE_CAPABILITY],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "None CAP_NET_ADMIN is missing 1\n"
