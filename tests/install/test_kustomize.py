"""The kustomize components change what their platforms need, and nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from agent import __version__
from agent.enrich.kube.rbac import EVENTS, RULES, cluster_role_rules
from tests.install.tools import COMPONENTS, ROOT, by_kind, changes, kustomized, manifest, output

SECURITY = "DaemonSet.spec.template.spec.containers.0.securityContext"
UNCONFINED = {f"{SECURITY}.seccompProfile.type": "Unconfined"}
ADDED = ("SecurityContextConstraints", "Role", "RoleBinding")
NAMESPACE = "observability"


def test_without_seccomp_and_otherwise_the_manifest(tmp_path: Path):
    assert changes(manifest(), kustomized(tmp_path, "unconfined-seccomp")) == UNCONFINED


def test_events_come_with_their_right_and_otherwise_the_manifest(tmp_path: Path):
    assert changes(manifest(), kustomized(tmp_path, "events")) == {
        "ClusterRole.rules": cluster_role_rules((*RULES, EVENTS)),
        "ConfigMap.data.DNSTRAIL_EVENTS": "true",
    }


def test_openshift_adds_the_constraints_and_who_may_use_them(tmp_path: Path):
    found = kustomized(tmp_path, "openshift")
    assert changes(manifest(), {kind: found[kind] for kind in manifest()}) == {
        **UNCONFINED,
        "Namespace.metadata.annotations": {"openshift.io/node-selector": ""},
    }
    assert found.keys() - manifest().keys() == set(ADDED)


def test_the_overlay_of_the_documents_does_what_it_says(tmp_path: Path):
    page = (ROOT / "docs/install.md").read_text()
    (overlay,) = re.findall(r"^```yaml\n(# kustomization.yaml;.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(overlay)
    shutil.copytree(COMPONENTS, tmp_path / "dnstrail/deploy/kustomize")
    for name in ("daemonset.yaml", "kustomization.yaml"):
        shutil.copy(ROOT / name, tmp_path / "dnstrail")
    found = by_kind(output("kubectl", "kustomize", tmp_path))
    plain = kustomized(tmp_path, "openshift")
    assert changes(plain, found) == {
        "DaemonSet.spec.template.spec.containers.0.image": f"REGISTRY/dnstrail:{__version__}",
        "ConfigMap.data.DNSTRAIL_LOG": "problems",
    }


def test_the_constraints_allow_what_the_pod_asks_for_and_no_more(tmp_path: Path):
    found = kustomized(tmp_path, "openshift")
    pod, constraints = found["DaemonSet"]["spec"]["template"]["spec"], found["SecurityContextConstraints"]
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert constraints["allowedCapabilities"] == security["capabilities"]["add"]
    assert constraints["requiredDropCapabilities"] == security["capabilities"]["drop"]
    assert constraints["allowPrivilegedContainer"] == security["privileged"]
    assert constraints["allowPrivilegeEscalation"] == security["allowPrivilegeEscalation"]
    assert constraints["readOnlyRootFilesystem"] == security["readOnlyRootFilesystem"]
    assert constraints["seccompProfiles"] == [security["seccompProfile"]["type"].lower()]
    for allowed, field in (("HostPID", "hostPID"), ("HostNetwork", "hostNetwork"), ("HostIPC", "hostIPC")):
        assert constraints[f"allow{allowed}"] == pod.get(field, False)
    volumes = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert set(constraints["volumes"]) == volumes | {"projected"}


@pytest.mark.parametrize("namespace", ["dnstrail", NAMESPACE])
def test_only_the_agents_account_may_use_the_constraints(tmp_path: Path, namespace: str):
    found = kustomized(tmp_path, "openshift", namespace=namespace)
    (rule,) = found["Role"]["rules"]
    constraints = found["SecurityContextConstraints"]
    assert rule == {
        "apiGroups": [constraints["apiVersion"].partition("/")[0]],
        "resources": [constraints["kind"].lower()],
        "resourceNames": [constraints["metadata"]["name"]],
        "verbs": ["use"],
    }
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert found["RoleBinding"]["subjects"] == found["ClusterRoleBinding"]["subjects"]
    places = {found[kind]["metadata"]["namespace"] for kind in ("DaemonSet", "ServiceAccount", "Role", "RoleBinding")}
    assert places == {namespace}
    assert not {"users", "groups"} & constraints.keys()
