"""agent.session.upstream: what a server asks its upstream is told with the lookup that it asks for."""

import struct
from collections.abc import Sized

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.hop.endpoint import address_to_text
from agent.session.outcome import Status

CONTEXT = Context("node-a", 0)
SECOND_UPSTREAM = ("100.100.2.138", 53)
FORWARDED = {"aa": False, "ra": True}
CACHED = {"aa": True, "ra": True}
BARE = {"rcode": 2, "aa": False}
"""SERVFAIL as CoreDNS's server core writes it."""
SILENCE = (0, 2000, 4000)
"""When CoreDNS asks a silent upstream, in milliseconds; at 6000 it gives up."""
KEPT_ON_PURPOSE = ("settings", "_closed", "_losses")


def line_of(outcome):
    return build(outcome, explain(outcome), CONTEXT)


def cause(outcome):
    found = explain(outcome).cause
    return found.code if found else None


def findings(outcome):
    return explain(outcome).findings


def masks(outcome):
    return outcome.status.value, int(outcome.bitmap), int(outcome.dnstap_bitmap)


def told(outcome):
    return [(one.address, one.transaction_id, one.rcode) for one in line_of(outcome).upstream]


def kinds(outcome):
    return [one["type"] for one in line_of(outcome).messages]


def of_client(outcomes, address, port=44525):
    (one,) = [
        one
        for one in outcomes
        if (address_to_text(one.session.key.client[0]), one.session.key.client[1]) == (address, port)
    ]
    return one


def warm(world, **lookup: object):
    """A lookup before it has shown where the server is. Returns when the next one may begin."""
    world.outcome(world.Lookup(port=2000, name="earlier.local.", **lookup).both(world.now))
    return world.now + world.SECOND


def leftovers(world):
    books = {name: len(book) for name, book in vars(world.table).items() if isinstance(book, Sized)}
    return {name: size for name, size in books.items() if size and name not in KEPT_ON_PURPOSE}


def exchange(ask, start, took=None, **reply: object):
    """What the server asks, and the reply after so long; none without."""
    return [*ask.query(start), *(ask.reply(start + took, **FORWARDED | reply) if took is not None else ())]


def forwarded(world, start, lookup=None, **reply: object):
    """A lookup that the server forwards 0.1 ms after it came; the upstream takes 2 ms."""
    lookup = lookup or world.Lookup()
    return [
        *lookup.query(start),
        *exchange(lookup.onward(), start + 100 * world.US, 2 * world.MS, **reply),
        *lookup.reply(start + 3 * world.MS, **FORWARDED | reply),
    ]


def unanswered(world, start, lookup, first=1):
    """The server asks a silent upstream three times, each time with a new id from a new port."""
    asks = [lookup.onward(identifier=7000 + first + index, port=33000 + first + index) for index in range(3)]
    return [hop for ask, ms in zip(asks, SILENCE, strict=True) for hop in ask.query(start + ms * world.MS + 100_000)]


# The masks


def test_a_forwarded_lookup_has_all_four_messages(world):
    one = world.outcome(forwarded(world, world.START))
    assert (masks(one), int(one.path), one.answer_source) == (("Succeeded", 15, 15), 63, "forward")
    assert told(one) == [("100.100.2.136", 36260, "NOERROR")]
    assert kinds(one) == [
        "STUB_QUERY",
        "CLIENT_QUERY",
        "FORWARDER_QUERY",
        "FORWARDER_RESPONSE",
        "CLIENT_RESPONSE",
        "STUB_RESPONSE",
    ]
    assert explain(one) == (None, [], [])
    assert world.table.counts.upstream_exchanges == 1


def test_the_line_says_how_long_the_upstream_took(world):
    line = line_of(world.outcome(forwarded(world, world.START)))
    (asked,) = line.upstream
    assert (asked.protocol, asked.port, asked.name) == ("UDP", 53, world.Lookup().name)
    assert (asked.offset_seconds, asked.duration_seconds) == (0.0001, 0.002005)
    assert line.latency.upstream == pytest.approx(0.002005)
    assert line.latency.server == pytest.approx(0.0029525)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("shape", ["pod", "host", "server"])
def test_the_servers_own_query_belongs_to_the_lookup_whoever_asked(world, shape, v6):
    one = world.outcome(forwarded(world, world.START, world.Lookup(shape=shape, v6=v6)))
    assert masks(one) == ("Succeeded", 15, 15)


def test_a_masqueraded_upstream_query_is_one_exchange(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(snat=True), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 3 * world.MS, **FORWARDED),
    )
    assert (masks(one), told(one)) == (("Succeeded", 15, 15), [("100.100.2.136", 36260, "NOERROR")])


def test_a_server_of_the_node_forwards_from_the_nodes_own_address(world):
    lookup = world.Lookup(shape="local")
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward("outward"), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 3 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 15, 15)


def test_a_stub_on_loopback_forwards_from_the_nodes_own_address(world):
    lookup = world.Lookup(shape="loopback", client_netns=world.NODE)
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward("outward"), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 3 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 15, 15)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ((1, 0, 0, 0), ("Failed", 1, "ServerNoReply")),
        ((1, 0, 0, 1), ("Succeeded", 3, None)),
        ((1, 1, 0, 0), ("Failed", 5, "UpstreamTimeout")),
        ((1, 1, 0, 1), ("Succeeded", 7, None)),
        ((1, 1, 1, 0), ("Failed", 13, "ServerNoReply")),
        ((1, 1, 1, 1), ("Succeeded", 15, None)),
    ],
)
def test_every_mask_that_a_server_can_produce_has_its_status_and_cause(world, seen, expected):
    one = world.outcome(*present(world, seen))
    assert (one.status.value, int(one.bitmap), cause(one)) == expected


