"""agent.page.diagram: a lookup as lanes and moves, of what its hops show and of nothing else."""

from __future__ import annotations

import pytest

from agent.explain.rules import explain
from agent.export.line import Context, Line, build
from agent.kept.lines import read_line
from agent.page.diagram import Diagram, Move, diagram_of
from agent.page.memory import Kept
from agent.page.rows import row_of
from tests.unit.captures import every_line
from tests.unit.conftest import MS, SECOND, START, Lookup, PlainHop, World, dropped


def kept(*parts: list[PlainHop]) -> Kept:
    outcome = World().outcome(*parts)
    return Kept(1, None, build(outcome, explain(outcome), Context("node-a", 0), with_messages=False))


def drawn(*parts: list[PlainHop]) -> Diagram:
    return diagram_of(kept(*parts))


def way(found: Diagram) -> list[tuple[str, str, str | None]]:
    return [(found.lanes[move.from_].kind, found.lanes[move.to].kind, move.end) for move in found.moves]


def ended(found: Diagram) -> Move:
    (move,) = (move for move in found.moves if move.end)
    return move


def test_a_dropped_query_ends_where_it_was_dropped_and_its_server_was_not_seen():
    found = drawn(dropped(Lookup().query(), 2))
    assert way(found) == [("client", "client", None), ("client", "netns", None), ("netns", "netns", "dropped")]
    assert [(lane.kind, lane.seen) for lane in found.lanes] == [("client", True), ("netns", True), ("server", False)]
    assert ended(found).end_words == "dropped: NETFILTER_DROP in nf_hook_slow"
    assert ended(found).seconds == pytest.approx(25e-6)


def test_a_dropped_reply_ends_on_its_way_back():
    lookup = Lookup()
    found = drawn(lookup.query(), dropped(lookup.reply(), 2))
    assert ended(found).leg == "reply"
    assert found.lanes[ended(found).to].kind == "netns"


def test_a_query_that_left_the_node_is_sent_on_and_not_seen_there():
    found = drawn(Lookup(shape="client").query())
    last = found.moves[-1] if found.moves[-1].end is None else found.moves[-2]
    assert found.lanes[-1].kind == "server"
    assert found.lanes[-1].seen is False
    assert last.seen is False or ended(found).end == "lost-sight"


def test_a_server_that_says_nothing_has_the_query_and_no_reply_is_seen():
    found = drawn(Lookup().query())
    assert ended(found).end == "unanswered"
    assert found.lanes[ended(found).to].kind == "server"


def test_each_attempt_is_drawn_with_its_own_end():
    lookup, again = Lookup(), START + 5 * SECOND
    found = drawn(dropped(lookup.query(), 3, "QDISC_DROP"), lookup.query(again), lookup.reply(again + MS))
    labels = list(dict.fromkeys(move.label for move in found.moves))
    assert labels == ["query 1 of 2", "query 2 of 2", "reply NOERROR"]
    assert ended(found).label == "query 1 of 2"
    assert found.moves[-1].seconds == pytest.approx(5.001, abs=1e-3)


def test_of_many_attempts_the_first_ones_and_the_last_are_drawn_and_the_others_counted():
    lookup = Lookup()
    found = drawn(*(lookup.query(START + number * SECOND // 2) for number in range(9)))
    labels = list(dict.fromkeys(move.label for move in found.moves))
    assert labels == ["query 1 of 9", "query 2 of 9", "query 3 of 9", "query 9 of 9"]
    assert found.left_out == ["5 of 9 copies of the query are not drawn."]


def test_an_upstream_that_is_silent_gets_the_question_unseen():
    lookup = Lookup()
    onward = lookup.onward()
    found = drawn(lookup.query(), onward.query(START + MS), lookup.reply(START + 6 * SECOND, rcode=2, aa=False))
    asked = next(move for move in found.moves if move.leg == "upstream query")
    assert (asked.seen, found.lanes[asked.to].kind) == (False, "upstream")
    assert ended(found).end == "unanswered"


def test_moves_are_in_the_order_of_time():
    lookup = Lookup()
    onward = lookup.onward()
    found = drawn(
        *(lookup.query(), onward.query(START + MS), onward.reply(START + 3 * MS, rcode=2, aa=False)),
        lookup.reply(START + 4 * MS, rcode=2, aa=False),
    )
    times = [move.seconds for move in found.moves if move.seconds is not None]
    assert times == sorted(times)


def test_how_sure_it_is_and_what_to_do_is_that_of_the_line():
    one = kept(dropped(Lookup().query(), 2))
    found, cause = diagram_of(one), one.line.cause
    assert cause is not None
    told = dict(found.explanation)
    assert told["What happened"] == cause.message
    assert told["How sure"].startswith(cause.confidence)
    assert told["What to do"] == cause.remedy


def test_a_row_says_where_a_message_was_lost_and_nothing_where_none_was():
    assert row_of(kept(dropped(Lookup().query(), 2))).place == "vethc, netns 4026531840, NETFILTER_DROP"
    assert row_of(kept(Lookup().query())).place is None


def test_every_lookup_of_the_kept_captures_can_be_drawn():
    drawings = [diagram_of(Kept(1, None, line)) for line in map(read_line, every_line()) if isinstance(line, Line)]
    assert drawings
    for found in drawings:
        assert all(0 <= move.to < len(found.lanes) and 0 <= move.from_ < len(found.lanes) for move in found.moves)
