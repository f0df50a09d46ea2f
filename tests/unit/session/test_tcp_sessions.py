"""agent.session.tcp: lookups over TCP are sessions like any other, and connections that fail are told too."""

from collections.abc import Sized

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.hop.record import Event
from agent.session.outcome import Status
from agent.session.tcp import MAX_CONNECTIONS, MAX_ENDS
from agent.wire.stream import ACK, FIN, RST, SYN

CONTEXT = Context("node-a", 0)
SHAPES = ["pod", "host", "loopback", "local", "client", "server"]
KEPT_ON_PURPOSE = ("settings", "_closed", "_losses")
AT_SOCKET = (Event.SOCKET_TX, Event.SOCKET_RX)


def line_of(outcome):
    return build(outcome, explain(outcome), CONTEXT)


def cause(outcome):
    found = explain(outcome).cause
    return found.code if found else None


def masks(outcome):
    return outcome.status.value, int(outcome.bitmap), int(outcome.path)


def names(outcomes):
    return [line_of(one).question.name for one in outcomes]


def leftovers(world):
    books = {name: len(book) for name, book in vars(world.table).items() if isinstance(book, Sized)}
    return {name: size for name, size in books.items() if size and name not in KEPT_ON_PURPOSE}


def lookups(world, count):
    """Lookups of one client over one connection."""
    return [world.Lookup(name=f"n{index}.local.", identifier=100 + index) for index in range(count)]


def without(hops, *events: Event):
    return [hop for hop in hops if hop.event not in events]


# One lookup


def test_a_lookup_over_tcp_is_a_session_with_the_hops_of_its_query_and_reply(world):
    one = world.outcome(world.Tcp(world.Lookup()).whole())
    line = line_of(one)
    assert (masks(one), line.protocol, len(line.path), line.attempts) == (("Succeeded", 3, 51), "TCP", 8, 1)
    assert [(hop.event, hop.netns) for hop in line.path] == [
        ("tx", world.CLIENT),
        ("rx", world.NODE),
        ("tx", world.NODE),
        ("rx", world.SERVER),
        ("tx", world.SERVER),
        ("rx", world.NODE),
        ("tx", world.NODE),
        ("rx", world.CLIENT),
    ]
    assert (line.client.process, line.server.process) == ("php-fpm", "coredns")
    assert (line.connection.refused, line.connection.syn_retransmissions) == (False, 0)
    assert (line.connection.closed_by, line.connection.reset_by) == ("client", None)
    assert leftovers(world) == {}


def test_the_messages_of_a_tcp_lookup_are_whole_and_without_their_length_prefix(world):
    line = line_of(world.outcome(world.Tcp(world.Lookup()).whole()))
    assert [one["type"] for one in line.messages] == ["STUB_QUERY", "CLIENT_QUERY", "CLIENT_RESPONSE", "STUB_RESPONSE"]
    assert {one["socket_protocol"] for one in line.messages} == {"TCP"}
    assert line.messages[0]["query_message"]["id"] == 36259
    assert line.messages[0]["query_message"]["question"]["name"] == world.Lookup().name


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tcp_lookup_succeeds_wherever_its_ends_are(world, shape, v6):
    lookup = world.Lookup(shape=shape, v6=v6)
    one = world.outcome(world.Tcp(lookup).whole())
    assert masks(one) == ("Succeeded", 3, 3 if shape == "server" else 51)
    assert one.vantage == {"client": "client", "server": "server"}.get(shape, "both")


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("snat", [False, True])
@pytest.mark.parametrize("dnat", [False, True])
def test_a_translated_connection_is_one_session_of_the_client_before_it(world, dnat, snat, v6):
    lookup = world.Lookup(dnat=dnat, snat=snat, v6=v6)
    outcomes = world.outcomes(world.Tcp(lookup).whole())
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)]
    line = line_of(outcomes[0])
    assert (line.client.address, line.client.port) == lookup.client
    assert (line.server.address, len(line.path)) == (lookup.vip[0], 8)
    assert line.server.backend == (("[fd00:244::53]:53" if v6 else "10.244.1.53:53") if dnat else None)


@pytest.mark.parametrize("rcode", [2, 5])
def test_an_error_over_tcp_is_a_failure(world, rcode):
    one = world.outcome(world.Tcp(world.Lookup()).whole(rcode=rcode, aa=False))
    assert (masks(one), one.rcode) == (("Failed", 3, 51), rcode)


