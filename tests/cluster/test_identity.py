"""Session lines name pods, workloads, containers and Services: a lab, a real API server, the whole agent."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import dns.message
import pytest

from agent.enrich.processes import NetnsProcesses
from agent.lab import ANY_CLUSTER_NAME, VIP, VIP6, Lab, Pod, wait_until
from agent.lab.processes import end
from agent.lab.wiring import GATEWAY, NODE_ADDRESS, NODE_MAC
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import (
    ACCOUNT,
    LINE_SECONDS,
    NAMESPACE,
    Container,
    Dnstrail,
    Node,
    cart,
    dns_service,
    running,
    serve_dns,
)
from tests.cluster.rest import ApiError, Manifest
from tests.kernel.conftest import Line
from tests.lab.conntrack_faults import addresses_of, service_of
from tests.lab.shapes import BEYOND, tun_server, udp_reply

pytestmark = pytest.mark.kernel

WAIT_SECONDS = 1.0
"""So long a session waits for the name of its pod."""
SHOWN_SECONDS = 3.0
"""Until a session that is over is printed, on a machine that has other things to do."""
FAR_NODE, FAR_CLIENT = "node-b", "10.99.0.77"
NOBODY = {"Namespace": None, "Pod": None, "Workload": None, "Container": None}
CONTAINER_LIST = [{"name": name, "image": "example.test/main"} for name in ("main", "sidecar")]


@pytest.fixture(scope="module")
def dnstrail(_running_control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnstrail]:
    """One for all tests: their pods come and go before its eyes."""
    with running(_running_control_plane, tmp_path_factory.mktemp("dnstrail")) as started:
        yield started


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("nftables", clients=4, servers=2) as built:
        yield built


@pytest.fixture
def node(lab: Lab, control_plane: ControlPlane, dnstrail: Dnstrail) -> Iterator[Node]:
    """A node with two DNS servers, which are pods behind a Service."""
    with Node(lab, control_plane, dnstrail) as made:
        control_plane.apply([manifests.node()])
        serve_dns(made, control_plane)
        yield made


def identity(line: Line) -> dict[str, str | None]:
    return {key: line["Client"][key] for key in NOBODY}


def of(container: Container, workload: str | None, name: str | None = "main") -> dict[str, str | None]:
    return {"Namespace": "shop", "Pod": container.name, "Workload": workload, "Container": name}


@pytest.mark.parametrize("translation", ["iptables", "nftables"])
def test_both_ends_have_their_names(control_plane: ControlPlane, dnstrail: Dnstrail, translation: str):
    with Lab(translation) as lab, Node(lab, control_plane, dnstrail) as node:
        (server,) = serve_dns(node, control_plane)
        client = node.run_pod(lab.clients[0], cart(lab.clients[0]))
        node.ask_until_known(client)

        for vip, backend in ((VIP, f"{server.place.address}:53"), (VIP6, f"[{server.place.address6}]:53")):
            line = node.ask(client, server=vip)
            assert identity(line) == of(client, "Deployment/cart")
            assert line["Client"]["Process"] == Path(sys.executable).name
            assert line["Server"] == line["Server"] | {
                "Address": vip,
                "Service": "kube-system/kube-dns",
                "Backend": backend,
                "Namespace": "kube-system",
                "Pod": "coredns-0",
                "TranslatedBy": "conntrack",
                "Process": "dnsmasq",
            }
            # A program that is gone when its lookup is over leaves its pod, not its container.
            name = node.name("tcp")
            client.dig(name, "+tcp", server=vip)
            line = node.line(name)
            assert identity(line) | {"Container": "main"} == of(client, "Deployment/cart")
            assert (line["Protocol"], line["Server"]["Pod"]) == ("TCP", "coredns-0")


def test_a_server_that_is_asked_by_its_own_address_has_its_name(node: Node):
    client = node.run_pod(node.lab.clients[0], cart(node.lab.clients[0]))
    node.ask_until_known(client)

    line = node.ask(client, server=node.lab.servers[1].address)

    assert (line["Server"]["Pod"], line["Server"]["Service"]) == ("coredns-1", None)
    assert (line["Server"]["Backend"], line["Server"]["TranslatedBy"]) == (None, None)


def test_a_workload_is_the_controller_that_people_know(node: Node, control_plane: ControlPlane):
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": "shop",
            "name": "backup-29",
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "CronJob", "name": "backup", "uid": "u", "controller": True}
            ],
        },
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": CONTAINER_LIST[:1]}}},
    }
    control_plane.apply([job])
    owners = {"StatefulSet/db": "StatefulSet/db", "DaemonSet/log": "DaemonSet/log", "Job/backup-29": "CronJob/backup"}
    clients = {
        expected: node.run_pod(place, manifests.pod("shop", f"pod-{at}", (place.address,), owner=owner))
        for at, (place, (owner, expected)) in enumerate(zip(node.lab.clients, owners.items(), strict=False))
    }
    bare = node.run_pod(node.lab.clients[3], manifests.pod("shop", "bare", (node.lab.clients[3].address,)))
    node.ask_until_known(bare)

    for expected, client in clients.items():
        line = node.ask_until(client, lambda line: line["Client"]["Workload"] == expected, expected)  # noqa: B023  called at once
        assert identity(line) == of(client, expected)
    assert identity(node.ask(bare)) == of(bare, None)


def test_containers_of_one_pod_are_told_apart_by_the_process_that_asks(node: Node, control_plane: ControlPlane):
    place = node.lab.clients[0]
    pod = cart(place)
    pod["spec"]["containers"] = CONTAINER_LIST
    main = node.run_pod(place, pod)
    sidecar_id = "5" * 64
    statuses = main.held["status"]["containerStatuses"]
    sidecar = {**statuses[0], "name": "sidecar", "containerID": f"containerd://{sidecar_id}"}
    control_plane.patch(main.held, {"status": {"containerStatuses": [*statuses, sidecar]}}, "status")
    other = node.start_beside(main, sidecar_id)
    node.ask_until_known(main)

    assert identity(node.ask(other)) == of(main, "Deployment/cart", "sidecar")
    assert identity(node.ask(main)) == of(main, "Deployment/cart", "main")
    # Whose program was never in a container (as with `nsenter`) is in the pod's network all the same.
    name = node.name()
    place.dig(name)
    assert identity(node.line(name)) == of(main, "Deployment/cart", None)


def test_each_lookup_has_the_pod_of_its_time_while_pods_come_and_go_and_use_an_address_again(
    node: Node, control_plane: ControlPlane
):
    address = node.lab.clients[0].address
    asked: dict[str, str] = {}
    place = node.lab.clients[0]
    for at, successor in enumerate([*node.lab.clients[1:], None]):
        pod = node.run_pod(place, cart(place, f"cart-7d9f-{at}", (address,)))
        node.ask_until_known(pod)
        for _ in range(3):
            name = node.name("life")
            asked[name] = pod.name
            pod.program.ask(name)
        # The last one is not answered: its line comes when somebody else has the address.
        with stopped(node.lab):
            last = node.name("last")
            asked[last] = pod.name
            pod.program.ask(last)
            node.kill(pod)
            control_plane.delete(pod.held)
            if successor is not None:
                hand_over(node.lab, place, successor, address)
                place = successor
    with contextlib.ExitStack() as stack:
        stack.callback(hand_over, node.lab, place, node.lab.clients[0], address)
        found = {name: node.line(name)["Client"]["Pod"] for name in asked}

    assert found == asked


def hand_over(lab: Lab, old: Pod, new: Pod, address: str) -> None:
    """Give a pod's address to another pod, as a CNI does when the first one is gone."""
    old.run(["ip", "addr", "del", f"{address}/32", "dev", "eth0"])
    # A device that was without addresses has lost everything else too.
    again = [
        f"neigh replace {GATEWAY} lladdr {NODE_MAC} nud permanent dev eth0",
        f"route replace {GATEWAY}/32 dev eth0 scope link",
        f"route replace default via {GATEWAY} dev eth0",
    ]
    new.run(["ip", "-batch", "-"], stdin="\n".join([f"addr add {address}/32 dev eth0", *again, ""]))
    known = lab.node.run(["ip", "neigh", "show", new.address, "dev", new.node_interface]).stdout.split()
    mac = known[known.index("lladdr") + 1]
    commands = [
        f"neigh replace {address} lladdr {mac} nud permanent dev {new.node_interface}",
        f"route replace {address}/32 dev {new.node_interface} scope link src {NODE_ADDRESS}",
    ]
    lab.node.run(["ip", "-batch", "-"], stdin="".join(f"{one}\n" for one in commands))


