"""The parser of the hot path: header and question in about a microsecond, record data untouched.

Every offset is checked, because packets are hostile input. Compression loops cannot happen: a pointer must lead to
before the bytes that led to it, and what it leads to must end before them (RFC 1035 4.1.4, "a prior occurrence").
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from agent.wire.errors import CutError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER_BYTES = 12
MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63
MAX_POINTERS = 127
"""A name has at most 127 labels, so a sensible sender never chains more pointers than that."""
OPT = 41
"""Record type of EDNS (RFC 6891 6.1.1)."""

_POINTER = 0xC0
_read_header = struct.Struct("!6H").unpack_from
_read_type_and_class = struct.Struct("!HH").unpack_from
read_record = struct.Struct("!HHIH").unpack_from
"""Type, class, TTL and length of the data: what follows a record's owner name (RFC 1035 4.1.3)."""
RECORD_BYTES = 10
OPTION_BYTES = 4
COOKIE = 10
"""EDNS option code (RFC 7873 4)."""
CLIENT_COOKIE_BYTES = 8
EXTENDED_ERROR = 15
"""EDNS option code (RFC 8914 2)."""

# RFC 1035 5.1 and RFC 4343 2.1: what has a meaning in master files gets a backslash, what does not print its number.
_ESCAPES = {byte: f"\\{byte:03d}" for byte in range(256) if byte == ord(" ") or not chr(byte).isprintable()}
_ESCAPES |= {byte: f"\\{byte:03d}" for byte in range(128, 256)}
_ESCAPES |= {ord(char): f"\\{char}" for char in '"().;\\@$'}


class Question(NamedTuple):
    """The first entry of the question section (RFC 1035 4.1.2)."""

    name: bytes
    """Uncompressed, length bytes and root included, ASCII letters in lower case: the key (RFC 4343 3)."""
    original: bytes
    """The same with the letters as they were sent."""
    rdtype: int
    rdclass: int


class Summary(NamedTuple):
    """Header and question of one message (RFC 1035 4.1.1): all that joining messages into sessions needs."""

    id: int
    flags: int
    """Bytes 2 and 3 as they are."""
    qdcount: int
    ancount: int
    nscount: int
    arcount: int
    question: Question | None
    """None only if the message has none."""
    end: int
    """Offset of the byte after the question section."""

    @property
    def is_response(self) -> bool:
        """QR: a reply, not a query."""
        return self.flags & 0x8000 != 0

    @property
    def opcode(self) -> int:
        """Kind of query; 0 is a standard query."""
        return self.flags >> 11 & 0xF

    @property
    def rcode(self) -> int:
        """The header's 4 bits of the response code; `extended_rcode` knows the rest."""
        return self.flags & 0xF

    @property
    def aa(self) -> bool:
        """Authoritative answer."""
        return self.flags & 0x0400 != 0

    @property
    def tc(self) -> bool:
        """Truncated by the sender: ask again over TCP."""
        return self.flags & 0x0200 != 0

    @property
    def rd(self) -> bool:
        """Recursion desired."""
        return self.flags & 0x0100 != 0

    @property
    def ra(self) -> bool:
        """Recursion available."""
        return self.flags & 0x0080 != 0


def summarize(wire: bytes) -> Summary:
    """Read the header and the question section.

    What follows the question may be missing, wrong or cut: it is not looked at.

    Raises:
        WireError: The header or the question section breaks the format or is cut (then it is a `CutError`).
    """
    if len(wire) < HEADER_BYTES:
        raise CutError("the message ends inside the header", len(wire))
    ident, flags, qdcount, ancount, nscount, arcount = _read_header(wire)
    question = None
    end = HEADER_BYTES
    if qdcount:
        question, end = _read_question(wire)
        if qdcount > 1:
            end = _skip_questions(wire, end, qdcount - 1)
    return Summary(ident, flags, qdcount, ancount, nscount, arcount, question, end)


def _read_question(wire: bytes) -> tuple[Question, int]:
    """The first question and the offset after it."""
    # Walk the labels: a search for the root's zero would stop at a zero byte inside a label.
    offset = HEADER_BYTES
    try:
        length = wire[offset]
        while 0 < length <= MAX_LABEL_BYTES:
            offset += length + 1
            length = wire[offset]
    except IndexError:
        raise CutError("the message ends inside the question's name", len(wire)) from None
    offset += 1
    if length or offset > HEADER_BYTES + MAX_NAME_BYTES:
        original, offset = read_name(wire, HEADER_BYTES)  # compressed or wrong, both rare
    else:
        original = wire[HEADER_BYTES:offset]
    if len(wire) < offset + 4:
        raise CutError("the message ends inside the question", len(wire))
    rdtype, rdclass = _read_type_and_class(wire, offset)
    # lower() changes bytes 65 to 90 alone, and a length byte is at most 63: it touches nothing but letters of labels.
    return Question(original.lower(), original, rdtype, rdclass), offset + 4


def _skip_questions(wire: bytes, offset: int, count: int) -> int:
    """The offset after `count` more questions: RFC 9619 forbids them in queries, but hostile senders do not read it."""
    for _ in range(count):
        offset = skip_name(wire, offset) + 4
        if offset > len(wire):
            raise CutError("the message ends inside the question section", len(wire))
    return offset


