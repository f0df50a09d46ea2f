"""Routes, neighbours, links, queues, tunnels, and packets that are broken themselves."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import NamedTuple, TypedDict, Unpack

import dns.message

from agent.lab import VIP, VIP6, Lab, Pod, wait_until, wiring
from tests.lab.network_faults import (
    DUMMY,
    UPLINK,
    WRONG_MAC,
    Datagram,
    RefusingRoute,
    absent_next_hop,
    congested,
    deaf_to_arp,
    deleted_link,
    drop_arriving,
    fragments_given_up_soon,
    impatient_neighbours,
    narrow_link,
    narrow_neighbour_queue,
    neighbour,
    no_default_route,
    no_route,
    node_link_down,
    not_forwarding,
    pod_link_down,
    refusing_route,
    send_packets,
    strict_source,
    way_by_dummy,
    way_by_uplink,
)
from tests.lab.scripted import reply_of_size, scripted
from tests.lab.shapes import BEYOND, TUN, VXLAN, VXLAN_ADDRESSES, lost_fragments, tun_server, vxlan
from tests.verdicts.case import Case, Hop, Injection, LabKind, Lost, kernel_release, nothing_to_set_up
from tests.verdicts.lookups import sent_datagrams

PORT = 53
SECONDS = 0.3
MULTICAST = "224.0.0.9"
BIG, ABOVE_SMALL_MTU, SMALL_MTU = 3000, 1400, 1280
FRAGMENT_BYTES_V4, FRAGMENT_BYTES_V6 = 1480, 1448
"""What a fragment takes of a datagram on a link of 1500 bytes."""
TXT = "TXT"
VXLAN_PORT = 4789
UNSTEADY = LabKind(note="links come and go")
"""Their addresses do too, and a lookup that is judged meanwhile may not find its server's."""


class Family(NamedTuple):
    """IPv4 or IPv6."""

    name: str
    vip: str
    fragment_bytes: int
    socket_family: socket.AddressFamily

    def of(self, pod: Pod) -> str:
        """A pod's address."""
        return pod.address if self.socket_family == socket.AF_INET else pod.address6


V4 = Family("IPv4", VIP, FRAGMENT_BYTES_V4, socket.AF_INET)
V6 = Family("IPv6", VIP6, FRAGMENT_BYTES_V6, socket.AF_INET6)

Break = Callable[[Lab, Family], AbstractContextManager[object]]
Look = Callable[[Injection, Family], list[Lost]]
Damage = Callable[[Datagram], Datagram]
Target = Callable[[Lab, Family], str]


# --- who is where


def client(lab: Lab) -> Pod:
    return lab.clients[0]


def server(lab: Lab) -> Pod:
    return lab.servers[0]


def node(lab: Lab) -> Pod:
    return lab.node


def vip(_lab: Lab, family: Family) -> str:
    return family.vip


def pod_address(lab: Lab, family: Family) -> str:
    return family.of(server(lab))


def at_node_from_client(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, client(lab).node_interface)


def at_node_from_server(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, server(lab).node_interface)


at_node_to_client, at_node_to_server = at_node_from_client, at_node_from_server
"""The same devices, seen from the other side."""


def at_node(lab: Lab) -> Hop:
    """At whatever device: there may be none yet, and IPv6 blames the way out of a big packet where IPv4 blames its way
    in.
    """
    return Hop("drop", lab.node.netns_id)


def at_server(lab: Lab) -> Hop:
    return Hop("drop", server(lab).netns_id, "eth0")


def at_client(lab: Lab) -> Hop:
    return Hop("drop", client(lab).netns_id, "eth0")


def at_upstream(lab: Lab) -> Hop:
    return Hop("drop", lab.upstream.netns_id, "eth0")


def taken_in_by_server(lab: Lab) -> Hop:
    return Hop("rx", server(lab).netns_id, "eth0")


def leaving_by(device: str) -> Callable[[Lab], Hop]:
    return lambda lab: Hop("tx", lab.node.netns_id, device)


