"""Who answers in the name of a server elsewhere, as its replies show it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.conntrack import REPLY_CT_INFO
from agent.hop.endpoint import Endpoint
from agent.hop.record import CONNTRACK, PROCESS

if TYPE_CHECKING:
    from agent.hop.record import Detail, Hop

MAX_TAKERS = 4096
DESTINATION_NAT = 1 << 5
"""enum ip_conntrack_status, IPS_DST_NAT: set with every translation that nf_nat makes (nf_nat_setup_info())."""


class Means(Enum):
    """How a query came to a program that does not have the address it was sent to."""

    TRANSPARENT = "transparent"
    """As it is: connection tracking has seen the server's own address on the reply."""
    NAT = "nat"
    """Its destination was translated to one of the namespace by nf_nat."""
    IPVS = "ipvs"
    """The same by ip_vs."""
    REWRITTEN = "rewritten"
    """The same by a program, behind the back of connection tracking."""
    UNKNOWN = "unknown"
    """Nothing shows it: the reply has no entry in the connection table."""


class Taker(NamedTuple):
    """Who replied with an address that its namespace does not have."""

    program: bytes
    """Empty where it is not known."""
    listens: Endpoint | None
    """Where it really answers; None where it is not known to be elsewhere."""
    means: Means


NOBODY = Taker(b"", None, Means.UNKNOWN)


def taker_of(reply: Hop, detail: Detail) -> Taker:
    """Who sent this reply, which carries an address that its namespace does not have.

    Args:
        reply: at its sender's socket.
        detail: of the reply.
    """
    program = detail.comm if reply.flags & PROCESS else b""
    if not reply.flags & CONNTRACK:
        return Taker(program, None, Means.UNKNOWN)
    spelled = Endpoint(detail.saddr, detail.sport)
    forward = detail.ct_info >= REPLY_CT_INFO
    own = (
        Endpoint(detail.ct_reply_saddr, detail.ct_reply_sport)
        if forward
        else Endpoint(detail.ct_original_saddr, detail.ct_original_sport)
    )
    if own == spelled:
        return Taker(program, None, Means.TRANSPARENT)
    if Endpoint(detail.ct_original_daddr, detail.ct_original_dport) != spelled:
        return Taker(program, own, Means.REWRITTEN)
    return Taker(program, own, Means.NAT if detail.ct_status & DESTINATION_NAT else Means.IPVS)


class Takers:
    """Whose queries are taken where, by the replies that were seen; bounded, all are forgotten when there are too many.

    By device, because proxies take the queries of some pods and let those of others pass.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, Endpoint], Taker] = {}
        self._programs: set[tuple[int, bytes]] = set()

    def note(self, reply: Hop, detail: Detail, taker: Taker) -> None:
        """Take note of who replied in the name of that server, by that device."""
        if len(self._known) >= MAX_TAKERS:
            self._known.clear()
        self._known[reply.netns, reply.ifindex, Endpoint(detail.saddr, detail.sport)] = taker
        if taker.means is Means.TRANSPARENT:
            self.note_proxy(reply, detail)

    def note_proxy(self, sent: Hop, detail: Detail) -> None:
        """Take note that the program which sent this packet is a proxy."""
        if len(self._programs) >= MAX_TAKERS:
            self._programs.clear()
        if sent.flags & PROCESS:
            self._programs.add((sent.netns, detail.comm))

    def find(self, arrival: Hop) -> Taker | None:
        """Who took earlier queries that came in like this one."""
        if not self._known:
            return None
        detail = arrival.detail
        return self._known.get((arrival.netns, arrival.ifindex, Endpoint(detail.daddr, detail.dport)))

    def forget(self, arrival: Hop) -> None:
        """A query that came in like this one was answered from elsewhere: nobody takes them there any more."""
        if self._known:
            detail = arrival.detail
            self._known.pop((arrival.netns, arrival.ifindex, Endpoint(detail.daddr, detail.dport)), None)

    def forget_reply(self, reply: Hop, detail: Detail) -> None:
        """Who replied so has the address, and took nothing."""
        if self._known:
            self._known.pop((reply.netns, reply.ifindex, Endpoint(detail.saddr, detail.sport)), None)

    def is_proxy(self, netns: int, program: bytes) -> bool:
        """Whether the program of that namespace is known to be a proxy."""
        return (netns, program) in self._programs

    def has_proxy(self, netns: int) -> bool:
        """Whether some transparent proxy is known in that namespace, whatever it takes now."""
        return any(known == netns for known, _ in self._programs)

    def is_proxys(self, asked: Hop) -> bool:
        """Whether the program that sends this query is known to be a proxy."""
        return bool(self._programs) and bool(asked.flags & PROCESS) and self.is_proxy(asked.netns, asked.detail.comm)
