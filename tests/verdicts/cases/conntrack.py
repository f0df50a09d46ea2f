"""Connection tracking: full, raced for, out of date, invalid; and a bridge that keeps replies from it."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import dns.message

from agent.lab import VIP, VIP6, DnsServer, Lab, Pod, closed_port, drop_first_query
from tests.lab.bridge import BridgeNetwork, bridged
from tests.lab.conntrack_faults import (
    FullTable,
    Shot,
    addresses_of,
    drop_invalid,
    drop_question,
    full_table,
    one_source_address,
    send_together,
    send_with_wrong_checksum,
    service_of,
    source_ports,
    without_neighbour,
    without_route,
)
from tests.lab.scripted import scripted
from tests.lab.socket_faults import hung_server, open_query
from tests.verdicts.campaign import TIMEOUT_SECONDS
from tests.verdicts.case import Case, Hop, Injection, LabKind, Lost

TWO_SERVERS = LabKind(servers=2)
MANY_SERVERS = LabKind(servers=6)
MANY_SERVERS_NFTABLES = LabKind(translation="nftables", servers=6)
NFTABLES = LabKind(translation="nftables")
BRIDGE = LabKind(note="bridge")
VIPS = (VIP, VIP6)
PAIRS = 8
SHORT = 0.05
OLD_SOCKETS = 100
"""At least one for each repetition."""
OTHER_NAME = "other.any.cluster.local"
"""Of lookups that are not looked at."""
RETRANSMITTED = frozenset({"Retransmitted"})


class Shared:
    """What a case's setup has built, for its injections."""

    table: FullTable
    network: BridgeNetwork
    old_sockets: Iterator[socket.socket]
    given_up: Callable[[], None] | None


@contextmanager
def full(lab: Lab) -> Iterator[None]:
    with full_table(lab) as Shared.table:
        yield


@contextmanager
def full_on_a_watched_node(lab: Lab) -> Iterator[None]:
    """What the host's own programs send dies before any device sees it, so only counters of the namespace tell why.

    The agent looks at them where a DNS server lives, as it does in its own namespace, which on a real node is this one.
    """
    with scripted(lab.node, lab.node.address):
        assert lab.node.ask(OTHER_NAME, server=lab.node.address)
        with full(lab):
            yield
            # It concludes when the time is up, and a table is not empty again at once on a real node.
            time.sleep(TIMEOUT_SECONDS + 1)


@contextmanager
def full_of_unassured(lab: Lab) -> Iterator[None]:
    with full_table(lab, assured=False) as Shared.table:
        yield


def asked_of_full_table(injection: Injection, client: Pod) -> list[str]:
    """One lookup by each address family."""
    Shared.table.fill()
    names = injection.names(len(VIPS))
    return [name for name, vip in zip(names, VIPS, strict=True) if not client.ask(name, server=vip, seconds=SHORT)]


def full_for_a_pod(injection: Injection) -> list[Lost]:
    return [*asked_of_full_table(injection, injection.lab.clients[0])]


def full_for_the_host(injection: Injection) -> list[Lost]:
    return [*asked_of_full_table(injection, injection.lab.node)]


def full_of_unassured_entries(injection: Injection) -> list[Lost]:
    evicted = Shared.table.evicted
    assert not asked_of_full_table(injection, injection.lab.clients[0]), "the table made no room"
    assert Shared.table.evicted >= evicted + len(VIPS)
    return [*injection.names(len(VIPS))]


def full_then_room(injection: Injection) -> list[Lost]:
    Shared.table.fill()
    with open_query(injection.lab.clients[0], injection.name) as query:
        query.send()
        assert query.reply(SHORT) is None
        Shared.table.make_room()
        query.send()
        assert query.reply(1)
    return [injection.name]


def rule_then_none(injection: Injection) -> list[Lost]:
    with drop_first_query(injection.lab), open_query(injection.lab.clients[0], injection.name) as query:
        query.send()
        assert query.reply(SHORT) is None
        query.send()
        assert query.reply(1)
    return [injection.name]


