"""`agent.context.cluster.Cluster` of a live node."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from agent.context.cluster import Backends, Pod
from agent.enrich.kube import resources
from agent.enrich.kube.endpoints import Endpoints, Slices
from agent.enrich.kube.events import EventWriter
from agent.enrich.kube.jobs import CronJobs
from agent.enrich.kube.mirror import UNRESTRICTED, Facts, Mirror
from agent.enrich.kube.pods import Pods
from agent.enrich.kube.services import Services
from agent.enrich.kube.transport import Transport
from agent.enrich.kube.watch import Timing, Watch
from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.context.cluster import Member, NodeLocal, Service, StatefulSet
    from agent.enrich.kube.access import Access
    from agent.enrich.kube.endpoints import Holder
    from agent.enrich.kube.facts import PodFacts
    from agent.enrich.kube.health import WatchHealth
    from agent.enrich.kube.resources import Resource
    from agent.hop.endpoint import Endpoint

OBJECTS_A_TURN = 500
"""What one turn takes in at most: some milliseconds, while the ring fills."""
REMEMBERED_NS = 600 * SECOND_NS
"""So long deleted pods and former endpoints are known: longer than any lookup is open."""
ELSEWHERE_SECONDS = 1800.0
"""So long after the last client from elsewhere, pods of other nodes are watched."""
STOP_SECONDS = 1.0
JOB = "Job/"


class _Feed(NamedTuple, Generic[Facts]):
    """A watch, and what is known by it."""

    watch: Watch[Facts]
    mirror: Mirror[Facts]

    def take_in(self, budget: int) -> int:
        """Take in what was handed over, until the budget is used up; what is left of it."""
        while budget > 0 and (step := self.watch.take()) is not None:
            self.mirror.apply(step)
            budget -= 1 + len(step.put) + len(step.gone)
        health = self.watch.health
        health.synced, health.objects, health.left_out = self.mirror.synced, len(self.mirror), self.mirror.left_out
        return budget


class LiveCluster:
    """What the API server told of the cluster so far. All methods are for one thread, and none of them ever waits.

    `poll` takes in what the watches handed over; it is for the agent's loop to call at every turn.
    """

    def __init__(
        self,
        access: Access,
        node: str,
        ports: Iterable[int] = (53,),
        timing: Timing | None = None,
        *,
        events: bool = False,
    ) -> None:
        """Describe it; `start` begins.

        Args:
            access: How to get at the API server.
            node: The name that this node has in the cluster.
            ports: Where DNS is served.
            timing: How long things may take.
            events: Whether there is to be somebody who writes Events.
        """
        self._timing = timing or Timing()
        self._transport = Transport(access)
        self.events = EventWriter(self._transport, self._timing) if events else None
        """The one part that changes anything in the cluster; None unless it was asked for."""
        self._pods = Pods()
        self._services = Services(ports)
        self._endpoints = Endpoints()
        self._headless = Slices()
        self._jobs = CronJobs(self._transport, self._timing)
        self._here = self._feed(resources.pods_here(node), self._pod_here_changed)
        self._all_services = self._feed(resources.services(), self._services.update)
        self._server_slices = self._feed(resources.slices_of_servers(), self._endpoints.update)
        self._headless_slices = self._feed(resources.slices_of_headless(), self._headless.update)
        self._stateful_sets = self._feed(resources.stateful_sets(), _nobody_asks)
        self._elsewhere = self._feed(resources.pods_elsewhere(node), self._pods.update_elsewhere)
        self._elsewhere_until = 0.0
        # In the order of their importance to the next line that is printed.
        self._feeds: tuple[_Feed[Any], ...] = (
            self._here,
            self._all_services,
            self._server_slices,
            self._headless_slices,
            self._stateful_sets,
            self._elsewhere,
        )
        for feed in (self._here, self._all_services, self._headless_slices, self._stateful_sets):
            feed.watch.select(UNRESTRICTED)
        # Which ones, the Services will say; until then the agent is not ready for want of them.
        self._server_slices.watch.health.wanted = True

    @property
    def health(self) -> tuple[WatchHealth, ...]:
        """How each watch fares, for readiness and metrics."""
        return (*(feed.watch.health for feed in self._feeds), self._jobs.health)

    @property
    def is_synced(self) -> bool:
        """Whether everything that the agent needs was taken in, once at least."""
        return self._all_services.mirror.synced and all(watch.synced for watch in self._needed)

    @property
    def is_current(self) -> bool:
        """Whether the API server was heard of just now; if not, what is known may be old."""
        return all(watch.is_current for watch in self._needed)

    @property
    def renewals(self) -> int:
        """How often the API server and we no longer knew each other, and the configuration was read anew."""
        return self._transport.renewals

    def start(self) -> None:
        """Begin to watch. Threads are started: nothing may fork after this."""
        for feed in self._feeds:
            feed.watch.start()
        self._jobs.start()
        if self.events is not None:
            self.events.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """End all threads within so long; those that wait for the API server are left behind."""
        end = time.monotonic() + seconds
        for feed in self._feeds:
            feed.watch.stop(0)
        for feed in self._feeds:
            feed.watch.stop(max(0.0, end - time.monotonic()))
        self._jobs.stop(max(0.0, end - time.monotonic()))
        if self.events is not None:
            self.events.stop(max(0.0, end - time.monotonic()))

    def poll(self) -> None:
        """Take in what was handed over."""
        budget = OBJECTS_A_TURN
        for feed in self._feeds:
            budget = feed.take_in(budget)
        self._jobs.take_in()
        if self._all_services.mirror.synced:
            self._server_slices.watch.select(self._services.server_names or None)
        if time.monotonic() > self._elsewhere_until:
            self._elsewhere.watch.select(None)
        before_ns = time.time_ns() - REMEMBERED_NS
        self._pods.forget(before_ns)
        self._endpoints.forget(before_ns)

    def expect_clients_from_elsewhere(self) -> None:
        """A server on this node is asked by others: their pods are worth knowing, for some time from now."""
        self._elsewhere_until = time.monotonic() + ELSEWHERE_SECONDS
        self._elsewhere.watch.select(UNRESTRICTED)

    def pod_at(self, address: bytes, ts_ns: int) -> Pod | None:
        """The pod that had this 16-byte address at that time; None for the addresses of nodes."""
        return self._with_cron_job(self._pods.at(address, ts_ns))

    def pods_here(self) -> list[Pod] | None:
        """All pods of this node; None as long as they have not been taken in."""
        return self._pods.here() if self._here.mirror.synced else None

    def pod_by_uid(self, uid: str) -> Pod | None:
        """The pod of this node with this UID, completed and deleted ones too for a while."""
        return self._with_cron_job(self._pods.by_uid(uid))

    def pod_behind(self, backend: Endpoint, ts_ns: int) -> Pod | None:
        """The pod that served on this address and port at that time, also on another node or on a node's address."""
        pod = self.pod_at(backend.address, ts_ns)
        if pod is not None:
            return pod
        holder = self._endpoints.holder(backend, ts_ns)
        return None if holder is None else self.pod_by_uid(holder.facts.pod_uid) or _named_only(holder)

    def service_at(self, address: bytes) -> Service | None:
        """The Service with this address: a cluster IP, an external one, or a load balancer's."""
        facts = self._services.at(address)
        return facts.service if facts else None

    def service_of(self, namespace: str, name: str) -> Service | None:
        """The Service with this name."""
        facts = self._all_services.mirror.get((namespace, name))
        return facts.service if facts else None

    def backends(self, virtual: Endpoint, protocol: int) -> Backends | None:
        """Endpoints behind a virtual address and port of a DNS Service; None for all else, and when not known."""
        found = self._services.port_at(virtual, protocol)
        watched = self._server_slices.mirror.selection
        if found is None or watched is None or found.service.service.name not in watched:
            return None
        name, port = found.service.key, found.port
        served, gone = self._endpoints.served(name, port), self._endpoints.gone(name, port)
        current = self._server_slices.watch.health.is_current
        return Backends(served.ready, served.not_ready, gone, current, self._endpoints.outage(name, port))

    def dns_servers(self) -> set[tuple[int, Endpoint]]:
        """IANA protocol number and endpoint of each server behind a DNS Service; those that the API told so far."""
        return {
            (protocol, endpoint)
            for service, (protocol, name) in self._services.dns_ports()
            for endpoint in self._endpoints.served(service, (protocol, name)).all
        }

    def members(self, namespace: str, name: str) -> tuple[Member, ...] | None:
        """The addresses of a headless Service; None for all else, and when not known."""
        service = self.service_of(namespace, name)
        if service is None or not service.headless or not self._headless_slices.mirror.synced:
            return None
        return self._headless.members((namespace, name))

    def stateful_set(self, namespace: str, name: str) -> StatefulSet | None:
        """The StatefulSet with this name."""
        facts = self._stateful_sets.mirror.get((namespace, name))
        return facts.stateful_set if facts else None

    def node_local(self) -> NodeLocal | None:
        """NodeLocal DNSCache, if it runs on this node."""
        return self._pods.node_local()

    @property
    def _needed(self) -> tuple[WatchHealth, ...]:
        return tuple(watch for watch in self.health if watch.required and watch.wanted)

    def _feed(
        self, resource: Resource[Facts], changed: Callable[[Facts | None, Facts | None, int], None]
    ) -> _Feed[Facts]:
        return _Feed(Watch(resource, self._transport, self._timing), Mirror(changed, resource.limit))

    def _pod_here_changed(self, old: PodFacts | None, new: PodFacts | None, ts_ns: int) -> None:
        self._pods.update_here(old, new, ts_ns)
        # The CronJob is asked for at once, so that it is known when the pod asks for something.
        self._with_cron_job(new.pod if new else None)

    def _with_cron_job(self, pod: Pod | None) -> Pod | None:
        """The pod of a Job says nothing of its CronJob."""
        if pod is None or not (pod.workload or "").startswith(JOB):
            return pod
        owner = self._jobs.owner(pod.namespace, (pod.workload or "").removeprefix(JOB))
        return pod._replace(workload=owner) if owner else pod


def _nobody_asks(_old: object, _new: object, _ts_ns: int) -> None:
    """Nothing is looked up but by name."""


def _named_only(holder: Holder) -> Pod:
    """All that an EndpointSlice says of a pod."""
    facts = holder.facts
    return Pod(facts.pod_uid, holder.namespace, facts.pod or "", None, facts.node, False, "", ())
