"""docs/incidents.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from agent.enrich.kube.events import MAX_WAITING, SECONDS_BETWEEN, TRIES
from agent.explain.causes import CAUSES, Side
from agent.explain.incidents import (
    MAX_APART,
    MAX_CLIENTS,
    MAX_COUNTED,
    MAX_QUIET_NS,
    MAX_RECENT,
    QUIET_GAPS,
    QUIET_NS,
    SILENCE_NS,
    SLOT_NS,
    THRESHOLDS,
    UPDATE_NS,
)
from agent.export import table
from agent.export.budget import SHARES, Rank
from agent.export.event_teller import MAX_EVENTS, PACE_NS
from agent.export.incident_event import MAX_MESSAGE_BYTES, MAX_NAME_BYTES
from agent.export.incident_line import IncidentLine
from agent.export.metrics.board import MAX_OPEN

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/incidents.md").read_text()
CAUSES_PAGE = (ROOT / "docs/causes.md").read_text()
MINUTE = 60_000_000_000
SIDES = {
    Side.CLIENT: "a client",
    Side.SERVER: "a server",
    Side.UPSTREAM: "an upstream",
    Side.NAMESPACE: "a network namespace",
    Side.DEVICE: "a device",
    Side.ROUTE: "a route",
}


def shown(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def test_the_table_has_every_side_that_can_be_accused():
    assert set(re.findall(r"^\| (an? [\w ]+?)(?:,[^|]*)? \|", PAGE, re.MULTILINE)) == set(SIDES.values())
    assert [code for code, text in CAUSES.items() if text.side is Side.AGENT] == ["CaptureLoss"]
    assert "`CaptureLoss` makes no incident" in PAGE


@pytest.mark.parametrize("code", CAUSES)
def test_the_section_of_a_cause_says_what_it_blames(code: str):
    section = re.search(rf"^## {code}\n(.*?)(?=^## |\Z)", CAUSES_PAGE, re.MULTILINE | re.DOTALL)
    assert section
    side = CAUSES[code].side
    blamed = "None:" if side is Side.AGENT else f"It blames the {SIDES[side].partition(' ')[2]}."
    assert f"**Incident.** {blamed}" in section[1]


def test_the_lines_shown_are_one_line_and_its_row():
    line = msgspec.json.decode(shown("json"), type=IncidentLine)
    assert list(msgspec.to_builtins(line)) == list(msgspec.json.decode(shown("json")))
    assert f"\n{table.incident(line)}\n" in PAGE


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("| 10 | 10 to 20 s | 1 % |", THRESHOLDS[0] == (10, 2, 0.01, 0) and SLOT_NS == MINUTE // 6),
        ("| 5, over at least a minute | ten minutes | 1 % |", THRESHOLDS[1] == (5, 60, 0.01, MINUTE)),
        ("| 300 | a minute | any |", THRESHOLDS[2] == (300, 6, 0.0, 0)),
        ("at most once a minute", UPDATE_NS == MINUTE),
        ("nothing failed for a minute", QUIET_NS == MINUTE),
        ("five times the usual pause, and at most five minutes", (QUIET_GAPS, MAX_QUIET_NS) == (5, 5 * MINUTE)),
        ("it ends after 15 minutes", SILENCE_NS == 15 * MINUTE),
        ("the 20 that ended last", MAX_RECENT == 20),
        ("At most 100 open ones", MAX_OPEN == 100),
        ("at most every five minutes", PACE_NS == 5 * MINUTE),
        ("up to ten, and one on the node", MAX_EVENTS == 10),
        ("cut to 128 bytes, the message to 1024", (MAX_NAME_BYTES, MAX_MESSAGE_BYTES) == (128, 1024)),
        ("one request a second, and up to 256 wait", (SECONDS_BETWEEN, MAX_WAITING) == (1.0, 256)),
        ("It tries four times", TRIES == 4),
        ("50 incidents are told apart", MAX_APART == 50),
        ("128 clients are told apart", MAX_CLIENTS == 128),
        ("4096 clients and of 4096 servers", MAX_COUNTED == 4096),
    ],
)
def test_every_number_of_the_page_is_that_of_the_code(words: str, holds: bool):  # noqa: FBT001  as parametrized
    assert words in PAGE
    assert holds


def test_the_shares_of_the_budget_are_those_of_the_code():
    page = (ROOT / "docs/logs.md").read_text()
    assert (
        "10 % are reserved for incident lines, 15 % for kinds that had no line for a minute, 15 % for other failures "
        "and 5 % for lookups that succeeded"
    ) in page
    assert SHARES == {Rank.INCIDENT: 0.1, Rank.RARE: 0.15, Rank.FAILURE: 0.15, Rank.SUCCESS: 0.05}
