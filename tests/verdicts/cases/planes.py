"""Data planes: healthy lookups, and the same faults on each, over UDP and TCP, IPv4 and IPv6."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.lab import VIP, VIP6, Lab, closed_port
from agent.lab.faults import Hook, Message
from agent.lab.wiring import ON_UPLINK, Link
from tests.lab.policies import Denial, denied
from tests.lab.programs import tcx_drop
from tests.lab.proxies import DOCKER_ADDRESS, MESH_PORT, no_proxy, stopped_proxy
from tests.lab.upstream_faults import hung_server
from tests.verdicts import planes
from tests.verdicts.case import Asked, Case, Connection, Injection, LabKind, Lost
from tests.verdicts.cases.rules import FROM_CLIENT, FROM_SERVER, Spot, Where, client, node, server
from tests.verdicts.lookups import ask_over_tcp, says

SECONDS = 0.5
"""How long a client waits: longer than a proxy does, and shorter than a server that asks for a connection again."""
DIRECT_BITMAPS, FORWARDED_BITMAPS = frozenset({3}), frozenset({15})


class Lookup(NamedTuple):
    """Over what a name is looked up."""

    protocol: str
    ipv6: bool = False

    @property
    def words(self) -> str:
        """As a row has it."""
        return f"{self.protocol.upper()}, {'IPv6' if self.ipv6 else 'IPv4'}"

    @property
    def number(self) -> int:
        """The protocol's number in an IP header."""
        return socket.IPPROTO_TCP if self.protocol == "tcp" else socket.IPPROTO_UDP


UDP4, UDP6, TCP4, TCP6 = (Lookup(protocol, ipv6) for protocol in ("udp", "tcp") for ipv6 in (False, True))
LOOKUPS = (UDP4, UDP6, TCP4, TCP6)
FEW_LOOKUPS = (UDP4, TCP6)
"""For variants that differ from another data plane in little."""
HEALTHY = {UDP4: "healthy UDP", TCP4: "healthy TCP", UDP6: "healthy IPv6", TCP6: "healthy IPv6"}
STOPPED, CLOSED, PROXY_STOPPED, PROXY_GONE = "server stopped", "port closed", "proxy stopped", "proxy gone"
COLUMNS = (
    *dict.fromkeys(HEALTHY.values()),
    "query dropped",
    "reply dropped",
    STOPPED,
    CLOSED,
    PROXY_STOPPED,
    PROXY_GONE,
)
"""Of the table of data planes."""


class Cell(NamedTuple):
    """A row of the campaign, and its place in the table of data planes."""

    plane: str
    column: str
    case: Case


class Drop(NamedTuple):
    """A policy that drops one kind of message somewhere on its way."""

    words: str
    message: Message
    make: Callable[[Lab, Lookup], AbstractContextManager[object]]
    spot: Spot
    before_proxy: bool = False
    """Between the client and the proxy, which then knows nothing of it."""


def at_pods_port(words: str, where: Where, hook: Hook, message: Message, spot: Spot) -> Drop:
    """By a rule that knows the server pod's port, of the lab's own tool."""

    def make(lab: Lab, lookup: Lookup) -> AbstractContextManager[object]:
        return denied(where(lab), _denial(lab, lookup, hook, message, lab.port))

    return Drop(words, message, make, spot)


def at_service_port(words: str, where: Where, hook: Hook, message: Message, spot: Spot) -> Drop:
    """By a rule where packets have the Service's port."""

    def make(lab: Lab, lookup: Lookup) -> AbstractContextManager[object]:
        return denied(where(lab), _denial(lab, lookup, hook, message, 53))

    return Drop(words, message, make, spot, before_proxy=True)


def _denial(lab: Lab, lookup: Lookup, hook: Hook, message: Message, port: int) -> Denial:
    protocol = "tcp" if lookup.protocol == "tcp" else "udp"
    return Denial(lab.translator, hook, message=message, ipv6=lookup.ipv6, protocol=protocol, port=port)


def by_tc(words: str, message: Message, spot: Spot) -> Drop:
    """By a program at the node's device, ahead of the one that translates."""

    def make(lab: Lab, lookup: Lookup) -> AbstractContextManager[object]:
        port = 53 if message == "query" else lab.port
        how = {"ipv6": lookup.ipv6, "protocol": lookup.number, "port": port}
        return tcx_drop(lab.node, spot.device(lab) or "", "ingress", message, first=True, **how)

    return Drop(words, message, make, spot)


