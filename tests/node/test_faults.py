"""What dnstrail says when DNS of a real node breaks."""

from __future__ import annotations

import pytest

from tests.node import faults
from tests.node.node import Line, Node, now


def code(line: Line) -> str | None:
    found: str | None = (line["Cause"] or {}).get("Code")
    return found


def is_of(pod: str, line: Line) -> bool:
    return bool(line["Client"]["Pod"] and line["Client"]["Pod"].startswith(pod))


def test_a_query_that_a_policy_drops_is_policy_drop_at_the_veth_of_its_pod(node: Node):
    since, before = now(), node.metric("dnstrail_session_causes_total", cause="PolicyDrop")
    with faults.dropping_queries_of(node, "db-0") as address:
        line = node.wait_for_line(lambda line: code(line) is not None, "a cause", since)
    assert (code(line), line["Cause"]["Confidence"]) == ("PolicyDrop", "high")
    assert line["Client"]["Address"] == address
    drop = line["Path"][-1]
    assert (drop["Event"], drop["Hook"]) == ("drop", "FORWARD")
    assert drop["Interface"].startswith("veth")
    assert node.metric("dnstrail_session_causes_total", cause="PolicyDrop") > before


@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_a_service_without_servers_is_no_endpoints_and_not_a_policy(node: Node, proxy: str):
    node.use_proxy(proxy)
    with faults.without_servers(node):
        since = now()
        line = node.wait_for_line(lambda line: code(line) == "NoEndpoints", "NoEndpoints", since)
        assert line["Cause"]["Confidence"] == "high"
        assert "kube-system/kube-dns at 10.96.0.10:53 has no ready endpoint" in line["Cause"]["Message"]
        assert "PolicyDrop" not in {code(line) for line in node.lines(since)}


def test_killed_servers_do_not_listen_or_are_taken_out_of_the_service_until_they_are_started_again(node: Node):
    since = now()
    faults.kill_servers(node)
    line = node.wait_for_line(lambda line: code(line) in ("NoListener", "NoEndpoints"), "what was lost", since)
    assert line["Cause"]["Confidence"] == "high"
    node.wait_for_endpoints(*faults.DNS, faults.REPLICAS)
    since = now()
    node.wait_for_line(lambda line: is_of("cart-", line) and line["Status"] == "Succeeded", "a good lookup", since)


@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_a_reply_that_comes_late_and_untranslated_is_late_and_no_sysctl_is_accused(node: Node, proxy: str):
    node.use_proxy(proxy)
    since = now()
    with faults.hanging_servers(node):
        pass
    node.wait_for_line(lambda line: code(line) == "LateReply", "LateReply", since)
    node.wait_until_told()
    said = {code(line): line["Cause"]["Message"] for line in node.lines(since) if line["Cause"]}
    assert not set(said) & {"KernelDrop", "PolicyDrop", "Unknown"}, said
    assert not [message for message in said.values() if "bridge-nf-call" in message]


def test_a_rolling_restart_of_the_servers_under_load_gets_no_wrong_word(node: Node):
    since = now()
    node.kubectl("-n", "kube-system", "rollout", "restart", faults.COREDNS)
    node.wait_rolled_out(faults.COREDNS, "kube-system")
    node.wait_until_told()
    # What an address can be that was a server's a moment ago.
    expected = {None, "NoListener", "NoRoute", "NeighbourFailure", "StaleConntrackEntry", "ServerNoReply"}
    assert {code(line) for line in node.lines(since)} <= expected
