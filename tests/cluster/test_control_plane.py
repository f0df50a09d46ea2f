"""The control plane is a real one, and does what the tests of dnstrail ask of it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import kubernetes
import pytest
import urllib3

from agent.lab import VIP, VIP6, Lab, wait_until
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.dns import cluster_dns
from tests.cluster.rest import Api, ApiError, Manifest

POD = manifests.pod("default", "web-1", ("10.244.1.10", "fd00:10:244:1::a"))
READ_PODS = ({"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},)
FORGIVEN_SECONDS = 60
"""How long after its expiry a token is still taken."""
CATCH_UP_SECONDS = 20.0


def test_a_pod_is_where_the_test_put_it_and_says_so(control_plane: ControlPlane):
    pod = manifests.pod(
        "default", "web-1", ("10.244.1.10", "fd00:10:244:1::a"), owner="ReplicaSet/web", container_id="containerd://c0"
    )

    control_plane.apply([manifests.node(), pod])

    held = control_plane.get(pod)
    assert held["spec"]["nodeName"] == manifests.NODE
    assert held["metadata"]["ownerReferences"][0]["name"] == "web"
    assert held["status"]["phase"] == "Running"
    assert [one["ip"] for one in held["status"]["podIPs"]] == ["10.244.1.10", "fd00:10:244:1::a"]
    assert held["status"]["hostIP"] == manifests.NODE_ADDRESSES[0]
    assert {one["type"]: one["status"] for one in held["status"]["conditions"]}["Ready"] == "True"
    assert held["status"]["containerStatuses"][0]["containerID"] == "containerd://c0"


def test_a_pod_of_the_node_has_the_nodes_addresses(control_plane: ControlPlane):
    (held,) = control_plane.apply([manifests.pod("default", "proxy", host_network=True)])

    assert held["spec"]["hostNetwork"]
    assert [one["ip"] for one in held["status"]["podIPs"]] == list(manifests.NODE_ADDRESSES)


def test_a_pod_can_lose_its_address_and_another_get_it(control_plane: ControlPlane):
    control_plane.apply([POD])

    control_plane.apply([manifests.pod("default", "web-1", phase="Pending")])
    control_plane.create(manifests.pod("default", "web-2", ("10.244.1.10",)))

    assert "podIP" not in control_plane.get(POD)["status"]
    assert control_plane.get({**POD, "metadata": {"namespace": "default", "name": "web-2"}})["status"]["podIP"]


def test_a_pod_that_ends_with_grace_remains_until_its_kubelet_is_done(control_plane: ControlPlane):
    control_plane.apply([POD])

    control_plane.delete(POD, grace_seconds=30)
    control_plane.patch(POD, {"status": {"phase": "Succeeded"}}, "status")

    assert control_plane.get(POD)["metadata"]["deletionTimestamp"]
    control_plane.delete(POD)
    with pytest.raises(ApiError, match="404 NotFound"):
        control_plane.get(POD)


def test_every_cluster_has_a_service_for_its_api(control_plane: ControlPlane):
    (service,) = control_plane.list("v1", "Service", "default")["items"]

    assert service["metadata"]["name"] == "kubernetes"
    assert service["spec"]["clusterIP"] == "10.96.0.1"


@pytest.mark.kernel
def test_a_lab_is_described_with_the_addresses_that_it_has(control_plane: ControlPlane):
    with Lab(clients=2, servers=2) as lab:
        control_plane.apply(manifests.of_lab(lab))

        pods = control_plane.list("v1", "Pod")["items"]
        assert {one["status"]["podIP"] for one in pods} == {one.address for one in (*lab.clients, *lab.servers)}
        (service,) = control_plane.list("v1", "Service", "kube-system")["items"]
        assert service["spec"]["clusterIPs"] == [VIP, VIP6]
        slices = control_plane.list("discovery.k8s.io/v1", "EndpointSlice", "kube-system")["items"]
        endpoints = {address for one in slices for endpoint in one["endpoints"] for address in endpoint["addresses"]}
        assert endpoints == {address for one in lab.servers for address in (one.address, one.address6)}


def test_a_watch_sees_pods_come_change_and_go(control_plane: ControlPlane):
    with control_plane.watch("v1", "Pod", version(control_plane)) as events:
        control_plane.create(POD)
        control_plane.patch(POD, {"metadata": {"labels": {"app": "web"}}})
        control_plane.delete(POD)
        first, *changes, last = until_deleted(events)

    assert (first["type"], last["type"]) == ("ADDED", "DELETED")
    assert any(event["object"]["metadata"].get("labels") == {"app": "web"} for event in changes)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["upgrade", "crash"])
def test_a_restarted_api_server_has_its_address_and_its_objects_again(control_plane: ControlPlane, how: signal.Signals):
    control_plane.apply([POD])

    with control_plane.watch("v1", "Pod", version(control_plane)) as events:
        control_plane.restart(how)
        # Ended in an orderly way or cut off: in both cases it says nothing more.
        with pytest.raises((StopIteration, urllib3.exceptions.ProtocolError)):
            next(events)

    assert control_plane.get(POD)["status"]["podIP"] == "10.244.1.10"


def test_nobody_takes_the_port_of_a_stopped_api_server(control_plane: ControlPlane):
    control_plane.stop()

    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", control_plane.port))
    with socket.socket() as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("127.0.0.1", control_plane.port))


def test_after_compaction_an_old_resource_version_is_gone(control_plane: ControlPlane):
    old = version(control_plane)
    control_plane.apply([POD])

    control_plane.compact()

    with control_plane.watch("v1", "Pod", old) as events:
        assert first_is_gone(events)
    with pytest.raises(ApiError, match="410 Expired"):
        control_plane.list("v1", "Pod", query=f"resourceVersion={old}&resourceVersionMatch=Exact")


def test_what_changed_while_the_api_server_was_away_is_in_a_new_list_only(control_plane: ControlPlane):
    control_plane.apply([POD])
    old = version(control_plane)

    with control_plane.away() as elsewhere:
        elsewhere.delete(POD)
        assert not control_plane.says_ok("/readyz")

    with control_plane.watch("v1", "Pod", old) as events:
        assert first_is_gone(events)
    assert control_plane.list("v1", "Pod")["items"] == []


def test_a_hanging_api_server_keeps_its_connections_and_says_nothing(control_plane: ControlPlane):
    with control_plane.watch("v1", "Pod", version(control_plane), seconds=0.5) as events:
        control_plane.hang()
        with socket.create_connection(("127.0.0.1", control_plane.port), timeout=1):
            pass
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            next(events)


def test_a_watch_goes_on_when_a_hanging_api_server_does(control_plane: ControlPlane):
    with control_plane.watch("v1", "Pod", version(control_plane)) as events:
        control_plane.hang()
        control_plane.resume()
        control_plane.create(POD)

        assert next(events)["type"] == "ADDED"


def test_an_account_may_do_what_its_rules_say_and_nothing_more(control_plane: ControlPlane):
    control_plane.apply(manifests.account("kube-system", "reader", READ_PODS))

    reader = control_plane.client(control_plane.token_for("kube-system", "reader"))

    assert reader.list("v1", "Pod")["items"] == []
    with pytest.raises(ApiError, match="403 Forbidden"):
        reader.list("v1", "Service")
    with pytest.raises(ApiError, match="403 Forbidden"):
        reader.create(POD)


def test_a_token_is_taken_until_it_has_expired(control_plane: ControlPlane):
    control_plane.apply(manifests.account("kube-system", "reader", READ_PODS))

    fresh = control_plane.client(control_plane.token_for("kube-system", "reader", seconds=10))
    expired = control_plane.client(control_plane.token_for("kube-system", "reader", seconds=-FORGIVEN_SECONDS - 1))

    assert fresh.list("v1", "Pod")["items"] == []
    with pytest.raises(ApiError, match="401 Unauthorized"):
        expired.list("v1", "Pod")


def test_a_token_that_was_good_expires(control_plane: ControlPlane):
    control_plane.apply(manifests.account("kube-system", "reader", READ_PODS))

    reader = control_plane.client(control_plane.token_for("kube-system", "reader", seconds=3 - FORGIVEN_SECONDS))

    assert may_list(reader)
    wait_until(lambda: not may_list(reader), "the token to expire", seconds=CATCH_UP_SECONDS)


def test_a_projected_token_is_replaced_together_with_its_ca(control_plane: ControlPlane, tmp_path: Path):
    control_plane.apply(manifests.account("kube-system", "reader", READ_PODS))

    mount = control_plane.project_token(tmp_path / "mount", "kube-system", "reader")
    before = (mount / "token").read_text()
    control_plane.project_token(mount, "kube-system", "reader")

    assert (mount / "token").read_text() != before
    assert (mount / "ca.crt").read_bytes() == control_plane.ca_file.read_bytes()
    assert (mount / "namespace").read_text() == "kube-system"
    assert may_list(control_plane.client((mount / "token").read_text()))


def test_the_kubernetes_package_gets_along_with_the_kubeconfig(control_plane: ControlPlane):
    control_plane.apply([POD])

    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(control_plane.kubeconfig), client_configuration=configuration)
    with kubernetes.client.ApiClient(configuration) as client:
        pods = kubernetes.client.CoreV1Api(client).list_pod_for_all_namespaces().items

    assert [pod.metadata.name for pod in pods] == ["web-1"]


@pytest.mark.kernel
def test_coredns_says_what_the_cluster_holds(control_plane: ControlPlane):
    with Lab(clients=1, servers=1) as lab:
        control_plane.apply(manifests.of_lab(lab))
        control_plane.apply([manifests.service("shop", "api", ("10.96.44.3", "fd00:10:96::2c03"))])
        with cluster_dns(lab.servers[0], control_plane, lab.upstream.address):
            client = lab.clients[0]

            assert client.resolve("kube-dns.kube-system.svc.cluster.local.") == (VIP6, VIP)
            assert answer(lab, "api.shop.svc.cluster.local") == "10.96.44.3"
            assert answer(lab, "kubernetes.default.svc.cluster.local") == "10.96.0.1"
            assert answer(lab, "www.upstream.test") == "192.0.2.80"
            assert "NXDOMAIN" in client.dig("missing.shop.svc.cluster.local").stdout


@pytest.mark.kernel
def test_coredns_follows_changes_through_a_restart_of_the_api_server(control_plane: ControlPlane):
    headless = manifests.service("shop", "db", ("None",))
    pod = manifests.pod("shop", "db-0", ("10.244.1.77",))
    with Lab(clients=1, servers=1) as lab:
        control_plane.apply([*manifests.of_lab(lab), headless])
        with cluster_dns(lab.servers[0], control_plane, lab.upstream.address):
            control_plane.apply([pod, *manifests.endpoint_slices(headless, [pod])])
            wait_until(lambda: answer(lab, "db.shop.svc.cluster.local") == "10.244.1.77", "the pod's address")

            control_plane.restart()
            moved = manifests.pod("shop", "db-0", ("10.244.1.78",))
            control_plane.apply([moved, *manifests.endpoint_slices(headless, [moved])])

            wait_until(
                lambda: answer(lab, "db.shop.svc.cluster.local") == "10.244.1.78",
                "the pod's new address",
                seconds=CATCH_UP_SECONDS,
            )


def version(api: Api) -> str:
    """The resource version of the pods there are."""
    found: str = api.list("v1", "Pod")["metadata"]["resourceVersion"]
    return found


def until_deleted(events: Iterator[Manifest]) -> Iterator[Manifest]:
    """The events up to the first deletion."""
    for event in events:
        yield event
        if event["type"] == "DELETED":
            return


def first_is_gone(events: Iterator[Manifest]) -> bool:
    """Whether a watch began with 410 Gone."""
    event = next(events)
    return (event["type"], event["object"].get("code")) == ("ERROR", HTTPStatus.GONE)


def may_list(api: Api) -> bool:
    """Whether the API server takes this client's token."""
    try:
        api.list("v1", "Pod")
    except ApiError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            return False
        raise
    return True


def answer(lab: Lab, name: str) -> str:
    """What the lab's client is told is a name's address."""
    return lab.clients[0].dig(name, "A", VIP, "+short").stdout.strip()
