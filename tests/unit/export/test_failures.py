"""Which lines of failing lookups are printed: agent.export.failures, with time as the tests want it."""

import json
import random
import struct
import types
from collections import Counter

import pytest

from agent.explain.causes import CauseText
from agent.explain.rules import explain
from agent.explain.verdict import HIGH, Cause, Verdict
from agent.export import printer as printing
from agent.export.budget import Budget
from agent.export.failures import BURST, MAX_SAID, PART, RARE_SECONDS, FailureLimit, Kind, LineRates, kind_of
from agent.export.filters import Filter
from agent.export.printer import LineOptions, Printer
from agent.hop.record import TCP, UDP
from agent.session.outcome import Outcome
from tests.unit.conftest import START, Lookup, PlainHop, World, dropped, packed

REFUSED, SERVFAIL = 5, 2
LINES = 100
DATA = 1 << 20
RATES = LineRates(alike=1, lines=LINES, size=DATA)
POD = 4026532177
FLOOD = 3000
"""Lookups a second."""


def kind(cause: str = "ServerError", server: str = "10.96.0.10", rcode: int | None = REFUSED, **changes) -> Kind:
    usual = Kind("Failed", cause, UDP, (packed(server), 53), rcode, None, (POD,), None)
    return usual._replace(**changes)


class Limited:
    """A limit, and the budget behind it."""

    def __init__(self, alike: int | None = 1, lines: int | None = LINES, size: int | None = DATA, **bounds: int):
        self.budget = Budget(lines, size)
        self.failures = FailureLimit(alike, self.budget, **bounds)

    def prints(self, one: Kind, client: int | None, now: float, data: int = 3000) -> bool:
        """Whether this failure gets a line, and that fits."""
        rank = self.failures.admits(one, client, now)
        return rank is not None and self.budget.take(rank, now, data)


def admitted(limit: Limited, one: Kind, start: float, *, seconds: float, rate: int = FLOOD, data: int = 3000) -> int:
    """How many of so many a second get a line."""
    return sum(limit.prints(one, POD, start + index / rate, data) for index in range(int(seconds * rate)))


def test_the_first_lines_of_a_kind_are_all_there_and_then_one_a_second():
    limit = Limited()
    assert admitted(limit, kind(), 0.0, seconds=60) == BURST + 59
    assert limit.failures.held == 60 * FLOOD - BURST - 59
    assert limit.budget.refused == 0


def test_what_comes_slower_than_its_rate_is_never_held_back():
    limit = Limited()
    assert admitted(limit, kind(), 0.0, seconds=600, rate=1) == 600


def test_a_pause_earns_a_new_burst():
    limit = Limited()
    admitted(limit, kind(), 0.0, seconds=10)
    assert admitted(limit, kind(), 1000.0, seconds=1) >= BURST


@pytest.mark.parametrize(
    "other",
    [
        kind(cause="PolicyDrop", rcode=None),
        kind(server="10.96.0.11"),
        kind(server="fd00:96::a"),
        kind(server="10.96.0.10", protocol=TCP),
        kind(rcode=SERVFAIL),
        kind(extended=6),
        kind(place=(POD + 1,)),
        kind(status="SampleLoss", cause="CaptureLoss", rcode=None),
        kind(cause="UpstreamError", upstream=(packed("192.0.2.53"), 53)),
    ],
    ids=["cause", "server", "family", "protocol", "rcode", "extended error", "place", "status", "upstream"],
)
def test_a_different_failure_is_never_among_those_that_flood(other: Kind):
    limit = Limited()
    for second in range(120):
        admitted(limit, kind(), float(second), seconds=1)
        if second % 20 == 5:
            assert limit.prints(other, POD, second + 0.5)
    assert {held.kind for held in limit.failures.summary()} == {kind()}


def test_floods_of_many_kinds_leave_room_for_one_that_is_new():
    limit = Limited()
    kinds = [kind(server=f"10.0.0.{number}") for number in range(200)]
    for step in range(100_000):
        now = step / 10_000
        limit.prints(kinds[step % 200], POD, now)
    assert limit.budget.refused > 0, "the ceiling was there"
    assert limit.prints(kind(cause="NoListener", rcode=None), POD, 10.0)


