"""A whole Kubernetes node: control plane, kubelet, kube-proxy, containerd, and dnstrail installed as people do."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any, Self

import yaml

from agent.lab.processes import LabError, end, wait_until
from tests.node import configuration, machine
from tests.node.credentials import NodeCredentials
from tests.node.machine import Machine
from tests.node.programs import KUBECTL, KUBERNETES, OF_NODE, path_of

ROOT = Path(__file__).parents[2]
MANIFESTS = Path(__file__).with_name("manifests")
NAMESPACE = "dnstrail"
SHOP = "shop"
"""The namespace of the pods that ask."""
SETTINGS: Mapping[str, str] = {
    "DNSTRAIL_NAMESPACE": SHOP,  # programs that run on this machine beside the node ask too
    "DNSTRAIL_LOG_RATE": "50",
    "DNSTRAIL_POD": "",  # as a chart writes what was not given: it must select no less than all
}
"""What the tests change in the ConfigMap of daemonset.yaml."""
UNANSWERED_SECONDS = 10.5
"""DNSTRAIL_TIMEOUT, and what it takes to print a line."""
START_SECONDS = 60.0
IMPORT_SECONDS = 90.0
ROLLOUT_SECONDS = 90.0
DELETE_SECONDS = 60.0
LOOK_SECONDS = 60.0
STOP_SECONDS = 30.0
LOG_TAIL = 1500
Line = dict[str, Any]


class Daemon:
    """One program of the node, and its log."""

    def __init__(self, on: Machine, name: str, argv: Sequence[str]) -> None:
        self._machine = on
        self.name = name
        self._argv = argv
        self._log = on.directory / f"{name}.log"
        self._started: Popen[str] | None = None

    def start(self) -> None:
        """Start it; do not wait until it is of use."""
        with self._log.open("a") as output:
            self._started = self._machine.popen(self._argv, output)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and return when it is gone."""
        assert self._started is not None
        os.kill(machine.child_of(self._started.pid), how)
        try:
            self._started.wait(STOP_SECONDS)
        finally:
            end(self._started)

    def check(self) -> None:
        """Raise LabError when it has ended, with what it said last."""
        if self._started is None or self._started.poll() is not None:
            raise LabError(f"{self.name} does not run: {self._log.read_text()[-LOG_TAIL:]}")


