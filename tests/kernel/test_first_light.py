"""From packet to session line, on a real kernel: what the first lookups and the first failures must look like."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from agent.check import kernel_release
from agent.lab import VIP, VIP6, Lab, closed_port, drop_first_query, drop_queries, drop_replies, stopped_server
from agent.lab.processes import wait_until
from agent.lab.zones import ANY_CLUSTER_NAME
from tests.kernel.conftest import Line, Watch

pytestmark = pytest.mark.kernel

NAME = "redis-master.default.svc.cluster.local"
LONG_NAME = f"{'x' * 40}.{'y' * 40}.{ANY_CLUSTER_NAME}"
"""Its question is longer than the kernel program looks at: its hops come one by one, through the ring, each with the
message's bytes. The smallest ring holds those of one lookup and the beginning of the next."""
REASONS_SINCE = (5, 17)
"""Kernels have drop reasons."""
LOOKUPS = 23  # prime, so that nothing divides it by accident
Start = Callable[..., Watch]
SUMMARY = re.compile(r"(\d+) sessions from (\d+) records; (\d+) records lost")


@pytest.fixture(scope="module", params=["iptables", pytest.param("nftables", marks=pytest.mark.slow)])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(request.param) as lab:
        yield lab


@pytest.fixture(scope="module")
def any_lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def eight_hops(lab: Lab) -> list[tuple[str, int, str]]:
    client, node, server = lab.clients[0], lab.node, lab.servers[0]
    there = [
        ("tx", client.netns_id, "eth0"),
        ("rx", node.netns_id, client.node_interface),
        ("tx", node.netns_id, server.node_interface),
        ("rx", server.netns_id, "eth0"),
    ]
    back = [({"tx": "rx", "rx": "tx"}[event], netns, interface) for event, netns, interface in reversed(there)]
    return there + back


@pytest.mark.parametrize(("vip", "family"), [(VIP, "INET"), (VIP6, "INET6")])
def test_every_lookup_through_the_vip_is_one_complete_session(lab: Lab, watch: Start, vip: str, family: str):
    dnstrail = watch()
    for _ in range(LOOKUPS):
        assert "status: NOERROR" in lab.clients[0].dig(NAME, "A", vip).stdout
    lines = dnstrail.wait_for(lab, LOOKUPS)
    dnstrail.stop()
    assert len(dnstrail.lines(lab)) == LOOKUPS
    server = lab.servers[0]
    backend = f"[{server.address6}]:53" if family == "INET6" else f"{server.address}:53"
    for line in lines:
        assert (line["Status"], line["BitMap"], line["PathBitMap"]) == ("Succeeded", 3, 51)
        assert [(hop["Event"], hop["Netns"], hop["Interface"]) for hop in line["Path"]] == eight_hops(lab)
        assert (line["Server"]["Address"], line["Server"]["Backend"]) == (vip, backend)
        assert (line["Server"]["BackendNetns"], line["Server"]["Process"]) == (server.netns_id, "dnsmasq")
        assert (line["Client"]["Process"], line["Client"]["Netns"]) == ("dig", lab.clients[0].netns_id)
        assert (line["Vantage"], line["Family"], line["Attempts"], line["Cause"]) == ("both", family, 1, None)
        types = [message["type"] for message in line["Messages"]]
        assert types == ["STUB_QUERY", "CLIENT_QUERY", "CLIENT_RESPONSE", "STUB_RESPONSE"]
        assert line["Messages"][-1]["response_message"]["answer"][0]["data"] == "10.96.12.7"


def one_line(dnstrail: Watch, lab: Lab) -> Line:
    lines = dnstrail.wait_for(lab, 1)
    assert len(lines) == 1
    return lines[0]


