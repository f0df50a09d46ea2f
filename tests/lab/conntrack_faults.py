"""Faults of connection tracking: a full table, races for an entry, entries that outlive a server, invalid packets."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import socket
import struct
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import dns.name
import dns.rdatatype

from agent.lab import namespaces, translation
from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import LabError, wait_until
from agent.lab.translation import VIP, VIP6
from agent.lab.wiring import NODE_ADDRESS, NODE_ADDRESS6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from multiprocessing.sharedctypes import Synchronized

    from agent.lab.node import Lab
    from agent.lab.pods import DnsServer, Pod

ENTRIES_SYSCTL = "net/netfilter/nf_conntrack_count"
LIMIT_SYSCTL = "net/netfilter/nf_conntrack_max"
MAX_ENTRIES = 2_000_000
"""A larger limit takes too long to reach: 100 000 entries a second, and half a kilobyte of kernel memory each."""
BATCH = 65536
BATCH_SECONDS = 30.0
SPARE = 256
"""Entries that can be given up again; each lookup that is let through keeps one for half a minute."""
FILLER, FILLER_PEER = "192.0.2.{}", "198.51.100.1"
FILLER6, FILLER6_PEER = "2001:db8::1", "2001:db8::2"
FILLER_SECONDS = 3600
PORTS_PER_ADDRESS = 60_000

TOGETHER_SECONDS = 10.0
FIRST_PORT, LAST_PORT = 20_000, 30_000
"""Source ports outside the kernel's own choice (ip_local_port_range)."""

UDP_HEADER = 8
DNS_HEADER = 12
DNS_PORT = 53


@dataclass
class FullTable:
    """The connection table of the node, filled up to the limit by connections that nobody ever made."""

    node: Pod
    assured: bool
    limit: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def entries(self) -> int:
        """How many entries the table of this namespace has."""
        return _sysctl(self.node, ENTRIES_SYSCTL)

    @property
    def evicted(self) -> int:
        """How many entries the kernel has given up so far to make room for new ones."""
        statistics = self.node.run(["conntrack", "-S"]).stdout
        return sum(int(count) for count in re.findall(r"early_drop=(\d+)", statistics))

    def fill(self) -> None:
        """Take every free entry; what was made or has expired since the last time is made up for.

        The last ones are of IPv6, which the kernel can list without listing all others.
        """
        while (count := min(BATCH, self.limit - SPARE - self.entries)) > 0:
            self._restore(_filler(next(self._numbers)) for _ in range(count))
        wait_until(self._filled_up, "the connection table to be full")

    def make_room(self) -> None:
        """Let a few connections end."""
        self.node.run(["conntrack", "-D", "-f", "ipv6", "-s", FILLER6], timeout=BATCH_SECONDS)

    def _filled_up(self) -> bool:
        self._restore(_filler6(next(self._numbers)) for _ in range(self.limit - self.entries))
        return self.entries >= self.limit

    def _restore(self, entries: Iterator[str]) -> None:
        status = "SEEN_REPLY,ASSURED" if self.assured else "SEEN_REPLY"
        options = f"-p udp -t {FILLER_SECONDS} -u {status} --dport 9 --reply-port-src 9"
        text = "".join(f"-A {options} {entry}\n" for entry in entries)
        self.node.run(["conntrack", "-R", "-"], stdin=text, check=False, timeout=BATCH_SECONDS)


@contextmanager
def full_table(lab: Lab, *, assured: bool = True) -> Iterator[FullTable]:
    """Fill the node's connection table; no other namespace's, each is counted by itself.

    Args:
        lab: Whose node.
        assured: Whether the kernel keeps the entries; those not assured make room for new connections.

    Raises:
        UnsupportedFaultError: This machine's limit is too high to be reached, or there is none.
    """
    table = FullTable(lab.node, assured, _sysctl(lab.node, LIMIT_SYSCTL))
    if not 0 < table.limit <= MAX_ENTRIES:
        raise UnsupportedFaultError(f"nf_conntrack_max is {table.limit}: not filled up beyond {MAX_ENTRIES} entries")
    try:
        lab.node.run(["conntrack", "-F"])
        table.fill()
        yield table
    finally:
        lab.node.run(["conntrack", "-F"])


class Shot(NamedTuple):
    """What one program sends at one moment."""

    sock: socket.socket
    messages: Sequence[bytes]


