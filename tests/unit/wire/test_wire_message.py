"""The hot parser: what it says of good messages, and that bad ones cannot hurt it."""

from __future__ import annotations

import time

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.errors import CutError, WireError
from agent.wire.message import Summary, extended_rcode, name_to_text, read_name, summarize

HEADER = b"\x8d\xa3\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
REDIS = b"\x0credis-master\x07default\x03svc\x07cluster\x05local\x00"
QUERY = HEADER + REDIS + b"\x00\x01\x00\x01"
# NXDOMAIN from a CoreDNS cache: AA, RD, RA; one SOA in the authority section.
NXDOMAIN = (
    b"\x12\x34\x85\x83\x00\x01\x00\x00\x00\x01\x00\x00" + b"\x01a\x02bc\x00\x00\x1c\x00\x01"
    b"\xc0\x0e\x00\x06\x00\x01\x00\x00\x00\x1e\x00\x18\x02ns\xc0\x0e\xc0\x0e" + bytes(range(17))
)
OPT_BADVERS = b"\x00\x00\x29\x04\xd0\x01\x00\x00\x00\x00\x00"
SIZES = [255, 256, 263, 512, 513, 1232, 4096, 65535]

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=8).map(
    lambda parts: dns.name.Name([*parts, b""]) if sum(map(len, parts)) + len(parts) < 255 else dns.name.root
)


def question(name: bytes, tail: bytes = b"\x00\x01\x00\x01") -> bytes:
    return HEADER + name + tail


def with_counts(qd: int, an: int = 0, ns: int = 0, ar: int = 0, flags: int = 0x8180) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in (7, flags, qd, an, ns, ar))


def test_a_query_shows_its_id_flags_counts_and_question():
    summary = summarize(QUERY)
    assert summary == (36259, 0x0100, 1, 0, 0, 0, (REDIS, REDIS, 1, 1), len(QUERY))
    assert not summary.is_response
    assert (summary.opcode, summary.rcode) == (0, 0)
    assert (summary.aa, summary.tc, summary.rd, summary.ra) == (False, False, True, False)


def test_a_reply_shows_its_rcode_and_flags():
    summary = summarize(NXDOMAIN)
    assert summary.is_response
    assert summary.rcode == 3
    assert (summary.aa, summary.tc, summary.rd, summary.ra) == (True, False, True, True)
    assert (summary.nscount, summary.end) == (1, 22)


@pytest.mark.parametrize("flags", range(0, 0x10000, 0x0123))
def test_header_bits_mean_what_rfc_1035_says(flags: int):
    summary = summarize(with_counts(0, flags=flags))
    oracle = dns.flags.Flag(flags)
    assert summary.is_response == bool(oracle & dns.flags.QR)
    assert summary.aa == bool(oracle & dns.flags.AA)
    assert summary.tc == bool(oracle & dns.flags.TC)
    assert summary.rd == bool(oracle & dns.flags.RD)
    assert summary.ra == bool(oracle & dns.flags.RA)
    assert (summary.opcode, summary.rcode) == (flags >> 11 & 15, flags & 15)


def test_names_that_differ_in_case_alone_have_the_same_key_and_keep_their_spelling():
    mixed = summarize(question(b"\x03wWw\x04TEST\x00")).question
    lower = summarize(question(b"\x03www\x04test\x00")).question
    assert mixed
    assert lower
    assert mixed.name == lower.name == b"\x03www\x04test\x00"
    assert mixed.original == b"\x03wWw\x04TEST\x00"


def test_only_ascii_letters_lose_their_case():
    name = b"\x06\xc4@[`{Z\x00"
    found = summarize(question(name)).question
    assert found
    assert found.name == b"\x06\xc4@[`{z\x00"


def test_length_bytes_survive_lower_casing():
    name = b"".join(bytes([size]) + b"A" * size for size in (63, 63, 63, 61)) + b"\0"
    found = summarize(question(name)).question
    assert found
    assert found.name == name.replace(b"A", b"a")


def test_a_zero_byte_inside_a_label_does_not_end_the_name():
    found = summarize(question(b"\x03a\x00b\x04test\x00", b"\x00\x0f\x00\x03")).question
    assert found == (b"\x03a\x00b\x04test\x00", b"\x03a\x00b\x04test\x00", 15, 3)


def test_the_root_is_a_name():
    found = summarize(question(b"\0", b"\x00\x02\x00\x01")).question
    assert found == (b"\0", b"\0", 2, 1)


def test_a_message_without_question_has_none():
    assert summarize(with_counts(0)) == Summary(7, 0x8180, 0, 0, 0, 0, None, 12)


def test_of_several_questions_the_first_counts_and_the_section_ends_after_the_last():
    wire = (
        with_counts(3) + b"\x01a\x00\x00\x01\x00\x01" + b"\x01b\xc0\x0c\x00\x01\x00\x01" + b"\xc0\x0c\x00\x1c\x00\x01"
    )
    summary = summarize(wire)
    assert summary.question == (b"\x01a\x00", b"\x01a\x00", 1, 1)
    assert summary.end == len(wire)


