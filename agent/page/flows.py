"""Who asks whom on this node, in numbers: what the drawing of the node is made of.

A flow is a client, the address it asks, and the server behind that. What lookups of the last half to whole minute
showed is in two windows, the one that is being filled and the one before it.

The event loop counts, the HTTP server's thread looks: whatever is copied, is copied by one operation of the
interpreter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.blamed import side_of
from agent.explain.causes import Side
from agent.explain.incident_key import backend_of, upstream_of
from agent.hop.endpoint import endpoint_to_text
from agent.hop.record import name_text
from agent.session.addressed import servers_asked
from agent.session.latency import arrived_upstream_ns
from agent.session.model import SECOND_NS
from agent.session.outcome import Leg, Status
from agent.story.ways import Place, ways

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.explain.verdict import Cause
    from agent.export.line import Client, Line, Server
    from agent.session.outcome import Outcome, PacketDrop

WINDOW_NS = 30 * SECOND_NS
NAMES_NS = 10 * SECOND_NS
"""Names and devices of a flow are looked up so often."""
IDLE_NS = 300 * SECOND_NS
"""A flow without a lookup for so long is forgotten."""
MAX_FLOWS = 256
"""Told apart: pods of a node times the servers that they ask."""
MAX_UPSTREAMS = 64
MAX_TROUBLES = 6
"""Of one flow and one window; others are one together."""


class Trouble(NamedTuple):
    """What went wrong with some lookups of a flow."""

    code: str
    confidence: str
    leg: str
    """Which message; empty where none was lost."""
    mark: str
    """Where it is drawn: ask, go, server or up."""
    place: str
    upstream: str = ""


OTHERS = Trouble("others", "low", "", "ask", "further kinds, which are not told apart")


@dataclass(slots=True, eq=False)
class Window:
    """Numbers of some time."""

    lookups: int = 0
    failed: int = 0
    unclear: int = 0
    """How they ended was not seen."""
    answered: int = 0
    waited_ns: int = 0
    """For all that were answered."""
    troubles: dict[Trouble, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Flow:
    """One client, one address that it asks, one server behind that."""

    seen_ns: int
    named_ns: int
    client: Client | None = None
    """None for all that are not told apart."""
    server: Server | None = None
    leaves: tuple[str, ...] = ()
    """Devices by which its queries left the client and came into the node."""
    enters: tuple[str, ...] = ()
    """Devices by which they went to the server, or off the node."""
    now: Window = field(default_factory=Window)
    before: Window = field(default_factory=Window)

    def count_together(self, lookups: int, waited_ns: int) -> None:
        """Count lookups that were answered, and that nobody looked at."""
        _count_answered(self.now, lookups, waited_ns)


@dataclass(slots=True, eq=False)
class Upstream:
    """One server and one upstream that it asks."""

    backend: str
    address: str
    seen_ns: int
    now: Window = field(default_factory=Window)
    before: Window = field(default_factory=Window)

    def count_together(self, questions: int, waited_ns: int) -> None:
        """Count questions that it answered, and that nobody looked at."""
        _count_answered(self.now, questions, waited_ns)


def _count_answered(window: Window, lookups: int, waited_ns: int) -> None:
    window.lookups += lookups
    window.answered += lookups
    window.waited_ns += waited_ns


class Flows:
    """All of a node's.

    Args:
        now_ns: When counting begins.
        max_flows: How many are told apart.
    """

    def __init__(self, now_ns: int, max_flows: int = MAX_FLOWS) -> None:
        self._max_flows = max_flows
        self._known: dict[Hashable, Flow] = {}
        self._upstreams: dict[tuple[str, str], Upstream] = {}
        self.rest = Flow(now_ns, now_ns)
        """Lookups of flows that found no room."""
        self.rest_upstream = Upstream("", "", now_ns)
        self.turned_ns = self.begun_ns = now_ns
        """When the present window began, and the one before it."""

    def flow_of(self, outcome: Outcome, line: Callable[[], Line], now_ns: int) -> Flow:
        """The flow of a lookup.

        Args:
            outcome: Of the lookup.
            line: Makes its line; asked now and then.
            now_ns: Only grows.
        """
        backend = backend_of(outcome)
        client = (outcome.client_netns, outcome.session.key.client.address)
        key = (client, outcome.server, backend, outcome.server_netns)
        flow = self._known.get(key)
        if flow is None:
            if len(self._known) >= self._max_flows:
                return self.rest
            flow = self._known[key] = Flow(now_ns, now_ns)
            _describe(flow, line())
        elif now_ns - flow.named_ns >= NAMES_NS:
            flow.named_ns = now_ns
            _describe(flow, line())
        flow.seen_ns = now_ns
        return flow

    def count(self, outcome: Outcome, cause: Cause | None, line: Callable[[], Line], now_ns: int) -> None:
        """Count one lookup that is over."""
        flow = self.flow_of(outcome, line, now_ns)
        window = flow.now
        window.lookups += 1
        if outcome.delivered and outcome.rcode is not None and (waited_ns := outcome.duration_ns) is not None:
            window.answered += 1
            window.waited_ns += waited_ns
        window.failed += outcome.status is Status.FAILED
        window.unclear += outcome.status is Status.SAMPLE_LOSS
        if cause is not None and side_of(cause) is not Side.AGENT:
            trouble = _trouble(outcome, cause)
            if trouble not in window.troubles and len(window.troubles) >= MAX_TROUBLES:
                trouble = OTHERS
            window.troubles[trouble] = window.troubles.get(trouble, 0) + 1
        if outcome.session.upstream:
            self._count_upstream(outcome, now_ns)

    def turn(self, now_ns: int) -> bool:
        """Begin a new window, if it is time to; whether it was."""
        if now_ns - self.turned_ns < WINDOW_NS:
            return False
        self.begun_ns, self.turned_ns = self.turned_ns, now_ns
        counted: list[Flow | Upstream] = [*self._known.values(), *self._upstreams.values()]
        for traffic in (*counted, self.rest, self.rest_upstream):
            traffic.before, traffic.now = traffic.now, Window()
        self._known = {key: flow for key, flow in self._known.items() if not _is_idle(flow, now_ns)}
        self._upstreams = {key: upstream for key, upstream in self._upstreams.items() if not _is_idle(upstream, now_ns)}
        return True

    def all(self) -> list[Flow]:
        """Those that are told apart."""
        return list(self._known.values())

    def upstreams(self) -> list[Upstream]:
        """Likewise."""
        return list(self._upstreams.values())

    def upstream_of(self, outcome: Outcome, now_ns: int) -> Upstream | None:
        """Where what a server asked is counted together with what it asks for lookups like this; None if it did not."""
        backend = endpoint_to_text(*backend_of(outcome))
        asked = [asked for exchange in outcome.exchanges for asked in servers_asked(exchange)]
        return self._upstream(backend, endpoint_to_text(*asked[0].server), now_ns) if asked else None

    def _count_upstream(self, outcome: Outcome, now_ns: int) -> None:
        backend = endpoint_to_text(*backend_of(outcome))
        for exchange in outcome.exchanges:
            for asked in servers_asked(exchange):
                window = self._upstream(backend, endpoint_to_text(*asked.server), now_ns).now
                window.lookups += 1
                if not asked.replies or exchange.connecting:
                    window.failed += not exchange.connecting or exchange.refused
                    continue
                window.answered += 1
                arrived_ns = arrived_upstream_ns(asked.replies[0], outcome)
                window.waited_ns += max(0, arrived_ns - asked.queries[0].hops[0].ts_ns)

    def _upstream(self, backend: str, address: str, now_ns: int) -> Upstream:
        found = self._upstreams.get((backend, address))
        if found is None:
            if len(self._upstreams) >= MAX_UPSTREAMS:
                return self.rest_upstream
            found = self._upstreams[backend, address] = Upstream(backend, address, now_ns)
        found.seen_ns = now_ns
        return found


def _is_idle(traffic: Flow | Upstream, now_ns: int) -> bool:
    """Lookups that are counted together do not say when they were seen."""
    return now_ns - traffic.seen_ns >= IDLE_NS and not traffic.before.lookups


def _describe(flow: Flow, line: Line) -> None:
    """Take the names of both ends, and the devices that a query passed, from the line of one of its lookups."""
    flow.client, flow.server = line.client, line.server
    query = next((way for way in ways(line) if way.leg is Leg.QUERY), None)
    if query is None:
        return
    at_client = tuple(device for stop in query.stops if stop.place is Place.CLIENT for device in stop.devices)
    between = tuple(device for stop in query.stops if stop.place is Place.BETWEEN for device in stop.devices)
    at_server = tuple(device for stop in query.stops if stop.place is Place.SERVER for device in stop.devices)
    flow.leaves = (*at_client, *between[:1])
    if at_server or len(between) > 1:
        flow.enters = (*between[1:][-1:], *at_server)


def _trouble(outcome: Outcome, cause: Cause) -> Trouble:
    drop = cause.drop
    upstream = upstream_of(outcome.session) if side_of(cause) is Side.UPSTREAM else None
    return Trouble(
        cause.code,
        cause.confidence.value,
        "" if cause.leg is None else str(cause.leg),
        _mark(outcome, cause),
        "" if drop is None else _place(outcome, drop),
        "" if upstream is None else endpoint_to_text(*upstream),
    )


def _place(outcome: Outcome, drop: PacketDrop) -> str:
    why = outcome.drop_of(drop.hop)
    device = name_text(drop.hop.detail.ifname)
    return ", ".join(filter(None, (device, f"netns {drop.hop.netns}", why.reason, why.hook)))


def _mark(outcome: Outcome, cause: Cause) -> str:
    """On which part of the drawing it belongs: a drop lies before or behind the translation by its addresses."""
    side = side_of(cause)
    if side is Side.UPSTREAM or cause.leg in (Leg.UPSTREAM_QUERY, Leg.UPSTREAM_REPLY):
        return "up"
    if cause.drop is not None:
        detail = cause.drop.hop.detail
        asked = (detail.saddr, detail.sport) if cause.leg is Leg.REPLY else (detail.daddr, detail.dport)
        return "ask" if asked == outcome.server else "go"
    if cause.code == "LeftNode":
        return "go"
    return "server" if side is Side.SERVER else "ask"
