"""Ways of packets to a DNS server that veth pairs alone do not have: a tun device, VXLAN, VLAN tags, a local address.

Each is a context manager over a built lab. What this kernel cannot do is an UnsupportedFaultError with its own words.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dns.exception
import dns.message

from agent.lab import namespaces
from agent.lab.faults import UnsupportedFaultError
from tests.lab.scripted import PORT, Script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab.pods import Pod

TUN = "tun0"
TUN_ADDRESS = "10.99.0.1"
BEYOND = "10.99.0.53"
"""The server behind the tun device."""
VXLAN = "vxlan0"
VXLAN_ADDRESSES = "10.98.0.1", "10.98.0.2"
NODE_LOCAL = "169.254.20.10"
VLAN_ID = 5

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
MTU = 1500
IPV4_HEADER = 20
UDP_HEADER = 8
MORE_FRAGMENTS = 0x2000
ETH_P_ALL = 3
ETH_P_8021Q = 0x8100
ETH_P_IP = 0x0800
MAX_PACKET = 65535
POLL_SECONDS = 0.05


@dataclass
class TunServer:
    """A scripted server beyond a tun device: what it sends comes to the node from nowhere on this node."""

    fd: int
    lost_fragments: set[int] = field(default_factory=set)
    """Numbers of the fragments, from 0, that never arrive."""
    fragment_bytes: int = MTU - IPV4_HEADER
    """Bytes of a datagram that one fragment takes; a multiple of 8."""
    _script: Script = field(default_factory=Script)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        """Answer until stopped."""
        while not self._stopped.is_set():
            readable, _, _ = select.select([self.fd], [], [], POLL_SECONDS)
            if readable:
                for number, packet in enumerate(self._reply(os.read(self.fd, MAX_PACKET))):
                    if number not in self.lost_fragments:
                        os.write(self.fd, packet)

    def stop(self) -> None:
        """Let `work` return."""
        self._stopped.set()

    def _reply(self, packet: bytes) -> list[bytes]:
        if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_UDP:
            return []
        with contextlib.suppress(dns.exception.DNSException):
            message = self._script.reply(dns.message.from_wire(packet[IPV4_HEADER + UDP_HEADER :]), tcp=False)
            return udp_reply(packet, message, self.fragment_bytes) if message else []
        return []


def udp_reply(query: bytes, message: bytes, step: int) -> list[bytes]:
    """The IPv4 packets, of so many bytes of the datagram each, that answer a query packet without options."""
    source, destination = query[12:16], query[16:20]
    ports = struct.unpack_from("!HH", query, IPV4_HEADER)
    datagram = struct.pack("!HHHH", ports[1], ports[0], UDP_HEADER + len(message), 0) + message
    identification = int.from_bytes(message[:2])
    return [
        _ipv4(datagram[at : at + step], at // 8, destination + source, identification, more=at + step < len(datagram))
        for at in range(0, len(datagram), step)
    ]


def _ipv4(data: bytes, offset: int, ends: bytes, identification: int, *, more: bool) -> bytes:
    field_ = offset | (MORE_FRAGMENTS if more else 0)
    fixed = struct.pack(
        "!BBHHHBBH", 0x45, 0, IPV4_HEADER + len(data), identification, field_, 64, socket.IPPROTO_UDP, 0
    )
    header = bytearray(fixed + ends)
    header[10:12] = _checksum(header).to_bytes(2)
    return bytes(header) + data


def _checksum(content: bytes | bytearray) -> int:
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextmanager
def tun_server(node: Pod) -> Iterator[TunServer]:
    """Put a server at BEYOND, behind a tun device of this pod.

    Raises:
        UnsupportedFaultError: The kernel has no tun devices.
    """

    def create() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", TUN.encode(), IFF_TUN_NO_PI))
        return fd

    try:
        fd = namespaces.call_inside(node.name, create)
    except OSError as error:
        raise UnsupportedFaultError(f"no tun device: {error.strerror}") from error
    server = TunServer(fd)
    thread = threading.Thread(target=server.work)
    try:
        _ip(node, f"addr add {TUN_ADDRESS}/24 dev {TUN}", f"link set {TUN} up")
        thread.start()
        yield server
    finally:
        server.stop()
        if thread.is_alive():
            thread.join()
        os.close(fd)


@contextmanager
def vxlan(near: Pod, far: Pod, behind: Pod) -> Iterator[str]:
    """Connect two pods by VXLAN over their own network; the address of the far one, for clients behind the near one.

    Raises:
        UnsupportedFaultError: The kernel has no VXLAN.
    """
    ends = list(zip((near, far), (far, near), VXLAN_ADDRESSES, strict=True))
    try:
        for pod, peer, address in ends:
            tunnel = f"link add {VXLAN} type vxlan id 42 dstport 4789 local {pod.address} remote {peer.address}"
            _ip(pod, tunnel, f"addr add {address}/24 dev {VXLAN}", f"link set {VXLAN} up")
        _ip(far, f"route add {behind.address}/32 via {VXLAN_ADDRESSES[0]} dev {VXLAN}")
        yield VXLAN_ADDRESSES[1]
    finally:
        for pod, _, _ in ends:
            pod.run(["ip", "link", "del", VXLAN], check=False)


@contextmanager
def vlan_device(pod: Pod, node: Pod) -> Iterator[str]:
    """Connect a pod to the node by a tagged sub-interface on its link; the node's address there.

    Raises:
        UnsupportedFaultError: The kernel has no VLAN devices.
    """
    name, network = f"vlan{VLAN_ID}", "10.97.0"
    try:
        for at, parent, host in ((node, pod.node_interface, 1), (pod, pod.interface, 2)):
            device = f"link add link {parent} name {name} type vlan id {VLAN_ID}"
            _ip(at, device, f"addr add {network}.{host}/24 dev {name}", f"link set {name} up")
        yield f"{network}.1"
    finally:
        for at in (node, pod):
            at.run(["ip", "link", "del", name], check=False)


@contextmanager
def node_local_address(node: Pod) -> Iterator[str]:
    """Give the node the address of a node-local cache, untracked as NodeLocal DNSCache makes it."""
    there = f"ip daddr {NODE_LOCAL} meta l4proto {{ tcp, udp }} th dport {PORT} notrack"
    back = f"ip saddr {NODE_LOCAL} meta l4proto {{ tcp, udp }} th sport {PORT} notrack"
    rules = f"""
