"""Reassembly: fragments in any order give the datagram, and no trick gives anything else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.fragments import MAX_FRAGMENTS, Incomplete, Reassembler
from agent.wire.packet import UDP, V4_MAPPED, Flaw, Flaws, Fragment, Ip, parse_ip

SECOND = 10**9
TIMEOUT = 30 * SECOND
HERE, THERE = V4_MAPPED + bytes([10, 0, 0, 1]), V4_MAPPED + bytes([10, 0, 0, 2])


def piece(offset: int, payload: bytes, *, more: bool, family: int = 4, ident: int = 7, claims: int | None = None) -> Ip:
    size = len(payload) if claims is None else claims
    header = 20 if family == 4 else 48
    return Ip(family, HERE, THERE, UDP, payload, size, header + size, Fragment(ident, offset, more))


def cut_up(payload: bytes, step: int, family: int = 4, ident: int = 7) -> list[Ip]:
    return [
        piece(at, payload[at : at + step], more=at + step < len(payload), family=family, ident=ident)
        for at in range(0, len(payload), step)
    ]


def reassembler(max_datagrams: int = 8) -> Reassembler:
    return Reassembler(max_datagrams, TIMEOUT)


def give(to: Reassembler, pieces: list[Ip], ts_ns: int = 0) -> list[Ip | None]:
    return [to.add(ts_ns, ip) for ip in pieces]


def lost(to: Reassembler, now_ns: int = TIMEOUT) -> list[Incomplete]:
    return list(to.expired(now_ns))


def test_a_whole_packet_passes_through():
    ip = piece(0, b"x", more=False)._replace(fragment=None)
    assert reassembler().add(0, ip) is ip


def test_two_ipv4_fragments_from_the_wire_give_the_datagram():
    head = b"\x45\x00\x00\x1c\x12\x34\x20\x00\x40\x11\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02"
    tail = b"\x45\x00\x00\x18\x12\x34\x00\x01\x40\x11\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02"
    flaws, table = Flaws(), reassembler()
    first, last = parse_ip(head + b"\xa6\xd6\x00\x35\x00\x0c\x00\x00", flaws), parse_ip(tail + b"four", flaws)
    assert first
    assert last
    assert table.add(0, last) is None
    whole = table.add(1, first)
    assert whole == Ip(4, HERE, THERE, UDP, b"\xa6\xd6\x00\x35\x00\x0c\x00\x00four", 12, 32, None, 64, 0x1234)
    assert (len(table), table.evicted, table.refused, flaws) == (0, 0, 0, {})


def test_ipv6_extension_headers_behind_the_fragment_header_are_walked():
    options = bytes([UDP, 1]) + bytes(14)  # destination options, cut in the middle
    pieces = [ip._replace(protocol=60) for ip in cut_up(options + b"datagram", 8, family=6)]
    whole = give(reassembler(), pieces)[-1]
    assert whole == Ip(6, HERE, THERE, UDP, b"datagram", 8, 40 + 24, None)


def test_what_cannot_be_read_when_whole_is_counted():
    table = reassembler()
    nested = struct.pack("!BBHI", UDP, 0, 8, 1) + b"fragment"
    assert give(table, [ip._replace(protocol=44) for ip in cut_up(nested, 8, family=6)]) == [None, None]
    lying = bytes([UDP, 9]) + bytes(14)
    assert give(table, [ip._replace(protocol=60) for ip in cut_up(lying, 8, family=6)]) == [None, None]
    assert table.flaws == {Flaw.FRAGMENT: 1, Flaw.LENGTHS: 1}


@given(
    payload=st.binary(min_size=9, max_size=600),
    words=st.integers(1, 12),
    family=st.sampled_from([4, 6]),
    data=st.data(),
)
def test_fragments_in_any_order_with_duplicates_give_the_datagram(payload, words, family, data):
    pieces = cut_up(payload, 8 * words, family)
    if len(pieces) == 1:
        return
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=5))
    order = data.draw(st.permutations([*pieces, *again]))
    table = reassembler()
    wholes = [ip for ip in give(table, order) if ip]
    assert wholes[0].payload == payload
    assert wholes[0].payload_bytes == len(payload)
    assert wholes[0].fragment is None
    assert all(ip.payload == payload for ip in wholes)
    assert table.refused == 0
    assert lost(table) == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 8191),
            st.binary(max_size=40),
            st.booleans(),
            st.sampled_from([4, 6]),
            st.integers(0, 4),
        )
    )
)
def test_random_fragments_never_raise_and_stay_within_bounds(fragments):
    table = Reassembler(2, TIMEOUT)
    for ts_ns, (ident, offset, payload, more, family, place) in enumerate(fragments):
        whole = table.add(ts_ns, piece(offset * 8, payload, more=more, family=family, ident=ident), place)
        assert whole is None or whole.payload_bytes == len(whole.payload) <= 65535
        assert len(table) <= 2
    assert len(lost(table, 2 * TIMEOUT)) <= 2
    assert len(table) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.booleans()), min_size=1, max_size=12))
def test_no_order_of_overlapping_fragments_gives_a_datagram(spans):
    table = reassembler()
    taken: dict[int, bytes] = {}
    for number, (start, words, more) in enumerate(spans):
        payload = bytes([number]) * (words * 8)
        taken[start] = payload
        whole = table.add(0, piece(start * 8, payload, more=more))
        if whole is not None:
            assert len(taken) == number + 1
            joined = b""
            for at in sorted(taken):
                assert at * 8 == len(joined)
                joined += taken[at]
            assert whole.payload == joined
            return


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "bad",
    [
        piece(8, bytes(16), more=True),
        piece(0, b"otherwise" + bytes(7), more=True),
        piece(0, bytes(8), more=True),
        piece(16, b"", more=True),
        piece(16, bytes(9), more=True),
        piece(65528, bytes(16), more=False),
        piece(8, bytes(4), more=False),
        piece(40, bytes(8), more=True),
        piece(40, bytes(8), more=False),
    ],
    ids=["overlap", "other-content", "shorter", "empty", "no-multiple", "too-long", "ends-early", "late", "two-ends"],
)
def test_contradicting_fragments_refuse_the_datagram(bad, family):
    pieces = cut_up(bytes(40), 16, family)
    table = reassembler()
    assert give(table, [pieces[0], pieces[2], bad._replace(family=family), pieces[1], *pieces]) == [None] * 7
    assert table.refused == 1
    (report,) = lost(table)
    assert (report.refused, report.fragments, report.ip) == (True, 0, pieces[0])


def test_too_many_fragments_refuse_the_datagram():
    table = reassembler()
    assert set(give(table, cut_up(bytes(8 * MAX_FRAGMENTS), 8)[:-1])) == {None}
    assert table.refused == 0
    assert give(table, cut_up(bytes(8 * MAX_FRAGMENTS), 8))[-1] is not None
    give(table, cut_up(bytes(8 * MAX_FRAGMENTS + 8), 8, ident=8))
    assert table.refused == 1


def test_a_datagram_of_65535_bytes_is_joined():
    payload = bytes(range(256)) * 255 + bytes(255)
    whole = give(reassembler(), cut_up(payload, 1480))[-1]
    assert whole is not None
    assert (whole.payload, whole.payload_bytes) == (payload, 65535)


def test_a_lost_fragment_is_explained_after_the_timeout():
    table = reassembler()
    first, middle, last = cut_up(bytes(40), 16)
    table.add(5, last, "eth0")
    table.add(6, first, "eth0")
    assert lost(table, 4 + TIMEOUT) == []
    assert lost(table, 5 + TIMEOUT) == [Incomplete(5, "eth0", first, 2, 24, 40, refused=False)]
    assert lost(table, 9 * TIMEOUT) == []
    table.add(7, middle)
    (report,) = lost(table, 7 + TIMEOUT)
    assert (report.ip, report.total_bytes) == (middle, None)


def test_the_timeout_begins_with_the_first_hop():
    table = reassembler()
    pieces = cut_up(bytes(40), 16)
    table.add(0, pieces[0])
    table.add(TIMEOUT - 1, pieces[1])
    assert len(lost(table, TIMEOUT)) == 1
    assert table.add(TIMEOUT, pieces[2]) is None


def test_a_full_table_gives_up_the_oldest_and_counts_it():
    table = reassembler(2)
    for ident in (1, 2, 3):
        table.add(ident, piece(0, bytes(8), more=True, ident=ident))
    assert (len(table), table.evicted) == (2, 1)
    assert [report.ts_ns for report in lost(table, 9 * TIMEOUT)] == [2, 3]


def test_fragments_of_different_datagrams_places_and_families_are_kept_apart():
    table = reassembler()
    first, last = cut_up(bytes(16), 8)
    table.add(0, first, 1)
    assert table.add(0, last, 2) is None
    assert table.add(0, last._replace(saddr=THERE), 1) is None
    assert table.add(0, last._replace(protocol=6), 1) is None
    assert table.add(0, last._replace(family=6), 1) is None
    assert table.add(0, piece(8, bytes(8), more=False, ident=8), 1) is None
    assert table.add(0, last, 1) is not None


def test_a_duplicate_after_the_whole_is_no_loss_but_a_later_datagram_is():
    table = reassembler()
    pieces = cut_up(bytes(16), 8)
    assert give(table, pieces)[-1] is not None
    table.add(1, pieces[0])
    assert lost(table, 1 + TIMEOUT) == []
    table.add(2 * TIMEOUT, pieces[0])
    assert len(lost(table, 3 * TIMEOUT)) == 1


def test_a_capture_that_cut_the_fragments_gives_the_start_and_the_true_length():
    first = piece(0, b"start", more=True, claims=16)
    last = piece(16, b"end", more=False, claims=24)
    whole = give(reassembler(), [last, first])[-1]
    assert whole is not None
    assert (whole.payload, whole.payload_bytes, whole.total_bytes) == (b"start", 40, 60)
