"""The lab's data planes do what they are named for: lookups are answered by them, and what they hide is hidden."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.capture.cgroup import cgroup2_root
from agent.lab import (
    BIG_NAME,
    CLUSTER_NAMES,
    UPSTREAM_NAMES,
    VIP,
    VIP6,
    Lab,
    Pod,
    UnsupportedFaultError,
    sweep,
    wait_until,
)
from agent.lab.wiring import UnsupportedLinkError
from tests.kernel.conftest import LINE_SECONDS, Line, Watch
from tests.lab.bpf_planes import host_routing, socket_translation
from tests.lab.proxies import DOCKER_ADDRESS, Proxy, docker_proxies, mesh_proxies, no_proxy, node_proxy, stopped_proxy

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

NAME = "redis-master.default.svc.cluster.local"
OUTSIDE = "www.upstream.test"
VIPS = (VIP, VIP6)
TRANSLATIONS = pytest.mark.parametrize("translation", ["iptables", "nftables"])
PORTS = pytest.mark.parametrize("port", [53, 5353])
SOURCES = pytest.mark.parametrize("source", ["own", "address", "port"])
KILLED_OWNER = """
import time
from agent.lab import Lab
from tests.lab.bpf_planes import socket_translation
with Lab() as lab, socket_translation(lab):
    print(lab.id, flush=True)
    time.sleep(60)
"""


def answer(pod: Pod, name: str, server: str, *options: str) -> str:
    return pod.dig(name, "A", server, "+short", *options).stdout.strip()


def answers_all(pod: Pod, servers: Sequence[str] = VIPS) -> bool:
    """Names of the cluster and of the world, over UDP and TCP, and one that begins by UDP and ends by TCP."""
    expected = {NAME: CLUSTER_NAMES[NAME][0], OUTSIDE: UPSTREAM_NAMES[OUTSIDE][0]}
    found = {
        (server, option, name): answer(pod, name, server, option)
        for server in servers
        for option in ("+notcp", "+tcp")
        for name in expected
    }
    assert found == {key: expected[key[2]] for key in found}
    return all("ANSWER: 1" in pod.dig(BIG_NAME, "TXT", server).stdout for server in servers)


def connections(pod: Pod) -> list[str]:
    return [line for line in pod.run(["conntrack", "--dump"]).stdout.splitlines() if "dport=53" in line]


def hops(watch: Watch, lab: Lab, name: str) -> list[tuple[str, int]]:
    """Event and namespace of each hop of the first client's lookup."""

    def mine() -> list[Line]:
        lines = [line for line in watch.lines(lab) if (line["Question"] or {}).get("Name") == f"{name}."]
        return [line for line in lines if line["Client"]["Netns"] == lab.clients[0].netns_id]

    wait_until(lambda: bool(mine()), "the lookup's line", seconds=LINE_SECONDS)
    return [(hop["Event"], hop["Netns"]) for hop in mine()[0]["Path"]]


@TRANSLATIONS
@pytest.mark.parametrize("port", [1053, 5353, 8053])
def test_a_service_of_port_53_has_its_pods_on_another_port(translation, port):
    with Lab(translation, servers=2, port=port) as lab:
        assert answers_all(lab.clients[0])
        assert answers_all(lab.node)
        assert "refused" in lab.clients[0].dig(NAME, "A", lab.servers[0].address).stdout
        assert all(f"sport={port} " in line for line in connections(lab.node) if f"dst={VIP} " in line)


@PORTS
def test_tc_programs_translate_and_deliver_past_the_nodes_ip_layer(port):
    with Lab(servers=2, port=port) as lab:
        try:
            with host_routing(lab):
                lab.node.run(["conntrack", "--flush"])
                assert answers_all(lab.clients[0])
                assert not connections(lab.node)
        except UnsupportedFaultError as error:
            pytest.skip(str(error))
        assert answers_all(lab.clients[0])
        assert connections(lab.node)


def test_what_is_delivered_by_bpf_redirect_peer_leaves_no_device_of_the_node(watch):
    dnstrail = watch()
    with Lab() as lab:
        try:
            with host_routing(lab):
                assert answer(lab.clients[0], NAME, VIP)
        except UnsupportedFaultError as error:
            pytest.skip(str(error))
        seen = hops(dnstrail, lab, NAME)
        assert ("tx", lab.servers[0].netns_id) in seen
        assert ("rx", lab.node.netns_id) in seen
        assert ("tx", lab.node.netns_id) not in seen


