"""daemonset.yaml in a real cluster: as users apply it, what admission says of its pods, and what its account does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.enrich.kube.access import InCluster
from agent.enrich.kube.live import LiveCluster
from agent.lab.processes import wait_until
from tests.cluster import manifests, servers
from tests.cluster.conftest import need
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import APPLY, ApiError, Manifest
from tests.lab.servers import find_program

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "daemonset.yaml"
NAMESPACE, NAME = "dnstrail", "dnstrail"
USER = f"system:serviceaccount:{NAMESPACE}:{NAME}"
KUBECTL = "kubectl"
KUBECTL_SECONDS = 60
KNOWN_SECONDS = 30.0
FORBIDDEN = 403
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
}
OVERLAY: Manifest = {
    "namespace": "observability",
    "resources": ["base"],
    "images": [{"name": "dnstrail", "newName": "registry.example/dnstrail", "newTag": "1.2.3"}],
    "patches": [
        {
            "target": {"kind": "ConfigMap"},
            "patch": json.dumps([{"op": "add", "path": "/data/DNSTRAIL_LOG", "value": "none"}]),
        }
    ],
}
Request = tuple[str, str, str]
"""API group, resource and verb."""


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "log"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, audit_log: Path) -> Iterator[ControlPlane]:
    """One that writes down what dnstrail's account asks for."""
    need(servers.PROGRAM, KUBECTL)
    policy = audit_log.with_name("policy.yaml")
    policy.write_text(json.dumps(AUDIT_POLICY))
    options = (f"--audit-policy-file={policy}", f"--audit-log-path={audit_log}", "--audit-log-mode=blocking-strict")
    with ControlPlane(tmp_path_factory.mktemp("cluster"), *options) as running:
        yield running


@pytest.fixture
def applied(cluster: ControlPlane) -> Iterator[ControlPlane]:
    kubectl(cluster, "apply", "-f", str(MANIFEST))
    yield cluster
    kubectl(cluster, "delete", "--ignore-not-found", "--wait=false", "-f", str(MANIFEST))
    finish_namespace(cluster)


def kubectl(cluster: ControlPlane, *arguments: str) -> str:
    command = [str(find_program(KUBECTL)), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=KUBECTL_SECONDS)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def finish_namespace(cluster: ControlPlane) -> None:
    """What kube-controller-manager does with a namespace that is deleted, once nothing is in it."""
    held = next((one for one in cluster.list("v1", "Namespace")["items"] if one["metadata"]["name"] == NAMESPACE), None)
    if held is not None:
        assert held["metadata"].get("deletionTimestamp")
        path = f"/api/v1/namespaces/{NAMESPACE}/finalize"
        cluster.request("PUT", path, {"apiVersion": "v1", "kind": "Namespace", **held, "spec": {"finalizers": []}})


def objects() -> list[Manifest]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def of_kind(kind: str) -> Manifest:
    return next(one for one in objects() if one["kind"] == kind)


def pod(namespace: str) -> Manifest:
    """The pod that the DaemonSet controller would make."""
    template = of_kind("DaemonSet")["spec"]["template"]
    metadata = {**template["metadata"], "name": "dnstrail-x7k2p", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**template["spec"], "nodeName": "node-a"}}


def dry_run(cluster: ControlPlane, one: Manifest) -> Manifest:
    """Ask for it as if it was to be made; any field that the API does not know is an error."""
    query = "fieldManager=tests&force=true&dryRun=All&fieldValidation=Strict"
    return cluster.request("PATCH", f"{cluster.path_of(one)}?{query}", one, APPLY)


def test_the_api_server_takes_every_object_as_it_is_written(cluster: ControlPlane):
    everything = objects()
    cluster.apply([everything[0]])
    for one in everything:
        held = dry_run(cluster, one)
        assert held["metadata"]["name"] == one["metadata"]["name"]
        if one["kind"] == "DaemonSet":
            assert subset(one["spec"], held["spec"])
    cluster.delete(everything[0])
    finish_namespace(cluster)


def subset(asked: Any, held: Any) -> bool:  # noqa: ANN401  JSON
    """Whether all that was asked for is held: what the API server does not understand it would drop."""
    if isinstance(asked, dict):
        return all(key in held and subset(value, held[key]) for key, value in asked.items())
    if isinstance(asked, list):
        return len(asked) == len(held) and all(map(subset, asked, held))
    return bool(asked == held)


