"""Kubernetes Events of incidents: what they say, on what, and how often."""

from __future__ import annotations

import itertools

import pytest

from agent.context.cluster import Pod
from agent.context.who import NOBODY, Who
from agent.enrich.kube.events import Event
from agent.explain.causes import CAUSES, CauseText
from agent.explain.incident_key import Asked, Party
from agent.explain.incidents import UPDATE_NS, Account, Incidents, State
from agent.explain.rules import explain
from agent.explain.troubled_pods import MAX_PODS, PodTrouble
from agent.explain.verdict import HIGH, Cause
from agent.export.event_teller import MAX_EVENTS, PACE_NS, EventTeller
from agent.export.incident_event import MAX_MESSAGE_BYTES, event_of_node, event_of_pod
from agent.export.incident_line import build
from agent.export.line import Context
from tests.unit.conftest import SECOND, START, Lookup, World, dropped

NODE = "node-a"
LOOKED_UP = "secret-project"
EPOCH_NS = 1_795_858_851_591_027_642
CONTEXT = Context(NODE, EPOCH_NS - START)
MS = SECOND // 1000
ENOUGH = 12


def pod(number: int, node: str = NODE) -> Pod:
    return Pod(f"uid-{number}", "shop", f"cart-{number}", "Deployment/cart", node, False, "ClusterFirst", ())