def race_for_a_port(vip: str, types: tuple[str, ...] = ("A",)) -> Callable[[Injection], list[Lost]]:
    """Two pods send from one port at one moment; who loses the port asks for another type behind."""

    def inject(injection: Injection) -> list[Lost]:
        lab = injection.lab
        with one_source_address(lab), contextlib.ExitStack() as stack:
            shots, asked = [], {}
            for port, names in zip(source_ports(PAIRS), pairs_of(injection.names(2 * PAIRS)), strict=True):
                socks = [stack.enter_context(client.udp_socket(vip, port)) for client in lab.clients[:2]]
                shots.append(tuple(Shot(*one) for one in zip(socks, map(of_types(types), names), strict=True)))
                asked.update({sock: {(name, one) for one in types} for sock, name in zip(socks, names, strict=True)})
            send_together(shots)
            lost = [one for sock, questions in asked.items() for one in unanswered(sock, questions)]
        return sorted(lost)

    return inject


def pairs_of(names: list[str]) -> Iterator[tuple[str, str]]:
    return zip(names[::2], names[1::2], strict=True)


def of_types(types: tuple[str, ...]) -> Callable[[str], list[bytes]]:
    return lambda name: [dns.message.make_query(name, one).to_wire() for one in types]


def unanswered(sock: socket.socket, questions: set[tuple[str, str]], seconds: float = SHORT) -> set[tuple[str, str]]:
    """Of the questions asked by this socket, those without a reply after so long a silence."""
    left = set(questions)
    while left and select.select([sock], [], [], seconds)[0]:
        question = dns.message.from_wire(sock.recv(65535)).question[0]
        left.discard((question.name.to_text(omit_final_dot=True), question.to_text().split()[-1]))
    return left


def resolved_clash(injection: Injection) -> list[Lost]:
    """A and AAAA of one socket at one moment: the loser of the race for the entry is translated all the same."""
    client, names = injection.lab.clients[0], injection.names(PAIRS)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(client.udp_socket()) for _ in names]
        shots = [
            tuple(Shot(sock, [query]) for query in of_types(("A", "AAAA"))(name))
            for sock, name in zip(socks, names, strict=True)
        ]
        send_together(shots)
        asked = {sock: {(name, "A"), (name, "AAAA")} for sock, name in zip(socks, names, strict=True)}
        lost = [one for sock, questions in asked.items() for one in unanswered(sock, questions)]
    assert not lost, f"this kernel loses one of a pair: {lost}"
    return [one for questions in asked.values() for one in sorted(questions)]


def one_of_a_pair_dropped(injection: Injection) -> list[Lost]:
    """The C library asks for A and AAAA by one socket, and for both again when one is missing."""
    with drop_question(injection.lab, injection.name, "AAAA"):
        found = injection.lab.clients[0].resolve(injection.name, options="timeout:1 attempts:2")
    assert len(found) == 2, found
    return [(injection.name, "AAAA")]


Gone = Callable[[Lab, DnsServer], AbstractContextManager[Callable[[], None] | None]]


def replaced(gone: Gone, number: int, vip: str) -> Callable[[Lab], AbstractContextManager[None]]:
    """The Service has one server for another, which goes away; sockets that were translated to it before are left."""

    @contextmanager
    def setup(lab: Lab) -> Iterator[None]:
        before, after = lab.servers[number], lab.servers[0]
        # A port that is used again must not find the entry of an earlier case.
        lab.node.run(["conntrack", "-F"])
        with contextlib.ExitStack() as stack:
            with service_of(lab, [addresses_of(before)]):
                socks = [stack.enter_context(translated_socket(lab.clients[0], vip)) for _ in range(OLD_SOCKETS)]
            stack.enter_context(service_of(lab, [addresses_of(after)]))
            Shared.given_up = stack.enter_context(gone(lab, before))
            Shared.old_sockets = iter(socks)
            yield

    return setup


def translated_socket(client: Pod, vip: str) -> socket.socket:
    sock = client.udp_socket(vip)
    assert client.ask(OTHER_NAME, server=vip, sock=sock)
    return sock