def test_what_follows_the_question_may_be_cut_or_rubbish():
    expected = summarize(NXDOMAIN)
    assert all(summarize(NXDOMAIN[:end]) == expected for end in range(22, len(NXDOMAIN)))
    assert summarize(NXDOMAIN[:22] + b"\xff" * 99) == expected


@pytest.mark.parametrize("end", range(len(QUERY)))
def test_a_message_cut_before_the_end_of_its_question_is_refused_as_cut(end: int):
    with pytest.raises(CutError, match=f"at byte {end}$") as caught:
        summarize(QUERY[:end])
    assert caught.value.offset == end


@pytest.mark.parametrize(
    ("name", "sentence", "offset"),
    [
        (b"\xc0\x0c", "pointer does not lead backwards", 12),
        (b"\xff\xff", "pointer does not lead backwards", 12),
        (b"\x01a\xc0\x0c", "pointer does not lead backwards", 14),
        (b"\x01a\xc0\x0e", "pointer does not lead backwards", 14),
        (b"\x40a\x00", "label type 0x40 does not exist", 12),
        (b"\x01a\x80a\x00", "label type 0x80 does not exist", 14),
        (b"\x3f" + b"a" * 63 + b"\xbf" * 64, "label type 0x80 does not exist", 76),
        ((b"\x3f" + b"a" * 63) * 4 + b"\x00", "longer than 255 bytes", 12),
        ((b"\x3f" + b"a" * 63) * 3 + b"\x3e" + b"a" * 62 + b"\0", "longer than 255 bytes", 12),
        (b"\x01a" * 127 + b"\x01a\x00", "longer than 255 bytes", 12),
    ],
)
def test_a_broken_name_is_refused_with_the_byte_where_it_breaks(name: bytes, sentence: str, offset: int):
    with pytest.raises(WireError, match=f"{sentence} at byte {offset}$") as caught:
        summarize(question(name))
    assert not isinstance(caught.value, CutError)
    assert caught.value.offset == offset


def test_a_name_of_255_bytes_is_accepted():
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(name) == 255
    found = summarize(question(name)).question
    assert found
    assert found.name == name


def test_a_compressed_question_is_read_through_its_pointer():
    # The only bytes before the question are the header's: its last two, an ARCOUNT of 0, spell the root name.
    assert summarize(question(b"\x01a\xc0\x0b")).question == (b"\x01a\0", b"\x01a\0", 1, 1)


def test_the_target_of_a_pointer_must_end_before_the_name_that_points_to_it():
    wire = with_counts(1, ar=0x0003) + b"abc\xc0\x0b" + b"\0\x01\0\x01"
    with pytest.raises(WireError, match="leads into the name it belongs to"):
        read_name(wire, 15)


def test_pointers_that_lead_to_pointers_end_after_127():
    chain = b"\0\0" + b"".join((0xC000 | at).to_bytes(2, "big") for at in range(0, 2 * 130, 2))
    assert read_name(chain, 2 * 127) == (b"\0", 2 * 127 + 2)
    with pytest.raises(WireError, match="more than 127 pointers"):
        read_name(chain, 2 * 128)


def test_a_compressed_name_may_have_255_bytes_and_not_one_more():
    part = (b"\x3f" + b"a" * 63) * 3
    longest = part + b"\x3d" + b"a" * 61 + b"\0" + b"\xc0\x00"
    assert len(read_name(longest, 255)[0]) == 255
    with pytest.raises(WireError, match="longer than 255"):
        read_name(part + b"\x3c" + b"a" * 60 + b"\0" + b"\x01b\xc0\x00", 254)


def test_a_name_that_grows_beyond_255_bytes_through_pointers_is_refused():
    wire = b"\x3f" + b"a" * 63 + b"\0" + (b"\x3f" + b"b" * 63 + b"\xc0\x00") + (b"\x3f" + b"c" * 63) * 2 + b"\xc0\x41"
    assert len(read_name(wire, 65)[0]) == 129
    with pytest.raises(WireError, match="longer than 255"):
        read_name(wire, 131)


@given(name=names, rdtype=st.integers(0, 65535), rdclass=st.integers(0, 65535), tail=st.binary(max_size=20))
def test_every_name_type_and_class_is_read_as_dnspython_reads_it(
    name: dns.name.Name, rdtype: int, rdclass: int, tail: bytes
):
    wire = question(name.to_wire(), rdtype.to_bytes(2, "big") + rdclass.to_bytes(2, "big")) + tail
    found = summarize(wire).question
    assert found
    assert found.original == name.to_wire()
    assert found.name == name.canonicalize().to_wire()
    assert (found.rdtype, found.rdclass) == (rdtype, rdclass)
    assert name_to_text(found.original) == name.to_text()


@given(wire=st.binary(max_size=60), start=st.integers(0, 20))
def test_a_name_is_accepted_exactly_when_dnspython_accepts_it(wire: bytes, start: int):
    try:
        name, consumed = dns.name.from_wire(wire, start)
    except (dns.exception.DNSException, ValueError):
        with pytest.raises(WireError):
            read_name(wire, start)
    else:
        assert read_name(wire, start) == (name.to_wire(), start + consumed)


