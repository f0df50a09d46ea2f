"""Capture files of others: what we read, and that no damage is worse than a sentence."""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.capturefile.pcap import MAX_FRAME_BYTES, MAX_TS_NS, Frame, PcapError, read_frames
from agent.wire.packet import TCP, UDP, Flaws, LinkType, network_layer, parse_ip, parse_tcp, parse_udp

RECORDING = Path(__file__).parents[2] / "fixtures" / "coredns-dnstap" / "coredns193-lo.pcap"
NOW = 1763700000_352334704
# A query for example.org A as tcpdump would see it: IPv4, UDP, from port 42710 to 53.
QUERY = bytes.fromhex(
    "4500003900010000401100000a0000010a000002"  # IPv4
    "a6d6003500250000"  # UDP
    "8da301000001000000000000076578616d706c65036f72670000010001"
)


def frames(raw: bytes) -> list[Frame]:
    return list(read_frames(io.BytesIO(raw)))


def frames_until_error(raw: bytes) -> tuple[list[Frame], PcapError | None]:
    """All frames before the error, if there is one."""
    read = []
    source = read_frames(io.BytesIO(raw))
    try:
        while (frame := next(source, None)) is not None:
            read.append(frame)
    except PcapError as error:
        return read, error
    return read, None


def frames_and_error(raw: bytes) -> tuple[list[Frame], PcapError]:
    """All frames before the error, which must come."""
    read, error = frames_until_error(raw)
    assert error is not None
    return read, error


# Classic pcap.


def classic(*packets: bytes, order: str = "<", magic: int = 0xA1B2C3D4, linktype: int = LinkType.RAW) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, linktype) + b"".join(packets)


def packet(data: bytes, seconds: int = 1, fraction: int = 2, order: str = "<", original: int | None = None) -> bytes:
    length = len(data) if original is None else original
    return struct.pack(order + "IIII", seconds, fraction, len(data), length) + data


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)], ids=["micro", "nano"])
def test_pcap_is_read_in_both_byte_orders_and_units(order, magic, unit):
    packets = packet(b"one", 2**32 - 1, 999_999, order), packet(b"", 0, 7, order, original=1500)
    assert frames(classic(*packets, order=order, magic=magic)) == [
        Frame((2**32 - 1) * 10**9 + 999_999 * unit, 0, "", LinkType.RAW, b"one", 3, ()),
        Frame(7 * unit, 0, "", LinkType.RAW, b"", 1500, ()),
    ]


def test_pcap_of_the_modified_libpcap_is_read():
    modified = struct.pack("<IIIIIHBx", 1, 2, 3, 3, 4, 0x0800, 0) + b"one"
    assert [frame.data for frame in frames(classic(modified, modified, magic=0xA1B2CD34))] == [b"one", b"one"]


def test_the_checksum_bits_are_not_the_link_type():
    assert frames(classic(packet(b"x"), linktype=0x14000000 | LinkType.ETHERNET))[0].linktype == LinkType.ETHERNET


def test_packets_larger_than_a_chunk_are_read():
    sizes = [100_000, 1, MAX_FRAME_BYTES, 0, 200_000]
    assert [len(frame.data) for frame in frames(classic(*(packet(bytes(size)) for size in sizes)))] == sizes


def test_an_impossible_length_ends_the_frames_with_its_place():
    read, error = frames_and_error(classic(packet(b"good"), packet(b"", original=0)[:8] + b"\xff" * 8 + bytes(99)))
    assert [frame.data for frame in read] == [b"good"]
    assert (error.offset, error.what) == (44, "the file is damaged: a packet cannot have 4294967295 bytes")
    assert str(error) == f"{error.what} (byte 44 of the file)"


# pcapng, as others write it.


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) & 3)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) & 3)


def section(order: str = "<", major: int = 1) -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, major, 0, -1), order)


def interface(*options: bytes, order: str = "<", linktype: int = LinkType.ETHERNET, snaplen: int = 0) -> bytes:
    return block(1, struct.pack(order + "HHI", linktype, 0, snaplen) + b"".join(options), order)


def enhanced(data: bytes, *options: bytes, order: str = "<", number: int = 0, ticks: int = 5) -> bytes:
    fixed = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) + 1)
    return block(6, fixed + data + bytes(-len(data) & 3) + b"".join(options), order)


def simple(data: bytes, original: int, order: str = "<") -> bytes:
    return block(3, struct.pack(order + "I", original) + data, order)


