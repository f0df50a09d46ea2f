"""agent.export.metrics.tally: what a lookup adds to the numbers."""

from dataclasses import replace

import pytest

from agent.explain.evidence import drops
from agent.explain.rules import explain
from agent.export.line import Context, build
from agent.export.metrics import catalogue
from agent.export.metrics.tally import Tally
from agent.session.latency import latency_of
from agent.wire.stream import SYN
from tests.unit.conftest import HOST, POD

CONTEXT = Context("node-a", 0)
SHAPES = ("pod", "host", "loopback", "client", "server", "local")


def counted(*outcomes):
    """A tally of these, each with its own verdict."""
    tally = Tally()
    for outcome in outcomes:
        tally.count(outcome, explain(outcome))
    return tally


def sums(tally, metric):
    """What is not 0, by label values; a single label as itself."""
    values = tally.counts()[metric]
    return {labels if len(labels) > 1 else labels[0]: value for labels, value in values.items() if value}


def times(tally, metric, *labels):
    """How many were timed, and the sum in seconds."""
    distribution = tally.times()[metric][labels]
    return distribution.buckets[-1][1], distribution.sum_seconds


def lost(tally):
    return sums(tally, catalogue.LOST_MESSAGES)


# Lookups that went well


def test_a_lookup_between_two_pods_of_the_node_is_one_of_everything(world):
    tally = counted(world.outcome(world.Lookup().both()))
    assert sums(tally, catalogue.QUERIES) == {("both", "udp", "A"): 1}
    assert sums(tally, catalogue.RESPONSES) == {("both", "NOERROR"): 1}
    assert sums(tally, catalogue.SESSIONS) == {("both", "Succeeded", "3"): 1}
    for metric in (catalogue.RETRANSMISSIONS, catalogue.TRUNCATED, catalogue.PAIRS, catalogue.LOST_MESSAGES):
        assert sums(tally, metric) == {}


def test_each_leg_is_timed_as_the_session_line_says(world):
    outcome = world.outcome(world.Lookup().both())
    tally, latency = counted(outcome), build(outcome, explain(outcome), CONTEXT).latency
    assert times(tally, catalogue.LOOKUP_SECONDS) == (1, pytest.approx(outcome.duration_ns / 1e9))
    assert times(tally, catalogue.SERVER_SECONDS) == (1, pytest.approx(latency.server))
    assert times(tally, catalogue.TRANSIT_SECONDS, "query") == (1, pytest.approx(latency.client_to_server))
    assert times(tally, catalogue.TRANSIT_SECONDS, "reply") == (1, pytest.approx(latency.server_to_client))
    assert times(tally, catalogue.UPSTREAM_SECONDS) == (0, 0)


def test_durations_are_in_the_buckets_that_they_do_not_exceed(world):
    waits = (249, 250, 251, 499, 500, 501, 8_191_999, 8_192_000, 8_192_001)
    outcomes = []
    for number, wait_us in enumerate(waits):
        lookup = world.Lookup(port=2000 + number)
        begun = world.now + world.MS
        # The reply is seen at the client 13 us after it left.
        outcomes += world.outcomes(lookup.query(begun), lookup.reply(begun + (wait_us - 13) * world.US))
    assert [outcome.duration_ns for outcome in outcomes] == [wait * world.US for wait in waits]
    buckets = dict(counted(*outcomes).times()[catalogue.LOOKUP_SECONDS][()].buckets)
    assert (buckets["0.00025"], buckets["0.0005"], buckets["0.001"]) == (2, 5, 6)
    assert (buckets["4.096"], buckets["8.192"], buckets["+Inf"]) == (6, 8, 9)


