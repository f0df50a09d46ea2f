"""What the kernel program keeps of one lookup over UDP: its hops, joined where they happen.

`LookupHead` and the sizes below are the layout of one place in the program's log of lookups, which has two parts: heads
and bodies. The heads of all lookups together fit a CPU's cache, and most lookups are told by their heads alone.
`bpf/record.h` is made of the layout, as of `agent.hop.record`, and the compiler asserts every offset when the program
is loaded.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING, NamedTuple, get_type_hints

from agent.hop.record import DETAIL, HEAD, RESPONSE, U16, U32, U64, Address, Head, Hop, place_of, struct_format

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHE_LINE_BYTES = 64
HEAD_BYTES = 3 * CACHE_LINE_BYTES
"""From one head to the next."""
LOOKUP_HOPS = 12
"""Hops for which there is room; eight are the way through a Service's address and back."""
QUERY_BYTES, REPLY_BYTES = 256, 512
"""Room for the two messages."""


CAPTURED_AT, CAPTURED = place_of("captured_bytes"), struct.Struct("=I")
MESSAGE_LENGTH, HOPS = struct.Struct("=H"), struct.Struct("=I")
"""Of these fields of a lookup one is read without the others, which takes a tenth of the time."""


class LookupHead(NamedTuple):
    """What tells whether a lookup is like an earlier one, before its hops are looked at."""

    position: U64
    """Which lookup of the log this is, counted from 1."""
    number: U64
    """Equal for all hops of one lookup: client, port, id, question."""
    alias: U64
    """The same, with the client's address after source translation; 0 without."""
    first_ns: U64
    shape: U64
    """Equal for lookups that took the same way: places, addresses, the server's port, translations, in their order."""
    busy: U64
    """1 while the program is writing."""
    is_open: U32
    """1 until user space sets it to 0: then later hops come as records of their own."""
    hops: U32
    """How many it has."""
    unusual: U32
    """1 if something about it came as a record of its own: a drop, a fragment, more than there is room for."""
    query_bytes: U16
    reply_bytes: U16
    """Lengths of the messages; 0 for one that was not seen."""
    asked_ns: U64
    """The newest hop of the query."""
    replied_ns: U64
    """The first hop of the reply; 0 without one."""
    last_ns: U64
    name: U64
    """Equal for all lookups of one name by one client address."""
    pair: U64
    """Equal for all lookups of one name by one client address and port."""
    question: U64
    """Equal for all lookups with one question, whoever asks."""
    kind: U64
    """Type asked for, and of the reply the header's flags and whether it has records: see `Kind`."""
    query_header: U64
    reply_header: U64
    """A number of the message's header without its id: another message has another one."""
    id: U32
    home: U32
    """Namespace of the first hop."""
    home_ifindex: U32
    home_event: U32
    """Device and event of the first hop."""
    server: U32
    """Namespace in which the reply left its socket; 0 if that was not seen."""
    pad: U32
    client: Address


class Kind(NamedTuple):
    """The parts of `LookupHead.kind`, as `bpf/lookup.h` puts them together."""

    flags: int
    """The second word of the reply's header (RFC 1035 4.1.1)."""
    rdtype: int
    has_reply: bool
    has_answers: bool
    has_additional: bool

    @classmethod
    def of(cls, kind: int) -> Kind:
        """Take it apart."""
        return cls(kind >> 32 & 0xFFFF, kind >> 16 & 0xFFFF, bool(kind & 4), bool(kind & 2), bool(kind & 1))


LOOKUP_HEAD = struct.Struct(struct_format(LookupHead))
RECORD_BYTES = HEAD.size + DETAIL.size
QUERY_AT = LOOKUP_HOPS * RECORD_BYTES
REPLY_AT = QUERY_AT + QUERY_BYTES
"""Where the messages are in a body, which begins with the hops."""
BODY_BYTES = REPLY_AT + REPLY_BYTES
"""From one body to the next: no power of two, so that bodies do not compete for a few lines of a cache."""


def _offset_of(field: str) -> int:
    hints = get_type_hints(LookupHead, include_extras=True)
    before = list(hints)[: list(hints).index(field)]
    return struct.calcsize("=" + "".join(hints[name].__metadata__[0] for name in before))


OFFSETS = {field: _offset_of(field) for field in LookupHead._fields}


class Lookups:
    """Some lookups of the log, one behind the other.

    Args:
        heads: memory of the log's heads.
        bodies: and of its bodies.
        start: which place the first of them has.
        count: how many there are.
    """

    __slots__ = ("_bodies", "_halves", "_heads", "_words", "count", "start")

    def __init__(self, heads: memoryview, bodies: memoryview, start: int, count: int) -> None:
        self._heads, self._bodies, self.start, self.count = heads, bodies, start, count
        self._words, self._halves = heads.cast("Q"), heads.cast("I")

    def words(self, field: str) -> list[int]:
        """The values of a field of 8 bytes."""
        return self._words[self._places(field, 8)].tolist()

    def halves(self, field: str) -> list[int]:
        """The values of a field of 4 bytes."""
        return self._halves[self._places(field, 4)].tolist()

    def close(self) -> None:
        """Let later hops come as records."""
        self._halves[self._places("is_open", 4)] = memoryview(array("I", bytes(4 * self.count)))

    def head(self, index: int) -> LookupHead:
        """All about one of them, but its hops."""
        return LookupHead._make(LOOKUP_HEAD.unpack_from(self._heads, self._head_at(index)))

    def query(self, index: int) -> bytes:
        """The query of one of them."""
        return self._message(index, QUERY_AT, "query_bytes")

    def reply(self, index: int) -> bytes:
        """The reply to one of them."""
        return self._message(index, REPLY_AT, "reply_bytes")

    def _message(self, index: int, offset: int, length_field: str) -> bytes:
        (length,) = MESSAGE_LENGTH.unpack_from(self._heads, self._head_at(index) + OFFSETS[length_field])
        start = self._body_at(index) + offset
        return bytes(self._bodies[start : start + length])

    def hops(self, index: int) -> Iterator[Hop]:
        """The hops of one of them, as the program would have sent them one by one."""
        memory, first = self._bodies, self._body_at(index)
        (hops,) = HOPS.unpack_from(self._heads, self._head_at(index) + OFFSETS["hops"])
        messages = {False: self.query(index), True: self.reply(index)}
        brought: set[int] = set()
        for start in range(first, first + hops * RECORD_BYTES, RECORD_BYTES):
            fields = Head._make(HEAD.unpack_from(memory, start))
            rest = bytes(memory[start + HEAD.size : start + RECORD_BYTES])
            # The bytes come with the first hop of a message. Source translation gives it another number.
            if fields.message_id not in brought:
                brought.add(fields.message_id)
                message = messages[bool(fields.flags & RESPONSE)]
                fields = fields._replace(tail_bytes=len(message))
                captured = CAPTURED.pack(len(message))
                rest = b"".join((rest[: CAPTURED_AT.start], captured, rest[CAPTURED_AT.stop :], message))
            yield Hop._make((*fields, rest))

    def _head_at(self, index: int) -> int:
        return (self.start + index) * HEAD_BYTES

    def _body_at(self, index: int) -> int:
        return (self.start + index) * BODY_BYTES

    def _places(self, field: str, size: int) -> slice:
        step, first = HEAD_BYTES // size, OFFSETS[field] // size
        return slice(self.start * step + first, (self.start + self.count) * step, step)