class Node:
    """It; a context manager.

    Attributes:
        machine: What it runs on.
        apiserver: Its API server.
    """

    def __init__(self, directory: Path, images: Sequence[Path]) -> None:
        """Describe a node.

        Args:
            directory: For whatever is written.
            images: Archives of what its pods may be made of.
        """
        self.machine = Machine(directory)
        self._directory = directory
        self._images = images
        self.credentials = NodeCredentials(directory / "credentials")
        self.apiserver = self._daemon("kube-apiserver", configuration.apiserver(self.credentials))
        self._proxy: Daemon | None = None

    def __enter__(self) -> Self:
        self.credentials.make()
        with ExitStack() as stack:
            stack.enter_context(self.machine)
            self._start()
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 60.0) -> str:
        """Run kubectl as the administrator, and return what it prints."""
        kubeconfig = f"--kubeconfig={self.credentials.kubeconfig('admin')}"
        return self.machine.run(
            path_of(KUBECTL), kubeconfig, *arguments, stdin=stdin, check=check, seconds=seconds
        ).stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as the API server has it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def apply(self, *manifests: str) -> None:
        """Apply files of manifests/."""
        self.kubectl("apply", *(f"--filename={MANIFESTS / name}" for name in manifests))

    def make_namespace(self, name: str) -> None:
        """Create a namespace, and return when pods can be created in it."""
        self.kubectl("create", "namespace", name)
        self.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")

    def renew(self, pod: str, manifest: str) -> None:
        """Delete a pod and make it anew, so that nothing it waits for is left."""
        self.kubectl("-n", SHOP, "delete", "pod", pod, "--now")
        self.apply(manifest)
        self.kubectl("-n", SHOP, "wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s")

    def wait_rolled_out(self, workload: str, namespace: str) -> None:
        """Return when all pods of a workload are ready, as their probes say."""
        limit = f"--timeout={ROLLOUT_SECONDS:.0f}s"
        self.kubectl("-n", namespace, "rollout", "status", workload, limit, seconds=ROLLOUT_SECONDS + 10)

    def install(self, settings: Mapping[str, str] = SETTINGS) -> None:
        """Install dnstrail by daemonset.yaml with these settings in its ConfigMap, and return when it is ready."""
        self.apply_manifest(settings)
        self.wait_rolled_out("daemonset/dnstrail", NAMESPACE)

    def apply_manifest(self, settings: Mapping[str, str]) -> None:
        """Apply daemonset.yaml with these settings in its ConfigMap."""
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(manifest(settings)))

    def uninstall(self) -> None:
        """Remove dnstrail, and return when it is gone."""
        self.kubectl("delete", f"--filename={ROOT / 'daemonset.yaml'}", seconds=DELETE_SECONDS)

    def agent_pod(self) -> dict[str, Any]:
        """The pod of dnstrail that is not about to end."""
        pods = self.get("pods", "-n", NAMESPACE)["items"]
        (pod,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return dict(pod)

    def metrics(self) -> str:
        """What a Prometheus gets, through the API server."""
        name = self.agent_pod()["metadata"]["name"]
        return self.kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}:9353/proxy/metrics")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that have these labels."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(float(value) for given, value in found if wanted <= set(given.split(",")))

    def log(self, since: datetime | None = None) -> str:
        """What dnstrail's pods have written, by `kubectl logs`."""
        newer = [] if since is None else [f"--since-time={since.isoformat()}"]
        selector = "--selector=app.kubernetes.io/name=dnstrail"
        return self.kubectl("-n", NAMESPACE, "logs", selector, "--tail=-1", *newer, check=False)

    def said(self, since: datetime | None = None) -> str:
        """Of that, the words of the agent about itself."""
        return "\n".join(line for line in self.log(since).splitlines() if line.startswith("dnstrail: "))

    def written(self, since: datetime) -> str:
        """What the agent has written since then, read on the node: `kubectl logs` asks the API server."""
        logs = (self._directory / "layers/var/upper/log/pods").glob(f"{NAMESPACE}_dnstrail-*/dnstrail/*.log")
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return "\n".join(line for line in lines if datetime.fromisoformat(line.split(" ", 1)[0]) >= since)

    def lines(self, since: datetime) -> list[Line]:
        """Of that, the session lines of lookups that began since then."""
        lines = [json.loads(text) for text in self.log(since).splitlines() if text.startswith('{"Time"')]
        return [line for line in lines if datetime.fromisoformat(line["Time"]) >= since]

    def wait_for_line(
        self, holds: Callable[[Line], Any], what: str, since: datetime, seconds: float = LOOK_SECONDS
    ) -> Line:
        """The first session line for which a condition holds."""
        seen: list[Line] = []
        found: list[Line] = []

        def look() -> bool:
            seen[:] = self.lines(since)
            found[:] = [line for line in seen if holds(line)]
            return bool(found)

        try:
            wait_until(look, what, seconds=seconds)
        except LabError as error:
            raise LabError(f"{error}; {summary(seen)}") from None
        return found[0]

    def wait_until_told(self) -> datetime:
        """Return when every lookup that has begun by now has its line: the time limit of unanswered ones is over.

        Returns:
            The moment when this was called.
        """
        moment = now()
        later = moment + timedelta(seconds=UNANSWERED_SECONDS)
        self.wait_for_line(lambda line: line["Status"] == "Succeeded", "lookups after the time limit", later)
        return moment

    def use_proxy(self, mode: str) -> None:
        """Let kube-proxy work in this mode, and return when it does; it removes the rules of its mode before."""
        if self._proxy is not None and self._proxy.name == _proxy_name(mode):
            return
        if self._proxy is not None:
            self._proxy.stop()
        options = {"config": configuration.kube_proxy(self._directory, self.credentials, mode)}
        self._proxy = self._daemon("kube-proxy", options, name=_proxy_name(mode))
        self._proxy.start()
        wait_until(lambda: self._translates(mode), f"kube-proxy's rules in {mode}", seconds=START_SECONDS)

    def _translates(self, mode: str) -> bool:
        """Whether the rules for the Service of the API are there, and those of another mode are not."""
        show = {"iptables": ["iptables-save", "-t", "nat"], "nftables": ["nft", "list", "table", "ip", "kube-proxy"]}
        has = {one: "10.96.0.1" in self.machine.run(*argv, check=False).stdout for one, argv in show.items()}
        return [one for one, there in has.items() if there] == [mode]

    def wait_for_endpoints(self, service: str, namespace: str, ready: int) -> None:
        """Return when a Service has so many ready endpoints."""

        def count() -> int:
            selector = f"--selector=kubernetes.io/service-name={service}"
            slices = self.get("endpointslices", "-n", namespace, selector)["items"]
            endpoints = [one for found in slices for one in found.get("endpoints") or ()]
            return sum(bool(one["conditions"].get("ready")) for one in endpoints)

        wait_until(lambda: count() == ready, f"{service} to have {ready} ready endpoints", seconds=ROLLOUT_SECONDS)

    def wait_for_api(self) -> None:
        """Return when the API server answers."""

        def is_ready() -> bool:
            self.apiserver.check()
            return self.kubectl("get", "--raw", "/readyz", check=False) == "ok"

        wait_until(is_ready, "the API server to be ready", seconds=START_SECONDS)

    def _start(self) -> None:
        containerd = [str(OF_NODE / "containerd"), "--config", str(configuration.containerd(self._directory))]
        # containerd finds its shim in PATH.
        path = f"PATH={OF_NODE}:{os.environ['PATH']}:/usr/sbin:/sbin"
        Daemon(self.machine, "containerd", ["env", path, *containerd]).start()
        self._daemon("etcd", configuration.etcd(self._directory)).start()
        self.apiserver.start()
        self._import()
        self.wait_for_api()
        scheduler = {"kubeconfig": self.credentials.kubeconfig("scheduler"), "leader-elect": "false"}
        self._daemon("kube-controller-manager", configuration.controller_manager(self.credentials)).start()
        self._daemon("kube-scheduler", scheduler).start()
        self._daemon("kubelet", self._kubelet_options()).start()
        self.use_proxy("iptables")
        wait_until(self._is_ready, "the node to be ready", seconds=START_SECONDS)

    def _import(self) -> None:
        """Give containerd the images that pods are made of; nothing can be pulled here."""
        ctr = [str(OF_NODE / "ctr"), "--address", configuration.CONTAINERD_SOCKET, "--namespace", "k8s.io"]
        wait_until(
            lambda: self.machine.run(*ctr, "version", check=False).returncode == 0, "containerd", seconds=START_SECONDS
        )
        for image in self._images:
            self.machine.run(*ctr, "image", "import", str(image), seconds=IMPORT_SECONDS)

    def _kubelet_options(self) -> configuration.Options:
        return {
            "config": configuration.kubelet(self._directory, self.credentials),
            "kubeconfig": self.credentials.kubeconfig("kubelet"),
            "hostname-override": machine.NAME,
            "node-ip": machine.ADDRESS,
        }

    def _is_ready(self) -> bool:
        for node in self.get("nodes")["items"]:
            if {"type": "Ready", "status": "True"}.items() <= _condition(node, "Ready").items():
                return True
        return False

    def _daemon(self, role: str, options: configuration.Options, *, name: str = "") -> Daemon:
        arguments = [f"--{option}={value}" for option, value in options.items()]
        return Daemon(self.machine, name or role, [path_of(KUBERNETES), role, *arguments])


def manifest(settings: Mapping[str, str]) -> list[dict[str, Any]]:
    """daemonset.yaml with these settings in its ConfigMap."""
    objects = list(yaml.safe_load_all((ROOT / "daemonset.yaml").read_text()))
    (config_map,) = [one for one in objects if one["kind"] == "ConfigMap"]
    config_map["data"] |= settings
    return objects


def _proxy_name(mode: str) -> str:
    return f"kube-proxy-{mode}"


def now() -> datetime:
    """The present, as lines and logs tell it."""
    return datetime.now(UTC)


def summary(lines: Sequence[Line]) -> str:
    """What was seen instead of what was waited for, short enough to be read."""
    told: dict[str, int] = {}
    for line in lines:
        client, cause = line["Client"], line.get("Cause") or {}
        words = (
            f"{client.get('Pod')} {line['Question'] and line['Question']['Name']} {line['Status']} {cause.get('Code')}"
        )
        told[words] = told.get(words, 0) + 1
    return "seen: " + "; ".join(f"{count} x {words}" for words, count in sorted(told.items()))


def _condition(one: Mapping[str, Any], kind: str) -> dict[str, str]:
    conditions = one["status"].get("conditions", [])
    return next((dict(found) for found in conditions if found["type"] == kind), {})
