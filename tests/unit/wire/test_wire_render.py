"""Full rendering: what people and JSON readers see of a message, and that hostile ones cannot hurt it."""

from __future__ import annotations

import json
import time
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.wire.errors import WireError
from agent.wire.message import extended_rcode, summarize
from agent.wire.render import (
    MAX_TEXT,
    opcode_to_text,
    rcode_to_text,
    rdclass_to_text,
    rdtype_from_text,
    rdtype_to_text,
    render,
)

KEYS = ["id", "opcode", "rcode", "flags", "question", "answer", "authority", "additional", "edns"]
QUERY = b"\x8d\xa3\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04TEST\x00\x00\x01\x00\x01"
# One line of master file per record type, as servers send them.
RECORDS = {
    "A": "10.244.0.7",
    "AAAA": "2001:db8::7",
    "CNAME": "b.test.",
    "NS": "ns.test.",
    "PTR": "10-0-0-1.kube-dns.test.",
    "SOA": "ns.dns.test. hostmaster.test. 1 7200 1800 86400 5",
    "MX": "10 mail.test.",
    "TXT": r'"v=spf1 -all" "a\"b\\c\010\255"',
    "SRV": "0 100 53 kube-dns.test.",
    "NAPTR": '100 10 "s" "SIP+D2U" "" _sip._udp.test.',
    "CAA": '0 issue "ca.test"',
    "DS": "12345 13 2 " + "ab" * 32,
    "DNSKEY": "257 3 13 " + "AAEC" * 16,
    "RRSIG": "A 13 2 300 20261121000000 20261101000000 12345 test. " + "AAEC" * 8,
    "NSEC": "c.test. A AAAA TYPE65280",
    "NSEC3": "1 0 10 aabb 2t7b4g4vsa5smi47k61mv5bv1a22bojr A",
    "HTTPS": '1 . alpn="h2,h3" ipv4hint="10.0.0.1"',
    "SVCB": "0 svc.test.",
    "TLSA": "3 1 1 " + "cd" * 32,
    "SSHFP": "1 1 " + "ef" * 20,
    "URI": '10 1 "https://test/"',
    "LOC": "52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m",
    "HINFO": '"RFC8482" ""',
    "DNAME": "d.test.",
}

labels = st.binary(min_size=1, max_size=20)
names = st.lists(labels, max_size=4).map(lambda parts: dns.name.Name([*parts, b""]))


def rdata_of(line: tuple[str, str]) -> dns.rdata.Rdata:
    return dns.rdata.from_text("IN", line[0], line[1])


unknown_rdata = st.builds(
    lambda rdtype, data: dns.rdata.GenericRdata(dns.rdataclass.IN, dns.rdatatype.RdataType(rdtype), data),
    st.integers(1000, 32000),
    st.binary(max_size=80),
)
rdatas = st.sampled_from(sorted(RECORDS.items())).map(rdata_of) | unknown_rdata
sections = st.lists(st.tuples(names, st.integers(0, 0x7FFFFFFF), rdatas), max_size=4)


def message_of(answer, authority, additional, rcode: int = 0, flags: int = 0x8180) -> dns.message.Message:
    message = dns.message.QueryMessage(id=4711)
    message.flags = dns.flags.Flag(flags)
    message.question.append(dns.rrset.RRset(dns.name.from_text("A.test."), dns.rdataclass.IN, dns.rdatatype.MX))
    parts = zip((message.answer, message.authority, message.additional), (answer, authority, additional), strict=True)
    for section, records in parts:
        section.extend(dns.rrset.from_rdata(name, ttl, rdata) for name, ttl, rdata in records)
    message.use_edns(0, 0x8000, 1232)
    message.set_rcode(dns.rcode.Rcode(rcode))
    return message


def raw(an: int = 0, ns: int = 0, ar: int = 0, *, records: bytes = b"", flags: int = 0x8180) -> bytes:
    counts = b"".join(number.to_bytes(2, "big") for number in (7, flags, 1, an, ns, ar))
    return counts + b"\x01a\x00\x00\x01\x00\x01" + records


