"""Findings and causes that need the cluster: CoreDNS and dnstrail know it from the same real API server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.lab import VIP, VIP6, Lab, wait_until
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.dns import cluster_dns
from tests.cluster.node import Container, Dnstrail, Node, cart, coredns, dns_service, running, serve_dns
from tests.cluster.rest import Manifest
from tests.kernel.conftest import Line
from tests.lab.conntrack_faults import addresses_of, service_of, without_route

pytestmark = pytest.mark.kernel

KNOWN_SECONDS = 20.0
MANY = 60
"""Endpoints: 16 bytes each, so that they are more than the 512 of a reply over UDP."""
ENOUGH = 500
"""Lookups: even when a minute ends meanwhile, 200 of them are in one."""
OLD, NEW = "10.96.44.3", "10.96.44.4"
HEADLESS = "service.kubernetes.io/headless"
NODE_LOCAL = "169.254.20.10"
CUT = """
table inet cut {{
  chain in {{ type filter hook input priority filter; tcp dport {port} drop; tcp sport {port} drop; }}
}}
"""
"""CoreDNS does not hear of the API server any more."""


@pytest.fixture(scope="module")
def dnstrail(_running_control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnstrail]:
    with running(_running_control_plane, tmp_path_factory.mktemp("dnstrail")) as started:
        yield started


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("nftables", clients=2, servers=2) as built:
        yield built


@pytest.fixture
def node(lab: Lab, control_plane: ControlPlane, dnstrail: Dnstrail) -> Iterator[Node]:
    with Node(lab, control_plane, dnstrail) as made:
        control_plane.apply([manifests.node()])
        yield made


@pytest.fixture
def client(node: Node) -> Container:
    return node.run_pod(node.lab.clients[0], cart(node.lab.clients[0]))


@pytest.fixture
def dns(node: Node, control_plane: ControlPlane) -> Iterator[Container]:
    """CoreDNS with its plugin `kubernetes` is the only server of the Service."""
    place = node.lab.servers[0]
    server = node.run_pod(place, coredns(place))
    control_plane.apply(dns_service([server.held]))
    with (
        service_of(node.lab, [addresses_of(place)]),
        cluster_dns(place, control_plane, node.lab.upstream.address) as process,
    ):
        node.adopt(server, process.pid)
        yield server


def until(look: Callable[[], Line], finding: str, *words: str) -> Line:
    """Look up until the line has the finding and these words: the cluster tells the node of changes a moment later."""
    deadline = time.monotonic() + KNOWN_SECONDS
    while not _says(line := look(), finding, words):
        assert time.monotonic() < deadline, (line["Rcode"], line["Findings"], line["Remarks"], line["Cause"])
    return line


def _says(line: Line, finding: str, words: tuple[str, ...]) -> bool:
    remarks = " ".join(line["Remarks"])
    return finding in line["Findings"] and all(word in remarks for word in words)


def remarks(line: Line) -> list[str]:
    """Without the names of their findings."""
    return [text.partition(": ")[2] if text.split(":")[0] in line["Findings"] else text for text in line["Remarks"]]


def headless(name: str, pods: list[Manifest]) -> list[Manifest]:
    service = manifests.service("shop", name, ("None",), ports=(("peer", "TCP", 7000),))
    slices = manifests.endpoint_slices(service, pods)
    for one in slices:
        # As the controller of EndpointSlices labels them.
        one["metadata"]["labels"][HEADLESS] = ""
    return [service, *slices]


@pytest.mark.usefixtures("dns")
def test_an_answer_that_is_not_the_services_address_is_wrong(
    node: Node, client: Container, control_plane: ControlPlane
):
    name = "api.shop.svc.cluster.local"
    service = manifests.service("shop", "api", (OLD,))
    control_plane.apply([service])
    wait_until(lambda: client.dig(name, "+short").strip() == OLD, "CoreDNS to know the Service")
    node.ask_until_known(client)
    line = node.ask(client, name)
    assert (line["Rcode"], line["Findings"]) == ("NOERROR", [])

    with deaf(node, control_plane):
        control_plane.delete(service)
        control_plane.create(manifests.service("shop", "api", (NEW,)))
        line = until(lambda: node.ask(client, name), "WrongAnswer")

    assert remarks(line) == [f"the answer is {OLD}, and Service shop/api has {NEW}"]
    assert line["Status"] == "Succeeded"


@pytest.mark.usefixtures("dns")
def test_that_a_service_does_not_exist_is_wrong_when_it_does(
    node: Node, client: Container, control_plane: ControlPlane
):
    name = "fresh.shop.svc.cluster.local"
    with deaf(node, control_plane):
        control_plane.create(manifests.service("shop", "fresh", (NEW,)))
        line = until(lambda: node.ask(client, name), "WrongAnswer")

    assert line["Rcode"] == "NXDOMAIN"
    assert remarks(line) == ["Service shop/fresh exists, and the answer is that it does not"]


@contextlib.contextmanager
def deaf(node: Node, control_plane: ControlPlane) -> Iterator[None]:
    """CoreDNS goes on with what it knows."""
    server = node.lab.servers[0]
    server.run(["nft", "-f", "-"], stdin=CUT.format(port=control_plane.port))
    try:
        yield
    finally:
        server.run(["nft", "delete", "table", "inet", "cut"])


@pytest.mark.usefixtures("dns")
def test_a_name_without_ready_endpoints_names_those_that_are_not_ready(
    node: Node, client: Container, control_plane: ControlPlane
):
    pods = [manifests.pod("shop", f"db-{at}", (f"10.244.7.{at}",), ready=at != 1) for at in (1, 2)]
    parts = headless("db", pods)
    for at, endpoint in enumerate(parts[1]["endpoints"], 1):
        endpoint["hostname"] = f"db-{at}"
    control_plane.apply(parts)
    wait_until(lambda: "10.244.7.2" in client.dig("db.shop.svc.cluster.local", "+short"), "CoreDNS to know the pods")

    line = until(lambda: node.ask(client, "db-1.db.shop.svc.cluster.local"), "NameNotFound", "db-1")

    assert remarks(line) == ["Service shop/db is headless, and these endpoints of it are not ready: db-1"]


@pytest.mark.usefixtures("dns")
def test_a_name_that_nobody_has_is_just_not_found(node: Node, client: Container):
    node.ask_until_known(client)
    line = node.ask(client, "nobody.shop.svc.cluster.local")
    assert (line["Rcode"], line["Findings"], line["Remarks"]) == ("NXDOMAIN", ["NameNotFound"], [])


@pytest.mark.usefixtures("dns")
def test_pods_of_a_stateful_set_have_names_under_its_own_service_only(
    node: Node, client: Container, control_plane: ControlPlane
):
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "main", "image": "example.test/main"}]},
    }
    stateful_set = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"serviceName": "web-peers", "selector": {"matchLabels": {"app": "web"}}, "template": template},
    }
    control_plane.apply([stateful_set, manifests.service("shop", "web", ("10.96.44.9",))])

    line = until(lambda: node.ask(client, "web-0.web.shop.svc.cluster.local"), "StatefulSetName")

    assert remarks(line) == ["StatefulSet shop/web has serviceName web-peers: its pods have no names under shop/web"]


@pytest.mark.usefixtures("dns")
def test_a_headless_service_that_is_too_large_for_a_reply_is_named(
    node: Node, client: Container, control_plane: ControlPlane
):
    pods = [manifests.pod("shop", f"peer-{at}", (f"10.244.7.{at}",)) for at in range(1, MANY + 1)]
    control_plane.apply(headless("peers", pods))
    name = "peers.shop.svc.cluster.local"
    wait_until(lambda: client.dig(name, "+tcp", "+short").count("\n") == MANY, "CoreDNS to know the pods")

    line = until(lambda: node.ask(client, name), "HeadlessTooLarge", str(MANY))

    assert "Truncated" in line["Findings"]
    assert remarks(line) == [f"Service shop/peers is headless and has {MANY} endpoints"]


def test_a_pod_that_asks_past_the_nodes_own_cache_is_told(node: Node, client: Container, control_plane: ControlPlane):
    serve_dns(node, control_plane)
    assert node.ask_until_known(client)["Findings"] == []
    cache = manifests.pod("kube-system", "node-local-dns-x", owner="DaemonSet/node-local-dns", host_network=True)
    cache["spec"]["containers"][0]["args"] = ["-localip", NODE_LOCAL, "-conf", "/etc/Corefile"]
    control_plane.apply([cache])

    line = until(lambda: node.ask(client), "NodeLocalBypassed")

    assert remarks(line) == [f"NodeLocal DNSCache on this node listens on {NODE_LOCAL}"]


@pytest.mark.parametrize("vip", [VIP, VIP6])
def test_an_entry_to_a_server_that_is_no_endpoint_any_more_is_stale_for_certain(
    node: Node, client: Container, control_plane: ControlPlane, vip: str
):
    servers = serve_dns(node, control_plane)
    node.ask_until_known(client)
    before, after = node.lab.servers
    place = node.lab.clients[0]

    def lost(count: int) -> list[str]:
        """Names that were asked for in vain over the same socket."""
        names = [node.name("stale") for _ in range(count)]
        assert not any(place.ask(name, server=vip, sock=sock) for name in names)
        return names

    def cause(name: str) -> dict[str, Any]:
        found: dict[str, Any] = node.line(name)["Cause"]
        return found

    with service_of(node.lab, [addresses_of(before)]), place.udp_socket(vip) as sock:
        assert place.ask(node.name("before"), server=vip, sock=sock)
        with service_of(node.lab, [addresses_of(after)]), without_route(node.lab, before):
            control_plane.delete(servers[0].held)
            control_plane.apply(dns_service([servers[1].held]))
            # The node hears of the change a moment later; until then, what it says is the missing route.
            wait_until(lambda: cause(lost(1)[0])["Code"] != "NoRoute", "the change to be known", seconds=KNOWN_SECONDS)
            causes = [cause(name) for name in lost(4)]

    assert {(one["Code"], one["Confidence"]) for one in causes} == {("StaleConntrackEntry", "high")}
    assert all("that is not an endpoint of the Service" in one["Evidence"] for one in causes)


def test_two_servers_that_share_the_load_are_even(node: Node, client: Container, control_plane: ControlPlane):
    serve_dns(node, control_plane)
    node.ask_until_known(client)
    names = [node.name("even") for _ in range(ENOUGH)]
    # By the other address: answers are counted for each, and the next test's are not to be mixed with these.
    assert {client.program.ask(name, server=VIP6) for name in names} == {"NOERROR"}
    assert not any(node.line(name)["Findings"] for name in names)


def test_a_server_that_gets_all_the_load_of_a_service_of_two_is_told(
    node: Node, client: Container, control_plane: ControlPlane
):
    serve_dns(node, control_plane)
    node.ask_until_known(client)
    with service_of(node.lab, [addresses_of(node.lab.servers[0])]):
        names = [node.name("load") for _ in range(ENOUGH)]
        assert {client.program.ask(name) for name in names} == {"NOERROR"}
    told = [remarks(line) for name in names if "ServerImbalance" in (line := node.line(name))["Findings"]]

    assert told
    assert "one of 2 servers" in told[-1][0]


@pytest.mark.usefixtures("dns")
def test_what_a_search_path_costs_is_told(node: Node, client: Container):
    node.ask_until_known(client)
    label = "www.upstream.test"
    searches = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")

    answers = client.place.resolver_argv(
        ["getent", "ahostsv4", label], search=" ".join(searches), options="ndots:5 timeout:1 attempts:2"
    )
    assert "192.0.2.80" in client.place.run(answers).stdout

    for search in searches:
        line = node.line(f"{label}.{search}")
        assert (line["Rcode"], line["Findings"]) == ("NXDOMAIN", ["SearchPathNXDOMAIN"])
        assert line["Client"]["Workload"] == "Deployment/cart"
    assert node.line(label)["Findings"] == []
