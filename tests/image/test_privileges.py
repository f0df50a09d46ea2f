"""The image, run with what the manifest grants: it captures, and each privilege is needed and is enough."""

from __future__ import annotations

import re
import signal
import time

import pytest

from agent.capture import privileges
from agent.lab import VIP, Lab, closed_port, drop_queries, wait_until
from agent.lab.namespaces import path_of
from tests.image import container, oci
from tests.image.conftest import Run, Start
from tests.image.container import Container
from tests.kernel.commands import rows
from tests.kernel.conftest import Line
from tests.kernel.test_lifecycle import BURSTS, MAX_SESSIONS, all_gone, ask_in_vain, is_idle, kernel_objects

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

NAME = "redis-master.default.svc.cluster.local"
LOOKUPS = 23
LINE_SECONDS = 20.0
HEADROOM = 1.2
"""The memory limit, as a multiple of the most that was ever used."""
KERNEL_LIMITS = ("kprobes",)
"""What no privilege gives to a kernel that was built without it."""
ASK_CONNTRACK = """
import sys, time
from agent.enrich.conntrack import ConntrackLookup
from agent.hop.endpoint import V4_MAPPED, Endpoint
import socket
client, port, server = sys.argv[1:]
table = ConntrackLookup()
table.warm_up()
def endpoint(address, port):
    return Endpoint(V4_MAPPED + socket.inet_aton(address), int(port))
end = time.monotonic() + 10
entry = None
while entry is None and table.unavailable is None and time.monotonic() < end:
    entry = table.find(17, endpoint(client, port), endpoint(server, 53))
    time.sleep(0.01)
print(table.unavailable or socket.inet_ntoa(entry.reply.source.address[12:]))
"""


def lines_of(lab: Lab, started: Container) -> list[Line]:
    """Those of the clients; the lab's own looks after its servers come from elsewhere."""
    ids = {pod.netns_id for pod in lab.clients}
    return [line for line in started.lines() if line["Client"]["Netns"] in ids]


def wait_for(lab: Lab, started: Container, count: int) -> list[Line]:
    started.wait_until(lambda: len(lines_of(lab, started)) >= count, f"{count} sessions", LINE_SECONDS)
    return lines_of(lab, started)


def check(run: Run, **more: object) -> dict[str, str]:
    """`dnstrail check` in a container: each feature's status and words."""
    done = run("check", **more)
    found = rows(done.out)
    assert found, done.err
    return found


def not_ok(rows: dict[str, str]) -> set[str]:
    return {name for name, row in rows.items() if not row.startswith("ok ")}


def test_it_captures_whole_lookups_and_names_what_dropped_one(agent: Container, lab: Lab):
    client, server = lab.clients[0], lab.servers[0]
    for _ in range(LOOKUPS):
        assert "status: NOERROR" in client.dig(NAME).stdout
    assert client.dig(NAME, "A", server.address, "+tcp").returncode == 0
    with drop_queries(lab):
        client.dig(NAME)
    with closed_port(lab):
        client.dig(NAME)
    lines = wait_for(lab, agent, LOOKUPS + 3)
    whole = [line for line in lines if line["Protocol"] == "UDP" and line["Status"] == "Succeeded"]
    assert len(whole) == LOOKUPS
    for line in whole:
        assert (line["PathBitMap"], len(line["Path"])) == (51, 8)
        assert (line["Client"]["Process"], line["Server"]["Process"]) == ("dig", "dnsmasq")
        assert line["Server"]["Backend"] == f"{server.address}:53"
        assert line["Node"] == "a-node"
    assert [line["Status"] for line in lines if line["Protocol"] == "TCP"] == ["Succeeded"]
    failed = [line for line in lines if line["Status"] == "Failed"]
    assert [line["Cause"]["Code"] for line in failed] == ["PolicyDrop", "NoListener"]
    assert all(line["Path"][-1]["Location"] for line in failed)


def test_the_manifest_grants_all_that_the_agent_has_a_use_for(run: Run, agent: Container):
    assert not_ok(check(run)) <= set(KERNEL_LIMITS)
    limits = re.findall("^dnstrail: limited: (.*)", agent.err.read_text(), re.MULTILINE)
    assert all(limit.startswith("no kprobes") for limit in limits)


