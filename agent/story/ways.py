"""The way of a lookup, as values. Only what its line shows is in them: no hop is made up.

A line has the hops of all copies of all messages in the order of time. Here they become one way for the query and one
for the reply: of several copies the one that was lost, or else the last. What a server asks for the lookup has a way
only if the packet that was lost is one of its.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.causes import CAUSES, UPSTREAM
from agent.session.outcome import Bit, Leg, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.export.line import HopLine, Line

MESSAGES = {
    Leg.QUERY: ("STUB_QUERY", "CLIENT_QUERY"),
    Leg.REPLY: ("CLIENT_RESPONSE", "STUB_RESPONSE"),
    Leg.UPSTREAM_QUERY: ("FORWARDER_QUERY",),
    Leg.UPSTREAM_REPLY: ("FORWARDER_RESPONSE",),
}
ARRIVED_AS = ("CLIENT_QUERY", "STUB_RESPONSE")
"""What messages are called at the end to which they were sent."""
DROPPED = {Leg.QUERY: Bit.QUERY_DROPPED, Leg.REPLY: Bit.REPLY_DROPPED}
"""Bits that say whether a drop was a loss."""
CLIENTS = tuple(DROPPED)
"""Legs between client and server."""
ARRIVED = {Leg.QUERY: Bit.CQ, Leg.REPLY: Bit.SR}
NOT_TAKEN = frozenset({"MalformedReply", "MismatchedReply", "UnexpectedSource"})
"""Causes of which a reply came that no client takes."""
LOST_SIGHT = frozenset({"CaptureLoss", "Unknown"})
"""Causes that say no more than where a message was last seen."""
DROP, SENT = "drop", "tx"
MAX_HOPS = 400
"""Of one line that are looked at; more are of many copies."""


class Place(Enum):
    """Whose network namespace a stop is in."""

    CLIENT = auto()
    SERVER = auto()
    BETWEEN = auto()


ENDS = {
    Leg.QUERY: (Place.CLIENT, Place.SERVER),
    Leg.REPLY: (Place.SERVER, Place.CLIENT),
    Leg.UPSTREAM_QUERY: (Place.SERVER, Place.BETWEEN),
    Leg.UPSTREAM_REPLY: (Place.BETWEEN, Place.SERVER),
}
"""From which end to which; a line does not say where an upstream is."""


class Stop(NamedTuple):
    """A network namespace on the way, and the addresses with which the packet was last seen there."""

    place: Place
    netns: int
    devices: tuple[str, ...]
    source: str
    destination: str
    first_seconds: float
    """When it was seen there first, since the lookup began."""
    last_seconds: float


class End(Enum):
    """How a way ends."""

    WENT_ON = auto()
    """It arrived, or left for where it cannot be seen."""
    DROPPED = auto()
    REFUSED = auto()
    UNANSWERED = auto()
    """It got to the server, and no reply was seen."""
    LOST_SIGHT = auto()
    NOT_TAKEN = auto()


class Way(NamedTuple):
    """One copy of one message."""

    leg: Leg
    source: str
    """With which address it was first seen."""
    destination: str
    is_sent_here: bool
    """The end that sent it was seen."""
    stops: tuple[Stop, ...]
    is_taken_here: bool
    """The end that it was sent to was seen."""
    inferred: bool
    """It must have arrived, but no hop shows that."""
    end: End
    drop: HopLine | None
    copy: int
    """From 1: which of the copies this is."""
    copies: int


def ways(line: Line) -> list[Way]:
    """The way of the query, that of the reply, and that of a lost message between server and upstream.

    There is none where no hop shows it.
    """
    found = [_way(line, leg, is_loss=bool(line.path_bit_map & DROPPED[leg])) for leg in CLIENTS]
    if _is_lost_upstream(line):
        found += [_way(line, leg, is_loss=True) for leg in MESSAGES if leg not in CLIENTS and _has_drop(line, leg)]
    return [way for way in found if way is not None]


def every_way(line: Line, most: int) -> list[Way]:
    """As `ways`, and each copy by itself where the client sent several.

    Args:
        line: the lookup.
        most: of each message; those between the first ones and the last are left out.
    """
    found = ways(line)
    return [way for chosen in found for way in ([chosen] if chosen.copies == 1 else _attempts(line, chosen, most))]


def _attempts(line: Line, chosen: Way, most: int) -> list[Way]:
    if chosen.leg not in CLIENTS:
        return [chosen]
    copies = _copies(_hops(line, chosen.leg))
    numbers = sorted({*range(len(copies))[: most - 1], len(copies) - 1, chosen.copy - 1})
    is_loss = bool(line.path_bit_map & DROPPED[chosen.leg])
    return [
        chosen
        if number == chosen.copy - 1
        else _way_of(line, chosen.leg, copies, number, is_lost=is_loss and copies[number][-1].event == DROP)
        for number in numbers
    ]


def _is_lost_upstream(line: Line) -> bool:
    """Whether the cause is the loss of a packet, and that was none between client and server."""
    text = CAUSES.get(line.cause.code) if line.cause else None
    between_others = any(line.path_bit_map & bit for bit in DROPPED.values())
    return text is not None and UPSTREAM in text.lost and text.lost != (UPSTREAM,) and not between_others


def _has_drop(line: Line, leg: Leg) -> bool:
    return any(hop.event == DROP for hop in _hops(line, leg))


def _way(line: Line, leg: Leg, *, is_loss: bool) -> Way | None:
    """The way of one leg.

    Args:
        line: the lookup.
        leg: which message.
        is_loss: whether a drop of it was a loss: without one, another copy of that packet arrived.
    """
    copies = _copies(_hops(line, leg))
    if not copies:
        return None
    lost = _lost(copies) if is_loss else None
    return _way_of(line, leg, copies, len(copies) - 1 if lost is None else lost, is_lost=lost is not None)


def _way_of(line: Line, leg: Leg, copies: list[list[HopLine]], number: int, *, is_lost: bool) -> Way:
    """The way of one copy.

    Args:
        line: the lookup.
        leg: which message.
        copies: all of it.
        number: which of them.
        is_lost: whether it was lost where it was dropped.
    """
    copy = copies[number]
    if is_lost:
        copy = copy[: 1 + max(position for position, hop in enumerate(copy) if hop.event == DROP)]
    stops = _stops(copy, line, leg)
    near, far = ENDS[leg]
    return Way(
        leg,
        source=copy[0].source,
        destination=copy[0].destination,
        is_sent_here=near is not Place.BETWEEN and stops[0].place is near,
        stops=stops,
        is_taken_here=stops[-1].place is far,
        inferred=leg in ARRIVED and ARRIVED[leg].name in line.inferred,
        end=End.DROPPED if is_lost else _END[leg](line, stops),
        drop=copy[-1] if is_lost else None,
        copy=1 + number,
        copies=len(copies),
    )


def _lost(copies: list[list[HopLine]]) -> int | None:
    """The first copy that ends with its drop, or else has one; None where none has."""
    ends = [number for number, copy in enumerate(copies) if copy[-1].event == DROP]
    has = [number for number, copy in enumerate(copies) if any(hop.event == DROP for hop in copy)]
    return next(iter((*ends, *has)), None)


def _hops(line: Line, leg: Leg) -> list[HopLine]:
    """Those of one leg; of a connection that failed before the question, those of its packets."""
    hops = line.path[:MAX_HOPS]
    if line.question is not None or leg not in CLIENTS:
        return [hop for hop in hops if hop.message in MESSAGES[leg]]
    asked = (endpoint(line.server.address, line.server.port), line.server.backend)
    is_reply = leg is Leg.REPLY
    return [hop for hop in hops if hop.message is None and (hop.source in asked) is is_reply]


def endpoint(address: str, port: int) -> str:
    """As in the hops of a line."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _copies(hops: Iterable[HopLine]) -> list[list[HopLine]]:
    """The hops of each copy: it begins where the first one began, and goes on with the addresses that it had."""
    copies: list[list[HopLine]] = []
    for hop in hops:
        if not copies or (_spot(hop) == _spot(copies[0][0]) and hop.source == copies[0][0].source):
            copies.append([hop])
        else:
            _goes_on(hop, copies).append(hop)
    return copies


