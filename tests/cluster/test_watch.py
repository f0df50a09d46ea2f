"""What a real API server tells the agent, with the rights of the agent's own ServiceAccount and no more."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from agent.context.cluster import Pod
from agent.enrich.kube.access import InCluster
from agent.enrich.kube.facts import packed
from agent.enrich.kube.health import WatchHealth
from agent.enrich.kube.live import LiveCluster
from agent.enrich.kube.rbac import cluster_role_rules
from agent.enrich.kube.watch import Timing
from agent.hop.endpoint import Endpoint
from agent.hop.record import UDP
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.credentials import Credentials
from tests.cluster.rest import Manifest

NAMESPACE, ACCOUNT = "kube-system", "dnstrail"
BOUND_SECONDS = 60.0
QUICK = Timing(silence_seconds=3, read_seconds=3, settled_seconds=0.5, first_wait_seconds=0.1, longest_wait_seconds=0.5)
A, B = "10.244.1.10", "10.244.1.11"
REMOTE = "10.244.7.7"
VIRTUAL = Endpoint(packed("10.96.0.10") or b"", 53)


class Observer:
    """A cluster as the agent sees it."""

    def __init__(self, access: InCluster, timing: Timing = QUICK) -> None:
        self.cluster = LiveCluster(access, manifests.NODE, timing=timing)

    def __enter__(self) -> Self:
        self.cluster.start()
        self.until(lambda: self.cluster.is_synced, "everything to be known")
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()

    def until(self, condition: Callable[[], object], what: str) -> None:
        poll_until(self.cluster, condition, what)

    def pod(self, address: str, ts_ns: int | None = None) -> Pod | None:
        return self.cluster.pod_at(bytes_of(address), time.time_ns() if ts_ns is None else ts_ns)

    def name(self, address: str, ts_ns: int | None = None) -> str | None:
        found = self.pod(address, ts_ns)
        return found.name if found else None

    def health(self, name: str) -> WatchHealth:
        return next(one for one in self.cluster.health if one.name == name)


def poll_until(cluster: LiveCluster, condition: Callable[[], object], what: str) -> None:
    """Poll, as the agent's loop does, until the condition holds."""
    end = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}: {cluster.health}"
        time.sleep(0.002)
        cluster.poll()


def bytes_of(address: str) -> bytes:
    found = packed(address)
    assert found is not None
    return found


def inside(control_plane: ControlPlane, directory: Path, seconds: float = 3600) -> InCluster:
    """A pod's way to the API server, with a token in a directory as the kubelet keeps it."""
    control_plane.project_token(directory, NAMESPACE, ACCOUNT, seconds)
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(control_plane.port)}
    return InCluster(directory, where)


@pytest.fixture
def access(control_plane: ControlPlane, tmp_path: Path) -> InCluster:
    control_plane.apply([*manifests.account(NAMESPACE, ACCOUNT, cluster_role_rules()), manifests.namespace("shop")])
    control_plane.apply([manifests.node()])
    return inside(control_plane, tmp_path / "serviceaccount")


@pytest.fixture
def observer(access: InCluster) -> Iterator[Observer]:
    with Observer(access) as observing:
        yield observing


def cart(name: str, *addresses: str, phase: str = "Running") -> Manifest:
    labels = {"pod-template-hash": "7d9f"}
    return manifests.pod("shop", name, addresses, owner="ReplicaSet/cart-7d9f", labels=labels, phase=phase)


def serve(control_plane: ControlPlane, addresses: Sequence[str]) -> None:
    """A DNS Service, and servers on another node."""
    servers = control_plane.apply(
        manifests.pod(NAMESPACE, f"coredns-{address.rpartition('.')[2]}", (address,), node="node-b")
        for address in addresses
    )
    service = manifests.service(NAMESPACE, "kube-dns", ("10.96.0.10",), ports=manifests.DNS_PORTS)
    control_plane.apply([service, *manifests.endpoint_slices(service, servers)])


def test_a_pod_is_known_by_its_addresses_moments_after_it_has_them(control_plane: ControlPlane, observer: Observer):
    begun = time.monotonic()
    (made,) = control_plane.apply([cart("cart-7d9f-x2x", A, "fd00:10:244:1::a")])
    observer.until(lambda: observer.pod(A), "the pod")

    assert time.monotonic() - begun < 5
    pod = observer.pod(A)
    assert pod is not None
    assert pod == observer.pod("fd00:10:244:1::a") == observer.cluster.pod_by_uid(made["metadata"]["uid"])
    assert (pod.namespace, pod.name, pod.workload) == ("shop", "cart-7d9f-x2x", "Deployment/cart")


