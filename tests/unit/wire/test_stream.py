"""DNS over TCP from segments: every message that was sent and captured, none that was not, whatever the capture did."""

from __future__ import annotations

import time
from collections.abc import Iterable
from hashlib import shake_128
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.wire.stream import (
    ACK,
    FIN,
    GAP_WAIT_NS,
    MAX_BUFFER_BYTES,
    MAX_JUMP_BYTES,
    RST,
    SEGMENT_COST_BYTES,
    SYN,
    Connection,
    ConnectionFacts,
    Side,
    Stream,
    StreamMessage,
)

SECOND = 1_000_000_000
MAX_MESSAGE = 65535


def message(ident: int, name: bytes = b"\3www\7example\3com\0", data: bytes = b"", flags: int = 0x0100) -> bytes:
    """A message with one question and, if there is data for it, one additional record of a private type."""
    header = b"".join(number.to_bytes(2, "big") for number in (ident, flags, 1, 0, 0, 1 if data else 0))
    record = b"\0\xff\0\0\1\0\0\0\0" + len(data).to_bytes(2, "big") + data if data else b""
    return header + name + b"\0\1\0\1" + record


def framed(*wires: bytes) -> bytes:
    return b"".join(len(wire).to_bytes(2, "big") + wire for wire in wires)


A, B, C, D = (message(ident) for ident in (0xA, 0xB, 0xC, 0xD))
SIZE = len(framed(A))


class Message:
    """A stream that is fed by offsets: 0 is the first byte after the SYN."""

    def __init__(self, isn: int = 1000, *, syn: bool = True) -> None:
        self.stream = Stream()
        self.isn = isn
        self.now_ns = 0
        if syn:
            self.feed(-1, flags=SYN)

    def feed(self, offset: int, data: bytes = b"", flags: int = ACK, length: int | None = None) -> list[StreamMessage]:
        self.now_ns += 1
        size = len(data) if length is None else length
        return self.stream.feed((self.isn + 1 + offset) % 2**32, flags, data, size, self.now_ns)


def payloads(messages: Iterable[StreamMessage]) -> list[bytes]:
    return [each.payload for each in messages]


# In order.


def test_one_segment_with_one_message_is_that_message():
    assert Message().feed(0, framed(A)) == [StreamMessage(A, len(A), 2, 2, 1, certain=True)]


@pytest.mark.parametrize("cut", range(1, SIZE))
def test_a_message_split_anywhere_even_inside_the_prefix_is_one_message(cut):
    wire, data = Message(), framed(A)
    assert wire.feed(0, data[:cut]) == []
    assert wire.stream.unfinished_bytes == cut
    assert wire.feed(cut, data[cut:]) == [StreamMessage(A, len(A), 2, 3, 2, certain=True)]
    assert wire.stream.unfinished_bytes == 0


def test_a_message_sent_byte_by_byte_is_one_message():
    wire = Message()
    found = [wire.feed(offset, bytes([byte])) for offset, byte in enumerate(framed(A))]
    assert sum(found, []) == [StreamMessage(A, len(A), 2, 1 + SIZE, SIZE, certain=True)]  # noqa: RUF017  short lists


def test_several_messages_in_one_segment_are_all_found():
    assert payloads(Message().feed(0, framed(A, B, C))) == [A, B, C]


def test_a_segment_may_end_one_message_and_begin_the_next():
    wire, data = Message(), framed(A, B)
    assert payloads(wire.feed(0, data[:-5])) == [A]
    (last,) = wire.feed(len(data) - 5, data[-5:])
    assert (last.payload, last.first_ts_ns, last.last_ts_ns, last.segments) == (B, 2, 3, 2)


def test_replies_out_of_order_are_messages_in_the_order_of_the_stream():
    replies = [message(ident, flags=0x8180) for ident in (3, 1, 2)]
    wire = Message()
    assert payloads(wire.feed(0, framed(*replies[:2])) + wire.feed(2 * SIZE, framed(replies[2]))) == replies


@pytest.mark.parametrize("size", [12, 13, 17, 64, 512, 1460, 16384, MAX_MESSAGE])
def test_messages_of_every_length_are_found(size):
    wire = Message()
    # Twelve bytes are a header alone: FORMERR as some servers send it.
    wanted = (message(7, b"\0", bytes(size - 28)) if size > 28 else b"\0\7\x81\1" + bytes(size))[:size]
    data = framed(wanted, A)
    found = [each for at in range(0, len(data), 1460) for each in wire.feed(at, data[at : at + 1460])]
    assert payloads(found) == [wanted, A]
    assert all(each.certain for each in found)