@contextlib.contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """All servers hang meanwhile."""
    for server in lab.servers:
        server.stop()
    try:
        yield
    finally:
        for server in lab.servers:
            server.resume()


@pytest.mark.parametrize(("names", "container"), [(("main",), "main"), (("main", "beside"), None)])
def test_a_pod_without_a_process_on_the_node_is_known_by_its_address(
    node: Node, control_plane: ControlPlane, names: tuple[str, ...], container: str | None
):
    # As Kata runs it: the namespace has no process in the pod's cgroup, so only a container that is alone has a name.
    place = node.lab.clients[0]
    spec = {"containers": [{"name": name, "image": "example.test/any"} for name in names]}
    pod = manifests.pod("shop", "kata-1", (place.address, place.address6), owner="StatefulSet/kata", spec=spec)
    control_plane.apply([pod])
    client = node.run_pod(node.lab.clients[1], cart(node.lab.clients[1]))
    node.ask_until_known(client)

    for vip in (VIP, VIP6):
        name = node.name()
        place.dig(name, server=vip)
        expected = {"Namespace": "shop", "Pod": "kata-1", "Workload": "StatefulSet/kata", "Container": container}
        assert identity(node.line(name)) == expected


def test_a_pod_on_the_nodes_network_is_told_from_the_node_itself(node: Node, tmp_path: Path):
    processes = NetnsProcesses()
    if Path("/proc/self/ns/net").stat().st_ino != processes.host_netns:
        pytest.skip("the tests do not run in the node's own network namespace")
    pod = manifests.pod("shop", "proxy-1", owner="DaemonSet/proxy", host_network=True)
    proxy = node.run_pod(node.lab.clients[0], pod, on_machine=True)
    client = node.run_pod(node.lab.clients[1], cart(node.lab.clients[1]))
    node.ask_until_known(client)

    with server_on_loopback(node.lab, tmp_path) as address:
        by_pod, by_node = node.name("pod"), node.name("node")
        assert proxy.program.ask(by_pod, server=address) == "NOERROR"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            sock.connect((address, 53))
            sock.send(dns.message.make_query(by_node, "A").to_wire())
            assert sock.recv(512)
        for name in (by_pod, by_node):
            wait_until(lambda: node.dnstrail.about(name) != [], "its line", seconds=LINE_SECONDS)  # noqa: B023  called at once
    (pods,), (nodes,) = node.dnstrail.about(by_pod), node.dnstrail.about(by_node)
    assert identity(pods) == {
        "Namespace": "shop",
        "Pod": "proxy-1",
        "Workload": "DaemonSet/proxy",
        "Container": "main",
    }
    assert identity(nodes) == NOBODY


