"""agent.session.judge: Status and the three masks, as the tables of docs/semantics.md say them."""

import struct
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.hop.record import Event
from agent.session.outcome import Bit, Status

SERVFAIL = {"rcode": 2, "aa": False}
BENIGN = [
    {"reason": "PACKET_SOCK_ERROR", "location": ""},
    {"reason": "QUEUE_PURGE", "location": ""},
    {"reason": "NOT_SPECIFIED", "location": "skb_release_data"},
    {"reason": "NOT_SPECIFIED", "location": "udp_destruct_common"},
    {"reason": "SKB_CONSUMED", "location": ""},
]


def masks(outcome):
    return outcome.status.value, int(outcome.bitmap), int(outcome.path)


def cause(outcome):
    found = explain(outcome).cause
    return found.code if found else None


# Where it was lost


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("snat", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_query_dropped_on_its_way_never_got_to_the_server(world, after, snat, v6):
    one = world.outcome(world.dropped(world.Lookup(snat=snat, v6=v6).query(), after))
    assert masks(one) == ("Failed", 0, 80)
    assert (one.rcode, one.duration_ns, one.client_netns) == (None, None, world.CLIENT)


@pytest.mark.parametrize(
    ("shape", "expected"), [("host", 80), ("loopback", 80), ("client", 80), ("local", 80), ("server", 64)]
)
def test_a_query_dropped_at_its_first_hop_never_got_to_the_server_whoever_asked(world, shape, expected):
    assert masks(world.outcome(world.dropped(world.Lookup(shape=shape).query(), 1))) == ("Failed", 0, expected)


def test_a_query_dropped_before_any_device_is_a_failure_of_its_client(world):
    # What an OUTPUT rule refuses has no departure: its drop is the first that is seen of it.
    drop = world.dropped(world.Lookup().query(), 1, stack=("nf_hook_slow", "__ip_local_out"))[1]
    one = world.outcome([drop])
    assert (masks(one), one.client_netns) == (("Failed", 0, 80), world.CLIENT)


def test_a_query_refused_by_the_servers_full_socket_did_get_to_the_server(world):
    one = world.outcome(world.dropped(world.Lookup().query(), 4, "SOCKET_RCVBUFF", "udp_queue_rcv_one_skb"))
    assert masks(one) == ("Failed", 1, 81)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_reply_dropped_on_its_way_was_sent_and_not_received(world, after):
    lookup = world.Lookup()
    one = world.outcome(lookup.query(), world.dropped(lookup.reply(), after))
    assert masks(one) == ("Failed", 3, 16 + 3 + 128)


def test_a_reply_dropped_in_the_clients_namespace_failed_there(world):
    lookup = world.Lookup()
    one = world.outcome(lookup.query(), world.dropped(lookup.reply(), 4, "NO_SOCKET", "__udp4_lib_rcv"))
    assert masks(one) == ("Failed", 3, 16 + 32 + 3 + 128)


@pytest.mark.parametrize(("shape", "path"), [("pod", 17), ("host", 17), ("loopback", 17), ("local", 17), ("server", 1)])
def test_a_silent_server_received_the_query_and_returned_nothing(world, shape, path):
    one = world.outcome(world.Lookup(shape=shape).query())
    assert masks(one) == ("Failed", 1, path)


def test_a_query_lost_beyond_the_node_left_it(world):
    one = world.outcome(world.Lookup(shape="client").query())
    assert (masks(one), one.vantage, cause(one)) == (("Failed", 1, 17), "client", "LeftNode")


def test_a_query_that_got_lost_between_a_pod_and_the_node_did_not_leave_the_node(world):
    # Lookups before it showed that the pod's device has its other end here.
    world.outcome(world.Lookup(port=2000).both())
    one = world.outcome(world.Lookup().query(world.now + world.MS)[:1])
    assert masks(one) == ("Failed", 0, 16)
    assert cause(one) == "Unknown"


# What was answered


@pytest.mark.parametrize("rcode", [0, 3])
def test_an_answer_and_a_name_error_are_successes(world, rcode):
    one = world.outcome(world.Lookup().both(rcode=rcode))
    assert (masks(one), one.rcode) == (("Succeeded", 3, 51), rcode)


@pytest.mark.parametrize("rcode", [1, 2, 4, 5, 9])
def test_a_delivered_error_is_a_failure(world, rcode):
    one = world.outcome(world.Lookup().both(rcode=rcode))
    assert (masks(one), one.rcode) == (("Failed", 3, 51), rcode)


def test_an_extended_error_is_a_failure_with_all_its_bits(world):
    lookup = world.Lookup()
    raw = bytearray(world.message(lookup.name, flags=0x8500, tail=b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 24, 0)))
    raw[11] = 1
    one = world.outcome(lookup.query(), lookup.reply(content=bytes(raw)))
    assert (one.status, one.rcode) == (Status.FAILED, 16)


