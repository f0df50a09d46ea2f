"""A DNS proxy that takes lookups on their way is their server, and what it asks is their upstream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from agent.lab import VIP, VIP6, Lab, stopped_server
from tests.kernel.conftest import Line, Watch
from tests.kernel.named import masks, new_name, wait_for, watching
from tests.lab.forwarder import Source
from tests.lab.proxies import Proxy, no_proxy, node_proxy, stopped_proxy

pytestmark = pytest.mark.kernel

FORWARDED = ("Succeeded", 15, 63)
ANSWERED = ("Succeeded", 3, 51)
VIPS = pytest.mark.parametrize("vip", [VIP, VIP6])
WAYS_OF_DIG = ("+notcp", "+tcp")
WAYS = pytest.mark.parametrize("way", WAYS_OF_DIG)
VARIANTS = [pytest.param(source, marks=pytest.mark.slow) for source in get_args(Source) if source != "port"]
"""The third is the hardest: application and proxy ask with the same address, port and id."""
PATIENT = ("+tries=1", "+time=1")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module", params=[*VARIANTS, "port"])
def proxy(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """One on the node behind TPROXY, by the address from which it asks."""
    with node_proxy(lab, request.param) as (proxy,):
        yield proxy


@pytest.fixture(scope="module")
def watch(lab: Lab, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:  # noqa: ARG001  it must be there
    with watching(tmp_path_factory.mktemp("watch"), "--timeout", "1.5") as watch:
        yield watch


def name_in_cluster(word: str) -> str:
    """A name that the server pods answer themselves."""
    return f"{new_name(word)}.any.cluster.local"


def lookups(lab: Lab, watch: Watch, name: str, vip: str, *options: str) -> tuple[Line, Line]:
    """The application's line and the proxy's, which was made for it."""
    lab.clients[0].dig(name, "A", vip, *options)
    return both(watch, name)


def both(watch: Watch, name: str) -> tuple[Line, Line]:
    """The application's line about a name, and the proxy's."""
    lines = wait_for(watch, name, 2)
    (application,) = [line for line in lines if line["UpstreamOf"] is None]
    (asked,) = [line for line in lines if line["UpstreamOf"] is not None]
    return application, asked


@VIPS
@WAYS
def test_the_proxy_is_the_server_and_what_it_asks_its_upstream(
    lab: Lab, proxy: Proxy, watch: Watch, vip: str, way: str
):
    application, asked = lookups(lab, watch, name_in_cluster("healthy"), vip, way)
    assert (masks(application), masks(asked)) == (FORWARDED, ANSWERED)
    assert (application["Cause"], application["Findings"], asked["Cause"]) == (None, [], None)
    client, server = application["Client"], application["Server"]
    assert (server["Address"], server["Port"], server["BackendNetns"]) == (vip, 53, lab.node.netns_id)
    assert proxy.process is not None
    assert server["Pid"] == proxy.process.pid
    assert [(one["Address"], one["Rcode"]) for one in application["Upstream"]] == [(vip, "NOERROR")]
    assert asked["UpstreamOf"]["Client"].endswith(f":{client['Port']}")
    assert asked["Server"]["BackendNetns"] == lab.servers[0].netns_id


@VIPS
@WAYS
def test_a_proxy_that_hangs_is_named(lab: Lab, proxy: Proxy, watch: Watch, vip: str, way: str):
    lookups(lab, watch, name_in_cluster("before"), vip, way)
    name = name_in_cluster("hangs")
    with stopped_proxy(proxy):
        lab.clients[0].dig(name, "A", vip, way, *PATIENT)
        (line,) = wait_for(watch, name)
    assert (line["Status"], line["BitMap"]) == ("Failed", 1)
    assert line["Cause"]["Code"] == "ServerNoReply"
    assert f"(network namespace {lab.node.netns_id}) took the query for" in line["Cause"]["Message"]
    assert "no query from there could be matched to this one" in line["Cause"]["Message"]


@VIPS
def test_a_proxy_that_is_gone_is_no_policy(lab: Lab, proxy: Proxy, watch: Watch, vip: str):
    lookups(lab, watch, name_in_cluster("before"), vip)
    name = name_in_cluster("gone")
    with no_proxy(proxy):
        lab.clients[0].dig(name, "A", vip, *PATIENT)
        (line,) = wait_for(watch, name)
    assert (line["Cause"]["Code"], line["Cause"]["Confidence"]) == ("NoListener", "medium")
    assert "The DNS proxy" in line["Cause"]["Message"]


@pytest.fixture(scope="module")
def while_the_server_is_stopped(lab: Lab, proxy: Proxy, watch: Watch) -> dict[tuple[str, str], str]:  # noqa: ARG001
    """The names of lookups by Service address and transport; the agent gives all of them up at the same time."""
    names = {(vip, way): name_in_cluster("stopped") for vip in (VIP, VIP6) for way in WAYS_OF_DIG}
    with stopped_server(lab):
        for (vip, way), name in names.items():
            lab.clients[0].dig(name, "A", vip, way, *PATIENT)
        for name in names.values():
            wait_for(watch, name, 2)
    return names


@VIPS
@WAYS
def test_a_server_that_is_stopped_behind_the_proxy_is_its_upstream(
    watch: Watch, while_the_server_is_stopped: dict[tuple[str, str], str], vip: str, way: str
):
    application, asked = both(watch, while_the_server_is_stopped[vip, way])
    assert (application["Status"], application["BitMap"] & 13) == ("Failed", 5)
    assert application["Cause"]["Code"] == "UpstreamTimeout"
    assert "The DNS proxy" in application["Cause"]["Message"]
    assert asked["Cause"]["Code"] == "ServerNoReply"
