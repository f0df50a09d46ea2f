"""agent.explain.findings: what the cluster's own data add, and when they keep silent."""

from dataclasses import replace

import pytest

from agent.context.cluster import Backends, Member, NodeLocal, NullCluster, Pod, Service, StatefulSet
from agent.context.who import Who
from agent.explain.rules import explain
from agent.hop.endpoint import Endpoint
from tests.unit.conftest import BACKEND, SERVER, VIP, encoded, packed

ADDRESS = b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04"
"""Everything of an A record but its four bytes: a pointer to the question, class IN, TTL 30."""
CART = Pod("u1", "shop", "cart-0", "Deployment/cart", "node-a", False, "ClusterFirst", ())
CACHE = Pod("u2", "kube-system", "node-local-dns-x", "DaemonSet/node-local-dns", "node-a", True, "Default", ())
DNS = Service("kube-system", "kube-dns", False, (packed(VIP[0]),))
REDIS = Service("default", "redis-master", False, (packed("10.96.12.7"),))
WEB = Service("shop", "web", True, ())
ASKED = "redis-master.default.svc.cluster.local."


class Cluster(NullCluster):
    """A cluster of these objects."""

    def __init__(self, *, members=None, sets=(), cache=None, listed=None):
        self.services = {(one.namespace, one.name): one for one in (DNS, REDIS, WEB)}
        self.of_web = members
        self.sets = {(one.namespace, one.name): one for one in sets}
        self.cache = cache
        self.listed = listed

    def service_of(self, namespace, name):
        return self.services.get((namespace, name))

    def members(self, namespace, name):
        return self.of_web if (namespace, name) == ("shop", "web") else None

    def stateful_set(self, namespace, name):
        return self.sets.get((namespace, name))

    def node_local(self):
        return self.cache

    def backends(self, virtual, protocol):
        return self.listed if (virtual, protocol) == (Endpoint(packed(VIP[0]), 53), 17) else None


def said(outcome, cluster, who=None):
    verdict = explain(outcome, cluster=cluster, who=lambda: who or Who(client=CART, service=DNS))
    return verdict.findings, " ".join(verdict.remarks)


def answered(world, name, address, rdtype=1):
    data = ADDRESS + bytes(map(int, address.split(".")))
    return world.outcome(world.Lookup(name=name, rdtype=rdtype).both(tail=data, an=1))


def not_found(world, name):
    return world.outcome(world.Lookup(name=name).both(rcode=3))


def test_the_services_own_address_is_right(world):
    assert said(answered(world, ASKED, "10.96.12.7"), Cluster()) == ([], "")


def test_another_address_than_the_services_is_a_wrong_answer_and_both_are_named(world):
    names, words = said(answered(world, ASKED, "10.96.99.9"), Cluster())
    assert names == ["WrongAnswer"]
    assert "10.96.99.9" in words
    assert "10.96.12.7" in words


@pytest.mark.parametrize(
    "name", ["www.example.com.", "web.shop.svc.cluster.local.", "x.svc.", "nobody.shop.svc.local."]
)
def test_answers_for_other_names_are_not_judged(world, name):
    assert said(answered(world, name, "10.96.99.9"), Cluster()) == ([], "")


def test_a_damaged_answer_section_is_not_judged(world):
    lookup = world.Lookup(name=ASKED)
    assert said(world.outcome(lookup.both(tail=ADDRESS[:7], an=9)), Cluster()) == ([], "")


def test_a_service_that_exists_and_is_not_found_is_a_wrong_answer(world):
    names, words = said(not_found(world, ASKED), Cluster())
    assert names == ["WrongAnswer"]
    assert "default/redis-master exists" in words


def test_not_ready_endpoints_of_a_headless_service_are_named(world):
    members = (Member(packed("10.244.1.9"), "web-0", "web-0", False),)
    names, words = said(not_found(world, "web.shop.svc.cluster.local."), Cluster(members=members))
    assert names == ["NameNotFound"]
    assert "not ready: web-0" in words


def test_a_pod_name_under_the_wrong_service_names_the_stateful_set(world):
    sets = (StatefulSet("shop", "db", "db-headless", 3),)
    names, words = said(not_found(world, "db-0.web.shop.svc.cluster.local."), Cluster(sets=sets, members=()))
    assert names == ["StatefulSetName"]
    assert "db-headless" in words


