"""How long each leg of a lookup took, as far as both ends of the leg were seen on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.hop.record import ORIGIN, RX, SOCKET_RX

if TYPE_CHECKING:
    from agent.hop.record import Hop
    from agent.session.model import Transmission
    from agent.session.outcome import Outcome


class Latency(NamedTuple):
    """Nanoseconds; None where one end was not seen."""

    client_to_server_ns: int | None
    """The query: from its socket to the server's namespace."""
    server_ns: int | None
    """From the query's arrival to the reply's departure."""
    upstream_ns: int | None
    """Of that, from the first exchange to an upstream to the last reply that came while the client waited."""
    server_to_client_ns: int | None
    """The reply: from its socket to the client's namespace."""


def latency_of(outcome: Outcome) -> Latency:
    """Measure all legs."""
    sent, arrived = _ends(outcome.session.queries.transmissions, outcome.server_netns)
    replied, returned = _ends([outcome.reply] if outcome.reply else [], outcome.client_netns)
    return Latency(_between(sent, arrived), _between(arrived, replied), _upstream(outcome), _between(replied, returned))


def _arrived_ns(hops: list[Hop], netns: int | None) -> int | None:
    """When a packet came to that namespace: to its end there if it ended there, else the first time."""
    last = hops[-1]
    if last.netns == netns and last.event == RX:
        return last.ts_ns
    return next((hop.ts_ns for hop in hops if hop.netns == netns and hop.event in (RX, SOCKET_RX)), None)


def _left_ns(hops: list[Hop]) -> int | None:
    """When a packet left its sender's socket."""
    first = hops[0]
    if first.flags & ORIGIN:
        return first.ts_ns
    return next((hop.ts_ns for hop in hops if hop.flags & ORIGIN), None)


def arrived_upstream_ns(reply: Transmission, outcome: Outcome) -> int:
    """When an upstream's reply came to the server; else when it was last seen."""
    came = _arrived_ns(reply.hops, outcome.server_netns)
    return reply.hops[-1].ts_ns if came is None else came


def _ends(transmissions: list[Transmission], netns: int | None) -> tuple[int | None, int | None]:
    """When the first copy that arrived left its socket, and when it came to the namespace of its destination."""
    for transmission in transmissions:
        arrived = _arrived_ns(transmission.hops, netns)
        if arrived is not None:
            return _left_ns(transmission.hops), arrived
    return next(
        (left for transmission in transmissions if (left := _left_ns(transmission.hops)) is not None), None
    ), None


def _upstream(outcome: Outcome) -> int | None:
    exchanges = [exchange for exchange in outcome.exchanges if not exchange.connecting]
    asked = [
        exchange.queries.transmissions[0].hops[0].ts_ns for exchange in exchanges if exchange.queries.transmissions
    ]
    came = [
        arrived_upstream_ns(reply, outcome) for exchange in exchanges for reply in exchange.replies.transmissions[:1]
    ]
    return max(came) - min(asked) if asked and came else None


def _between(start_ns: int | None, end_ns: int | None) -> int | None:
    return None if start_ns is None or end_ns is None else max(0, end_ns - start_ns)
