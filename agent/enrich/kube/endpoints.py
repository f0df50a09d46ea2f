"""Endpoints of Services, put together from their slices, and those that were endpoints a moment ago."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from agent.context.cluster import Member, Outage
from agent.hop.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.enrich.kube.facts import EndpointFacts, SliceFacts

MAX_GONE = 4096
"""Endpoints that are remembered after their end; the oldest make room."""

ServiceName = tuple[str, str]
Port = tuple[int, str]
"""IANA protocol number, and the port's name."""


class Slices:
    """Slices by their Service."""

    def __init__(self) -> None:
        self._slices: dict[ServiceName, dict[str, SliceFacts]] = {}

    def update(self, old: SliceFacts | None, new: SliceFacts | None, _ts_ns: int) -> None:
        """Take note of a slice's change."""
        if old is not None:
            rest = self._slices.get(old.service, {})
            rest.pop(old.key, None)
            if not rest:
                self._slices.pop(old.service, None)
        if new is not None:
            self._slices.setdefault(new.service, {})[new.key] = new

    def of(self, service: ServiceName) -> Iterable[SliceFacts]:
        """A Service's slices."""
        return self._slices.get(service, {}).values()

    def members(self, service: ServiceName) -> tuple[Member, ...]:
        """Addresses of a headless Service."""
        endpoints = (endpoint for part in self.of(service) for endpoint in part.endpoints)
        return tuple(
            Member(endpoint.address, endpoint.hostname, endpoint.pod, endpoint.published) for endpoint in endpoints
        )


class Served(NamedTuple):
    """Endpoints of one port of one Service."""

    ready: frozenset[Endpoint]
    not_ready: frozenset[Endpoint]

    @property
    def all(self) -> frozenset[Endpoint]:
        """All of them."""
        return self.ready | self.not_ready


class Holder(NamedTuple):
    """The pod of an endpoint, as its slice names it."""

    namespace: str
    facts: EndpointFacts
    since_ns: int
    """When it took over from another pod; 0 for the first one that is known."""


class _Departure(NamedTuple):
    """An endpoint was taken off a list."""

    service: ServiceName
    port: Port
    endpoint: Endpoint


NOBODY = Served(frozenset(), frozenset())


class Endpoints:
    """Endpoints by Service and port, and the pods behind them."""

    def __init__(self) -> None:
        self._slices = Slices()
        self._served: dict[ServiceName, dict[Port, Served]] = {}
        self._holders: dict[Endpoint, Holder] = {}
        self._gone: dict[_Departure, int] = {}
        self._departures: deque[tuple[int, _Departure]] = deque()
        self._outages: dict[tuple[ServiceName, Port], Outage] = {}

    def update(self, old: SliceFacts | None, new: SliceFacts | None, ts_ns: int) -> None:
        """Take note of a slice's change."""
        self._slices.update(old, new, ts_ns)
        for service in {facts.service for facts in (old, new) if facts is not None}:
            self._renew(service, ts_ns)

    def served(self, service: ServiceName, port: Port) -> Served:
        """Endpoints of a Service's port."""
        return self._served.get(service, {}).get(port, NOBODY)

    def outage(self, service: ServiceName, port: Port) -> Outage | None:
        """The last time during which a Service's port had no ready endpoint."""
        return self._outages.get((service, port))

    def gone(self, service: ServiceName, port: Port) -> dict[Endpoint, int]:
        """Those that were endpoints of it some minutes ago, and when they were taken off the list."""
        return {left.endpoint: ts_ns for left, ts_ns in self._gone.items() if left[:2] == (service, port)}

    def holder(self, endpoint: Endpoint, ts_ns: int) -> Holder | None:
        """The pod that served there at that time, as far as it was the last to do so."""
        holder = self._holders.get(endpoint)
        if holder is None or ts_ns < holder.since_ns:
            return None
        if self._is_endpoint(endpoint):
            return holder
        gone_ns = max((gone for left, gone in self._gone.items() if left.endpoint == endpoint), default=0)
        return holder if ts_ns < gone_ns else None

    def forget(self, before_ns: int) -> None:
        """Drop what ended before that, and the oldest of what is too much."""
        while self._departures and (self._departures[0][0] < before_ns or len(self._departures) > MAX_GONE):
            ts_ns, departure = self._departures.popleft()
            if self._gone.get(departure) == ts_ns:
                del self._gone[departure]
            if not self._is_endpoint(departure.endpoint):
                self._holders.pop(departure.endpoint, None)
        over = [key for key, outage in self._outages.items() if outage.end_ns is not None and outage.end_ns < before_ns]
        for key in over:
            del self._outages[key]

    def _is_endpoint(self, endpoint: Endpoint) -> bool:
        return any(endpoint in served.all for ports in self._served.values() for served in ports.values())

    def _renew(self, service: ServiceName, ts_ns: int) -> None:
        slices = tuple(self._slices.of(service))
        before, now = self._served.pop(service, {}), _served(slices)
        if now:
            self._served[service] = now
        for endpoint, facts in _pods(slices):
            known = self._holders.get(endpoint, Holder(service[0], facts, 0))
            since_ns = known.since_ns if known.facts.pod_uid == facts.pod_uid else ts_ns
            self._holders[endpoint] = Holder(service[0], facts, since_ns)
        for port in before | now:
            self._note_outage((service, port), before.get(port), now.get(port, NOBODY), ts_ns)
            was, present = before.get(port, NOBODY).all, now.get(port, NOBODY).all
            for endpoint in was - present:
                self._gone[_Departure(service, port, endpoint)] = ts_ns
                self._departures.append((ts_ns, _Departure(service, port, endpoint)))
            for endpoint in present - was:
                self._gone.pop(_Departure(service, port, endpoint), None)

    def _note_outage(self, key: tuple[ServiceName, Port], before: Served | None, now: Served, ts_ns: int) -> None:
        known = self._outages.get(key)
        if now.ready and known is not None and known.end_ns is None:
            self._outages[key] = known._replace(end_ns=ts_ns)
        elif not now.ready and (known is None or known.end_ns is not None):
            self._outages[key] = Outage(ts_ns if before is not None and before.ready else 0, None)


def _served(slices: Iterable[SliceFacts]) -> dict[Port, Served]:
    """By the port's name, as it is what ties a slice's port to its Service's: their numbers may differ."""
    found: dict[Port, tuple[set[Endpoint], set[Endpoint]]] = {}
    for part in slices:
        for protocol, number, name in part.ports:
            ready, not_ready = found.setdefault((protocol, name), (set(), set()))
            for endpoint in part.endpoints:
                (ready if endpoint.ready else not_ready).add(Endpoint(endpoint.address, number))
    # An endpoint may be in two slices for a moment, while it is moved.
    return {port: Served(frozenset(ready), frozenset(rest - ready)) for port, (ready, rest) in found.items()}


def _pods(slices: Iterable[SliceFacts]) -> Iterator[tuple[Endpoint, EndpointFacts]]:
    for part in slices:
        for number in {number for _, number, _ in part.ports}:
            for endpoint in part.endpoints:
                if endpoint.pod:
                    yield Endpoint(endpoint.address, number), endpoint
