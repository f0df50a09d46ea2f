"""The lab is what all other kernel tests stand on, so it is tested itself."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.lab import (
    BIG_NAME,
    CLUSTER_NAMES,
    UPSTREAM_NAMES,
    VIP,
    VIP6,
    DropRule,
    Lab,
    LabError,
    Pod,
    UnsupportedFaultError,
    closed_port,
    drop_first_query,
    drop_queries,
    drop_replies,
    stopped_server,
    sweep,
    tc_drop_queries,
    wait_until,
)
from agent.lab.processes import PATIENCE

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
OUTSIDE = "www.upstream.test"
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])

KILLED_LAB = """
import time
from agent.lab import Lab
with Lab() as lab:
    orphan = lab.clients[0].run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"]).stdout.strip()
    print(lab.id, lab.servers[0].process.pid, lab.upstream.process.pid, orphan, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module", params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(request.param, clients=2, servers=2) as built:
        yield built


@pytest.fixture(scope="module")
def small_lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built


def answers(pod: Pod, vip: str = VIP, *options: str) -> bool:
    return "status: NOERROR" in pod.dig(NAME, "A", vip, *options).stdout


def is_silent(pod: Pod, vip: str = VIP) -> bool:
    return pod.ask(NAME, server=vip) is None


def namespaces_of(lab_id: str) -> list[Path]:
    return list(Path("/run/netns").glob(f"{lab_id}-*"))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@VIPS
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("rdtype", ["A", "AAAA"])
def test_both_service_addresses_answer_by_udp_and_tcp(lab: Lab, vip: str, transport: str, rdtype: str):
    found = lab.clients[1].dig(NAME, rdtype, vip, "+short", transport).stdout.strip()
    assert found == CLUSTER_NAMES[NAME][rdtype == "AAAA"]


@VIPS
def test_the_node_and_the_servers_reach_the_service_too(lab: Lab, vip: str):
    assert all(answers(pod, vip) for pod in (lab.node, *lab.servers))


def test_the_kernel_translates_to_every_server(lab: Lab):
    for _ in range(30):
        lab.clients[0].dig(NAME)
    entries = lab.node.run(["conntrack", "--dump", "--proto", "udp"]).stdout
    assert all(f"src={server.address} dst={lab.clients[0].address}" in entries for server in lab.servers)


def test_the_rules_are_of_the_kind_asked_for(lab: Lab):
    has_nftables = "kube-proxy" in lab.node.run(["nft", "list", "tables"]).stdout
    assert has_nftables == (lab.translator == "nftables")


def test_without_the_legacy_tables_iptables_writes_nftables_rules(monkeypatch: pytest.MonkeyPatch):
    find = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool: None if "legacy" in tool else find(tool))
    with Lab("iptables", servers=3) as lab:
        assert lab.translator == "iptables-nft"
        assert all(answers(lab.clients[0], vip) for vip in (VIP, VIP6))


def test_getaddrinfo_resolves_by_a_private_resolv_conf(lab: Lab):
    v4, v6 = CLUSTER_NAMES[NAME]
    assert set(lab.clients[0].resolve(NAME)) == {v4, v6}
    assert lab.clients[0].resolve(NAME, socket.AF_INET, nameserver=VIP6) == (v4,)
    assert lab.clients[0].resolve(NAME, socket.AF_INET6) == (v6,)


def test_getaddrinfo_uses_search_list_and_options(lab: Lab):
    found = lab.clients[0].resolve(
        "redis-master", socket.AF_INET, search="default.svc.cluster.local svc.cluster.local", options="ndots:5"
    )
    assert found == (CLUSTER_NAMES[NAME][0],)


def test_getaddrinfo_fails_for_a_name_that_does_not_exist(lab: Lab):
    assert lab.clients[0].resolve("nowhere.default.svc.cluster.local") == ()


def test_resolving_leaves_the_machines_resolver_alone(lab: Lab):
    before = Path("/etc/resolv.conf").read_text()
    lab.clients[0].resolve(NAME)
    assert Path("/etc/resolv.conf").read_text() == before


