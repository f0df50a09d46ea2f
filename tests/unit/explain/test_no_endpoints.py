"""agent.explain.endpoints: a Service without servers is told from a rule that refuses."""

from dataclasses import replace

import pytest

from agent.context.cluster import Backends, NullCluster, Outage, Pod, Service
from agent.context.counters import Ipvs, NullCounters
from agent.explain.rules import explain
from agent.hop.endpoint import Endpoint
from agent.wire.stream import SYN
from tests.unit.conftest import BACKEND, HOST, HOST6, NODE, POD, POD6, START, VIP, VIP6, packed

FORWARD = ("nf_hook_slow", "ip_forward")
FORWARD6 = ("nf_hook_slow", "ip6_forward")
INPUT = ("nf_hook_slow", "ip_local_deliver")
OUTPUT = ("nf_hook_slow", "__ip_local_out")
PREROUTING = ("nf_hook_slow", "ip_rcv")
SECOND = 1_000_000_000
BOOT_NS = 1_700_000_000 * SECOND
"""What the cluster's clock is ahead of the kernel's."""
SERVERS = frozenset({Endpoint(packed(BACKEND[0]), 53)})
NONE_READY = Backends(frozenset(), SERVERS)


class ApiServer(NullCluster):
    """A cluster with one DNS Service."""

    def __init__(self, listed=NONE_READY, pods=(POD[0], POD6[0])):
        self.listed, self.pods = listed, {packed(address) for address in pods}

    def backends(self, virtual, _protocol):
        return self.listed if virtual in {Endpoint(packed(VIP[0]), 53), Endpoint(packed(VIP6[0]), 53)} else None

    def service_at(self, address):
        known = address in {packed(VIP[0]), packed(VIP6[0])}
        return Service("kube-system", "kube-dns", False, (address,)) if known else None

    def pod_at(self, address, _ts_ns):
        known = address in self.pods
        return Pod("uid", "shop", "cart", None, "node-a", False, "ClusterFirst", ()) if known else None


class Balanced(NullCounters):
    """A node with one virtual service of ip_vs."""

    def __init__(self, servers):
        self.tables = Ipvs({(17, Endpoint(packed(VIP[0]), 53)): frozenset(servers)}, {})

    def ipvs(self, netns):
        return self.tables if netns == NODE else None


def refused(world, stack=FORWARD, sender=HOST[0], **kind):
    """A query that a rule of the node refuses, and what the node says of it."""
    lookup = world.Lookup(**kind)
    hops = world.dropped(lookup.query(world.now), 2, stack=stack)
    code = (1, 4) if lookup.v6 else (3, 3)
    return world.outcome(hops, [world.icmp(hops[-1], *code, sender)] if sender else [])


def cause_of(outcome, namespaces=None, cluster=None):
    return explain(outcome, namespaces or NullCounters(), cluster or NullCluster(), wall_offset_ns=BOOT_NS).cause


@pytest.mark.parametrize("sender", [HOST[0], None])
def test_the_list_of_endpoints_tells_who_is_missing(world, sender):
    cause = cause_of(refused(world, sender=sender), cluster=ApiServer())
    assert (cause.code, cause.confidence) == ("NoEndpoints", "high")
    assert "kube-system/kube-dns" in cause.text
    assert any("1 are not ready" in line for line in cause.evidence)


def test_over_ipv6_too(world):
    cause = cause_of(refused(world, FORWARD6, HOST6[0], v6=True), cluster=ApiServer())
    assert (cause.code, cause.confidence) == ("NoEndpoints", "high")
    assert f"[{VIP6[0]}]:53" in cause.text


def test_over_tcp_too(world):
    asked = world.dropped(world.Tcp(world.Lookup()).segment(START, flags=SYN)[1:], 2, stack=FORWARD)
    cause = cause_of(world.outcome(asked, [world.icmp(asked[-1], 3, 3, HOST[0])]), cluster=ApiServer())
    assert (cause.code, cause.confidence) == ("NoEndpoints", "high")


def test_a_program_of_the_node_is_told_the_same(world):
    (drop,) = world.dropped(world.Lookup(shape="host").query(), 1, stack=OUTPUT)[-1:]
    drop = replace(drop, destination=VIP, conntrack=None)
    cause = cause_of(world.outcome([drop]), cluster=ApiServer())
    assert (cause.code, cause.confidence) == ("NoEndpoints", "high")


def test_a_list_that_may_be_old_is_no_certainty(world):
    cause = cause_of(refused(world), cluster=ApiServer(NONE_READY._replace(current=False)))
    assert (cause.code, cause.confidence) == ("NoEndpoints", "medium")


def test_who_was_missing_then_may_be_back_now(world):
    outage = Outage(BOOT_NS + START - SECOND, BOOT_NS + START + SECOND)
    listed = Backends(SERVERS, frozenset(), outage=outage)
    assert cause_of(refused(world), cluster=ApiServer(listed)).code == "NoEndpoints"


@pytest.mark.parametrize(
    "listed",
    [
        Backends(SERVERS, frozenset()),
        Backends(frozenset(), SERVERS, outage=Outage(BOOT_NS + START + 60 * SECOND, None)),
        Backends(SERVERS, frozenset(), outage=Outage(0, BOOT_NS + START - 60 * SECOND)),
    ],
)
def test_a_rule_is_blamed_while_the_service_has_servers(world, listed):
    assert cause_of(refused(world, sender=None), cluster=ApiServer(listed)).code == "PolicyDrop"