def record(rdtype: int, rdata: bytes, *, owner: bytes = b"\xc0\x0c", rdclass: int = 1, ttl: int = 30) -> bytes:
    fixed = rdtype.to_bytes(2, "big") + rdclass.to_bytes(2, "big") + ttl.to_bytes(4, "big")
    return owner + fixed + len(rdata).to_bytes(2, "big") + rdata


def opt(options: bytes = b"", *, udp_size: int = 1232, ttl: int = 0) -> bytes:
    return record(41, options, owner=b"\0", rdclass=udp_size, ttl=ttl)


def option(code: int, data: bytes) -> bytes:
    return code.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def assert_safe(rendered: dict[str, Any]) -> None:
    assert list(rendered)[: len(KEYS)] == KEYS
    assert set(rendered) - set(KEYS) <= {"malformed"}
    assert json.loads(json.dumps(rendered)) == rendered
    assert all(text.isprintable() for text in strings(rendered))


def test_a_query_is_rendered_with_every_key():
    assert render(QUERY) == {
        "id": 36259,
        "opcode": "QUERY",
        "rcode": "NOERROR",
        "flags": ["rd"],
        "question": {"name": "a.TEST.", "class": "IN", "type": "A"},
        "answer": [],
        "authority": [],
        "additional": [],
        "edns": None,
    }
    assert list(render(QUERY)) == KEYS


def test_a_reply_is_rendered_record_by_record_in_the_order_of_the_wire():
    addresses = record(1, b"\x0a\0\0\x02") + record(1, b"\x0a\0\0\x01") + record(1, b"\x0a\0\0\x02", ttl=0xFFFFFFFF)
    rendered = render(raw(3, records=addresses))
    assert [(item["data"], item["ttl"]) for item in rendered["answer"]] == [  # type: ignore[attr-defined]
        ("10.0.0.2", 30),
        ("10.0.0.1", 30),
        ("10.0.0.2", 0xFFFFFFFF),
    ]
    assert rendered["answer"][0] == {"name": "a.", "type": "A", "class": "IN", "ttl": 30, "data": "10.0.0.2"}  # type: ignore[index]


def test_flags_come_in_the_order_of_the_header():
    assert render(raw(flags=0xFFFF))["flags"] == ["qr", "aa", "tc", "rd", "ra", "ad", "cd"]
    assert render(raw(flags=0))["flags"] == []


@pytest.mark.parametrize(("rdtype", "text"), RECORDS.items())
def test_every_record_type_shows_its_data_as_dnspython_writes_it(rdtype: str, text: str):
    rdata = dns.rdata.from_text("IN", rdtype, text)
    rendered = render(raw(1, records=record(int(rdata.rdtype), rdata.to_wire())))
    assert "malformed" not in rendered
    assert rendered["answer"] == [
        {"name": "a.", "type": rdtype, "class": "IN", "ttl": 30, "data": rdata.to_text()},
    ]


def test_unknown_types_and_classes_are_written_as_rfc_3597_says():
    rendered = render(raw(2, records=record(12345, b"\x01\xff", rdclass=4321) + record(54321, b"")))
    assert rendered["answer"] == [
        {"name": "a.", "type": "TYPE12345", "class": "CLASS4321", "ttl": 30, "data": r"\# 2 01ff"},
        {"name": "a.", "type": "TYPE54321", "class": "IN", "ttl": 30, "data": r"\# 0"},
    ]


def test_unknown_types_and_classes_do_not_fill_memory():
    known = dns.rdata._rdata_classes
    render(raw(1, records=record(1, bytes(4), rdclass=999)))
    before = len(known)
    for number in range(1000, 3000):
        render(raw(2, records=record(number, bytes(4)) + record(1, bytes(4), rdclass=number)))
    assert len(known) == before


