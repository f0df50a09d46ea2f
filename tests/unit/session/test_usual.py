"""agent.session.usual: lookups counted by their way give the numbers and lines that all hops one by one give."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agent.capture.live import AHEAD_NS, HOLD_NS, ORDER_NS
from agent.explain.rules import explain
from agent.export.metrics.tally import STEADY, Tally
from agent.session.usual import UsualLookups
from tests.unit.joined import Joiner

TURN_NS = 50_000_000
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\0\0\1"
QUICKLY = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking what is found takes minutes."""
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


class Told:
    """What becomes of hops: lookups with something to tell, and the numbers of all."""

    def __init__(self, world):
        self.world = world
        self.tally = Tally()
        self.problems = []
        self.sessions = 0
        self.exchanges = self.upstream_ns = 0
        """Of lookups that were counted together."""

    def close(self, until_ns):
        for outcome in self.world.table.expire(until_ns):
            verdict = explain(outcome)
            self.tally.count(outcome, verdict)
            self.sessions += 1
            if verdict.cause is not None or not STEADY.issuperset(verdict.findings):
                code = verdict.cause.code if verdict.cause else None
                evidence = tuple(verdict.cause.evidence) if verdict.cause else ()
                key = outcome.session.key
                self.problems.append((key.client, key.name, key.rdtype, code, evidence, tuple(verdict.findings)))

    def run_out(self, now_ns):
        """Time goes on without packets, until nothing is open."""
        for step in range(400):
            self.close(now_ns + step * TURN_NS)
        self.close(now_ns + 100 * self.world.SECOND)

    @property
    def numbers(self):
        """Counters and histograms, without those that are zero."""
        counts = {
            (metric.name, labels): value
            for metric, values in self.tally.counts().items()
            for labels, value in values.items()
        }
        times = {metric.name: found for metric, found in self.tally.times().items()}
        return {(key, value) for key, value in counts.items() if value} | {
            (key, str(value)) for key, value in times.items()
        }


def one_by_one(world, hops):
    """As without a log: each hop when it comes."""
    told = Told(world)
    for hop in hops:
        world.table.observe(hop)
        told.close(hop.ts_ns)
    told.run_out(hops[-1].ts_ns)
    return told


def by_way(world, hops, turn_ns=TURN_NS, wanted=0):
    """As with the log, read every `turn_ns`; and how many lookups were told hop by hop."""
    told, joiner, waiting, records = Told(world), Joiner(), [], []
    usual = UsualLookups(world.table, lambda outcome: told.tally.usual_label(outcome, explain(outcome), None))
    handed_over = 0

    def turn(now_ns: int, hold_ns: int = HOLD_NS) -> None:
        nonlocal records, handed_over
        taken, ahead = joiner.take(now_ns - hold_ns), joiner.peek(now_ns - hold_ns + AHEAD_NS)
        waiting.extend(records)
        for index in usual.sift(taken, ahead, records, wanted, now_ns - hold_ns + AHEAD_NS - ORDER_NS):
            waiting.extend(taken.hops(index))
            handed_over += 1
        records = []
        sums, times = usual.take_sums()
        for label, lookups, pairs, waited_ns, exchanges, upstream_ns in sums:
            told.tally.count_together(label, lookups, pairs, waited_ns)
            told.exchanges += exchanges
            told.upstream_ns += upstream_ns
        told.tally.count_times(times)
        waiting.sort()
        settled_ns = now_ns - hold_ns - 1_000_000
        while waiting and waiting[0].ts_ns <= settled_ns:
            world.table.observe(waiting.pop(0))
        told.close(settled_ns)

    next_ns = hops[0].ts_ns + turn_ns
    for hop in hops:
        while hop.ts_ns >= next_ns:
            turn(next_ns)
            next_ns += turn_ns
        left = joiner.put(hop)
        if left is not None:
            records.append(left)
    turn(next_ns)
    turn(next_ns + 1_000_000_000, 0)
    told.run_out(next_ns)
    told.handed_over = handed_over
    return told