def read_name(wire: bytes, start: int) -> tuple[bytes, int]:
    """Read a name that may be compressed (RFC 1035 4.1.4).

    Args:
        wire: The whole message.
        start: Offset of the name.

    Returns:
        The uncompressed name as it was sent, length bytes and root included, and the offset after its first part.

    Raises:
        WireError: It is cut, too long, of a label type that does not exist, or a pointer does not lead backwards.
    """
    segment, limit = start, len(wire)
    stop = _skip_labels(wire, segment, limit)
    end = stop + (2 if wire[stop] else 1)
    name = wire[segment:stop]
    pointers = 0
    while wire[stop]:
        pointers += 1
        if pointers > MAX_POINTERS:
            raise WireError(f"the name needs more than {MAX_POINTERS} pointers", start)
        target = _pointer_target(wire, stop, limit, segment)
        segment, limit = target, segment
        stop = _skip_labels(wire, segment, limit)
        name += wire[segment:stop]
        if len(name) >= MAX_NAME_BYTES:
            raise WireError("the name is longer than 255 bytes", start)
    return name + b"\0", end


def _pointer_target(wire: bytes, offset: int, limit: int, before: int) -> int:
    """Where the pointer at `offset` leads, which must be before the bytes that led to it."""
    if offset + 2 > limit:
        raise _ran_out(wire, offset, limit)
    target = (wire[offset] & ~_POINTER) << 8 | wire[offset + 1]
    if target >= before:
        raise WireError("a compression pointer does not lead backwards", offset)
    return target


def _skip_labels(wire: bytes, start: int, limit: int) -> int:
    """Offset of the byte that ends a run of labels: the root's zero, or the first of a pointer's two."""
    offset = start
    while offset < limit:
        length = wire[offset]
        if length > MAX_LABEL_BYTES:
            # 0x40 and 0x80 are reserved; the one use of 0x40 is historic (RFC 6891 5).
            if length < _POINTER:
                raise WireError(f"label type {length & _POINTER:#x} does not exist", offset)
            return offset
        if not length:
            return offset
        offset += length + 1
        # Checked at every label, so that a hostile message cannot buy long walks with two bytes each.
        if offset - start >= MAX_NAME_BYTES:
            raise WireError("the name is longer than 255 bytes", start)
    raise _ran_out(wire, start, limit)


def _ran_out(wire: bytes, offset: int, limit: int) -> WireError:
    """Why a name did not end before `limit`: the message does, or the bytes that point to it begin there."""
    if limit < len(wire):
        return WireError("a compression pointer leads into the name it belongs to", offset)
    return CutError("the message ends inside a name", limit)


def skip_name(wire: bytes, start: int) -> int:
    """Offset after a name that may be compressed, without following the pointer (it may lie after the end).

    Raises:
        WireError: As `read_name`, as far as it looks.
    """
    stop = _skip_labels(wire, start, len(wire))
    return stop + (2 if wire[stop] else 1)


def extended_rcode(wire: bytes, summary: Summary) -> int:
    """The response code with the upper 8 bits of the OPT record, 0 to 4095 (RFC 6891 6.1.3).

    Never raises: if there is no OPT record, or what lies before it is malformed or cut, it is the header's code.

    Args:
        wire: The message.
        summary: What `summarize` said of it.
    """
    opt = _find_opt(wire, summary)
    return summary.rcode if opt is None else opt.ttl >> 24 << 4 | summary.rcode


def client_cookie(wire: bytes, summary: Summary) -> bytes | None:
    """The client's part of the COOKIE option, 8 bytes (RFC 7873 4); None if there is none. Never raises."""
    cookies = (data for code, data in options(wire, summary) if code == COOKIE and len(data) >= CLIENT_COOKIE_BYTES)
    return next((data[:CLIENT_COOKIE_BYTES] for data in cookies), None)


def options(wire: bytes, summary: Summary) -> Iterator[tuple[int, bytes]]:
    """Code and data of each EDNS option (RFC 6891 6.1.2), as far as they are whole. Never raises."""
    opt = _find_opt(wire, summary)
    offset, end = (0, 0) if opt is None else (opt.data, min(opt.end, len(wire)))
    while offset + OPTION_BYTES <= end:
        code, length = _read_type_and_class(wire, offset)
        offset += OPTION_BYTES
        if offset + length > end:
            return
        yield code, wire[offset : offset + length]
        offset += length


def udp_size(wire: bytes, summary: Summary) -> int | None:
    """Bytes of a reply that the sender says it takes over UDP (RFC 6891 6.2.3); None without EDNS. Never raises."""
    opt = _find_opt(wire, summary)
    return None if opt is None else opt.udp_size


class Opt(NamedTuple):
    """An OPT record: its class and TTL fields, and where its options lie."""

    udp_size: int
    ttl: int
    data: int
    end: int


def _find_opt(wire: bytes, summary: Summary) -> Opt | None:
    """The first OPT record of the additional section; None if there is none, or something before it is malformed."""
    if not summary.arcount:
        return None
    offset = summary.end
    before = summary.ancount + summary.nscount
    try:
        for index in range(before + summary.arcount):
            offset = skip_name(wire, offset)
            rdtype, rdclass, ttl, rdlength = read_record(wire, offset)
            offset += RECORD_BYTES + rdlength
            if rdtype == OPT and index >= before:
                return Opt(rdclass, ttl, offset - rdlength, offset)
    except (WireError, struct.error):
        return None
    return None


# 8192 names: nearly every lookup of a node; at most some 10 MB even if all are hostile.
@lru_cache(maxsize=8192)
def name_to_text(name: bytes) -> str:
    r"""Spell a name as in master files, with the trailing dot: always printable ASCII.

    A dot inside a label is `\.`, a byte that does not print is `\DDD` (RFC 1035 5.1, RFC 4343 2.1); the root is `.`.

    Args:
        name: The uncompressed name, such as `Question.name`.
    """
    labels = []
    offset = 0
    while length := name[offset]:
        labels.append(name[offset + 1 : offset + 1 + length].decode("latin-1").translate(_ESCAPES))
        offset += length + 1
    return ".".join(labels) + "."