@pytest.mark.parametrize("rcode", [1, 2, 4, 5])
def test_dnstap_would_not_have_shown_an_error_that_the_servers_core_wrote(world, rcode):
    one = world.outcome(world.Lookup().both(rcode=rcode, aa=False))
    assert (int(one.bitmap), int(one.dnstap_bitmap), one.answer_source) == (3, 1, "server-error")


@pytest.mark.parametrize("shape", [{"aa": True}, {"aa": False, "ra": True}, {"aa": False, "an": 1}])
def test_dnstap_would_have_shown_errors_of_any_other_shape(world, shape):
    one = world.outcome(world.Lookup().both(rcode=2, **shape))
    assert int(one.dnstap_bitmap) == 3


@pytest.mark.parametrize(
    ("aa", "ra", "source"),
    [(True, False, "local"), (True, True, "cache"), (False, True, "forward"), (False, False, None)],
)
def test_the_flags_of_an_answer_say_where_it_came_from(world, aa, ra, source):
    assert world.outcome(world.Lookup().both(aa=aa, ra=ra)).answer_source == source


def test_a_first_reply_that_vanished_is_not_the_one_that_counts(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    lost, got = lookup.reply(start + world.MS, **SERVFAIL)[:2], lookup.reply(start + 2 * world.MS)
    one = world.outcome(lookup.query(start), lost, got)
    assert (one.status, one.rcode) == (Status.SUCCEEDED, 0)


def test_a_dropped_reply_does_not_matter_when_another_was_delivered(world):
    lookup = world.Lookup()
    lost = world.dropped(lookup.reply(), 2)
    one = world.outcome(lookup.query(), lost, lookup.reply(world.START + 50 * world.MS))
    assert masks(one) == ("Succeeded", 3, 51 + 128)


@pytest.mark.parametrize(
    ("shape", "vantage", "path"),
    [
        ("pod", "both", 51),
        ("host", "both", 51),
        ("local", "both", 51),
        ("client", "client", 51),
        ("server", "server", 3),
    ],
)
def test_the_vantage_says_which_ends_are_on_this_node(world, shape, vantage, path):
    one = world.outcome(world.Lookup(shape=shape).both())
    assert (one.vantage, masks(one)) == (vantage, ("Succeeded", 3, path))


@pytest.mark.parametrize("shape", ["pod", "host", "loopback", "local", "client", "server"])
def test_lookups_succeed_where_nothing_is_known_of_addresses(worlds, shape):
    one = worlds(knows_addresses=False).outcome(worlds.Lookup(shape=shape).both())
    assert (one.status, int(one.bitmap)) == (Status.SUCCEEDED, 3)


# Time


def test_an_unanswered_query_is_given_up_after_ten_seconds(world):
    world.feed(world.Lookup().query())
    end = world.START + 10 * world.SECOND
    assert list(world.table.expire(end - 1)) == []
    assert [one.status for one in world.table.expire(end)] == [Status.FAILED]


def test_the_time_out_is_the_users(worlds):
    world = worlds(timeout_ns=worlds.SECOND)
    world.feed(world.Lookup().query())
    assert list(world.table.expire(world.START + world.SECOND - 1)) == []
    assert len(list(world.table.expire(world.START + world.SECOND))) == 1


def test_the_time_out_begins_anew_with_every_attempt(world):
    lookup = world.Lookup()
    again = world.START + 5 * world.SECOND
    world.feed(lookup.query(), lookup.query(again))
    assert list(world.table.expire(again + 10 * world.SECOND - 1)) == []
    assert [one.attempts for one in world.table.expire(again + 10 * world.SECOND)] == [2]


def test_a_reply_in_the_last_moment_counts(world):
    lookup = world.Lookup()
    assert world.outcome(lookup.query(), lookup.reply(world.START + 10 * world.SECOND - 1)).status is Status.SUCCEEDED


def test_an_answered_session_lingers_for_late_records_only_shortly(world):
    end = world.feed(world.Lookup().both()).now + 100 * world.MS
    assert list(world.table.expire(end - 1)) == []
    assert len(list(world.table.expire(end + 100 * world.MS))) == 1


def test_a_reply_that_was_sent_and_not_delivered_waits_for_its_late_drop(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    world.feed(lookup.query(start), lookup.reply(start + world.MS)[:2])
    assert world.later(5 * world.SECOND) == []
    drop = world.dropped(lookup.reply(start + world.MS), 2, delay=6 * world.SECOND)[2]
    assert masks(world.outcome([drop])) == ("Failed", 3, 16 + 3 + 128)


def test_records_close_sessions_by_their_own_time_when_the_reader_was_stalled(world):
    first, second = world.Lookup(port=2000), world.Lookup(port=2001)
    world.feed(first.both(), second.both(world.START + 60 * world.SECOND))
    assert [one.session.key.client.port for one in world.later(0)] == [2000]


# What is no loss


@pytest.mark.parametrize("benign", BENIGN)
def test_freed_copies_and_unread_queues_never_change_a_success(world, benign):
    lookup = world.Lookup()
    query, reply = lookup.query(), lookup.reply()
    drops = [world.dropped(hops, after, **benign)[-1] for hops in (query, reply) for after in (1, 2, 3, 4)]
    one = world.outcome(sorted([*query, *reply, *drops], key=lambda hop: hop.ts_ns))
    assert (masks(one), one.attempts) == (("Succeeded", 3, 51), 1)
    assert sum(len(leg.transmissions[0].hops) for leg in (one.session.queries, one.session.replies)) == 8
    assert world.table.counts.benign_drops == 8


@pytest.mark.parametrize("benign", BENIGN)
def test_freed_copies_and_unread_queues_never_explain_a_failure(world, benign):
    one = world.outcome(world.dropped(world.Lookup().query(), 4, **benign))
    assert (masks(one), cause(one)) == (("Failed", 1, 17), "ServerNoReply")


def test_what_waited_for_a_neighbours_address_and_was_purged_is_lost(world):
    """The queue is purged when another packet asks for the address while the first is being given up."""
    one = world.outcome(world.dropped(world.Lookup().query(), 2, "QUEUE_PURGE", "neigh_invalidate"))
    assert (one.status.value, cause(one)) == ("Failed", "NeighbourFailure")


# Losses of the agent itself


def test_a_missing_reply_while_records_were_lost_is_no_accusation(world):
    world.table.record_loss(world.START + world.MS, world.START + world.SECOND)
    one = world.outcome(world.Lookup().query())
    assert (one.status, cause(one)) == (Status.SAMPLE_LOSS, "CaptureLoss")


def test_a_complete_lookup_is_a_success_whatever_else_was_lost(world):
    world.table.record_loss(world.START - world.SECOND, world.START + world.SECOND)
    one = world.outcome(world.Lookup().both())
    assert (masks(one), cause(one)) == (("Succeeded", 3, 51), None)


@pytest.mark.parametrize("interval", [(-2, -1), (11, 12)])
def test_losses_at_another_time_excuse_nothing(world, interval):
    world.table.record_loss(*(world.START + seconds * world.SECOND for seconds in interval))
    assert world.outcome(world.Lookup().query()).status is Status.FAILED


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seen", [slice(4, 8), slice(5, 8), slice(6, 8)])
def test_a_reply_without_its_query_proves_that_the_server_had_it(worlds, seen, lossy):
    world = worlds(started_ns=-(10**13))
    if lossy:
        world.table.record_loss(world.START, world.START + world.SECOND)
    one = world.outcome(world.Lookup().both()[seen])
    assert (one.status, int(one.bitmap), Bit(one.inferred), cause(one)) == (Status.SUCCEEDED, 3, Bit.CQ, None)


# What a data plane does not show


def hidden(hops, *places):
    """Without the hops that such a data plane hides: by number in the plain path."""
    return [hop for index, hop in enumerate(hops) if index not in places]


def redirected(world, start, port=44525, **reply):
    """A lookup whose packets bpf_redirect_peer() hands to the pods: no hop shows that."""
    lookup = world.Lookup(port=port)
    return hidden(lookup.query(start), 2, 3), hidden(lookup.reply(start + world.MS, **reply), 2, 3)


@pytest.mark.parametrize("knows_addresses", [False, True])
def test_lookups_through_ebpf_host_routing_are_whole_and_say_what_was_inferred(worlds, knows_addresses):
    world = worlds(knows_addresses=knows_addresses)
    for number in range(4):
        one = world.outcome(*redirected(world, world.now + world.SECOND, port=2000 + number))
        assert masks(one) == ("Succeeded", 3, 51)
        assert (Bit(one.inferred), cause(one), explain(one).findings) == (Bit.CQ | Bit.SR, None, [])


def test_what_sockets_show_of_tcp_does_not_make_udp_lost_whose_arrival_no_device_shows(world):
    # Macvlan: TCP replies go on to the client's socket from the very place where UDP replies are seen last.
    segments = world.Tcp(world.Lookup(port=2000)).whole()
    world.outcome([hop for hop in segments if not (hop.netns == world.CLIENT and hop.event == Event.RX)])
    lookup, start = world.Lookup(), world.now + world.SECOND
    one = world.outcome(lookup.query(start), hidden(lookup.reply(start + world.MS), 3))
    assert (masks(one), Bit(one.inferred), cause(one)) == (("Succeeded", 3, 51), Bit.SR, None)


def test_what_is_hidden_on_one_way_does_not_excuse_a_reply_that_vanished_on_another(world):
    world.outcome(world.Lookup(port=2000).both())
    world.outcome(*redirected(world, world.now + world.SECOND, port=2001))
    lookup, start = world.Lookup(), world.now + world.SECOND
    one = world.outcome(lookup.query(start), lookup.reply(start + world.MS)[:2])
    assert (one.status, cause(one)) == (Status.FAILED, "Unknown")


def test_a_client_that_asks_again_did_not_take_a_reply_whose_arrival_is_hidden(world):
    again = world.Lookup().query(world.START + 50 * world.MS)
    one = world.outcome(*redirected(world, world.START), again)
    assert (one.status, one.delivered, one.attempts) == (Status.FAILED, False, 2)


def test_an_error_that_was_delivered_unseen_is_still_the_error(world):
    one = world.outcome(*redirected(world, world.START, **SERVFAIL))
    assert (masks(one), cause(one)) == (("Failed", 3, 51), "ServerError")


def test_a_reply_that_vanished_while_records_were_lost_is_neither_taken_nor_lost(world):
    world.outcome(world.Lookup(port=2000).both())
    start = world.now + world.SECOND
    world.table.record_loss(start, start + world.SECOND)
    one = world.outcome(*redirected(world, start))
    assert (one.status, cause(one)) == (Status.SAMPLE_LOSS, "CaptureLoss")


@pytest.mark.parametrize("leg", ["query", "reply"])
def test_a_proven_drop_stays_a_failure_while_records_were_lost(world, leg):
    # Nothing was lost behind the drop, so no retry can be missing.
    world.table.record_loss(world.START - world.SECOND, world.START + world.US)
    lookup = world.Lookup()
    query, reply = lookup.query(), world.dropped(lookup.reply(), 2)
    one = world.outcome(world.dropped(query, 2) if leg == "query" else [*query, *reply])
    assert (one.status, cause(one)) == (Status.FAILED, "PolicyDrop")


def test_a_delivered_error_stays_a_failure_while_records_were_lost(world):
    world.table.record_loss(world.START, world.START + world.SECOND)
    assert world.outcome(world.Lookup().both(**SERVFAIL)).status is Status.FAILED


def test_a_lost_attempt_proves_nothing_when_the_records_of_its_retry_were_lost(world):
    lookup = world.Lookup()
    again = world.START + 5 * world.SECOND
    world.table.record_loss(again, again + world.SECOND)
    one = world.outcome(world.dropped(lookup.query(), 2), lookup.query(again))
    assert one.status is Status.SAMPLE_LOSS


def test_a_dropped_reply_proves_nothing_when_the_records_of_the_next_were_lost(world):
    world.outcome(world.Lookup(port=2000).both())
    lookup, start = world.Lookup(), world.now + world.MS
    again = start + 5 * world.SECOND
    world.table.record_loss(again, again + world.SECOND)
    dropped = world.dropped(lookup.reply(start + world.MS), 2)
    one = world.outcome(lookup.query(start), dropped, lookup.query(again), lookup.reply(again + world.MS)[:2])
    assert one.status is Status.SAMPLE_LOSS


def test_what_the_agent_itself_cuts_short_accuses_nobody(world):
    world.feed(world.Lookup().query())
    (one,) = world.table.flush(world.now + world.MS)
    assert (one.status, cause(one)) == (Status.SAMPLE_LOSS, "CaptureLoss")


def test_who_takes_only_some_of_what_is_over_gets_the_others_the_next_time(world):
    ports = [1000, 1001, 1002, 1003]
    world.feed(*(world.Lookup(port=port).query() for port in ports))
    end = world.now + 10 * world.SECOND
    taken = [next(world.table.expire(end)), next(world.table.expire(end))]
    assert world.table.left == 2
    taken += [next(world.table.expire(end)), next(world.table.flush(end))]
    assert [one.session.key.client.port for one in taken] == ports
    assert (world.table.left, {one.status for one in taken}) == (0, {Status.FAILED})


def test_what_was_complete_when_the_agent_ended_keeps_its_verdict(world):
    world.feed(world.Lookup().both(), world.dropped(world.Lookup(port=2000).query(), 2))
    assert sorted(one.status for one in world.table.flush(world.now)) == [Status.FAILED, Status.SUCCEEDED]


# What is remembered is bounded


def similar(world, count, **changes):
    """Lookups that differ in what a lookup like earlier ones must not differ in."""
    for index in range(count):
        world.feed(world.Lookup(identifier=index, **changes).both(world.now + world.SECOND)).later(world.SECOND)


def test_ways_of_pods_that_are_gone_do_not_keep_out_those_of_new_ones(world, monkeypatch):
    monkeypatch.setattr("agent.session.judge.MAX_PATTERNS", 2)
    for port in range(53, 59):
        similar(world, 1, vip=("10.96.0.10", port), dnat=False)
        assert 0 < len(world.table.node_state.path_patterns) <= 2
    newest = next(reversed(world.table.node_state.path_patterns))
    assert (58).to_bytes(2, sys.byteorder) in newest[2]


def test_devices_that_are_gone_are_forgotten_and_those_in_use_are_learned_again(world, monkeypatch):
    monkeypatch.setattr("agent.session.node_state.MAX_KNOWN", 100)
    similar(world, 2)
    known = world.table.node_state
    known.linked.update((world.NODE, 1000 + index) for index in range(100))
    similar(world, 1, port=9, vip=("10.96.0.11", 53))
    assert len(known.linked) < 10
    similar(world, 1)
    assert (world.NODE, 11) in known.linked


def test_answers_are_still_counted_when_servers_were_forgotten(world, monkeypatch):
    monkeypatch.setattr("agent.session.node_state.MAX_SERVICES", 1)
    similar(world, 2)
    similar(world, 1, port=9, vip=("10.96.0.11", 53))
    similar(world, 1, port=9, vip=("10.96.0.12", 53))
    assert len(world.table.node_state.backends) == 1
    similar(world, 2)
    counted = [one.all_answers for servers in world.table.node_state.backends.values() for one in servers.values()]
    assert sum(counted) >= 2


def test_icmp_errors_about_nobodys_packets_cost_later_lookups_nothing(world):
    stray = world.icmp(world.Lookup(port=9).query()[0], 3, 3, "192.0.2.1")
    world.feed([stray] * 20)
    world.feed(world.Lookup().both(world.now + world.SECOND))
    assert not world.table._quotes._early


# The short way for lookups like earlier ones says what the long way says

SHAPES = ("pod", "host", "client", "server", "loopback", "local")
ANSWERS = st.fixed_dictionaries(
    {}, optional={"rcode": st.sampled_from([0, 2, 3, 5]), "aa": st.booleans(), "ra": st.booleans()}
)


@settings(max_examples=60, deadline=None)
@given(
    lookups=st.lists(
        st.tuples(st.sampled_from(SHAPES), st.booleans(), st.sampled_from([1, 28]), ANSWERS, st.integers(0, 3)),
        min_size=4,
        max_size=24,
    )
)
def test_lookups_like_earlier_ones_get_the_line_that_they_would_get_without_these(worlds, lookups):
    lines = []
    for remembers in (True, False):
        world, said = worlds(), []
        for number, (shape, v6, rdtype, answer, kept_back) in enumerate(lookups):
            if not remembers:
                world.table.node_state.path_patterns.clear()
            lookup = world.Lookup(shape=shape, v6=v6, rdtype=rdtype, identifier=number, port=3000 + number % 2)
            hops = lookup.both(world.now + world.SECOND, **answer)
            # Some lookups lack their last hops.
            world.feed(hops[: len(hops) - kept_back])
            said += [build(one, explain(one), Context("node-a", 0)) for one in world.later(20 * world.SECOND)]
        lines.append([msgspec.json.encode(line) for line in said])
    assert lines[0] == lines[1]