def send_together(pairs: Sequence[tuple[Shot, Shot]]) -> None:
    """Send both shots of each pair at one moment, from two CPUs, pair after pair.

    Raises:
        UnsupportedFaultError: This machine has one CPU only.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        raise UnsupportedFaultError("two packets at one moment need two CPUs")
    fork = multiprocessing.get_context("fork")
    turns: list[Synchronized[int]] = [fork.RawValue("L", 0), fork.RawValue("L", 0)]
    deadline = time.monotonic() + TOGETHER_SECONDS
    shooters = [
        fork.Process(target=_shoot, args=(cpu, shots, turns[me], turns[1 - me], deadline), daemon=True)
        for me, (cpu, shots) in enumerate(zip(cpus, zip(*pairs, strict=True), strict=False))
    ]
    for shooter in shooters:
        shooter.start()
    for shooter in shooters:
        shooter.join(TOGETHER_SECONDS + 1)
    if any(shooter.exitcode != 0 for shooter in shooters):
        raise LabError("two programs could not send at one moment")


def _shoot(cpu: int, shots: Sequence[Shot], mine: Synchronized[int], other: Synchronized[int], deadline: float) -> None:
    """Say that the next turn has come, and spin until the other program says so too."""
    os.sched_setaffinity(0, {cpu})
    for turn, (sock, messages) in enumerate(shots, 1):
        mine.value = turn
        while other.value < turn:
            if time.monotonic() > deadline:
                raise LabError("the other program did not come")
        for message in messages:
            sock.send(message)


@contextmanager
def one_source_address(lab: Lab) -> Iterator[None]:
    """Give the queries of all pods the node's address, each with its own port where that is free.

    Two pods with one source port then compete for it.
    """
    rule = "type nat hook postrouting priority srcnat - 1; udp dport 53 snat to"
    text = f"""
table ip one-source {{ chain translate {{ {rule} {NODE_ADDRESS}; }}; }}
table ip6 one-source {{ chain translate {{ {rule} {NODE_ADDRESS6}; }}; }}
"""
    with _ruleset(lab.node, text, ("ip", "one-source"), ("ip6", "one-source")):
        yield


def source_ports(count: int) -> list[int]:
    """Source ports that no program gets by itself, in an order of their own."""
    return random.sample(range(FIRST_PORT, LAST_PORT), count)


@contextmanager
def drop_question(lab: Lab, name: str, rdtype: str, *, once: bool = True) -> Iterator[None]:
    """Drop queries of one type, for names as long as this one; by default the first of each address family only."""
    length = len(dns.name.from_text(name).to_wire() or b"")
    where = 8 * (UDP_HEADER + DNS_HEADER + length)
    limit = "limit rate 1/day burst 1 packets" if once else ""
    question = f"udp dport {DNS_PORT} @th,{where},16 {int(dns.rdatatype.from_text(rdtype))} {limit} drop"
    rules = "\n".join(f"    meta nfproto {family} {question}" for family in ("ipv4", "ipv6"))
    text = f"""
