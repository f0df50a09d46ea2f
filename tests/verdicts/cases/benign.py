"""What looks like a loss and is none: every lookup here is answered, and nobody may be blamed."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial

from agent.lab import ANY_UPSTREAM_NAME, VIP, VIP6, Lab, UnsupportedFaultError, wait_until
from tests.lab.bystanders import REFUSING, deaf_to_arp, narrow_link, sniffer, unresolved_neighbour
from tests.lab.scripted import scripted
from tests.lab.servers import coredns
from tests.lab.shapes import node_local_address
from tests.lab.upstream_faults import coredns_server, hung_upstream, need_coredns
from tests.verdicts.case import PLAIN, Case, Injection, LabKind, Lost, nothing_to_set_up
from tests.verdicts.cases.servers import COREDNS, Inject, Setup, all_of, scripted_server
from tests.verdicts.lookups import answered, ask_over_tcp, one_socket, says, wait_unread

TWO = LabKind(servers=2)
TWO_NFT = LabKind("nftables", servers=2)
NODE_LOCAL = LabKind(note="NodeLocal")
TOO_LARGE = frozenset({"LargerThanOffered"})
PARALLEL = frozenset({"ParallelNameservers"})

NARROW_MTU = 1280
"""IPv6 needs as much: a device with less loses its IPv6 addresses and routes for good."""
CACHE_TTL = 1
STALE_SECONDS = 2.2
"""CoreDNS counts whole seconds."""
FAILURE_SECONDS = 2.5
"""Longer than CoreDNS waits for one reply of its upstream."""
OTHER_NAME = f"other.{ANY_UPSTREAM_NAME}"
PREFETCHING = f"""
{ANY_UPSTREAM_NAME} {{
  cache {{
    success 1000 5 5
    prefetch 1 10s 90%
  }}
  forward . {{upstream}}
}}
"""
STALE = f"""
{ANY_UPSTREAM_NAME} {{
  cache {{
    success 1000 {CACHE_TTL} {CACHE_TTL}
    serve_stale 1h
  }}
  forward . {{upstream}}
}}
"""
CHECKED = f"""
{ANY_UPSTREAM_NAME} {{
  forward . {{upstream}} {{
    health_check 100ms
    max_fails 1
  }}
}}
"""
LOOPING = """
. {
  loop
  forward . {upstream}
}
"""
LOCAL_CACHE = """
. {{
  bind {address}
  cache 30
  forward . {vip} {{
    force_tcp
  }}
}}
"""
GETADDRINFO = """
import socket, sys
for name in sys.argv[1:]:
    socket.getaddrinfo(name, 53, type=socket.SOCK_DGRAM)
"""


# --- lookups


def each(count: int, server: str = VIP, *, rdtypes: tuple[str, ...] = ("A",)) -> Inject:
    """One after the other, each from a socket of its own."""

    def inject(injection: Injection) -> list[Lost]:
        found = answered(injection.lab.clients[0], injection.names(count), server, rdtypes=rdtypes)
        return [(name, rdtype) for name in found for rdtype in rdtypes]

    return inject


def word(word_: str, *, direct: bool = False, upstream: bool = False, rdtype: str = "A") -> Inject:
    """One lookup, of which a scripted server makes what the word says."""

    def inject(injection: Injection) -> list[Lost]:
        name = f"{word_}.{injection.upstream_name if upstream else injection.name}"
        server = injection.lab.servers[0].address if direct else VIP
        said = says(injection.lab.clients[0].ask(name, rdtype, server, seconds=2))
        return [name] if said == "NOERROR" else []

    return inject


def by_getaddrinfo(count: int) -> Inject:
    """As most programs: A and AAAA at once from one socket, here with a program that asks for many names."""

    def inject(injection: Injection) -> list[Lost]:
        names, client = injection.names(count), injection.lab.clients[0]
        argv = client.resolver_argv([sys.executable, "-c", GETADDRINFO, *(f"{name}." for name in names)])
        done = client.run(argv, check=False, timeout=20)
        return [(name, rdtype) for name in names for rdtype in ("A", "AAAA")] if done.returncode == 0 else []

    return inject


def pairs_at_once(count: int, server: str = VIP) -> Inject:
    """A and AAAA from one socket, the second before the first was answered."""

    def inject(injection: Injection) -> list[Lost]:
        found: list[Lost] = []
        for number, name in enumerate(injection.names(count)):
            with one_socket(injection.lab.clients[0], server) as sock:
                sock.send(name, "A", server, id_=2 * number)
                sock.send(name, "AAAA", server, id_=2 * number + 1)
                found += [(name, "A"), (name, "AAAA")] if sock.replies(2) else []
        return found

    return inject


def over_tcp(count: int, *, reset: bool = False) -> Inject:
    """Connections closed at once after the reply, by FIN or by RST."""

    def inject(injection: Injection) -> list[Lost]:
        client = injection.lab.clients[0]
        asked = {name: ask_over_tcp(client, name, reset=reset) for name in injection.names(count)}
        return [name for name, reply in asked.items() if says(reply) == "NOERROR"]

    return inject


def answered_twice(injection: Injection) -> list[Lost]:
    """The server is slower than the client's patience, and answers both attempts."""
    name = f"late-100.{injection.name}"
    with one_socket(injection.lab.clients[0]) as sock:
        for _ in range(2):
            sock.send(name, id_=3)
        return [name] if sock.replies(2) else []


