"""What each reader is sent: the lookups that he wants, bounded, and what he was not sent is told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.context.cluster import Pod
from agent.context.who import Who
from agent.explain.rules import explain
from agent.export.filters import Filter
from agent.export.unnamed import WAIT_SECONDS
from agent.readers.hub import Limits
from agent.readers.requests import Wanted, write_request
from tests.unit.agents import SECONDS, SocketAgent, outcomes
from tests.unit.conftest import MS, SECOND, START, Lookup, dropped

CART = Pod("1", "shop", "cart-7d9f-x2x", "Deployment/cart", "node-a", False, "ClusterFirst", ())


class Client:
    """A reader of the tests."""

    def __init__(self, agent: SocketAgent, wanted: Wanted = Wanted()) -> None:  # noqa: B008  immutable
        before = len(agent.hub.readers)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(SECONDS)
        self._connection.connect(agent.path)
        self._connection.sendall(write_request(wanted))
        self._file = self._connection.makefile("rb")
        agent.wait_for(before + 1)

    def next(self) -> dict:
        return json.loads(self._file.readline())

    def until_state(self) -> tuple[list[dict], dict]:
        """The lines before the next state, and that."""
        lines = []
        while (found := self.next()).get("Kind") != "State":
            lines.append(found)
        return lines, found


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SocketAgent]:
    with SocketAgent(tmp_path / "trace.sock", Limits(lookups_a_second=5)) as agent:
        yield agent


def lookup(number: int, name: str = "www.example.com.") -> Lookup:
    return Lookup(name=name, port=40000 + number, identifier=number)


def fine(count: int, name: str = "www.example.com.", took_ns: int = MS) -> list:
    found = []
    for number in range(count):
        begun = START + number * MS
        one = lookup(number, name)
        found.append([*one.query(begun), *one.reply(begun + took_ns)])
    return outcomes(*found)


def lost(count: int) -> list:
    return outcomes(*(dropped(lookup(n).query(START + n * MS), 2, location="nft_do_chain") for n in range(count)))


def show_all(agent: SocketAgent, found: list) -> None:
    for outcome in found:
        agent.show(outcome)
    agent.flush()


def test_a_reader_gets_the_lookups_of_his_filter_and_no_others(agent: SocketAgent):
    narrow, broad = Client(agent, Wanted(Filter(names=("*.org",)))), Client(agent)
    show_all(agent, fine(1, "a.example.org.") + fine(1, "a.example.com."))
    assert [line["Question"]["Name"] for line in narrow.until_state()[0]] == ["a.example.org."]
    assert len(broad.until_state()[0]) == 2


def test_slow_lookups_are_those_that_took_as_long_or_got_no_reply(agent: SocketAgent):
    client = Client(agent, Wanted(Filter(slow_seconds=0.1)))
    show_all(agent, [*fine(1, took_ns=MS), *fine(1, "slow.example.", took_ns=SECOND // 5), *lost(1)])
    lines, _ = client.until_state()
    assert [line["DurationSeconds"] is None or line["DurationSeconds"] >= 0.1 for line in lines] == [True, True]


def test_messages_are_sent_to_those_alone_who_want_them(agent: SocketAgent):
    without, whole = Client(agent), Client(agent, Wanted(messages=True))
    show_all(agent, fine(1))
    (short,), (full,) = without.until_state()[0], whole.until_state()[0]
    assert short["Messages"] == []
    assert full["Messages"]
    assert short | {"Messages": None} == full | {"Messages": None}


def test_only_problems_are_sent_to_who_wants_only_problems(agent: SocketAgent):
    client = Client(agent, Wanted(problems=True))
    show_all(agent, [*fine(2), *lost(1)])
    assert [line["Status"] for line in client.until_state()[0]] == ["Failed"]


def test_healthy_lookups_beyond_the_bound_are_counted_and_leave_room_for_failures(agent: SocketAgent):
    client = Client(agent)
    now = time.time()
    time.sleep(1 - now % 1 if now % 1 > 0.5 else 0)  # what follows is within one second
    show_all(agent, [*fine(20), *lost(3)])
    lines, state = client.until_state()
    assert [line["Status"] for line in lines].count("Failed") == 3
    assert 5 <= len(lines) - 3 <= 10
    assert state["Held"] + len(lines) == 23


def test_usual_lookups_are_asked_for_while_somebody_wants_them_and_never_more_than_the_bound(agent: SocketAgent):
    assert agent.feed.examples(100, 1.0) == 0
    troubled = Client(agent, Wanted(problems=True))
    assert agent.feed.examples(100, 1.0) == 0
    healthy = Client(agent)
    assert [agent.feed.examples(3, 1.0), agent.feed.examples(100, 1.5), agent.feed.examples(2, 2.0)] == [3, 2, 2]
    agent.feed.pass_over(98)
    agent.flush()
    assert healthy.until_state()[1]["PassedOver"] == 98
    assert troubled.until_state()[1]["PassedOver"] == 0


def test_a_reader_may_want_fewer_healthy_lookups_than_he_may_have(agent: SocketAgent):
    modest = Client(agent, Wanted(healthy_a_second=2))
    assert [agent.feed.examples(100, 1.0), agent.feed.examples(100, 1.5)] == [2, 0]
    greedy = Client(agent, Wanted(healthy_a_second=1_000_000))
    assert [agent.feed.examples(100, 1.5), agent.feed.examples(100, 2.0)] == [3, 5]
    now = time.time()
    time.sleep(1 - now % 1 if now % 1 > 0.5 else 0)  # what follows is within one second
    show_all(agent, [*fine(20), *lost(3)])
    told, more = (reader.until_state()[0] for reader in (modest, greedy))
    assert [line["Status"] for line in told].count("Failed") == 3
    assert 2 <= len(told) - 3 <= 4
    assert 5 <= len(more) - 3 <= 10


def test_without_readers_nothing_is_made_and_nothing_is_said(agent: SocketAgent):
    show_all(agent, fine(3))
    client = Client(agent)
    agent.flush()
    lines, state = client.until_state()
    assert (lines, state["PassedOver"], state["Held"], state["Dropped"]) == ([], 0, 0, 0)


def test_the_state_comes_once_a_second_with_what_was_lost(agent: SocketAgent):
    client = Client(agent)
    agent.lost = 7
    agent.flush()
    agent.flush()
    first = client.until_state()[1]
    agent.feed.flush(time.monotonic_ns() + SECOND)
    assert client.until_state()[1]["LostRecords"] == first["LostRecords"] == 7
    assert first["Node"] == "node-a"


def test_open_incidents_are_told_to_those_who_want_them(agent: SocketAgent):
    client, other = Client(agent, Wanted(incidents=True)), Client(agent)
    show_all(agent, lost(12))
    kinds = {line.get("Kind") for line in client.until_state()[0]}
    agent.feed.flush(time.monotonic_ns() + SECOND)
    found = [line for line in client.until_state()[0] if line.get("Kind") == "Incidents"]
    told = found[0] if found else client.next()
    (incident,) = told["Open"]
    assert (incident["Code"], incident["Lookups"]) == ("PolicyDrop", 12)
    assert "Incidents" not in {line.get("Kind") for line in other.until_state()[0]} | kinds


def test_a_lookup_of_a_pod_that_is_not_known_yet_waits_for_its_name(agent: SocketAgent):
    client = Client(agent, Wanted(Filter(namespaces=("shop",))))
    (outcome,) = fine(1)
    agent.show(outcome, Who(expected=True))
    assert list(agent.feed.due(time.monotonic())) == []
    (later,) = agent.feed.due(time.monotonic() + WAIT_SECONDS)
    agent.feed.send(later, explain(later), lambda: Who(CART))
    agent.flush()
    assert client.until_state()[0][0]["Client"]["Pod"] == "cart-7d9f-x2x"


def test_names_are_redacted_for_readers_as_on_stdout(tmp_path: Path):
    with SocketAgent(tmp_path / "trace.sock", redaction_key=b"key") as agent:
        client = Client(agent, Wanted(Filter(names=("www.example.*",)), messages=True))
        show_all(agent, fine(1))
        (line,), _ = client.until_state()
    assert line["Question"]["Name"].startswith("redacted-")
    assert "example" not in json.dumps(line)
