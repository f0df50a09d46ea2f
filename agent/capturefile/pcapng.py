"""pcapng: the format that can say which interface a packet was seen at, and why it was lost.

Format: draft-ietf-opsawg-pcapng, whose sections the numbers in parentheses name.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from agent import __version__
from agent.capturefile.frames import MAX_FRAME_BYTES, MAX_TS_NS, SECOND_NS, Frame, PcapError, Source
from agent.wire.packet import LinkType

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BLOCK_BYTES = 16 * 1024 * 1024
"""As in Wireshark."""
MAX_INTERFACES = 65536
MAX_NAME_BYTES = 256
"""Of an interface's name, so that a hostile file cannot fill memory with them; Linux allows 15."""

SECTION_MAGIC = b"\n\r\r\n"
_SECTION = int.from_bytes(SECTION_MAGIC, "big")
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_BYTE_ORDERS = {struct.pack(order + "I", _BYTE_ORDER_MAGIC): order for order in "<>"}
_MAJOR = 1

# Bytes: type and length, the same with the second length, and the fixed fields of each kind of block.
_HEAD_BYTES = 8
_BLOCK_BYTES = 12
_SECTION_BYTES = 16
_INTERFACE_BYTES = 8
_PACKET_BYTES = 20

_COMMENT = 1
_NAME, _DESCRIPTION, _RESOLUTION, _TIME_OFFSET = 2, 3, 9, 14
_PACKET_FLAGS = 2
_HARDWARE, _SYSTEM, _APPLICATION = 2, 3, 4
_INBOUND, _OUTBOUND = 1, 2


class _Block(NamedTuple):
    """One block, without its type and lengths."""

    offset: int
    order: str
    kind: int
    body: bytes


class _Interface(NamedTuple):
    """What the interface description block says (draft-ietf-opsawg-pcapng 4.2)."""

    name: str
    linktype: int
    snaplen: int
    ns_numerator: int
    """Nanoseconds of one unit of time, as a fraction."""
    ns_denominator: int
    offset_ns: int


def read_pcapng(source: Source) -> Iterator[Frame]:
    """Frames of a pcapng file, which may have several sections, each with a byte order and interfaces of its own."""
    section = None
    for block in _blocks(source):
        if block.kind == _SECTION or section is None:
            section = _Section(block)
        elif read := section.readers.get(block.kind):
            yield read(block)
        elif block.kind == _INTERFACE:
            section.add_interface(block)


def _blocks(source: Source) -> Iterator[_Block]:
    """All blocks of the file (draft-ietf-opsawg-pcapng 3.1)."""
    head = trailer = struct.Struct("<II")
    order = "<"
    while source.has(_BLOCK_BYTES):
        window, at = source.window, source.at
        if window.startswith(SECTION_MAGIC, at):
            order = _byte_order(source)
            head, trailer = struct.Struct(order + "II"), struct.Struct(order + "I")
        kind, length = head.unpack_from(window, at)
        if length < _BLOCK_BYTES or length & 3 or length > MAX_BLOCK_BYTES:
            raise PcapError(source.offset, f"the file is damaged: a block cannot have {length} bytes")
        source.need(length, "a block")
        window, at = source.window, source.at
        end = at + length - 4
        if trailer.unpack_from(window, end)[0] != length:
            raise PcapError(source.offset, "the file is damaged: a block's two lengths differ")
        yield _Block(source.offset, order, kind, window[at + _HEAD_BYTES : end])
        source.at = end + 4
    if source.ahead():
        source.need(_BLOCK_BYTES, "the header of a block")


def _byte_order(source: Source) -> str:
    """The byte order of the section that begins here."""
    at = source.at + _HEAD_BYTES
    order = _BYTE_ORDERS.get(source.window[at : at + 4])
    if order is None:
        raise PcapError(source.offset, "the file is damaged, or not pcapng: a section without its byte-order magic")
    return order


