"""By what the address that a client asked was made the address of a server, or that nothing did so.

The packet's own conntrack entry says most; what is not on it is told by the hops, by what was looked up, and by the
cluster. Nothing is guessed: what the evidence does not tell is None.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import ip_address
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.hop.record import CONNTRACK, COUNTERS, RX, SOCKET_RX, TX
from agent.session.outcome import CQ, translation
from agent.session.takers import DESTINATION_NAT, Means

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.context.cluster import Cluster, Pod
    from agent.context.counters import NamespaceCounters
    from agent.hop.record import Hop
    from agent.session.outcome import Outcome

LINK_LOCAL = V4_MAPPED + bytes((169, 254))
"""169.254.0.0/16: where NodeLocal DNSCache listens beside the Service's address."""
DNS_PORT = 53
ADDRESS_BYTES = 16
CLUSTER_DNS = (
    ("kube-system", "kube-dns"),
    ("kube-system", "coredns"),
    ("kube-system", "rke2-coredns-rke2-coredns"),
    ("openshift-dns", "dns-default"),
)
"""Namespace and name of the Service that the kubelet writes into resolv.conf, by distribution."""
CLUSTER_FIRST = frozenset({"ClusterFirst", "ClusterFirstWithHostNet"})


class Mechanism(StrEnum):
    """What the line says as TranslatedBy."""

    CONNTRACK = "conntrack"
    """NAT rules and the connection table. Whether iptables or nftables holds the rules, packets do not show."""
    IPVS = "ipvs"
    """A virtual service of ip_vs."""
    PROGRAM = "program"
    """Rewritten on the way without connection table and without ip_vs: by a tc or XDP program (Cilium's replacement of
    kube-proxy for pods, Calico's eBPF mode) or a virtual switch."""
    SOCKET = "socket"
    """In the client's socket, before there was a packet (Cilium): the virtual address is never on the wire."""
    TPROXY = "tproxy"
    """Not at all: a transparent proxy took it as it was and answers with the address that was asked."""
    NONE = "none"
    """Not at all: who has the virtual address itself answered (NodeLocal DNSCache, NOTRACK)."""


class Direction(NamedTuple):
    """The addresses of packets that go one way."""

    source: Endpoint
    destination: Endpoint


class Entry(NamedTuple):
    """An entry of the connection table, as it was looked up."""

    original: Direction
    """As the client sends."""
    reply: Direction
    """As the server sends, before that is translated back."""
    status: int
    """enum ip_conntrack_status bits."""

    @property
    def virtual(self) -> Endpoint:
        """What the client asked."""
        return self.original.destination

    @property
    def backend(self) -> Endpoint:
        """Who gets it."""
        return self.reply.source

    @property
    def client(self) -> Endpoint:
        """Who asked, before any masquerading."""
        return self.original.source


class Translation(NamedTuple):
    """What was asked, who got it, and by what; the two are the same where nothing was translated."""

    virtual: Endpoint
    backend: Endpoint
    by: Mechanism | None
    """None where the addresses show that it was translated, and nothing shows by what."""


class _Given(NamedTuple):
    """What a rule looks at."""

    outcome: Outcome
    namespaces: NamespaceCounters
    cluster: Cluster | None
    client: Pod | None
    entry: Entry | None

    def balances(self, netns: int, virtual: Endpoint) -> bool:
        """Whether ip_vs of that namespace has such a virtual service."""
        known = self.namespaces.ipvs(netns)
        return known is not None and (self.outcome.session.key.protocol, virtual) in known.services


def translated_by(
    outcome: Outcome,
    namespaces: NamespaceCounters,
    cluster: Cluster | None = None,
    *,
    client: Pod | None = None,
    entry: Entry | None = None,
) -> Mechanism | None:
    """What `TranslatedBy` says; None for what was not translated, or not known by what. See `translate`."""
    found = translate(outcome, namespaces, cluster, client=client, entry=entry)
    return found.by if found is not None else None


def translate(
    outcome: Outcome,
    namespaces: NamespaceCounters,
    cluster: Cluster | None = None,
    *,
    client: Pod | None = None,
    entry: Entry | None = None,
) -> Translation | None:
    """Which server stood for the address that was asked; None if the session does not show that one did.

    Args:
        outcome: a closed session.
        namespaces: asked for ip_vs, only where no packet shows what happened to it.
        cluster: which addresses are virtual, and what is behind them.
        client: the client's pod. Without it nothing is said of translation in sockets.
        entry: of the connection table, looked up because no hop showed one.
    """
    case = _Given(outcome, namespaces, cluster, client, entry)
    return next((found for rule in RULES if (found := rule(case)) is not None), None)


def by_own_entry(case: _Given) -> Translation | None:
    """The entry that hung on the packet."""
    found = translation(case.outcome.queries)
    if found is None:
        return None
    virtual, backend, hop = found
    by = mechanism(hop.detail.ct_status)
    if by is None:
        by = Mechanism.IPVS if case.balances(hop.netns, virtual) else Mechanism.CONNTRACK
    return Translation(virtual, backend, by)


def by_entry_looked_up(case: _Given) -> Translation | None:
    """The entry that is in the table."""
    entry = case.entry
    if entry is None or entry.virtual == entry.backend:
        return None
    return Translation(entry.virtual, entry.backend, mechanism(entry.status))


def mechanism(status: int) -> Mechanism | None:
    """What made a translated entry so, by its `enum ip_conntrack_status`; None where that is not known (0).

    Only two change where an entry's replies come from: nf_nat, which marks it, and ip_vs, which does not. The callers
    of nf_conntrack_alter_reply() are nf_nat_setup_info() and, in ip_vs_nfct.c, ip_vs_update_conntrack().
    """
    if not status:
        return None
    return Mechanism.CONNTRACK if status & DESTINATION_NAT else Mechanism.IPVS


