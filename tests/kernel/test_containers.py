"""Pods and containers by real processes in real namespaces and cgroups."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.capture.cgroup import cgroup2_root
from agent.context.cluster import Container
from agent.enrich.containers import Containers
from agent.enrich.processes import NetnsProcesses
from agent.lab import Lab, Pod, wait_until

pytestmark = pytest.mark.kernel

UID, UID2 = "6dc88073-2128-40d6-9dbc-0ba508da7fe8", "90b1ecb8-b850-451a-97c6-c073b5ddbb53"
PAUSE, APP, SIDECAR, OTHER = ("c81572" + "0" * 58, "123cd1" + "1" * 58, "a1c299" + "2" * 58, "59db0b" + "3" * 58)
CROWD = 1000
WITHOUT_THE_CAPABILITY = """
import sys, time
from agent.enrich.containers import Containers
from agent.enrich.processes import NetnsProcesses
containers = Containers(NetnsProcesses())
print(containers.of_process(int(sys.argv[1]), time.monotonic_ns()))
"""


class Node:
    """A cgroup tree like a kubelet's, at a place of its own in this machine's."""

    def __init__(self, root: Path) -> None:
        self.root = root / f"dnstrail-test-{os.getpid()}"
        self.processes: list[subprocess.Popen[str]] = []

    def run(self, pod: Pod, path: str, argv: tuple[str, ...] = ("sleep", "300")) -> int:
        """Start a program in a pod's namespace and in this cgroup; its number."""
        process = pod.popen(list(argv))
        self.processes.append(process)
        wait_until(lambda: NetnsProcesses().netns_of(process.pid) == pod.netns_id, "the program to be in its namespace")
        self.put(process.pid, path)
        return process.pid

    def put(self, pid: int, path: str) -> None:
        directory = self.root / path
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text(str(pid))

    def end(self, pid: int) -> None:
        process = next(one for one in self.processes if one.pid == pid)
        process.kill()
        process.wait(5)

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(5)
        for directory in sorted(self.root.rglob("*"), reverse=True):
            if directory.is_dir():
                wait_until(lambda: removed(directory), "the cgroup to be empty")  # noqa: B023  called at once
        wait_until(lambda: removed(self.root), "the cgroup to be empty")


def removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def scope(uid: str, container: str) -> str:
    """As containerd and the systemd driver spell it."""
    slices = f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
    return f"{slices}/cri-containerd-{container}.scope"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=2) as built:
        yield built


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    root = cgroup2_root()
    assert root is not None
    assert lab
    made = Node(root)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def containers() -> Containers:
    return Containers(NetnsProcesses())


def test_a_pod_is_known_by_its_namespace_and_its_containers_by_their_processes(
    lab: Lab, node: Node, containers: Containers
):
    pod = lab.clients[0]
    pids = {name: node.run(pod, scope(UID, name)) for name in (PAUSE, APP, SIDECAR)}
    now_ns = time.monotonic_ns()
    assert containers.of_netns(pod.netns_id, now_ns) == Container(UID, None)
    for name, pid in pids.items():
        assert containers.of_process(pid, now_ns) == Container(UID, name)
        assert containers.of_sender(pod.netns_id, pid, now_ns) == Container(UID, name)


def test_a_pod_that_starts_later_is_found(lab: Lab, node: Node, containers: Containers):
    first, second = lab.clients[:2]
    node.run(first, scope(UID, APP))
    assert containers.of_netns(first.netns_id, time.monotonic_ns()) == Container(UID, None)
    assert containers.of_netns(second.netns_id, time.monotonic_ns()) is None
    node.run(second, scope(UID2, OTHER))
    found = Container(UID2, None)
    wait_until(lambda: containers.of_netns(second.netns_id, time.monotonic_ns()) == found, "the pod to be found")
    assert containers.of_netns(first.netns_id, time.monotonic_ns()) == Container(UID, None)


def test_what_was_sent_before_a_process_started_is_not_its(lab: Lab, node: Node, containers: Containers):
    sent_ns = time.monotonic_ns() - 100_000_000
    pid = node.run(lab.clients[0], scope(UID, APP))
    assert containers.of_process(pid, sent_ns) is None
    assert containers.of_process(pid, time.monotonic_ns()) == Container(UID, APP)


def test_a_pod_that_has_ended_is_still_known_for_what_it_sent(lab: Lab, node: Node, containers: Containers):
    pod = lab.clients[0]
    pid = node.run(pod, scope(UID, APP))
    sent_ns = time.monotonic_ns()
    assert containers.of_sender(pod.netns_id, pid, sent_ns) == Container(UID, APP)
    node.end(pid)
    assert containers.of_sender(pod.netns_id, pid, sent_ns) == Container(UID, APP)
    assert containers.of_sender(pod.netns_id, pid, time.monotonic_ns()) is None


def test_the_nodes_own_namespace_is_that_of_process_1(node: Node, containers: Containers):
    processes = containers.processes
    assert processes.host_netns == (processes.netns_of(1) or processes.netns_of(2))
    with subprocess.Popen(["sleep", "300"], text=True) as process:
        node.processes.append(process)
        node.put(process.pid, scope(UID, APP))
        now_ns = time.monotonic_ns()
        netns = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        if netns == containers.processes.host_netns:
            assert containers.of_netns(netns, now_ns) is None
        assert containers.of_sender(netns, process.pid, now_ns) == Container(UID, APP)
        process.send_signal(signal.SIGKILL)


def test_programs_of_the_lab_are_in_no_container(lab: Lab, containers: Containers):
    server = lab.servers[0]
    assert server.process is not None
    assert containers.of_sender(server.netns_id, server.process.pid, time.monotonic_ns()) is None


def test_containers_of_processes_need_no_capability(lab: Lab, node: Node):
    pid = node.run(lab.clients[0], scope(UID, APP))
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", WITHOUT_THE_CAPABILITY, str(pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{Container(UID, APP)}\n"


@pytest.fixture
def crowd() -> Iterator[list[int]]:
    """Many processes that have nothing to do with anything."""
    pids = [os.posix_spawn("/bin/sleep", ["sleep", "120"], os.environ) for _ in range(CROWD)]
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def test_looking_for_one_among_many_processes_again_costs_a_fraction(crowd: list[int]):
    now = [0.0]
    processes = NetnsProcesses(clock=lambda: now[0])
    first = cost_of_a_search(processes, now)
    later = min(cost_of_a_search(processes, now) for _ in range(5))
    assert len(crowd) == CROWD
    assert later < first * 0.75
    assert later < CROWD * 40e-6


def cost_of_a_search(processes: NetnsProcesses, now: list[float]) -> float:
    """CPU seconds for a namespace that nobody is in."""
    now[0] += 2
    begun = time.thread_time()
    assert processes.net_of(1) is None
    return time.thread_time() - begun
