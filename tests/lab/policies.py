"""Policies that say no by netfilter rules: single rules of three tools, and network policies as CNIs write them."""

from __future__ import annotations

import itertools
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from agent.lab.faults import UnsupportedFaultError
from tests.lab.packet_queue import QUEUE, refusing_reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agent.lab.faults import Direction, Hook, Message
    from agent.lab.node import Lab
    from agent.lab.pods import Pod
    from agent.lab.translation import Translator

Table = Literal["raw", "mangle", "filter", "last"]
Verdict = Literal["drop", "reject"]
Variant = Literal["iptables-legacy", "iptables-nft"]

PRIORITIES: dict[Table, int] = {"raw": -300, "mangle": -150, "filter": 0, "last": 300}
"""Of nftables chains that stand where a table of iptables does; iptables has none behind source NAT."""
PORTS: dict[Message, str] = {"query": "dport", "reply": "sport"}
CALICO_ACCEPTED = "0x10000"
"""The mark of a packet that a policy has let pass."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Denial:
    """One rule against DNS in one netfilter hook."""

    tool: Translator
    hook: Hook
    table: Table = "filter"
    message: Message = "query"
    ipv6: bool = False
    verdict: Verdict = "drop"
    protocol: Literal["udp", "tcp"] = "udp"
    port: int = 53


@contextmanager
def denied(pod: Pod, denial: Denial) -> Iterator[None]:
    """Have this rule in this namespace."""
    with _nft_rule(pod, denial) if denial.tool == "nftables" else _iptables_rule(pod, denial):
        yield


@contextmanager
def denied_by_default(pod: Pod, tool: Translator, *, ipv6: bool = False) -> Iterator[None]:
    """Let everything through FORWARD be dropped by the policy of a chain, as Docker's is."""
    if tool == "nftables":
        with _nft(pod, "inet", "chain deny { type filter hook forward priority 0; policy drop; }"):
            yield
        return
    program = _program(tool, ipv6=ipv6)
    _make(pod, [program, "-w", "-P", "FORWARD", "DROP"])
    try:
        yield
    finally:
        pod.run([program, "-w", "-P", "FORWARD", "ACCEPT"])


@contextmanager
def denied_at_device(
    pod: Pod, device: str, direction: Direction = "ingress", message: Message = "query"
) -> Iterator[None]:
    """Drop DNS in the netdev hook of a device, before anything of netfilter's others.

    Raises:
        UnsupportedFaultError: The kernel has no such hook.
    """
    base = f'type filter hook {direction} device "{device}" priority 0; policy accept;'
    with _nft(pod, "netdev", f"chain deny {{ {base} udp {PORTS[message]} 53 drop; }}"):
        yield


@contextmanager
def denied_by_queue(pod: Pod, variant: Variant, message: Message = "query", *, read: bool = True) -> Iterator[None]:
    """Hand DNS in FORWARD to a program that refuses it, as kindnet's network policies do.

    Args:
        pod: Where.
        variant: By which iptables.
        message: What is handed over.
        read: Whether the program runs; without it the kernel refuses.

    Raises:
        UnsupportedFaultError: The kernel has no packet queues.
    """
    rule = ("-p", "udp", f"--{PORTS[message]}", "53", "-j", "NFQUEUE", "--queue-num", str(QUEUE))
    with refusing_reader(pod) if read else nullcontext(), _iptables(pod, variant, "filter", "FORWARD", *rule):
        yield


@contextmanager
def only_allowed_by_sets(lab: Lab, pod: Pod, *allowed: str) -> Iterator[None]:
    """Let new flows of a pod pass only to what a set allows, and look behind DNAT, as kube-network-policies does.

    Args:
        lab: The lab.
        pod: The pod that is isolated.
        allowed: Protocol and port each, as in `udp . 53`.
    """
    elements = f"elements = {{ {', '.join(allowed)} }};" if allowed else ""
    rules = f"""
  set isolated {{ type ipv4_addr; elements = {{ {pod.address} }}; }}
  set isolated6 {{ type ipv6_addr; elements = {{ {pod.address6} }}; }}
  set allowed {{ type inet_proto . inet_service; {elements} }}
  chain egress {{
    meta l4proto . th dport @allowed accept
    drop
  }}
  chain postrouting {{
    type filter hook postrouting priority srcnat - 5; policy accept;
    meta l4proto ipv6-icmp accept
    ct state established,related accept
    ip saddr @isolated goto egress
    ip6 saddr @isolated6 goto egress
  }}
"""
    with _nft(lab.node, "inet", rules):
        yield


