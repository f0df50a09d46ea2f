"""Servers and their upstreams: silent, late, failing, unreachable, and what they say about names that do not exist."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager

from agent.explain.findings import ENOUGH_ANSWERS
from agent.lab import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, VIP, VIP6, Lab, wait_until
from agent.session.node_state import WINDOW_NS
from tests.lab.conntrack_faults import addresses_of, service_of
from tests.lab.scripted import scripted
from tests.lab.upstream_faults import (
    coredns_server,
    drop_queries_upstream,
    drop_replies_upstream,
    drop_tcp,
    hung_server,
    slow_line,
    upstream_beyond,
)
from tests.verdicts.case import Case, Connection, Hop, Injection, LabKind, Lost, nothing_to_set_up
from tests.verdicts.lookups import SILENCE, ask_over_tcp, connect, one_socket, says, sent_datagrams

COREDNS = LabKind(note="CoreDNS")
PARALLEL = LabKind(servers=2, note="parallel")
COREDNS_SECONDS = 9.0
"""Longer than CoreDNS asks a silent upstream before it says SERVFAIL."""
LATE_SECONDS = 2.5
ROOM_SECONDS = 10.0
"""Longer than the lookups take that must all be counted in one window."""

CLUSTER = "cluster.local"
ELSEWHERE = "elsewhere.test"


# --- how lookups are made

Inject = Callable[[Injection], list[Lost]]
Setup = Callable[[Lab], AbstractContextManager[object]]


def named(injection: Injection, word: str, *, upstream: bool) -> str:
    """A name that tells a scripted server what to do."""
    name = injection.upstream_name if upstream else injection.name
    return f"{word}.{name}" if word else name


def asks(word: str, expected: str, server: str = VIP, *, upstream: bool = False, seconds: float = 0.3) -> Inject:
    """Ask over UDP, in a way that lets a scripted server do as the word says; the lookup, if it went as expected."""

    def inject(injection: Injection) -> list[Lost]:
        name = named(injection, word, upstream=upstream)
        said = says(injection.lab.clients[0].ask(name, server=server, seconds=seconds))
        return [name] if said == expected else []

    return inject


def asks_over_tcp(word: str, expected: str, *, upstream: bool = False, seconds: float = 0.5) -> Inject:
    """The same over TCP."""

    def inject(injection: Injection) -> list[Lost]:
        name = named(injection, word, upstream=upstream)
        said = says(ask_over_tcp(injection.lab.clients[0], name, seconds=seconds))
        return [name] if said == expected else []

    return inject


def twice(word: str, *, upstream: bool = False) -> Inject:
    """Ask, and ask again by the same socket under the same id; the lookup, if it was answered in the end."""

    def inject(injection: Injection) -> list[Lost]:
        name = named(injection, word, upstream=upstream)
        with one_socket(injection.lab.clients[0]) as sock:
            sock.send(name, id_=1)
            early = sock.replies(1, seconds=0.3)
            sock.send(name, id_=1)
            return [name] if not early and sock.replies(1) else []

    return inject


def during(fault: Callable[[Lab], AbstractContextManager[object]], inject: Inject) -> Inject:
    """Break the lab for this injection alone."""

    def inside(injection: Injection) -> list[Lost]:
        with fault(injection.lab):
            return inject(injection)

    return inside


# --- what is held while a case is repeated


@contextmanager
def both(*setups: Setup, lab: Lab):
    with ExitStack() as stack:
        for setup in setups:
            stack.enter_context(setup(lab))
        yield


def all_of(*setups: Setup) -> Setup:
    return lambda lab: both(*setups, lab=lab)


def scripted_server(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.servers[0])


def scripted_upstream(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.upstream)


def server_without_names(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.servers[0], always="nxdomain")


def upstream_without_names(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.upstream, always="nxdomain")


def udp_only_upstream(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.upstream, tcp=False)


def slow_line_to_upstream(lab: Lab) -> AbstractContextManager[object]:
    return slow_line(lab.upstream)


def coredns_with(zone: str, plugin: str, *options: str) -> Setup:
    """CoreDNS with one zone and one plugin."""
    corefile = "\n".join(
        [f"{zone} {{", f"{plugin} {{" if options else plugin, *options, *("}" if options else ""), "}"]
    )
    return lambda lab: coredns_server(lab, corefile)


def forwarding(*options: str, upstream: str = "{upstream}") -> Setup:
    return coredns_with(ANY_UPSTREAM_NAME, f"forward . {upstream}", *options)


def late_second_server(lab: Lab) -> AbstractContextManager[object]:
    return both(scripted_server, lambda lab: scripted(lab.servers[1], always="late-100"), lab=lab)


def first_query_upstream_lost(lab: Lab) -> AbstractContextManager[object]:
    return drop_queries_upstream(lab, once=True)


def udp_only_server(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.servers[0], tcp=False)


def tcp_dropped_at_server(lab: Lab) -> AbstractContextManager[object]:
    return drop_tcp(lab.servers[0])


def tcp_dropped_at_upstream(lab: Lab) -> AbstractContextManager[object]:
    return drop_tcp(lab.upstream)


# --- last hops


def at_server(lab: Lab) -> Hop:
    return Hop("rx", lab.servers[0].netns_id, lab.servers[0].interface)


def at_upstream(lab: Lab) -> Hop:
    return Hop("rx", lab.upstream.netns_id, lab.upstream.interface)


def beyond_the_node(lab: Lab) -> Hop:
    return Hop("tx", lab.node.netns_id, "tun0")


def dropped_from_server(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.servers[0].node_interface)


def dropped_from_upstream(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.upstream.node_interface)


def refused_at_server(lab: Lab) -> Hop:
    return Hop("drop", lab.servers[0].netns_id, lab.servers[0].interface)


def refused_at_upstream(lab: Lab) -> Hop:
    return Hop("drop", lab.upstream.netns_id, lab.upstream.interface)


# --- injections of their own


def too_many_at_once(injection: Injection) -> list[Lost]:
    """CoreDNS waits for the upstream's answer to the first, and refuses the second at once."""
    waiting, refused = (f"{word}.{injection.upstream_name}" for word in ("late-600", "second"))
    with one_socket(injection.lab.clients[0]) as sock:
        sock.send(waiting, id_=1)
        first = sock.replies(1, seconds=0.1)
        said = says(injection.lab.clients[1].ask(refused, seconds=1))
        fine = sock.replies(1)
    return [refused] if not first and fine and said == "REFUSED" else []


