"""agent.session.proxies, agent.session.stages: what a DNS proxy of the node takes, and what it asks in turn.

Three ways in which a query comes to a proxy: REDIRECT in the pod, REDIRECT on the node, TPROXY on the node.
"""

from dataclasses import replace

import pytest

from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.hop.endpoint import Endpoint as Packed
from agent.hop.endpoint import endpoint_to_text
from agent.hop.record import Event, Flag
from tests.unit.conftest import (
    BACKEND,
    BACKEND6,
    CLIENT,
    HOST,
    HOST6,
    MS,
    NODE,
    POD,
    POD6,
    SECOND,
    START,
    US,
    VIP,
    VIP6,
    Lookup,
    PlainHop,
    Tcp,
    dropped,
    icmp,
    packed,
)

CONTEXT = Context("node-a", 0)
PROXY = (b"dns-proxy", 4711)
DESTINATION_NAT = 1 << 5
FORWARDED = {"aa": False, "ra": True}
BARE = {"rcode": 2, "aa": False}
REFUSED = 5
PLANES = ("pod", "node", "tproxy")


class Taken(Lookup):
    """The application's lookup, which a proxy takes. `plane` says how."""

    plane = "tproxy"
    answers_tracked = True
    """Whether the proxy's reply has an entry in the connection table."""

    @property
    def listens(self):
        if self.plane == "pod":
            return ("::1" if self.v6 else "127.0.0.1", 15053)
        return ((HOST6 if self.v6 else HOST)[0], 15053)

    def steps(self, *, response):
        tx, rx, own = Event.TX, Event.RX, Flag.ORIGIN | Flag.PROCESS
        asked, said = (self.client, self.vip), (self.vip, self.client)
        if self.plane == "pod":
            ends = said if response else (self.client, self.listens)
            return [(0, "lo", tx, own, *ends, True), (3, "lo", rx, 0, *ends, True)]
        if response:
            return [
                (0, "vethc", tx, own, *said, self.answers_tracked),
                (5, "client", rx, 0, *said, False),
            ]
        return [(0, "client", tx, own, *asked, False), (9, "vethc", rx, 0, *asked, False)]

    def tracked(self, *, response, first=True):
        backend = self.vip if self.plane == "tproxy" else self.listens
        return self.client, self.vip, backend, self.client, 3 if response else 2 if first else 0

    def _hops(self, data, ts_ns, *, response) -> list[PlainHop]:
        status = DESTINATION_NAT if self.plane != "tproxy" else 0
        hops = super()._hops(data, ts_ns, response=response)
        return [replace(hop, ct_status=status if hop.conntrack else 0, **of_proxy(hop, response)) for hop in hops]


def of_proxy(hop, response):
    return dict(zip(("comm", "tgid"), PROXY, strict=True)) if response and hop.flags & Flag.PROCESS else {}


class Podside(Lookup):
    """What a proxy in the pod asks: by the pod's own device, with another port."""

    def steps(self, *, response):
        tx, rx, own = Event.TX, Event.RX, Flag.ORIGIN | Flag.PROCESS
        ask, asked = (self.client, self.vip), (self.client, self.backend)
        if response:
            say, said = asked[::-1], ask[::-1]
            return [
                (0, "server", tx, own, *say, False),
                (3, "vethd", rx, 0, *say, False),
                (12, "vethc", tx, 0, *said, True),
                (13, "client", rx, 0, *said, False),
            ]
        return [
            (0, "client", tx, own, *ask, False),
            (3, "vethc", rx, 0, *ask, False),
            (12, "vethd", tx, 0, *asked, True),
            (13, "server", rx, 0, *asked, False),
        ]


class Nodeside(Lookup):
    """What a proxy of the node asks, not translated: the server has the address that was asked."""

    def steps(self, *, response):
        tx, rx, own = Event.TX, Event.RX, Flag.ORIGIN | Flag.PROCESS
        if response:
            said = (self.vip, self.client)
            return [(0, "server", tx, own, *said, False), (3, "vethd", rx, 0, *said, False)]
        asked = (self.client, self.vip)
        return [(0, "vethd", tx, own, *asked, False), (3, "server", rx, 0, *asked, False)]