def test_zero_length_messages_are_counted_and_the_stream_goes_on():
    wire = Message()
    assert payloads(wire.feed(0, framed(A, b"", b"", b"", B))) == [A, B]
    assert payloads(wire.feed(2 * SIZE + 6, framed(C))) == [C]
    assert wire.stream.counters.short_messages == 3


def test_a_message_shorter_than_a_header_is_told_as_it_came():
    wire = Message()
    assert payloads(wire.feed(0, framed(A, b"elevenbytes", B))) == [A, b"elevenbytes", B]
    assert wire.stream.counters.short_messages == 1


def test_segments_without_bytes_change_nothing():
    wire = Message()
    for offset in (0, 0, -1, 50_000):  # acknowledgements, a keep-alive, nonsense
        assert wire.feed(offset) == []
    assert payloads(wire.feed(0, framed(A))) == [A]


def test_bytes_sent_with_the_syn_belong_to_the_stream():
    wire = Message(syn=False)
    assert payloads(wire.stream.feed(1000, SYN, framed(A), SIZE, 1)) == [A]  # RFC 7413
    assert payloads(wire.feed(SIZE, framed(B))) == [B]


# Out of order, twice, overlapping.


def test_reordered_segments_are_put_in_order():
    wire, data = Message(), framed(A, B, C)
    assert wire.feed(80, data[80:]) == []
    assert wire.feed(40, data[40:80]) == []
    found = wire.feed(0, data[:40])
    assert payloads(found) == [A, B, C]
    assert (found[0].first_ts_ns, found[0].last_ts_ns) == (4, 4)
    assert wire.stream.counters.gaps == 0


def test_a_message_of_reordered_segments_lasts_from_the_earliest_to_the_latest():
    wire, data = Message(), framed(A)
    wire.feed(20, data[20:])
    assert wire.feed(0, data[:20]) == [StreamMessage(A, len(A), 2, 3, 2, certain=True)]


def test_a_retransmission_is_not_a_second_message():
    wire = Message()
    assert payloads(wire.feed(0, framed(A))) == [A]
    assert wire.feed(0, framed(A)) == []
    assert payloads(wire.feed(SIZE, framed(B))) == [B]
    assert wire.stream.counters.retransmitted_bytes == SIZE


def test_a_retransmission_may_be_split_differently():
    wire, data = Message(), framed(A, B)
    wire.feed(0, data[:10])
    wire.feed(10, data[10:30])
    assert payloads(wire.feed(0, data[:50])) == [A]
    assert payloads(wire.feed(0, data)) == [B]
    assert wire.stream.counters.retransmitted_bytes == 30 + 50


def test_of_overlapping_bytes_the_first_copy_wins():
    wire, data, other = Message(), framed(A), b"\xee" * SIZE
    wire.feed(4, data[4:10])
    wire.feed(12, data[12:20])
    wire.feed(10, data[10:12] + other[12:20])
    wire.feed(20, data[20:])
    assert payloads(wire.feed(0, data[:4] + other[4:])) == [A]


def test_one_segment_may_fill_several_holes():
    wire, data = Message(), framed(A, B)
    for start in (5, 15, 25, 40):
        assert wire.feed(start, data[start : start + 5]) == []
    assert payloads(wire.feed(0, data)) == [A, B]
    assert wire.stream.counters.retransmitted_bytes == 20


@pytest.mark.parametrize("isn", [2**32 - 1, 2**32 - 2, 2**32 - 20, 2**32 - SIZE - 1, 2**31 - 10])
def test_sequence_numbers_wrap_around(isn):
    wire, data = Message(isn), framed(A, B, C)
    wire.feed(60, data[60:])
    assert payloads(wire.feed(0, data[:60])) == [A, B, C]
    assert payloads(wire.feed(3 * SIZE, framed(D))) == [D]
    assert wire.feed(0, data) == []


def test_a_stream_may_be_longer_than_the_sequence_numbers():
    wire, big = Message(2**32 - 100_000), framed(message(1, data=bytes(30_000)))
    for count in range(8):
        assert len(wire.feed(count * len(big), big)) == 1


# Lost by the capture.


