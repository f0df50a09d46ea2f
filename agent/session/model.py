"""What a session is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.session.sighting import Event, Flag, Sighting

if TYPE_CHECKING:
    from agent.wire.message import Summary

MAX_HOPS = 32
MAX_TRANSMISSIONS = 16
SECOND_NS = 1_000_000_000


class Settings(NamedTuple):
    """Time-outs and bounds."""

    timeout_ns: int = 10 * SECOND_NS
    """How long an unanswered query waits for its reply or a retransmission."""
    linger_ns: int = SECOND_NS // 10
    """How long an answered session waits for late records."""
    max_sessions: int = 65536
    """Open at once; beyond it the oldest is closed as SampleLoss."""
    tombstones: int = 16384
    """Closed sessions remembered, so that late records of theirs do not look like new ones."""


class Wire(NamedTuple):
    """One distinct DNS message, as octets and as the summary that joining needs."""

    payload: bytes
    length_bytes: int
    """By the UDP header; more than len(payload) if the capture cut it."""
    summary: Summary


@dataclass(slots=True, eq=False)
class Transmission:
    """One copy of one message on its way: its hops in the order of time."""

    wire: Wire
    hops: list[Sighting] = field(default_factory=list)
    places: set[int] = field(default_factory=set)

    @property
    def origin(self) -> Sighting | None:
        """The hop at which it left its sender's socket, if that was on this node."""
        return next((hop for hop in self.hops if hop.flags & Flag.ORIGIN), None)

    @property
    def dead(self) -> bool:
        """Whether it was freed and not seen since."""
        return self.hops[-1].event == Event.DROP

    def arrivals(self, netns: int | None) -> list[Sighting]:
        """Hops at which it was taken from a device in that namespace."""
        return [hop for hop in self.hops if hop.event == Event.RX and hop.netns == netns]


def place(sighting: Sighting) -> int:
    """Where and how a packet was seen, as one number: a copy passes each place once."""
    return sighting.netns << 34 | sighting.ifindex << 2 | sighting.event


@dataclass(slots=True, eq=False)
class Leg:
    """All queries, or all replies, between the client and the server of one session."""

    session: Session
    response: bool
    transmissions: list[Transmission] = field(default_factory=list)

    def add(self, sighting: Sighting, wire: Wire) -> bool:
        """Put a hop where it belongs; False when a bound keeps it out."""
        target = self._target(sighting, wire)
        if target is None or len(target.hops) >= MAX_HOPS:
            return False
        target.hops.append(sighting)
        target.places.add(place(sighting))
        return True

    def _target(self, sighting: Sighting, wire: Wire) -> Transmission | None:
        here = place(sighting)
        if len(self.transmissions) == 1:
            only = self.transmissions[0]
            if only.wire is wire and here not in only.places and not only.dead:
                return only
        free = [one for one in self.transmissions if one.wire is wire and here not in one.places and not one.dead]
        if free:
            # An sk_buff keeps its address from hop to hop, so it tells copies apart; else it is the newest one's.
            same = [one for one in free if one.hops[-1].skb == sighting.skb]
            return (same or free)[-1]
        if len(self.transmissions) >= MAX_TRANSMISSIONS:
            return None
        self.transmissions.append(Transmission(wire))
        return self.transmissions[-1]

    @property
    def sent(self) -> list[Transmission]:
        """Copies that were really sent anew: those that begin where the first one began."""
        if not self.transmissions:
            return []
        start = place(self.transmissions[0].hops[0])
        return [one for one in self.transmissions if start in one.places] or self.transmissions[:1]


class Endpoint(NamedTuple):
    """A 16-octet address and a port."""

    address: bytes
    port: int


class Key(NamedTuple):
    """What makes two packets belong to one lookup (RFC 1035 4.1; names compare without case, RFC 4343)."""

    client: Endpoint
    protocol: int
    id: int
    name: bytes
    rdtype: int
    rdclass: int
    scope: int
    """The namespace, for addresses that mean something else in each of them (loopback); else 0."""


@dataclass(slots=True, eq=False)
class Session:
    """One lookup of one client."""

    key: Key
    first_ns: int
    deadline_ns: int
    queries: Leg = field(init=False)
    replies: Leg = field(init=False)
    keys: list[Key] = field(default_factory=list)
    """Every key it can be found by: source translation gives it a second one."""
    messages: list[int] = field(default_factory=list)
    last_ns: int = 0
    overflowed: bool = False
    """A bound kept something out, or closed it early."""
    interrupted: bool = False
    """Closed because the agent ends."""

    def __post_init__(self) -> None:
        self.queries = Leg(self, response=False)
        self.replies = Leg(self, response=True)
        self.last_ns = self.first_ns

    def leg(self, *, response: bool) -> Leg:
        """The leg a message belongs to."""
        return self.replies if response else self.queries
