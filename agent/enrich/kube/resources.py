"""What is watched, and which part of it: a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple

from agent.enrich.kube import rbac
from agent.enrich.kube.facts import (
    PodFacts,
    PodReader,
    ServiceFacts,
    ServiceReader,
    SliceFacts,
    SliceReader,
    StatefulSetFacts,
    StatefulSetReader,
)
from agent.enrich.kube.mirror import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import msgspec

    from agent.enrich.kube.mirror import Selection

SERVICE_NAME = "kubernetes.io/service-name"
HEADLESS = "service.kubernetes.io/headless"
"""A label of the EndpointSlices of headless Services; kube-proxy leaves them out by it."""
MAX_NAMES = 64
"""In a selector; with more names all slices are asked for, and most are not needed."""


class Resource(NamedTuple, Generic[Facts]):
    """Objects of one kind, and how they are asked for."""

    name: str
    rule: rbac.Rule
    read: Callable[[bytes | msgspec.Raw], Facts]
    selectors: Callable[[Selection], Mapping[str, str]]
    """Parameters of the request for what is wanted at present."""
    limit: int
    """How many are kept."""
    page: int = 500
    """How many come at once, at most; the API server may send more if it answers from its cache."""
    cached: bool = True
    """Whether the first list may come from the API server's cache, which spares etcd when all agents start at once."""
    required: bool = True

    @property
    def path(self) -> str:
        """Where they are in the API, in all namespaces."""
        return path_of(self.rule)


def path_of(rule: rbac.Rule, namespace: str | None = None, version: str = "v1") -> str:
    """Where objects are in the API."""
    group = f"/apis/{rule.group}/{version}" if rule.group else f"/api/{version}"
    return f"{group}/{rule.resource}" if namespace is None else f"{group}/namespaces/{namespace}/{rule.resource}"


def pods_here(node: str) -> Resource[PodFacts]:
    """Pods of this node, completed ones too: 110 in a usual configuration."""
    fields = {"fieldSelector": f"spec.nodeName={node}"}
    return Resource("pods-here", rbac.PODS, PodReader(node), _always(fields), limit=4096)


def pods_elsewhere(node: str) -> Resource[PodFacts]:
    """Pods of other nodes that have an address now.

    Measured with 5 000 of them, 12 KB each on the wire: 4 MiB and 0.25 s of CPU here, 0.4 s of the API server's, once.
    To ask for a single one by `status.podIP` costs the API server 1 to 3 ms, as it goes through all of them, and does
    not tell when the address goes to another. A server has thousands of clients, so they are watched, where one is.
    """
    fields = {
        "fieldSelector": f"spec.nodeName!=,spec.nodeName!={node},"
        "status.podIP!=,status.phase!=Succeeded,status.phase!=Failed"
    }
    reader = PodReader(node)
    # Not from the API server's cache, which would send them all at once.
    return Resource(
        "pods-elsewhere", rbac.PODS, reader, _always(fields), limit=20_000, page=100, cached=False, required=False
    )


def services() -> Resource[ServiceFacts]:
    """All Services: any of them may be asked for."""
    return Resource("services", rbac.SERVICES, ServiceReader(), _always({}), limit=50_000)


def slices_of_servers() -> Resource[SliceFacts]:
    """EndpointSlices of the Services that are selected by a set of their names."""
    return Resource("slices-of-servers", rbac.ENDPOINT_SLICES, SliceReader(), _by_service, limit=10_000)


def slices_of_headless() -> Resource[SliceFacts]:
    """EndpointSlices of headless Services, whose endpoints are in DNS."""
    labels = {"labelSelector": HEADLESS}
    return Resource("slices-of-headless", rbac.ENDPOINT_SLICES, SliceReader(), _always(labels), limit=20_000)


def stateful_sets() -> Resource[StatefulSetFacts]:
    """All StatefulSets."""
    rule = rbac.STATEFUL_SETS
    return Resource("statefulsets", rule, StatefulSetReader(), _always({}), limit=20_000, required=rule.required)


def _always(parameters: Mapping[str, str]) -> Callable[[Selection], Mapping[str, str]]:
    return lambda _selection: parameters


def _by_service(names: Selection) -> Mapping[str, str]:
    if len(names) > MAX_NAMES:
        return {"labelSelector": SERVICE_NAME}
    return {"labelSelector": f"{SERVICE_NAME} in ({','.join(sorted(names))})"}
