"""Who is who in a Kubernetes cluster, as far as one node needs to know it.

Only types: `agent.enrich` fills them on a live node; without a cluster, and in a replay, nobody is known.
Times are wall clock, in nanoseconds, because the cluster's are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.hop.endpoint import Endpoint

DELAY_NS = 2_000_000_000
"""kube-proxy acts on changes about once a second, and the list's own changes are learned of with some delay."""
NEVER: Mapping[Endpoint, int] = MappingProxyType({})


class Pod(NamedTuple):
    """One pod."""

    uid: str
    namespace: str
    name: str
    workload: str | None
    """`Deployment/cart`: the controller that people know, behind ReplicaSet and Job. None for a bare pod."""
    node: str
    host_network: bool
    dns_policy: str
    """`ClusterFirst`, `ClusterFirstWithHostNet`, `Default` or `None`; empty when only the pod's name is known."""
    nameservers: tuple[str, ...]
    """`dnsConfig.nameservers`."""
    searches: tuple[str, ...] = ()
    """`dnsConfig.searches`."""
    options: tuple[str, ...] = ()
    """`dnsConfig.options` as resolv.conf spells them: `ndots:2`, `use-vc`."""
    containers: tuple[tuple[str, str], ...] = ()
    """(container id without its runtime's scheme, name); only of pods on this node."""

    only_container: str | None = None
    """Name of its container where the pod has one alone; only of pods on this node."""

    def container_name(self, container_id: str) -> str | None:
        """The name of one of its containers."""
        return next((name for known, name in self.containers if known == container_id), None)


class Service(NamedTuple):
    """One Service."""

    namespace: str
    name: str
    headless: bool
    cluster_ips: tuple[bytes, ...]
    """16 bytes each, IPv4 mapped."""
    external_name: str | None = None
    """Of type ExternalName: its answer is a CNAME to this."""
    publishes_not_ready: bool = False
    """`publishNotReadyAddresses`: its endpoints have addresses in DNS before they are ready."""


class Outage(NamedTuple):
    """A time during which a Service had no ready endpoint."""

    begin_ns: int
    """0 when it had none from the first that was heard of it."""
    end_ns: int | None
    """None while it lasts."""


class Backends(NamedTuple):
    """Endpoints of a Service's port, by the EndpointSlices."""

    ready: frozenset[Endpoint]
    """Those that get traffic: ready, or serving while terminating."""
    not_ready: frozenset[Endpoint]
    gone: Mapping[Endpoint, int] = NEVER
    """When those were taken off the list that were on it some minutes ago."""
    current: bool = True
    """Whether the API server was heard of just now. If not, an endpoint that is missing here may well be a new one."""
    outage: Outage | None = None
    """The last time during which none was ready, as far as it was seen to begin or to end."""

    def lacked(self, endpoint: Endpoint, ts_ns: int) -> bool:
        """Whether this certainly was no endpoint any more at that time.

        The translation follows the list with some delay: kube-proxy acts on changes about once a second.
        """
        if not self.current or endpoint in self.ready or endpoint in self.not_ready:
            return False
        return self.gone.get(endpoint, 0) < ts_ns

    def had_none_ready(self, ts_ns: int) -> bool:
        """Whether none was ready at that time, give or take what translation and list are late by."""
        if self.outage is None:
            return not self.ready
        begin_ns, end_ns = self.outage
        return begin_ns - DELAY_NS <= ts_ns and (end_ns is None or ts_ns <= end_ns + DELAY_NS)


class Member(NamedTuple):
    """One address of a headless Service: what DNS has an address record for, when it is ready."""

    address: bytes
    hostname: str | None
    """Its name below the Service's; None where DNS makes one of the address."""
    pod: str | None
    """Name of the pod, in the Service's namespace."""
    ready: bool
    """In DNS: ready, or its Service publishes addresses that are not."""


class StatefulSet(NamedTuple):
    """One StatefulSet. Only under the name of its Service do its pods have names."""

    namespace: str
    name: str
    service: str
    """`serviceName`; empty when it has none."""
    replicas: int


class NodeLocal(NamedTuple):
    """NodeLocal DNSCache on this node."""

    pod: Pod
    addresses: tuple[bytes, ...]
    """Where it listens, as it was told: usually 169.254.20.10 and the address of kube-dns; 16 bytes each."""


class Container(NamedTuple):
    """What runs in a namespace, by the cgroup of one of its processes."""

    pod_uid: str | None
    container_id: str | None


class Cluster(Protocol):
    """Asked for every session that is printed; everything may be unknown. Answers from memory, never from the API."""

    def pod_at(self, address: bytes, ts_ns: int) -> Pod | None:
        """The pod that had this 16-byte address at that time; None for the addresses of nodes."""

    def pod_by_uid(self, uid: str) -> Pod | None:
        """The pod of this node with this UID, completed and deleted ones too for a while."""

    def pod_behind(self, backend: Endpoint, ts_ns: int) -> Pod | None:
        """The pod that served on this address and port at that time, also on another node or on a node's address."""

    def service_at(self, address: bytes) -> Service | None:
        """The Service with this address: a cluster IP, an external one, or a load balancer's."""

    def service_of(self, namespace: str, name: str) -> Service | None:
        """The Service with this name."""

    def backends(self, virtual: Endpoint, protocol: int) -> Backends | None:
        """Endpoints behind a virtual address and port of a DNS Service; None for all else, and when not known."""

    def members(self, namespace: str, name: str) -> tuple[Member, ...] | None:
        """The addresses of a headless Service; None for all else, and when not known."""

    def stateful_set(self, namespace: str, name: str) -> StatefulSet | None:
        """The StatefulSet with this name."""

    def node_local(self) -> NodeLocal | None:
        """NodeLocal DNSCache, if it runs on this node."""


class NullCluster:
    """Without a cluster, and for recordings."""

    def pod_at(self, address: bytes, ts_ns: int) -> None:
        """Nobody."""

    def pod_by_uid(self, uid: str) -> None:
        """Nobody."""

    def pod_behind(self, backend: Endpoint, ts_ns: int) -> None:
        """Nobody."""

    def service_at(self, address: bytes) -> None:
        """None."""

    def service_of(self, namespace: str, name: str) -> None:
        """None."""

    def backends(self, virtual: Endpoint, protocol: int) -> None:
        """None."""

    def members(self, namespace: str, name: str) -> None:
        """None."""

    def stateful_set(self, namespace: str, name: str) -> None:
        """None."""

    def node_local(self) -> None:
        """None."""
