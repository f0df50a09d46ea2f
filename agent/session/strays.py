"""Replies that answer no lookup as they should: unreadable, or with another id or question than the query.

A server that replies so has the query, and its client goes on waiting: that is another fault than silence. Such a
reply is laid to the open lookup that it must be meant for: it goes to that lookup's socket, from the server that was
asked, and has the same id or question. One that cannot be read at all may have neither, if that socket has no other
lookup open at that server; nor need one that comes over a connection of which everything was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.conntrack import clients
from agent.session.addressed import addressed, asked_of, source
from agent.session.model import Direction, Message
from agent.wire.errors import WireError
from agent.wire.message import HEADER_BYTES, Summary, summarize

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.hop.record import Detail, Hop
    from agent.session.model import Key, Session

ID_BYTES = 2
QR = 0x8000
MAX_STRAYS = 8
"""Messages of that kind that one lookup keeps, and the hops of so many more are left out."""


class Strays:
    """Finds the lookup for such a reply, and its later hops, which come without bytes.

    Sessions hold them; here is only what leads there.
    """

    def __init__(self) -> None:
        self._by_message: dict[int, tuple[Session, Message]] = {}

    def take(
        self,
        hop: Hop,
        detail: Detail,
        payload: bytes,
        recent: Iterable[Session],
        *,
        whole: bool = False,
    ) -> bool:
        """Lay one hop of a reply that no lookup is answered by to the one that it is meant for; False if there is none.

        Args:
            hop: the hop.
            detail: of it.
            payload: the message; empty where an earlier hop brought it.
            recent: open lookups, newest first.
            whole: it came over a connection of which everything was seen, so it answers a query of that.
        """
        known = self._by_message.get(hop.message_id) if hop.message_id else None
        if known is not None:
            session, message = known
            _keep(session, message, hop)
            return True
        if not payload:
            return False
        summary = _as_far_as_it_goes(payload)
        meant = _meant(hop, detail, summary, recent, anyhow=whole or summary.question is None)
        if meant is None:
            return False
        if summary.question is None and len(payload) < detail.payload_bytes:
            # The capture cut it: what it said is not known.
            meant.reply_cut = True
            return False
        message = _message_of(meant, payload) or Message(payload, detail.payload_bytes, summary)
        if _keep(meant, message, hop) and hop.message_id:
            self._by_message[hop.message_id] = meant, message
        return True

    def forget(self, session: Session) -> None:
        """A closed lookup takes nothing more."""
        for stray in session.strays.transmissions if session.strays is not None else ():
            for hop in stray.hops:
                self._by_message.pop(hop.message_id, None)


def why_unusable(message: Message, key: Key) -> str:
    """What is wrong with such a reply; names stand between quotes."""
    try:
        summary = summarize(message.payload)
    except WireError as error:
        return str(error)
    question = summary.question
    if not summary.is_response:
        return "it is marked as a query"
    if summary.id != key.id:
        return f"it has transaction id {summary.id} instead of {key.id}"
    if question is None:
        return "it has no question"
    return "it has another question"


def is_readable(message: Message) -> bool:
    """Whether it is a DNS message as far as its header and question go."""
    try:
        summarize(message.payload)
    except WireError:
        return False
    return True


def _as_far_as_it_goes(payload: bytes) -> Summary:
    try:
        return summarize(payload)
    except WireError:
        pass
    identity = int.from_bytes(payload[:ID_BYTES], "big") if len(payload) >= ID_BYTES else -1
    flags = int.from_bytes(payload[ID_BYTES : 2 * ID_BYTES], "big") if len(payload) >= 2 * ID_BYTES else QR
    return Summary(identity, flags, 0, 0, 0, 0, None, min(len(payload), HEADER_BYTES))


def _meant(hop: Hop, detail: Detail, summary: Summary, recent: Iterable[Session], *, anyhow: bool) -> Session | None:
    """The lookup; `anyhow` is the only one that waits meant, whatever the reply says."""
    ends = clients(detail, response=True)
    mine = [
        session
        for session in recent
        if not session.connecting
        and session.key.protocol == hop.protocol
        and session.first_ns <= hop.ts_ns
        and any(key.client in ends for key in session.keys)
        and _was_asked(session, hop)
    ]
    waiting = [lookup for lookup in mine if not lookup.replies.transmissions]
    alike = [lookup for lookup in waiting or mine if _resembles(lookup.key, summary)]
    if alike:
        return next((lookup for lookup in alike if lookup.key.id == summary.id), alike[0])
    return waiting[0] if anyhow and len(waiting) == 1 else None


def _resembles(key: Key, summary: Summary) -> bool:
    question = summary.question
    return key.id == summary.id or (question is not None and key.question == (question.name, *question[2:]))


def _was_asked(session: Session, hop: Hop) -> bool:
    """Whether the reply comes from where the query went, as either was spelled at any hop."""
    said = {source(hop), addressed(hop, response=True)}
    queries = session.queries.transmissions
    return any(
        asked_of(query) in said
        or any((detail.daddr, detail.dport) in said for detail in (hop.detail for hop in query.hops))
        for query in queries
    )


def _message_of(session: Session, payload: bytes) -> Message | None:
    """The message, if a hop of it came with its bytes before."""
    direction = session.strays
    return (
        None
        if direction is None
        else next(
            (
                transmission.message
                for transmission in direction.transmissions
                if transmission.message.payload == payload
            ),
            None,
        )
    )


def _keep(session: Session, message: Message, hop: Hop) -> bool:
    """Put a hop to the others; False when a bound keeps it out."""
    if session.strays is None:
        session.strays = Direction()
    known = any(stray.message is message for stray in session.strays.transmissions)
    if not known and len(session.strays.transmissions) >= MAX_STRAYS:
        return False
    return session.strays.add(hop, message)
