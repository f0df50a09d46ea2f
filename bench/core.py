"""What one lookup costs the agent's core, without a kernel: ring reading, joining, judging, explaining, printing.

Lookups of eight hops through a Service address, 50 000 a second, interleaved as on a node, come from a file that looks
like the kernel's ring buffer.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import mmap
import os
import pstats
import struct
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from agent.capture.ring import RECORD_HEADER, Ring
from agent.explain.rules import explain
from agent.export import line
from agent.export.filters import Filter, is_problem
from agent.hop.endpoint import V4_MAPPED
from agent.hop.record import DETAIL, HEAD, Detail, Event, Flag, Head, Hop
from agent.session.outcome import Status
from agent.session.table import SessionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.explain.verdict import Verdict
    from agent.session.outcome import Outcome

Result = TypeVar("Result")

BATCH = 5_000
SPACING_NS = 19_000
"""A batch spans less than the time that an answered session lingers, so that joining and judging can be told apart."""
PAUSE_NS = 500_000_000
RING_BYTES = 16 << 20
EVERY_LINE = 10
"""One lookup in so many gets a line built."""
CLIENT, NODE, SERVER = 4026532001, 4026532002, 4026532003
CLIENT_IP, VIP, SERVER_IP = (V4_MAPPED + bytes(ip) for ip in ((10, 244, 1, 10), (10, 96, 0, 10), (10, 244, 2, 53)))
PLAIN, REPLY_INFO = 0, 3


class Place(NamedTuple):
    """One of the eight places a lookup passes."""

    after_ns: int
    event: Event
    netns: int
    ifindex: int
    ifname: bytes
    response: bool
    server: bytes
    """The server's address as the packet spells it there."""
    tracked: bool
    """Whether the conntrack entry hangs on the packet."""


HOPS = (
    Place(0, Event.TX, CLIENT, 2, b"eth0", False, VIP, False),
    Place(23_000, Event.RX, NODE, 3, b"vethc1", False, VIP, False),
    Place(46_100, Event.TX, NODE, 4, b"veths1", False, SERVER_IP, True),
    Place(47_500, Event.RX, SERVER, 2, b"eth0", False, SERVER_IP, False),
    Place(125_600, Event.TX, SERVER, 2, b"eth0", True, SERVER_IP, False),
    Place(128_600, Event.RX, NODE, 4, b"veths1", True, SERVER_IP, False),
    Place(137_600, Event.TX, NODE, 3, b"vethc1", True, VIP, True),
    Place(138_600, Event.RX, CLIENT, 2, b"eth0", True, VIP, False),
)


