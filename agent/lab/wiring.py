"""Addresses, links and routes of the lab, as sysctls and `ip -batch` lines.

Pods hang on the node by routed veth pairs, as Calico builds them: a pod has /32 and /128 addresses, and its default
gateway is a link-local address at the node's end of the pair. By macvlan or ipvlan they hang on the uplink instead,
reach each other and the upstream there, and do not reach the node. All neighbour entries are permanent and duplicate
address detection is off, so no ARP or neighbour discovery delays the first packet of a test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.lab.processes import LabError

GATEWAY = "169.254.1.1"
GATEWAY6 = "fe80::1"
NODE_MAC = "ee:ee:ee:ee:ee:ee"
NODE_ADDRESS = "10.244.0.1"
NODE_ADDRESS6 = "fd00:10:244::1"
MAX_PODS = 100

POD_SYSCTLS: Mapping[str, str] = {
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/rp_filter": "0",
}
NODE_SYSCTLS: Mapping[str, str] = {
    **POD_SYSCTLS,
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
}

Link = Literal["veth", "netkit", "macvlan", "ipvlan"]
"""What connects a pod: a pair of devices with its other end on the node, or a device on the uplink."""
ON_UPLINK: Mapping[Link, str] = {"macvlan": "macvlan mode bridge", "ipvlan": "ipvlan mode l2"}


class UnsupportedLinkError(LabError):
    """This kernel, or its program `ip`, has no such devices."""


@dataclass(frozen=True)
class Plug:
    """How one pod is plugged into the node."""

    netns: str
    mac: str
    address: str
    address6: str
    node_interface: str
    interface: str = "eth0"


def node(netns: str) -> Plug:
    """Return the node as if it were plugged into itself."""
    return Plug(
        netns=netns,
        mac=NODE_MAC,
        address=NODE_ADDRESS,
        address6=NODE_ADDRESS6,
        node_interface="",
        interface="lo",
    )


def client(lab_id: str, number: int) -> Plug:
    """Return the plug of client pod 1, 2, ..."""
    return Plug(
        netns=f"{lab_id}-client{number}",
        mac=f"02:00:00:00:01:{number:02x}",
        address=f"10.244.1.{9 + number}",
        address6=f"fd00:10:244:1::{9 + number}",
        node_interface=f"vethc{number}",
    )


def server(lab_id: str, number: int) -> Plug:
    """Return the plug of server pod 1, 2, ..."""
    return Plug(
        netns=f"{lab_id}-server{number}",
        mac=f"02:00:00:00:02:{number:02x}",
        address=f"10.244.2.{52 + number}",
        address6=f"fd00:10:244:2::{52 + number}",
        node_interface=f"veths{number}",
    )


def upstream(lab_id: str) -> Plug:
    """Return the upstream's plug."""
    return Plug(
        netns=f"{lab_id}-upstream",
        mac="02:00:00:00:09:01",
        address="10.244.9.9",
        address6="fd00:10:244:9::9",
        node_interface="vethu",
    )


def node_links(plugs: Sequence[Plug], default: Plug, link: Link = "veth") -> str:
    """Return the node's batch: a pair of devices per pod, and the default route to the outer world."""
    pairs = [] if link in ON_UPLINK else [plug for plug in plugs if plug is not default]
    return "\n".join(
        [
            "link set lo up",
            f"addr add {NODE_ADDRESS}/32 dev lo",
            f"addr add {NODE_ADDRESS6}/128 dev lo nodad",
            *(line for plug in pairs for line in _node_end(plug, link)),
            *_node_end(default, "veth"),
            f"route add default via {default.address} dev {default.node_interface} onlink src {NODE_ADDRESS}",
            f"route add ::/0 via {default.address6} dev {default.node_interface} onlink src {NODE_ADDRESS6}",
            "",
        ]
    )


def pod_links(plug: Plug) -> str:
    """Return a pod's batch, to be run after the node's."""
    return "\n".join(
        [
            "link set lo up",
            "link set eth0 addrgenmode none",
            "link set eth0 up",
            f"addr add {plug.address}/32 dev eth0",
            f"addr add {plug.address6}/128 dev eth0 nodad",
            f"neigh add {GATEWAY} lladdr {NODE_MAC} nud permanent dev eth0",
            f"neigh add {GATEWAY6} lladdr {NODE_MAC} nud permanent dev eth0",
            f"route add {GATEWAY}/32 dev eth0 scope link",
            f"route add default via {GATEWAY} dev eth0",
            f"route add ::/0 via {GATEWAY6} dev eth0",
            "",
        ]
    )


def uplink_links(plugs: Sequence[Plug], default: Plug, link: Link) -> str:
    """Return the node's second batch, where pods hang on the uplink: a device for each."""
    device = f"link add link {default.node_interface} name eth0"
    return "\n".join(
        [*(f"{device} {_address(plug, link)} netns {plug.netns} type {ON_UPLINK[link]}" for plug in plugs), ""]
    )


def neighbour_links(others: Sequence[Plug]) -> str:
    """Return a pod's second batch, where pods hang on the uplink: it reaches the others there."""
    lines = []
    for other in others:
        addresses = (other.address, other.address6)
        lines += [f"neigh add {address} lladdr {other.mac} nud permanent dev eth0" for address in addresses]
        lines += [f"route add {other.address}/32 dev eth0", f"route add {other.address6}/128 dev eth0"]
    return "\n".join([*lines, ""])


def _address(plug: Plug, link: Link) -> str:
    """What the device of a pod is called on the wire; ipvlan's have the uplink's address, all of them."""
    return "" if link == "ipvlan" else f"address {plug.mac}"


def _node_end(plug: Plug, link: Link) -> list[str]:
    device = plug.node_interface
    return [
        f"link add {device} address {NODE_MAC} type {link} peer name eth0 address {plug.mac} netns {plug.netns}",
        f"link set {device} addrgenmode none",
        f"link set {device} up",
        f"addr add {GATEWAY6}/64 dev {device} nodad",
        f"neigh add {plug.address} lladdr {plug.mac} nud permanent dev {device}",
        f"neigh add {plug.address6} lladdr {plug.mac} nud permanent dev {device}",
        f"route add {plug.address}/32 dev {device} scope link src {NODE_ADDRESS}",
        f"route add {plug.address6}/128 dev {device} src {NODE_ADDRESS6}",
    ]