def test_after_a_lost_message_the_next_is_found_but_not_certain_until_a_second_agrees():
    wire, data = Message(), framed(A, B, C, D)
    assert payloads(wire.feed(0, data[:SIZE])) == [A]
    assert wire.feed(2 * SIZE, framed(C)) == []
    found = wire.stream.expire(wire.now_ns + GAP_WAIT_NS + 1) + wire.feed(3 * SIZE, framed(D))
    assert [(each.payload, each.certain) for each in found] == [(C, False), (D, True)]
    counters = wire.stream.counters
    assert (counters.gaps, counters.gap_bytes, counters.resynchronisations) == (1, SIZE, 1)


def test_a_gap_is_given_up_when_later_segments_show_that_it_is_overdue():
    wire = Message()
    wire.feed(SIZE, framed(B))
    wire.now_ns += GAP_WAIT_NS + 1
    assert payloads(wire.feed(2 * SIZE, framed(C))) == [B, C]


def test_a_gap_waits_for_a_retransmission():
    wire = Message()
    wire.feed(SIZE, framed(B))
    wire.now_ns += SECOND
    assert wire.feed(2 * SIZE, framed(C)) == []
    assert payloads(wire.feed(0, framed(A))) == [A, B, C]


def test_a_gap_inside_a_message_costs_that_messages_tail_alone():
    wire, data = Message(), framed(A, B, C)
    wire.feed(0, data[:20])
    wire.feed(SIZE - 3, data[SIZE - 3 :])
    found = wire.stream.flush()
    assert [(each.payload, each.length_bytes, each.certain) for each in found] == [
        (A[:18], len(A), True),
        (B, len(B), True),
        (C, len(C), True),
    ]
    assert wire.stream.counters.resynchronisations == 0


def test_what_the_receiver_acknowledged_is_not_waited_for():
    wire = Message()
    wire.feed(SIZE, framed(B))
    assert wire.stream.acknowledge(wire.isn + 1 + SIZE - 1) == []
    assert payloads(wire.stream.acknowledge(wire.isn + 1 + 3 * SIZE)) == [B]
    assert payloads(wire.feed(3 * SIZE, framed(D))) == [D]
    assert wire.stream.counters.gap_bytes == 2 * SIZE


def test_an_acknowledgement_of_what_was_seen_loses_nothing():
    wire = Message()
    assert wire.stream.acknowledge(wire.isn + 1) == []
    wire.feed(0, framed(A))
    assert wire.stream.acknowledge(wire.isn + 1 + SIZE) == []
    wire.feed(SIZE, flags=FIN)
    assert wire.stream.acknowledge(wire.isn + 2 + SIZE) == []  # a FIN counts as one
    assert wire.stream.counters.gaps == 0


def test_too_many_bytes_beyond_a_gap_give_it_up():
    wire, big = Message(), framed(message(1, data=bytes(1400)))
    found = []
    for count in range(1, 60):
        found += wire.feed(count * len(big), big)
        assert wire.stream._held_cost <= MAX_BUFFER_BYTES
    assert len(found) == 59
    assert [each.certain for each in found[:3]] == [False, True, True]


def test_a_message_cut_by_the_capture_says_so_and_the_stream_goes_on():
    wire, big = Message(), message(1, data=bytes(1200))
    data = framed(big)
    assert wire.feed(0, data[:96], length=len(data)) == [StreamMessage(big[:94], len(big), 2, 2, 1, certain=True)]
    assert payloads(wire.feed(len(data), framed(B))) == [B]
    assert wire.stream.counters.cut_bytes == len(data) - 96


def test_a_message_whose_first_segment_was_cut_has_no_bytes_of_the_second():
    wire, big = Message(), message(1, data=bytes(range(256)) * 8)
    data = framed(big)
    assert wire.feed(0, data[:96], length=1460) == []
    (found,) = wire.feed(1460, data[1460:])
    assert (found.payload, found.length_bytes, found.segments) == (big[:94], len(big), 2)


def test_a_prefix_cut_by_the_capture_costs_the_boundary_until_the_next_segment():
    wire = Message()
    found = wire.feed(0, framed(A), length=2 * SIZE) + wire.feed(2 * SIZE, framed(C, D))
    assert [(each.payload, each.certain) for each in found] == [(A, True), (C, False), (D, True)]


def test_a_cut_message_can_be_found_again_too():
    data = framed(message(1, data=bytes(1200)))
    (found,) = Message(syn=False).feed(0, data[:20], length=len(data))
    assert (found.payload, found.length_bytes, found.certain) == (data[2:20], len(data) - 2, False)
    assert Message(syn=False).feed(0, data[:13], length=len(data)) == []  # not even a header to judge by


# Older than the observer, reused, or far away.


