"""daemonset.yaml grants what the code says it needs, no more and no less, and the documents say why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import __version__
from agent.capture import privileges
from agent.cli import ENVIRONMENT_PREFIX, TRACE_SOCKET, build_parser
from agent.enrich.kube import rbac
from agent.export.metrics.pages import WAIT_FOR_START_SECONDS, Pages
from agent.export.metrics.sources import Sources
from agent.run import STALL_SECONDS
from agent.serve import DEFAULT_PORT

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "daemonset.yaml").read_text()
OBJECTS: dict[str, dict[str, Any]] = {one["kind"]: one for one in yaml.safe_load_all(TEXT)}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
POD = OBJECTS["DaemonSet"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SECURITY = CONTAINER["securityContext"]
SECURITY_PAGE = (ROOT / "docs/security.md").read_text()
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
FULL_TABLE_SECONDS = 1800
STOP_SECONDS = 2
"""The agent's own promise; see tests/kernel/test_lifecycle.py."""


def comment_before(line: str) -> str:
    """What is written above a line of the manifest."""
    found = re.search(rf"((?:^ *# .*\n)+)^ *{re.escape(line)}$", TEXT, re.MULTILINE)
    assert found is not None, f"nothing above {line}"
    return " ".join(part.strip().removeprefix("# ") for part in found[1].splitlines())


