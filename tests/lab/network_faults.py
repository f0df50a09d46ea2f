"""Faults of the network itself: routes, neighbours, links, queues, and packets that are broken on purpose.

Like those of `faults`, each is a context manager that breaks a lab in one way and mends it. A link that was down loses
its routes, addresses and neighbours; `rewire` gives them back, and waits until packets pass again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal

from agent.lab import namespaces, wiring
from agent.lab.faults import UnsupportedFaultError
from agent.lab.processes import wait_until
from tests.lab.shapes import IFF_TUN_NO_PI, MAX_PACKET, TUNSETIFF

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from agent.lab.node import Lab
    from agent.lab.pods import Pod
    from agent.lab.wiring import Plug

RefusingRoute = Literal["blackhole", "unreachable", "prohibit"]

DEFAULT_V4, DEFAULT_V6 = "0.0.0.0/0", "::/0"
DUMMY, UPLINK = "dummy0", "uplink0"
NOBODY, NOBODY6 = "10.244.2.250", "fd00:10:244:2::fa"
"""In the server pods' network, and no one's."""
WRONG_MAC = "02:00:00:00:ff:ff"
ARP_IGNORE_ALL = "8"
DISCARD_PORT = 9
SLOWEST = "tbf rate 1kbit burst 1600 limit 1600"
"""Lets one full packet pass, keeps another for ten seconds, and then has no room."""
FILLERS = (1000, 1000, *(20 * (0,)))
"""Bytes of the datagrams that fill it: the last ones are smaller than any query."""

IPV4_HEADER, UDP_HEADER = 20, 8
IPV4_CHECKSUM, UDP_CHECKSUM = 10, 6
"""Offsets of the checksums in their headers."""
MORE_FRAGMENTS = 0x2000
IPV6_FRAGMENT = 44
"""Next header: a fragment header (RFC 8200 4.5)."""
IPV6_FRAGMENT_HEADER = "!BBHI"
TTL = 64
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
GIVEN_UP_AFTER_SECONDS = 5.0


# --- routes


@contextmanager
def replaced_routes(pod: Pod, gone: Sequence[str], added: Sequence[str] = ()) -> Iterator[None]:
    """Take routes away and put others in their place.

    Args:
        pod: Where.
        gone: Destinations whose route goes, as far as there is one.
        added: Routes in the words of `ip route add`.
    """
    saved = [f"{target} {line.partition(' ')[2]}" for target in gone for line in _routes_to(pod, target)]
    ip(pod, *(f"route del {one}" for one in saved))
    try:
        ip(pod, *(f"route add {one}" for one in added))
        yield
    finally:
        for one in added:
            pod.run(["ip", *_family(one), "route", "del", *one.split()], check=False)
        ip(pod, *(f"route replace {one}" for one in saved))


@contextmanager
def no_route(pod: Pod, address: str) -> Iterator[None]:
    """Leave a pod, or the node, without any route to an address: neither its own nor a default one."""
    with replaced_routes(pod, [address, _default(address)]):
        yield


@contextmanager
def no_default_route(pod: Pod, address: str) -> Iterator[None]:
    """Take the default route of an address's family away."""
    with replaced_routes(pod, [_default(address)]):
        yield


@contextmanager
def refusing_route(pod: Pod, address: str, kind: RefusingRoute) -> Iterator[None]:
    """Make the route to an address one that refuses packets."""
    with replaced_routes(pod, [address], [f"{kind} {address}"]):
        yield


@contextmanager
def way_by_dummy(pod: Pod, *addresses: str) -> Iterator[str]:
    """Send what goes to these addresses out of a dummy device, which has no other end; its name.

    Raises:
        UnsupportedFaultError: The kernel has no dummy devices.
    """
    ip(pod, f"link add {DUMMY} type dummy")
    try:
        with _way_by(pod, DUMMY, addresses):
            yield DUMMY
    finally:
        ip(pod, f"link del {DUMMY}")


@contextmanager
def way_by_uplink(pod: Pod, *addresses: str) -> Iterator[str]:
    """Send what goes to these addresses out of a tun device that nobody reads, as an uplink into a void; its name.

    Raises:
        UnsupportedFaultError: The kernel has no tun devices.
    """
    try:
        fd = namespaces.call_inside(pod.name, _open_uplink)
    except OSError as error:
        raise UnsupportedFaultError(f"no tun device: {error.strerror}") from error
    try:
        with _way_by(pod, UPLINK, addresses):
            yield UPLINK
        # What nobody reads would count as dropped when the device goes.
        with contextlib.suppress(BlockingIOError):
            while os.read(fd, MAX_PACKET):
                pass
    finally:
        os.close(fd)


def _open_uplink() -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", UPLINK.encode(), IFF_TUN_NO_PI))
    return fd


@contextmanager
def _way_by(pod: Pod, device: str, addresses: Sequence[str]) -> Iterator[None]:
    ip(pod, f"link set {device} up")
    with replaced_routes(pod, addresses, [f"{address} dev {device}" for address in addresses]):
        yield


@contextmanager
def not_forwarding(node: Pod) -> Iterator[None]:
    """Make the node a host: it passes nothing on."""
    with sysctls(node, {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}):
        yield


@contextmanager
def strict_source(pod: Pod, device: str, source: str, other_device: str) -> Iterator[None]:
    """Let a device refuse packets from a source to which the way goes by another device (RFC 3704)."""
    with (
        sysctls(pod, {f"net/ipv4/conf/{device}/rp_filter": "1"}),
        replaced_routes(pod, [source], [f"{source} dev {other_device}"]),
    ):
        yield


# --- neighbours


@contextmanager
def absent_next_hop(node: Pod, pod: Pod) -> Iterator[None]:
    """Lead the node's routes to a pod by a gateway that does not exist; ends when the kernel has given it up."""
    device = pod.node_interface
    ways = [f"{pod.address} via {NOBODY} dev {device} onlink", f"{pod.address6} via {NOBODY6} dev {device} onlink"]
    with replaced_routes(node, [pod.address, pod.address6], ways):
        try:
            yield
            _wait_until_given_up(node, device)
        finally:
            for nobody in (NOBODY, NOBODY6):
                node.run(["ip", "neigh", "del", nobody, "dev", device], check=False)


@contextmanager
def deaf_to_arp(node: Pod, pod: Pod) -> Iterator[None]:
    """Let a pod answer no ARP, and the node forget its address; ends when the kernel has given it up."""
    with (
        sysctls(pod, {f"net/ipv4/conf/{pod.interface}/arp_ignore": ARP_IGNORE_ALL}),
        neighbour(node, pod.address, pod.node_interface, None, until_given_up=True),
    ):
        yield


@contextmanager
def impatient_neighbours(node: Pod, device: str) -> Iterator[None]:
    """Let a neighbour be given up after one second instead of three."""
    with sysctls(node, {f"net/{family}/neigh/{device}/retrans_time_ms": "300" for family in ("ipv4", "ipv6")}):
        yield


@contextmanager
def narrow_neighbour_queue(node: Pod, device: str) -> Iterator[None]:
    """Let one packet at a time wait for a neighbour's address (unres_qlen_bytes); the kernel's own room is for 100."""
    with sysctls(node, {f"net/{family}/neigh/{device}/unres_qlen_bytes": "1" for family in ("ipv4", "ipv6")}):
        yield


@contextmanager
def neighbour(node: Pod, address: str, device: str, mac: str | None, *, until_given_up: bool = False) -> Iterator[None]:
    """Give a neighbour another link-layer address, or none.

    Args:
        node: Whose neighbour it is.
        address: Its IP address.
        device: Where it is.
        mac: Its new link-layer address; None lets the node ask for it.
        until_given_up: End only when the kernel has given up asking.
    """
    (known,) = _neighbours(node, device, address)
    ip(node, f"neigh del {address} dev {device}")
    try:
        if mac is not None:
            ip(node, f"neigh replace {address} lladdr {mac} nud permanent dev {device}")
        yield
        if until_given_up:
            _wait_until_given_up(node, device)
    finally:
        ip(node, f"neigh replace {address} lladdr {known['lladdr']} nud permanent dev {device}")