def present(world, seen):
    """Those of the four messages: CQ, FQ, FR, CR."""
    lookup = world.Lookup()
    ask = lookup.onward()
    hops = (
        lookup.query(),
        ask.query(world.START + 100 * world.US),
        ask.reply(world.START + 2 * world.MS, **FORWARDED),
        lookup.reply(world.START + 3 * world.MS, **FORWARDED),
    )
    return [part for part, wanted in zip(hops, seen, strict=True) if wanted]


@pytest.mark.parametrize(
    ("seen", "bitmap"),
    [
        ((0, 0, 0, 1), 3),
        ((0, 0, 1, 1), 3),
        ((0, 1, 0, 1), 3),
        ((0, 1, 1, 1), 3),
        ((1, 0, 1, 0), 1),
        ((1, 0, 1, 1), 3),
    ],
)
def test_messages_that_were_lost_by_the_capture_accuse_nobody(worlds, seen, bitmap):
    world = worlds(started_ns=-(10**13))
    world.table.record_loss(world.START, world.START + world.SECOND)
    outcomes = world.outcomes(*present(world, seen))
    one = of_client(outcomes, "172.20.2.25")
    assert int(one.bitmap) == bitmap
    assert one.status is (Status.SUCCEEDED if seen[3] else Status.SAMPLE_LOSS)
    assert {each.status for each in outcomes} <= {Status.SUCCEEDED, Status.SAMPLE_LOSS}


def test_a_lookup_whose_server_was_never_reached_has_no_upstream(world):
    one = world.outcome(world.dropped(world.Lookup().query(), 2))
    assert (masks(one), told(one)) == (("Failed", 0, 0), [])


# A silent upstream


def test_a_silent_upstream_is_seven_on_the_wire_and_five_in_dnstap(world):
    lookup = world.Lookup()
    asked = unanswered(world, world.START, lookup)
    one = world.outcome(lookup.query(), asked, lookup.reply(world.START + 6 * world.SECOND, **BARE))
    assert (masks(one), cause(one)) == (("Failed", 7, 5), "UpstreamTimeout")
    assert "UpstreamRetried" in findings(one)
    assert [transaction for _, transaction, _ in told(one)] == [7001, 7002, 7003]
    assert kinds(one).count("FORWARDER_QUERY") == 3
    assert "100.100.2.136:53" in explain(one).cause.text
    assert len({one["query_port"] for one in line_of(one).messages if one["type"] == "FORWARDER_QUERY"}) == 3


@pytest.mark.parametrize("timeout_ns", [10**9, 3 * 10**9, 10**10])
def test_a_lookup_whose_server_waits_for_its_upstream_is_not_given_up_before_seven_seconds(worlds, timeout_ns):
    world = worlds(timeout_ns=timeout_ns)
    lookup = world.Lookup()
    world.feed(lookup.query(), unanswered(world, world.START, lookup))
    last = world.START + 4 * world.SECOND
    world.now = last
    assert world.later(7 * world.SECOND) == []
    (one,) = world.outcomes(lookup.reply(last + 7 * world.SECOND, **BARE))
    assert masks(one) == ("Failed", 7, 5)


def test_a_server_that_never_gives_up_its_silent_upstream_is_five(world):
    lookup = world.Lookup()
    one = world.outcome(lookup.query(), unanswered(world, world.START, lookup))
    assert (masks(one), int(one.path), cause(one)) == (("Failed", 5, 5), 16 + 5, "UpstreamTimeout")


def test_one_upstream_query_is_no_retry(world):
    lookup = world.Lookup()
    one = world.outcome(lookup.query(), lookup.onward().query(world.START + 100 * world.US))
    assert findings(one) == []


def test_a_second_upstream_that_answers_makes_a_success_and_the_first_stays_visible(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        lookup.onward().query(world.START + 100 * world.US),
        exchange(
            lookup.onward(identifier=8, port=33001, vip=SECOND_UPSTREAM), world.START + 2 * world.SECOND, world.MS
        ),
        lookup.reply(world.START + 2005 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 15, 15)
    assert (findings(one), cause(one)) == (["SlowUpstream", "UpstreamRetried"], None)
    assert told(one) == [("100.100.2.136", 36260, None), ("100.100.2.138", 8, "NOERROR")]
    assert kinds(one) == [
        "STUB_QUERY",
        "CLIENT_QUERY",
        "FORWARDER_QUERY",
        "FORWARDER_QUERY",
        "FORWARDER_RESPONSE",
        "CLIENT_RESPONSE",
        "STUB_RESPONSE",
    ]


def test_a_reply_that_an_impatient_agent_would_have_missed_still_counts(worlds):
    world = worlds(timeout_ns=worlds.SECOND)
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(), world.START + 100 * world.US, 1500 * world.MS),
        lookup.reply(world.START + 1502 * world.MS, **FORWARDED),
    )
    assert (masks(one), told(one)) == (("Succeeded", 15, 15), [("100.100.2.136", 36260, "NOERROR")])


def test_an_upstream_that_answers_after_the_server_gave_up_was_too_late(world):
    lookup = world.Lookup()
    ask = lookup.onward()
    gave_up = world.START + 6 * world.SECOND
    one = world.outcome(
        lookup.query(),
        ask.query(world.START + 100 * world.US),
        lookup.reply(gave_up, **BARE),
        ask.reply(gave_up + 20 * world.MS, **FORWARDED),
    )
    assert (masks(one), cause(one)) == (("Failed", 7, 5), "UpstreamTimeout")


@pytest.mark.parametrize(
    ("flags", "source"),
    [(FORWARDED, "forward"), (CACHED, "cache")],
)
def test_a_stale_answer_while_the_upstream_is_silent_is_a_success(world, flags, source):
    # CoreDNS's serve_stale in verify mode asks first, and answers from its cache after 0.1 s.
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        lookup.onward().query(world.START + 100 * world.US),
        lookup.reply(world.START + 100 * world.MS, **flags),
    )
    assert (masks(one), one.answer_source, cause(one)) == (("Succeeded", 7, 7), source, None)


