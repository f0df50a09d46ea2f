"""The documents say what the code says."""

import re
from pathlib import Path

from agent.capture.layout import c_header
from agent.check import FEATURES, features_table
from agent.explain.causes import CAUSES
from agent.explain.findings import NAMES
from agent.export.catalogue import document

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
