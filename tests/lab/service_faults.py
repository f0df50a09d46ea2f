"""A Service without ready endpoints, as each mode of kube-proxy makes it known to the kernel.

Nothing is translated then, and what is sent to the Service's address is refused: by rules of kube-proxy, which say
"port unreachable", or by ip_vs, which does the same in its own name.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from agent.lab import translation
from agent.lab.faults import UnsupportedFaultError
from agent.lab.translation import PROTOCOLS, VIP, VIP6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.lab.node import Lab
    from agent.lab.pods import Pod

BY_FAMILY = (("ip", VIP), ("ip6", VIP6))
REFUSED_HOOKS = ("FORWARD", "OUTPUT")
"""Where kube-proxy looks for Services without endpoints: what pods send, and what the node's own programs send."""


@contextmanager
def service_without_endpoints(lab: Lab) -> Iterator[None]:
    """Take all endpoints of the DNS Service away, over UDP and TCP, IPv4 and IPv6."""
    take, give = _ways(lab)
    take(lab.node)
    try:
        yield
    finally:
        give(lab.node)


def _ways(lab: Lab) -> tuple[Callable[[Pod], None], Callable[[Pod], None]]:
    if lab.translator == "nftables":
        return _refuse_by_nftables, _let_pass_by_nftables
    if lab.translator == "ipvs":
        return _empty_ipvs, lambda node: _fill_ipvs(node, lab)
    variant = lab.translator.removeprefix("iptables-")
    return lambda node: _refuse_by_iptables(node, variant), lambda node: _let_pass_by_iptables(node, variant)


def _refuse_by_iptables(node: Pod, variant: str) -> None:
    """The nat table has no chain for the Service any more, and the filter table refuses it."""
    for family, vip in BY_FAMILY:
        unreachable = "icmp6-port-unreachable" if family == "ip6" else "icmp-port-unreachable"
        service = [f"-d {vip} -p {protocol} -m {protocol} --dport 53" for protocol in PROTOCOLS]
        lines = [
            "*filter",
            ":KUBE-SERVICES - [0:0]",
            *(f"-I {hook} -m conntrack --ctstate NEW -j KUBE-SERVICES" for hook in REFUSED_HOOKS),
            *(f"-A KUBE-SERVICES {one} -j REJECT --reject-with {unreachable}" for one in service),
            "COMMIT",
            "*nat",
            *(f"-I KUBE-SERVICES {one} -j RETURN" for one in service),
            "COMMIT",
        ]
        _restore_iptables(node, family, variant, lines)


def _let_pass_by_iptables(node: Pod, variant: str) -> None:
    for family, vip in BY_FAMILY:
        lines = [
            "*filter",
            *(f"-D {hook} -m conntrack --ctstate NEW -j KUBE-SERVICES" for hook in REFUSED_HOOKS),
            "-F KUBE-SERVICES",
            "-X KUBE-SERVICES",
            "COMMIT",
            "*nat",
            *(f"-D KUBE-SERVICES -d {vip} -p {one} -m {one} --dport 53 -j RETURN" for one in PROTOCOLS),
            "COMMIT",
        ]
        _restore_iptables(node, family, variant, lines)


def _restore_iptables(node: Pod, family: str, variant: str, lines: list[str]) -> None:
    program = f"{family}tables-{variant}-restore"
    done = node.run([program, "-w", "--noflush"], check=False, stdin="\n".join([*lines, ""]))
    if done.returncode != 0:
        raise UnsupportedFaultError(f"{program} cannot do it here: {done.stderr.strip()}")


def _refuse_by_nftables(node: Pod) -> None:
    """The Service leaves one map of kube-proxy's table and enters another, at which the filter chains look."""
    tables = []
    for family, vip in BY_FAMILY:
        services = [f"{vip} . {protocol} . 53" for protocol in PROTOCOLS]
        address_type = "ipv6_addr" if family == "ip6" else "ipv4_addr"
        elements = ", ".join(f"{service} : goto reject-chain" for service in services)
        tables.append(f"""
delete element {family} kube-proxy service-ips {{ {", ".join(services)} }}
table {family} kube-proxy {{
  map no-endpoint-services {{
    type {address_type} . inet_proto . inet_service : verdict
    elements = {{ {elements} }}
  }}
  chain reject-chain {{ reject; }}
  chain service-endpoints-check {{ {family} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
  chain filter-forward {{ type filter hook forward priority filter; ct state new jump service-endpoints-check; }}
  chain filter-output {{ type filter hook output priority filter; ct state new jump service-endpoints-check; }}
}}
""")
    node.run(["nft", "-f", "-"], stdin="".join(tables))


def _let_pass_by_nftables(node: Pod) -> None:
    lines = []
    for family, vip in BY_FAMILY:
        table = f"{family} kube-proxy"
        services = ", ".join(f"{vip} . {protocol} . 53 : goto service-dns" for protocol in PROTOCOLS)
        lines += [
            *(f"delete chain {table} {chain}" for chain in ("filter-forward", "filter-output")),
            f"delete chain {table} service-endpoints-check",
            f"delete map {table} no-endpoint-services",
            f"delete chain {table} reject-chain",
            f"add element {table} service-ips {{ {services} }}",
        ]
    node.run(["nft", "-f", "-"], stdin="\n".join([*lines, ""]))


def _empty_ipvs(node: Pod) -> None:
    """The virtual services stay, with nobody behind them."""
    _restore_ipvs(node, {VIP: [], VIP6: []})


def _fill_ipvs(node: Pod, lab: Lab) -> None:
    servers = lab.servers
    _restore_ipvs(node, {VIP: [one.address for one in servers], VIP6: [one.address6 for one in servers]})


def _restore_ipvs(node: Pod, services: dict[str, list[str]]) -> None:
    node.run(["ipvsadm", "--clear"])
    text = "".join(translation.ipvs_services(vip, servers) for vip, servers in services.items())
    node.run(["ipvsadm", "--restore"], stdin=text)