def compare(worlds, plain, **how):
    """Both ways; what was told is the same, and so is every number."""
    hops = sorted((hop for hop in plain), key=lambda hop: hop.ts_ns)
    told = []
    for run in (one_by_one, lambda world, packed: by_way(world, packed, **how)):
        world = worlds(started_ns=-(10**13))
        packed = [world.recorder.pack(hop) for hop in hops]
        told.append((run(world, packed), world))
    (slow, slow_world), (quick, quick_world) = told
    assert Counter(quick.problems) == Counter(slow.problems)
    assert sorted(map(str, quick.numbers - slow.numbers)) == sorted(map(str, slow.numbers - quick.numbers))
    for count in ("sessions", "hops", "upstream_exchanges"):
        assert getattr(quick_world.table.counts, count) == getattr(slow_world.table.counts, count), count
    assert quick_world.table.counts.background == slow_world.table.counts.background
    return quick


def already_known(world):
    """Lookups long before the others: what they show of the node is learned in the order in which lookups end."""
    known = [
        world.Lookup(shape=shape, port=1999, name=f"{shape}.local.") for shape in ("pod", "host", "client", "server")
    ]
    return [hop for lookup in known for hop in lookup.both(world.START - world.SECOND, an=1)]


def many(world, number, *, step_ns=1_000_000, **changes):
    """Healthy lookups of one client, one behind the other, each from a port of its own."""
    hops = []
    for index in range(number):
        lookup = world.Lookup(name=f"n{index}.example.", port=2000 + index, **changes)
        hops += lookup.both(world.START + index * step_ns, an=1)
    return hops


@pytest.mark.parametrize("shape", ["pod", "host", "client", "server"])
def test_of_healthy_lookups_by_one_way_only_numbers_are_left(worlds, world, shape):
    quick = compare(worlds, many(world, 200, shape=shape))
    assert quick.handed_over <= 2
    assert quick.sessions <= 2


def test_lookups_through_source_translation_take_the_same_way(worlds, world):
    hops = []
    for index in range(50):
        lookup = world.Lookup(name=f"n{index}.example.", port=2000 + index, snat=True)
        lookup.outside = (lookup.outside[0], 30000 + index)
        hops += lookup.both(world.START + index * world.MS, an=1)
    assert compare(worlds, hops).handed_over <= 2


def test_examples_for_lines_are_told_and_counted_once(worlds, world):
    quick = compare(worlds, many(world, 100), wanted=3)
    assert 3 <= quick.handed_over < 20


def test_a_failure_among_healthy_lookups_is_told_and_they_are_not(worlds, world):
    hops = many(world, 100)
    lost = world.Lookup(name="lost.example.", port=999)
    hops += world.dropped(lost.query(world.START + 30 * world.MS), 2)
    quick = compare(worlds, hops)
    assert [problem[3] for problem in quick.problems] == ["PolicyDrop"]
    assert quick.handed_over <= 3


@pytest.mark.parametrize("apart_us", [1, 300, 3_000])
@pytest.mark.parametrize("lost", [None, "A", "AAAA"])
def test_a_pair_is_a_pair_and_its_lost_half_has_the_other_as_evidence(worlds, world, apart_us, lost):
    hops = many(world, 60)
    for index in range(60):
        # Some of them begin just before a turn, and end behind it.
        start = world.START + index * 1_700_000
        for rdtype, name, delay in ((1, "A", 0), (28, "AAAA", apart_us * world.US)):
            half = world.Lookup(name=f"p{index}.example.", rdtype=rdtype, identifier=rdtype, port=5000 + index)
            if lost == name and index % 7 == 0:
                hops += world.dropped(half.query(start + delay), 2)
            else:
                hops += half.both(start + delay, an=1)
    compare(worlds, hops)


SEARCHED = ("api.shop.svc.cluster.local.", "api.svc.cluster.local.", "api.cluster.local.", "api.")
A, AAAA = 1, 28


def search(world, start, number, *, named=None, rcode=3, step_ns=None, types=(A,), ends=4):
    """A name asked for with each search domain, and then by itself, or until it is found before."""
    hops = []
    for step, name in enumerate(SEARCHED[:ends]):
        for rdtype in types:
            last = step == ends - 1
            asked = f"x{number if named is None else named}-{name}"
            lookup = world.Lookup(name=asked, port=7000 + 10 * number + step, rdtype=rdtype, identifier=100 + rdtype)
            empty = not last or rdtype == AAAA
            at = start + step * (step_ns or world.MS) + 50 * world.US * (rdtype == AAAA)
            hops += lookup.both(at, rcode=0 if last else rcode, an=int(not empty))
    return hops


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize("types", [(A,), (A, AAAA)])
@pytest.mark.parametrize("turn_ms", [7, 50, 500])
def test_a_search_list_is_told_as_one(worlds, world, rcode, types, turn_ms):
    hops = many(world, 40, step_ns=10 * world.MS)
    for number in range(20):
        hops += search(world, world.START + number * 20 * world.MS, number, rcode=rcode, types=types)
    compare(worlds, hops, turn_ns=turn_ms * world.MS)


