"""DNS messages in the bytes of a TCP stream: length prefix, then message, again and again (RFC 1035 4.2.2).

Bytes that are missing are still counted, because sequence numbers tell how many they are; so a hole inside a message
costs that message's tail alone. A hole that swallows a prefix costs the boundaries: then the next start of a segment
that looks like a message is taken for one. `agent.wire.stream` brings the bytes, in order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from agent.wire.errors import CutError, WireError
from agent.wire.message import HEADER_BYTES, MAX_NAME_BYTES, Summary, summarize

PREFIX_BYTES = 2
MESSAGE_START_BYTES = PREFIX_BYTES + HEADER_BYTES
_MIN_QUERY_BYTES = HEADER_BYTES + 5
"""A header and the question for the root."""
_QUESTION_END_BYTES = HEADER_BYTES + MAX_NAME_BYTES + 4
_MIN_RECORD_BYTES = 11
"""A record of the root without data (RFC 1035 4.1.3)."""
_OPCODES = frozenset({0, 2, 4, 5, 6})
"""QUERY, STATUS, NOTIFY, UPDATE, DSO: the IANA registry without what is obsolete or free."""
_CLASSES = frozenset({1, 3, 4, 254, 255})
"""IN, CH, HS, NONE, ANY."""
_ONE_QUESTION = b"\0\1"

SEARCHING, UNSURE, CERTAIN = range(3)
"""How far the boundaries are trusted: not known, one message looked right, known since SYN or two in a row agreed."""

_read_header = struct.Struct("!6H").unpack_from


class StreamMessage(NamedTuple):
    """One DNS message of a stream, without its length prefix."""

    payload: bytes
    """Its bytes up to the first that was not captured."""
    length_bytes: int
    """Its length by the prefix."""
    first_ts_ns: int
    last_ts_ns: int
    segments: int
    """How many segments brought it, its prefix included."""
    certain: bool
    """False if its boundaries are inferred from one plausible look, or if its header makes no sense."""


@dataclass(slots=True)
class StreamCounters:
    """What one direction lost, and how."""

    gaps: int = 0
    """Times that bytes were given up."""
    gap_bytes: int = 0
    """Bytes of segments that never came."""
    cut_bytes: int = 0
    """Bytes of segments that came without them: the capture's snap length."""
    skipped_bytes: int = 0
    """Bytes that came and belong to no message that could be told."""
    retransmitted_bytes: int = 0
    """Bytes that came again."""
    short_messages: int = 0
    """Messages shorter than a DNS header, empty ones included."""
    stray_segments: int = 0
    """Segments too far away from the others."""
    resynchronisations: int = 0
    """Times that a boundary was found again."""


class Unfinished(NamedTuple):
    """A message that has begun and is not whole."""

    payload: bytes
    """What is there of it, prefix excluded."""
    length_bytes: int
    """How long it is to be, by its prefix."""
    first_ts_ns: int
    """When it began."""


class Chunk(NamedTuple):
    """Consecutive bytes at one place of the stream: the known ones first, then those that only count."""

    start: int
    data: bytes
    length: int
    ts_ns: int | None
    """None for bytes that never came."""

    @property
    def end(self) -> int:
        """The place after them."""
        return self.start + self.length

    def part(self, start: int, end: int) -> Chunk:
        """The bytes from `start` to before `end`."""
        return Chunk(start, self.data[start - self.start : end - self.start], end - start, self.ts_ns)


def header_fits(raw: bytes | bytearray, length: int) -> bool:
    """Whether a header can be that of a message of `length` bytes; `raw` begins with the prefix."""
    _, flags, questions, *records = _read_header(raw, PREFIX_BYTES)
    if questions > 1 or flags >> 11 & 0xF not in _OPCODES:
        return False
    least = _MIN_QUERY_BYTES if questions else HEADER_BYTES
    return bool(least + _MIN_RECORD_BYTES * sum(records) <= length)


def _is_message_start(raw: bytes, *, ended: bool) -> bool | None:
    """Whether bytes at the start of a segment are a prefix, a header and one question.

    Args:
        raw: What is known from there on.
        ended: What follows them will never be known.

    Returns:
        None if that needs more bytes, of which it asks for less than 300.
    """
    length = int.from_bytes(raw[:PREFIX_BYTES], "big")
    if len(raw) < MESSAGE_START_BYTES:
        hopeless = ended or (len(raw) >= PREFIX_BYTES and length < _MIN_QUERY_BYTES)
        return False if hopeless else None
    if length < _MIN_QUERY_BYTES or raw[6:8] != _ONE_QUESTION or not header_fits(raw, length):
        return False
    needed = min(length, _QUESTION_END_BYTES)
    short = len(raw) < PREFIX_BYTES + needed
    try:
        summary = summarize(raw[PREFIX_BYTES : PREFIX_BYTES + needed])
    except CutError:
        return (ended or None) if short else False
    except WireError:
        return False
    return _question_fits(summary, length)


def _question_fits(summary: Summary, length: int) -> bool:
    """Whether there is room for the records after the question, and nothing there if there are none."""
    records = summary.ancount + summary.nscount + summary.arcount
    spare = length - summary.end - _MIN_RECORD_BYTES * records
    room = spare >= 0 if records else spare == 0
    return room and summary.question is not None and summary.question.rdclass in _CLASSES


