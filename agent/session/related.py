"""How a lookup of a client goes with the one before: the other half of an A/AAAA pair, the next of a search path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.record import UDP
from agent.session.model import SECOND_NS
from agent.wire.rcodes import NOERROR, NXDOMAIN

if TYPE_CHECKING:
    from agent.hop.endpoint import Endpoint
    from agent.session.model import Session
    from agent.wire.message import Summary

A, AAAA = 1, 28
OTHER_HALF = {A: AAAA, AAAA: A}
ROOT = b"\0"
KEPT_TIMES = 32
"""Of each client: as many as it asks while a lookup waits to become a session."""
MAX_PLACES = 4096
"""Of clients; beyond it those that asked nothing for a second are forgotten."""


class LastLookups:
    """The newest open lookup of each client address and type, and of each name that a socket asks for.

    Looking further back would cost every lookup.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[bytes, int, int], Session] = {}
        self._halves: dict[tuple[Endpoint, int, bytes], Session] = {}
        self._asked: dict[tuple[bytes, int, int], list[int]] = {}
        """When clients asked something that has no session."""

    def note_asked(self, place: tuple[bytes, int, int], ts_ns: int) -> None:
        """Take note of a lookup that is counted without a session: what follows does not follow one before it.

        Args:
            place: client's address and scope, and type.
            ts_ns: when it began.
        """
        times = self._asked.setdefault(place, [])
        times.append(ts_ns)
        del times[:-KEPT_TIMES]
        if len(self._asked) > MAX_PLACES:
            self._asked = {
                known_place: asked for known_place, asked in self._asked.items() if ts_ns - asked[-1] < SECOND_NS
            }

    def relate(self, session: Session) -> None:
        """Compare a new lookup with the ones before it."""
        key = session.key
        place = key.client.address, key.scope, key.rdtype
        before = self._newest.get(place)
        self._newest[place] = session
        if before is not None and not self._has_asked_between(place, before.first_ns, session.first_ns):
            before.search_list_followed |= is_next_search_name(before, session)
        if key.protocol == UDP and key.rdtype in OTHER_HALF:
            self._pair(session)

    def _has_asked_between(self, place: tuple[bytes, int, int], start_ns: int, end_ns: int) -> bool:
        return any(start_ns < ts_ns <= end_ns for ts_ns in self._asked.get(place, ()))

    def _pair(self, session: Session) -> None:
        key = session.key
        socket = key.client, key.scope, key.name
        other = self._halves.get(socket)
        self._halves[socket] = session
        if other is not None and OTHER_HALF[key.rdtype] == other.key.rdtype:
            session.pair, other.pair = other, session
            session.collides = other.collides = other.key.id == key.id

    def forget(self, session: Session) -> None:
        """A closed lookup has no relatives any more."""
        place = session.key.client.address, session.key.scope, session.key.rdtype
        if self._newest.get(place) is session:
            del self._newest[place]
        socket = session.key.client, session.key.scope, session.key.name
        if self._halves.get(socket) is session:
            del self._halves[socket]
        if session.pair is not None and session.pair.pair is session:
            # No cycles: nothing collects them while packets come in.
            session.pair = None


def is_next_search_name(before: Session, session: Session) -> bool:
    """Whether a name without such records is followed by the next one of a search list."""
    replies = before.replies.transmissions
    if not replies or not _found_nothing(replies[-1].message.summary):
        return False
    search_prefix = next_search_prefix(before.key.name, session.key.name, before.search_prefix)
    if search_prefix is None:
        return False
    before.search_prefix = session.search_prefix = search_prefix
    return True


def next_search_prefix(before: bytes, name: bytes, search_prefix: bytes) -> bytes | None:
    """What a client looks for that asks for these two names one behind the other (resolv.conf(5), search).

    The first step shows what was looked for: Kubernetes's lists begin with suffixes each of which ends like the one
    before; elsewhere a name with dots is asked for as it is first. After that any suffix will do.

    Args:
        before: a name without records, in wire format.
        name: the next one.
        search_prefix: what was found at the step before; empty at the first one.

    Returns:
        Labels in wire format, without the root; None if the second name has nothing to do with the first.
    """
    if before == name:
        return None
    if search_prefix:
        return search_prefix if name.startswith(search_prefix) else None
    common = _common_labels(before, name)
    rest = name[len(common) :]
    return common if common and (before.endswith(rest) or before == common + ROOT) else None


def _found_nothing(reply: Summary) -> bool:
    """The name does not exist, or has no such records: glibc goes on after either."""
    return reply.rcode == NXDOMAIN or (reply.rcode == NOERROR and not reply.ancount)


def _common_labels(name: bytes, other: bytes) -> bytes:
    """The labels with which both names begin, in wire format."""
    at = 0
    while name[at] and name[at : at + name[at] + 1] == other[at : at + name[at] + 1]:
        at += name[at] + 1
    return name[:at]
