"""The rules by which a node translates the DNS Service's addresses to server pods, as kube-proxy writes them."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from agent.lab import namespaces
from agent.lab.processes import LabError, run

VIP = "10.96.0.10"
VIP6 = "fd00:10:96::a"
PROTOCOLS = ("udp", "tcp")
DNS_PORT = 53
"""The Service's own port; that of its server pods may be another one."""
MASQUERADE_MARK = "0x4000"

IPVS_DEVICE = "kube-ipvs0"
IPVS_SERVICES = Path("/proc/net/ip_vs")
"""Those of the namespace of who reads it; missing in all where the kernel has no IPVS."""
IPVS_SYSCTLS = {"net/ipv4/vs/conntrack": "1", "net/ipv4/vs/expire_nodest_conn": "1"}
"""What kube-proxy sets: IPVS's connections are in the connection table too, and end when their server is removed."""

Translation = Literal["iptables", "nftables", "ipvs"]
Translator = Literal["iptables-legacy", "iptables-nft", "nftables", "ipvs"]
Variant = Literal["legacy", "nft"]


class UnsupportedTranslationError(LabError):
    """This kernel cannot translate so."""


def install(
    translation: Translation, netns: str, servers: Sequence[tuple[str, str]], port: int = DNS_PORT
) -> Translator:
    """Install the rules in a namespace and return by what they were installed.

    Args:
        translation: The kube-proxy mode.
        netns: The node's namespace file.
        servers: IPv4 and IPv6 address of each server pod.
        port: Where the server pods listen.

    Raises:
        UnsupportedTranslationError: This kernel has no such mode.
        LabError: A program is missing.
    """
    v4, v6 = [server[0] for server in servers], [server[1] for server in servers]
    if translation == "nftables":
        run(_inside(netns, "nft", "-f", "-"), stdin=nftables_rules("ip", v4, port) + nftables_rules("ip6", v6, port))
        return "nftables"
    if translation == "ipvs":
        _install_ipvs(netns, v4, v6, port)
        return "ipvs"
    return _install_iptables(netns, iptables_rules(VIP, v4, port), iptables_rules(VIP6, v6, port))


