"""Rules and programs that say no."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from agent.lab import VIP, VIP6, Hook, Lab, Pod, Translator
from agent.lab.faults import Direction, Message, tc_drop
from tests.lab.policies import (
    Denial,
    Table,
    Variant,
    Verdict,
    calico_policy,
    denied,
    denied_at_device,
    denied_by_default,
    denied_by_queue,
    only_allowed_by_sets,
)
from tests.lab.programs import (
    bpf_netfilter_drop,
    cgroup,
    cgroup_drop,
    filtered_socket,
    inside,
    listening_sockets,
    served_from,
    tcx_drop,
    xdp_drop,
)
from tests.verdicts.case import PLAIN, Case, Hop, Injection, LabKind, Lost, kernel_release
from tests.verdicts.lookups import connect

TOOLS: tuple[Translator, ...] = ("iptables-legacy", "iptables-nft", "nftables")
VARIANTS: tuple[Variant, ...] = ("iptables-legacy", "iptables-nft")
VERDICTS: tuple[Verdict, ...] = ("drop", "reject")
FAMILIES = {"": VIP, ", IPv6": VIP6}
SECONDS: dict[Message, float] = {"query": 0.1, "reply": 0.3}
"""How long the fault lasts: a reply has to come before it is mended."""
NFTABLES = LabKind("nftables")

NFT_WORDS = ("nftables",) if kernel_release() >= (6, 7) else ()
"""iptables-nft is nf_tables to the kernel too. Before 6.7 what nf_tables drops is freed where iptables' drops are."""
QUEUE_WORD = "NFQUEUE"
SOCKET_WORD = "socket filter or cgroup program"
CGROUP_WORDS: dict[Direction, str] = {"egress": "cgroup program (egress)", "ingress": SOCKET_WORD}
"""The kernel has one reason for both at a socket."""
UNCOUNTED = "a full connection table looks the same, unless it has never dropped anything on that CPU"
REROUTED = "a translated packet for which the kernel finds no way dies in the hook as by a rule"

Fault = Callable[[Lab], AbstractContextManager[object]]
Where = Callable[[Lab], Pod]


def node(lab: Lab) -> Pod:
    return lab.node


def client(lab: Lab) -> Pod:
    return lab.clients[0]


def server(lab: Lab) -> Pod:
    return lab.servers[0]


class Spot(NamedTuple):
    """Where packets die: in a namespace, at its device on a pod's link; before they have a device without a link."""

    netns: Where
    link: Where | None = None

    def device(self, lab: Lab) -> str | None:
        """The device's name."""
        if self.link is None:
            return None
        return self.link(lab).node_interface if self.netns is node else self.netns(lab).interface

    def hop(self, lab: Lab) -> Hop:
        """The drop in the session line."""
        return Hop("drop", self.netns(lab).netns_id, self.device(lab))


class Place(NamedTuple):
    """A hook that a message of a lookup passes."""

    words: str
    spot: Spot
    hook: Hook
    table: Table
    message: Message
    asker: Where = client


