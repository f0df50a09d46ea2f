"""Answers that contradict each other: of several servers, or for two types of one name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.session.addressed import servers_asked
from agent.session.sighting import endpoint_to_text
from agent.session.taken import NOERROR, NXDOMAIN, is_good, rcode_of
from agent.wire.render import rcode_to_text, rdtype_to_text

if TYPE_CHECKING:
    from agent.session.outcome import Outcome


def of_servers(outcome: Outcome) -> str | None:
    """What the servers of one client said, where they do not say the same; None if they do.

    A resolver takes the first answer that it can use, so which names exist is a matter of luck.
    """
    session = outcome.session
    if len(session.replies.transmissions) < 2 or len(session.queries.transmissions) < 2:  # noqa: PLR2004
        return None
    said = {
        asked.server: rcode_of(next(filter(is_good, asked.replies), asked.replies[0]))
        for asked in servers_asked(session)
        if asked.replies
    }
    if len(set(said.values())) < 2:  # noqa: PLR2004  all say the same
        return None
    return ", ".join(f"{endpoint_to_text(*server)} answered {rcode_to_text(rcode)}" for server, rcode in said.items())


def of_types(outcome: Outcome) -> str | None:
    """What was said of the two halves of an A/AAAA pair, where the name exists for one alone; None elsewhere.

    A name that does not exist has no records of any type (RFC 8020 2).
    """
    pair = outcome.session.pair
    if pair is None or not outcome.delivered or not outcome.healthy:
        return None
    replies = pair.replies.transmissions
    if not replies or outcome.reply is None:
        return None
    mine, other = outcome.rcode, rcode_of(replies[0])
    if {mine, other} != {NOERROR, NXDOMAIN} or replies[0].wire.summary.tc or outcome.reply.wire.summary.tc:
        return None
    halves = ((outcome.session.key.rdtype, mine), (pair.key.rdtype, other))
    said = ", ".join(f"{rdtype_to_text(rdtype)} was answered {rcode_to_text(rcode or 0)}" for rdtype, rcode in halves)
    return f"{said}: a name that does not exist has no records of any type"