def test_a_silent_server_over_tcp_is_named(world):
    tcp = world.Tcp(world.Lookup())
    one = world.outcome(tcp.open(), tcp.ask(world.START + world.MS))
    assert (masks(one), cause(one)) == (("Failed", 1, 17), "ServerNoReply")


def test_equal_ids_and_ports_over_udp_and_tcp_are_two_sessions(world):
    lookup = world.Lookup()
    udp = lookup.both(tc=True)
    outcomes = world.outcomes(udp, world.Tcp(lookup).whole(world.START + world.MS))
    assert [(line_of(one).protocol, masks(one)) for one in outcomes] == [
        ("UDP", ("Succeeded", 3, 51)),
        ("TCP", ("Succeeded", 3, 51)),
    ]


def test_a_query_repeated_over_a_second_connection_is_a_second_session(world):
    outcomes = world.outcomes(
        world.Tcp(world.Lookup()).whole(), world.Tcp(world.Lookup(port=44526)).whole(world.START + world.SECOND)
    )
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)] * 2


# Several lookups, several segments


def test_pipelined_queries_are_answered_in_any_order(world):
    asked = lookups(world, 4)
    tcp = world.Tcp(asked[0])
    ms = world.MS
    outcomes = world.outcomes(
        tcp.open(),
        *(tcp.ask(world.START + (1 + index) * ms, one.question()) for index, one in enumerate(asked)),
        *(tcp.say(world.START + (10 + index) * ms, asked[index].answer()) for index in (2, 0, 3, 1)),
    )
    assert sorted(names(outcomes)) == ["n0.local.", "n1.local.", "n2.local.", "n3.local."]
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)] * 4
    assert {len(line_of(one).path) for one in outcomes} == {8}


def test_several_queries_in_one_segment_each_have_its_hops(world):
    asked = lookups(world, 3)
    tcp = world.Tcp(asked[0])
    outcomes = world.outcomes(
        tcp.open(),
        tcp.ask(world.START + world.MS, *(one.question() for one in asked)),
        tcp.say(world.START + 2 * world.MS, *(one.answer() for one in reversed(asked))),
    )
    assert sorted(names(outcomes)) == ["n0.local.", "n1.local.", "n2.local."]
    assert [(masks(one), len(line_of(one).path)) for one in outcomes] == [(("Succeeded", 3, 51), 8)] * 3


@pytest.mark.parametrize("cut", [1, 2, 3, 14, 20])
def test_a_message_in_two_segments_is_one_message(world, cut):
    # musl and some Go servers write the length by itself.
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    query, reply = world.prefixed(lookup.question()), world.prefixed(lookup.answer())
    one = world.outcome(
        tcp.open(),
        tcp.segment(world.START + world.MS, query[:cut]),
        tcp.segment(world.START + 2 * world.MS, query[cut:]),
        tcp.segment(world.START + 3 * world.MS, reply[:cut], response=True),
        tcp.segment(world.START + 4 * world.MS, reply[cut:], response=True),
    )
    assert (masks(one), len(line_of(one).path)) == (("Succeeded", 3, 51), 8)


def test_a_large_answer_in_many_segments_is_one_reply(world):
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    asked = [*tcp.open(), *tcp.ask(world.START + world.MS)]
    reply = world.prefixed(lookup.answer(tail=bytes(20_000)))
    parts = [
        tcp.segment(world.START + (3 + index) * world.MS, reply[at : at + 1400], response=True)
        for index, at in enumerate(range(0, len(reply), 1400))
    ]
    one = world.outcome(asked, *parts)
    assert masks(one) == ("Succeeded", 3, 51)
    assert line_of(one).duration_seconds == pytest.approx(0.016, abs=0.001)


def test_a_segment_sent_twice_is_no_second_attempt(world):
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    query = world.prefixed(lookup.question())
    first = tcp.segment(world.START + world.MS, query)
    again = tcp.segment(world.START + 201 * world.MS, query, sequence=1001)
    one = world.outcome(tcp.open(), first[:3], again, tcp.say(world.START + 202 * world.MS))
    assert masks(one) == ("Succeeded", 3, 51)


