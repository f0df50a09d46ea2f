"""Draws docs/dashboard.png: a lab with an agent, lookups and a Prometheus, healthy at first and then broken in turn.

`make dashboard` runs it. Nothing else may run meanwhile: the agent sees the whole machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from deploy.grafana import panels
from deploy.grafana.plot import Span, draw
from tests.prometheus.faults import FAULTS
from tests.prometheus.node import watched_node

SHOWN = (
    "the connection table is full",
    "of each pair the AAAA is lost",
    "the server is silent",
    "the upstream is silent",
)
ROWS = tuple(
    row.title for row in (panels.OVERVIEW, panels.LOSSES, panels.LATENCY, panels.SERVERS_ROW, panels.UPSTREAMS)
)
MORE_ROWS = (panels.KERNEL.title,)
HEALTHY_SECONDS = 60.0
BROKEN_SECONDS = 25.0
BETWEEN_SECONDS = 25.0
RATE_SECONDS = 10.0


def main() -> None:
    """Take the lab through its day, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, watched_node(Path(folder)) as node:
        start = time.time() + RATE_SECONDS
        _pass(HEALTHY_SECONDS + RATE_SECONDS, "healthy")
        for what in SHOWN:
            with FAULTS[what].broken(node):
                _pass(BROKEN_SECONDS, what)
            _pass(BETWEEN_SECONDS, "mended")
        span = Span(start, time.time(), RATE_SECONDS)
        draw(options.file, node.prometheus.history, span, (*ROWS, *MORE_ROWS))
        print(f"{options.file}: alerts that fired: {', '.join(sorted(node.prometheus.fired(span.end - span.start)))}")


def _pass(seconds: float, what: str) -> None:
    """Time itself is what is drawn."""
    print(f"{seconds:.0f} s {what}", file=sys.stderr)
    time.sleep(seconds)


if __name__ == "__main__":
    main()
