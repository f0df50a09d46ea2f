"""What is broken on a watched node, and which alerts have to fire then."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from agent.lab import drop_queries
from tests.lab.conntrack_faults import drop_question, full_table
from tests.lab.upstream_faults import hung_server
from tests.prometheus.node import Node
from tests.prometheus.server import NODE
from tests.prometheus.traffic import name_of


@contextmanager
def full_connection_table(node: Node) -> Iterator[None]:
    with full_table(node.lab):
        yield


@contextmanager
def without_aaaa(node: Node) -> Iterator[None]:
    with drop_question(node.lab, name_of(1), "AAAA", once=False):
        yield


@contextmanager
def policy(node: Node) -> Iterator[None]:
    with drop_queries(node.lab):
        yield


@contextmanager
def silent_server(node: Node) -> Iterator[None]:
    with hung_server(node.lab):
        yield


@contextmanager
def silent_upstream(node: Node) -> Iterator[None]:
    """In the end it is replaced by one that knows nothing of what the old one was asked."""
    upstream = node.lab.upstream
    upstream.stop()
    try:
        yield
    finally:
        upstream.kill()
        upstream.start()


@contextmanager
def hanging_agent(node: Node) -> Iterator[None]:
    node.agent.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.agent.send_signal(signal.SIGCONT)


class Fault(NamedTuple):
    """What is broken, and which alerts it must make fire, with labels that tell it from others."""

    broken: Callable[[Node], AbstractContextManager[object]]
    alerts: dict[str, dict[str, str]]


FULL, POLICY = {"cause": "ConntrackTableFull"}, {"cause": "PolicyDrop"}
FAULTS = {
    "the connection table is full": Fault(
        full_connection_table,
        {
            "ConntrackTableNearlyFull": {"netns": "host", "severity": "critical"},
            "ConntrackDropping": {"netns": "host"},
            "DNSQueriesLost": FULL,
            "DNSQueriesLostOnNode": {**FULL, "severity": "critical", "node": NODE},
        },
    ),
    "of each pair the AAAA is lost": Fault(
        without_aaaa, {"DNSPairHalfLost": {"lost": "AAAA", "node": NODE}, "DNSQueriesLost": POLICY}
    ),
    "a policy drops all queries": Fault(policy, {"DNSQueriesLost": POLICY, "DNSQueriesLostOnNode": POLICY}),
    "the server is silent": Fault(silent_server, {"DNSServerNotAnswering": {"node": NODE}}),
    "the upstream is silent": Fault(silent_upstream, {"DNSUpstreamNotAnswering": {"severity": "critical"}}),
    "the agent hangs": Fault(hanging_agent, {"DnstrailAgentMissing": {"severity": "warning", "node": NODE}}),
}
