"""Capture files: frames from pcap and pcapng, packets to pcapng.

Reading is streaming, from anything that has `read`, standard input included, with one block in memory at a time. A
file is hostile input like the packets in it: what is wrong with it is a `PcapError`, after all frames before that
place. The pcap format: draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from agent.capturefile.frames import MAX_FRAME_BYTES, MAX_TS_NS, SECOND_NS, Frame, PcapError, Source
from agent.capturefile.pcapng import SECTION_MAGIC, PcapngWriter, read_pcapng

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_FRAME_BYTES", "MAX_TS_NS", "Frame", "PcapError", "PcapngWriter", "read_frames"]

_MAGIC_BYTES = 4
_PACKED = {
    b"\x1f\x8b": "zcat",
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"\xfd7zX": "xzcat",
    b"BZh": "bzcat",
    b"\x04\x22\x4d\x18": "lz4cat",
}


def read_frames(file: BinaryIO) -> Iterator[Frame]:
    """Read a pcap or pcapng file to its end.

    Raises:
        PcapError: While iterating: the file is foreign, damaged or cut. All frames before that place were yielded.
        OSError: While iterating: the file cannot be read.
    """
    source = Source(file)
    if not source.has(_MAGIC_BYTES):
        raise PcapError(0, "the file is too short to be a capture" if source.ahead() else "the file is empty")
    magic = source.window[:_MAGIC_BYTES]
    if magic == SECTION_MAGIC:
        yield from read_pcapng(source)
    elif variant := _CLASSIC.get(magic):
        yield from _read_classic(source, variant)
    else:
        raise PcapError(0, _foreign(magic))


def _foreign(magic: bytes) -> str:
    """What to say of a file that begins like this."""
    for start, tool in _PACKED.items():
        if magic.startswith(start):
            return f"the file is compressed; unpack it first, for example with `{tool}`"
    return f"the file begins with {magic.hex(' ')}: it is neither pcap nor pcapng"


class _Classic(NamedTuple):
    """One of the variants that the magic number tells apart."""

    order: str
    nanoseconds_per_unit: int
    header_bytes: int
    """Of each packet: 24 in files of Alexey Kuznetsov's modified libpcap, which add the interface and more."""


_CLASSIC = {
    struct.pack(order + "I", magic): _Classic(order, unit, header)
    for magic, unit, header in ((0xA1B2C3D4, 1000, 16), (0xA1B23C4D, 1, 16), (0xA1B2CD34, 1000, 24))
    for order in "<>"
}
_CLASSIC_HEADER_BYTES = 24
_CLASSIC_MAJOR = 2


def _read_classic(source: Source, variant: _Classic) -> Iterator[Frame]:
    """Frames of a pcap file (draft-ietf-opsawg-pcap 5)."""
    linktype = _read_classic_header(source, variant)
    captured_length = struct.Struct(variant.order + "8xI").unpack_from
    while source.has(variant.header_bytes):
        (captured,) = captured_length(source.window, source.at)
        if captured > MAX_FRAME_BYTES:
            raise PcapError(source.offset, f"the file is damaged: a packet cannot have {captured} bytes")
        source.need(variant.header_bytes + captured, "a packet")
        yield from _packets_in_window(source, variant, linktype)
    if source.ahead():
        source.need(variant.header_bytes, "the header of a packet")


def _packets_in_window(source: Source, variant: _Classic, linktype: int) -> Iterator[Frame]:
    """Frames of the packets that lie in the window as a whole: the fast path of replay, half a microsecond a frame."""
    order, unit, header = variant
    unpack, make = struct.Struct(order + "IIII").unpack_from, Frame._make
    window, at = source.window, source.at
    last = len(window) - header
    while at <= last:
        seconds, fraction, captured, original = unpack(window, at)
        start = at + header
        end = start + captured
        if end > len(window) or captured > MAX_FRAME_BYTES:
            break
        yield make((seconds * SECOND_NS + fraction * unit, 0, "", linktype, window[start:end], original, (), None))
        at = end
    source.at = at


def _read_classic_header(source: Source, variant: _Classic) -> int:
    """The link type; the file's header is then behind us."""
    source.need(_CLASSIC_HEADER_BYTES, "its header")
    major, minor, linktype = struct.unpack_from(variant.order + "4xHH12xI", source.window)
    if major != _CLASSIC_MAJOR:
        raise PcapError(0, f"the file is pcap version {major}.{minor}; only version 2 is known")
    source.at = _CLASSIC_HEADER_BYTES
    # The upper half says whether frames end with a checksum (draft-ietf-opsawg-pcap 4).
    return int(linktype) & 0xFFFF