@contextlib.contextmanager
def server_on_loopback(lab: Lab, folder: Path) -> Iterator[str]:
    """A DNS server in this machine's own namespace, at a loopback address that nobody else uses."""
    address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 1}"
    argv = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--user=root", "--pid-file=", "--no-resolv"]
    argv += [
        "--no-hosts",
        f"--listen-address={address}",
        "--bind-interfaces",
        f"--address=/{ANY_CLUSTER_NAME}/192.0.2.1",
    ]
    with (folder / "dnsmasq.log").open("w") as log:
        server = lab.processes.popen(argv, stdout=log, stderr=log)

    def answers() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.settimeout(0.1)
            sock.connect((address, 53))
            sock.send(dns.message.make_query("ready.test", "A").to_wire())
            return bool(sock.recv(512))
        return False

    try:
        wait_until(answers, "the server on loopback to answer")
        yield address
    finally:
        end(server)


def test_a_session_waits_a_second_at_most_for_the_name_of_a_new_pod(node: Node, control_plane: ControlPlane):
    first, second, third = node.lab.clients[:3]
    client = node.run_pod(first, cart(first))
    node.ask_until_known(client)

    # The API server knows of both, and tells this node of a pod when it is bound to it.
    late, never = (unbound(node, control_plane, place, f"new-{at}") for at, place in enumerate((second, third)))
    names = {late: node.name("late"), never: node.name("never")}
    for container, name in names.items():
        container.program.ask(name)
    asked = time.monotonic()
    wait_until(lambda: time.monotonic() > asked + WAIT_SECONDS / 2, "the API to be late")
    bind(control_plane, late.held)

    assert identity(node.line(names[late])) == of(late, "Deployment/cart")
    assert time.monotonic() - asked < WAIT_SECONDS + SHOWN_SECONDS
    nameless = node.line(names[never])
    assert time.monotonic() - asked < WAIT_SECONDS + SHOWN_SECONDS
    assert identity(nameless) == NOBODY | {"Container": never.id[:12]}
    assert nameless["Server"]["Service"] == "kube-system/kube-dns"