def truncated_with_retry(injection: Injection) -> list[Lost]:
    name = f"truncated.{injection.name}"
    said = injection.lab.clients[0].dig(name).stdout
    return [name] if "status: NOERROR" in said and "retrying in TCP mode" in said else []


def truncated_without_retry(injection: Injection) -> list[Lost]:
    name = f"truncated.{injection.name}"
    said = injection.lab.clients[0].dig(name, "A", VIP, "+ignore").stdout
    return [name] if "status: NOERROR" in said and " tc" in said else []


def truncated_and_unreachable(fault: Setup) -> Inject:
    """dig asks again over TCP, from the same port, and gets no connection."""

    def inject(injection: Injection) -> list[Lost]:
        client = injection.lab.clients[0]
        with fault(injection.lab):
            said = client.dig(f"truncated.{injection.name}", "A", VIP, "-b", f"0.0.0.0#{injection.port}").stdout
        lost = "retrying in TCP mode" in said and "status:" not in said
        return [Connection(client.netns_id, injection.port)] if lost else []

    return inject


def refused_over_tcp(injection: Injection) -> list[Lost]:
    lost = connect(injection.lab.clients[0], injection.port, seconds=0.3)
    return [lost] if lost else []


def one_id_for_both(injection: Injection) -> list[Lost]:
    """As glibc before 2.33 on some machines."""
    with one_socket(injection.lab.clients[0]) as sock:
        for rdtype in ("A", "AAAA"):
            sock.send(injection.name, rdtype, id_=7)
        fine = sock.replies(2)
    return [(injection.name, "A"), (injection.name, "AAAA")] if fine else []


def two_servers_at_once(v6: bool) -> Inject:  # noqa: FBT001  a table's column
    """As musl: the first answer is taken and the socket closed; the second server's finds nobody."""

    def inject(injection: Injection) -> list[Lost]:
        client, pods = injection.lab.clients[0], injection.lab.servers
        servers = [server.address6 if v6 else server.address for server in pods]
        before = sent_datagrams(pods[1], ipv6=v6)
        with one_socket(client, servers[0]) as sock:
            for server in servers:
                sock.send(injection.name, "A", server, id_=9)
            fine = sock.replies(1)
        wait_until(lambda: sent_datagrams(pods[1], ipv6=v6) > before, "the slower server to reply")
        return [injection.name] if fine else []

    return inject