# --- links


@contextmanager
def pod_link_down(lab: Lab, pod: Pod) -> Iterator[None]:
    """Take a pod's own end of its link down: the node's end has no carrier."""
    device = pod.node_interface
    ip(pod, f"link set {pod.interface} down")
    try:
        wait_until(lambda: _operstate(lab.node, device) != "UP", f"{device} to lose its carrier")
        yield
    finally:
        rewire(lab, pod)


@contextmanager
def node_link_down(lab: Lab, pod: Pod) -> Iterator[None]:
    """Take the node's end of a pod's link down: its routes go with it."""
    ip(lab.node, f"link set {pod.node_interface} down")
    try:
        yield
    finally:
        rewire(lab, pod)


@contextmanager
def deleted_link(lab: Lab, pod: Pod) -> Iterator[None]:
    """Delete a pod's link, as a container network does when the pod is deleted."""
    ip(lab.node, f"link del {pod.node_interface}")
    try:
        yield
    finally:
        rewire(lab, pod)


def rewire(lab: Lab, pod: Pod) -> None:
    """Give a pod back what its link lost: the link itself, addresses, neighbours, routes."""
    plug = next(one for one in _plugs(lab) if one.netns == pod.name)
    # What is there already makes only that line fail.
    for at, batch in ((lab.node, wiring.node_links([plug], wiring.upstream(lab.id))), (pod, wiring.pod_links(plug))):
        at.run(["ip", "-force", "-batch", "-"], stdin=batch, check=False)
    wait_until(lambda: _passes(lab, pod), f"packets to pass to {pod.name}")


@contextmanager
def narrow_link(node: Pod, pod: Pod, mtu: int, learning: Sequence[Pod] = ()) -> Iterator[None]:
    """Let the node send only smaller packets to a pod.

    Args:
        node: The node.
        pod: At whose link.
        mtu: In bytes; IPv6 needs at least 1280.
        learning: Pods that hear of it by ICMP, and forget it in the end.
    """
    before = _link(node, pod.node_interface)["mtu"]
    ip(node, f"link set {pod.node_interface} mtu {mtu}")
    try:
        yield
    finally:
        ip(node, f"link set {pod.node_interface} mtu {before}")
        for one in learning:
            for family in ("-4", "-6"):
                one.run(["ip", family, "route", "flush", "cache"])


@contextmanager
def congested(node: Pod, pod: Pod, child: str = "") -> Iterator[None]:
    """Fill the queue of the node's device to a pod, so that nothing more has room.

    Args:
        node: The node.
        pod: At whose link.
        child: The queue inside the bucket, in the words of tc; its own of 1600 bytes by default.

    Raises:
        UnsupportedFaultError: The kernel lacks one of these queues.
    """
    device = pod.node_interface
    _tc(node, f"qdisc add dev {device} root handle 1: {SLOWEST}")
    try:
        if child:
            _tc(node, f"qdisc add dev {device} parent 1:1 handle 2: {child}")
        with namespaces.udp_socket(node.name, socket.AF_INET) as sock:
            for size in FILLERS:
                sock.sendto(bytes(size), (pod.address, DISCARD_PORT))
        wait_until(lambda: _queue_drops(node, device) > 0, f"the queue of {device} to overflow")
        yield
    finally:
        _tc(node, f"qdisc del dev {device} root")


@contextmanager
def drop_arriving(pod: Pod, device: str, match: str) -> Iterator[None]:
    """Drop what arrives at a pod's device and matches, in the words of nft, before it is delivered."""
    rule = f"iifname {device} {match} drop;"
    table = f"table inet drop-arriving {{ chain input {{ type filter hook input priority filter; {rule} }}; }}"
    pod.run(["nft", "-f", "-"], stdin=table + "\n")
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "inet", "drop-arriving"])


