"""What TranslatedBy says, for each way in which a virtual address becomes a server's, and for none."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from agent.context.cluster import Backends, NodeLocal, NullCluster, Pod, Service
from agent.context.counters import Ipvs, NullCounters
from agent.context.translation import Direction, Entry, Mechanism, Translation, translate, translated_by
from agent.hop.endpoint import Endpoint
from agent.hop.record import TCP, UDP, Event

CLIENT, VIP, BACKEND = "172.20.2.25", "10.96.0.10", "10.244.1.53"
NODE = 4026531840
CONFIRMED, SOURCE_NAT, DESTINATION_NAT, BOTH_DONE = 8, 16, 32, 384
BY_NAT = CONFIRMED | DESTINATION_NAT | BOTH_DONE
BY_IPVS = CONFIRMED | BOTH_DONE
STATUSES = {
    "DNAT, new": (DESTINATION_NAT | 256, Mechanism.CONNTRACK),
    "DNAT": (BY_NAT, Mechanism.CONNTRACK),
    "DNAT and masquerading": (BY_NAT | SOURCE_NAT, Mechanism.CONNTRACK),
    "ip_vs": (BY_IPVS, Mechanism.IPVS),
    "ip_vs and masquerading": (BY_IPVS | SOURCE_NAT, Mechanism.IPVS),
}


def endpoint(address: str, port: int = 53) -> Endpoint:
    packed = ip_address(address).packed
    return Endpoint(packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed, port)


class Balancer(NullCounters):
    """A node on which ip_vs has these virtual services."""

    def __init__(self, *services: tuple[int, Endpoint], netns: int = NODE) -> None:
        self.netns = netns
        self.known = Ipvs(dict.fromkeys(services, frozenset({endpoint(BACKEND)})), {})

    def ipvs(self, netns: int) -> Ipvs | None:
        return self.known if netns == self.netns else None


class NotAsked(NullCounters):
    """A node that must not be asked: it costs."""

    def ipvs(self, netns: int) -> None:
        raise AssertionError(netns)


class Kubernetes(NullCluster):
    """A cluster with a DNS Service."""

    def __init__(
        self,
        *ready: Endpoint,
        not_ready: tuple[Endpoint, ...] = (),
        name: tuple[str, str] = ("kube-system", "kube-dns"),
        node_local: NodeLocal | None = None,
    ) -> None:
        self.virtual = endpoint(VIP), endpoint("fd00:96::a")
        self.service = Service(*name, headless=False, cluster_ips=tuple(one.address for one in self.virtual))
        self.endpoints = Backends(frozenset(ready), frozenset(not_ready))
        self.cache = node_local

    def service_at(self, address: bytes) -> Service | None:
        return self.service if address in self.service.cluster_ips else None

    def service_of(self, namespace: str, name: str) -> Service | None:
        return self.service if (namespace, name) == (self.service.namespace, self.service.name) else None

    def backends(self, virtual: Endpoint, protocol: int) -> Backends | None:
        return self.endpoints if virtual in self.virtual and protocol in (TCP, UDP) else None

    def node_local(self) -> NodeLocal | None:
        return self.cache


def pod(dns_policy: str = "ClusterFirst", *nameservers: str) -> Pod:
    return Pod("uid", "shop", "cart", None, "node-a", False, dns_policy, nameservers)


def tracked(hops, status: int):
    """The hops with this status wherever an entry is visible."""
    return [replace(hop, ct_status=status if hop.conntrack else 0) for hop in hops]


def untracked(hops, *, counters: bool):
    """The hops without entries, as when something else rewrote the addresses."""
    stat = (0, 0, 0) if counters else None
    return [replace(hop, conntrack=None, stat=stat if hop.conntrack else None) for hop in hops]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("name", STATUSES)
def test_the_entry_on_the_packet_tells_nat_rules_and_ip_vs_apart(world, name: str, v6: bool):  # noqa: FBT001
    status, expected = STATUSES[name]
    lookup = world.Lookup(v6=v6)
    outcome = world.outcome(tracked(lookup.both(), status))
    virtual, backend = endpoint(*lookup.vip), endpoint(*lookup.backend)
    assert translate(outcome, NotAsked()) == Translation(virtual, backend, expected)
    assert translated_by(outcome, NotAsked()) == expected


def test_over_tcp_it_is_the_same(world):
    outcome = world.outcome(tracked(world.Tcp(world.Lookup()).whole(), BY_IPVS))
    assert translated_by(outcome, NotAsked()) == "ipvs"


def test_a_client_on_the_node_itself_is_first_seen_translated(world):
    outcome = world.outcome(tracked(world.Lookup(shape="host").both(), BY_NAT))
    assert translate(outcome, NotAsked()) == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.CONNTRACK)


@pytest.mark.parametrize(
    ("namespaces", "expected"),
    [
        (Balancer((UDP, endpoint(VIP))), Mechanism.IPVS),
        (Balancer((TCP, endpoint(VIP))), Mechanism.CONNTRACK),
        (Balancer((UDP, endpoint("10.96.0.11"))), Mechanism.CONNTRACK),
        (Balancer((UDP, endpoint(VIP)), netns=1), Mechanism.CONNTRACK),
        (NullCounters(), Mechanism.CONNTRACK),
    ],
)
def test_where_the_entry_does_not_say_the_tables_of_ip_vs_are_asked(world, namespaces: NullCounters, expected: str):
    assert translated_by(world.outcome(tracked(world.Lookup().both(), 0)), namespaces) == expected


def test_ip_vs_without_connection_tracking_is_told_by_its_service(world):
    outcome = world.outcome(untracked(world.Lookup().both(), counters=True))
    found = translate(outcome, Balancer((UDP, endpoint(VIP))))
    assert found == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.IPVS)


def test_rewritten_on_the_way_out_without_an_entry_was_a_program(world):
    outcome = world.outcome(untracked(world.Lookup().both(), counters=True))
    assert translate(outcome, NullCounters()) == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.PROGRAM)


def test_rewritten_before_the_connection_table_saw_it_was_a_program(world):
    client, backend = (CLIENT, 44525), (BACKEND, 53)
    entry = (client, backend, backend, client, 2)
    hops = [replace(hop, conntrack=entry if hop.conntrack else None) for hop in world.Lookup().query()]
    found = translate(world.outcome(hops), NullCounters())
    assert found == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.PROGRAM)


def test_where_it_was_not_looked_for_an_entry_nothing_is_said_of_the_mechanism(world):
    outcome = world.outcome(untracked(world.Lookup().both(), counters=False))
    assert translate(outcome, NullCounters()) == Translation(endpoint(VIP), endpoint(BACKEND), None)
    assert translated_by(outcome, NullCounters()) is None


def test_a_lost_record_of_the_translating_hop_is_no_program(world):
    hops = [hop for hop in world.Lookup().both() if not (hop.conntrack and hop.event == Event.TX)]
    world.table.record_loss(world.START, world.START + world.MS)
    outcome = world.outcome([replace(hop, stat=(0, 0, 0)) for hop in hops])
    assert translate(outcome, NullCounters()) == Translation(endpoint(VIP), endpoint(BACKEND), None)


def test_what_goes_from_device_to_device_without_leaving_by_one_was_rewritten_by_a_program(world):
    hops = [hop for hop in world.Lookup().both() if not (hop.netns == NODE and hop.event == Event.TX)]
    found = translate(world.outcome([replace(hop, conntrack=None) for hop in hops]), NullCounters())
    assert found == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.PROGRAM)


def entry(virtual: str, backend: str, status: int) -> Entry:
    client = endpoint(CLIENT, 44525)
    original = Direction(client, endpoint(virtual))
    return Entry(original, Direction(endpoint(backend), client), status)


@pytest.mark.parametrize(("status", "expected"), [(BY_NAT, Mechanism.CONNTRACK), (BY_IPVS, Mechanism.IPVS)])
def test_an_entry_that_was_looked_up_counts_where_no_hop_showed_one(world, status: int, expected: str):
    outcome = world.outcome(world.Lookup().query()[:2])
    found = translate(outcome, NullCounters(), entry=entry(VIP, BACKEND, status))
    assert found == Translation(endpoint(VIP), endpoint(BACKEND), expected)


def test_an_entry_that_translates_nothing_says_nothing(world):
    outcome = world.outcome(world.Lookup().query()[:2])
    assert translate(outcome, NullCounters(), entry=entry(VIP, VIP, CONFIRMED)) is None


def test_what_the_packet_shows_comes_before_what_the_table_says_later(world):
    outcome = world.outcome(tracked(world.Lookup().both(), BY_NAT))
    found = translate(outcome, NullCounters(), entry=entry(VIP, "10.244.1.99", BY_IPVS))
    assert found == Translation(endpoint(VIP), endpoint(BACKEND), Mechanism.CONNTRACK)


def direct(world, **changes: object):
    """A lookup addressed to the server's own address."""
    return world.Lookup(vip=(BACKEND, 53), dnat=False, **changes)


