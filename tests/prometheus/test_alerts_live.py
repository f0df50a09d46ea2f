"""A real Prometheus scrapes a real agent on a node that breaks: the right alerts fire, and none on a healthy node."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from agent.lab import LabError
from deploy.prometheus.alerts import ALERTS
from tests.prometheus.faults import FAULTS, Fault
from tests.prometheus.node import FACTOR, Node
from tests.prometheus.server import wait_slowly

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400), pytest.mark.slow]

LONGEST_SECONDS = max(alert.for_seconds for alert in ALERTS) * FACTOR
HEALTHY_SECONDS = LONGEST_SECONDS + 2 * 300 * FACTOR
HEALTHY_TRIES = 6
FIRE_SECONDS = 90.0
QUIET_SECONDS = 180.0


class Fired(NamedTuple):
    """Alerts of a while."""

    names: set[str]


def is_busy(node: Node) -> bool:
    """Whether there are lookups enough for every ratio to count."""
    return all(
        node.prometheus.query(f"sum(rate({name}[6s])) > {a_second}")
        for name, a_second in (("dnstrail_queries_total", 5), ("dnstrail_pairs_total", 2))
    )


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        print(f"\n  {text}")


def test_nothing_fires_on_a_healthy_node(node: Node, capsys: pytest.CaptureFixture[str]):
    wait_slowly(lambda: is_busy(node), "lookups to be seen", seconds=FIRE_SECONDS)
    fired = next(filter(None, (undisturbed(node) for _ in range(HEALTHY_TRIES))), None)
    assert fired is not None, "lookups of others fail on this machine all the time"
    say(capsys, f"healthy for {HEALTHY_SECONDS:.0f} s: {', '.join(sorted(fired.names)) or 'nothing fired'}")
    assert not fired.names
    assert is_busy(node)


def undisturbed(node: Node) -> Fired | None:
    """What fired while the most patient alert could have done so; None if lookups failed that are none of ours."""
    before, began = node.strangers(), now(node)
    wait_slowly(lambda: now(node) > began + HEALTHY_SECONDS, "time to pass", seconds=2 * HEALTHY_SECONDS)
    if node.strangers() != before:
        return None
    return Fired(node.prometheus.fired(LONGEST_SECONDS))


def now(node: Node) -> float:
    """Time, as Prometheus has it."""
    return node.prometheus.query("time()")[0][1]


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_makes_its_alerts_fire_and_they_end_with_it(node: Node, what: str, capsys: pytest.CaptureFixture[str]):
    fault = FAULTS[what]
    wait_slowly(lambda: is_busy(node) and not firing(node, fault), "a node that is well", seconds=QUIET_SECONDS)
    with fault.broken(node):
        try:
            wait_slowly(lambda: firing(node, fault) == set(fault.alerts), "the alerts", seconds=FIRE_SECONDS)
        except LabError as late:
            raise AssertionError(f"{late}; firing: {node.prometheus.firing()}") from late
        say(capsys, f"{what}: {', '.join(sorted(node.prometheus.firing()))}")
    wait_slowly(lambda: not firing(node, fault), "the alerts to end", seconds=QUIET_SECONDS)


def firing(node: Node, fault: Fault) -> set[str]:
    """Which of its alerts do, with the labels that they must have."""
    return {name for name, labels in fault.alerts.items() if node.prometheus.query(alerts_series(name, labels))}


def alerts_series(name: str, labels: dict[str, str]) -> str:
    wanted = {"alertname": name, "alertstate": "firing", **labels}
    return "ALERTS{" + ", ".join(f'{key}="{value}"' for key, value in wanted.items()) + "}"
