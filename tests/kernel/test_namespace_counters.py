"""What is counted of a namespace, on a real kernel: the counters that speak for a cause rise when it is at work."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.context.counters import NetnsCounters
from agent.enrich.counters import LiveCounters
from agent.lab import CLUSTER_NAMES, VIP, VIP6, Lab, Pod, closed_port, stopped_server, wait_until

pytestmark = pytest.mark.kernel

NAME = next(iter(CLUSTER_NAMES))
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])
QUERIES = 2000
"""More than a socket buffer of the default size holds."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as built:
        for pod in (built.node, built.servers[0]):
            inhabit(pod)
        yield built


def inhabit(pod: Pod) -> None:
    """Let a process live in the namespace, as the pause container does in a pod's."""
    pid = pod.popen(["sleep", "600"]).pid
    wait_until(lambda: Path(f"/proc/{pid}/ns/net").stat().st_ino == pod.netns_id, f"a process to enter {pod.name}")


class Counters:
    """Two looks at a pod's namespace: one before, and one whenever asked."""

    def __init__(self, pod: Pod) -> None:
        self.netns = pod.netns_id
        self.surroundings = LiveCounters()
        self.surroundings.interest(self.netns)
        self.surroundings.poll(time.monotonic_ns())
        self.since_ns = time.monotonic_ns()

    def both(self) -> tuple[NetnsCounters, NetnsCounters]:
        before, now = self.surroundings.counters(self.netns, self.since_ns)
        assert before is not None
        assert now is not None
        return before, now

    def rise(self, counter: Callable[[NetnsCounters], int]) -> int:
        """By how much it has grown."""
        before, now = self.both()
        return counter(now) - counter(before)


@VIPS
def test_no_ports_rises_where_nothing_listens(lab: Lab, vip: str):
    with closed_port(lab) as server:
        counters = Counters(server)
        lab.clients[0].ask(NAME, server=vip)
        wait_until(lambda: counters.rise(lambda look: look.udp["NoPorts"]) == 1, "NoPorts to rise")


@VIPS
def test_receive_buffer_errors_rise_where_a_socket_overflows(lab: Lab, vip: str):
    with stopped_server(lab) as server:
        counters = Counters(server)
        with lab.clients[0].udp_socket(vip) as sock:
            for _ in range(QUERIES):
                sock.send(bytes(100))
        wait_until(lambda: counters.rise(lambda look: look.udp["RcvbufErrors"]) > 0, "RcvbufErrors to rise")


def test_conntrack_entries_are_those_of_the_namespace_alone(lab: Lab):
    assert lab.clients[0].ask(NAME)

    def agree() -> bool:
        counted = int(lab.node.run(["conntrack", "--count"]).stdout)
        _, now = Counters(lab.node).both()
        return now.conntrack_entries == counted > 0

    wait_until(agree, "both counts to be the same")
    _, server = Counters(lab.servers[0]).both()
    assert server.conntrack_entries == 0
    assert server.conntrack_limit == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


def test_counters_of_each_cpu_are_those_of_conntrack(lab: Lab):
    lab.clients[0].ask(NAME)
    _, now = Counters(lab.node).both()
    lines = lab.node.run(["conntrack", "--stats"]).stdout.splitlines()
    stats = [dict(field.split("=") for field in line.split()) for line in lines]
    assert [cpu._asdict() for cpu in now.conntrack] == [
        {name: int(cpu[name]) for name in ("invalid", "insert_failed", "drop", "early_drop")} for cpu in stats
    ]


def test_what_belongs_to_the_whole_node_is_in_every_look(lab: Lab):
    _, now = Counters(lab.servers[0]).both()
    assert now.neighbour_table_fulls is not None
    assert now.softnet_dropped is not None


def test_looking_keeps_no_namespace_alive():
    with Lab() as lab:
        inhabit(lab.clients[0])
        counters = Counters(lab.clients[0])
        counters.both()
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in opened if "/net/" in str(path)]
    counters.surroundings._watched[counters.netns].latest = None
    assert counters.surroundings.counters(counters.netns, 0)[1] is None


@pytest.mark.skipif(Path("/proc/self/net/ip_vs").exists(), reason="this kernel has ip_vs")
def test_a_kernel_without_ip_vs_has_none(lab: Lab):
    assert LiveCounters().ipvs(lab.node.netns_id) is None
