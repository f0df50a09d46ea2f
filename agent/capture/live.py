"""Live capture: the loaded program, its ring and its counters, as one thing to open, drain and close."""

from __future__ import annotations

import contextlib
import os
import select
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.capture.counters import CounterMap, Counters
from agent.capture.endpoints import EndpointMap
from agent.capture.loader import LOG_HANDED_OVER, load
from agent.capture.lookups import LOOKUPS, WAKE_AT, LookupLog
from agent.capture.losses import Loss, Losses, LossWatch
from agent.capture.ring import Ring
from agent.hop.drops import Kernel
from agent.hop.lookup import Lookups
from agent.hop.record import Hop
from agent.kernel.offsets import TRACEPOINTS
from agent.kernel.symbols import KernelSymbols
from agent.kernel.syscall import look_up

if TYPE_CHECKING:
    from types import TracebackType

    from agent.hop.endpoint import Endpoint

GATHER_SECONDS = 0.02
"""After a wake-up, wait so long for more: the kernel wakes the reader once for all of it."""
BUSY_SECONDS = 0.01
"""Between two looks at a log that fills up."""
MISSES_EVERY_NS = 1_000_000_000
HOLD_NS = 60_000_000
"""A lookup is taken from the log so long after it began: answered by then, if it is like most. Shorter than
Settings.linger_ns, by which late records are waited for."""
PARTS = 2
"""What lies around the end of the log is taken in so many parts."""
AHEAD_NS = 20_000_000
"""So much younger ones are looked at beside those that are taken."""
ORDER_NS = 1_000_000
"""By so much at most a lookup of the log is older than the one before it."""
SETTLE_NS = 5_000_000
"""Records younger than this may still be on their way through the ring."""
CHUNK_BYTES = 2 << 20
"""About 7000 records: what may pile up as sessions before they are printed."""


Sift = Callable[[Lookups, Lookups, list[Hop], int], Iterable[int]]
"""Given lookups that are over, some younger ones, the hops that came one by one, and a time before which nothing else
began: which of the lookups are to be handed over."""