def test_kubectl_apply_takes_it_and_kubectl_delete_leaves_nothing(cluster: ControlPlane):
    said = kubectl(cluster, "apply", "-f", str(MANIFEST))
    assert said.count(" created") == len(objects())
    assert kubectl(cluster, "apply", "-f", str(MANIFEST)).count(" unchanged") == len(objects())
    kubectl(cluster, "delete", "--wait=false", "-f", str(MANIFEST))
    finish_namespace(cluster)
    for one in objects():
        with pytest.raises(ApiError, match="404"):
            cluster.get(one)
    left = kubectl(
        cluster,
        "get",
        "all,cm,sa,quota,clusterroles,clusterrolebindings",
        "-A",
        "-l",
        f"app.kubernetes.io/name={NAME}",
        "-o",
        "name",
    )
    assert left == ""


def test_it_is_a_base_for_kustomize(cluster: ControlPlane, tmp_path: Path):
    (tmp_path / "base").mkdir()
    for name in ("daemonset.yaml", "kustomization.yaml"):
        (tmp_path / "base" / name).write_text((ROOT / name).read_text())
    (tmp_path / "kustomization.yaml").write_text(json.dumps(OVERLAY))
    built = {one["kind"]: one for one in yaml.safe_load_all(kubectl(cluster, "kustomize", str(tmp_path)))}
    assert len(built) == len(objects())
    assert built["DaemonSet"]["metadata"]["namespace"] == "observability"
    assert built["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/dnstrail:1.2.3"
    assert built["ClusterRoleBinding"]["subjects"][0]["namespace"] == "observability"
    assert built["ConfigMap"]["data"]["DNSTRAIL_LOG"] == "none"
    made = kubectl(cluster, "apply", "--dry-run=client", "-k", str(tmp_path))
    assert made.count("(dry run)") == len(objects())


def test_its_pods_are_admitted_in_its_namespace_and_would_not_be_in_a_restricted_one(applied: ControlPlane):
    quota = of_kind("ResourceQuota")
    # What kube-controller-manager counts; without it no pod of the class is admitted.
    status = {"status": {"hard": {"pods": quota["spec"]["hard"]["pods"]}, "used": {"pods": "0"}}}
    applied.patch(quota, status, "status")
    dry_run(applied, pod(NAMESPACE))
    strict = manifests.namespace("strict")
    strict["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "baseline"}
    applied.apply([strict])
    with pytest.raises(ApiError, match="violates PodSecurity"):
        dry_run(applied, pod("strict"))


def test_its_account_does_exactly_what_its_role_allows(applied: ControlPlane, audit_log: Path, tmp_path: Path):
    """Whatever is allowed and not asked for, or asked for and not allowed, is written in the API server's audit log."""
    account = applied.project_token(tmp_path / "account", NAMESPACE, NAME)
    applied.apply(
        [
            manifests.namespace("shop"),
            manifests.node(),
            manifests.pod("shop", "import-1", ["10.244.1.10"], owner="Job/import-29382"),
            manifests.service("kube-system", "kube-dns", ("10.96.0.10",), ports=manifests.DNS_PORTS),
        ]
    )
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(applied.port)}
    live = LiveCluster(InCluster(account, environment), manifests.NODE)
    live.start()
    live.expect_clients_from_elsewhere()
    allowed = granted()

    def has_done_it_all() -> bool:
        live.poll()
        return live.is_synced and {request for request, _ in asked(audit_log)} >= allowed

    try:
        wait_until(has_done_it_all, "dnstrail to ask for all that it may", seconds=KNOWN_SECONDS)
    finally:
        live.stop()
    requests = asked(audit_log)
    assert {request for request, _ in requests} == allowed
    assert all(code != FORBIDDEN for _, code in requests)


def granted() -> set[Request]:
    return {
        (group, resource, verb)
        for rule in of_kind("ClusterRole")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(audit_log: Path) -> list[tuple[Request, int]]:
    """What the account asked for so far, and the status of each answer."""
    text = audit_log.read_text() if audit_log.exists() else ""
    events = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [
        (
            (one["objectRef"].get("apiGroup", ""), one["objectRef"]["resource"], one["verb"]),
            one["responseStatus"]["code"],
        )
        for one in events
    ]
