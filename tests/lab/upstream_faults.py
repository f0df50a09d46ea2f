"""Faults of DNS servers, and between them and their upstreams; each breaks a lab in one way, and mends it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab.faults import UnsupportedFaultError
from tests.lab.servers import coredns, find_program
from tests.lab.shapes import BEYOND, tun_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab.node import Lab
    from agent.lab.pods import DnsServer, Pod

TABLE = "upstream-faults"
ONCE = "limit rate 1/day burst 1 packets"
"""The first packet alone, and exactly: the kernel takes the limit's lock for each."""


def need_coredns() -> None:
    """Raise UnsupportedFaultError where CoreDNS is missing."""
    if find_program("coredns") is None:
        raise UnsupportedFaultError("CoreDNS is missing: `make coredns` builds it where Go is")


@contextmanager
def coredns_server(lab: Lab, corefile: str) -> Iterator[None]:
    """Run CoreDNS in the first server pod.

    Args:
        lab: Of any kind.
        corefile: `{upstream}` stands for the address of the lab's upstream, `{beyond}` for BEYOND.

    Raises:
        UnsupportedFaultError: CoreDNS is missing.
    """
    need_coredns()
    known = {"{upstream}": lab.upstream.address, "{beyond}": BEYOND}
    for word, address in known.items():
        corefile = corefile.replace(word, address)
    with coredns(lab.servers[0], corefile):
        yield


@contextmanager
def hung_server(lab: Lab) -> Iterator[DnsServer]:
    """Suspend the first DNS server, and replace it by a new one: what it was asked meanwhile it never answers."""
    server = lab.servers[0]
    server.stop()
    try:
        yield server
    finally:
        server.kill()
        server.start()


@contextmanager
def hung_upstream(lab: Lab) -> Iterator[None]:
    """Suspend the upstream for a while."""
    lab.upstream.stop()
    try:
        yield
    finally:
        lab.upstream.resume()


@contextmanager
def upstream_beyond(lab: Lab) -> Iterator[str]:
    """A scripted upstream that is not on this node, and silent over TCP; its address."""
    with tun_server(lab.node):
        yield BEYOND


@contextmanager
def slow_line(pod: Pod) -> Iterator[None]:
    """Let a quarter of a second pass between the small packets that a pod sends.

    CoreDNS asks again as soon as it is refused a connection, for seconds. Over a line that costs no time these are more
    packets than a node has for anything else.

    Raises:
        UnsupportedFaultError: The kernel has no token bucket.
    """
    bucket = ["root", "tbf", "rate", "2kbit", "burst", "200", "latency", "5s"]
    done = pod.run(["tc", "qdisc", "add", "dev", pod.interface, *bucket], check=False)
    if done.returncode != 0:
        raise UnsupportedFaultError(f"no slow line on this kernel: {done.stderr.strip()}")
    try:
        yield
    finally:
        pod.run(["tc", "qdisc", "del", "dev", pod.interface, "root"])


@contextmanager
def drop_queries_upstream(lab: Lab, *, once: bool = False) -> Iterator[None]:
    """Drop what the first server asks the upstream over UDP, in FORWARD of the node; `once`: only the first packet."""
    with _rules(lab.node, "forward", [f"{_between(lab.servers[0], lab.upstream)} udp dport 53 {ONCE if once else ''}"]):
        yield


@contextmanager
def drop_replies_upstream(lab: Lab) -> Iterator[None]:
    """Drop what the upstream replies to the first server over UDP, in FORWARD of the node."""
    with _rules(lab.node, "forward", [f"{_between(lab.upstream, lab.servers[0])} udp sport 53"]):
        yield


@contextmanager
def drop_tcp(pod: Pod) -> Iterator[None]:
    """Drop what comes to a pod's TCP port 53, in INPUT there, as a policy for UDP alone does."""
    with _rules(pod, "input", ["tcp dport 53"]):
        yield


def _between(source: Pod, target: Pod) -> str:
    return f"ip saddr {source.address} ip daddr {target.address}"


@contextmanager
def _rules(pod: Pod, hook: str, matches: list[str]) -> Iterator[None]:
    lines = "\n".join(f"    {match} drop" for match in matches)
    chain = f"  chain drops {{\n    type filter hook {hook} priority filter; policy accept;\n{lines}\n  }}"
    pod.run(["nft", "-f", "-"], stdin=f"table inet {TABLE} {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "inet", TABLE])