def test_a_copy_that_tcp_did_not_need_is_no_loss(world):
    # The kernel frees bytes that it has already: TCP_OLD_DATA.
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    query = world.prefixed(lookup.question())
    first = tcp.segment(world.START + world.MS, query)
    again = tcp.segment(world.START + 3 * world.MS, query, sequence=1001)
    copy = world.dropped(again, len(again), "TCP_OLD_DATA", "tcp_data_queue")
    one = world.outcome(tcp.open(), first, copy, tcp.say(world.START + 4 * world.MS))
    assert (masks(one), cause(one)) == (("Succeeded", 3, 51), None)


def test_segments_that_overtake_one_another_are_put_in_order(world):
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    query = world.prefixed(lookup.question())
    head = tcp.segment(world.START + world.MS, query[:20])
    tail = tcp.segment(world.START + world.MS, query[20:])
    one = world.outcome(tcp.open(), head[:4], tail, head[4:], tcp.say(world.START + 3 * world.MS))
    assert masks(one) == ("Succeeded", 3, 51)


def test_segments_that_the_receiver_gets_as_one_are_the_same_messages(world):
    # GRO puts together what came in two segments.
    asked = lookups(world, 2)
    tcp = world.Tcp(asked[0])
    raw = [world.prefixed(one.question()) for one in asked]
    first = tcp.segment(world.START + world.MS, raw[0])
    second = tcp.segment(world.START + world.MS, raw[1])
    both = tcp.segment(world.START + world.MS, b"".join(raw), sequence=1001)
    outcomes = world.outcomes(
        tcp.open(),
        first[:4],
        second[:4],
        both[4:],
        tcp.say(world.START + 3 * world.MS, *(one.answer() for one in asked)),
    )
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)] * 2


def test_sequence_numbers_may_wrap_around(world):
    one = world.outcome(world.Tcp(world.Lookup(), starts=(0xFFFFFFF0, 0xFFFFFFFD)).whole())
    assert masks(one) == ("Succeeded", 3, 51)


def test_a_connection_older_than_the_agent_is_read_from_the_next_message_on(world):
    asked = lookups(world, 2)
    tcp = world.Tcp(asked[0], starts=(77_000, 99_000))
    hops = []
    for index, one in enumerate(asked):
        start = world.START + index * world.SECOND
        hops += [*tcp.ask(start, one.question()), *tcp.say(start + world.MS, one.answer())]
    outcomes = world.outcomes(hops)
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)] * 2


def test_a_port_used_again_is_a_new_connection(world):
    first = world.Tcp(world.Lookup())
    second = world.Tcp(world.Lookup(identifier=2), starts=(900_000_000, 4_000_000_000))
    outcomes = world.outcomes(first.whole(), second.whole(world.START + world.SECOND))
    assert [(masks(one), line_of(one).transaction_id) for one in outcomes] == [
        (("Succeeded", 3, 51), 36259),
        (("Succeeded", 3, 51), 2),
    ]


# Connections that fail


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        "pod",
        "host",
        "local",
        "client",
        "server",
    ],
)
def test_a_refused_connection_is_a_failed_session_without_a_question(world, shape, v6):
    one = world.outcome(world.Tcp(world.Lookup(shape=shape, v6=v6)).refuse())
    line = line_of(one)
    assert (line.status, line.question, line.rcode, line.messages) == ("Failed", None, None, [])
    assert (line.connection.refused, line.protocol, line.attempts) == (True, "TCP", 1)
    assert leftovers(world) == {}


@pytest.mark.parametrize("shape", ["pod", "client"])
def test_a_refused_connection_is_never_said_to_have_had_no_answer(world, shape):
    # Without the drop record, too: kernels before 5.17 give no reason.
    hops = without(world.Tcp(world.Lookup(shape=shape)).refuse(), Event.DROP)
    one = world.outcome(hops)
    assert (one.status, line_of(one).connection.refused) == (Status.FAILED, True)
    assert cause(one) == "NoListener"


def test_a_client_that_refuses_a_late_connection_is_no_port_without_a_listener(world):
    tcp = world.Tcp(world.Lookup())
    asked = tcp.segment(world.START, flags=SYN)
    answers = [
        without(tcp.segment(world.START + after, flags=SYN | ACK, response=True), *AT_SOCKET)
        for after in (world.MS, world.SECOND)
    ]
    given_up = without(tcp.segment(world.START + world.SECOND + world.MS, flags=RST, sequence=1), *AT_SOCKET)
    hops = [
        *asked,
        *world.dropped(answers[0], 2),
        *world.dropped(answers[1], len(answers[1]), "NO_SOCKET", "tcp_v4_rcv"),
        *world.dropped(given_up, len(given_up), "NOT_SPECIFIED", "tcp_v4_rcv"),
    ]
    assert cause(world.outcome(hops)) != "NoListener"