def test_a_storm_of_new_kinds_leaves_room_for_one_that_is_known():
    limit = Limited()
    assert limit.prints(kind(), POD, 0.0)
    lines = 0
    for step in range(50_000):
        now = 1 + step / 10_000
        scanned = kind(cause="LeftNode", server=f"10.{step % 251}.{step // 251 % 251}.{step // 63001}", rcode=None)
        lines += limit.prints(scanned, POD, now)
        if step % 10_000 == 5000:
            assert limit.prints(kind(), POD, now)
    assert lines <= 6 * LINES


def test_all_failures_together_stay_below_the_budget():
    limit = Limited(alike=None)
    dice = random.Random(1)  # noqa: S311  no secret
    kinds = [kind(server=f"10.0.{number}.1") for number in range(50)]
    printed = Counter(
        int(step / FLOOD) for step in range(60 * FLOOD) if limit.prints(dice.choice(kinds), POD, step / FLOOD)
    )
    assert max(printed.values()) <= LINES
    assert sum(printed.values()) >= 60 * LINES * PART * 0.7


def test_one_kind_that_floods_leaves_every_other_its_part():
    limit = Limited(alike=None)
    others = [kind(server=f"10.0.{number}.1") for number in range(4)]
    lines: Counter[Kind] = Counter()
    for step in range(10 * FLOOD):
        now = step / FLOOD
        lines[kind()] += limit.prints(kind(), POD, now)
        if step % 300 == 0:
            lines.update(other for other in others if limit.prints(other, POD, now))
    assert all(lines[other] >= 0.9 * 10 * 10 for other in others), "ten a second of each"
    assert lines[kind()] >= 10 * LINES * PART / 8


def test_long_lines_are_fewer():
    data = 64 << 10
    limit = Limited(alike=None)
    lines = admitted(limit, kind(), 0.0, seconds=60, data=data)
    assert lines * data <= 60 * DATA
    assert lines * data >= 60 * DATA * PART * 0.8


def test_a_rare_failure_gets_its_line_while_long_lines_have_used_up_the_bytes():
    limit = Limited(alike=None)
    admitted(limit, kind(), 0.0, seconds=10, data=64 << 10)
    assert limit.prints(kind(cause="NoListener", rcode=None), POD, 10.0)


def test_every_pod_that_suffers_gets_a_line_a_minute():
    limit = Limited()
    admitted(limit, kind(), 0.0, seconds=5)
    others = [POD + number for number in range(1, 30)]
    assert all(limit.prints(kind(), other, 5.0 + index / 100) for index, other in enumerate(others))
    assert sum(limit.prints(kind(), other, 6.0 + index / 100) for index, other in enumerate(others)) <= 1, "earned"
    assert limit.prints(kind(), others[0], 5.0 + RARE_SECONDS)


def test_clients_from_elsewhere_share_the_budget():
    limit = Limited()
    assert sum(limit.prints(kind(), None, 0.0) for _ in range(100)) == BURST


def test_what_was_held_back_is_told_by_the_next_line_once():
    limit = Limited()
    assert limit.failures.held_before(kind()) == 0
    for _ in range(BURST + 500):
        limit.prints(kind(), POD, 0.0)
    assert limit.prints(kind(), POD, 1.0)
    assert limit.failures.held_before(kind()) == 500
    assert limit.failures.held_before(kind()) == 0


def test_a_summary_says_how_many_of_which_kind_and_only_what_is_new():
    limit = Limited()
    admitted(limit, kind(), 0.0, seconds=1)
    (held,) = limit.failures.summary()
    assert held.lines == FLOOD - BURST
    assert str(held) == "held back 2,980 more lines like this one: ServerError (REFUSED) at 10.96.0.10:53"
    assert limit.failures.summary() == []


def test_a_summary_names_the_kinds_with_most_lines_and_sums_up_the_others():
    limit = Limited(lines=None, size=None)
    for number in range(1, MAX_SAID + 11):
        for _ in range(BURST + number):
            limit.prints(kind(server=f"10.0.0.{number}"), None, 0.0)
    *named, others = limit.failures.summary()
    assert [one.lines for one in named] == list(range(MAX_SAID + 10, 10, -1))
    assert others.kind is None
    assert str(others) == f"held back {sum(range(1, 11))} more lines of other failures"


