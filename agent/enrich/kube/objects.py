"""Objects of the API as far as they are read: fields that are not named here are skipped while decoding.

Lists may be null: Go writes an empty one so where its field has no `omitempty`, as `endpoints` of an EndpointSlice.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  msgspec reads the annotations

import msgspec

UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding raises: for what is no such object, for bytes that are no text, for brackets without end."""


class _Part(msgspec.Struct, rename="camel", gc=False, frozen=True):
    """One JSON object, or the part of it that is wanted."""


class Labels(_Part, frozen=True):
    """Labels that mean something to us."""

    pod_template_hash: str | None = msgspec.field(default=None, name="pod-template-hash")
    service_name: str | None = msgspec.field(default=None, name="kubernetes.io/service-name")


class Owner(_Part, frozen=True):
    """metav1.OwnerReference."""

    kind: str
    name: str
    controller: bool = False


class Metadata(_Part, frozen=True):
    """metav1.ObjectMeta."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: Labels = Labels()
    owner_references: list[Owner] | None = None


class Marked(_Part, frozen=True):
    """Any object, when nothing but its version or its owners matter: a bookmark, or PartialObjectMetadata."""

    metadata: Metadata = Metadata()


class ListMetadata(_Part, frozen=True):
    """metav1.ListMeta."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(_Part, frozen=True):
    """One page of a list; objects stay JSON until each is read by itself, so that a strange one spoils no other."""

    metadata: ListMetadata = ListMetadata()
    items: list[msgspec.Raw] | None = None


class Event(_Part, frozen=True):
    """One line of a watch: metav1.WatchEvent."""

    type: str
    object: msgspec.Raw


class StatusDetails(_Part, frozen=True):
    """metav1.StatusDetails."""

    retry_after_seconds: int = 0


class Status(_Part, frozen=True):
    """metav1.Status: why the API refused."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None


class DnsOption(_Part, frozen=True):
    """v1.PodDNSConfigOption."""

    name: str = ""
    value: str | None = None


class DnsConfig(_Part, frozen=True):
    """v1.PodDNSConfig."""

    nameservers: list[str] | None = None
    searches: list[str] | None = None
    options: list[DnsOption] | None = None


class ContainerSpec(_Part, frozen=True):
    """v1.Container: only its name and how it is started."""

    name: str = ""
    command: list[str] | None = None
    args: list[str] | None = None


class PodSpec(_Part, frozen=True):
    """v1.PodSpec."""

    node_name: str = ""
    host_network: bool = False
    dns_policy: str = ""
    dns_config: DnsConfig | None = None
    containers: list[ContainerSpec] | None = None
    init_containers: list[ContainerSpec] | None = None
    ephemeral_containers: list[ContainerSpec] | None = None


class PodIP(_Part, frozen=True):
    """v1.PodIP."""

    ip: str = ""


class Condition(_Part, frozen=True):
    """v1.PodCondition."""

    type: str
    status: str = ""
    last_transition_time: datetime | None = None


class Terminated(_Part, frozen=True):
    """v1.ContainerStateTerminated."""

    finished_at: datetime | None = None


class ContainerState(_Part, frozen=True):
    """v1.ContainerState."""

    terminated: Terminated | None = None


class ContainerStatus(_Part, frozen=True):
    """v1.ContainerStatus."""

    name: str = ""
    container_id: str = msgspec.field(default="", name="containerID")
    state: ContainerState = ContainerState()


class PodStatus(_Part, frozen=True):
    """v1.PodStatus."""

    phase: str = ""
    start_time: datetime | None = None
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: list[PodIP] | None = msgspec.field(default=None, name="podIPs")
    conditions: list[Condition] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    container_statuses: list[ContainerStatus] | None = None
    ephemeral_container_statuses: list[ContainerStatus] | None = None


class Pod(_Part, frozen=True):
    """v1.Pod."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(_Part, frozen=True):
    """v1.ServicePort."""

    port: int
    name: str = ""
    protocol: str = "TCP"


class ServiceSpec(_Part, frozen=True):
    """v1.ServiceSpec."""

    type: str = ""
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    external_name: str = ""
    ports: list[ServicePort] | None = None
    publish_not_ready_addresses: bool = False


class Ingress(_Part, frozen=True):
    """v1.LoadBalancerIngress."""

    ip: str = ""


class LoadBalancer(_Part, frozen=True):
    """v1.LoadBalancerStatus."""

    ingress: list[Ingress] | None = None


class ServiceStatus(_Part, frozen=True):
    """v1.ServiceStatus."""

    load_balancer: LoadBalancer = LoadBalancer()


class Service(_Part, frozen=True):
    """v1.Service."""

    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class EndpointConditions(_Part, frozen=True):
    """discovery.k8s.io/v1 EndpointConditions; null means unknown, to be taken for ready."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Target(_Part, frozen=True):
    """v1.ObjectReference."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class SliceEndpoint(_Part, frozen=True):
    """discovery.k8s.io/v1 Endpoint."""

    addresses: list[str]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    target_ref: Target | None = None


class SlicePort(_Part, frozen=True):
    """discovery.k8s.io/v1 EndpointPort."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(_Part, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: Metadata
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class StatefulSetSpec(_Part, frozen=True):
    """apps/v1 StatefulSetSpec."""

    service_name: str = ""
    replicas: int = 1


class StatefulSet(_Part, frozen=True):
    """apps/v1 StatefulSet."""

    metadata: Metadata
    spec: StatefulSetSpec = StatefulSetSpec()