class Node:
    """Incidents of a node whose pods may come and go, and the Events that are handed over."""

    def __init__(self) -> None:
        self.now = START
        self.incidents = Incidents()
        self.here: list[Pod] | None = None
        self.events: list[Event] = []
        self.told: list[Account] = []
        self.teller = EventTeller(self, NODE, lambda: self.here)

    def offer(self, event: Event) -> None:
        self.events.append(event)

    def fail(self, *pods: Pod, lookups: int = ENOUGH) -> None:
        """Lookups of each of these pods that a policy stops."""
        for one in pods:
            number = int(one.uid.rpartition("-")[2])
            client = (f"172.20.2.{number + 1}", 44525)
            lookup = Lookup(name=f"{LOOKED_UP}.example.", client=client, client_netns=World.CLIENT + number)
            outcome = World().outcome(dropped(lookup.query(), 2, location="nft_do_chain"))
            for _ in range(lookups):
                outcome.session.first_ns = self.now
                self.incidents.note(outcome, explain(outcome), lambda one=one: Who(client=one), self.now)
                self.now += MS
        self.tell()

    def later(self, duration: int) -> None:
        for _ in range(duration // SECOND):
            self.now += SECOND
            self.tell()

    def go_on(self, duration: int, *pods: Pod) -> None:
        """One more failure every ten seconds."""
        for _ in range(duration // (10 * SECOND)):
            self.fail(*pods, lookups=1)
            self.later(10 * SECOND)

    def tell(self) -> None:
        for _, account in self.incidents.due(self.now):
            self.told.append(account)
            self.teller.tell(account, CONTEXT, self.now)

    def of(self, name: str) -> list[Event]:
        return [one for one in self.events if one.body["involvedObject"]["name"] == name]


@pytest.fixture
def node() -> Node:
    return Node()


# What it says


def test_a_pod_and_the_node_have_one_event_each(node: Node):
    node.fail(pod(1))
    of_pod, of_node = (one.body for one in node.events)
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "cart-1", "uid": "uid-1"}
    assert of_pod["involvedObject"] == about
    assert of_node["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": NODE}
    assert (of_pod["metadata"]["namespace"], of_node["metadata"]["namespace"]) == ("shop", "default")
    for body in (of_pod, of_node):
        assert (body["type"], body["reason"]) == ("Warning", "PolicyDrop")
        assert (body["reportingComponent"], body["reportingInstance"]) == ("dnstrail", NODE)
        assert body["metadata"]["annotations"] == {"dnstrail/incident": node.told[0].identifier}


def test_it_says_what_the_incident_line_says(node: Node):
    node.fail(pod(1))
    line, (of_pod, of_node) = build(node.told[0], CONTEXT, 0), [one.body for one in node.events]
    for body in (of_pod, of_node):
        assert (body["reason"], body["count"]) == (line.code, line.lookups)
        for words in (line.message, line.remedy, line.place, line.doc, f"Confidence {line.confidence}"):
            assert words is not None
            assert words in body["message"]
        for name, time in (("firstTimestamp", line.first), ("lastTimestamp", line.last)):
            assert body[name] == f"{time.partition('.')[0]}Z"
            assert body[name] in body["message"]
    assert "12 DNS lookups of this pod failed or lost an attempt" in of_pod["message"]
    assert "12 DNS lookups of shop/Deployment/cart (1 client), seen on this node, failed" in of_node["message"]
    assert "That is 100 % of all lookups of these clients." in of_node["message"]


def test_the_numbers_on_a_pod_are_its_own_and_those_on_the_node_the_incidents(node: Node):
    node.fail(pod(1), lookups=3)
    node.fail(pod(2))
    (first,), (second,), (whole,) = node.of("cart-1"), node.of("cart-2"), node.of(NODE)
    assert (first.body["count"], second.body["count"], whole.body["count"]) == (3, 12, 15)
    assert "3 DNS lookups of this pod failed" in first.body["message"]
    assert "In all: 15 lookups of 2 clients." in first.body["message"]


def test_no_name_that_was_looked_up_is_told(node: Node):
    node.fail(*map(pod, range(1, 4)))
    assert node.events
    assert LOOKED_UP not in repr(node.events)


def test_what_a_server_writes_itself_is_not_told():
    said = CauseText("The DNS server {deed}.", "Look at it.")
    facts = {"deed": f'answered SERVFAIL, extended error 22: "no answer for {LOOKED_UP}.example."'}
    told = account(cause=Cause("ServerError", HIGH, [], said, facts))
    message = event_of_node(told, 0, CONTEXT).body["message"]
    assert LOOKED_UP not in message
    assert "extended error 22: redacted." in message


def account(**changes: object) -> Account:
    one = Node()
    one.fail(pod(1))
    return one.told[0]._replace(**changes)


@pytest.mark.parametrize("code", CAUSES)
def test_no_sentence_of_any_cause_is_cut(code: str):
    words = CAUSES[code]
    filled = CauseText(words.sentence.replace("{", "").replace("}", ""), words.remedy.replace("{", "").replace("}", ""))
    told = account(cause=Cause(code, HIGH, [], filled, {}))
    for event in (event_of_pod(told, told.pods[0], CONTEXT), event_of_node(told, 1, CONTEXT)):
        assert filled.sentence in event.body["message"]
        assert filled.remedy in event.body["message"]
        assert "…" not in event.body["message"]


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\u202etxt.exe", "a\nb\r\0", "\ud800", "ü" * 5000])
def test_hostile_words_are_made_harmless_and_bounded(hostile: str):
    told = account(
        cause=Cause("PolicyDrop", HIGH, [], CauseText("It said {words}.", "Look at {words}."), {"words": hostile}),
        asked=Asked("10.96.0.10:53", service=hostile),
        client=Party(namespace=hostile, workload=hostile),
    )
    for event in (event_of_pod(told, told.pods[0], CONTEXT), event_of_node(told, 1, CONTEXT)):
        message = event.body["message"]
        assert message.isprintable()
        assert len(message.encode()) <= MAX_MESSAGE_BYTES


def test_the_name_of_an_event_is_the_same_for_one_object_of_one_incident_and_no_other(node: Node):
    node.fail(pod(1), pod(2))
    node.go_on(2 * PACE_NS, pod(1), pod(2))
    assert len(node.events) > len({one.name for one in node.events}) == 3
    elsewhere = event_of_node(node.told[0], 0, CONTEXT._replace(node="node-b"))
    assert elsewhere.name not in {one.name for one in node.events}


# When, and on what


def test_an_incident_that_goes_on_updates_its_event_every_five_minutes_and_never_each_lookup(node: Node):
    node.fail(pod(1))
    node.go_on(20 * 60 * SECOND, pod(1))
    assert len([one for one in node.told if one.state is State.UPDATED]) >= 19
    assert 4 <= len(node.of("cart-1")) <= 5
    counts = [one.body["count"] for one in node.of("cart-1")]
    assert counts == sorted(set(counts))
    assert PACE_NS >= 5 * UPDATE_NS


def test_the_end_of_an_incident_is_said(node: Node):
    node.fail(pod(1))
    node.later(16 * 60 * SECOND)
    assert node.told[-1].state is State.ENDED
    for name in ("cart-1", NODE):
        first, last = node.of(name)
        assert first.name == last.name
        assert last.body["message"].startswith("Not seen any more. 12 DNS lookups")
    assert not node.teller._told


def test_only_some_pods_of_an_incident_have_an_event_and_the_others_are_said_and_counted(node: Node):
    node.fail(pod(0))
    node.fail(*map(pod, range(1, 15)))
    node.later(UPDATE_NS)
    node.go_on(2 * PACE_NS, *map(pod, range(15)))
    named = {one.body["involvedObject"]["name"] for one in node.events} - {NODE}
    assert len(named) == MAX_EVENTS
    assert node.teller.left_out == 15 - MAX_EVENTS
    assert f"{MAX_EVENTS} of 15 pods have an Event of their own." in node.of(NODE)[-1].body["message"]


def test_a_pod_that_is_deleted_gets_no_event(node: Node):
    node.here = [pod(1)]
    node.fail(pod(2), lookups=3)
    node.fail(pod(1))
    node.here = []
    node.go_on(2 * PACE_NS, pod(1))
    assert not node.of("cart-2")
    assert len(node.of("cart-1")) == 1
    assert len(node.of(NODE)) > 1


def test_a_pod_of_another_node_gets_no_event(node: Node):
    node.fail(pod(1, node="node-b"))
    assert [one.body["involvedObject"]["kind"] for one in node.events] == ["Node"]


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Party("shop", "Deployment/cart"), "12 DNS lookups of 1 client, seen"),
        (Party("shop", pod="debug"), "12 DNS lookups of 1 client, seen"),
        (Party(address="10.244.7.7"), "12 DNS lookups of 1 client, seen"),
        (Party(address="172.20.2.1", netns=4026531840), "12 DNS lookups of 172.20.2.1 (1 client), seen"),
    ],
    ids=str,
)
def test_the_node_names_no_client_that_is_not_surely_its_own(client: Party, words: str):
    told = account(client=client, pods=())
    assert event_of_node(told, 0, CONTEXT).body["message"].startswith(words)


def test_the_pods_of_an_incident_are_bounded():
    told = account(pods=tuple(PodTrouble(pod(number), 1, START, START) for number in range(MAX_PODS)), clients=MAX_PODS)
    message = event_of_node(told, MAX_EVENTS, CONTEXT).body["message"]
    assert "128 or more clients" in message
    assert "10 of 128 or more pods" in message


def test_a_client_that_is_no_pod_is_told_of_on_the_node(node: Node):
    outcome = World().outcome(dropped(Lookup(shape="host").query(), 1, location="nft_do_chain"))
    for _ in itertools.repeat(None, ENOUGH):
        outcome.session.first_ns = node.now
        node.incidents.note(outcome, explain(outcome), lambda: NOBODY, node.now)
    node.tell()
    (event,) = node.events
    assert event.body["involvedObject"]["kind"] == "Node"
