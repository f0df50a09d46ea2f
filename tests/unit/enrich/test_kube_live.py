"""What the agent is told of a cluster, over replayed answers of an API server; what it pays without one."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.context.cluster import Cluster, NullCluster
from agent.enrich.kube import live, rbac
from agent.enrich.kube.access import IN_CLUSTER, InCluster, Kubeconfig, access_by
from agent.enrich.kube.errors import NotConfiguredError
from agent.enrich.kube.events import Event
from agent.enrich.kube.facts import packed
from agent.enrich.kube.live import LiveCluster
from agent.hop.endpoint import Endpoint
from agent.hop.record import TCP, UDP
from tests.unit.kube_replay import (
    BOUND_SECONDS,
    EVENTS,
    JOB,
    PODS,
    QUICK,
    SERVICES,
    SLICES,
    STATEFUL_SETS,
    Answer,
    Replay,
    kubeconfig,
    recorded,
    replaying,
)


def data(address: str) -> bytes:
    found = packed(address)
    assert found is not None
    return found


def until(cluster: LiveCluster, condition: Callable[[], object], what: str) -> None:
    """Poll, as the agent's loop does, until the condition holds."""
    end = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}: {cluster.health}"
        time.sleep(0.002)
        cluster.poll()


@pytest.fixture
def server() -> Iterator[Replay]:
    with replaying() as replay:
        yield replay


@pytest.fixture
def cluster(server: Replay, tmp_path: Path) -> Iterator[LiveCluster]:
    """Synced with everything that was recorded."""
    watching = LiveCluster(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), "node-a", timing=QUICK)
    watching.start()
    # The agent is ready without some of these; pods elsewhere and jobs come when somebody asks.
    until(watching, lambda: watching.is_synced and all(one.synced for one in watching.health[:5]), "the cluster")
    yield watching
    watching.stop()


def test_everything_that_a_line_names_is_known(cluster: LiveCluster):
    asked: Cluster = cluster
    now = time.time_ns()
    pod = asked.pod_at(data("10.244.1.10"), now)
    assert pod is not None
    assert (pod.namespace, pod.name, pod.workload) == ("shop", "cart-7d9f-x2x", "Deployment/cart")
    assert asked.pod_at(data("fd00:10:244:1::a"), now) == asked.pod_by_uid(pod.uid) == pod
    service = asked.service_at(data("10.96.0.10"))
    assert service is not None
    assert (service.namespace, service.name) == ("kube-system", "kube-dns")
    assert asked.service_at(data("fd00:10:96::a")) == asked.service_of("kube-system", "kube-dns") == service
    owner = asked.stateful_set("shop", "web")
    assert owner is not None
    assert owner.service == "web-wrong"
    cache = asked.node_local()
    assert cache is not None
    assert cache.pod.name == "node-local-dns-abcde"
    assert data("169.254.20.10") in cache.addresses


def test_the_address_of_a_node_is_no_pods(cluster: LiveCluster):
    assert cluster.pod_at(data("10.244.0.1"), time.time_ns()) is None


def test_what_does_not_exist_is_not_known(cluster: LiveCluster):
    assert cluster.pod_at(data("10.9.9.9"), time.time_ns()) is None
    assert cluster.pod_by_uid("nobody") is None
    assert cluster.service_at(data("10.96.9.9")) is None
    assert cluster.service_of("shop", "nothing") is None
    assert cluster.stateful_set("shop", "nothing") is None
    assert cluster.members("shop", "nothing") is None
    assert cluster.backends(Endpoint(data("10.96.9.9"), 53), UDP) is None


def test_backends_are_those_of_the_port_and_protocol(cluster: LiveCluster):
    virtual = data("10.96.0.10")
    found = cluster.backends(Endpoint(virtual, 53), UDP)
    assert found is not None
    assert found.current
    assert found.ready == {Endpoint(data(f"10.244.2.5{number}"), 53) for number in (1, 2)}
    assert found.not_ready == {Endpoint(data("10.244.2.53"), 53)}
    assert cluster.backends(Endpoint(virtual, 53), TCP) == found
    assert cluster.backends(Endpoint(virtual, 80), TCP) is None


def test_a_server_on_another_node_is_named_by_its_endpoint(cluster: LiveCluster):
    pod = cluster.pod_behind(Endpoint(data("10.244.2.51"), 53), time.time_ns())
    assert pod is not None
    assert (pod.namespace, pod.name, pod.node, pod.workload) == ("kube-system", "coredns-1", "node-b", None)
    assert cluster.pod_behind(Endpoint(data("10.244.2.51"), 54), time.time_ns()) is None


def test_members_of_a_headless_service_are_known_with_those_that_are_not_ready(cluster: LiveCluster):
    assert cluster.members("shop", "web") == ((data("10.244.1.11"), "web-0", "web-0", False),)
    assert cluster.members("kube-system", "kube-dns") is None