@pytest.mark.parametrize(
    ("shape", "vantage"),
    [
        ("pod", "both"),
        ("host", "both"),
        ("loopback", "both"),
        ("local", "both"),
        ("client", "client"),
        ("server", "server"),
    ],
)
def test_where_the_ends_are_is_told_so_that_nodes_can_be_summed(world, shape, vantage):
    tally = counted(world.outcome(world.Lookup(shape=shape).both()))
    assert sums(tally, catalogue.SESSIONS) == {(vantage, "Succeeded", "3"): 1}
    assert sums(tally, catalogue.QUERIES) == {(vantage, "udp", "A"): 1}
    assert times(tally, catalogue.LOOKUP_SECONDS)[0] == (vantage != "server")
    assert times(tally, catalogue.SERVER_SECONDS)[0] == (vantage != "client")
    assert times(tally, catalogue.TRANSIT_SECONDS, "query")[0] == (vantage == "both")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_short_way_for_usual_lookups_counts_what_the_long_way_counts(worlds, shape):
    world = worlds()
    first = world.outcome(world.Lookup(shape=shape, port=2000).both())
    again = world.outcome(world.Lookup(shape=shape, port=2001).both(world.now + world.MS, rcode=3))
    short, long = Tally(), Tally()
    for outcome in (first, again):
        verdict = explain(outcome)
        short.count(outcome, verdict)
        for finding in verdict.findings:
            long._add(catalogue.FINDING_COUNTS, finding)
        long._count_unusual(outcome, verdict)
    assert short.counts() == long.counts()
    assert short.times() == long.times()


def test_a_lookup_over_tcp_is_timed_as_the_session_line_says_whatever_the_sockets_saw(world):
    outcome = world.outcome(world.Tcp(world.Lookup()).whole())
    tally, latency = counted(outcome), build(outcome, explain(outcome), CONTEXT).latency
    assert times(tally, catalogue.LOOKUP_SECONDS) == (1, pytest.approx(outcome.duration_ns / 1e9))
    assert times(tally, catalogue.SERVER_SECONDS) == (1, pytest.approx(latency.server))
    assert times(tally, catalogue.TRANSIT_SECONDS, "query") == (1, pytest.approx(latency.client_to_server))
    assert times(tally, catalogue.TRANSIT_SECONDS, "reply") == (1, pytest.approx(latency.server_to_client))


@pytest.mark.parametrize(
    ("rdtype", "label"), [(1, "A"), (28, "AAAA"), (33, "SRV"), (65, "HTTPS"), (255, "ANY"), (99, "other"), (0, "other")]
)
def test_types_are_named_and_rare_ones_are_one_series(world, rdtype, label):
    tally = counted(world.outcome(world.Lookup(rdtype=rdtype).both()))
    assert sums(tally, catalogue.QUERIES) == {("both", "udp", label): 1}


def test_no_packet_can_add_a_series(world):
    tally, names = Tally(), {metric: set(values) for metric, values in Tally().counts().items()}
    for number in range(300):
        lookup = world.Lookup(rdtype=number * 211 % 65536, port=2000 + number, name=f"n{number}.example.")
        begun = world.now + world.MS
        for outcome in world.outcomes(lookup.both(begun, rcode=number % 16)):
            tally.count(outcome, explain(outcome))
    assert {metric: set(values) for metric, values in tally.counts().items()} == names
    assert sum(sums(tally, catalogue.QUERIES).values()) == 300
    assert sums(tally, catalogue.RESPONSES)["both", "other"] == sum(1 for n in range(300) if n % 16 >= 12)
    assert len(tally._usual) <= 2 * len(catalogue.QTYPES) + 2


# What did not go well