def old(data: bytes, *options: bytes, order: str = "<", number: int = 0) -> bytes:
    fixed = struct.pack(order + "HHIIII", number, 9, 0, 5, len(data), len(data))
    return block(2, fixed + data + bytes(-len(data) & 3) + b"".join(options), order)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_every_packet_block_is_read_in_both_byte_orders(order):
    file = (
        section(order)
        + interface(option(2, b"eth0", order), order=order, snaplen=4)
        + enhanced(b"12345", option(1, b"why", order), option(2, struct.pack(order + "I", 0x2D), order), order=order)
        + block(5, bytes(16), order)  # statistics: skipped
        + old(b"123", option(1, "größer".encode(), order), option(1, b"again", order), order=order)
        + block(0x80000BAD, b"unknown", order)
        + simple(b"12345678", 8, order)
        + simple(b"12", 2, order)
    )
    assert frames(file) == [
        Frame(5000, 0, "eth0", LinkType.ETHERNET, b"12345", 6, ("why",), outbound=False),
        Frame(5000, 0, "eth0", LinkType.ETHERNET, b"123", 3, ("größer", "again")),
        Frame(0, 0, "eth0", LinkType.ETHERNET, b"1234", 8, ()),
        Frame(0, 0, "eth0", LinkType.ETHERNET, b"12", 2, ()),
    ]


@pytest.mark.parametrize(
    ("resolution", "ticks", "ts_ns"),
    [
        (6, NOW // 1000, NOW // 1000 * 1000),
        (9, NOW, NOW),
        (3, 12, 12_000_000),
        (0, 7, 7 * 10**9),
        (12, 5999, 5),
        (127, 2**64 - 1, 0),
        (0x80 | 10, 1536, 1_500_000_000),
        (0x80 | 40, 3 << 39, 1_500_000_000),
        (0xFF, 2**64 - 1, 0),
    ],
)
def test_every_resolution_gives_nanoseconds(resolution, ticks, ts_ns):
    file = section() + interface(option(9, bytes([resolution]))) + enhanced(b"", ticks=ticks)
    assert frames(file)[0].ts_ns == ts_ns


def test_the_time_offset_is_added_even_if_it_is_negative():
    shifted = [interface(option(14, struct.pack("<q", seconds))) for seconds in (10**9, -1)]
    file = section() + b"".join(shifted) + enhanced(b"") + enhanced(b"", number=1, ticks=1_000_001)
    assert [frame.ts_ns for frame in frames(file)] == [10**18 + 5000, 1000]


@pytest.mark.parametrize(
    ("offset_seconds", "resolution", "ticks"),
    [(-1, 6, 5), (2**63 - 1, 6, 5), (0, 0, 2**64 - 1)],
    ids=["before", "offset", "after"],
)
def test_impossible_times_are_refused(offset_seconds, resolution, ticks):
    options = option(14, struct.pack("<q", offset_seconds)) + option(9, bytes([resolution]))
    read, error = frames_and_error(
        section() + interface() + enhanced(b"") + interface(options) + enhanced(b"", number=1, ticks=ticks)
    )
    assert len(read) == 1
    assert "time is not between 1970 and 2262" in error.what


def test_each_section_has_its_own_byte_order_and_interfaces():
    file = section() + interface(option(2, b"eth0")) + interface(option(2, b"eth1")) + enhanced(b"a", number=1)
    file += (
        section(">") + interface(option(2, b"lo", ">"), order=">", linktype=LinkType.RAW) + enhanced(b"b", order=">")
    )
    assert [frame[1:5] for frame in frames(file)] == [
        (1, "eth1", LinkType.ETHERNET, b"a"),
        (0, "lo", LinkType.RAW, b"b"),
    ]
    _, error = frames_and_error(file + enhanced(b"c", order=">", number=1))
    assert error.offset == len(file)


def test_text_that_is_not_utf8_is_shown_as_escapes():
    file = section() + interface(option(2, b"eth0\0\0")) + enhanced(b"", option(1, b"\xff\x00a"))
    (frame,) = frames(file)
    assert (frame.interface_name, frame.comments) == ("eth0", ("\\xff\0a",))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (struct.pack("<III", 6, 13, 13), "a block cannot have 13 bytes"),
        (struct.pack("<III", 6, 8, 8), "a block cannot have 8 bytes"),
        (struct.pack("<III", 6, 1 << 25, 0), "a block cannot have 33554432 bytes"),
        (struct.pack("<III", 99, 12, 16), "a block's two lengths differ"),
        (enhanced(b"", number=1), "a packet of interface 1, which is not described"),
        (block(6, bytes(16)), "block is too short"),
        (block(2, bytes(16)), "block is too short"),
        (block(3, b""), "block is too short"),
        (block(1, bytes(4)), "block is too short"),
        (block(6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + bytes(8)), "a packet is longer than its block"),
        (enhanced(b"", struct.pack("<HH", 1, 9) + bytes(8)), "an option is longer than its block"),
        (section(major=2), "pcapng version 2.0"),
        (block(0x0A0D0D0A, bytes(16)), "without its byte-order magic"),
        (block(0x0A0D0D0A, b"\x4d\x3c\x2b\x1a"), "a section header is too short"),
    ],
    ids=range(14),
)
def test_a_damaged_block_ends_the_frames_with_its_place(bad, what):
    good = section() + interface() + enhanced(b"good")
    read, error = frames_and_error(good + bad + enhanced(b"never"))
    assert [frame.data for frame in read] == [b"good"]
    assert error.offset == len(good)
    assert what in error.what