def test_a_name_nobody_knows_is_just_not_found(world):
    assert said(not_found(world, "nobody.shop.svc.cluster.local."), Cluster()) == (["NameNotFound"], "")


def test_a_truncated_answer_for_a_headless_service_is_too_large_for_it(world):
    members = tuple(Member(packed(f"10.244.1.{n}"), None, None, True) for n in range(1, 101))
    outcome = world.outcome(world.Lookup(name="web.shop.svc.cluster.local.").both(tc=True))
    names, words = said(outcome, Cluster(members=members))
    assert names == ["Truncated", "HeadlessTooLarge"]
    assert "100 endpoints" in words


def local_cache(*addresses):
    return Cluster(cache=NodeLocal(CACHE, tuple(map(packed, addresses))))


def test_a_pod_that_asks_past_the_cache_of_its_node_is_told(world):
    names, words = said(answered(world, ASKED, "10.96.12.7"), local_cache("169.254.20.10"))
    assert names == ["NodeLocalBypassed"]
    assert "169.254.20.10" in words


@pytest.mark.parametrize("who", [Who(client=CACHE, service=DNS), Who(service=DNS), Who(client=CART)])
def test_the_cache_itself_strangers_and_other_servers_clients_bypass_nothing(world, who):
    assert said(answered(world, ASKED, "10.96.12.7"), local_cache("169.254.20.10"), who) == ([], "")


def test_a_cache_that_listens_on_the_services_address_is_not_bypassed(world):
    assert said(answered(world, ASKED, "10.96.12.7"), local_cache("169.254.20.10", VIP[0])) == ([], "")


def crowd(world, backends, lookups):
    """The last of so many lookups, spread over servers like this; each server lives in a namespace of its own."""
    for index in range(lookups):
        lookup = world.Lookup(port=2000 + index, identifier=index)
        lookup.backend = backends[index % len(backends)]
        home = SERVER + backends.index(lookup.backend)
        hops = [replace(hop, netns=home) if hop.netns == SERVER else hop for hop in lookup.both(world.now + world.MS)]
        world.feed(hops)
        world.later(50 * world.MS)
    return world.later(world.SECOND)[-1]


@pytest.mark.parametrize(
    ("share", "told"), [([BACKEND] * 9 + [("10.244.1.54", 53)], True), ([BACKEND, ("10.244.1.54", 53)], False)]
)
def test_a_server_with_far_more_than_its_share_is_told(world, share, told):
    last = crowd(world, share, 251)
    assert ("ServerImbalance" in explain(last).findings) is told


def test_few_answers_are_uneven_by_chance(world):
    assert "ServerImbalance" not in explain(crowd(world, [BACKEND] * 9 + [("10.244.1.54", 53)], 41)).findings


def stale(world, listed):
    hops = [
        replace(hop, conntrack=(*hop.conntrack[:4], 0), ct_status=8) if hop.conntrack else hop
        for hop in world.dropped(world.Lookup().query(), 3, "IP_INNOROUTES", "ip_error")
    ]
    return explain(world.outcome(hops), cluster=Cluster(listed=listed)).cause


def test_an_entry_to_what_is_no_endpoint_is_stale_for_certain(world):
    other = frozenset({Endpoint(packed("10.244.1.54"), 53)})
    cause = stale(world, Backends(other, frozenset()))
    assert (cause.code, cause.confidence) == ("StaleConntrackEntry", "high")


def test_an_entry_to_an_endpoint_is_not_stale(world):
    own = frozenset({Endpoint(packed(BACKEND[0]), 53)})
    assert stale(world, Backends(own, frozenset())).code == "NoRoute"


def test_a_list_that_may_be_old_proves_nothing(world):
    assert stale(world, Backends(frozenset(), frozenset(), current=False)).code == "NoRoute"


def test_names_in_wire_format_are_read_whatever_they_hold(world):
    assert said(not_found(world, encoded(".".join(["x" * 63] * 3) + ".svc.a.")), Cluster())[0] == ["NameNotFound"]