def test_identities_stay_right_while_pods_come_and_go_and_use_addresses_again(
    control_plane: ControlPlane, observer: Observer
):
    lived: list[tuple[str, int]] = []
    for number in range(20):
        name = f"cart-7d9f-{number}"
        made = control_plane.create(cart(name, A))
        observer.until(lambda name=name: observer.name(A) == name, f"{name} at its address")
        lived.append((name, time.time_ns()))
        control_plane.delete(made)
        observer.until(lambda: observer.name(A) is None, f"{name} to be gone")

    assert [observer.name(A, moment) for _, moment in lived] == [name for name, _ in lived]
    assert observer.health("pods-here").lists == 1


def test_a_pod_on_the_nodes_network_is_known_by_uid_only(control_plane: ControlPlane, observer: Observer):
    (made,) = control_plane.apply([manifests.pod("shop", "proxy", host_network=True)])
    uid = made["metadata"]["uid"]
    observer.until(lambda: observer.cluster.pod_by_uid(uid), "the pod")
    assert observer.pod(manifests.NODE_ADDRESSES[0]) is None


def test_a_pod_that_has_completed_gives_its_address_away(control_plane: ControlPlane, observer: Observer):
    (made,) = control_plane.apply([cart("job", A)])
    observer.until(lambda: observer.name(A) == "job", "the pod")
    ended = {"terminated": {"exitCode": 0, "finishedAt": _stamp(time.time() - 2), "startedAt": _stamp(0)}}
    container = {"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
    control_plane.patch(made, {"status": {"phase": "Succeeded", "containerStatuses": [container]}}, "status")
    observer.until(lambda: observer.pod(A) is None, "its end")
    control_plane.create(cart("next", A))
    observer.until(lambda: observer.name(A) == "next", "the next pod")
    assert observer.cluster.pod_by_uid(made["metadata"]["uid"]) is not None


def test_backends_are_known_and_when_they_were_taken_off(control_plane: ControlPlane, observer: Observer):
    serve(control_plane, ("10.244.2.1", "10.244.2.2"))
    one, two = (Endpoint(bytes_of(f"10.244.2.{number}"), 53) for number in (1, 2))

    def ready() -> frozenset[Endpoint]:
        found = observer.cluster.backends(VIRTUAL, UDP)
        return found.ready if found else frozenset()

    observer.until(lambda: ready() == {one, two}, "both backends")
    before = time.time_ns()
    serve(control_plane, ("10.244.2.2",))
    observer.until(lambda: ready() == {two}, "one to be taken off")
    found = observer.cluster.backends(VIRTUAL, UDP)
    assert found is not None
    assert not found.lacked(one, before)
    assert found.lacked(one, time.time_ns())
    named = observer.cluster.pod_behind(one, before)
    assert named is not None
    assert (named.name, named.node) == ("coredns-1", "node-b")


def test_pods_of_other_nodes_are_known_while_they_have_an_address(control_plane: ControlPlane, observer: Observer):
    control_plane.apply([manifests.pod("shop", "elsewhere", (REMOTE,), node="node-b")])
    assert observer.pod(REMOTE) is None
    observer.cluster.expect_clients_from_elsewhere()
    observer.until(lambda: observer.name(REMOTE) == "elsewhere", "the pod of node-b")
    late = manifests.pod("shop", "late", ("10.244.7.8",), node="node-c")
    (made,) = control_plane.apply([late])
    observer.until(lambda: observer.name("10.244.7.8") == "late", "the pod of node-c")
    control_plane.patch(made, {"status": {"phase": "Succeeded"}}, "status")
    observer.until(lambda: observer.pod("10.244.7.8") is None, "its end")
    assert observer.health("pods-elsewhere").objects == 1


def test_the_cron_job_behind_a_pod_is_known(control_plane: ControlPlane, observer: Observer):
    cron_job = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "backup", "uid": "u", "controller": True}
    containers = [{"name": "main", "image": "example.test/main"}]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": "shop", "name": "backup-1", "ownerReferences": [cron_job]},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": containers}}},
    }
    control_plane.apply([job, manifests.pod("shop", "backup-1-x", (A,), owner="Job/backup-1")])
    observer.until(lambda: (pod := observer.pod(A)) and pod.workload == "CronJob/backup", "the CronJob")