@pytest.mark.parametrize("rcode", [0, 3])
@pytest.mark.parametrize("turn_ms", [50, 250])
@pytest.mark.parametrize("step_ms", [6, 9, 14])
def test_a_search_list_whose_steps_take_milliseconds_is_told_as_one(worlds, world, rcode, turn_ms, step_ms):
    hops = many(world, 100, step_ns=20 * world.MS)
    for number in range(100):
        at = world.START + number * 61 * world.MS
        hops += search(world, at, number, named=number % 5, rcode=rcode, step_ns=step_ms * world.MS)
    compare(worlds, hops, turn_ns=turn_ms * world.MS)


def test_pods_that_go_through_their_search_lists_need_no_sessions(worlds, world):
    hops = []
    for number in range(150):
        hops += search(world, world.START + number * 100 * world.MS, number, named=number % 10, types=(A, AAAA))
    assert compare(worlds, hops, turn_ns=500 * world.MS).handed_over <= 0.1 * 1200


def test_a_service_without_ipv6_addresses_needs_no_sessions(worlds, world):
    hops = []
    for number in range(100):
        hops += search(world, world.START + number * 20 * world.MS, number, types=(A, AAAA), ends=1)
    assert compare(worlds, hops, turn_ns=500 * world.MS).handed_over <= 0.1 * 200


@settings(max_examples=100, deadline=None, phases=QUICKLY)
@given(
    plan=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(1, 4),
            st.sampled_from([0, 3]),
            st.sampled_from([(A,), (A, AAAA), (AAAA,)]),
            st.integers(200, 9000),
            st.integers(1, 120),
        ),
        min_size=1,
        max_size=25,
    ),
    turn_ms=st.sampled_from([7, 50, 300]),
)
def test_search_lists_of_all_kinds_tell_the_same_both_ways(worlds, plan, turn_ms):
    world = worlds()
    hops, at = many(world, 20, step_ns=20 * world.MS), world.START
    for number, (named, ends, rcode, types, step_us, pause_ms) in enumerate(plan):
        # Names that exist at one time and not at another are another test's.
        how = {"named": f"{named}{ends}{rcode}", "ends": ends, "rcode": rcode, "types": types}
        hops += search(world, at, number, step_ns=step_us * world.US, **how)
        at += pause_ms * world.MS
    compare(worlds, hops, turn_ns=turn_ms * world.MS)


def test_what_a_server_asks_stays_with_the_lookup_it_asks_for(worlds, world):
    hops = many(world, 100)
    for index in range(30):
        lookup = world.Lookup(name=f"f{index}.example.net.", port=9000 + index)
        start = world.START + index * 3 * world.MS
        hops += lookup.query(start)
        hops += lookup.onward(port=34000 + index).both(start + 200 * world.US, an=1)
        hops += lookup.reply(start + 900 * world.US, an=1)
    quick = compare(worlds, hops)
    assert quick.exchanges >= 25


def forwarded(world, start, number, *, name=None, shape="pod", waits_us=600, rcode=0, an=1, onward="forward", rdtype=A):
    """A lookup whose server asks an upstream for it, and is told within so long."""
    lookup = world.Lookup(name=name or f"f{number}.example.net.", port=9000 + number, shape=shape, rdtype=rdtype)
    asked = lookup.onward(onward, port=34000 + number)
    said = {"rcode": rcode, "an": an, "aa": False, "ra": True}
    return [
        *lookup.query(start),
        *asked.query(start + 200 * world.US),
        *asked.reply(start + (200 + waits_us) * world.US, **said),
        *lookup.reply(start + (300 + waits_us) * world.US, **said),
    ]


@pytest.mark.parametrize("shape", ["pod", "host", "server"])
@pytest.mark.parametrize("an", [0, 1])
@pytest.mark.parametrize("apart_us", [200, 3_000])
def test_lookups_that_a_server_forwards_need_no_sessions(worlds, world, shape, an, apart_us):
    hops = []
    for number in range(150):
        hops += forwarded(world, world.START + number * apart_us * world.US, number, shape=shape, an=an)
    quick = compare(worlds, hops, turn_ns=500 * world.MS)
    assert quick.handed_over <= (10 if an else 30)


