"""A node of a cluster from end to end: a lab's namespaces, objects of the API and cgroups to match, and dnstrail.

    with running(control_plane, tmp_path) as dnstrail, Lab() as lab, Node(lab, control_plane, dnstrail) as node:
        cart = node.run_pod(lab.clients[0], manifests.pod("shop", "cart-1"))
        assert node.ask(cart)["Client"]["Pod"] == "cart-1"

dnstrail runs as the ServiceAccount kube-system/dnstrail with the rights of its ClusterRole and no others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE
from typing import Self

import dns.message
import dns.rcode

from agent.capture.cgroup import cgroup2_root
from agent.enrich.kube.rbac import cluster_role_rules
from agent.lab import ANY_CLUSTER_NAME, VIP, VIP6, DnsServer, Lab, Pod, namespaces, wait_until
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import Api, Manifest
from tests.kernel.conftest import Line, Watch, end_all

NAMESPACE, ACCOUNT = "kube-system", "dnstrail"
SESSION_SECONDS = "2"
"""When an unanswered query is given up: tests are less patient than clients."""
KNOWN_SECONDS = 20.0
LINE_SECONDS = 15.0
END_SECONDS = 5.0
ENTER = 'echo $$ > "$1" && shift && exec "$@"'
_numbers = itertools.count(1)
PROGRAM = """
import socket, sys
for line in sys.stdin:
    server, query = line.split()
    reply = b""
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        try:
            sock.connect((server, 53))
            sock.send(bytes.fromhex(query))
            reply = sock.recv(65535)
        except OSError:
            pass
    print(reply.hex(), flush=True)
