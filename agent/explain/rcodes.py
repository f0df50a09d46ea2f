"""Why a server answered with an error: its own word, its upstream's, or what cannot be known from here.

An error is told as relayed only where an upstream was seen to give it. Where the server's side of the node is in view,
that it asked nobody, or that its upstreams said otherwise, makes the error its own. Everywhere else nobody can know,
and the evidence says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.evidence import duration_words
from agent.explain.remedies import BETWEEN_NEIGHBOURS, OF_CLIENTS, REJECTED, UNKNOWABLE, remedy
from agent.explain.verdict import HIGH, LOW, MEDIUM, Confidence, make_cause
from agent.hop.endpoint import endpoint_to_text
from agent.session.accepted import is_good, rcode_of, refused_attempts
from agent.session.addressed import is_from, servers_asked
from agent.session.outcome import FQ, answer_source
from agent.wire.extended_errors import extended_errors
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.explain.verdict import Cause
    from agent.hop.endpoint import Endpoint
    from agent.session.model import Session, Transmission
    from agent.session.outcome import Outcome
    from agent.wire.extended_errors import ExtendedError

AT_ONCE_NS = 10_000_000
"""Upstreams asked within so long were asked together."""
PATIENCE_NS = 100_000_000
"""A server that replies sooner after a question to an upstream did not wait for the answer."""
QUICK_NS = 2_000_000
"""A server that replies within so long hardly had the time to ask anybody."""

NEVER_NS = 1 << 62


class Attempt(NamedTuple):
    """What a server asked one upstream, until it replied itself."""

    server: Endpoint
    queries: int
    first_ns: int
    last_ns: int
    """When it asked first and last."""
    reply: Transmission | None
    """What came back in time."""
    unusable: int
    """Replies that it could not use."""
    unseen: bool = False
    """What came back is not in the record, or not as far as its question."""

    @property
    def address(self) -> str:
        """For a sentence."""
        return endpoint_to_text(*self.server)

    @property
    def words(self) -> str:
        """For evidence."""
        if self.reply is not None:
            truncated = ", truncated" if self.reply.message.summary.tc else ""
            said = f"{self.address} answered {rcode_to_text(rcode_of(self.reply))}{truncated}"
            return ", ".join((said, *(error.words for error in _errors(self.reply))))
        if self.unseen:
            return f"what {self.address} replied was not captured"
        useless = f", {self.unusable} that the server could not use" if self.unusable else ""
        return f"{self.address} did not reply{useless}"


def spoken_error(outcome: Outcome) -> Transmission | None:
    """The error that needs a cause: the delivered reply, or the one to an attempt that the client then repeated."""
    reply = outcome.reply
    if reply is None or outcome.session.connecting:
        return None
    if not outcome.healthy:
        return reply if outcome.delivered else None
    return next(reversed(refused_attempts(outcome.session, reply)), None)


def is_error_delivered(outcome: Outcome) -> bool:
    """Whether the lookup failed because of what it was told: then nobody may say that nothing came back."""
    return not outcome.healthy and spoken_error(outcome) is not None


def attempts_upstream(outcome: Outcome, until: Transmission | None) -> list[Attempt]:
    """What the server asked before it sent this reply, in the order in which it asked last."""
    found = [
        attempt
        for exchange in outcome.exchanges
        if not exchange.connecting
        for attempt in _attempts(exchange, outcome, _sent_ns(until))
    ]
    return sorted(found, key=lambda attempt: attempt.last_ns)


def _attempts(exchange: Session, outcome: Outcome, until_ns: int) -> Iterator[Attempt]:
    for asked in servers_asked(exchange):
        times = [sent for query in asked.queries if (sent := query.hops[0].ts_ns) <= until_ns]
        if not times:
            continue
        replies = [
            received
            for received in asked.replies
            if received.hops[0].ts_ns <= until_ns and outcome.node_state.died(received, outcome.server_netns) is None
        ]
        reply = next(filter(is_good, replies), next(iter(replies), None))
        strays = exchange.strays.transmissions if exchange.strays is not None else []
        unusable = sum(is_from(stray, asked.queries[0]) for stray in strays)
        unusable += _has_begun(exchange)
        yield Attempt(
            asked.server, len(times), times[0], times[-1], reply, unusable, reply is None and _lacks(exchange)
        )


def _has_begun(exchange: Session) -> bool:
    """Whether a reply began to come over its connection, and its end never did."""
    return exchange.connection is not None and exchange.connection.unfinished_reply(exchange.key.id) is not None


def _lacks(exchange: Session) -> bool:
    """Whether a reply may have come that is not in the record."""
    lost_ns = exchange.connection.lost_ns if exchange.connection is not None else None
    return exchange.reply_cut or (lost_ns is not None and lost_ns > exchange.first_ns)


def last_round(attempts: list[Attempt], until_ns: int) -> list[Attempt]:
    """The attempts that decided: the last upstream asked, and those that were still waited for then.

    Args:
        attempts: at least one, see `attempts_upstream`.
        until_ns: when the server replied; `NEVER_NS` if it did not.
    """
    last = attempts[-1]
    together = [
        attempt
        for attempt in attempts
        if last.last_ns - attempt.last_ns <= AT_ONCE_NS
        and (attempt.reply is None or attempt is last or attempt.reply.hops[0].ts_ns >= last.first_ns)
    ]
    answered = [attempt for attempt in attempts if attempt.reply is not None]
    if answered and until_ns - last.last_ns < PATIENCE_NS:
        # It did not wait for the silent ones.
        return [attempt for attempt in together if attempt.reply is not None] or answered[-1:]
    return together


def upstream_timeout(outcome: Outcome) -> Cause | None:
    """The server asked upstream, the last that it asked stayed silent, and so it said nothing or gave an error."""
    error = spoken_error(outcome)
    if not outcome.bits & FQ or (error is None and outcome.healthy):
        return None
    attempts = attempts_upstream(outcome, error)
    if not attempts or any(attempt.reply or attempt.unseen for attempt in last_round(attempts, _sent_ns(error))):
        return None
    answered = {attempt.server for attempt in attempts if attempt.reply is not None}
    silent = [attempt for attempt in attempts if attempt.reply is None and attempt.server not in answered] or attempts[
        -1:
    ]
    address = ", ".join(dict.fromkeys(attempt.address for attempt in silent))
    unusable = sum(attempt.unusable for attempt in silent)
    useless = f" that the server could use ({unusable} came)" if unusable else ""
    evidence = [f"{sum(attempt.queries for attempt in silent)} queries to {address}, no reply{useless}"]
    evidence += dict.fromkeys(attempt.words for attempt in attempts if attempt.server in answered)
    evidence += [extended.words for extended in _errors(error)]
    evidence += doubt_words(outcome)
    sure = LOW if _is_cut(outcome) else MEDIUM if outcome.session.ambiguous else HIGH
    return make_cause("UpstreamTimeout", sure, evidence, address=address)


def doubt_words(outcome: Outcome) -> list[str]:
    """What speaks against taking what was not seen for silence."""
    return ["records were lost meanwhile: what the upstream said may be among them"] if _is_cut(outcome) else []


def upstream_error(outcome: Outcome) -> Cause | None:
    """An error that an upstream was seen to give, or one of which nobody can know who gave it."""
    error = spoken_error(outcome)
    if error is None:
        return None
    rcode = rcode_of(error)
    attempts = attempts_upstream(outcome, error)
    decisive = last_round(attempts, _sent_ns(error)) if attempts else []
    wrong = [attempt for attempt in decisive if attempt.reply is not None and not is_good(attempt.reply)]
    same = [attempt for attempt in wrong if attempt.reply is not None and rcode_of(attempt.reply) == rcode]
    if same or wrong:
        return _told_upstream((same or wrong)[-1], error, outcome, same=bool(same))
    unseen = [attempt.words for attempt in decisive if attempt.unseen]
    unknowable = not (attempts or rcode in BETWEEN_NEIGHBOURS or _is_in_view(outcome) or _source(error) != "forward")
    if not unseen and not unknowable:
        return None
    deed = f"answered {_name(error)}; whether the error is its own or its upstream's cannot be seen from here"
    evidence = [*_facts(outcome, error), *(unseen or [_view_words(outcome)])]
    return _say("UpstreamError", LOW, evidence, deed, error, otherwise=UNKNOWABLE)


def _told_upstream(attempt: Attempt, error: Transmission, outcome: Outcome, *, same: bool) -> Cause:
    rcode = _name(error)
    sure = HIGH if same else MEDIUM
    if same:
        deed = f"relayed {rcode} from its upstream {attempt.address}"
    else:
        assert attempt.reply is not None  # noqa: S101  an attempt without a reply told nothing
        deed = f"answered {rcode} after its upstream {attempt.address} had answered {_name(attempt.reply)}"
    said = [extended.words for extended in _errors(error)]
    confidence = MEDIUM if outcome.session.ambiguous else sure
    return _say("UpstreamError", confidence, [attempt.words, *said], deed, error, attempt.reply)


def server_error(outcome: Outcome) -> Cause | None:
    """An error that the server gave itself: nobody upstream was asked, or they said otherwise."""
    error = spoken_error(outcome)
    if error is None:
        return None
    rcode, name = rcode_of(error), _name(error)
    attempts = attempts_upstream(outcome, error)
    if attempts:
        others = dict.fromkeys(attempt.words for attempt in attempts)
        good = next((attempt for attempt in reversed(attempts) if attempt.reply is not None), attempts[-1])
        deed = f"itself answered {name} although its upstream {good.words}" if good.reply else f"itself answered {name}"
        unsure = outcome.session.ambiguous or _is_cut(outcome)
        sure = LOW if unsure else HIGH if any(_errors(error)) else MEDIUM
        evidence = [*_facts(outcome, error), *others, *doubt_words(outcome)]
        return _say("ServerError", sure, evidence, deed, error, otherwise=REJECTED)
    if rcode in BETWEEN_NEIGHBOURS:
        evidence = [*_facts(outcome, error), f"{name} exists only between a server and its direct client"]
        return _say("ServerError", HIGH, evidence, f"itself answered {name}", error)
    sure, deed = _own_error(outcome, error)
    evidence = [*_facts(outcome, error), _view_words(outcome)]
    return _say("ServerError", sure, evidence, deed, error, otherwise=OF_CLIENTS.get(rcode))


def _own_error(outcome: Outcome, error: Transmission) -> tuple[Confidence, str]:
    """Confidence and words for the error of a server that was not seen to ask anybody."""
    name, took_ns = _name(error), _took_ns(outcome, error)
    bare = _source(error) == "server-error"
    if _is_in_view(outcome) and took_ns is not None and took_ns <= QUICK_NS:
        return (
            MEDIUM,
            f"itself answered {name} after {duration_words(took_ns)}, and was not seen to ask another server",
        )
    if bare:
        return MEDIUM, f"itself answered {name}"
    return LOW, f"answered {name}, and no upstream was seen to give that error"


def _facts(outcome: Outcome, error: Transmission) -> list[str]:
    """The reply in figures, and in its server's own words."""
    took_ns = _took_ns(outcome, error)
    after = f" {duration_words(took_ns)} after the query" if took_ns is not None else ""
    return [f"{_name(error)}{after}, with {_flags(error)}", *(extended.words for extended in _errors(error))]


