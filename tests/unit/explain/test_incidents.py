"""agent.explain.incidents: what becomes an incident, how it goes on and how it ends, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.context.cluster import Pod, Service
from agent.context.who import NOBODY, Who
from agent.explain.blamed import PARTS
from agent.explain.causes import Side
from agent.explain.incidents import (
    LOST_SHARE,
    MAX_CLIENTS,
    MAX_QUIET_NS,
    MAX_TRAITS,
    QUIET_NS,
    SILENCE_NS,
    THRESHOLDS,
    UPDATE_NS,
    WINDOW_NS,
    Account,
    Counts,
    Example,
    Incidents,
    State,
)
from agent.explain.rules import explain
from agent.explain.verdict import HIGH, LOW, MEDIUM, Confidence, Verdict, make_cause
from agent.hop.endpoint import Endpoint
from agent.session.outcome import Outcome
from tests.unit.conftest import SECOND, START, Lookup, PlainHop, World, dropped, packed

MS, MINUTE = SECOND // 1000, 60 * SECOND
REFUSED = 5
FIRST = THRESHOLDS[0].lookups
CART = Pod("uid-1", "shop", "cart-1", "Deployment/cart", "node-a", False, "ClusterFirst", ())
CART_2 = CART._replace(uid="uid-2", name="cart-2")
BARE = Pod("uid-3", "shop", "debug", None, "node-a", False, "ClusterFirst", ())
DNS = Service("kube-system", "kube-dns", False, (packed("10.96.0.10"),))


def concluded(hops: list[PlainHop]) -> tuple[Outcome, Verdict]:
    outcome = World().outcome(hops)
    return outcome, explain(outcome)


def refused(client: str = "172.20.2.25", **lookup: object) -> tuple[Outcome, Verdict]:
    """A lookup that the server refuses."""
    return concluded(Lookup(client=(client, 44525), **lookup).both(rcode=REFUSED, aa=False))


def stopped(client: str = "172.20.2.25", netns: int = World.CLIENT, after: int = 2) -> tuple[Outcome, Verdict]:
    """A lookup whose query a policy drops."""
    lookup = Lookup(client=(client, 44525), client_netns=netns)
    return concluded(dropped(lookup.query(), after, location="nft_do_chain"))


def healthy(client: str = "172.20.2.25") -> tuple[Outcome, Verdict]:
    return concluded(Lookup(client=(client, 44525)).both())


def ends_of(told: tuple[Outcome, Verdict]) -> tuple[tuple[int | None, bytes], Endpoint]:
    """Client and server of a lookup, as lookups are counted by."""
    outcome = told[0]
    return (outcome.client_netns, outcome.session.key.client.address), outcome.server


class Watched:
    """Incidents, and their time."""

    def __init__(self, **bounds: int) -> None:
        self.incidents = Incidents(**bounds)
        self.now = START
        self.told: list[Account] = []

    def see(self, session: tuple[Outcome, Verdict], who: Who = NOBODY) -> object:
        """A lookup that is over now."""
        outcome, verdict = session
        outcome.session.first_ns = self.now
        incident = self.incidents.note(outcome, verdict, lambda: who, self.now)
        self.told += [account for _, account in self.incidents.due(self.now)]
        return incident

    def see_many(self, session: tuple[Outcome, Verdict], number: int, every: int = SECOND, who: Who = NOBODY) -> None:
        for _ in range(number):
            self.see(session, who)
            self.later(every)

    def later(self, duration: int) -> None:
        """Time passes, and what is due meanwhile is told."""
        end = self.now + duration
        while self.now < end:
            self.now = min(end, self.now + SECOND)
            self.told += [account for _, account in self.incidents.due(self.now)]

    @property
    def states(self) -> list[State]:
        return [account.state for account in self.told]


@pytest.fixture
def watched() -> Watched:
    return Watched()


# The table of sides


def test_every_side_but_the_agents_own_has_parts():
    assert set(PARTS) == set(Side) - {Side.AGENT}


# Opening


def test_ten_failures_within_seconds_are_one_incident(watched: Watched):
    watched.see_many(refused(), FIRST - 1, every=SECOND // 2)
    assert watched.told == []
    watched.see(refused())
    (opened,) = watched.told
    assert (opened.state, opened.cause.code, opened.lookups, opened.clients) == (State.OPENED, "ServerError", FIRST, 1)
    assert (opened.first_ns, opened.share) == (START, 1.0)
    assert watched.incidents.opened == {"ServerError": 1} == watched.incidents.open_by_cause()


def test_a_single_failure_opens_nothing_ever(watched: Watched):
    watched.see(refused())
    watched.later(3600 * SECOND)
    assert watched.told == []


def test_a_client_that_asks_once_a_minute_in_vain_is_an_incident_after_some_minutes(watched: Watched):
    watched.see_many(stopped(), 4, every=MINUTE)
    assert watched.told == []
    watched.see(stopped())
    assert watched.states == [State.OPENED]


def test_five_failures_of_one_moment_are_none(watched: Watched):
    watched.see_many(refused(), 5, every=SECOND)
    watched.later(WINDOW_NS)
    assert watched.told == []


def test_few_failures_among_many_lookups_open_nothing(watched: Watched):
    fine, lost = healthy(), stopped()
    for number in range(20_000):
        watched.see(lost if number % 200 == 0 else fine)
        watched.now += 300 * MS
    assert watched.told == []


def test_the_same_number_of_failures_among_few_lookups_is_an_incident(watched: Watched):
    fine, lost = healthy(), stopped()
    for number in range(500):
        watched.see(lost if number % 10 == 0 else fine)
        watched.now += SECOND
    assert watched.states[0] is State.OPENED
    assert watched.told[-1].share == pytest.approx(0.1, abs=0.02)


def test_hundreds_a_minute_are_an_incident_even_where_nearly_everything_goes_well(watched: Watched):
    fine = healthy()
    watched.incidents.count(*ends_of(fine), 10_000_000)
    watched.see(fine)
    for _ in range(THRESHOLDS[2].lookups):
        watched.incidents.count(*ends_of(fine), 1000)
        watched.see(stopped())
        watched.now += 100 * MS
    assert watched.states[0] is State.OPENED


def test_a_retry_that_succeeds_now_and_then_opens_nothing(watched: Watched):
    lookup = Lookup()
    again = lookup.query(START + SECOND)
    outcome = World().outcome(dropped(lookup.query(), 2), again, lookup.reply(START + SECOND + 200_000))
    retried = outcome, explain(outcome)
    assert (outcome.status.value, retried[1].cause is not None) == ("Succeeded", True)
    fine = healthy()
    for number in range(5000):
        watched.see(retried if number % 250 == 0 else fine)
        watched.now += SECOND
    assert watched.told == []


def test_a_gap_of_the_agents_own_accuses_nobody_and_opens_nothing(watched: Watched):
    outcome, _ = healthy()
    lost = outcome, Verdict(make_cause("CaptureLoss", HIGH, [], gap="records were lost", advice="look"), [], [])
    for _ in range(100):
        assert watched.see(lost) is None
    assert watched.told == []


BLOCK = 300
"""Lookups of which one is lost: a third of the share that clients notice."""


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, BLOCK - 1), min_size=8, max_size=8), st.integers(10, 1000))
def test_losses_below_the_share_that_clients_notice_open_nothing(places: list[int], every_ms: int):
    assert 1 / BLOCK < LOST_SHARE / 2
    watched, fine, lost = Watched(), healthy(), stopped()
    for place in places:
        for number in range(BLOCK):
            watched.see(lost if number == place else fine)
            watched.now += every_ms * MS
    assert watched.told == []


# What is one incident


def test_a_server_that_refuses_many_clients_is_one_incident(watched: Watched):
    for number in range(60):
        watched.see(refused(f"172.20.3.{number + 1}"))
    watched.later(2 * UPDATE_NS)
    assert watched.states == [State.OPENED, State.UPDATED]
    last = watched.told[-1]
    assert (last.clients, last.client, last.lookups) == (60, None, 60)
    assert last.asked is not None
    assert last.asked.address == "10.96.0.10:53"
    assert "server 10.244.1.53:53" in last.key.place


def test_a_policy_that_stops_two_clients_is_two_incidents(watched: Watched):
    watched.see_many(stopped("172.20.2.25"), FIRST, every=MS)
    watched.see_many(stopped("172.20.2.26", World.CLIENT + 7), FIRST, every=MS)
    assert watched.states == [State.OPENED, State.OPENED]
    assert {str(account.client) for account in watched.told} == {"172.20.2.25", "172.20.2.26"}


def test_pods_of_one_workload_are_one_client(watched: Watched):
    for number in range(FIRST):
        pod, netns = ((CART, World.CLIENT), (CART_2, World.CLIENT + 7))[number % 2]
        watched.see(stopped(f"172.20.2.{25 + number % 2}", netns), Who(client=pod))
    (opened,) = watched.told
    assert (str(opened.client), opened.clients) == ("shop/Deployment/cart", 2)


def test_each_pod_has_its_own_numbers(watched: Watched):
    begun = watched.now
    for number in range(FIRST):
        pod, netns = ((CART, World.CLIENT), (CART_2, World.CLIENT + 7))[number % 5 == 0]
        watched.see(stopped(f"172.20.2.{25 + (number % 5 == 0)}", netns), Who(client=pod))
        watched.now += MS
    (opened,) = watched.told
    assert [(one.pod.name, one.lookups) for one in opened.pods] == [("cart-2", 2), ("cart-1", FIRST - 2)]
    assert [(one.first_ns - begun, one.last_ns - begun) for one in opened.pods] == [(0, 5 * MS), (MS, 9 * MS)]


def test_what_is_too_old_to_open_an_incident_is_no_lookup_of_its_pods(watched: Watched):
    watched.see_many(stopped(), 3, every=MS, who=Who(client=CART))
    watched.later(WINDOW_NS)
    watched.see_many(stopped(), FIRST, every=MS, who=Who(client=CART))
    watched.later(2 * UPDATE_NS // 3)
    watched.see(stopped(), Who(client=CART))
    watched.later(UPDATE_NS // 3)
    assert [(account.lookups, account.pods[0].lookups) for account in watched.told] == [(10, 10), (11, 11)]


@pytest.mark.parametrize(
    ("session", "pod"),
    [
        (stopped(), CART._replace(host_network=True)),
        (concluded(Lookup(shape="server").both(rcode=REFUSED, aa=False)), CART._replace(node="node-b")),
    ],
    ids=["in the network of the node", "on another node"],
)
def test_a_pod_that_is_not_surely_this_nodes_own_has_no_numbers(watched: Watched, session: tuple, pod: Pod):
    watched.see_many(session, FIRST, every=MS, who=Who(client=pod))
    assert watched.told[0].pods == ()


def test_a_pod_of_no_workload_is_known_by_its_own_name(watched: Watched):
    watched.see_many(stopped(), FIRST, every=MS, who=Who(client=BARE))
    assert str(watched.told[0].client) == "shop/debug"


def test_names_that_come_late_do_not_make_a_second_incident(watched: Watched):
    watched.see_many(stopped(), 4, every=100 * MS, who=Who(expected=True))
    watched.see_many(stopped(), FIRST - 4, every=100 * MS, who=Who(client=CART))
    (opened,) = watched.told
    assert (str(opened.client), opened.lookups) == ("shop/Deployment/cart", FIRST)


def test_the_name_of_a_service_that_comes_late_is_told(watched: Watched):
    watched.see_many(refused(), 1)
    watched.later(30 * SECOND)
    watched.see_many(refused(), FIRST, every=MS, who=Who(service=DNS))
    (opened,) = watched.told
    assert opened.asked is not None
    assert opened.asked.service == "kube-system/kube-dns"


def test_the_names_of_a_storm_are_looked_up_now_and_then():
    incidents, session, asked = Incidents(), refused(), []
    for number in range(6000):
        incidents.note(*session, lambda: asked.append(1) or Who(service=DNS), START + number * 10 * MS)
    assert len(asked) == 6
    assert str(incidents.accounts()[0].asked) == "10.96.0.10:53 (kube-system/kube-dns)"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (refused(), refused(vip=("10.96.0.11", 53), dnat=False)),
        (refused(), stopped()),
        (stopped(), stopped(after=3)),
    ],
    ids=["server", "cause", "namespace of the drop"],
)
def test_another_place_or_cause_is_another_incident(watched: Watched, one, other):
    if one[1].cause.code == other[1].cause.code == "PolicyDrop":
        moved = other[1].cause.drop._replace(hop=other[1].cause.drop.hop._replace(netns=4026531999))
        other = other[0], other[1]._replace(cause=other[1].cause._replace(drop=moved))
    for _ in range(FIRST):
        watched.see(one)
        watched.see(other)
    assert watched.states == [State.OPENED, State.OPENED]
    assert len({account.identifier for account in watched.told}) == 2


def test_names_types_ids_and_ports_make_no_other_incident(watched: Watched):
    for number in range(50):
        watched.see(refused(name=f"x{number}.example.", rdtype=1 + number, identifier=number + 1))
    assert watched.states == [State.OPENED]


def test_the_confidence_is_the_lowest_and_the_sentence_the_latest(watched: Watched):
    outcome, verdict = refused()
    assert verdict.cause is not None
    told: tuple[Confidence, ...] = (HIGH, LOW, MEDIUM)
    for number in range(FIRST + 2):
        cause = verdict.cause._replace(confidence=told[number % 3], facts={"deed": f"said {number}"})
        watched.see((outcome, verdict._replace(cause=cause)))
    (account,) = watched.incidents.accounts()
    assert account.confidence is LOW
    assert account.cause.text == f"The DNS server said {FIRST + 1}."


# Share


def test_the_share_is_of_this_clients_lookups_and_not_of_others(watched: Watched):
    other, fine, lost = healthy("172.20.2.99"), healthy(), stopped()
    for number in range(400):
        watched.see(lost if number % 4 == 0 else fine)
        watched.see(other)
        watched.now += 100 * MS
    (account,) = watched.incidents.accounts()
    assert account.share == pytest.approx(0.25, abs=0.01)


def test_the_share_of_a_server_is_of_all_that_asked_it(watched: Watched):
    fine, lost = [healthy(f"172.20.2.{number}") for number in range(1, 5)], refused()
    for _ in range(100):
        watched.see(lost)
        for one in fine:
            watched.see(one)
        watched.now += 100 * MS
    (account,) = watched.incidents.accounts()
    assert account.share == pytest.approx(0.2, abs=0.01)


def test_lookups_that_are_counted_together_count_like_others(watched: Watched):
    watched.see_many(stopped(), FIRST, every=MS)
    watched.incidents.count(*ends_of(healthy()), 99 - FIRST)
    watched.see(stopped())
    (account,) = watched.incidents.accounts()
    assert account.share == (FIRST + 1) / 100


def test_what_went_well_after_the_last_failure_does_not_make_its_share_smaller(watched: Watched):
    watched.see_many(stopped(), FIRST, every=MS)
    watched.see_many(healthy(), 200, every=SECOND)
    assert (watched.told[-1].state, watched.told[-1].share) == (State.ENDED, 1.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("frsh"), st.integers(1, 90)), max_size=120))
def test_whatever_happens_shares_and_counts_fit_together(events):
    sessions = {"f": refused(), "r": refused("172.20.2.26"), "s": stopped(), "h": healthy()}
    watched = Watched()
    for kind, seconds in events:
        watched.see(sessions[kind])
        watched.later(seconds * SECOND)
    for account in watched.told:
        assert account.share is None or 0 < account.share <= 1
        assert account.first_ns <= account.last_ns
        assert 1 <= account.clients <= account.lookups
    opened, ended = (watched.states.count(state) for state in (State.OPENED, State.ENDED))
    assert opened - ended == len(watched.incidents.accounts())
    assert sum(watched.incidents.opened.values()) == opened


# Going on and ending


def test_an_incident_that_goes_on_is_told_once_a_minute(watched: Watched):
    watched.see_many(refused(), 600, every=SECOND)
    assert watched.states[0] is State.OPENED
    assert set(watched.states[1:]) == {State.UPDATED}
    assert 8 <= len(watched.states[1:]) <= 10
    assert {account.identifier for account in watched.told} == {watched.told[0].identifier}


def test_nothing_is_told_of_an_incident_of_which_nothing_is_new(watched: Watched):
    watched.see_many(refused(), FIRST, every=MS)
    watched.later(SILENCE_NS - SECOND)
    assert watched.states == [State.OPENED]


def test_it_ends_when_its_server_answers_again(watched: Watched):
    watched.see_many(refused(), 60, every=100 * MS)
    end = watched.now
    watched.see_many(healthy(), 120, every=SECOND)
    ended = watched.told[-1]
    assert (ended.state, ended.lookups) == (State.ENDED, 60)
    assert ended.last_ns == end - 100 * MS
    assert watched.incidents.accounts() == []
    assert [account.state for account in watched.incidents.recent] == [State.ENDED]
    assert not watched.incidents.open_by_cause()


def test_it_does_not_end_by_silence_alone_for_a_long_time(watched: Watched):
    watched.see_many(refused(), FIRST, every=MS)
    watched.later(QUIET_NS * 3)
    assert watched.states == [State.OPENED]
    watched.later(SILENCE_NS)
    assert watched.states[-1] is State.ENDED


def test_rare_failures_do_not_end_it_between_two_of_them(watched: Watched):
    fine, lost = healthy(), stopped()
    for _ in range(20):
        watched.see(lost)
        for _ in range(10):
            watched.see(fine)
            watched.later(9 * SECOND)
    assert State.ENDED not in watched.states
    watched.see(fine)
    watched.see_many(fine, MAX_QUIET_NS // SECOND // 10 + 1, every=10 * SECOND)
    assert watched.states[-1] is State.ENDED


def test_after_its_end_it_begins_anew_by_the_same_threshold(watched: Watched):
    watched.see_many(refused(), FIRST, every=MS)
    watched.see_many(healthy(), 90, every=SECOND)
    assert watched.states == [State.OPENED, State.ENDED]
    watched.see_many(refused(), FIRST - 1, every=MS)
    assert len(watched.states) == 2
    watched.see(refused())
    again = watched.told[-1]
    assert (again.state, again.lookups) == (State.OPENED, FIRST)
    assert again.identifier != watched.told[0].identifier
    assert watched.incidents.opened == {"ServerError": 2}


def test_what_was_long_ago_does_not_count_when_it_opens(watched: Watched):
    watched.see_many(refused(), FIRST - 1, every=MS)
    watched.later(WINDOW_NS + MINUTE)
    begun = watched.now
    watched.see_many(refused(), FIRST, every=MS)
    (opened,) = watched.told
    assert (opened.lookups, opened.first_ns) == (FIRST, begun)


def test_more_than_can_be_told_now_is_told_later_the_new_ones_first():
    incidents, now = Incidents(), START
    for number in range(6):
        for _ in range(FIRST):
            incidents.note(*refused(vip=(f"10.96.0.{20 + number}", 53), dnat=False), lambda: NOBODY, now)
    first, second = (incidents.due(now, 4) for _ in range(2))
    assert (len(first), len(second), incidents.due(now, 4)) == (4, 2, [])
    later = now + 2 * UPDATE_NS
    for _ in range(FIRST):
        incidents.note(*refused(vip=("10.96.0.20", 53), dnat=False), lambda: NOBODY, later)
        incidents.note(*stopped(), lambda: NOBODY, later)
    states = [account.state for _, account in incidents.due(later, 1)]
    assert states == [State.OPENED]


# Examples


def test_examples_are_of_different_clients_and_few(watched: Watched):
    incident = watched.see(refused())
    for number in range(20):
        example = Example(str(number), f"10.0.0.{number // 5}:{number + 1000}", number, f"x{number}.", "A")
        incident.show(example)
    assert [example.time for example in incident.examples.values()] == ["0", "5", "10"]
    assert not incident.wants_examples


# Bounds


def test_incidents_of_one_cause_beyond_the_bound_are_one_and_it_is_said():
    watched = Watched(max_apart=3)
    for number in range(30):
        watched.see_many(refused(vip=(f"10.96.1.{number}", 53), dnat=False), 2, every=MS)
    watched.see_many(stopped(), FIRST, every=MS)
    rest, other = watched.told
    assert rest.key.is_rest
    assert rest.key.place == "many other places, which are not told apart"
    assert other.cause.code == "PolicyDrop"
    assert not other.key.is_rest


def test_what_is_over_makes_room_for_others():
    watched = Watched(max_apart=2)
    for number in range(10):
        watched.see_many(refused(vip=(f"10.96.1.{number}", 53), dnat=False), FIRST, every=MS)
        watched.see(healthy())
        watched.later(WINDOW_NS + SILENCE_NS)
    assert watched.states == [State.OPENED, State.ENDED] * 10
    assert not any(account.key.is_rest for account in watched.told)


def test_memory_is_bounded_by_clients_servers_and_kinds():
    incidents = Incidents()
    outcome, verdict = refused()
    for number in range(6000):
        address = packed(f"10.{number % 200}.{number // 200}.1")
        outcome.session.key = outcome.session.key._replace(client=outcome.session.key.client._replace(address=address))
        incidents.note(outcome, verdict, lambda: NOBODY, START + number * MS)
    (account,) = incidents.accounts()
    assert account.clients == MAX_CLIENTS
    assert account.lookups == 6000
    assert len(incidents._by_client) <= 4096
    assert len(incidents._subjects) <= MAX_TRAITS


def test_a_count_that_was_lost_makes_the_share_unknown_and_not_wrong(watched: Watched):
    watched.incidents._by_client = Counts(most=2)
    watched.see_many(stopped(), FIRST, every=MS)
    for number in range(3):
        watched.see(healthy(f"172.20.9.{number}"))
    watched.see(stopped())
    (account,) = watched.incidents.accounts()
    assert account.share is None