def test_a_delivered_error_is_a_failure_and_no_loss(world):
    tally = counted(world.outcome(world.Lookup().both(rcode=2, aa=False)))
    assert sums(tally, catalogue.RESPONSES) == {("both", "SERVFAIL"): 1}
    assert sums(tally, catalogue.SESSIONS) == {("both", "Failed", "3"): 1}
    assert sums(tally, catalogue.SESSION_CAUSES) == {("ServerError", "medium"): 1}
    assert lost(tally) == {}
    assert times(tally, catalogue.LOOKUP_SECONDS)[0] == 1


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_every_query_that_was_dropped_is_a_lost_message(world, attempts):
    lookup = world.Lookup()
    copies = [
        world.dropped(lookup.query(world.START + number * 100 * world.MS), 2, "TC_EGRESS", "")
        for number in range(attempts)
    ]
    tally = counted(world.outcome(*copies))
    assert sums(tally, catalogue.QUERIES) == {("client", "udp", "A"): attempts}
    assert sums(tally, catalogue.RETRANSMISSIONS) == ({"client": attempts - 1} if attempts > 1 else {})
    assert lost(tally) == {("client", "PolicyDrop", "query"): attempts}
    assert sums(tally, catalogue.RESPONSES) == {}
    assert times(tally, catalogue.LOOKUP_SECONDS)[0] == 0


def test_a_lost_query_whose_retry_succeeds_is_a_success_and_a_lost_message(world):
    lookup = world.Lookup()
    first = world.dropped(lookup.query(), 2, "TC_EGRESS", "")
    tally = counted(world.outcome(first, lookup.both(world.START + 5 * world.SECOND)))
    assert sums(tally, catalogue.SESSIONS) == {("both", "Succeeded", "3"): 1}
    assert sums(tally, catalogue.QUERIES) == {("both", "udp", "A"): 2}
    assert sums(tally, catalogue.RETRANSMISSIONS) == {"both": 1}
    assert lost(tally) == {("both", "PolicyDrop", "query"): 1}
    assert times(tally, catalogue.LOOKUP_SECONDS) == (1, pytest.approx(5.0001386))


def test_a_lost_reply_is_told_from_a_lost_query(world):
    lookup = world.Lookup()
    tally = counted(world.outcome(lookup.query(), world.dropped(lookup.reply(), 2, "TC_EGRESS", "")))
    assert lost(tally) == {("both", "PolicyDrop", "reply"): 1}
    assert times(tally, catalogue.LOOKUP_SECONDS)[0] == 0
    assert times(tally, catalogue.SERVER_SECONDS)[0] == 1


def test_of_two_deaths_the_one_that_the_verdict_rests_on_is_counted(world):
    # The query died of something vague at first, then a reply was refused by a program: the rule for programs speaks.
    lookup = world.Lookup()
    vague = world.dropped(lookup.query(), 2, "NOT_SPECIFIED", "kfree_skb_reason")
    second = world.START + 100 * world.MS
    refused = world.dropped(lookup.reply(second + world.MS), 2, "TC_EGRESS", "")
    outcome = world.outcome(vague, lookup.query(second), refused)
    assert [drop.leg for drop in drops(outcome)] == ["query", "reply"]
    assert explain(outcome).cause.code == "PolicyDrop"
    assert lost(counted(outcome)) == {("both", "PolicyDrop", "reply"): 1}


def test_a_silent_server_and_what_left_the_node_are_unanswered_queries(worlds):
    silent = worlds().outcome(worlds.Lookup().query())
    beyond = worlds().outcome(worlds.Lookup(shape="client").query())
    assert lost(counted(silent, beyond)) == {("both", "ServerNoReply", "query"): 1, ("client", "LeftNode", "query"): 1}


def test_an_icmp_error_about_the_query_makes_it_the_query_that_was_lost(world):
    hops = world.Lookup(shape="client").query()
    tally = counted(world.outcome(hops, [world.icmp(hops[0], 3, 13, HOST[0])]))
    assert lost(tally) == {("client", "PolicyDrop", "query"): 1}


def test_records_that_we_lost_ourselves_are_nobodys_loss(world):
    world.feed(world.Lookup().query())
    world.table.record_loss(world.START, world.now + world.SECOND)
    tally = counted(*world.outcomes())
    assert sums(tally, catalogue.SESSIONS) == {("both", "SampleLoss", "1"): 1}
    assert sums(tally, catalogue.SESSION_CAUSES) == {("CaptureLoss", "high"): 1}
    assert lost(tally) == {}


