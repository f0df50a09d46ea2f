"""What is kept of the API's objects: real ones, as an API server sent them, and strange ones."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.enrich.kube import objects
from agent.enrich.kube.facts import (
    PodFacts,
    PodReader,
    ServiceFacts,
    ServiceReader,
    SliceFacts,
    SliceReader,
    StatefulSetReader,
    packed,
    workload_of,
)
from agent.session.model import SECOND_NS

RECORDED = Path(__file__).parents[2] / "fixtures/kube-api"
NODE = "node-a"
STARTED = 1_795_268_608 * SECOND_NS
"""2026-11-21T13:43:28Z."""


def items(name: str) -> list[msgspec.Raw]:
    return msgspec.json.decode((RECORDED / name).read_bytes(), type=objects.Page).items or []


def pods(name: str = "pods.json", node: str = NODE) -> dict[str, PodFacts]:
    read = PodReader(node)
    return {facts.pod.name: facts for facts in map(read, items(name))}


def services() -> dict[str, ServiceFacts]:
    return {facts.service.name: facts for facts in map(ServiceReader(), items("services.json"))}


def slices() -> dict[str, list[SliceFacts]]:
    found: dict[str, list[SliceFacts]] = {}
    for facts in map(SliceReader(), items("endpointslices.json")):
        found.setdefault(facts.service[1], []).append(facts)
    return found


def addresses(*texts: str) -> tuple[bytes | None, ...]:
    return tuple(packed(text) for text in texts)


def test_a_pod_has_its_deployment_and_both_its_addresses():
    facts = pods()["cart-7d9f-x2x"]
    assert facts.pod.workload == "Deployment/cart"
    assert (facts.pod.namespace, facts.pod.node, facts.pod.host_network) == ("shop", NODE, False)
    assert facts.addresses == addresses("10.244.1.10", "fd00:10:244:1::a")
    assert facts.start_ns == facts.ready_ns == STARTED
    assert facts.finished_ns is None


def test_a_pods_own_dns_configuration_is_known():
    pod = pods()["cart-7d9f-x2x"].pod
    assert pod.dns_policy == "None"
    assert pod.nameservers == ("169.254.20.10",)
    assert pod.searches == ("shop.svc.cluster.local",)
    assert pod.options == ("ndots:2", "use-vc")


def test_a_container_is_found_by_the_id_that_its_runtime_gave_it():
    pod = pods()["cart-7d9f-x2x"].pod
    assert pod.container_name("c0ffee") == "main"
    assert pod.container_name("beef") is None


def test_containers_of_other_nodes_are_not_kept():
    assert pods(node="node-b")["cart-7d9f-x2x"].pod.containers == ()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"containers": [{"name": "main"}]}, "main"),
        ({"containers": [{"name": "main"}, {"name": "sidecar"}]}, None),
        ({"containers": [{"name": "main"}], "initContainers": [{"name": "migrate"}]}, None),
        ({"containers": [{"name": "main"}], "ephemeralContainers": [{"name": "debugger"}]}, None),
        ({}, None),
    ],
)
def test_a_pods_only_container_is_known_before_it_has_an_id(spec: dict[str, object], name: str | None):
    assert read_pod({"nodeName": NODE} | spec).pod.only_container == name


def test_a_pod_on_the_nodes_network_has_no_address_of_its_own():
    facts = pods()["node-local-dns-abcde"]
    assert facts.pod.host_network
    assert facts.addresses == ()


def test_a_pod_without_a_network_yet_has_no_address():
    assert pods()["bare"].addresses == ()


def test_node_local_dns_cache_tells_where_it_listens():
    assert pods()["node-local-dns-abcde"].node_local == addresses("169.254.20.10", "10.96.0.10")
    assert pods()["cart-7d9f-x2x"].node_local is None


@pytest.mark.parametrize(
    "arguments",
    [["--localip=169.254.20.10"], ["-localip=169.254.20.10"], ["-conf", "x", "--localip", "169.254.20.10"]],
)
def test_node_local_dns_cache_is_known_however_its_option_is_spelled(arguments: list[str]):
    facts = read_pod({"hostNetwork": True, "nodeName": NODE, "containers": [{"name": "c", "args": arguments}]})
    assert facts.node_local == addresses("169.254.20.10")


def test_a_pod_on_the_nodes_network_without_arguments_is_not_node_local_dns_cache():
    facts = read_pod({"hostNetwork": True, "nodeName": NODE, "containers": [{"name": "c"}]})
    assert facts.node_local is None


def test_an_option_without_its_value_is_no_address():
    facts = read_pod({"hostNetwork": True, "nodeName": NODE, "containers": [{"name": "c", "args": ["-localip"]}]})
    assert facts.node_local == ()


def test_a_completed_pod_ended_with_its_last_container():
    facts = pods()["backup-29384756-q9z"]
    assert facts.pod.workload == "Job/backup-29384756"
    # 2026-11-21T10:00:42Z is any time within that second.
    assert facts.finished_ns == 1_795_255_243 * SECOND_NS


def test_a_container_that_ended_in_a_pod_that_goes_on_is_no_end():
    ended = {"name": "c", "state": {"terminated": {"finishedAt": "2026-11-21T10:00:42Z"}}}
    assert read_pod({}, {"phase": "Running", "containerStatuses": [ended]}).finished_ns is None


def test_a_pod_that_is_being_deleted_ends_when_all_containers_have():
    ended = {"name": "c", "state": {"terminated": {"finishedAt": "2026-11-21T10:00:42Z"}}}
    going = {"name": "d", "state": {"running": {}}}
    deleted = {"deletionTimestamp": "2026-11-21T10:00:00Z"}
    both = read_pod({}, {"phase": "Running", "containerStatuses": [ended, going]}, deleted)
    one = read_pod({}, {"phase": "Running", "containerStatuses": [ended]}, deleted)
    assert both.finished_ns is None
    assert one.finished_ns is not None


@pytest.mark.parametrize(
    ("kind", "name", "labels", "workload"),
    [
        ("ReplicaSet", "cart-7d9f", {"pod-template-hash": "7d9f"}, "Deployment/cart"),
        ("ReplicaSet", "my-cart-7d9f", {"pod-template-hash": "7d9f"}, "Deployment/my-cart"),
        ("ReplicaSet", "cart-7d9f", {}, "ReplicaSet/cart-7d9f"),
        ("ReplicaSet", "cart-7d9f", {"pod-template-hash": "abcd"}, "ReplicaSet/cart-7d9f"),
        ("ReplicaSet", "7d9f", {"pod-template-hash": "7d9f"}, "ReplicaSet/7d9f"),
        ("StatefulSet", "web", {}, "StatefulSet/web"),
        ("DaemonSet", "node-local-dns", {}, "DaemonSet/node-local-dns"),
        ("Job", "backup-29384756", {}, "Job/backup-29384756"),
        ("Node", "node-a", {}, None),
    ],
)
def test_the_workload_is_told_as_far_as_the_pod_tells_it(
    kind: str, name: str, labels: dict[str, str], workload: str | None
):
    owner = {"kind": kind, "name": name, "controller": True}
    metadata = msgspec.convert({"labels": labels, "ownerReferences": [owner]}, objects.Metadata)
    assert workload_of(metadata) == workload


def test_an_owner_that_does_not_control_is_no_workload():
    owners = [{"kind": "ConfigMap", "name": "x"}, {"kind": "DaemonSet", "name": "y", "controller": True}]
    assert workload_of(msgspec.convert({"ownerReferences": owners[:1]}, objects.Metadata)) is None
    assert workload_of(msgspec.convert({"ownerReferences": owners}, objects.Metadata)) == "DaemonSet/y"


def test_a_service_is_known_by_all_its_addresses_and_ports():
    facts = services()["kube-dns"]
    assert facts.key == ("kube-system", "kube-dns")
    assert facts.virtual == facts.service.cluster_ips == addresses("10.96.0.10", "fd00:10:96::a")
    assert facts.ports == ((17, 53, "dns"), (6, 53, "dns-tcp"))
    assert not facts.service.headless


def test_external_addresses_of_a_service_are_its_addresses_too():
    facts = services()["shared"]
    assert facts.virtual[len(facts.service.cluster_ips) :] == addresses("192.0.2.53", "198.51.100.7")


def test_a_headless_service_has_no_address():
    facts = services()["web"]
    assert facts.service.headless
    assert facts.virtual == facts.service.cluster_ips == ()


def test_an_external_name_is_no_headless_service():
    service = services()["outside"].service
    assert (service.headless, service.cluster_ips, service.external_name) == (False, (), "db.example.com")


def test_endpoints_get_traffic_while_they_are_ready_or_serve_to_their_end():
    (v4,) = slices()["kube-dns"]
    assert v4.ports == ((17, 53, "dns"), (6, 53, "dns-tcp"))
    assert [(one.pod, one.ready, one.published) for one in v4.endpoints] == [
        ("coredns-1", True, True),
        ("coredns-2", True, False),
        ("coredns-3", False, False),
    ]


def test_an_endpoint_of_a_headless_service_has_its_hostname():
    (facts,) = slices()["web"]
    assert [(one.hostname, one.pod, one.published) for one in facts.endpoints] == [("web-0", "web-0", False)]


def test_a_slice_of_nobody_has_no_endpoints():
    (facts,) = slices()["nobody"]
    assert (facts.endpoints, facts.ports) == ((), ())


def test_conditions_that_are_unknown_are_those_of_a_ready_endpoint():
    endpoint = {"addresses": ["10.0.0.1"], "conditions": {}}
    facts = SliceReader()(json.dumps({"metadata": {}, "endpoints": [endpoint]}).encode())
    assert [(one.ready, one.published) for one in facts.endpoints] == [(True, True)]


def test_endpoints_by_name_are_left_out():
    facts = SliceReader()(json.dumps({"metadata": {}, "endpoints": [{"addresses": ["db.example.com"]}]}).encode())
    assert facts.endpoints == ()


def test_a_stateful_set_names_its_service():
    (facts,) = map(StatefulSetReader(), items("statefulsets.json"))
    assert facts.stateful_set == ("shop", "web", "web-wrong", 3)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"metadata":{"name":7}}', b'{"metadata":{"uid":"\xff"}}', b"[" * 100_000]
)
def test_what_is_no_pod_is_refused(data: bytes):
    with pytest.raises(objects.UNREADABLE):
        PodReader(NODE)(data)


@pytest.mark.parametrize(
    "text", ["", "None", "10.1", "10.0.0.256", "10.0.0.1\0", "fe80::1%eth0", "fd00::g", "example.com"]
)
def test_what_is_no_address_is_none(text: str):
    assert packed(text) is None


def read_pod(
    spec: dict[str, Any], status: dict[str, Any] | None = None, metadata: dict[str, Any] | None = None
) -> PodFacts:
    pod = {"metadata": {"name": "p", "namespace": "n", "uid": "u", **(metadata or {})}, "spec": spec}
    return PodReader(NODE)(json.dumps({**pod, "status": status or {}}).encode())
