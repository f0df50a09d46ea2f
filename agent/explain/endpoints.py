"""Whether a lookup was refused because the Service that it asked has no server.

kube-proxy translates the address of a Service only while it has an endpoint. Without one it has rules that refuse
what is sent there, and such a packet meets a rule's verdict like any other: the same hook, the same drop reason. What
tells the two apart is the list of endpoints (EndpointSlices, or the tables of ip_vs). Without these it is that the
packet died behind the place where it is translated otherwise, still addressed to the Service, and that the node said
"port unreachable" of an address that nobody has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain import netfilter
from agent.explain.evidence import drop_words, is_translated, place, where
from agent.explain.rule_input import QUERIES
from agent.explain.signatures import PROGRAMS, confidence_in
from agent.explain.verdict import HIGH, MEDIUM, Confidence, make_cause
from agent.hop.endpoint import Endpoint, endpoint_to_text
from agent.session.outcome import CQ, CR, Leg

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.explain.verdict import Cause
    from agent.hop.record import Hop
    from agent.session.outcome import PacketDrop

BEHIND_TRANSLATION = frozenset({"FORWARD", "INPUT", "OUTPUT"})
"""Hooks of kube-proxy's refusals, and of ip_vs. In PREROUTING nobody has had a look at the Service yet."""
ELSE = "a rule that refuses the Service's address, or a node without the Service's rules, would look the same"
SAME = "a Service without ready endpoints is refused in the same way"


class _Proof(NamedTuple):
    """Who says that the Service has no server."""

    confidence: Confidence
    evidence: list[str]
    service: str = ""
    """Namespace and name, where they are known."""


def no_endpoints(given: RuleInput) -> Cause | None:
    """The address that was asked is a Service's that has no ready endpoint, so nothing was translated."""
    for drop in given.drops:
        if drop.leg not in QUERIES or not _could_be_translated(given, drop):
            continue
        refused = _refuses(given, drop)
        found = None
        if refused or _found_no_way(drop):
            found = _by_list(given, drop.hop) or _by_refusal(given, drop)
        if found is not None:
            evidence = [drop_words(drop), *found.evidence]
            return _say(found.confidence if refused else MEDIUM, evidence, found.service, drop.hop, drop=drop)
    return _nobody_refused(given)


def may_have_no_endpoints(given: RuleInput, drop: PacketDrop) -> bool:
    """Whether a rule's refusal could as well be that of a Service without endpoints of which nothing is known."""
    address = drop.hop.detail.daddr
    node_state = given.outcome.node_state
    if drop.leg not in QUERIES or not _could_be_translated(given, drop) or not node_state.is_refused(drop.hop):
        return False
    return (
        not node_state.lives_here(address)
        and node_state.owns(drop.hop.netns, address) is not True
        and not _asks_api(given, drop.hop)
    )


def endpoint_words(given: RuleInput, virtual: Endpoint, server: Endpoint) -> list[str]:
    """What the cluster says of a server that is none of the Service's ready endpoints; nothing of one that is."""
    listed = given.cluster.backends(virtual, given.outcome.session.key.protocol)
    if listed is None or not listed.current or server in listed.ready:
        return []
    state = "is not ready now" if server in listed.not_ready else "is no longer an endpoint of the Service"
    return [f"{endpoint_to_text(*server)} {state}"]


def _asks_api(given: RuleInput, hop: Hop) -> bool:
    """Whether the API would have told of a Service there."""
    return given.cluster.pod_at(given.outcome.session.key.client.address, _wall_ns(given, hop)) is not None


def _nobody_refused(given: RuleInput) -> Cause | None:
    """Nothing died here, but the query went on under the Service's own address, for want of another."""
    outcome = given.outcome
    queries = outcome.session.queries.transmissions
    if given.drops or not queries or outcome.delivered or outcome.bits & CR:
        return None
    if outcome.bits & CQ and not outcome.left_node:
        return None
    query = queries[-1]
    last = query.hops[-1]
    if last.netns == outcome.client_netns and not _is_nodes(given, last):
        return None
    found = _by_list(given, last) if _is_as_asked(query.hops) else None
    if found is None:
        return None
    evidence = [f"last hop of the query: {where(last)}", *found.evidence]
    return _say(MEDIUM, evidence, found.service, last, leg=Leg.QUERY)


def _say(
    confidence: Confidence,
    evidence: list[str],
    service: str,
    hop: Hop,
    *,
    drop: PacketDrop | None = None,
    leg: Leg | None = None,
) -> Cause:
    asked = endpoint_to_text(hop.detail.daddr, hop.detail.dport)
    return make_cause(
        "NoEndpoints",
        confidence,
        evidence,
        service=f"{service} at {asked}".lstrip(),
        drop=drop,
        leg=leg,
        place=place(hop),
    )