def through_two_servers(world, start, number):
    """The node's own server asks the cluster's, and that one an upstream."""
    said = {"an": 1, "aa": False, "ra": True}
    outer = world.Lookup(name=f"two{number}.example.net.", port=9000 + number, shape="local")
    middle = outer.onward("host", port=20000 + number)
    inner = middle.onward("forward", port=34000 + number)
    parts = [outer.query(start), middle.query(start + 100_000), inner.query(start + 200_000)]
    parts += [inner.reply(start + 700_000, **said), middle.reply(start + 800_000, **said)]
    return [hop for part in (*parts, outer.reply(start + 900_000, **said)) for hop in part]


def test_lookups_through_two_servers_of_the_node_are_counted_at_each(worlds, world):
    hops = []
    for number in range(100):
        hops += through_two_servers(world, world.START + number * 2 * world.MS, number)
    assert compare(worlds, hops, turn_ns=500 * world.MS).handed_over <= 20


def test_two_servers_and_a_pod_that_ask_the_same_are_told_apart(worlds, world):
    hops = already_known(world)
    for number in range(40):
        at = world.START + number * 5 * world.MS
        hops += through_two_servers(world, at, number)
        pod = world.Lookup(name=f"two{number}.example.net.", port=5000 + number)
        hops += pod.both(at + 150 * world.US, an=1, aa=False, ra=True)
    compare(worlds, hops, turn_ns=500 * world.MS)


def test_a_popular_name_that_is_asked_upstream_once_takes_only_those_along_that_may_be_meant(world):
    hops = already_known(world)
    for number in range(2000):
        lookup = world.Lookup(name="popular.example.net.", port=2000 + number)
        hops += lookup.both(world.START + number * 50 * world.US, an=1)
    hops += forwarded(world, world.START + 50 * world.MS, 1, name="popular.example.net.", waits_us=90)
    packed = [world.recorder.pack(hop) for hop in sorted(hops, key=lambda hop: hop.ts_ns)]
    quick = by_way(world, packed, turn_ns=500 * world.MS)
    assert 2 <= quick.handed_over <= 130  # a hundred were answered within the 5 ms before: it may renew their answer
    assert {problem[-1] for problem in quick.problems} == {("AmbiguousUpstream",)}


def test_one_question_that_a_server_asks_hundreds_of_times_is_handed_over_unseen(worlds, world):
    hops = already_known(world)
    for number in range(200):
        hops += forwarded(world, world.START + number * world.MS, number, name="uncached.example.net.")
    assert compare(worlds, hops, turn_ns=500 * world.MS).handed_over >= 390


def test_a_lookup_is_told_with_what_its_server_asked(worlds, world):
    hops = []
    for number in range(50):
        hops += forwarded(world, world.START + number * 2 * world.MS, number)
    quick = compare(worlds, hops, wanted=2, turn_ns=300 * world.MS)
    assert 2 <= quick.handed_over < 12


FORWARDED_KINDS = (
    "forwarded",
    "forwarded",
    "forwarded",
    "cached",
    "asked twice",
    "upstream silent",
    "upstream fails",
    "missing",
    "nothing",
    "renewed",
    "under another name",
    "pair",
    "by itself",
    "upstream query dropped",
    "through two servers",
)