# Errors


@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (5, "REFUSED")])
def test_a_relayed_error_names_the_upstream_that_gave_it(world, rcode, name):
    one = world.outcome(forwarded(world, world.START, rcode=rcode))
    found = explain(one).cause
    assert (masks(one), found.code, found.confidence) == (("Failed", 15, 15), "UpstreamError", "high")
    assert "100.100.2.136:53" in found.text
    assert name in found.text


def test_the_upstream_that_gave_the_error_is_named_not_the_one_before(world):
    lookup = world.Lookup()
    second = lookup.onward(identifier=8, port=33001, vip=SECOND_UPSTREAM)
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(), world.START + 100 * world.US, world.MS, rcode=5),
        exchange(second, world.START + 2 * world.MS, world.MS, rcode=2),
        lookup.reply(world.START + 4 * world.MS, **FORWARDED | {"rcode": 2}),
    )
    assert [rcode for *_, rcode in told(one)] == ["REFUSED", "SERVFAIL"]
    assert "100.100.2.138:53" in explain(one).cause.text


def test_an_error_that_no_upstream_gave_is_the_servers_own(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 3 * world.MS, **BARE),
    )
    assert (masks(one), cause(one)) == (("Failed", 15, 13), "ServerError")


@pytest.mark.parametrize("after", [2, 3])
def test_an_upstream_query_that_this_node_dropped_is_no_accusation_of_the_upstream(world, after):
    # An egress policy for the server's pod.
    lookup = world.Lookup()
    asked = world.dropped(
        lookup.onward().query(world.START + 100 * world.US), after, location="nft_do_chain", stack=("nft_do_chain",)
    )
    one = world.outcome(lookup.query(), asked, lookup.reply(world.START + 6 * world.SECOND, **BARE))
    assert (masks(one), cause(one)) == (("Failed", 7, 5), "PolicyDrop")


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_upstream_reply_that_this_node_dropped_did_not_get_to_the_server(world, after):
    lookup = world.Lookup()
    ask = lookup.onward()
    replied = world.dropped(
        ask.reply(world.START + world.MS, **FORWARDED), after, location="nft_do_chain", stack=("nft_do_chain",)
    )
    one = world.outcome(
        lookup.query(),
        ask.query(world.START + 100 * world.US),
        replied,
        lookup.reply(world.START + 6 * world.SECOND, **BARE),
    )
    assert (masks(one), cause(one)) == (("Failed", 7, 5), "PolicyDrop")


# Truncation


def test_a_truncated_upstream_answer_and_its_repetition_over_tcp_are_two_exchanges(world):
    lookup = world.Lookup()
    over_tcp = world.Tcp(lookup.onward(identifier=9, port=33001))
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(), world.START + 100 * world.US, world.MS, tc=True),
        over_tcp.whole(world.START + 2 * world.MS, **FORWARDED),
        lookup.reply(world.START + 5 * world.MS, **FORWARDED),
    )
    line = line_of(one)
    assert (masks(one), int(one.path)) == (("Succeeded", 15, 15), 63)
    assert [(one.protocol, one.transaction_id, one.rcode, one.refused) for one in line.upstream] == [
        ("UDP", 36260, "NOERROR", False),
        ("TCP", 9, "NOERROR", False),
    ]
    protocols = [one["socket_protocol"] for one in line.messages if one["type"] == "FORWARDER_RESPONSE"]
    assert protocols == ["UDP", "TCP"]
    assert leftovers(world) == {}


