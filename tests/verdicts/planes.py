"""The data planes of the campaign by name, each as what a lab gets in addition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from agent.lab import Lab
from tests.lab.bpf_planes import host_routing, socket_translation
from tests.lab.proxies import Proxy, docker_proxies, mesh_proxies, node_proxy

Enter = Callable[[Lab], AbstractContextManager[Sequence[Proxy]]]


def without_proxies(plane: Callable[[Lab], AbstractContextManager[object]]) -> Enter:
    @contextmanager
    def entered(lab: Lab) -> Iterator[Sequence[Proxy]]:
        with plane(lab):
            yield ()

    return entered


HOST_ROUTING, SOCKETS = "eBPF host routing", "socket translation"
MESH, MESH_NEW_ID, DOCKER = "REDIRECT in the pod", "REDIRECT in the pod, new id", "Docker's 127.0.0.11"
TPROXY_OWN, TPROXY_OWN_NEW_ID = "TPROXY, own address", "TPROXY, own address, new id"
TPROXY_CLIENT, TPROXY_CLIENT_NEW_ID = "TPROXY, client's address", "TPROXY, client's address, new id"
TPROXY_PORT, TPROXY_PORT_NEW_ID = "TPROXY, client's address and port", "TPROXY, client's address and port, new id"

IMPATIENT = ("--patience", "0.3")
"""Proxies give up before their clients: what a client does not wait for any more is another fault."""
NEW_ID = "--new-id"

PLANES: dict[str, Enter] = {
    HOST_ROUTING: without_proxies(host_routing),
    SOCKETS: without_proxies(socket_translation),
    MESH: lambda lab: mesh_proxies(lab, *IMPATIENT),
    MESH_NEW_ID: lambda lab: mesh_proxies(lab, *IMPATIENT, NEW_ID),
    DOCKER: lambda lab: docker_proxies(lab, *IMPATIENT),
    TPROXY_OWN: lambda lab: node_proxy(lab, "own", *IMPATIENT),
    TPROXY_OWN_NEW_ID: lambda lab: node_proxy(lab, "own", *IMPATIENT, NEW_ID),
    TPROXY_CLIENT: lambda lab: node_proxy(lab, "address", *IMPATIENT),
    TPROXY_CLIENT_NEW_ID: lambda lab: node_proxy(lab, "address", *IMPATIENT, NEW_ID),
    TPROXY_PORT: lambda lab: node_proxy(lab, "port", *IMPATIENT),
    TPROXY_PORT_NEW_ID: lambda lab: node_proxy(lab, "port", *IMPATIENT, NEW_ID),
}
