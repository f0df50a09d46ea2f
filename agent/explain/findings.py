"""Remarks that do not change the Status."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.answers import (
    PLAIN_UDP,
    alias_to_nowhere,
    answered_by_search_domain,
    larger_than_offered,
    no_data_ends_search,
    told_by_extended_error,
)
from agent.explain.disagreement import of_servers, of_types
from agent.explain.names import addresses, contradiction, service_name, why_not_found
from agent.hop.endpoint import V4_MAPPED, address_to_text
from agent.session.addressed import times_asked
from agent.session.outcome import FR
from agent.wire.extended_errors import OPTION
from agent.wire.rcodes import NOERROR, NXDOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.cluster import Cluster
    from agent.context.who import Who
    from agent.hop.endpoint import Endpoint
    from agent.session.outcome import Outcome

SLOW_NS = 1_000_000_000
"""Half of what musl, and a fifth of what glibc, waits before it asks again."""
ENOUGH_ANSWERS = 200
"""In one window: fewer are uneven by chance."""
OPCODE = 0x7800
"""Where the header has it (RFC 1035 4.1.1): 0 is a query."""
UNEVEN = 1.5
"""How much more than its fair share one server has."""


class FindingInput(NamedTuple):
    """What a remark is made from."""

    outcome: Outcome
    cluster: Cluster
    who: Callable[[], Who]
    """Asked only where it matters: it takes time to find out."""


class Finding(NamedTuple):
    """One remark."""

    name: str
    words: str = ""
    """A sentence, where there is more to say than the name does."""


def findings(given: FindingInput) -> list[Finding]:
    """All that hold."""
    plain = [Finding(name) for name, holds in PLAIN.items() if holds(given.outcome)]
    reply = given.outcome.reply
    if given.outcome.session.connecting or (reply is not None and reply.message.summary.flags & OPCODE):
        # What is remarked of names holds for queries alone.
        return plain
    looks = (*LOOKS, *RARE) if _is_out_of_the_ordinary(given.outcome) else LOOKS
    return plain + [found for look in looks if (found := look(given)) is not None]


def _is_out_of_the_ordinary(outcome: Outcome) -> bool:
    """Whether any of the rare remarks can hold: one look at what most lookups do not have, instead of one for each."""
    session, reply = outcome.session, outcome.reply
    return (
        outcome.contradicted is not None
        or bool(session.search_prefix)
        or bool(session.upstream)
        or len(session.replies.transmissions) > 1
        or (reply is not None and (reply.message.length_bytes > PLAIN_UDP or OPTION in reply.message.payload))
    )


def _upstream_retried(outcome: Outcome) -> bool:
    """Whether the server asked on after silence; that it asks again over TCP after a truncated reply is no retry."""
    if not outcome.session.upstream:
        return False
    unanswered = [exchange for exchange in outcome.exchanges if not exchange.replies.transmissions]
    repeated = any(max(times_asked(exchange).values()) > 1 for exchange in outcome.exchanges if len(exchange.sent) > 1)
    return repeated or (bool(unanswered) and len(outcome.exchanges) > 1)


def _is_slow(outcome: Outcome) -> bool:
    """Cheap, because it is asked of every lookup."""
    return outcome.reply is not None and outcome.session.last_ns - outcome.session.first_ns >= SLOW_NS


def _slow_upstream(outcome: Outcome) -> bool:
    return _is_slow(outcome) and bool(outcome.bits & FR) and _waited_ns(outcome) >= SLOW_NS


def _slow_server(outcome: Outcome) -> bool:
    """The server's own time: from the query's arrival to its reply, less what it waited for its upstreams."""
    if not _is_slow(outcome) or outcome.server_netns is None or outcome.reply is None:
        return False
    replied_ns = outcome.reply.hops[0].ts_ns
    arrivals = [
        hop.ts_ns
        for query in outcome.session.queries.transmissions
        for hop in query.arrivals(outcome.server_netns)[:1]
        if hop.ts_ns <= replied_ns
    ]
    return bool(arrivals) and replied_ns - min(arrivals) - _waited_ns(outcome) >= SLOW_NS


def _waited_ns(outcome: Outcome) -> int:
    """From the first question upstream to the last reply; to the server's own reply, if an upstream was silent."""
    asked = [exchange for exchange in outcome.exchanges if exchange.queries.transmissions]
    if not asked or outcome.reply is None:
        return 0
    begun_ns = min(lookup.first_ns for lookup in asked)
    if not asked[-1].replies.transmissions:
        return outcome.reply.hops[0].ts_ns - begun_ns
    return (
        max(lookup.replies.transmissions[0].hops[-1].ts_ns for lookup in asked if lookup.replies.transmissions)
        - begun_ns
    )