def messages(number: int) -> tuple[bytes, bytes]:
    """Query and reply of one lookup."""
    labels = (f"api-{number:06d}".encode(), b"shop", b"svc", b"cluster", b"local", b"")
    question = b"".join(bytes([len(label)]) + label for label in labels) + struct.pack("!HH", 1, 1)
    answer = struct.pack("!HHHIH4s", 0xC00C, 1, 1, 30, 4, b"\x0a\x60\x09\x09")
    query = struct.pack("!6H", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + question
    return query, struct.pack("!6H", number & 0xFFFF, 0x8580, 1, 1, 0, 0) + question + answer


def record(hop: Place, number: int, begun_ns: int, payload: bytes) -> tuple[int, bytes]:
    """One hop as the kernel program writes it, with its time; the bytes come with a message's first hop."""
    first = hop is HOPS[0] or hop is HOPS[4]
    port = 1024 + number % 60_000
    ends = (CLIENT_IP, port), (hop.server, 53)
    (saddr, sport), (daddr, dport) = reversed(ends) if hop.response else ends
    captured = payload if first else b""
    flags = (Flag.RESPONSE if hop.response else 0) | (Flag.ORIGIN | Flag.PROCESS if first else 0)
    tracking = {
        "ct_original_saddr": CLIENT_IP,
        "ct_original_sport": port,
        "ct_original_daddr": VIP,
        "ct_original_dport": 53,
        "ct_reply_saddr": SERVER_IP,
        "ct_reply_sport": 53,
        "ct_reply_daddr": CLIENT_IP,
        "ct_reply_dport": port,
        "ct_info": REPLY_INFO if hop.response else PLAIN,
    }
    given = {
        "saddr": saddr,
        "sport": sport,
        "daddr": daddr,
        "dport": dport,
        "tgid": 4711 if first else 0,
        "payload_bytes": len(payload),
        "captured_bytes": len(captured),
        "comm": b"app" if first else b"",
        "ifname": hop.ifname,
        **(tracking if hop.tracked else {}),
    }
    detail = DETAIL.pack(*(given.get(name, b"" if "addr" in name else 0) for name in Detail._fields))
    head = Head(
        ts_ns=begun_ns + hop.after_ns,
        message_id=2 * number + hop.response + 1,
        skb=0xFFFF888000000000 + number % 512 * 256 + hop.response,
        netns=hop.netns,
        ifindex=hop.ifindex,
        tail_bytes=len(captured),
        event=hop.event,
        flags=flags | (Flag.CONNTRACK if hop.tracked else 0),
        family=4,
        protocol=17,
    )
    return head.ts_ns, HEAD.pack(*head) + detail + captured


def recorded(first: int, begun_ns: int) -> list[bytes]:
    """The records of one batch of lookups in the order of time."""
    stamped = []
    for index in range(BATCH):
        query, reply = messages(first + index)
        start = begun_ns + index * SPACING_NS
        stamped += [record(hop, first + index, start, reply if hop.response else query) for hop in HOPS]
    stamped.sort()
    return [one for _, one in stamped]


class FileRing:
    """A file with the layout of the kernel's ring buffer; every batch starts at its beginning."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("ring")
        os.ftruncate(self._fd, 2 * mmap.PAGESIZE + 2 * RING_BYTES)
        self._memory = mmap.mmap(self._fd, 0)

    def fill(self, records: list[bytes]) -> Ring:
        """Write records, and return the ring's reading end."""
        padded = (RECORD_HEADER.pack(len(one), 0) + one + bytes(-len(one) % 8) for one in records)
        data = b"".join(padded)
        if len(data) > RING_BYTES:
            raise ValueError("a batch does not fit into the ring")
        start = 2 * mmap.PAGESIZE
        self._memory[start : start + len(data)] = data
        struct.pack_into("=Q", self._memory, 0, 0)
        struct.pack_into("=Q", self._memory, mmap.PAGESIZE, len(data))
        return Ring(self._fd, RING_BYTES)


class Stopwatch:
    """Sums the CPU time of each part."""

    def __init__(self, profile: cProfile.Profile | None) -> None:
        self._profile = profile
        self.spent_ns: dict[str, int] = {}
        self.units: dict[str, int] = {}

    def time(self, part: str, units: int, function: Callable[[], Result]) -> Result:
        """Call the function on this part's account; it deals with so many lookups."""
        with self._profile or nullcontext():
            begun = time.thread_time_ns()
            result = function()
            spent = time.thread_time_ns() - begun
        self.spent_ns[part] = self.spent_ns.get(part, 0) + spent
        self.units[part] = self.units.get(part, 0) + units
        return result

    def us(self, part: str) -> float:
        """Microseconds a lookup."""
        return self.spent_ns[part] / self.units[part] / 1000


def one_batch(table: SessionTable, ring: FileRing, watch: Stopwatch, first: int, begun_ns: int) -> int:
    """Lead one batch through all parts; returns how many sessions succeeded."""
    reader = ring.fill(recorded(first, begun_ns))
    records: list[Hop] = []
    watch.time("ring", BATCH, lambda: reader.drain(records.append, reader.produced()))
    reader.close()
    watch.time("observe", BATCH, lambda: _each(table.observe, records))
    outcomes = watch.time("close", BATCH, lambda: list(table.expire(begun_ns + PAUSE_NS)))
    verdicts = watch.time("explain", BATCH, lambda: [explain(one) for one in outcomes])
    pairs = list(zip(outcomes, verdicts, strict=True))
    watch.time("filter", BATCH, lambda: _each_pair(_filter, pairs))
    _print_lines(pairs[::EVERY_LINE], watch)
    return sum(one.status is Status.SUCCEEDED for one in outcomes)


def _print_lines(pairs: list[tuple[Outcome, Verdict]], watch: Stopwatch) -> None:
    context = line.Context("node-1", 0)
    encoder = msgspec.json.Encoder()
    built = watch.time("build line", len(pairs), lambda: [line.build(*pair, context) for pair in pairs])
    watch.time("encode line", len(pairs), lambda: [encoder.encode(one) for one in built])


def _each(function: Callable[[Hop], object], records: list[Place]) -> None:
    for record in records:
        function(record)


def _each_pair(function: Callable[[Outcome, Verdict], object], pairs: list[tuple[Outcome, Verdict]]) -> None:
    for outcome, verdict in pairs:
        function(outcome, verdict)


def _filter(outcome: Outcome, verdict: Verdict, wanted: Filter = Filter()) -> bool:  # noqa: B008  immutable
    return wanted.wants(outcome, verdict) and is_problem(outcome, verdict)


def starts(lookups: int) -> Iterator[tuple[int, int]]:
    """Number and time of the first lookup of each batch."""
    for first in range(0, lookups, BATCH):
        yield first, PAUSE_NS * (1 + first // BATCH)


def report(watch: Stopwatch) -> None:
    """Print microseconds a lookup, part by part."""
    always = ("ring", "observe", "close", "explain", "filter")
    for part in always:
        print(f"{part:<28}{watch.us(part):8.2f} us/lookup")
    print(f"{'sum for a lookup, no line':<28}{sum(map(watch.us, always)):8.2f} us/lookup")
    for part in ("build line", "encode line"):
        print(f"{part:<28}{watch.us(part):8.2f} us/line")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure the agent's core without a kernel.")
    parser.add_argument("--lookups", type=int, default=50_000, help="how many (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="say where the time goes (and distort it)")
    parser.add_argument("--top", type=int, default=30, help="functions the profile lists (default %(default)s)")
    parser.add_argument("--no-gc", action="store_true", help="without Python's search for unreachable cycles")
    given = parser.parse_args()
    if given.no_gc:
        gc.disable()
    profile = cProfile.Profile() if given.profile else None
    watch, ring, table = Stopwatch(profile), FileRing(), SessionTable()
    succeeded = sum(one_batch(table, ring, watch, *start) for start in starts(given.lookups))
    counts = table.counts
    print(f"{counts.hops} records, {counts.sessions} sessions, {succeeded} succeeded")
    report(watch)
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(given.top)


if __name__ == "__main__":
    main()
