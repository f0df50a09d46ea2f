"""The page of a real agent, on a node that really breaks, in a real browser."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.lab import VIP, Lab
from agent.lab.faults import tc_drop
from tests.kernel.conftest import Watch
from tests.page.webdriver import Browser, until

pytestmark = pytest.mark.kernel

FAILING = 14
HEALTHY = 40
RATE, LOAD_SECONDS = 400, 5
SHORT = 0.02
SECONDS = 40.0
OPTIONS = ("--metrics-address=127.0.0.1:0", "--page=names", "--timeout=2", "--log-rate=1", "--kubernetes=off")


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """An agent with a page."""
    one = Watch(tmp_path, *OPTIONS)
    yield one
    one.process.kill()
    one.process.wait()


def address(watch: Watch) -> str:
    found = re.search(r"a page for browsers at (\S+/), on loopback only", watch.diagnostics())
    assert found
    return found[1]


@pytest.mark.timeout(150)
def test_a_policy_that_stops_a_client_is_seen_live_from_the_incident_to_the_hop(
    window: Browser, watch: Watch, tmp_path: Path
):
    with Lab("nftables", clients=2) as lab:
        stopped, other = lab.clients
        window.look("dark", 1366, 1000)
        window.open(address(watch))
        window.until("document.querySelector('#live').dataset.state === 'live'")
        for index in range(HEALTHY):
            assert other.ask(f"x{index}.any.cluster.local")
        with tc_drop(lab.node, stopped.node_interface, "ingress"):
            for index in range(FAILING):
                assert stopped.ask(f"lost{index}.any.cluster.local", seconds=SHORT) is None
        window.until("document.querySelector('.incident[data-code=PolicyDrop]')", seconds=SECONDS)
        incident = window.text(".incident[data-code=PolicyDrop]")
        window.until("document.querySelector('#lookups').innerText.includes('lost')", seconds=SECONDS)
        boxes = window.texts("#picture [data-box] > text")
        window.click(".incident[data-code=PolicyDrop] button")
        window.click("#lookups tbody tr .open")
        window.until("document.querySelector('#lookup[open] .path svg')")
        lookup = window.text("#lookup")
        ends = window.texts("[data-end=dropped]")
        complaints = window.complaints()
        (tmp_path / "lookup.png").write_bytes(window.picture())
        window.press("Escape")
        (tmp_path / "page.png").write_bytes(window.picture())

    assert f"A tc program (ingress) in network namespace {lab.node.netns_id}" in incident
    assert f"{stopped.address} asking" in incident
    assert {stopped.address, other.address} <= set(boxes)
    assert "translated by conntrack" in boxes
    assert re.search(r"PolicyDrop: lost\d+\.any\.cluster\.local\. failed", lookup.replace("\n", ""))
    assert len(ends) == 1
    assert "dropped" in ends[0]
    assert complaints == []


@pytest.mark.timeout(150)
def test_healthy_lookups_that_are_only_counted_are_in_the_rates(watch: Watch, tmp_path: Path):
    with Lab("nftables", clients=1) as lab:
        names = tmp_path / "names"
        names.write_text("".join(f"x{index}.any.cluster.local A\n" for index in range(500)))
        command = ["dnsperf", "-f", "inet", "-s", VIP, "-d", str(names), "-l", str(LOAD_SECONDS), "-Q", str(RATE)]
        assert lab.clients[0].popen(command).wait(60) == 0
        done = RATE * LOAD_SECONDS
        client, picture = until(lambda: enough(watch, lab.clients[0].address, done), f"{done} lookups", SECONDS)
    assert client["Lookups"] <= 1.02 * done
    failed = [line["Cause"]["Code"] for line in watch.lines(lab) if line["Status"] == "Failed"]
    assert client["Failed"] <= len(failed), failed
    assert len(failed) < done / 100, failed
    edges = {edge["To"]: edge for edge in picture["Edges"]}
    assert 0.98 * done <= edges[f"asked {VIP}:53"]["Lookups"] <= 1.02 * done
    assert 0 < edges[f"asked {VIP}:53"]["MeanSeconds"] < 1
    # Few of them have a session: it was the counts that made the picture.
    assert len(watch.lines(lab)) < done / 10


def enough(watch: Watch, client: str, lookups: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The client's box and the picture, once it has nearly so many."""
    with urllib.request.urlopen(f"{address(watch)}page/state", timeout=5) as answer:  # noqa: S310  our own agent
        picture: dict[str, Any] = json.loads(answer.read())["Picture"]
    boxes = (box for box in picture["Columns"]["client"] if box["Title"] == client)
    return next(((box, picture) for box in boxes if box["Lookups"] >= 0.98 * lookups), None)