def test_the_cron_job_of_a_completed_pod_is_found_out(cluster: LiveCluster, server: Replay):
    def workload() -> str | None:
        uid = next(facts.key for facts in cluster._here.mirror if facts.pod.name.startswith("backup"))
        pod = cluster.pod_by_uid(uid)
        return pod.workload if pod else None

    until(cluster, lambda: workload() == "CronJob/backup", "the CronJob")
    assert [one.path for one in server.requests].count(JOB) == 1


def test_a_pod_that_was_deleted_is_known_by_its_uid(server: Replay, tmp_path: Path):
    server.watches[PODS].append(Answer(b"\n".join(EVENTS) + b"\n", ends=False))
    watching = LiveCluster(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), "node-a", timing=QUICK)
    watching.start()
    until(watching, lambda: watching.health[0].events["DELETED"] and not watching._here.watch._steps.qsize(), "its end")
    pods = [one for _, one in watching._pods._departed.values()]
    assert [one.name for one in pods] == ["cart-7d9f-y3y"]
    assert watching.pod_by_uid(pods[0].uid) == pods[0]
    assert watching.pod_at(data("10.244.1.13"), time.time_ns()) is None
    watching.stop()


def test_pods_of_other_nodes_are_asked_for_only_when_a_server_needs_them(cluster: LiveCluster, server: Replay):
    def asked() -> bool:
        return any("spec.nodeName!=node-a" in one.query.get("fieldSelector", "") for one in server.requests)

    assert not asked()
    cluster.expect_clients_from_elsewhere()
    until(cluster, lambda: cluster.health[5].synced, "the pods elsewhere")
    assert asked()


def test_pods_of_other_nodes_are_forgotten_when_no_server_needs_them(
    cluster: LiveCluster, server: Replay, monkeypatch: pytest.MonkeyPatch
):
    server.lists[PODS][0] = Answer(recorded("pods-page-2.json"))
    monkeypatch.setattr(live, "ELSEWHERE_SECONDS", 0.3)
    cluster.expect_clients_from_elsewhere()
    until(cluster, lambda: cluster.pod_at(data("10.244.2.10"), time.time_ns()), "a pod of node-b")
    until(cluster, lambda: not cluster.health[5].wanted and not cluster.health[5].objects, "it to be forgotten")
    assert cluster.pod_at(data("10.244.2.10"), time.time_ns()) is None
    assert cluster.is_synced


def test_endpoints_are_asked_for_by_the_names_of_dns_services(cluster: LiveCluster, server: Replay):
    assert cluster.is_synced
    selectors = {one.query["labelSelector"] for one in server.of(watch=False, path=SLICES)}
    assert selectors == {"kubernetes.io/service-name in (kube-dns,shared)", "service.kubernetes.io/headless"}


def test_nothing_is_asked_for_that_is_not_in_the_cluster_role(cluster: LiveCluster, server: Replay):
    cluster.expect_clients_from_elsewhere()
    until(cluster, lambda: cluster.health[5].synced and JOB in {one.path for one in server.requests}, "all requests")
    paths = {PODS: rbac.PODS, SERVICES: rbac.SERVICES, SLICES: rbac.ENDPOINT_SLICES, STATEFUL_SETS: rbac.STATEFUL_SETS}
    allowed = {(path, verb) for path, rule in paths.items() for verb in rule.verbs} | {(JOB, rbac.JOBS.verbs[0])}
    asked = {(one.path, "watch" if one.is_watch else "get" if one.path == JOB else "list") for one in server.requests}
    assert asked == allowed
    assert rbac.cluster_role_rules() == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": ["list", "watch"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]


def test_without_rights_that_are_not_required_the_rest_is_known(server: Replay, tmp_path: Path):
    server.lists[STATEFUL_SETS].appendleft(Answer(recorded("forbidden.json"), status=403))
    server.lists[STATEFUL_SETS].pop()
    server.lists[JOB].appendleft(Answer(recorded("forbidden.json"), status=403))
    watching = LiveCluster(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), "node-a", timing=QUICK)
    watching.start()
    until(watching, lambda: watching.is_synced and watching.health[6].errors, "the rest")
    assert watching.is_current
    (refused,) = [one for one in watching.health if one.name == "statefulsets"]
    assert not refused.synced
    assert refused.errors["Forbidden"]
    assert watching.stateful_set("shop", "web") is None
    watching.stop()


