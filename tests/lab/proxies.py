"""DNS proxies on the way to the server.

In the pod behind REDIRECT, as service meshes and Docker have them, and on the node behind TPROXY, as Cilium has it.
Each is a context manager over a built lab, and yields the proxies, which can be stopped and killed.
"""

from __future__ import annotations

import itertools
import select
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING

from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import PATIENCE, LabError, end, wait_until
from agent.lab.translation import VIP, VIP6
from tests.lab import forwarder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.lab.node import Lab
    from agent.lab.pods import Pod

READY_SECONDS = 20.0 * PATIENCE
MESH_PORT = 15053
MESH_MARK = 0x539
"""Of the proxy's own packets; Istio tells them by this mark, or by the user."""
DOCKER_ADDRESS = "127.0.0.11"
DOCKER_PORT = 41_953
NODE_PORT = 10_001
TO_PROXY, FROM_PROXY = 0x200, 0x300
ROUTES = 2004
"""The number of the routing table by which a packet with others' addresses gets to the proxy."""
TABLE = "dns-proxy"

Program = tuple[list[str], str]
"""A program that writes rules, and what it reads."""

_numbers = itertools.count(1)


@dataclass
class Proxy:
    """One proxy's program."""

    pod: Pod
    """In whose namespace it serves."""
    argv: Sequence[str]
    host: Pod
    """In whose namespace its process is."""
    process: Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it and return when it serves."""
        log = self.pod.directory / f"{self.pod.name}-forwarder-{next(_numbers)}.log"
        with log.open("w") as errors:
            self.process = self.host.popen(self.argv, stdout=PIPE, stderr=errors)
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        if not readable or self.process.stdout.readline() != forwarder.READY:
            raise LabError(f"the proxy of {self.pod.name} does not start: {log.read_text().strip()[-500:]}")

    def stop(self) -> None:
        """Suspend it: lookups queue up in its socket."""
        self._running.send_signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", f"the proxy of {self.pod.name} to stop")

    def resume(self) -> None:
        """Let it go on."""
        self._running.send_signal(signal.SIGCONT)
        wait_until(lambda: self._state() != "T", f"the proxy of {self.pod.name} to resume")

    def kill(self) -> None:
        """Kill it: its port is closed when this returns."""
        end(self._running)

    @property
    def _running(self) -> Popen[str]:
        if self.process is None:
            raise LabError(f"the proxy of {self.pod.name} was never started")
        return self.process

    def _state(self) -> str:
        stat = Path(f"/proc/{self._running.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]


@contextmanager
def stopped_proxy(proxy: Proxy) -> Iterator[None]:
    """Suspend a proxy, and replace it by a new one: what it was asked meanwhile it never asks."""
    proxy.stop()
    try:
        yield
    finally:
        proxy.kill()
        proxy.start()


@contextmanager
def no_proxy(proxy: Proxy) -> Iterator[None]:
    """Kill a proxy; the rules lead to its port all the same."""
    proxy.kill()
    try:
        yield
    finally:
        proxy.start()


@contextmanager
def mesh_proxies(lab: Lab, *options: str) -> Iterator[list[Proxy]]:
    """Have a proxy in each client's pod, to which the pod's own rules redirect all that is asked of port 53.

    Args:
        lab: Whose clients.
        options: Of `tests.lab.forwarder`, as to how it asks.

    Raises:
        UnsupportedFaultError: The kernel cannot redirect.
    """
    ends = [f"127.0.0.1:{MESH_PORT}", f"[::1]:{MESH_PORT}"]
    common = ["--ask", VIP, "--ask", VIP6, "--mark", str(MESH_MARK), *options]
    rules = mesh_rules(lab)
    with ExitStack() as stack:
        for client in lab.clients:
            stack.enter_context(_rules(client, rules))
        yield [stack.enter_context(_proxy(client, client, ends, common)) for client in lab.clients]


def mesh_rules(lab: Lab) -> list[Program]:
    """The redirection in a pod, by the lab's own tool: programs, and what each reads."""
    if lab.translator == "nftables":
        text = f"""
table inet {TABLE} {{
  chain output {{
    type nat hook output priority -100;
    meta mark {MESH_MARK} return
    meta l4proto {{ tcp, udp }} th dport 53 redirect to :{MESH_PORT}
  }}
}}
"""
        return [(["nft", "-f", "-"], text)]
    lines = [
        f"-A OUTPUT -m mark --mark {MESH_MARK} -j RETURN",
        *(f"-A OUTPUT -p {one} --dport 53 -j REDIRECT --to-ports {MESH_PORT}" for one in ("udp", "tcp")),
    ]
    text = "\n".join(["*nat", *lines, "COMMIT", ""])
    return [(_restore(lab, family), text) for family in ("ip", "ip6")]


