"""A translation that outlived its server: an old entry of ip_vs or of connection tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.evidence import (
    drop_words,
    is_confirmed,
)
from agent.explain.verdict import HIGH, MEDIUM, Cause, Confidence, make_cause
from agent.hop.endpoint import Endpoint, endpoint_to_text
from agent.session.addressed import asked_of
from agent.session.outcome import CQ, CR, Outcome, translation
from agent.session.takers import DESTINATION_NAT

if TYPE_CHECKING:
    from agent.context.counters import Ipvs
    from agent.explain.rule_input import RuleInput
    from agent.session.model import Transmission

ORIGINAL_ESTABLISHED = 0
"""enum ip_conntrack_info: a query over an entry that has seen a reply before."""


def ipvs_stale_backend(given: RuleInput) -> Cause | None:
    """ip_vs holds a connection to a server that its service has no more (net/netfilter/ipvs/ip_vs_core.c, ip_vs_in)."""
    outcome = given.outcome
    if outcome.delivered and not given.drops:
        return None
    for query in reversed(outcome.session.queries.transmissions):
        for netns in dict.fromkeys(hop.netns for hop in query.hops):
            found = _stale_in(given.namespaces.ipvs(netns), outcome, query)
            if found is not None:
                evidence = [
                    f"ip_vs of network namespace {netns} bound {endpoint_to_text(*found[0])} to it",
                    "the virtual service does not list it, or lists it with weight 0",
                    *map(drop_words, given.drops[:1]),
                ]
                return make_cause("IPVSStaleBackend", HIGH, evidence, backend=endpoint_to_text(*found[1]))
    return None


def _stale_in(ipvs: Ipvs | None, outcome: Outcome, query: Transmission) -> tuple[Endpoint, Endpoint] | None:
    """The client, and the server it is bound to, if that is stale."""
    if ipvs is None:
        return None
    client, asked = outcome.session.key.client, asked_of(query)
    protocol = outcome.session.key.protocol
    server = ipvs.stale_server(protocol, client, asked) or _translated_to_stale(ipvs, protocol, asked, query)
    return None if server is None else (client, server)


def _translated_to_stale(ipvs: Ipvs, protocol: int, asked: Endpoint, query: Transmission) -> Endpoint | None:
    """What the packet's own conntrack entry says: with expire_nodest_conn, ip_vs ends its entry when it drops by it."""
    servers = ipvs.services.get((protocol, asked))
    if servers is None:
        return None
    for hop in reversed(query.hops):
        detail = hop.detail
        backend = Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)
        if is_confirmed(hop) and not detail.ct_status & DESTINATION_NAT and backend != asked:
            return None if backend in servers else backend
    return None


def stale_conntrack_entry(given: RuleInput) -> Cause | None:
    """An entry of an earlier query leads to a server that is silent, while others behind the same address answer."""
    outcome = given.outcome
    if outcome.delivered or outcome.bits & CR or outcome.session.connecting:
        return None
    found = translation(outcome.session.queries.transmissions)
    if found is None or _is_alive(given):
        return None
    virtual, backend, hop = found
    detail = hop.detail
    if detail.ct_info != ORIGINAL_ESTABLISHED or not is_confirmed(hop):
        return None
    translated = f"the conntrack entry is old: {endpoint_to_text(*virtual)} is {endpoint_to_text(*backend)}"
    listed = given.cluster.backends(virtual, outcome.session.key.protocol)
    if listed is not None and listed.lacked(backend, outcome.session.first_ns + given.wall_offset_ns):
        evidence = [translated, "that is not an endpoint of the Service", *map(drop_words, given.drops[:1])]
        return _stale(HIGH, evidence, outcome, backend)
    begun_ns = outcome.session.first_ns
    servers = outcome.node_state.backends.get((hop.netns, virtual), {})
    mine = servers.get(backend)
    others = [other for other, known in servers.items() if other != backend and known.answered_ns > begun_ns]
    if not others or (mine is not None and mine.answered_ns > begun_ns):
        return None
    evidence = [
        translated,
        f"{endpoint_to_text(*others[0])} behind the same address has answered since, and this one has not",
        *map(drop_words, given.drops[:1]),
    ]
    return _stale(MEDIUM, evidence, outcome, backend)


def _stale(confidence: Confidence, evidence: list[str], outcome: Outcome, backend: Endpoint) -> Cause:
    port = outcome.session.key.client.port
    return make_cause("StaleConntrackEntry", confidence, evidence, backend=endpoint_to_text(*backend), port=port)


def _is_alive(given: RuleInput) -> bool:
    """Whether the server was there to take the query: then its silence is its own."""
    refused = any(drop.why.no_socket for drop in given.drops)
    return bool(given.outcome.bits & CQ) and not given.outcome.left_node and not refused
