"""What the kernel counts of a network namespace, beside the packets: evidence that user space can read.

Only types: `agent.enrich.counters` reads them on a live node; a replay knows nothing of all this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.hop.endpoint import Endpoint


class ConntrackCounters(NamedTuple):
    """One CPU's row of /proc/net/stat/nf_conntrack (net/netfilter/nf_conntrack_standalone.c); they only grow."""

    invalid: int
    insert_failed: int
    drop: int
    early_drop: int


class NetnsCounters(NamedTuple):
    """One look at a namespace."""

    ts_ns: int
    """CLOCK_MONOTONIC."""
    conntrack_entries: int | None
    """In this namespace; None where connection tracking is not loaded or may not be read."""
    conntrack_limit: int | None
    """nf_conntrack_max: one limit for all namespaces, compared with the entries of each."""
    conntrack: tuple[ConntrackCounters, ...]
    """By CPU number."""
    udp: Mapping[str, int]
    """SNMP counters of UDP over IPv4 and IPv6 together, by their names: RcvbufErrors, NoPorts, InCsumErrors …"""
    neighbour_table_fulls: int | None
    """How often a new neighbour found no room (gc_thresh3), ARP and NDISC together. One table for the whole node."""
    softnet_dropped: int | None
    """Packets that found a CPU's backlog full (netdev_max_backlog). Of the whole node."""


class Ipvs(NamedTuple):
    """What ip_vs of one namespace is told to do, and what it does."""

    services: Mapping[tuple[int, Endpoint], frozenset[Endpoint]]
    """By (IANA protocol number, virtual address and port): its real servers with a weight above 0."""
    connections: Mapping[tuple[int, Endpoint, Endpoint], Endpoint]
    """By (protocol, client, virtual address and port): the real server that the connection is bound to."""

    def stale_server(self, protocol: int, client: Endpoint, virtual: Endpoint) -> Endpoint | None:
        """The server that a connection is still bound to although the service has it no more."""
        bound = self.connections.get((protocol, client, virtual))
        servers = self.services.get((protocol, virtual))
        return bound if bound is not None and servers is not None and bound not in servers else None


class NamespaceCounters(Protocol):
    """Asked for a namespace when a lookup failed; everything may be unknown."""

    def counters(self, netns: int, since_ns: int) -> tuple[NetnsCounters | None, NetnsCounters | None]:
        """The last look before that time, and one from now."""

    def ipvs(self, netns: int) -> Ipvs | None:
        """None where there is no ip_vs."""

    def was_read(self, message: int) -> bool | None:
        """Whether an application took the datagram with this message (`Head.message`); None where none can tell."""


class NullCounters:
    """For recordings."""

    def counters(self, netns: int, since_ns: int) -> tuple[None, None]:  # noqa: ARG002
        """Nothing."""
        return None, None

    def ipvs(self, netns: int) -> None:
        """Nothing."""

    def was_read(self, message: int) -> None:
        """Nothing."""
