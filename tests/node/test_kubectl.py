"""`kubectl dnstrail` with the real kubectl, API server and kubelet, while DNS of the node breaks."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

from agent.lab.processes import wait_until
from tests.node import faults, machine
from tests.node.node import NAMESPACE, ROOT, SHOP, Node
from tests.node.programs import KUBECTL, path_of

PLUGIN = ROOT / "deploy/kubectl/kubectl-dnstrail"
INCIDENT_SECONDS = 120.0
END_SECONDS = 30.0
TRACE_SECONDS = 60


class Plugin(NamedTuple):
    """The plugin, run on the node by its administrator."""

    node: Node

    def argv(self, *arguments: str) -> list[str]:
        """Without a dnstrail in PATH, as on most people's machines."""
        path = f"PATH={Path(path_of(KUBECTL)).parent}:/usr/bin:/bin"
        kubeconfig = f"--kubeconfig={self.node.credentials.kubeconfig('admin')}"
        return ["env", path, sys.executable, str(PLUGIN), *arguments, kubeconfig]

    def run(self, *arguments: str) -> CompletedProcess[str]:
        """Run it to its end."""
        return self.node.machine.run(*self.argv(*arguments), check=False, seconds=TRACE_SECONDS + 30)

    def shows(self, text: str, *arguments: str) -> str:
        """What it prints; it has to succeed, and the text to be in it."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
        return done.stdout


@pytest.fixture
def plugin(node: Node) -> Plugin:
    return Plugin(node)


@pytest.fixture(scope="module")
def broken_pod(node: Node) -> Iterator[str]:
    """A pod whose queries are dropped, once that is an incident."""
    pods = node.get("pods", "-n", SHOP, "--selector=app=cart")["items"]
    name: str = pods[0]["metadata"]["name"]
    with faults.dropping_queries_of(node, name):
        wait_until(
            lambda: "PolicyDrop" in Plugin(node).run("incidents", "-n", SHOP, "--pod", name).stdout,
            "the incident",
            seconds=INCIDENT_SECONDS,
        )
        yield name


def test_the_incident_of_a_pod_is_told_by_the_agent_of_its_node(plugin: Plugin, broken_pod: str):
    (heading, *rows) = plugin.shows("PolicyDrop", "incidents", "-n", SHOP, "--pod", broken_pod).splitlines()
    assert heading.split()[:3] == ["STATE", "CAUSE", "SINCE"]
    (row,) = [row for row in rows if "PolicyDrop" in row]
    assert row.startswith("open")
    assert f"{SHOP}/Deployment/cart" in row
    assert "kube-system/kube-dns" in row


def test_lookups_of_a_pod_are_followed_while_they_fail(plugin: Plugin, broken_pod: str):
    filters = ("--pod", broken_pod, "--cause", "PolicyDrop", "--count", "1", "--duration", str(TRACE_SECONDS))
    heading, row = plugin.shows("PolicyDrop", "trace", "-n", SHOP, *filters).splitlines()
    assert heading.split()[:2] == ["TIME", "CLIENT"]
    assert f"{SHOP}/{broken_pod}" in row


def test_its_problems_are_told_as_stories_by_an_agents_container(plugin: Plugin, broken_pod: str):
    told = plugin.shows("PolicyDrop", "explain", "-n", SHOP, "--pod", broken_pod, "--cause", "PolicyDrop")
    assert told.startswith(f"PolicyDrop on {machine.NAME}: ")
    assert f"in pod {SHOP}/{broken_pod}" in told


def test_who_has_most_trouble_is_shown_of_now_and_of_the_log(plugin: Plugin, broken_pod: str):
    now = plugin.shows("PolicyDrop", "top", "--once", "-n", SHOP, "--all-nodes")
    assert now.startswith(f"dnstrail top  {machine.NAME}")
    logged = plugin.shows("PolicyDrop", "top", "--since", "10m", "-n", SHOP, "--pod", broken_pod)
    assert f"{SHOP}/Deployment/cart" in logged


def test_what_a_node_allows_is_said(plugin: Plugin):
    plugin.shows("Capture is possible here", "check", "--node", machine.NAME)


def test_that_the_page_is_off_is_said_with_what_turns_it_on(plugin: Plugin):
    done = plugin.run("page")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"kubectl -n {NAMESPACE} set env daemonset/dnstrail DNSTRAIL_PAGE=redacted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("trace", "--as", "ann"), 1, 'the cluster does not allow you to do this: pods is forbidden: User "ann"'),
        (("trace", "--node", "node-9"), 1, "no agent runs on node-9; agents run on node-1"),
        (("trace", "-n", SHOP, "--pod", "nobody"), 1, f"there is no pod nobody in namespace {SHOP}"),
        (("explain", "--agents-in", SHOP), 1, f"no agent was found in namespace {SHOP}"),
        (("check", "--context", "elsewhere"), 2, "kubectl cannot use its configuration: "),
        (("trace", "--type", "NOTHING"), 2, "argument --type"),
    ],
)
def test_what_the_real_kubectl_refuses_is_one_clear_sentence(
    plugin: Plugin, arguments: tuple[str, ...], code: int, words: str
):
    done = plugin.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_leaves_nothing_running_in_the_agents_container(node: Node, plugin: Plugin, tmp_path: Path):
    before = node.machine.pids("dnstrail")
    with (tmp_path / "said").open("w+") as said:
        started = node.machine.popen(plugin.argv("trace", "--name", "nobody.asks.test."), said)
        wait_until(lambda: len(node.machine.pids("dnstrail")) > len(before), "trace", seconds=END_SECONDS)
        os.kill(machine.child_of(started.pid), signal.SIGINT)
        started.wait(END_SECONDS)
        wait_until(lambda: node.machine.pids("dnstrail") == before, "trace to be gone", seconds=END_SECONDS)
