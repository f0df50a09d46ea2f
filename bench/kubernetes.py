"""What Kubernetes costs the agent: a large cluster in a real API server, pods that come and go, and names in time.

A control plane of tests/cluster (`make cluster`) holds the cluster; a lab serves as the node. Printed are the agent's
memory without names, with those of its node, and with those of all pods of the cluster; its CPU time while pods
change; and how soon the lines of new pods come, and with which name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import struct
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import dns.message

from agent.lab import Lab, LabError, wait_until
from bench.figures import Figure, table
from bench.process import AgentProcess
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import Container, Dnstrail, Node, agents_kubeconfig, cart, running, serve_dns
from tests.lab.shapes import tun_server, udp_reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import Popen

    from bench.process import Memory
    from tests.cluster.rest import Api, Manifest

Line = dict[str, Any]

THREADS = 8
"""That fill the cluster."""
BIRTHS_EVERY = 1.0
LINE_SECONDS = 15.0
QUIET_SECONDS = 5.0
PERCENT = 100
MINUTE = 60.0
FAR_CLIENT = "10.99.0.77"
REPLACED_EVERY = 10
"""One in so many changes replaces a pod; the others are of its status."""


class Size(NamedTuple):
    """How large the cluster is."""

    here: int
    everywhere: int
    services: int


class Birth(NamedTuple):
    """The first lookup of a pod, right after the API server had it."""

    named: bool
    seconds: float
    """Until its line was there."""


class Observed(AgentProcess):
    """A process that somebody else started."""

    def __init__(self, process: Popen[Any]) -> None:
        self.pid = process.pid


class Population:
    """The pods of the cluster, apart from those that run in the lab."""

    def __init__(self, api: Api, size: Size) -> None:
        self.api = api
        self._size = size
        self._pods = [self._pod(number) for number in range(size.everywhere)]

    def settle(self) -> None:
        """Create everything."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.api.create, self._pods))
            list(pool.map(self._make_service, range(self._size.services)))

    def change(self, number: int) -> None:
        """One change; which one, and of which pod, is told by its number."""
        at = number * 7919 % len(self._pods)
        pod = self._pods[at]
        if number % REPLACED_EVERY == 0:
            self.api.delete(pod)
            self._pods[at] = self._pod(at, generation=number + 1)
            self.api.create(self._pods[at])
            return
        ready = "True" if number // len(self._pods) % 2 else "False"
        conditions = [{**one, "status": ready} for one in pod["status"]["conditions"]]
        self.api.patch(pod, {"status": {"conditions": conditions}}, "status")

    def _pod(self, number: int, generation: int = 0) -> Manifest:
        here = number < self._size.here
        node = manifests.NODE if here else f"node-{number % 100}"
        address = str(ip_address("10.128.0.0") + 1 + number)
        name = f"web-{number}-{generation}"
        labels = {"pod-template-hash": "7d9f", "app": f"web-{number % 200}", "app.kubernetes.io/part-of": "shop"}
        owner = f"ReplicaSet/web-{number % 200}-7d9f"
        container_id = f"containerd://{number:064x}"
        return manifests.pod("shop", name, (address,), node=node, owner=owner, labels=labels, container_id=container_id)

    def _make_service(self, number: int) -> None:
        service = manifests.service("shop", f"web-{number}", selector={"app": f"web-{number % 200}"})
        self.api.create(service)
        pods = self._pods[number :: self._size.services]
        for one in manifests.endpoint_slices(service, pods):
            self.api.create(one)


@contextmanager
def changing(population: Population, per_minute: int) -> Iterator[list[float]]:
    """Change pods at this rate meanwhile; the list gets the moment of each change."""
    over, done = threading.Event(), []

    def work() -> None:
        begun = time.monotonic()
        for number in itertools.count():
            if over.wait(max(0.0, begun + number * MINUTE / per_minute - time.monotonic())):
                return
            population.change(number)
            done.append(time.monotonic())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join(LINE_SECONDS)


def births(node: Node, api: Api, seconds: float) -> list[Birth]:
    """Let a pod start, ask at once, and end, again and again."""
    found = []
    end = time.monotonic() + seconds
    for number, place in zip(itertools.count(), itertools.cycle(node.lab.clients[1:])):
        begun = time.monotonic()
        if begun > end:
            return found
        pod = node.run_pod(place, cart(place, f"cart-7d9f-{number}"))
        found.append(first_line(node, pod))
        api.delete(pod.held)
        node.kill(pod)
        time.sleep(max(0.0, begun + BIRTHS_EVERY - time.monotonic()))
    return found


def first_line(node: Node, pod: Container) -> Birth:
    """What the line of a pod's lookup says, and when it comes."""
    name = node.name("birth")
    pod.program.ask(name)
    asked = time.monotonic()
    line = node.line(name)
    return Birth(line["Client"]["Pod"] == pod.name, time.monotonic() - asked)


def look_from_elsewhere(node: Node) -> float:
    """Let a pod of another node ask the server here, until its name is known: seconds."""
    server, client = (ip_address(one).packed for one in (node.lab.servers[0].address, FAR_CLIENT))
    other_way = bytes(12) + server + client + struct.pack("!HH", 53, 40_000)
    begun = time.monotonic()

    def is_named() -> bool:
        name = node.name("far")
        os.write(outside.fd, udp_reply(other_way, dns.message.make_query(name, "A").to_wire(), 1480)[0])
        return node.line(name)["Client"]["Pod"] is not None

    with tun_server(node.lab.node) as outside:
        wait_until(is_named, "the name of a client elsewhere", seconds=4 * LINE_SECONDS)
    return time.monotonic() - begun


