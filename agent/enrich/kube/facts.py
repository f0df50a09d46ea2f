"""What is kept of each object: a few tuples, whose strings are shared where many objects say the same."""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from itertools import pairwise
from sys import intern
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.context.cluster import Pod, Service, StatefulSet
from agent.enrich.kube import objects
from agent.hop.endpoint import V4_MAPPED
from agent.hop.record import TCP, UDP
from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

PROTOCOLS = {"UDP": UDP, "TCP": TCP}
OVER = frozenset({"Succeeded", "Failed"})
NETWORK_READY = "PodReadyToStartContainers"
"""The pod condition that says when the sandbox had its network, by KEP-3085; on by default since 1.29."""
NO_ADDRESS = frozenset({"", "None"})
"""`clusterIP` of a Service that has none; `None` is a headless one's."""
_LOCAL_IP = re.compile(r"--?localip(?:=(.*))?")
"""The option of NodeLocal DNSCache (kubernetes/dns, cmd/node-cache/main.go) for the addresses that it listens on."""


class PodFacts(NamedTuple):
    """A pod, and when it had which addresses."""

    key: str
    """Its UID."""
    pod: Pod
    addresses: tuple[bytes, ...]
    """Its own; none of a pod on the node's network, whose address says nothing."""
    start_ns: int
    """When its kubelet began with it; it can have no address before. In whole seconds, rounded down."""
    ready_ns: int | None
    """When its kubelet said that it has its network; it may have had it some moments before."""
    finished_ns: int | None
    """When the last container of a pod that is over ended, rounded up; None while one runs, or if that is not known."""
    node_local: tuple[bytes, ...] | None
    """Where NodeLocal DNSCache listens, if this is it."""


class ServiceFacts(NamedTuple):
    """A Service, and by what it can be asked."""

    key: tuple[str, str]
    """Namespace and name."""
    service: Service
    virtual: tuple[bytes, ...]
    """Its cluster IPs, and external ones."""
    ports: tuple[tuple[int, int, str], ...]
    """(IANA protocol number, port, name of the port)."""


class EndpointFacts(NamedTuple):
    """One endpoint of a slice."""

    address: bytes
    ready: bool
    """Gets traffic: ready, or serving while terminating."""
    published: bool
    """Has an address record: ready, by its own conditions or by its Service's will."""
    hostname: str | None
    pod: str | None
    pod_uid: str
    node: str


class SliceFacts(NamedTuple):
    """An EndpointSlice."""

    key: str
    """Its UID."""
    service: tuple[str, str]
    """Namespace and name of its Service."""
    ports: tuple[tuple[int, int, str], ...]
    """(IANA protocol number, port of the endpoints, name of the port)."""
    endpoints: tuple[EndpointFacts, ...]


class StatefulSetFacts(NamedTuple):
    """A StatefulSet."""

    key: tuple[str, str]
    """Namespace and name."""
    stateful_set: StatefulSet


def packed(text: str) -> bytes | None:
    """The 16 bytes of an address; None when it is none."""
    try:
        if ":" in text:
            return socket.inet_pton(socket.AF_INET6, text)
        return V4_MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return None


def workload_of(metadata: objects.Metadata) -> str | None:
    """The controller that people know, as far as the pod itself tells.

    A Deployment names its ReplicaSets after itself and the hash that is also a label of their pods: exact, without
    asking for the ReplicaSet. Of other ReplicaSets, and of Jobs, the owner is not in the pod.
    """
    owner = next(
        (owner_reference for owner_reference in metadata.owner_references or () if owner_reference.controller), None
    )
    if owner is None or owner.kind == "Node":
        # A static pod belongs to its node's kubelet, which is no workload.
        return None
    name, separator, suffix = owner.name.rpartition("-")
    if owner.kind == "ReplicaSet" and separator and suffix == metadata.labels.pod_template_hash:
        return intern(f"Deployment/{name}")
    return intern(f"{owner.kind}/{owner.name}")


class PodReader:
    """Makes facts of pods, in full detail of those on this node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._decode = msgspec.json.Decoder(objects.Pod).decode

    def __call__(self, data: bytes | msgspec.Raw) -> PodFacts:
        """Read one.

        Raises:
            objects.UNREADABLE: when it is no pod.
        """
        pod = self._decode(data)
        spec, status = pod.spec, pod.status
        here = spec.node_name == self._node
        return PodFacts(
            key=pod.metadata.uid,
            pod=_pod(pod, here=here),
            addresses=() if spec.host_network else _addresses(_pod_ips(status)),
            start_ns=_ns(status.start_time or pod.metadata.creation_timestamp) or 0,
            ready_ns=_network_ready_ns(status),
            finished_ns=_finished_ns(pod),
            node_local=_node_local(spec) if here and spec.host_network else None,
        )


class ServiceReader:
    """Makes facts of Services."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(objects.Service).decode

    def __call__(self, data: bytes | msgspec.Raw) -> ServiceFacts:
        """Read one.

        Raises:
            objects.UNREADABLE: when it is no Service.
        """
        service = self._decode(data)
        spec, metadata = service.spec, service.metadata
        key = intern(metadata.namespace), metadata.name
        is_name = spec.type == "ExternalName"
        cluster_ips = () if is_name else _addresses(spec.cluster_ips or (spec.cluster_ip,))
        ingress = (entry.ip for entry in service.status.load_balancer.ingress or ())
        return ServiceFacts(
            key=key,
            service=Service(
                *key,
                headless=spec.cluster_ip == "None",
                cluster_ips=cluster_ips,
                external_name=spec.external_name if is_name else None,
                publishes_not_ready=spec.publish_not_ready_addresses,
            ),
            virtual=cluster_ips + _addresses([*(spec.external_ips or ()), *ingress]),
            ports=_ports(spec.ports),
        )


