"""All that is asked about a session besides its packets, on a live node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.context.cluster import NullCluster
from agent.enrich.conntrack import ConntrackLookup
from agent.enrich.containers import Containers
from agent.enrich.counters import LiveCounters
from agent.enrich.kube.live import LiveCluster
from agent.enrich.local import LocalAddresses
from agent.enrich.processes import NetnsProcesses
from agent.enrich.who import WhoIsWho

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.context.cluster import Cluster
    from agent.enrich.kube.access import Access
    from agent.enrich.kube.health import WatchHealth


class Enrichment:
    """Opens what it needs once, and closes it.

    Args:
        ports: of DNS.
        was_read: see `agent.context.counters.NamespaceCounters.was_read`.
        access: to the Kubernetes API; None without a cluster.
        node: name of this node there.
        events: whether Events are written there.
    """

    def __init__(
        self,
        ports: tuple[int, ...],
        was_read: Callable[[int], bool | None],
        access: Access | None,
        node: str,
        *,
        events: bool = False,
    ) -> None:
        processes = NetnsProcesses()
        self.is_local = LocalAddresses(processes).is_local
        self.namespaces = LiveCounters(processes, ports, was_read=was_read)
        self.live = LiveCluster(access, node, ports, events=events) if access else None
        self.cluster: Cluster = self.live or NullCluster()
        self._conntrack = ConntrackLookup()
        self.who = WhoIsWho(Containers(processes), self.cluster, self.namespaces, self._conntrack)

    @property
    def watches(self) -> Iterable[WatchHealth]:
        """How the watches of the Kubernetes API do."""
        return self.live.health if self.live else ()

    def close(self, seconds: float) -> None:
        """End the watches within this time, and let go of the connection table."""
        if self.live:
            self.live.stop(seconds)
        self._conntrack.close()