@given(
    data=st.lists(st.sampled_from([0, 1, 2, 3, 0x3F, 0x40, 0x80, 0xC0, 0x61]), max_size=40), start=st.integers(0, 30)
)
def test_compression_is_followed_exactly_as_dnspython_follows_it(data: list[int], start: int):
    wire = bytes(data)
    try:
        name, consumed = dns.name.from_wire(wire, start)
    except (dns.exception.DNSException, ValueError):
        with pytest.raises(WireError):
            read_name(wire, start)
    else:
        assert read_name(wire, start) == (name.to_wire(), start + consumed)


@given(wire=st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: with_counts(1, 2, 1, 2) + tail))
def test_random_bytes_raise_nothing_but_wire_error(wire: bytes):
    try:
        summary = summarize(wire)
    except WireError:
        return
    assert 12 <= summary.end <= len(wire)
    assert summary.rcode == extended_rcode(wire, summary) & 0xF
    if summary.question:
        assert name_to_text(summary.question.name).isprintable()


@given(count=st.integers(0, 120), tail=st.binary(max_size=20))
def test_an_error_says_at_which_byte_of_the_message_it_is(count: int, tail: bytes):
    with pytest.raises(WireError) as caught:
        summarize(question(b"\x01a" * count + b"\x80", tail))
    assert caught.value.offset == 12 + 2 * count
    assert str(caught.value) == f"label type 0x80 does not exist at byte {12 + 2 * count}"


@settings(max_examples=30)
@pytest.mark.parametrize("size", SIZES)
@given(byte=st.integers(0, 255), counts=st.lists(st.integers(0, 65535), min_size=4, max_size=4))
def test_messages_of_every_size_raise_nothing_but_wire_error(size: int, byte: int, counts: list[int]):
    wire = (with_counts(*counts) + bytes([byte]) * size)[:size]
    try:
        summary = summarize(wire)
    except WireError:
        return
    assert 0 <= extended_rcode(wire, summary) <= 4095


@pytest.mark.parametrize("unit", [b"\x01a", b"\0", b"\0\0\x01\0\x01", b"\x01a\0" + bytes(10), b"\xc0\x0c" + bytes(10)])
def test_a_hostile_message_of_65535_bytes_costs_milliseconds(unit: bytes):
    wire = (with_counts(65535, 0, 0, 65535) + unit * 65535)[:65535]
    other = (with_counts(0, 65535, 65535, 65535) + unit * 65535)[:65535]
    start = time.perf_counter()
    with pytest.raises(WireError):
        summarize(wire)
    extended_rcode(other, summarize(other))
    assert time.perf_counter() - start < 0.5


def test_the_extended_rcode_joins_the_header_with_edns():
    wire = with_counts(1, ar=1) + b"\x01a\0\0\x01\0\x01" + OPT_BADVERS
    assert summarize(wire).rcode == 0
    assert extended_rcode(wire, summarize(wire)) == 16


def test_the_extended_rcode_is_found_behind_other_records():
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01"
    wire = with_counts(1, 2, 1, 2) + b"\x01a\0\0\x01\0\x01" + record * 4 + OPT_BADVERS
    assert extended_rcode(wire, summarize(wire)) == 16


def test_an_opt_record_outside_the_additional_section_has_no_say():
    wire = with_counts(0, an=1, ar=1) + OPT_BADVERS + b"\0\0\x01\0\x01" + bytes(6)
    assert extended_rcode(wire, summarize(wire)) == 0


@pytest.mark.parametrize("end", range(19, 19 + 11))
def test_an_opt_record_that_was_cut_off_leaves_the_header_rcode(end: int):
    wire = with_counts(1, ar=1, flags=0x8182) + b"\x01a\0\0\x01\0\x01" + OPT_BADVERS
    assert extended_rcode(wire[:end], summarize(wire[:end])) == 2


@given(rcode=st.integers(0, 4095), flags=st.integers(0, 0xFFFF))
def test_every_rcode_that_dnspython_writes_is_read_back(rcode: int, flags: int):
    message = dns.message.Message(id=1)
    message.flags = flags & 0x87B0
    message.use_edns(0)
    message.set_rcode(dns.message.dns.rcode.Rcode.make(rcode))
    wire = message.to_wire()
    assert extended_rcode(wire, summarize(wire)) == rcode


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"\0", "."),
        (b"\x03www\x04test\0", "www.test."),
        (b"\x05_http\x04_tcp\0", "_http._tcp."),
        (b"\x03a.b\x01\\\0", r"a\.b.\\."),
        (b"\x04\0\n \x7f\x02\xc3\xa9\0", r"\000\010\032\127.\195\169."),
        (b'\x06"();@$\0', r"\"\(\)\;\@\$."),
    ],
)
def test_names_are_spelled_as_in_master_files(name: bytes, text: str):
    assert name_to_text(name) == text