def test_a_refused_connection_names_the_missing_listener(world):
    assert cause(world.outcome(world.Tcp(world.Lookup()).refuse())) == "NoListener"


@pytest.mark.parametrize(("shape", "path"), [("pod", 17), ("client", 17), ("host", 17)])
def test_requests_for_a_connection_that_nobody_answers_are_attempts_of_one_session(world, shape, path):
    tcp = world.Tcp(world.Lookup(shape=shape))
    syns = [hop for seconds in (0, 1, 3) for hop in tcp.segment(world.START + seconds * world.SECOND, flags=SYN)]
    one = world.outcome(syns)
    line = line_of(one)
    assert (one.status, line.attempts, line.question, int(one.path)) == (Status.FAILED, 3, None, path)
    assert (line.connection.syn_retransmissions, line.connection.refused) == (2, False)
    assert cause(one) == ("LeftNode" if shape == "client" else "ServerNoReply")


def test_a_connection_that_came_about_at_the_second_request_is_told_with_its_lookup(world):
    tcp = world.Tcp(world.Lookup())
    lost = world.dropped(tcp.segment(world.START, flags=SYN), 3)
    one = world.outcome(lost, tcp.whole(world.START + world.SECOND))
    assert masks(one) == ("Succeeded", 3, 51)
    assert line_of(one).connection.syn_retransmissions == 1


@pytest.mark.parametrize("after", [3, 4])
def test_a_dropped_request_for_a_connection_is_explained(world, after):
    syn = world.Tcp(world.Lookup()).segment(world.START, flags=SYN)
    one = world.outcome(world.dropped(syn, after, location="nft_do_chain", stack=("nft_do_chain", "ip_forward")))
    assert (masks(one), cause(one)) == (("Failed", 0, 80), "PolicyDrop")


def test_a_connection_whose_acceptance_was_dropped_is_a_failure(world):
    # The policy lets SYN through and not SYN-ACK.
    tcp = world.Tcp(world.Lookup())
    accepted = world.dropped(
        tcp.segment(world.START + world.MS, flags=SYN | ACK, response=True),
        3,
        location="nft_do_chain",
        stack=("nft_do_chain",),
    )
    outcomes = world.outcomes(tcp.segment(world.START, flags=SYN), accepted)
    assert [(one.status, line_of(one).question, cause(one)) for one in outcomes] == [
        (Status.FAILED, None, "PolicyDrop")
    ]


@pytest.mark.parametrize("by_server", [False, True])
def test_a_connection_reset_after_the_query_is_a_failure_and_says_by_whom(world, by_server):
    tcp = world.Tcp(world.Lookup())
    one = world.outcome(
        tcp.open(),
        tcp.ask(world.START + world.MS),
        tcp.close(world.START + 2 * world.MS, RST | ACK, response=by_server),
    )
    line = line_of(one)
    assert (masks(one), line.attempts) == (("Failed", 1, 17), 1)
    assert (line.connection.reset_by, line.connection.refused) == ("server" if by_server else "client", False)


@pytest.mark.parametrize("end", [FIN | ACK, RST, None])
def test_a_connection_that_nobody_used_is_no_session(world, end):
    tcp = world.Tcp(world.Lookup())
    world.feed(tcp.open())
    if end is not None:
        world.feed(tcp.close(world.START + world.SECOND, end))
    assert world.outcomes() == []
    assert world.table.counts.sessions == 0
    assert leftovers(world) == {}


def test_a_refusal_is_told_although_the_port_had_a_good_connection_before(world):
    world.outcome(world.Tcp(world.Lookup()).whole())
    refused = world.Tcp(world.Lookup(), starts=(70_000, 80_000)).refuse(world.now + world.SECOND)
    outcomes = world.outcomes(refused)
    assert [line_of(one).connection.refused for one in outcomes] == [True]


