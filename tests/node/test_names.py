"""Lookups of real pods through kube-proxy's Service to CoreDNS's pods: what `kubectl logs` names in each line."""

from __future__ import annotations

import pytest

from tests.node.configuration import CLUSTER_DNS
from tests.node.node import SHOP, Line, Node, now

KUBE_DNS = "kube-system/kube-dns"
ADDRESS = "api.shop.svc.cluster.local."


def succeeded(line: Line, name: str) -> bool:
    return line["Status"] == "Succeeded" and line["Question"]["Name"] == name


def server_is_coredns(line: Line) -> None:
    server = line["Server"]
    assert (server["Address"], server["Service"], server["Namespace"]) == (CLUSTER_DNS, KUBE_DNS, "kube-system")
    assert server["Pod"].startswith("coredns-")
    assert server["TranslatedBy"] == "conntrack"
    assert line["Cause"] is None


@pytest.mark.parametrize(
    ("pod", "workload", "name"),
    [
        ("cart-", "Deployment/cart", ADDRESS),
        ("cart-", "Deployment/cart", "outside.shop.svc.cluster.local."),
        ("cart-", "Deployment/cart", "www.example.test."),
        ("db-0", "StatefulSet/db", "db-0.db.shop.svc.cluster.local."),
        ("tcp", None, ADDRESS),
    ],
    ids=["glibc", "an ExternalName Service", "a name of the world", "musl, a headless Service", "TCP"],
)
@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_a_lookup_names_its_pod_its_workload_its_container_the_service_and_the_server(
    node: Node, proxy: str, pod: str, workload: str | None, name: str
):
    node.use_proxy(proxy)
    if pod == "tcp":
        # A connection that was begun while there was no server is tried for two minutes.
        node.renew(pod, "shop.yaml")
    since = now()
    line = node.wait_for_line(
        lambda line: line["Client"]["Pod"].startswith(pod) and succeeded(line, name), "its line", since
    )
    server_is_coredns(line)
    client = line["Client"]
    assert (client["Namespace"], client["Workload"]) == (SHOP, workload)
    assert client["Container"] == pod.rstrip("-0123456789")
    assert client["Process"] == "ask"
    assert line["Protocol"] == ("TCP" if pod == "tcp" else "UDP")


def test_the_cronjob_behind_a_job_is_named(node: Node):
    since = now()
    node.kubectl("-n", SHOP, "create", "job", "--from=cronjob/report", "report-now")
    line = node.wait_for_line(lambda line: line["Client"]["Pod"].startswith("report-now"), "the job's line", since)
    assert line["Client"]["Workload"] == "CronJob/report"


def test_healthy_lookups_have_no_cause_and_no_finding_that_accuses(node: Node):
    since = now()
    node.wait_for_line(lambda line: line["Client"]["Pod"] == "db-0", "a minute of lines", since)
    lines = node.lines(since)
    assert {(line["Status"], line["Cause"] and line["Cause"]["Code"]) for line in lines} == {("Succeeded", None)}