def closed_with_unread_replies(injection: Injection) -> list[Lost]:
    """Two servers are asked, and the socket is closed when the second answer waits in it."""
    client, servers = injection.lab.clients[0], injection.lab.servers
    with one_socket(client) as sock:
        for server in servers:
            sock.send(injection.name, "A", server.address, id_=5)
        if not sock.replies(1):
            return []
        wait_unread(sock.sock)
    return [injection.name]


def flushed_meanwhile(injection: Injection) -> list[Lost]:
    """The connection table is emptied while the server thinks; nothing was translated, so nothing is lost."""
    name = f"late-200.{injection.name}"
    with one_socket(injection.lab.clients[0]) as sock:
        sock.send(name, "A", injection.lab.servers[0].address, id_=6)
        injection.lab.node.run(["conntrack", "--flush"])
        return [name] if sock.replies(1) else []


def after_arp(injection: Injection) -> list[Lost]:
    """The first question for the server's link-layer address is not heard."""
    lab = injection.lab
    with deaf_to_arp(lab.node, lab.servers[0]) as listen, one_socket(lab.clients[0]) as sock:
        sock.send(injection.name, id_=8)
        listen()
        return [injection.name] if sock.replies(1) else []


def by_musl(injection: Injection) -> list[Lost]:
    """Every server is asked at once; the slower answer finds nobody."""
    if not shutil.which("musl-gcc"):
        raise UnsupportedFaultError("musl-gcc is missing: install the Debian package musl-tools")
    from tests.kernel.test_resolvers import resolver_command  # noqa: PLC0415  it compiles, and needs musl-gcc

    client, servers = injection.lab.clients[0], [server.address for server in injection.lab.servers]
    argv = client.resolver_argv([*resolver_command("musl"), f"{injection.name}."], nameserver=servers)
    found = client.run(argv, check=False).returncode == 0
    return [(injection.name, "A"), (injection.name, "AAAA")] if found else []


def asked_again(injection: Injection, *, after_seconds: float = 0.0) -> list[Lost]:
    """The second answer comes from the cache, which the server renews at the same time."""
    client, name = injection.lab.clients[0], injection.upstream_name
    first = says(client.ask(name, seconds=2))
    # Time itself is what the cache goes by.
    time.sleep(after_seconds)
    second = says(client.ask(name, seconds=2))
    return [name] if (first, second) == ("NOERROR", "NOERROR") else []


asked_when_stale = partial(asked_again, after_seconds=STALE_SECONDS)


def each_upstream(injection: Injection) -> list[Lost]:
    """Names for which the server asks its upstream."""
    names = [f"n{number}.{injection.upstream_name}" for number in range(10)]
    return [*answered(injection.lab.clients[0], names)]


def after_an_upstream_failed(injection: Injection) -> list[Lost]:
    """CoreDNS asks a silent upstream for `. NS` again and again, and finds it alive."""
    client, other = injection.lab.clients
    with hung_upstream(injection.lab):
        other.ask(OTHER_NAME, seconds=FAILURE_SECONDS)
    wait_until(lambda: says(other.ask(OTHER_NAME, seconds=1)) == "NOERROR", "CoreDNS to ask its upstream again")
    return [injection.upstream_name] if says(client.ask(injection.upstream_name)) == "NOERROR" else []


def local_cache(injection: Injection) -> list[Lost]:
    """A miss, which goes to the Service over TCP, and a hit; from the pod and from the node."""
    need_coredns()
    with node_local_address(injection.lab.node) as address:
        corefile = LOCAL_CACHE.format(address=address, vip=VIP)
        with coredns(injection.lab.node, corefile, address):
            pods = (injection.lab.clients[0], injection.lab.clients[1], injection.lab.node)
            fine = [pod for pod in pods if says(pod.ask(injection.name, server=address, seconds=2)) == "NOERROR"]
    return [injection.name] if len(fine) == len(pods) else []


# --- what goes on beside them