def test_a_refusal_is_told_every_time(world):
    refused = []
    for index in range(3):
        tcp = world.Tcp(world.Lookup(), starts=(70_000 * (index + 1), 80_000))
        refused += world.outcomes(tcp.refuse(world.now + world.SECOND))
    assert len(refused) == 3


def test_a_late_copy_of_a_request_for_a_connection_that_was_used_is_no_session(world):
    tcp = world.Tcp(world.Lookup())
    syn = tcp.segment(world.START, flags=SYN)
    rest = [
        *tcp.segment(world.START + world.MS // 10, flags=SYN | ACK, response=True),
        *tcp.ask(world.START + world.MS),
        *tcp.say(world.START + 2 * world.MS),
    ]
    outcomes = world.outcomes(syn[:2], rest, syn[2:])
    assert [masks(one) for one in outcomes] == [("Succeeded", 3, 51)]


# What is missing


def test_without_the_socket_programs_a_lookup_is_no_session_and_no_failure(world):
    hops = without(world.Tcp(world.Lookup()).whole(), *AT_SOCKET)
    assert world.outcomes(hops) == []
    assert leftovers(world) == {}


def test_without_the_socket_programs_a_refusal_is_still_a_failure(world):
    one = world.outcome(without(world.Tcp(world.Lookup()).refuse(), *AT_SOCKET))
    assert (one.status, cause(one)) == (Status.FAILED, "NoListener")


@pytest.mark.parametrize("netns", ["CLIENT", "SERVER"])
def test_the_socket_of_one_end_is_enough(world, netns):
    seen = getattr(world, netns)
    hops = [hop for hop in world.Tcp(world.Lookup()).whole() if hop.event not in AT_SOCKET or hop.netns == seen]
    one = world.outcome(hops)
    assert (masks(one), len(line_of(one).path)) == (("Succeeded", 3, 51), 8)


def test_hops_between_the_ends_may_be_invisible(world):
    one = world.outcome(without(world.Tcp(world.Lookup()).whole(), Event.TX, Event.RX))
    assert (masks(one), len(line_of(one).path)) == (("Succeeded", 3, 51), 4)


@pytest.mark.parametrize("lost", range(12))
def test_any_one_record_of_query_or_reply_may_be_lost(world, lost):
    tcp = world.Tcp(world.Lookup())
    used = [*tcp.ask(world.START + world.MS), *tcp.say(world.START + 2 * world.MS)]
    assert len(used) == 12
    one = world.outcome(tcp.open(), used[:lost], used[lost + 1 :])
    assert (one.status, int(one.bitmap)) == (Status.SUCCEEDED, 3)


@pytest.mark.parametrize("shape", ["pod", "client"])
@pytest.mark.parametrize("gone", ["query", "query at its socket", "reply", "reply at its socket"])
def test_a_lost_record_costs_its_own_lookup_alone(world, shape, gone):
    asked = lookups(world, 4)
    tcp = world.Tcp(world.Lookup(shape=shape))
    world.table.record_loss(world.START + 1001 * world.MS, world.START + 1004 * world.MS)
    hops = tcp.open()
    for index, one in enumerate(asked):
        start = world.START + index * world.SECOND + 2 * world.MS
        query, reply = tcp.ask(start, one.question()), tcp.say(start + world.MS, one.answer())
        if index == 1:
            lost = query if gone.startswith("query") else reply
            events = AT_SOCKET if gone.endswith("socket") else tuple(Event)
            kept = [hop for hop in lost if hop.event not in events]
            query, reply = (kept, reply) if lost is query else (query, kept)
        hops += [*query, *reply]
    outcomes = world.outcomes(hops, tcp.close(world.START + 6 * world.SECOND))
    assert [one.status for one in outcomes if line_of(one).question.name != "n1.local."] == [Status.SUCCEEDED] * 3
    assert Status.FAILED not in [one.status for one in outcomes]


@pytest.mark.parametrize(
    ("shape", "vantage", "path"), [("pod", "both", 51), ("client", "client", 51), ("server", "server", 3)]
)
def test_a_message_behind_a_lost_one_keeps_its_own_hops_and_its_true_client(world, shape, vantage, path):
    asked = lookups(world, 2)
    tcp = world.Tcp(world.Lookup(shape=shape))
    opened = tcp.open()
    first = without(tcp.ask(world.START + world.MS, asked[0].question()), *AT_SOCKET)
    second = tcp.ask(world.START + 2 * world.MS, asked[1].question())
    world.table.record_loss(world.START + world.MS - 1, world.START + world.MS + world.US)
    replies = [
        *tcp.say(world.START + 3 * world.MS, asked[0].answer()),
        *tcp.say(world.START + 4 * world.MS, asked[1].answer()),
    ]
    outcomes = world.outcomes(opened, first, second, replies)
    (one,) = [one for one in outcomes if line_of(one).question.name == "n1.local."]
    assert (masks(one), one.vantage) == (("Succeeded", 3, path), vantage)


# Everything at once


def test_connections_without_end_take_bounded_memory(world):
    for index in range(2 * MAX_CONNECTIONS):
        client = (f"10.1.{index >> 8}.{index & 255}", 1024 + index)
        tcp = world.Tcp(world.Lookup(client=client, shape="server"))
        world.feed(tcp.segment(world.START + index, b"\0\x20half"))
    assert len(world.table._tcp._connections) <= MAX_CONNECTIONS
    assert world.outcomes() == []


@pytest.mark.parametrize("events", [{Event.TX, Event.RX}, {Event.SOCKET_TX, Event.SOCKET_RX, Event.TX, Event.RX}])
@pytest.mark.parametrize("same", [False, True])
def test_segments_without_end_take_bounded_memory(world, same, events):
    tcp = world.Tcp(world.Lookup())
    for index in range(3000):
        sequence = 1001 if same else 1001 + 100_000 * index
        hops = tcp.segment(world.START + index * world.MS, b"\0\xffsome bytes", sequence=sequence)
        world.feed(hop for hop in hops if hop.event in events)
    (connection,) = world.table._tcp._connections.values()
    assert sum(len(hops) for hops in connection.waiting.values()) < 5000
    assert sum(len(numbers) for numbers in connection.messages.values()) < 5000


def test_messages_without_end_in_one_segment_take_bounded_memory(world):
    lookup = world.Lookup()
    tcp = world.Tcp(lookup)
    many = world.prefixed(*(world.message("n.local.", 1, index) for index in range(1000)))
    world.feed(tcp.open(), *(tcp.segment(world.START + index * world.MS, many) for index in range(20)))
    (connection,) = world.table._tcp._connections.values()
    assert sum(len(numbers) for numbers in connection.messages.values()) <= 20_000
    world.outcomes()
    assert leftovers(world) == {}


plans = st.lists(
    st.tuples(
        st.sampled_from(["whole", "refused", "silent", "unanswered", "reset", "unused", "pipelined", "split", "old"]),
        st.sampled_from(SHAPES),
        st.booleans(),
        st.integers(0, 5_000),
    ),
    min_size=1,
    max_size=4,
)


def conversation(world, kind, lookup, start):
    tcp = world.Tcp(lookup, starts=(lookup.identifier * 1000, 5000))
    ms = world.MS
    if kind == "unanswered":
        return [hop for wait in (0, 1, 3) for hop in tcp.segment(start + wait * world.SECOND, flags=SYN)]
    if kind == "refused":
        return tcp.refuse(start)
    if kind == "old":
        return [*tcp.ask(start), *tcp.say(start + ms)]
    opened, query = tcp.open(start), world.prefixed(lookup.question())
    other = world.Lookup(name=f"other-{lookup.name}", identifier=9)
    then = {
        "whole": lambda: [*tcp.ask(start + ms), *tcp.say(start + 2 * ms), *tcp.close(start + 3 * ms)],
        "silent": lambda: tcp.ask(start + ms),
        "reset": lambda: [*tcp.ask(start + ms), *tcp.close(start + 2 * ms, RST | ACK, response=True)],
        "unused": lambda: tcp.close(start + ms),
        "pipelined": lambda: [
            *tcp.ask(start + ms, lookup.question(), other.question()),
            *tcp.say(start + 2 * ms, other.answer()),
            *tcp.say(start + 3 * ms),
        ],
        "split": lambda: [
            *tcp.segment(start + ms, query[:2]),
            *tcp.segment(start + 2 * ms, query[2:]),
            *tcp.say(start + 3 * ms),
        ],
    }
    return [*opened, *then[kind]()]


def all_conversations(world, plan):
    hops = []
    for index, (kind, shape, snat, start_ms) in enumerate(plan):
        own = {"name": f"n{index}.local.", "port": 2000 + index, "identifier": 50 + index}
        lookup = world.Lookup(shape=shape, snat=snat and shape == "pod", **own)
        lookup.outside = (lookup.outside[0], 30000 + index) if lookup.snat else lookup.outside
        hops += conversation(world, kind, lookup, world.START + start_ms * world.MS)
    return sorted(hops, key=lambda hop: hop.ts_ns)


def finish(world, outcomes=()):
    outcomes = [*outcomes, *world.later(100 * world.SECOND)]
    for one in outcomes:
        build(one, explain(one), CONTEXT)
    assert leftovers(world) == {}
    assert len(world.table._tcp._connections) <= MAX_CONNECTIONS
    return outcomes


@settings(max_examples=150, deadline=None)
@given(plan=plans)
def test_without_loss_every_conversation_has_its_true_end(worlds, plan):
    world = worlds(started_ns=-(10**13))
    # A process on loopback, or one of the node, could have been asked by the others' clients.
    apart = ("pod", "host", "client", "server")
    plan = [(kind, shape, False, start) for kind, shape, _, start in plan if shape in apart]
    outcomes = finish(world, world.outcomes(all_conversations(world, plan)))
    good = {"whole": 1, "pipelined": 2, "split": 1, "old": 1}
    bad = {"refused", "silent", "unanswered", "reset"}
    found = [one.status for one in outcomes]
    assert found.count(Status.SUCCEEDED) == sum(good.get(kind, 0) for kind, *_ in plan)
    assert found.count(Status.FAILED) == sum(kind in bad for kind, *_ in plan)
    assert len(found) == found.count(Status.SUCCEEDED) + found.count(Status.FAILED)


@settings(max_examples=200, deadline=None)
@given(plan=plans, data=st.data())
def test_a_loss_of_any_records_is_never_an_accusation(worlds, plan, data):
    world = worlds(started_ns=-(10**13))
    hops = all_conversations(world, [(kind, *rest) for kind, *rest in plan if kind != "refused"])
    gone = data.draw(st.sets(st.integers(0, len(hops)), min_size=1))
    world.table.record_loss(world.START - world.SECOND, world.START + 100 * world.SECOND)
    world.feed(hop for index, hop in enumerate(hops) if index not in gone)
    for one in finish(world):
        assert one.status is not Status.FAILED
        assert cause(one) in (None, "CaptureLoss")


@settings(max_examples=200, deadline=None)
@given(plan=plans, data=st.data())
def test_any_order_repetition_and_loss_never_raises_and_leaves_nothing(worlds, plan, data):
    world = worlds(
        started_ns=-(10**13), max_sessions=data.draw(st.integers(1, 8)), tombstones=data.draw(st.integers(0, 4))
    )
    hops = all_conversations(world, plan)
    outcomes = []
    for pick in data.draw(st.lists(st.integers(0, len(hops) - 1), max_size=100)):
        world.feed([hops[pick]])
        outcomes += world.table.expire(hops[pick].ts_ns)
    finish(world, outcomes)


@settings(max_examples=100, deadline=None)
@given(plan=plans, data=st.data())
def test_bytes_that_are_no_dns_never_raise_and_never_stay(worlds, plan, data):
    world = worlds()
    for hop in all_conversations(world, plan):
        raw = data.draw(st.none() | st.binary(max_size=40)) if hop.event in AT_SOCKET else None
        flags = data.draw(st.none() | st.integers(0, 63))
        changed = vars(hop) | ({"content": raw} if raw is not None else {})
        world.feed([world.PlainHop(**changed | ({"tcp_flags": flags} if flags is not None else {}))])
    finish(world)


def test_an_address_that_one_namespace_after_the_other_has_costs_bounded_memory(world):
    """Anybody may make namespaces, and give them what addresses they like."""
    for index in range(2 * MAX_ENDS):
        netns = world.CLIENT + 1000 + index
        lookup = world.Lookup(client_netns=netns, identifier=index, name=f"n{index}.local.")
        world.feed(world.Tcp(lookup, (1000 + 9000 * index, 5000 + 9000 * index)).whole(world.now + world.SECOND))
    outcomes = world.later(60 * world.SECOND)
    assert [one.status for one in outcomes][-3:] == [Status.SUCCEEDED] * 3
    assert {len(one.session.connection.ends) for one in outcomes} <= set(range(1, MAX_ENDS + 1))
