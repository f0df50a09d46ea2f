"""The tables of ip_vs as text: /proc/net/ip_vs and ip_vs_conn, which show them in every namespace without a capability.

Netlink (pyroute2's IPVS) has the services of this process's own namespace only, asks for CAP_NET_ADMIN, and does not
have the connections at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.hop.endpoint import V4_MAPPED, Endpoint
from agent.hop.record import TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

V6_BYTES = 16
PROTOCOLS = {b"TCP": TCP, b"UDP": UDP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_REAL_SERVER = re.compile(rb"^  -> (\S+):([0-9A-F]{4}) +\S+ +(-?\d+) ", re.MULTILINE)


class IpvsTables:
    """Reads /proc/net/ip_vs and ip_vs_conn, as `ip_vs_info_seq_show` and `ip_vs_conn_seq_show` write them.

    Only services on these ports: the tables hold all traffic of the node. Those by firewall mark have no address.
    """

    def __init__(self, ports: Iterable[int]) -> None:
        port = b"(?:%s)" % b"|".join(b"%04X" % number for number in ports)
        self._service = re.compile(rb"(TCP|UDP)  (\S+):(%s) " % port)
        self._connection = re.compile(rb"^((?:TCP|UDP) \S+ \S+ \S+ %s) (\S+ \S+) .*\n" % port, re.MULTILINE)

    def services(self, text: bytes, *, complete: bool) -> dict[tuple[int, Endpoint], frozenset[Endpoint]]:
        """Real servers that get new connections; the last service of an incomplete text may lack some: left out."""
        blocks = re.split(rb"\n(?=\S)", text)
        found = {}
        for block in blocks if complete else blocks[:-1]:
            if service := self._service.match(block):
                protocol, address, port = service.groups()
                found[PROTOCOLS[protocol], _endpoint(address, port)] = frozenset(
                    _endpoint(real, real_port)
                    for real, real_port, weight in _REAL_SERVER.findall(block)
                    if int(weight) > 0
                )
        return found

    def connections(self, text: bytes) -> Mapping[tuple[int, Endpoint, Endpoint], Endpoint]:
        """Real servers by protocol, client and virtual address; a line that is cut short does not count."""
        return _Connections(dict(self._connection.findall(text)))


class _Connections(Mapping[tuple[int, Endpoint, Endpoint], Endpoint]):
    """Entries stay text until they are asked for: 25 ms for a long table, where reading them all takes 200."""

    def __init__(self, real_servers: dict[bytes, bytes]) -> None:
        self._real_servers = real_servers

    def __getitem__(self, key: tuple[int, Endpoint, Endpoint]) -> Endpoint:
        protocol, client, virtual = key
        text = b"%s %s %s" % (PROTOCOL_NAMES[protocol], _endpoint_text(client), _endpoint_text(virtual))
        return _endpoint(*self._real_servers[text].split())

    def __iter__(self) -> Iterator[tuple[int, Endpoint, Endpoint]]:
        for text in self._real_servers:
            protocol, client, client_port, virtual, virtual_port = text.split()
            yield PROTOCOLS[protocol], _endpoint(client, client_port), _endpoint(virtual, virtual_port)

    def __len__(self) -> int:
        return len(self._real_servers)


def _endpoint(address: bytes, port: bytes) -> Endpoint:
    """All digits of an address are written: 8 for IPv4, 32 for IPv6 between colons, and in ip_vs in brackets."""
    data = bytes.fromhex(address.strip(b"[]").replace(b":", b"").decode())
    return Endpoint(data if len(data) == V6_BYTES else V4_MAPPED + data, int(port, 16))


def _endpoint_text(endpoint: Endpoint) -> bytes:
    """As ip_vs_conn has it."""
    if endpoint.address.startswith(V4_MAPPED):
        return b"%s %04X" % (endpoint.address[12:].hex().upper().encode(), endpoint.port)
    return b"%s %04X" % (endpoint.address.hex(":", 2).encode(), endpoint.port)
