"""A server that refuses thousands of lookups does not drown the reader, and hides no other failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.lab import VIP, Lab, wait_until
from tests.kernel.conftest import LINE_SECONDS, Watch

pytestmark = pytest.mark.kernel

RATE = 500
SECONDS = 8
NAMES = 10_000
LIVE = ("--failure-rate=1", "--max-lines=100", "--max-bytes=1M", "--timeout=2")
"""As it is when nothing is said."""


def test_a_flood_of_one_failure_leaves_few_lines_and_every_other_failure(tmp_path: Path):
    names = tmp_path / "names"
    names.write_text("".join(f"x{number}.nowhere.example A\n" for number in range(NAMES)))
    load = ["dnsperf", "-f", "inet", "-s", VIP, "-d", str(names), "-l", str(SECONDS), "-Q", str(RATE)]
    with Lab("nftables", clients=2) as lab:
        flooding, other = lab.clients
        watch = Watch(tmp_path, *LIVE)
        try:
            dnsperf = flooding.popen(load)
            wait_until(lambda: len(watch.lines(lab)) >= 10, "the flood", seconds=LINE_SECONDS)
            other.dig("different.nowhere.example", server=flooding.address)
            other.dig("the-same.nowhere.example")
            assert dnsperf.wait(SECONDS * 3) == 0
            wait_until(lambda: "NoListener" in watch.out.read_text(), "the other failure", seconds=LINE_SECONDS)
            said = watch.stop()
            lines = watch.lines(lab)
        finally:
            watch.process.kill()

    refused = [line for line in lines if line["Rcode"] == "REFUSED"]
    assert 20 <= len(refused) <= 20 + 3 * SECONDS
    assert {line["Client"]["Netns"] for line in refused} == {flooding.netns_id, other.netns_id}
    assert any(line["Cause"] and line["Cause"]["Code"] == "NoListener" for line in lines)
    assert sum(line["HeldBack"] for line in refused) > RATE
    assert f"more lines like this one: ServerError (REFUSED) at {VIP}:53 (--failure-rate" in said
