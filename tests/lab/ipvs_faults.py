"""Faults of a node that translates by IPVS: connection entries that outlive their server."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from agent.lab import namespaces
from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import LabError, wait_until
from agent.lab.translation import VIP, VIP6
from tests.lab.conntrack_faults import without_route

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from agent.lab.node import Lab
    from agent.lab.pods import DnsServer, Pod

Removal = Literal["deleted", "expired", "quiescent"]
"""How a server leaves the Service while a client's connection entry still leads to it:

- expired: deleted under expire_nodest_conn, which kube-proxy sets. The entry's next packet is lost and ends it, at the
  next tick of the clock. Since Linux 5.9 that packet has to come before the kernel itself throws such entries away, a
  tick after the deletion, so here the sysctl is set only after the server was deleted, which throws nothing away;
- deleted: without that sysctl, as other users of IPVS have it. Every packet is lost until five minutes after the last
  one that was not;
- quiescent: kept with weight 0 for the sake of its connections, while the pod is gone and the node has no route to it.
"""

CONNECTIONS = "/proc/net/ip_vs_conn"
EXPIRE = "net/ipv4/vs/expire_nodest_conn"
NAME = "kubernetes.default.svc.cluster.local"
"""Asked once, to make the entry."""


class IpvsEntry(NamedTuple):
    """A line of /proc/net/ip_vs_conn."""

    protocol: str
    client: str
    client_port: int
    server: str
    state: str


@dataclass(frozen=True)
class StaleEntry:
    """A client's socket whose connection entry leads to a server that the Service no longer has."""

    sock: socket.socket
    """Connected to the VIP; what it sends goes by the entry."""
    client: Pod
    server: DnsServer
    node: Pod

    @property
    def bound(self) -> bool:
        """Whether IPVS still has the entry."""
        port, addresses = self.sock.getsockname()[1], (self.server.address, self.server.address6)
        return any(entry.client_port == port and entry.server in addresses for entry in ipvs_entries(self.node))

    def ask(self, name: str, *, seconds: float = 0.3) -> bool:
        """Send one query by the entry; whether a reply came."""
        return self.client.ask(name, sock=self.sock, seconds=seconds) is not None


@contextmanager
def stale_ipvs_backend(
    lab: Lab, removal: Removal = "expired", *, client: Pod | None = None, vip: str = VIP
) -> Iterator[StaleEntry]:
    """Take the server that has just answered a client out of the Service, and leave the client's entry behind.

    Args:
        lab: One that translates by IPVS, with a server to spare.
        removal: How.
        client: Who asks: the first pod by default; `lab.node` for a program with hostNetwork.
        vip: Address that is asked.

    Raises:
        UnsupportedFaultError: The lab does not translate by IPVS.
    """
    if lab.translator != "ipvs":
        raise UnsupportedFaultError(f"the node translates by {lab.translator}, not by IPVS")
    client = client or lab.clients[0]
    with client.udp_socket(vip) as sock, ExitStack() as stack:
        if client.ask(NAME, server=vip, sock=sock, seconds=1) is None:
            raise LabError("no reply before the fault")
        server = _server_of(lab, _entry(lab.node, sock.getsockname()[1]))
        stack.callback(namespaces.set_sysctls, lab.node.name, {EXPIRE: "1"})
        namespaces.set_sysctls(lab.node.name, {EXPIRE: "0"})
        if removal == "quiescent":
            stack.enter_context(_without_weight(lab.node, vip, server))
            stack.enter_context(without_route(lab, server))
        else:
            stack.enter_context(_without_server(lab.node, vip, server))
        if removal != "deleted":
            namespaces.set_sysctls(lab.node.name, {EXPIRE: "1"})
        yield StaleEntry(sock, client, server, lab.node)


def ipvs_entries(node: Pod) -> list[IpvsEntry]:
    """IPVS's connections in a namespace."""
    lines = node.run(["cat", CONNECTIONS]).stdout.splitlines()[1:]
    return [_parsed(line) for line in lines]


def _parsed(line: str) -> IpvsEntry:
    protocol, client, client_port, _, _, server, _, state, *_ = line.split()
    return IpvsEntry(protocol, _address(client), int(client_port, 16), _address(server), state)


def _address(text: str) -> str:
    """An address as /proc spells it: of IPv4 the number in hexadecimal."""
    return str(ipaddress.ip_address(text.strip("[]") if ":" in text else int(text, 16)))


def _entry(node: Pod, port: int) -> IpvsEntry:
    found: list[IpvsEntry] = []

    def there() -> bool:
        found[:] = [one for one in ipvs_entries(node) if one.client_port == port and one.protocol == "UDP"]
        return len(found) == 1

    wait_until(there, f"IPVS to have one connection from port {port}")
    return found[0]


def _server_of(lab: Lab, entry: IpvsEntry) -> DnsServer:
    return next(server for server in lab.servers if entry.server in (server.address, server.address6))


@contextmanager
def _without_server(node: Pod, vip: str, server: DnsServer) -> Iterator[None]:
    service, real = _names(vip, server)
    node.run(["ipvsadm", "-d", *service, *real])
    try:
        yield
    finally:
        node.run(["ipvsadm", "-a", *service, *real, "-m", "-w", "1"])


@contextmanager
def _without_weight(node: Pod, vip: str, server: DnsServer) -> Iterator[None]:
    service, real = _names(vip, server)
    node.run(["ipvsadm", "-e", *service, *real, "-m", "-w", "0"])
    try:
        yield
    finally:
        node.run(["ipvsadm", "-e", *service, *real, "-m", "-w", "1"])


def _names(vip: str, server: DnsServer) -> tuple[list[str], list[str]]:
    """The virtual service over UDP and the real server, as options of ipvsadm."""
    if vip == VIP6:
        return ["-u", f"[{vip}]:53"], ["-r", f"[{server.address6}]:53"]
    return ["-u", f"{vip}:53"], ["-r", f"{server.address}:53"]