def test_a_connection_older_than_the_observer_is_read_from_the_next_message():
    wire, data = Message(syn=False), framed(A, B, C)
    found = wire.feed(20, data[20:SIZE]) + wire.feed(SIZE, framed(B)) + wire.feed(2 * SIZE, framed(C))
    assert [(each.payload, each.certain) for each in found] == [(B, False), (C, True)]
    assert not wire.stream.opened
    assert wire.stream.counters.skipped_bytes == SIZE - 20


@pytest.mark.parametrize("cut", [1, 2, 3, 13, 14, 20, SIZE - 1])
def test_a_boundary_is_found_even_where_the_message_is_split(cut):
    wire, data = Message(syn=False), framed(A)
    wire.feed(-100, b"\xff" * 100)
    assert wire.feed(0, data[:cut]) == []
    (found,) = wire.feed(cut, data[cut:])
    assert (found.payload, found.segments, found.certain) == (A, 2, False)


def test_a_body_without_its_prefix_is_not_taken_for_a_message():
    wire = Message(syn=False)
    assert wire.feed(2, A) == []
    assert wire.feed(SIZE, framed(B)[:2]) == []
    assert payloads(wire.feed(SIZE + 2, B)) == [B]


@pytest.mark.parametrize(
    "lookalike",
    [
        A[:12] + b"\x80" * 17 + A[29:],  # a label type that does not exist
        A[:-2] + b"\x7f\xff",  # a class that does not exist
        A + b"\0",  # bytes after the question, but no record
        b"\0\0\x78\0" + A[4:],  # opcode 15
        A[:6] + b"\0\1" + A[8:],  # a record, but no bytes for it
        A[:12] + b"\x3f" * (len(A) - 12),  # a name that does not end
    ],
)
def test_what_only_resembles_a_message_is_no_boundary(lookalike):
    wire = Message(syn=False)
    assert wire.feed(0, framed(lookalike)) == []
    assert payloads(wire.feed(len(lookalike) + 2, framed(B))) == [B]


def test_a_boundary_that_the_next_message_contradicts_is_given_up():
    wire = Message(syn=False)
    assert payloads(wire.feed(0, framed(A) + b"\xff" * 50)) == [A]
    (found,) = wire.feed(SIZE + 50, framed(B))
    assert (found.payload, found.certain) == (B, False)
    assert wire.stream.counters.resynchronisations == 2


def test_a_connection_opened_again_with_the_same_ports_starts_over():
    wire = Message()
    wire.feed(0, framed(A)[:20])
    wire.feed(20, flags=FIN)
    wire.isn = 3_000_000_000
    wire.feed(-1, flags=SYN)
    assert wire.stream.closed is None
    assert payloads(wire.feed(0, framed(B))) == [B]


def test_one_segment_far_away_is_ignored():
    wire = Message()
    assert wire.feed(2 * MAX_JUMP_BYTES, framed(D)) == []
    assert payloads(wire.feed(0, framed(A))) == [A]
    assert wire.stream.counters.stray_segments == 1


def test_two_segments_in_a_row_far_away_are_where_the_stream_is():
    wire, far = Message(), 2**31
    wire.feed(0, framed(A))
    assert wire.feed(far, framed(B)) == []
    found = wire.feed(far + SIZE, framed(C)) + wire.feed(far + 2 * SIZE, framed(D))
    assert [(each.payload, each.certain) for each in found] == [(C, False), (D, True)]


# Not DNS.


@pytest.mark.parametrize("syn", [True, False])
def test_random_bytes_are_not_taken_for_messages(syn):
    segments = 5000
    raw = shake_128(b"neither DNS nor anything else").digest(segments * 400)
    found = []
    for connection in range(50):
        wire = Message(syn=syn)
        for at in range(0, len(raw) // 50, 400):
            start = connection * len(raw) // 50 + at
            found += wire.feed(at, raw[start : start + 400])
    # After a SYN the first message begins where RFC 1035 says, so its length is believed once, but not its sense.
    assert len(found) <= (50 if syn else 0)
    assert not any(each.certain for each in found)


def test_something_else_on_the_dns_port_is_no_certain_message():
    wire, hello = Message(), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)
    found = [each for count in range(40) for each in wire.feed(count * len(hello), hello)]
    assert len(found) <= 1
    assert not any(each.certain for each in found)


# How it starts and ends.