def taken(plane="tproxy", **changes):
    """The application's lookup. What a transparent proxy takes is addressed to the server's own address."""
    v6 = changes.get("v6", False)
    given = {"vip": (BACKEND6 if v6 else BACKEND) if plane == "tproxy" else (VIP6 if v6 else VIP)} | changes
    kind = type("Taken", (Taken,), {"plane": plane, "answers_tracked": given.pop("tracked", True)})
    return kind(**given)


ASKS = {
    "own address": {},
    "client's address": {"port": 51000},
    "client's address and id": {"port": 51000, "same_id": True},
    "client's address and port": {"same_port": True},
    "client's address, port and id": {"same_port": True, "same_id": True},
}


def onward(lookup, how="own address"):
    """What the proxy of this lookup asks."""
    comm, tgid = PROXY
    asked = {"name": lookup.name, "rdtype": lookup.rdtype, "v6": lookup.v6, "comm": comm, "tgid": tgid}
    identifier = lookup.identifier if ASKS[how].get("same_id") else lookup.identifier + 1
    if lookup.plane == "pod":
        return Podside(client=(lookup.client[0], 52000), identifier=identifier, **asked)
    if lookup.plane == "node":
        return Lookup(shape="host", client=((HOST6 if lookup.v6 else HOST)[0], 52000), identifier=identifier, **asked)
    own = (HOST6 if lookup.v6 else HOST)[0]
    client = {"own address": (own, 52000)}.get(how, (lookup.client[0], 51000))
    if ASKS[how].get("same_port"):
        client = lookup.client
    return Nodeside(client=client, vip=lookup.vip, dnat=False, identifier=identifier, **asked)


def healthy(lookup, how="own address", start=START, **reply):
    """The proxy asks 0.1 ms after it got the query, is answered after 2 ms and answers 0.1 ms later."""
    ask = onward(lookup, how)
    reply = FORWARDED | reply
    return [
        *lookup.query(start),
        *ask.query(start + 100 * US),
        *ask.reply(start + 2 * MS, **reply),
        *lookup.reply(start + 2 * MS + 100 * US, **reply),
    ]


def warm(world, plane="tproxy", how="own address", **changes):
    """An earlier lookup, by which the node is known."""
    for one in world.outcomes(healthy(taken(plane, port=2000, name="earlier.local.", **changes), how, world.now)):
        assert one.status.value == "Succeeded"
    return world.now + SECOND


def line_of(outcome):
    return build(outcome, explain(outcome), CONTEXT)


def masks(outcome):
    return outcome.status.value, int(outcome.bitmap), int(outcome.path)


def cause(outcome):
    return explain(outcome).cause


def application(outcomes):
    """The lookups that no other was made for."""
    return [one for one in outcomes if one.session.upstream_of is None]


def told(outcome):
    return [(one.address, one.port, one.rcode) for one in line_of(outcome).upstream]


CASES = [(plane, "own address") for plane in PLANES] + [("tproxy", how) for how in ASKS if how != "own address"]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(("plane", "how"), CASES)
def test_a_proxy_is_the_server_and_what_it_asks_is_its_upstream(world, plane, how, v6):
    lookup = taken(plane, v6=v6)
    outcomes = world.outcomes(healthy(lookup, how))
    (one,) = application(outcomes)
    (asked,) = [other for other in outcomes if other is not one]
    assert (masks(one), cause(one), explain(one).findings) == (("Succeeded", 15, 63), None, [])
    assert told(one) == [(*lookup.vip, "NOERROR")]
    line = line_of(one)
    assert (line.server.address, line.server.port, line.server.process) == (*lookup.vip, "dns-proxy")
    assert line.server.backend_netns == (CLIENT if plane == "pod" else NODE)
    assert (masks(asked), cause(asked), line_of(asked).upstream_of.client) == (
        ("Succeeded", 3, 51),
        None,
        f"[{POD6[0]}]:44525" if v6 else "172.20.2.25:44525",
    )


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(("plane", "mechanism"), [("pod", "conntrack"), ("node", "conntrack"), ("tproxy", "tproxy")])
def test_the_line_says_how_the_query_came_to_the_proxy(world, plane, mechanism, v6):
    lookup = taken(plane, v6=v6)
    (one,) = application(world.outcomes(healthy(lookup)))
    server = line_of(one).server
    backend = None if plane == "tproxy" else endpoint_to_text(*packed_endpoint(lookup.listens))
    assert (server.backend, server.translated_by) == (backend, mechanism)