def forwarded_hops(world, kind, number, start, *, name, shape, waits_us):
    """The hops of one lookup whose server does this for it."""
    us, said, error = world.US, {"an": 1, "aa": False, "ra": True}, {"rcode": 2, "aa": False, "ra": True}
    how = {"name": name, "shape": shape, "waits_us": waits_us}
    lookup = world.Lookup(name=name, port=9000 + number, shape=shape)
    asked, soon = lookup.onward(port=34000 + number), start + 100 * us
    again = lookup.onward(port=44000 + number, identifier=77)
    other = lookup.onward(port=34000 + number, name=f"other{number}.example.org.")
    query, end = lookup.query(start), start + (400 + waits_us) * us
    aaaa = how | {"rdtype": AAAA, "waits_us": waits_us + 7}
    hops = {
        "forwarded": lambda: forwarded(world, start, number, **how),
        "missing": lambda: forwarded(world, start, number, rcode=3, an=0, **how),
        "nothing": lambda: forwarded(world, start, number, an=0, **how),
        "pair": lambda: hops["forwarded"]() + forwarded(world, start + 50 * us, number, **aaaa),
        "through two servers": lambda: through_two_servers(world, start, number),
        "by itself": lambda: asked.both(start, **said),
        "cached": lambda: lookup.both(start, **said),
        "renewed": lambda: lookup.both(start, **said) + asked.both(start + 700 * us, **said),
        "asked twice": lambda: [
            *query,
            *asked.both(soon, **said),
            *again.both(start + 300 * us, **said),
            *lookup.reply(end, **said),
        ],
        "upstream silent": lambda: query + asked.query(soon),
        "upstream fails": lambda: query + asked.both(soon, **error) + lookup.reply(end, **error),
        "under another name": lambda: query + other.both(soon, **said) + lookup.reply(end, **said),
        "upstream query dropped": lambda: query + world.dropped(asked.query(soon), 2),
    }
    return hops[kind]()


@settings(max_examples=300, phases=QUICKLY)
@given(
    plan=st.lists(
        st.tuples(
            st.sampled_from(FORWARDED_KINDS),
            st.sampled_from(("pod", "pod", "host", "server")),
            st.integers(0, 300),
            st.integers(0, 3),
            st.sampled_from((90, 400, 6_000, 30_000)),
        ),
        min_size=1,
        max_size=25,
    ),
    turn_ms=st.sampled_from([7, 50, 300]),
)
def test_whatever_a_server_asks_both_ways_tell_the_same(worlds, plan, turn_ms):
    world = worlds()
    hops = already_known(world) + many(world, 20, step_ns=20 * world.MS)
    for number in range(5):
        hops += forwarded(world, world.START + number * 30 * world.MS, 500 + number, name=f"early{number}.example.net.")
    for number, (kind, shape, start_ms, named, waits_us) in enumerate(plan):
        start = world.START + start_ms * world.MS + number
        # Names that exist at one time and not at another are another test's.
        exists = {"missing": "m", "nothing": "n"}.get(kind, "e")
        name = f"{exists}{named or number + 10}.example.net."
        hops += forwarded_hops(world, kind, number, start, name=name, shape=shape, waits_us=waits_us)
    compare(worlds, hops, turn_ns=turn_ms * world.MS)


def test_a_cache_that_renews_its_answer_is_no_client(worlds, world):
    hops = many(world, 50)
    for index in range(10):
        lookup = world.Lookup(name=f"c{index}.example.net.", port=9100 + index)
        start = world.START + index * 9 * world.MS
        hops += lookup.both(start, an=1)
        hops += lookup.onward(port=35000 + index).both(start + 700 * world.US, an=1)
    compare(worlds, hops)


def test_an_answer_that_is_renewed_just_behind_what_was_seen_is_no_clients_lookup(worlds, world):
    hops = already_known(world) + many(world, 20, step_ns=20 * world.MS)
    turns = (world.START - hops[0].ts_ns) // TURN_NS + 6
    end = hops[0].ts_ns + turns * TURN_NS - HOLD_NS
    lookup, said = world.Lookup(name="slow.example.net.", port=9100), {"an": 1, "aa": False, "ra": True}
    hops += lookup.query(end - 100 * world.US)
    hops += lookup.reply(end + AHEAD_NS - 300 * world.US, **said)
    hops += lookup.onward(port=35000).both(end + AHEAD_NS + 600 * world.US, **said)
    compare(worlds, hops)


@pytest.mark.parametrize("missing_first", [False, True])
def test_a_name_that_is_and_is_not_is_still_noticed(worlds, world, missing_first):
    hops = many(world, 100, step_ns=10 * world.MS)
    for index in range(10):
        for step in range(2):
            lookup = world.Lookup(name=f"d{index}.example.", port=9300 + 2 * index + step)
            missing = missing_first == (step == 0)
            hops += lookup.both(
                world.START + (index * 80 + step * 300) * world.MS, rcode=3 * missing, an=int(not missing)
            )
    compare(worlds, hops)


