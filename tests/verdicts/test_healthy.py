"""Lookups that nobody disturbs: a session for each, and no accusation."""

from __future__ import annotations

import pytest

from agent.lab.processes import PATIENCE
from tests.verdicts.healthy import run

pytestmark = [pytest.mark.kernel, pytest.mark.slow]
"""The healthy lookups of every other test have no cause either: this one has thousands."""

LOOKUPS = 5_000


def test_thousands_of_healthy_lookups_are_all_said_to_be_healthy():
    report = run(LOOKUPS, 1 / PATIENCE)
    assert not report.mistakes, str(report)
