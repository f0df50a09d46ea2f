"""agent.kept.lines: a line read back is the line that was written, and nothing else is taken for one."""

import io
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.explain.rules import explain
from agent.export.line import Context, Line, build
from agent.kept import lines as kept
from agent.kept.inputs import bounded_lines
from agent.kept.lines import KeptLines, Unread, read_line
from tests.unit.captures import CAPTURES, every_line, lines_of

EXAMPLE = next(iter(every_line()))
STAMP = b"2026-11-28T08:36:17.123456789Z "


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_every_line_of_a_capture_reads_back_as_it_was_written(capture):
    for text in lines_of(capture):
        line = read_line(text)
        assert isinstance(line, Line)
        assert msgspec.json.encode(line) == text


def test_the_captures_have_failures_successes_and_losses_of_records():
    statuses = {json.loads(text)["Status"] for text in every_line()}
    assert statuses == {"Succeeded", "Failed", "SampleLoss"}
    assert len(every_line()) > 60


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_lines_with_drops_processes_and_translations_read_back_as_they_were_written(world, v6, lost):
    lookup = world.Lookup(v6=v6)
    outcome = world.outcome(world.dropped(lookup.query(), 2) if lost else lookup.both())
    text = msgspec.json.encode(build(outcome, explain(outcome), Context("node-a", 0)))
    assert msgspec.json.encode(read_line(text)) == text


@pytest.mark.parametrize(
    "prefix",
    [
        b"[pod/dnstrail-x2x7q/dnstrail] ",
        STAMP,
        b"2026-11-28T09:36:17.123456789+01:00 ",
        b"[pod/dnstrail-x2x7q/dnstrail] " + STAMP,
        b"Nov 28 08:36:17 host dnstrail[123]: ",
        b"  ",
    ],
)
def test_what_log_tools_put_before_a_line_is_left_out(prefix):
    assert msgspec.json.encode(read_line(prefix + EXAMPLE)) == EXAMPLE


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n"])
def test_how_a_line_ends_does_not_matter(end):
    assert msgspec.json.encode(read_line(EXAMPLE + end)) == EXAMPLE


def test_a_line_of_a_newer_version_is_read_without_what_is_not_known():
    newer = json.loads(EXAMPLE)
    newer["Weather"] = {"Rain": True}
    newer["Client"]["Mood"] = "good"
    newer["Path"][0]["Queue"] = 3
    assert msgspec.json.encode(read_line(json.dumps(newer).encode())) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"dnstrail: 12 sessions from 24 frames of 1 file", Unread.WITHOUT_JSON),
        (EXAMPLE[: len(EXAMPLE) // 2], Unread.DAMAGED),
        (EXAMPLE[:-1], Unread.DAMAGED),
        (EXAMPLE + EXAMPLE, Unread.DAMAGED),
        (EXAMPLE[len(EXAMPLE) // 2 :], Unread.OTHER_KIND),
        (b'{"Kind":"Incident","Cause":{"Code":"PolicyDrop"}}', Unread.OTHER_KIND),
        (b'{"level":"info","msg":"starting"}', Unread.OTHER_KIND),
        (EXAMPLE.replace(b'"Attempts":1', b'"Attempts":"one"'), Unread.OTHER_KIND),
        (b"{" * 100_000, Unread.DAMAGED),
        (b'{"Time":"\xff"}', Unread.DAMAGED),
    ],
)
def test_what_is_no_session_line_is_told_apart(text, why):
    assert read_line(text) is why


def test_what_was_not_read_is_said_once_with_the_first_line_of_each_kind():
    reader = KeptLines()
    texts = [b"dnstrail: hello\n", b"\n", EXAMPLE, b'{"level":"info"}\n', EXAMPLE[:-1], b"dnstrail: bye\n"]
    assert len(list(reader.lines("a.log", texts))) == 1
    assert list(reader.lines("b.log", [b"nothing"])) == []
    assert reader.read == 1
    assert reader.in_words() == (
        "5 lines are no session lines: 3 without JSON (first: line 1 of a.log), "
        "1 cut off or damaged (first: line 5 of a.log), 1 of another kind (first: line 4 of a.log)"
    )


def test_nothing_is_said_where_everything_was_read():
    reader = KeptLines()
    assert len(list(reader.lines("a.log", [EXAMPLE, b"\n"]))) == 1
    assert reader.in_words() == ""


def test_a_line_without_end_takes_bounded_memory_and_hides_no_other(monkeypatch):
    monkeypatch.setattr("agent.kept.inputs.MAX_LINE_BYTES", len(EXAMPLE) + 1)
    monkeypatch.setattr(kept, "MAX_LINE_BYTES", len(EXAMPLE) + 1)
    endless = EXAMPLE * 50 + b"\n"
    texts = list(bounded_lines(io.BytesIO(endless + EXAMPLE + b"\n" + endless)))
    assert max(map(len, texts)) == len(EXAMPLE) + 2
    reader = KeptLines()
    assert len(list(reader.lines("a.log", texts))) == 1
    assert reader.unread == {Unread.TOO_LONG: 2}


@given(st.binary(max_size=300))
def test_no_bytes_are_taken_for_a_session(text):
    assert isinstance(read_line(text), Unread)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.data())
def test_a_line_with_any_value_in_any_field_is_read_or_refused_and_never_changed_silently(data):
    line = json.loads(data.draw(st.sampled_from(every_line())))
    place = line
    name = data.draw(st.sampled_from(sorted(line)))
    if isinstance(line[name], dict) and data.draw(st.booleans()):
        place, name = line[name], data.draw(st.sampled_from(sorted(line[name]) or ["x"]))
    place[name] = data.draw(json_values)
    found = read_line(json.dumps(line).encode())
    if isinstance(found, Line):
        again = msgspec.json.encode(found)
        assert msgspec.json.encode(read_line(again)) == again


@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_damaged_line_never_crashes_the_reader(changes):
    content = bytearray(EXAMPLE)
    for at, value in changes:
        content[at] = value
    assert isinstance(read_line(bytes(content)), Line | Unread)