def _spot(hop: HopLine) -> tuple[str, int, str]:
    """A copy passes it once."""
    return hop.event, hop.netns, hop.interface


def _goes_on(hop: HopLine, copies: list[list[HopLine]]) -> list[HopLine]:
    """The copy that a hop belongs to: the newest that was not there before, with as many of its addresses as can be."""
    waiting = [copy for copy in reversed(copies) if all(_spot(passed) != _spot(hop) for passed in copy)]
    return max(waiting or copies[-1:], key=lambda copy: _alike(copy[-1], hop))


def _alike(last: HopLine, hop: HopLine) -> int:
    return (last.source == hop.source) + (last.destination == hop.destination)


def _stops(copy: list[HopLine], line: Line, leg: Leg) -> tuple[Stop, ...]:
    stops: list[Stop] = []
    for hop in copy:
        place = _place(hop, line, leg)
        devices, since = (hop.interface,) if hop.interface else (), hop.offset_seconds
        if stops and (stops[-1].place, stops[-1].netns) == (place, hop.netns):
            before = stops.pop()
            devices, since = tuple(dict.fromkeys((*before.devices, *devices))), before.first_seconds
        stops.append(Stop(place, hop.netns, devices, hop.source, hop.destination, since, hop.offset_seconds))
    return tuple(stops)


def _place(hop: HopLine, line: Line, leg: Leg) -> Place:
    """Both ends may be in one namespace: there the name of the message says at which of them it is."""
    near, far = ENDS[leg]
    namespaces = {Place.CLIENT: line.client.netns, Place.SERVER: line.server.backend_netns, Place.BETWEEN: None}
    arrived = hop.message in ARRIVED_AS or (hop.message is None and hop.event != SENT)
    order = (far, near) if arrived else (near, far)
    return next((place for place in order if namespaces[place] == hop.netns), Place.BETWEEN)


def _end_of_query(line: Line, stops: tuple[Stop, ...]) -> End:
    if line.connection is not None and line.connection.refused and line.question is None:
        return End.REFUSED
    if line.rcode is not None or line.status == Status.SUCCEEDED or _hops(line, Leg.REPLY):
        return End.WENT_ON
    reached = stops[-1].place is Place.SERVER or ARRIVED[Leg.QUERY].name in line.inferred
    return End.UNANSWERED if reached and line.status == Status.FAILED else End.LOST_SIGHT


def _end_of_reply(line: Line, _stops: tuple[Stop, ...]) -> End:
    code = line.cause.code if line.cause else ""
    if code in NOT_TAKEN:
        return End.NOT_TAKEN
    return End.LOST_SIGHT if code in LOST_SIGHT and not line.path_bit_map & ARRIVED[Leg.REPLY] else End.WENT_ON


_END = {Leg.QUERY: _end_of_query, Leg.REPLY: _end_of_reply}
