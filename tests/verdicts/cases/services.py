"""Services without anybody behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

from agent.lab import VIP, VIP6, Lab, Pod
from tests.lab.service_faults import service_without_endpoints
from tests.verdicts.case import PLAIN, Case, Hop, Injection, LabKind, Lost
from tests.verdicts.lookups import connect

NFTABLES = LabKind("nftables")
FAMILIES = {"": VIP, ", IPv6": VIP6}
SECONDS = 0.2
OTHER_NAME = "other.any.cluster.local"
"""Of lookups that are not looked at."""
NO_API = "without the cluster's list of endpoints it is the packet alone that tells"


def pod_of(lab: Lab) -> Pod:
    return lab.clients[0]


def node_of(lab: Lab) -> Pod:
    return lab.node


@contextmanager
def had_endpoints(lab: Lab) -> Iterator[None]:
    """The Service's address has been translated before, as that of a Service in use always has."""
    for vip in FAMILIES.values():
        assert lab.clients[0].ask(OTHER_NAME, server=vip, seconds=1)
    lab.node.run(["conntrack", "-F"])
    with service_without_endpoints(lab):
        yield


def over_udp(asker: Callable[[Lab], Pod], vip: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        reply = asker(injection.lab).ask(injection.name, server=vip, seconds=SECONDS)
        return [] if reply else [injection.name]

    return inject


def over_tcp(asker: Callable[[Lab], Pod], vip: str) -> Callable[[Injection], list[Lost]]:
    def inject(injection: Injection) -> list[Lost]:
        lost = connect(asker(injection.lab), injection.port, vip, seconds=SECONDS)
        return [lost] if lost else []

    return inject


def last_hop_of(asker: Callable[[Lab], Pod]) -> Callable[[Lab], Hop]:
    """What a program of the node sends has no device yet."""
    return lambda lab: Hop("drop", lab.node.netns_id, None if asker is node_of else lab.clients[0].node_interface)


def without_endpoints() -> Iterator[Case]:
    askers = {"": pod_of, ", hostNetwork client": node_of}
    transports = {"": over_udp, ", TCP": over_tcp}
    for kind, who, family, transport in product((PLAIN, NFTABLES), askers, FAMILIES, transports):
        by = "" if kind == PLAIN else f" (kube-proxy by {kind.translation})"
        yield Case(
            fault=f"Service without endpoints{who}{family}{transport}{by}",
            code="NoEndpoints",
            confidence="medium",
            limit=NO_API,
            inject=transports[transport](askers[who], FAMILIES[family]),
            setup=had_endpoints,
            last_hop=last_hop_of(askers[who]),
            says=(f"[{VIP6}]:53" if family else f"{VIP}:53",),
            # A port that was reported unreachable just now makes the next refusal doubtful.
            lab=kind._replace(note="no endpoints"),
        )


CASES: tuple[Case, ...] = tuple(without_endpoints())
