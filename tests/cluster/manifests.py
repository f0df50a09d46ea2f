"""Objects of the API, with the status that controllers and kubelets would give them; and those that describe a lab."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agent.lab import VIP, VIP6, Lab
from agent.lab.wiring import NODE_ADDRESS, NODE_ADDRESS6
from tests.cluster.rest import Manifest

NODE = "node-a"
NODE_ADDRESSES = (NODE_ADDRESS, NODE_ADDRESS6)
DNS_PORTS = (("dns", "UDP", 53), ("dns-tcp", "TCP", 53))
PODS_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "PodScheduled")
"""Conditions of a pod that got as far as to run; `Ready` and `ContainersReady` depend."""


def namespace(name: str) -> Manifest:
    """Return a namespace."""
    return _object("v1", "Namespace", "", name)


def node(name: str = NODE, addresses: Sequence[str] = NODE_ADDRESSES) -> Manifest:
    """Return a node that is ready, with its internal addresses."""
    status = {
        "addresses": [{"type": "InternalIP", "address": one} for one in addresses],
        "conditions": _conditions({"Ready": True}),
    }
    return _object("v1", "Node", "", name, status=status)


def pod(
    namespace: str,
    name: str,
    addresses: Sequence[str] = (),
    *,
    node: str = NODE,
    node_addresses: Sequence[str] = NODE_ADDRESSES,
    owner: str = "",
    labels: Mapping[str, str] | None = None,
    phase: str = "Running",
    ready: bool = True,
    host_network: bool = False,
    container_id: str = "",
    spec: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return a pod on a node, as its kubelet reports it.

    Args:
        namespace: Its namespace.
        name: Its name, and its container's `main`.
        addresses: One of each family at most; none before it has its network. A hostNetwork pod has the node's.
        node: Where it runs.
        node_addresses: The node's.
        owner: Its controller, `ReplicaSet/cart-7d9f`.
        labels: Its labels.
        phase: `Pending`, `Running`, `Succeeded` or `Failed`.
        ready: Whether its container is.
        host_network: Whether it lives in the node's network namespace.
        container_id: As the runtime calls it, `containerd://…`.
        spec: More of the spec, such as `dnsPolicy` and `dnsConfig`.
    """
    addresses = node_addresses if host_network else addresses
    ready = ready and phase == "Running"
    status = {
        "phase": phase,
        "startTime": _now(),
        "hostIP": node_addresses[0],
        "hostIPs": [{"ip": one} for one in node_addresses],
        "conditions": _conditions(
            {**dict.fromkeys(PODS_CONDITIONS, bool(addresses)), "Ready": ready, "ContainersReady": ready}
        ),
        "containerStatuses": [_container_status(phase, container_id, ready=ready)],
        "podIP": addresses[0] if addresses else None,
        "podIPs": [{"ip": one} for one in addresses] or None,
    }
    whole_spec = {
        "nodeName": node,
        "hostNetwork": host_network,
        "containers": [{"name": "main", "image": "example.test/main"}],
        **(spec or {}),
    }
    made = _object("v1", "Pod", namespace, name, labels, spec=whole_spec, status=status)
    if owner:
        made["metadata"]["ownerReferences"] = [_owner(owner)]
    return made


def service(
    namespace: str,
    name: str,
    cluster_ips: Sequence[str] = (),
    *,
    ports: Sequence[tuple[str, str, int]] = (("http", "TCP", 80),),
    selector: Mapping[str, str] | None = None,
) -> Manifest:
    """Return a Service of type ClusterIP.

    Args:
        namespace: Its namespace.
        name: Its name.
        cluster_ips: Its addresses; `("None",)` makes it headless, none lets the API server choose one.
        ports: Name, protocol and number of each.
        selector: What its pods are labelled with.
    """
    spec: dict[str, Any] = {
        "selector": dict(selector or {}),
        "ports": [{"name": port, "protocol": protocol, "port": number} for port, protocol, number in ports],
    }
    if cluster_ips:
        spec["clusterIP"], spec["clusterIPs"] = cluster_ips[0], list(cluster_ips)
    if len(cluster_ips) > 1:
        spec["ipFamilyPolicy"] = "RequireDualStack"
    return _object("v1", "Service", namespace, name, spec=spec)


