"""The Helm chart is daemonset.yaml; each value changes what it says, and a wrong one is refused with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import ANY

import pytest

from agent import __version__
from agent.cli import ENVIRONMENT_PREFIX, build_parser
from agent.enrich.kube.rbac import EVENTS, RULES, cluster_role_rules
from agent.serve import DEFAULT_PORT
from tests.install.tools import CHART, ROOT, Objects, by_kind, changes, chart, manifest, output, run, values

POD = "DaemonSet.spec.template.spec"
CONTAINER = f"{POD}.containers.0"
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
ANNOTATION = "DaemonSet.spec.template.metadata.annotations.dnstrail/options"
DIGEST = f"sha256:{'4f' * 32}"
RESTARTS = {ANNOTATION: ANY}
"""Options are read when a pod starts: where they change, so does the pod."""
SHIPPED_ENVIRONMENT = manifest()["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["env"]


class Case(NamedTuple):
    """A value that is set, and all that it changes."""

    value: str
    to: Any
    changes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.value}={json.dumps(self.to)}"


def monitoring(name: str) -> dict[str, Any]:
    (found,) = by_kind((ROOT / "deploy/prometheus" / name).read_text()).values()
    return found


def option(name: str, value: str) -> dict[str, Any]:
    return {f"ConfigMap.data.{ENVIRONMENT_PREFIX}{name}": value, **RESTARTS}


def served_at(host: str, address: str) -> dict[str, Any]:
    probes = {f"{CONTAINER}.{probe}.httpGet.host": host for probe in PROBES}
    return {**probes, **option("METRICS_ADDRESS", address)}


CASES = (
    Case("image.repository", "registry.example/dns", {f"{CONTAINER}.image": f"registry.example/dns:{__version__}"}),
    Case("image.tag", "1.2.3", {f"{CONTAINER}.image": "dnstrail:1.2.3"}),
    Case("image.digest", DIGEST, {f"{CONTAINER}.image": f"dnstrail@{DIGEST}"}),
    Case("image.pullPolicy", "Always", {f"{CONTAINER}.imagePullPolicy": "Always"}),
    Case("image.pullSecrets", [{"name": "registry"}], {f"{POD}.imagePullSecrets": [{"name": "registry"}]}),
    Case("log", "problems", option("LOG", "problems")),
    Case("ports", [53, 5353], option("PORTS", "53,5353")),
    Case("metrics.port", 9000, {f"{CONTAINER}.ports.0.containerPort": 9000, **option("METRICS_ADDRESS", ":9000")}),
    Case("metrics.address", "127.0.0.1", served_at("127.0.0.1", f"127.0.0.1:{DEFAULT_PORT}")),
    Case("metrics.address", "::1", served_at("::1", f"[::1]:{DEFAULT_PORT}")),
    Case(
        "kubernetes.enabled",
        False,
        {
            "ClusterRole": None,
            "ClusterRoleBinding": None,
            f"{POD}.automountServiceAccountToken": False,
            **option("KUBERNETES", "off"),
        },
    ),
    Case(
        "events.enabled",
        True,
        {"ClusterRole.rules": cluster_role_rules((*RULES, EVENTS)), **option("EVENTS", "true")},
    ),
    Case("serviceAccount.create", False, {"ServiceAccount": None}),
    Case(
        "serviceAccount.name",
        "watcher",
        {
            "ServiceAccount.metadata.name": "watcher",
            "ClusterRoleBinding.subjects.0.name": "watcher",
            f"{POD}.serviceAccountName": "watcher",
        },
    ),
    Case("namespace.create", True, {"Namespace": manifest()["Namespace"]}),
    Case("nodeSelector", {"pool": "a"}, {f"{POD}.nodeSelector.pool": "a"}),
    Case("tolerations", [], {f"{POD}.tolerations": []}),
    Case(
        "priorityClassName",
        "mine",
        {
            f"{POD}.priorityClassName": "mine",
            "ResourceQuota.spec.scopeSelector.matchExpressions.0.values.0": "mine",
        },
    ),
    Case("priorityClassName", "", {f"{POD}.priorityClassName": None, "ResourceQuota": None}),
    Case("resources.requests", {"cpu": "100m"}, {f"{CONTAINER}.resources.requests.cpu": "100m"}),
    Case("resources.limits", {"memory": "1Gi"}, {f"{CONTAINER}.resources.limits.memory": "1Gi"}),
    Case("seccompProfile", "Unconfined", {f"{CONTAINER}.securityContext.seccompProfile.type": "Unconfined"}),
    Case("extraArgs", ["--redact"], {f"{CONTAINER}.args": ["run", "--redact"]}),
    Case(
        "extraEnv",
        [{"name": "DNSTRAIL_LOG_RATE", "value": "10"}],
        {f"{CONTAINER}.env": [*SHIPPED_ENVIRONMENT, {"name": "DNSTRAIL_LOG_RATE", "value": "10"}]},
    ),
    Case("podMonitor.enabled", True, {"PodMonitor": monitoring("podmonitor.yaml")}),
    Case("prometheusRule.enabled", True, {"PrometheusRule": monitoring("prometheusrule.yaml")}),
)
MONITORS = {"podMonitor": "PodMonitor", "prometheusRule": "PrometheusRule"}
WRONG = (
    ("image.repository", ""),
    ("image.digest", "latest"),
    ("image.pullPolicy", "always"),
    ("image.pullSecrets", ["registry"]),
    ("log", "everything"),
    ("ports", [70000]),
    ("metrics.port", 0),
    ("metrics.address", "localhost"),
    ("kubernetes.enabled", "off"),
    ("events.enabled", "yes"),
    ("serviceAccount.name", ""),
    ("namespace.create", "yes please"),
    ("nodeSelector", {"pool": 1}),
    ("tolerations", "all"),
    ("resources", {"memory": "1Gi"}),
    ("seccompProfile", "Default"),
    ("extraArgs", [1]),
    ("extraEnv", [{"value": "10"}]),
    ("podMonitor.labels", ["release"]),
    ("logs", "none"),
    ("image.pullpolicy", "Always"),
)


def setting(value: str, to: object) -> tuple[str, str]:
    return "--set-json", f"{value}={json.dumps(to)}"


@pytest.fixture(scope="module")
def shipped() -> Objects:
    return chart()


def test_as_shipped_it_is_the_manifest_without_the_namespace_that_helm_makes(shipped: Objects):
    assert changes(manifest(), shipped) == {"Namespace": None}


def test_with_the_namespace_it_is_the_manifest_to_the_last_field():
    assert chart("--set", "namespace.create=true") == manifest()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_value_changes_what_it_says_and_nothing_else(shipped: Objects, case: Case):
    assert changes(shipped, chart(*setting(case.value, case.to))) == case.changes


@pytest.mark.parametrize(("value", "kind"), MONITORS.items())
def test_labels_by_which_prometheus_selects_are_added(value: str, kind: str):
    enabled = ("--set", f"{value}.enabled=true")
    labelled = chart(*enabled, *setting(f"{value}.labels", {"release": "prometheus"}))
    assert changes(chart(*enabled), labelled) == {f"{kind}.metadata.labels.release": "prometheus"}


def test_without_the_api_there_are_no_events():
    off = ("--set", "kubernetes.enabled=false")
    assert chart(*off, "--set", "events.enabled=true") == chart(*off)


def test_every_value_is_shown_to_change_something():
    assert {case.value for case in CASES} | {f"{value}.labels" for value in MONITORS} == values().keys()


def test_everything_goes_to_the_namespace_of_the_release():
    enabled = ("namespace.create=true", "podMonitor.enabled=true", "prometheusRule.enabled=true")
    text = output("helm", "template", "dns", CHART, "--namespace", "watch", "--set", ",".join(enabled))
    objects = by_kind(text)
    assert objects["Namespace"]["metadata"]["name"] == "watch"
    assert objects["ClusterRoleBinding"]["subjects"][0]["namespace"] == "watch"
    namespaces = {kind: found["metadata"].get("namespace", "") for kind, found in objects.items()}
    assert {kind for kind, name in namespaces.items() if name != "watch"} == {
        "Namespace",
        "ClusterRole",
        "ClusterRoleBinding",
    }


@pytest.mark.parametrize("case", [case for case in CASES if ANNOTATION in case.changes], ids=str)
def test_an_option_that_a_value_sets_is_one_that_run_understands(monkeypatch: pytest.MonkeyPatch, case: Case):
    objects = chart(*setting(case.value, case.to))
    for name, value in objects["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    build_parser().parse_args(objects["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["args"])


@pytest.mark.parametrize(("value", "to"), WRONG)
def test_a_wrong_value_gets_one_error_that_names_it(value: str, to: object):
    done = run("helm", "template", "dnstrail", CHART, *setting(value, to))
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.lstrip().startswith("- ")]
    assert all(name in error for name in value.split("."))


def test_helm_lint_finds_nothing():
    assert "[WARNING]" not in output("helm", "lint", "--strict", CHART)


def test_the_packed_chart_renders_the_same(shipped: Objects, tmp_path: Path):
    output("helm", "package", CHART, "--destination", tmp_path)
    (packed,) = tmp_path.glob("*.tgz")
    assert chart(source=packed) == shipped