def test_edns_shows_version_size_do_and_options():
    cookie = option(10, bytes.fromhex("0102030405060708"))
    subnet = option(8, b"\0\x01\x18\0\x0a\0\x01")
    error = option(15, b"\0\x0fno \xe2\x98\x83\n\xe2\x80\xae")
    wire = raw(ar=1, records=opt(cookie + subnet + error + option(3, b"") + option(65001, b"\xab")), flags=0x8180)
    assert render(wire)["edns"] == {
        "version": 0,
        "udp_size": 1232,
        "do": False,
        "options": [
            {"code": 10, "name": "COOKIE", "data": "0102030405060708"},
            {"code": 8, "name": "ECS", "data": "10.0.1.0/24 scope/0"},
            {"code": 15, "name": "EDE", "data": r"15 (Blocked): no ☃\010\u202e"},
            {"code": 3, "name": "NSID", "data": ""},
            {"code": 65001, "name": None, "data": "ab"},
        ],
    }
    assert "malformed" not in render(wire)


def test_the_opt_record_is_not_in_the_additional_section_but_everything_else_is():
    wire = raw(ar=3, records=record(1, bytes(4)) + opt(ttl=0x00008000) + record(16, b"\x01x"))
    rendered = render(wire)
    assert [item["type"] for item in rendered["additional"]] == ["A", "TXT"]  # type: ignore[attr-defined]
    assert rendered["edns"] == {"version": 0, "udp_size": 1232, "do": True, "options": []}


def test_the_rcode_includes_the_bits_of_edns():
    assert render(raw(ar=1, records=opt(ttl=0x01000000)))["rcode"] == "BADVERS"
    assert render(raw(ar=1, records=opt(ttl=0x01000000), flags=0x8187))["rcode"] == "BADCOOKIE"
    assert render(raw(flags=0x8183))["rcode"] == "NXDOMAIN"
    assert render(raw(flags=0x818F))["rcode"] == "15"


def test_an_unreadable_option_is_shown_in_hexadecimal_and_named():
    rendered = render(raw(ar=1, records=opt(option(10, b"\x01\x02") + option(15, b"\0\x01\xff"))))
    assert [item["data"] for item in rendered["edns"]["options"]] == ["0102", "0001ff"]  # type: ignore[index]
    assert rendered["malformed"] == "EDNS option COOKIE that cannot be read at byte 34"


def test_an_option_longer_than_its_record_is_named():
    wire = raw(ar=1, records=opt(b"\0\x0a\0\x09abc"))
    assert render(wire)["malformed"] == "an EDNS option is longer than its OPT record at byte 30"
    longer_by_one = raw(ar=2, records=opt(b"\0\x0a\0\x01") + record(1, bytes(4)))
    assert render(longer_by_one)["malformed"] == "an EDNS option is longer than its OPT record at byte 30"
    assert render(raw(ar=1, records=opt(b"\0\x0a")))["malformed"] == (
        "an EDNS option is longer than its OPT record at byte 30"
    )


def test_a_second_opt_record_stays_visible():
    rendered = render(raw(ar=2, records=opt(udp_size=4096) + opt(option(3, b"x"))))
    assert rendered["edns"]["udp_size"] == 4096  # type: ignore[index]
    assert rendered["additional"] == [
        {"name": ".", "type": "OPT", "class": "CLASS1232", "ttl": 0, "data": r"\# 5 0003000178"}
    ]
    assert rendered["malformed"] == "an OPT record that RFC 6891 6.1.1 does not allow at byte 41"


def test_unreadable_record_data_is_shown_in_hexadecimal_and_the_next_record_is_read():
    rendered = render(raw(2, records=record(1, b"\x0a\0\0") + record(1, b"\x0a\0\0\x01")))
    assert [item["data"] for item in rendered["answer"]] == [r"\# 3 0a0000", "10.0.0.1"]  # type: ignore[attr-defined]
    assert rendered["malformed"] == "A record data that cannot be read at byte 31"


def test_text_that_is_not_utf8_does_not_stop_rendering():
    rendered = render(raw(1, records=record(256, b"\0\x01\0\x01\xff\xfe")))
    assert_safe(rendered)