@contextmanager
def docker_proxies(lab: Lab, *options: str) -> Iterator[list[Proxy]]:
    """Have a proxy at 127.0.0.11 in each client's pod, on another port, by a process of the node as Docker's is.

    Args:
        lab: Whose clients; its translator has to be a kind of iptables.
        options: Of `tests.lab.forwarder`, as to how it asks.

    Raises:
        UnsupportedFaultError: The kernel cannot translate so.
    """
    with ExitStack() as stack:
        for client in lab.clients:
            stack.enter_context(_rules(client, [(_restore(lab, "ip"), docker_rules())]))
        ends = [f"{DOCKER_ADDRESS}:{DOCKER_PORT}"]
        yield [
            stack.enter_context(_proxy(client, lab.node, ends, ["--ask", VIP, "--inside", client.name, *options]))
            for client in lab.clients
        ]


def docker_rules() -> str:
    """What dockerd writes into a container's nat table, in the format of iptables-restore."""
    there = [
        f"-A DOCKER_OUTPUT -d {DOCKER_ADDRESS}/32 -p {one} --dport 53 -j DNAT --to-destination "
        f"{DOCKER_ADDRESS}:{DOCKER_PORT}"
        for one in ("tcp", "udp")
    ]
    back = [
        f"-A DOCKER_POSTROUTING -s {DOCKER_ADDRESS}/32 -p {one} --sport {DOCKER_PORT} -j SNAT --to-source :53"
        for one in ("tcp", "udp")
    ]
    chains = [":DOCKER_OUTPUT - [0:0]", ":DOCKER_POSTROUTING - [0:0]"]
    jumps = [
        f"-A OUTPUT -d {DOCKER_ADDRESS}/32 -j DOCKER_OUTPUT",
        f"-A POSTROUTING -d {DOCKER_ADDRESS}/32 -j DOCKER_POSTROUTING",
    ]
    return "\n".join(["*nat", *chains, *jumps, *there, *back, "COMMIT", ""])


@contextmanager
def node_proxy(lab: Lab, source: forwarder.Source, *options: str) -> Iterator[list[Proxy]]:
    """Have one proxy on the node that gets what the clients ask by TPROXY, and asks whom they asked.

    Args:
        lab: Whose clients.
        source: From where it asks: the node's own address, the client's address, or the client's port too.
        options: Of `tests.lab.forwarder`.

    Raises:
        UnsupportedFaultError: The kernel has no TPROXY.
    """
    ends = [f"0.0.0.0:{NODE_PORT}", f"[::]:{NODE_PORT}"]
    common = ["--transparent", "--source", source, "--mark", str(FROM_PROXY), *options]
    with (
        _rules(lab.node, tproxy_rules(lab)),
        _local_routes(lab.node),
        _proxy(lab.node, lab.node, ends, common) as proxy,
    ):
        yield [proxy]


def tproxy_rules(lab: Lab) -> list[Program]:
    """What leads the clients' lookups to the proxy, and the replies of servers to it, by the lab's own tool.

    The way between client and proxy is not tracked, or what the proxy asks from the client's own port would be the same
    connection. What comes back on a connection of the proxy's is the proxy's, whatever the address. Without a proxy
    lookups are dropped: by TPROXY of iptables itself, by a rule of its own in nftables.
    """
    devices = [client.node_interface for client in lab.clients]
    if lab.translator == "nftables":
        return [(["nft", "-f", "-"], _tproxy_by_nft(devices))]
    return [(_restore(lab, family), _tproxy_by_iptables(devices)) for family in ("ip", "ip6")]