table inet drop-question {{
  chain forward {{
    type filter hook forward priority filter;
{rules}
  }}
}}
"""
    with _ruleset(lab.node, text, ("inet", "drop-question")):
        yield


@contextmanager
def drop_invalid(lab: Lab) -> Iterator[None]:
    """Drop what connection tracking calls invalid before the node forwards it, as kube-proxy's own rule does."""
    if lab.translator == "nftables":
        text = "table inet drop-invalid { chain forward { type filter hook forward priority filter; RULE; }; }"
        with _ruleset(lab.node, text.replace("RULE", "ct state invalid drop"), ("inet", "drop-invalid")):
            yield
        return
    programs = [lab.translator, lab.translator.replace("iptables", "ip6tables")]
    rule = ["FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
    with ExitStack() as stack:
        for program in programs:
            lab.node.run([program, "-A", *rule])
            stack.callback(lab.node.run, [program, "-D", *rule])
        yield


def send_with_wrong_checksum(pod: Pod, message: bytes, server: str) -> None:
    """Send a query over UDP whose checksum is wrong: what a broken offload or a bad line makes of a good one."""
    (port,) = source_ports(1)
    header = struct.pack("!HHHH", port, DNS_PORT, UDP_HEADER + len(message), 0xBAD)

    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    kind = socket.SOCK_RAW, socket.IPPROTO_UDP
    with namespaces.call_inside(pod.name, lambda: socket.socket(family, *kind)) as sock:
        sock.sendto(header + message, (server, 0))


@contextmanager
def service_of(lab: Lab, servers: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Let the Service have these servers, by IPv4 and IPv6 address, instead of all of the lab.

    Only the rules change: connections go on to where they were translated to, as after a change of endpoints.
    """
    _translate(lab, servers)
    try:
        yield
    finally:
        _translate(lab, [addresses_of(server) for server in lab.servers])


def forget_translations(lab: Lab) -> None:
    """Delete what the node knows of DNS connections, as kube-proxy does for a server that is no endpoint any more."""
    for family in ("ipv4", "ipv6"):
        lab.node.run(["conntrack", "-D", "-f", family, "-p", "udp", "--orig-port-dst", str(DNS_PORT)], check=False)


@contextmanager
def forgetting_soon(lab: Lab, seconds: int) -> Iterator[None]:
    """Let entries of UDP time out that soon after their last packet, before they have seen a reply."""
    with _sysctls(lab.node, {"net/netfilter/nf_conntrack_udp_timeout": str(seconds)}):
        yield


@contextmanager
def only_replies_come_in(lab: Lab, pod: Pod) -> Iterator[None]:
    """Let nothing in to a pod but replies to what it sent, as a network policy for its ingress does."""
    text = f"""
table inet only-replies {{
  chain forward {{
    type filter hook forward priority filter;
    ct state established,related accept
    meta l4proto ipv6-icmp accept
    oifname {pod.node_interface} drop
  }}
}}
"""
    with _ruleset(lab.node, text, ("inet", "only-replies")):
        yield


def addresses_of(server: Pod) -> tuple[str, str]:
    """A server as the Service's rules know it."""
    return server.address, server.address6


def _translate(lab: Lab, servers: Sequence[tuple[str, str]]) -> None:
    v4, v6 = [server[0] for server in servers], [server[1] for server in servers]
    if lab.translator == "nftables":
        tables = translation.nftables_rules("ip", v4, lab.port) + translation.nftables_rules("ip6", v6, lab.port)
        lab.node.run(["nft", "-f", "-"], stdin=f"delete table ip kube-proxy\ndelete table ip6 kube-proxy\n{tables}")
        return
    if lab.translator == "ipvs":
        raise UnsupportedFaultError("a Service made by IPVS is changed by ipvsadm: see ipvs_faults")
    variant = lab.translator.removeprefix("iptables-")
    lab.node.run([f"iptables-{variant}-restore"], stdin=translation.iptables_rules(VIP, v4, lab.port))
    lab.node.run([f"ip6tables-{variant}-restore"], stdin=translation.iptables_rules(VIP6, v6, lab.port))


@contextmanager
def without_route(lab: Lab, server: DnsServer) -> Iterator[None]:
    """Take the node's routes to a server pod away, as when the pod is deleted. The default route has no part in it."""
    pairs = ((server.address, NODE_ADDRESS, "scope link"), (server.address6, NODE_ADDRESS6, ""))
    device = server.node_interface
    _ip(lab.node, *(line for to, _, _ in pairs for line in (f"route del {to}", f"route add throw {to}")))
    try:
        yield
    finally:
        _ip(
            lab.node,
            *(
                line
                for to, source, scope in pairs
                for line in (f"route del throw {to}", f"route add {to} dev {device} {scope} src {source}")
            ),
        )


@contextmanager
def without_neighbour(lab: Lab, server: DnsServer) -> Iterator[Callable[[], None]]:
    """Let nobody answer for a server pod's IPv4 address on its link, as when its end of the link has gone.

    The kernel asks three times, a second apart by default; here it is less patient.

    Yields:
        What waits until the kernel has given up, and freed what waited for the address.
    """
    device, address = server.node_interface, server.address
    known = lab.node.run(["ip", "neigh", "show", address, "dev", device]).stdout.split()
    mac = known[known.index("lladdr") + 1]
    with (
        _sysctls(lab.node, {f"net/ipv4/neigh/{device}/retrans_time_ms": "50"}),
        _sysctls(server, {f"net/ipv4/conf/{server.interface}/arp_ignore": "8"}),
    ):
        _ip(lab.node, f"neigh del {address} dev {device}")
        try:
            yield lambda: _wait_until_failed(lab.node, address, device)
        finally:
            _ip(lab.node, f"neigh replace {address} lladdr {mac} nud permanent dev {device}")


def _wait_until_failed(node: Pod, address: str, device: str) -> None:
    def failed() -> bool:
        return "FAILED" in node.run(["ip", "neigh", "show", address, "dev", device]).stdout

    wait_until(failed, f"the neighbour {address} to be given up")


def _filler(number: int) -> str:
    """One connection of IPv4 as `conntrack -R` reads it; no two numbers give the same."""
    host, port = divmod(number, PORTS_PER_ADDRESS)
    return _filler_between(FILLER.format(1 + host), FILLER_PEER, 1 + port)


def _filler6(number: int) -> str:
    return _filler_between(FILLER6, FILLER6_PEER, 1 + number % PORTS_PER_ADDRESS)


def _filler_between(source: str, peer: str, port: int) -> str:
    return f"-s {source} -d {peer} -r {peer} -q {source} --sport {port} --reply-port-dst {port}"


def _sysctl(pod: Pod, key: str) -> int:
    return int(_read_sysctls(pod, [key])[key])


def _read_sysctls(pod: Pod, keys: Iterable[str]) -> dict[str, str]:
    return namespaces.call_inside(pod.name, lambda: {key: (namespaces.SYSCTLS / key).read_text() for key in keys})


@contextmanager
def _sysctls(pod: Pod, values: Mapping[str, str]) -> Iterator[None]:
    before = _read_sysctls(pod, values)
    namespaces.set_sysctls(pod.name, values)
    try:
        yield
    finally:
        namespaces.set_sysctls(pod.name, before)


@contextmanager
def _ruleset(node: Pod, text: str, *tables: tuple[str, str]) -> Iterator[None]:
    node.run(["nft", "-f", "-"], stdin=text)
    try:
        yield
    finally:
        node.run(["nft", "-f", "-"], stdin="".join(f"delete table {family} {name}\n" for family, name in tables))


def _ip(pod: Pod, *commands: str) -> None:
    pod.run(["ip", "-batch", "-"], stdin="".join(f"{command}\n" for command in commands))
