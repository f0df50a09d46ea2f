"""What became of a session: where its ends are, which messages were seen, BitMap, Status.

The bits are those of dnstap's message types as CoreDNS users know them; the words of the specification are in
`docs/semantics.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING

from agent.session.sighting import Event, Sighting
from agent.wire.message import extended_rcode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.session.drops import Drop, Kernel
    from agent.session.model import Session, Transmission
    from agent.wire.message import Summary

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
SERVER_WRITTEN = frozenset({SERVFAIL, REFUSED, FORMERR, NOTIMP})
"""Rcodes that CoreDNS's server core writes itself, past the dnstap plugin (plugin.ClientWrite)."""
MAX_KNOWN_NETNS = 65536


class Bit(IntFlag):
    """PathBitMap; the lowest four are BitMap."""

    CQ = 1
    CR = 2
    FQ = 4
    FR = 8
    SQ = 16
    SR = 32
    QUERY_DROPPED = 64
    REPLY_DROPPED = 128


BITMAP = Bit.CQ | Bit.CR | Bit.FQ | Bit.FR
ONLY_BY_LOSS = frozenset({2, 6, 8, 9, 10, 11, 14})
"""BitMaps that no healthy or sick server can produce: a message is missing in the record."""


class Status(StrEnum):
    """What the user is told first."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SAMPLE_LOSS = "SampleLoss"


@dataclass(slots=True)
class Knowledge:
    """What the node is known to be like, from outside and from earlier sightings."""

    kernel: Kernel
    is_local: Callable[[int, bytes], bool | None]
    receiving: set[int] = field(default_factory=set)
    """Namespaces in which packets were seen coming in: there, a missing arrival means something (a CNI that redirects
    between devices by BPF skips the arrival, so in its pods it means nothing)."""
    forwarding: set[int] = field(default_factory=set)
    """Namespaces that were seen passing packets on."""

    def learn(self, session: Session) -> None:
        """Take what a session's hops show of the namespaces they were in."""
        if len(self.receiving) > MAX_KNOWN_NETNS:
            self.receiving.clear()
            self.forwarding.clear()
        for one in (*session.queries.transmissions, *session.replies.transmissions):
            came_in: set[int] = set()
            for hop in one.hops:
                if hop.event == Event.RX:
                    came_in.add(hop.netns)
                elif hop.event == Event.TX and hop.netns in came_in:
                    self.forwarding.add(hop.netns)
            self.receiving |= came_in

    def delivered(self, session: Session) -> bool:
        """Whether some reply reached the client as far as this node can see."""
        home = client_netns(session)
        return any(self._delivered(one, home) for one in session.replies.transmissions)

    def _delivered(self, reply: Transmission, home: int | None) -> bool:
        if self.died(reply, home) is not None:
            return False
        if home is None:
            return True
        return bool(reply.arrivals(home)) or home not in self.receiving

    def died(self, one: Transmission, end: int | None) -> Drop | None:
        """How a copy died, if it did: a drop with no later hop, and no other copy of it at its end before."""
        if not one.dead:
            return None
        last = one.hops[-1]
        if last.netns != end and one.arrivals(end):
            return None
        return self.kernel.describe(last)


@dataclass(slots=True, eq=False)
class Outcome:
    """A closed session and everything concluded from its packets alone."""

    session: Session
    status: Status
    path: Bit
    client_netns: int | None
    server_netns: int | None
    reply: Transmission | None
    """The reply that counts: the delivered one, else the last."""
    rcode: int | None
    answer_source: str | None
    query_drop: tuple[Sighting, Drop] | None
    reply_drop: tuple[Sighting, Drop] | None
    left_node: bool
    """The last sighting of the query is its departure by a device that has no other end on this node."""
    lossy: bool
    """The agent lost records while the session was open."""

    kernel: Kernel
    """Names the drops."""

    def drop_of(self, hop: Sighting) -> Drop:
        """The words for a drop hop."""
        return self.kernel.describe(hop)

    @property
    def bitmap(self) -> Bit:
        """CQ, CR, FQ, FR."""
        return self.path & BITMAP

    @property
    def dnstap_bitmap(self) -> Bit:
        """What CoreDNS's dnstap plugin would have shown (up to 1.14.7): without a reply the server core wrote."""
        return self.bitmap & ~Bit.CR if self.answer_source == "server-error" else self.bitmap

    @property
    def vantage(self) -> str | None:
        """Which ends of the session lie on this node."""
        if self.client_netns is not None and self.server_netns is not None:
            return "both"
        if self.client_netns is None and self.server_netns is None:
            return None
        return "client" if self.server_netns is None else "server"

    @property
    def attempts(self) -> int:
        """How often the client sent the query."""
        return len(self.session.queries.sent)

    @property
    def duration_ns(self) -> int | None:
        """From the first sighting of the query to the last one of the reply; None without both."""
        if self.reply is None or not self.session.queries.transmissions:
            return None
        return self.reply.hops[-1].ts_ns - self.session.queries.transmissions[0].hops[0].ts_ns