# --- how lookups are made


def asks(
    word: str = "",
    rdtype: str = "A",
    *,
    who: Callable[[Lab], Pod] = client,
    to: Target = vip,
    hops: int | None = None,
) -> Look:
    """One query over UDP; the lookup, if it was not answered.

    Args:
        word: What a scripted server is to do.
        rdtype: The type.
        who: The client.
        to: Whom it asks.
        hops: How far the query may go: TTL, or hop limit.
    """

    def look(injection: Injection, family: Family) -> list[Lost]:
        name = f"{word}.{injection.name}" if word else injection.name
        pod, address = who(injection.lab), to(injection.lab, family)
        with contextlib.ExitStack() as stack:
            sock = None
            if hops is not None:
                sock = stack.enter_context(pod.udp_socket(address))
                sock.setsockopt(*HOPS_OPTION[family.name], hops)
            reply = pod.ask(name, rdtype, address, seconds=SECONDS, sock=sock)
        return [] if reply else [name]

    return look


HOPS_OPTION = {
    V4.name: (socket.IPPROTO_IP, socket.IP_TTL),
    V6.name: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}


def asks_twice(injection: Injection, family: Family) -> list[Lost]:
    """Two lookups, one after the other."""
    pod, names = client(injection.lab), injection.names(2)
    return [name for name in names if pod.ask(name, server=family.vip, seconds=SECONDS) is None]


def sends(damage: Damage, to: Target) -> Look:
    """One query in a damaged packet; the lookup, if it was not answered."""

    def look(injection: Injection, family: Family) -> list[Lost]:
        pod, address = client(injection.lab), to(injection.lab, family)
        with pod.udp_socket(address) as sock:
            query = dns.message.make_query(injection.name, "A").to_wire()
            whole = Datagram(family.of(pod), sock.getsockname()[1], address, PORT, query)
            send_packets(pod, [damage(whole).packet()])
            return [] if hears(sock) else [injection.name]

    return look


def replies_without_a_fragment(injection: Injection, family: Family) -> list[Lost]:
    """The server's reply leaves it in fragments, of which the second is not among them."""
    pod, backend = client(injection.lab), server(injection.lab)
    name = f"silent.{injection.name}"
    query = dns.message.make_query(name, TXT)
    with pod.udp_socket(family.of(backend)) as sock:
        sock.send(query.to_wire())
        port = sock.getsockname()[1]
        reply = Datagram(family.of(backend), PORT, family.of(pod), port, reply_of_size(query, BIG))
        first, _, *rest = reply.fragments(family.fragment_bytes)
        send_packets(backend, [first, *rest])
        return [] if hears(sock) else [name]


def breaks_before_the_reply(breaks: Break) -> Look:
    """Something breaks while the server has the query, and the server replies then."""

    def look(injection: Injection, family: Family) -> list[Lost]:
        lab, backend = injection.lab, injection.lab.servers[0]
        with client(lab).udp_socket(family.vip) as sock:
            backend.stop()
            try:
                sock.send(dns.message.make_query(injection.name, "A").to_wire())
                with breaks(lab, family):
                    before = sent_datagrams(backend, ipv6=family is V6)
                    backend.resume()
                    wait_until(lambda: sent_datagrams(backend, ipv6=family is V6) > before, "the server to reply")
            finally:
                backend.resume()
            return [] if hears(sock) else [injection.name]

    return look


def hears(sock: socket.socket) -> bool:
    """Whether a reply comes."""
    sock.settimeout(SECONDS)
    with contextlib.suppress(OSError):
        return bool(sock.recv(65535))
    return False


# --- rows


def during(breaks: Break, look: Look) -> Look:
    """Break the lab for this injection alone."""

    def inside(injection: Injection, family: Family) -> list[Lost]:
        with breaks(injection.lab, family):
            return look(injection, family)

    return inside