FROM_CLIENT, FROM_SERVER = Spot(node, client), Spot(node, server)
HOST_OUTPUT = Place("OUTPUT of the node, hostNetwork client", Spot(node), "OUTPUT", "filter", "query", node)
HOST_RAW_OUTPUT = Place("raw OUTPUT of the node, hostNetwork client", Spot(node), "OUTPUT", "raw", "query", node)
PLACES = (
    Place("raw PREROUTING of the node", FROM_CLIENT, "PREROUTING", "raw", "query"),
    Place("raw PREROUTING of the node", FROM_SERVER, "PREROUTING", "raw", "reply"),
    Place("mangle PREROUTING of the node", FROM_CLIENT, "PREROUTING", "mangle", "query"),
    Place("mangle PREROUTING of the node", FROM_SERVER, "PREROUTING", "mangle", "reply"),
    Place("FORWARD of the node", FROM_CLIENT, "FORWARD", "filter", "query"),
    Place("FORWARD of the node", FROM_SERVER, "FORWARD", "filter", "reply"),
    Place("mangle POSTROUTING of the node", FROM_SERVER, "POSTROUTING", "mangle", "query"),
    Place("mangle POSTROUTING of the node", FROM_CLIENT, "POSTROUTING", "mangle", "reply"),
    Place("OUTPUT of the client's pod", Spot(client), "OUTPUT", "filter", "query"),
    Place("INPUT of the client's pod", Spot(client, client), "INPUT", "filter", "reply"),
    Place("INPUT of the server's pod", Spot(server, server), "INPUT", "filter", "query"),
    Place("OUTPUT of the server's pod", Spot(server), "OUTPUT", "filter", "reply"),
    HOST_OUTPUT,
    HOST_RAW_OUTPUT,
    Place("INPUT of the node, hostNetwork client", FROM_SERVER, "INPUT", "filter", "reply", node),
)
"""Of kube-proxy's iptables mode; in POSTROUTING the device is the one to come."""
FORWARD = tuple(place for place in PLACES if place.hook == "FORWARD")
LIMITS: dict[tuple[Translator, Place], tuple[str, str | None]] = {
    ("iptables-legacy", HOST_OUTPUT): (REROUTED, "medium"),
    ("iptables-legacy", HOST_RAW_OUTPUT): (UNCOUNTED, None),
}
"""What the packets of programs on the node leave open, and how certain a rule is then."""
BEHIND_SOURCE_NAT = (
    Place("POSTROUTING of the node at priority 300", FROM_SERVER, "POSTROUTING", "last", "query"),
    Place("POSTROUTING of the node at priority 300", FROM_CLIENT, "POSTROUTING", "last", "reply"),
)


class Device(NamedTuple):
    """Where a device's own hooks see a message of a lookup, and the device's name in a fault's."""

    words: str
    spot: Spot
    direction: Direction
    message: Message


NODE_INGRESS = (
    Device("the node's device of the client", FROM_CLIENT, "ingress", "query"),
    Device("the node's device of the server", FROM_SERVER, "ingress", "reply"),
)
NODE_EGRESS = (
    Device("the node's device of the server", FROM_SERVER, "egress", "query"),
    Device("the node's device of the client", FROM_CLIENT, "egress", "reply"),
)
POD_INGRESS = (
    Device("the server's own device", Spot(server, server), "ingress", "query"),
    Device("the client's own device", Spot(client, client), "ingress", "reply"),
)
POD_EGRESS = (
    Device("the client's own device", Spot(client, client), "egress", "query"),
    Device("the server's own device", Spot(server, server), "egress", "reply"),
)
DEVICES = (*NODE_INGRESS, *NODE_EGRESS, *POD_INGRESS, *POD_EGRESS)


def asked_under(
    fault: Fault, message: Message = "query", asker: Where = client, vip: str = VIP
) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        with fault(injection.lab):
            reply = asker(injection.lab).ask(injection.name, server=vip, seconds=SECONDS[message])
        return [injection.name] if reply is None else []

    return inject


def policy_drop(
    fault: str,
    make: Fault,
    spot: Spot,
    message: Message = "query",
    *,
    asker: Where = client,
    vip: str = VIP,
    kind: LabKind = PLAIN,
    mechanism: tuple[str, ...] = (),
    limit: str = "",
    confidence: str | None = "high",
) -> Case:
    return Case(
        fault=fault,
        code="PolicyDrop",
        inject=asked_under(make, message, asker, vip),
        last_hop=spot.hop,
        lab=kind,
        says=(*mechanism, f"dropped the {message}."),
        confidence=confidence,
        limit=limit,
    )


def by_rule(tool: Translator, hook: str) -> tuple[str, ...]:
    """What the cause says of a netfilter rule."""
    return (hook,) if tool == "iptables-legacy" else (hook, *NFT_WORDS)