def test_a_query_that_a_rule_drops_is_failed_with_its_last_hop(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with drop_queries(lab):
        lab.clients[0].dig(NAME)
    line = one_line(dnstrail, lab)
    assert (line["Status"], line["BitMap"], line["PathBitMap"]) == ("Failed", 0, 80)
    last = line["Path"][-1]
    assert (last["Event"], last["Hook"]) == ("drop", "FORWARD")
    assert last.get("Reason") == ("NETFILTER_DROP" if kernel_release() >= REASONS_SINCE else None)
    assert last["Netns"] == lab.node.netns_id
    assert (line["Cause"]["Code"], line["Cause"]["Confidence"]) == ("PolicyDrop", "high")


def test_a_reply_dropped_on_its_way_back_is_seen_as_such(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with drop_replies(lab):
        lab.clients[0].dig(NAME)
    line = one_line(dnstrail, lab)
    assert (line["Status"], line["BitMap"]) == ("Failed", 3)
    assert line["PathBitMap"] & 128
    assert not line["PathBitMap"] & 64


def test_a_silent_server_got_the_query_and_returned_nothing(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with stopped_server(lab):
        lab.clients[0].dig(NAME)
        line = one_line(dnstrail, lab)
    assert (line["Status"], line["BitMap"], line["Vantage"]) == ("Failed", 1, "both")
    assert line["Cause"]["Code"] == "ServerNoReply"


def test_a_closed_port_is_named(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "1.5")
    with closed_port(lab):
        lab.clients[0].dig(NAME)
        line = one_line(dnstrail, lab)
    assert (line["Status"], line["BitMap"], line["PathBitMap"]) == ("Failed", 0, 80)
    assert line["Cause"]["Code"] == "NoListener"


def test_a_first_packet_lost_and_sent_again_by_glibc_is_one_session(lab: Lab, watch: Start):
    dnstrail = watch("--timeout", "4")
    with drop_first_query(lab):
        assert lab.clients[0].resolve(NAME, socket.AF_INET, options="timeout:1 attempts:2")
    line = one_line(dnstrail, lab)
    assert (line["Status"], line["Attempts"], line["PathBitMap"]) == ("Succeeded", 2, 51 + 64)
    assert "Retransmitted" in line["Findings"]
    assert line["Cause"]["Code"] == "PolicyDrop"
    assert line["DurationSeconds"] > 1


def test_records_lost_on_purpose_are_counted_exactly_and_accuse_nobody(any_lab: Lab, watch: Start):
    dnstrail = watch("--ring-size", "4096", "--timeout", "1.5")
    time.sleep(1.6)  # longer than its timeout, so that a reply without a query is no rest of a lookup before its start
    # The ring holds the first hops of one lookup, and only where these end early is the rest known to be missing.
    bursts, each = 12, 809
    lookups = bursts * each
    answered = sum(
        any_lab.clients[0].run(dig_burst(each), timeout=30).stdout.count("status: NOERROR") for _ in range(bursts)
    )
    assert answered == lookups
    wait_until(lambda: any(line["Status"] == "SampleLoss" for line in dnstrail.lines(any_lab)), "one to be marked")
    diagnostics = dnstrail.stop()
    summary = SUMMARY.search(diagnostics)
    assert summary is not None
    _, records, lost = map(int, summary.groups())
    assert lost > 0
    assert records + lost == 8 * lookups
    statuses = {line["Status"] for line in dnstrail.lines(any_lab)}
    assert "SampleLoss" in statuses
    assert statuses <= {"Succeeded", "SampleLoss"}
    for line in dnstrail.lines(any_lab):
        assert (line["Cause"] or {}).get("Code") == ("CaptureLoss" if line["Status"] == "SampleLoss" else None)


def dig_burst(lookups: int) -> list[str]:
    one = [LONG_NAME, "A", f"@{VIP}", "+tries=1", "+time=2"]
    return ["dig", *(one * lookups)]


def test_a_line_comes_within_a_second_of_the_reply(any_lab: Lab, watch: Start):
    dnstrail = watch()
    any_lab.clients[0].dig(NAME)
    dnstrail.wait_for(any_lab, 1, seconds=1)


def test_sigterm_ends_it_with_success_and_detaches_everything(any_lab: Lab, watch: Start):
    dnstrail = watch()
    with drop_queries(any_lab):
        any_lab.clients[0].dig(NAME)
    dnstrail.process.send_signal(signal.SIGTERM)
    assert dnstrail.process.wait(timeout=5) == 0
    (line,) = dnstrail.lines(any_lab)
    assert line["Status"] == "Failed"