def _view_words(outcome: Outcome) -> str:
    """Whether what the server asks would have been seen."""
    if outcome.server_netns is None:
        return "the server is beyond this node: what it asks cannot be seen here"
    if not _is_in_view(outcome):
        return "records were lost meanwhile: what the server asked may be among them"
    return "the server was not seen to ask another server on a DNS port"


def _is_in_view(outcome: Outcome) -> bool:
    return outcome.server_netns is not None and not _is_cut(outcome)


def _is_cut(outcome: Outcome) -> bool:
    return outcome.lossy or outcome.session.overflowed


def _took_ns(outcome: Outcome, error: Transmission) -> int | None:
    """From the query that it answers to the reply: servers answer repeated queries one by one."""
    queries = outcome.session.queries.transmissions
    if not queries:
        return None
    answered = outcome.session.replies.transmissions.index(error)
    query = queries[min(answered, len(queries) - 1)]
    if query.hops[0].ts_ns > error.hops[0].ts_ns:
        query = queries[0]
    return max(0, error.hops[0].ts_ns - query.hops[-1].ts_ns)


def _source(error: Transmission) -> str | None:
    """`AnswerSource` of a reply."""
    return answer_source(error.message)


def _flags(error: Transmission) -> str:
    summary = error.message.summary
    if _source(error) == "server-error":
        return "AA=0, RA=0 and no records"
    return f"AA={summary.aa:d}, RA={summary.ra:d}"


def _name(reply: Transmission) -> str:
    """The response code, and what its server adds to it."""
    added = next((error.name for error in _errors(reply) if error.name and error.code), "")
    rcode = rcode_to_text(rcode_of(reply))
    return f"{rcode} ({added})" if added else rcode


def _errors(reply: Transmission | None) -> list[ExtendedError]:
    return [] if reply is None else list(extended_errors(reply.message.payload, reply.message.summary))


def _sent_ns(error: Transmission | None) -> int:
    return NEVER_NS if error is None else error.hops[0].ts_ns


def _say(  # noqa: PLR0917  the parts of a cause in their order
    code: str,
    confidence: Confidence,
    evidence: list[str],
    deed: str,
    error: Transmission,
    upstream: Transmission | None = None,
    otherwise: str | None = None,
) -> Cause:
    cause = make_cause(code, confidence, evidence, deed=deed)
    better = remedy([*_errors(error), *_errors(upstream)], rcode_of(error), otherwise)
    return cause if better is None else cause._replace(words=cause.words._replace(remedy=better))
