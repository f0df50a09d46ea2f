"""agent.story.problems: what is one problem for a person is one, however often it occurs, and memory is bounded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.export.filters import Filter
from agent.export.line import Line
from agent.story import problems as bounds
from agent.story.problems import Group, Problems, bound
from agent.story.text import MAX_CHARACTERS
from tests.unit.captures import every_line
from tests.unit.made_lines import lines as made_lines

MADE = made_lines()
DROPPED, SERVFAIL, FINE = MADE[0], MADE[4], MADE[5]


def line(text: bytes = DROPPED, **changes: object) -> Line:
    return msgspec.structs.replace(msgspec.json.decode(text, type=Line), **changes)


def groups(*lines: Line, **settings: object) -> list[Group]:
    problems = Problems(**settings)
    for each in lines:
        problems.add(each)
    return problems.told()


def changed(part: str, text: bytes = DROPPED, **changes: object) -> Line:
    """A line of which one inner object is another."""
    whole = line(text)
    setattr(whole, part, msgspec.structs.replace(getattr(whole, part), **changes))
    return whole


def test_lookups_of_several_pods_and_names_that_one_rule_drops_are_one_problem():
    (group,) = groups(*(msgspec.json.decode(text, type=Line) for text in MADE[:3]))
    assert group.lookups == 3
    assert list(group.clients) == ["shop/cart-7d9f-x2x", "shop/till-5c4b-9kq"]
    assert len(group.names) == 3
    assert (group.first, group.last) == (line(MADE[0]).time, line(MADE[2]).time)


@pytest.mark.parametrize(
    "other",
    [
        line(node="node-b"),
        line(status="SampleLoss"),
        line(protocol="TCP"),
        line(rcode="SERVFAIL"),
        changed("cause", code="NoRoute"),
        changed("server", address="10.96.0.11"),
    ],
    ids=["node", "status", "protocol", "rcode", "cause", "server"],
)
def test_another_place_server_or_outcome_is_another_problem(other):
    assert len(groups(line(), other)) == 2


@pytest.mark.parametrize("field", ["netns", "reason", "location", "hook"])
def test_a_drop_elsewhere_is_another_problem(field):
    other = line()
    setattr(other.path[-1], field, 7 if field == "netns" else "OTHER")
    assert len(groups(line(), other)) == 2


@pytest.mark.parametrize("same", [line(transaction_id=9), changed("client", port=1), changed("client", pod="another")])
def test_who_asks_and_by_which_port_does_not_make_another_problem(same):
    assert len(groups(line(), same)) == 1


def test_failures_of_another_upstream_are_another_problem():
    texts = [text for text in every_line() if b'"Code":"UpstreamTimeout"' in text]
    assert len(groups(*(line(text) for text in texts))) > 1
    other = line(texts[0])
    other.upstream[-1].address = "192.0.2.99"
    assert len(groups(line(texts[0]), other)) == 2


def test_the_first_and_last_time_do_not_depend_on_the_order_of_the_lines():
    times = [f"2026-11-21T05:41:1{second}.000000000Z" for second in (4, 2, 9)]
    (group,) = groups(*(line(time=time) for time in times))
    assert (group.first, group.last) == (times[1], times[2])


def test_times_of_any_length_take_bounded_room():
    (group,) = groups(line(), line(time="3" * 100_000), line(time="1" * 100_000))
    assert max(len(group.first), len(group.last)) < 2 * MAX_CHARACTERS


def test_lookups_that_the_agent_held_back_are_counted():
    problems = Problems()
    problems.add(line())
    problems.add(line(held_back=2913))
    (group,) = problems.told()
    assert (group.lookups, group.held, problems.counts.troubled) == (2915, 2913, 2915)


def test_failures_come_first_and_the_most_frequent_of_them():
    told = groups(*map(line, MADE), line(SERVFAIL), line(SERVFAIL), line(SERVFAIL), tell_all=True)
    assert [(group.example.status, group.lookups) for group in told] == [
        ("Failed", 4),
        ("Failed", 3),
        ("Succeeded", 1),
        ("Succeeded", 1),
    ]
    assert told[2].example.cause is not None
    assert told[3].example.cause is None


def test_lookups_without_a_problem_are_counted_and_kept_only_if_they_are_wanted():
    problems = Problems()
    problems.add(line(FINE))
    assert (problems.told(), problems.counts.fine, problems.counts.troubled) == ([], 1, 0)
    assert len(groups(line(FINE), tell_all=True)) == 1


def test_what_the_filters_leave_out_is_counted():
    problems = Problems(Filter(causes=("ServerError",)))
    for text in MADE:
        problems.add(line(text))
    assert [group.example.cause.code for group in problems.told()] == ["ServerError"]
    assert problems.counts.unwanted == len(MADE) - 1


def test_a_flood_of_one_cause_hides_no_problem_of_another():
    problems = Problems()
    for number in range(500):
        problems.add(line(node=f"node-{number}", held_back=1))
    problems.add(line(SERVFAIL))
    told = problems.told()
    assert len(told) == bounds.MAX_OF_CAUSE + 1
    assert told[-1].example.cause.code == "ServerError"
    assert problems.beyond == {"PolicyDrop": 2 * (500 - bounds.MAX_OF_CAUSE)}
    assert problems.counts.troubled == sum(group.lookups for group in told) + problems.beyond.total()


def test_codes_that_are_not_known_share_their_room():
    problems = Problems()
    for number in range(500):
        problems.add(changed("cause", code=f"Code{number}"))
    assert len(problems.told()) == bounds.MAX_OF_CAUSE
    assert problems.beyond == {"other": 500 - bounds.MAX_OF_CAUSE}


def test_clients_and_names_of_one_problem_are_bounded():
    many = [changed("client", pod=f"pod-{number}") for number in range(bounds.MAX_CLIENTS + 100)]
    for number, each in enumerate(many):
        each.question.name = f"name-{number}."
    (group,) = groups(*many)
    assert (len(group.clients), group.more_clients) == (bounds.MAX_CLIENTS, True)
    assert len(group.names) == bounds.MAX_EXAMPLES + 1


def test_lines_that_are_larger_than_any_that_is_written_take_no_more_room(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_KEPT_BYTES", 50_000)
    problems = Problems()
    for number in range(40):
        huge = changed("cause", code=f"Code{number}", evidence=["x" * 100_000] * 1000)
        problems.add(huge)
    kept = sum(len(msgspec.json.encode(group.example)) for group in problems.told())
    assert kept < 50_000 + bounds.MAX_ITEMS * (MAX_CHARACTERS + 20)
    assert problems.beyond.total() == 40 - len(problems.told())


texts = st.text(max_size=40) | st.just("\x1b[2J\u202e\n")


@given(data=st.data())
def test_no_text_of_a_kept_line_can_steer_a_terminal(data):
    whole = line(data.draw(st.sampled_from(MADE)))
    whole.node, whole.rcode, whole.client.process = data.draw(texts), data.draw(texts), data.draw(texts)
    whole.findings, whole.path[0].interface = [data.draw(texts)], data.draw(texts)
    bound(whole)
    assert whole.messages == []
    assert all(text.isprintable() for text in strings(msgspec.to_builtins(whole)))


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for inner in value.values() for text in strings(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []
