"""What the kernel counts of each network namespace, read on a live node from the /proc of any process in it.

Nothing is changed, and nothing is needed but to see that process: no setns, no netlink. The files are opened anew for
each look, because an open one would keep the namespace alive, and its devices, after its pod is gone.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.context.counters import ConntrackCounters, Ipvs, NetnsCounters
from agent.enrich.ipvs import IpvsTables
from agent.enrich.processes import NetnsProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Set as AbstractSet

LOOK_NS = 1_000_000_000
LOOKS_KEPT = 16
"""Of each namespace, a second apart: they reach back further than a lookup stays open."""
MAX_WATCHED = 64
LOOKS_A_TURN = 8
"""The ring fills while we read: 0.1 ms a look, and on many CPUs, a row for each, a millisecond."""
FRESH_NS = 20_000_000
"""A look this young is one from now: lookups fail in crowds, and are concluded longer than this after a loss."""
IPVS_FRESH_NS = 1_000_000_000
MAX_IPVS = 4
"""Namespaces whose tables are kept: one in practice, the node's; a long table takes 15 MB."""
MAX_IPVS_LINES = 65536
MAX_IPVS_READ_NS = 50_000_000
"""Older kernels go through their connections from the first one for each 4 KiB read: a long table takes seconds."""
CHUNK_BYTES = 1 << 16

CONNTRACK_COLUMNS = ("entries", *ConntrackCounters._fields)
_UDP4 = re.compile(rb"^Udp: (\D.*)\nUdp: (.*)$", re.MULTILINE)
_UDP6 = re.compile(rb"^Udp6(\w+)\s+(\d+)$", re.MULTILINE)


class _NodeCounters(NamedTuple):
    """What is the same in all namespaces."""

    conntrack_limit: int | None
    neighbour_table_fulls: int | None
    softnet_dropped: int | None


class _Part(NamedTuple):
    """The beginning of a file, or all of it."""

    text: bytes
    complete: bool


@dataclass(slots=True)
class _Watched:
    """A namespace of interest."""

    since_ns: int
    """When it became of interest."""
    due_ns: int = 0
    """When it is to be looked at next."""
    looks: deque[NetnsCounters] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))
    """One of each second, oldest first."""
    latest: NetnsCounters | None = None
    """The newest one of all, also of those between."""

    def remember(self, look: NetnsCounters) -> None:
        """Make it the newest look; what was seen of another namespace of the same number is forgotten."""
        if self.latest is not None and not _goes_on(self.latest, look):
            self.looks.clear()
        self.latest = look

    def is_gone(self, now_ns: int) -> bool:
        """Whether it could not be looked at for so long that nothing of it is worth keeping.

        The first look may fail although the namespace is there: its processes are searched for once a second.
        """
        seen_ns = self.looks[-1].ts_ns if self.looks else self.since_ns
        return seen_ns < now_ns - LOOKS_KEPT * LOOK_NS

    def before(self, ts_ns: int) -> NetnsCounters | None:
        """The newest look that was over at this time."""
        return next((look for look in reversed(self.looks) if look.ts_ns <= ts_ns), None)


class LiveCounters:
    """`agent.context.counters.NamespaceCounters` of this node.

    Counters tell something by their growth, so namespaces are looked at before anything happens: the one that this
    process lives in, and those that `interest` was told of. `poll` does it, for the loop to call at every turn.
    """

    reads_cut: int
    """How often tables of ip_vs were too long to be read whole."""

    def __init__(
        self,
        processes: NetnsProcesses | None = None,
        ports: Iterable[int] = (53,),
        clock: Callable[[], int] = time.monotonic_ns,
        was_read: Callable[[int], bool | None] = lambda _message: None,
    ) -> None:
        self.reads_cut = 0
        self._processes = processes or NetnsProcesses()
        self._tables = IpvsTables(ports)
        self._clock = clock
        self.was_read = was_read
        self._node_netns = self._processes.netns_of("self")
        self._watched: dict[int, _Watched] = {}
        self._ipvs: dict[int, tuple[int, Ipvs | None]] = {}
        self._node_counters: tuple[int, _NodeCounters] | None = None
        self._followed: frozenset[int] = frozenset()
        self.interest(self._node_netns)

    @property
    def node_netns(self) -> int:
        """The namespace that this process lives in."""
        return self._node_netns

    def latest(self, netns: int) -> NetnsCounters | None:
        """The newest look at a namespace; None when there was none."""
        watched = self._watched.get(netns)
        return None if watched is None else watched.latest

    def interest(self, netns: int) -> None:
        """Look at this namespace from now on: a DNS server lives there, or a client that loses packets."""
        self._watch(netns)

    def follow(self, servers: AbstractSet[int]) -> None:
        """Look from now on at those of these namespaces that were not among them the last time."""
        if servers != self._followed:
            for netns in servers - self._followed:
                self.interest(netns)
            self._followed = frozenset(servers)

    def poll(self, now_ns: int) -> None:
        """Look at the namespaces whose turn it is; each has one a second at most."""
        due = [(watched.due_ns, netns) for netns, watched in self._watched.items() if watched.due_ns <= now_ns]
        if not due:
            return
        node = self._node()
        for _, netns in sorted(due)[:LOOKS_A_TURN]:
            watched = self._watched[netns]
            watched.due_ns = now_ns + LOOK_NS
            look = self._look(netns, node)
            if look is not None:
                watched.remember(look)
                watched.looks.append(look)
            elif netns != self._node_netns and watched.is_gone(now_ns):
                del self._watched[netns]

    def counters(self, netns: int, since_ns: int) -> tuple[NetnsCounters | None, NetnsCounters | None]:
        """The last look before that time, and one from now; the namespace is of interest from now on."""
        watched = self._watch(netns)
        now = watched.latest
        if now is None or now.ts_ns <= max(since_ns, self._clock() - FRESH_NS):
            now = self._look(netns, self._node())
            if now is not None:
                watched.remember(now)
        return watched.before(since_ns), now

    def ipvs(self, netns: int) -> Ipvs | None:
        """A second old at most. What is not in it is not known: a long table is read in part, see `reads_cut`."""
        now_ns = self._clock()
        known = self._ipvs.get(netns)
        if known is None or now_ns - known[0] > IPVS_FRESH_NS:
            self._ipvs.pop(netns, None)
            known = self._ipvs[netns] = (now_ns, self._read_ipvs(netns))
            if len(self._ipvs) > MAX_IPVS:
                del self._ipvs[next(iter(self._ipvs))]
        return known[1]

    def _watch(self, netns: int) -> _Watched:
        """Put it at the end of those watched, where the least recently interesting is first."""
        watched = self._watched.pop(netns) if netns in self._watched else _Watched(self._clock())
        self._watched[netns] = watched
        if len(self._watched) > MAX_WATCHED:
            del self._watched[next(other for other in self._watched if other != self._node_netns)]
        return watched

    def _net_of(self, netns: int) -> str | None:
        return f"{self._processes.proc}/self/net" if netns == self._node_netns else self._processes.net_of(netns)

    def _look(self, netns: int, node: _NodeCounters) -> NetnsCounters | None:
        net = self._net_of(netns)
        if net is None:
            return None
        entries, conntrack = parse_conntrack(_read(f"{net}/stat/nf_conntrack"))
        udp = parse_udp(_read(f"{net}/snmp"), _read(f"{net}/snmp6"))
        if entries is None and not udp:
            return None
        # The time at the end: whatever came later is not counted in this look.
        return NetnsCounters(
            ts_ns=self._clock(),
            conntrack_entries=entries,
            conntrack_limit=node.conntrack_limit,
            conntrack=conntrack,
            udp=udp,
            neighbour_table_fulls=node.neighbour_table_fulls,
            softnet_dropped=node.softnet_dropped,
        )

    def _node(self) -> _NodeCounters:
        now_ns = self._clock()
        if self._node_counters is None or now_ns - self._node_counters[0] > FRESH_NS:
            self._node_counters = (now_ns, self._look_at_node())
        return self._node_counters[1]

    def _look_at_node(self) -> _NodeCounters:
        proc = self._processes.proc
        limit = _read(f"{proc}/sys/net/netfilter/nf_conntrack_max")
        # The neighbour tables' files are in the node's first namespace only, and process 1 is never further from it.
        neighbours = [_read(f"{proc}/1/net/stat/{table}") for table in ("arp_cache", "ndisc_cache")]
        return _NodeCounters(
            conntrack_limit=int(limit) if limit else None,
            neighbour_table_fulls=parse_table_fulls(neighbours),
            softnet_dropped=parse_softnet_dropped(_read(f"{proc}/self/net/softnet_stat")),
        )

    def _read_ipvs(self, netns: int) -> Ipvs | None:
        net = self._net_of(netns)
        if net is None:
            return None
        # Connections first: one to a server that is added meanwhile must not look like one to a server that is gone.
        connections = self._read_bounded(f"{net}/ip_vs_conn")
        services = self._read_bounded(f"{net}/ip_vs")
        if connections is None or services is None:
            return None
        return Ipvs(
            services=self._tables.services(services.text, complete=services.complete),
            connections=self._tables.connections(connections.text),
        )

    def _read_bounded(self, path: str) -> _Part | None:
        """As much of a file as there is time for; None when it is not there."""
        end_ns, lines, chunks = self._clock() + MAX_IPVS_READ_NS, 0, list[bytes]()
        try:
            for chunk in _chunks(path):
                chunks.append(chunk)
                lines += chunk.count(b"\n")
                if lines > MAX_IPVS_LINES or self._clock() > end_ns:
                    self.reads_cut += 1
                    return _Part(b"".join(chunks), complete=False)
        except OSError:
            return None
        return _Part(b"".join(chunks), complete=True)


