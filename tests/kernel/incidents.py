"""A bad day of a small node: every kind of trouble that the documents' queries look for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from agent.lab import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, VIP, Lab, closed_port, drop_queries
from tests.lab.conntrack_faults import addresses_of, drop_question, full_table, service_of, without_route
from tests.lab.scripted import scripted
from tests.lab.socket_faults import narrow_server, open_query
from tests.lab.upstream_faults import hung_server

SHORT = 0.05
PATIENT = 2.0


def name_of(incident: str) -> str:
    """What is asked for in an incident, so that its sessions are known by their question."""
    return f"{incident}.{ANY_CLUSTER_NAME}"


def upstream_name_of(incident: str) -> str:
    """Likewise, of a name for which the servers ask their upstream."""
    return f"{incident}.{ANY_UPSTREAM_NAME}"


def fine(lab: Lab) -> None:
    for client in lab.clients:
        assert client.resolve(name_of("fine"))
        assert client.resolve("www.upstream.test")
        assert "NXDOMAIN" in client.dig("no-such-name.default.svc.cluster.local").stdout


def search_path(lab: Lab) -> None:
    search = "default.svc.cluster.local svc.cluster.local"
    options = "timeout:1 attempts:2 ndots:5"
    assert lab.clients[0].resolve("mail.upstream.test", options=options, search=search)


def half_of_a_pair(lab: Lab) -> None:
    """The C library asks for A and AAAA at once; AAAA is lost, and it asks again a second later."""
    name = name_of("pair")
    with drop_question(lab, name, "AAAA"):
        assert len(lab.clients[0].resolve(name, options="timeout:1 attempts:2")) == 2


def policy(lab: Lab) -> None:
    with drop_queries(lab):
        assert lab.clients[1].ask(name_of("policy"), seconds=SHORT) is None


def no_listener(lab: Lab) -> None:
    with closed_port(lab):
        assert lab.clients[0].ask(name_of("closed"), server=lab.servers[0].address, seconds=SHORT) is None


def silent_server(lab: Lab) -> None:
    with hung_server(lab) as server:
        assert lab.clients[0].ask(name_of("silent"), server=server.address, seconds=SHORT) is None


def silent_upstream(lab: Lab) -> None:
    lab.upstream.stop()
    try:
        assert lab.clients[0].ask(upstream_name_of("hung"), seconds=SHORT) is None
    finally:
        # A new one knows nothing of what the old one was asked.
        lab.upstream.kill()
        lab.upstream.start()


def full_buffer(lab: Lab) -> None:
    address = lab.servers[0].address
    with narrow_server(lab.servers[0]) as server, ExitStack() as stack:
        filler = stack.enter_context(open_query(lab.clients[0], name_of("filler"), server=address))
        server.fill(filler.send)
        query = stack.enter_context(open_query(lab.clients[0], name_of("overflow"), server=address))
        assert not server.takes(query.send)


def wrong_answers(lab: Lab) -> None:
    """SERVFAIL, a reply that takes longer than a second, and one that fits no datagram."""
    client, server = lab.clients[0], lab.servers[0]
    with scripted(server):
        assert client.ask(f"servfail.{name_of('error')}", server=server.address)
        assert client.ask(f"late-1200.{name_of('slow')}", server=server.address, seconds=PATIENT)
        assert client.ask(f"truncated.{name_of('large')}", server=server.address)


def stale_entry(lab: Lab) -> None:
    """A socket goes on to a server that the Service has no more, while others are answered by the one it has."""
    before, after = lab.servers
    with ExitStack() as stack:
        with service_of(lab, [addresses_of(before)]):
            sock = stack.enter_context(lab.clients[0].udp_socket(VIP))
            assert lab.clients[0].ask(name_of("before"), sock=sock)
        stack.enter_context(service_of(lab, [addresses_of(after)]))
        stack.enter_context(without_route(lab, before))
        for _ in range(3):
            assert lab.clients[0].ask(name_of("stale"), sock=sock, seconds=SHORT) is None
            assert lab.clients[1].ask(name_of("other"))


def full_connection_table(lab: Lab) -> None:
    with full_table(lab):
        assert lab.clients[0].ask(name_of("full"), seconds=SHORT) is None


INCIDENTS: tuple[Callable[[Lab], None], ...] = (
    fine,
    search_path,
    half_of_a_pair,
    policy,
    no_listener,
    silent_server,
    silent_upstream,
    full_buffer,
    wrong_answers,
    stale_entry,
    full_connection_table,
)

CAUSES = {
    name_of("pair"): "PolicyDrop",
    name_of("policy"): "PolicyDrop",
    name_of("closed"): "NoListener",
    name_of("silent"): "ServerNoReply",
    upstream_name_of("hung"): "UpstreamTimeout",
    name_of("overflow"): "ServerSocketOverflow",
    f"servfail.{name_of('error')}": "ServerError",
    name_of("stale"): "StaleConntrackEntry",
    name_of("full"): "ConntrackTableFull",
}
"""What the agent must say of these lookups, by their names."""
UNFINISHED = name_of("unfinished")


@contextmanager
def unfinished(lab: Lab) -> Iterator[None]:
    """A lookup that is still open while the block lasts: when the agent ends in it, it cannot say what came of it."""
    with hung_server(lab) as server, open_query(lab.clients[0], UNFINISHED, server=server.address) as query:
        query.send()
        yield