def packed_endpoint(endpoint):
    return Packed(packed(endpoint[0]), endpoint[1])


def test_it_says_so_for_the_queries_of_every_device(world):
    warm(world, "node")
    hops = [
        replace(hop, ifindex=12) if hop.netns == NODE and hop.ifindex == 10 else hop
        for hop in healthy(taken("node"), start=world.now + SECOND)
    ]
    (one,) = application(world.outcomes(hops))
    assert (line_of(one).server.backend, line_of(one).server.translated_by) == ("192.0.2.10:15053", "conntrack")


def test_without_an_entry_of_the_connection_table_nothing_is_said_of_how(world):
    (one,) = application(world.outcomes(healthy(taken(tracked=False))))
    assert line_of(one).server.translated_by is None


# Order, repetition, company


@pytest.mark.parametrize("how", ASKS)
def test_a_client_that_asks_again_while_the_proxy_waits_is_one_lookup(world, how):
    lookup = taken()
    ask = onward(lookup, how)
    outcomes = world.outcomes(
        lookup.query(),
        ask.query(START + 100 * US),
        lookup.query(START + SECOND),
        ask.reply(START + SECOND + 500 * MS, **FORWARDED),
        lookup.reply(START + SECOND + 501 * MS, **FORWARDED),
    )
    (one,) = application(outcomes)
    assert (masks(one), one.attempts, len(one.session.upstream)) == (("Succeeded", 15, 63), 2, 1)
    (asked,) = [other for other in outcomes if other is not one]
    assert (masks(asked), asked.attempts) == (("Succeeded", 3, 51), 1)


@pytest.mark.parametrize("how", ASKS)
def test_each_attempt_may_be_passed_on(world, how):
    lookup = taken()
    ask = onward(lookup, how)
    outcomes = world.outcomes(
        lookup.query(),
        ask.query(START + 100 * US),
        lookup.query(START + SECOND),
        ask.query(START + SECOND + 100 * US),
        ask.reply(START + SECOND + 2 * MS, **FORWARDED),
        lookup.reply(START + SECOND + 3 * MS, **FORWARDED),
    )
    (one,) = application(outcomes)
    assert (masks(one), one.attempts) == (("Succeeded", 15, 63), 2)
    (asked,) = [other for other in outcomes if other is not one]
    assert (masks(asked), asked.attempts) == (("Succeeded", 3, 51), 2)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize("how", ["client's address, port and id"])
def test_an_arrival_that_is_recorded_late_belongs_to_the_clients_leg(world, how, order):
    hops = healthy(taken(), how)
    outcomes = world.outcomes([hops[index] for index in order], hops[4:])
    assert sorted(masks(one) for one in outcomes) == [("Succeeded", 3, 51), ("Succeeded", 15, 63)]


@pytest.mark.parametrize("lost", range(8))
@pytest.mark.parametrize("how", ASKS)
def test_whatever_hop_is_lost_nobody_is_blamed(worlds, how, lost):
    world = worlds(started_ns=-(10**12))
    hops = healthy(taken(), how)
    world.table.record_loss(START, START + SECOND)
    for one in world.outcomes(hops[:lost], hops[lost + 1 :]):
        assert one.status.value in {"Succeeded", "SampleLoss"}


