"""What is done to the node, by the means that break real ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from agent.lab.processes import wait_until
from tests.node.node import SHOP, Node

DNS = ("kube-dns", "kube-system")
COREDNS = "deployment/coredns"
REPLICAS = 2
END_SECONDS = 60.0


@contextmanager
def dropping_queries_of(node: Node, pod: str) -> Iterator[str]:
    """A firewall rule, as a network policy becomes one: queries of a pod do not pass. Yields the pod's address."""
    address: str = node.get("pod", pod, "-n", SHOP)["status"]["podIP"]
    rule = ["FORWARD", "--source", address, "--protocol", "udp", "--dport", "53", "--jump", "DROP"]
    node.machine.run("iptables", "--wait", "--insert", *rule)
    try:
        yield address
    finally:
        node.machine.run("iptables", "--wait", "--delete", *rule)


@contextmanager
def without_servers(node: Node) -> Iterator[None]:
    """CoreDNS scaled to zero, and all its pods gone."""
    scale(node, 0)
    wait_until(lambda: not node.machine.pids("coredns"), "CoreDNS's pods to end", seconds=END_SECONDS)
    try:
        yield
    finally:
        scale(node, REPLICAS)


def scale(node: Node, replicas: int) -> None:
    """Let CoreDNS have so many pods, and return when the Service knows."""
    node.kubectl("-n", "kube-system", "scale", COREDNS, f"--replicas={replicas}")
    node.wait_for_endpoints(*DNS, replicas)


def kill_servers(node: Node) -> None:
    """Kill all processes of CoreDNS; the kubelet starts their containers again."""
    for pid in node.machine.pids("coredns"):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def hanging_servers(node: Node) -> Iterator[None]:
    """All of CoreDNS hangs until the kubelet's probes have seen it and the Service has no endpoint; then it goes on."""
    pids = node.machine.pids("coredns")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        node.wait_for_endpoints(*DNS, 0)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        node.wait_for_endpoints(*DNS, REPLICAS)