def parse_conntrack(text: bytes) -> tuple[int | None, tuple[ConntrackCounters, ...]]:
    """Entries of the namespace, and counters by CPU, of stat/nf_conntrack.

    It has a row for each possible CPU, without its number: the numbers have no gaps on amd64 and arm64.
    """
    rows = _columns(text, CONNTRACK_COLUMNS)
    if not rows:
        return None, ()
    return rows[0][0], tuple(ConntrackCounters(*counters) for _, *counters in rows)


def parse_udp(snmp: bytes, snmp6: bytes) -> dict[str, int]:
    """Counters of UDP over both families by their names, of snmp and snmp6."""
    found = _UDP4.search(snmp)
    if found is None:
        return {}
    udp = {name.decode(): int(value) for name, value in zip(found[1].split(), found[2].split(), strict=True)}
    for name, value in _UDP6.findall(snmp6):
        key = name.decode()
        udp[key] = udp.get(key, 0) + int(value)
    return udp


def parse_table_fulls(tables: Iterable[bytes]) -> int | None:
    """The sum of `table_fulls` over all rows of stat/arp_cache and stat/ndisc_cache; None when there are none."""
    rows = [row for text in tables for row in _columns(text, ("table_fulls",))]
    return sum(row[0] for row in rows) if rows else None


def parse_softnet_dropped(text: bytes) -> int | None:
    """The sum of the second column of softnet_stat, which has no names."""
    rows = text.splitlines()
    return sum(int(row.split(None, 2)[1], 16) for row in rows) if rows else None


def _columns(text: bytes, names: Iterable[str]) -> list[tuple[int, ...]]:
    """These columns of a table of hexadecimal numbers under a line of names; empty when it lacks one of them."""
    header, *rows = [line.split() for line in text.splitlines()] or [[]]
    try:
        places = [header.index(name.encode()) for name in names]
    except ValueError:
        return []
    return [tuple(int(row[place], 16) for place in places) for row in rows]


def _goes_on(earlier: NetnsCounters, later: NetnsCounters) -> bool:
    """Whether both can be of one namespace: its counters only grow."""
    rows = zip(earlier.conntrack, later.conntrack, strict=False)
    return all(old <= new for row in rows for old, new in zip(*row, strict=True)) and all(
        value <= later.udp.get(name, value) for name, value in earlier.udp.items()
    )


def _read(path: str) -> bytes:
    """The whole file; nothing where it is not there or not ours to read."""
    try:
        return b"".join(_chunks(path))
    except OSError:
        return b""


def _chunks(path: str) -> Iterator[bytes]:
    """The file as the kernel hands it out. A third faster than pathlib: small files, many times a second."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.read(descriptor, CHUNK_BYTES):
            yield chunk
    finally:
        os.close(descriptor)