def test_when_the_api_server_is_gone_what_is_known_remains_and_that_is_said(
    cluster: LiveCluster, server: Replay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agent.enrich.kube.health.GAP_SECONDS", 0.3)
    assert cluster.is_current
    server.closing.set()
    server.shutdown()
    server.socket.close()
    until(cluster, lambda: not cluster.is_current, "it to be missed")
    until(cluster, lambda: cluster.health[0].errors.total() > 2, "some attempts")
    assert cluster.is_synced
    assert cluster.pod_at(data("10.244.1.10"), time.time_ns()) is not None
    found = cluster.backends(Endpoint(data("10.96.0.10"), 53), UDP)
    assert found is not None
    assert not found.current
    assert not found.lacked(Endpoint(data("10.9.9.9"), 53), time.time_ns())


def test_a_turn_takes_in_no_more_than_it_may(server: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live, "OBJECTS_A_TURN", 2)
    watching = LiveCluster(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), "node-a", timing=QUICK)
    watching.start()
    end = time.monotonic() + BOUND_SECONDS
    while watching._here.watch._steps.qsize() < 2 or watching._all_services.watch._steps.qsize() < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    watching.poll()
    assert len(watching._here.mirror) == 5, "one step"
    assert len(watching._all_services.mirror) == 0, "has to wait"
    until(watching, lambda: watching.is_synced, "the rest")
    watching.stop()


def test_a_cluster_that_was_never_reached_ends_at_once(tmp_path: Path):
    watching = LiveCluster(kubeconfig(tmp_path, "http://127.0.0.1:1"), "node-a")
    watching.start()
    until(watching, lambda: watching.health[0].errors, "a failure")
    begun = time.monotonic()
    watching.stop()
    assert time.monotonic() - begun < BOUND_SECONDS
    assert not watching.is_synced
    assert not watching.is_current


def test_without_a_cluster_nobody_is_known():
    nobody: Cluster = NullCluster()
    assert nobody.pod_at(data("10.244.1.10"), 0) is None
    assert nobody.node_local() is None


def test_the_user_says_how_to_get_at_the_cluster(tmp_path: Path):
    inside = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    config = tmp_path / "config"
    config.touch()
    assert access_by("off", inside) is None
    assert access_by("auto", {}) is None
    assert access_by(IN_CLUSTER, inside) == InCluster(environment=inside)
    assert access_by(str(config), {}) == Kubeconfig(config)
    with pytest.raises(NotConfiguredError, match="no pod of a cluster"):
        access_by(IN_CLUSTER, {})
    with pytest.raises(NotConfiguredError, match="no kubeconfig"):
        access_by(str(tmp_path / "missing"), {})


def test_inside_is_where_a_token_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inside = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    monkeypatch.setattr("agent.enrich.kube.access.SERVICE_ACCOUNT", tmp_path)
    assert access_by("auto", inside) is None
    (tmp_path / "token").touch()
    assert isinstance(access_by("auto", inside), InCluster)


def imported_by(statement: str) -> set[str]:
    report = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True, env={**os.environ}, timeout=60
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_an_agent_without_a_cluster_does_not_load_what_it_takes():
    assert not imported_by("import agent.cli, agent.run, agent.enrich.kube.live") & {"kubernetes", "urllib3", "yaml"}


def test_a_pod_of_the_cluster_does_not_load_what_only_a_kubeconfig_takes():
    inside = "from agent.enrich.kube import client, library; library.load(whole=False)"
    assert not imported_by(inside) & {"oauthlib", "requests", "websocket", "pydantic", "aiohttp"}
    after = imported_by(f"{inside}; import kubernetes; assert kubernetes.config.load_kube_config")
    assert "kubernetes" in after, "whoever wants all of it gets it"


def test_what_the_agent_needs_is_waited_for_from_the_first_moment(tmp_path: Path):
    watching = LiveCluster(kubeconfig(tmp_path, "http://127.0.0.1:1"), "node-a")
    missing = {watch.name for watch in watching.health if watch.required and watch.wanted and not watch.synced}
    assert missing == {"pods-here", "services", "slices-of-servers", "slices-of-headless"}


def test_a_cluster_without_dns_services_does_not_wait_for_their_slices(tmp_path: Path):
    watching = LiveCluster(kubeconfig(tmp_path, "http://127.0.0.1:1"), "node-a")
    watching._all_services.mirror.synced = True
    watching.poll()
    assert not next(watch for watch in watching.health if watch.name == "slices-of-servers").wanted


def test_events_are_written_where_they_are_asked_for_and_nothing_else_is_ever_written(server: Replay, tmp_path: Path):
    access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    assert LiveCluster(access, "node-a", timing=QUICK).events is None
    watching = LiveCluster(access, "node-a", timing=QUICK, events=True)
    watching.start()
    assert watching.events is not None
    until(watching, lambda: watching.is_synced, "the cluster")
    assert {one.method for one in server.requests} == {"GET"}
    watching.events.offer(Event("shop", "dnstrail.1", {"kind": "Event"}, may_be_gone=True))
    until(watching, lambda: watching.events.health.results["created"], "the Event")
    watching.stop()
    assert [one.path for one in server.requests if one.method != "GET"] == ["/api/v1/namespaces/shop/events"]