def test_dynamic_updates_show_records_without_data():
    update = raw(0, 2, records=record(1, b"", rdclass=255) + record(1, b"\x0a\0\0\x01", rdclass=254), flags=0x2800)
    rendered = render(update)
    assert rendered["opcode"] == "UPDATE"
    assert [(item["class"], item["data"]) for item in rendered["authority"]] == [("ANY", ""), ("NONE", "10.0.0.1")]  # type: ignore[attr-defined]
    assert "malformed" not in rendered


def test_compressed_names_inside_record_data_are_shown_in_full():
    srv = b"\0\0\0\0\0\x35\x02ns\xc0\x0c"
    assert render(raw(1, records=record(33, srv)))["answer"][0]["data"] == "0 0 53 ns.a."  # type: ignore[index]


@pytest.mark.parametrize(
    ("rdtype", "rdata"),
    [
        (47, b"\xc0\x0c\0\x01\x40"),  # NSEC: newer than RFC 1035, so its name must not be compressed
        (2, b"\x02ns"),  # the name goes on after the record data
    ],
)
def test_record_data_whose_name_breaks_the_rules_is_shown_in_hexadecimal(rdtype: int, rdata: bytes):
    rendered: Any = render(raw(2, records=record(rdtype, rdata) + record(1, b"\x0a\0\0\x01", owner=b"\0")))
    assert [item["data"] for item in rendered["answer"]] == [rf"\# {len(rdata)} {rdata.hex()}", "10.0.0.1"]
    assert rendered["malformed"] == f"{rdtype_to_text(rdtype)} record data that cannot be read at byte 31"


def test_the_first_of_several_problems_is_named():
    wire = raw(2, records=record(1, b"\x0a\0\0") + b"\x40")
    assert render(wire)["malformed"] == "A record data that cannot be read at byte 31"


def test_a_signed_message_is_rendered_without_its_key():
    message = dns.message.make_query("a.test.", "SOA")
    message.use_tsig({dns.name.from_text("key.test."): b"secret"})
    rendered = render(message.to_wire())
    assert "malformed" not in rendered
    assert [item["type"] for item in rendered["additional"]] == ["TSIG"]  # type: ignore[attr-defined]


def test_several_questions_are_named_as_wrong():
    wire = b"\0\x07\0\0\0\x02\0\0\0\0\0\0\x01a\0\0\x01\0\x01\x01b\0\0\x01\0\x01"
    assert render(wire)["malformed"] == "2 questions, of which the first is shown (RFC 9619), at byte 4"


def test_bytes_after_the_message_are_named():
    assert render(QUERY + b"xyz")["malformed"] == f"3 bytes too many at byte {len(QUERY)}"


def test_a_message_that_the_capture_cut_says_so():
    wire = raw(2, records=record(1, b"\x0a\0\0\x01") * 2)
    for end in range(len(wire)):
        rendered = render(wire[:end], length_bytes=len(wire))
        assert rendered["malformed"] == f"the capture cut the message at {end} of {len(wire)} bytes"
        assert len(rendered["answer"]) == max(0, end - 19) // 16  # type: ignore[arg-type]
    assert "malformed" not in render(wire, length_bytes=len(wire))


def test_a_message_that_the_capture_cut_still_says_what_else_is_wrong():
    wire = raw(2, records=record(1, b"\x0a\0\0") + record(1, b"\x0a\0\0\x01"))
    assert render(wire[:-1], length_bytes=len(wire))["malformed"] == (
        f"the capture cut the message at {len(wire) - 1} of {len(wire)} bytes; "
        "A record data that cannot be read at byte 31"
    )