@contextmanager
def calico_policy(
    lab: Lab, variant: Variant, pod: Pod, direction: Direction, *allowed: str, stateful: bool = True, ipv6: bool = False
) -> Iterator[None]:
    """Isolate a pod as Calico does: policies mark what they allow, and what bears no mark at the end is dropped.

    Args:
        lab: The lab.
        variant: By which iptables.
        pod: The pod that is isolated.
        direction: Of its traffic, as seen from the pod.
        allowed: What its policies let pass, as matches of iptables.
        stateful: Whether replies to what was let pass are let pass.
        ipv6: For which family.
    """
    restore = f"{_program(variant, ipv6=ipv6)}-restore"
    device = f"-{'i' if direction == 'egress' else 'o'} {pod.node_interface}"
    chains = ("cali-FORWARD", "cali-wl", "cali-po")
    established = ["-A cali-wl -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"] if stateful else []
    accepted = f"{CALICO_ACCEPTED}/{CALICO_ACCEPTED}"
    rules = [
        f"-A cali-FORWARD {device} -g cali-wl",
        *established,
        f"-A cali-wl -j MARK --set-xmark 0x0/{CALICO_ACCEPTED}",
        "-A cali-wl -j cali-po",
        f"-A cali-wl -m mark --mark {accepted} -j RETURN",
        "-A cali-wl -j DROP",
        *(f"-A cali-po {match} -j MARK --set-xmark {accepted}" for match in allowed),
        "-I FORWARD -j cali-FORWARD",
    ]
    _restore(lab.node, restore, [*(f":{chain} - [0:0]" for chain in chains), *rules])
    try:
        yield
    finally:
        flushed, deleted = ([f"-{letter} {chain}" for chain in chains] for letter in "FX")
        _restore(lab.node, restore, ["-D FORWARD -j cali-FORWARD", *flushed, *deleted])


def _restore(pod: Pod, program: str, lines: Iterable[str]) -> None:
    _make(pod, [program, "-w", "--noflush"], "\n".join(["*filter", *lines, "COMMIT", ""]))


def _program(variant: str, *, ipv6: bool) -> str:
    return variant.replace("ip", "ip6", 1) if ipv6 else variant


@contextmanager
def _iptables_rule(pod: Pod, denial: Denial) -> Iterator[None]:
    program = _program(denial.tool, ipv6=denial.ipv6)
    match = ["-p", denial.protocol, f"--{PORTS[denial.message]}", str(denial.port)]
    with _iptables(pod, program, denial.table, denial.hook, *match, "-j", denial.verdict.upper()):
        yield


@contextmanager
def _iptables(pod: Pod, program: str, table: str, chain: str, *rule: str) -> Iterator[None]:
    _make(pod, [program, "-w", "-t", table, "-I", chain, *rule])
    try:
        yield
    finally:
        pod.run([program, "-w", "-t", table, "-D", chain, *rule])


@contextmanager
def _nft_rule(pod: Pod, denial: Denial) -> Iterator[None]:
    base = f"type filter hook {denial.hook.lower()} priority {PRIORITIES[denial.table]}; policy accept;"
    match = f"meta nfproto {'ipv6' if denial.ipv6 else 'ipv4'} {denial.protocol} {PORTS[denial.message]} {denial.port}"
    with _nft(pod, "inet", f"chain deny {{ {base} {match} {denial.verdict}; }}"):
        yield


@contextmanager
def _nft(pod: Pod, family: str, rules: str) -> Iterator[None]:
    table = f"dnstrail-policy-{next(_numbers)}"
    _make(pod, ["nft", "-f", "-"], f"table {family} {table} {{\n{rules}\n}}\n")
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", family, table])


def _make(pod: Pod, argv: Sequence[str], stdin: str | None = None) -> None:
    done = pod.run(argv, check=False, stdin=stdin)
    if done.returncode != 0:
        raise UnsupportedFaultError(f"{argv[0]} cannot do it here: {done.stderr.strip()}")