def test_a_pooled_tcp_connection_to_the_upstream_serves_one_lookup_after_the_other(world):
    pooled = world.Tcp(world.Lookup().onward(port=33001))
    world.feed(pooled.open())
    outcomes = []
    for index in range(5):
        start = world.START + (index + 1) * world.SECOND
        lookup = world.Lookup(port=3000 + index, name=f"n{index}.local.")
        asked = lookup.onward(identifier=100 + index, port=33001)
        world.feed(
            lookup.query(start),
            pooled.ask(start + 100 * world.US, asked.question()),
            pooled.say(start + 2 * world.MS, asked.answer(**FORWARDED)),
            lookup.reply(start + 3 * world.MS, **FORWARDED),
        )
        outcomes += world.later(world.SECOND // 2)
    assert [masks(one) for one in outcomes] == [("Succeeded", 15, 15)] * 5
    assert [told(one)[0][1] for one in outcomes] == [100, 101, 102, 103, 104]
    assert world.outcomes() == []


def test_an_upstream_that_refuses_tcp_is_told_with_the_lookup(world):
    lookup = world.Lookup()
    refused = world.Tcp(lookup.onward(port=33001)).refuse(world.START + 100 * world.US)
    warm(world)
    one = world.outcome(
        [
            hop.later(world.now - world.START + world.SECOND)
            for hop in (*lookup.query(), *refused, *lookup.reply(**BARE))
        ]
    )
    (asked,) = line_of(one).upstream
    assert (asked.protocol, asked.address, asked.refused, asked.name) == ("TCP", "100.100.2.136", True, None)
    assert one.status is Status.FAILED


@pytest.mark.parametrize("refused", [False, True])
def test_a_failure_for_want_of_tcp_upstream_says_so(world, refused):
    # Some zones are served over UDP alone, and a server that was asked over TCP asks over TCP.
    start = warm(world)
    lookup = world.Lookup()
    stream = world.Tcp(lookup)
    upstream = world.Tcp(lookup.onward(port=33001))
    asked = start + 2 * world.MS
    failed = upstream.refuse(asked) if refused else upstream.segment(asked, flags=2)
    outcomes = world.outcomes(
        stream.open(start), stream.ask(start + world.MS), failed, stream.say(start + 2 * world.SECOND, **BARE)
    )
    assert [(one.status, cause(one)) for one in outcomes] == [(Status.FAILED, "UpstreamTCPUnavailable")]


def test_a_request_for_a_connection_is_never_made_for_another_request_for_a_connection(world):
    # A client's SYN that the server's full backlog left without an answer is nothing to forward.
    start = warm(world)
    waiting = world.Tcp(world.Lookup(port=45000))
    lookup = world.Lookup()
    refused = world.Tcp(lookup.onward(port=33001)).refuse(start + 2 * world.MS)
    outcomes = world.outcomes(
        waiting.segment(start, flags=2),
        lookup.query(start + world.MS),
        refused,
        lookup.reply(start + 3 * world.MS, **BARE),
    )
    assert [one.refused for one in line_of(of_client(outcomes, "172.20.2.25")).upstream] == [True]
    assert line_of(of_client(outcomes, "172.20.2.25", 45000)).upstream == []


# Whose query it is


def test_two_clients_with_one_question_at_one_time_are_served_in_their_order_and_said_to_be_guesses(world):
    first, second = world.Lookup(), world.Lookup(client=("172.20.2.26", 40000))
    asks = [first.onward(identifier=11, port=33011), first.onward(identifier=12, port=33012)]
    start = world.START
    outcomes = world.outcomes(
        first.query(start),
        second.query(start + 10 * world.US),
        asks[0].query(start + 100 * world.US),
        asks[1].query(start + 110 * world.US),
        asks[0].reply(start + 2 * world.MS, **FORWARDED),
        asks[1].reply(start + 3 * world.MS, **FORWARDED),
        first.reply(start + 4 * world.MS, **FORWARDED),
        second.reply(start + 5 * world.MS, **FORWARDED),
    )
    one, two = of_client(outcomes, "172.20.2.25"), of_client(outcomes, "172.20.2.26", 40000)
    assert [masks(one), masks(two)] == [("Succeeded", 15, 15)] * 2
    assert (told(one)[0][1], told(two)[0][1]) == (11, 12)
    assert findings(one) == ["AmbiguousUpstream"]
    assert findings(two) == ["AmbiguousUpstream"]


def test_the_second_of_two_clients_is_no_guess_when_the_first_was_forwarded_before_it_asked(world):
    first, second = world.Lookup(), world.Lookup(client=("172.20.2.26", 40000))
    start = world.START
    outcomes = world.outcomes(
        first.query(start),
        exchange(first.onward(identifier=11, port=33011), start + 100 * world.US, 12 * world.MS),
        second.query(start + world.MS),
        exchange(first.onward(identifier=12, port=33012), start + 1100 * world.US, 10 * world.MS),
        first.reply(start + 15 * world.MS, **FORWARDED),
        second.reply(start + 16 * world.MS, **FORWARDED),
    )
    assert [told(one)[0][1] for one in outcomes] == [11, 12]
    assert findings(of_client(outcomes, "172.20.2.25")) == []


def test_a_guessed_upstream_is_blamed_with_less_than_certainty(world):
    first, second = world.Lookup(), world.Lookup(client=("172.20.2.26", 40000))
    start = world.START
    outcomes = world.outcomes(
        first.query(start),
        second.query(start + 10 * world.US),
        first.onward(identifier=11, port=33011).query(start + 100 * world.US),
        first.onward(identifier=12, port=33012).query(start + 110 * world.US),
        first.reply(start + 6 * world.SECOND, **BARE),
        second.reply(start + 6 * world.SECOND + world.US, **BARE),
    )
    assert [explain(one).cause.code for one in outcomes] == ["UpstreamTimeout"] * 2
    assert [explain(one).cause.confidence for one in outcomes] == ["medium"] * 2


def test_a_cookie_that_the_server_passes_on_decides(world):
    def option(cookie) -> bytes:
        return b"\0" + struct.pack("!HHIHHH", 41, 1232, 0, 12, 10, 8) + cookie

    def asked(lookup, cookie) -> bytes:
        raw = bytearray(lookup.question(option(cookie)))
        raw[11] = 1
        return bytes(raw)

    first, second = world.Lookup(), world.Lookup(client=("172.20.2.26", 40000))
    start = world.START
    for_second = first.onward(identifier=11, port=33011)
    for_first = first.onward(identifier=12, port=33012)
    outcomes = world.outcomes(
        first.query(start, content=asked(first, b"client-1")),
        second.query(start + 10 * world.US, content=asked(second, b"client-2")),
        for_second.query(start + 100 * world.US, content=asked(for_second, b"client-2")),
        for_first.query(start + 110 * world.US, content=asked(for_first, b"client-1")),
        for_second.reply(start + 2 * world.MS, **FORWARDED),
        second.reply(start + 3 * world.MS, **FORWARDED),
        for_first.reply(start + 4 * world.MS, **FORWARDED),
        first.reply(start + 5 * world.MS, **FORWARDED),
    )
    one, two = of_client(outcomes, "172.20.2.25"), of_client(outcomes, "172.20.2.26", 40000)
    assert (told(one)[0][1], told(two)[0][1]) == (12, 11)
    assert findings(one) == findings(two) == []


def test_two_types_of_one_name_each_have_their_own_upstream_query(world):
    a, aaaa = world.Lookup(), world.Lookup(rdtype=28, identifier=5)
    start = world.START
    outcomes = world.outcomes(
        a.query(start),
        aaaa.query(start + world.US),
        exchange(aaaa.onward(identifier=21, port=33021), start + 90 * world.US, world.MS),
        exchange(a.onward(identifier=22, port=33022), start + 95 * world.US, world.MS),
        a.reply(start + 2 * world.MS, **FORWARDED),
        aaaa.reply(start + 2 * world.MS, **FORWARDED),
    )
    assert {one.session.key.rdtype: told(one)[0][1] for one in outcomes} == {1: 22, 28: 21}
    assert [findings(one) for one in outcomes] == [[], []]


def test_the_case_of_the_name_does_not_matter_upstream(world):
    lookup = world.Lookup(name="WwW.eXample.com.")
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(name="www.example.com."), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 2 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 15, 15)