@contextmanager
def fragments_given_up_soon(*pods: Pod) -> Iterator[None]:
    """Let what waits for a fragment be given up after one second; the kernel's own patience is 30 and 60.

    Ends when nothing waits any more, so that the devices by which fragments came are still there.
    """
    patience = ("net/ipv4/ipfrag_time", "net/ipv6/ip6frag_time", "net/netfilter/nf_conntrack_frag6_timeout")
    with ExitStack() as stack:
        for pod in pods:
            stack.enter_context(sysctls(pod, dict.fromkeys(patience, "1")))
        yield
        for pod in pods:
            wait_until(lambda pod=pod: not _fragments_waiting(pod), "fragments to be given up")  # type: ignore[misc]


# --- packets made by hand


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram that no kernel would send; bytes of IP packets come out of it."""

    source: str
    sport: int
    target: str
    dport: int
    payload: bytes
    checksum_error: bool = False
    """Of UDP."""
    header_checksum_error: bool = False
    """Of IPv4."""
    missing_bytes: int = 0
    """How much longer UDP says it is than it is."""

    def packet(self) -> bytes:
        """The whole datagram in one packet."""
        return self._ip(self._udp())

    def fragments(self, step: int) -> list[bytes]:
        """The datagram in fragments of so many bytes, a multiple of 8."""
        datagram = self._udp()
        return [
            self._fragment(datagram[at : at + step], at, more=at + step < len(datagram))
            for at in range(0, len(datagram), step)
        ]

    @property
    def _version(self) -> int:
        return ip_address(self.source).version

    @property
    def _ends(self) -> bytes:
        return ip_address(self.source).packed + ip_address(self.target).packed

    @property
    def _identification(self) -> int:
        return int.from_bytes(self.payload[:2])

    def _udp(self) -> bytes:
        length = UDP_HEADER + len(self.payload) + self.missing_bytes
        header = struct.pack("!HHHH", self.sport, self.dport, length, 0)
        pseudo = self._ends + struct.pack("!IHBB", length, 0, 0, socket.IPPROTO_UDP)
        right = _checksum(pseudo + header + self.payload) or 0xFFFF
        checksum = (right ^ 0x5555 or 0x1111) if self.checksum_error else right
        return header[:UDP_CHECKSUM] + checksum.to_bytes(2) + self.payload

    def _fragment(self, data: bytes, at: int, *, more: bool) -> bytes:
        if self._version == 4:
            return self._ip(data, fragment=at // 8 | (MORE_FRAGMENTS if more else 0))
        header = struct.pack(IPV6_FRAGMENT_HEADER, socket.IPPROTO_UDP, 0, at | more, self._identification)
        return self._ip(header + data, protocol=IPV6_FRAGMENT)

    def _ip(self, data: bytes, *, protocol: int = socket.IPPROTO_UDP, fragment: int = 0) -> bytes:
        if self._version == 6:
            return struct.pack("!IHBB", 6 << 28, len(data), protocol, TTL) + self._ends + data
        length = IPV4_HEADER + len(data)
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, length, self._identification, fragment, TTL, protocol, 0)
        checksum = _checksum(fixed + self._ends) ^ (0x5555 if self.header_checksum_error else 0)
        return fixed[:IPV4_CHECKSUM] + checksum.to_bytes(2) + self._ends + data


def send_packets(pod: Pod, packets: Sequence[bytes]) -> None:
    """Send IP packets from a pod as they are, past its IP layer."""
    mac = bytes.fromhex(wiring.NODE_MAC.replace(":", ""))
    sock = namespaces.call_inside(pod.name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
    with sock:
        for packet in packets:
            sock.sendto(packet, (pod.interface, ETHERTYPES[packet[0] >> 4], 0, 0, mac))


def _checksum(raw: bytes) -> int:
    padded = raw + bytes(len(raw) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# --- what all of them use


@contextmanager
def sysctls(pod: Pod, values: Mapping[str, str]) -> Iterator[None]:
    """Set sysctls of a namespace while the block lasts.

    Raises:
        UnsupportedFaultError: The kernel lacks one of them.
    """

    def read() -> dict[str, str]:
        return {key: (namespaces.SYSCTLS / key).read_text().strip() for key in values}

    try:
        before = namespaces.call_inside(pod.name, read)
    except OSError as error:
        raise UnsupportedFaultError(f"no sysctl {error.filename}: {error.strerror}") from error
    namespaces.set_sysctls(pod.name, values)
    try:
        yield
    finally:
        namespaces.set_sysctls(pod.name, before)


def ip(pod: Pod, *commands: str) -> None:
    """Run these commands of ip in a pod, all in one go.

    Raises:
        UnsupportedFaultError: The kernel cannot do one of them.
    """
    done = pod.run(["ip", "-batch", "-"], check=False, stdin="".join(f"{one}\n" for one in commands))
    if done.returncode != 0:
        raise UnsupportedFaultError(f"{'; '.join(commands)}: {done.stderr.strip().splitlines()[0]}")


def _tc(pod: Pod, command: str) -> None:
    done = pod.run(["tc", *command.split()], check=False)
    if done.returncode != 0:
        raise UnsupportedFaultError(f"tc {command}: {done.stderr.strip()}")


def _json(pod: Pod, *command: str) -> list[dict[str, Any]]:
    """What ip or tc says; nothing instead of an error about what is not there."""
    said = pod.run(command, check=False).stdout
    return json.loads(said) if said.strip() else []


def _link(pod: Pod, device: str) -> dict[str, Any]:
    return _json(pod, "ip", "-json", "link", "show", "dev", device)[0]


def _operstate(pod: Pod, device: str) -> str:
    return str(_link(pod, device)["operstate"])


def _queue_drops(pod: Pod, device: str) -> int:
    return sum(int(one["drops"]) for one in _json(pod, "tc", "-json", "-statistics", "qdisc", "show", "dev", device))


def _neighbours(pod: Pod, device: str, address: str = "") -> list[dict[str, Any]]:
    wanted = ["to", address] if address else []
    return _json(pod, "ip", "-json", "neigh", "show", *wanted, "dev", device, "nud", "all")


def _wait_until_given_up(node: Pod, device: str) -> None:
    def waiting() -> bool:
        return any("INCOMPLETE" in one["state"] for one in _neighbours(node, device))

    wait_until(lambda: not waiting(), "the kernel to give a neighbour up", seconds=GIVEN_UP_AFTER_SECONDS)


def _fragments_waiting(pod: Pod) -> bool:
    shown = pod.run(["cat", "/proc/net/sockstat", "/proc/net/sockstat6"]).stdout
    return any(line.split()[2] != "0" for line in shown.splitlines() if line.startswith("FRAG"))


def _family(route: str) -> list[str]:
    return ["-6"] if ":" in route else ["-4"]


def _default(address: str) -> str:
    return DEFAULT_V6 if ":" in address else DEFAULT_V4


def _routes_to(pod: Pod, target: str) -> list[str]:
    shown = pod.run(["ip", *_family(target), "route", "show", "exact", target]).stdout
    return [line.strip() for line in shown.splitlines()]


def _plugs(lab: Lab) -> list[Plug]:
    clients = [wiring.client(lab.id, number) for number in range(1, len(lab.clients) + 1)]
    servers = [wiring.server(lab.id, number) for number in range(1, len(lab.servers) + 1)]
    return [*clients, *servers, wiring.upstream(lab.id)]


def _passes(lab: Lab, pod: Pod) -> bool:
    """Whether DNS passes between a pod and the others, in both families."""
    is_client = pod in lab.clients
    client, server = (pod, lab.servers[0]) if is_client else (lab.clients[0], pod)
    return all(client.gets_reply_from(address) for address in (server.address, server.address6))
