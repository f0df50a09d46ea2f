"""DNS over TCP as an observer sees it: segments in, messages out (RFC 9293, RFC 7766).

The observer is not a party: segments come reordered, twice, cut by the capture's snap length, or not at all, and the
connection may be older than the observer. Here they are put in order; `agent.wire.framing` finds the messages.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import StrEnum
from operator import attrgetter
from typing import Literal, NamedTuple

from agent.wire.framing import (
    CERTAIN,
    MESSAGE_START_BYTES,
    PREFIX_BYTES,
    SEARCHING,
    Chunk,
    Framer,
    StreamCounters,
    StreamMessage,
    Unfinished,
    header_fits,
)

__all__ = [
    "ACK",
    "FIN",
    "RST",
    "SYN",
    "Connection",
    "ConnectionFacts",
    "Side",
    "Stream",
    "StreamCounters",
    "StreamMessage",
]

# Control bits of the TCP header (RFC 9293 3.1). Plain numbers: operations on an enum cost as much as a whole segment.
FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

MAX_BUFFER_BYTES = 64 * 1024
"""Bytes that one direction keeps beyond a gap by default: a full receive window of most DNS clients."""
GAP_WAIT_NS = 2_000_000_000
"""How long a gap waits for its bytes: Linux sends them again after 0.2, 0.6 and 1.4 s (RFC 6298 with its minimum)."""
MAX_JUMP_BYTES = 1 << 20
"""A segment further away than this is not of the same flight: forged, or of a connection whose SYN was not seen."""
SEGMENT_COST_BYTES = 128
"""What a kept segment weighs beside its bytes, so that a flood of tiny ones is bounded as well."""

_CONTROL = SYN | FIN | RST
_SEQUENCE_MASK = 0xFFFFFFFF
_SEQUENCE_HALF = 0x80000000
_start_of = attrgetter("start")


class Stream:
    """One direction of one TCP connection.

    Never raises, whatever the segments say. It keeps at most `max_buffer_bytes` of reordered bytes, and one message.

    Attributes:
        opened: Its SYN was seen.
        closed: How it ended first, None if it did not.
        captured: A segment of it was seen.
        counters: What was lost, and how.
    """

    __slots__ = (
        "_end", "_framer", "_held", "_held_cost", "_max_buffer_bytes", "_next", "_started", "_stray_next",
        "captured", "closed", "counters", "isn", "opened",
    )  # fmt: skip

    def __init__(self, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> None:
        self._max_buffer_bytes = max_buffer_bytes
        self.counters = StreamCounters()
        self._framer = Framer(self.counters)
        self._held: list[Chunk] = []  # sorted, without overlaps, all beyond _next
        self.isn: int | None = None
        self.opened = self._started = self.captured = False
        self._restart(0)

    def _restart(self, start: int) -> None:
        """Begin at a sequence number."""
        # Places in the stream do not wrap around: they are sequence numbers with as many bits as it takes.
        self._next = start
        self.counters.skipped_bytes += sum(len(chunk.data) for chunk in self._held)
        self._end: int | None = None
        self._held = []
        self._held_cost = 0
        self._stray_next: int | None = None
        self.closed: Literal["fin", "reset"] | None = None

    @property
    def unfinished_bytes(self) -> int:
        """Bytes so far of a message that has not ended, its prefix included."""
        return self._framer.seen

    @property
    def unfinished(self) -> Unfinished | None:
        """The message that has begun and is not whole."""
        return self._framer.unfinished

    @property
    def carried(self) -> bool:
        """Whether it had any bytes since it was opened."""
        return self._started and (self.isn is None or self._next != self.isn + 1 or bool(self._held))

    @property
    def stalled(self) -> bool:
        """Whether bytes wait behind a gap."""
        return bool(self._held)

    @property
    def unread_bytes(self) -> int:
        """Bytes so far that no message was made of."""
        return self.counters.gap_bytes + self.counters.skipped_bytes + len(self._framer.collected)

    def feed(self, seq: int, flags: int, payload: bytes, length: int, ts_ns: int) -> list[StreamMessage]:
        """Take one segment.

        Args:
            seq: Its sequence number.
            flags: Its control bits.
            payload: Its bytes as captured.
            length: How many bytes it had.
            ts_ns: When it was seen.

        Returns:
            The messages that are complete now, in the order of the stream.
        """
        framer = self._framer
        self.captured = True
        # Nearly always: in order, one message, nothing left over from before. Decided without going through a chunk.
        if (
            framer.trust == CERTAIN
            and self._next & _SEQUENCE_MASK == seq
            and not framer.seen
            and not self._held
            and not flags & _CONTROL
            and len(payload) == length > MESSAGE_START_BYTES
            and (payload[0] << 8 | payload[1]) == length - PREFIX_BYTES
            and header_fits(payload, length - PREFIX_BYTES)
        ):
            self._next += length
            return [StreamMessage(payload[PREFIX_BYTES:], length - PREFIX_BYTES, ts_ns, ts_ns, 1, True)]
        return self._feed(seq & _SEQUENCE_MASK, flags, payload, max(length, len(payload)), ts_ns)

    def _feed(self, seq: int, flags: int, payload: bytes, length: int, ts_ns: int) -> list[StreamMessage]:
        """Take any segment."""
        messages: list[StreamMessage] = []
        if flags & RST:  # what it carries is a diagnosis, not data (RFC 9293 3.10.7)
            self.closed = self.closed or "reset"
            return self.flush()
        if flags & SYN:
            messages = self._open(seq)
            seq = seq + 1 & _SEQUENCE_MASK
        if length:
            self._place(seq, payload, length, ts_ns)
        if flags & FIN:
            self.closed = self.closed or "fin"
            self._end = self._unwrap(seq) + length if self._started else None
        return messages + self._drain(ts_ns)

    def _open(self, seq: int) -> list[StreamMessage]:
        """A SYN: the first byte is the next; nothing new if it is sent again."""
        if self.opened and seq == self.isn:
            return []
        messages = self.flush()
        self.opened = self._started = True
        self.isn = seq
        self._restart(seq + 1)
        self._framer.restart(CERTAIN)
        return messages

    def _unwrap(self, seq: int) -> int:
        """The place nearest to the next byte that has this sequence number (RFC 9293 3.4)."""
        return self._next + (seq - self._next + _SEQUENCE_HALF & _SEQUENCE_MASK) - _SEQUENCE_HALF

    def _place(self, seq: int, payload: bytes, length: int, ts_ns: int) -> None:
        """Put a segment's bytes where they belong, unless they were there before."""
        if not self._started:
            self._started = True
            self._next = seq
        start = self._unwrap(seq)
        if abs(start - self._next) > MAX_JUMP_BYTES:
            if not self._moves_to(seq, length):
                return
            start = seq
        self._hold(Chunk(start, payload, length, ts_ns))

    def _moves_to(self, seq: int, length: int) -> bool:
        """Whether the stream really goes on so far away: only if a second segment follows the first there."""
        moves = seq == self._stray_next
        self._stray_next = seq + length & _SEQUENCE_MASK
        self.counters.stray_segments += 1
        if moves:
            self._restart(seq)
            self._framer.restart(SEARCHING)
        return moves

    def _hold(self, chunk: Chunk) -> None:
        """Keep those bytes of a segment that no segment before it brought."""
        index = bisect_right(self._held, chunk.start, key=_start_of)
        start = max(chunk.start, self._next, self._held[index - 1].end if index else 0)
        new = 0
        while start < chunk.end:
            following = self._held[index] if index < len(self._held) else None
            end = min(chunk.end, following.start) if following else chunk.end
            if start < end:
                self._insert(index, chunk.part(start, end))
                new += end - start
                index += 1
            start = following.end if following else end
            index += 1
        self.counters.retransmitted_bytes += chunk.length - new

    def _insert(self, index: int, chunk: Chunk) -> None:
        """Keep bytes that nothing overlaps."""
        self._held.insert(index, chunk)
        self._held_cost += _cost(chunk)

    def _drain(self, ts_ns: int = 0) -> list[StreamMessage]:
        """Hand on what is in order, and beyond a gap that has been waited for long enough."""
        messages: list[StreamMessage] = []
        while self._held:
            first = self._held[0]
            if first.start > self._next:
                if self._held_cost <= self._max_buffer_bytes and ts_ns - (first.ts_ns or 0) <= GAP_WAIT_NS:
                    break
                messages += self._give_up(first.start)
            self._held_cost -= _cost(self._held.pop(0))
            self._next = first.end
            self.counters.cut_bytes += first.length - len(first.data)
            messages += self._framer.push(first)
        return messages

    def _give_up(self, end: int) -> list[StreamMessage]:
        """Count the bytes before `end` as lost."""
        size = end - self._next
        self.counters.gaps += 1
        self.counters.gap_bytes += size
        gap = Chunk(self._next, b"", size, None)
        self._next = end
        return self._framer.push(gap)

    def expire(self, now_ns: int) -> list[StreamMessage]:
        """Stop waiting for bytes that are overdue at `now_ns` (in the time of the segments)."""
        return self._drain(now_ns)

    def flush(self) -> list[StreamMessage]:
        """Stop waiting for any bytes: nothing will come any more."""
        messages: list[StreamMessage] = []
        while self._held:
            messages += self._give_up(self._held[0].start) + self._drain()
        return messages

    def is_next(self, seq: int) -> bool:
        """Whether this is the number of the byte that comes next: all before it was seen or given up."""
        return self._started and self._next & _SEQUENCE_MASK == seq

    def acknowledge(self, ack: int) -> list[StreamMessage]:
        """Stop waiting for bytes that the other side says it has: the capture lost them, nobody sends them again.

        Optional, but it turns a wait for `GAP_WAIT_NS` into none.

        Args:
            ack: Acknowledgement number of a segment of the other direction.
        """
        end = self._unwrap(ack & _SEQUENCE_MASK)
        if self._end is not None:
            end = min(end, self._end)  # a FIN is acknowledged as if it were a byte
        messages: list[StreamMessage] = []
        if not self._started:
            # Only one side was captured: from here on it is known how much the other one said.
            self._started, self._next = True, ack & _SEQUENCE_MASK
            return messages
        if end - self._next > MAX_JUMP_BYTES:
            return messages
        while self._next < end:
            messages += self._give_up(min(end, self._held[0].start) if self._held else end) + self._drain()
        return messages


