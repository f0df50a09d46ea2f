"""ICMP errors and refusals of a link, laid to the lookups whose packets they are about."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.hop.endpoint import Endpoint
from agent.session import stages
from agent.session.model import MAX_STRANGERS

if TYPE_CHECKING:
    from agent.hop.record import Hop
    from agent.session.index import Index
    from agent.session.model import Session

MAX_EARLY_ERRORS = 64
EARLY_NS = 10_000_000
"""How long an ICMP error waits for the first hop of the packet that it quotes. A rule that refuses what a program
of its own namespace sends has the error on its way before the packet dies, and that drop is all that is seen of it."""


class Quotes:
    """Finds the lookup by the number of the message; TCP segments and short quotes have none, but known ends."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._early: deque[Hop] = deque(maxlen=MAX_EARLY_ERRORS)

    def note(self, error: Hop) -> bool:
        """Give an ICMP error to its lookup; False if that is not open, perhaps not yet."""
        found = self._index.by_message.get(error.message_id)
        session = stages.quoted_in(found[0], error) if found is not None else self._by_ends(error)
        if session is None:
            self._early.append(error)
            return False
        session.add_error(error)
        return True

    def note_stranger(self, drop: Hop) -> None:
        """Remember a namespace that refused a packet as another host's."""
        found = self._index.by_message.get(drop.message_id)
        session = found[0] if found is not None else self._by_ends(drop)
        if session is not None and len(session.strangers) < MAX_STRANGERS:
            session.strangers.add((drop.netns, drop.ifindex))

    def take_early(self, session: Session, hop: Hop) -> None:
        """Note errors that came before the first hop of the packet that they quote; forget older ones."""
        while self._early and hop.ts_ns - self._early[0].ts_ns > EARLY_NS:
            self._early.popleft()
        for error in self._early:
            is_its = error.message_id == hop.message_id if error.message_id else _has_ends_of(error, session)
            if is_its and 0 <= hop.ts_ns - error.ts_ns <= EARLY_NS:
                session.add_error(error)

    def _by_ends(self, hop: Hop) -> Session | None:
        return next((session for session in self._index.recent() if _has_ends_of(hop, session)), None)


def _has_ends_of(hop: Hop, session: Session) -> bool:
    """Whether what an ICMP error quotes, or the packet itself, goes between the client of a lookup and another end."""
    detail = hop.detail
    ends = Endpoint(detail.saddr, detail.sport), Endpoint(detail.daddr, detail.dport)
    return session.key.client in ends and session.key.protocol == hop.protocol
