"""Data planes made of BPF programs: a CNI that translates and routes by tc programs, and one that translates sockets.

    with host_routing(lab):
        lab.clients[0].ask("redis-master.default.svc.cluster.local")

A child process (`python -m tests.lab.bpf_planes ORDER`) compiles, loads and attaches a program of `tests/lab/bpf` by
BPF links, and holds them: with it they are gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from agent.capture.cgroup import BPF_LINK_CREATE
from agent.kernel.compiler import KERNEL_SOURCE, bcc, source_directory
from agent.kernel.syscall import bpf
from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import PATIENCE, LabError, end
from agent.lab.translation import DNS_PORT, VIP, VIP6
from agent.lab.wiring import NODE_MAC
from tests.lab.programs import cgroup, inside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from agent.lab.node import Lab
    from agent.lab.pods import Pod

READY = "ready\n"
READY_SECONDS = 60.0 * PATIENCE
TCX_INGRESS = 46
SOCKET_PROGRAMS = {
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
}
"""With their enum bpf_attach_type."""
FIRST_IPV6_SERVER = 256


@contextmanager
def host_routing(lab: Lab) -> Iterator[None]:
    """Translate and deliver at the node's end of each veth pair, past the node's IP layer, as Cilium does.

    Raises:
        UnsupportedFaultError: The kernel has no tcx links (before 6.6) or no bpf_redirect_peer().
    """
    pods = [*lab.clients, *lab.servers, lab.upstream]
    order = {
        "program": "host_routing",
        "services": _services(lab),
        "devices": [pod.node_interface for pod in pods],
        "endpoints": [
            {
                "device": pod.node_interface,
                "addresses": [pod.address, pod.address6],
                "mac": mac_of(pod),
                "outside": pod is lab.upstream,
            }
            for pod in pods
        ],
    }
    with _attached(lab.node, order):
        yield


@contextmanager
def socket_translation(lab: Lab) -> Iterator[None]:
    """Translate what this process, and programs that it starts, name at their sockets; see `translated_cgroup`."""
    with translated_cgroup(lab) as directory, inside(directory):
        yield


@contextmanager
def translated_cgroup(lab: Lab) -> Iterator[Path]:
    """Translate what the sockets of a cgroup name as the Service.

    Yields:
        The cgroup.

    Raises:
        UnsupportedFaultError: The kernel has no such programs, or no cgroup v2 tree is mounted.
    """
    with cgroup(lab) as directory:
        order = {"program": "socket_translation", "services": _services(lab), "cgroup": str(directory)}
        with _attached(lab.node, order):
            yield directory


def mac_of(pod: Pod) -> str:
    """The link-layer address of a pod's device."""
    words = pod.run(["ip", "-o", "link", "show", pod.interface]).stdout.split()
    return words[words.index("link/ether") + 1]


def _services(lab: Lab) -> list[dict[str, Any]]:
    families = ((VIP, [one.address for one in lab.servers]), (VIP6, [one.address6 for one in lab.servers]))
    return [{"address": vip, "servers": servers, "port": lab.port} for vip, servers in families]


@contextmanager
def _attached(node: Pod, order: Mapping[str, Any]) -> Iterator[None]:
    log = node.directory / f"{order['program']}.log"
    with log.open("w") as errors:
        argv = [sys.executable, "-m", __name__, json.dumps(order)]
        process = node.popen(argv, stdout=PIPE, stderr=errors)
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], READY_SECONDS)
        if not readable or process.stdout.readline() != READY:
            raise UnsupportedFaultError(f"this kernel has no {order['program']}: {log.read_text().strip()[-500:]}")
        yield
    finally:
        end(process)


# --- the child


class _Loader:
    """Fills a program's maps and attaches it."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        os.environ[KERNEL_SOURCE] = str(source_directory() / "include")
        source = (Path(__file__).parent / "bpf" / f"{order['program']}.bpf.c").read_text()
        self._order = order
        self._bcc = bcc().BPF
        self._program = self._bcc(text=source, cflags=["-Wno-macro-redefined", "-Wno-duplicate-decl-specifier"])

    def attach(self) -> list[int]:
        """Do it; the descriptors of what holds it."""
        self._fill_services()
        if "devices" in self._order:
            return self._attach_to_devices()
        return self._attach_to_cgroup()

    def _attach_to_devices(self) -> list[int]:
        self._fill_endpoints()
        program = self._program.load_func("host_routing", self._bcc.SCHED_CLS).fd
        indexes = [socket.if_nametoindex(device) for device in self._order["devices"]]
        return [bpf(BPF_LINK_CREATE, program, index, TCX_INGRESS, 0) for index in indexes]

    def _attach_to_cgroup(self) -> list[int]:
        directory = os.open(self._order["cgroup"], os.O_RDONLY | os.O_DIRECTORY)
        links = []
        for name, attach_type in SOCKET_PROGRAMS.items():
            program = self._program.load_func(name, self._bcc.CGROUP_SOCK_ADDR, attach_type=attach_type).fd
            links.append(bpf(BPF_LINK_CREATE, program, directory, attach_type, 0))
        return links

    def _fill_services(self) -> None:
        services, servers = self._program["services"], self._program["servers"]
        for service in self._order["services"]:
            first = FIRST_IPV6_SERVER if ":" in service["address"] else 0
            for number, address in enumerate(service["servers"], first):
                self._put(servers, servers.Key(number), servers.Leaf, address, service["port"])
            key = services.Key()
            _set_end(key, service["address"], DNS_PORT)
            services[key] = services.Leaf(len(service["servers"]))

    @staticmethod
    def _put(table: Any, key: Any, leaf: Any, address: str, port: int) -> None:  # noqa: ANN401  BCC has no types
        value = leaf()
        _set_end(value, address, port)
        table[key] = value

    def _fill_endpoints(self) -> None:
        table = self._program["endpoints"]
        for endpoint in self._order["endpoints"]:
            leaf = table.Leaf()
            leaf.ifindex, leaf.outside = socket.if_nametoindex(endpoint["device"]), int(endpoint["outside"])
            leaf.macs[:] = list(_bytes(endpoint["mac"]) + _bytes(NODE_MAC))
            for address in endpoint["addresses"]:
                key = table.Key()
                key.words[:] = _words(address)
                table[key] = leaf


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _set_end(end_: Any, address: str, port: int) -> None:  # noqa: ANN401  BCC has no types
    words = end_.address.words if hasattr(end_, "address") else end_.words
    words[:] = _words(address)
    end_.port = socket.htons(port)


def _words(address: str) -> list[int]:
    """Four words as the kernel has them in memory; IPv4 in the last one, behind ::ffff."""
    packed = (
        socket.inet_pton(socket.AF_INET6, address)
        if ":" in address
        else bytes(10) + b"\xff\xff" + socket.inet_aton(address)
    )
    return [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, 16, 4)]


def main() -> None:
    """Be the child: attach, say so, and stay."""
    links = _Loader(json.loads(sys.argv[1])).attach()
    if not links:
        raise LabError("nothing to attach to")
    sys.stdout.write(READY)
    sys.stdout.flush()
    signal.pause()


if __name__ == "__main__":
    main()
