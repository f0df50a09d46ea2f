"""From frames to ports: every link type, every length, and nothing that hostile bytes can break."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.hop import endpoint
from agent.wire.packet import (
    MAX_EXTENSIONS,
    TCP,
    UDP,
    V4_MAPPED,
    Cooked,
    Flaw,
    Flaws,
    Fragment,
    Ip,
    LinkType,
    TcpFlag,
    cooked_header,
    network_layer,
    parse_ip,
    parse_tcp,
    parse_udp,
    skip_extensions,
)

CLIENT, SERVER = bytes([172, 20, 2, 25]), bytes([10, 96, 0, 10])
CLIENT6, SERVER6 = ip_address("2001:db8::25").packed, ip_address("2001:db8::53").packed
MACS = bytes(12)
SIZES = [0, 1, 255, 256, 263, 512, 513, 1232, 4096, 65507]


def ipv4(
    payload: bytes, protocol: int = UDP, *, options: bytes = b"", frag: int = 0, total: int | None = None
) -> bytes:
    header = 20 + len(options)
    length = header + len(payload) if total is None else total
    fixed = struct.pack("!BBHHHBBH", 0x40 | header // 4, 0, length, 0x1234, frag, 64, protocol, 0)
    return fixed + CLIENT + SERVER + options + payload


def ipv6(payload: bytes, protocol: int = UDP, *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("!IHBB", 6 << 28, size, protocol, 64) + CLIENT6 + SERVER6 + payload


def udp(payload: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("!HHHH", 42710, 53, 8 + len(payload) if length is None else length, 0) + payload


def tcp(payload: bytes, *, options: bytes = b"", words: int | None = None) -> bytes:
    offset = 5 + len(options) // 4 if words is None else words
    return struct.pack("!HHIIBBHHH", 42710, 53, 7, 2**32 - 1, offset << 4, 0x18, 512, 0, 0) + options + payload


def parsed(packet: bytes) -> Ip:
    flaws = Flaws()
    ip = parse_ip(packet, flaws)
    assert ip is not None, flaws
    assert not flaws
    return ip


def flaw_of(packet: bytes) -> Flaw:
    flaws = Flaws()
    assert parse_ip(packet, flaws) is None
    ((flaw, count),) = flaws.items()
    assert count == 1
    return flaw


PACKET = ipv4(udp(b"question"))
PACKET6 = ipv6(udp(b"question"))


def test_addresses_are_spelled_as_in_hops():
    assert V4_MAPPED == endpoint.V4_MAPPED


@pytest.mark.parametrize("packet", [PACKET, PACKET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(
    ("linktype", "before"),
    [
        (LinkType.ETHERNET, lambda ethertype: MACS + ethertype),
        (LinkType.ETHERNET, lambda ethertype: MACS + b"\x81\x00\x00\x07" + ethertype),
        (LinkType.ETHERNET, lambda ethertype: MACS + b"\x88\xa8\x00\x07\x81\x00\x00\x08" + ethertype),
        (LinkType.LINUX_SLL, lambda ethertype: b"\x00\x04\x00\x01\x00\x06" + bytes(8) + ethertype),
        (LinkType.LINUX_SLL2, lambda ethertype: ethertype + bytes(18)),
        (LinkType.RAW, lambda _: b""),
    ],
    ids=["ethernet", "vlan", "qinq", "sll", "sll2", "raw"],
)
def test_the_packet_is_found_in_the_frame(linktype, before, packet):
    ethertype = b"\x08\x00" if packet is PACKET else b"\x86\xdd"
    flaws = Flaws()
    assert network_layer(linktype, before(ethertype) + packet, flaws) == packet
    assert not flaws


@pytest.mark.parametrize(
    ("linktype", "family", "packet"),
    [
        (LinkType.IPV4, b"", PACKET),
        (LinkType.IPV6, b"", PACKET6),
        (LinkType.NULL, b"\x02\x00\x00\x00", PACKET),
        (LinkType.NULL, b"\x00\x00\x00\x02", PACKET),
        (LinkType.NULL, b"\x1e\x00\x00\x00", PACKET6),
        (LinkType.LOOP, b"\x00\x00\x00\x18", PACKET6),
    ],
)
def test_the_packet_is_found_behind_an_address_family(linktype, family, packet):
    assert network_layer(linktype, family + packet, Flaws()) == packet


@pytest.mark.parametrize(
    ("linktype", "frame", "flaw"),
    [
        (147, PACKET, Flaw.LINK_TYPE),
        (LinkType.ETHERNET, MACS + b"\x08\x06" + bytes(28), Flaw.NOT_IP),
        (LinkType.ETHERNET, MACS + b"\x81\x00\x00\x07", Flaw.NOT_IP),
        (LinkType.ETHERNET, MACS + b"\x81\x00\x00\x07" * 5 + b"\x08\x00" + PACKET, Flaw.NOT_IP),
        (LinkType.ETHERNET, MACS + b"\x08", Flaw.CUT),
        (LinkType.NULL, b"\x02\x00\x00", Flaw.CUT),
        (LinkType.NULL, b"\x07\x00\x00\x00", Flaw.NOT_IP),
    ],
)
def test_a_frame_without_ip_says_why(linktype, frame, flaw):
    flaws = Flaws()
    assert network_layer(linktype, frame, flaws) is None
    assert flaws == {flaw: 1}


def test_a_cooked_frame_tells_interface_and_direction():
    sll2 = struct.pack("!HHIHBB", 0x0800, 0, 70000, 1, 4, 6) + bytes(8)
    assert cooked_header(LinkType.LINUX_SLL2, sll2 + PACKET) == Cooked(70000, outgoing=True)
    assert cooked_header(LinkType.LINUX_SLL2, sll2[:19]) is None
    sll = struct.pack("!HHH8xH", 0, 1, 6, 0x0800)
    assert cooked_header(LinkType.LINUX_SLL, sll + PACKET) == Cooked(0, outgoing=False)
    assert cooked_header(LinkType.LINUX_SLL, sll[:15]) is None
    assert cooked_header(LinkType.ETHERNET, MACS + b"\x08\x00" + PACKET) is None


def test_an_ipv4_packet_shows_addresses_protocol_and_payload():
    ip = parsed(PACKET + b"padding of Ethernet")
    assert ip == Ip(
        4, V4_MAPPED + CLIENT, V4_MAPPED + SERVER, UDP, udp(b"question"), 16, 36, None, ip.ttl, ip.identification
    )


def test_an_ipv6_packet_shows_addresses_protocol_and_payload():
    ip = parsed(PACKET6 + b"padding of Ethernet")
    assert ip == Ip(6, CLIENT6, SERVER6, UDP, udp(b"question"), 16, 56, None, ip.ttl)


def test_ipv4_options_are_not_payload():
    assert parsed(ipv4(b"payload", options=bytes(40))).payload == b"payload"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrap", [ipv4, ipv6])
def test_no_length_is_narrower_than_its_field(wrap, size):
    payload = bytes(size)
    datagram = parse_udp(parsed(wrap(udp(payload))), Flaws())
    assert datagram is not None
    assert (datagram.sport, datagram.dport, datagram.payload_bytes) == (42710, 53, size)
    assert datagram.payload == payload


@pytest.mark.parametrize("total", [255, 256, 263, 512, 513, 1232, 4096, 65535])
def test_an_ipv4_total_length_is_read_in_full(total):
    ip = parsed(ipv4(bytes(total - 20)))
    assert (ip.total_bytes, ip.payload_bytes, len(ip.payload)) == (total, total - 20, total - 20)


def test_an_ipv6_payload_of_65535_bytes_is_read_in_full():
    ip = parsed(ipv6(bytes(65535)))
    assert (ip.total_bytes, ip.payload_bytes, len(ip.payload)) == (65575, 65535, 65535)


@pytest.mark.parametrize("wrap", [ipv4, ipv6])
def test_a_cut_payload_keeps_its_true_length(wrap):
    whole = wrap(udp(bytes(500)))
    ip = parsed(whole[: len(whole) - 400])
    assert (ip.payload_bytes, len(ip.payload)) == (508, 108)
    datagram = parse_udp(ip, Flaws())
    assert datagram is not None
    assert (datagram.payload_bytes, len(datagram.payload)) == (500, 100)


@pytest.mark.parametrize(
    ("packet", "flaw"),
    [
        (b"", Flaw.CUT),
        (PACKET[:19], Flaw.CUT),
        (ipv4(b"", options=bytes(8))[:27], Flaw.CUT),
        (PACKET6[:39], Flaw.CUT),
        (b"\x50" + PACKET[1:], Flaw.NOT_IP),
        (b"\x44" + PACKET[1:], Flaw.LENGTHS),
        (ipv4(b"", total=19), Flaw.LENGTHS),
        (ipv4(b"", total=0), Flaw.JUMBOGRAM),
        (ipv6(b"", length=0), Flaw.JUMBOGRAM),
    ],
)
def test_a_malformed_packet_says_why(packet, flaw):
    assert flaw_of(packet) == flaw


@pytest.mark.parametrize(
    ("field", "fragment"),
    [
        (0x2000, Fragment(0x1234, 0, more=True)),
        (0x2001, Fragment(0x1234, 8, more=True)),
        (0x1FFF, Fragment(0x1234, 65528, more=False)),
        (0x4000, None),
        (0, None),
    ],
)
def test_an_ipv4_fragment_tells_its_place(field, fragment):
    assert parsed(ipv4(b"payload.", frag=field)).fragment == fragment


def fragment_header(protocol: int, offset_and_more: int) -> bytes:
    return struct.pack("!BBHI", protocol, 0, offset_and_more, 0xDEADBEEF)


def test_ipv6_extension_headers_are_walked():
    chain = b"\x2b\x00" + bytes(6)  # hop-by-hop, then routing
    chain += b"\x3c\x02" + bytes(22)  # 24 bytes of routing, then destination options
    chain += b"\x33\x01" + bytes(14)  # 16 bytes, then authentication
    chain += bytes([UDP, 4]) + bytes(22)  # 24 bytes
    ip = parsed(ipv6(chain + udp(b"question"), 0))
    assert (ip.protocol, ip.payload, ip.payload_bytes, ip.fragment) == (UDP, udp(b"question"), 16, None)
    assert ip.total_bytes == 40 + len(chain) + 16


def test_an_ipv6_fragment_tells_its_place_and_is_not_walked_further():
    ip = parsed(ipv6(fragment_header(60, 1 << 3 | 1) + b"anything", 44))
    assert (ip.protocol, ip.payload, ip.payload_bytes) == (60, b"anything", 8)
    assert ip.fragment == Fragment(0xDEADBEEF, 8, more=True)


def test_the_first_ipv6_fragment_can_be_walked_for_its_ports():
    options = bytes([UDP, 0]) + bytes(6)
    ip = skip_extensions(parsed(ipv6(fragment_header(60, 1) + options + udp(b"question"), 44)), Flaws())
    assert ip is not None
    assert ip.fragment == Fragment(0xDEADBEEF, 0, more=True)
    datagram = parse_udp(ip, Flaws())
    assert datagram is not None
    assert datagram.dport == 53


def test_an_atomic_fragment_is_a_whole_packet():
    ip = parsed(ipv6(fragment_header(UDP, 0) + udp(b"question"), 44))
    assert (ip.protocol, ip.payload, ip.fragment) == (UDP, udp(b"question"), None)


def test_too_many_extension_headers_are_refused():
    header = b"\x3c\x00" + bytes(6)
    last = bytes([UDP, 0]) + bytes(6)
    assert parsed(ipv6(header * (MAX_EXTENSIONS - 1) + last + udp(b""), 60)).payload == udp(b"")
    assert flaw_of(ipv6(header * MAX_EXTENSIONS + last + udp(b""), 60)) == Flaw.EXTENSIONS


def test_a_cut_extension_header_is_told_from_a_lying_one():
    assert flaw_of(ipv6(b"\x11\x01" + bytes(14), 60)[:50]) == Flaw.CUT
    assert flaw_of(ipv6(b"\x11\x01" + bytes(14), 60)[:41]) == Flaw.CUT
    assert flaw_of(ipv6(b"\x11\x02" + bytes(14), 60)) == Flaw.LENGTHS
    assert flaw_of(ipv6(b"\x11", 60)) == Flaw.LENGTHS


@pytest.mark.parametrize(
    ("packet", "flaw"),
    [
        (ipv4(udp(b"", length=7)), Flaw.LENGTHS),
        (ipv4(udp(b"abc", length=12)), Flaw.LENGTHS),
        (ipv4(b"1234567"), Flaw.LENGTHS),
        (PACKET[:27], Flaw.CUT),
        (ipv4(udp(b"question"), frag=1), Flaw.FRAGMENT),
    ],
)
def test_a_malformed_udp_header_says_why(packet, flaw):
    flaws = Flaws()
    assert parse_udp(parsed(packet), flaws) is None
    assert flaws == {flaw: 1}


def test_a_first_fragment_has_ports_and_the_datagrams_length():
    datagram = parse_udp(parsed(ipv4(udp(b"question", length=3008), frag=0x2000)), Flaws())
    assert datagram is not None
    assert (datagram.dport, datagram.payload, datagram.payload_bytes) == (53, b"question", 3000)


@pytest.mark.parametrize("packet", [ipv4(udp(b"question"), total=0), ipv6(udp(b"question"), length=0)])
def test_a_length_of_zero_is_filled_in_by_segmentation_offload_so_the_frame_tells_it(packet):
    whole, cut = parse_ip(packet, Flaws()), parse_ip(packet, Flaws(), 1000)
    assert whole is not None
    assert cut is not None
    assert (whole.payload, whole.payload_bytes, cut.payload_bytes) == (udp(b"question"), 16, 1016)


def test_a_udp_length_of_zero_is_that_of_the_packet():
    datagram = parse_udp(parsed(ipv4(udp(b"question", length=0))), Flaws())
    assert datagram is not None
    assert (datagram.payload, datagram.payload_bytes) == (b"question", 8)


def test_bytes_behind_the_udp_length_are_not_payload():
    datagram = parse_udp(parsed(ipv4(udp(b"question", length=8) + b"surplus")), Flaws())
    assert datagram is not None
    assert datagram.payload == b""


@pytest.mark.parametrize("size", [0, 1, 255, 256, 263, 512, 513, 1232, 4096, 65483])
def test_a_tcp_segment_shows_numbers_flags_and_payload(size):
    segment = parse_tcp(parsed(ipv4(tcp(bytes(size), options=bytes(12)), TCP)), Flaws())
    assert segment == (42710, 53, 7, 2**32 - 1, TcpFlag.PSH | TcpFlag.ACK, bytes(size), size)


def test_a_cut_tcp_payload_keeps_its_true_length():
    segment = parse_tcp(parsed(ipv4(tcp(bytes(100)), TCP)[:60]), Flaws())
    assert segment is not None
    assert (len(segment.payload), segment.payload_bytes) == (20, 100)


@pytest.mark.parametrize(
    ("packet", "flaw"),
    [
        (ipv4(tcp(b"")[:19], TCP), Flaw.LENGTHS),
        (ipv4(tcp(b""), TCP)[:39], Flaw.CUT),
        (ipv4(tcp(b"", words=4), TCP), Flaw.LENGTHS),
        (ipv4(tcp(b"", words=6), TCP), Flaw.LENGTHS),
        (ipv4(tcp(b"", options=bytes(8)), TCP)[:44], Flaw.CUT),
        (ipv4(tcp(b""), TCP, frag=1), Flaw.FRAGMENT),
    ],
)
def test_a_malformed_tcp_header_says_why(packet, flaw):
    flaws = Flaws()
    assert parse_tcp(parsed(packet), flaws) is None
    assert flaws == {flaw: 1}


def read_everything(linktype: int, frame: bytes) -> None:
    """Whatever is read must stay inside the bytes that are there."""
    flaws = Flaws()
    cooked_header(linktype, frame)
    packet = network_layer(linktype, frame, flaws)
    ip = parse_ip(packet, flaws) if packet is not None else None
    if ip is None:
        assert flaws.total() == 1
        return
    assert len(ip.saddr) == len(ip.daddr) == 16
    assert len(ip.payload) <= ip.payload_bytes <= ip.total_bytes
    for upper in (parse_udp(ip, flaws), parse_tcp(ip, flaws), skip_extensions(ip, flaws)):
        assert upper is None or len(upper.payload) <= upper.payload_bytes


linktypes = st.sampled_from([*LinkType, 147, -1])
plausible = st.sampled_from([PACKET, PACKET6, ipv4(tcp(b"x"), TCP), ipv6(fragment_header(0, 1) + bytes(64), 44)])


@given(linktypes, st.binary(max_size=200))
def test_random_bytes_never_raise(linktype, frame):
    read_everything(linktype, frame)


@given(st.sampled_from([b"\x45", b"\x4f", b"\x60"]), st.binary(min_size=20, max_size=200))
def test_random_packets_never_raise(version, rest):
    read_everything(LinkType.RAW, version + rest)


@given(plausible, st.data())
def test_damaged_packets_never_raise(packet, data):
    at = data.draw(st.integers(0, len(packet) - 1))
    byte = data.draw(st.integers(0, 255))
    read_everything(LinkType.RAW, packet[:at] + bytes([byte]) + packet[at + 1 :])


@pytest.mark.parametrize("frame", [MACS + b"\x81\x00\x00\x07\x08\x00" + PACKET, MACS + b"\x86\xdd" + PACKET6])
def test_a_frame_cut_at_any_byte_never_raises(frame):
    for end in range(len(frame)):
        read_everything(LinkType.ETHERNET, frame[:end])