def test_a_stateful_set_tells_its_service(control_plane: ControlPlane, observer: Observer):
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": "example.test/main"}]},
    }
    spec = {"serviceName": "other", "selector": {"matchLabels": {"app": "web"}}, "template": template}
    control_plane.apply(
        [
            {
                "apiVersion": "apps/v1",
                "kind": "StatefulSet",
                "metadata": {"namespace": "shop", "name": "web"},
                "spec": spec,
            }
        ]
    )
    observer.until(lambda: observer.cluster.stateful_set("shop", "web"), "the StatefulSet")
    found = observer.cluster.stateful_set("shop", "web")
    assert found is not None
    assert (found.service, found.replicas) == ("other", 1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_api_server_that_goes_away_and_comes_back_costs_no_identity(
    control_plane: ControlPlane, observer: Observer, how: signal.Signals
):
    control_plane.apply([cart("cart-7d9f-1", A), cart("cart-7d9f-2", B)])
    observer.until(lambda: observer.name(A) and observer.name(B), "both pods")
    control_plane.stop(how)
    observer.until(lambda: observer.health("pods-here").errors["Unreachable"], "it to be missed")
    assert (observer.name(A), observer.name(B)) == ("cart-7d9f-1", "cart-7d9f-2")
    assert not observer.health("pods-here").connected

    control_plane.start()
    control_plane.delete(cart("cart-7d9f-1"))
    control_plane.apply([cart("cart-7d9f-3", A)])
    observer.until(lambda: observer.name(A) == "cart-7d9f-3", "what changed")
    assert observer.name(B) == "cart-7d9f-2"
    observer.until(lambda: observer.cluster.is_current, "it to be current again")


def test_what_the_api_server_no_longer_knows_is_listed_anew(control_plane: ControlPlane, access: InCluster):
    control_plane.apply([cart("cart-7d9f-1", A), cart("cart-7d9f-2", B)])
    slow = QUICK._replace(first_wait_seconds=8, longest_wait_seconds=8)
    with Observer(access, slow) as observer:
        # While the watch waits, more happens than a new API server can tell.
        control_plane.restart(signal.SIGKILL)
        observer.until(lambda: observer.health("pods-here").errors, "the end of the watch")
        control_plane.delete(cart("cart-7d9f-1"))
        control_plane.apply([cart("cart-7d9f-2", B), cart("cart-7d9f-3", A)])
        control_plane.compact()
        observer.until(lambda: observer.health("pods-here").errors["Expired"], "the refusal (410)")
        observer.until(lambda: observer.name(A) == "cart-7d9f-3", "the new list")
        assert observer.name(B) == "cart-7d9f-2"
        assert observer.health("pods-here").lists == 2


def test_an_api_server_that_hangs_does_not_hang_the_agent(control_plane: ControlPlane, observer: Observer):
    control_plane.apply([cart("cart-7d9f-1", A)])
    observer.until(lambda: observer.name(A), "the pod")
    control_plane.hang()
    longest = 0.0
    end = time.monotonic() + BOUND_SECONDS
    while not observer.health("pods-here").errors["Silent"]:
        begun = time.monotonic()
        assert begun < end
        observer.cluster.poll()
        assert observer.name(A) == "cart-7d9f-1"
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.01)
    assert longest < 1
    control_plane.resume()
    control_plane.apply([cart("cart-7d9f-2", B)])
    observer.until(lambda: observer.name(B) == "cart-7d9f-2", "what came later")
    observer.until(lambda: observer.cluster.is_current, "it to be current again")


def test_a_token_that_expires_is_replaced_by_the_one_that_the_kubelet_wrote(
    control_plane: ControlPlane, access: InCluster
):
    # The API server forgives an expired token for a minute: this one has some seconds left.
    inside(control_plane, access.directory, seconds=-45)
    brief = QUICK._replace(watch_seconds=1)
    with Observer(access, brief) as observer:
        control_plane.apply([cart("cart-7d9f-1", A)])
        inside(control_plane, access.directory)
        observer.until(lambda: observer.cluster.renewals, "the old token to be refused")
        control_plane.apply([cart("cart-7d9f-2", B)])
        observer.until(lambda: observer.name(B) == "cart-7d9f-2", "what came later")
        assert observer.name(A) == "cart-7d9f-1"
        assert observer.cluster.renewals == 1
        assert observer.health("pods-here").lists == 1


def test_a_new_certificate_authority_is_trusted_once_the_kubelet_wrote_it(
    control_plane: ControlPlane, access: InCluster, tmp_path: Path
):
    other = Credentials(tmp_path / "other")
    other.make()
    (access.directory / "ca.crt").unlink()
    (access.directory / "ca.crt").write_text(other.ca.read_text())
    cluster = LiveCluster(access, manifests.NODE, timing=QUICK)
    cluster.start()
    poll_until(cluster, lambda: cluster.health[0].errors["Untrusted"], "distrust")
    (access.directory / "ca.crt").write_text(control_plane.ca_file.read_text())
    poll_until(cluster, lambda: cluster.is_synced, "trust")
    cluster.stop()


def test_without_rights_the_agent_is_not_ready_and_says_which_are_missing(
    control_plane: ControlPlane, access: InCluster
):
    control_plane.apply(manifests.account(NAMESPACE, "poor", ()))
    control_plane.project_token(access.directory, NAMESPACE, "poor")
    cluster = LiveCluster(access, manifests.NODE, timing=QUICK)
    cluster.start()
    # Of whose slices it asks, the Services would have said.
    wanted = [one for one in cluster.health if one.wanted and one.name != "slices-of-servers"]
    poll_until(cluster, lambda: all(one.errors["Forbidden"] for one in wanted), "refusals")
    assert not cluster.is_synced
    assert 'cannot list resource "pods"' in (cluster.health[0].last_error or "")
    cluster.stop()


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
