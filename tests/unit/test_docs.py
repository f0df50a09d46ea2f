"""The documents say what the code says."""

import re
from pathlib import Path

from agent.capture.layout import c_header
from agent.explain.causes import CAUSES
from agent.export.catalogue import document

ROOT = Path(__file__).parents[2]


def test_the_record_layout_in_c_is_the_one_python_reads():
    assert (ROOT / "bpf/record.h").read_text() == c_header(), "run: python -m agent.capture.layout > bpf/record.h"


def test_the_field_reference_is_current():
    assert (ROOT / "docs/fields.md").read_text() == document(), "run: python -m agent.export.catalogue > docs/fields.md"


def test_every_cause_has_its_section_and_no_section_is_without_a_cause():
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/causes.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(CAUSES)