def at_hook(tool: Translator, place: Place, family: str = "", kind: LabKind = PLAIN) -> Case:
    denial = Denial(tool, place.hook, place.table, place.message, ipv6=bool(family))
    limit, confidence = LIMITS.get((tool, place), ("", "high"))
    return policy_drop(
        f"{tool}, {place.words}, {place.message}{family}{on(kind)}",
        lambda lab: denied(place.spot.netns(lab), denial),
        place.spot,
        place.message,
        asker=place.asker,
        vip=FAMILIES[family],
        kind=kind,
        mechanism=by_rule(tool, place.hook),
        limit=limit,
        confidence=confidence,
    )


def on(kind: LabKind) -> str:
    return "" if kind == PLAIN else f" (kube-proxy by {kind.translation})"


def rejected(tool: Translator, family: str) -> Case:
    denial = Denial(tool, "FORWARD", ipv6=bool(family), verdict="reject")
    return policy_drop(
        f"{tool}, REJECT in FORWARD of the node, query{family}",
        lambda lab: denied(lab.node, denial),
        FROM_CLIENT,
        vip=FAMILIES[family],
        mechanism=by_rule(tool, "FORWARD"),
    )


def by_default(tool: Translator, family: str) -> Case:
    return policy_drop(
        f"{tool}, DROP as FORWARD's policy on the node, query{family}",
        lambda lab: denied_by_default(lab.node, tool, ipv6=bool(family)),
        FROM_CLIENT,
        vip=FAMILIES[family],
        mechanism=by_rule(tool, "FORWARD"),
    )


def at_device(
    words: str, device: Device, make: Callable[[Pod, str], AbstractContextManager[object]], *mechanism: str
) -> Case:
    return policy_drop(
        f"{words}, {device.words}, {device.message}",
        lambda lab: make(device.spot.netns(lab), device.spot.device(lab) or ""),
        device.spot,
        device.message,
        mechanism=mechanism,
    )


def by_netdev_hook(device: Device) -> Case:
    return at_device(
        f"nftables, netdev {device.direction}",
        device,
        lambda pod, name: denied_at_device(pod, name, device.direction, device.message),
        f"netdev {device.direction}",
        *NFT_WORDS,
    )


def by_tc(device: Device) -> Case:
    return at_device(
        f"tc clsact {device.direction}",
        device,
        lambda pod, name: tc_drop(pod, name, device.direction, device.message),
        f"tc program ({device.direction})",
    )


def by_tcx(device: Device) -> Case:
    return at_device(
        f"tcx {device.direction}",
        device,
        lambda pod, name: tcx_drop(pod, name, device.direction, device.message),
        f"tc program ({device.direction})",
    )


def by_native_xdp(device: Device) -> Case:
    return at_device("XDP, native", device, lambda pod, name: xdp_drop(pod, name, device.message), "XDP program")


def by_generic_xdp(device: Device) -> Case:
    return at_device(
        "XDP, generic", device, lambda pod, name: xdp_drop(pod, name, device.message, mode="generic"), "XDP program"
    )


def from_cgroup(direction: Direction, message: Message, family: str = "") -> Case:
    """The client is in the cgroup."""
    vip = FAMILIES[family]

    def inject(injection: Injection) -> list[Lost]:
        asker = injection.lab.clients[0]
        with cgroup(injection.lab) as group, cgroup_drop(group, direction, message, ipv6=bool(family)):
            with inside(group):
                sock = asker.udp_socket(vip)
            with sock:
                reply = asker.ask(injection.name, sock=sock, seconds=SECONDS[message])
        return [injection.name] if reply is None else []

    return Case(
        fault=f"cgroup {direction} program of the client, {message}{family}",
        code="PolicyDrop",
        inject=inject,
        last_hop=Spot(client, client).hop,
        says=(CGROUP_WORDS[direction],),
    )


