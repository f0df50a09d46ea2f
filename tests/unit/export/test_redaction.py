"""agent.export.redaction: nothing tells what was looked up, and lines of one name still belong together."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.cli import main
from agent.explain.verdict import HIGH, Verdict, make_cause
from agent.export.printer import LineOptions, Printer
from agent.export.redaction import Redaction
from tests.unit.test_replay import ARGUMENTS, RECORDED

LOOKED_UP = "hush"
KEY = bytes(range(16))
OPTIONS = ([], ["--redact"])
NOTHING_SAID = Verdict(None, [], [])
HUSH = b"\x04hush\0"
DATA = {
    "CNAME": (5, HUSH),
    "MX": (15, b"\0\x0a" + HUSH),
    "TXT": (16, b"\x04hush"),
    "SRV": (33, b"\0\1\0\1\0\x35" + HUSH),
    "TYPE65280": (65280, b"hush"),
    "OPT": (41, b"\0\x0f\0\x06\0\x16hush"),
}


def record(rdtype: int, data: bytes) -> bytes:
    owner = b"\0" if rdtype == 41 else HUSH
    return owner + struct.pack("!HHIH", rdtype, 1, 30, len(data)) + data


def printed(outcome, output="json", verdict=NOTHING_SAID, key=KEY) -> str:
    out = io.StringIO()
    options = LineOptions(output=output, redaction_key=key)
    Printer(options, out, wall_offset_ns=0).show(outcome, verdict)
    return out.getvalue()


def answered(world, rdtype=5, data=HUSH, name="Hush.example."):
    return world.outcome(world.Lookup(name=name).both(tail=record(rdtype, data), an=1))


@pytest.fixture
def recorded(monkeypatch, capsys):
    monkeypatch.setattr("agent.replay.freeze_gc", lambda: None)

    def replay(*options: str) -> list[dict]:
        assert main([*ARGUMENTS, *options, str(RECORDED)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return replay


def messages(lines):
    for line in lines:
        for one in line["Messages"]:
            yield one.get("query_message") or one["response_message"]


def told(lines) -> set[str]:
    """Every name and all data of the lines."""
    found = {one["Name"] for line in lines for one in (line["Question"], line["UpstreamOf"], *line["Upstream"]) if one}
    for one in messages(lines):
        records = [entry for section in ("answer", "authority", "additional") for entry in one[section]]
        found |= {one["question"]["name"], *(entry[key] for entry in records for key in ("name", "data"))}
        found |= {option["data"] for option in (one["edns"] or {"options": []})["options"]}
    return found


def test_no_name_and_no_data_of_a_recording_is_told(recorded):
    names = {text for text in told(recorded()) if len(text) > 1}
    assert len(names) > 20
    redacted = recorded("--redact")
    assert not names & told(redacted)
    spoken = "\n".join(json.dumps(one) for one in (*messages(redacted), *(line["Question"] for line in redacted)))
    assert not [name for name in names if name in spoken]


def test_all_else_of_a_recording_is_told_as_before(recorded):
    hidden = {"Question", "Upstream", "UpstreamOf", "Remarks", "Messages"}
    kept = [[{name: line[name] for name in line.keys() - hidden} for line in recorded(*options)] for options in OPTIONS]
    assert kept[0] == kept[1]


def test_each_name_has_one_word_of_its_own(recorded):
    pairs = {
        (plain["Question"]["Name"], redacted["Question"]["Name"])
        for plain, redacted in zip(recorded(), recorded("--redact"), strict=True)
    }
    assert len(pairs) == len({name for name, _ in pairs}) == len({word for _, word in pairs}) > 10


def test_the_words_of_another_run_are_others(recorded):
    first, second = ({line["Question"]["Name"] for line in recorded("--redact")} for _ in range(2))
    assert not first & second


def test_upper_and_lower_case_are_one_name():
    assert Redaction(KEY).word("Hush.Example.") == Redaction(KEY).word("hush.example.")


@pytest.mark.parametrize("output", ["json", "table"])
@pytest.mark.parametrize("kind", DATA)
def test_no_kind_of_record_tells_a_name(worlds, kind, output):
    assert LOOKED_UP in printed(answered(worlds(), *DATA[kind]), key=None).lower()
    assert LOOKED_UP not in printed(answered(worlds(), *DATA[kind]), output).lower()


def test_the_question_of_an_upstream_and_of_the_lookup_behind_it_are_hidden(worlds):
    world = worlds()
    asked = world.Lookup(name="hush.example.")
    forwarded = world.Lookup(name="hush.example.", shape="forward", identifier=7, client=("10.244.2.53", 33000))
    outcomes = world.outcomes(asked.query(), forwarded.both(), asked.reply())
    plain = "".join(printed(one, key=None) for one in outcomes)
    assert '"Upstream":[{' in plain
    assert LOOKED_UP in plain
    assert LOOKED_UP not in "".join(map(printed, outcomes))


def test_sentences_that_name_a_service_are_left_out_and_their_findings_stay(world):
    verdict = Verdict(None, ["WrongAnswer"], ["the answer is 192.0.2.1, and Service default/hush has 10.96.0.7"])
    line = json.loads(printed(answered(world), verdict=verdict))
    assert line["Findings"] == ["WrongAnswer"]
    assert line["Remarks"] == []


@pytest.mark.parametrize("output", ["json", "table"])
def test_what_a_server_writes_into_an_error_is_in_no_sentence(world, output):
    said = 'itself answered SERVFAIL although its upstream 192.0.2.1:53 answered NOERROR, extended error 3: "hush"'
    cause = make_cause("ServerError", HIGH, [said], deed=said)
    outcome = answered(world, data=b"\0", name="quiet.example.")
    assert LOOKED_UP in printed(outcome, verdict=Verdict(cause, [], []), key=None)
    redacted = printed(outcome, output, Verdict(cause, [], []))
    assert LOOKED_UP not in redacted
    assert "extended error 3: redacted" in redacted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(sorted(DATA)), position=st.integers(0), byte=st.integers(0, 255))
def test_a_damaged_message_tells_no_name_either(worlds, kind, position, byte):
    damaged = bytearray(record(*DATA[kind]))
    damaged[position % len(damaged)] = byte
    world = worlds()
    outcome = world.outcome(world.Lookup(name="hush.example.").both(tail=bytes(damaged), an=1))
    assert LOOKED_UP not in printed(outcome).lower()
