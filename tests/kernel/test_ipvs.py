"""A node that translates by IPVS: what the lab builds, what its faults do, and what dnstrail says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.lab import VIP, VIP6, Lab, Pod, UnsupportedFaultError, wait_until
from agent.lab.translation import UnsupportedTranslationError
from tests.kernel.conftest import Line, Watch
from tests.lab.ipvs_faults import NAME as FIRST_NAME
from tests.lab.ipvs_faults import Removal, ipvs_entries, stale_ipvs_backend
from tests.lab.service_faults import service_without_endpoints

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
LATER_NAME = "api.shop.svc.cluster.local"
VIPS = {"INET": VIP, "INET6": VIP6}
SECONDS = 2.0
LOOKUPS = 7
Start = Callable[..., Watch]


def a_pod(lab: Lab) -> Pod:
    return lab.clients[0]


def the_host(lab: Lab) -> Pod:
    return lab.node


@contextmanager
def translating_by_ipvs(servers: int) -> Iterator[Lab]:
    try:
        with Lab("ipvs", servers=servers) as lab:
            yield lab
    except UnsupportedTranslationError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with translating_by_ipvs(servers=2) as lab:
        yield lab


@pytest.fixture(params=[a_pod, the_host])
def client(lab: Lab, request: pytest.FixtureRequest) -> Pod:
    return request.param(lab)


@pytest.fixture(params=VIPS)
def vip(request: pytest.FixtureRequest) -> str:
    return VIPS[request.param]


def test_lookups_are_answered_over_udp_and_tcp(client: Pod, vip: str):
    for transport in ("+notcp", "+tcp"):
        answer = client.dig(NAME, "A", vip, transport, f"+time={SECONDS:.0f}").stdout
        assert "status: NOERROR" in answer
        assert f"SERVER: {vip}#53" in answer


def test_all_servers_are_asked(lab: Lab, client: Pod, vip: str):
    for _ in range(len(lab.servers)):
        assert client.ask(NAME, server=vip, seconds=SECONDS)
    address = client.address6 if vip == VIP6 else client.address
    asker = vip if client is lab.node else address
    asked = {entry.server for entry in ipvs_entries(lab.node) if entry.client == asker}
    assert asked == {server.address6 if vip == VIP6 else server.address for server in lab.servers}


def test_a_server_reaches_itself_by_the_service(vip: str):
    with translating_by_ipvs(servers=1) as alone:
        assert alone.servers[0].ask(NAME, server=vip, seconds=SECONDS)


@pytest.mark.parametrize("removal", ["expired", "deleted"])
def test_an_entry_outlives_its_deleted_server(lab: Lab, client: Pod, vip: str, removal: Removal):
    ends = removal == "expired"
    with stale_ipvs_backend(lab, removal, client=client, vip=vip) as stale:
        assert not stale.ask(LATER_NAME)
        if ends:
            wait_until(lambda: not stale.bound, "the entry to end")
        assert stale.ask(LATER_NAME, seconds=SECONDS if ends else 0.3) == ends
        assert client.ask(LATER_NAME, server=vip, seconds=SECONDS), "another socket is not affected"
    assert client.ask(LATER_NAME, server=vip, seconds=SECONDS)


def test_an_entry_outlives_the_pod_of_a_server_without_weight(lab: Lab, client: Pod, vip: str):
    with stale_ipvs_backend(lab, "quiescent", client=client, vip=vip) as stale:
        assert not stale.ask(LATER_NAME)
        assert client.ask(LATER_NAME, server=vip, seconds=SECONDS), "another socket is not affected"


def test_a_fault_leaves_the_service_as_it_was(lab: Lab):
    before = real_servers(lab.node)
    for removal in ("expired", "deleted", "quiescent"):
        with stale_ipvs_backend(lab, removal):
            assert real_servers(lab.node) != before
    assert real_servers(lab.node) == before


def test_without_ipvs_there_is_no_entry_to_outlive_anything():
    with Lab() as other, pytest.raises(UnsupportedFaultError, match="not by IPVS"), stale_ipvs_backend(other):
        pass


def test_lookups_are_complete_sessions(lab: Lab, watch: Start, vip: str):
    dnstrail = watch()
    for _ in range(LOOKUPS):
        assert lab.clients[0].ask(NAME, server=vip, seconds=SECONDS)
    lines = dnstrail.wait_for(lab, LOOKUPS)
    assert len(lines) == LOOKUPS
    for line in lines:
        assert (line["Status"], line["BitMap"], line["PathBitMap"], line["Cause"]) == ("Succeeded", 3, 51, None)
        assert (line["Server"]["Address"], line["Server"]["TranslatedBy"], len(line["Path"])) == (vip, "ipvs", 8)
    addresses = (server.address6 if vip == VIP6 else server.address for server in lab.servers)
    backends = {f"[{address}]:53" if vip == VIP6 else f"{address}:53" for address in addresses}
    assert {line["Server"]["Backend"] for line in lines} == backends


@pytest.mark.parametrize("removal", ["expired", "deleted", "quiescent"])
def test_a_stale_entry_is_the_cause(lab: Lab, watch: Start, removal: Removal):
    dnstrail = watch("--timeout", "2")
    with stale_ipvs_backend(lab, removal) as stale:
        assert not stale.ask(LATER_NAME)
        lines = dnstrail.wait_for(lab, 2)
    assert [causes_of(lines, name) for name in (FIRST_NAME, LATER_NAME)] == [[], ["IPVSStaleBackend"]]


def test_a_service_without_real_servers_is_the_cause(lab: Lab, watch: Start, client: Pod, vip: str):
    dnstrail = watch("--timeout", "2")
    with service_without_endpoints(lab):
        assert not client.ask(LATER_NAME, server=vip)
        lines = dnstrail.wait_for(lab, 1)
    assert causes_of(lines, LATER_NAME) == ["NoEndpoints"]


def causes_of(lines: list[Line], name: str) -> list[str]:
    causes = [line["Cause"] for line in lines if line["Question"]["Name"] == f"{name}."]
    return [cause["Code"] for cause in causes if cause]


def real_servers(node: Pod) -> list[str]:
    """The services, without what counts connections, in an order of their own."""
    listed = node.run(["ipvsadm", "-S", "-n"]).stdout
    return sorted(re.sub(r" -[xy] \d+", "", line) for line in listed.splitlines())