def unbound(node: Node, control_plane: ControlPlane, place: Pod, name: str) -> Container:
    """A pod that runs here already, and of which the API server tells nobody that it does."""
    container_id = name.encode().hex().ljust(64, "0")
    pod = manifests.pod(
        "shop",
        name,
        (place.address,),
        node="",
        owner="ReplicaSet/cart-7d9f",
        labels={"pod-template-hash": "7d9f"},
        container_id=f"containerd://{container_id}",
    )
    del pod["spec"]["nodeName"]
    (held,) = control_plane.apply([pod])
    return node.start(place, held, container_id)


def bind(control_plane: ControlPlane, pod: Manifest) -> None:
    target = {"apiVersion": "v1", "kind": "Node", "name": manifests.NODE}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": pod["metadata"], "target": target}
    control_plane.request("POST", control_plane.path_of(pod, "binding"), binding)


def test_a_server_on_another_node_has_its_name(node: Node, control_plane: ControlPlane):
    place = node.lab.clients[0]
    client = node.run_pod(place, cart(place))
    far = manifests.pod("kube-system", "coredns-far", (BEYOND,), node=FAR_NODE)
    control_plane.apply(dns_service(control_plane.apply([far])))

    with tun_server(node.lab.node), service_of(node.lab, [(BEYOND, addresses_of(node.lab.servers[0])[1])]):
        line = node.ask_until_known(client)

    assert line["Vantage"] == "client"
    assert identity(line) == of(client, "Deployment/cart")
    assert line["Server"] == line["Server"] | {
        "Service": "kube-system/kube-dns",
        "Backend": f"{BEYOND}:53",
        "Namespace": "kube-system",
        "Pod": "coredns-far",
        "TranslatedBy": "conntrack",
    }


def test_a_client_on_another_node_is_known_by_its_address(node: Node, control_plane: ControlPlane):
    far = manifests.pod("shop", "web-1", (FAR_CLIENT,), node=FAR_NODE, owner="StatefulSet/web")
    control_plane.apply([far])

    with tun_server(node.lab.node) as outside:

        def asks() -> Line:
            name = node.name("far")
            os.write(outside.fd, query_from(FAR_CLIENT, node.lab.servers[0].address, name))
            return node.line(name)

        # Its first lookup is what makes pods elsewhere worth knowing.
        wait_until(lambda: asks()["Client"]["Pod"] is not None, "the client's name", seconds=10)
        line = asks()

    assert line["Vantage"] == "server"
    assert identity(line) == {"Namespace": "shop", "Pod": "web-1", "Workload": "StatefulSet/web", "Container": None}
    assert (line["Server"]["Pod"], line["Server"]["Namespace"]) == ("coredns-0", "kube-system")


def query_from(client: str, server: str, name: str) -> bytes:
    """A packet with a query, as it comes in from another node."""
    # It is the reply to one that went the other way.
    ends = socket.inet_aton(server) + socket.inet_aton(client)
    other_way = bytes(12) + ends + struct.pack("!HH", 53, 40000 + os.getpid() % 1000)
    (packet,) = udp_reply(other_way, dns.message.make_query(name, "A").to_wire(), 1480)
    return packet


def test_the_account_may_do_what_it_does_and_nothing_more(node: Node, control_plane: ControlPlane):
    assert node.lab
    agent = control_plane.client(control_plane.token_for(NAMESPACE, ACCOUNT))

    assert agent.list("v1", "Pod")["items"]
    for api_version, kind in (("v1", "Node"), ("v1", "Namespace"), ("apps/v1", "ReplicaSet"), ("batch/v1", "Job")):
        with pytest.raises(ApiError) as refused:
            agent.list(api_version, kind)
        assert refused.value.code == HTTPStatus.FORBIDDEN
    with pytest.raises(ApiError) as refused:
        agent.get({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "kube-system", "name": "coredns-0"}})
    assert refused.value.code == HTTPStatus.FORBIDDEN