def test_names_outside_the_cluster_come_from_the_upstream(lab: Lab):
    assert set(lab.clients[0].resolve(OUTSIDE)) == set(UPSTREAM_NAMES[OUTSIDE])


@pytest.mark.parametrize("name", ["nowhere.default.svc.cluster.local", "nowhere.upstream.test"])
def test_unknown_names_do_not_exist(lab: Lab, name: str):
    assert "status: NXDOMAIN" in lab.clients[0].dig(name).stdout


def test_a_big_reply_comes_by_tcp(lab: Lab):
    assert "(TCP)" in lab.clients[0].dig(BIG_NAME, "TXT").stdout


def test_building_leaves_no_conntrack_entry_behind():
    with Lab() as lab:
        assert lab.node.run(["conntrack", "--count"]).stdout.strip() == "0"


def test_pods_tell_their_namespace_and_devices(lab: Lab):
    for pod in (lab.node, *lab.clients, *lab.servers, lab.upstream):
        inode = pod.run(["readlink", "/proc/self/ns/net"]).stdout.strip()
        assert inode == f"net:[{pod.netns_id}]"
    devices = [pod.node_interface for pod in (*lab.clients, *lab.servers, lab.upstream)]
    assert devices == ["vethc1", "vethc2", "veths1", "veths2", "vethu"]
    lab.node.run(["ip", "link", "show", devices[0]])
    lab.clients[0].run(["ip", "link", "show", lab.clients[0].interface])


def test_the_first_packet_needs_no_neighbour_discovery(small_lab: Lab):
    for pod in (small_lab.node, *small_lab.clients, *small_lab.servers, small_lab.upstream):
        states = pod.run(["ip", "neigh", "show"]).stdout
        assert states.count("\n") == states.count("PERMANENT") > 0
        assert "tentative" not in pod.run(["ip", "-6", "addr", "show"]).stdout


@VIPS
def test_drop_queries(lab: Lab, vip: str):
    with drop_queries(lab) as rule:
        assert is_silent(lab.clients[0], vip)
        assert rule.packets == 1
    assert answers(lab.clients[0], vip)


@VIPS
def test_queries_can_be_dropped_in_another_hook(small_lab: Lab, vip: str):
    with drop_queries(small_lab, hook="POSTROUTING"):
        assert is_silent(small_lab.clients[0], vip)
    with drop_queries(small_lab, hook="OUTPUT"):
        assert answers(small_lab.clients[0], vip)


@VIPS
def test_drop_replies(lab: Lab, vip: str):
    with drop_replies(lab) as rule:
        assert is_silent(lab.clients[0], vip)
        assert rule.packets == 1
    assert answers(lab.clients[0], vip)


def test_drop_first_query_drops_one_packet_per_family(lab: Lab):
    with drop_first_query(lab) as rule:
        for vip in (VIP, VIP6):
            assert is_silent(lab.clients[0], vip)
            assert all(answers(lab.clients[0], vip) for _ in range(2))
        assert rule.packets == 2
    assert answers(lab.clients[0])


def test_a_lookup_survives_the_loss_of_its_first_query(small_lab: Lab):
    with drop_first_query(small_lab):
        began = time.monotonic()
        assert small_lab.clients[0].resolve(NAME, options="timeout:1 attempts:2")
        assert 0.9 < time.monotonic() - began < 3


@VIPS
def test_tc_drop(lab: Lab, vip: str):
    try:
        with tc_drop_queries(lab):
            assert is_silent(lab.clients[0], vip)
            assert answers(lab.clients[0], vip, "+tcp")
    except UnsupportedFaultError as missing:
        pytest.skip(str(missing))
    assert answers(lab.clients[0], vip)


def test_stopped_server_is_silent_and_comes_back(small_lab: Lab):
    with stopped_server(small_lab):
        assert "timed out" in small_lab.clients[0].dig(NAME).stdout
    assert answers(small_lab.clients[0])