def test_a_message_that_its_sender_cut_shows_what_is_there():
    assert render(b"")["malformed"] == "the message ends inside the header at byte 0"
    assert render(b"\x12\x34")["id"] == 0x1234
    assert render(b"\x12\x34")["opcode"] is None
    assert render(b"\x12\x34\x81\x83")["rcode"] == "NXDOMAIN"
    assert render(QUERY[:-1])["malformed"] == f"the message ends inside the question at byte {len(QUERY) - 1}"
    assert (
        render(raw(1, records=record(1, bytes(4))[:-1]))["malformed"]
        == "the message ends inside record data at byte 34"
    )


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    answer=sections, authority=sections, additional=sections, rcode=st.integers(0, 4095), flags=st.integers(0, 0xFFFF)
)
def test_every_message_is_rendered_as_dnspython_reads_it(answer, authority, additional, rcode: int, flags: int):
    wire = message_of(answer, authority, additional, rcode, flags & 0x87B0).to_wire(max_size=65535)
    rendered = render(wire)
    assert_safe(rendered)
    assert "malformed" not in rendered
    assert rendered["rcode"] == dns.rcode.to_text(dns.rcode.Rcode(rcode))
    oracle = dns.message.from_wire(wire, one_rr_per_rrset=True)
    for key, section in (("answer", oracle.answer), ("authority", oracle.authority), ("additional", oracle.additional)):
        expected = [
            (rrset.name.to_text(), dns.rdatatype.to_text(rrset.rdtype), rrset.ttl, rdata_text(rrset[0]))
            for rrset in section
        ]
        found: Any = rendered[key]
        assert [(item["name"], item["type"], item["ttl"], item["data"]) for item in found] == expected


def rdata_text(rdata: dns.rdata.Rdata) -> str:
    if isinstance(rdata, dns.rdata.GenericRdata):  # dnspython puts spaces into long hexadecimal
        return rf"\# {len(rdata.data)} {rdata.data.hex()}".rstrip()
    return rdata.to_text()


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(answer=sections, additional=sections, data=st.data())
def test_a_message_cut_anywhere_is_rendered_up_to_there(answer, additional, data: st.DataObject):
    wire = message_of(answer, [], additional).to_wire()
    whole: Any = render(wire)
    end = data.draw(st.integers(0, len(wire) - 1))
    part: Any = render(wire[:end])
    assert_safe(part)
    assert "malformed" in part
    for key in ("answer", "authority", "additional"):
        assert part[key] == whole[key][: len(part[key])]


@given(wire=st.binary(max_size=100), length=st.none() | st.integers(0, 200))
def test_random_bytes_render(wire: bytes, length: int | None):
    assert_safe(render(wire, length_bytes=length))


@given(
    rdtype=st.sampled_from(sorted(map(int, dns.rdatatype.RdataType))) | st.integers(0, 65535),
    rdclass=st.sampled_from([0, 1, 3, 4, 254, 255, 1232]),
    rdata=st.binary(max_size=60),
    section=st.integers(0, 2),
)
@settings(max_examples=400)
def test_random_record_data_of_every_type_renders(rdtype: int, rdclass: int, rdata: bytes, section: int):
    counts = [int(index == section) for index in range(3)]
    wire = raw(*counts, records=record(rdtype, rdata, rdclass=rdclass))
    rendered = render(wire)
    assert_safe(rendered)
    assert rendered["rcode"] == rcode_to_text(extended_rcode(wire, summarize(wire)))


@given(code=st.sampled_from(sorted(map(int, dns.edns.OptionType))) | st.integers(0, 65535), data=st.binary(max_size=40))
def test_random_options_render(code: int, data: bytes):
    rendered: Any = render(raw(ar=1, records=opt(option(code, data))))
    assert_safe(rendered)
    assert [item["code"] for item in rendered["edns"]["options"]] == [code]