def search_list(injection: Injection) -> list[Lost]:
    """Two suffixes as Kubernetes gives them, then the name itself, each for both families."""
    name = f"short-5.{injection.name}"
    suffixes = [f"{words}.{injection.name}" for words in ("ns.svc", "svc")]
    found = injection.lab.clients[0].resolve(name, search=" ".join(suffixes), options="ndots:5 timeout:1 attempts:2")
    return [(f"{name}.{suffix}", rdtype) for suffix in suffixes for rdtype in ("A", "AAAA")] if found else []


def one_of_two_alone(injection: Injection) -> list[Lost]:
    """A client that keeps its socket stays with its server; the other one has answered a single lookup."""
    lab, client = injection.lab, injection.lab.clients[0]
    first, *names = injection.names(ENOUGH_ANSWERS + ENOUGH_ANSWERS // 4)
    wait_until(has_room, "a window with room", seconds=2 * ROOM_SECONDS)
    with service_of(lab, [addresses_of(lab.servers[1])]):
        fine = [client.ask(first)]
    with service_of(lab, [addresses_of(lab.servers[0])]), client.udp_socket() as sock:
        fine += [client.ask(name, sock=sock) for name in names]
    return [names[-1]] if all(fine) else []


def has_room() -> bool:
    return WINDOW_NS - time.monotonic_ns() % WINDOW_NS > ROOM_SECONDS * 1e9


UPSTREAM_SILENT = "UpstreamTimeout"

CASES: tuple[Case, ...] = (
    # The server.
    Case(
        fault="server silent, UDP",
        code="ServerNoReply",
        inject=asks("silent", SILENCE),
        setup=scripted_server,
        last_hop=at_server,
    ),
    Case(
        fault="server silent, UDP, IPv6",
        code="ServerNoReply",
        inject=asks("silent", SILENCE, VIP6),
        setup=scripted_server,
        last_hop=at_server,
    ),
    Case(
        fault="server silent, TCP",
        code="ServerNoReply",
        inject=asks_over_tcp("silent", SILENCE),
        setup=scripted_server,
    ),
    Case(
        fault="server's process stopped, UDP",
        code="ServerNoReply",
        inject=during(hung_server, asks("hung", SILENCE)),
        last_hop=at_server,
    ),
    Case(
        fault="server's process stopped, TCP",
        code="ServerNoReply",
        inject=during(hung_server, asks_over_tcp("hung", SILENCE)),
    ),
    Case(
        fault="server over UDP only, refuses TCP",
        code="NoListener",
        inject=refused_over_tcp,
        setup=udp_only_server,
        says=("RST",),
    ),
    Case(
        fault="truncated, TCP port closed",
        code="NoListener",
        inject=truncated_and_unreachable(nothing_to_set_up),
        setup=udp_only_server,
        says=("RST",),
    ),
    Case(
        fault="truncated, TCP port filtered",
        code="PolicyDrop",
        inject=truncated_and_unreachable(tcp_dropped_at_server),
        setup=scripted_server,
        last_hop=refused_at_server,
        says=("INPUT",),
    ),
    Case(
        fault="server ignores the first of two attempts",
        code="ServerNoReply",
        confidence="low",
        status="Succeeded",
        inject=twice("once-lost"),
        setup=scripted_server,
        findings=frozenset({"Retransmitted"}),
    ),
    Case(
        fault="server answers after 1.2 s",
        code=None,
        status="Succeeded",
        inject=asks("late-1200", "NOERROR", seconds=LATE_SECONDS),
        setup=scripted_server,
        findings=frozenset({"SlowServer"}),
        exact=True,
    ),
    Case(
        fault="CoreDNS without a plugin for the name",
        code="ServerError",
        confidence="medium",
        inject=asks("www", "SERVFAIL"),
        setup=coredns_with(CLUSTER, "errors"),
        lab=COREDNS,
        says=("with AA=0, RA=0 and no records",),
    ),
    Case(
        fault="CoreDNS without a zone for the name",
        code="ServerError",
        confidence="medium",
        inject=asks("www", "REFUSED"),
        setup=coredns_with(ELSEWHERE, "errors"),
        lab=COREDNS,
        says=("with AA=0, RA=0 and no records",),
    ),
    Case(
        fault="CoreDNS, erratic drops",
        code="ServerNoReply",
        inject=asks("www", SILENCE),
        setup=coredns_with(ANY_CLUSTER_NAME, "erratic", "drop 1"),
        last_hop=at_server,
        lab=COREDNS,
    ),
    Case(
        fault="CoreDNS, acl drops",
        code="ServerNoReply",
        inject=asks("www", SILENCE),
        setup=coredns_with(ANY_CLUSTER_NAME, "acl", "drop"),
        last_hop=at_server,
        lab=COREDNS,
    ),
    Case(
        fault="CoreDNS, acl blocks",
        code="ServerError",
        confidence=None,
        inject=asks("www", "REFUSED"),
        setup=coredns_with(ANY_CLUSTER_NAME, "acl", "block"),
        lab=COREDNS,
        says=("REFUSED",),
    ),
    Case(
        fault="CoreDNS, max_concurrent exceeded",
        code="ServerError",
        confidence="medium",
        inject=too_many_at_once,
        setup=all_of(scripted_upstream, forwarding("max_concurrent 1")),
        lab=COREDNS,
        says=("with AA=0, RA=0 and no records",),
    ),
    # The upstream.
    Case(
        fault="upstream silent, dnsmasq",
        code=UPSTREAM_SILENT,
        inject=asks("silent", SILENCE, upstream=True),
        setup=scripted_upstream,
        last_hop=at_upstream,
    ),
    Case(
        fault="upstream silent, dnsmasq, client over TCP",
        code=UPSTREAM_SILENT,
        inject=asks_over_tcp("silent", SILENCE, upstream=True),
        setup=scripted_upstream,
    ),
    Case(
        fault="upstream silent, CoreDNS says SERVFAIL",
        code=UPSTREAM_SILENT,
        inject=asks("silent", "SERVFAIL", upstream=True, seconds=COREDNS_SECONDS),
        setup=all_of(scripted_upstream, forwarding()),
        last_hop=at_upstream,
        lab=COREDNS,
        slow=True,
    ),
    Case(
        fault="upstream beyond this node silent, CoreDNS says SERVFAIL",
        code=UPSTREAM_SILENT,
        inject=asks("silent", "SERVFAIL", VIP6, upstream=True, seconds=COREDNS_SECONDS),
        setup=all_of(upstream_beyond, forwarding(upstream="{beyond}")),
        last_hop=beyond_the_node,
        lab=COREDNS,
        slow=True,
    ),
    Case(
        fault="upstream answers after 1.2 s, dnsmasq",
        code=None,
        status="Succeeded",
        inject=asks("late-1200", "NOERROR", upstream=True, seconds=LATE_SECONDS),
        setup=scripted_upstream,
        findings=frozenset({"SlowUpstream"}),
        exact=True,
    ),
    Case(
        fault="upstream answers after 1.2 s, CoreDNS",
        code=None,
        status="Succeeded",
        inject=asks("late-1200", "NOERROR", upstream=True, seconds=LATE_SECONDS),
        setup=all_of(scripted_upstream, forwarding()),
        findings=frozenset({"SlowUpstream"}),
        lab=COREDNS,
        exact=True,
    ),
    *(
        Case(
            fault=f"upstream says {rcode}, {server}",
            code="UpstreamError",
            inject=asks(rcode.lower(), rcode, upstream=True),
            setup=setup,
            lab=lab,
            says=(f"answered {rcode}",),
        )
        for rcode in ("SERVFAIL", "REFUSED")
        for server, setup, lab in (
            ("dnsmasq", scripted_upstream, LabKind()),
            ("CoreDNS", all_of(scripted_upstream, forwarding()), COREDNS),
        )
    ),
    Case(
        fault="upstream says SERVFAIL, CoreDNS, client over TCP",
        code="UpstreamError",
        inject=asks_over_tcp("servfail", "SERVFAIL", upstream=True),
        setup=all_of(scripted_upstream, forwarding()),
        lab=COREDNS,
        says=("answered SERVFAIL",),
    ),
    Case(
        fault="upstream says NXDOMAIN",
        code=None,
        status="Succeeded",
        inject=asks("", "NXDOMAIN", upstream=True),
        setup=upstream_without_names,
        findings=frozenset({"NameNotFound"}),
        exact=True,
    ),
    *(
        Case(
            fault=f"upstream over UDP only, refuses TCP, {client}",
            code="UpstreamTCPUnavailable",
            inject=inject("www", "SERVFAIL", upstream=True, seconds=COREDNS_SECONDS),
            setup=all_of(udp_only_upstream, slow_line_to_upstream, forwarding(*options)),
            lab=COREDNS,
            says=("refused",),
            slow=client == "client over TCP",
        )
        for client, inject, options in (("force_tcp", asks, ["force_tcp"]), ("client over TCP", asks_over_tcp, []))
    ),
    Case(
        fault="upstream beyond this node over UDP only, silent over TCP",
        code="UpstreamTCPUnavailable",
        inject=asks("www", SILENCE, upstream=True),
        setup=all_of(upstream_beyond, forwarding("force_tcp", upstream="{beyond}")),
        lab=COREDNS,
        says=("no answer to the request for a connection",),
    ),
    Case(
        fault="upstream's policy drops TCP, force_tcp",
        code="PolicyDrop",
        inject=asks("www", SILENCE, upstream=True),
        setup=all_of(scripted_upstream, tcp_dropped_at_upstream, forwarding("force_tcp")),
        last_hop=refused_at_upstream,
        lab=COREDNS,
        says=("INPUT", "server's own query"),
    ),
    # Between the server and the upstream.
    Case(
        fault="server's queries upstream dropped, dnsmasq",
        code="PolicyDrop",
        inject=asks("www", SILENCE, upstream=True),
        setup=drop_queries_upstream,
        last_hop=dropped_from_server,
        says=("FORWARD", "server's own query"),
    ),
    Case(
        fault="server's queries upstream dropped, CoreDNS says SERVFAIL",
        code="PolicyDrop",
        inject=asks("www", "SERVFAIL", upstream=True, seconds=COREDNS_SECONDS),
        setup=all_of(scripted_upstream, forwarding(), drop_queries_upstream),
        last_hop=dropped_from_server,
        lab=COREDNS,
        says=("FORWARD", "server's own query"),
        slow=True,
    ),
    Case(
        fault="upstream's replies dropped, dnsmasq",
        code="PolicyDrop",
        inject=asks("www", SILENCE, upstream=True),
        setup=drop_replies_upstream,
        last_hop=dropped_from_upstream,
        says=("FORWARD", "reply of the upstream"),
    ),
    Case(
        fault="server's first query upstream dropped, CoreDNS asks again",
        code=None,
        status="Succeeded",
        inject=during(first_query_upstream_lost, asks("www", "NOERROR", upstream=True, seconds=4)),
        setup=all_of(scripted_upstream, forwarding()),
        findings=frozenset({"UpstreamRetried"}),
        lab=COREDNS,
        exact=True,
    ),
    Case(
        fault="server's first query upstream dropped, the client asks again",
        code="PolicyDrop",
        confidence=None,
        status="Succeeded",
        inject=during(first_query_upstream_lost, twice("www", upstream=True)),
        findings=frozenset({"Retransmitted"}),
        says=("FORWARD", "server's own query"),
    ),
    # Remarks.
    Case(
        fault="truncated, no retry over TCP",
        code=None,
        status="Succeeded",
        inject=truncated_without_retry,
        setup=scripted_server,
        findings=frozenset({"Truncated"}),
        exact=True,
    ),
    Case(
        fault="truncated, retry over TCP",
        code=None,
        status="Succeeded",
        inject=truncated_with_retry,
        setup=scripted_server,
    ),
    Case(
        fault="one id for A and AAAA",
        code=None,
        status="Succeeded",
        inject=one_id_for_both,
        findings=frozenset({"TransactionIdCollision"}),
        exact=True,
    ),
    *(
        Case(
            fault=f"two servers asked at once, {family}",
            code=None,
            status="Succeeded",
            inject=two_servers_at_once(family == "IPv6"),
            setup=late_second_server,
            findings=frozenset({"ParallelNameservers"}),
            lab=PARALLEL,
            exact=True,
        )
        for family in ("IPv4", "IPv6")
    ),
    Case(
        fault="one of two servers has almost all lookups",
        code=None,
        status="Succeeded",
        inject=one_of_two_alone,
        findings=frozenset({"ServerImbalance"}),
        lab=PARALLEL,
        exact=True,
    ),
    Case(
        fault="search list and ndots:5",
        code=None,
        status="Succeeded",
        inject=search_list,
        setup=scripted_server,
        findings=frozenset({"SearchPathNXDOMAIN"}),
        exact=True,
    ),
    Case(
        fault="the name does not exist",
        code=None,
        status="Succeeded",
        inject=asks("", "NXDOMAIN"),
        setup=server_without_names,
        findings=frozenset({"NameNotFound"}),
        exact=True,
    ),
)