MESSAGES: tuple[Message, ...] = ("query", "reply")
IN_SERVER = at_pods_port("INPUT of the server's pod", server, "INPUT", "query", Spot(server, server))
IN_CLIENT = at_service_port("INPUT of the client's pod", client, "INPUT", "reply", Spot(client, client))
AT_CLIENT = at_service_port("OUTPUT of the client's pod", client, "OUTPUT", "query", Spot(client))
FORWARD_QUERY = at_pods_port("FORWARD of the node", node, "FORWARD", "query", FROM_CLIENT)
FORWARD_REPLY = at_pods_port("FORWARD of the node", node, "FORWARD", "reply", FROM_SERVER)
NODE_OUTPUT = at_pods_port("OUTPUT of the node", node, "OUTPUT", "query", Spot(node))
NODE_INPUT = at_pods_port("INPUT of the node", node, "INPUT", "reply", FROM_SERVER)
TC_QUERY = by_tc("tc at the node's device of the client", "query", FROM_CLIENT)
TC_REPLY = by_tc("tc at the node's device of the server", "reply", FROM_SERVER)

FORWARDED = (FORWARD_QUERY, IN_SERVER, FORWARD_REPLY, IN_CLIENT)
BY_PROGRAMS = (TC_QUERY, IN_SERVER, TC_REPLY, IN_CLIENT)
ON_LINK = (IN_SERVER, IN_CLIENT)
BEFORE_POD_PROXY = tuple(
    Drop(
        "OUTPUT of the client's pod, behind REDIRECT",
        message,
        lambda lab, lookup, message=message: denied(client(lab), _denial(lab, lookup, "OUTPUT", message, MESH_PORT)),
        Spot(client),
        before_proxy=True,
    )
    for message in MESSAGES
)
BEHIND_POD_PROXY = (FORWARD_QUERY, IN_SERVER, FORWARD_REPLY)
BEHIND_NODE_PROXY = (AT_CLIENT, NODE_OUTPUT, IN_SERVER, NODE_INPUT, IN_CLIENT)


@dataclass(frozen=True, kw_only=True)
class DataPlane:
    """One way of packets to a server, and what can be broken on it."""

    name: str
    used_by: str
    """Whose it is, and what it does to packets."""
    kind: LabKind
    drops: tuple[Drop, ...]
    proxied: bool = False
    variant: bool = False
    """It differs in little from another one: what it shows is not shown again by each run of the tests."""
    lookups: tuple[Lookup, ...] = LOOKUPS
    limits: dict[str, str] = field(default_factory=dict)
    """Why a fault cannot be told for certain, by its column."""

    def asked(self, lab: Lab, lookup: Lookup) -> str:
        """The address that a client asks."""
        if self.kind.plane == planes.DOCKER:
            return DOCKER_ADDRESS
        if self.kind.link in ON_UPLINK:
            return lab.servers[0].address6 if lookup.ipv6 else lab.servers[0].address
        return VIP6 if lookup.ipv6 else VIP


# --- lookups


def ask(
    plane: DataPlane, injection: Injection, lookup: Lookup, name: str, seconds: float = SECONDS
) -> tuple[str, Lost]:
    """Look a name up by the injection's own port; the rcode, and by what its line is known."""
    pod, address = injection.lab.clients[0], plane.asked(injection.lab, lookup)
    if lookup.protocol == "tcp":
        reply = ask_over_tcp(pod, name, server=address, seconds=seconds, port=injection.port)
    else:
        reply = pod.ask(name, server=address, seconds=seconds, port=injection.port)
    return says(reply), Asked(name, pod.netns_id, injection.port)


def healthy(plane: DataPlane, lookup: Lookup, *, forwarded: bool) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        name = injection.upstream_name if forwarded else injection.name
        said, asked = ask(plane, injection, lookup, name, seconds=2)
        return [asked] if said == "NOERROR" else []

    return inject


def under(
    plane: DataPlane, lookup: Lookup, fault: Callable[[Injection], AbstractContextManager[object]], *, connects: bool
) -> Callable[[Injection], list[Lost]]:
    """One lookup while something is broken; over TCP there may be no connection on which to ask."""

    def inject(injection: Injection) -> list[Lost]:
        with fault(injection):
            said, asked = ask(plane, injection, lookup, injection.name)
        if said == "NOERROR":
            return []
        if lookup.protocol == "tcp" and not connects:
            return [Connection(injection.lab.clients[0].netns_id, injection.port)]
        return [asked]

    return inject


# --- rows


def cell(plane: DataPlane, column: str, what: str, lookup: Lookup, **expected: Any) -> Cell:  # noqa: ANN401  of a case
    slow = lookup is not UDP4 or plane.variant
    case = Case(fault=f"{plane.name}: {what}, {lookup.words}", lab=plane.kind, slow=slow, **expected)
    return Cell(plane.name, column, case)