def test_a_truncated_reply_is_counted_once_over_udp_and_its_repetition_over_tcp_is_another_lookup(world):
    udp = world.Lookup(port=2000)
    tcp = world.Tcp(world.Lookup(port=2001))
    outcomes = world.outcomes(udp.both(tc=True), tcp.whole(world.START + world.MS, an=0))
    tally = counted(*outcomes)
    assert sums(tally, catalogue.TRUNCATED) == {"both": 1}
    assert sums(tally, catalogue.QUERIES) == {("both", "udp", "A"): 1, ("both", "tcp", "A"): 1}
    assert sums(tally, catalogue.RESPONSES) == {("both", "NOERROR"): 2}


def test_a_connection_that_failed_before_anything_was_asked_is_one_query_of_no_type(world):
    outcome = world.outcome(world.Tcp(world.Lookup()).refuse())
    assert outcome.session.connecting
    tally = counted(outcome)
    assert sums(tally, catalogue.QUERIES) == {(outcome.vantage, "tcp", "none"): 1}
    assert lost(tally) == {(outcome.vantage, "NoListener", "query"): 1}
    assert sums(tally, catalogue.RESPONSES) == sums(tally, catalogue.RETRANSMISSIONS) == {}
    assert times(tally, catalogue.LOOKUP_SECONDS)[0] == 0


def test_a_request_for_a_connection_that_is_repeated_is_one_lost_query(world):
    tcp = world.Tcp(world.Lookup(shape="client"))
    asked = [tcp.segment(world.START + number * world.SECOND, flags=SYN) for number in range(3)]
    tally = counted(world.outcome(*asked))
    assert sums(tally, catalogue.QUERIES) == {("client", "tcp", "none"): 1}
    assert lost(tally) == {("client", "LeftNode", "query"): 1}


def test_asking_two_servers_at_once_is_no_retransmission(world):
    one = world.Lookup()
    other = replace(one, vip=("10.96.0.11", 53), dnat=True)
    tally = counted(*world.outcomes(one.query(), other.query(world.START + world.US), one.reply()))
    assert sums(tally, catalogue.QUERIES) == {("both", "udp", "A"): 2}
    assert sums(tally, catalogue.RETRANSMISSIONS) == {}


def test_findings_are_counted_by_name(world):
    tally = counted(world.outcome(world.Lookup().both(rcode=3)))
    assert sums(tally, catalogue.FINDING_COUNTS) == {"NameNotFound": 1}


# Pairs


def pair(world, lose=()):
    """A and AAAA from one socket; those of the types named lose their query, and are asked again never."""
    parts = []
    for number, rdtype in enumerate((1, 28)):
        lookup = world.Lookup(rdtype=rdtype, identifier=100 + rdtype)
        query = lookup.query(world.START + number * 10 * world.US)
        parts += [world.dropped(query, 2, "TC_EGRESS", "")] if rdtype in lose else [query]
    for rdtype in (1, 28):
        lookup = world.Lookup(rdtype=rdtype, identifier=100 + rdtype)
        parts += [] if rdtype in lose else [lookup.reply(world.START + 200 * world.US)]
    return counted(*world.outcomes(*parts))


def test_a_pair_that_was_answered_is_one_pair_without_a_loss(world):
    tally = pair(world)
    assert sums(tally, catalogue.PAIRS) == {"both": 1}
    assert sums(tally, catalogue.PAIR_LOSSES) == {}


def test_pairs_are_counted_among_lookups_that_are_like_earlier_ones_too(world):
    for number in range(3):
        world.outcomes(world.Lookup(port=2000 + number).both(world.now + world.MS))
    begun = world.now + world.MS
    four, six = (world.Lookup(rdtype=rdtype, identifier=rdtype) for rdtype in (1, 28))
    tally = counted(
        *world.outcomes(
            four.query(begun), six.query(begun + world.US), four.reply(begun + world.MS), six.reply(begun + world.MS)
        )
    )
    assert sums(tally, catalogue.PAIRS) == {"both": 1}