def test_a_stream_says_that_it_was_opened_and_closed():
    wire = Message()
    assert (wire.stream.opened, wire.stream.closed) == (True, None)
    assert payloads(wire.feed(0, framed(A), FIN | ACK)) == [A]
    assert wire.stream.closed == "fin"
    wire.feed(SIZE + 1, flags=RST)
    assert wire.stream.closed == "fin"  # it ended in order, before that


def test_a_reset_ends_the_wait_for_missing_bytes():
    wire = Message()
    assert wire.feed(SIZE, framed(B)) == []
    assert payloads(wire.feed(2 * SIZE, b"go away", RST)) == [B]
    assert wire.stream.closed == "reset"


def test_a_refused_connection_is_told_from_one_that_was_reset():
    connection = Connection()
    connection.feed(10, SYN, b"", 0, 1, sender=Side.CLIENT)
    connection.feed(10, SYN, b"", 0, 2, sender=Side.CLIENT)
    connection.feed(0, RST | ACK, b"", 0, 3, sender=Side.SERVER)
    assert connection.facts == ConnectionFacts(syn=True, syn_retransmissions=1, refused=True)


def opened_connection() -> Connection:
    connection = Connection()
    connection.feed(10, SYN, b"", 0, 1, sender=Side.CLIENT)
    connection.feed(90, SYN | ACK, b"", 0, 2, sender=Side.SERVER)
    return connection


def test_a_connection_carries_queries_one_way_and_replies_the_other():
    connection = opened_connection()
    assert payloads(connection.feed(11, ACK, framed(A), SIZE, 3, sender=Side.CLIENT)) == [A]
    assert payloads(connection.feed(91, ACK, framed(B), SIZE, 4, sender=Side.SERVER)) == [B]
    connection.feed(11 + SIZE, FIN | ACK, b"", 0, 5, sender=Side.CLIENT)
    connection.feed(91 + SIZE, FIN | ACK, b"", 0, 6, sender=Side.SERVER)
    assert connection.facts == ConnectionFacts(syn=True, syn_ack=True, fin_by=Side.CLIENT)
    assert (connection.client_to_server.closed, connection.server_to_client.closed) == ("fin", "fin")


@pytest.mark.parametrize("side", list(Side))
def test_a_reset_connection_says_which_side_reset_it(side):
    connection = opened_connection()
    connection.feed(11, RST, b"", 0, 3, sender=side)
    assert connection.facts == ConnectionFacts(syn=True, syn_ack=True, reset_by=side)


def test_a_reset_after_a_query_is_no_refusal_even_if_the_answer_to_the_syn_was_not_seen():
    connection = Connection()
    connection.feed(10, SYN, b"", 0, 1, sender=Side.CLIENT)
    connection.feed(11, ACK, framed(A), SIZE, 2, sender=Side.CLIENT)
    connection.feed(91, RST, b"", 0, 3, sender=Side.SERVER)
    assert (connection.facts.refused, connection.facts.reset_by) == (False, Side.SERVER)


def test_a_new_connection_with_the_same_ports_has_facts_of_its_own():
    connection = opened_connection()
    connection.feed(91, RST, b"", 0, 3, sender=Side.SERVER)
    connection.feed(5000, SYN, b"", 0, 4, sender=Side.CLIENT)
    connection.feed(0, RST | ACK, b"", 0, 5, sender=Side.SERVER)
    assert connection.facts == ConnectionFacts(syn=True, refused=True)


# Anything that can happen to a stream.

labels = st.binary(min_size=1, max_size=63)
names = st.lists(labels, max_size=3).map(
    lambda parts: b"".join(bytes([len(part)]) + part for part in parts) + b"\0",
)
messages = st.builds(
    message,
    ident=st.integers(0, 0xFFFF),
    name=names,
    data=st.binary(max_size=300),
    flags=st.sampled_from([0x0000, 0x0100, 0x8180, 0x8583, 0x8182]),
)
sequence_numbers = st.integers(0, 2**32 - 1) | st.integers(2**32 - 3000, 2**32 - 1)


@st.composite
def split_streams(draw: st.DrawFn) -> tuple[list[bytes], int, list[tuple[int, int]], bytes]:
    """Messages, the ISN, the ranges of the segments in the order they are seen, and the bytes."""
    sent = draw(st.lists(messages, min_size=1, max_size=8))
    data = framed(*sent)
    edges = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=25))})
    segments = list(pairwise(edges))
    for _ in range(draw(st.integers(0, 6))):  # sent again, split differently
        first, second = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        segments.insert(draw(st.integers(0, len(segments))), (first, second))
    delays = draw(st.lists(st.integers(0, 8), min_size=len(segments), max_size=len(segments)))
    order = sorted(range(len(segments)), key=lambda index: index + delays[index])
    return sent, draw(sequence_numbers), [segments[index] for index in order], data


