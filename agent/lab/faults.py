"""Faults: each is a context manager that breaks a lab in one known way, and mends it."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from agent.lab.node import Lab
from agent.lab.pods import DnsServer, Pod
from agent.lab.processes import LabError

Hook = Literal["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]
Direction = Literal["ingress", "egress"]
Message = Literal["query", "reply"]

_numbers = itertools.count(1)

TC_DROP_UDP_53 = (
    "16,40 0 0 12,21 0 4 34525,48 0 0 20,21 0 11 17,40 0 0 {port6},21 8 9 53,21 0 8 2048,48 0 0 23,"
    "21 0 6 17,40 0 0 20,69 4 0 8191,177 0 0 14,72 0 0 {port},21 0 1 53,6 0 0 2,6 0 0 0"
)
"""What `tcpdump -ddd "udp dst port 53"` compiles to, returning TC_ACT_SHOT (2) or TC_ACT_OK (0)."""
TC_PORT_OFFSETS: dict[Message, dict[str, int]] = {
    "query": {"port6": 56, "port": 16},
    "reply": {"port6": 54, "port": 14},
}
"""Where in a frame the server's port is: with IPv6, and with IPv4 without the network header."""


class UnsupportedFaultError(LabError):
    """This kernel cannot be broken in this way."""


@dataclass(frozen=True)
class DropRule:
    """A rule in the node that drops packets, and counts them."""

    node: Pod
    table: str

    @property
    def packets(self) -> int:
        """How many packets it has dropped."""
        listed = self.node.run(["nft", "--json", "list", "counter", "inet", self.table, "dropped"])
        objects = json.loads(listed.stdout)["nftables"]
        return int(next(item["counter"]["packets"] for item in objects if "counter" in item))


@contextmanager
def drop_queries(lab: Lab, hook: Hook = "FORWARD") -> Iterator[DropRule]:
    """Drop all DNS queries over UDP in one hook of the node, as a NetworkPolicy might."""
    with _drop_rule(lab, hook, ["udp dport 53"]) as rule:
        yield rule


@contextmanager
def drop_replies(lab: Lab, hook: Hook = "FORWARD") -> Iterator[DropRule]:
    """Drop all DNS replies over UDP in one hook of the node."""
    with _drop_rule(lab, hook, ["udp sport 53"]) as rule:
        yield rule


@contextmanager
def drop_first_query(lab: Lab, hook: Hook = "FORWARD") -> Iterator[DropRule]:
    """Drop the first query of each address family, and let all others pass.

    A limit of one packet per day with a burst of one is exact: the kernel takes its lock for each packet.
    """
    once = "udp dport 53 limit rate 1/day burst 1 packets"
    with _drop_rule(lab, hook, [f"meta nfproto {family} {once}" for family in ("ipv4", "ipv6")]) as rule:
        yield rule


@contextmanager
def tc_drop_queries(lab: Lab, pods: Sequence[Pod] = ()) -> Iterator[None]:
    """Drop all DNS queries over UDP by tc where the node sends them to these pods; to all servers by default.

    Raises:
        UnsupportedFaultError: The kernel lacks the clsact qdisc or the BPF classifier.
    """
    with ExitStack() as stack:
        for pod in pods or lab.servers:
            stack.enter_context(tc_drop(lab.node, pod.node_interface, "egress"))
        yield


@contextmanager
def tc_drop(pod: Pod, device: str, direction: Direction, message: Message = "query") -> Iterator[None]:
    """Drop all DNS queries or replies over UDP by a tc filter of a device.

    Raises:
        UnsupportedFaultError: The kernel lacks the clsact qdisc or the BPF classifier.
    """
    _tc(pod, "qdisc", "add", "dev", device, "clsact")
    try:
        program = ("bpf", "bytecode", TC_DROP_UDP_53.format(**TC_PORT_OFFSETS[message]), "direct-action")
        _tc(pod, "filter", "add", "dev", device, direction, "protocol", "all", *program)
        yield
    finally:
        pod.run(["tc", "qdisc", "del", "dev", device, "clsact"])


@contextmanager
def stopped_server(lab: Lab, index: int = 0) -> Iterator[DnsServer]:
    """Suspend a DNS server: queries reach its socket and nobody reads them."""
    server = lab.servers[index]
    server.stop()
    try:
        yield server
    finally:
        server.resume()


@contextmanager
def closed_port(lab: Lab, index: int = 0) -> Iterator[DnsServer]:
    """Kill a DNS server: queries reach a port nobody listens on, and ICMP errors come back."""
    server = lab.servers[index]
    server.kill()
    try:
        yield server
    finally:
        server.start()


@contextmanager
def _drop_rule(lab: Lab, hook: Hook, matches: Sequence[str]) -> Iterator[DropRule]:
    table = f"dnstrail-fault-{next(_numbers)}"
    rules = "\n".join(f"    {match} counter name dropped drop" for match in matches)
    lab.node.run(
        ["nft", "-f", "-"],
        stdin=f"""
table inet {table} {{
  counter dropped {{ }}
  chain drop-dns {{
    type filter hook {hook.lower()} priority filter; policy accept;
{rules}
  }}
}}
""",
    )
    try:
        yield DropRule(lab.node, table)
    finally:
        lab.node.run(["nft", "delete", "table", "inet", table])


def _tc(node: Pod, *arguments: str) -> None:
    done = node.run(["tc", *arguments], check=False)
    if done.returncode != 0:
        raise UnsupportedFaultError(f"this kernel has no tc {arguments[0]} for this fault: {done.stderr.strip()}")
