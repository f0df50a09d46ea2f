"""The node as a picture: clients, what they ask, servers, upstreams, and what goes on between them.

It has a bounded number of boxes, those with trouble first; the rest is one box in each column, which says how many it
stands for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from agent.session.model import SECOND_NS
from agent.story.ways import endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.export.line import Client, Server
    from agent.page.flows import Flow, Flows, Trouble, Upstream, Window

MAX_BOXES = {"client": 8, "asked": 5, "server": 6, "upstream": 6}
"""Of each column, without the one for the rest."""
MAX_MARKS = 3
"""Kinds of trouble that are told at one place, the most frequent."""
MAX_DETAILS = 4
REST = "rest"
DIRECT, UNSEEN = "direct", "unseen"
"""Address that is asked: not translated at all, or not seen to be."""


class Mark(msgspec.Struct, rename="pascal"):
    """One kind of trouble at one place."""

    code: str
    confidence: str
    leg: str
    place: str
    lookups: int


class Box(msgspec.Struct, rename="pascal"):
    """A client, an address, a server or an upstream."""

    id: str
    title: str
    details: list[str]
    lookups: int
    failed: int
    marks: list[Mark]
    stands_for: int = 1
    """More than one where others were summed up."""


class Edge(msgspec.Struct, rename="pascal"):
    """What goes from one box to another."""

    from_: str = msgspec.field(name="From")
    to: str
    lookups: int
    failed: int
    mean_seconds: float | None
    """Of those that were answered; None where none was."""
    marks: list[Mark]


class Picture(msgspec.Struct, rename="pascal"):
    """All of it."""

    seconds: float
    """The time of which all numbers are."""
    lookups: int
    failed: int
    unclear: int
    columns: dict[str, list[Box]]
    edges: list[Edge]
    not_apart: int
    """Lookups that are in the sums and in no box, because there were too many flows."""


@dataclass(slots=True)
class _Sum:
    """Numbers of a box or an edge while they are added up."""

    lookups: int = 0
    failed: int = 0
    unclear: int = 0
    answered: int = 0
    waited_ns: int = 0
    marks: Counter[Trouble] = field(default_factory=Counter)
    title: str = ""
    details: dict[str, None] = field(default_factory=dict)
    is_here: bool = False
    """Whether its network namespace was seen on this node."""

    def add(self, window: Window, mark: str | None = None) -> None:
        """Add a window; of its troubles those that belong here."""
        self.lookups += window.lookups
        self.failed += window.failed
        self.unclear += window.unclear
        self.answered += window.answered
        self.waited_ns += window.waited_ns
        for trouble, lookups in dict(window.troubles).items():
            if mark is None or trouble.mark == mark:
                self.marks[trouble] += lookups


class _Place(NamedTuple):
    """A box before it has numbers."""

    column: str
    identifier: str
    title: str
    details: tuple[str | None, ...]
    mark: str = "none"
    """Which troubles are told at the box itself."""
    is_here: bool = True


class _Columns:
    """Boxes and edges while they are collected."""

    def __init__(self) -> None:
        self.boxes: dict[str, dict[str, _Sum]] = {column: {} for column in MAX_BOXES}
        self.edges: dict[tuple[str, str, str, str], _Sum] = {}

    def box(self, place: _Place) -> _Sum:
        """A box, made if there is none yet."""
        found = self.boxes[place.column].setdefault(place.identifier, _Sum())
        found.title = place.title
        found.details |= dict.fromkeys(filter(None, place.details))
        return found

    def edge(self, column: str, here: str, next_column: str, there: str) -> _Sum:
        """Likewise."""
        return self.edges.setdefault((column, here, next_column, there), _Sum())


def picture_of(flows: Flows, now_ns: int) -> Picture:
    """The picture of the present window and the one before it."""
    columns, every = _Columns(), flows.all()
    virtual = {_asked(flow) for flow in every if flow.server is not None and flow.server.backend is not None}
    whole = _Sum()
    for flow in (*every, flows.rest):
        for window in (flow.before, flow.now):
            whole.add(window)
    for flow in every:
        if flow.before.lookups or flow.now.lookups:
            _put(columns, flow, is_virtual=_asked(flow) in virtual)
    servers = set(columns.boxes["server"])
    for upstream in flows.upstreams():
        if upstream.before.lookups or upstream.now.lookups:
            _put_upstream(columns, upstream, servers)
    _put_trouble_upstream(columns, every)
    names = {column: _chosen(columns.boxes[column], MAX_BOXES[column]) for column in MAX_BOXES}
    rest = flows.rest.before.lookups + flows.rest.now.lookups
    return Picture(
        seconds=max(1.0, (now_ns - flows.begun_ns) / SECOND_NS),
        lookups=whole.lookups,
        failed=whole.failed,
        unclear=whole.unclear,
        columns={column: _boxes(columns.boxes[column], names[column], column) for column in MAX_BOXES},
        edges=_edges(columns, names),
        not_apart=rest,
    )


def _put(columns: _Columns, flow: Flow, *, is_virtual: bool) -> None:
    """One flow: its client, the address that it asks, and the server if it is known."""
    client, server = flow.client, flow.server
    if client is None or server is None:
        return
    boxes = [_client_box(client, flow), _asked_box(server, is_virtual=is_virtual)]
    if server.backend or not is_virtual:
        boxes.append(_server_box(server, flow))
    for window in (flow.before, flow.now):
        for box in boxes:
            found = columns.box(box)
            found.add(window, box.mark)
            found.is_here |= box.is_here
        for here, there, mark in zip(boxes, boxes[1:], ("ask", "go"), strict=False):
            columns.edge(here.column, here.identifier, there.column, there.identifier).add(window, mark)
        if len(boxes) < len(MAX_BOXES) - 1:
            # How far it got beyond the address is not known: what belongs there is told at the address.
            for further in ("go", "server"):
                marks = _Sum()
                marks.add(window, further)
                columns.box(boxes[-1]).marks.update(marks.marks)


def _client_box(client: Client, flow: Flow) -> _Place:
    owner, leaves = client.workload or client.pod, " ▸ ".join(flow.leaves)
    if owner is None:
        identifier = f"{client.address} {client.netns}"
        details: tuple[str | None, ...] = (client.process, leaves)
        return _Place("client", identifier, client.address, details, is_here=client.netns is not None)
    title, kind = _named(owner, client.namespace)
    details = (kind, client.address, leaves)
    return _Place("client", f"{client.namespace}/{owner}", title, details, is_here=client.netns is not None)


def _asked_box(server: Server, *, is_virtual: bool) -> _Place:
    asked = endpoint(server.address, server.port)
    if not is_virtual:
        known = server.translated_by == "none"
        return _Place("asked", DIRECT if known else UNSEEN, "asked directly" if known else "no translation seen", ())
    by = f"translated by {server.translated_by}" if server.translated_by and server.backend else None
    space, _, service = (server.service or "").rpartition("/")
    return _Place("asked", asked, service or asked, (f"Service in {space}", asked, by) if service else (by,))


def _server_box(server: Server, flow: Flow) -> _Place:
    backend = server.backend or endpoint(server.address, server.port)
    title, kind = _named(server.pod, server.namespace) if server.pod else (server.process or backend, None)
    details = (kind, backend if title != backend else None, " ▸ ".join(flow.enters))
    return _Place("server", backend, title, details, "server", is_here=server.backend_netns is not None)


def _named(owner: str | None, namespace: str | None) -> tuple[str, str]:
    """`cart` and `Deployment in shop` of `Deployment/cart`; a pod by its name."""
    kind, _, name = (owner or "").rpartition("/")
    return name, f"{kind or 'Pod'} in {namespace}"


def _put_upstream(columns: _Columns, upstream: Upstream, servers: set[str]) -> None:
    if upstream.backend not in servers:
        columns.box(_Place("server", upstream.backend, upstream.backend, ())).is_here = True
    for window in (upstream.before, upstream.now):
        columns.box(_Place("upstream", upstream.address, upstream.address, ())).add(window)
        columns.edge("server", upstream.backend, "upstream", upstream.address).add(window)


def _put_trouble_upstream(columns: _Columns, flows: Iterable[Flow]) -> None:
    """Lay what upstreams are blamed for on the way there, where that is known."""
    for flow in flows:
        if flow.server is None:
            continue
        backend = flow.server.backend or _asked(flow)
        for window in (flow.before, flow.now):
            for trouble, lookups in dict(window.troubles).items():
                if trouble.mark != "up":
                    continue
                edge = columns.edges.get(("server", backend, "upstream", trouble.upstream))
                there = edge or columns.boxes["server"].get(backend)
                if there is not None:
                    there.marks[trouble] += lookups


def _asked(flow: Flow) -> str:
    server = flow.server
    return "" if server is None else endpoint(server.address, server.port)


def _chosen(boxes: dict[str, _Sum], most: int) -> dict[str, str]:
    """By box, the one that it is shown as: itself, or the rest."""
    if len(boxes) <= most + 1:
        return {name: name for name in boxes}
    ranked = sorted(boxes, key=lambda name: (boxes[name].failed, boxes[name].lookups), reverse=True)
    return {name: name if place < most else REST for place, name in enumerate(ranked)}


def _boxes(boxes: dict[str, _Sum], names: dict[str, str], column: str) -> list[Box]:
    shown = sorted((name for name in boxes if names[name] == name), key=lambda name: (boxes[name].title, name))
    found = [_box(name, boxes[name], column) for name in shown]
    rest = [boxes[name] for name in boxes if names[name] == REST]
    if rest:
        whole = _together(rest)
        whole.title = f"{len(rest)} more: {column}s" if column != "asked" else f"{len(rest)} more addresses"
        found.append(_box(REST, whole, column, len(rest)))
    return found


def _box(name: str, numbers: _Sum, column: str, stands_for: int = 1) -> Box:
    here = {"client": numbers.is_here, "server": numbers.is_here}.get(column, True) or stands_for > 1
    details = [*([] if here else ["not seen on this node"]), *numbers.details]
    more = [f"and {len(details) - MAX_DETAILS} more"] if len(details) > MAX_DETAILS else []
    return Box(
        id=name,
        title=numbers.title,
        details=[*details[:MAX_DETAILS], *more],
        lookups=numbers.lookups,
        failed=numbers.failed,
        marks=_marks(numbers.marks),
        stands_for=stands_for,
    )


def _together(sums: Iterable[_Sum]) -> _Sum:
    whole = _Sum()
    for numbers in sums:
        whole.lookups += numbers.lookups
        whole.failed += numbers.failed
        whole.answered += numbers.answered
        whole.waited_ns += numbers.waited_ns
        whole.marks.update(numbers.marks)
    return whole


def _edges(columns: _Columns, names: dict[str, dict[str, str]]) -> list[Edge]:
    merged: dict[tuple[str, str], list[_Sum]] = {}
    for (column, here, following, there), numbers in columns.edges.items():
        ends = f"{column} {names[column][here]}", f"{following} {names[following][there]}"
        merged.setdefault(ends, []).append(numbers)
    return [_edge(ends, _together(sums)) for ends, sums in merged.items()]


def _edge(ends: tuple[str, str], numbers: _Sum) -> Edge:
    mean = numbers.waited_ns / numbers.answered / SECOND_NS if numbers.answered else None
    return Edge(ends[0], ends[1], numbers.lookups, numbers.failed, mean, _marks(numbers.marks))


def _marks(marks: Counter[Trouble]) -> list[Mark]:
    """The most frequent, and one for all others."""
    told = [
        Mark(trouble.code, trouble.confidence, trouble.leg, trouble.place or trouble.upstream, lookups)
        for trouble, lookups in marks.most_common(MAX_MARKS)
    ]
    rest = marks.total() - sum(mark.lookups for mark in told)
    return [*told, Mark("others", "", "", "", rest)] if rest else told