def test_an_endless_list_of_interfaces_is_refused():
    _, error = frames_and_error(section() + interface() * 65537)
    assert error.what == "the file describes more than 65536 interfaces"


# Foreign and cut files.


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "the file is empty"),
        (b"\xd4\xc3", "the file is too short to be a capture"),
        (gzip.compress(b"x"), "the file is compressed; unpack it first, for example with `zcat`"),
        (b"\x28\xb5\x2f\xfd----", "the file is compressed; unpack it first, for example with `zstdcat`"),
        (b'{"Time":"2026"}', "the file begins with 7b 22 54 69: it is neither pcap nor pcapng"),
        (b"\xd4\xc3\xb2\xa1\x09\x00\x00\x00" + bytes(16), "the file is pcap version 9.0; only version 2 is known"),
    ],
    ids=["empty", "short", "gzip", "zstd", "json", "version"],
)
def test_a_foreign_file_is_refused_with_a_clear_sentence(raw, what):
    read, error = frames_and_error(raw)
    assert (read, error.offset, error.what) == ([], 0, what)


CLASSIC_FILE = classic(packet(QUERY), packet(b""), packet(b"x"))
PCAPNG_FILE = section() + interface(option(2, b"eth0")) + enhanced(QUERY, option(1, b"why")) + simple(b"1", 1)


@pytest.mark.parametrize("file", [CLASSIC_FILE, PCAPNG_FILE], ids=["pcap", "pcapng"])
def test_a_file_cut_at_any_byte_gives_all_whole_frames_first(file):
    whole = frames(file)
    for end in range(len(file)):
        read, error = frames_until_error(file[:end])
        assert read == whole[: len(read)]
        assert error is None or error.offset <= end
    assert len(frames_and_error(file[:-1])[0]) == len(whole) - 1


@given(st.sampled_from([b"", CLASSIC_FILE[:24], CLASSIC_FILE, section(), section() + interface()]), st.binary())
def test_random_bytes_are_never_worse_than_a_pcap_error(start, rest):
    _, error = frames_until_error(start + rest)
    assert error is None or 0 <= error.offset <= len(start + rest)


@given(st.sampled_from([CLASSIC_FILE, PCAPNG_FILE]), st.data())
def test_damage_is_never_worse_than_a_pcap_error(file, data):
    at = data.draw(st.integers(0, len(file) - 1))
    damaged = file[:at] + data.draw(st.binary(min_size=1, max_size=8)) + file[at + 1 :]
    read, error = frames_until_error(damaged)
    assert error is None or 0 <= error.offset <= len(damaged)
    assert all(0 <= frame.ts_ns <= MAX_TS_NS for frame in read)


class Dribble(io.RawIOBase):
    """A pipe that gives one byte at a time and cannot seek."""

    def __init__(self, raw: bytes) -> None:
        self._bytes = iter(raw)

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        return bytes([byte]) if (byte := next(self._bytes, None)) is not None else b""


@pytest.mark.parametrize("file", [CLASSIC_FILE, PCAPNG_FILE], ids=["pcap", "pcapng"])
def test_a_slow_pipe_gives_the_same_frames(file):
    assert list(read_frames(Dribble(file))) == frames(file)


def test_frames_come_out_of_a_pipe_before_it_is_closed():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        sink.write(CLASSIC_FILE)
        sink.flush()
        assert next(read_frames(source)).data == QUERY


# A recording.


def ports(frame: Frame, flaws: Flaws) -> tuple[int, int, int] | None:
    network = network_layer(frame.linktype, frame.data, flaws)
    ip = parse_ip(network, flaws) if network is not None else None
    if ip is None:
        return None
    upper = parse_udp(ip, flaws) if ip.protocol == UDP else parse_tcp(ip, flaws)
    return (ip.protocol, upper.sport, upper.dport) if upper else None


def test_the_recording_of_coredns_is_read_in_full():
    flaws = Flaws()
    with RECORDING.open("rb") as file:
        seen = [ports(frame, flaws) for frame in read_frames(file)]
    counts = Counter((one[0], port) for one in seen if one for port in one[1:] if port < 3000)
    assert len(seen) == 139
    assert not flaws
    assert counts == {
        (UDP, 1053): 31,
        (UDP, 2053): 6,
        (UDP, 2054): 50,
        (UDP, 2055): 4,
        (UDP, 2056): 2,
        (UDP, 2057): 4,
        (TCP, 2055): 23,
        (TCP, 2057): 19,
    }
