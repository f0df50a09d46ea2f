"""What the kernel counts of the node's own network namespace and of those of its DNS servers, as two classes.

Namespaces come and go, and the agent begins in the middle: what a class is told to have counted is the growth since
each namespace was first looked at, so that it never falls.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import NETNS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent.context.counters import NetnsCounters

LOOK_SECONDS = 1.0
HOST, DNS_SERVER = NETNS.values


class Looks(Protocol):
    """What `agent.enrich.counters.LiveCounters` knows."""

    @property
    def node_netns(self) -> int:
        """The namespace that this process lives in."""

    def latest(self, netns: int) -> NetnsCounters | None:
        """The newest look at a namespace; None when there was none, or it cannot be looked at."""


class Grown(NamedTuple):
    """Counters of one namespace that only grow."""

    conntrack_drop: int = 0
    conntrack_early_drop: int = 0
    conntrack_insert_failed: int = 0
    conntrack_invalid: int = 0
    udp_receive_buffer_errors: int = 0
    softnet_dropped: int = 0
    neighbour_table_fulls: int = 0

    @classmethod
    def of(cls, look: NetnsCounters) -> Grown:
        """Sums over all CPUs."""
        cpus = look.conntrack
        return cls(
            sum(cpu.drop for cpu in cpus),
            sum(cpu.early_drop for cpu in cpus),
            sum(cpu.insert_failed for cpu in cpus),
            sum(cpu.invalid for cpu in cpus),
            look.udp.get("RcvbufErrors", 0),
            look.softnet_dropped or 0,
            look.neighbour_table_fulls or 0,
        )

    def plus_growth(self, before: Grown, now: Grown) -> Grown:
        """With what was counted meanwhile; a namespace that began anew adds nothing."""
        return Grown(*(total + max(0, new - old) for total, old, new in zip(self, before, now, strict=True)))


class State(NamedTuple):
    """Everything at one moment."""

    grown: dict[str, Grown]
    """By class of namespaces."""
    entries: dict[str, int]
    """Of the connection-tracking table: the host's, and that of the DNS server's namespace that has most."""
    limit: int | None
    """Of entries, in each namespace."""
    server_namespaces: int
    """Those that can be looked at."""


PER_CLASS = {
    catalogue.CONNTRACK_DROPS: "conntrack_drop",
    catalogue.CONNTRACK_EARLY_DROPS: "conntrack_early_drop",
    catalogue.CONNTRACK_INSERT_FAILED: "conntrack_insert_failed",
    catalogue.CONNTRACK_INVALID: "conntrack_invalid",
    catalogue.UDP_RECEIVE_BUFFER_ERRORS: "udp_receive_buffer_errors",
}
"""Which metric is which field of `Grown`."""
PER_NODE = {
    catalogue.SOFTNET_DROPPED: "softnet_dropped",
    catalogue.NEIGHBOUR_TABLE_FULLS: "neighbour_table_fulls",
}
"""The same in all namespaces, so the host's stand for all."""


class KernelCounts:
    """Adds up what `Looks` sees. `look` is for the loop to call at every turn, `state` for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing.

        Args:
            clock: Seconds that only grow.
        """
        self.state = State({HOST: Grown(), DNS_SERVER: Grown()}, {}, None, 0)
        self._clock = clock
        self._due = 0.0
        self._before: dict[int, Grown] = {}

    def look(self, looks: Looks, servers: Collection[int]) -> None:
        """Take in the newest looks, once a second at most.

        Args:
            looks: Where they are.
            servers: Namespaces that DNS servers replied from.
        """
        now = self._clock()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        node_netns = looks.node_netns
        wanted = {node_netns, *servers}
        seen = {netns: look for netns in wanted if (look := looks.latest(netns)) is not None}
        self._before = {netns: before for netns, before in self._before.items() if netns in wanted}
        grown, entries, limit = dict(self.state.grown), dict[str, int](), None
        for netns, look in seen.items():
            kind = HOST if netns == node_netns else DNS_SERVER
            counters = Grown.of(look)
            grown[kind] = grown[kind].plus_growth(self._before.get(netns, counters), counters)
            self._before[netns] = counters
            if look.conntrack_entries is not None:
                entries[kind] = max(entries.get(kind, 0), look.conntrack_entries)
            limit = look.conntrack_limit
        # One assignment: whoever looks sees all of it or nothing.
        self.state = State(grown, entries, limit, sum(netns in seen for netns in servers))