def test_the_capabilities_are_those_that_the_code_asks_for_and_no_others():
    granted = [f"CAP_{name}" for name in SECURITY["capabilities"]["add"]]
    assert granted == [one.name for one in privileges.CAPABILITIES]
    assert SECURITY["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("capability", privileges.CAPABILITIES, ids=lambda one: one.name)
def test_each_capability_says_what_for_and_which_kernel_check_asks(capability: privileges.Capability):
    assert comment_before(f"- {capability.name.removeprefix('CAP_')}") == (
        f"{capability.purpose} ({capability.kernel_check})"
    )
    assert f"`{capability.name}`" in SECURITY_PAGE


def test_the_rights_in_the_cluster_are_those_that_the_code_asks_for_and_no_others():
    assert OBJECTS["ClusterRole"]["rules"] == rbac.cluster_role_rules()
    assert OBJECTS["ClusterRoleBinding"]["roleRef"]["name"] == OBJECTS["ClusterRole"]["metadata"]["name"]
    (subject,) = OBJECTS["ClusterRoleBinding"]["subjects"]
    account = OBJECTS["ServiceAccount"]["metadata"]
    assert (subject["kind"], subject["name"], subject["namespace"]) == (
        "ServiceAccount",
        account["name"],
        account["namespace"],
    )
    assert POD["serviceAccountName"] == account["name"]


@pytest.mark.parametrize("rule", rbac.RULES, ids=lambda one: one.resource)
def test_each_right_says_what_for(rule: rbac.Rule):
    above = TEXT[: TEXT.index(f"    resources: [{rule.resource}]")].splitlines()
    assert above[-2].strip() == f"# {rule.reason}"
    assert f"`{rule.resource}`" in SECURITY_PAGE


def test_the_right_to_write_events_is_granted_only_with_them_and_named():
    assert OBJECTS["ClusterRole"]["rules"] == rbac.cluster_role_rules(rbac.RULES)
    assert "DNSTRAIL_EVENTS" not in OBJECTS["ConfigMap"]["data"]
    (row,) = [line for line in SECURITY_PAGE.splitlines() if line.startswith(f"| `{rbac.EVENTS.resource}` |")]
    assert row.split(" | ")[1:4] == [
        'core (`""`)',
        ", ".join(rbac.EVENTS.verbs),
        f"{rbac.EVENTS.reason}; not required |",
    ]
    component = yaml.safe_load((ROOT / "deploy/kustomize/events/kustomization.yaml").read_text())
    patches = {one["target"]["kind"]: yaml.safe_load(one["patch"]) for one in component["patches"]}
    assert patches == {
        "ConfigMap": [{"op": "add", "path": "/data/DNSTRAIL_EVENTS", "value": "true"}],
        "ClusterRole": [{"op": "add", "path": "/rules/-", "value": rbac.cluster_role_rules([rbac.EVENTS])[0]}],
    }


def test_nothing_else_of_the_node_is_taken():
    assert not SECURITY["privileged"]
    assert not SECURITY["allowPrivilegeEscalation"]
    assert SECURITY["readOnlyRootFilesystem"]
    assert SECURITY["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"hostPID", "hostNetwork"} == {key for key in POD if key.startswith("host")}
    of_node = {volume["name"]: volume["hostPath"]["path"] for volume in POD["volumes"] if "hostPath" in volume}
    assert list(of_node.values()) == ["/sys/fs/cgroup"]
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"] if mount["name"] in of_node)
    for word in ("hostPID", "hostNetwork", "/sys/fs/cgroup", "RuntimeDefault", "Unconfined"):
        assert word in SECURITY_PAGE


def test_the_only_place_to_write_is_memory_for_the_socket_that_readers_use():
    places = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")}
    assert list(places) == [str(Path(TRACE_SOCKET).parent)]
    volumes = {volume.pop("name"): volume for volume in map(dict, POD["volumes"])}
    assert volumes[places["/run/dnstrail"]] == {"emptyDir": {"medium": "Memory", "sizeLimit": "64Ki"}}
    assert "/run/dnstrail" in SECURITY_PAGE


def test_every_object_is_in_the_one_namespace_and_bears_the_one_label():
    (name,) = {OBJECTS["Namespace"]["metadata"]["name"]}
    for kind, one in OBJECTS.items():
        assert one["metadata"].get("namespace") == (None if kind in CLUSTER_WIDE else name), kind
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "dnstrail", kind
    template, selector = OBJECTS["DaemonSet"]["spec"]["template"], OBJECTS["DaemonSet"]["spec"]["selector"]
    assert selector["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_every_option_in_the_configmap_is_one_that_run_has_and_understands(monkeypatch: pytest.MonkeyPatch):
    options = OBJECTS["ConfigMap"]["data"]
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    parsed = vars(build_parser().parse_args(CONTAINER["args"]))
    for name, value in options.items():
        assert str(parsed[name.removeprefix(ENVIRONMENT_PREFIX).lower()]) == value
    (source,) = CONTAINER["envFrom"]
    assert source["configMapRef"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]


def test_the_node_is_called_as_the_cluster_calls_it(monkeypatch: pytest.MonkeyPatch):
    (variable,) = CONTAINER["env"]
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    monkeypatch.setenv(variable["name"], "the-node")
    assert build_parser().parse_args(CONTAINER["args"]).node == "the-node"


def test_the_port_and_the_probes_are_what_the_agent_serves():
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == DEFAULT_PORT
    pages = Pages(Sources(None)).by_path
    paths = {kind: CONTAINER[kind]["httpGet"] for kind in PROBES}
    assert all(one["port"] == port["name"] and one["path"] in pages for one in paths.values())
    # That Kubernetes cannot be asked is a reason not to be ready, and none to be restarted.
    assert {kind: one["path"] for kind, one in paths.items()} == {
        "startupProbe": "/startz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }


def test_the_startup_probe_waits_longer_than_the_agent_lets_it_wait():
    assert CONTAINER["startupProbe"]["timeoutSeconds"] > WAIT_FOR_START_SECONDS


@pytest.mark.parametrize("kind", ["startupProbe", "livenessProbe"])
def test_a_full_connection_table_that_keeps_probes_out_does_not_restart_it(kind: str):
    probe = CONTAINER[kind]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= FULL_TABLE_SECONDS > 10 * STALL_SECONDS


def test_every_node_gets_one_and_it_has_time_to_end():
    assert POD["tolerations"] == [{"operator": "Exists"}]
    assert POD["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert POD["dnsPolicy"] == "Default"
    assert POD["terminationGracePeriodSeconds"] >= 2 * STOP_SECONDS
    assert (
        POD["priorityClassName"] in OBJECTS["ResourceQuota"]["spec"]["scopeSelector"]["matchExpressions"][0]["values"]
    )
    assert "cpu" not in CONTAINER["resources"]["limits"]


def test_the_image_is_of_this_version():
    assert CONTAINER["image"].rpartition(":")[2] == __version__


def test_it_is_the_base_of_overlays():
    kustomization = yaml.safe_load((ROOT / "kustomization.yaml").read_text())
    assert kustomization["resources"] == ["daemonset.yaml"]
