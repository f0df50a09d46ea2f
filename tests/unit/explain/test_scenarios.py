"""The page of scenarios promises nothing that is not said and shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.explain.causes import CAUSES
from agent.explain.findings import NAMES
from tests.verdicts.case import Case
from tests.verdicts.cases import CASES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/scenarios.md").read_text()
TABLE, _, PROOFS = PAGE.partition("## How each is shown")
SCENARIOS = tuple(f"S{number}" for number in range(1, 25))
KNOWN = {*CAUSES, *NAMES}
FAULTS = {case.fault: case for case in CASES}
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def said_of(scenario: str) -> list[str]:
    """The codes and findings in a scenario's row."""
    row = re.search(rf"^\| {scenario} \|.*$", TABLE, re.MULTILINE)
    assert row, f"{scenario} has no row"
    return re.findall(r"`([A-Z]\w*[a-z]\w*)`", row[0].split(" | ")[-1])


def proofs_of(scenario: str) -> list[str]:
    """What shows it: names of faults, and of tests."""
    section = re.search(rf"^\*\*{scenario}\*\*(.*?)(?=^\*\*S|\Z)", PROOFS, re.MULTILINE | re.DOTALL)
    assert section, f"{scenario} is not shown by anything"
    return re.findall(r"^- `(.+)`$", section[1], re.MULTILINE)


def rows_of(scenario: str) -> list[Case]:
    return [FAULTS[proof] for proof in proofs_of(scenario) if proof in FAULTS]


def test_every_scenario_has_one_row_and_one_proof():
    assert re.findall(r"^\| (S\d+) \|", TABLE, re.MULTILINE) == list(SCENARIOS)
    assert re.findall(r"^\*\*(S\d+)\*\*", PROOFS, re.MULTILINE) == list(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_said_exists(scenario: str):
    said = said_of(scenario)
    assert said
    assert not set(said) - KNOWN


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_shows_it_exists(scenario: str):
    proofs = proofs_of(scenario)
    assert proofs
    for proof in proofs:
        test = TEST.fullmatch(proof)
        if test:
            assert re.search(rf"^def {test[2]}\(", (ROOT / test[1]).read_text(), re.MULTILINE), proof
        else:
            assert proof in FAULTS, proof


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_that_is_said_is_shown_by_a_fault_or_by_a_test(scenario: str):
    shown = {word for case in rows_of(scenario) for word in (case.code, *case.findings)}
    by_tests = " ".join(
        source_of(*test.groups()) for proof in proofs_of(scenario) if (test := TEST.fullmatch(proof)) is not None
    )
    assert not {word for word in said_of(scenario) if word not in shown and word not in by_tests}


def source_of(path: str, name: str) -> str:
    source = (ROOT / path).read_text()
    found = re.search(rf"^def {name}\(.*?(?=^\S(?!\)))", source + "\n#", re.MULTILINE | re.DOTALL)
    assert found, name
    return found[0]
