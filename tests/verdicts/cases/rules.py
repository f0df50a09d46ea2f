"""Rules and programs that say no."""

from __future__ import annotations

from agent.lab import Lab, drop_queries, drop_replies
from tests.verdicts.case import Case, Hop, Injection, Lost


def query_dropped(injection: Injection) -> list[Lost]:
    with drop_queries(injection.lab):
        injection.lab.clients[0].ask(injection.name)
    return [injection.name]


def reply_dropped(injection: Injection) -> list[Lost]:
    with drop_replies(injection.lab):
        injection.lab.clients[0].ask(injection.name)
    return [injection.name]


def at_node_from_client(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.clients[0].node_interface)


def at_node_from_server(lab: Lab) -> Hop:
    return Hop("drop", lab.node.netns_id, lab.servers[0].node_interface)


CASES: tuple[Case, ...] = (
    Case(
        fault="nftables, FORWARD of the node, query",
        code="PolicyDrop",
        inject=query_dropped,
        last_hop=at_node_from_client,
    ),
    Case(
        fault="nftables, FORWARD of the node, reply",
        code="PolicyDrop",
        inject=reply_dropped,
        last_hop=at_node_from_server,
    ),
)