class Capture:
    """Every hop and drop of DNS packets on this node, from all network namespaces.

    Use as a context manager; leaving it detaches everything.

    Raises:
        CaptureError: when this kernel or process cannot capture, with the remedy.
    """

    def __init__(self, ports: list[int], ring_bytes: int, *, joined: bool = True) -> None:
        """Load and attach.

        Args:
            ports: UDP and TCP ports that count as DNS.
            ring_bytes: size of the ring.
            joined: let the program join the hops of each lookup, where the kernel can; else each comes at once.
        """
        self._loaded = load(ports, ring_bytes, joined=joined)
        self._log = LookupLog(*(self._loaded.fds[name] for name in LOG_HANDED_OVER)) if self.joins else None
        self._waiting: list[Hop] = []
        self._hold_ns = HOLD_NS
        self.settled_ns = 0
        """All hops up to this time of CLOCK_MONOTONIC were handed over."""
        self._ring = Ring(self._loaded.fds["ring"], self._loaded.ring_bytes)
        self._counters = CounterMap(self._loaded.fds["counters"], self._loaded.cpus)
        self._symbols: KernelSymbols | None = None
        self._names: dict[int, str | None] = {}
        self._poll = select.epoll()
        self._poll.register(self._loaded.fds["ring"], select.EPOLLIN)
        self._ended = os.eventfd(0)
        self._poll.register(self._ended, select.EPOLLIN)
        self._endpoints = EndpointMap(self._loaded.fds["endpoints"], self._loaded.fds["sieves"])
        self.started_ns = time.monotonic_ns()
        # All programs are attached: from now on a lookup has all its hops.
        self._endpoints.arm()
        self._loss_watch = LossWatch(self.started_ns)
        self._skipped_runs = 0
        self._misses_read_ns = 0
        self.limits = self._loaded.limits
        self.kernel = Kernel(self._loaded.drop_reasons, self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poll.close()
        os.close(self._ended)
        self._ring.close()
        if self._log is not None:
            self._log.close()
        self._counters.close()
        self._endpoints.close()
        for fd in self._loaded.fds.values():
            os.close(fd)

    def wait(self, seconds: float) -> None:
        """Sleep until there is something to drain, at most so long, and less while the log fills up; 0 does not."""
        if self._log is not None and self._log.waiting > LOOKUPS // 4:
            seconds = min(seconds, BUSY_SECONDS)
        if any(fd != self._ended for fd, _ in self._poll.poll(seconds)) and seconds:
            time.sleep(GATHER_SECONDS)

    def end_waiting(self) -> None:
        """Let `wait()` return at once from now on.

        For signal handlers: Python takes up a system call again behind them (PEP 475), so a flag would not end it.
        """
        # A second signal may come while the capture is being closed.
        with contextlib.suppress(OSError):
            os.eventfd_write(self._ended, 1)

    @property
    def presses(self) -> bool:
        """Whether something should be taken in soon: not so with a few lookups in the log, which are over by and by."""
        log = self._log
        return log is None or bool(self._waiting) or log.waiting > WAKE_AT or self._ring.backlog_bytes() > 0

    @property
    def has_lookups(self) -> bool:
        """Whether there are lookups in the log: the first one that comes wakes the reader."""
        return self._log is not None and self._log.waiting > 0

    @property
    def joins(self) -> bool:
        """Whether the program joins the hops of lookups."""
        return "lookups" in self._loaded.fds

    def hurry(self) -> None:
        """Hold nothing back any more: the capture ends."""
        self._hold_ns = 0

    def drain(self, take: Callable[[Hop], object], lost: Callable[[Loss], object], sift: Sift | None = None) -> bool:
        """Hand over what was recorded up to now, in the order of time, and a chunk of it at most.

        Args:
            take: takes one hop.
            lost: is told of losses, before the hops that came after them.
            sift: says which of the lookups that are over are to be handed over hop by hop; None for all.

        Returns:
            Whether more waits, so that the caller can do its own work between the chunks of a large backlog.
        """
        now_ns = time.monotonic_ns()
        produced = self._ring.produced()
        until = min(produced, self._ring.consumed() + CHUNK_BYTES)
        loss = self._new_loss()
        if loss is not None:
            lost(loss)
        if self._log is None:
            more = self._ring.drain(take, until) > 0 and until < produced
            self.settled_ns = 0 if more else now_ns - SETTLE_NS
            return more
        before = len(self._waiting)
        more = self._ring.drain(self._waiting.append, until) > 0 and until < produced
        read_ns = self._waiting[-1].ts_ns if more else now_ns
        self._take_lookups(self._log, read_ns, sift, self._waiting[before:])
        self._hand_over(take)
        return more

    def _take_lookups(self, log: LookupLog, read_ns: int, sift: Sift | None, hops: list[Hop]) -> None:
        """Take what is old enough from the log, and let the hops of what is to be told wait for their turn."""
        until_ns = read_ns - self._hold_ns
        for _ in range(PARTS):
            taken = log.take(until_ns, LOOKUPS // 2)
            told: Iterable[int] = range(taken.count)
            if sift is not None:
                newest_ns = max((until_ns, *taken.words("first_ns")[-1:]))
                ahead, seen_until_ns = log.peek(newest_ns + AHEAD_NS)
                told = sift(taken, ahead, hops, seen_until_ns - ORDER_NS)
                hops = []
            for index in told:
                self._waiting.extend(taken.hops(index))
            log.give_back()
            if not taken.count:
                break
        # What began before the next lookup of the log has all its hops; records may still be on their way.
        oldest_ns = log.oldest_ns() if self._hold_ns else None
        settled_ns = read_ns - SETTLE_NS if self._hold_ns else read_ns
        self.settled_ns = settled_ns if oldest_ns is None else min(settled_ns, oldest_ns - ORDER_NS)

    def _hand_over(self, take: Callable[[Hop], object]) -> None:
        """Hand over the hops that nothing older can come behind any more."""
        waiting = self._waiting
        waiting.sort()
        end = bisect_left(waiting, (self.settled_ns,))
        for hop in waiting[:end]:
            take(hop)
        del waiting[:end]

    def was_read(self, message: int) -> bool | None:
        """Whether an application took the datagram with this message; None where that cannot be told."""
        fd = self._loaded.fds.get("reads")
        return None if fd is None else look_up(fd, message) is not None

    def teach(self, servers: Iterable[tuple[int, Endpoint]]) -> None:
        """Say where DNS servers are, whatever their ports: IANA protocol number and endpoint of each.

        It is believed for five minutes, as these addresses may be other pods' later.
        """
        self._endpoints.teach(servers, time.monotonic_ns())

    def counters(self) -> Counters:
        """What the program counted."""
        return self._counters.read()

    @property
    def losses(self) -> Losses:
        """All records lost since the start; runs that the kernel skipped as of the last second."""
        counters = self._counters.read()
        return Losses(sum(counters.lost.values()), counters.log_full, counters.nested, self._skipped_runs)

    @property
    def backlog_bytes(self) -> int:
        """How much of the ring waits to be read."""
        return self._ring.backlog_bytes()

    @property
    def ring_bytes(self) -> int:
        """Size of the ring."""
        return self._loaded.ring_bytes

    @property
    def programs(self) -> dict[str, int]:
        """Descriptors of the BPF programs, by what they are attached to."""
        return {name.removeprefix("prog:"): fd for name, fd in self._loaded.fds.items() if name.startswith("prog:")}

    def _new_loss(self) -> Loss | None:
        now_ns = time.monotonic_ns()
        self._read_misses(now_ns)
        return self._loss_watch.look(self.losses, self._misses_read_ns, now_ns)

    def _read_misses(self, now_ns: int) -> None:
        """Runs the kernel skipped because the program was at work on that CPU (bpf_prog_inc_misses_counter())."""
        if now_ns - self._misses_read_ns < MISSES_EVERY_NS:
            return
        self._misses_read_ns = now_ns
        self._skipped_runs = sum(recursion_misses(self._loaded.fds[f"prog:{name}"]) for name in TRACEPOINTS)

    def _name(self, address: int) -> str | None:
        if self._symbols is None:
            self._symbols = KernelSymbols.load()
        if address not in self._names:
            self._names[address] = self._symbols.name(address)
        return self._names[address]


def recursion_misses(prog_fd: int) -> int:
    """The kernel's count for one program; 0 where it does not tell (before 5.12)."""
    lines = Path(f"/proc/self/fdinfo/{prog_fd}").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("recursion_misses:")), 0)