def healthy_cells(plane: DataPlane, lookup: Lookup) -> Iterator[Cell]:
    for what, forwarded in (("healthy", False), ("healthy, forwarded", True)):
        yield cell(
            plane,
            HEALTHY[lookup],
            what,
            lookup,
            code=None,
            status="Succeeded",
            inject=healthy(plane, lookup, forwarded=forwarded),
            exact=True,
            bitmaps=FORWARDED_BITMAPS if forwarded or plane.proxied else DIRECT_BITMAPS,
            wrong=None if plane.proxied or plane.kind.link in ON_UPLINK else wrong_backend,
        )


def wrong_backend(lab: Lab, line: dict[str, Any]) -> str:
    """Empty knowledge is null; else it has to be a server pod, with its own port."""
    backend = line["Server"]["Backend"]
    pods = {end for one in lab.servers for end in (f"{one.address}:{lab.port}", f"[{one.address6}]:{lab.port}")}
    return "" if backend is None or backend in pods else f"Backend {backend} instead of one of {sorted(pods)}"


def drop_cells(plane: DataPlane, lookup: Lookup) -> Iterator[Cell]:
    for drop in plane.drops:
        reaches_proxy = plane.proxied and not drop.before_proxy
        yield cell(
            plane,
            f"{drop.message} dropped",
            f"{drop.message} dropped, {drop.words}",
            lookup,
            code="PolicyDrop",
            confidence=None if plane.proxied else "high",
            inject=under(
                plane, lookup, lambda injection, drop=drop: drop.make(injection.lab, lookup), connects=reaches_proxy
            ),
            last_hop=None if lookup.protocol == "tcp" else drop.spot.hop,
        )


SAME_PORT = frozenset({planes.TPROXY_PORT, planes.TPROXY_PORT_NEW_ID})
ONE_CONNECTION: dict[str, Any] = {
    "limit": "the proxy's connection has the addresses and ports of the client's: that it was refused cannot be told",
    "also": frozenset({"ServerError"}),
}


def server_cells(plane: DataPlane, lookup: Lookup) -> Iterator[Cell]:
    yield cell(
        plane,
        STOPPED,
        STOPPED,
        lookup,
        code="UpstreamTimeout" if plane.proxied else "ServerNoReply",
        confidence=None,
        inject=under(plane, lookup, lambda injection: hung_server(injection.lab), connects=True),
        bitmaps=frozenset({5}) if plane.proxied else frozenset({1}),
    )
    yield cell(
        plane,
        CLOSED,
        CLOSED,
        lookup,
        code="UpstreamTCPUnavailable" if plane.proxied and lookup.protocol == "tcp" else "NoListener",
        confidence=None if plane.proxied else "high",
        **ONE_CONNECTION if lookup.protocol == "tcp" and plane.kind.plane in SAME_PORT else {},
        inject=under(plane, lookup, lambda injection: closed_port(injection.lab), connects=plane.proxied),
    )


UNKNOWN_PROXY: dict[str, Any] = {
    "limit": "a late reply of the server looks as if nobody took the query: the drop is then a rule's, or TPROXY's own",
    "also": frozenset({"PolicyDrop"}),
}


def proxy_cells(plane: DataPlane, lookup: Lookup) -> Iterator[Cell]:
    yield cell(
        plane,
        PROXY_STOPPED,
        PROXY_STOPPED,
        lookup,
        code="ServerNoReply",
        confidence=None,
        inject=under(plane, lookup, lambda injection: stopped_proxy(injection.proxies[0]), connects=True),
        bitmaps=frozenset({1}),
    )
    yield cell(
        plane,
        PROXY_GONE,
        PROXY_GONE,
        lookup,
        code="NoListener",
        confidence=None,
        inject=under(plane, lookup, lambda injection: no_proxy(injection.proxies[0]), connects=False),
        **UNKNOWN_PROXY if plane.kind.plane in SAME_PORT else {},
        bitmaps=frozenset({0}),
    )


def cells(plane: DataPlane) -> Iterator[Cell]:
    """All of one data plane."""
    for lookup in plane.lookups:
        yield from healthy_cells(plane, lookup)
        yield from drop_cells(plane, lookup)
        yield from server_cells(plane, lookup)
        if plane.proxied:
            yield from proxy_cells(plane, lookup)


LINK_USERS: dict[Link, str] = {
    "macvlan": "Multus, bare metal: pods are on the uplink and bypass the node's IP layer",
    "ipvlan": "Terway, Multus: the same, but all pods share one link-layer address",
    "netkit": "Cilium on kernels from 6.8: device pairs with programs of their own instead of tc programs",
}
MDNS = 5353
"""A port that has DNS of another kind too."""
ALONE = LabKind(clients=1)
"""With one server: it is known which one a lookup got to."""
NFT = ALONE._replace(translation="nftables")


