"""Names of Services and what the cluster knows of them (Kubernetes DNS-Based Service Discovery, version 1.1.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import V4_MAPPED, address_to_text
from agent.wire.errors import WireError
from agent.wire.message import RECORD_BYTES, read_record, skip_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.context.cluster import Cluster, Member, Service, StatefulSet
    from agent.wire.message import Summary

A, AAAA = 1, 28
ADDRESS_BYTES = {A: 4, AAAA: 16}
SERVICE_LABEL = "svc"
PLAIN_LABELS = 2
"""Before `svc`: the Service and its namespace."""
FEW = 3
"""So many addresses are named in a sentence."""


class ServiceName(NamedTuple):
    """`host.service.namespace.svc.zone`, or the same without a host."""

    host: str | None
    service: str
    namespace: str

    @property
    def text(self) -> str:
        """As people write it."""
        return f"{self.namespace}/{self.service}"


def service_name(name: bytes) -> ServiceName | None:
    """What a question's name says, in wire format and lower case; None for other names, SRV names among them."""
    parts = labels(name)
    if SERVICE_LABEL not in parts:
        return None
    at = len(parts) - 1 - parts[::-1].index(SERVICE_LABEL)
    before = parts[:at]
    if len(before) not in (PLAIN_LABELS, PLAIN_LABELS + 1) or at == len(parts) - 1:
        return None
    *host, service, namespace = before
    return ServiceName(host[0] if host else None, service, namespace)


def labels(name: bytes) -> list[str]:
    """The labels of a name in wire format, as text."""
    found, at = [], 0
    while name[at]:
        found.append(name[at + 1 : at + 1 + name[at]].decode("ascii", "replace"))
        at += name[at] + 1
    return found


def addresses(wire: bytes, summary: Summary) -> list[bytes]:
    """The A and AAAA records of the answer section, 16 bytes each; what is cut or damaged ends the list."""
    found, at = [], summary.end
    try:
        for _ in range(summary.ancount):
            at = skip_name(wire, at)
            if at + RECORD_BYTES > len(wire):
                break
            rdtype, _, _, length = read_record(wire, at)
            data = wire[at + RECORD_BYTES : at + RECORD_BYTES + length]
            if ADDRESS_BYTES.get(rdtype) == length == len(data):
                found.append(data if rdtype == AAAA else V4_MAPPED + data)
            at += RECORD_BYTES + length
    except WireError:
        pass
    return found


def contradiction(asked: ServiceName, rdtype: int, answer: list[bytes], service: Service) -> str | None:
    """What of an answer is not as the Service has it; None if it is, or if that cannot be told."""
    if asked.host is not None or service.headless or service.external_name or rdtype not in ADDRESS_BYTES:
        return None
    own = [cluster_ip for cluster_ip in service.cluster_ips if cluster_ip.startswith(V4_MAPPED) == (rdtype == A)]
    strange = [address for address in answer if address not in own]
    if not own or not strange:
        return None
    return f"the answer is {_listed(strange)}, and Service {asked.text} has {_listed(own)}"


def why_not_found(asked: ServiceName, cluster: Cluster) -> tuple[str, str] | None:
    """Finding and words for the name of a Service, or of something in it, that does not exist for DNS."""
    service = cluster.service_of(asked.namespace, asked.service)
    if asked.host is not None:
        owner = _stateful_set_of(asked, cluster)
        if owner is not None and owner.service != asked.service:
            named = f"serviceName {owner.service}" if owner.service else "no serviceName"
            words = f"StatefulSet {owner.namespace}/{owner.name} has {named}: its pods have no names under {asked.text}"
            return "StatefulSetName", words
    if service is None or service.external_name:
        return None
    members = cluster.members(asked.namespace, asked.service)
    if not service.headless:
        return "WrongAnswer", f"Service {asked.text} exists, and the answer is that it does not"
    if members is None:
        return None
    if all(member.ready for member in members):
        return None if asked.host else ("NameNotFound", f"Service {asked.text} is headless and has {_count(members)}")
    waiting = ", ".join(member.pod or address_to_text(member.address) for member in members if not member.ready)
    words = f"Service {asked.text} is headless, and these endpoints of it are not ready: {waiting}"
    return "NameNotFound", words


def _stateful_set_of(asked: ServiceName, cluster: Cluster) -> StatefulSet | None:
    """`web-0` is a pod of the StatefulSet `web`."""
    owner, _, ordinal = (asked.host or "").rpartition("-")
    return cluster.stateful_set(asked.namespace, owner) if owner and ordinal.isdigit() else None


def _listed(found: Iterable[bytes]) -> str:
    texts = [address_to_text(address) for address in found]
    return ", ".join(texts[:FEW]) + (f" and {len(texts) - FEW} more" if len(texts) > FEW else "")


def _count(members: tuple[Member, ...]) -> str:
    return f"{len(members)} endpoint{'' if len(members) == 1 else 's'}"