def _cost(chunk: Chunk) -> int:
    """What a kept chunk counts against the bound."""
    return len(chunk.data) + SEGMENT_COST_BYTES


class Side(StrEnum):
    """An end of a connection."""

    CLIENT = "client"
    SERVER = "server"


class ConnectionFacts(NamedTuple):
    """What the control bits of a connection told."""

    syn: bool = False
    """The client asked for it."""
    syn_ack: bool = False
    """The server accepted it."""
    syn_retransmissions: int = 0
    """Times that the client asked again."""
    refused: bool = False
    """The server answered the SYN with RST: nothing listens there."""
    reset_by: Side | None = None
    """Who ended it with RST first, after it was accepted or when its start was not seen."""
    fin_by: Side | None = None
    """Who ended it with FIN first."""


class Connection:
    """Both directions of one TCP connection; the caller tells them apart.

    Attributes:
        client_to_server: The stream of the queries.
        server_to_client: The stream of the replies.
        facts: How it started and ended.
    """

    __slots__ = ("client_to_server", "facts", "server_to_client")

    def __init__(self, max_buffer_bytes: int = MAX_BUFFER_BYTES) -> None:
        self.client_to_server = Stream(max_buffer_bytes)
        self.server_to_client = Stream(max_buffer_bytes)
        self.facts = ConnectionFacts()

    def feed(
        self, seq: int, flags: int, payload: bytes, length: int, ts_ns: int, *, sender: Side
    ) -> list[StreamMessage]:
        """Take one segment of `sender`; otherwise as `Stream.feed`."""
        stream = self.client_to_server if sender is Side.CLIENT else self.server_to_client
        if flags & _CONTROL:
            self._note(seq, flags, stream, sender)
        return stream.feed(seq, flags, payload, length, ts_ns)

    def sent_by(self, side: Side) -> Stream:
        """The stream that this side sends."""
        return self.client_to_server if side is Side.CLIENT else self.server_to_client

    @property
    def stalled(self) -> bool:
        """Whether bytes of either direction wait behind a gap."""
        return self.client_to_server.stalled or self.server_to_client.stalled

    def _note(self, seq: int, flags: int, stream: Stream, sender: Side) -> None:
        """Learn from control bits, before the stream does."""
        if flags & RST:
            self._note_reset(sender)
        elif flags & SYN and sender is Side.SERVER:
            self.facts = self.facts._replace(syn_ack=True)
        elif flags & SYN:
            again = stream.opened and stream.isn == seq
            repeats = self.facts.syn_retransmissions + 1
            self.facts = self.facts._replace(syn_retransmissions=repeats) if again else ConnectionFacts(syn=True)
        if flags & FIN and self.facts.fin_by is None:
            self.facts = self.facts._replace(fin_by=sender)

    def _note_reset(self, sender: Side) -> None:
        """Tell a refused connection from one that was cut off later."""
        accepted = self.facts.syn_ack or self.client_to_server.carried
        if self.facts.syn and sender is Side.SERVER and not accepted:
            self.facts = self.facts._replace(refused=True)
        elif self.facts.reset_by is None:
            self.facts = self.facts._replace(reset_by=sender)