def test_an_extended_error_behind_a_usual_way_is_told(worlds, world):
    told = b"\0\0\x29\x04\xd0\0\0\0\0\0\x06\0\x0f\0\x02\0\x12"
    hops = []
    for index in range(60):
        lookup = world.Lookup(name=f"e{index}.example.", port=2000 + index)
        tail = ANSWER + (told if index == 40 else OPT)
        answer = bytearray(lookup.answer(an=1, tail=tail))
        answer[11] = 1
        start = world.START + index * world.MS
        hops += [*lookup.query(start), *lookup.reply(start + 125_600, content=bytes(answer))]
    quick = compare(worlds, hops)
    assert any("DNSSECFailure" in str(problem) or "ExtendedError" in str(problem) for problem in quick.problems)
    assert quick.handed_over <= 3


KINDS = (
    "answered",
    "answered",
    "answered",
    "nothing",
    "error",
    "silent",
    "query dropped",
    "reply dropped",
    "retried",
    "twice",
)
plans = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(("pod", "host", "client", "server")),
        st.booleans(),
        st.integers(0, 400),
        st.integers(0, 3),
        st.sampled_from((1, 28)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=200, phases=QUICKLY)
@given(plan=plans, turn_ms=st.integers(5, 120))
def test_whatever_happens_both_ways_tell_the_same(worlds, plan, turn_ms):
    world, hops = worlds(), []
    hops += already_known(world)
    for index, (kind, shape, masqueraded, start_ms, where, rdtype) in enumerate(plan):
        lookup = world.Lookup(
            shape=shape, snat=masqueraded and shape == "pod", port=2000 + index, name=f"n{index}.local.", rdtype=rdtype
        )
        lookup.outside = (lookup.outside[0], 30000 + index) if lookup.snat else lookup.outside
        hops += hops_of(world, kind, lookup, world.START + start_ms * world.MS + index, where)
    compare(worlds, hops, turn_ns=turn_ms * world.MS)


def hops_of(world, kind, lookup, start, where):
    query, later, again = lookup.query(start), start + 200_000, start + 5 * world.SECOND
    ends = {
        "answered": lambda: lookup.reply(later, an=1),
        "nothing": lambda: lookup.reply(later, rcode=3 * (where % 2)),
        "error": lambda: lookup.reply(later, rcode=2, aa=False),
        "silent": list,
        "twice": lambda: [*lookup.reply(later, an=1), *lookup.reply(later + world.MS, an=1)],
        "retried": lambda: [*lookup.query(again), *lookup.reply(again + 200_000, an=1)],
    }
    if kind == "query dropped":
        return world.dropped(query, 1 + where % len(query))
    if kind == "reply dropped":
        reply = lookup.reply(later, an=1)
        return [*query, *world.dropped(reply, 1 + where % len(reply))]
    return [*query, *ends[kind]()]


def test_the_port_of_a_client_is_no_part_of_its_way(worlds, world):
    first, second = (world.Lookup(port=port) for port in (2000, 3000))
    assert first.client != second.client
    hops = [*first.both(an=1), *second.both(world.START + world.MS, an=1)]
    assert compare(worlds, [replace(hop) for hop in hops]).handed_over <= 1


def test_a_way_of_which_something_was_to_be_told_is_usual_again_later(world, monkeypatch):
    asked = []
    usual_label = Tally.usual_label

    def first_is_told(self, outcome, verdict, who) -> object:
        asked.append(outcome)
        return None if len(asked) == 1 else usual_label(self, outcome, verdict, who)

    monkeypatch.setattr(Tally, "usual_label", first_is_told)
    hops = many(world, 300, step_ns=100 * world.MS)
    assert by_way(world, [world.recorder.pack(hop) for hop in hops]).handed_over <= 105


def test_a_way_that_is_seldom_used_is_concluded_each_time(worlds):
    world, concluded = worlds(), []
    usual_label = Tally.usual_label
    tally = Tally()

    def label_of(outcome) -> object:
        concluded.append(outcome)
        return usual_label(tally, outcome, explain(outcome), None)

    usual, joiner = UsualLookups(world.table, label_of), Joiner()
    for number in range(5):
        at = world.START + number * 400 * world.SECOND
        for hop in world.Lookup(name=f"n{number}.example.", port=2000 + number).both(at, an=1):
            joiner.put(world.recorder.pack(hop))
        end = at + world.SECOND
        assert usual.sift(joiner.take(end), joiner.peek(end), [], 0, end) == []
    assert len(concluded) == 5


def test_a_lookup_alone_in_its_turn_needs_no_session(worlds, world):
    assert compare(worlds, many(world, 50, step_ns=100 * world.MS)).handed_over == 0
