"""Why a session failed, or lost an attempt: an ordered table of rules. The first that speaks is heard.

No evidence, no accusation: when no rule speaks the cause is Unknown, with the last hop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.context.cluster import NullCluster
from agent.context.counters import NullCounters
from agent.context.who import NOBODY
from agent.explain import proxied
from agent.explain.endpoints import no_endpoints
from agent.explain.evidence import (
    drops,
    errors,
    icmp_words,
    lost_attempt,
)
from agent.explain.findings import FindingInput, findings
from agent.explain.floods import flooded
from agent.explain.gaps import capture_loss
from agent.explain.icmp_errors import told_by_icmp
from agent.explain.packet_drops import (
    client_socket_overflow,
    damaged,
    fragments_missing,
    interface_down,
    kernel_drop,
    kernel_says,
    no_listener,
    program_said_no,
    refused_by_netfilter,
    server_socket_overflow,
)
from agent.explain.rcodes import (
    server_error,
    spoken_error,
    upstream_error,
    upstream_timeout,
)
from agent.explain.replies import late_reply, not_translated_back, refused_untranslated
from agent.explain.rule_input import RuleInput
from agent.explain.signatures import ON_THE_WAY
from agent.explain.silence import (
    left_node,
    server_no_reply,
    unknown,
    upstream_tcp_refused,
    upstream_tcp_unavailable,
)
from agent.explain.stale import ipvs_stale_backend, stale_conntrack_entry
from agent.explain.unusable import unexpected_source, unfinished_reply, unusable_reply
from agent.explain.verdict import Cause, Verdict
from agent.session.outcome import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.context.cluster import Cluster
    from agent.context.counters import NamespaceCounters
    from agent.context.who import Who

PAIR_TYPES = {1: "A", 28: "AAAA"}
NULL_COUNTERS = NullCounters()
NULL_CLUSTER = NullCluster()


def explain(
    outcome: Outcome,
    namespaces: NamespaceCounters = NULL_COUNTERS,
    cluster: Cluster = NULL_CLUSTER,
    who: Callable[[], Who] = lambda: NOBODY,
    wall_offset_ns: int = 0,
) -> Verdict:
    """Find the cause of a failure or of a lost attempt, and the remarks.

    Args:
        outcome: a closed session.
        namespaces: what the kernel counts of the namespaces it passed; asked only when something was lost.
        cluster: Services and their endpoints.
        who: whose lookup it was; asked only where a finding depends on it.
        wall_offset_ns: added to the hops' stamps to get the cluster's time.
    """
    found = findings(FindingInput(outcome, cluster, who))
    remarks = [f"{finding.name}: {finding.words}" for finding in found if finding.words]
    given = RuleInput(outcome, namespaces, cluster, drops(outcome), wall_offset_ns)
    return Verdict(_cause(given), [finding.name for finding in found], remarks)


def _cause(given: RuleInput) -> Cause | None:
    outcome = given.outcome
    if (
        outcome.status is Status.SUCCEEDED
        and not given.drops
        and not lost_attempt(outcome)
        and (len(outcome.session.replies.transmissions) < 2 or spoken_error(outcome) is None)  # noqa: PLR2004
    ):
        return None
    cause = next((cause for rule in RULES if (cause := rule(given)) is not None), None)
    if cause is None:
        return None
    cause.evidence.extend(_circumstances(outcome))
    return proxied.in_its_words(outcome, cause)


def _circumstances(outcome: Outcome) -> Iterator[str]:
    """What belongs to the picture, whatever the cause."""
    for error in errors(outcome):
        yield icmp_words(error)
    if outcome.pair is not None:
        other = PAIR_TYPES.get(outcome.pair.key.rdtype, "other")
        fate = "was answered" if outcome.pair.replies.transmissions else "was not answered either"
        yield f"the {other} query of the same socket {fate}"


def of_outcome(speak: Callable[[Outcome], Cause | None]) -> Callable[[RuleInput], Cause | None]:
    """A rule that needs nothing but the session."""
    return lambda given: speak(given.outcome)


RULES: tuple[Callable[[RuleInput], Cause | None], ...] = (
    capture_loss,
    # Refused. ip_vs refuses in netfilter's name, and kube-proxy by its rules for Services without endpoints.
    ipvs_stale_backend,
    refused_by_netfilter("ConntrackTableFull"),
    refused_by_netfilter("ConntrackRace"),
    proxied.proxy_gone,
    no_endpoints,
    refused_untranslated,
    refused_by_netfilter("PolicyDrop"),
    program_said_no,
    # An old translation: how the packet died then is its consequence.
    stale_conntrack_entry,
    server_socket_overflow,
    client_socket_overflow,
    upstream_tcp_refused,
    proxied.redirected_to_nobody,
    no_listener,
    late_reply,
    not_translated_back,
    of_outcome(unexpected_source),
    # Lost on the way.
    fragments_missing,
    kernel_says("ChecksumError"),
    damaged,
    interface_down,
    *map(kernel_says, ON_THE_WAY),
    kernel_drop,
    proxied.refused_where_it_came,
    told_by_icmp,
    flooded,
    # At the server or beyond.
    of_outcome(unusable_reply),
    of_outcome(unfinished_reply),
    upstream_tcp_unavailable,
    of_outcome(upstream_timeout),
    server_no_reply,
    left_node,
    of_outcome(upstream_error),
    of_outcome(server_error),
    unknown,
)
