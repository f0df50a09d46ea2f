"""The documents say what the code says."""

import re
from pathlib import Path

from agent.capture.layout import c_header
from agent.check import FEATURES, features_table
from agent.explain.causes import CAUSES, RUNBOOKS
from agent.explain.findings import NAMES
from agent.export.catalogue import document
from agent.story.drawing import ASCII, BOXES
from agent.watch.losses import LOSSES
from agent.watch.view import ACTIONS
from deploy.prometheus.alerts import ALERTS
from tests.unit import made_lines
from tests.unit.consoles import CONSOLE, renewed

ROOT = Path(__file__).parents[2]


def test_the_record_layout_in_c_is_the_one_python_reads():
    assert (ROOT / "bpf/record.h").read_text() == c_header(), "run: python -m agent.capture.layout > bpf/record.h"


def test_the_field_reference_is_current():
    assert (ROOT / "docs/fields.md").read_text() == document(), "run: python -m agent.export.catalogue > docs/fields.md"


def test_the_table_of_what_is_used_of_the_kernel_is_current():
    assert features_table() in (ROOT / "docs/kernels.md").read_text(), "put there what python -m agent.check prints"


def test_the_table_of_features_has_all_but_the_attempt_itself():
    rows = features_table().splitlines()[2:]
    names = [one.name for one in FEATURES if one.name != "load and attach"]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
    assert all(row.count("|") == 5 for row in rows)


def test_remarks_with_a_section_are_findings_that_exist():
    sections = re.findall(r"^### (\w+)$", (ROOT / "docs/causes.md").read_text(), re.MULTILINE)
    assert sections
    assert set(sections) <= set(NAMES)


def test_every_cause_has_its_section_and_no_section_is_without_a_cause():
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/causes.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(CAUSES)


def test_a_runbook_that_a_cause_leads_to_speaks_of_it():
    assert set(RUNBOOKS) <= set(CAUSES)
    for code, runbook in RUNBOOKS.items():
        text = (ROOT / f"docs/runbooks/{runbook}.md").read_text()
        alerts = "".join(alert.expression for alert in ALERTS if alert.name == runbook)
        silent_upstream = code == "UpstreamTimeout" and 'leg="upstream"' in alerts
        assert re.search(rf"\b{code}\b", text + alerts) or silent_upstream, (code, runbook)


def test_a_cause_of_which_an_alert_speaks_has_the_runbook_of_that_alert():
    for code in CAUSES:
        speaking = {alert.name for alert in ALERTS if re.search(rf"\b{code}\b", alert.expression)}
        assert not speaking or RUNBOOKS[code] in speaking, code


def test_what_the_page_about_explain_shows_is_what_the_commands_print():
    text = (ROOT / "docs/explain.md").read_text()
    assert len(CONSOLE.findall(text)) == 3
    assert text == renewed(text), "run: python -m tests.unit.consoles docs/explain.md"


def test_what_the_page_about_trace_shows_of_a_file_is_what_the_command_prints():
    text = (ROOT / "docs/trace.md").read_text()
    assert len(CONSOLE.findall(text)) == 1
    assert text == renewed(text), "run: python -m tests.unit.consoles docs/trace.md"


def test_the_page_about_trace_has_every_key_and_every_loss():
    text = (ROOT / "docs/trace.md").read_text()
    assert all(f"`{key}`" in text for key in ACTIONS if len(key) == 1 and key not in " hf")
    assert all(f"| `{words}` |" in text for _, words in LOSSES)


def test_the_page_about_explain_has_every_arrow():
    text = (ROOT / "docs/explain.md").read_text()
    for boxes, plain in zip(BOXES, ASCII, strict=True):
        assert f"| `{boxes}` | `{plain}` |" in text


def test_the_made_session_lines_are_those_that_are_written_today():
    kept = (ROOT / "tests/fixtures/lines/node-a.jsonl").read_bytes().splitlines()
    assert kept == made_lines.lines(), "run: python -m tests.unit.made_lines > tests/fixtures/lines/node-a.jsonl"