class _Section:
    """The interfaces of one section, and how to read its packets."""

    def __init__(self, block: _Block) -> None:
        order = block.order
        if len(block.body) < _SECTION_BYTES:
            raise PcapError(block.offset, "the file is damaged: a section header is too short")
        major, minor = struct.unpack_from(order + "4xHH", block.body)
        if major != _MAJOR:
            raise PcapError(block.offset, f"the file is pcapng version {major}.{minor}; only version 1 is known")
        self._interfaces: list[_Interface] = []
        self._enhanced = struct.Struct(order + "IIIII")
        self._old = struct.Struct(order + "HHIIII")
        self._word = struct.Struct(order + "I")
        self.readers = {
            _ENHANCED_PACKET: self._read_enhanced,
            _SIMPLE_PACKET: self._read_simple,
            _OLD_PACKET: self._read_old,
        }

    def add_interface(self, block: _Block) -> None:
        """Take an interface description block (4.2)."""
        if len(block.body) < _INTERFACE_BYTES:
            raise _too_short(block)
        if len(self._interfaces) == MAX_INTERFACES:
            raise PcapError(block.offset, f"the file describes more than {MAX_INTERFACES} interfaces")
        linktype, snaplen = struct.unpack_from(block.order + "H2xI", block.body)
        name, unit, offset_ns = "", Fraction(1000), 0
        for code, value in _options(block, _INTERFACE_BYTES):
            if code == _NAME:
                name = _text(value[:MAX_NAME_BYTES])
            elif code == _RESOLUTION and value:
                unit = _nanoseconds_of_unit(value[0])
            elif code == _TIME_OFFSET and len(value) == 8:  # noqa: PLR2004  a 64-bit number
                offset_ns = struct.unpack(block.order + "q", value)[0] * SECOND_NS
        self._interfaces.append(_Interface(name, linktype, snaplen, unit.numerator, unit.denominator, offset_ns))

    def _read_enhanced(self, block: _Block) -> Frame:
        """Enhanced packet block (4.3)."""
        if len(block.body) < _PACKET_BYTES:
            raise _too_short(block)
        number, high, low, captured, original = self._enhanced.unpack_from(block.body)
        return self._frame(block, number, high << 32 | low, captured, original)

    def _read_old(self, block: _Block) -> Frame:
        """Packet block, obsolete (appendix A)."""
        if len(block.body) < _PACKET_BYTES:
            raise _too_short(block)
        number, _, high, low, captured, original = self._old.unpack_from(block.body)
        return self._frame(block, number, high << 32 | low, captured, original)

    def _read_simple(self, block: _Block) -> Frame:
        """Simple packet block (4.4): of the first interface, without time, cut at its snap length."""
        if len(block.body) < self._word.size:
            raise _too_short(block)
        (original,) = self._word.unpack_from(block.body)
        interface = self._interface(block, 0)
        data = block.body[4 : 4 + min(original, interface.snaplen or original)]
        return Frame(0, 0, interface.name, interface.linktype, data, original, ())

    def _frame(self, block: _Block, number: int, ticks: int, captured: int, original: int) -> Frame:
        """Common part of the two blocks: fixed fields, then the data, then options."""
        end = _PACKET_BYTES + captured
        body = block.body
        if end > len(body):
            raise PcapError(block.offset, "the file is damaged: a packet is longer than its block")
        name, linktype, _, numerator, denominator, offset_ns = self._interface(block, number)
        ts_ns = ticks * numerator // denominator + offset_ns
        if not 0 <= ts_ns <= MAX_TS_NS:
            raise PcapError(block.offset, "the file is damaged: a packet's time is not between 1970 and 2262")
        options = end + (-captured & 3)
        if options >= len(body):
            return Frame(ts_ns, number, name, linktype, body[_PACKET_BYTES:end], original, ())
        comments, outbound = _read_packet_options(block, options)
        return Frame(ts_ns, number, name, linktype, body[_PACKET_BYTES:end], original, comments, outbound)

    def _interface(self, block: _Block, number: int) -> _Interface:
        """The interface that a packet names."""
        if number >= len(self._interfaces):
            raise PcapError(
                block.offset, f"the file is damaged: a packet of interface {number}, which is not described"
            )
        return self._interfaces[number]


def _too_short(block: _Block) -> PcapError:
    """A block has not even its fixed fields."""
    return PcapError(block.offset, "the file is damaged: a packet or interface block is too short")


def _read_packet_options(block: _Block, at: int) -> tuple[tuple[str, ...], bool | None]:
    """Comments and direction (4.3.1: the lowest two bits of the flags)."""
    comments, outbound = [], None
    for code, value in _options(block, at):
        if code == _COMMENT:
            comments.append(_text(value))
        elif code == _PACKET_FLAGS and len(value) == 4:  # noqa: PLR2004  a 32-bit number
            direction = struct.unpack(block.order + "I", value)[0] & 3
            outbound = direction == _OUTBOUND if direction in (_INBOUND, _OUTBOUND) else None
    return tuple(comments), outbound


def _options(block: _Block, at: int) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option from byte `at` of a block's body (3.5)."""
    unpack, body = struct.Struct(block.order + "HH").unpack_from, block.body
    while at + 4 <= len(body):
        code, length = unpack(body, at)
        if not code:
            return
        end = at + 4 + length
        if end > len(body):
            raise PcapError(block.offset, "the file is damaged: an option is longer than its block")
        yield code, body[at + 4 : end]
        at = end + (-length & 3)


def _nanoseconds_of_unit(resolution: int) -> Fraction:
    """What `if_tsresol` stands for: a negative power of 10, or of 2 if the highest bit is set."""
    return Fraction(SECOND_NS, 1 << (resolution & 0x7F) if resolution & 0x80 else 10**resolution)


def _text(value: bytes) -> str:
    """A string of the file; bytes that are not UTF-8 are shown as escapes."""
    return value.rstrip(b"\0").decode("utf-8", "backslashreplace")


