"""The state of the screen, without a terminal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.export.filters import Filter
from agent.export.line import Line
from agent.story.problems import bound
from agent.story.text import Look
from agent.watch import rows
from agent.watch.keys import CONTROLS, DOWN, END, ESCAPE, HOME, SEQUENCES, UP
from agent.watch.view import ACTIONS, MAX_LINES, View

KEPT = (Path(__file__).parents[3] / "tests/fixtures/lines/node-a.jsonl").read_bytes().splitlines()
LOOK = Look(colour=True)
KEYS = sorted({*SEQUENCES.values(), *CONTROLS.values(), *ACTIONS, "x", ":"} - {"q"})


def line(number: int) -> Line:
    found = msgspec.json.decode(KEPT[number % len(KEPT)], type=Line)
    bound(found)
    found.client.process = f"n{number}"
    return found


LINES = [line(number) for number in range(60)]


def view_of(count: int) -> View:
    view = View(Filter(), is_wide=False, source="test")
    for one in LINES[:count]:
        view.add(one)
    return view


def plain(view: View, width: int = 140, height: int = 10) -> list[str]:
    return [rows.uncoloured(row).rstrip() for row in view.frame(width, height, LOOK)]


def numbers(view: View) -> list[int]:
    return [int(row.split()[2][1:]) for row in plain(view)[2:-1] if row]


def test_the_newest_is_last_and_followed():
    view = view_of(20)
    assert numbers(view) == list(range(13, 20))
    view.add(LINES[20])
    assert numbers(view) == list(range(14, 21))


def test_a_chosen_lookup_stays_where_it_is_while_others_come():
    view = view_of(20)
    for _ in range(10):
        view.press(UP)
    before = numbers(view)
    assert 9 in before
    for one in LINES[20:40]:
        view.add(one)
    assert numbers(view) == before
    view.press(END)
    assert numbers(view)[-1] == 39


def test_the_oldest_can_be_reached():
    view = view_of(40)
    view.press(HOME)
    assert numbers(view)[0] == 0
    view.press(DOWN)
    view.press("\r")
    assert numbers(view)[0] == 0


def test_what_is_kept_is_bounded_and_a_pause_says_what_it_loses():
    view = view_of(0)
    for _ in range(MAX_LINES + 5):
        view.add(LINES[0])
    view.press("p")
    for _ in range(MAX_LINES + 7):
        view.add(LINES[1])
    assert f"PAUSED ({MAX_LINES + 7:,} more, 7 of them lost)" in plain(view)[0]
    view.press("p")
    assert "PAUSED" not in plain(view)[0]


def test_escape_leaves_a_filter_as_it_was():
    view = view_of(3)
    for key in ("/", "x", ESCAPE):
        view.press(key)
    assert (view.ask, view.wanted) == (None, Filter())


@pytest.mark.parametrize("width", [20, 49, 79, 80, 99, 130, 300])
def test_a_row_is_as_wide_as_the_terminal_at_most(width: int):
    for one in LINES[:6]:
        wide = msgspec.structs.replace(one, question=msgspec.structs.replace(one.question, name="日本" * 200))
        assert rows.cells(rows.clipped(rows.row(wide, Look(width)), width)) <= width


@given(st.lists(st.sampled_from(KEYS), max_size=40), st.integers(1, 200), st.integers(1, 60))
def test_no_order_of_keys_and_no_size_breaks_it(pressed: list[str], width: int, height: int):
    view = view_of(30)
    for number, key in enumerate(pressed):
        view.press(key)
        if number % 3 == 0:
            view.add(LINES[30 + number % 30])
        frame = view.frame(width, height, LOOK)
        assert len(frame) <= height
        assert all(rows.cells(rows.uncoloured(row)) <= width for row in frame)
        assert all(char.isprintable() for row in frame for char in rows.uncoloured(row))
