"""Readers of the agent's socket: real sockets, a real thread, and readers that mean harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.lab.processes import PATIENCE
from agent.readers.hub import Hub, Limits
from agent.readers.place import Place

SECONDS = 10.0 * PATIENCE
LIMITS = Limits(readers=3, queue_bytes=1 << 20, request_seconds=0.5)
LINE = b'{"Time":"x"}\n'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(Place(str(tmp_path / "trace.sock")), LIMITS) as hub:
        yield hub


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)


def connect(hub: Hub, request: bytes = b"{}\n") -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(hub.place.path))
    if request:
        connection.sendall(request)
    return connection


def reader(hub: Hub, request: bytes = b"{}\n") -> socket.socket:
    """One who has been heard."""
    before = len(hub.readers)
    connection = connect(hub, request)
    until(lambda: len(hub.readers) == before + 1, "the reader is there")
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the agent hangs up."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass  # it hung up with bytes of ours unread
    return found


def test_lines_come_to_all_who_are_connected(hub: Hub):
    connections = [reader(hub), reader(hub)]
    for one in hub.readers:
        one.put(LINE)
    hub.wake()
    assert [connection.recv(100) for connection in connections] == [LINE, LINE]


def test_what_a_reader_wants_can_be_changed_while_he_reads(hub: Hub):
    connection = reader(hub, b'{"Names":["a"]}\n')
    assert hub.readers[0].wanted.filter.names == ("a",)
    connection.sendall(b'{"Names":')
    connection.sendall(b'["b"]}\n')
    until(lambda: hub.readers[0].wanted.filter.names == ("b",), "the filter is the new one")


def test_a_reader_who_goes_is_forgotten(hub: Hub):
    reader(hub).close()
    until(lambda: not hub.readers, "he is forgotten")


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\xff\xfe\n",
        b'{"Names":7}\n',
        b"x" * 200_000,
        b'{"Unknown":1}\n',
        b"[" * 60_000 + b"\n",
    ],
)
def test_garbage_is_refused_with_the_reason_and_harms_nobody_else(hub: Hub, request_line: bytes):
    other = reader(hub)
    connection = connect(hub, b"")
    with suppress(BrokenPipeError, ConnectionResetError):  # it hung up already
        connection.sendall(request_line)
    answer = rest(connection)
    assert not answer or json.loads(answer)["Kind"] == "Refused"
    hub.readers[0].put(LINE)
    hub.wake()
    assert other.recv(100) == LINE


def test_garbage_after_a_request_ends_that_reader_alone(hub: Hub):
    other, connection = reader(hub), reader(hub)
    connection.sendall(b"nonsense\n")
    assert json.loads(rest(connection))["Kind"] == "Refused"
    until(lambda: len(hub.readers) == 1, "he is forgotten")
    hub.readers[0].put(LINE)
    hub.wake()
    assert other.recv(100) == LINE


def test_half_a_request_is_waited_for_a_while_and_then_not(hub: Hub):
    silent, half = connect(hub, b""), connect(hub, b'{"Names":["a"')
    assert rest(silent) == rest(half) == b""
    assert hub.readers == ()


def test_there_is_a_bound_on_readers_and_who_is_too_many_is_told(hub: Hub):
    connections = [reader(hub) for _ in range(LIMITS.readers)]
    assert "3 readers already" in json.loads(rest(connect(hub, b"")))["Reason"]
    assert len(hub.readers) == len(connections)


def test_a_slow_reader_loses_lines_that_are_counted_and_keeps_nobody(hub: Hub):
    slow, quick = reader(hub), reader(hub)
    line = b"x" * 9_999 + b"\n"
    received: list[int] = []

    def read() -> None:
        count = 0
        while count < 400 * len(line):
            count += len(quick.recv(1 << 20))
        received.append(count)

    thread = threading.Thread(target=read)
    thread.start()
    began = time.monotonic()
    for number in range(400):
        for one in hub.readers:
            one.put(line)
        hub.wake()
        if number % 20 == 0:  # as turns of the agent's loop are apart
            time.sleep(0.005)
    took = time.monotonic() - began
    thread.join(SECONDS)
    assert received == [400 * len(line)]
    sluggish, swift = hub.readers
    assert swift.dropped == 0
    assert sluggish.dropped > 200
    assert took < 2 * PATIENCE
    sluggish.tell("State", b'{"Kind":"State"}\n')
    hub.wake()
    got = b""
    while b"State" not in got:
        got += slow.recv(1 << 20)
    assert got.count(b"x\n") + sluggish.dropped == 400


def test_a_notice_that_was_not_taken_is_replaced_by_the_next(hub: Hub):
    connection = reader(hub)
    one = hub.readers[0]
    for number in range(1000):
        one.tell("State", b"%d\n" % number)
    hub.wake()
    assert connection.recv(100) == b"999\n"


def test_at_the_end_readers_get_what_waits(tmp_path: Path):
    with Hub(Place(str(tmp_path / "trace.sock"))) as hub:
        connection = reader(hub)
        hub.readers[0].put(LINE)
    assert rest(connection) == LINE
    assert not (tmp_path / "trace.sock").exists()


def test_a_reader_who_reads_nothing_cannot_keep_the_agent_from_ending(tmp_path: Path):
    with Hub(Place(str(tmp_path / "trace.sock"))) as hub:
        connection = reader(hub)
        for _ in range(300):
            hub.readers[0].put(b"x" * 10_000 + b"\n")
        hub.wake()
        began = time.monotonic()
    assert time.monotonic() - began < 1.0 * PATIENCE
    connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_are_not_heard_even_where_the_file_lets_them(hub: Hub):
    hub.place.path.chmod(0o666)
    for folder in hub.place.path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o001)
    code = (
        "import socket, sys; c = socket.socket(socket.AF_UNIX); c.settimeout(10); c.connect(sys.argv[1]);"
        "c.sendall(b'{}\\n'); print(c.recv(10))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(hub.place.path)], user=65534, capture_output=True, text=True, check=False
    )
    assert done.stdout in ("b''\n", "")
    assert hub.readers == ()


def test_signals_are_left_to_the_main_thread(hub: Hub):
    reader(hub)
    found: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: found.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: found, "the signal came")
    finally:
        signal.signal(signal.SIGUSR1, before)