"""


class Program:
    """A program of a container that lives as long as its pod, and looks up what it is told to: a socket each time."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, text=True, bufsize=1)

    def ask(self, name: str, rdtype: str = "A", server: str = VIP) -> str:
        """Ask once, over UDP. What came: an rcode in words, or `silence` after a second."""
        query = dns.message.make_query(name, rdtype).to_wire()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{server} {query.hex()}\n")
        reply = bytes.fromhex(self._process.stdout.readline())
        return dns.rcode.to_text(dns.message.from_wire(reply).rcode()) if reply else "silence"

    def end(self) -> None:
        """Kill it and reap it."""
        self._process.kill()
        self._process.wait(END_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@dataclass(frozen=True, eq=False)
class Container:
    """A container of a pod: a cgroup, and the lab's namespace in which its programs run."""

    place: Pod
    held: Manifest
    """The pod, as the API server has it."""
    cgroup: Path
    id: str
    program: Program

    @property
    def name(self) -> str:
        """The pod's."""
        name: str = self.held["metadata"]["name"]
        return name

    def dig(self, name: str, *options: str, rdtype: str = "A", server: str = VIP) -> str:
        """Look a name up by dig, which is gone when the answer is there: one try of one second. What it printed."""
        argv = ["dig", "-r", f"@{server}", name, rdtype, "+time=1", "+tries=1", *options]
        return self.place.run(in_cgroup(self.cgroup, argv), check=False).stdout


class Cgroups:
    """A tree as containerd makes it with the systemd driver, at a place of its own in this machine's."""

    def __init__(self) -> None:
        root = cgroup2_root()
        assert root is not None, "no cgroup v2 tree is mounted"
        self.root = root / f"dnstrail-test-{os.getpid()}-{next(_numbers)}"

    def make(self, uid: str, container_id: str) -> Path:
        """The cgroup of a container."""
        slices = f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
        path = self.root / slices / f"cri-containerd-{container_id}.scope"
        path.mkdir(parents=True)
        return path

    def give_back(self, pid: int) -> None:
        """Let a program be outside again."""
        with contextlib.suppress(ProcessLookupError):
            (self.root.parent / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """End all programs in it, and remove all of it."""
        if not self.root.exists():
            return
        (self.root / "cgroup.kill").write_text("1")
        for path in sorted(self.root.rglob("*"), reverse=True):
            if path.is_dir():
                wait_until(lambda: _removed(path), "a cgroup to be empty")  # noqa: B023  called at once
        wait_until(lambda: _removed(self.root), "a cgroup to be empty")


class Dnstrail(Watch):
    """A dnstrail, and its lines as they come."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options)
        self._found: dict[str, list[Line]] = defaultdict(list)
        self._read = 0

    def about(self, name: str) -> list[Line]:
        """All lines about a name so far."""
        with self.out.open("rb") as output:
            output.seek(self._read)
            new = output.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.splitlines():
            line = json.loads(text)
            if line.get("Question"):
                self._found[line["Question"]["Name"].rstrip(".")].append(line)
        return self._found[name.rstrip(".")]


@contextmanager
def running(
    control_plane: ControlPlane, folder: Path, *options: str, kubeconfig: Path | None = None
) -> Iterator[Dnstrail]:
    """Let dnstrail run meanwhile.

    Args:
        control_plane: Its cluster.
        folder: For its output.
        options: More options.
        kubeconfig: By default one with a token for an hour.
    """
    access = kubeconfig or agents_kubeconfig(control_plane)
    common = ("--node", manifests.NODE, "--timeout", SESSION_SECONDS, "--log-rate", "1000000")
    dnstrail = Dnstrail(folder, "--kubernetes", str(access), *common, *options)
    try:
        yield dnstrail
    finally:
        end_all([dnstrail.process])


class Node:
    """Pods that are known to the API server and run on this node; a context manager."""

    def __init__(self, lab: Lab, api: Api, dnstrail: Dnstrail) -> None:
        self.lab = lab
        self.dnstrail = dnstrail
        self.cgroups = Cgroups()
        self._api = api
        self._netns = {pod.netns_id for pod in (lab.node, *lab.clients, *lab.servers, lab.upstream)}
        self._programs: list[Program] = []
        self._adopted: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._programs:
            program.end()
        for pid in self._adopted:
            self.cgroups.give_back(pid)
        self.cgroups.remove()

    def run_pod(self, place: Pod, pod: Manifest, *, on_machine: bool = False) -> Container:
        """Let a pod run in a namespace of the lab: its pause container, and one for the programs of tests.

        Args:
            place: The namespace.
            pod: Its description; the id of its container is filled in.
            on_machine: See `start`.
        """
        container_id = f"{next(_numbers):064x}"
        pod["status"]["containerStatuses"][0]["containerID"] = f"containerd://{container_id}"
        (held,) = self._api.apply([pod])
        return self.start(place, held, container_id, on_machine=on_machine)

    def start(self, place: Pod, held: Manifest, container_id: str, *, on_machine: bool = False) -> Container:
        """Let the containers of a pod that the API server has run in a namespace of the lab.

        Args:
            place: The namespace.
            held: The pod.
            container_id: Of its own container.
            on_machine: Let that one's program run in this machine's own namespace, as with hostNetwork.
        """
        uid = held["metadata"]["uid"]
        place.popen(in_cgroup(self.cgroups.make(uid, f"{next(_numbers):064x}"), ["sleep", "infinity"]))
        cgroup = self.cgroups.make(uid, container_id)
        return Container(place, held, cgroup, container_id, self._program(None if on_machine else place, cgroup))

    def start_beside(self, container: Container, container_id: str) -> Container:
        """One more container in a pod."""
        cgroup = self.cgroups.make(container.held["metadata"]["uid"], container_id)
        return replace(container, cgroup=cgroup, id=container_id, program=self._program(container.place, cgroup))

    def _program(self, place: Pod | None, cgroup: Path) -> Program:
        inside = [] if place is None else ["nsenter", f"--net={namespaces.path_of(place.name)}"]
        self._programs.append(Program([*inside, *in_cgroup(cgroup, [sys.executable, "-ISc", PROGRAM])]))
        return self._programs[-1]

    def kill(self, container: Container) -> None:
        """End all containers of a pod, as its kubelet does."""
        (container.cgroup.parent / "cgroup.kill").write_text("1")

    def serve(self, place: DnsServer, pod: Manifest) -> Container:
        """The same for a DNS server, which becomes a program of the container."""
        container = self.run_pod(place, pod)
        assert place.process is not None
        self.adopt(container, place.process.pid)
        return container

    def adopt(self, container: Container, pid: int) -> None:
        """Let a program that outlives the pod, and runs already, be one of its container's."""
        (container.cgroup / "cgroup.procs").write_text(str(pid))
        self._adopted.append(pid)

    def name(self, label: str = "q") -> str:
        """A name that servers of the lab answer and nobody has asked for yet."""
        return f"{label}-{os.getpid()}-{next(_numbers)}.{ANY_CLUSTER_NAME}"

    def ask(self, container: Container, name: str = "", rdtype: str = "A", server: str = VIP) -> Line:
        """Look a name up; the line of that lookup."""
        name = name or self.name()
        known = len(self.lines(name))
        container.program.ask(name, rdtype, server)
        return self.line(name, known)

    def line(self, name: str, index: int = 0) -> Line:
        """The line of a lookup of this name, which may take a moment to come."""
        wait_until(lambda: len(self.lines(name)) > index, f"a line about {name}", seconds=LINE_SECONDS)
        return self.lines(name)[index]

    def lines(self, name: str) -> list[Line]:
        """The lines about a name so far, of lookups in this lab."""
        found = self.dnstrail.about(name)
        return [line for line in found if any(hop["Netns"] in self._netns for hop in line["Path"])]

    def ask_until(
        self, container: Container, condition: Callable[[Line], bool], what: str, seconds: float = KNOWN_SECONDS
    ) -> Line:
        """Ask for new names until the line of one is so."""
        deadline = time.monotonic() + seconds
        while not condition(line := self.ask(container)):
            assert time.monotonic() < deadline, (
                f"waited {seconds} s in vain for {what}: {line['Client']} {line['Server']}"
            )
        return line

    def ask_until_known(self, container: Container, seconds: float = KNOWN_SECONDS) -> Line:
        """Ask until client, Service and server are named."""
        return self.ask_until(container, is_named, f"everything about {container.name} to be known", seconds)


def is_named(line: Line) -> bool:
    """Whether client, Service and server have their names."""
    return bool(line["Client"]["Pod"] and line["Server"]["Service"] and line["Server"]["Pod"])


def in_cgroup(cgroup: Path, argv: Sequence[str]) -> list[str]:
    """What runs a program in a cgroup, from its beginning."""
    return ["sh", "-c", ENTER, "sh", str(cgroup / "cgroup.procs"), *argv]


def agents_kubeconfig(control_plane: ControlPlane) -> Path:
    """The kubeconfig of dnstrail's ServiceAccount."""
    furnish(control_plane)
    return control_plane.write_kubeconfig(ACCOUNT, {"token": control_plane.token_for(NAMESPACE, ACCOUNT)})


def furnish(control_plane: ControlPlane) -> None:
    """Make what is there before dnstrail is: its account, with the rights of its ClusterRole, and namespaces."""
    account = manifests.account(NAMESPACE, ACCOUNT, cluster_role_rules())
    control_plane.apply([*account, manifests.namespace("shop"), manifests.node()])


def cart(place: Pod, name: str = "cart-7d9f-x2x", addresses: Sequence[str] | None = None) -> Manifest:
    """A pod of the Deployment shop/cart in a namespace of the lab."""
    own = (place.address, place.address6) if addresses is None else addresses
    return manifests.pod("shop", name, own, owner="ReplicaSet/cart-7d9f", labels={"pod-template-hash": "7d9f"})


def coredns(place: Pod, name: str = "coredns-7d56l") -> Manifest:
    """A pod of the cluster's DNS servers."""
    labels = {"k8s-app": "kube-dns", "pod-template-hash": "5dd5"}
    addresses = place.address, place.address6
    return manifests.pod("kube-system", name, addresses, owner="ReplicaSet/coredns-5dd5", labels=labels)


def serve_dns(node: Node, api: Api) -> list[Container]:
    """Let all servers of the lab be pods behind the Service kube-dns: coredns-0, …"""
    servers = [node.serve(place, coredns(place, f"coredns-{at}")) for at, place in enumerate(node.lab.servers)]
    api.apply(dns_service([one.held for one in servers]))
    return servers


def dns_service(pods: Sequence[Manifest]) -> list[Manifest]:
    """The Service kube-dns and its EndpointSlices with these pods."""
    service = manifests.service(
        "kube-system", "kube-dns", (VIP, VIP6), ports=manifests.DNS_PORTS, selector={"k8s-app": "kube-dns"}
    )
    return [service, *manifests.endpoint_slices(service, pods)]


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