@PORTS
def test_a_socket_translation_leaves_no_packet_with_the_services_address(port):
    with Lab(servers=2, port=port) as lab:
        try:
            with socket_translation(lab):
                lab.node.run(["conntrack", "--flush"])
                assert answers_all(lab.clients[0])
                assert set(lab.clients[0].resolve(f"{NAME}.")) == set(CLUSTER_NAMES[NAME])
                everything = lab.node.run(["conntrack", "--dump"]).stdout
                assert f"dport={port} " in everything
                assert not any(f"dst={vip} " in everything for vip in VIPS)
        except UnsupportedFaultError as error:
            pytest.skip(str(error))


def test_a_killed_owner_leaves_no_cgroup():
    root = cgroup2_root()
    if root is None:
        pytest.skip("no cgroup v2 tree is mounted")
    with subprocess.Popen([sys.executable, "-c", KILLED_OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        lab_id = owner.stdout.readline().strip()
        if not lab_id:
            pytest.skip("no socket translation here")
        assert list(root.glob(f"{lab_id}-*"))
        owner.send_signal(signal.SIGKILL)
    sweep()
    assert not list(root.glob(f"{lab_id}-*"))
    assert not list(Path("/run/netns").glob(f"{lab_id}-*"))


def proxied_and_not_without(lab: Lab, proxies: Sequence[Proxy], servers: Sequence[str]) -> bool:
    """Lookups are answered by the proxy: while it is suspended or gone they are not, and afterwards they are again."""
    client = lab.clients[0]
    assert answers_all(client, servers)
    with stopped_proxy(proxies[0]):
        assert not any(answer(client, NAME, one) == CLUSTER_NAMES[NAME][0] for one in servers)
    with no_proxy(proxies[0]):
        assert not any(answer(client, NAME, one) == CLUSTER_NAMES[NAME][0] for one in servers)
    return answers_all(client, servers)


@TRANSLATIONS
@pytest.mark.parametrize("options", [(), ("--new-id",)])
def test_a_pods_own_rules_lead_to_the_proxy_in_it(translation, options):
    with Lab(translation) as lab, mesh_proxies(lab, *options) as proxies:
        assert proxied_and_not_without(lab, proxies, VIPS)


def test_docker_s_address_leads_to_a_process_of_the_node_that_serves_in_the_pod():
    with Lab() as lab, docker_proxies(lab) as proxies:
        assert proxied_and_not_without(lab, proxies, [DOCKER_ADDRESS])
        assert proxies[0].process
        netns = Path(f"/proc/{proxies[0].process.pid}/ns/net").stat().st_ino
        assert netns == lab.node.netns_id


@TRANSLATIONS
@SOURCES
def test_the_nodes_rules_lead_to_a_proxy_that_asks_as_it_is_told(translation, source):
    with Lab(translation) as lab, node_proxy(lab, source) as proxies:
        assert proxied_and_not_without(lab, proxies, VIPS)
        client, node = lab.clients[0], lab.node
        with lab.clients[0].udp_socket(VIP, 23_456) as sock:
            assert client.ask(NAME, sock=sock, seconds=2)
        asked = [line for line in connections(node) if f"dst={VIP} " in line and "udp" in line]
        own = f"src={client.address if source != 'own' else node.address} "
        assert asked
        assert all(line.split("udp")[1].split("dst")[0].endswith(own) for line in asked)
        assert any("sport=23456 " in line for line in asked) == (source == "port")


@pytest.mark.parametrize("link", ["macvlan", "ipvlan", "netkit"])
def test_pods_can_hang_on_other_links(link):
    try:
        with Lab(servers=2, link=link) as lab:
            servers = VIPS if link == "netkit" else (lab.servers[0].address, lab.servers[1].address6)
            assert answers_all(lab.clients[0], servers)
            if link == "macvlan":
                assert not connections(lab.node)
    except UnsupportedLinkError as error:
        pytest.skip(str(error))


def test_nothing_of_a_proxy_is_left_on_the_node():
    looks = (["ip", "rule"], ["ip", "-6", "rule"], ["nft", "list", "tables"], ["iptables-save", "-t", "mangle"])

    def snapshot(lab: Lab) -> list[str]:
        texts = (lab.node.run(look, check=False).stdout for look in looks)
        return [line for text in texts for line in text.splitlines() if line[:1] not in "#:"]

    with Lab() as lab:
        before = snapshot(lab)
        with node_proxy(lab, "port"):
            assert snapshot(lab) != before
        assert [line for line in snapshot(lab) if line not in [*before, "*mangle", "COMMIT"]] == []