def _tproxy_by_nft(devices: Sequence[str]) -> str:
    clients = f"{{ {', '.join(devices)} }}"
    return f"""
table inet {TABLE} {{
  chain untracked-in {{
    type filter hook prerouting priority raw;
    iifname {clients} meta l4proto {{ tcp, udp }} th dport 53 notrack
  }}
  chain untracked-out {{
    type filter hook output priority raw;
    oifname {clients} meta l4proto {{ tcp, udp }} th sport 53 notrack
  }}
  chain to-proxy {{
    type filter hook prerouting priority mangle;
    iifname {clients} meta l4proto {{ tcp, udp }} th dport 53 tproxy to :{NODE_PORT} meta mark set {TO_PROXY} accept
    iifname {clients} meta l4proto {{ tcp, udp }} th dport 53 drop
    ct mark {FROM_PROXY} meta mark set {TO_PROXY}
  }}
  chain from-proxy {{
    type filter hook output priority mangle;
    meta mark {FROM_PROXY} ct mark set {FROM_PROXY}
  }}
}}
"""


def _tproxy_by_iptables(devices: Sequence[str]) -> str:
    each = [(device, protocol) for device in devices for protocol in ("udp", "tcp")]
    to_proxy = f"TPROXY --on-port {NODE_PORT} --tproxy-mark {TO_PROXY}"
    lines = [
        "*raw",
        *(f"-A PREROUTING -i {device} -p {protocol} --dport 53 -j CT --notrack" for device, protocol in each),
        *(f"-A OUTPUT -o {device} -p {protocol} --sport 53 -j CT --notrack" for device, protocol in each),
        "COMMIT",
        "*mangle",
        *(f"-A PREROUTING -i {device} -p {protocol} --dport 53 -j {to_proxy}" for device, protocol in each),
        f"-A PREROUTING -m connmark --mark {FROM_PROXY} -j MARK --set-mark {TO_PROXY}",
        f"-A OUTPUT -m mark --mark {FROM_PROXY} -j CONNMARK --save-mark",
        "COMMIT",
        "",
    ]
    return "\n".join(lines)


@contextmanager
def _local_routes(node: Pod) -> Iterator[None]:
    """Take marked packets in, whatever address they are for."""
    lines = [
        (family, [f"rule {{}} fwmark {TO_PROXY} lookup {ROUTES}", f"route {{}} local default dev lo table {ROUTES}"])
        for family in ("-4", "-6")
    ]
    for family, batch in lines:
        node.run(["ip", family, "-batch", "-"], stdin="".join(f"{line.format('add')}\n" for line in batch))
    try:
        yield
    finally:
        for family, batch in lines:
            node.run(
                ["ip", family, "-force", "-batch", "-"],
                stdin="".join(f"{line.format('del')}\n" for line in batch),
                check=False,
            )


def _restore(lab: Lab, family: str) -> list[str]:
    return [f"{lab.translator.replace('ip', family, 1)}-restore", "-w"]


@contextmanager
def _rules(pod: Pod, programs: Sequence[Program]) -> Iterator[None]:
    """Have these rules, in tables that nobody else uses in this namespace."""
    try:
        for argv, text in programs:
            done = pod.run(argv, stdin=text, check=False)
            if done.returncode != 0:
                raise UnsupportedFaultError(f"{argv[0]} cannot do it here: {done.stderr.strip()}")
        yield
    finally:
        for (program, *_), text in programs:
            for argv in _undo(program, text):
                pod.run(argv, check=False)
        pod.run(["conntrack", "--flush"], check=False)


def _undo(program: str, text: str) -> list[list[str]]:
    if program == "nft":
        return [["nft", "delete", "table", "inet", TABLE]]
    iptables = program.removesuffix("-restore")
    tables = [line[1:] for line in text.splitlines() if line.startswith("*")]
    return [[iptables, "-w", "-t", table, option] for table in tables for option in ("-F", "-X")]


@contextmanager
def _proxy(pod: Pod, host: Pod, ends: Sequence[str], options: Sequence[str]) -> Iterator[Proxy]:
    listen = [word for one in ends for word in ("--listen", one)]
    proxy = Proxy(pod, [sys.executable, "-m", forwarder.__name__, *listen, *options], host)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.kill()
