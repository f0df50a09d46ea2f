"""agent.export.filters: which sessions a user sees."""

import pytest

from agent.explain.rules import explain
from agent.export.filters import Filter, is_problem


@pytest.fixture
def answered(world):
    return world.outcome(world.Lookup(name="Redis.Default.svc.cluster.local.").both())


@pytest.fixture
def refused(world):
    return world.outcome(world.Lookup(name="a.example.", rdtype=28).both(rcode=5, aa=False))


def passes(outcome, **fields: tuple[str, ...]):
    return Filter(**fields).wants(outcome, explain(outcome))


def test_an_empty_filter_lets_all_pass(answered, refused):
    assert passes(answered)
    assert passes(refused)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("redis.default.svc.cluster.local.", True),
        ("redis.default.svc.cluster.local", True),
        ("REDIS.*", True),
        ("*.local", True),
        ("redis", False),
        ("redis.?efault.*", True),
        ("*.com", False),
        ("", False),
    ],
)
def test_names_are_shell_patterns_without_case_and_without_the_last_dot(answered, pattern, expected):
    assert passes(answered, names=(pattern,)) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"types": ("AAAA",)}, True),
        ({"types": ("aaaa",)}, True),
        ({"types": ("A",)}, False),
        ({"types": ("A", "AAAA")}, True),
        ({"statuses": ("Failed",)}, True),
        ({"statuses": ("Succeeded", "SampleLoss")}, False),
        ({"rcodes": ("REFUSED",)}, True),
        ({"rcodes": ("refused",)}, True),
        ({"rcodes": ("NOERROR",)}, False),
        ({"causes": ("ServerError",)}, True),
        ({"causes": ("LeftNode",)}, False),
        ({"rcodes": ("REFUSED",), "types": ("A",)}, False),
        ({"rcodes": ("REFUSED",), "types": ("AAAA",), "names": ("*.example",)}, True),
    ],
)
def test_values_of_one_option_widen_and_options_narrow(refused, fields, expected):
    assert passes(refused, **fields) is expected


def test_sessions_without_reply_pass_no_rcode_and_successes_no_cause(world, answered):
    silent = world.outcome(world.Lookup(port=2000).query(world.now + world.SECOND))
    assert not passes(silent, rcodes=("NOERROR",))
    assert not passes(answered, causes=("Unknown",))


def test_problems_are_failures_and_successes_that_lost_an_attempt(world, answered, refused):
    assert not is_problem(answered, explain(answered))
    assert is_problem(refused, explain(refused))
    lookup, start = world.Lookup(port=2001), world.now + world.SECOND
    again = start + 5 * world.SECOND
    retried = world.outcome(world.dropped(lookup.query(start), 2), lookup.query(again), lookup.reply(again + world.MS))
    assert is_problem(retried, explain(retried))
