"""On one host a real systemd runs deploy/systemd/dnstrail.service, with the privileges that are written there."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.capture import privileges
from agent.lab import Lab, drop_queries, wait_until
from agent.lab.processes import PATIENCE
from tests.kernel.conftest import Line, Watch, whole_lines
from tests.kernel.systemd import PROGRAM, START_SECONDS, Systemd, status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kernel,
    pytest.mark.skipif(not PROGRAM.exists(), reason="systemd is not installed"),
]

NAME = "redis-master.default.svc.cluster.local"
METRICS = "127.0.0.1:19353"
OPTIONS = {"DNSTRAIL_METRICS_ADDRESS": METRICS, "DNSTRAIL_LOG_RATE": "1000000", "DNSTRAIL_KUBERNETES": "off"}
STOP_SECONDS = 2.0 * PATIENCE


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=1) as lab:
        yield lab


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(tmp_path, OPTIONS)
    try:
        systemd.start()
        yield systemd
    finally:
        systemd.close()


def lines(systemd: Systemd, client: str) -> list[Line]:
    """Those of one client."""
    text = systemd.lines.read_text() if systemd.lines.exists() else ""
    return [line for line in whole_lines(text) if line["Client"]["Address"] == client]


def test_the_service_tells_whole_lookups_and_serves_the_metrics_of_its_options(systemd: Systemd, lab: Lab):
    client = lab.clients[0]
    assert client.dig(NAME).returncode == 0
    wait_until(lambda: lines(systemd, client.address), "its line", seconds=START_SECONDS)
    (line,) = lines(systemd, client.address)
    assert (line["Status"], line["PathBitMap"], len(line["Path"])) == ("Succeeded", 51, 8)
    assert (line["Client"]["Process"], line["Server"]["Process"]) == ("dig", "dnsmasq")
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=START_SECONDS) as page:
        assert "dnstrail_build_info" in page.read().decode()


def test_it_is_limited_in_nothing_but_kprobes_that_root_would_not_be(systemd: Systemd, watch):
    """Debian's 6.1 refuses the kprobe to this user: docs/install.md."""

    def limits(text: str) -> set[str]:
        return {line for line in text.splitlines() if "limited: " in line and "no kprobes" not in line}

    as_root: Watch = watch()
    assert limits(systemd.words()) == limits(as_root.diagnostics())


def test_it_has_the_capabilities_that_the_code_names_and_no_other_privilege(systemd: Systemd):
    pid = systemd.main_pid()
    assert pid is not None
    told = status(pid)
    named = sum(1 << one.bit for one in privileges.CAPABILITIES)
    assert {int(told[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {named}
    assert 0 not in map(int, told["Uid"].split())
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")


def test_stopped_it_says_what_was_open_and_ends_well_within_two_seconds(systemd: Systemd, lab: Lab):
    client = lab.clients[0]
    with drop_queries(lab):
        assert client.dig(NAME, "A", "10.96.0.10", "+tries=1", "+timeout=1").returncode != 0
        begun = time.monotonic()
        systemd.systemctl("stop", "dnstrail")
        took = time.monotonic() - begun
    assert took < STOP_SECONDS
    assert systemd.show("ActiveState", "Result", "ExecMainStatus") == {
        "ActiveState": "inactive",
        "Result": "success",
        "ExecMainStatus": "0",
    }
    assert [line["Cause"]["Code"] for line in lines(systemd, client.address)] == ["PolicyDrop"]


def test_killed_it_is_started_again(systemd: Systemd):
    first = systemd.main_pid()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: systemd.words().count("ready in") == 2, "the next one to be ready", seconds=START_SECONDS)
    assert systemd.show("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "1"}
    assert systemd.main_pid() not in (None, first)