def test_a_rule_before_translation_is_the_rules(world):
    assert cause_of(refused(world, PREROUTING), cluster=ApiServer()).code == "PolicyDrop"


def test_a_rule_in_the_pod_is_the_rules(world):
    hops = world.dropped(world.Lookup().query(), 1, stack=OUTPUT)[-1:]
    assert cause_of(world.outcome(hops), cluster=ApiServer()).code == "PolicyDrop"


def test_a_rule_behind_translation_is_the_rules(world):
    hops = world.dropped(world.Lookup().query(), 3, stack=("nf_hook_slow", "ip_output"))
    assert cause_of(world.outcome(hops), cluster=ApiServer()).code == "PolicyDrop"


def test_a_server_that_has_the_services_address_itself_needs_no_endpoint(world):
    cache = "169.254.20.10", 53
    listed = ApiServer()
    listed.backends = lambda _virtual, _protocol: NONE_READY
    hops = world.dropped(world.Lookup(vip=cache).query(), 2, stack=INPUT)
    assert cause_of(world.outcome(hops), cluster=listed).code == "PolicyDrop"


def test_a_server_that_hangs_is_no_missing_endpoint(world):
    assert cause_of(world.outcome(world.Lookup().query()), cluster=ApiServer()).code == "ServerNoReply"


def test_without_the_list_others_that_were_translated_before_make_it_likely(world):
    world.outcome(world.Lookup(port=2000).both())
    cause = cause_of(refused(world))
    assert (cause.code, cause.confidence) == ("NoEndpoints", "medium")
    assert any("would look the same" in line for line in cause.evidence)


def test_the_node_need_not_say_so_each_time(world):
    world.outcome(world.Lookup(port=2000).both())
    cause = cause_of(refused(world, sender=None))
    assert (cause.code, cause.confidence) == ("NoEndpoints", "medium")


def test_a_silent_drop_before_translation_is_a_rules(world):
    world.outcome(world.Lookup(port=2000).both())
    (drop,) = world.dropped(world.Lookup(shape="host").query(world.now), 1, stack=OUTPUT)[-1:]
    assert cause_of(world.outcome([replace(drop, destination=VIP, conntrack=None)])).code == "PolicyDrop"


def test_what_the_node_said_of_one_lookup_is_true_of_the_next(world):
    first = world.dropped(world.Lookup().query(), 2, stack=FORWARD)
    second = world.dropped(world.Lookup(port=3000).query(START + SECOND), 2, stack=FORWARD)
    causes = [cause_of(one) for one in world.outcomes(first, [world.icmp(first[-1], 3, 3, HOST[0])], second)]
    assert [(cause.code, cause.confidence) for cause in causes] == [("PolicyDrop", "medium")] * 2


def test_an_error_that_comes_before_the_death_it_is_about_belongs_to_that(world):
    (drop,) = world.dropped(world.Lookup(shape="host").query(), 1, stack=OUTPUT)[-1:]
    drop = replace(drop, destination=VIP, conntrack=None)
    error = replace(world.icmp(drop, 3, 3, HOST[0]), ts_ns=drop.ts_ns - 30 * world.US)
    assert any("port unreachable" in line for line in cause_of(world.outcome([error, drop])).evidence)


def test_where_nothing_is_known_of_the_address_a_refusal_is_a_rules_with_reserve(world):
    cause = cause_of(refused(world))
    assert (cause.code, cause.confidence) == ("PolicyDrop", "medium")
    assert any("without ready endpoints" in line for line in cause.evidence)


def test_ip_vs_without_a_real_server_is_certain(world):
    cause = cause_of(refused(world, INPUT), Balanced([]))
    assert (cause.code, cause.confidence) == ("NoEndpoints", "high")
    assert any("ip_vs" in line for line in cause.evidence)


def test_ip_vs_with_a_real_server_by_now_is_likely(world):
    cause = cause_of(refused(world, INPUT), Balanced(SERVERS))
    assert (cause.code, cause.confidence) == ("NoEndpoints", "medium")
    assert "it was not translated, but its address is a virtual service of ip_vs" in cause.evidence


@pytest.mark.parametrize(("reason", "location"), [("TC_INGRESS", ""), ("IP_INNOROUTES", "ip_error")])
def test_what_has_nowhere_to_go_and_no_endpoint_is_likely_to_lack_that(world, reason, location):
    hops = world.dropped(world.Lookup().query(), 2, reason, location)
    cause = cause_of(world.outcome(hops), cluster=ApiServer())
    assert (cause.code, cause.confidence) == ("NoEndpoints", "medium")


def test_what_was_damaged_is_not_said_to_lack_an_endpoint(world):
    hops = world.dropped(world.Lookup().query(), 2, "UDP_CSUM", "__udp4_lib_rcv")
    assert cause_of(world.outcome(hops), cluster=ApiServer()).code == "ChecksumError"


def test_a_lost_attempt_that_was_answered_in_the_end_has_the_same_cause(world):
    lookup = world.Lookup()
    again = START + 5 * SECOND
    hops = world.dropped(lookup.query(), 2, stack=FORWARD)
    listed = Backends(SERVERS, frozenset(), outage=Outage(0, BOOT_NS + again))
    outcome = world.outcome(hops, lookup.query(again), lookup.reply(again + world.MS))
    cause = cause_of(outcome, cluster=ApiServer(listed))
    assert (outcome.status, cause.code) == ("Succeeded", "NoEndpoints")