_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""What brings a length, by its two lowest bits, to a multiple of 4."""
_END_OF_OPTIONS = bytes(4)
_MAX_OPTION_BYTES = 65535

_pack_word = struct.Struct("<I").pack
_pack_option = struct.Struct("<HH").pack
_pack_packet = struct.Struct("<IIIIIII").pack


class PcapngWriter:
    """Writes one section: packets of several interfaces, in nanoseconds, with comments that Wireshark shows.

    Attributes:
        size: Bytes written so far. To rotate, begin a new writer on a new file.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        snaplen: int = MAX_FRAME_BYTES,
        hardware: str = "",
        system: str = "",
        application: str = f"dnstrail {__version__}",
    ) -> None:
        """Write the section header (4.1).

        Args:
            file: Where to write: a buffered file, because there is one `write` per packet. Closing it is the caller's.
            snaplen: Packets are cut to so many bytes.
            hardware: The machine, for `shb_hardware`.
            system: Its operating system, for `shb_os`.
            application: Who writes, for `shb_userappl`.
        """
        self.size = 0
        self._write = file.write
        self._snaplen = snaplen
        self._interfaces = 0
        options = ((_HARDWARE, hardware), (_SYSTEM, system), (_APPLICATION, application))
        # The minor version is 0, and the section's length is not known before its end.
        self._write_block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, _MAJOR, 0, -1) + _text_options(*options))

    def add_interface(self, name: str, *, linktype: int = LinkType.RAW, description: str = "") -> int:
        """Describe an interface (4.2), at any time before its first packet; returns its number for `write`.

        Wireshark reads any mixture, tcpdump only files whose interfaces share one link type.
        """
        options = _option(_RESOLUTION, b"\x09") + _text_options((_NAME, name), (_DESCRIPTION, description))
        self._write_block(_INTERFACE, struct.pack("<HHI", linktype, 0, self._snaplen) + options)
        self._interfaces += 1
        return self._interfaces - 1

    def write(
        self,
        interface_id: int,
        ts_ns: int,
        data: bytes,
        *,
        original_length: int | None = None,
        comment: str = "",
        outbound: bool | None = None,
    ) -> None:
        """Write one packet (4.3).

        Args:
            interface_id: From `add_interface`.
            ts_ns: Nanoseconds since 1970, UTC, 0 to `MAX_TS_NS`.
            data: The frame, beginning with what the interface's link type says.
            original_length: On the wire, if it is not `len(data)`.
            comment: For people.
            outbound: Whether the interface sent or received it; None if that is not known.

        Raises:
            ValueError: There is no such interface.
        """
        if interface_id >= self._interfaces:
            raise ValueError(f"interface {interface_id} is not described")
        original = len(data) if original_length is None else original_length
        if len(data) > self._snaplen:
            data = data[: self._snaplen]
        captured = len(data)
        options = _packet_options(comment, outbound) if comment or outbound is not None else b""
        padding = _PADDING[captured & 3]
        total = _BLOCK_BYTES + _PACKET_BYTES + captured + len(padding) + len(options)
        head = _pack_packet(_ENHANCED_PACKET, total, interface_id, ts_ns >> 32, ts_ns & 0xFFFFFFFF, captured, original)
        self._write(b"".join((head, data, padding, options, _pack_word(total))))
        self.size += total

    def _write_block(self, kind: int, body: bytes) -> None:
        """Write a block whose body is a multiple of 4 bytes long."""
        length = _pack_word(_BLOCK_BYTES + len(body))
        self._write(_pack_word(kind) + length + body + length)
        self.size += _BLOCK_BYTES + len(body)


# Most comments name a place, and come again with the next packet there.
@lru_cache(maxsize=1024)
def _packet_options(comment: str, outbound: bool | None) -> bytes:  # noqa: FBT001  positional for speed
    """Options of one packet."""
    options = _option(_COMMENT, _encode(comment)) if comment else b""
    if outbound is not None:
        options += _option(_PACKET_FLAGS, _pack_word(_OUTBOUND if outbound else _INBOUND))
    return options + _END_OF_OPTIONS


def _text_options(*texts: tuple[int, str]) -> bytes:
    """Options of a block that has nothing but texts left to say; empty ones are left out."""
    return b"".join(_option(code, _encode(text)) for code, text in texts if text) + _END_OF_OPTIONS


def _option(code: int, value: bytes) -> bytes:
    """One option, padded (3.5)."""
    return _pack_option(code, len(value)) + value + _PADDING[len(value) & 3]


def _encode(text: str) -> bytes:
    """A text as UTF-8, cut between characters if it is too long for an option."""
    value = text.encode("utf-8", "backslashreplace")
    if len(value) <= _MAX_OPTION_BYTES:
        return value
    return value[:_MAX_OPTION_BYTES].decode("utf-8", "ignore").encode()
