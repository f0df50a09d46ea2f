"""The table of open sessions: hops in, closed sessions out.

Pure: the caller brings every hop and the time. Order, duplication and loss of hops may be anything.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from agent.hop.conntrack import clients
from agent.hop.drops import UNKNOWN_KERNEL, Kernel
from agent.hop.endpoint import Endpoint, is_loopback
from agent.hop.record import DROP, FRAGMENT, ICMP, LEARNED, ORIGIN, RESPONSE, TCP, Detail, Hop
from agent.session import stages
from agent.session.accepted import is_good
from agent.session.addressed import times_asked
from agent.session.counts import Counts
from agent.session.deadlines import Deadlines
from agent.session.early import EarlyReplies
from agent.session.forwarding import Forwarding
from agent.session.index import Index
from agent.session.judge import judge
from agent.session.last_answers import LastAnswers
from agent.session.model import (
    MAX_MESSAGES,
    MAX_TRANSMISSIONS,
    Key,
    Message,
    Session,
    Settings,
    connecting_key,
    hop_key,
)
from agent.session.node_state import Losses, NodeState
from agent.session.quotes import Quotes
from agent.session.related import LastLookups
from agent.session.strays import Strays
from agent.session.tcp import TcpStage
from agent.wire.errors import WireError
from agent.wire.message import Summary, summarize
from agent.wire.stream import ACK, RST, SYN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.session.last_answers import Place
    from agent.session.outcome import Outcome, Told
    from agent.session.tcp import TcpConnection

NO_MESSAGE = Message(b"", 0, Summary(0, 0, 0, 0, 0, 0, None, 0))
"""Stands for the message that a segment of a handshake is not."""


class SessionTable:
    """Joins the hops of one node into sessions.

    Args:
        settings: timeouts and bounds.
        kernel: names drop reasons and places.
        is_local: whether an address belongs to a namespace of this node; None when that is not known.
        started_ns: when capture began; a reply whose query was before that is nobody's fault.
        is_tapped: whether a namespace only stands for a host whose packets were seen between two ends.
        node_state: what is known of the node, if that is known already; then the others say nothing.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        kernel: Kernel = UNKNOWN_KERNEL,
        is_local: Callable[[int, bytes], bool | None] = lambda _netns, _address: None,
        started_ns: int = 0,
        is_tapped: Callable[[int], bool] = lambda _netns: False,
        node_state: NodeState | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.counts = Counts()
        self.node_state = node_state or NodeState(kernel=kernel, is_local=is_local, is_tapped=is_tapped)
        self._started_ns = started_ns
        self._tcp = TcpStage()
        self._index = Index(self.settings.tombstones)
        self._deadlines = Deadlines(self.settings)
        self._forwarding = Forwarding(self._index, self._deadlines, self.node_state, self.settings)
        self._early = EarlyReplies()
        self._kept_back = self._laid = False
        self._last = LastLookups()
        self._strays = Strays()
        self._answers = LastAnswers()
        self._losses = Losses()
        self._quotes = Quotes(self._index)
        self._ready: deque[Outcome] = deque()

    def __len__(self) -> int:
        return len(self._index.open)

    def observe(self, hop: Hop) -> bool | None:
        """Take one hop in.

        Returns:
            Whether it belongs to a lookup, and not to what is only counted. None if that is not sure: it is counted,
            and belongs to a lookup if the query of that comes right behind.
        """
        self.counts.hops += 1
        now_ns = hop.ts_ns
        # Time is the record's, so that a stalled reader and a replay close sessions where a prompt reader does.
        while (due := self._deadlines.next_due(now_ns)) is not None:
            self._look(due, now_ns)
        if hop.event == DROP and self.node_state.is_benign(hop):
            self.counts.benign_drops += 1
            if self.node_state.is_for_another_host(hop):
                self._quotes.note_stranger(hop)
        elif hop.flags & ICMP:
            return self._observe_error(hop)
        elif hop.protocol == TCP:
            self._observe_segment(hop)
            self._kept_back = self._laid = False
            return True
        elif hop.flags & FRAGMENT and hop.event != DROP:
            # Where its first fragment went is the path; of the others only a drop tells something.
            self.counts.fragments += 1
        else:
            session = self._observe_message(hop)
            found = session is not None
            if session is not None and self._early and not hop.flags & RESPONSE:
                self._recall(session.key, hop.ts_ns)
            kept_back, laid = self._kept_back, self._laid
            self._kept_back = self._laid = False
            return None if kept_back else found or laid
        return False

    def is_awaited(self, client: Endpoint, protocol: int) -> bool:
        """Whether a lookup of this client is open and has no reply."""
        return any(
            session.key.client == client and session.key.protocol == protocol and not session.replies.transmissions
            for session in self._index.recent()
        )

    def note_answer(self, place: Place, told: Told) -> None:
        """Take note of an answer to a lookup that was counted without a session."""
        self._answers.note(place, told)

    def note_asked(self, place: tuple[bytes, int, int], ts_ns: int) -> None:
        """Take note of a lookup that was counted without a session: client's address and scope, type, and when."""
        self._last.note_asked(place, ts_ns)

    def record_loss(self, start_ns: int, end_ns: int) -> None:
        """Say that records were lost some time in this interval."""
        self._losses.add(start_ns, end_ns)

    def expire(self, now_ns: int) -> Iterator[Outcome]:
        """Close every session whose time has come; `now_ns` must not be newer than hops still to come.

        One by one: who takes only some of them gets the others the next time.
        """
        yield from self._take_ready()
        for connection, message in self._tcp.overdue(now_ns):
            self._in_connection(connection, message)
        while (due := self._deadlines.next_due(now_ns)) is not None:
            self._look(due, now_ns)
            yield from self._take_ready()

    def flush(self, now_ns: int) -> Iterator[Outcome]:
        """Close everything, because the agent ends; one by one, so that who has no more time can leave the rest."""
        yield from self.expire(now_ns)
        for connection, message in self._tcp.rest(now_ns):
            self._in_connection(connection, message)
        while self._index.open:
            session = next(iter(self._index.open))
            session.interrupted, session.interrupted_ns = True, now_ns
            self._close(session, self._judge(session, now_ns))
            yield from self._take_ready()

    @property
    def left(self) -> int:
        """Sessions whose outcome nobody has taken yet."""
        return len(self._index.open) + len(self._ready)

    def _take_ready(self) -> Iterator[Outcome]:
        while self._ready:
            yield self._ready.popleft()

    def _look(self, session: Session, now_ns: int) -> None:
        """Close the session if its time has come, else look again when it will have."""
        if session not in self._index.open:
            return
        if session.deadline_ns <= now_ns:
            outcome = self._judge(session, session.deadline_ns)
            if outcome.delivered or not session.queries.transmissions or not self._extend(session, now_ns):
                self._close(session, outcome)
                return
        self._deadlines.again(session)

    def _extend(self, session: Session, now_ns: int) -> bool:
        """A query without a delivered reply: the client may ask again, and a late drop may tell why."""
        last_query = max(query.hops[0].ts_ns for query in session.queries.transmissions)
        deadline = last_query + self.settings.timeout_ns
        if session.upstream:
            deadline = max(deadline, session.upstream[-1].last_ns + self.settings.upstream_timeout_ns)
        self._deadlines.wait_until(session, max(deadline, session.deadline_ns))
        return session.deadline_ns > now_ns

    def _observe_error(self, error: Hop) -> bool:
        """Note an ICMP error with the lookup whose packet it quotes."""
        self.node_state.learn_error(error)
        if self._quotes.note(error):
            return True
        self.counts.stray_errors += 1
        return False

    def _observe_segment(self, hop: Hop) -> None:
        detail = hop.detail
        response = bool(hop.flags & RESPONSE)
        client, spelled = clients(detail, response=response)
        keys = ((client, self._scope(client, hop)), (spelled, self._scope(spelled, hop)))
        connection, messages = self._tcp.feed(hop, detail, keys)
        client = connection.client
        for message in messages:
            self._in_connection(connection, message)
        if hop.tcp_flags & (SYN | RST):
            self._observe_handshake(hop, client, connection, response=response)

    def _in_connection(self, connection: TcpConnection, message: Hop) -> None:
        """Take in a message that came over a connection."""
        session = self._observe_message(message, connection)
        if session is not None:
            session.connection = connection
            self._connected(session)
            if self._early and session.queries.transmissions:
                self._recall(session.key, message.ts_ns)

    @property
    def unread_bytes(self) -> int:
        """Bytes of TCP connections that no message was made of."""
        return self._tcp.unread_bytes

    def _observe_handshake(self, hop: Hop, client: Endpoint, connection: TcpConnection, *, response: bool) -> None:
        """Follow the request for a connection like a query, and what answers it like a reply.

        It becomes a session only if nothing was ever asked over it: then it is all there is to tell.
        """
        flags = hop.tcp_flags & (SYN | RST | ACK)
        if flags & SYN and bool(flags & ACK) != response:
            return
        if flags & RST and not response:
            # The client has given up and refuses a late SYN-ACK: nothing is asked by that, and no server refused it.
            return
        key = connecting_key(client, self._scope(client, hop))
        session = self._index.by_key.get(key)
        if session is None and flags == SYN and self._is_new(key, hop, response=False):
            session = self._new(key, hop)
            session.connection = connection
            if hop.flags & ORIGIN:
                self._forwarding.join(session, hop, NO_MESSAGE)
        if session is None:
            return
        direction = session.direction(response=response)
        message = next(
            (
                transmission.message
                for transmission in direction.transmissions
                if transmission.message.payload[0] == flags
            ),
            None,
        )
        if direction.add(hop, message or Message(bytes((flags,)), 0, NO_MESSAGE.summary)):
            wait_ns = self.settings.linger_ns if response else self.settings.timeout_ns
            session.last_ns = max(session.last_ns, hop.ts_ns)
            self._deadlines.wait_until(session, hop.ts_ns + wait_ns)

    def _connected(self, session: Session) -> None:
        """The connection carries messages: they tell everything, but when the server decided to ask."""
        key = session.key
        connecting = self._index.by_key.get(
            connecting_key(key.client, key.scope if is_loopback(key.client.address) else 0)
        )
        if connecting is None:
            return
        self._forwarding.detach(connecting)
        if session.background is None and session.upstream_of is None:
            session.background = connecting.background
        self._forget(connecting)
        self.counts.sessions -= 1

    def _observe_message(self, hop: Hop, connection: TcpConnection | None = None) -> Session | None:
        found = self._index.by_message.get(hop.message_id) or self._introduce(hop, connection)
        if found is None:
            return None
        session, response, message = found
        if session.inner is not None or (hop.flags & ORIGIN and not response and session.queries.transmissions):
            session = self._stage(session, hop, response=response)
        if hop.tail_bytes and len(message.payload) < message.length_bytes:
            message.payload = max(message.payload, hop.payload(hop.detail), key=len)
        if not session.direction(response=response).add(hop, message):
            self._keep_out(session, hop, message)
        if hop.ts_ns > session.last_ns:  # noqa: PLR1730  max() costs four times as much, on the hottest path
            session.last_ns = hop.ts_ns
        if response:
            self._deadlines.wait_until(session, self._answered_until(session, hop.ts_ns))
        elif session.replies.transmissions:
            self._wait_for_better(session, hop)
        elif hop.flags & ORIGIN:
            self._deadlines.wait_until(session, max(session.deadline_ns, hop.ts_ns + self.settings.timeout_ns))
        if session.upstream_of is not None:
            self._keep_parent_open(session, hop.ts_ns)
        return session

    def _stage(self, outermost: Session, hop: Hop, *, response: bool) -> Session:
        """Of a message that a proxy passes on as it came, the leg that this hop belongs to; it may begin here."""
        outer = None if response else stages.begins(outermost, hop, self.node_state)
        if outer is None:
            if response and hop.flags & ORIGIN:
                self.node_state.learn_server(hop, hop.detail)
            return stages.stage_of(outermost, hop, response=response)
        inner = self._new(outermost.key._replace(scope=hop.netns), hop)
        self._forwarding.attach(outer, inner, ambiguous=False)
        outer.inner = inner
        self._forwarding.note_proxy(hop)
        return inner

    def _keep_out(self, session: Session, hop: Hop, message: Message) -> None:
        """Count what a bound keeps out: more hops than a session has room for, or a zone's many messages.

        Nothing is lost with the latter: the first of them tell all that is told of an answer.
        """
        replies = session.replies.transmissions
        if session.key.protocol == TCP and message.summary.is_response and len(replies) >= MAX_TRANSMISSIONS:
            if hop_key(hop) == replies[0].hop_keys[0]:
                session.further += 1
                self.counts.further += 1
            return
        self.counts.overflowed += 1
        session.overflowed = True

    def _keep_back(self, key: Key, reply: Hop) -> None:
        """Count a reply without a query, and keep it: its query may be recorded behind it."""
        self._kept_back = True
        self.counts.started_mid_lookup += self._early.keep(key, reply)

    def _recall(self, key: Key, ts_ns: int) -> None:
        """Take in the replies that were seen before their query."""
        for reply, is_new in self._early.of(key, ts_ns):
            self.counts.started_mid_lookup -= is_new
            self.counts.recalled += is_new
            self._observe_message(reply)

    def _answered_until(self, session: Session, ts_ns: int) -> int:
        """A client that asked again will be answered again while the server still asks upstream for it.

        One that asked several servers at once waits for the others when the first reply is an error.
        """
        until = ts_ns + self.settings.linger_ns
        if len(session.queries.transmissions) < 2 or len(session.sent) <= len(session.replies.transmissions):  # noqa: PLR2004
            return until
        if session.upstream and not session.upstream[-1].replies.transmissions:
            return max(until, session.upstream[-1].last_ns + self.settings.upstream_timeout_ns)
        if len(times_asked(session)) > 1 and not any(map(is_good, session.replies.transmissions)):
            return max(until, session.sent[-1].hops[0].ts_ns + self.settings.timeout_ns)
        return until

    def _wait_for_better(self, session: Session, hop: Hop) -> None:
        """A client that sends its query again after an error goes on: the answer to that may be a good one."""
        newest = session.queries.transmissions[-1].hops[0]
        reply = session.replies.transmissions[-1]
        if newest.ts_ns > reply.hops[0].ts_ns and not is_good(reply):
            self._deadlines.wait_until(session, max(session.deadline_ns, hop.ts_ns + self.settings.timeout_ns))

    def _keep_parent_open(self, session: Session, ts_ns: int) -> None:
        parent = self._forwarding.parent_of(session)
        if parent is not None and len(parent.replies.transmissions) < len(parent.sent):
            self._deadlines.wait_until(parent, max(parent.deadline_ns, ts_ns + self.settings.upstream_timeout_ns))

    def _introduce(self, hop: Hop, connection: TcpConnection | None) -> tuple[Session, bool, Message] | None:
        """First hop of a message here: read it and find its session, or open one.

        Args:
            hop: with the message's bytes, else it cannot be told whose it is.
            connection: that brought it, if it is one of TCP: it knows the client before translation.
        """
        detail = hop.detail
        message = self._read(hop, detail)
        if message is None:
            return None
        response = message.summary.is_response
        if response and hop.flags & ORIGIN:
            self.node_state.learn_server(hop, detail)
        if message.summary.question is None:
            session = self._asked_under(hop, detail, message.summary)
        else:
            session = self._session_of(hop, detail, message, connection)
        return None if session is None else self._register(session, hop, message)

    def _read(self, hop: Hop, detail: Detail) -> Message | None:
        """The DNS message that came with the hop; what is none is counted."""
        payload = hop.payload(detail)
        if not payload:
            self._laid = self._strays.take(hop, detail, payload, ())
            if not self._laid:
                self.counts.unmatched += 1
            return None
        try:
            summary = summarize(payload)
        except WireError:
            summary = None
        if summary is None or (summary.question is None and not summary.is_response):
            if not self._lay(hop, detail, payload):
                self._count_unread(summary, whole=len(payload) >= detail.payload_bytes)
            return None
        return Message(payload, detail.payload_bytes, summary)

    def _register(self, session: Session, hop: Hop, message: Message) -> tuple[Session, bool, Message] | None:
        """Let later hops of the message find their session."""
        if len(session.messages) >= MAX_MESSAGES:
            self._keep_out(session, hop, message)
            return None
        response = message.summary.is_response
        # The same bytes under another number: source translation changed the client's address.
        for transmission in session.direction(response=response).transmissions:
            if transmission.message.payload == message.payload:
                message = transmission.message
                break
        first = response and hop.flags & ORIGIN and not session.replies.transmissions and session.inner is None
        if first and not self._index.is_alone(session):
            same = self._index.alike(session)
            self._forwarding.find_asked_meanwhile(session, hop, same)
            self._forwarding.mend_guess(session, hop, message, same)
        found = (session, response, message)
        if hop.message_id:
            self._index.by_message[hop.message_id] = found
            session.messages.append(hop.message_id)
        return found

    def _asked_under(self, hop: Hop, detail: Detail, summary: Summary) -> Session | None:
        """The open lookup of this client and id: an error reply may come without the question (RFC 1035 4.1.1)."""
        client, spelled = clients(detail, response=True)
        for session in self._index.recent():
            key = session.key
            if key.client in (client, spelled) and key.id == summary.id and key.protocol == hop.protocol:
                return session
        if not self._lay(hop, detail, hop.payload(detail)):
            self._count_unread(summary, whole=True)
        return None

    def _session_of(
        self, hop: Hop, detail: Detail, message: Message, connection: TcpConnection | None
    ) -> Session | None:
        response = message.summary.is_response
        client, translated = clients(detail, response=response)
        if connection is not None:
            client = connection.client
        key = self._key(client, hop, message.summary)
        session = self._index.by_key.get(key)
        if session is None and response and self._is_stray(key, hop, detail, message, connection):
            return None
        if not response and self._echoes(key, hop, detail, message):
            return None
        incomplete = connection is not None and connection.lost_ns is not None
        if session is None and self._is_new(key, hop, response=response, incomplete=incomplete):
            session = self._new(key, hop)
            if not response and hop.flags & ORIGIN:
                self._forwarding.join(session, hop, message)
            if not response:
                self._last.relate(session)
        if session is not None and translated != client:
            self._index.alias(session, key._replace(client=translated, scope=self._scope(translated, hop)))
        return session

    def _lay(self, hop: Hop, detail: Detail, payload: bytes, *, whole: bool = False) -> bool:
        """Whether what answers no lookup as it should is meant for an open one, which then keeps it."""
        self._laid = self._strays.take(hop, detail, payload, self._index.recent(), whole=whole)
        return self._laid

    def _count_unread(self, summary: Summary | None, *, whole: bool) -> None:
        """Count what is no message of a lookup; `summary` is None if it cannot be read."""
        if summary is not None:
            self.counts.questionless[summary.opcode] += 1
        elif whole:
            self.counts.malformed += 1
        else:
            self.counts.cut += 1

    def _echoes(self, key: Key, hop: Hop, detail: Detail, message: Message) -> bool:
        """Whether what is marked as a query comes from the server that was asked, and is laid to that lookup.

        Over a connection the ends are known. Elsewhere it is the same query, sent back.
        """
        if hop.flags & RESPONSE:
            return self._lay(hop, detail, message.payload)
        if key in self._index.by_key:
            return False
        client = Endpoint(detail.daddr, detail.dport)
        sent_back = key._replace(client=client, scope=self._scope(client, hop)) in self._index.by_key
        return sent_back and client != key.client and self._lay(hop, detail, message.payload)

    def _is_stray(self, key: Key, hop: Hop, detail: Detail, message: Message, connection: TcpConnection | None) -> bool:
        """Whether a reply that fits no lookup belongs to an open one all the same; not if it fits one that is over.

        Nor over a connection that lacks bytes: it answers a query that was lost with them.
        """
        if hop.late or self._index.was_closed(key) or (connection is not None and connection.lost_ns is not None):
            return False
        whole = connection is not None and connection.facts.syn
        return self._lay(hop, detail, message.payload, whole=whole)

    def _key(self, client: Endpoint, hop: Hop, summary: Summary) -> Key:
        question = summary.question
        assert question is not None  # noqa: S101  _introduce() has seen to it
        scope = self._scope(client, hop)
        return Key(client, hop.protocol, summary.id, question.name, question.rdtype, question.rdclass, scope)

    @staticmethod
    def _scope(client: Endpoint, hop: Hop) -> int:
        return hop.netns if is_loopback(client.address) else 0

    def _is_new(self, key: Key, hop: Hop, *, response: bool, incomplete: bool = False) -> bool:
        """Whether a message without an open session deserves one of its own.

        A late record of a closed one does not; a query that begins where the closed one began is a new attempt. Nor
        does a reply whose query was before the capture, unless its connection is known to lack bytes (`incomplete`).
        """
        if not response and hop.flags & ORIGIN:
            return True
        if hop.late or self._index.is_late(key, hop):
            self.counts.late += 1
            return False
        if response and hop.flags & LEARNED and not self._losses:
            self.counts.unasked += 1
            return False
        begins = hop.ts_ns < self._started_ns + self.settings.timeout_ns
        if response and begins and not self._losses and not incomplete:
            self._keep_back(key, hop)
            return False
        return True

    def _new(self, key: Key, hop: Hop) -> Session:
        if len(self._index.open) >= self.settings.max_sessions:
            oldest = next(iter(self._index.open))
            oldest.overflowed = oldest.evicted = True
            self.counts.evicted += 1
            self._close(oldest, self._judge(oldest, hop.ts_ns))
        session = Session(key, hop.ts_ns, hop.ts_ns + self.settings.timeout_ns)
        self.counts.sessions += 1
        self._index.add(session)
        self._deadlines.begin(session, hop.ts_ns)
        self._quotes.take_early(session, hop)
        return session

    def _judge(self, session: Session, end_ns: int) -> Outcome:
        if session.upstream:
            session.ambiguous |= any(exchange.guessed for exchange in session.upstream)
        until_ns = max(end_ns, session.last_ns)
        lost_ns = self._losses.during(session.first_ns, until_ns)
        missing_ns = session.connection.lost_ns if session.connection is not None else None
        if missing_ns is not None and session.first_ns < missing_ns <= until_ns:
            session.bytes_missing = True
            lost_ns = max(lost_ns or 0, missing_ns)
        return judge(session, self.node_state, lost_ns)

    def _close(self, session: Session, outcome: Outcome) -> None:
        self._forget(session)
        if session.background is not None:
            self.counts.background[session.background] += 1
            self.counts.background_unanswered[session.background] += not session.replies.transmissions
            return
        accepted = any(reply.message.payload[0] & SYN for reply in session.replies.transmissions if session.connecting)
        if accepted and outcome.delivered:
            # A connection that came about and was not used.
            self.counts.sessions -= 1
            self.counts.unused_connections += 1
            return
        if session.upstream_of is not None and (outcome.server_netns is None or session.connecting):
            # The exchange is part of the lookup it was made for; only a server on this node makes it one of its own.
            self.counts.upstream_exchanges += 1
            return
        outcome.contradicted = self._answers.contradicted_by(outcome)
        self._ready.append(outcome)

    def _forget(self, session: Session) -> None:
        self._index.discard(session)
        self._forwarding.forget(session)
        self._last.forget(session)
        if session.strays is not None:
            self._strays.forget(session)