def test_replies_with_other_flags_are_told_apart_too(world):
    # The proxy clears the flags of the server's reply, so that the two are different messages.
    lookup = taken()
    ask = onward(lookup, "client's address, port and id")
    outcomes = world.outcomes(
        lookup.query(),
        ask.query(START + 100 * US),
        ask.reply(START + 2 * MS, aa=True),
        lookup.reply(START + 3 * MS, aa=False, ra=True),
    )
    (one,) = application(outcomes)
    (asked,) = [other for other in outcomes if other is not one]
    assert (masks(one), one.answer_source) == (("Succeeded", 15, 63), "forward")
    assert (masks(asked), asked.answer_source) == (("Succeeded", 3, 51), "local")


@pytest.mark.parametrize("how", ["client's address", "client's address and id", "client's address, port and id"])
def test_clients_with_one_question_have_their_own_exchange_each(world, how):
    clients = [taken(client=(f"172.20.2.{number}", 44525), identifier=number) for number in (25, 26, 27)]
    asked = [onward(one, how) for one in clients]
    outcomes = world.outcomes(
        *(one.query(START + index * US) for index, one in enumerate(clients)),
        *(one.query(START + 100 * US + index * US) for index, one in enumerate(reversed(asked))),
        *(one.reply(START + 2 * MS + index * US, **FORWARDED) for index, one in enumerate(asked)),
        *(one.reply(START + 3 * MS + index * US, **FORWARDED) for index, one in enumerate(clients)),
    )
    found = application(outcomes)
    assert [masks(one) for one in found] == [("Succeeded", 15, 63)] * 3
    assert [explain(one).findings for one in found] == [[]] * 3
    for one in found:
        (exchange,) = one.session.upstream
        assert exchange.key.client.address == one.session.key.client.address


def test_a_proxy_with_its_own_address_and_several_clients_at_once_is_ambiguous(world):
    start = warm(world)
    clients = [taken(client=(f"172.20.2.{number}", 44525), identifier=number) for number in (25, 26)]
    asked = [replace_port(onward(one), 52000 + one.identifier) for one in clients]
    outcomes = world.outcomes(
        *(one.query(start + index * US) for index, one in enumerate(clients)),
        *(one.query(start + 100 * US + index * US) for index, one in enumerate(asked)),
        *(one.reply(start + 2 * MS + index * US, **FORWARDED) for index, one in enumerate(asked)),
        *(one.reply(start + 3 * MS + index * US, **FORWARDED) for index, one in enumerate(clients)),
    )
    found = application(outcomes)
    assert [masks(one) for one in found] == [("Succeeded", 15, 63)] * 2
    assert [explain(one).findings for one in found] == [["AmbiguousUpstream"]] * 2


def replace_port(lookup, port):
    lookup.client = lookup.outside = (lookup.client[0], port)
    return lookup


def test_another_program_of_the_node_that_asks_the_same_is_nobodys_proxy(world):
    start = warm(world)
    lookup = taken()
    other = onward(lookup)
    other.comm, other.tgid = b"curl", 99
    outcomes = world.outcomes(
        lookup.query(start),
        other.query(start + 100 * US),
        other.reply(start + MS, aa=True),
        lookup.reply(start + 2 * MS, **FORWARDED),
    )
    assert {len(one.session.upstream) for one in outcomes} == {0}
    assert len(application(outcomes)) == 2


@pytest.mark.parametrize("same_question", [False, True])
def test_a_client_that_runs_the_very_program_of_the_proxy_is_a_client(world, same_question):
    warm(world, "pod", v6=True)
    start = warm(world, "pod")
    name = "one.local." if same_question else "other.local."
    one = taken("pod", name="one.local.")
    other = taken("pod", name=name, identifier=7, v6=True, comm=PROXY[0], tgid=99)
    hops = sorted(
        [*healthy(one, start=start), *healthy(other, start=start + 50 * US)],
        key=lambda hop: hop.ts_ns,
    )
    lookups = application(world.outcomes(hops))
    assert [(masks(each), len(each.session.upstream)) for each in lookups] == [(("Succeeded", 15, 63), 1)] * 2


