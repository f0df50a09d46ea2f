"""For whose sake a server asked its upstream: joining FQ and FR to the client's query.

On the wire the server's own query has another id and port, so what is left is the server's namespace, the question, an
EDNS cookie where there is one, and time: the query lies between the client's query and the reply. Identical questions
at the same time are told apart by age only, and said to be ambiguous.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from agent.session.model import MAX_EXCHANGES, Background, Session
from agent.session.sighting import RX, SOCKET_RX, TX
from agent.wire.message import client_cookie

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.session.model import Wire
    from agent.session.sighting import Sighting

NS, HINFO = 2, 13
REWRITE_NS = 10_000_000
"""A server that asks under another name (rewrite, autopath, CNAME) does so within so long after the query."""
LOOP_NAME = re.compile(rb"[\x01-\x14]\d+[\x01-\x14]\d+")
"""CoreDNS's loop plugin asks for <random>.<random>.<zone> HINFO."""


class Match(NamedTuple):
    """The lookup that an upstream query serves, and whether it was one of several that fit."""

    session: Session
    ambiguous: bool


def arrivals_at(session: Session, asked: Sighting) -> list[int]:
    """When copies of the query came to the server that now asks; those passed on are not counted.

    Some CNIs hand packets to a pod without a sighting: there, the query was last seen leaving for its address.
    """
    ends = [one.hops[-1] for one in session.queries.transmissions]
    times = [last.ts_ns for last in ends if last.netns == asked.netns and last.event in (RX, SOCKET_RX)]
    if not times:
        source = asked.detail.saddr
        times = [last.ts_ns for last in ends if last.event == TX and last.detail.daddr == source]
    return times


def is_waiting(session: Session, asked: Sighting) -> bool:
    """Whether the namespace that asks has this query and has not replied.

    A query to the very server that the waiting one went to is another client's: nobody asks himself.
    """
    replied = sum(one.hops[0].netns == asked.netns for one in session.replies.transmissions)
    if replied >= len(arrivals_at(session, asked)):
        return False
    there = _destination(asked)
    return all(_destination(hop) != there for one in session.queries.transmissions for hop in one.hops)


def _destination(hop: Sighting) -> tuple[bytes, int]:
    detail = hop.detail
    return detail.daddr, detail.dport


def find_parent(asking: Session, sighting: Sighting, query: Wire, same: Iterable[Session]) -> Match | None:
    """The open lookup with this question that the server is at work on.

    Args:
        asking: the session that the upstream query would open.
        sighting: its first hop, at its socket.
        query: what it asks.
        same: open sessions with the same question, oldest first.
    """
    waiting = [one for one in same if one is not asking and is_waiting(one, sighting)]
    if not waiting:
        return None
    cookie = client_cookie(query.payload, query.summary)
    if cookie is not None:
        alike = [one for one in waiting if _cookie(one) == cookie]
        if alike:
            return Match(alike[0], len(alike) > 1)
    fresh = [one for one in waiting if not one.upstream]
    # The oldest that was not passed on yet; all passed on: the attempt belongs to the one that waits longest.
    chosen = fresh[0] if fresh else min(waiting, key=lambda one: one.upstream[-1].first_ns)
    alike = fresh or waiting
    if len(alike) > 1:
        for one in alike:
            one.ambiguous = True
    return Match(chosen, len(alike) > 1)


def _cookie(session: Session) -> bytes | None:
    query = session.queries.transmissions[0].wire
    return client_cookie(query.payload, query.summary)


def find_rewritten(asking: Session, sighting: Sighting, recent: Iterable[Session]) -> Session | None:
    """The one young query at this server that was not passed on: it may have been, under another name.

    Args:
        asking: the session that the upstream query would open.
        sighting: its first hop.
        recent: open sessions, newest first.
    """
    fresh = takewhile(lambda one: sighting.ts_ns - one.first_ns <= REWRITE_NS, recent)
    young = [
        one
        for one in fresh
        if one is not asking
        and not one.connecting
        and not one.upstream
        and is_waiting(one, sighting)
        and sighting.ts_ns - min(arrivals_at(one, sighting)) <= REWRITE_NS
    ]
    return young[0] if len(young) == 1 else None


def find_sibling(asking: Session, sighting: Sighting, same: Iterable[Session]) -> Session | None:
    """An earlier attempt of this server at the same question, under whatever name its client asked."""
    for one in same:
        queries = one.queries.transmissions
        if one is not asking and one.upstream_of is not None and queries[0].hops[0].netns == sighting.netns:
            return one
    return None


def background_of(asking: Session) -> Background | None:
    """What kind of query of a server's own this is, by its question alone."""
    name, rdtype, _ = asking.key.question
    if name == b"\0" and rdtype == NS:
        return Background.HEALTH_CHECK
    if rdtype == HINFO and LOOP_NAME.match(name):
        return Background.LOOP_PROBE
    return None


def attach(parent: Session, child: Session, *, ambiguous: bool) -> bool:
    """Make the exchange one of the parent's; False when it has too many already."""
    if len(parent.upstream) >= MAX_EXCHANGES:
        parent.overflowed = True
        return False
    parent.upstream.append(child)
    child.upstream_of = parent.key
    parent.ambiguous |= ambiguous
    child.ambiguous |= parent.ambiguous
    return True