def test_an_old_server_that_keeps_the_clients_id_upstream_is_joined_too(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        exchange(lookup.onward(identifier=lookup.identifier), world.START + 100 * world.US, world.MS),
        lookup.reply(world.START + 2 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 15, 15)


def test_a_rewritten_name_is_joined_and_said_to_be_a_guess(world):
    start = warm(world)
    lookup = world.Lookup(name="x.rw.test.")
    one = world.outcome(
        lookup.query(start),
        exchange(lookup.onward(name="y.example.net."), start + 100 * world.US, world.MS),
        lookup.reply(start + 3 * world.MS, **FORWARDED),
    )
    assert (masks(one), line_of(one).upstream[0].name) == (("Succeeded", 15, 15), "y.example.net.")
    assert findings(one) == ["AmbiguousUpstream"]


def test_every_attempt_under_a_rewritten_name_is_told_with_the_lookup(world):
    start = warm(world)
    lookup = world.Lookup(name="x.rw.test.")
    asks = [lookup.onward(name="y.example.net.", identifier=50 + index, port=33100 + index) for index in range(3)]
    waits = [hop for ask, ms in zip(asks, SILENCE, strict=True) for hop in ask.query(start + ms * world.MS + 100_000)]
    one = world.outcome(lookup.query(start), waits, lookup.reply(start + 6 * world.SECOND, **BARE))
    assert (masks(one), cause(one), len(told(one))) == (("Failed", 7, 5), "UpstreamTimeout", 3)


def test_another_name_is_nobodys_when_two_lookups_could_have_been_rewritten(world):
    start = warm(world)
    first, second = world.Lookup(name="x.rw.test."), world.Lookup(name="z.rw.test.", port=40000)
    outcomes = world.outcomes(
        first.query(start),
        second.query(start + world.US),
        exchange(first.onward(name="y.example.net."), start + 100 * world.US, world.MS),
        first.reply(start + 3 * world.MS, **FORWARDED),
        second.reply(start + 3 * world.MS, **FORWARDED),
    )
    assert [int(of_client(outcomes, "172.20.2.25", port).bitmap) for port in (44525, 40000)] == [3, 3]


def test_another_name_asked_long_after_the_query_is_not_a_rewriting_of_it(world):
    start = warm(world)
    lookup = world.Lookup(name="x.rw.test.")
    outcomes = world.outcomes(
        lookup.query(start),
        exchange(lookup.onward(name="y.example.net."), start + 20 * world.MS, world.MS),
        lookup.reply(start + 30 * world.MS, **FORWARDED),
    )
    assert int(of_client(outcomes, "172.20.2.25").bitmap) == 3


def test_another_name_asked_after_a_reply_that_no_client_can_use_is_no_rewriting_of_the_query(world):
    start = warm(world)
    lookup = world.Lookup(name="x.rw.test.")
    outcomes = world.outcomes(
        lookup.query(start),
        lookup.reply(start + world.MS, content=lookup.answer()[:15]),
        exchange(lookup.onward(name="y.example.net."), start + 5 * world.MS, world.MS),
    )
    one = of_client(outcomes, "172.20.2.25")
    assert (cause(one), told(one)) == ("MalformedReply", [])


def test_the_upstream_query_is_joined_where_arrivals_in_pods_never_show(world):
    # bpf_redirect_peer() hands packets into a pod without netif_receive_skb.
    lookup = world.Lookup()
    ask = lookup.onward()
    outcomes = world.outcomes(
        lookup.query()[:3],
        ask.query(world.START + 100 * world.US),
        ask.reply(world.START + 2 * world.MS, **FORWARDED)[:2],
        lookup.reply(world.START + 3 * world.MS, **FORWARDED)[:3],
    )
    assert [masks(one) for one in outcomes] == [("Succeeded", 15, 15)]


# Retransmission


def test_a_client_that_asks_again_during_the_wait_is_one_session_with_both_series_of_upstream_queries(world):
    lookup = world.Lookup()
    again = world.START + 2500 * world.MS
    hops = [
        *lookup.query(),
        *lookup.query(again),
        *unanswered(world, world.START, lookup),
        *unanswered(world, again, lookup, first=4),
        *lookup.reply(world.START + 6 * world.SECOND, **BARE),
        *lookup.reply(again + 6 * world.SECOND, **BARE),
    ]
    outcomes = world.outcomes(sorted(hops, key=lambda hop: hop.ts_ns))
    one = of_client(outcomes, "172.20.2.25")
    assert (masks(one), one.attempts, cause(one)) == (("Failed", 7, 5), 2, "UpstreamTimeout")
    assert {"Retransmitted", "UpstreamRetried"} <= set(findings(one))
    assert len(told(one)) >= 5


def test_what_the_server_goes_on_asking_for_a_retransmission_is_no_session_of_its_own(world):
    start = warm(world)
    lookup = world.Lookup()
    again = start + 5 * world.SECOND
    hops = [
        *lookup.query(start),
        *lookup.query(again),
        *unanswered(world, start, lookup),
        *unanswered(world, again, lookup, first=4),
        *lookup.reply(start + 6 * world.SECOND, **BARE),
        *lookup.reply(again + 6 * world.SECOND, **BARE),
    ]
    outcomes = world.outcomes(sorted(hops, key=lambda hop: hop.ts_ns))
    assert {address_to_text(one.session.key.client.address) for one in outcomes} == {"172.20.2.25"}


# What a server asks for itself


@pytest.mark.parametrize("flags", [FORWARDED, CACHED, {}])
def test_a_refresh_right_after_the_answer_is_background(world, flags):
    start = warm(world)
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(start),
        lookup.reply(start + 200 * world.US, **flags),
        exchange(lookup.onward(), start + 900 * world.US, 5 * world.MS),
    )
    assert (masks(one), told(one)) == (("Succeeded", 3, 3), [])
    assert world.table.counts.background["refresh"] == 1