def test_memory_is_bounded_and_what_is_beyond_the_bound_is_one_kind():
    limit = Limited(lines=None, size=None, max_kinds=8)
    printed = sum(
        limit.prints(kind(server=f"10.0.{number}.{copy}"), None, 0.0) for number in range(100) for copy in range(100)
    )
    assert printed == 8 + BURST
    (held,) = limit.failures.summary()
    assert (held.lines, str(held.kind)) == (10_000 - printed, "ServerError of many other kinds: servers, places, codes")
    assert limit.failures.held_before(kind(server="10.0.99.99")) == held.lines
    assert limit.prints(kind(cause="NoListener"), None, 0.0)


def test_a_kind_that_is_over_makes_room_and_what_it_held_back_is_still_said():
    limit = Limited(lines=None, size=None, max_kinds=8)
    for number in range(800):
        for _ in range(BURST + 3):
            limit.prints(kind(server=f"10.0.{number // 250}.{number % 250}"), None, number * RARE_SECONDS)
    assert sum(len(kinds) for kinds in limit.failures._known.values()) == 8
    assert sum(one.lines for one in limit.failures.summary()) == 2400 == limit.failures.held


def test_what_is_unlimited_is_unlimited():
    limit = Limited(None, None, None)
    assert limit.failures.is_unlimited
    assert admitted(limit, kind(), 0.0, seconds=10) == 10 * FLOOD
    alike = Limited(alike=None)
    assert admitted(alike, kind(), 0.0, seconds=1) > BURST


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_the_smallest_budget_still_prints(lines: int):
    limit = Limited(lines=lines)
    assert admitted(limit, kind(), 0.0, seconds=60) >= 30


# What makes a kind


def concluded(*hops: list[PlainHop], **lookup: object) -> tuple[Outcome, Verdict]:
    outcome = World().outcome(*hops) if hops else World().outcome(Lookup(**lookup).both(rcode=REFUSED, aa=False))
    return outcome, explain(outcome)


def explained_by(code: int) -> bytes:
    """An OPT record with an extended error (RFC 8914 2)."""
    option = struct.pack("!HHH", 15, 2, code)
    return b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(option)) + option


def with_extended_error(code: int) -> Kind:
    lookup = Lookup()
    data = bytearray(lookup.answer(rcode=SERVFAIL, aa=False, tail=explained_by(code)))
    data[10:12] = b"\0\1"
    return kind_of(*concluded([*lookup.query(), *lookup.reply(content=bytes(data))]))


def test_names_types_ids_and_ports_make_no_new_kind():
    kinds = {
        kind_of(*concluded(name=f"x{number}.example.", rdtype=1 + number, identifier=number + 1, port=1024 + number))
        for number in range(50)
    }
    assert len(kinds) == 1
    assert str(*kinds) == "ServerError (REFUSED) at 10.96.0.10:53"


@pytest.mark.parametrize(
    "other",
    [{"vip": ("10.96.0.11", 53)}, {"vip": ("10.96.0.10", 5353)}, {"v6": True}],
    ids=["address", "port", "family"],
)
def test_the_server_as_it_was_asked_makes_a_kind(other: dict[str, object]):
    assert kind_of(*concluded(**other)) != kind_of(*concluded())


def test_where_a_query_died_makes_a_kind():
    lookup = Lookup()
    drops = [
        dropped(lookup.query(), 2),
        dropped(lookup.query(), 2, stack=("nf_hook_slow", "ip_forward")),
        dropped(lookup.query(), 1),
        dropped(lookup.query(), 2, reason="IP_INNOROUTES", location="ip_error"),
        [*lookup.query(), *dropped(lookup.reply(), 2)],
    ]
    kinds = {kind_of(*concluded(hops)) for hops in drops}
    assert len(kinds) == len(drops)
    again = Lookup(name="other.example.", identifier=7, client=("172.20.2.26", 999))
    assert kind_of(*concluded(dropped(again.query(), 2))) in kinds


