"""agent.export.filters: which sessions a user sees."""

import pytest

from agent.explain.rules import explain
from agent.export.filters import Filter, is_line_of_problem, is_problem
from agent.export.line import Context, build


@pytest.fixture
def answered(world):
    return world.outcome(world.Lookup(name="Redis.Default.svc.cluster.local.").both())


@pytest.fixture
def refused(world):
    return world.outcome(world.Lookup(name="a.example.", rdtype=28).both(rcode=5, aa=False))


def line_of(outcome):
    return build(outcome, explain(outcome), Context("node-a", 0))


def passes(outcome, **fields: tuple[str, ...]):
    """Live, and when its line is read back: it is the same session."""
    wanted = Filter(**fields)
    live = wanted.wants(outcome, explain(outcome))
    assert wanted.wants_line(line_of(outcome)) is live
    return live


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
    for outcome in (answered, refused, retried):
        assert is_line_of_problem(line_of(outcome)) is is_problem(outcome, explain(outcome))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"namespaces": ("shop",)}, True),
        ({"namespaces": ("till",)}, False),
        ({"pods": ("cart-*",)}, True),
        ({"pods": ("cart",)}, False),
        ({"pods": ("cart-*",), "namespaces": ("shop", "till")}, True),
        ({"pods": ("cart-*",), "statuses": ("Failed",)}, False),
    ],
)
def test_a_line_that_was_read_back_is_chosen_by_its_pod_too(answered, fields, expected):
    line = line_of(answered)
    assert Filter(**fields).wants_line(line) is False
    line.client.namespace, line.client.pod = "shop", "cart-7d9f-x2x"
    assert Filter(**fields).wants_line(line) is expected


def test_a_connection_without_a_question_passes_no_filter_of_names_or_types(refused):
    line = line_of(refused)
    line.question = None
    assert Filter(statuses=("Failed",)).wants_line(line)
    assert not Filter(names=("*",)).wants_line(line)
    assert not Filter(types=("AAAA",)).wants_line(line)