def test_a_server_that_was_replaced_asks_before_it_replied_for_the_first_time(world):
    start = warm(world, "pod")
    one = taken("pod", name="one.local.")
    ask = onward(one)
    ask.name, ask.tgid = "other.local.", PROXY[1] + 1
    outcomes = world.outcomes(one.query(start), ask.query(start + MS), ask.reply(start + 2 * MS, **FORWARDED))
    asked = [each.session.key.name for each in outcomes if each.session.upstream_of is not None]
    assert asked == [b"\5other\5local\0"]


def test_an_address_that_a_namespace_got_after_its_first_reply_is_nobody_elses(world):
    lookup = taken()
    own = world.addresses[NODE]
    start = warm(world)
    own.add(lookup.vip[0])
    start = warm(world) + SECOND
    (one,) = world.outcomes(dropped(taken().query(start), 2, stack=("nf_hook_slow", "ip_rcv")))
    assert cause(one).code == "PolicyDrop"


def test_where_the_node_passes_queries_on_unseen_nobody_is_taken_for_a_proxy(world):
    # bpf_redirect_peer(): the last that is seen of a query is its arrival at the node.
    def hidden(lookup, start) -> list[PlainHop]:
        return [*lookup.query(start)[:2], *lookup.reply(start + 3 * MS)]

    world.outcome(hidden(world.Lookup(port=1), START))
    start = world.now + SECOND
    client, host = world.Lookup(), world.Lookup(shape="host", identifier=7)
    outcomes = world.outcomes(hidden(client, start), host.query(start + MS), host.reply(start + 2 * MS))
    assert [(one.session.upstream, explain(one).findings) for one in outcomes] == [([], [])] * 2


def test_two_programs_of_the_node_that_ask_the_same_at_once_are_two_clients(world):
    one, two = (world.Lookup(shape="host", port=port, identifier=port, tgid=port) for port in (1, 2))
    outcomes = world.outcomes(one.query(), two.query(START + US), one.reply(), two.reply(START + 130 * US))
    assert [(masks(each)[:2], explain(each).findings) for each in outcomes] == [(("Succeeded", 3), [])] * 2


@pytest.mark.parametrize("how", ASKS)
def test_search_lists_and_pairs_are_those_of_the_application(world, how):
    names = ["db.shop.svc.cluster.local.", "db.svc.cluster.local."]
    first, second = (taken(name=name, identifier=number) for number, name in enumerate(names, 1))
    outcomes = world.outcomes(
        healthy(first, how, START, rcode=3), healthy(second, how, START + 10 * MS), healthy(first, how, START + SECOND)
    )
    found = next(one for one in application(outcomes) if one.session.first_ns == START)
    assert explain(found).findings == ["SearchPathNXDOMAIN"]


@pytest.mark.parametrize("how", ASKS)
def test_the_other_half_of_a_pair_is_the_applications(world, how):
    a, aaaa = taken(), taken(rdtype=28, identifier=7)
    hops = sorted([*healthy(a, how), *healthy(aaaa, how, START + 10 * US)], key=lambda hop: hop.ts_ns)
    outcomes = world.outcomes(hops)
    assert [masks(one) for one in application(outcomes)] == [("Succeeded", 15, 63)] * 2


def test_a_server_behind_the_proxy_that_forwards_is_a_third_stage(world):
    lookup = taken()
    ask = onward(lookup, "client's address, port and id")
    beyond = lookup.onward()
    outcomes = world.outcomes(
        lookup.query(),
        ask.query(START + 100 * US),
        beyond.query(START + 200 * US),
        beyond.reply(START + MS, **FORWARDED),
        ask.reply(START + 2 * MS, **FORWARDED),
        lookup.reply(START + 3 * MS, **FORWARDED),
    )
    assert [masks(one)[:2] for one in outcomes] == [("Succeeded", 15)] * 2


def test_nothing_is_left_when_all_have_ended(world):
    for how in ASKS:
        world.outcomes(healthy(taken(port=1000 + len(how)), how, world.now + SECOND))
    books = ("open", "by_key", "by_message", "_by_question", "_parents", "_upstream_connects")
    assert {name: len(world.books[name]) for name in books} == dict.fromkeys(books, 0)


# Proxies that hang, are gone, refuse