def iptables_rules(vip: str, servers: Sequence[str], port: int = DNS_PORT) -> str:
    """Return kube-proxy's nat table for one family, in the format of iptables-restore."""
    endpoints = [f"KUBE-SEP-{number}" for number in range(1, len(servers) + 1)]
    chains = ["KUBE-SERVICES", "KUBE-SVC-DNS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", *endpoints]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        f"-A KUBE-MARK-MASQ -j MARK --set-xmark {MASQUERADE_MARK}/{MASQUERADE_MARK}",
        f"-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *(f"-A KUBE-SERVICES -d {vip} -p {protocol} --dport 53 -j KUBE-SVC-DNS" for protocol in PROTOCOLS),
        *_iptables_choice(endpoints),
        *(rule for pair in zip(endpoints, servers, strict=True) for rule in _iptables_endpoint(*pair, port)),
    ]
    return "\n".join(["*nat", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT", ""])


def nftables_rules(family: Literal["ip", "ip6"], servers: Sequence[str], port: int = DNS_PORT) -> str:
    """Return kube-proxy's table for one family, in the format of `nft -f`."""
    vip, address_type = (VIP, "ipv4_addr") if family == "ip" else (VIP6, "ipv6_addr")
    verdicts = ", ".join(f"{number} : goto endpoint-{number + 1}" for number in range(len(servers)))
    services = ", ".join(f"{vip} . {protocol} . 53 : goto service-dns" for protocol in PROTOCOLS)
    return f"""
table {family} kube-proxy {{
  chain mark-for-masquerade {{ meta mark set meta mark or {MASQUERADE_MARK}; }}
  chain masquerading {{
    meta mark & {MASQUERADE_MARK} == 0 return
    meta mark set meta mark xor {MASQUERADE_MARK}
    masquerade fully-random
  }}
{"".join(_nftables_endpoint(family, number, server, port) for number, server in enumerate(servers, 1))}
  chain service-dns {{ numgen random mod {len(servers)} vmap {{ {verdicts} }}; }}
  map service-ips {{
    type {address_type} . inet_proto . inet_service : verdict
    elements = {{ {services} }}
  }}
  chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"""


def ipvs_services(vip: str, servers: Sequence[str], port: int = DNS_PORT) -> str:
    """Return kube-proxy's virtual services for one family, in the format of `ipvsadm --restore`."""
    return "".join(
        f"-A {service} -s rr\n" + "".join(f"-a {service} -r {_with_port(server, port)} -m -w 1\n" for server in servers)
        for service in (f"{option} {_with_port(vip, DNS_PORT)}" for option in ("-u", "-t"))
    )


def ipvs_rules(vip: str, servers: Sequence[str], port: int = DNS_PORT) -> str:
    """Return the nat table that kube-proxy has beside IPVS for one family, in the format of iptables-restore.

    IPVS translates the destination only. The sender is the node for what the node sends, which has the VIP as its
    source because that is an address of the node, and for a server that reaches itself by the Service.
    """
    chains = ["KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        f"-A KUBE-MARK-MASQ -j MARK --set-xmark {MASQUERADE_MARK}/{MASQUERADE_MARK}",
        *(
            f"-A KUBE-POSTROUTING -s {server} -d {server} -p {protocol} --dport {port} -j MASQUERADE"
            for server in servers
            for protocol in PROTOCOLS
        ),
        f"-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        *(f"-A KUBE-SERVICES -s {vip} -p {protocol} --dport 53 -j KUBE-MARK-MASQ" for protocol in PROTOCOLS),
        *(f"-A KUBE-SERVICES -d {vip} -p {protocol} --dport 53 -j ACCEPT" for protocol in PROTOCOLS),
    ]
    return "\n".join(["*nat", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT", ""])


def _install_ipvs(netns: str, v4: Sequence[str], v6: Sequence[str], port: int) -> None:
    """Let the node have the VIPs as its own addresses, so that they get to IPVS, which takes them at INPUT."""
    if shutil.which("ipvsadm") is None:
        raise LabError("the lab needs the program ipvsadm for this mode: install the Debian package ipvsadm")
    services = ipvs_services(VIP, v4, port) + ipvs_services(VIP6, v6, port)
    done = run(_inside(netns, "ipvsadm", "--restore"), stdin=services, check=False)
    if not IPVS_SERVICES.exists():
        raise UnsupportedTranslationError(f"this kernel has no IPVS: there is no {IPVS_SERVICES}")
    if done.returncode != 0:
        raise LabError(f"`ipvsadm --restore` failed with {done.returncode}: {done.stderr.strip()}")
    namespaces.set_sysctls(Path(netns).name, IPVS_SYSCTLS)
    lines = [
        f"link add {IPVS_DEVICE} type dummy",
        f"addr add {VIP}/32 dev {IPVS_DEVICE}",
        f"addr add {VIP6}/128 dev {IPVS_DEVICE} nodad",
    ]
    run(_inside(netns, "ip", "-batch", "-"), stdin="".join(f"{line}\n" for line in lines))
    _install_iptables(netns, ipvs_rules(VIP, v4, port), ipvs_rules(VIP6, v6, port))


def _install_iptables(netns: str, rules: str, rules6: str) -> Translator:
    """Prefer the legacy kernel tables: their drops look different from nftables', which the other mode covers."""
    if _restored(netns, "legacy", rules, rules6):
        return "iptables-legacy"
    if _restored(netns, "nft", rules, rules6):
        return "iptables-nft"
    raise LabError("neither iptables-legacy nor iptables-nft works here: install the Debian package iptables")


def _restored(netns: str, variant: Variant, rules: str, rules6: str) -> bool:
    return all(
        shutil.which(program) is not None and run(_inside(netns, program), stdin=text, check=False).returncode == 0
        for program, text in ((f"iptables-{variant}-restore", rules), (f"ip6tables-{variant}-restore", rules6))
    )


def _iptables_choice(endpoints: Sequence[str]) -> Iterator[str]:
    """Yield the jump to each endpoint: 1/n of all packets, 1/(n-1) of the rest, ..., what is left."""
    for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        share = "" if left == 1 else f"-m statistic --mode random --probability {1 / left:.11f} "
        yield f"-A KUBE-SVC-DNS {share}-j {endpoint}"


def _iptables_endpoint(chain: str, server: str, port: int) -> Iterator[str]:
    """Yield an endpoint's rules; a server that reaches itself by the Service must see the node as the sender."""
    yield f"-A {chain} -s {server} -j KUBE-MARK-MASQ"
    for protocol in PROTOCOLS:
        yield f"-A {chain} -p {protocol} -j DNAT --to-destination {_with_port(server, port)}"


def _nftables_endpoint(family: str, number: int, server: str, port: int) -> str:
    return f"""
  chain endpoint-{number} {{
    {family} saddr {server} jump mark-for-masquerade
    meta l4proto {{ tcp, udp }} dnat to {_with_port(server, port)}
  }}
"""


def _with_port(server: str, port: int) -> str:
    return f"[{server}]:{port}" if ":" in server else f"{server}:{port}"


def _inside(netns: str, *argv: str) -> list[str]:
    return ["nsenter", f"--net={netns}", *argv]