@pytest.mark.parametrize(("lose", "half"), [(1, "A"), (28, "AAAA")])
def test_the_half_of_a_pair_that_was_lost_is_told(world, lose, half):
    tally = pair(world, {lose})
    assert sum(sums(tally, catalogue.PAIRS).values()) == 1
    assert sums(tally, catalogue.PAIR_LOSSES) == {("client", half): 1}


def test_a_pair_that_lost_both_halves_is_not_the_loss_of_one(world):
    tally = pair(world, {1, 28})
    assert sums(tally, catalogue.PAIR_LOSSES) == {}
    assert lost(tally) == {("client", "PolicyDrop", "query"): 2}


def test_the_lost_half_counts_when_its_retry_succeeds_five_seconds_later(world):
    four, six = (world.Lookup(rdtype=rdtype, identifier=rdtype) for rdtype in (1, 28))
    dead = world.dropped(six.query(world.START + world.US), 2, "TC_EGRESS", "")
    outcomes = world.outcomes(four.query(), dead, four.reply(), six.both(world.START + 5 * world.SECOND))
    tally = counted(*outcomes)
    assert sums(tally, catalogue.PAIR_LOSSES) == {("both", "AAAA"): 1}
    assert sum(sums(tally, catalogue.PAIRS).values()) == 1


# Upstream


def forwarded(world, *, answered=True, attempts=1, rcode=0):
    lookup = world.Lookup(client=POD)
    onward = lookup.onward()
    begun = world.START + 200 * world.US
    asked = [onward.query(begun + number * world.SECOND) for number in range(attempts)]
    told = [onward.reply(begun + 20 * world.MS, aa=False, ra=True, rcode=rcode)] if answered else []
    replied = world.START + (30 * world.MS if answered else 6 * world.SECOND)
    reply = lookup.reply(replied, aa=False, ra=answered, rcode=rcode if answered else 2)
    return [one for one in world.outcomes(lookup.query(), *asked, *told, reply) if one.session.upstream_of is None]


def test_what_a_server_asks_its_upstream_is_counted_and_timed(world):
    (outcome,) = forwarded(world)
    tally = counted(outcome)
    assert sums(tally, catalogue.SESSIONS) == {("both", "Succeeded", "15"): 1}
    assert sums(tally, catalogue.UPSTREAM_QUERIES) == {"udp": 1}
    assert sums(tally, catalogue.UPSTREAM_RESPONSES) == {"NOERROR": 1}
    latency = build(outcome, explain(outcome), CONTEXT).latency
    assert times(tally, catalogue.UPSTREAM_SECONDS) == (1, pytest.approx(latency.upstream))


def test_a_silent_upstream_loses_as_many_messages_as_it_was_asked(world):
    (outcome,) = forwarded(world, answered=False)
    tally = counted(outcome)
    assert sums(tally, catalogue.SESSION_CAUSES) == {("UpstreamTimeout", "high"): 1}
    assert lost(tally) == {("both", "UpstreamTimeout", "upstream"): len(outcome.exchanges)}
    assert sums(tally, catalogue.UPSTREAM_RESPONSES) == {}
    assert times(tally, catalogue.UPSTREAM_SECONDS)[0] == 0


def test_an_error_of_the_upstream_is_counted_where_it_came_from_and_where_it_went(world):
    (outcome,) = forwarded(world, rcode=5)
    tally = counted(outcome)
    assert sums(tally, catalogue.UPSTREAM_RESPONSES) == {"REFUSED": 1}
    assert sums(tally, catalogue.RESPONSES) == {("both", "REFUSED"): 1}
    assert lost(tally) == {}


def test_a_server_that_is_not_on_this_node_has_no_time_of_its_own(world):
    outcome = world.outcome(world.Lookup(shape="client").both())
    assert latency_of(outcome) == (None, None, None, None)