@pytest.mark.parametrize("capability", [one.name for one in privileges.CAPABILITIES])
def test_without_any_one_capability_something_is_lost(run: Run, granted: oci.Manifest, capability: str):
    rows = check(run, manifest=container.without(granted, capability))
    lost = not_ok(rows) - set(KERNEL_LIMITS)
    assert any(capability in rows[name] for name in lost), rows


@pytest.mark.parametrize(
    ("field", "feature"), [("hostPID", "processes of the node"), ("volumes", "sockets of the node")]
)
def test_without_what_else_the_manifest_takes_of_the_node_something_is_lost(
    run: Run, granted: oci.Manifest, field: str, feature: str
):
    pod = {key: value for key, value in granted.pod.items() if key != field}
    if field == "volumes":
        pod["containers"] = [{**granted.container, "volumeMounts": []}]
    assert not check(run, manifest=granted._replace(pod=pod))[feature].startswith("ok ")


def test_in_the_nodes_network_namespace_it_can_ask_for_a_translation(run: Run, lab: Lab):
    client = lab.clients[0]
    port = "40053"
    assert "status: NOERROR" in client.dig(NAME, "A", VIP, "-b", f"{client.address}#{port}").stdout
    arguments = (client.address, port, VIP)
    found = run("-c", ASK_CONNTRACK, *arguments, entrypoint=["python3"], node_netns=path_of(lab.node.name))
    assert found.out.strip() == lab.servers[0].address, found.err


def test_nothing_of_its_root_file_system_can_be_written(run: Run):
    write = "import sys; open(sys.argv[1], 'w')"
    for place in ("/usr/local/x", "/tmp/x", "/etc/x", "/sys/fs/cgroup/x", "/proc/sys/net/core/somaxconn"):  # noqa: S108
        done = run("-c", write, place, entrypoint=["python3"])
        assert "Read-only file system" in done.err, f"{place}: {done.err}"


def test_seccomp_and_no_new_privileges_are_in_force(agent: Container):
    status = dict(re.findall(r"^(\w+):\s+(.*)$", _status(agent), re.MULTILINE))
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    held = int(status["CapEff"], 16)
    assert held == sum(1 << one.bit for one in privileges.CAPABILITIES)
    assert int(status["CapBnd"], 16) == held


def _status(agent: Container) -> str:
    with open(f"/proc/{agent.pid}/status", encoding="ascii") as status:  # noqa: PTH123  of another process
        return status.read()


def test_sigterm_ends_it_with_success_before_a_kubelet_kills_it_and_leaves_nothing(
    agent: Container, lab: Lab, granted: oci.Manifest
):
    objects = kernel_objects(agent.pid)
    assert objects
    with drop_queries(lab):
        lab.clients[0].dig(NAME)
    begun = time.monotonic()
    agent.kill(signal.SIGTERM)
    assert agent.wait() == 0
    assert time.monotonic() - begun < granted.pod["terminationGracePeriodSeconds"]
    assert [line["Status"] for line in lines_of(lab, agent)] == ["Failed"]
    wait_until(lambda: all_gone(objects), "the kernel to detach everything")


def test_the_memory_limit_leaves_room_above_as_many_open_lookups_as_it_keeps_and_a_check_beside_them(
    prepare: Start, lab: Lab, granted: oci.Manifest
):
    """Printed for the manifest's figures. The loader's memory is the container's too, and so is the ring."""
    limit = oci.quantity(granted.container["resources"]["limits"]["memory"])
    with prepare(environment={"DNSTRAIL_TIMEOUT": "120"}, node_netns=path_of(lab.node.name)) as agent:
        agent.wait_ready()
        start = agent.peak_bytes()
        with drop_queries(lab):
            for _ in range(BURSTS):
                ask_in_vain(lab, MAX_SESSIONS // BURSTS + 1)
                agent.wait_until(lambda: is_idle(agent.pid), "it to take them in", LINE_SECONDS)
        full = agent.peak_bytes()
        assert agent.execute("dnstrail", "check").code == 0
        peak = agent.peak_bytes()
        print(f"start {start >> 20} MiB, {MAX_SESSIONS} open lookups {full >> 20} MiB, with check {peak >> 20} MiB")
        assert start < full < peak
        assert peak * HEADROOM < limit
