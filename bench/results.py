"""The results as a document: what was measured, where, when and of which commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent import __version__
from bench.figures import MET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.figures import Part

ROOT = Path(__file__).parents[1]


def results(parts: Sequence[Part]) -> str:
    """The whole text."""
    return "\n".join([*_heading(), *(line for part in parts for line in _section(part))]) + "\n"


def _heading() -> Iterator[str]:
    yield "# Results of the bench"
    yield ""
    yield "`make bench ARGS='--write bench/RESULTS.md'` writes this file: one run, nothing chosen."
    yield "[Costs](../docs/costs.md) says what the figures mean, and why a target is missed."
    yield ""
    yield f"- Date: {datetime.now(UTC):%Y-%m-%d}."
    yield f"- dnstrail {__version__}, commit {_commit()}."
    yield f"- {os.cpu_count()} CPUs, {_model()}; Linux {platform.release()}; Python {platform.python_version()}."
    yield f"- Load average before the end: {os.getloadavg()[2]:.1f} over 15 minutes."


def _section(part: Part) -> Iterator[str]:
    yield ""
    yield f"## {part.name.capitalize()}"
    yield ""
    yield part.text
    yield ""
    yield "| figure | measured | target | |"
    yield "|---|---|---|---|"
    for figure in part.figures:
        yield f"| {figure.name} | {figure.measured} | {figure.target} | {MET[figure.ok]} |"


def _commit() -> str:
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or "not known"


def _model() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()