def judge(session: Session, knowledge: Knowledge, *, lossy: bool) -> Outcome:
    """Conclude what became of a session.

    Args:
        session: closed; its hops are put in the order of time here.
        knowledge: of the node; learns from this session.
        lossy: whether the agent lost records while it was open.
    """
    for one in (*session.queries.transmissions, *session.replies.transmissions):
        one.hops.sort()
    knowledge.learn(session)
    home, there = client_netns(session), server_netns(session, knowledge)
    reply = final_reply(session, knowledge, home)
    query_drop = last_death(session.queries.transmissions, knowledge, there)
    reply_drop = last_death(session.replies.transmissions, knowledge, home)
    left = there is None and any(one.hops[-1].event == Event.TX for one in session.queries.transmissions)
    path = query_bits(session, knowledge, home, there) | reply_bits(session, home)
    path |= Bit.QUERY_DROPPED if query_drop else Bit(0)
    path |= Bit.REPLY_DROPPED if reply_drop else Bit(0)
    rcode = extended_rcode(reply.wire.payload, reply.wire.summary) if reply else None
    outcome = Outcome(
        session=session,
        status=Status.FAILED,
        path=path,
        client_netns=home,
        server_netns=there,
        reply=reply,
        rcode=rcode,
        answer_source=answer_source(reply.wire.summary) if reply else None,
        query_drop=query_drop,
        reply_drop=reply_drop,
        left_node=left,
        lossy=lossy,
        kernel=knowledge.kernel,
    )
    outcome.status = status(outcome, delivered=knowledge.delivered(session))
    return outcome


def client_netns(session: Session) -> int | None:
    """Where the query left its socket; None when that was not on this node."""
    return next((hop.netns for hop in _origins(session.queries.transmissions)), None)


def server_netns(session: Session, knowledge: Knowledge) -> int | None:
    """Where the server is: where a reply left its socket, else where a query ended that went no further."""
    replied = next((hop.netns for hop in _origins(session.replies.transmissions)), None)
    if replied is not None or session.replies.transmissions:
        return replied
    ends = (one.hops[-1] for one in session.queries.transmissions)
    return next((hop.netns for hop in ends if _is_end(hop, session, knowledge)), None)


def _origins(transmissions: list[Transmission]) -> Iterator[Sighting]:
    return (hop for one in transmissions if (hop := one.origin) is not None)


def _is_end(last: Sighting, session: Session, knowledge: Knowledge) -> bool:
    """Whether the last sighting of an unanswered query is its destination.

    A namespace that owns the address is; where that cannot be found out, one that never passed a packet on.
    """
    if last.event == Event.TX:
        return False
    if last.event == Event.DROP and not knowledge.kernel.describe(last).at_socket:
        return knowledge.is_local(last.netns, last.detail.daddr) is True
    local = knowledge.is_local(last.netns, last.detail.daddr)
    if local is not None:
        return local
    return last.netns not in knowledge.forwarding and last.netns != client_netns(session)


def query_bits(session: Session, knowledge: Knowledge, home: int | None, there: int | None) -> Bit:
    """SQ and CQ."""
    queries = session.queries.transmissions
    bits = Bit.SQ if any(hop.netns == home for one in queries for hop in one.hops) else Bit(0)
    answered = bool(session.replies.transmissions)
    if any(reached(one, knowledge, there) for one in queries) or (answered and _must_have_reached(session)):
        bits |= Bit.CQ
    return bits


def reached(query: Transmission, knowledge: Knowledge, there: int | None) -> bool:
    """Whether a copy of the query got to the server; beyond the node, whether it left towards it."""
    last = query.hops[-1]
    if there is None:
        return last.event == Event.TX
    drop = knowledge.died(query, there)
    return bool(query.arrivals(there)) and (drop is None or drop.at_socket)


def _must_have_reached(session: Session) -> bool:
    """The server replied and a query was last seen leaving: some CNIs hand it over without a sighting."""
    return any(one.hops[-1].event == Event.TX for one in session.queries.transmissions)


def reply_bits(session: Session, home: int | None) -> Bit:
    """CR and SR."""
    replies = session.replies.transmissions
    bits = Bit.CR if replies else Bit(0)
    if home is not None and any(one.arrivals(home) for one in replies):
        bits |= Bit.SR
    return bits


def final_reply(session: Session, knowledge: Knowledge, home: int | None) -> Transmission | None:
    """The first reply that was delivered: the client takes that one. Else the last that was sent."""
    replies = session.replies.transmissions
    alive = (one for one in replies if knowledge.died(one, home) is None)
    return next(alive, replies[-1] if replies else None)


def last_death(
    transmissions: list[Transmission], knowledge: Knowledge, end: int | None
) -> tuple[Sighting, Drop] | None:
    """The newest loss among the copies of a message."""
    for one in reversed(transmissions):
        drop = knowledge.died(one, end)
        if drop is not None:
            return one.hops[-1], drop
    return None


def answer_source(reply: Summary) -> str | None:
    """Where the answer came from, by the reply's AA and RA flags, as CoreDNS sets them in every version looked at."""
    if reply.rcode in SERVER_WRITTEN and not (reply.aa or reply.ra or reply.ancount or reply.nscount):
        return "server-error"
    return {(True, False): "local", (True, True): "cache", (False, True): "forward"}.get((reply.aa, reply.ra))


def status(outcome: Outcome, *, delivered: bool) -> Status:
    """Succeeded, Failed, or SampleLoss when the record itself has a gap that could explain it."""
    if int(outcome.bitmap) in ONLY_BY_LOSS or outcome.session.overflowed:
        return Status.SAMPLE_LOSS
    if delivered and outcome.rcode in (NOERROR, NXDOMAIN):
        return Status.SUCCEEDED
    proven = outcome.query_drop or outcome.reply_drop or (delivered and outcome.rcode is not None)
    unsure = outcome.lossy or outcome.session.interrupted
    return Status.SAMPLE_LOSS if unsure and not proven else Status.FAILED


__all__ = ["BITMAP", "ONLY_BY_LOSS", "Bit", "Knowledge", "Outcome", "Status", "judge"]
