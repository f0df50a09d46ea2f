"""The table of open sessions: sightings in, closed sessions out.

Pure: the caller brings every sighting and the time. Order, duplication and loss of sightings may be anything.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from agent.session.drops import UNKNOWN_KERNEL, Kernel
from agent.session.model import Endpoint, Key, Leg, Session, Settings, Wire
from agent.session.outcome import Knowledge, Outcome, judge
from agent.session.sighting import V4_MAPPED, Detail, Event, Flag, Sighting
from agent.wire.errors import WireError
from agent.wire.message import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.wire.message import Question

LOOPBACK_V6 = bytes(15) + b"\x01"
LOOPBACK_V4 = V4_MAPPED + b"\x7f"
KEPT_LOSS_INTERVALS = 1024
REPLY_CT_INFO = 3
"""enum ip_conntrack_info: from here on the packet goes in the reply direction."""


@dataclass(slots=True)
class Counts:
    """What the table did, each a number that only grows."""

    sightings: int = 0
    sessions: int = 0
    malformed: int = 0
    """Packets on a DNS port that no DNS message could be read from."""
    unmatched: int = 0
    """Hops of a message whose octets never arrived here."""
    innocent_drops: int = 0
    late: int = 0
    """Hops of sessions that were closed already."""
    started_mid_lookup: int = 0
    """Replies to queries that were sent before the agent started."""
    evicted: int = 0
    """Sessions closed before their time because there were too many."""
    overflowed: int = 0
    """Hops that a bound kept out of their session."""


class SessionTable:
    """Joins the sightings of one node into sessions.

    Args:
        settings: time-outs and bounds.
        kernel: names drop reasons and places.
        is_local: whether an address belongs to a namespace of this node; None when that is not known.
        started_ns: when capture began; a reply whose query was before that is nobody's fault.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        kernel: Kernel = UNKNOWN_KERNEL,
        is_local: Callable[[int, bytes], bool | None] = lambda _netns, _address: None,
        started_ns: int = 0,
    ) -> None:
        self.settings = settings or Settings()
        self.counts = Counts()
        self.knowledge = Knowledge(kernel=kernel, is_local=is_local)
        self._started_ns = started_ns
        self._by_message: dict[int, tuple[Leg, Wire]] = {}
        self._by_key: dict[Key, Session] = {}
        self._open: OrderedDict[Session, None] = OrderedDict()
        self._deadlines: list[tuple[int, int, Session]] = []
        self._sequence = count()
        self._closed: OrderedDict[Key, int] = OrderedDict()
        self._losses: deque[tuple[int, int]] = deque(maxlen=KEPT_LOSS_INTERVALS)
        self._ready: list[Outcome] = []

    def __len__(self) -> int:
        return len(self._open)

    def observe(self, sighting: Sighting) -> None:
        """Take one sighting in."""
        self.counts.sightings += 1
        if self._deadlines and self._deadlines[0][0] <= sighting.ts_ns:
            # Time is the record's, so that a stalled reader and a replay close sessions where a prompt reader does.
            self._advance(sighting.ts_ns)
        if sighting.event == Event.DROP and self.knowledge.kernel.describe(sighting).innocent:
            self.counts.innocent_drops += 1
            return
        found = self._by_message.get(sighting.message) or self._introduce(sighting)
        if found is None:
            return
        leg, wire = found
        session = leg.session
        if not leg.add(sighting, wire):
            self.counts.overflowed += 1
            session.overflowed = True
        session.last_ns = max(session.last_ns, sighting.ts_ns)
        if leg.response:
            session.deadline_ns = sighting.ts_ns + self.settings.linger_ns
        elif not session.replies.transmissions and sighting.flags & Flag.ORIGIN:
            session.deadline_ns = sighting.ts_ns + self.settings.timeout_ns

    def record_loss(self, start_ns: int, end_ns: int) -> None:
        """Say that records were lost some time in this interval."""
        self._losses.append((start_ns, end_ns))

    def expire(self, now_ns: int) -> Iterator[Outcome]:
        """Close every session whose time has come; `now_ns` must not be newer than sightings still to come."""
        self._advance(now_ns)
        ready, self._ready = self._ready, []
        yield from ready

    def flush(self, now_ns: int) -> Iterator[Outcome]:
        """Close everything, because the agent ends."""
        self._advance(now_ns)
        for session in list(self._open):
            session.interrupted = True
            self._close(session, now_ns)
        yield from self.expire(now_ns)

    def _advance(self, now_ns: int) -> None:
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, session = heapq.heappop(self._deadlines)
            if session not in self._open:
                continue
            if session.deadline_ns <= now_ns:
                self._extend_if_reply_is_missing(session)
            if session.deadline_ns > now_ns:
                heapq.heappush(self._deadlines, (session.deadline_ns, next(self._sequence), session))
            else:
                self._close(session, session.deadline_ns)

    def _extend_if_reply_is_missing(self, session: Session) -> None:
        """A reply that was sent and not delivered: the client may ask again, and a late drop may tell why."""
        if session.queries.transmissions and not self.knowledge.delivered(session):
            last_query = max(one.hops[0].ts_ns for one in session.queries.transmissions)
            session.deadline_ns = last_query + self.settings.timeout_ns

    def _introduce(self, sighting: Sighting) -> tuple[Leg, Wire] | None:
        """First sighting of a message here: read it and find its session, or open one."""
        detail = sighting.detail
        payload = sighting.payload(detail)
        if not payload:
            self.counts.unmatched += 1
            return None
        try:
            summary = summarize(payload)
        except WireError:
            summary = None
        if summary is None or summary.question is None:
            self.counts.malformed += 1
            return None
        wire = Wire(payload, detail.payload_bytes, summary)
        session = self._session_of(sighting, detail, summary.id, summary.question, response=summary.is_response)
        if session is None:
            return None
        leg = session.leg(response=summary.is_response)
        # The same octets under another number: source translation changed the client's address.
        wire = next((one.wire for one in leg.transmissions if one.wire.payload == payload), wire)
        if sighting.message:
            self._by_message[sighting.message] = (leg, wire)
            session.messages.append(sighting.message)
        return leg, wire

    def _session_of(
        self, sighting: Sighting, detail: Detail, identifier: int, question: Question, *, response: bool
    ) -> Session | None:
        client, translated = clients(detail, response=response)
        scope = sighting.netns if is_loopback(client.address) else 0
        key = Key(client, sighting.protocol, identifier, question.name, question.rdtype, question.rdclass, scope)
        session = self._by_key.get(key) or (self._new(key, sighting) if self._is_new(key, sighting, response) else None)
        if session is not None and translated != client:
            self._alias(session, key._replace(client=translated))
        return session

    def _is_new(self, key: Key, sighting: Sighting, response: bool) -> bool:  # noqa: FBT001  one caller, one line
        """Whether a message without an open session deserves one of its own."""
        if not response and sighting.flags & Flag.ORIGIN:
            return True
        if key in self._closed:
            self.counts.late += 1
            return False
        if response and not self._losses and sighting.ts_ns < self._started_ns + self.settings.timeout_ns:
            self.counts.started_mid_lookup += 1
            return False
        return True

    def _new(self, key: Key, sighting: Sighting) -> Session:
        if len(self._open) >= self.settings.max_sessions:
            oldest = next(iter(self._open))
            oldest.overflowed = True
            self.counts.evicted += 1
            self._close(oldest, sighting.ts_ns)
        session = Session(key, sighting.ts_ns, sighting.ts_ns + self.settings.timeout_ns)
        self.counts.sessions += 1
        self._open[session] = None
        self._alias(session, key)
        # The first deadline is only when to look again: most sessions are answered long before they time out.
        heapq.heappush(self._deadlines, (sighting.ts_ns + self.settings.linger_ns, next(self._sequence), session))
        return session

    def _alias(self, session: Session, key: Key) -> None:
        if key not in self._by_key:
            self._by_key[key] = session
            session.keys.append(key)

    def _close(self, session: Session, end_ns: int) -> None:
        self._forget(session)
        lossy = any(start <= end_ns and end >= session.first_ns for start, end in self._losses)
        self._ready.append(judge(session, self.knowledge, lossy=lossy))

    def _forget(self, session: Session) -> None:
        del self._open[session]
        for key in session.keys:
            del self._by_key[key]
        for message in session.messages:
            self._by_message.pop(message, None)
        self._closed[session.key] = session.last_ns
        if len(self._closed) > self.settings.tombstones:
            self._closed.popitem(last=False)


def clients(detail: Detail, *, response: bool) -> tuple[Endpoint, Endpoint]:
    """The client before any translation, and as this packet spells it.

    The conntrack entry's original direction is the query's, unless the reply came first or was tracked alone.
    """
    spelled = Endpoint(detail.daddr, detail.dport) if response else Endpoint(detail.saddr, detail.sport)
    tracked = bool(detail.ct_original_sport) and (detail.ct_info >= REPLY_CT_INFO) == response
    return (Endpoint(detail.ct_original_saddr, detail.ct_original_sport) if tracked else spelled), spelled


def is_loopback(address: bytes) -> bool:
    """Whether every namespace has its own host of this address."""
    return address.startswith(LOOPBACK_V4) or address == LOOPBACK_V6
