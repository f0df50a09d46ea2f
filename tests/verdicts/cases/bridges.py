"""Pods on a bridge: what it floods is seen by others too, and is not theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from agent.lab import VIP, VIP6, Lab, Pod
from tests.lab.bridge import BridgeNetwork, bridged
from tests.lab.policies import Denial, denied
from tests.lab.scripted import scripted
from tests.lab.socket_faults import open_query
from tests.verdicts.case import Case, Injection, LabKind, Lost
from tests.verdicts.lookups import connect

BRIDGE = LabKind(clients=3, note="bridge")
NFTABLES_BRIDGE = LabKind("nftables", clients=3, note="bridge")
FAMILIES = {"IPv4": VIP, "IPv6": VIP6}
SECONDS = 0.2
NOBODY_SAYS = "a bridge's port may lead to who has the address without a hop"

Asker = Callable[[Lab], Pod]


class Shared:
    """What a case's setup has built, for its injections."""

    network: BridgeNetwork


def pod_of(lab: Lab) -> Pod:
    return lab.clients[0]


def node_of(lab: Lab) -> Pod:
    return lab.node


@contextmanager
def on_bridge(lab: Lab) -> Iterator[None]:
    with bridged(lab, translated_back=True) as Shared.network:
        yield


@contextmanager
def server_torn_down(lab: Lab) -> Iterator[None]:
    """Each client has asked the server itself before, and knows its link-layer address."""
    with on_bridge(lab), Shared.network.torn_down(lab.servers[0]):
        yield


@contextmanager
def slow_server(lab: Lab) -> Iterator[None]:
    with on_bridge(lab), scripted(lab.servers[0], Shared.network.server, Shared.network.server6):
        yield


def by_service(asker: Asker, vip: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        reply = asker(injection.lab).ask(injection.name, server=vip, seconds=SECONDS)
        return [] if reply else [injection.name]

    return inject


def directly(family: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        server = Shared.network.server if family == "IPv4" else Shared.network.server6
        reply = injection.lab.clients[0].ask(injection.name, server=server, seconds=SECONDS)
        return [] if reply else [injection.name]

    return inject


def over_tcp(vip: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        lost = connect(injection.lab.clients[0], injection.port, vip, seconds=SECONDS)
        return [lost] if lost else []

    return inject


def client_torn_down(vip: str) -> Callable[[Injection], list[Lost]]:
    """The client's pod is gone when the server answers."""

    def inject(injection: Injection) -> list[Lost]:
        client, name = injection.lab.clients[0], f"late-300.{injection.name}"
        with ExitStack() as stack:
            query = stack.enter_context(open_query(client, name, server=vip))
            query.send()
            time.sleep(0.1)
            with Shared.network.torn_down(client):
                return [] if query.reply(0.5) else [name]

    return inject


def denied_on_bridge(tool: str, vip: str, *, ipv6: bool) -> Callable[[Injection], list[Lost]]:
    """A rule against replies, which pass the bridge only."""

    def inject(injection: Injection) -> list[Lost]:
        lab = injection.lab
        with denied(lab.node, Denial(tool, "FORWARD", message="reply", ipv6=ipv6)):  # type: ignore[arg-type]
            reply = lab.clients[0].ask(injection.name, server=vip, seconds=SECONDS)
        return [] if reply else [injection.name]

    return inject


def torn_down() -> Iterator[Case]:
    code = "NeighbourFailure"
    for kind in (BRIDGE, NFTABLES_BRIDGE):
        by = f"kube-proxy by {kind.translation}"
        for family, vip in FAMILIES.items():
            ways = {
                "": by_service(pod_of, vip),
                ", hostNetwork client": by_service(node_of, vip),
                ", asked by its own address": directly(family),
                ", TCP": over_tcp(vip),
            }
            for way, inject in ways.items():
                yield Case(
                    fault=f"bridge, server pod torn down{way}, {family} ({by})",
                    code=code,
                    confidence="medium",
                    limit=NOBODY_SAYS,
                    inject=inject,
                    setup=server_torn_down,
                    says=("all its ports", "the query was lost"),
                    lab=kind,
                )
            yield Case(
                fault=f"bridge, client pod torn down before the reply, {family} ({by})",
                code=code,
                # The server may have to ask for the client's link-layer address again, and give up.
                confidence=None,
                limit=NOBODY_SAYS,
                inject=client_torn_down(vip),
                setup=slow_server,
                says=("the reply was lost",),
                lab=kind,
            )


def by_rules() -> Iterator[Case]:
    for tool in ("iptables-legacy", "iptables-nft", "nftables"):
        for family, vip in FAMILIES.items():
            yield Case(
                fault=f"bridge, {tool}, FORWARD of what is bridged, reply, {family}",
                code="PolicyDrop",
                inject=denied_on_bridge(tool, vip, ipv6=family == "IPv6"),
                setup=on_bridge,
                says=("FORWARD", "dropped the reply."),
                lab=BRIDGE,
            )


CASES: tuple[Case, ...] = (*torn_down(), *by_rules())