@settings(max_examples=300)
@given(split_streams())
def test_any_segmentation_repetition_and_reordering_gives_exactly_the_messages(case):
    sent, isn, segments, data = case
    wire = Message(isn)
    found = [each for start, end in segments for each in wire.feed(start, data[start:end])]
    assert payloads(found) == sent
    assert all(each.certain and each.length_bytes == len(each.payload) for each in found)
    assert (wire.stream.counters.gaps, wire.stream.counters.skipped_bytes) == (0, 0)
    assert wire.stream.unfinished_bytes == wire.stream._held_cost == 0


@settings(max_examples=300)
@given(split_streams(), st.data(), st.booleans())
def test_with_losses_and_cuts_every_certain_message_was_sent_in_that_order(case, data_of_test, syn):
    sent, isn, segments, data = case
    wire, found = Message(isn, syn=syn), []
    for start, end in segments:
        fate = data_of_test.draw(st.sampled_from(["seen", "seen", "lost", "cut", "acknowledged"]))
        kept = data_of_test.draw(st.integers(0, end - start)) if fate == "cut" else end - start
        if fate == "acknowledged":
            found += wire.stream.acknowledge((isn + 1 + end) % 2**32)
        elif fate != "lost":
            found += wire.feed(start, data[start : start + kept], length=end - start)
    found += wire.stream.flush()
    left = iter(sent)
    for each in found:
        assert len(each.payload) <= each.length_bytes
        if each.certain:
            assert any(len(one) == each.length_bytes and one.startswith(each.payload) for one in left)


anything = st.tuples(
    st.integers(0, 2**32 - 1) | st.integers(0, 3000) | st.integers(),
    st.integers(0, 255) | st.sampled_from([ACK, ACK, ACK, SYN, FIN, RST]),
    st.binary(max_size=40) | st.builds(framed, messages) | st.binary(max_size=2).map(lambda raw: raw * 600),
    st.integers(-5, 100) | st.integers(0, 2**40),
    st.integers(0, 10 * SECOND),
    st.sampled_from(list(Side)),
)


@settings(max_examples=200)
@given(st.lists(anything, max_size=60))
def test_hostile_segments_never_raise_and_never_fill_the_memory(segments):
    bound = 4096
    connection = Connection(max_buffer_bytes=bound)
    for seq, flags, payload, length, ts_ns, sender in segments:
        connection.feed(seq, flags, payload, length, ts_ns, sender=sender)
        for stream in (connection.client_to_server, connection.server_to_client):
            stream.acknowledge(seq + length)
            assert stream._held_cost <= bound
            assert stream._held_cost == sum(len(chunk.data) + SEGMENT_COST_BYTES for chunk in stream._held)
            assert all(first.end <= second.start for first, second in pairwise(stream._held))
            assert len(stream._framer.collected) <= MAX_MESSAGE + 2
            assert sum(len(chunk.data) for chunk in stream._framer.tried) < 300
    for stream in (connection.client_to_server, connection.server_to_client):
        stream.expire(20 * SECOND)
        assert stream.flush() == []
        assert stream._held == []


@pytest.mark.parametrize(
    "segments",
    [
        [(2 * at + 1, b"\0") for at in range(20_000)],  # every other byte
        [(20_000 - at, b"\1") for at in range(20_000)],  # backwards
        [(at, b"\x3f") for at in range(20_000)],  # one byte each
        [(at * 1460, bytes(1460)) for at in range(1000)],  # nothing but messages without bytes
    ],
)
@pytest.mark.parametrize("syn", [True, False])
def test_hostile_streams_cost_microseconds_per_byte(segments, syn):
    wire = Message(syn=syn)
    start = time.process_time()
    for offset, raw in segments:
        wire.feed(offset, raw)
    assert (time.process_time() - start) / sum(len(raw) for _, raw in segments) < 100e-6


def test_the_usual_segment_takes_microseconds():
    stream, data, best = Stream(), framed(A), 1.0
    stream.feed(0, SYN, b"", 0, 0)
    seq = 1
    for _ in range(5):
        start = time.process_time()
        for _ in range(10_000):
            stream.feed(seq, ACK, data, SIZE, 0)
            seq += SIZE
        best = min(best, (time.process_time() - start) / 10_000)
    assert best < 20e-6  # 0.7 us on a quiet machine
