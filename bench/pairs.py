"""Pairs of A and AAAA from one socket, as the C library asks; a program that runs in a pod.

    python pairs.py ADDRESS RATE SECONDS FILE      prints how many lookups it made, and how many were answered

FILE has a name a line. The rate is of lookups a second: two for each name.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct("!HHHHHH")
RECURSION_DESIRED = 0x0100
A, AAAA, IN = 1, 28, 1
SOCKETS = 64
REPLY_BYTES = 4096
TURN_SECONDS = 0.002
WAIT_SECONDS = 1.0


def queries(names: list[str]) -> Iterator[tuple[bytes, bytes]]:
    """The two queries for each name, over and over, with ids that do not come again soon."""
    wires = [b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0" for name in names]
    for number, wire in enumerate(cycle(wires)):
        first, second = (
            HEADER.pack((2 * number + half) & 0xFFFF, RECURSION_DESIRED, 1, 0, 0, 0)
            + wire
            + struct.pack("!HH", rdtype, IN)
            for half, rdtype in enumerate((A, AAAA))
        )
        yield first, second


def send(sock: socket.socket, query: bytes) -> bool:
    """Send one; whether it was sent. An ICMP error about an earlier one is told instead, once."""
    for _ in range(2):
        try:
            return sock.send(query) > 0
        except ConnectionRefusedError:
            continue
        except BlockingIOError:
            return False
    return False


def drain(sockets: list[socket.socket]) -> int:
    """Read all replies that are there; how many."""
    found = 0
    for sock in sockets:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                sock.recv(REPLY_BYTES)
                found += 1
    return found


def main(address: str, rate: int, seconds: float, names: list[str]) -> None:
    """Ask, as even as a turn of 2 ms allows."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SOCKETS)]
    for sock in sockets:
        sock.connect((address, 53))
        sock.setblocking(False)
    pairs, ring = queries(names), cycle(sockets)
    begun, sent, answered = time.monotonic(), 0, 0
    while (now := time.monotonic() - begun) < seconds:
        due = rate * now - sent
        while due > 0:
            due -= 2
            sock = next(ring)
            sent += sum(send(sock, query) for query in next(pairs))
        answered += drain(sockets)
        time.sleep(TURN_SECONDS)
    end = time.monotonic() + WAIT_SECONDS
    while answered < sent and time.monotonic() < end:
        answered += drain(sockets)
        time.sleep(TURN_SECONDS)
    print(sent, answered)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]).read_text().split())