def _could_be_translated(given: RuleInput, drop: PacketDrop) -> bool:
    """Whether it died where Services' addresses are translated, or behind that, and was not."""
    hop = drop.hop
    if is_translated(hop) or not _is_as_asked([*drop.before, hop]):
        return False
    if drop.why.hook is not None and drop.why.hook not in BEHIND_TRANSLATION:
        return False
    return hop.netns != given.outcome.client_netns or drop.leg is not Leg.QUERY or _is_nodes(given, hop)


def _is_as_asked(hops: list[Hop]) -> bool:
    return len({_destination(hop) for hop in hops}) == 1


def _is_nodes(given: RuleInput, hop: Hop) -> bool:
    """Whether the namespace is the node's, which translates, and not a pod's."""
    node_state = given.outcome.node_state
    if hop.netns in node_state.forwarding or any(netns == hop.netns for netns, _ in node_state.backends):
        return True
    client = given.outcome.session.key.client.address
    listed = given.cluster.backends(_destination(hop), given.outcome.session.key.protocol)
    return listed is not None and given.cluster.pod_at(client, _wall_ns(given, hop)) is None


def _by_list(given: RuleInput, hop: Hop) -> _Proof | None:
    return _by_slices(given, hop) or _by_ipvs(given, hop)


def _by_slices(given: RuleInput, hop: Hop) -> _Proof | None:
    asked = _destination(hop)
    listed = given.cluster.backends(asked, given.outcome.session.key.protocol)
    if listed is None or not listed.had_none_ready(_wall_ns(given, hop)) or _is_taken(given, hop):
        return None
    service = given.cluster.service_at(asked.address)
    name = f"{service.namespace}/{service.name}" if service is not None else ""
    evidence = [f"by the EndpointSlices, none of its endpoints was ready; {len(listed.not_ready)} are not ready now"]
    if not listed.current:
        evidence.append("nothing has come from the API server for some time: the list may be old")
    return _Proof(HIGH if listed.current else MEDIUM, evidence, name)


def _is_taken(given: RuleInput, hop: Hop) -> bool:
    """Whether the namespace has the Service's address itself, and no ip_vs that would take what comes there.

    NodeLocal DNSCache listens there, whatever endpoints the Service has.
    """
    if given.outcome.node_state.owns(hop.netns, hop.detail.daddr) is not True:
        return False
    return _real_servers(given, hop) is None


def _by_ipvs(given: RuleInput, hop: Hop) -> _Proof | None:
    servers = _real_servers(given, hop)
    if servers is None or servers:
        return None
    return _Proof(HIGH, [f"ip_vs of network namespace {hop.netns} has no real server for it"])


def _by_refusal(given: RuleInput, drop: PacketDrop) -> _Proof | None:
    """By the packet alone: still addressed to what was a Service's address before, and refused with that.

    In FORWARD whatever has endpoints is translated. In OUTPUT some rules come before translation: there it takes the
    "port unreachable" that kube-proxy answers with.
    """
    hop, node_state = drop.hop, given.outcome.node_state
    was_translated = (hop.netns, _destination(hop)) in node_state.backends
    if not (was_translated or _real_servers(given, hop) is not None) or _is_taken(given, hop):
        return None
    if not _refuses(given, drop) or not (drop.why.hook == "FORWARD" or node_state.is_refused(hop)):
        return None
    known = "earlier ones to that address were" if was_translated else "its address is a virtual service of ip_vs"
    evidence = [f"it was not translated, but {known}", ELSE]
    if node_state.is_refused(hop):
        evidence.insert(1, "the node reported that port as unreachable")
    return _Proof(MEDIUM, evidence)


def _found_no_way(drop: PacketDrop) -> bool:
    """Whether it died as what nobody translates may die: no program took it on, or it has nowhere to go."""
    codes = ("NoRoute", "NeighbourFailure")
    return drop.why.reason in PROGRAMS or any(confidence_in(code, drop.why) for code in codes)


def _refuses(given: RuleInput, drop: PacketDrop) -> bool:
    """Whether a hook of netfilter dropped it, as kube-proxy's rules and ip_vs do."""
    return netfilter.refusal(drop, given.namespaces, given.outcome.session.first_ns) is not None


def _real_servers(given: RuleInput, hop: Hop) -> frozenset[Endpoint] | None:
    """What ip_vs of that namespace has for the address; None where that is none of its virtual services."""
    tables = given.namespaces.ipvs(hop.netns)
    return None if tables is None else tables.services.get((given.outcome.session.key.protocol, _destination(hop)))


def _destination(hop: Hop) -> Endpoint:
    return Endpoint(hop.detail.daddr, hop.detail.dport)


def _wall_ns(given: RuleInput, hop: Hop) -> int:
    return hop.ts_ns + given.wall_offset_ns
