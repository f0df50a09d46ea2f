"""Answers that contradict each other: of several servers, or for two types of one name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.endpoint import address_to_text, endpoint_to_text
from agent.hop.record import DADDR
from agent.session.accepted import is_good, rcode_of
from agent.session.addressed import servers_asked
from agent.wire.render import rcode_to_text, rdtype_to_text

if TYPE_CHECKING:
    from agent.session.outcome import Outcome


def of_servers(outcome: Outcome) -> str | None:
    """What several servers told one client, where they do not say the same; None if they do.

    A resolver takes the first answer that it can use, so which names exist is a matter of luck.
    """
    return _at_once(outcome) or _one_after_the_other(outcome)


def _at_once(outcome: Outcome) -> str | None:
    """Asked by the same query."""
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


def _one_after_the_other(outcome: Outcome) -> str | None:
    before = outcome.contradicted
    if before is None or before.server == _server(outcome):
        return None
    words = (
        f"{address_to_text(server)} answered {rcode_to_text(rcode)} for {rdtype_to_text(rdtype)}"
        for server, rcode, rdtype in (
            (_server(outcome), outcome.rcode or 0, outcome.session.key.rdtype),
            (before.server, before.rcode, before.rdtype),
        )
    )
    return " and just before ".join(words)


def of_types(outcome: Outcome) -> str | None:
    """What one server said of two types of a name, where the name exists for one of them alone; None elsewhere.

    A name that does not exist has no records of any type (RFC 8020 2).
    """
    before, rdtype = outcome.contradicted, outcome.session.key.rdtype
    if before is None or before.rdtype == rdtype or before.server != _server(outcome):
        return None
    words = (
        f"{rcode_to_text(rcode)} for {rdtype_to_text(asked)}"
        for rcode, asked in ((outcome.rcode or 0, rdtype), (before.rcode, before.rdtype))
    )
    told = " and just before ".join(words)
    return f"{told}: a name that does not exist has no records of any type"


def _server(outcome: Outcome) -> bytes:
    return outcome.session.queries.transmissions[0].hops[0].rest[DADDR]
