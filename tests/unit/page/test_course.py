"""agent.page.course: the course of an incident, in few numbers however long it lasts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.page.course import MAX_PARTS, STEP_NS, Course
from agent.session.model import SECOND_NS


def test_lookups_stand_in_the_part_of_time_in_which_they_were_seen():
    course = Course(0, 0, 0)
    course.follow(STEP_NS // 2, 3)
    course.follow(2 * STEP_NS, 10)
    assert course.parts.lookups == [3, 0, 7]
    assert course.parts.early == 1


def test_those_before_it_was_followed_are_an_average():
    course = Course(0, 3 * STEP_NS, 8)
    assert course.parts.lookups == [2, 2, 2, 2]
    assert course.parts.early == 4


@given(st.lists(st.tuples(st.integers(0, 10**14), st.integers(0, 1000)), min_size=1))
def test_no_lookup_is_lost_and_the_number_of_parts_is_bounded(steps: list[tuple[int, int]]):
    course, now_ns, lookups = Course(0, 0, 5), 0, 5
    for passed_ns, more in steps:
        now_ns, lookups = now_ns + passed_ns, lookups + more
        course.follow(now_ns, lookups)
        assert len(course.parts.lookups) <= MAX_PARTS
        assert abs(sum(course.parts.lookups) - lookups) < 1e-6
    assert len(course.parts.lookups) * course.parts.step_ns > now_ns


def test_an_incident_that_is_old_when_it_is_first_seen_has_its_whole_time():
    course = Course(0, 10**6 * SECOND_NS, 600)
    assert len(course.parts.lookups) <= MAX_PARTS
    assert len(course.parts.lookups) * course.parts.step_ns >= 10**6 * SECOND_NS
