"""The manifest's probes, and what restarts an agent: only that its loop stands still."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from agent.lab import Lab, UnsupportedFaultError, wait_until
from agent.run import STALL_SECONDS
from agent.serve import DEFAULT_PORT
from tests.image import oci
from tests.image.container import Container
from tests.image.test_privileges import NAME, wait_for
from tests.lab.conntrack_faults import full_table

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

PROBE_SECONDS = 10
GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 0x4206, 0x4207
"""See ptrace(2)."""
REPORT_SECONDS = 10.0
"""As often the loop says that it turns."""


def probe(lab: Lab, path: str) -> int:
    """The status that a kubelet on the lab's node gets; 0 when there is none."""
    command = [sys.executable, "-c", GET, f"http://127.0.0.1:{DEFAULT_PORT}{path}"]
    return int(lab.node.run(command, check=False).stdout or 0)


def status_here(path: str) -> int:
    """The same when this machine is the node."""
    command = [sys.executable, "-c", GET, f"http://127.0.0.1:{DEFAULT_PORT}{path}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_SECONDS).stdout or 0)


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop the first thread of a process and no other, as a call would that never returns."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        assert ptrace(request, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, pid, None, None)


def was_dropped(pid: int) -> bool:
    """Whether this process, which this one has stopped, is gone; its parent learns that afterwards."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return found == pid and not os.WIFSTOPPED(status)


def test_probes_of_the_manifest_find_it_alive_and_ready(agent: Container, lab: Lab, granted: oci.Manifest):
    (port,) = granted.container["ports"]
    assert port["containerPort"] == DEFAULT_PORT
    probes = {granted.container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"/startz", "/healthz", "/readyz"}
    for path in probes:
        agent.wait_until(lambda path=path: probe(lab, path) == HTTPStatus.OK, path, PROBE_SECONDS)


def test_a_full_connection_table_keeps_probes_out_and_is_reported_and_nothing_is_restarted(agent: Container, lab: Lab):
    agent.wait_until(lambda: probe(lab, "/readyz") == HTTPStatus.OK, "it to be ready", PROBE_SECONDS)
    try:
        with full_table(lab) as table:
            assert probe(lab, "/healthz") == 0
            table.fill()
            lab.clients[0].dig(NAME)
            (line,) = wait_for(lab, agent, 1)
    except UnsupportedFaultError as error:
        pytest.skip(str(error))
    assert (line["Status"], line["Cause"]["Code"]) == ("Failed", "ConntrackTableFull")
    assert not agent.has_ended
    agent.wait_until(lambda: probe(lab, "/healthz") == HTTPStatus.OK, "probes to come through again", PROBE_SECONDS)
    assert "status: NOERROR" in lab.clients[0].dig(NAME).stdout
    assert wait_for(lab, agent, 2)[1]["Status"] == "Succeeded"


def test_an_agent_whose_loop_stands_still_ends_by_itself_and_says_where_it_stood(agent: Container, lab: Lab):
    """It takes a minute, and no CPU."""
    lab.clients[0].dig(NAME)
    wait_for(lab, agent, 1)
    pid = agent.pid
    with standing_still(pid):
        wait_until(lambda: was_dropped(pid), "it to end by itself", seconds=STALL_SECONDS + REPORT_SECONDS)
    assert agent.wait() == 1
    said = agent.err.read_text()
    assert "Timeout" in said
    assert re.search(r'"/usr/local/lib/python3\.\d+/dist-packages/agent/run.py", line \d+ in turn', said), said