def sniffed(inject: Inject) -> Inject:
    """Sniffers start and stop in all namespaces of the path while lookups run; one of them refuses every packet."""

    def inside(injection: Injection) -> list[Lost]:
        lab = injection.lab
        with ThreadPoolExecutor(1) as pool:
            lookups = pool.submit(inject, injection)
            for pod in (lab.clients[0], lab.node, lab.servers[0]):
                with sniffer(pod), sniffer(pod, REFUSING):
                    pass
            with ExitStack() as stack:
                for pod in (lab.clients[0], lab.node, lab.servers[0]):
                    stack.enter_context(sniffer(pod))
                return lookups.result(timeout=20)

    return inside


def during(what: Callable[[Lab], AbstractContextManager[object]], inject: Inject) -> Inject:
    """Lookups inside of this."""

    def inside(injection: Injection) -> list[Lost]:
        with what(injection.lab):
            return inject(injection)

    return inside


def server_unresolved(lab: Lab) -> AbstractContextManager[object]:
    return unresolved_neighbour(lab.node, lab.servers[0])


def narrow_to_client(lab: Lab) -> AbstractContextManager[object]:
    return narrow_link(lab.node, lab.clients[0], NARROW_MTU)


def slower_second_server(lab: Lab) -> AbstractContextManager[object]:
    return scripted(lab.servers[1], always="late-50")


def with_corefile(corefile: str) -> Setup:
    return lambda lab: coredns_server(lab, corefile)


def fine(
    what: str,
    inject: Inject,
    *,
    setup: Setup = nothing_to_set_up,
    lab: LabKind = PLAIN,
    findings: frozenset[str] = frozenset(),
) -> Case:
    """A row in which nothing was lost."""
    return Case(
        fault=f"benign: {what}",
        code=None,
        status="Succeeded",
        inject=inject,
        setup=setup,
        lab=lab,
        findings=findings,
        exact=True,
    )


CASES: tuple[Case, ...] = (
    fine("nothing at all, IPv4", each(10, rdtypes=("A", "AAAA"))),
    fine("nothing at all, IPv6", each(10, VIP6, rdtypes=("A", "AAAA"))),
    fine("sniffers start and stop", sniffed(each(300))),
    fine("sniffers start and stop, IPv6", sniffed(each(300, VIP6))),
    fine("sniffers start and stop, TCP", sniffed(over_tcp(150))),
    *(
        fine(f"{what}, {lab.translation}, two servers", inject, lab=lab)
        for lab in (TWO, TWO_NFT)
        for what, inject in (
            ("A and AAAA at once by getaddrinfo()", by_getaddrinfo(100)),
            ("A and AAAA at once, IPv4", pairs_at_once(50)),
            ("A and AAAA at once, IPv6", pairs_at_once(50, VIP6)),
        )
    ),
    fine("socket closed with an unread reply", closed_with_unread_replies, lab=TWO, findings=PARALLEL),
    fine("musl asks two servers at once", by_musl, setup=slower_second_server, lab=TWO, findings=PARALLEL),
    fine("CoreDNS prefetches", asked_again, setup=with_corefile(PREFETCHING), lab=COREDNS),
    fine("CoreDNS serves stale", asked_when_stale, setup=with_corefile(STALE), lab=COREDNS),
    fine("CoreDNS checks its upstream's health", after_an_upstream_failed, setup=with_corefile(CHECKED), lab=COREDNS),
    fine("CoreDNS looks for loops", each_upstream, setup=with_corefile(LOOPING), lab=COREDNS),
    fine("3 kB over UDP", word("size-3000", rdtype="TXT"), setup=scripted_server, findings=TOO_LARGE),
    fine(
        "3 kB over UDP, smaller fragments to the client",
        word("size-3000", rdtype="TXT"),
        setup=all_of(scripted_server, narrow_to_client),
        findings=TOO_LARGE,
    ),
    fine(
        "3 kB over UDP without translation, smaller fragments to the client",
        word("size-3000", rdtype="TXT", direct=True),
        setup=all_of(scripted_server, narrow_to_client),
        findings=TOO_LARGE,
    ),
    fine("TCP, closed at once after the reply", over_tcp(20)),
    fine("TCP, reset by the client after the reply", over_tcp(20, reset=True)),
    fine("both attempts answered", answered_twice, setup=scripted_server, findings=frozenset({"Retransmitted"})),
    fine("the first packet waits for ARP", during(server_unresolved, each(3))),
    fine("the first packet waits for ARP's second question", after_arp),
    fine("connection table flushed, nothing translated", flushed_meanwhile, setup=scripted_server),
    fine("NodeLocal: untracked, over TCP to the Service", local_cache, lab=NODE_LOCAL),
)