def endpoint_slices(
    service: Manifest, pods: Iterable[Manifest], ports: Sequence[tuple[str, str, int]] | None = None
) -> list[Manifest]:
    """Return a Service's EndpointSlices, one for each address family that its pods have.

    Args:
        service: The Service.
        pods: As `pod` returns them or the API server has them; with the latter the slices name their UIDs.
        ports: Where they listen; by default at the Service's ports.
    """
    spec, metadata = service["spec"], service["metadata"]
    listening = ports or [(port["name"], port["protocol"], port["port"]) for port in spec["ports"]]
    reachable = [(one, address["ip"]) for one in pods for address in one["status"].get("podIPs") or ()]
    by_family = {
        "IPv4": [_endpoint(one, address) for one, address in reachable if ":" not in address],
        "IPv6": [_endpoint(one, address) for one, address in reachable if ":" in address],
    }
    return [
        {
            **_object(
                "discovery.k8s.io/v1",
                "EndpointSlice",
                metadata["namespace"],
                f"{metadata['name']}-{family.lower()}",
                {"kubernetes.io/service-name": metadata["name"]},
            ),
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"name": port, "protocol": protocol, "port": number} for port, protocol, number in listening],
        }
        for family, endpoints in by_family.items()
        if endpoints
    ]


def account(namespace: str, name: str, rules: Sequence[Mapping[str, Sequence[str]]] = ()) -> list[Manifest]:
    """Return a ServiceAccount, and a ClusterRole of these rules that is bound to it."""
    role, group = f"{namespace}:{name}", "rbac.authorization.k8s.io"
    return [
        _object("v1", "ServiceAccount", namespace, name),
        _object(f"{group}/v1", "ClusterRole", "", role, rules=[dict(rule) for rule in rules]),
        _object(
            f"{group}/v1",
            "ClusterRoleBinding",
            "",
            role,
            roleRef={"apiGroup": group, "kind": "ClusterRole", "name": role},
            subjects=[{"kind": "ServiceAccount", "namespace": namespace, "name": name}],
        ),
    ]


def of_lab(lab: Lab) -> list[Manifest]:
    """Return what a cluster would say of a lab: its node, its pods, the DNS Service and its EndpointSlices.

    Client pods are `shop/cart-1`, …, of the Deployment cart; server pods `kube-system/coredns-1`, ….
    """
    clients = [
        pod("shop", f"cart-{number}", (one.address, one.address6), owner="ReplicaSet/cart-7d9f")
        for number, one in enumerate(lab.clients, 1)
    ]
    for one in clients:
        one["metadata"]["labels"] = {"pod-template-hash": "7d9f"}
    servers = [
        pod("kube-system", f"coredns-{number}", (one.address, one.address6), labels={"k8s-app": "kube-dns"})
        for number, one in enumerate(lab.servers, 1)
    ]
    dns = service("kube-system", "kube-dns", (VIP, VIP6), ports=DNS_PORTS, selector={"k8s-app": "kube-dns"})
    return [namespace("shop"), node(), *clients, *servers, dns, *endpoint_slices(dns, servers)]


def _object(
    api_version: str, kind: str, namespace: str, name: str, labels: Mapping[str, str] | None = None, **content: object
) -> Manifest:
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(labels)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def _conditions(states: Mapping[str, bool]) -> list[dict[str, str]]:
    return [{"type": name, "status": str(state), "lastTransitionTime": _now()} for name, state in states.items()]


def _container_status(phase: str, container_id: str, *, ready: bool) -> dict[str, Any]:
    over = {"exitCode": 0 if phase == "Succeeded" else 1, "finishedAt": _now()}
    states = {"Running": {"running": {"startedAt": _now()}}, "Pending": {"waiting": {"reason": "ContainerCreating"}}}
    return {
        "name": "main",
        "image": "example.test/main",
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "containerID": container_id,
        "state": states.get(phase, {"terminated": over}),
    }


def _endpoint(pod: Manifest, address: str) -> dict[str, Any]:
    metadata = pod["metadata"]
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"]["conditions"])
    terminating = "deletionTimestamp" in metadata
    return {
        "addresses": [address],
        "conditions": {"ready": ready and not terminating, "serving": ready, "terminating": terminating},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            **({"uid": metadata["uid"]} if "uid" in metadata else {}),
        },
    }


def _owner(owner: str) -> dict[str, Any]:
    kind, name = owner.split("/")
    version = {"ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "Job": "batch/v1"}[kind]
    uid = hashlib.sha256(owner.encode()).hexdigest()[:32]
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
