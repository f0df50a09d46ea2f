"""What an answer shows beside its records: its size, extended errors, aliases, and where it ends a search list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.explain.names import labels, service_name
from agent.explain.remedies import DNSSEC
from agent.hop.endpoint import endpoint_to_text
from agent.hop.record import UDP
from agent.session.addressed import servers_asked
from agent.wire.errors import WireError
from agent.wire.extended_errors import extended_errors
from agent.wire.message import RECORD_BYTES, name_to_text, read_name, read_record, udp_size
from agent.wire.rcodes import NOERROR
from agent.wire.render import rdtype_to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.model import Session, Transmission
    from agent.session.outcome import Outcome

PLAIN_UDP = 512
"""Bytes of a reply over UDP that every client takes (RFC 1035 4.2.1), and the least that EDNS offers (RFC 6891)."""
CNAME, AAAA = 5, 28
ROOT = b"\0"
PUBLIC = frozenset({"com", "net", "org", "edu", "gov", "mil", "io"})
"""Top-level domains that no search domain is meant for: who asks for a name that ends so means the public name."""


def larger_than_offered(outcome: Outcome) -> str | None:
    """A reply over UDP with more bytes than was asked for, and not truncated; to the client, or to its server."""
    reply = outcome.reply
    if reply is not None and reply.message.length_bytes > PLAIN_UDP:
        words = _excess(outcome.session, outcome.queries, reply)
        if words:
            return f"the reply has {words}"
    for exchange in outcome.exchanges:
        for asked in servers_asked(exchange):
            for received in asked.replies:
                words = _excess(exchange, asked.queries, received)
                if words:
                    return f"the reply of the upstream {endpoint_to_text(*asked.server)} has {words}"
    return None


def _excess(session: Session, queries: list[Transmission], reply: Transmission) -> str | None:
    length_bytes = reply.message.length_bytes
    if length_bytes <= PLAIN_UDP or session.key.protocol != UDP or session.connecting or not queries:
        return None
    offers = [udp_size(query.message.payload, query.message.summary) for query in queries]
    offered = max(PLAIN_UDP, *(offer or 0 for offer in offers))
    if length_bytes <= offered or reply.message.summary.tc:
        return None
    how = "without EDNS" if not any(offers) else "by EDNS"
    return f"{length_bytes} bytes, and the query allows {offered} {how}: the receiver may cut or drop it"


def told_by_extended_error(outcome: Outcome) -> tuple[str, str] | None:
    """Finding and words for a reply whose server adds to its response code (RFC 8914)."""
    reply = outcome.reply
    if reply is None:
        return None
    found = list(extended_errors(reply.message.payload, reply.message.summary))
    if not found:
        return None
    invalid = next((error for error in found if error.code in DNSSEC), None)
    words = ", ".join(error.words for error in found)
    return ("DNSSECFailure" if invalid is not None else "ExtendedError"), words


def no_data_ends_search(outcome: Outcome) -> str | None:
    """The client went through its search list up to a name that exists without such records, and stopped there.

    Some resolvers, musl among them, take that for the answer, although the names behind it may have records.
    """
    session = outcome.session
    if not session.search_prefix or session.search_list_followed or outcome.rcode != NOERROR or not outcome.delivered:
        return None
    if _suffix(session) is None or _has_answer(session):
        return None
    if session.pair is None and session.key.rdtype == AAAA:
        # The other half may come from another socket, and have records: that is nothing special.
        return None
    if session.pair is not None and (not session.pair.replies.transmissions or _has_answer(session.pair)):
        return None
    what = rdtype_to_text(session.key.rdtype)
    return f"{name_to_text(session.key.name)} exists without {what} records, and the client did not search further"


def answered_by_search_domain(outcome: Outcome) -> str | None:
    """A public name was answered under a search domain, as a wildcard there answers every name."""
    session = outcome.session
    if not session.search_prefix or outcome.rcode != NOERROR or not outcome.delivered or not _has_answer(session):
        return None
    suffix, parts = _suffix(session), labels(session.search_prefix + ROOT)
    if suffix is None or len(parts) < 2 or parts[-1] not in PUBLIC:  # noqa: PLR2004  a name and its domain
        return None
    search_prefix, domain = name_to_text(session.search_prefix + ROOT), name_to_text(suffix)
    return f"{search_prefix} was answered under the search domain {domain}: a wildcard there answers for every name"


def alias_to_nowhere(outcome: Outcome) -> str | None:
    """A Service's name is an alias (ExternalName) of a name that does not exist."""
    reply = outcome.reply
    asked = service_name(outcome.session.key.name) if reply is not None and reply.message.summary.ancount else None
    if asked is None or reply is None:
        return None
    target = next(_aliases(reply), None)
    if target is None or outcome.session.key.name.startswith(target[:-1]):
        # Autopath (CoreDNS) makes the bare name an alias of the one with a search domain.
        return None
    return (
        f"Service {asked.text} is an alias (ExternalName) of {name_to_text(target)}, and that name does not exist; "
        "search domains do not apply to it"
    )


def _suffix(session: Session) -> bytes | None:
    """The search domain under which the name was asked for; None for the name by itself."""
    rest = session.key.name[len(session.search_prefix) :]
    return None if rest == ROOT else rest


def _has_answer(session: Session) -> bool:
    return any(reply.message.summary.ancount for reply in session.replies.transmissions)


def _aliases(reply: Transmission) -> Iterator[bytes]:
    """Targets of the CNAME records at the begin of the answer section; what is cut or damaged ends them."""
    wire, at = reply.message.payload, reply.message.summary.end
    try:
        for _ in range(reply.message.summary.ancount):
            _, at = read_name(wire, at)
            if at + RECORD_BYTES > len(wire):
                return
            rdtype, _, _, length = read_record(wire, at)
            at += RECORD_BYTES
            if rdtype != CNAME:
                return
            yield read_name(wire, at)[0].lower()
            at += length
    except WireError:
        return
