"""The two ends: no socket, no room in it, a program that does not read or has left; and clients of the host network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import dns.message

from agent.lab import VIP, VIP6, DnsServer, Lab, closed_port, stopped_server, wait_until
from tests.lab.socket_faults import filtered_server, hung_server, narrow_client, narrow_server, open_query
from tests.verdicts.case import Case, Hop, Injection, Lost

FAMILIES = {"IPv4": VIP, "IPv6": VIP6}
BEYOND = 3
"""Queries sent to a full receive buffer."""
SHORT = 0.05
FILLER = "filler.any.cluster.local"
"""What fills a buffer, and is not looked at."""


def address_of(server: DnsServer, vip: str) -> str:
    return server.address6 if ":" in vip else server.address


def asked(vip: str, *, host: bool = False) -> Callable[[Injection], list[Lost]]:
    """A lookup that nobody answers."""

    def inject(injection: Injection) -> list[Lost]:
        client = injection.lab.node if host else injection.lab.clients[0]
        assert client.ask(injection.name, server=vip, seconds=SHORT) is None
        return [injection.name]

    return inject


def asked_well(vip: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        assert injection.lab.node.ask(injection.name, server=vip, seconds=1)
        return [injection.name]

    return inject


def beyond_the_buffer(vip: str) -> Callable[[Injection], list[Lost]]:
    """Queries that find a server's receive buffer full of others."""

    def inject(injection: Injection) -> list[Lost]:
        lab, names = injection.lab, injection.names(BEYOND)
        with narrow_server(lab.servers[0], address_of(lab.servers[0], vip)) as server:
            with open_query(lab.clients[0], FILLER, server=vip) as filler:
                server.fill(filler.send)
            for name in names:
                with open_query(lab.clients[0], name, server=vip) as query:
                    assert not server.takes(query.send)
        return [*names]

    return inject


def in_the_buffer(injection: Injection) -> list[Lost]:
    """A query that has room, and is never read."""
    lab = injection.lab
    with narrow_server(lab.servers[0]) as server, open_query(lab.clients[0], injection.name) as query:
        assert server.takes(query.send)
    return [injection.name]


def full_then_room(injection: Injection) -> list[Lost]:
    """The server reads on before the second attempt."""
    lab = injection.lab
    with narrow_server(lab.servers[0]) as server, open_query(lab.clients[0], injection.name) as query:
        with open_query(lab.clients[0], FILLER) as filler:
            server.fill(filler.send)
        assert not server.takes(query.send)
        assert list(server.read())
        query.send()
        server.answer()
        assert query.reply(1)
    return [injection.name]


def replies_beyond_the_buffer(vip: str) -> Callable[[Injection], list[Lost]]:
    """A client that asks on, and reads no reply."""

    def inject(injection: Injection) -> list[Lost]:
        lost = []
        with narrow_client(injection.lab.clients[0], vip) as client:
            for name in injection.names(64):
                query = dns.message.make_query(name, "A").to_wire()
                if not client.takes(partial(client.sock.send, query)):
                    lost.append(name)
                if len(lost) == BEYOND:
                    break
        assert lost
        return lost

    return inject


def client_gone(vip: str) -> Callable[[Injection], list[Lost]]:
    """The server comes back to life when the client has closed its socket."""

    def inject(injection: Injection) -> list[Lost]:
        lab = injection.lab
        with stopped_server(lab):
            assert lab.clients[0].ask(injection.name, server=vip, seconds=SHORT) is None
        wait_until(lambda: lab.clients[0].gets_reply_from(vip), "the server to work off its queue")
        return [injection.name]

    return inject


def at_server(lab: Lab) -> Hop:
    return Hop("drop", lab.servers[0].netns_id, lab.servers[0].interface)


def received_by_server(lab: Lab) -> Hop:
    return Hop("rx", lab.servers[0].netns_id, lab.servers[0].interface)


def at_client(lab: Lab) -> Hop:
    return Hop("drop", lab.clients[0].netns_id, lab.clients[0].interface)


def filtered(lab: Lab) -> AbstractContextManager[None]:
    return filtered_server(lab.servers[0])


def server_cases(family: str, vip: str) -> Iterator[Case]:
    yield Case(
        fault=f"nothing listens on the server's port, {family}",
        code="NoListener",
        inject=asked(vip),
        setup=closed_port,
        last_hop=at_server,
    )
    yield Case(
        fault=f"server stopped, {family}",
        code="ServerNoReply",
        inject=asked(vip),
        setup=hung_server,
        last_hop=received_by_server,
    )
    yield Case(
        fault=f"server's receive buffer full, {family}",
        code="ServerSocketOverflow",
        inject=beyond_the_buffer(vip),
        last_hop=at_server,
    )


def client_cases(family: str, vip: str) -> Iterator[Case]:
    yield Case(
        fault=f"client's receive buffer full, {family}",
        code="ClientSocketOverflow",
        inject=replies_beyond_the_buffer(vip),
        last_hop=at_client,
    )
    yield Case(
        fault=f"client gone before the reply, {family}",
        code="LateReply",
        inject=client_gone(vip),
        last_hop=at_client,
    )


def host_cases(family: str, vip: str) -> Iterator[Case]:
    yield Case(
        fault=f"hostNetwork client, nothing listens on the server's port, {family}",
        code="NoListener",
        inject=asked(vip, host=True),
        setup=closed_port,
        last_hop=at_server,
    )
    yield Case(
        fault=f"hostNetwork client, server stopped, {family}",
        code="ServerNoReply",
        inject=asked(vip, host=True),
        setup=hung_server,
        last_hop=received_by_server,
    )
    yield Case(
        fault=f"benign: hostNetwork client, {family}",
        code=None,
        inject=asked_well(vip),
        status="Succeeded",
    )


CASES: tuple[Case, ...] = (
    *(case for family, vip in FAMILIES.items() for case in server_cases(family, vip)),
    *(case for family, vip in FAMILIES.items() for case in client_cases(family, vip)),
    *(case for family, vip in FAMILIES.items() for case in host_cases(family, vip)),
    Case(
        fault="server's receive buffer, not full yet, nobody reads",
        code="ServerNoReply",
        inject=in_the_buffer,
        last_hop=received_by_server,
    ),
    Case(
        fault="server's receive buffer full, room at the second attempt",
        code="ServerSocketOverflow",
        inject=full_then_room,
        status="Succeeded",
        findings=frozenset({"Retransmitted"}),
    ),
    Case(
        fault="server's socket filter refuses the query",
        code="PolicyDrop",
        inject=asked(VIP),
        setup=filtered,
        last_hop=at_server,
    ),
)
