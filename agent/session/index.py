"""Open sessions, by what a hop can find them by, and the keys of those that were closed."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from agent.session.model import hop_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.hop.record import Hop
    from agent.session.model import Key, Message, Session

MAX_SAME_QUESTION = 256
"""Open sessions with one question that an upstream query is compared with."""
MAX_RECENT = 256


class Index:
    """Open sessions by key, message and question, oldest first.

    Args:
        tombstones: How many keys of closed sessions are remembered.
    """

    def __init__(self, tombstones: int) -> None:
        self._tombstones = tombstones
        self.by_key: dict[Key, Session] = {}
        self.by_message: dict[int, tuple[Session, bool, Message]] = {}
        """By `Hop.message_id`: the session, whether it is a response, and the message."""
        self.open: OrderedDict[Session, None] = OrderedDict()
        self._by_question: dict[tuple[bytes, int, int], OrderedDict[Session, None]] = {}
        self._closed: OrderedDict[Key, int | None] = OrderedDict()

    def add(self, session: Session) -> None:
        """Let it be found by its key."""
        self.open[session] = None
        self.alias(session, session.key)
        same = self._by_question.get(session.key.question)
        if same is None:
            self._by_question[session.key.question] = OrderedDict.fromkeys((session,))
        else:
            same[session] = None

    def alias(self, session: Session, key: Key) -> None:
        """Let it be found by another key too; one that is taken stays as it is."""
        if key not in self.by_key:
            self.by_key[key] = session
            session.keys.append(key)

    def discard(self, session: Session) -> None:
        """It is closed: forget it, but for its keys and where its query began."""
        del self.open[session]
        for key in session.keys:
            del self.by_key[key]
        for message in session.messages:
            self.by_message.pop(message, None)
        same = self._by_question[session.key.question]
        del same[session]
        if not same:
            del self._by_question[session.key.question]
        queries = session.queries.transmissions
        begins = queries[0].hop_keys[0] if queries else None
        for key in session.keys:
            self._closed[key] = begins
        while len(self._closed) > self._tombstones:
            self._closed.popitem(last=False)

    def was_closed(self, key: Key) -> bool:
        """Whether a session with this key was closed not long ago."""
        return key in self._closed

    def is_late(self, key: Key, hop: Hop) -> bool:
        """Whether a session with this key was closed, and this hop does not begin another."""
        return key in self._closed and self._closed[key] != hop_key(hop)

    def recent(self) -> Iterator[Session]:
        """Open sessions, newest first, as many as one packet may cost."""
        return islice(reversed(self.open), MAX_RECENT)

    def alike(self, session: Session) -> list[Session]:
        """Open sessions with the question of this one, oldest first, as many as one may cost."""
        return list(islice(self._by_question[session.key.question], MAX_SAME_QUESTION))

    def asking_the_same(self, session: Session) -> Iterable[Session]:
        """All open sessions with the question of this one, itself among them, oldest first."""
        return self._by_question[session.key.question]

    def is_alone(self, session: Session) -> bool:
        """Whether no other open session has its question."""
        return len(self._by_question[session.key.question]) == 1