def test_a_refresh_after_the_very_first_lookup_is_background_too(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(),
        lookup.reply(world.START + 200 * world.US, **CACHED),
        exchange(lookup.onward(), world.START + 900 * world.US, 5 * world.MS),
    )
    assert masks(one) == ("Succeeded", 3, 3)
    assert world.table.counts.background["refresh"] == 1


@pytest.mark.parametrize("answered", [False, True])
def test_a_refresh_that_overtakes_the_cached_answer_is_background(world, answered):
    start = warm(world)
    lookup = world.Lookup()
    ask = lookup.onward()
    one = world.outcome(
        lookup.query(start),
        ask.query(start + 150 * world.US),
        lookup.reply(start + 200 * world.US, **CACHED),
        ask.reply(start + 5 * world.MS, **FORWARDED) if answered else [],
    )
    assert (masks(one), told(one), findings(one)) == (("Succeeded", 3, 3), [], [])
    assert "FORWARDER_QUERY" not in kinds(one)
    assert world.table.counts.background["refresh"] == 1


def test_a_refresh_over_a_new_tcp_connection_is_background_however_long_its_handshake_takes(world):
    start = warm(world)
    lookup = world.Lookup()
    over_tcp = world.Tcp(lookup.onward(port=33001))
    one = world.outcome(
        lookup.query(start),
        lookup.reply(start + 200 * world.US, **CACHED),
        over_tcp.segment(start + 300 * world.US, flags=2),
        over_tcp.segment(start + 20 * world.MS, flags=18, response=True),
        over_tcp.ask(start + 21 * world.MS),
        over_tcp.say(start + 41 * world.MS, **FORWARDED),
    )
    assert masks(one) == ("Succeeded", 3, 3)
    assert world.table.counts.background["refresh"] == 1


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ({"name": ".", "rdtype": 2}, "health check"),
        ({"name": "5577006791947779410.8674665223082153551.example.", "rdtype": 13}, "loop probe"),
    ],
)
def test_health_checks_and_loop_probes_of_a_server_are_counted_and_no_sessions(world, question, kind, answered):
    start = warm(world)
    for index in range(5):
        probe = world.Lookup().onward(**question, port=50000 + index)
        world.feed(exchange(probe, start + index * world.SECOND, world.MS if answered else None))
    assert world.outcomes() == []
    assert world.table.counts.background[kind] == 5
    assert leftovers(world) == {}


def test_a_health_check_while_a_lookup_waits_does_not_change_it(world):
    start = warm(world)
    lookup = world.Lookup()
    probe = lookup.onward(name=".", rdtype=2, port=50000)
    one = world.outcome(
        lookup.query(start),
        probe.query(start + world.MS),
        lookup.reply(start + 2 * world.MS),
        probe.reply(start + 3 * world.MS),
    )
    assert masks(one) == ("Succeeded", 3, 3)
    assert world.table.counts.background["health check"] == 1


def test_a_health_check_while_another_servers_check_is_open_is_one_too(world):
    world.outcomes(chain(world, world.START))
    start = world.now + world.SECOND
    check = world.Lookup().onward("host", name=".", rdtype=2, identifier=500, port=41000)
    world.feed([*check.query(start), *check.onward(identifier=600, port=33600).query(start + world.MS)])
    assert world.outcomes() == []
    assert world.table.counts.background["health check"] == 2


def test_a_pod_that_serves_nobody_may_ask_for_the_root(world):
    start = warm(world)
    one = world.outcome(world.Lookup(name=".", rdtype=2).both(start))
    assert (masks(one), line_of(one).question.name) == (("Succeeded", 3, 3), ".")
    assert world.table.counts.background["health check"] == 0


@pytest.mark.parametrize("shape", ["local", "loopback"])
def test_a_user_of_the_node_may_ask_its_own_server_for_the_root(world, shape):
    # `dig` without arguments does.
    node = {"client": ("192.0.2.10", 41000)} if shape == "local" else {"shape": "loopback", "client_netns": world.NODE}
    start = warm(world, shape=shape, **({"client_netns": world.NODE} if shape == "loopback" else {}))
    lookup = on_the_node(world, node, name=".", rdtype=2)
    one = world.outcome(lookup.both(start))
    assert masks(one) == ("Succeeded", 3, 3)


def on_the_node(world, ends, **question: object):
    """A lookup of a process of the node at the server of the node: both ends on loopback."""
    client = ends.get("client", ("127.0.0.1", 41000))
    vip = ("169.254.20.10", 53) if "client" in ends else ("127.0.0.53", 53)
    return world.Lookup(shape="loopback", client_netns=world.NODE, client=client, vip=vip, **question)


@pytest.mark.parametrize("after_ms", [1, 4])
def test_asking_the_server_of_the_node_twice_in_a_row_is_two_sessions(world, after_ms):
    start = warm(world, shape="loopback", client_netns=world.NODE)
    first = world.Lookup(shape="loopback", client_netns=world.NODE)
    second = world.Lookup(shape="loopback", client_netns=world.NODE, port=41001)
    outcomes = world.outcomes(first.both(start), second.both(start + after_ms * world.MS))
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 3)] * 2


