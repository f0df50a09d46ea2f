"""DNS over TCP: from segments to messages, so that the table sees the same sightings as for UDP.

A segment's octets come from the socket programs (`SOCKET_TX`, `SOCKET_RX`); the tracepoints tell where it went.
Every end of a connection is reassembled for itself, so a loss at one end does not hide what the other saw. A message
that took several segments has the hops of the one that completed it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent.session.sighting import DETAIL, RESPONSE, SOCKET_RX, SOCKET_TX, Detail, Sighting
from agent.wire.stream import Connection, ConnectionFacts, Side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.session.model import Endpoint
    from agent.wire.framing import StreamMessage

MAX_CONNECTIONS = 4096
MAX_HOPS = 32
MAX_SEGMENTS = 256
"""Segments of one connection whose messages, or whose hops without a message yet, are remembered."""
NUMBER_MASK = (1 << 64) - 1


class Segment(NamedTuple):
    """What tells a segment apart within its connection."""

    response: bool
    sequence: int


@dataclass(slots=True, eq=False)
class Tracked:
    """One connection, seen from each of its ends on this node."""

    client: Endpoint
    """Before any translation."""
    ends: dict[tuple[int, bool], Connection] = field(default_factory=dict)
    """By namespace, and whether it is the client's end: a proxy that asks with its client's address and port has the
    server's end of one connection and the client's end of another, which look alike."""
    messages: OrderedDict[Segment, list[int]] = field(default_factory=OrderedDict)
    waiting: OrderedDict[Segment, list[Sighting]] = field(default_factory=OrderedDict)
    held: OrderedDict[tuple[int, Side, int], Sighting] = field(default_factory=OrderedDict)
    """Segments that may complete a message later, by namespace, sender and time: each message keeps its own."""

    @property
    def facts(self) -> ConnectionFacts:
        """What is known of it, from the end that knows most."""
        return max((end.facts for end in self.ends.values()), key=_knowledge, default=ConnectionFacts())

    def at_socket(self, sighting: Sighting, detail: Detail, side: Side) -> Iterator[Sighting]:
        """Feed one end; the messages it completed, and the hops that waited for them."""
        is_clients = (sighting.event == SOCKET_TX) is (side is Side.CLIENT)
        end = self.ends.setdefault((sighting.netns, is_clients), Connection())
        if detail.acknowledgement:
            # What the other side has will not come again: a gap there is a loss of ours.
            other, opposite = (
                (end.client_to_server, Side.CLIENT) if side is Side.SERVER else (end.server_to_client, Side.SERVER)
            )
            yield from self._complete(sighting, other.acknowledge(detail.acknowledgement), opposite)
        payload = sighting.payload(detail)
        found = end.feed(
            sighting.sequence, sighting.tcp_flags, payload, detail.payload_bytes, sighting.ts_ns, sender=side
        )
        if detail.payload_bytes:
            self.held[sighting.netns, side, sighting.ts_ns] = sighting
            _bound(self.held)
        yield from self._complete(sighting, found, side)

    def _complete(self, at: Sighting, found: list[StreamMessage], side: Side) -> Iterator[Sighting]:
        """Messages that are whole now, each with the segment that brought its end, and the hops that waited for it."""
        for message in found:
            brought = self.held.get((at.netns, side, message.last_ts_ns))
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

    def passing(self, sighting: Sighting, segment: Segment) -> Iterator[Sighting]:
        """A hop between the ends: it is one of each message that its segment completed."""
        numbers = self.messages.get(segment)
        if numbers is None:
            waiting = self.waiting.setdefault(segment, [])
            if len(waiting) < MAX_HOPS:
                waiting.append(sighting)
            _bound(self.waiting)
            return
        for number in numbers:
            yield sighting._replace(message=number)


def _knowledge(facts: ConnectionFacts) -> int:
    return sum(bool(fact) for fact in facts)


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > MAX_SEGMENTS:
        remembered.popitem(last=False)


def _as_message(sighting: Sighting, message: StreamMessage, number: int) -> Sighting:
    """The sighting of a whole message, as the kernel program would have written it for a datagram."""
    fixed = sighting.detail._replace(payload_bytes=message.length_bytes, captured_bytes=len(message.payload))
    return sighting._replace(message=number, rest=DETAIL.pack(*fixed) + message.payload)


class TcpStage:
    """All connections; bounded, the one longest unused is forgotten first."""

    def __init__(self) -> None:
        self._connections: OrderedDict[tuple[Endpoint, int], Tracked] = OrderedDict()

    def feed(
        self, sighting: Sighting, detail: Detail, keys: tuple[tuple[Endpoint, int], tuple[Endpoint, int]]
    ) -> tuple[Tracked, Iterator[Sighting]]:
        """The connection of a segment, and the message sightings that it brings.

        Args:
            sighting: the segment at one hop.
            detail: of the sighting.
            keys: the client with its scope, before translation and as this segment spells it.
        """
        connection = self._connection(*keys)
        side = Side.SERVER if sighting.flags & RESPONSE else Side.CLIENT
        if sighting.event in (SOCKET_TX, SOCKET_RX):
            return connection, connection.at_socket(sighting, detail, side)
        if not detail.payload_bytes:
            return connection, iter(())
        return connection, connection.passing(sighting, Segment(side is Side.SERVER, sighting.sequence))

    def _connection(self, key: tuple[Endpoint, int], spelled: tuple[Endpoint, int]) -> Tracked:
        """Behind a source translation the client has another address: both names lead to the connection."""
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = Tracked(key[0])
        else:
            self._connections.move_to_end(key)
        if spelled != key:
            self._connections[spelled] = connection
        while len(self._connections) > MAX_CONNECTIONS:
            self._connections.popitem(last=False)
        return connection