@pytest.mark.parametrize("client", [pod(), pod("ClusterFirstWithHostNet"), pod("None", VIP), pod("Default", "x", VIP)])
@pytest.mark.parametrize("ready", [True, False])
def test_a_query_that_leaves_its_socket_for_a_server_of_the_pods_resolver_was_translated_there(
    world,
    client: Pod,
    ready: bool,  # noqa: FBT001
):
    server = endpoint(BACKEND)
    cluster = Kubernetes(server) if ready else Kubernetes(not_ready=(server,))
    found = translate(world.outcome(direct(world).both()), NullCounters(), cluster, client=client)
    assert found == Translation(endpoint(VIP), server, Mechanism.SOCKET)


@pytest.mark.parametrize("name", [("kube-system", "rke2-coredns-rke2-coredns"), ("openshift-dns", "dns-default")])
def test_distributions_have_other_names_for_the_dns_service(world, name: tuple[str, str]):
    cluster = Kubernetes(endpoint(BACKEND), name=name)
    assert translated_by(world.outcome(direct(world).both()), NullCounters(), cluster, client=pod()) == "socket"


@pytest.mark.parametrize(
    ("cluster", "client"),
    [
        (None, pod()),
        (Kubernetes(endpoint(BACKEND)), None),
        (Kubernetes(endpoint(BACKEND)), pod("Default")),
        (Kubernetes(endpoint(BACKEND)), pod("None", "192.0.2.53")),
        (Kubernetes(endpoint("10.244.1.54")), pod()),
        (Kubernetes(endpoint(BACKEND, 5353)), pod()),
        (Kubernetes(endpoint(BACKEND), name=("kube-system", "other")), pod()),
    ],
)
def test_a_direct_query_is_just_that(world, cluster: Kubernetes | None, client: Pod | None):
    assert translate(world.outcome(direct(world).both()), NullCounters(), cluster, client=client) is None