def by_other_address(case: _Given) -> Translation | None:
    """The destination changed between two hops, and no entry on the packet says so."""
    found = next(_rewritten(case.outcome), None)
    if found is None:
        return None
    before, after = found
    virtual = _destination(before)
    by = Mechanism.PROGRAM if _is_not_tables(after) or _was_redirected(before, after, case.outcome) else None
    return Translation(virtual, _destination(after), Mechanism.IPVS if case.balances(after.netns, virtual) else by)


def _rewritten(outcome: Outcome) -> Iterator[tuple[Hop, Hop]]:
    for query in outcome.queries:
        for before, after in pairwise(query.hops):
            if _destination(before) != _destination(after):
                yield before, after


def _is_not_tables(hop: Hop) -> bool:
    """Whether the connection table had no part in it, by a hop that leaves the namespace: elsewhere entries are gone.

    Either the packet came to the table with its new address, or it has no entry: counters are read only then.
    """
    if hop.event != TX:
        return False
    detail = hop.detail
    if hop.flags & CONNTRACK:
        return (detail.ct_original_daddr, detail.ct_original_dport) == (detail.daddr, detail.dport)
    return bool(hop.flags & COUNTERS)


def by_taker(case: _Given) -> Translation | None:
    """It got to a program of a namespace that does not have the address, and earlier replies show how, if anything."""
    outcome = case.outcome
    arrivals = (
        hop
        for query in reversed(outcome.session.queries.transmissions)
        for hop in query.arrivals(outcome.server_netns)
        if outcome.node_state.is_local(hop.netns, hop.detail.daddr) is False
    )
    arrival = next(arrivals, None) if outcome.server_netns is not None else None
    taker = outcome.node_state.takers.find(arrival) if arrival is not None else None
    if arrival is None or taker is None:
        return None
    asked = _destination(arrival)
    return Translation(asked, taker.listens or asked, TAKEN_BY[taker.means])


TAKEN_BY = {
    Means.TRANSPARENT: Mechanism.TPROXY,
    Means.NAT: Mechanism.CONNTRACK,
    Means.IPVS: Mechanism.IPVS,
    Means.REWRITTEN: Mechanism.PROGRAM,
    Means.UNKNOWN: None,
}


def _was_redirected(before: Hop, after: Hop, outcome: Outcome) -> bool:
    """Whether it went from one namespace's device into another namespace without having left by a device.

    That is `bpf_redirect_peer()`: what the tables translate goes through the IP layer, and leaves.
    """
    arrivals = (RX, SOCKET_RX)
    return before.event == RX and after.event in arrivals and before.netns != after.netns and not outcome.lossy


def in_socket(case: _Given) -> Translation | None:
    """The client is set up to ask a virtual address, and its query left its socket for a server behind that."""
    left = _origin(case.outcome)
    if left is None or case.cluster is None or case.client is None:
        return None
    asked = _destination(left)
    resolvers = list(_resolvers(case.client, case.cluster))
    translated = {virtual for _, virtual in case.outcome.node_state.backends}
    if not translated.isdisjoint(resolvers):
        # Where the node translates them, who addresses a server directly does so on purpose.
        return None
    for virtual in resolvers:
        if virtual == asked or _is_v4(virtual) != _is_v4(asked):
            continue
        servers = case.cluster.backends(virtual, case.outcome.session.key.protocol)
        if servers is not None and asked in servers.ready | servers.not_ready:
            return Translation(virtual, asked, Mechanism.SOCKET)
    return None


def _resolvers(client: Pod, cluster: Cluster) -> Iterator[Endpoint]:
    """Virtual addresses in the pod's resolv.conf."""
    for text in client.nameservers:
        address = _packed(text)
        if address is not None and cluster.service_at(address) is not None:
            yield Endpoint(address, DNS_PORT)
    if client.dns_policy in CLUSTER_FIRST:
        for namespace, name in CLUSTER_DNS:
            service = cluster.service_of(namespace, name)
            for address in service.cluster_ips if service is not None else ():
                yield Endpoint(address, DNS_PORT)


def not_at_all(case: _Given) -> Translation | None:
    """A server on this node got the query at an address that is no pod's own."""
    queries = case.outcome.session.queries.transmissions
    if not queries or case.outcome.server_netns is None or not case.outcome.bits & CQ:
        return None
    asked = case.outcome.server
    if not asked.address.startswith(LINK_LOCAL) and not _is_virtual(asked.address, case.cluster):
        return None
    return Translation(asked, asked, Mechanism.NONE)


def _is_virtual(address: bytes, cluster: Cluster | None) -> bool:
    if cluster is None:
        return False
    cache = cluster.node_local()
    return (cache is not None and address in cache.addresses) or cluster.service_at(address) is not None


RULES: tuple[Callable[[_Given], Translation | None], ...] = (
    by_own_entry,
    by_other_address,
    by_entry_looked_up,
    by_taker,
    in_socket,
    not_at_all,
)
"""The first that speaks is heard: what the packets show comes before what they do not."""


def _origin(outcome: Outcome) -> Hop | None:
    return next((query.origin for query in outcome.session.queries.transmissions if query.origin is not None), None)


def _destination(hop: Hop) -> Endpoint:
    detail = hop.detail
    return Endpoint(detail.daddr, detail.dport)


def _is_v4(endpoint: Endpoint) -> bool:
    return endpoint.address.startswith(V4_MAPPED)


def _packed(text: str) -> bytes | None:
    """16 bytes of an address in text; None for what is none."""
    try:
        packed = ip_address(text).packed
    except ValueError:
        return None
    return packed if len(packed) == ADDRESS_BYTES else V4_MAPPED + packed