class SliceReader:
    """Makes facts of EndpointSlices."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(objects.EndpointSlice).decode

    def __call__(self, data: bytes | msgspec.Raw) -> SliceFacts:
        """Read one.

        Raises:
            objects.UNREADABLE: when it is no EndpointSlice.
        """
        part = self._decode(data)
        metadata = part.metadata
        return SliceFacts(
            key=metadata.uid,
            service=(intern(metadata.namespace), intern(metadata.labels.service_name or "")),
            ports=_ports(part.ports),
            endpoints=tuple(read for endpoint in part.endpoints or () for read in _endpoints(endpoint)),
        )


class StatefulSetReader:
    """Makes facts of StatefulSets."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(objects.StatefulSet).decode

    def __call__(self, data: bytes | msgspec.Raw) -> StatefulSetFacts:
        """Read one.

        Raises:
            objects.UNREADABLE: when it is no StatefulSet.
        """
        found = self._decode(data)
        key = intern(found.metadata.namespace), found.metadata.name
        return StatefulSetFacts(key, StatefulSet(*key, intern(found.spec.service_name), found.spec.replicas))


def _pod(pod: objects.Pod, *, here: bool) -> Pod:
    metadata, spec = pod.metadata, pod.spec
    dns = spec.dns_config or objects.DnsConfig()
    return Pod(
        uid=metadata.uid,
        namespace=intern(metadata.namespace),
        name=metadata.name,
        workload=workload_of(metadata),
        node=intern(spec.node_name),
        host_network=spec.host_network,
        dns_policy=intern(spec.dns_policy),
        nameservers=_shared(tuple(dns.nameservers or ())),
        searches=_shared(tuple(dns.searches or ())),
        options=_shared(
            tuple(
                option.name if option.value is None else f"{option.name}:{option.value}" for option in dns.options or ()
            )
        ),
        containers=_containers(pod.status) if here else (),
        only_container=_only_container(spec) if here else None,
    )


@lru_cache(maxsize=4096)
def _shared(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The same tuple for all that say the same: where a webhook writes `dnsConfig`, every pod has one."""
    return texts


def _container_statuses(status: objects.PodStatus) -> list[objects.ContainerStatus]:
    lists = (status.init_container_statuses, status.container_statuses, status.ephemeral_container_statuses)
    return [container for some in lists for container in some or ()]


def _containers(status: objects.PodStatus) -> tuple[tuple[str, str], ...]:
    """Ids are `containerd://…`; a container that has not started yet has none."""
    known = ((container.container_id.rpartition("//")[2], container.name) for container in _container_statuses(status))
    return tuple((container_id, intern(name)) for container_id, name in known if container_id)


def _only_container(spec: objects.PodSpec) -> str | None:
    """Name of the pod's container, if it can have no other; ephemeral ones are added while it runs."""
    lists = (spec.init_containers, spec.containers, spec.ephemeral_containers)
    names = [container.name for some in lists for container in some or ()]
    return intern(names[0]) if len(names) == 1 and names[0] else None


def _pod_ips(status: objects.PodStatus) -> Sequence[str]:
    return [pod_ip.ip for pod_ip in status.pod_ips or ()] or [status.pod_ip]


def _addresses(texts: Iterable[str]) -> tuple[bytes, ...]:
    found = (packed(text) for text in texts if text not in NO_ADDRESS)
    return tuple(address for address in found if address is not None)


def _ns(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp()) * SECOND_NS + time.microsecond * 1000


def _network_ready_ns(status: objects.PodStatus) -> int | None:
    times = (
        condition.last_transition_time
        for condition in status.conditions or ()
        if condition.type == NETWORK_READY and condition.status == "True"
    )
    return _ns(next(times, None))


def _finished_ns(pod: objects.Pod) -> int | None:
    if pod.status.phase not in OVER and pod.metadata.deletion_timestamp is None:
        # Containers of a pod that goes on are started again.
        return None
    ends = [_ended_ns(container) for container in pod.status.container_statuses or ()]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _ended_ns(container: objects.ContainerStatus) -> int | None:
    terminated = container.state.terminated
    end = None if terminated is None else _ns(terminated.finished_at)
    # Times of the API are whole seconds, rounded down.
    return None if end is None else end + SECOND_NS


def _node_local(spec: objects.PodSpec) -> tuple[bytes, ...] | None:
    for container in spec.containers or ():
        words = [*(container.command or ()), *(container.args or ()), ""]
        for word, after in pairwise(words):
            if option := _LOCAL_IP.fullmatch(word):
                return _addresses((option[1] or after).split(","))
    return None


def _ports(ports: Iterable[objects.ServicePort | objects.SlicePort] | None) -> tuple[tuple[int, int, str], ...]:
    return tuple(
        (PROTOCOLS[port.protocol or "TCP"], port.port, intern(port.name or ""))
        for port in ports or ()
        if port.port is not None and (port.protocol or "TCP") in PROTOCOLS
    )


def _endpoints(endpoint: objects.SliceEndpoint) -> Iterable[EndpointFacts]:
    conditions, target = endpoint.conditions, endpoint.target_ref
    is_pod = target is not None and target.kind == "Pod"
    ready = conditions.ready is not False
    for address in _addresses(endpoint.addresses):
        yield EndpointFacts(
            address=address,
            ready=ready or (bool(conditions.serving) and bool(conditions.terminating)),
            published=ready,
            hostname=endpoint.hostname,
            pod=target.name if target is not None and is_pod else None,
            pod_uid=target.uid if target is not None and is_pod else "",
            node=intern(endpoint.node_name or ""),
        )