@given(position=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_damaged_byte_anywhere_still_renders(position: int, byte: int):
    wire = bytearray(
        message_of([(dns.name.root, 5, rdata_of(line)) for line in list(RECORDS.items())[:8]], [], []).to_wire()
    )
    wire[position % len(wire)] = byte
    assert_safe(render(bytes(wire)))


@pytest.mark.parametrize("size", [255, 256, 263, 512, 513, 1232, 4096, 65535])
@pytest.mark.parametrize(
    "unit", [b"\0", b"\xff", b"\xc0\x0c", b"\x01a", b"\xc0\x0c\0\x01\0\x01\0\0\0\x1e\0\x04\x0a\0\0\x01"]
)
def test_messages_of_every_size_render(size: int, unit: bytes):
    wire = raw(65535, 65535, 65535, records=unit * 65535)[:size]
    rendered = render(wire)
    assert_safe(rendered)
    assert "malformed" in rendered


def test_a_full_message_of_4000_addresses_is_shown_whole():
    wire = raw(4000, records=record(1, b"\x0a\0\0\x01") * 4000)
    rendered = render(wire)
    assert "malformed" not in rendered
    assert len(rendered["answer"]) == 4000  # type: ignore[arg-type]


def hostile_names(target: bytes, owner: bytes | None = None) -> bytes:
    """One record holds `target` as data; as many records as fit point to it, with data and (unless given) owner."""
    first = record(1000, target)
    pointer = (0xC000 | len(raw()) + 12).to_bytes(2, "big")
    return raw(65535, records=first + record(5, pointer, owner=owner or pointer) * 4600)[:65535]


@pytest.mark.parametrize(
    "wire",
    [
        hostile_names(b"\x01\xff" * 127 + b"\0"),
        hostile_names(b"\x01\xff" * 8000 + b"\0"),
        hostile_names(b"\x01\xff" * 8000 + b"\0", owner=b"\0"),
        hostile_names((b"\x3f" + b"\0" * 63) * 3 + b"\0"),
        raw(
            65535, records=record(47, b"\0" + b"".join(bytes([window, 32]) + b"\xff" * 32 for window in range(256))) * 7
        ),
        raw(65535, records=record(16, (b"\xff" + b"\0" * 255) * 250)),
        raw(0, 0, 1, records=opt(option(3, b"") * 16000)),
    ],
    ids=["many labels", "too many labels", "too many labels in data", "long names", "type bitmaps", "text", "options"],
)
def test_a_hostile_message_costs_bounded_time_and_text(wire: bytes):
    start = time.perf_counter()
    rendered = render(wire)
    elapsed = time.perf_counter() - start
    assert_safe(rendered)
    assert elapsed < 2
    assert len(json.dumps(rendered)) < 4 * MAX_TEXT


def test_agreement_with_the_hot_parser_on_what_is_malformed():
    wire = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01"
    with pytest.raises(WireError) as caught:
        summarize(wire)
    assert render(wire)["malformed"] == str(caught.value)


def test_numbers_are_spelled_as_in_the_iana_registries():
    assert [rcode_to_text(rcode) for rcode in (0, 2, 3, 5, 16, 23, 4095)] == [
        *("NOERROR", "SERVFAIL", "NXDOMAIN", "REFUSED", "BADVERS", "BADCOOKIE", "4095"),
    ]
    assert [rdtype_to_text(rdtype) for rdtype in (1, 28, 65, 255, 65280)] == ["A", "AAAA", "HTTPS", "ANY", "TYPE65280"]
    assert [rdclass_to_text(rdclass) for rdclass in (1, 3, 255, 77)] == ["IN", "CH", "ANY", "CLASS77"]
    assert [opcode_to_text(opcode) for opcode in (0, 4, 5, 6, 15)] == ["QUERY", "NOTIFY", "UPDATE", "DSO", "15"]


def test_record_types_are_read_in_any_case_and_by_number():
    assert [rdtype_from_text(text) for text in ("A", "aaaa", "TYPE65280", "nsap-ptr")] == [1, 28, 65280, 23]


@pytest.mark.parametrize("text", ["", "B", "TYPE65536", "TYPE", "TYPE-1", "1", "A\n", "TYPE" + "9" * 5000])
def test_a_record_type_that_does_not_exist_is_refused_with_a_sentence(text: str):
    with pytest.raises(ValueError, match="is not a DNS record type: write a mnemonic such as AAAA"):
        rdtype_from_text(text)


@given(rdtype=st.integers(0, 65535))
def test_every_record_type_survives_the_way_to_text_and_back(rdtype: int):
    assert rdtype_from_text(rdtype_to_text(rdtype)) == rdtype
