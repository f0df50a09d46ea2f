"""What goes on beside lookups, looks like a fault in the kernel's records, and loses nothing."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab.faults import UnsupportedFaultError
from agent.lab.namespaces import set_sysctls
from agent.lab.processes import end, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.lab.pods import Pod

REFUSING = "udp port 9"
"""A filter that refuses every packet of DNS: the kernel frees the sniffer's copies."""
ARP_MS, USUAL_ARP_MS = "100", "1000"
DEAF, HEARING = "8", "0"


@contextmanager
def sniffer(pod: Pod, expression: str = "port 53") -> Iterator[None]:
    """Let tcpdump take packets in on all devices of a pod.

    Raises:
        UnsupportedFaultError: tcpdump is missing.
    """
    if shutil.which("tcpdump") is None:
        raise UnsupportedFaultError("tcpdump is missing: install the Debian package tcpdump")
    said = pod.directory / f"{pod.name}-{expression.replace(' ', '-')}.tcpdump"
    with said.open("w") as stderr:
        argv = ["tcpdump", "-n", "--immediate-mode", "-w", "/dev/null", "-i", "any", expression]
        process = pod.popen(argv, stderr=stderr)
    try:
        wait_until(lambda: "listening on" in said.read_text(), f"tcpdump in {pod.name} to listen")
        yield
    finally:
        end(process)


@contextmanager
def narrow_link(node: Pod, pod: Pod, mtu: int) -> Iterator[None]:
    """Let the node send only packets of so many bytes to a pod."""
    node.run(["ip", "link", "set", pod.node_interface, "mtu", str(mtu)])
    try:
        yield
    finally:
        node.run(["ip", "link", "set", pod.node_interface, "mtu", "1500"])


@contextmanager
def unresolved_neighbour(node: Pod, pod: Pod) -> Iterator[None]:
    """Let the node forget a pod's link-layer address: the next packet waits until ARP has found it again."""
    device = pod.node_interface
    permanent = ["lladdr", _neighbour(node, pod)["lladdr"], "nud", "permanent"]
    node.run(["ip", "neigh", "del", pod.address, "dev", device])
    try:
        yield
    finally:
        node.run(["ip", "neigh", "replace", pod.address, "dev", device, *permanent])


@contextmanager
def deaf_to_arp(node: Pod, pod: Pod) -> Iterator[Callable[[], None]]:
    """The same, but the pod hears no ARP until what is returned is called: once a packet waits for the answer."""
    asks_every = f"net/ipv4/neigh/{pod.node_interface}/retrans_time_ms"
    hears = f"net/ipv4/conf/{pod.interface}/arp_ignore"

    def listen() -> None:
        wait_until(lambda: "INCOMPLETE" in _neighbour(node, pod).get("state", []), "ARP to ask")
        set_sysctls(pod.name, {hears: HEARING})

    with unresolved_neighbour(node, pod):
        set_sysctls(node.name, {asks_every: ARP_MS})
        set_sysctls(pod.name, {hears: DEAF})
        try:
            yield listen
        finally:
            set_sysctls(pod.name, {hears: HEARING})
            set_sysctls(node.name, {asks_every: USUAL_ARP_MS})


def _neighbour(node: Pod, pod: Pod) -> dict[str, str]:
    """What the node knows of a pod's link-layer address; nothing, while it does not even ask."""
    known = node.run(["ip", "-json", "neigh", "show", "to", pod.address, "dev", pod.node_interface]).stdout
    return next(iter(json.loads(known or "[]")), {})