def at_cgroup(direction: Direction, message: Message) -> Case:
    """The server is in the cgroup."""

    @contextmanager
    def fault(lab: Lab) -> Iterator[None]:
        with cgroup(lab) as group, served_from(group, lab.servers[0]), cgroup_drop(group, direction, message):
            yield

    spot = Spot(server, server)
    words = (CGROUP_WORDS[direction],)
    return policy_drop(f"cgroup {direction} program of the server, {message}", fault, spot, message, mechanism=words)


def reply_filtered(injection: Injection) -> list[Lost]:
    asker = injection.lab.clients[0]
    with asker.udp_socket() as sock, filtered_socket(sock):
        reply = asker.ask(injection.name, sock=sock, seconds=SECONDS["reply"])
    return [injection.name] if reply is None else []


@contextmanager
def filtered_server(lab: Lab) -> Iterator[None]:
    with ExitStack() as stack:
        for sock in stack.enter_context(listening_sockets(lab.servers[0])):
            stack.enter_context(filtered_socket(sock))
        yield


def connecting_under(fault: Fault, vip: str) -> Callable[[Injection], list[Lost]]:
    """A lookup over UDP is answered meanwhile."""

    def inject(injection: Injection) -> list[Lost]:
        asker = injection.lab.clients[0]
        with fault(injection.lab):
            assert asker.ask(injection.name, server=vip, seconds=SECONDS["reply"])
            lost = connect(asker, injection.port, vip, seconds=SECONDS["query"])
        return [lost] if lost else []

    return inject


def tcp_alone(fault: str, make: Fault, spot: Spot, mechanism: tuple[str, ...], vip: str = VIP) -> Case:
    return Case(
        fault=fault,
        code="PolicyDrop",
        inject=connecting_under(make, vip),
        last_hop=spot.hop,
        says=mechanism,
    )


NETFILTER = (
    *(at_hook(tool, place) for tool in TOOLS for place in PLACES),
    *(at_hook("nftables", place) for place in BEHIND_SOURCE_NAT),
    *(at_hook(tool, place, ", IPv6") for tool in TOOLS for place in FORWARD),
    *(at_hook(tool, place, kind=NFTABLES) for tool in TOOLS for place in FORWARD),
    *(by_netdev_hook(device) for device in (*NODE_INGRESS, *NODE_EGRESS)),
    *(rejected(tool, family) for tool in TOOLS for family in FAMILIES),
    *(by_default(tool, family) for tool in TOOLS for family in FAMILIES),
    *(
        policy_drop(
            f"iptables-legacy, NFQUEUE in FORWARD of the node, {message}, {'refused' if read else 'nobody reads'}",
            lambda lab, message=message, read=read: denied_by_queue(lab.node, "iptables-legacy", message, read=read),
            spot,
            message,
            mechanism=(QUEUE_WORD,),
        )
        for message, spot in (("query", FROM_CLIENT), ("reply", FROM_SERVER))
        for read in (True, False)
    ),
    policy_drop(
        "BPF program in FORWARD of the node",
        lambda lab: bpf_netfilter_drop(lab.node, "FORWARD"),
        FROM_CLIENT,
        mechanism=("FORWARD",),
    ),
)

