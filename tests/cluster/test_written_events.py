"""Kubernetes Events of incidents in a real cluster, with the rights of the manifest and of its component for Events.

What it installs remains, as accounts and rights do: it comes behind `test_install`, which installs the same by Helm.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.context.cluster import Pod
from agent.context.who import Who
from agent.enrich.kube.access import InCluster
from agent.enrich.kube.events import EventWriter
from agent.enrich.kube.live import LiveCluster
from agent.enrich.kube.probe import may_write_events
from agent.explain.incidents import Incidents
from agent.explain.rules import explain
from agent.export.clock import wall_offset_ns
from agent.export.event_teller import PACE_NS, EventTeller
from agent.export.line import Context
from agent.lab.processes import wait_until
from tests.cluster import manifests
from tests.cluster.conftest import need
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import Manifest
from tests.install.tools import kustomized, manifest
from tests.lab.servers import find_program
from tests.unit.conftest import SECOND, Lookup, World, dropped, packed

pytestmark = pytest.mark.timeout(300)

KUBECTL = "kubectl"
ACCOUNT = "dnstrail"
ADDRESS = "10.244.1.10"
ENOUGH = 12
KNOWN_SECONDS = 30.0
Right = Callable[[bool], InCluster]


@pytest.fixture
def right(control_plane: ControlPlane, tmp_path: Path) -> Right:
    """Gives the account what the manifest gives it, with the component for Events or without."""
    need(KUBECTL)

    def give(with_events: bool) -> InCluster:  # noqa: FBT001  as called
        objects = kustomized(tmp_path, "events") if with_events else manifest()
        kinds = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding")
        control_plane.apply([objects[kind] for kind in kinds])
        account = control_plane.project_token(tmp_path / "account", ACCOUNT, ACCOUNT)
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(control_plane.port)}
        access = InCluster(account, environment)
        wait_until(
            lambda: (may_write_events(access) is None) == with_events, "the rights to be known", seconds=KNOWN_SECONDS
        )
        return access

    return give


class Node:
    """An agent without its kernel: lookups of a pod that a policy stops, and the Events made of them."""

    def __init__(self, live: LiveCluster, writer: EventWriter) -> None:
        self.live, self.writer = live, writer
        self.now = time.monotonic_ns() - PACE_NS - 2 * SECOND
        self._incidents = Incidents()
        self._context = Context(manifests.NODE, wall_offset_ns())
        self._teller = EventTeller(writer, manifests.NODE, live.pods_here)

    def fail(self, pod: Pod, lookups: int) -> None:
        outcome = World().outcome(dropped(Lookup(client=(ADDRESS, 44525)).query(), 2, location="nft_do_chain"))
        for _ in range(lookups):
            outcome.session.first_ns = self.now
            self._incidents.note(outcome, explain(outcome), lambda: Who(client=pod), self.now)
        for _, account in self._incidents.due(self.now):
            self._teller.tell(account, self._context, self.now)


@contextmanager
def agent_of(access: InCluster) -> Iterator[Node]:
    live = LiveCluster(access, manifests.NODE, events=True)
    live.start()
    try:
        assert live.events is not None
        wait_until(lambda: live.poll() or live.is_synced, "the cluster to be known", seconds=KNOWN_SECONDS)
        yield Node(live, live.events)
    finally:
        live.stop()


@pytest.fixture
def pod_of(control_plane: ControlPlane) -> Callable[[Node], Pod]:
    control_plane.apply(
        [
            manifests.namespace("shop"),
            manifests.node(),
            manifests.pod("shop", "cart-1", [ADDRESS]),
            manifests.service("kube-system", "kube-dns", ("10.96.0.10",), ports=manifests.DNS_PORTS),
        ]
    )

    def find(node: Node) -> Pod:
        found = node.live.pod_at(packed(ADDRESS), time.time_ns())
        assert found is not None
        return found

    return find


def events(control_plane: ControlPlane, kind: str) -> list[Manifest]:
    items = control_plane.list("v1", "Event")["items"]
    return [one for one in items if one["involvedObject"]["kind"] == kind]


def described(control_plane: ControlPlane, *what: str) -> str:
    command = [str(find_program(KUBECTL)), "--kubeconfig", str(control_plane.kubeconfig), "describe", *what]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_kubectl_describe_says_why_the_lookups_of_a_pod_fail_and_is_told_of_the_incident_as_it_goes_on(
    control_plane: ControlPlane, right: Right, pod_of: Callable[[Node], Pod]
):
    with agent_of(right(True)) as node:
        pod, results = pod_of(node), node.writer.health.results
        node.fail(pod, ENOUGH)
        wait_until(lambda: results["created"] == 2, "the Events to be made", seconds=KNOWN_SECONDS)
        (made,), (of_node,) = events(control_plane, "Pod"), events(control_plane, "Node")
        assert made["involvedObject"]["uid"] == pod.uid
        assert (made["type"], made["reason"], made["count"]) == ("Warning", "PolicyDrop", ENOUGH)
        for what in (("pod", "-n", "shop", "cart-1"), ("node", manifests.NODE)):
            text = described(control_plane, *what)
            assert "PolicyDrop" in text
            assert "dropped the query" in text
        node.now += PACE_NS + SECOND
        node.fail(pod, 1)
        wait_until(lambda: results["updated"] == 2, "the Events to be updated", seconds=KNOWN_SECONDS)
        (updated,) = events(control_plane, "Pod")
        assert updated["metadata"]["uid"] == made["metadata"]["uid"]
        assert updated["count"] == ENOUGH + 1
        assert updated["lastTimestamp"] > made["lastTimestamp"]
        assert f"{ENOUGH + 1} DNS lookups of this pod" in updated["message"]
        assert "(x13 over " in described(control_plane, "pod", "-n", "shop", "cart-1")
        assert of_node["reportingComponent"] == "dnstrail"
        assert not node.writer.health.errors


def test_without_the_right_no_event_is_made_and_the_failure_is_counted(
    control_plane: ControlPlane, right: Right, pod_of: Callable[[Node], Pod]
):
    with agent_of(right(False)) as node:
        node.fail(pod_of(node), ENOUGH)
        health = node.writer.health
        wait_until(lambda: health.results["failed"] == 2, "the Events to be refused", seconds=KNOWN_SECONDS)
        assert health.errors == {"Forbidden": 2}
        assert node.live.is_synced
        assert events(control_plane, "Pod") == []
