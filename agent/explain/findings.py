"""Remarks that do not change the Status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.session.outcome import FR, NXDOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.session.outcome import Outcome

SLOW_NS = 1_000_000_000
"""Half of what musl, and a fifth of what glibc, waits before it asks again."""


def findings(outcome: Outcome) -> list[str]:
    """The names of all remarks that hold."""
    return [name for name, holds in FINDINGS.items() if holds(outcome)]


def _upstream_retried(outcome: Outcome) -> bool:
    """Whether the server asked on after silence; that it asks again over TCP after a truncated reply is no retry."""
    unanswered = [one for one in outcome.exchanges if not one.replies.transmissions]
    repeated = any(len(one.sent) > 1 for one in outcome.exchanges)
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
        for one in outcome.session.queries.transmissions
        for hop in one.arrivals(outcome.server_netns)[:1]
        if hop.ts_ns <= replied_ns
    ]
    return bool(arrivals) and replied_ns - min(arrivals) - _waited_ns(outcome) >= SLOW_NS


def _waited_ns(outcome: Outcome) -> int:
    """From the first question upstream to the last reply; to the server's own reply, if an upstream was silent."""
    asked = [one for one in outcome.exchanges if one.queries.transmissions]
    if not asked or outcome.reply is None:
        return 0
    begun_ns = min(one.first_ns for one in asked)
    if not all(one.replies.transmissions for one in asked[-1:]):
        return outcome.reply.hops[0].ts_ns - begun_ns
    return max(one.replies.transmissions[0].hops[-1].ts_ns for one in asked if one.replies.transmissions) - begun_ns


def _not_found(outcome: Outcome) -> bool:
    return outcome.rcode == NXDOMAIN and outcome.delivered


FINDINGS: dict[str, Callable[[Outcome], bool]] = {
    "Retransmitted": lambda outcome: outcome.repeats > 1,
    "ParallelNameservers": lambda outcome: len(outcome.session.sent) > 1 and len(outcome.session.asked) > 1,
    "SlowServer": _slow_server,
    "SlowUpstream": _slow_upstream,
    "UpstreamRetried": _upstream_retried,
    "AmbiguousUpstream": lambda outcome: outcome.session.ambiguous,
    "Truncated": lambda outcome: outcome.reply is not None and outcome.reply.wire.summary.tc,
    "SearchPathNXDOMAIN": lambda outcome: _not_found(outcome) and outcome.session.searched,
    "NameNotFound": lambda outcome: _not_found(outcome) and not outcome.session.searched,
    "TransactionIdCollision": lambda outcome: outcome.session.collides,
}
