"""agent.capture.ring: a ring in memory, laid out as the kernel's, read in batches."""

import mmap
import os
import re
import struct
from pathlib import Path

import pytest

from agent.capture.ring import BUSY, DISCARD, LONGEST_BYTES, Ring
from agent.hop.record import DETAIL, HEAD, STACK_FRAMES, Head

PAGE = mmap.PAGESIZE
SIZE = 4096
RECORD = HEAD.size + DETAIL.size


def head(ts_ns: int, tail_bytes: int) -> bytes:
    fields = dict.fromkeys(Head._fields, 0) | {"ts_ns": ts_ns, "netns": 3, "tail_bytes": tail_bytes}
    return HEAD.pack(*Head(**fields))


class Producer:
    """The kernel's end: position pages, then the data twice, because a file cannot be mapped as the kernel does."""

    def __init__(self, size: int = SIZE, position: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        self.size, self.position = size, position
        os.ftruncate(self.fd, 2 * PAGE + 2 * size)
        for page in (0, PAGE):
            os.pwrite(self.fd, struct.pack("=Q", position), page)

    def write(self, ts_ns: int, tail: bytes = b"", flags: int = 0) -> int:
        raw = head(ts_ns, len(tail)) + bytes(DETAIL.size) + tail
        begin = self.position
        self.put(begin, struct.pack("=II", len(raw) | flags, 0) + raw)
        self.position += (8 + len(raw) + 7) & ~7
        os.pwrite(self.fd, struct.pack("=Q", self.position), PAGE)
        return begin

    def put(self, position: int, raw: bytes) -> None:
        for index, byte in enumerate(raw):
            at = 2 * PAGE + ((position + index) & (self.size - 1))
            os.pwrite(self.fd, bytes([byte]), at)
            os.pwrite(self.fd, bytes([byte]), at + self.size)

    def commit(self, begin: int, tail: bytes = b"") -> None:
        self.put(begin, struct.pack("=I", RECORD + len(tail)))

    @property
    def consumed(self) -> int:
        return struct.unpack("=Q", os.pread(self.fd, 8, 0))[0]


@pytest.fixture
def producer():
    made = Producer()
    yield made
    os.close(made.fd)


@pytest.fixture
def ring(producer):
    made = Ring(producer.fd, SIZE)
    yield made
    made.close()


def drained(ring, until=None):
    taken = []
    count = ring.drain(taken.append, ring.produced() if until is None else until)
    assert count == len(taken)
    return taken


def test_an_empty_ring_has_nothing(ring, producer):
    assert drained(ring) == []
    assert (producer.consumed, ring.backlog_bytes()) == (0, 0)


def test_records_come_in_order_with_their_bytes_and_their_room_is_given_back(ring, producer):
    producer.write(1, b"abc")
    producer.write(2)
    assert ring.backlog_bytes() == producer.position
    first, second = drained(ring)
    assert (first.ts_ns, first.netns, first.rest[DETAIL.size :]) == (1, 3, b"abc")
    assert (second.ts_ns, second.rest) == (2, bytes(DETAIL.size))
    assert producer.consumed == producer.position
    assert ring.backlog_bytes() == 0
    assert drained(ring) == []


def test_what_was_reserved_and_not_used_is_no_part_of_a_record(ring, producer):
    begin = producer.write(1, b"abcdef" + bytes(50))
    producer.put(begin + 8, head(1, 6))
    (only,) = drained(ring)
    assert only.rest[DETAIL.size :] == b"abcdef"
    assert producer.consumed == producer.position


def test_a_record_that_is_still_being_written_ends_the_batch(ring, producer):
    producer.write(1)
    busy = producer.write(2, flags=BUSY)
    producer.write(3)
    assert [one.ts_ns for one in drained(ring)] == [1]
    assert producer.consumed == busy
    producer.commit(busy)
    assert [one.ts_ns for one in drained(ring)] == [2, 3]


def test_a_discarded_record_is_skipped(ring, producer):
    producer.write(1)
    producer.write(2, b"never mind", flags=DISCARD)
    producer.write(3)
    assert [one.ts_ns for one in drained(ring)] == [1, 3]
    assert producer.consumed == producer.position


def test_only_discarded_records_are_given_back_too(ring, producer):
    producer.write(1, flags=DISCARD)
    assert drained(ring) == []
    assert producer.consumed == producer.position


def test_what_was_produced_after_the_look_waits_for_the_next_batch(ring, producer):
    producer.write(1)
    until = ring.produced()
    producer.write(2)
    assert [one.ts_ns for one in drained(ring, until)] == [1]
    assert [one.ts_ns for one in drained(ring)] == [2]


def test_records_across_the_end_are_whole_for_many_rounds(ring, producer):
    number = 0
    while producer.position < 5 * SIZE:
        tail = bytes(number & 0xFF for _ in range(number % 97))
        producer.write(number, tail)
        (only,) = drained(ring)
        assert (only.ts_ns, only.rest[DETAIL.size :]) == (number, tail)
        number += 1
    assert producer.consumed == producer.position


def test_a_long_record_at_the_end_of_a_ring_that_is_not_mapped_twice_is_whole():
    size = 4 * LONGEST_BYTES
    producer = Producer(size, size - 100)
    tail = bytes(range(256)) * 16
    producer.write(1, tail)
    producer.write(2)
    ring, taken = Ring(producer.fd, size), []
    assert ring.drain(taken.append, producer.position) == 2
    assert [hop.ts_ns for hop in taken] == [1, 2]
    assert taken[0].rest[DETAIL.size :] == tail
    ring.close()
    os.close(producer.fd)


def test_what_is_mapped_behind_the_ring_has_room_for_the_longest_record():
    (largest,) = re.findall(r"^#define LARGE (\d+)$", Path("bpf/emit.h").read_text(), re.MULTILINE)
    assert RECORD + 8 * STACK_FRAMES + int(largest) + struct.calcsize("=II") <= LONGEST_BYTES