class Expected(TypedDict, total=False):
    """The fields of a case that say what else must be there."""

    confidence: str | None
    says: tuple[str, ...]
    status: str
    last_hop: Callable[[Lab], Hop]
    lab: LabKind
    slow: bool
    limit: str
    also: frozenset[str]


def row(
    fault: str,
    code: str | None,
    look: Look,
    *,
    family: Family = V4,
    setup: Break | None = None,
    **expected: Unpack[Expected],
) -> Case:
    """One case in one family."""
    return Case(
        fault=f"{fault}, {family.name}",
        code=code,
        inject=lambda injection: look(injection, family),
        setup=(lambda lab: setup(lab, family)) if setup else nothing_to_set_up,
        **expected,
    )


def both(
    fault: str, code: str | None, look: Look, *, setup: Break | None = None, **expected: Unpack[Expected]
) -> tuple[Case, ...]:
    """The case in both families."""
    return tuple(row(fault, code, look, family=family, setup=setup, **expected) for family in (V4, V6))


# --- routes


def refusing(kind: RefusingRoute) -> Break:
    return lambda lab, family: refusing_route(lab.node, family.of(server(lab)), kind)


def deleted(pod: Callable[[Lab], Pod]) -> Break:
    @contextmanager
    def breaks(lab: Lab, family: Family) -> Iterator[None]:
        with no_default_route(lab.node, family.vip), deleted_link(lab, pod(lab)):
            yield

    return breaks


@contextmanager
def server_unplugged_at_node(lab: Lab, family: Family) -> Iterator[None]:
    with no_default_route(lab.node, family.of(server(lab))), node_link_down(lab, server(lab)):
        yield


ROUTES: tuple[Case, ...] = (
    *both(
        "no route from the node to the server",
        "NoRoute",
        during(lambda lab, family: no_route(lab.node, family.of(server(lab))), asks()),
        last_hop=at_node_from_client,
    ),
    *(
        case
        for kind in ("blackhole", "unreachable", "prohibit")
        for case in both(
            f"{kind} route from the node to the server",
            "NoRoute",
            during(refusing(kind), asks()),
            last_hop=at_node_from_client,
        )
    ),
    *both(
        "no route from the node back to the client",
        "NoRoute",
        during(lambda lab, family: no_route(lab.node, family.of(client(lab))), asks()),
        last_hop=at_node_from_server,
    ),
    *both(
        "server pod deleted",
        "NoRoute",
        during(deleted(server), asks()),
        lab=UNSTEADY,
        last_hop=at_node_from_client,
    ),
    *both(
        "client pod deleted before the reply",
        "NoRoute",
        breaks_before_the_reply(deleted(client)),
        lab=UNSTEADY,
        last_hop=at_node_from_server,
    ),
    *both(
        "node's end of the server's link down: its route is gone",
        "NoRoute",
        during(server_unplugged_at_node, asks()),
        lab=UNSTEADY,
        last_hop=at_node_from_client,
    ),
    *both(
        "the node does not forward",
        "NoRoute",
        during(lambda lab, _family: not_forwarding(lab.node), asks()),
        last_hop=at_node_from_client,
    ),
    *(
        case
        for kind in ("blackhole", "unreachable")
        for case in both(
            f"{kind} route to the server, client on the node",
            "NoRoute",
            during(refusing(kind), asks(who=node)),
            last_hop=at_node,
            also=frozenset({"PolicyDrop"}),
            limit="the kernel finds no way for the translated query inside the hook, and drops it as a rule would",
        )
    ),
    *both(
        "no route back in the server pod: it cannot send",
        "ServerNoReply",
        during(lambda lab, family: no_route(server(lab), family.of(client(lab))), asks()),
        last_hop=taken_in_by_server,
    ),
)


# --- neighbours


def impatient(lab: Lab) -> AbstractContextManager[object]:
    return impatient_neighbours(lab.node, server(lab).node_interface)