def pod_port(kind: LabKind) -> DataPlane:
    return DataPlane(
        name=f"pod port {kind.port}, {kind.translation}",
        variant=kind != NFT._replace(port=MDNS),
        lookups=LOOKUPS if kind.port == MDNS else FEW_LOOKUPS,
        used_by="OpenShift, and charts running CoreDNS without privileges: the Service has port 53, the pod another",
        kind=kind,
        drops=FORWARDED,
    )


def lookups_of(name: str) -> tuple[Lookup, ...]:
    """Docker has no IPv6 address; a new id is a variant."""
    if name == planes.DOCKER:
        return (UDP4, TCP4)
    return FEW_LOOKUPS if name.endswith("new id") else LOOKUPS


def proxy(name: str, used_by: str, drops: tuple[Drop, ...], kind: LabKind = ALONE) -> DataPlane:
    return DataPlane(
        name=name + (f", pod port {kind.port}" if kind.port != ALONE.port else ""),
        used_by=used_by,
        kind=kind._replace(plane=name),
        drops=drops,
        proxied=True,
        variant=name not in {planes.MESH, planes.DOCKER, planes.TPROXY_OWN, planes.TPROXY_PORT},
        lookups=lookups_of(name),
    )


VETH = (
    DataPlane(
        name="veth and iptables",
        used_by="kube-proxy with Calico, Flannel and others; the other rows are compared with this one",
        kind=ALONE,
        drops=FORWARDED,
        variant=True,
    ),
    DataPlane(name="veth and nftables", used_by="kube-proxy", kind=NFT, drops=FORWARDED, variant=True),
)
PORTS = (
    pod_port(ALONE._replace(port=5353)),
    pod_port(NFT._replace(port=5353)),
    pod_port(ALONE._replace(port=1053)),
    pod_port(NFT._replace(port=8053)),
)
PROGRAMS = tuple(
    DataPlane(
        name=planes.HOST_ROUTING + (f", pod port {port}" if port != ALONE.port else ""),
        used_by="Cilium: tc programs translate the packets and deliver them with bpf_redirect_peer()",
        kind=ALONE._replace(plane=planes.HOST_ROUTING, port=port),
        drops=BY_PROGRAMS,
    )
    for port in (53, 5353)
)
SOCKETS = (
    DataPlane(
        name=planes.SOCKETS,
        used_by="Cilium's kube-proxy replacement: programs put the server's address into connect() and sendto()",
        kind=ALONE._replace(plane=planes.SOCKETS),
        drops=FORWARDED,
    ),
)
IN_POD = "service meshes: the pod's own rules redirect queries to a proxy in the pod"
ON_NODE = "Cilium's DNS proxy: rules on the node redirect queries to a proxy there, which asks the client's server"
PROXIES = (
    proxy(planes.MESH, IN_POD, (*BEFORE_POD_PROXY, *BEHIND_POD_PROXY)),
    proxy(planes.MESH_NEW_ID, IN_POD, (*BEFORE_POD_PROXY, *BEHIND_POD_PROXY), NFT._replace(port=5353)),
    proxy(planes.DOCKER, "Docker's embedded server", BEHIND_POD_PROXY),
    proxy(planes.TPROXY_OWN, ON_NODE, BEHIND_NODE_PROXY),
    proxy(planes.TPROXY_OWN_NEW_ID, ON_NODE, BEHIND_NODE_PROXY, NFT),
    proxy(planes.TPROXY_CLIENT, ON_NODE, BEHIND_NODE_PROXY, NFT),
    proxy(planes.TPROXY_CLIENT_NEW_ID, ON_NODE, BEHIND_NODE_PROXY, ALONE._replace(port=5353)),
    proxy(planes.TPROXY_PORT, ON_NODE, BEHIND_NODE_PROXY),
    proxy(planes.TPROXY_PORT_NEW_ID, ON_NODE, BEHIND_NODE_PROXY, NFT),
)
LINKS = tuple(
    DataPlane(name=link, used_by=used_by, kind=ALONE._replace(link=link), drops=ON_LINK)
    for link, used_by in LINK_USERS.items()
)
DATA_PLANES = (*VETH, *PORTS, *PROGRAMS, *SOCKETS, *PROXIES, *LINKS)
CELLS: tuple[Cell, ...] = tuple(one for plane in DATA_PLANES for one in cells(plane))
CASES: tuple[Case, ...] = tuple(one.case for one in CELLS)
