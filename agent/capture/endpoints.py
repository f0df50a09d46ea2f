"""DNS servers on other ports than DNS's, as the BPF program knows them: taught here what only the cluster can tell.

The program learns by itself what a translation on this node makes of a query. It cannot learn where a client's socket
translates before there is a packet, or where another node has translated.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

from agent.kernel.syscall import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.hop.endpoint import Endpoint

_KEY = struct.Struct("=16sIHBx")
_VALUE = struct.Struct("=Q")
MARKS = 2048
MARK_SHIFT, MARK_SET, MARK_AGE = 35, 0x80, 0x7F
ARMED = MARKS + 4 * 128 + 8 * 64 + 8 * 64
"""Where struct sieve has it; the marks are at its beginning."""
SEED = ARMED + 8
SIEVE_BYTES = SEED + 8
ENDPOINTS_ASSERTION = (
    f'_Static_assert(__builtin_offsetof(struct sieve, armed) == {ARMED}, "armed");\n'
    f'_Static_assert(__builtin_offsetof(struct sieve, seed) == {SEED}, "seed");\n'
    f'_Static_assert(sizeof(struct sieve) == {SIEVE_BYTES}, "size of struct sieve");\n'
    f'_Static_assert(sizeof(struct endpoint) == {_KEY.size}, "size of struct endpoint");\n'
    f'_Static_assert(MARKS == {MARKS} && MARK_SHIFT == {MARK_SHIFT}, "marks of ports");\n'
    f'_Static_assert(MARK_SET == {MARK_SET} && MARK_AGE == {MARK_AGE}, "marks of ports");\n'
)


def mark_of(now_ns: int) -> int:
    """What the program finds at a port that was learned at this time of CLOCK_MONOTONIC."""
    return MARK_SET | (now_ns >> MARK_SHIFT & MARK_AGE)


class EndpointMap:
    """The maps `endpoints` and `sieves` of the loaded program."""

    def __init__(self, endpoints_fd: int, sieve_fd: int) -> None:
        self._fd = endpoints_fd
        self._sieve = mmap.mmap(sieve_fd, SIEVE_BYTES, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def arm(self) -> None:
        """Let all programs begin to record, at once."""
        self._sieve[SEED:] = os.urandom(_VALUE.size)
        self._sieve[ARMED:SEED] = _VALUE.pack(1)

    def teach(self, servers: Iterable[tuple[int, Endpoint]], now_ns: int) -> None:
        """Say that DNS servers are there.

        Args:
            servers: IANA protocol number, address and port of each.
            now_ns: CLOCK_MONOTONIC.
        """
        value = _VALUE.pack(now_ns)
        for protocol, (address, port) in servers:
            update(self._fd, _KEY.pack(address, 0, port, protocol), value)
            self._sieve[port % MARKS] = mark_of(now_ns)

    def close(self) -> None:
        """Unmap."""
        self._sieve.close()