def nobody_there(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    return absent_next_hop(lab.node, server(lab))


@contextmanager
def nobody_there_soon_given_up(lab: Lab, _family: Family) -> Iterator[None]:
    with impatient(lab), absent_next_hop(lab.node, server(lab)):
        yield


@contextmanager
def nobody_there_and_no_room(lab: Lab, family: Family) -> Iterator[None]:
    with narrow_neighbour_queue(lab.node, server(lab).node_interface), nobody_there_soon_given_up(lab, family):
        yield


@contextmanager
def server_deaf_to_arp(lab: Lab, _family: Family) -> Iterator[None]:
    with impatient(lab), deaf_to_arp(lab.node, server(lab)):
        yield


def wrong_mac(lab: Lab, family: Family) -> AbstractContextManager[object]:
    backend = server(lab)
    return neighbour(lab.node, family.of(backend), backend.node_interface, WRONG_MAC)


NEIGHBOURS: tuple[Case, ...] = (
    *both(
        "the next hop to the server does not exist",
        "NeighbourFailure",
        asks(),
        setup=nobody_there,
        last_hop=at_node_to_server,
        slow=True,
    ),
    *both(
        "the next hop to the server does not exist, client on the node",
        "NeighbourFailure",
        asks(who=node),
        setup=nobody_there_soon_given_up,
        last_hop=at_node_to_server,
    ),
    row(
        "the server's pod answers no ARP",
        "NeighbourFailure",
        asks(),
        setup=server_deaf_to_arp,
        last_hop=at_node_to_server,
    ),
    *both(
        "more queries than may wait for the next hop",
        "NeighbourFailure",
        asks_twice,
        setup=nobody_there_and_no_room,
        last_hop=at_node_to_server,
    ),
    *both(
        "wrong MAC address of the server",
        "NeighbourFailure",
        during(wrong_mac, asks()),
        last_hop=at_server,
        says=("OTHERHOST",),
    ),
)


# --- links


@contextmanager
def server_down_and_forgotten(lab: Lab, family: Family) -> Iterator[None]:
    backend = server(lab)
    with (
        pod_link_down(lab, backend),
        impatient(lab),
        neighbour(lab.node, family.of(backend), backend.node_interface, None, until_given_up=True),
    ):
        yield


LINKS: tuple[Case, ...] = (
    *both(
        "the server's eth0 down, its MAC address known",
        "InterfaceDown",
        during(lambda lab, _family: pod_link_down(lab, server(lab)), asks()),
        lab=UNSTEADY,
        last_hop=at_node_to_server,
    ),
    *both(
        "the client's eth0 down before the reply",
        "InterfaceDown",
        breaks_before_the_reply(lambda lab, _family: pod_link_down(lab, client(lab))),
        lab=UNSTEADY,
        last_hop=at_node_to_client,
    ),
    *both(
        "the server's eth0 down, its MAC address not known",
        "NeighbourFailure",
        asks(),
        setup=server_down_and_forgotten,
        lab=UNSTEADY,
        last_hop=at_node_to_server,
    ),
)


# --- sources


def strict_at_node(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    first, second = lab.clients[:2]
    return strict_source(lab.node, first.node_interface, first.address, second.node_interface)


def strict_in_pod(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    return strict_source(server(lab), "eth0", client(lab).address, "lo")


SOURCE_CONFIDENCE = "high" if kernel_release() >= (6, 13) else "medium"
"""Before, ip_route_input_slow() has no drop reason, which leaves other kinds of refusal."""


def from_source(source: str) -> Damage:
    return lambda whole: replace(whole, source=source)


SOURCES: tuple[Case, ...] = (
    row(
        "rp_filter of the node's device, the way back is another",
        "ReversePathFilter",
        during(strict_at_node, asks()),
        last_hop=at_node_from_client,
    ),
    row(
        "rp_filter in the server pod, the way back is another",
        "ReversePathFilter",
        during(strict_in_pod, asks()),
        last_hop=at_server,
    ),
    row(
        "the query's source is the node's own address",
        "ReversePathFilter",
        sends(from_source(wiring.NODE_ADDRESS), vip),
        confidence=SOURCE_CONFIDENCE,
        last_hop=at_node_from_client,
    ),
    row(
        "the query's source is a multicast address",
        "ReversePathFilter",
        sends(from_source(MULTICAST), vip),
        confidence=SOURCE_CONFIDENCE,
        last_hop=at_node_from_client,
    ),
)


# --- checksums, lengths, hops


def wrong_checksum(whole: Datagram) -> Datagram:
    return replace(whole, checksum_error=True)


def wrong_header_checksum(whole: Datagram) -> Datagram:
    return replace(whole, header_checksum_error=True)


def cut_short(whole: Datagram) -> Datagram:
    return replace(whole, missing_bytes=20)


def no_default_at_node(lab: Lab, family: Family) -> AbstractContextManager[object]:
    return no_default_route(lab.node, family.vip)


PACKETS: tuple[Case, ...] = (
    *both(
        "wrong UDP checksum, to the server pod's address",
        "ChecksumError",
        sends(wrong_checksum, pod_address),
        last_hop=at_server,
    ),
    *both(
        "wrong UDP checksum, to the Service's address, no default route",
        "ChecksumError",
        during(no_default_at_node, sends(wrong_checksum, vip)),
        confidence="medium",
        says=("invalid +1", "not translated"),
        last_hop=at_node_from_client,
    ),
    *both(
        "wrong UDP checksum, to the Service's address, out by the default route",
        "ChecksumError",
        sends(wrong_checksum, vip),
        confidence="medium",
        says=("invalid +1", "not translated"),
        last_hop=at_upstream,
    ),
    row(
        "wrong IP header checksum",
        "ChecksumError",
        sends(wrong_header_checksum, vip),
        last_hop=at_node_from_client,
    ),
    *both(
        "shorter than UDP says, to the server pod's address",
        "KernelDrop",
        sends(cut_short, pod_address),
        last_hop=at_server,
        says=("shorter than its own header says",),
    ),
    *both(
        "TTL or hop limit 1",
        "KernelDrop",
        asks(hops=1),
        last_hop=at_node_from_client,
        says=("time to live",),
    ),
)


# --- fragments and sizes


@contextmanager
def silent_and_impatient(lab: Lab, _family: Family) -> Iterator[None]:
    with scripted(server(lab)), fragments_given_up_soon(lab.node):
        yield


@contextmanager
def reply_fragment_dropped_in_client(lab: Lab, _family: Family) -> Iterator[None]:
    with lost_fragments(client(lab), FRAGMENT_BYTES_V4 // 8, FRAGMENT_BYTES_V6 // 8):
        yield


@contextmanager
def big_replies_and_impatient_client(lab: Lab, _family: Family) -> Iterator[None]:
    with scripted(server(lab)), fragments_given_up_soon(client(lab)):
        yield


@contextmanager
def beyond_tun_without_second_fragment(lab: Lab, _family: Family) -> Iterator[None]:
    with tun_server(lab.node) as far, fragments_given_up_soon(lab.node):
        far.lost_fragments = {1}
        yield


def small_mtu(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    return narrow_link(lab.node, client(lab), SMALL_MTU, learning=lab.servers)


FRAGMENTS: tuple[Case, ...] = (
    *both(
        "a fragment of the reply never came",
        "FragmentLost",
        replies_without_a_fragment,
        setup=silent_and_impatient,
        last_hop=at_node_from_server,
    ),
    row(
        "a fragment of the reply never came from beyond the node",
        "FragmentLost",
        asks(f"size-{BIG}", TXT, to=lambda _lab, _family: BEYOND),
        setup=beyond_tun_without_second_fragment,
        last_hop=lambda lab: Hop("drop", lab.node.netns_id, TUN),
    ),
    *both(
        "a rule in the client pod drops a fragment of the reply",
        "PolicyDrop",
        during(reply_fragment_dropped_in_client, asks(f"size-{BIG}", TXT)),
        setup=big_replies_and_impatient_client,
        last_hop=at_client,
    ),
    *both(
        "the reply is bigger than the MTU on its way, and may not be fragmented",
        "KernelDrop",
        during(small_mtu, asks(f"size-{ABOVE_SMALL_MTU}", TXT)),
        setup=lambda lab, _family: scripted(server(lab)),
        last_hop=at_node,
        says=("MTU",),
    ),
)


# --- queues


def full_to_server(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    return congested(lab.node, server(lab))


def full_to_client(lab: Lab, _family: Family) -> AbstractContextManager[object]:
    return congested(lab.node, client(lab), "pfifo limit 1")


QUEUES: tuple[Case, ...] = (
    *both(
        "token bucket to the server full, query",
        "QueueOverflow",
        during(full_to_server, asks()),
        last_hop=at_node_to_server,
    ),
    *both(
        "queue to the client full, reply",
        "QueueOverflow",
        during(full_to_client, asks()),
        last_hop=at_node_to_client,
    ),
)


# --- beyond the node, and through tunnels


@contextmanager
def overlay(lab: Lab, _family: Family) -> Iterator[None]:
    far = lab.upstream
    with vxlan(lab.node, far, client(lab)) as address, scripted(far, address):
        wait_until(lambda: client(lab).gets_reply_from(address), "the overlay to carry queries")
        yield


VXLAN_ADDRESS = VXLAN_ADDRESSES[1]


def far_address(_lab: Lab, _family: Family) -> str:
    return VXLAN_ADDRESS


def answered_through_overlay(injection: Injection, _family: Family) -> Sequence[Lost]:
    reply = client(injection.lab).ask(injection.name, server=VXLAN_ADDRESS)
    return [injection.name] if reply else []


OVERLAY: tuple[Case, ...] = (
    row(
        "a rule behind a VXLAN tunnel drops the query",
        "PolicyDrop",
        during(lambda lab, _family: drop_arriving(lab.upstream, VXLAN, "udp dport 53"), asks(to=far_address)),
        setup=overlay,
        says=("INPUT", VXLAN),
        last_hop=lambda lab: Hop("drop", lab.upstream.netns_id, VXLAN),
    ),
    row(
        "a rule at the end of a VXLAN tunnel drops the tunnel's packets",
        "PolicyDrop",
        during(
            lambda lab, _family: drop_arriving(lab.upstream, "eth0", f"udp dport {VXLAN_PORT}"), asks(to=far_address)
        ),
        setup=overlay,
        last_hop=leaving_by(VXLAN),
        also=frozenset({"LeftNode", "Unknown"}),
        limit="packets of a tunnel are not looked into",
    ),
    row("benign: a lookup through VXLAN", None, answered_through_overlay, setup=overlay, status="Succeeded"),
)

BEYOND_NODE: tuple[Case, ...] = (
    *both(
        "the way to the server leaves by a dummy device",
        "LeftNode",
        during(lambda lab, family: way_by_dummy(lab.node, family.of(server(lab))), asks()),
        confidence="medium",
        last_hop=leaving_by(DUMMY),
        says=(DUMMY,),
    ),
    *both(
        "the way to the server leaves by an uplink into a void",
        "LeftNode",
        during(lambda lab, family: way_by_uplink(lab.node, family.of(server(lab))), asks()),
        confidence="medium",
        last_hop=leaving_by(UPLINK),
        says=(UPLINK,),
    ),
    row(
        "a server beyond the node is silent",
        "LeftNode",
        asks("silent", to=lambda _lab, _family: BEYOND),
        setup=lambda lab, _family: tun_server(lab.node),
        confidence="medium",
        last_hop=leaving_by(TUN),
        says=(TUN,),
    ),
)

CASES: tuple[Case, ...] = (
    *ROUTES,
    *NEIGHBOURS,
    *LINKS,
    *SOURCES,
    *PACKETS,
    *FRAGMENTS,
    *QUEUES,
    *OVERLAY,
    *BEYOND_NODE,
)
