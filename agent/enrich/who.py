"""Names for a session's ends: from the namespace and the process where it is on this node, else from the address."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.context.translation import Mechanism, translate
from agent.context.who import Who
from agent.hop.record import CONNTRACK, PROCESS
from agent.session.outcome import CQ

if TYPE_CHECKING:
    from agent.context.cluster import Cluster, Container, Pod
    from agent.context.counters import NamespaceCounters
    from agent.context.translation import Entry
    from agent.enrich.conntrack import ConntrackLookup
    from agent.enrich.containers import Containers
    from agent.hop.record import Hop
    from agent.session.model import Transmission
    from agent.session.outcome import Outcome

SHORT_ID = 12
"""Bytes of a container id that tools for people show."""


class _End(NamedTuple):
    """One end of a session as far as this node shows it."""

    pod: Pod | None
    container: Container | None
    is_visitor: bool = False
    """Whether what sent the packet there is known to belong to something else."""


class WhoIsWho:
    """Asked once for every session that is printed or blamed on somebody.

    Args:
        containers: who lives in a namespace.
        cluster: names.
        namespaces: asked for ip_vs.
        table: the connection table, for what no packet showed; None where it may not be read.
    """

    def __init__(
        self,
        containers: Containers,
        cluster: Cluster,
        namespaces: NamespaceCounters,
        table: ConntrackLookup | None = None,
    ) -> None:
        self._containers = containers
        self._cluster = cluster
        self._namespaces = namespaces
        self._table = table
        self.wall_offset_ns = 0
        """Added to the hops' stamps to get the cluster's time."""

    def identify(self, outcome: Outcome) -> Who:
        """Both ends of a closed session, the Service, and what translated it."""
        client, server = self._client(outcome), self._server(outcome)
        found = translate(outcome, self._namespaces, self._cluster, client=client.pod, entry=self._entry(outcome))
        asked = found.virtual if found is not None else outcome.server
        backend = found.backend if found is not None else asked
        behind = server.pod or self._cluster.pod_behind(backend, self._wall(outcome.session.first_ns))
        if found is not None and found.by is Mechanism.TPROXY:
            # The pod of the address that was asked never got it.
            behind = server.pod
        return Who(
            client=client.pod,
            container=_container_name(client),
            server=behind,
            service=self._cluster.service_at(asked.address),
            translation=found,
            expected=client.pod is None and client.container is not None and client.container.pod_uid is not None,
        )

    def _client(self, outcome: Outcome) -> _End:
        key = outcome.session.key
        if outcome.client_netns is None:
            return _End(self._cluster.pod_at(key.client.address, self._wall(outcome.session.first_ns)), None)
        return self._here(outcome.client_netns, _origin(outcome.session.queries.transmissions), outcome)

    def _server(self, outcome: Outcome) -> _End:
        if outcome.server_netns is None:
            return _End(None, None)
        return self._here(outcome.server_netns, _origin(outcome.session.replies.transmissions), outcome)

    def _here(self, netns: int, origin: Hop | None, outcome: Outcome) -> _End:
        """Who lives in a namespace of this node, by the process that sent something there if one did."""
        pid = origin.detail.tgid if origin is not None and origin.flags & PROCESS else None
        ts_ns = outcome.session.first_ns if origin is None else origin.ts_ns
        container = self._containers.of_sender(netns, pid, ts_ns)
        if container is not None and container.pod_uid is not None:
            is_visitor = self._containers.is_visitor(container.pod_uid, pid, ts_ns)
            return _End(self._cluster.pod_by_uid(container.pod_uid), container, is_visitor)
        address = origin.detail.saddr if origin is not None else None
        if address is not None and outcome.node_state.is_local(netns, address) is False:
            # A transparent proxy replies with the address of a server, and asks with that of a client.
            return _End(None, container)
        pod = None if address is None else self._cluster.pod_at(address, self._wall(ts_ns))
        return _End(pod, container)

    def _entry(self, outcome: Outcome) -> Entry | None:
        """What the connection table says of a query that got nowhere, if no packet showed it."""
        if self._table is None or outcome.delivered or outcome.bits & CQ or not outcome.session.queries.transmissions:
            return None
        if outcome.session.queries.transmissions[0].hops[0].flags & CONNTRACK:
            return None
        key = outcome.session.key
        return self._table.find(key.protocol, key.client, outcome.server)

    def _wall(self, ts_ns: int) -> int:
        return ts_ns + self.wall_offset_ns


def _origin(transmissions: list[Transmission]) -> Hop | None:
    return next((transmission.origin for transmission in transmissions if transmission.origin is not None), None)


def _container_name(end: _End) -> str | None:
    """By the process that sent the packet, which may be gone; but a pod with one container leaves no choice."""
    if end.pod is not None and end.pod.only_container is not None and not end.is_visitor:
        return end.pod.only_container
    if end.container is None or end.container.container_id is None:
        return None
    name = end.pod.container_name(end.container.container_id) if end.pod is not None else None
    return name or end.container.container_id[:SHORT_ID]