def goes_on(vip: str) -> Callable[[Injection], list[Lost]]:
    """A program that keeps its socket, beside one with a new socket for each lookup."""

    def inject(injection: Injection) -> list[Lost]:
        sock = next(Shared.old_sockets)
        client, other = injection.lab.clients[:2]
        names = injection.names(6)
        lost, fine = names[::2], names[1::2]
        for old, new in zip(lost, fine, strict=True):
            assert client.ask(old, server=vip, sock=sock, seconds=SHORT) is None
            assert other.ask(new, server=vip)
        if Shared.given_up:
            Shared.given_up()
        return [*lost]

    return inject


@contextmanager
def killed(lab: Lab, server: DnsServer) -> Iterator[None]:
    with closed_port(lab, lab.servers.index(server)):
        yield


def invalid_packet(injection: Injection) -> list[Lost]:
    """Straight to the server: to the Service's address it would not even be translated."""
    client, server = injection.lab.clients[0], injection.lab.servers[0]
    names = injection.names(2)
    with drop_invalid(injection.lab):
        for name, address in zip(names, addresses_of(server), strict=True):
            send_with_wrong_checksum(client, dns.message.make_query(name, "A").to_wire(), address)
    return [*names]


def bridge_without_translation(lab: Lab) -> AbstractContextManager[None]:
    return on_bridge(lab, translated_back=False)


def bridge_with_translation(lab: Lab) -> AbstractContextManager[None]:
    return on_bridge(lab, translated_back=True)


@contextmanager
def flooding_bridge(lab: Lab) -> Iterator[None]:
    with on_bridge(lab, translated_back=True):
        Shared.network.flood()
        yield


@contextmanager
def on_bridge(lab: Lab, *, translated_back: bool) -> Iterator[None]:
    with bridged(lab, translated_back=translated_back) as Shared.network:
        yield


def lost_on_bridge(injection: Injection) -> list[Lost]:
    assert injection.lab.clients[0].ask(injection.name, seconds=SHORT) is None
    return [injection.name]


@contextmanager
def flooding_bridge_hung_server(lab: Lab) -> Iterator[None]:
    with flooding_bridge(lab), hung_server(lab):
        yield


def fine_on_bridge(injection: Injection) -> list[Lost]:
    """By the Service, and straight to the server."""
    names = injection.names(2)
    for name, server in zip(names, (VIP, Shared.network.server), strict=True):
        assert injection.lab.clients[0].ask(name, server=server, seconds=1)
    return [*names]


def at_node_from_client(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.clients[0].node_interface)


def at_node_from_any_client(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id)


def before_server(_number: int, lab: Lab) -> Hop:
    return at_node_from_client(lab)


def on_link_of_server(number: int, lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.servers[number].node_interface)


def at_server(number: int, lab: Lab) -> Hop:
    return Hop("drop", lab.servers[number].netns_id, lab.servers[number].interface)


def received_by_server(lab: Lab) -> Hop:
    return Hop("rx", lab.servers[0].netns_id, lab.servers[0].interface)


def in_client(lab: Lab) -> Hop:
    return Hop("drop", lab.clients[0].netns_id, lab.clients[0].interface)


def table_cases() -> Iterator[Case]:
    code = "ConntrackTableFull"
    yield Case(
        fault="connection table full, a pod's query, IPv4 and IPv6",
        code=code,
        inject=full_for_a_pod,
        setup=full,
        last_hop=at_node_from_client,
    )
    yield Case(
        fault="connection table full, nftables translation",
        code=code,
        inject=full_for_a_pod,
        setup=full,
        last_hop=at_node_from_client,
        lab=NFTABLES,
    )
    yield Case(
        fault="connection table full, a hostNetwork query, IPv4 and IPv6",
        code=code,
        inject=full_for_the_host,
        setup=full_on_a_watched_node,
        last_hop=at_node_from_any_client,
    )
    yield Case(
        fault="connection table full, room at the second attempt",
        code=code,
        inject=full_then_room,
        setup=full,
        status="Succeeded",
        findings=RETRANSMITTED,
    )
    yield Case(
        fault="benign: connection table full of entries that make room",
        code=None,
        inject=full_of_unassured_entries,
        setup=full_of_unassured,
        status="Succeeded",
    )