@VIPS
def test_closed_port_refuses_and_opens_again(small_lab: Lab, vip: str):
    with closed_port(small_lab):
        assert "connection refused" in small_lab.clients[0].dig(NAME, "A", vip).stdout
    assert answers(small_lab.clients[0], vip)


def test_a_fault_is_undone_when_the_test_fails(small_lab: Lab):
    rule: DropRule
    with pytest.raises(ZeroDivisionError), drop_queries(small_lab) as rule:
        _ = 1 // rule.packets
    assert answers(small_lab.clients[0])


def test_a_failing_program_is_an_error_that_says_why(small_lab: Lab):
    with pytest.raises(LabError, match="No such file"):
        small_lab.clients[0].run(["ls", "/nonexistent"])
    with pytest.raises(LabError, match="longer than"):
        small_lab.clients[0].run(["sleep", "5"], timeout=0.05)
    assert small_lab.clients[0].run(["false"], check=False).returncode == 1


def test_nothing_is_left_after_exit():
    with Lab("nftables") as lab:
        pids = [lab.clients[0].popen(["sleep", "60"]).pid]
        stray = lab.upstream.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"])
        pids += [int(stray.stdout), *(server.process.pid for server in lab.servers if server.process)]
        assert all(running(pid) for pid in pids)
        lab.servers[0].stop()
    assert not any(running(pid) for pid in pids)
    assert not namespaces_of(lab.id)
    assert not Path("/run/dnstrail-lab", lab.id).exists()


def test_nothing_is_left_when_building_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent.lab.zones.upstream_arguments", lambda: ["--no-such-option"])
    lab = Lab()
    with pytest.raises(LabError, match=r"dnsmasq in .* ended"), lab:
        pass
    assert not namespaces_of(lab.id)


def test_sweep_removes_what_a_killed_owner_left_and_nothing_else(small_lab: Lab):
    with subprocess.Popen([sys.executable, "-c", KILLED_LAB], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        lab_id, *pids = owner.stdout.readline().split()
        *bound, orphan = map(int, pids)
        owner.send_signal(signal.SIGKILL)
        wait_until(lambda: not any(map(running, bound)), "the kernel to kill the servers")
        assert running(orphan)
        assert lab_id in sweep()
    assert not running(orphan)
    assert not namespaces_of(lab_id)
    assert not Path("/run/dnstrail-lab", lab_id).exists()
    assert answers(small_lab.clients[0])


def test_building_takes_less_than_a_second():
    began = time.monotonic()
    with Lab(clients=2, servers=2):
        assert time.monotonic() - began < 1 * PATIENCE


def test_two_labs_stand_side_by_side(small_lab: Lab):
    with Lab("nftables") as other, drop_queries(other):
        assert is_silent(other.clients[0])
        assert answers(small_lab.clients[0])


def test_the_machines_own_network_stays_as_it_was():
    def snapshot() -> str:
        looks = (["ip", "-brief", "addr"], ["ip", "route"], ["nft", "list", "ruleset"])
        return "".join(subprocess.run(look, capture_output=True, text=True, check=True).stdout for look in looks)

    before = snapshot(), Path("/proc/sys/net/ipv4/ip_forward").read_text()
    with Lab():
        during = snapshot(), Path("/proc/sys/net/ipv4/ip_forward").read_text()
    assert before == during


def test_without_root_the_lab_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"), Lab():
        pass


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match="conntrack: install the Debian package conntrack"), Lab():
        pass


def test_a_lab_has_at_least_one_client():
    with pytest.raises(LabError, match="1 to 100"):
        Lab(clients=0)


def test_a_socket_of_a_pod_does_not_move_the_caller(small_lab: Lab):
    before = Path("/proc/thread-self/ns/net").stat().st_ino
    assert small_lab.clients[0].gets_reply_from(VIP)
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before
    assert threading.active_count() < 5
