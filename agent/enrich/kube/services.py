"""Services by their addresses, and which of them serve DNS."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agent.enrich.kube.endpoints import Port
    from agent.enrich.kube.facts import ServiceFacts
    from agent.hop.endpoint import Endpoint


class Found(NamedTuple):
    """A port of a Service."""

    service: ServiceFacts
    port: Port


class Services:
    """An index of the Services."""

    def __init__(self, ports: Iterable[int]) -> None:
        """Begin with none.

        Args:
            ports: Where DNS is served.
        """
        self._ports = frozenset(ports)
        self._by_address: dict[bytes, tuple[ServiceFacts, ...]] = {}
        self._servers: dict[tuple[str, str], ServiceFacts] = {}

    @property
    def server_names(self) -> frozenset[str]:
        """Names, whatever their namespaces, of Services that have a port of DNS."""
        return frozenset(name for _, name in self._servers)

    def dns_ports(self) -> Iterator[tuple[tuple[str, str], Port]]:
        """Each port of DNS of each Service: its number is the Service's, those of its endpoints may differ."""
        for key, service in self._servers.items():
            for protocol, number, name in service.ports:
                if number in self._ports:
                    yield key, (protocol, name)

    def update(self, old: ServiceFacts | None, new: ServiceFacts | None, _ts_ns: int) -> None:
        """Take note of a change."""
        for address in old.virtual if old else ():
            rest = tuple(facts for facts in self._by_address.get(address, ()) if old and facts.key != old.key)
            if rest:
                self._by_address[address] = rest
            else:
                self._by_address.pop(address, None)
        if old is not None:
            self._servers.pop(old.key, None)
        if new is not None:
            self._add(new)

    def at(self, address: bytes) -> ServiceFacts | None:
        """The Service with this address; of several that share an external one, one that serves DNS."""
        found = self._by_address.get(address, ())
        return next((facts for facts in found if facts.key in self._servers), next(iter(found), None))

    def port_at(self, virtual: Endpoint, protocol: int) -> Found | None:
        """The Service behind this address and port, and the port's name."""
        for service in self._by_address.get(virtual.address, ()):
            for number, port, name in service.ports:
                if (number, port) == (protocol, virtual.port):
                    return Found(service, (protocol, name))
        return None

    def _add(self, service: ServiceFacts) -> None:
        for address in service.virtual:
            self._by_address[address] = (*self._by_address.get(address, ()), service)
        if any(port in self._ports for _, port, _ in service.ports):
            self._servers[service.key] = service
