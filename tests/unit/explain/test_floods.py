"""What a bridge floods arrives at others too: that is no arrival, and who has no other arrival is gone."""

from dataclasses import replace

import pytest

from agent.context.cluster import Backends, NullCluster
from agent.context.counters import NullCounters
from agent.explain.rules import explain
from agent.hop.endpoint import Endpoint
from agent.hop.record import Event
from tests.unit.conftest import NODE, SERVER, packed

OTHER, ANOTHER = 4026532901, 4026532902
"""Pods on the same bridge, which have neither address."""
US = 1_000


class Gone(NullCluster):
    """A cluster in which the server is no endpoint any more."""

    def backends(self, _virtual, _protocol):
        return Backends(frozenset({Endpoint(packed("10.244.1.99"), 53)}), frozenset())


def flooded(hops, *netns, uplink=False):
    """The last departure is a bridge's own; it goes out by a port for each of these pods, whose kernels refuse it."""
    start = hops[-1]
    bridge = replace(start, ifindex=90, ifname=b"cni0")
    ports = [
        replace(start, ts_ns=start.ts_ns + US * (index + 1), ifindex=91 + index, ifname=b"veth", skb=1000 + index)
        for index in range(len(netns))
    ]
    ports[-1] = replace(ports[-1], skb=bridge.skb)
    if uplink:
        ports.insert(0, replace(start, ts_ns=start.ts_ns + 1, ifindex=3, ifname=b"eth1", skb=999))
    arrivals = [
        replace(port, ts_ns=port.ts_ns + 10 * US, netns=where, ifindex=2, event=Event.RX, conntrack=None, flags=0)
        for port, where in zip(ports[-len(netns) :], netns, strict=True)
    ]
    drops = [
        replace(hop, ts_ns=hop.ts_ns + US, event=Event.DROP, reason="OTHERHOST", location="ip_rcv") for hop in arrivals
    ]
    return [*hops[:-1], bridge, *ports, *arrivals, *drops]


def cause_of(outcome, cluster=None):
    return explain(outcome, NullCounters(), cluster or NullCluster()).cause


@pytest.mark.parametrize("netns", [(OTHER,), (OTHER, ANOTHER)])
def test_a_query_that_all_got_and_nobody_took_found_no_neighbour(world, netns):
    outcome = world.outcome(flooded(world.Lookup().query()[:3], *netns))
    cause = cause_of(outcome)
    assert (cause.code, cause.confidence) == ("NeighbourFailure", "medium")
    assert "10.244.1.53" in cause.text
    assert "cni0" in cause.text
    assert (int(outcome.bitmap), outcome.server_netns, outcome.left_node) == (0, None, False)


def test_with_the_list_of_endpoints_it_is_certain(world):
    cause = cause_of(world.outcome(flooded(world.Lookup().query()[:3], OTHER)), Gone())
    assert (cause.code, cause.confidence) == ("NeighbourFailure", "high")
    assert any("no longer an endpoint of the Service" in line for line in cause.evidence)


def test_what_was_flooded_out_of_the_node_too_has_left_it(world):
    outcome = world.outcome(flooded(world.Lookup().query()[:3], OTHER, uplink=True))
    cause = cause_of(outcome)
    assert (cause.code, int(outcome.bitmap)) == ("LeftNode", 1)
    assert "eth1" in cause.text
    assert (NODE, 3) not in world.table.node_state.linked


def test_a_reply_that_others_got_is_not_delivered(world):
    lookup = world.Lookup()
    outcome = world.outcome(lookup.query(), flooded(lookup.reply()[:3], OTHER, ANOTHER))
    cause = cause_of(outcome)
    assert (outcome.delivered, cause.code, cause.confidence) == (False, "NeighbourFailure", "medium")
    assert "the reply was lost" in cause.text


def test_a_server_that_got_a_copy_and_is_silent_is_the_server(world):
    hops = world.Lookup().query()
    others = [hop for hop in flooded(hops[:3], OTHER) if hop.netns == OTHER]
    outcome = world.outcome(hops, others)
    assert (cause_of(outcome).code, outcome.server_netns) == ("ServerNoReply", SERVER)


@pytest.mark.parametrize("known", [None, False])
def test_a_copy_that_nobody_refused_came_to_the_server_whosever_address_it_is(world, known):
    world.table.node_state.is_local = lambda _netns, _address: known
    hops = world.Lookup().query()
    cause = cause_of(world.outcome(hops, [hop for hop in flooded(hops[:3], OTHER) if hop.netns == OTHER]))
    assert cause.code != "NeighbourFailure"


def asked_again(world):
    """The way of a query, a while after the server has answered another one."""
    world.outcome(world.Lookup().query(), world.Lookup().reply())
    return world.Lookup(identifier=7).query(world.now + world.SECOND)


def test_the_next_pod_with_the_number_of_a_namespace_that_is_gone_is_not_the_server_that_lived_there(world):
    hops = asked_again(world)
    world.addresses[SERVER] = {"10.244.1.54"}
    outcome = world.outcome(flooded(hops[:3], SERVER))
    cause = cause_of(outcome)
    assert (cause.code, outcome.server_netns) == ("NeighbourFailure", None)
    assert "cni0" in cause.text


def test_a_namespace_that_is_gone_when_the_lookup_is_told_was_its_servers(world):
    hops = asked_again(world)
    world.knows_addresses = False
    outcome = world.outcome(hops)
    assert (cause_of(outcome).code, outcome.server_netns) == ("ServerNoReply", SERVER)


def test_a_flooded_lookup_that_is_answered_is_fine(world):
    lookup = world.Lookup()
    others = [hop for hop in flooded(lookup.query()[:3], OTHER) if hop.netns == OTHER]
    outcome = world.outcome(lookup.query(), others, lookup.reply())
    assert (outcome.status, cause_of(outcome)) == ("Succeeded", None)