def race_cases() -> Iterator[Case]:
    code = "ConntrackRace"
    for family, vip in (("IPv4", VIP), ("IPv6", VIP6)):
        yield Case(
            fault=f"two pods race for one port of the node, {family}",
            code=code,
            inject=race_for_a_port(vip),
            probabilistic=True,
            last_hop=at_node_from_any_client,
        )
    yield Case(
        fault="two pods race for one port of the node, A and AAAA of one socket each",
        code=code,
        inject=race_for_a_port(VIP, ("A", "AAAA")),
        probabilistic=True,
        last_hop=at_node_from_any_client,
        lab=NFTABLES,
    )
    yield Case(
        fault="benign: A and AAAA of one socket at one moment, clash resolved",
        code=None,
        inject=resolved_clash,
        status="Succeeded",
        lab=TWO_SERVERS,
    )
    yield Case(
        fault="rule drops AAAA of a pair, the C library asks again",
        code="PolicyDrop",
        inject=one_of_a_pair_dropped,
        status="Succeeded",
        findings=RETRANSMITTED,
    )
    yield Case(
        fault="rule drops the first query, the second is answered",
        code="PolicyDrop",
        inject=rule_then_none,
        status="Succeeded",
        findings=RETRANSMITTED,
    )


def stale_cases() -> Iterator[Case]:
    """Each loses another server: one that is back and answers others looks alive."""
    ways: tuple[tuple[str, Gone, str, Callable[[int, Lab], Hop]], ...] = (
        ("no route, IPv4", without_route, VIP, before_server),
        ("no route, IPv6", without_route, VIP6, before_server),
        ("port unreachable, IPv4", killed, VIP, at_server),
        ("port unreachable, IPv6", killed, VIP6, at_server),
        ("no neighbour, IPv4", without_neighbour, VIP, on_link_of_server),
    )
    for kind in (MANY_SERVERS, MANY_SERVERS_NFTABLES):
        for number, (how, gone, vip, last_hop) in enumerate(ways, 1):
            yield Case(
                fault=f"replaced server, a socket that goes on: {how}, {kind.translation}",
                code="StaleConntrackEntry",
                confidence="medium",
                inject=goes_on(vip),
                setup=replaced(gone, number, vip),
                last_hop=partial(last_hop, number),
                lab=kind,
            )


def invalid_cases() -> Iterator[Case]:
    for kind in (LabKind(), NFTABLES):
        yield Case(
            fault=f"{kind.translation}, FORWARD of the node, invalid query",
            code="PolicyDrop",
            inject=invalid_packet,
            last_hop=at_node_from_client,
            lab=kind,
        )


def bridge_cases() -> Iterator[Case]:
    yield Case(
        fault="bridge, reply not translated back",
        code="KernelDrop",
        inject=lost_on_bridge,
        setup=bridge_without_translation,
        last_hop=in_client,
        lab=BRIDGE,
    )
    yield Case(
        fault="bridge, flooding, server stopped",
        code="ServerNoReply",
        inject=lost_on_bridge,
        setup=flooding_bridge_hung_server,
        # The copy that the bridge gave to a bystander may be the last one seen: no last hop is demanded.
        lab=BRIDGE,
    )
    benign = (
        ("translated back", bridge_with_translation),
        ("flooding", flooding_bridge),
    )
    for what, setup in benign:
        yield Case(
            fault=f"benign: bridge, {what}",
            code=None,
            inject=fine_on_bridge,
            setup=setup,
            status="Succeeded",
            lab=BRIDGE,
        )


CASES: tuple[Case, ...] = (
    *table_cases(),
    *race_cases(),
    *stale_cases(),
    *invalid_cases(),
    *bridge_cases(),
)