def test_a_process_of_the_node_that_repeats_what_a_pod_asked_is_a_client_like_any_other(world):
    start = warm(world, shape="local")
    pod = world.Lookup(shape="local")
    process = on_the_node(world, {"client": ("192.0.2.10", 41000)})
    outcomes = world.outcomes(pod.both(start), process.both(start + world.MS))
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 3)] * 2


def test_a_process_of_the_node_that_asks_at_the_same_time_as_a_pod_is_a_client_like_any_other(world):
    start = warm(world, shape="local")
    pod = world.Lookup(shape="local")
    process = on_the_node(world, {"client": ("192.0.2.10", 41000)})
    outcomes = world.outcomes(
        pod.query(start),
        process.query(start + 50 * world.US),
        pod.reply(start + world.MS),
        process.reply(start + world.MS),
    )
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 3)] * 2


def test_a_process_of_the_node_that_asks_the_server_by_another_of_its_addresses_is_a_client(world):
    # NodeLocal DNSCache has the address of the Service, too.
    start = warm(world, shape="local")
    pod = world.Lookup(shape="local", vip=("10.96.0.10", 53))
    process = on_the_node(world, {"client": ("192.0.2.10", 41000)})
    outcomes = world.outcomes(
        pod.query(start),
        process.query(start + 50 * world.US),
        pod.reply(start + world.MS),
        process.reply(start + world.MS),
    )
    assert sorted(masks(one) for one in outcomes) == [("Succeeded", 3, 3)] * 2


@pytest.mark.parametrize("question", [{}, {"name": "registry.example."}])
def test_what_another_program_asks_the_upstream_itself_is_not_taken_for_the_servers_own(world, question):
    start = warm(world, shape="local")
    pod = world.Lookup(shape="local")
    kubelet = world.Lookup(shape="outward", port=41000, comm=b"kubelet", tgid=77, **question)
    outcomes = world.outcomes(
        pod.query(start),
        kubelet.query(start + 50 * world.US),
        kubelet.reply(start + 900 * world.US, **FORWARDED),
        pod.reply(start + world.MS),
    )
    assert masks(of_client(outcomes, "172.20.2.25")) == ("Succeeded", 3, 3)
    assert masks(of_client(outcomes, "192.0.2.10", 41000)) == ("Succeeded", 3, 3)


def test_another_pod_with_the_same_question_is_a_client_of_its_own(world):
    start = warm(world)
    first, second = world.Lookup(), world.Lookup(client=("172.20.2.26", 40000), client_netns=4026532999)
    outcomes = world.outcomes(
        first.query(start),
        second.query(start + world.US),
        first.reply(start + world.MS),
        second.reply(start + world.MS),
    )
    assert [(masks(one), one.session.upstream_of) for one in outcomes] == [(("Succeeded", 3, 3), None)] * 2


# Chains of servers


def chain(world, start, *, tcp=False, answered=True):
    """A pod asks NodeLocal DNSCache, that asks CoreDNS's pod, and that its upstream."""
    pod = world.Lookup(shape="local")
    middle = pod.onward("host", identifier=500, port=41000)
    last = pod.onward("forward", identifier=600, port=33600)
    reply = FORWARDED if answered else BARE
    took = 2 * world.MS if answered else None
    until = start + (3 * world.MS if answered else 6 * world.SECOND)
    if not tcp:
        asked, replied = middle.query(start + 100 * world.US), middle.reply(until, **reply)
    else:
        stream = world.Tcp(middle)
        asked = [*stream.open(start + 50 * world.US), *stream.ask(start + 200 * world.US)]
        replied = stream.say(until, **reply)
    return [
        *pod.query(start),
        *asked,
        *exchange(last, start + 300 * world.US, took),
        *replied,
        *pod.reply(until + world.MS, **reply),
    ]


@pytest.mark.parametrize("tcp", [False, True])
def test_a_chain_of_servers_on_this_node_is_a_session_at_each_of_them(world, tcp):
    outcomes = world.outcomes(chain(world, world.START, tcp=tcp))
    assert len(outcomes) == 2
    pod, middle = of_client(outcomes, "172.20.2.25"), of_client(outcomes, "192.0.2.10", 41000)
    assert [masks(pod), masks(middle)] == [("Succeeded", 15, 15)] * 2
    assert (pod.server_netns, middle.server_netns) == (world.NODE, world.SERVER)
    assert told(pod) == [("10.96.0.10", 500, "NOERROR")]
    assert told(middle) == [("100.100.2.136", 600, "NOERROR")]
    line = line_of(middle)
    assert (line.protocol, line.server.address, line.server.backend) == (
        "TCP" if tcp else "UDP",
        "10.96.0.10",
        "10.244.1.53:53",
    )
    assert line.upstream_of is not None
    assert (line.upstream_of.client, line.upstream_of.transaction_id) == ("172.20.2.25:44525", 36259)
    assert world.table.counts.upstream_exchanges == 1
    assert leftovers(world) == {}


def test_a_silent_upstream_at_the_end_of_a_chain_fails_every_session_of_it_and_names_who_was_silent(world):
    outcomes = world.outcomes(chain(world, world.START, answered=False))
    pod, middle = of_client(outcomes, "172.20.2.25"), of_client(outcomes, "192.0.2.10", 41000)
    assert (masks(middle), cause(middle)) == (("Failed", 7, 5), "UpstreamTimeout")
    assert (pod.status, int(pod.bitmap), cause(pod)) == (Status.FAILED, 15, "UpstreamError")


# Everything at once


