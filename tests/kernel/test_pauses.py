"""The agent sleeps while nothing happens; whatever happens wakes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from agent.lab import Lab
from agent.lab.processes import PATIENCE, wait_until
from agent.lab.zones import ANY_CLUSTER_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.conftest import Watch

pytestmark = pytest.mark.kernel

QUIET_SECONDS = 2.5
"""Sessions of the start are over, and the agent is in its longest pause."""
SOON_SECONDS = 0.9 * PATIENCE
"""Less than that pause, and more than a lookup takes to be over and told: 0.06 s in the log, 0.1 s in the table, and a
turn of 0.25 s after each."""
BURST = 6000
"""More than the log wakes the agent for, and nearly as much as it holds."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("nftables", clients=1) as built:
        yield built


def test_a_lookup_after_a_long_silence_is_told_at_once(watch: Callable[..., Watch], lab: Lab):
    dnstrail = watch("--timeout=1")
    for number in range(3):
        time.sleep(QUIET_SECONDS)
        assert lab.clients[0].ask(f"after-silence-{number}.{ANY_CLUSTER_NAME}")
        wait_until(lambda: len(dnstrail.lines(lab)) > number, "its line", seconds=SOON_SECONDS)  # noqa: B023  at once


def test_a_burst_after_a_long_silence_is_taken_in_before_the_log_is_full(watch: Callable[..., Watch], lab: Lab):
    dnstrail = watch("--timeout=1", "--log=problems")
    time.sleep(QUIET_SECONDS)
    names = "".join(f"burst-{number}.{ANY_CLUSTER_NAME} A\n" for number in range(BURST))
    lab.clients[0].run(["dnsperf", "-s", lab.servers[0].address, "-n", "1", "-q", "50"], stdin=names, timeout=30)
    assert f"{BURST} sessions" in dnstrail.stop()
    assert "; 0 records lost" in dnstrail.diagnostics()


def test_an_agent_that_sleeps_ends_at_once_when_it_is_told_to(watch: Callable[..., Watch]):
    dnstrail = watch("--timeout=1")
    time.sleep(QUIET_SECONDS)
    begun = time.monotonic()
    dnstrail.stop()
    assert time.monotonic() - begun < SOON_SECONDS