def test_the_extended_error_makes_a_kind():
    dnssec, unreachable = with_extended_error(6), with_extended_error(22)
    assert (dnssec.extended, unreachable.extended) == (6, 22)
    assert dnssec != unreachable


def test_which_upstream_failed_makes_a_kind():
    def relayed(upstream: str) -> Kind:
        lookup = Lookup()
        onward = lookup.onward(vip=(upstream, 53))
        hops = [*lookup.query(), *onward.query(START + 200_000), *onward.reply(START + 400_000, rcode=SERVFAIL)]
        return kind_of(*concluded([*hops, *lookup.reply(START + 600_000, rcode=SERVFAIL, aa=False, ra=True)]))

    first, second = relayed("100.100.2.136"), relayed("100.100.2.138")
    assert first.cause == "UpstreamError"
    assert str(first) == "UpstreamError (SERVFAIL) at 10.96.0.10:53, upstream 100.100.2.136:53"
    assert first != second


# What is printed


class Paper:
    """Takes lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)

    def flush(self) -> None:
        """Nothing waits."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """The printer's time stands still until a test moves it."""
    time = types.SimpleNamespace(now=1000.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr(printing, "time", time)
    return time


def printed(options: LineOptions, *sessions: tuple[Outcome, Verdict]) -> tuple[Printer, list[str]]:
    paper = Paper()
    printer = Printer(options, paper, 0)
    for outcome, verdict in sessions:
        printer.show(outcome, verdict)
    return printer, paper.lines


def several(number: int, **lookup: object) -> list[tuple[Outcome, Verdict]]:
    return [concluded(name=f"x{index}.example.", **lookup) for index in range(number)]


def test_the_printer_holds_back_what_is_alike_and_the_next_line_says_how_much(clock: types.SimpleNamespace):
    printer, lines = printed(LineOptions(rates=RATES), *several(BURST + 30))
    assert len(lines) == BURST == printer.written
    assert {json.loads(line)["HeldBack"] for line in lines} == {0}
    assert (printer.failures.held, printer.suppressed) == (30, 0)
    clock.now += 1
    printer.show(*concluded())
    assert json.loads(lines[-1])["HeldBack"] == 30


@pytest.mark.usefixtures("clock")
def test_a_line_that_is_held_back_is_not_made(monkeypatch: pytest.MonkeyPatch):
    sessions = several(BURST + 30)
    made = []
    build = printing.line.build
    monkeypatch.setattr(
        printing.line, "build", lambda *arguments, **options: made.append(1) or build(*arguments, **options)
    )
    printed(LineOptions(rates=RATES), *sessions)
    assert len(made) == BURST


@pytest.mark.usefixtures("clock")
def test_lookups_that_went_well_are_not_failures():
    well = World().outcome(Lookup().both())
    printer, lines = printed(LineOptions(log_rate=1000, rates=RATES), *[(well, explain(well))] * 50)
    assert len(lines) == 50
    assert (printer.failures.held, printer.budget.refused) == (0, 0)


@pytest.mark.usefixtures("clock")
def test_a_success_with_a_lost_attempt_is_a_failure_too():
    well = World().outcome(Lookup().both())
    verdict = Verdict(Cause("ConntrackRace", HIGH, [], CauseText("It was lost.", "Look."), {}), [], [])
    _, lines = printed(LineOptions(rates=RATES), *[(well, verdict)] * 100)
    assert len(lines) == BURST


@pytest.mark.usefixtures("clock")
def test_what_a_filter_keeps_out_uses_up_nothing():
    options = LineOptions(rates=RATES, filter=Filter(names=("wanted.example",)))
    _, lines = printed(options, *several(500), concluded(name="wanted.example."))
    assert len(lines) == 1


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("output", ["json", "table"])
def test_the_problems_alone_are_limited_alike_in_both_forms(output: str):
    _, lines = printed(LineOptions(output=output, log="problems", rates=RATES), *several(100))
    assert len(lines) == BURST + (output == "table")


@pytest.mark.usefixtures("clock")
def test_without_limits_as_in_replay_every_failure_is_printed():
    _, lines = printed(LineOptions(log_rate=None), *several(500))
    assert len(lines) == 500
    assert {json.loads(line)["HeldBack"] for line in lines} == {0}