def test_where_the_node_translates_the_virtual_address_a_direct_query_was_meant(world):
    world.outcome(world.Lookup(port=1).both())
    later = direct(world, port=2).both(world.now + world.SECOND)
    found = translate(world.outcome(later), NullCounters(), Kubernetes(endpoint(BACKEND)), client=pod())
    assert found is None


def test_from_another_node_a_query_comes_translated_and_nothing_is_said(world):
    outcome = world.outcome(world.Lookup(shape="server").both())
    assert translate(outcome, NullCounters(), Kubernetes(endpoint(BACKEND)), client=pod()) is None


def test_node_local_dnscache_answers_at_its_link_local_address_without_translation(world):
    outcome = world.outcome(world.Lookup(shape="local").both())
    address = endpoint("169.254.20.10")
    assert translate(outcome, NullCounters()) == Translation(address, address, Mechanism.NONE)


def test_a_virtual_address_that_is_answered_as_it_is_was_not_translated(world):
    world.addresses[world.SERVER].add(VIP)
    outcome = world.outcome(world.Lookup(dnat=False).both())
    assert translated_by(outcome, NullCounters(), Kubernetes(), client=pod()) == "none"
    assert translated_by(outcome, NullCounters()) is None


def test_any_address_that_node_local_dnscache_listens_on_is_one(world):
    world.addresses[world.SERVER].add("192.0.2.77")
    outcome = world.outcome(world.Lookup(vip=("192.0.2.77", 53), dnat=False).both())
    cache = NodeLocal(pod(), (endpoint("192.0.2.77").address,))
    assert translated_by(outcome, NullCounters(), Kubernetes(node_local=cache)) == "none"


@pytest.mark.parametrize("hops", [1, 2])
def test_of_a_query_that_died_before_translation_nothing_is_said(world, hops: int):
    lost = world.dropped(world.Lookup().query(), hops, stack=("nf_hook_slow", "ip_rcv"))
    assert translate(world.outcome(lost), NullCounters(), Kubernetes(endpoint(BACKEND)), client=pod()) is None


def test_a_virtual_address_that_leaves_the_node_is_not_said_to_be_untranslated(world):
    outcome = world.outcome(world.Lookup(shape="client", dnat=False).both())
    assert translate(outcome, NullCounters(), Kubernetes()) is None


def test_a_reply_alone_says_nothing(world):
    assert translate(world.outcome(world.Lookup().reply()), NullCounters(), Kubernetes(), client=pod()) is None
