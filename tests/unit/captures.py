"""The session lines of every capture among the fixtures, as `dnstrail replay` writes them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

from agent.capturefile.inputs import Inputs
from agent.replay import Options, Replay

FIXTURES = Path(__file__).parents[1] / "fixtures"
CAPTURES = sorted(FIXTURES.rglob("*.pcap"))
RECORDED_PORTS = (53, 1053, 2053, 2054, 2055, 2056, 2057)
"""What counts as DNS in the recording of CoreDNS."""


@cache
def lines_of(capture: Path) -> list[bytes]:
    """Without their line feeds."""
    out = io.StringIO()
    name = (str(capture),)
    Replay(Options(name, RECORDED_PORTS), Inputs(list(name)), out).work()
    return out.getvalue().encode().splitlines()


def every_line() -> list[bytes]:
    """Of all captures."""
    return [line for capture in CAPTURES for line in lines_of(capture)]
