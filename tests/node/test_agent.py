"""dnstrail's own life on a real node: installed, asked, cut off from the API server, killed, upgraded, uninstalled."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agent.lab.processes import wait_until
from tests.node import configuration, machine
from tests.node.node import NAMESPACE, SETTINGS, SHOP, Node, now

EVENT_SECONDS = 60.0
FORBIDDEN = "the API server forbids to read"
CHECK = ("-n", NAMESPACE, "exec", "daemonset/dnstrail", "--", "dnstrail", "check")


@contextmanager
def api_server_away(node: Node) -> Iterator[None]:
    node.apiserver.stop(signal.SIGKILL)
    try:
        yield
    finally:
        node.apiserver.start()
        node.wait_for_api()


@contextmanager
def without_rights(node: Node) -> Iterator[None]:
    """dnstrail started anew, while its account may not read anything."""
    node.kubectl("delete", "clusterrolebinding", "dnstrail")
    node.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/dnstrail")
    try:
        yield
    finally:
        node.apply_manifest(SETTINGS)


def unhealthy(node: Node) -> list[str]:
    """What events say of probes of dnstrail's pods that failed."""
    events = node.get("events", "-n", NAMESPACE, "--field-selector=reason=Unhealthy")["items"]
    return [event["message"] for event in events]


def status_of(pod: dict[str, Any]) -> dict[str, Any]:
    (status,) = pod["status"]["containerStatuses"]
    return dict(status)


def test_a_certificate_that_strict_verification_refuses_keeps_nobody_from_being_ready(node: Node):
    strict = ssl.create_default_context(cafile=str(node.credentials.ca))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(ssl.SSLCertVerificationError):
        node.machine.shake_hands(configuration.API_PORT, strict)
    assert status_of(node.agent_pod())["ready"]


def test_to_install_it_leaves_no_event_of_a_failing_probe(node: Node):
    assert unhealthy(node) == []


def test_a_node_that_is_a_container_is_not_taken_for_a_container_without_host_pid(node: Node):
    said = node.kubectl(*CHECK)
    assert "shows only the processes of this container" not in said
    assert "not ready" not in said


def test_what_an_empty_variable_selects_is_all(node: Node):
    assert SETTINGS["DNSTRAIL_POD"] == ""
    since = now()
    node.wait_for_line(lambda line: line["Client"]["Pod"] == "db-0", "a line of one pod", since)
    node.wait_for_line(lambda line: line["Client"]["Pod"] == "tcp", "a line of another", since)


def test_without_the_api_server_it_goes_on_names_what_it_knows_and_says_why(node: Node):
    since = now()
    restarts = status_of(node.agent_pod())["restartCount"]
    with api_server_away(node):
        wait_until(lambda: "cannot be reached" in node.written(since), "its words", seconds=EVENT_SECONDS)
        since_away = now()
        wait_until(lambda: '"Pod":"db-0"' in node.written(since_away), "a line with names", seconds=EVENT_SECONDS)
    wait_until(lambda: "the API server cannot be reached: over" in node.said(since), "its end", seconds=EVENT_SECONDS)
    assert (status := status_of(node.agent_pod()))["ready"]
    assert status["restartCount"] == restarts


def test_why_it_is_not_ready_is_in_its_log_and_in_check_and_over_when_the_reason_is(node: Node):
    since = now()
    with without_rights(node):
        wait_until(lambda: FORBIDDEN in node.said(since), "its words", seconds=EVENT_SECONDS)
        assert "not ready: Kubernetes: " in node.said(since)
        assert not status_of(node.agent_pod())["ready"]
        assert FORBIDDEN in node.kubectl(*CHECK, check=False)
    node.wait_rolled_out("daemonset/dnstrail", NAMESPACE)
    wait_until(lambda: "ready after" in node.said(since), "the end of it", seconds=EVENT_SECONDS)


def test_killed_it_starts_again_and_no_looked_up_name_gets_into_its_pods_status(node: Node):
    before = status_of(node.agent_pod())["restartCount"]
    since = now()
    node.wait_for_line(lambda line: line["Client"]["Pod"] == "db-0", "a line that must not get there", since)
    for pid in node.machine.pids("dnstrail"):
        os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        status = status_of(node.agent_pod())
        return status["ready"] and status["restartCount"] > before

    wait_until(is_back, "dnstrail to be ready again", seconds=EVENT_SECONDS)
    pod = node.agent_pod()
    last = status_of(pod)["lastState"]["terminated"]
    assert last["exitCode"] == 128 + signal.SIGKILL
    assert not last.get("message")
    assert "cluster.local." not in str(pod["status"])
    node.wait_for_line(lambda line: line["Client"]["Pod"] == "db-0", "a line after that", now())


def test_an_upgrade_by_rollout_takes_the_new_settings_and_leaves_no_event_of_a_failing_probe(node: Node):
    known = set(unhealthy(node))
    node.install({**SETTINGS, "DNSTRAIL_NAMESPACE": ""})
    node.kubectl("-n", NAMESPACE, "rollout", "restart", "daemonset/dnstrail")
    node.wait_rolled_out("daemonset/dnstrail", NAMESPACE)
    line = node.wait_for_line(
        lambda line: line["Client"]["Address"] == machine.ADDRESS and line["Client"]["Process"] == "ask",
        "the line of a pod in the node's network",
        now(),
    )
    # Where the node is a container, a process's number says nothing, and an address of the node is of nobody alone.
    assert (line["Client"]["Pod"], line["Client"]["Namespace"]) == (None, None)
    assert line["Server"]["Service"] == "kube-system/kube-dns"
    assert set(unhealthy(node)) == known
    node.install()


def test_uninstalled_it_leaves_nothing(node: Node):
    node.uninstall()
    left = node.kubectl("get", "namespaces,clusterroles,clusterrolebindings", "-o", "name").splitlines()
    assert [name for name in left if "dnstrail" in name] == []
    assert node.machine.pids("dnstrail") == []
    node.install()
    since = now()
    node.wait_for_line(lambda line: line["Client"]["Namespace"] == SHOP, "lines again", since)