@pytest.mark.parametrize("plane", PLANES)
def test_a_proxy_that_hangs_is_named_and_so_is_that_it_did_not_ask_on(world, plane):
    start = warm(world, plane)
    (one,) = world.outcomes(taken(plane).query(start))
    found = cause(one)
    assert (masks(one), found.code, found.confidence) == (("Failed", 1, 17), "ServerNoReply", "high")
    where = CLIENT if plane == "pod" else NODE
    asked = endpoint_to_text(*packed_endpoint(taken(plane).vip))
    assert found.text == (
        f"The DNS proxy dns-proxy on this node (network namespace {where}) took the query for {asked} and did not "
        "answer; no query from there could be matched to this one."
    )


def test_by_another_device_than_before_nobody_is_blamed(world):
    # The queries of some pods are taken, those of others pass.
    start = warm(world)
    hops = [replace(hop, ifindex=12) if hop.netns == NODE else hop for hop in taken().query(start)]
    (one,) = world.outcomes(hops)
    assert (cause(one).code, cause(one).confidence) == ("Unknown", "low")


def test_where_the_proxy_lets_them_pass_by_now_nobody_is_blamed(world):
    start = warm(world)
    lookup = taken(port=3, dnat=False)
    # The server itself answers; what happens between the node's arrival and the server is not seen.
    passed = world.Lookup(port=3, vip=lookup.vip, dnat=False).both(start)
    world.outcomes([hop for hop in passed if hop.ifindex != 11 and not (hop.netns == world.SERVER and not hop.flags)])
    (one,) = world.outcomes(taken().query(world.now + SECOND))
    assert (cause(one).code, cause(one).confidence) == ("Unknown", "low")


@pytest.mark.parametrize(("plane", "how"), CASES)
def test_a_server_that_is_silent_behind_the_proxy_is_its_upstream(world, plane, how):
    start = warm(world, plane, how)
    lookup = taken(plane)
    outcomes = world.outcomes(lookup.query(start), onward(lookup, how).query(start + 100 * US))
    (one,) = application(outcomes)
    (asked,) = [other for other in outcomes if other is not one]
    found = cause(one)
    assert (masks(one), found.code, found.confidence) == (("Failed", 5, 21), "UpstreamTimeout", "high")
    assert "The DNS proxy dns-proxy on this node" in found.text
    assert (cause(asked).code, masks(asked)) == ("ServerNoReply", ("Failed", 1, 17))


@pytest.mark.parametrize(("plane", "how"), [one for one in CASES if one != ("tproxy", "own address")])
def test_a_silent_server_is_the_upstream_of_a_proxy_that_nothing_was_known_of(world, plane, how):
    lookup = taken(plane)
    outcomes = world.outcomes(lookup.query(), onward(lookup, how).query(START + 100 * US))
    (one,) = application(outcomes)
    assert (masks(one), cause(one).code) == (("Failed", 5, 21), "UpstreamTimeout")


@pytest.mark.parametrize(("plane", "how"), CASES)
def test_a_server_error_of_a_proxy_whose_server_is_silent_is_an_upstream_timeout(world, plane, how):
    lookup = taken(plane)
    (one,) = application(
        world.outcomes(
            lookup.query(),
            onward(lookup, how).query(START + 100 * US),
            lookup.reply(START + 5 * SECOND, **BARE),
        )
    )
    assert (masks(one), cause(one).code) == (("Failed", 7, 55), "UpstreamTimeout")