NETWORK_POLICIES = (
    *(
        policy_drop(
            f"network policy by nftables sets, client's egress isolated{family}",
            lambda lab: only_allowed_by_sets(lab, lab.clients[0]),
            FROM_SERVER,
            vip=vip,
            mechanism=by_rule("nftables", "POSTROUTING"),
        )
        for family, vip in FAMILIES.items()
    ),
    policy_drop(
        "network policy by nftables sets, TCP allowed, UDP not",
        lambda lab: only_allowed_by_sets(lab, lab.clients[0], "tcp . 53"),
        FROM_SERVER,
        mechanism=by_rule("nftables", "POSTROUTING"),
    ),
    *(
        policy_drop(
            f"network policy by {variant} marks, client's egress isolated{family}",
            lambda lab, variant=variant, ipv6=bool(family): calico_policy(
                lab, variant, lab.clients[0], "egress", "-p tcp --dport 53", ipv6=ipv6
            ),
            FROM_CLIENT,
            vip=vip,
            mechanism=by_rule(variant, "FORWARD"),
        )
        for variant in VARIANTS
        for family, vip in FAMILIES.items()
    ),
    *(
        policy_drop(
            f"network policy by {variant} marks, server's ingress isolated",
            lambda lab, variant=variant: calico_policy(lab, variant, lab.servers[0], "ingress"),
            FROM_CLIENT,
            mechanism=by_rule(variant, "FORWARD"),
        )
        for variant in VARIANTS
    ),
    *(
        policy_drop(
            f"network policy by {variant} marks without connection state, reply alone",
            lambda lab, variant=variant: calico_policy(lab, variant, lab.clients[0], "ingress", stateful=False),
            FROM_SERVER,
            "reply",
            mechanism=by_rule(variant, "FORWARD"),
        )
        for variant in VARIANTS
    ),
)

TCP_DENIALS = tuple(Denial(tool, "FORWARD", verdict=verdict, protocol="tcp") for tool in TOOLS for verdict in VERDICTS)

OVER_TCP = (
    *(
        tcp_alone(
            f"network policy by nftables sets, UDP allowed, TCP not{family}",
            lambda lab: only_allowed_by_sets(lab, lab.clients[0], "udp . 53"),
            FROM_SERVER,
            by_rule("nftables", "POSTROUTING"),
            vip,
        )
        for family, vip in FAMILIES.items()
    ),
    *(
        tcp_alone(
            f"network policy by {variant} marks, UDP allowed, TCP not",
            lambda lab, variant=variant: calico_policy(lab, variant, lab.clients[0], "egress", "-p udp --dport 53"),
            FROM_CLIENT,
            by_rule(variant, "FORWARD"),
        )
        for variant in VARIANTS
    ),
    *(
        tcp_alone(
            f"{denial.tool}, {denial.verdict.upper()} in FORWARD of the node, TCP alone",
            lambda lab, denial=denial: denied(lab.node, denial),
            FROM_CLIENT,
            by_rule(denial.tool, "FORWARD"),
        )
        for denial in TCP_DENIALS
    ),
)

PROGRAMS = (
    *map(by_tc, DEVICES),
    *map(by_tcx, (*NODE_INGRESS, *NODE_EGRESS)),
    *map(by_native_xdp, (*NODE_INGRESS, *POD_INGRESS)),
    *map(by_generic_xdp, (*NODE_INGRESS, *POD_INGRESS)),
    policy_drop(
        "XDP, native, the node's device of the client, query, IPv6",
        lambda lab: xdp_drop(lab.node, lab.clients[0].node_interface, ipv6=True),
        FROM_CLIENT,
        vip=VIP6,
        mechanism=("XDP program",),
    ),
    policy_drop(
        "tcx egress, the client's own device, query, IPv6",
        lambda lab: tcx_drop(lab.clients[0], lab.clients[0].interface, "egress", ipv6=True),
        Spot(client, client),
        vip=VIP6,
        mechanism=("tc program (egress)",),
    ),
    *(from_cgroup("egress", "query", family) for family in FAMILIES),
    *(from_cgroup("ingress", "reply", family) for family in FAMILIES),
    at_cgroup("ingress", "query"),
    at_cgroup("egress", "reply"),
    Case(
        fault="filter on the client's socket, reply",
        code="PolicyDrop",
        inject=reply_filtered,
        last_hop=Spot(client, client).hop,
        says=(SOCKET_WORD,),
    ),
    policy_drop(
        "filter on the server's socket, query", filtered_server, Spot(server, server), mechanism=(SOCKET_WORD,)
    ),
)

CASES: tuple[Case, ...] = (*NETFILTER, *NETWORK_POLICIES, *OVER_TCP, *PROGRAMS)