table ip node-local {{
  chain prerouting {{ type filter hook prerouting priority raw; {there}; }}
  chain output {{ type filter hook output priority raw; {there}; {back}; }}
}}
"""
    _ip(node, f"addr add {NODE_LOCAL}/32 dev lo")
    try:
        node.run(["nft", "-f", "-"], stdin=rules)
        yield NODE_LOCAL
    finally:
        node.run(["nft", "delete", "table", "ip", "node-local"], check=False)
        node.run(["ip", "addr", "del", f"{NODE_LOCAL}/32", "dev", "lo"], check=False)


def give_up_fragments_soon(pod: Pod) -> None:
    """Let what waits for a fragment be given up after one second; the kernel's own patience is 30 and 60."""
    namespaces.set_sysctls(pod.name, {"net/ipv4/ipfrag_time": "1", "net/ipv6/ip6frag_time": "1"})


@contextmanager
def lost_fragments(pod: Pod, offset_v4: int, offset_v6: int) -> Iterator[None]:
    """Drop the fragments that begin at these offsets (in units of 8 bytes) before the pod puts them together."""
    hook = "type filter hook prerouting priority -450;"
    rules = f"""
table ip lost-fragments {{ chain lose {{ {hook} ip frag-off & 0x1fff == {offset_v4} drop; }}; }}
table ip6 lost-fragments {{ chain lose {{ {hook} frag frag-off == {offset_v6} drop; }}; }}
"""
    pod.run(["nft", "-f", "-"], stdin=rules)
    try:
        yield
    finally:
        for family in ("ip", "ip6"):
            pod.run(["nft", "delete", "table", family, "lost-fragments"], check=False)


@dataclass(frozen=True)
class TaggedLink:
    """A pod's link, on which both ends can send frames with a VLAN tag, without any VLAN device."""

    pod: Pod
    node: Pod

    def send_query(self, message: bytes, port: int, server: str) -> None:
        """From the pod to the node."""
        self._send(self.pod, self.pod.interface, (self.pod.address, port), (server, PORT), message)

    def send_reply(self, message: bytes, port: int, server: str) -> None:
        """From the node to the pod."""
        self._send(self.node, self.pod.node_interface, (server, PORT), (self.pod.address, port), message)

    def _send(self, at: Pod, device: str, source: tuple[str, int], target: tuple[str, int], message: bytes) -> None:
        datagram = struct.pack("!HHHH", source[1], target[1], UDP_HEADER + len(message), 0) + message
        ends = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
        macs = bytes(12)
        tag = struct.pack("!HHH", ETH_P_8021Q, VLAN_ID, ETH_P_IP)
        frame = macs + tag + _ipv4(datagram, 0, ends, 1, more=False)
        kind = socket.SOCK_RAW
        sock = namespaces.call_inside(at.name, lambda: socket.socket(socket.AF_PACKET, kind, socket.htons(ETH_P_ALL)))
        with sock:
            sock.bind((device, 0))
            sock.send(frame)


def _ip(pod: Pod, *commands: str) -> None:
    """Run these commands of ip, all in one go."""
    done = pod.run(["ip", "-batch", "-"], check=False, stdin="".join(f"{one}\n" for one in commands))
    if done.returncode != 0:
        raise UnsupportedFaultError(done.stderr.strip().splitlines()[0])
