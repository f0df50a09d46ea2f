"""The words for lookups that a DNS proxy of this node took, and the causes that only such lookups have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.causes import CauseText
from agent.explain.evidence import drop_words, errors, icmp_words
from agent.explain.verdict import HIGH, MEDIUM, Cause, make_cause
from agent.hop.endpoint import Endpoint, endpoint_to_text
from agent.hop.record import TX, name_text
from agent.session.addressed import addressed
from agent.session.node_state import PORT_UNREACHABLE
from agent.session.outcome import FQ, FR, Leg
from agent.session.proxies import Proxy, proxy_of, redirection
from agent.session.takers import Means

if TYPE_CHECKING:
    from agent.explain.rule_input import RuleInput
    from agent.hop.record import Hop
    from agent.session.outcome import Outcome

LOOK_AT_THE_PROXY = (
    "Look at that proxy, which belongs to the pod, the node or its network (service mesh, CNI, Docker): it "
    "may be overloaded, stopped, or configured to drop this query."
)
THE_SERVER = "The DNS server"
"""How the sentences begin that say what a server did."""

TEXTS: dict[str, CauseText] = {
    "ServerNoReply": CauseText(
        "{proxy} took the query for {asked} and did not answer; {then}.",
        LOOK_AT_THE_PROXY,
    ),
    "UpstreamTimeout": CauseText(
        "{proxy} took the query for {asked}, asked {upstream} and got no answer.",
        "Look at the server that the proxy asked, and at the network from the proxy to it.",
    ),
    "UpstreamTCPUnavailable": CauseText(
        "{proxy} took the query for {asked}, asked {upstream} over TCP and got no connection.",
        "Open TCP port 53 of the server that the proxy asked, or let the proxy ask over UDP.",
    ),
}
"""Instead of the plain ones, which speak of the server that was asked."""

REDIRECTED = CauseText(
    "A rule on this node redirects queries for {asked} to {listens} in network namespace {netns}, and nothing listens "
    "there.",
    "Look at the DNS proxy or server that should listen there: it is down or restarting, and the rule still exists.",
)
GONE = CauseText(
    "{proxy} took earlier queries for {asked} and no longer listens, so the rule that leads to it dropped the "
    "{message}.",
    "Look at that proxy: it is down or restarting, and the rule still exists. If it is running, look at the firewall "
    "rules of that namespace.",
)


def in_its_words(outcome: Outcome, cause: Cause) -> Cause:
    """The cause as it is, or with the proxy named if one took the query."""
    text = TEXTS.get(cause.code)
    spoken = text is None and cause.words.sentence.startswith(THE_SERVER)
    proxy = proxy_of(outcome) if spoken or text is not None else None
    if proxy is None:
        return cause
    evidence = [*cause.evidence, *_taken_words(proxy)]
    if text is None:
        text = cause.words._replace(sentence=cause.words.sentence.replace(THE_SERVER, "{proxy}", 1))
    facts = {
        **cause.facts,
        "proxy": _name(proxy),
        "asked": endpoint_to_text(*proxy.asked),
        "upstream": ", ".join(dict.fromkeys(_asked(outcome))),
        "then": _then(outcome),
    }
    return cause._replace(evidence=evidence, words=text, facts=facts)


def _name(proxy: Proxy) -> str:
    program = f" {name_text(proxy.program)}" if proxy.program else ""
    return f"The DNS proxy{program} on this node (network namespace {proxy.netns})"


def _then(outcome: Outcome) -> str:
    if outcome.bits & FR:
        return f"the server that it asked, {', '.join(dict.fromkeys(_asked(outcome)))}, had answered"
    if outcome.bits & FQ:
        return "it asked another server and got no answer"
    if outcome.exchanges:
        return "it asked for a TCP connection to a server and got none"
    return "no query from there could be matched to this one"


def _asked(outcome: Outcome) -> list[str]:
    first = (query.hops[0] for each in outcome.exchanges for query in each.queries.transmissions)
    return [endpoint_to_text(*addressed(hop, response=False)) for hop in first]


def _taken_words(proxy: Proxy) -> list[str]:
    if proxy.listens is not None:
        return [f"{endpoint_to_text(*proxy.asked)} is redirected to {endpoint_to_text(*proxy.listens)}"]
    return [
        f"the query was taken in network namespace {proxy.netns}, which does not have the address that the client asked"
    ]


def redirected_to_nobody(given: RuleInput) -> Cause | None:
    """A translation within one namespace leads to a port of it without a socket: the proxy is gone, its rule is not."""
    outcome = given.outcome
    for drop in given.drops:
        if drop.leg is Leg.QUERY and drop.why.no_socket:
            return _to_nobody(outcome, drop.hop.netns, [drop_words(drop)])
    if outcome.session.refused:
        last = outcome.session.queries.transmissions[-1].hops[-1]
        return _to_nobody(outcome, last.netns, ["RST answered the request for a connection"])
    return None


def _to_nobody(outcome: Outcome, netns: int, evidence: list[str]) -> Cause | None:
    found = redirection(outcome.session.queries.transmissions, netns, outcome.node_state)
    if found is None:
        return None
    asked, listens = (endpoint_to_text(*endpoint) for endpoint in found)
    return make_cause("NoListener", HIGH, evidence, words=REDIRECTED, asked=asked, listens=listens, netns=netns)


def refused_where_it_came(given: RuleInput) -> Cause | None:
    """The namespace that the query came to says that a port is closed, and the address that was asked is not of there.

    So the query was redirected to a port of that namespace. Its drop has another port than DNS, and may not be seen.
    """
    outcome = given.outcome
    if outcome.delivered or given.drops:
        return None
    for error in errors(outcome):
        kind = error.family, error.detail.icmp_type, error.detail.icmp_code
        if kind in PORT_UNREACHABLE and error.event == TX and _came_to(outcome, error):
            detail = error.detail
            asked = endpoint_to_text(detail.daddr, detail.dport)
            evidence = [f"the {icmp_words(error)} left that namespace first"]
            return make_cause(
                "NoListener", MEDIUM, evidence, words=REDIRECTED, asked=asked, listens="a port", netns=error.netns
            )
    return None


def _came_to(outcome: Outcome, error: Hop) -> bool:
    lasts = [query.hops[-1] for query in outcome.session.queries.transmissions]
    known = outcome.node_state.is_local(error.netns, error.detail.daddr)
    return known is False and any(last.netns == error.netns and last.event != TX for last in lasts)


def proxy_gone(given: RuleInput) -> Cause | None:
    """A TPROXY rule drops what it finds no socket for (net/netfilter/xt_TPROXY.c), as any rule that refuses does."""
    for drop in given.drops:
        why = drop.why
        if why.hook != "PREROUTING" or drop.leg is not Leg.QUERY:
            continue
        taker = given.outcome.node_state.takers.find(drop.hop)
        if taker is None or taker.means not in {Means.TRANSPARENT, Means.UNKNOWN}:
            continue
        detail = drop.hop.detail
        proxy = Proxy(drop.hop.netns, Endpoint(detail.daddr, detail.dport), None, taker.program)
        evidence = [
            drop_words(drop),
            "earlier queries that came in by this device were answered from there",
            "a rule that refuses such queries would look the same",
        ]
        asked = endpoint_to_text(detail.daddr, detail.dport)
        return make_cause("NoListener", MEDIUM, evidence, words=GONE, proxy=_name(proxy), asked=asked, drop=drop)
    return None
