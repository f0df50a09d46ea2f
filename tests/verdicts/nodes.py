"""The nodes of `make healthy`, one for each data plane, and the kinds of lookups that their clients make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.lab import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, VIP, VIP6, Lab, Translation
from agent.lab.translation import DNS_PORT
from agent.lab.wiring import ON_UPLINK, Link
from tests.lab.bpf_planes import host_routing, translated_cgroup
from tests.lab.bystanders import REFUSING, sniffer
from tests.lab.proxies import DOCKER_ADDRESS, docker_proxies, mesh_proxies, node_proxy
from tests.lab.servers import coredns, find_program
from tests.verdicts.case import nothing_to_set_up

RATE = 1_500
"""Lookups a second in a round, of all kinds and nodes together, where no proxy is slower."""
COREFILE = """
{upstream_zone} {{
  cache 30
  forward . {upstream} {{
    prefer_udp
  }}
}}
{cluster_zone} {{
  cache 30
  forward . {server} {{
    prefer_udp
  }}
}}
"""
"""Over TCP, dnsmasq closes each connection after 100 queries, and what CoreDNS sends at that moment is really lost."""


class Kind(NamedTuple):
    """A way to look names up."""

    name: str
    share: float
    """Of all lookups."""
    server: str = VIP
    zone: str = ANY_CLUSTER_NAME
    mode: str = "udp"
    """udp or tcp, by dnsperf; pair: A and AAAA at once, by getaddrinfo()."""
    repeated: bool = False
    """Whether names come again, from the cache."""


KINDS = (
    Kind("single, IPv4", 0.16),
    Kind("single, IPv6", 0.12, VIP6),
    Kind("forwarded, IPv4", 0.12, zone=ANY_UPSTREAM_NAME),
    Kind("forwarded, IPv6", 0.08, VIP6, ANY_UPSTREAM_NAME),
    Kind("cached, IPv4", 0.08, zone=ANY_UPSTREAM_NAME, repeated=True),
    Kind("TCP, IPv4", 0.08, mode="tcp"),
    Kind("TCP, IPv6", 0.06, VIP6, mode="tcp"),
    Kind("TCP, forwarded", 0.06, zone=ANY_UPSTREAM_NAME, mode="tcp"),
    Kind("pair, IPv4", 0.1, mode="pair"),
    Kind("pair, IPv6", 0.08, VIP6, mode="pair"),
    Kind("pair, forwarded", 0.06, zone=ANY_UPSTREAM_NAME, mode="pair"),
)


def programs_in(directory: Path) -> list[str]:
    """What starts a program in a cgroup."""
    return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(directory / "cgroup.procs")]


Built = tuple[Lab, Sequence[str]]
"""A node, and what its clients' programs are started by."""


@contextmanager
def with_sockets(lab: Lab) -> Iterator[Sequence[str]]:
    """Translation at the sockets of what is started in a cgroup."""
    with translated_cgroup(lab) as directory:
        yield programs_in(directory)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of one data plane."""

    name: str
    translation: Translation = "iptables"
    port: int = 53
    link: Link = "veth"
    plane: Callable[[Lab], AbstractContextManager[object]] = nothing_to_set_up
    sniffed: bool = False
    rate: float = RATE / 2
    """Lookups a second."""
    asked: str = ""
    """The one address that clients ask, where it is not the Service's."""

    @contextmanager
    def built(self) -> Iterator[Built]:
        """Three clients and two servers with caches, one of them CoreDNS where that is."""
        with ExitStack() as stack:
            lab = Lab(self.translation, clients=3, servers=2, cache=True, port=self.port, link=self.link)
            stack.enter_context(lab)
            if find_program("coredns") and self.port == DNS_PORT:
                stack.enter_context(with_coredns(lab))
            within = stack.enter_context(self.plane(lab))
            if self.sniffed:
                stack.enter_context(sniffers(lab))
            yield lab, within if self.plane is with_sockets else ()

    def server(self, lab: Lab, kind: Kind) -> str:
        """The address to ask; none where this node has none of the kind's family."""
        if self.asked:
            return "" if ":" in kind.server else self.asked
        if self.link in ON_UPLINK:
            return lab.servers[0].address6 if ":" in kind.server else lab.servers[0].address
        return kind.server


PROXIED_RATE = 300
"""What a proxy of one process takes without delay, on two CPUs with all else."""
NODES: tuple[Node, ...] = (
    Node(name="iptables, sniffed", sniffed=True),
    Node(name="nftables, sniffed", translation="nftables", sniffed=True),
    Node(name="pod port 5353", port=5353),
    Node(name="pod port 8053, nftables", translation="nftables", port=8053),
    Node(name="eBPF host routing", plane=host_routing),
    Node(name="eBPF host routing, port 5353", plane=host_routing, port=5353),
    Node(name="socket translation", plane=with_sockets),
    Node(name="macvlan", link="macvlan"),
    Node(name="REDIRECT in the pod", plane=mesh_proxies, rate=PROXIED_RATE),
    Node(name="Docker's 127.0.0.11", plane=docker_proxies, rate=PROXIED_RATE, asked=DOCKER_ADDRESS),
    Node(name="TPROXY, own address", plane=lambda lab: node_proxy(lab, "own"), rate=PROXIED_RATE),
    Node(name="TPROXY, client's address", plane=lambda lab: node_proxy(lab, "address"), rate=PROXIED_RATE),
    Node(name="TPROXY, client's port", plane=lambda lab: node_proxy(lab, "port"), rate=PROXIED_RATE),
)


@contextmanager
def with_coredns(lab: Lab) -> Iterator[None]:
    """CoreDNS in place of the second server."""
    zones = {"upstream_zone": ANY_UPSTREAM_NAME, "cluster_zone": ANY_CLUSTER_NAME}
    addresses = {"upstream": lab.upstream.address, "server": lab.servers[0].address}
    with coredns(lab.servers[1], COREFILE.format(**zones, **addresses)):
        yield


@contextmanager
def sniffers(lab: Lab) -> Iterator[None]:
    """Sniffers all along the path; one takes nothing of what it sees."""
    with ExitStack() as stack:
        for pod in (lab.clients[0], lab.node, lab.servers[0]):
            stack.enter_context(sniffer(pod))
        stack.enter_context(sniffer(lab.node, REFUSING))
        yield
