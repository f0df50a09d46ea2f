"""agent.session.table: which hops belong to one lookup, whatever translates, repeats, reorders or hides them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.hop.endpoint import address_to_text
from agent.session.outcome import Bit, Status

CONTEXT = Context("node-a", 0)
SHAPES = ["pod", "host", "loopback", "local", "client", "server"]


def line_of(outcome):
    return build(outcome, explain(outcome), CONTEXT)


# Identity


def test_a_and_aaaa_with_one_id_and_one_port_are_two_sessions(world):
    a, aaaa = world.Lookup(rdtype=1), world.Lookup(rdtype=28)
    outcomes = world.outcomes(a.query(), aaaa.query(world.START + 10), a.reply(), aaaa.reply())
    assert sorted(one.session.key.rdtype for one in outcomes) == [1, 28]
    assert [int(one.path) for one in outcomes] == [51, 51]


def test_a_reply_that_changes_the_case_of_the_name_belongs_to_its_query(world):
    reply = world.Lookup(name="REDIS.Default.SVC.cluster.local.").reply()
    one = world.outcome(world.Lookup(name="redis.default.svc.Cluster.Local.").query(), reply)
    assert (one.status, int(one.path)) == (Status.SUCCEEDED, 51)
    assert line_of(one).question.name == "redis.default.svc.cluster.local."


@pytest.mark.parametrize(
    "other",
    [{"port": 44526}, {"identifier": 1}, {"name": "other.local."}, {"rdclass": 3}, {"client": ("172.20.2.26", 44525)}],
)
def test_another_port_id_name_class_or_client_is_another_session(world, other):
    outcomes = world.outcomes(world.Lookup().both(), world.Lookup(**other).both(world.START + 5))
    assert [int(one.path) for one in outcomes] == [51, 51]


# Hops


@pytest.mark.parametrize("v6", [False, True])
def test_the_eight_hops_of_a_lookup_through_a_service_are_one_succeeded_session(world, v6):
    one = world.outcome(world.Lookup(v6=v6).both())
    assert (one.status, int(one.bitmap), int(one.path)) == (Status.SUCCEEDED, 3, 51)
    assert (one.vantage, one.attempts, one.client_netns, one.server_netns) == ("both", 1, world.CLIENT, world.SERVER)
    assert len(line_of(one).path) == 8
    assert one.duration_ns == 138_600
    assert explain(one).cause is None


@pytest.mark.parametrize("hidden", [(1,), (2,), (1, 2), (5,), (6,), (5, 6), (1, 2, 5, 6)])
def test_hops_between_the_ends_may_be_invisible(world, hidden):
    hops = world.Lookup().both()
    one = world.outcome([hop for index, hop in enumerate(hops) if index not in hidden])
    assert (one.status, int(one.path)) == (Status.SUCCEEDED, 51)


def test_pods_whose_arrivals_never_show_have_their_lookups_succeed(world):
    # bpf_redirect_peer() hands packets into a pod without netif_receive_skb.
    hops = world.Lookup().both()
    (one,) = world.outcomes(hops[:3], hops[4:7])
    assert (one.status, int(one.bitmap)) == (Status.SUCCEEDED, 3)


def shuffled(hops, data):
    return [hops[index] for index in data.draw(st.permutations(range(len(hops))))]


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_hops_in_any_order_come_to_the_same_session(worlds, shape, data):
    def facts(hops) -> tuple[object, ...]:
        one = worlds(started_ns=-(10**12)).outcome(hops)
        line = line_of(one)
        return one.status, one.path, one.vantage, one.attempts, line.duration_seconds, line.latency, line.messages

    hops = worlds.Lookup(shape=shape).both()
    assert facts(shuffled(hops, data)) == facts(hops)


@given(data=st.data())
def test_a_session_begins_with_its_earliest_hop_whichever_arrives_first(worlds, data):
    line = line_of(worlds(started_ns=-(10**12)).outcome(shuffled(worlds.Lookup().both(), data)))
    assert (line.time, line.path[0].offset_seconds) == ("1970-01-01T00:16:40.000000000Z", 0)


@given(data=st.data(), after=st.integers(1, 4))
def test_a_dropped_query_is_the_same_failure_in_whatever_order_its_hops_arrive(worlds, data, after):
    hops = worlds.dropped(worlds.Lookup().query(), after)
    one = worlds().outcome(shuffled(hops, data))
    assert (one.status, int(one.path), one.attempts) == (Status.FAILED, 80, 1)


@given(data=st.data(), after=st.integers(1, 4))
def test_a_dropped_reply_is_the_same_failure_in_whatever_order_its_hops_arrive(worlds, data, after):
    lookup = worlds.Lookup()
    hops = worlds.dropped(lookup.reply(), after)
    one = worlds().outcome(lookup.query(), shuffled(hops, data))
    assert (one.status, one.attempts, len(one.session.replies.transmissions)) == (Status.FAILED, 1, 1)


# Retransmission


def test_a_repeat_is_one_more_attempt_of_the_same_session(world):
    lookup = world.Lookup()
    lost = world.dropped(lookup.query(), 2, stack=("nf_hook_slow", "ip_forward"))
    again = world.START + 5 * world.SECOND
    one = world.outcome(lost, lookup.query(again), lookup.reply(again + 90_000))
    assert (one.status, one.attempts, int(one.bitmap), int(one.path)) == (Status.SUCCEEDED, 2, 3, 51 + 64)
    verdict = explain(one)
    assert verdict.cause is not None
    assert "Retransmitted" in verdict.findings
    assert 5 < line_of(one).duration_seconds < 5.1


def test_a_repeat_in_the_second_in_which_the_bytes_are_not_sent_again_is_an_attempt_too(world):
    lookup = world.Lookup()
    lost = world.dropped(lookup.query(), 2)
    one = world.outcome(lost, lookup.query(world.START + world.SECOND // 2), lookup.reply(world.START + world.SECOND))
    assert (one.status, one.attempts) == (Status.SUCCEEDED, 2)


def test_an_attempt_lost_beyond_the_node_is_blamed_although_the_retry_succeeded(world):
    lookup = world.Lookup(shape="client")
    again = world.START + 5 * world.SECOND
    one = world.outcome(lookup.query(), lookup.query(again), lookup.reply(again + world.MS))
    assert (one.status, one.attempts, int(one.path)) == (Status.SUCCEEDED, 2, 51)
    assert explain(one).cause is not None


def test_a_query_repeated_and_answered_twice_is_one_succeeded_session(world):
    lookup = world.Lookup()
    one = world.outcome(
        lookup.query(), lookup.query(world.START + world.MS), lookup.reply(), lookup.reply(world.START + 2 * world.MS)
    )
    assert (one.status, one.attempts, int(one.path)) == (Status.SUCCEEDED, 2, 51)
    assert len(one.session.replies.transmissions) == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_question_after_the_session_closed_is_a_new_session(world, shape):
    lookup = world.Lookup(shape=shape)
    first = world.feed(lookup.both()).later(2 * world.SECOND)
    second = world.outcomes(lookup.both(world.START + 5 * world.SECOND))
    assert [(len(first), int(one.bitmap), one.attempts) for one in second] == [(1, 3, 1)]


def test_the_same_question_half_a_second_after_its_answer_is_a_new_session(world):
    # The kernel program does not send the bytes again so soon.
    lookup = world.Lookup()
    outcomes = world.outcomes(lookup.both(), lookup.both(world.START + world.SECOND // 2))
    assert [(int(one.path), one.attempts) for one in outcomes] == [(51, 1), (51, 1)]


# Translation


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(("dnat", "snat"), [(True, False), (True, True), (False, True)])
def test_a_lookup_before_and_after_translation_is_one_session_of_the_client_before_it(world, dnat, snat, v6):
    lookup = world.Lookup(dnat=dnat, snat=snat, v6=v6)
    one = world.outcome(lookup.both())
    line = line_of(one)
    assert (one.status, int(one.path), len(line.path)) == (Status.SUCCEEDED, 51, 8)
    assert (line.client.address, line.client.port) == lookup.client
    assert (line.server.address, line.server.port) == lookup.vip
    backend = ("[fd00:244::53]:53" if v6 else "10.244.1.53:53") if dnat else None
    assert (line.server.backend, line.server.translated_by) == (backend, "conntrack" if dnat else None)


def test_masqueraded_lookups_of_two_clients_stay_apart(world):
    one, two = world.Lookup(snat=True), world.Lookup(snat=True, client=("172.20.2.26", 44525))
    two.outside = (one.outside[0], 61001)
    outcomes = world.outcomes(one.query(), two.query(world.START + 7), two.reply(), one.reply())
    assert [(int(each.path), address_to_text(each.session.key.client.address)) for each in outcomes] == [
        (51, "172.20.2.25"),
        (51, "172.20.2.26"),
    ]


@pytest.mark.parametrize("v6", [False, True])
def test_a_client_in_the_nodes_namespace_is_seen_behind_the_translation_and_still_asked_the_service(world, v6):
    lookup = world.Lookup(shape="host", v6=v6)
    one = world.outcome(lookup.both())
    line = line_of(one)
    assert (one.status, int(one.path), one.vantage) == (Status.SUCCEEDED, 51, "both")
    assert (line.server.address, line.client.netns) == (lookup.vip[0], world.NODE)
    assert line.server.backend == ("[fd00:244::53]:53" if v6 else "10.244.1.53:53")


def test_clients_on_loopback_are_one_session_in_each_namespace(world):
    lookups = [world.Lookup(shape="loopback", client_netns=netns) for netns in (world.CLIENT, world.SERVER)]
    outcomes = world.outcomes(*(one.query() for one in lookups), *(one.reply() for one in lookups))
    assert sorted((one.client_netns, int(one.path), one.attempts) for one in outcomes) == [
        (world.CLIENT, 51, 1),
        (world.SERVER, 51, 1),
    ]


@pytest.mark.parametrize("v6", [False, True])
def test_a_lookup_on_loopback_has_both_ends_in_one_namespace(world, v6):
    one = world.outcome(world.Lookup(shape="loopback", v6=v6).both())
    assert (one.status, int(one.path), one.client_netns, one.server_netns) == (
        Status.SUCCEEDED,
        51,
        world.CLIENT,
        world.CLIENT,
    )


def test_a_loopback_client_that_is_masqueraded_on_its_way_out_is_one_session(world):
    lookup = world.Lookup(shape="host", client=("127.0.0.1", 40000), snat=True)
    hops = lookup.query()
    hops[0] = world.PlainHop(**(vars(hops[0]) | {"source": lookup.outside}))
    one = world.outcome(hops, lookup.reply())
    assert (one.status, one.client_netns, address_to_text(one.session.key.client.address)) == (
        Status.SUCCEEDED,
        world.NODE,
        "127.0.0.1",
    )


def test_a_server_in_the_nodes_namespace_is_its_end(world):
    one = world.outcome(world.Lookup(shape="local").both())
    assert (one.status, int(one.path), one.vantage, one.server_netns) == (Status.SUCCEEDED, 51, "both", world.NODE)


def test_the_question_of_a_process_of_the_node_is_its_own_while_a_pods_query_passes_the_node(world):
    pod, host = world.Lookup(), world.Lookup(shape="host", port=50000)
    passing = pod.query()
    asked = world.START + 47 * world.US
    outcomes = world.outcomes(
        passing[:3], host.query(asked), passing[3:], host.reply(asked + world.MS), pod.reply(asked + world.MS)
    )
    assert [(int(one.path), one.session.upstream_of) for one in outcomes] == [(51, None), (51, None)]


# Late, early, too much


@pytest.mark.parametrize("snat", [False, True])
def test_late_records_do_not_open_a_session_again(world, snat):
    lookup = world.Lookup(snat=snat)
    query, reply = lookup.query(), lookup.reply()
    assert len(world.feed(query, reply[:3]).outcomes([reply[3]])) == 1
    late = [hop.later(2 * world.SECOND) for hop in (*query[1:], *reply)]
    assert world.outcomes(late) == []
    assert world.table.counts.late + world.table.counts.unmatched == len(late)


def test_a_reply_to_a_query_from_before_the_start_is_counted_and_no_session(worlds):
    world = worlds(started_ns=worlds.START - worlds.MS)
    assert world.outcomes(world.Lookup().reply()) == []
    assert world.table.counts.started_mid_lookup > 0
    assert world.table.counts.sessions == 0


def test_a_reply_whose_query_was_not_seen_is_no_loss_of_the_agents_and_says_which_side_is_missing(worlds):
    one = worlds(started_ns=worlds.START - 60 * worlds.SECOND).outcome(worlds.Lookup().reply())
    assert (one.status, int(one.bitmap), Bit(one.inferred)) == (Status.SUCCEEDED, 3, Bit.CQ)
    assert explain(one).findings == ["QueryNotSeen"]
    assert explain(one).cause is None


def test_a_retry_of_a_remote_client_whose_first_reply_was_lost_beyond_the_node_is_seen(world):
    lookup = world.Lookup(shape="server")
    retry = world.START + 5 * world.SECOND
    outcomes = world.outcomes(lookup.both(), lookup.both(retry))
    assert sum(len(one.session.queries.transmissions) for one in outcomes) == 2


def test_one_session_too_many_closes_the_oldest_as_sample_loss_and_counts_it(worlds):
    world = worlds(max_sessions=3)
    lookups = [world.Lookup(port=2000 + index) for index in range(5)]
    world.feed(*(one.query(world.START + index * world.US) for index, one in enumerate(lookups)))
    assert len(world.table) == 3
    assert world.table.counts.evicted == 2
    outcomes = world.later(0)
    assert [(one.session.key.client.port, one.status) for one in outcomes] == [
        (2000, Status.SAMPLE_LOSS),
        (2001, Status.SAMPLE_LOSS),
    ]


def test_hops_without_end_are_counted_and_kept_out(world):
    lookup = world.Lookup()
    hops = lookup.query()
    loop = [world.PlainHop(**(vars(hops[1]) | {"ifindex": 100 + index})).later(index) for index in range(100)]
    one = world.outcome(hops, loop)
    assert len(one.session.queries.transmissions[0].hops) == 32
    assert world.table.counts.overflowed == 72
    assert one.status is Status.SAMPLE_LOSS


def test_attempts_without_end_are_counted_and_kept_out(world):
    lookup = world.Lookup()
    outcomes = world.outcomes(*(lookup.query(world.START + index * world.MS) for index in range(100)))
    assert sum(len(one.session.queries.transmissions) for one in outcomes) <= 16 * len(outcomes)
    assert world.table.counts.overflowed > 0


def test_a_client_that_asks_the_same_for_ever_is_reported_in_bounded_time(world):
    lookup = world.Lookup()
    reported = []
    for index in range(60):
        world.feed(world.dropped(lookup.query(world.START + index * 5 * world.SECOND), 2))
        reported += world.later(0)
    assert reported


def test_different_messages_of_one_identity_do_not_take_memory_without_bound(world):
    lookup = world.Lookup()
    for index in range(3000):
        raw = world.message(lookup.name, flags=index, tail=bytes(500))
        world.feed(lookup.query(world.START + index * world.US, content=raw)[:1])
    assert len(world.books["by_message"]) < 300


# What cannot be read


def test_what_is_no_dns_message_is_counted_and_no_session(world):
    hop = world.Lookup().query()[0]
    for raw in (b"\0", b"\xff" * 20, bytes(12)):
        world.feed([world.PlainHop(**(vars(hop) | {"content": raw}))])
    assert world.outcomes() == []
    assert (world.table.counts.malformed, world.table.counts.without_question) == (2, 1)


def test_hops_of_a_message_whose_bytes_were_lost_are_counted_and_no_session(world):
    records = [world.recorder.pack(hop) for hop in world.Lookup().query()]
    for record in records[1:]:
        world.table.observe(record)
    assert world.table.counts.unmatched == 3
    assert world.outcomes() == []


def test_a_question_too_long_for_a_number_is_joined_by_its_bytes(world):
    lookup = world.Lookup(name=".".join(["x" * 40] * 4))
    one = world.outcome(lookup.both())
    assert (one.status, int(one.path), one.session.messages) == (Status.SUCCEEDED, 51, [])


@pytest.mark.parametrize("rcode", [1, 4])
def test_an_error_reply_without_the_question_belongs_to_the_query_of_its_id_and_port(world, rcode):
    # CoreDNS answers what it refuses to parse, such as updates, with a bare header.
    lookup = world.Lookup()
    raw = world.message(lookup.name, flags=0x8100 | rcode)[:4] + bytes(8)
    one = world.outcome(lookup.query(), lookup.reply(content=raw))
    assert (one.status, one.rcode, int(one.bitmap)) == (Status.FAILED, rcode, 3)
