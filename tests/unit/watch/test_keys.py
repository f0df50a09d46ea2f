"""Keys from the bytes of terminals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.watch.keys import CONTROLS, DOWN, END, ENTER, ESCAPE, HOME, PAGE_DOWN, PAGE_UP, SEQUENCES, UP, keys


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x1b[A\x1bOB", [UP, DOWN]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[4~", [PAGE_UP, PAGE_DOWN, HOME, END]),
        (b"\x1b", [ESCAPE]),
        (b"q\r", ["q", ENTER]),
        (b"\x1b[1;5Cx", ["x"]),
        ("ü/".encode(), ["ü", "/"]),
        (b"\xff\x00\x01a", ["a"]),
    ],
)
def test_what_terminals_send_is_understood_and_the_rest_left_out(data: bytes, found: list[str]):
    assert list(keys(data)) == found


@given(st.binary(max_size=200))
def test_whatever_comes_is_keys_or_nothing(data: bytes):
    named = {*SEQUENCES.values(), *CONTROLS.values()}
    assert all(key in named or (len(key) == 1 and key.isprintable()) for key in keys(data))
