"""agent.export.budget: no second has more lines or bytes than it may, and every rank has its share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.export.budget import SHARES, Budget, Rank

LINES, DATA = 100, 1 << 20
ranks = st.sampled_from(Rank)


@given(st.lists(st.tuples(ranks, st.floats(0, 0.3), st.integers(1, 200_000)), max_size=300))
def test_no_second_has_more_than_the_budget_whatever_comes(lines: list[tuple[Rank, float, int]]):
    budget, now, written = Budget(20, DATA), 0.0, []
    for rank, pause, size in lines:
        now += pause
        if budget.take(rank, now, size):
            written.append((now, size))
    for begin, _ in written:
        within = [size for at, size in written if begin <= at < begin + 1.0]
        assert len(within) <= 20
        assert sum(within) <= DATA


@given(ranks, ranks, st.integers(1000, 8000))
def test_a_storm_of_one_rank_leaves_every_other_its_share(storm: Rank, other: Rank, size: int):
    budget = Budget(LINES, DATA)
    for step in range(1000):
        budget.take(storm, step / 1000, size)
    own = sum(budget.take(other, 1.0, size) for _ in range(LINES))
    assert storm is other or own >= min(int(LINES * SHARES[other]), int(DATA * SHARES[other]) // size)


def test_what_nobody_claims_is_for_whoever_comes():
    budget = Budget(LINES, None)
    assert sum(budget.take(Rank.FAILURE, 0.0, 3000) for _ in range(200)) == 70
    assert budget.refused == 130


def test_a_second_later_there_is_room_again():
    budget = Budget(10, None)
    while budget.take(Rank.INCIDENT, 5.0, 100):
        pass
    assert budget.room(Rank.INCIDENT, 5.9) == 0
    assert budget.room(Rank.INCIDENT, 6.0) > 0


def test_a_line_longer_than_a_second_may_have_is_never_written():
    budget = Budget(LINES, DATA)
    assert not budget.take(Rank.RARE, 0.0, 2 * DATA)
    assert budget.refused == 1


def test_lines_alone_or_bytes_alone_may_be_limited():
    assert Budget(None, DATA).room(Rank.SUCCESS, 0.0, 1 << 10) == 614
    assert Budget(LINES, None).room(Rank.SUCCESS, 0.0, 1 << 10) == 60


@pytest.mark.parametrize("rank", Rank)
def test_without_limits_everything_is_written(rank: Rank):
    budget = Budget(None, None)
    assert budget.is_unlimited
    assert budget.room(rank, 0.0) is None
    assert all(budget.take(rank, 0.0, 1 << 30) for _ in range(1000))


def test_the_shares_leave_most_of_it_to_whoever_comes():
    assert set(SHARES) == set(Rank)
    assert sum(SHARES.values()) <= 0.5