@pytest.mark.parametrize("ra", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_a_proxy_that_refuses_is_named(world, plane, ra):
    start = warm(world, plane)
    lookup = taken(plane)
    (one,) = world.outcomes(lookup.query(start), lookup.reply(start + MS, rcode=REFUSED, aa=False, ra=ra))
    found = cause(one)
    assert (masks(one), found.code) == (("Failed", 3, 51), "ServerError")
    assert found.text.startswith("The DNS proxy dns-proxy on this node")
    assert "itself answered REFUSED" in found.text


@pytest.mark.parametrize(("plane", "how"), CASES)
def test_an_error_that_the_server_gave_is_relayed(world, plane, how):
    (one, *_) = application(world.outcomes(healthy(taken(plane), how, rcode=REFUSED)))
    assert cause(one).code == "UpstreamError"


@pytest.mark.parametrize("v6", [False, True])
def test_a_redirect_in_the_pod_to_a_closed_port_names_the_rule(world, v6):
    lookup = taken("pod", v6=v6)
    (one,) = world.outcomes(dropped(lookup.query(), 2, "NO_SOCKET", "__udp4_lib_rcv"))
    found = cause(one)
    listens = "[::1]:15053" if v6 else "127.0.0.1:15053"
    assert (one.bitmap, found.code, found.confidence) == (0, "NoListener", "high")
    asked = endpoint_to_text(*packed_endpoint(lookup.vip))
    assert found.text == (
        f"A rule on this node redirects queries for {asked} to {listens} in network namespace {CLIENT}, and nothing "
        "listens there."
    )


def test_a_redirect_on_the_node_to_a_closed_port_is_seen_by_where_the_query_died(world):
    lookup = taken("node")
    hops = dropped(lookup.query(), 2, "NO_SOCKET", "__udp4_lib_rcv")
    died = replace(hops[-1], destination=lookup.listens)
    (one,) = world.outcomes(hops[:-1], [died])
    assert cause(one).code == "NoListener"
    assert "10.96.0.10:53 to 192.0.2.10:15053" in cause(one).text


def test_a_redirect_on_the_node_to_a_closed_port_is_seen_by_the_error_that_the_node_sends(world):
    lookup = taken("node")
    hops = lookup.query()
    error = replace(icmp(hops[-1], 3, 3, VIP[0]), event=Event.TX)
    (one,) = world.outcomes(hops, [error])
    assert (cause(one).code, cause(one).confidence) == ("NoListener", "medium")
    assert "redirects queries for 10.96.0.10:53" in cause(one).text


def test_a_tproxy_rule_without_its_proxy_is_no_policy(world):
    start = warm(world)
    hops = dropped(taken().query(start), 2, stack=("nf_hook_slow", "ip_rcv"))
    (one,) = world.outcomes(hops)
    found = cause(one)
    assert (found.code, found.confidence) == ("NoListener", "medium")
    assert "The DNS proxy dns-proxy on this node" in found.text


def test_a_proxy_is_known_although_its_first_reply_came_before_the_addresses_of_the_node(world):
    world.knows_addresses = False
    warm(world)
    world.knows_addresses = True
    start = warm(world)
    (one,) = world.outcomes(dropped(taken().query(start), 2, stack=("nf_hook_slow", "ip_rcv")))
    assert (cause(one).code, cause(one).confidence) == ("NoListener", "medium")


def test_where_no_proxy_was_known_a_rule_dropped_it(world):
    (one,) = world.outcomes(dropped(taken().query(), 2, stack=("nf_hook_slow", "ip_rcv")))
    assert cause(one).code == "PolicyDrop"


@pytest.mark.parametrize(("plane", "how"), CASES)
def test_what_the_proxy_asks_may_be_dropped(world, plane, how):
    lookup = taken(plane)
    start = warm(world, plane, how)
    ask = dropped(onward(lookup, how).query(start + 100 * US), 1, stack=("nf_hook_slow", "ip_output"))
    (one, *_) = application(world.outcomes(lookup.query(start), ask))
    assert (cause(one).code, masks(one)[:2]) == ("PolicyDrop", ("Failed", 5))
    assert "dropped the server's own query" in cause(one).text


@pytest.mark.parametrize("how", ASKS)
def test_what_the_proxy_asks_may_be_refused_before_it_has_a_device(world, how):
    lookup = taken()
    start = warm(world, "tproxy", how)
    refused = dropped(onward(lookup, how).query(start + 100 * US), 1, stack=("nf_hook_slow", "__ip_local_out"))[1]
    (one, *_) = application(world.outcomes(lookup.query(start), [replace(refused, ifindex=0, ifname=b"")]))
    assert (cause(one).code, masks(one)[:2]) == ("PolicyDrop", ("Failed", 5))


def test_a_late_reply_that_the_proxys_closed_port_refuses_is_no_missing_listener(world):
    lookup = taken("pod")
    ask = onward(lookup)
    late = dropped(ask.reply(START + 4 * SECOND), 4, "NO_SOCKET", "__udp4_lib_rcv")
    error = icmp(late[-1], 3, 3, POD[0])
    outcomes = world.outcomes(lookup.query(), ask.query(START + 100 * US), late, [error])
    (one,) = application(outcomes)
    assert cause(one).code == "UpstreamTimeout"


# A server of the node behind a Service's address is no proxy


def behind(**changes):
    """A lookup at a Service whose endpoint is a server in the node's own namespace, on port 53."""
    lookup = taken("node", **changes)
    type(lookup).listens = (HOST[0], 53)
    return lookup


@pytest.mark.parametrize("answered", [True, False])
def test_a_server_of_the_node_behind_a_service_forwards_beyond_the_node(world, answered):
    lookup = behind()
    comm, tgid = PROXY
    ask = Lookup(shape="outward", name=lookup.name, identifier=7, comm=comm, tgid=tgid)
    said = FORWARDED if answered else BARE
    (one,) = world.outcomes(
        lookup.query(),
        ask.query(START + 100 * US),
        ask.reply(START + MS, **FORWARDED) if answered else [],
        lookup.reply(START + 2 * MS if answered else START + 5 * SECOND, **said),
    )
    assert (masks(one), explain(one).findings) == (("Succeeded", 15, 63) if answered else ("Failed", 7, 55), [])
    assert answered or "proxy" not in cause(one).text


def test_a_server_of_the_node_behind_a_service_keeps_its_plain_words(world):
    first = behind(port=1)
    world.outcomes(first.both())
    start = world.now + SECOND
    (one,) = world.outcomes(behind().query(start))
    assert (cause(one).code, "proxy" in cause(one).text) == ("ServerNoReply", False)


# TCP


@pytest.mark.parametrize("how", ASKS)
def test_over_tcp_a_proxy_is_a_stage_too(world, how):
    lookup = taken()
    ask = onward(lookup, how)
    outer, inner = Tcp(lookup), Tcp(ask, starts=(70_000, 90_000))
    outcomes = world.outcomes(
        outer.open(),
        outer.ask(START + MS),
        inner.open(START + 2 * MS),
        inner.ask(START + 3 * MS),
        inner.say(START + 4 * MS, **FORWARDED),
        outer.say(START + 5 * MS, **FORWARDED),
        outer.close(START + 6 * MS),
    )
    (one,) = application(outcomes)
    (asked,) = [other for other in outcomes if other is not one]
    assert (masks(one), masks(asked)) == (("Succeeded", 15, 63), ("Succeeded", 3, 51))


@pytest.mark.parametrize("how", ASKS)
def test_over_tcp_a_silent_server_is_the_proxys_upstream_and_no_refused_connection(world, how):
    world.outcomes(healthy(taken(port=2000, name="earlier.local."), how))
    start = world.now + SECOND
    lookup = taken()
    outer, inner = Tcp(lookup), Tcp(onward(lookup, how), starts=(70_000, 90_000))
    outcomes = world.outcomes(
        outer.open(start),
        outer.ask(start + MS),
        inner.open(start + 2 * MS),
        inner.ask(start + 3 * MS),
    )
    (one,) = application(outcomes)
    (asked,) = [other for other in outcomes if other is not one]
    assert (cause(one).code, masks(one)) == ("UpstreamTimeout", ("Failed", 5, 21))
    assert (cause(asked).code, masks(asked)) == ("ServerNoReply", ("Failed", 1, 17))


def test_over_tcp_the_socket_that_took_it_shows_where_it_ended(world):
    outer = Tcp(taken())
    (one,) = world.outcomes(outer.open(), outer.ask(START + MS))
    assert (cause(one).code, one.server_netns) == ("ServerNoReply", NODE)