scripts = st.lists(
    st.tuples(
        st.sampled_from(["forwarded", "silent", "relayed error", "two upstreams", "cached", "refreshed", "truncated"]),
        st.integers(0, 5_000),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def script(world, kind, lookup, start, base):
    ask = lookup.onward(identifier=base, port=base)
    again = lookup.onward(identifier=base + 1, port=base + 1, vip=SECOND_UPSTREAM)
    asked = start + 100 * world.US
    if kind == "silent":
        asks = [lookup.onward(identifier=base + index, port=base + index) for index in range(3)]
        waits = [hop for one, ms in zip(asks, SILENCE, strict=True) for hop in one.query(asked + ms * world.MS)]
        return [*lookup.query(start), *waits, *lookup.reply(start + 6 * world.SECOND, **BARE)]
    if kind == "two upstreams":
        late = exchange(again, start + 2 * world.SECOND, world.MS)
        return [*lookup.query(start), *ask.query(asked), *late, *lookup.reply(start + 2003 * world.MS, **FORWARDED)]
    if kind == "cached":
        return lookup.both(start, **CACHED)
    if kind == "refreshed":
        return [*lookup.both(start, **CACHED), *exchange(ask, start + world.MS, world.MS)]
    if kind == "truncated":
        stream = world.Tcp(again).whole(start + 2 * world.MS, **FORWARDED)
        first = exchange(ask, asked, world.MS, tc=True)
        return [*lookup.query(start), *first, *stream, *lookup.reply(start + 5 * world.MS, **FORWARDED)]
    rcode = {"rcode": 5} if kind == "relayed error" else {}
    return [
        *lookup.query(start),
        *exchange(ask, asked, world.MS, **rcode),
        *lookup.reply(start + 2 * world.MS, **FORWARDED | rcode),
    ]


def all_scripts(world, plan):
    """Every lookup has its own name or one that all share, its own port, and its own ports upstream."""
    hops = []
    for index, (kind, start_ms, shared) in enumerate(plan):
        name = "shared.example." if shared else f"n{index}.example."
        lookup = world.Lookup(name=name, port=2000 + index, identifier=2000 + index)
        hops += script(world, kind, lookup, world.START + start_ms * world.MS, 30000 + 10 * index)
    return sorted(hops, key=lambda hop: hop.ts_ns)


@settings(max_examples=150, deadline=None)
@given(plan=scripts)
def test_every_lookup_of_its_own_name_has_its_true_mask_whatever_else_goes_on(worlds, plan):
    world = worlds(started_ns=-(10**13))
    plan = [(kind, start, False) for kind, start, _ in plan if kind != "refreshed"]
    outcomes = world.outcomes(all_scripts(world, plan))
    assert leftovers(world) == {}
    expected = {"silent": (7, Status.FAILED), "cached": (3, Status.SUCCEEDED), "relayed error": (15, Status.FAILED)}
    found = {one.session.key.client.port: (int(one.bitmap), one.status) for one in outcomes}
    assert found == {2000 + index: expected.get(kind, (15, Status.SUCCEEDED)) for index, (kind, *_) in enumerate(plan)}


@settings(max_examples=200, deadline=None)
@given(plan=scripts, data=st.data())
def test_a_loss_of_any_records_is_never_an_accusation(worlds, plan, data):
    world = worlds(started_ns=-(10**13))
    hops = all_scripts(world, plan)
    gone = data.draw(st.sets(st.integers(0, len(hops) - 1), min_size=1))
    world.table.record_loss(world.START - world.SECOND, world.START + 100 * world.SECOND)
    records = [world.recorder.pack(hop) for hop in hops]
    for index, (hop, record) in enumerate(zip(hops, records, strict=True)):
        if index not in gone:
            world.table.observe(record)
            world.now = hop.ts_ns
    for one in world.later(100 * world.SECOND):
        build(one, explain(one), CONTEXT)
        delivered_error = one.delivered and one.rcode not in (None, 0)
        assert delivered_error or one.status is not Status.FAILED
        assert delivered_error or cause(one) in (None, "CaptureLoss")
    assert leftovers(world) == {}


@settings(max_examples=150, deadline=None)
@given(plan=scripts, data=st.data())
def test_any_order_and_repetition_of_the_records_ends_with_empty_books(worlds, plan, data):
    world = worlds(max_sessions=data.draw(st.integers(1, 8)), tombstones=data.draw(st.integers(0, 4)))
    records = [world.recorder.pack(hop) for hop in all_scripts(world, plan)]
    for pick in data.draw(st.lists(st.integers(0, len(records) - 1), max_size=100)):
        world.table.observe(records[pick])
        for one in world.table.expire(records[pick].ts_ns):
            build(one, explain(one), CONTEXT)
    world.now = max(one.ts_ns for one in records)
    for one in world.later(100 * world.SECOND):
        build(one, explain(one), CONTEXT)
    assert leftovers(world) == {}


def test_a_server_that_asks_without_end_is_bounded(world):
    # With an upstream that refuses at once, older servers ask again and again for five seconds.
    lookup = world.Lookup()
    asks = [
        lookup.onward(identifier=index, port=20000 + index).query(world.START + index * world.MS)
        for index in range(1, 300)
    ]
    world.feed(lookup.query(), *asks)
    outcomes = world.outcomes(lookup.reply(world.START + 5 * world.SECOND, **BARE))
    one = of_client(outcomes, "172.20.2.25")
    assert 1 < len(line_of(one).upstream) <= 64
    assert leftovers(world) == {}


def test_a_lost_departure_of_an_upstream_query_makes_no_client_of_the_server(world):
    start = warm(world)
    world.table.record_loss(start, start + world.MS)
    lookup = world.Lookup()
    ask = lookup.onward()
    outcomes = world.outcomes(
        lookup.query(start),
        ask.query(start + 100 * world.US)[1:],
        ask.reply(start + world.MS, **FORWARDED),
        lookup.reply(start + 2 * world.MS, **FORWARDED),
    )
    assert of_client(outcomes, "172.20.2.25").status is Status.SUCCEEDED
    assert {one.status for one in outcomes} <= {Status.SUCCEEDED, Status.SAMPLE_LOSS}
