"""A node made of network namespaces, for the tests, the bench and the demo.

    with Lab("nftables", clients=2, servers=2) as lab:
        lab.clients[0].resolve("redis-master.default.svc.cluster.local")
        with drop_first_query(lab):
            lab.clients[1].dig("www.upstream.test")

It needs root and some Debian packages, and uses only namespaces that it creates itself.
"""

from agent.lab.faults import (
    DropRule,
    Hook,
    UnsupportedFaultError,
    closed_port,
    drop_first_query,
    drop_queries,
    drop_replies,
    stopped_server,
    tc_drop_queries,
)
from agent.lab.namespaces import sweep
from agent.lab.node import Lab
from agent.lab.pods import DnsServer, Pod
from agent.lab.processes import LabError, wait_until
from agent.lab.translation import VIP, VIP6, Translation, Translator
from agent.lab.zones import ANY_CLUSTER_NAME, ANY_UPSTREAM_NAME, BIG_NAME, CLUSTER_NAMES, UPSTREAM_NAMES

__all__ = [
    "ANY_CLUSTER_NAME",
    "ANY_UPSTREAM_NAME",
    "BIG_NAME",
    "CLUSTER_NAMES",
    "UPSTREAM_NAMES",
    "VIP",
    "VIP6",
    "DnsServer",
    "DropRule",
    "Hook",
    "Lab",
    "LabError",
    "Pod",
    "Translation",
    "Translator",
    "UnsupportedFaultError",
    "closed_port",
    "drop_first_query",
    "drop_queries",
    "drop_replies",
    "stopped_server",
    "sweep",
    "tc_drop_queries",
    "wait_until",
]