class Framer:
    """Cuts bytes that come in order into messages."""

    __slots__ = (
        "certain", "collected", "counters", "first_ts_ns", "framed", "judged", "last_ts_ns", "seen", "segments",
        "total", "tried", "trust",
    )  # fmt: skip

    def __init__(self, counters: StreamCounters) -> None:
        self.counters = counters
        self.trust = SEARCHING
        self.tried: list[Chunk] = []
        self._begin()

    def restart(self, trust: int) -> None:
        """Forget everything; `CERTAIN` if the next byte is the first of the connection."""
        self.counters.skipped_bytes += len(self.collected) + sum(len(chunk.data) for chunk in self.tried)
        self.trust = trust
        self.tried = []
        self._begin()

    def _begin(self) -> None:
        """Expect a message's prefix."""
        self.collected = bytearray()
        self.seen = 0
        self.total = PREFIX_BYTES
        self.framed = False
        self.judged = False
        self.certain = self.trust == CERTAIN
        self.segments = 0
        self.first_ts_ns = self.last_ts_ns = 0

    @property
    def unfinished(self) -> Unfinished | None:
        """The message that is waited for, as far as it goes; None between two, and before its length is known."""
        if not self.framed:
            return None
        return Unfinished(bytes(self.collected[PREFIX_BYTES:]), self.total - PREFIX_BYTES, self.first_ts_ns)

    def push(self, chunk: Chunk) -> list[StreamMessage]:
        """Take the bytes that follow those before, and return the messages that they complete."""
        messages: list[StreamMessage] = []
        work = [chunk]
        while work:
            chunk = work.pop(0)
            if self.trust:
                self._read(chunk, messages)
            else:
                work = self._search(chunk) + work  # ends: the first of what it gives back is read next
        return messages

    def _search(self, chunk: Chunk) -> list[Chunk]:
        """Look for a boundary; return what to read from there on, or nothing yet."""
        self.tried.append(chunk)
        while self.tried:
            verdict = self._verdict()
            if verdict is None:
                break
            if verdict:
                return self._accept()
            self.counters.skipped_bytes += len(self.tried.pop(0).data)
        return []

    def _verdict(self) -> bool | None:
        """Whether the first chunk that waits starts a message."""
        raw, ended = b"", False
        for chunk in self.tried:
            raw += chunk.data
            ended = len(chunk.data) < chunk.length
            if ended or len(raw) >= PREFIX_BYTES + _QUESTION_END_BYTES:
                break
        return _is_message_start(raw, ended=ended)

    def _accept(self) -> list[Chunk]:
        """Trust the first chunk that waits, for one message."""
        chunks, self.tried = self.tried, []
        self.counters.resynchronisations += 1
        self.trust = UNSURE
        self._begin()
        self.judged = True
        return chunks

    def _read(self, chunk: Chunk, messages: list[StreamMessage]) -> None:
        """Give each message its bytes, until the chunk or the trust ends."""
        position = 0
        while position < chunk.length and self.trust:
            if not position or not self.seen:
                self._note_segment(chunk.ts_ns)
            position = self._take(chunk, position)
            self._check()
            if self.framed and self.seen == self.total:
                self._finish(messages)
        self.counters.skipped_bytes += max(0, len(chunk.data) - position)

    def _note_segment(self, ts_ns: int | None) -> None:
        """Count a segment that brings part of the message."""
        if ts_ns is None:
            return
        self.first_ts_ns = min(self.first_ts_ns, ts_ns) if self.segments else ts_ns
        self.last_ts_ns = max(self.last_ts_ns, ts_ns) if self.segments else ts_ns
        self.segments += 1

    def _take(self, chunk: Chunk, position: int) -> int:
        """Move bytes of the chunk to the prefix or to the rest of the message; return where the chunk goes on."""
        end = min(chunk.length, position + self.total - self.seen)
        if len(self.collected) == self.seen:  # what follows a hole is of no use: the payload is what comes before
            self.collected += chunk.data[position:end]
        self.seen += end - position
        return end

    def _check(self) -> None:
        """Draw conclusions as soon as the prefix and then the header are there."""
        if self.seen < PREFIX_BYTES:
            if len(self.collected) < self.seen:
                self._lose()
        elif not self.framed:
            self._frame()
        elif not self.judged and len(self.collected) >= MESSAGE_START_BYTES:
            self._judge()

    def _frame(self) -> None:
        """Read the prefix."""
        if len(self.collected) < PREFIX_BYTES:
            self._lose()
            return
        self.framed = True
        self.total += int.from_bytes(self.collected, "big")
        if self.total >= MESSAGE_START_BYTES:
            return
        self.counters.short_messages += 1
        if self.trust == UNSURE:
            self._lose()
        elif self.total > PREFIX_BYTES:
            self.trust = UNSURE

    def _judge(self) -> None:
        """Compare the header with the trust: one that makes no sense takes some, one that does restores it."""
        self.judged = True
        if header_fits(self.collected, self.total - PREFIX_BYTES):
            self.certain = True
            self.trust = CERTAIN
        elif self.trust == CERTAIN:
            self.certain = False
            self.trust = UNSURE
        else:
            self._lose()

    def _lose(self) -> None:
        """The boundaries are not known any more."""
        self.counters.skipped_bytes += len(self.collected)
        self.trust = SEARCHING
        self._begin()

    def _finish(self, messages: list[StreamMessage]) -> None:
        """Report the message. One that is too short for a header is told only where no boundary can be wrong."""
        length = self.total - PREFIX_BYTES
        if length >= HEADER_BYTES or (length and self.certain):
            payload = bytes(self.collected[PREFIX_BYTES:])
            messages.append(
                StreamMessage(payload, length, self.first_ts_ns, self.last_ts_ns, self.segments, self.certain)
            )
        self._begin()
