"""Installed as people do: Helm against a real API server, and what the component for OpenShift adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent.lab import wait_until
from tests.cluster import manifests
from tests.cluster.conftest import need
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import ApiError
from tests.cluster.test_monitoring import ESTABLISHED_SECONDS, is_established, offer
from tests.install.tools import CHART, chart, kustomized, manifest, output
from tests.lab.servers import PROGRAMS

DEFINITIONS = PROGRAMS.parent / "crds/openshift"
NAMESPACE = "dnstrail"
ALL_KINDS = "all,cm,sa,quota,clusterroles,clusterrolebindings"


def helm(cluster: ControlPlane, *arguments: str) -> str:
    return output("helm", *arguments, "--namespace", NAMESPACE, "--kubeconfig", cluster.kubeconfig)


def kubectl(cluster: ControlPlane, *arguments: str) -> str:
    return output("kubectl", "--kubeconfig", cluster.kubeconfig, "--namespace", NAMESPACE, *arguments)


@pytest.fixture
def installed(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    need("helm", "kubectl")
    said = helm(control_plane, "install", "dnstrail", str(CHART), "--create-namespace")
    assert f"kubectl -n {NAMESPACE} rollout status daemonset dnstrail" in said
    yield control_plane
    helm(control_plane, "uninstall", "dnstrail", "--ignore-not-found")


def test_helm_makes_every_object_and_leaves_none(installed: ControlPlane):
    for wanted in chart().values():
        assert installed.get(wanted)["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    helm(installed, "uninstall", "dnstrail")
    left = kubectl(installed, "get", ALL_KINDS, "-l", "app.kubernetes.io/name=dnstrail", "-o", "name")
    assert left == ""


def test_an_upgrade_changes_the_option_and_restarts_the_pods(installed: ControlPlane):
    before = installed.get(chart()["DaemonSet"])
    helm(installed, "upgrade", "dnstrail", str(CHART), "--set", "log=problems")
    assert installed.get(chart()["ConfigMap"])["data"]["DNSTRAIL_LOG"] == "problems"
    assert installed.get(before)["metadata"]["generation"] == before["metadata"]["generation"] + 1


@pytest.fixture
def openshift(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster that knows OpenShift's kind."""
    need("kubectl")
    paths = list(DEFINITIONS.glob("*.yaml"))
    assert paths, "OpenShift's definition is missing: `make cluster` provides it"
    definition = yaml.safe_load(paths[0].read_text())
    control_plane.apply([manifests.namespace(NAMESPACE), definition])
    wait_until(lambda: is_established(control_plane.get(definition)), "OpenShift's kind", seconds=ESTABLISHED_SECONDS)
    yield control_plane
    control_plane.delete(definition)


def test_openshift_takes_what_is_added_to_the_last_field(openshift: ControlPlane, tmp_path: Path):
    found = kustomized(tmp_path, "openshift")
    added = found.keys() - manifest().keys()
    assert "SecurityContextConstraints" in added
    for kind in added:
        assert offer(openshift, found[kind])["metadata"]["name"] == found[kind]["metadata"]["name"]
        with pytest.raises(ApiError, match="unknown field"):
            offer(openshift, found[kind] | {"noSuchField": True})
