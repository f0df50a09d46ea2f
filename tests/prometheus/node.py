"""A node with an agent, lookups, and a Prometheus that watches it in a hurry."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from agent.lab import Lab, wait_until
from deploy.prometheus import rules
from tests.prometheus import server
from tests.prometheus.server import NODE, Prometheus, fetch, prometheus, untracked
from tests.prometheus.traffic import Traffic, traffic

ADDRESS, PORT = "127.0.0.1", 9353
FACTOR = 1 / 50
"""Five minutes become six seconds: six scrapes."""
READY_SECONDS = 40.0
TIMEOUT_SECONDS = 1.5
LINES = "lines"


class Node(NamedTuple):
    """All of it."""

    lab: Lab
    agent: Popen[str]
    prometheus: Prometheus
    traffic: Traffic
    lines: Path
    """The agent's, of what did not go well."""

    def strangers(self) -> int:
        """How many lookups failed that are none of the lab's: an agent sees the whole machine."""
        ours = {pod.netns_id for pod in (self.lab.node, *self.lab.clients, *self.lab.servers, self.lab.upstream)}
        whole = self.lines.read_text().rpartition("\n")[0].splitlines()
        sessions = [line for line in map(json.loads, whole) if "Kind" not in line]
        return sum(not any(hop["Netns"] in ours for hop in line["Path"]) for line in sessions)


@contextmanager
def watched_node(folder: Path) -> Iterator[Node]:
    """All of it, while the block lasts."""
    with Lab("nftables", clients=2) as lab, untracked(lab.node, PORT, server.PORT), running_agent(lab, folder) as agent:
        quick = rules.to_yaml(rules.groups(FACTOR))
        with prometheus(lab, folder, f"{ADDRESS}:{PORT}", quick) as watcher, traffic(lab) as flow:
            yield Node(lab, agent, watcher, flow, folder / LINES)


@contextmanager
def running_agent(lab: Lab, folder: Path) -> Iterator[Popen[str]]:
    """In the node's own namespace, as with hostNetwork: that is the one whose connection table is `host`."""
    words = folder / "words"
    command = [sys.executable, "-m", "agent", "run", "--trace-socket=none", f"--metrics-address={ADDRESS}:{PORT}"]
    settings = [f"--timeout={TIMEOUT_SECONDS}", "--log=problems", f"--node={NODE}"]
    with words.open("w") as err, (folder / LINES).open("w") as out:
        agent = lab.node.popen([*command, *settings], stdout=out, stderr=err)
    wait_until(lambda: agent.poll() is not None or is_ready(lab), "the agent to be ready", seconds=READY_SECONDS)
    assert agent.poll() is None, words.read_text()
    yield agent


def is_ready(lab: Lab) -> bool:
    try:
        return fetch(lab.node, ADDRESS, PORT, "/readyz") == b"ready\n"
    except OSError:
        return False
