"""The session table under anything: random lookups, losses, repetitions, reorderings and bytes that mean nothing."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export import table as rows
from agent.export.line import Context, build
from agent.hop.record import Event
from agent.session.outcome import Status

CONTEXT = Context("node-a", 0)
SHAPES = ("pod", "host", "client", "server")
KINDS = ("answered", "error", "silent", "query dropped", "reply dropped", "retried")
KEPT_ON_PURPOSE = ("settings", "_settings", "_closed", "_losses", "_early_errors")

lookups = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(SHAPES),
        st.booleans(),
        st.integers(0, 20_000),  # when it starts, in milliseconds
        st.integers(0, 3),  # where it is dropped
    ),
    min_size=1,
    max_size=8,
)


def hops_of(world, kind, lookup, start, where):
    query, later = lookup.query(start), start + 200_000
    if kind == "answered":
        return [*query, *lookup.reply(later)]
    if kind == "error":
        return [*query, *lookup.reply(later, rcode=2, aa=False)]
    if kind == "silent":
        return query
    if kind == "query dropped":
        return world.dropped(query, 1 + where % len(query))
    if kind == "reply dropped":
        reply = lookup.reply(later)
        return [*query, *world.dropped(reply, 1 + where % len(reply))]
    again = start + 5 * world.SECOND
    return [*world.dropped(query, 1 + where % len(query)), *lookup.query(again), *lookup.reply(again + 200_000)]


def many(world, plan, *, snat=True):
    """All hops of these lookups, each of its own port, by port and in the order of time."""
    hops = {}
    for index, (kind, shape, masqueraded, start_ms, where) in enumerate(plan):
        lookup = world.Lookup(
            shape=shape, snat=snat and masqueraded and shape == "pod", port=2000 + index, name=f"n{index}.local."
        )
        lookup.outside = (lookup.outside[0], 30000 + index) if lookup.snat else lookup.outside
        hops[2000 + index] = hops_of(world, kind, lookup, world.START + start_ms * world.MS, where)
    return hops


def finish(world, outcomes):
    """Close everything; nothing may be left in the books, nothing may have come out twice."""
    outcomes = [*outcomes, *world.table.flush(world.now), *world.table.expire(world.now + 60 * world.SECOND)]
    assert len(world.table) == 0
    assert {name: len(book) for name, book in world.books.items() if len(book) and name not in KEPT_ON_PURPOSE} == {}
    assert len(world.books["_closed"]) <= world.table.settings.tombstones
    assert len({id(one.session) for one in outcomes}) == len(outcomes)
    counts = world.table.counts
    assert len(outcomes) == counts.sessions - counts.upstream_exchanges - sum(counts.background.values())
    for one in outcomes:
        line = build(one, explain(one), CONTEXT)
        assert b"\n" not in msgspec.json.encode(line)
        assert "\n" not in rows.row(line)
    return outcomes


def by_time(hops):
    return sorted((hop for part in hops.values() for hop in part), key=lambda hop: hop.ts_ns)


@given(plan=lookups)
def test_without_loss_every_lookup_is_one_session_with_its_true_end(worlds, plan):
    world = worlds(started_ns=-(10**13))
    outcomes = []
    for hop in by_time(many(world, plan)):
        world.feed([hop])
        outcomes += world.later(0)
    outcomes = finish(world, [*outcomes, *world.later(60 * world.SECOND)])
    found = {one.session.key.client.port: one for one in outcomes}
    assert len(found) == len(outcomes) == len(plan)
    for index, (kind, *_rest) in enumerate(plan):
        one = found[2000 + index]
        expected = Status.SUCCEEDED if kind in ("answered", "retried") else Status.FAILED
        assert (kind, one.status) == (kind, expected)
        assert one.attempts == (2 if kind == "retried" else 1)


@given(plan=lookups, data=st.data())
def test_small_reorderings_never_turn_a_complete_lookup_into_anything_but_a_success(worlds, plan, data):
    world = worlds(started_ns=-(10**13))
    plan = [("answered", *rest) for _, *rest in plan]
    hops = by_time(many(world, plan, snat=False))
    jitter = data.draw(st.lists(st.integers(0, 300_000), min_size=len(hops), max_size=len(hops)))
    arriving = [hop for _, hop in sorted(zip(jitter, hops, strict=True), key=lambda one: one[0] + one[1].ts_ns)]
    outcomes = finish(world, world.outcomes(arriving))
    assert [one.status for one in outcomes] == [Status.SUCCEEDED] * len(plan)


@settings(max_examples=300)
@given(plan=lookups, data=st.data())
def test_loss_of_records_never_becomes_an_accusation(worlds, plan, data):
    world = worlds(started_ns=-(10**13))
    hops = many(world, plan)
    ports = {id(hop): port for port, part in hops.items() for hop in part}
    order = by_time(hops)
    gone = data.draw(st.sets(st.integers(0, len(order) - 1), min_size=1))
    world.table.record_loss(world.START - world.SECOND, world.START + 100 * world.SECOND)
    proof = set()
    for index, hop in enumerate(order):
        record = world.recorder.pack(hop)
        if index not in gone:
            world.table.observe(record)
            world.now = hop.ts_ns
            if hop.event == Event.DROP or hop.content[3] & 0xF:
                proof.add(ports[id(hop)])
    for one in finish(world, world.later(60 * world.SECOND)):
        port = one.session.key.client.port
        port -= 28000 if port >= 30000 else 0
        cause = explain(one).cause
        if port not in proof:
            assert one.status is not Status.FAILED
            assert cause is None or cause.code == "CaptureLoss"


@settings(max_examples=200)
@given(plan=lookups, data=st.data())
def test_whatever_is_repeated_lost_or_reordered_every_session_comes_out_once(worlds, plan, data):
    world = worlds(max_sessions=data.draw(st.integers(1, 8)), tombstones=data.draw(st.integers(1, 4)))
    records = [world.recorder.pack(hop) for hop in by_time(many(world, plan))]
    picks = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=80))
    outcomes = []
    for pick in picks:
        world.table.observe(records[pick])
        if data.draw(st.integers(0, 9)) == 0:
            world.now = max(world.now, records[pick].ts_ns)
            outcomes += world.later(data.draw(st.integers(0, 12)) * world.SECOND)
    world.now = max([world.now, *(one.ts_ns for one in records)])
    finish(world, outcomes)


raw = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda flags, label, rdtype, tail: (
            b"\x8d\xa3"
            + flags.to_bytes(2, "big")
            + b"\0\1\0\0\0\0\0\1"
            + bytes([len(label)])
            + label
            + b"\0\0"
            + bytes([rdtype])
            + b"\0\1"
            + tail
        ),
        st.sampled_from([0, 0x100, 0x8500, 0x8182, 0x2800]) | st.integers(0, 65535),
        st.sampled_from([b"a", b"A", b"\x1b\n", b"\xff" * 63]),
        st.sampled_from([1, 28, 255]),
        st.binary(max_size=30),
    ),
)
endpoints = st.tuples(
    st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1", "::1", "fd00::1"]), st.sampled_from([0, 53, 5353])
)
reasons = ["", "NO_SOCKET", "NETFILTER_DROP", "SOCKET_RCVBUFF", "QUEUE_PURGE", "TC_EGRESS"]


@st.composite
def garbage(draw, world):
    source, destination = draw(endpoints), draw(endpoints)
    tracked = tuple(draw(endpoints) for _ in range(4))
    hop = world.PlainHop(
        ts_ns=draw(st.integers(world.START - world.SECOND, world.START + 30 * world.SECOND)),
        netns=draw(st.sampled_from([0, world.CLIENT, world.NODE, world.SERVER, 2**32 - 1])),
        ifindex=draw(st.integers(0, 3)),
        ifname=draw(st.sampled_from([b"", b"eth0", b"\xff\x1b[2J"])),
        event=draw(st.sampled_from(list(Event))),
        flags=draw(st.integers(0, 255)),
        source=source,
        destination=destination,
        content=draw(raw),
        conntrack=draw(st.none() | st.just((*tracked, draw(st.integers(0, 7))))),
        skb=draw(st.integers(0, 3)),
        reason=draw(st.sampled_from(reasons)),
        location=draw(st.sampled_from(["", *world.SYMBOLS])),
        stack=tuple(draw(st.lists(st.sampled_from(world.SYMBOLS), max_size=16))),
        comm=draw(st.binary(max_size=16)),
    )
    record = world.recorder.pack(hop)
    return record._replace(
        message_id=draw(st.sampled_from([record.message_id, 0, 1, 2])),
        protocol=draw(st.sampled_from([17, 6])),
        sequence=draw(st.integers(0, 60)),
        fragment=draw(st.sampled_from([0, 0, 185, 0x2000])),
        tcp_flags=draw(st.integers(0, 31)),
    )


@settings(max_examples=200)
@given(data=st.data())
def test_records_that_mean_nothing_never_raise_and_never_stay(worlds, data):
    world = worlds(
        max_sessions=data.draw(st.integers(1, 5)),
        tombstones=data.draw(st.integers(0, 4)),
        knows_addresses=data.draw(st.booleans()),
    )
    outcomes = []
    for _ in range(data.draw(st.integers(1, 25))):
        world.table.observe(data.draw(garbage(world)))
        if data.draw(st.booleans()):
            outcomes += world.later(data.draw(st.integers(0, 3 * world.SECOND)))
    world.now += 60 * world.SECOND
    finish(world, outcomes)
