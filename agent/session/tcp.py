"""DNS over TCP: from segments to messages, so that the table sees the same hops as for UDP.

A segment's bytes come from the socket programs (`SOCKET_TX`, `SOCKET_RX`); the tracepoints tell where it went.
Every end of a connection is reassembled for itself, so a loss at one end does not hide what the other saw. A message
that took several segments has the hops of the one that completed it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.hop.record import DETAIL, RESPONSE, SOCKET_RX, SOCKET_TX, Detail, Hop
from agent.wire.stream import GAP_WAIT_NS, RST, SYN, Connection, ConnectionFacts, Side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.hop.endpoint import Endpoint
    from agent.wire.framing import StreamMessage, Unfinished

ID_BYTES = 2
MAX_CONNECTIONS = 4096
MAX_HOPS = 32
MAX_SEGMENTS = 256
"""Segments of one connection whose messages, or whose hops without a message yet, are remembered."""
MAX_ENDS = 16
"""Ends that one client address and port are followed at: those of the proxies that pose as it, and of pods that had it
before. Beyond that the one seen first is forgotten."""
NUMBER_MASK = (1 << 64) - 1


class Segment(NamedTuple):
    """What tells a segment apart within its connection."""

    response: bool
    sequence: int


class End(NamedTuple):
    """Where a connection ends.

    A proxy that asks with its client's address and port has the server's end of one connection and the client's end of
    another, which look alike.
    """

    netns: int
    is_clients: bool


@dataclass(slots=True, eq=False)
class TcpConnection:
    """One connection, seen from each of its ends on this node."""

    client: Endpoint
    """Before any translation."""
    names: int = 0
    """How many addresses lead to it."""
    ends: dict[End, Connection] = field(default_factory=dict)
    messages: OrderedDict[Segment, list[int]] = field(default_factory=OrderedDict)
    waiting: OrderedDict[Segment, list[Hop]] = field(default_factory=OrderedDict)
    held: OrderedDict[tuple[int, Side, int], Hop] = field(default_factory=OrderedDict)
    """Segments that may complete a message later, by namespace, sender and time: each message keeps its own."""
    gaps: int = 0
    """Times that bytes were given up: they were sent, and nothing of them was seen."""
    lost_ns: int | None = None
    """When that was noticed last."""

    @property
    def facts(self) -> ConnectionFacts:
        """What is known of it, from the end that knows most."""
        return max((end.facts for end in self.ends.values()), key=_knowledge, default=ConnectionFacts())

    def at_socket(self, hop: Hop, detail: Detail, side: Side) -> Iterator[Hop]:
        """Feed one end; the messages it completed, and the hops that waited for them."""
        key = End(hop.netns, (hop.event == SOCKET_TX) is (side is Side.CLIENT))
        end = self.ends.get(key)
        if end is None:
            end = self._begin(key)
        opposite = Side.CLIENT if side is Side.SERVER else Side.SERVER
        flags = hop.tcp_flags
        if detail.acknowledgement and not flags & SYN:
            yield from self._acknowledged(hop, detail.acknowledgement, key, opposite)
        payload = hop.payload(detail)
        if detail.payload_bytes:
            self.held[hop.netns, side, hop.ts_ns] = hop
            _bound(self.held)
        waited = end.stalled
        found = end.feed(hop.sequence, flags, payload, detail.payload_bytes, hop.ts_ns, sender=side)
        yield from self._complete(hop.netns, found, side)
        if flags & RST:
            yield from self.release()
        if waited or flags & (RST | SYN):
            self.note_gaps(hop.ts_ns)

    def _begin(self, key: End) -> Connection:
        if len(self.ends) >= MAX_ENDS:
            oldest = self.ends.pop(next(iter(self.ends)))
            self.gaps -= _gaps(oldest)
        end = self.ends[key] = Connection()
        return end

    def _acknowledged(self, at: Hop, number: int, here: End, side: Side) -> Iterator[Hop]:
        """What the receiver has will not come again: a gap there is a loss of ours.

        A tap sees the segments of each side where they leave only. If none of this side's were seen anywhere, its
        bytes are counted here by what is acknowledged.
        """
        ends = [here]
        if not self.ends[here].sent_by(side).captured:
            ends = [end for end, streams in self.ends.items() if streams.sent_by(side).captured] or ends
        for end in ends:
            stream = self.ends[end].sent_by(side)
            if not stream.is_next(number):
                messages = stream.acknowledge(number)
                self.note_gaps(at.ts_ns)
                yield from self._complete(end.netns, messages, side)

    @property
    def stalled(self) -> bool:
        """Whether bytes wait behind a gap."""
        return any(end.stalled for end in self.ends.values())

    def note_gaps(self, now_ns: int) -> None:
        """Notice bytes that were given up since the last time."""
        gaps = sum(map(_gaps, self.ends.values()))
        if gaps > self.gaps:
            self.gaps, self.lost_ns = gaps, now_ns

    def unfinished_reply(self, identifier: int) -> Unfinished | None:
        """The reply with this id that has begun and never became whole, as the end knows it that has most of it."""
        begun = [
            message for message in self._unfinished() if message.payload[:ID_BYTES] == identifier.to_bytes(ID_BYTES)
        ]
        return max(begun, key=lambda message: len(message.payload), default=None)

    @property
    def stuck(self) -> bool:
        """Whether the server has begun a reply that never became whole: others may wait behind it."""
        return any(message.payload for message in self._unfinished())

    def _unfinished(self) -> list[Unfinished]:
        found = (end.server_to_client.unfinished for end in self.ends.values())
        return [message for message in found if message is not None]

    def release(self) -> Iterator[Hop]:
        """The messages behind every gap: nothing will come any more that fills it."""
        for end, streams in self.ends.items():
            for side in Side:
                yield from self._complete(end.netns, streams.sent_by(side).flush(), side)

    def unread_bytes(self) -> int:
        """Bytes that no message was made of: never captured, or behind such without a boundary in sight."""
        return sum(max((end.sent_by(side).unread_bytes for end in self.ends.values()), default=0) for side in Side)

    def _complete(self, netns: int, found: list[StreamMessage], side: Side) -> Iterator[Hop]:
        """Messages that are whole now, each with the segment that brought its end, and the hops that waited for it."""
        for message in found:
            brought = self.held.get((netns, side, message.last_ts_ns))
            if brought is None:
                continue
            segment = Segment(side is Side.SERVER, brought.sequence)
            number = self._number(side, message)
            numbers = self.messages.setdefault(segment, [])
            if number not in numbers:
                numbers.append(number)
            yield _as_message(brought, message, number)
            for hop in self.waiting.pop(segment, ()):
                yield from self.passing(hop, segment)
        _bound(self.messages)

    def _number(self, sender: Side, message: StreamMessage) -> int:
        return hash((self.client, sender, message.payload)) & NUMBER_MASK or 1

    def passing(self, hop: Hop, segment: Segment) -> Iterator[Hop]:
        """A hop between the ends: it is one of each message that its segment completed."""
        numbers = self.messages.get(segment)
        if numbers is None:
            waiting = self.waiting.setdefault(segment, [])
            if len(waiting) < MAX_HOPS:
                waiting.append(hop)
            _bound(self.waiting)
            return
        for number in numbers:
            yield hop._replace(message_id=number)


def _gaps(end: Connection) -> int:
    return end.client_to_server.counters.gaps + end.server_to_client.counters.gaps


def _knowledge(facts: ConnectionFacts) -> int:
    return sum(bool(fact) for fact in facts)


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > MAX_SEGMENTS:
        remembered.popitem(last=False)


def _as_message(hop: Hop, message: StreamMessage, number: int) -> Hop:
    """The hop of a whole message, as the kernel program would have written it for a datagram."""
    fixed = hop.detail._replace(payload_bytes=message.length_bytes, captured_bytes=len(message.payload))
    return hop._replace(message_id=number, rest=DETAIL.pack(*fixed) + message.payload)


class TcpStage:
    """All connections; bounded, the one longest unused is forgotten first."""

    def __init__(self) -> None:
        self._connections: OrderedDict[tuple[Endpoint, int], TcpConnection] = OrderedDict()
        self._stalled: OrderedDict[TcpConnection, int] = OrderedDict()
        self._unread_bytes = 0

    def feed(
        self, hop: Hop, detail: Detail, keys: tuple[tuple[Endpoint, int], tuple[Endpoint, int]]
    ) -> tuple[TcpConnection, Iterator[Hop]]:
        """The connection of a segment, and the message hops that it brings.

        Args:
            hop: the segment at one hop.
            detail: of the hop.
            keys: the client with its scope, before translation and as this segment spells it.
        """
        connection = self._connection(*keys)
        side = Side.SERVER if hop.flags & RESPONSE else Side.CLIENT
        if hop.event in (SOCKET_TX, SOCKET_RX):
            return connection, self._at_socket(connection, hop, detail, side)
        if not detail.payload_bytes:
            return connection, iter(())
        return connection, connection.passing(hop, Segment(side is Side.SERVER, hop.sequence))

    def _at_socket(self, connection: TcpConnection, hop: Hop, detail: Detail, side: Side) -> Iterator[Hop]:
        yield from connection.at_socket(hop, detail, side)
        if connection.stalled:
            self._stalled.setdefault(connection, hop.ts_ns)
        elif self._stalled:
            self._stalled.pop(connection, None)

    def overdue(self, now_ns: int) -> Iterator[tuple[TcpConnection, Hop]]:
        """Messages behind gaps that have been waited for long enough."""
        while self._stalled:
            connection, since_ns = next(iter(self._stalled.items()))
            if now_ns - since_ns <= GAP_WAIT_NS:
                return
            yield from self._release(connection, now_ns)

    def rest(self, now_ns: int) -> Iterator[tuple[TcpConnection, Hop]]:
        """Messages behind gaps, because nothing more will come."""
        while self._stalled:
            yield from self._release(next(iter(self._stalled)), now_ns)

    def _release(self, connection: TcpConnection, now_ns: int) -> Iterator[tuple[TcpConnection, Hop]]:
        del self._stalled[connection]
        for message in connection.release():
            yield connection, message
        connection.note_gaps(now_ns)

    @property
    def unread_bytes(self) -> int:
        """Bytes of all connections that no message was made of."""
        known = {id(connection): connection for connection in self._connections.values()}
        return self._unread_bytes + sum(connection.unread_bytes() for connection in known.values())

    def _forget_oldest(self) -> None:
        _, connection = self._connections.popitem(last=False)
        self._stalled.pop(connection, None)
        connection.names -= 1
        if not connection.names:
            self._unread_bytes += connection.unread_bytes()

    def _connection(self, key: tuple[Endpoint, int], spelled: tuple[Endpoint, int]) -> TcpConnection:
        """Behind a source translation the client has another address: both names lead to the connection."""
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = TcpConnection(key[0], 1)
        else:
            self._connections.move_to_end(key)
        if spelled != key and self._connections.get(spelled) is not connection:
            self._connections[spelled] = connection
            connection.names += 1
        while len(self._connections) > MAX_CONNECTIONS:
            self._forget_oldest()
        return connection