def settled(agent: AgentProcess) -> Memory:
    """What it takes once it has worked off what it was told."""
    agent.settle()
    return agent.memory()


def cpu_percent(agent: AgentProcess, seconds: float) -> float:
    """Of one CPU, over a time in which somebody else works."""
    begun, before = time.monotonic(), agent.cpu_seconds()
    time.sleep(seconds)
    return PERCENT * (agent.cpu_seconds() - before) / (time.monotonic() - begun)


def measure(lab: Lab, control_plane: ControlPlane, directory: Path, given: argparse.Namespace) -> list[Figure]:
    """Everything."""
    size = Size(given.here, given.pods, given.services)
    kubeconfig = agents_kubeconfig(control_plane)
    population = Population(control_plane, size)
    control_plane.apply([manifests.pod("shop", "far-1", (FAR_CLIENT,), node="node-1")])
    _say(f"{size.everywhere} pods, {size.here} of them on the node, {size.services} Services")
    population.settle()
    figures = [Figure("RSS without Kubernetes", _mib(without_names(control_plane, directory)))]
    begun = time.monotonic()
    with (
        running(control_plane, directory, kubeconfig=kubeconfig) as dnstrail,
        Node(lab, control_plane, dnstrail) as node,
    ):
        serve_dns(node, control_plane)
        known = node.run_pod(lab.clients[0], cart(lab.clients[0], "cart-7d9f-known"))
        node.ask_until_known(known)
        figures.append(Figure("from exec to the first line with all names", f"{time.monotonic() - begun:.1f} s"))
        figures += watched(node, dnstrail, known, population, given)
    return figures


def watched(
    node: Node, dnstrail: Dnstrail, known: Container, population: Population, given: argparse.Namespace
) -> list[Figure]:
    """What a running agent costs."""
    agent = Observed(dnstrail.process)
    figures = [Figure(f"RSS, {given.here} pods here, {given.services} Services", _mib(settled(agent)))]
    try:
        far = look_from_elsewhere(node)
    except LabError:
        figures.append(Figure("pods of other nodes", "not watched", "", ok=False))
    else:
        figures.append(Figure(f"time to the name of a pod elsewhere, of {given.pods}", f"{far:.1f} s"))
        figures.append(Figure(f"RSS, {given.pods} pods", _mib(settled(agent))))
    _say("quiet")
    figures.append(Figure("CPU, nothing changes", f"{cpu_percent(agent, QUIET_SECONDS):.1f} % of a CPU"))
    usual = [first_line(node, known).seconds for _ in range(10)]
    _say(f"{given.changes} changes a minute, for {given.seconds:g} s")
    with changing(population, given.changes) as changes:
        before, begun = len(changes), time.monotonic()
        cpu = cpu_percent(agent, given.seconds / 2)
        rate = MINUTE * (len(changes) - before) / (time.monotonic() - begun)
        born = births(node, population.api, given.seconds / 2)
    waits = sorted(one.seconds for one in born)
    return [
        *figures,
        Figure("changes of pods a minute", f"{rate:.0f}", f"{given.changes}"),
        Figure("CPU, pods change", f"{cpu:.1f} % of a CPU"),
        Figure("RSS afterwards", _mib(settled(agent))),
        Figure("RSS peak", f"{agent.memory().peak / 1024:.0f} MiB"),
        Figure("first lookups of new pods with their name", f"{sum(one.named for one in born)} of {len(born)}"),
        Figure("time to their line", f"{median(waits):.2f} s median, {waits[-1]:.2f} s longest"),
        Figure("time to the line of a known pod", f"{median(usual):.2f} s median, {max(usual):.2f} s longest"),
    ]


def without_names(control_plane: ControlPlane, directory: Path) -> Memory:
    """What the agent takes without Kubernetes."""
    with running(control_plane, directory, "--kubernetes", "off") as dnstrail:
        return settled(Observed(dnstrail.process))


def _mib(memory: Memory) -> str:
    return f"{memory.rss / 1024:.0f} MiB (anon {memory.anon / 1024:.0f}, BPF maps {memory.maps / 1024:.0f})"


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what names from a Kubernetes cluster cost; needs root.")
    parser.add_argument("--here", type=int, default=110, help="pods on the node (default %(default)s)")
    parser.add_argument("--pods", type=int, default=5000, help="pods in the cluster (default %(default)s)")
    parser.add_argument("--services", type=int, default=1000, help="Services (default %(default)s)")
    parser.add_argument("--changes", type=int, default=1000, help="changes of pods a minute (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long pods change (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 if it could not measure, whatever the figures say."""
    given = options()
    try:
        with (
            tempfile.TemporaryDirectory() as directory,
            ControlPlane(Path(directory) / "control-plane") as control_plane,
            Lab("nftables", clients=5) as lab,
        ):
            figures = measure(lab, control_plane, Path(directory), given)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    print(table(figures))
    if given.json:
        given.json.write_text(json.dumps([one._asdict() for one in figures], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
