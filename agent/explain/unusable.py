"""Replies that came and that no resolver takes: unreadable, not matching, or from an address that was not asked.

They show that the server has the query. What a client does with them can only be told by what it does next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.evidence import duration_words, lost_attempt, where
from agent.explain.verdict import HIGH, MEDIUM, make_cause
from agent.hop.endpoint import endpoint_to_text
from agent.session.addressed import addressed, asked_of
from agent.session.strays import is_readable, why_unusable
from agent.wire.message import name_to_text
from agent.wire.render import rdtype_to_text

if TYPE_CHECKING:
    from agent.explain.verdict import Cause
    from agent.session.model import Key, Session, Transmission
    from agent.session.outcome import Outcome

GOES_ON = "the client asked again afterwards"
MAY_HAVE_TAKEN_IT = (
    "the client did not ask again: a program that does not check where replies come from may have taken it"
)


def unexpected_source(outcome: Outcome) -> Cause | None:
    """The reply came to the client from another address than it asked."""
    reply = outcome.reply
    if not outcome.unasked or reply is None or reply.drop is not None:
        return None
    hop = reply.hops[-1]
    session = outcome.session
    goes_on = any(query.hops[0].ts_ns > hop.ts_ns for query in session.queries.transmissions)
    asked = ", ".join(dict.fromkeys(endpoint_to_text(*asked_of(query)) for query in session.queries.transmissions))
    evidence = [where(hop), GOES_ON if goes_on else MAY_HAVE_TAKEN_IT]
    found = endpoint_to_text(hop.detail.saddr, hop.detail.sport)
    return make_cause("UnexpectedSource", HIGH if goes_on else MEDIUM, evidence, source=found, asked=asked)


def unusable_reply(outcome: Outcome) -> Cause | None:
    """The server replied, and the reply cannot be read, or is not one to this query."""
    strays = _arrived(outcome.session)
    if not strays or outcome.lossy or (outcome.delivered and not lost_attempt(outcome)):
        return None
    reply, key = strays[-1], outcome.session.key
    evidence = [f"{len(strays)} such {'reply' if len(strays) == 1 else 'replies'}", _difference(reply, key)]
    code = "MismatchedReply" if is_readable(reply.message) else "MalformedReply"
    return make_cause(
        code,
        MEDIUM,
        evidence,
        address=endpoint_to_text(*addressed(reply.hops[-1], response=True)),
        delay=_delay(outcome.session, reply),
        difference=why_unusable(reply.message, key),
    )


def unfinished_reply(outcome: Outcome) -> Cause | None:
    """The reply began to come over the connection, and its end never did."""
    session = outcome.session
    if session.connection is None or session.connecting or session.replies.transmissions:
        return None
    reply = session.connection.unfinished_reply(session.key.id)
    if reply is None:
        return None
    came = f"{len(reply.payload)} of {reply.length_bytes} bytes"
    evidence = [f"{came} of the reply came over the connection, and then no more"]
    reset_by = session.connection.facts.reset_by
    if reset_by:
        evidence.append(f"the {reset_by} ended the connection by RST")
    return make_cause(
        "MalformedReply",
        MEDIUM,
        evidence,
        address=endpoint_to_text(*outcome.server),
        delay=duration_words(max(0, reply.first_ts_ns - session.first_ns)),
        difference=f"it ends after {came}",
    )


def _arrived(session: Session) -> list[Transmission]:
    if session.strays is None:
        return []
    return [stray for stray in session.strays.transmissions if stray.drop is None]


def _difference(reply: Transmission, key: Key) -> str:
    """What it says beside what was asked. Names stand between quotes."""
    question = reply.message.summary.question
    if question is None:
        return f"{len(reply.message.payload)} bytes: {why_unusable(reply.message, key)}"
    said, asked = (
        f'{number}, "{name_to_text(name)}" {rdtype_to_text(rdtype)}'
        for number, name, rdtype in (
            (reply.message.summary.id, question.name, question.rdtype),
            (key.id, key.name, key.rdtype),
        )
    )
    return f"the reply has id {said}; the query has {asked}"


def _delay(session: Session, reply: Transmission) -> str:
    before = [
        query.hops[0].ts_ns for query in session.queries.transmissions if query.hops[0].ts_ns <= reply.hops[0].ts_ns
    ]
    first_ns = max(before, default=session.first_ns)
    return duration_words(reply.hops[0].ts_ns - first_ns)
