"""Pods on one bridge of the node, with addresses of one subnet, as the bridge CNI plugin wires them.

    with bridged(lab) as network:
        lab.clients[0].ask("redis-master.default.svc.cluster.local")

Two pods of one bridge reach each other without the node's IP layer. A reply that is to be translated back has to be
shown to it all the same, which is what bridge-nf-call-iptables is for.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.lab import namespaces
from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import wait_until
from agent.lab.wiring import GATEWAY, GATEWAY6
from tests.lab.conntrack_faults import service_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.lab.node import Lab
    from agent.lab.pods import Pod

BRIDGE = "cni0"
BRIDGE_MAC = "02:00:00:00:08:01"
BRIDGE_ADDRESS, BRIDGE_ADDRESS6 = "10.244.8.1", "fd00:10:244:8::1"
ADDRESS, ADDRESS6 = "10.244.8.{}", "fd00:10:244:8::{}"
PREFIX, PREFIX6 = 24, 64
FIRST_CLIENT, SERVER = 10, 53
CALL_IPTABLES = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


@dataclass(frozen=True)
class BridgeNetwork:
    """The bridge, and what hangs on it."""

    node: Pod
    server: str
    server6: str
    """The addresses of the lab's first server on the bridge; the Service has no other ones."""
    addresses: Mapping[str, tuple[str, str]]
    """By pod's name: IPv4 and IPv6."""

    @contextmanager
    def torn_down(self, pod: Pod) -> Iterator[None]:
        """Take a pod off the bridge, which forgets it; who has sent to it still knows its link-layer address.

        The pod itself stays, as the lab goes on to need it.
        """
        _ip(self.node, f"link set {pod.node_interface} nomaster")
        try:
            yield
        finally:
            _ip(self.node, f"link set {pod.node_interface} master {BRIDGE}")
            wait_until(lambda: self.node.gets_reply_from(self.server), f"{pod.name} to be back on {BRIDGE}")

    def flood(self) -> None:
        """Let the bridge forget and never learn who is where: each frame goes to all."""
        ports = self.node.run(["ip", "-o", "link", "show", "master", BRIDGE]).stdout.splitlines()
        devices = [line.split()[1].partition("@")[0] for line in ports]
        _ip(self.node, *(f"link set {device} type bridge_slave learning off" for device in devices))
        _ip(self.node, f"link set {BRIDGE} type bridge fdb_flush")


@contextmanager
def bridged(lab: Lab, *, translated_back: bool) -> Iterator[BridgeNetwork]:
    """Put all clients and the first server on a bridge; the upstream stays where it is.

    Args:
        lab: Whose pods.
        translated_back: Whether bridged packets pass the node's translation (bridge-nf-call-iptables).

    Raises:
        UnsupportedFaultError: This kernel has no bridges, or br_netfilter is not loaded and wanted.
    """
    network = _network(lab)
    pods = [*lab.clients, lab.servers[0]]
    with _bridge_calls_iptables(lab.node, wanted=translated_back):
        _create(lab.node)
        try:
            for pod in pods:
                _move(lab.node, pod, network.addresses[pod.name])
            lab.servers[0].kill()
            lab.servers[0].start()
            with service_of(lab, [(network.server, network.server6)]):
                wait_until(lambda: _carries_queries(lab, network), f"the bridge {BRIDGE} to carry queries")
                yield network
        finally:
            for pod in pods:
                _move_back(pod, network.addresses[pod.name])
            _ip(lab.node, f"link del {BRIDGE}")
            lab.node.run(["conntrack", "-F"])


def _network(lab: Lab) -> BridgeNetwork:
    numbers = {client.name: number for number, client in enumerate(lab.clients, FIRST_CLIENT)}
    numbers[lab.servers[0].name] = SERVER
    addresses = {name: (ADDRESS.format(number), ADDRESS6.format(number)) for name, number in numbers.items()}
    return BridgeNetwork(lab.node, ADDRESS.format(SERVER), ADDRESS6.format(SERVER), addresses)


def _carries_queries(lab: Lab, network: BridgeNetwork) -> bool:
    """Whether they get to the server by both ways, so that nobody has to be asked for an address any more."""
    return all(client.gets_reply_from(one) for client in lab.clients for one in (network.server, network.server6))


def _create(node: Pod) -> None:
    done = node.run(["ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"], check=False)
    if done.returncode != 0:
        raise UnsupportedFaultError(f"no bridge: {done.stderr.strip()}")
    _ip(
        node,
        f"link set {BRIDGE} addrgenmode none",
        f"link set {BRIDGE} up",
        f"addr add {BRIDGE_ADDRESS}/{PREFIX} dev {BRIDGE}",
        f"addr add {BRIDGE_ADDRESS6}/{PREFIX6} dev {BRIDGE} nodad",
    )


def _move(node: Pod, pod: Pod, addresses: tuple[str, str]) -> None:
    device, (address, address6) = pod.interface, addresses
    _ip(node, f"link set {pod.node_interface} master {BRIDGE}")
    _ip(
        pod,
        f"addr add {address}/{PREFIX} dev {device}",
        f"addr add {address6}/{PREFIX6} dev {device} nodad",
        f"neigh replace {BRIDGE_ADDRESS} lladdr {BRIDGE_MAC} nud permanent dev {device}",
        f"neigh replace {BRIDGE_ADDRESS6} lladdr {BRIDGE_MAC} nud permanent dev {device}",
        f"route replace default via {BRIDGE_ADDRESS} dev {device} src {address}",
        f"route replace ::/0 via {BRIDGE_ADDRESS6} dev {device} src {address6}",
    )
    mac = _mac_of(pod)
    _ip(node, *(f"neigh replace {one} lladdr {mac} nud permanent dev {BRIDGE}" for one in addresses))


def _mac_of(pod: Pod) -> str:
    words = pod.run(["ip", "-o", "link", "show", pod.interface]).stdout.split()
    return words[words.index("link/ether") + 1]


def _move_back(pod: Pod, addresses: tuple[str, str]) -> None:
    """The port itself leaves the bridge when that is deleted."""
    device, (address, address6) = pod.interface, addresses
    _ip(
        pod,
        f"route replace default via {GATEWAY} dev {device}",
        f"route replace ::/0 via {GATEWAY6} dev {device}",
        f"neigh del {BRIDGE_ADDRESS} dev {device}",
        f"neigh del {BRIDGE_ADDRESS6} dev {device}",
        f"addr del {address}/{PREFIX} dev {device}",
        f"addr del {address6}/{PREFIX6} dev {device}",
    )


@contextmanager
def _bridge_calls_iptables(node: Pod, *, wanted: bool) -> Iterator[None]:
    """Set the sysctl; without br_netfilter there is none, and bridged packets are not translated."""
    if not namespaces.call_inside(node.name, (namespaces.SYSCTLS / CALL_IPTABLES[0]).exists):
        if wanted:
            raise UnsupportedFaultError("br_netfilter is not loaded")
        yield
        return
    before = namespaces.call_inside(
        node.name, lambda: {key: (namespaces.SYSCTLS / key).read_text() for key in CALL_IPTABLES}
    )
    namespaces.set_sysctls(node.name, dict.fromkeys(CALL_IPTABLES, str(int(wanted))))
    try:
        yield
    finally:
        namespaces.set_sysctls(node.name, before)


def _ip(pod: Pod, *commands: str) -> None:
    pod.run(["ip", "-batch", "-"], stdin="".join(f"{command}\n" for command in commands))
