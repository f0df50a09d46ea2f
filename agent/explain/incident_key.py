"""What makes two failing lookups one incident: the cause, the place, and whose trouble it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.explain.blamed import PARTS, PLACES, Part, side_of
from agent.explain.causes import LEG_WORDS, Side
from agent.explain.evidence import interface
from agent.explain.troubled_pods import pod_here
from agent.hop.endpoint import Endpoint, address_to_text, endpoint_to_text
from agent.session.outcome import translation

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.context.cluster import Pod
    from agent.context.who import Who
    from agent.explain.verdict import Cause
    from agent.session.model import Session
    from agent.session.outcome import Leg, Outcome


class Party(NamedTuple):
    """Whose lookups they are: the workload where the cluster knows it, else the address."""

    namespace: str | None = None
    """Of Kubernetes."""
    workload: str | None = None
    """`Deployment/cart`."""
    pod: str | None = None
    """Only of a pod that belongs to no workload."""
    address: str | None = None
    """Only without names."""
    netns: int | None = None
    """Likewise: an address may mean something else in another namespace."""

    def __str__(self) -> str:
        """In words."""
        name = self.workload or self.pod
        return f"{self.namespace}/{name}" if name else self.address or "nobody known"


class Asked(NamedTuple):
    """Who was asked, with the names that are known."""

    address: str
    """`10.96.0.10:53`, as the client had it."""
    backend: str | None = None
    """The server that this was translated to."""
    service: str | None = None
    """`kube-system/kube-dns`."""
    namespace: str | None = None
    pod: str | None = None

    def common(self, other: Asked) -> Asked | None:
        """What two lookups have in common; None if they asked different addresses."""
        if self == other or self.address != other.address:
            return self if self == other else None
        same = (mine if mine == its else None for mine, its in zip(self[1:], other[1:], strict=True))
        # An address belongs to one Service, whose name may become known later than its first lookup.
        return Asked(self.address, *same)._replace(service=self.service or other.service)

    def __str__(self) -> str:
        """In words."""
        name = self.service or (f"{self.namespace}/{self.pod}" if self.pod else None)
        return f"{self.address} ({name})" if name else self.address


class Key(NamedTuple):
    """Failures with the same key are one incident. What does not matter for its side is None."""

    side: Side
    cause: str
    leg: Leg | None = None
    client: Party | None = None
    server: Endpoint | None = None
    upstream: Endpoint | None = None
    netns: int | None = None
    device: str | None = None
    is_rest: bool = False
    """All incidents of this cause that are not told apart any more."""

    @property
    def place(self) -> str:
        """Where it happens, in words; not to whom."""
        if self.is_rest:
            return "many other places, which are not told apart"
        words = [
            LEG_WORDS[self.leg] if self.leg is not None else "",
            f"network namespace {self.netns}" if self.netns is not None else "",
            f"device {self.device}" if self.device is not None else "",
            f"upstream {endpoint_to_text(*self.upstream)}" if self.upstream is not None else "",
            f"server {endpoint_to_text(*self.server)}" if self.server is not None else "",
        ]
        if self.side is Side.CLIENT and self.netns is None and self.server is None:
            words.append("the client's own network namespace")
        return ", ".join(filter(None, words))


class Subject(NamedTuple):
    """A failing lookup as incidents see it."""

    key: Key
    client: Party
    asked: Asked
    pod: Pod | None
    """The client, where it is a pod of this node with a network of its own."""


def rest_of(key: Key) -> Key:
    """The key for all that is not told apart."""
    return Key(key.side, key.cause, is_rest=True)


def upstream_of(session: Session) -> Endpoint | None:
    """The upstream that was asked last for a lookup."""
    asked = [
        exchange.queries.transmissions[0].hops[0].detail
        for exchange in session.exchanges
        if exchange.queries.transmissions
    ]
    return Endpoint(asked[-1].daddr, asked[-1].dport) if asked else None


def backend_of(outcome: Outcome) -> Endpoint:
    """The server that a lookup got to or was meant to get to, as the packets show it."""
    found = translation(outcome.queries)
    return outcome.server if found is None else found[1]


def traits_of(outcome: Outcome, cause: Cause) -> Hashable:
    """All that a subject depends on, as far as it is there without looking up a name."""
    drop, key = cause.drop, outcome.session.key
    dropped_at = None if drop is None else (drop.hop.netns, drop.hop.ifindex)
    return (
        *(cause.code, cause.leg, dropped_at, outcome.client_netns, key.client.address),
        *(outcome.server, backend_of(outcome), upstream_of(outcome.session)),
    )


def subject_of(outcome: Outcome, cause: Cause, who: Who) -> Subject:
    """What incident a failing lookup belongs to, and the names of its ends."""
    client = party_of(outcome, who)
    side = side_of(cause)
    if side in PLACES and cause.drop is None:
        side = Side.SERVER
    return Subject(_key(outcome, cause, side, client), client, _asked(outcome, who), pod_here(outcome, who))


def party_of(outcome: Outcome, who: Who) -> Party:
    """The client of a lookup."""
    pod = who.client
    if pod is None:
        return Party(address=address_to_text(outcome.session.key.client.address), netns=outcome.client_netns)
    return Party(pod.namespace, pod.workload, None if pod.workload else pod.name)


def _key(outcome: Outcome, cause: Cause, side: Side, client: Party) -> Key:
    known: dict[Part, Callable[[], object]] = {
        Part.CLIENT: lambda: client,
        Part.SERVER: lambda: backend_of(outcome),
        Part.UPSTREAM: lambda: upstream_of(outcome.session),
        Part.NETNS: lambda: _netns(outcome, cause, side),
        Part.DEVICE: lambda: None if cause.drop is None else interface(cause.drop.hop),
    }
    parts = PARTS[side]
    if side is Side.CLIENT and cause.drop is None:
        # There is no place but the server that was asked.
        parts = (Part.CLIENT, Part.SERVER)
    return Key(side, cause.code, cause.leg, **{part.value: known[part]() for part in parts})  # type: ignore[arg-type]


def _netns(outcome: Outcome, cause: Cause, side: Side) -> int | None:
    """Of the drop. Each pod has a namespace of its own, and those of one workload are one client."""
    if cause.drop is None:
        return None
    netns = cause.drop.hop.netns
    return None if side is Side.CLIENT and netns == outcome.client_netns else netns


def _asked(outcome: Outcome, who: Who) -> Asked:
    server, backend = outcome.server, backend_of(outcome)
    pod, service = who.server, who.service
    return Asked(
        endpoint_to_text(*server),
        endpoint_to_text(*backend) if backend != server else None,
        f"{service.namespace}/{service.name}" if service else None,
        pod.namespace if pod else None,
        pod.name if pod else None,
    )
