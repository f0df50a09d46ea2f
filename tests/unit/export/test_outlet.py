"""What a reader of the lines can rely on, and that no reader can keep the agent."""

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.export.outlet import CAPACITY_BYTES, Outlet

LINE = "x" * 999 + "\n"
PATIENCE_SECONDS = 10.0
AT_ONCE_SECONDS = 0.5


class Pipe:
    """Both ends, each closed once: a number that was closed may be somebody else's by now."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._ends = {self.reader, self.writer}

    def read(self, data: int) -> bytes:
        got = b""
        while len(got) < data:
            got += os.read(self.reader, data - len(got))
        return got

    def close(self, *ends: int) -> None:
        for end in self._ends.intersection(ends):
            self._ends.discard(end)
            os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close(made.reader, made.writer)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fill(outlet: Outlet, lines: int = 1000) -> float:
    """Write lines, each flushed on its own; the longest that one of them took."""
    longest = 0.0
    for _ in range(lines):
        begun = time.monotonic()
        outlet.write(LINE)
        outlet.flush()
        longest = max(longest, time.monotonic() - begun)
    return longest


def test_lines_arrive_in_order_and_whole(pipe: Pipe):
    outlet = Outlet(pipe.writer)
    text = "".join(f"line {number} ü\n" for number in range(1009))
    reader = threading.Thread(target=lambda: got.append(pipe.read(len(text.encode()))))
    got: list[bytes] = []
    reader.start()
    for number, line in enumerate(text.splitlines(keepends=True)):
        outlet.write(line)
        if number % 7 == 0:
            outlet.flush()
    outlet.close(PATIENCE_SECONDS)
    reader.join(PATIENCE_SECONDS)
    assert got[0].decode() == text
    assert (outlet.lost, outlet.waiting_bytes, outlet.failure) == (0, 0, None)


def test_a_line_leaves_with_the_flush_and_not_before(pipe: Pipe):
    outlet = Outlet(pipe.writer)
    os.set_blocking(pipe.reader, False)
    outlet.write("first\n")
    assert outlet.waiting_bytes == 6
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 6)
    outlet.flush()
    until(lambda: outlet.waiting_bytes == 0)
    assert os.read(pipe.reader, 100) == b"first\n"
    outlet.close(PATIENCE_SECONDS)


def test_a_reader_who_stops_never_keeps_the_writer_and_memory_stays_bounded(pipe: Pipe):
    outlet = Outlet(pipe.writer, capacity_bytes=100_000)
    assert fill(outlet, 1000) < AT_ONCE_SECONDS
    assert outlet.waiting_bytes <= 100_000
    assert outlet.lost > 700  # a pipe holds 64 KiB
    lost = outlet.lost
    received = pipe.read(1000 * (1000 - lost))
    assert received == LINE.encode() * (1000 - lost)
    until(lambda: outlet.waiting_bytes == 0)
    outlet.write("again\n")
    outlet.close(PATIENCE_SECONDS)
    assert pipe.read(6) == b"again\n"
    assert outlet.lost == lost


def test_what_a_stopped_reader_never_took_is_counted_as_lost_when_the_agent_ends(pipe: Pipe):
    outlet = Outlet(pipe.writer)
    fill(outlet, 1000)
    assert outlet.lost == 0
    begun = time.monotonic()
    outlet.close(0.2)
    assert 0.2 <= time.monotonic() - begun < 0.2 + AT_ONCE_SECONDS
    in_pipe = 64
    assert outlet.lost in range(1000 - in_pipe - 2, 1001)
    # the thread is still at it, and this process goes on: let it end before the descriptor becomes another's
    pipe.close(pipe.reader)
    until(lambda: not outlet._thread.is_alive())


def test_a_reader_who_left_is_told_to_the_writer(pipe: Pipe):
    outlet = Outlet(pipe.writer)
    pipe.close(pipe.reader)
    outlet.write("first\n")
    with pytest.raises(BrokenPipeError):
        until(lambda: outlet.flush() is not None)
    with pytest.raises(BrokenPipeError):
        outlet.close(PATIENCE_SECONDS)
    assert outlet.lost == 1


def test_a_full_disk_loses_lines_but_neither_the_agent_nor_later_lines(tmp_path: Path):
    """The limit on a file's size stands for the full disk: both take a part of a write, then refuse."""
    path = tmp_path / "lines"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("wb") as out:
        outlet = Outlet(out.fileno())
        outlet.write("a whole line\n")
        outlet.flush()
        until(lambda: outlet.waiting_bytes == 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        try:
            outlet.write("a torn line\n")
            outlet.write("a lost line\n")
            outlet.flush()
            until(lambda: outlet.waiting_bytes == 0)
            assert (outlet.lost, outlet.failure) == (2, os.strerror(errno.EFBIG))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        outlet.write("a later line\n")
        outlet.close(PATIENCE_SECONDS)
    assert path.read_text().splitlines() == ["a whole line", "a torn ", "a later line"]
    assert (outlet.lost, outlet.failure) == (2, None)


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for(pipe: Pipe):
    os.set_blocking(pipe.writer, False)
    outlet = Outlet(pipe.writer)
    fill(outlet, 500)
    assert pipe.read(500_000) == LINE.encode() * 500
    outlet.close(PATIENCE_SECONDS)
    assert (outlet.lost, outlet.failure) == (0, None)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), max_size=60), capacity=st.integers(1, 20_000))
def test_every_line_is_received_or_lost_and_counted(sizes: list[int], capacity: int):
    reader, writer = os.pipe()
    outlet = Outlet(writer, capacity)
    for size in sizes:
        outlet.write("y" * (size - 1) + "\n")
        assert outlet.waiting_bytes <= capacity
        outlet.flush()
    received = bytearray()
    late = threading.Thread(target=lambda: received.extend(b"".join(iter(lambda: os.read(reader, 1 << 16), b""))))
    late.start()
    outlet.close(PATIENCE_SECONDS)
    os.close(writer)
    late.join(PATIENCE_SECONDS)
    os.close(reader)
    assert received.count(b"\n") + outlet.lost == len(sizes)


def test_who_writes_without_flushing_loses_nothing_that_a_reader_takes(pipe: Pipe):
    outlet = Outlet(pipe.writer)
    got: list[bytes] = []
    lines = 3 * CAPACITY_BYTES // len(LINE)
    reader = threading.Thread(target=lambda: got.append(pipe.read(lines * len(LINE))))
    reader.start()
    for _ in range(lines):
        until(lambda: outlet.waiting_bytes < CAPACITY_BYTES // 2)
        outlet.write(LINE)
    outlet.close(PATIENCE_SECONDS)
    reader.join(PATIENCE_SECONDS)
    assert outlet.lost == 0
    assert got == [LINE.encode() * lines]
