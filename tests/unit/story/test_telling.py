"""agent.story.telling: what a person reads about a problem."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.explain.verdict import CONFIDENCE_WORDS
from agent.export.line import Context, Line, build
from agent.story.drawing import BOXES
from agent.story.problems import Problems
from agent.story.telling import stories
from agent.story.text import Look, listed, shown, time_words
from tests.unit.captures import every_line
from tests.unit.made_lines import lines as made_lines

MADE = made_lines()
DROPPED, RETRIED, SERVFAIL, FINE = MADE[0], MADE[3], MADE[4], MADE[5]
WHOLE = Look()


def line(text: bytes) -> Line:
    return msgspec.json.decode(text, type=Line)


def of_cause(code: str) -> Line:
    return line(next(text for text in every_line() if f'"Code":"{code}"'.encode() in text))


def told(*lines: Line, look: Look = WHOLE, tell_all: bool = False) -> list[str]:
    problems = Problems(tell_all=tell_all)
    for each in lines:
        problems.add(each)
    return list(stories(problems, look))


def behind(label: str, rows: list[str]) -> str:
    return next(row.strip().removeprefix(label).strip() for row in rows if row.strip().startswith(label))


def test_a_story_says_who_asked_what_where_it_broke_why_and_what_to_do():
    rows = told(line(DROPPED))
    cause = line(DROPPED).cause
    assert rows[0] == "PolicyDrop on node-a: 1 lookup failed"
    assert rows[1] == (
        "  php-fpm in pod shop/cart-7d9f-x2x (172.20.2.25, Deployment/cart) asked 10.96.0.10:53 (Service "
        "kube-system/kube-dns, translated to 10.244.1.53:53, pod kube-system/coredns-7d56l) for "
        "redis-master.default.svc.cluster.local. (A) over UDP at 2026-11-21 05:41:14.352 UTC. No reply was seen."
    )
    assert behind("query", rows) == (
        "client shop/cart-7d9f-x2x (eth0) ──► netns 4026531840 (vethc, now to 10.244.1.53:53) "
        "──✗ dropped: NETFILTER_DROP in nft_do_chain, hook FORWARD"
    )
    assert behind("What happened", rows) == cause.message
    assert behind("How sure", rows) == f"high: {CONFIDENCE_WORDS['high']}."
    assert behind("Evidence", rows) == cause.evidence[0]
    assert behind("What to do", rows) == cause.remedy
    assert behind("Read on", rows) == "docs/causes.md#policydrop"


def test_a_problem_that_recurs_is_told_once_with_how_often_when_and_for_whom():
    rows = told(*map(line, MADE[:3]))
    assert rows[0] == "PolicyDrop on node-a: 3 lookups failed"
    assert rows[2] == (
        "  Such lookups were made from 2026-11-21 05:41:14.352 UTC to 2026-11-21 05:41:22.352 UTC. They were of "
        "2 clients: shop/cart-7d9f-x2x and shop/till-5c4b-9kq. They asked for redis-master.default.svc.cluster."
        "local. (A), stock.shop.svc.cluster.local. (A) and redis-slave.default.svc.cluster.local. (A)."
    )
    assert sum(row.startswith("PolicyDrop") for row in rows) == 1


def test_of_many_names_three_are_told():
    many = [line(DROPPED) for _ in range(5)]
    for number, each in enumerate(many):
        each.question.name = f"name-{number}."
    (row,) = (row for row in told(*many) if "They asked for" in row)
    assert row.endswith("They asked for name-0. (A), name-1. (A), name-2. (A) and others.")


def test_what_the_agent_held_back_is_said():
    held = line(DROPPED)
    held.held_back = 2913
    rows = told(held)
    assert rows[0] == "PolicyDrop on node-a: 2,914 lookups failed"
    assert "Of 2,913 lookups there is no line, because the agent held it back (--failure-rate)." in rows[2]


def test_an_attempt_that_was_lost_is_shown_beside_the_reply_to_the_next():
    rows = told(line(RETRIED))
    assert rows[0] == "QueueOverflow on node-a: 1 lookup succeeded, but not at once"
    assert "It asked 2 times. The reply was NOERROR after 5.001 s." in rows[1]
    assert behind("query 1/2", rows).endswith("──✗ dropped: QDISC_DROP in __dev_queue_xmit")
    assert behind("reply", rows).endswith("──► client shop/cart-7d9f-x2x (eth0) = NOERROR")


def built(outcome) -> Line:
    return build(outcome, explain(outcome), Context("node-a", 0))


def test_a_reply_that_was_lost_is_not_told_as_one_that_came(world):
    lookup = world.Lookup()
    rows = told(built(world.outcome(lookup.query(), world.dropped(lookup.reply(), 2))))
    assert "The server replied NOERROR, and the reply was lost." in rows[1]
    assert behind("reply", rows).startswith("server coredns (eth0) ──► netns ")
    assert "──✗ dropped: NETFILTER_DROP in nf_hook_slow" in behind("reply", rows)


def test_a_reply_that_was_lost_before_a_good_one_does_not_hide_it(world):
    lookup, again = world.Lookup(), world.START + 5 * world.SECOND
    lost = world.dropped(lookup.reply(), 2)
    rows = told(built(world.outcome(lookup.query(), lost, lookup.query(again), lookup.reply(again + world.MS))))
    assert "It asked 2 times. The reply was NOERROR after 5.00" in rows[1]


def test_a_cause_that_has_a_runbook_leads_to_it():
    rows = told(line(SERVFAIL))
    assert rows[rows.index("  Read on        docs/causes.md#servererror") + 1].strip() == (
        "docs/runbooks/DNSServerErrors.md"
    )


def test_what_is_not_known_is_said_to_be_unknown():
    unknown = line(DROPPED)
    unknown.cause.code = "Unknown"
    rows = told(unknown)
    assert behind("How sure", rows) == "The cause is not known."


def test_upstreams_that_stayed_silent_are_shown_with_how_often_they_were_asked():
    rows = told(of_cause("UpstreamTimeout"))
    drawn = [row.split(None, 1)[1] for row in rows if row.startswith("  upstream")]
    assert any(re.search(r"╌╌► \S+:\d+ ──✗ no reply seen \(3 times\)$", row) for row in drawn)


def test_of_an_answer_in_many_messages_the_last_one_is_drawn_behind_its_number():
    transfer = line(next(text for text in every_line() if b"ManyMessages" in text))
    assert behind("reply 16/16", told(transfer, tell_all=True)) == "server 192.0.2.53 ──► client 192.0.2.10 = NOERROR"
    assert "  reply 16/16 server" in "\n".join(told(transfer, tell_all=True))


def test_a_server_beyond_this_node_is_not_drawn_as_seen():
    rows = told(of_cause("UnexpectedSource"))
    assert behind("query", rows) == "client 192.0.2.10 ╌╌► 10.96.0.10:53"
    assert behind("reply", rows).startswith("10.244.1.5:53 ╌╌► ")
    assert behind("reply", rows).endswith("──✗ clients do not take it")


def test_addresses_that_changed_on_the_way_are_shown_where_they_did():
    translated = next(text for text in every_line() if b'"TranslatedBy":"conntrack"' in text)
    assert "(now from 192.0.2.1:61000, now to 10.244.2.5:53)" in behind("query", told(line(translated)))


def test_a_connection_without_a_question_is_told_as_one():
    (connection,) = (line(text) for text in every_line() if b'"Question":null' in text)
    assert "asked 192.0.2.53:53 for a TCP connection at " in told(connection)[1]


def test_healthy_lookups_are_one_number_at_the_end():
    assert told(line(DROPPED), line(FINE), line(FINE))[-1] == "1 problem in 1 lookup; 2 lookups without any."
    assert told(line(FINE)) == ["No problems; 1 lookup without any."]


def test_healthy_lookups_are_told_when_that_is_wanted():
    rows = told(line(FINE), tell_all=True)
    assert rows[0] == "No problem on node-a: 1 lookup succeeded"
    assert behind("query", rows).endswith("──► server kube-system/coredns-7d56l (eth0)")
    assert not [row for row in rows if "──✗" in row or "──?" in row]


def test_what_is_not_kept_apart_is_said():
    flood = [line(DROPPED) for _ in range(60)]
    for number, each in enumerate(flood):
        each.node = f"node-{number}"
    *_, beyond, total = told(*flood)
    assert beyond == (
        "10 more lookups are not told, because they are of further kinds: of one cause, 50 kinds are told apart. "
        "By cause: PolicyDrop 10."
    )
    assert total == "50 problems in 60 lookups; 0 lookups without any."


@pytest.mark.parametrize("width", [60, 80, 120])
def test_sentences_are_no_wider_than_the_terminal(width):
    rows = told(*map(line, (*every_line(), *MADE)), look=Look(width), tell_all=True)
    sentences = [row for row in rows if not any(arrow in row for arrow in BOXES)]
    assert len(sentences) > 100
    assert max(map(len, sentences)) <= width


def test_every_path_is_broken_between_places_alone():
    rows = told(*map(line, MADE), look=Look(80), tell_all=True)
    arrows = [row.strip() for row in rows if row.startswith(" " * 14) and "►" in row]
    assert arrows
    assert all(row.startswith(tuple(BOXES)) for row in arrows)


def test_a_terminal_without_box_characters_gets_plain_ones():
    rows = told(*map(line, (*every_line(), *MADE)), look=Look(boxes=False), tell_all=True)
    assert all(row.isascii() for row in rows)
    assert any("--x dropped" in row for row in rows)


def test_colours_are_around_the_title_and_the_break_alone():
    plain, coloured = told(line(DROPPED)), told(line(DROPPED), look=Look(colour=True))
    assert [re.sub(r"\033\[\d*m", "", row) for row in coloured] == plain
    assert [number for number, row in enumerate(coloured) if "\033" in row] == [0, 3]
    assert not [row for row in plain if "\033" in row]


hostile = st.text(max_size=60) | st.sampled_from(["\x1b]0;title\x07", "a\nb\rc", "\u202egnp", "\x9b31m", "\ud800"])


@given(data=st.data())
def test_nothing_in_a_line_can_steer_the_terminal(data):
    evil = line(data.draw(st.sampled_from([*every_line(), *MADE])))
    evil.time, evil.node, evil.status = (data.draw(hostile) for _ in range(3))
    evil.server.address, evil.server.backend, evil.client.pod = (data.draw(hostile) for _ in range(3))
    if evil.question is not None:
        evil.question.name = data.draw(hostile)
    if evil.cause is not None:
        evil.cause.code, evil.cause.message, evil.cause.confidence = (data.draw(hostile) for _ in range(3))
    evil.duration_seconds = data.draw(st.floats(allow_nan=False, allow_infinity=False))
    for hop in evil.path:
        hop.interface, hop.destination, hop.reason = (data.draw(hostile) for _ in range(3))
    for width in (None, 70):
        assert all(row.isprintable() for row in told(evil, look=Look(width), tell_all=True))


@pytest.mark.parametrize(("text", "harmless"), [("a\x1b[2Jb", r"a\x1b[2Jb"), ("\u202e", r"\u202e"), ("naïve", "naïve")])
def test_what_could_steer_a_terminal_is_escaped(text, harmless):
    assert shown(text) == harmless


def test_what_is_no_time_is_shown_as_it_is():
    assert time_words("2026-11-21T05:41:14.352334704Z") == "2026-11-21 05:41:14.352 UTC"
    assert time_words("yester\tday") == r"yester\tday"


@pytest.mark.parametrize(("words", "text"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_lists_read_like_prose(words, text):
    assert listed(words) == text