PLAIN: dict[str, Callable[[Outcome], bool]] = {
    "Retransmitted": lambda outcome: len(outcome.session.sent) > 1 and outcome.repeats > 1,
    "ParallelNameservers": lambda outcome: len(outcome.session.sent) > 1 and len(times_asked(outcome.session)) > 1,
    "SlowServer": _slow_server,
    "SlowUpstream": _slow_upstream,
    "UpstreamRetried": _upstream_retried,
    "AmbiguousUpstream": lambda outcome: outcome.session.ambiguous,
    "Truncated": lambda outcome: outcome.reply is not None and outcome.reply.message.summary.tc,
    "TransactionIdCollision": lambda outcome: outcome.session.collides,
}


def _name_not_found(given: FindingInput) -> Finding | None:
    """Somebody's search path, a Service that is not as its client thinks, or just no such name."""
    outcome = given.outcome
    if outcome.rcode != NXDOMAIN or not outcome.delivered:
        return None
    if outcome.session.search_list_followed:
        return Finding("SearchPathNXDOMAIN")
    alias = alias_to_nowhere(outcome)
    if alias is not None:
        return Finding("ExternalNameNotFound", alias)
    asked = service_name(outcome.session.key.name)
    known = why_not_found(asked, given.cluster) if asked is not None else None
    return Finding(*known) if known is not None else Finding("NameNotFound")


def _wrong_answer(given: FindingInput) -> Finding | None:
    """The answer for a Service's name against the Service's own address: autopath, or a server that lags behind."""
    outcome = given.outcome
    if outcome.rcode != NOERROR or outcome.reply is None:
        return None
    asked = service_name(outcome.session.key.name)
    service = given.cluster.service_of(asked.namespace, asked.service) if asked is not None else None
    if asked is None or service is None:
        return None
    message = outcome.reply.message
    words = contradiction(asked, outcome.session.key.rdtype, addresses(message.payload, message.summary), service)
    return Finding("WrongAnswer", words) if words else None


def _headless_too_large(given: FindingInput) -> Finding | None:
    outcome = given.outcome
    if outcome.reply is None or not outcome.reply.message.summary.tc:
        return None
    asked = service_name(outcome.session.key.name)
    service = given.cluster.service_of(asked.namespace, asked.service) if asked is not None else None
    if asked is None or service is None or not service.headless:
        return None
    members = given.cluster.members(asked.namespace, asked.service) or ()
    return Finding("HeadlessTooLarge", f"Service {asked.text} is headless and has {len(members)} endpoints")


def _node_local_bypassed(given: FindingInput) -> Finding | None:
    """NodeLocal DNSCache runs here, and a pod of this node asks the cluster's servers past it."""
    cache = given.cluster.node_local()
    outcome = given.outcome
    if cache is None or outcome.client_netns is None or not outcome.session.queries.transmissions:
        return None
    who = given.who()
    if who.client is None or who.client.uid == cache.pod.uid or who.service is None:
        return None
    if outcome.server.address in cache.addresses:
        return None
    return Finding(
        "NodeLocalBypassed",
        f"NodeLocal DNSCache on this node listens on {', '.join(map(address_to_text, cache.addresses))}",
    )


def _server_imbalance(given: FindingInput) -> Finding | None:
    """One server behind the asked address answers much more than its share of what this node sees."""
    backend = given.outcome.backend
    if backend is None or backend.answers * 2 < ENOUGH_ANSWERS:
        return None
    answers, servers = backend.all_answers, len(backend.siblings)
    asked = backend.virtual
    listed = given.cluster.backends(asked, given.outcome.session.key.protocol)
    if listed is not None and listed.ready:
        # A server of a dual-stack Service is listed once in each family.
        servers = sum(_is_v4(endpoint) == _is_v4(asked) for endpoint in listed.ready)
    if answers < ENOUGH_ANSWERS or servers < 2 or backend.answers * servers < UNEVEN * answers:  # noqa: PLR2004
        return None
    return Finding(
        "ServerImbalance", f"it gave {backend.answers} of the last {answers} answers, one of {servers} servers"
    )


def _is_v4(endpoint: Endpoint) -> bool:
    return endpoint.address.startswith(V4_MAPPED)


def _query_not_seen(given: FindingInput) -> Finding | None:
    """Only the reply shows: a one-sided or mirrored capture, a data plane that hides the query, or nobody asked."""
    if given.outcome.session.queries.transmissions:
        return None
    return Finding(
        "QueryNotSeen", "only the reply was seen here: the query is hidden from this place, or there was none"
    )


def _servers_disagree(given: FindingInput) -> Finding | None:
    words = of_servers(given.outcome)
    return Finding("ServersDisagree", words) if words else None


def _contradictory_answers(given: FindingInput) -> Finding | None:
    words = of_types(given.outcome)
    return Finding("ContradictoryAnswers", words) if words else None


def _larger_than_offered(given: FindingInput) -> Finding | None:
    words = larger_than_offered(given.outcome)
    return Finding("LargerThanOffered", words) if words else None


def _extended_error(given: FindingInput) -> Finding | None:
    found = told_by_extended_error(given.outcome)
    return Finding(*found) if found else None


def _search_list(given: FindingInput) -> Finding | None:
    """Where a search list came to its end."""
    if not given.outcome.session.search_prefix:
        return None
    words = no_data_ends_search(given.outcome)
    if words:
        return Finding("SearchPathNODATA", words)
    words = answered_by_search_domain(given.outcome)
    return Finding("SearchDomainAnswered", words) if words else None


def _many_messages(given: FindingInput) -> Finding | None:
    """A zone transfer: what is told of the answer is told by its first messages."""
    session = given.outcome.session
    if not session.further:
        return None
    kept = len(session.replies.transmissions)
    return Finding("ManyMessages", f"the answer came in {kept + session.further} messages; the first {kept} are shown")


LOOKS: tuple[Callable[[FindingInput], Finding | None], ...] = (
    _query_not_seen,
    _many_messages,
    _name_not_found,
    _wrong_answer,
    _headless_too_large,
    _node_local_bypassed,
    _server_imbalance,
)
RARE: tuple[Callable[[FindingInput], Finding | None], ...] = (
    _servers_disagree,
    _contradictory_answers,
    _larger_than_offered,
    _extended_error,
    _search_list,
)
NAMES = (
    *PLAIN,
    "QueryNotSeen",
    "ManyMessages",
    "SearchPathNXDOMAIN",
    "NameNotFound",
    "StatefulSetName",
    "HeadlessTooLarge",
    "NodeLocalBypassed",
    "WrongAnswer",
    "ServerImbalance",
    "ServersDisagree",
    "ContradictoryAnswers",
    "LargerThanOffered",
    "DNSSECFailure",
    "ExtendedError",
    "SearchPathNODATA",
    "SearchDomainAnswered",
    "ExternalNameNotFound",
)
"""Every finding there is."""
