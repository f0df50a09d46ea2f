"""How many lines of failing lookups are printed: enough of every kind to know it, and not thousands a second.

A server that refuses everything makes one agent write 8 MiB a second, all of it the same news. So failures that are the
same problem for a person share a budget, and all failures together have a ceiling, part of which is kept for kinds that
were not printed lately: a different failure is not lost among the others. Nothing here does I/O or looks at a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import endpoint_to_text
from agent.hop.record import TCP
from agent.wire.message import EXTENDED_ERROR, options
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from agent.explain.verdict import Verdict
    from agent.session.model import Session
    from agent.session.outcome import Outcome

BURST = 20
"""So many lines of a new kind are printed whole, however fast they come: they show whom it concerns, which names, which
way the packets went, and fit on a screen. At one a second afterwards, a kind takes an hour to fill the 10 MiB after
which the kubelet begins a new log file."""
LINE_BYTES = 10 << 10
"""What a line may have on average; they have 3 KiB as a rule, and more where the answers are large."""
RARE_SECONDS = 60.0
"""A kind, or a client of a kind, that had no line for so long gets one: minutes are what people count outages in."""
RESERVED = 0.25
"""Share of the ceiling that is for such kinds alone."""
MAX_KINDS = 100
"""Told apart of each cause within a minute; beyond it they are one kind together. Somebody who asks every address there
is for a name, or a server with ever new codes, hides no failure that has another cause, and none that was known before.
1 KiB each."""
MAX_CLIENTS = 4096
"""Likewise, of clients and kinds. A node has 110 pods as a rule."""
MAX_SAID = 5
"""Kinds that one summary names."""


class FailureRates(NamedTuple):
    """Lines a second; None: no limit."""

    alike: int | None = None
    """Of one kind, after the first `BURST`."""
    together: int | None = None
    """Of all kinds."""


UNLIMITED = FailureRates()


class Kind(NamedTuple):
    """What makes two failures the same problem for a person. Nothing of it is the client's to choose but the server.

    Neither the name nor the type that was asked for, nor the transaction id or a port of the client: a flood of random
    ones is one problem.
    """

    status: str
    cause: str
    """Its code; empty for none."""
    protocol: int
    server: tuple[bytes, int] | None
    """Address and port as the client addressed it; None for what is beyond `MAX_KINDS`."""
    rcode: int | None
    extended: int | None
    """INFO-CODE of the reply's extended error (RFC 8914): one SERVFAIL is for DNSSEC, another for an upstream."""
    place: tuple[object, ...]
    """Where it was lost: each message that died, with namespace, reason, function and hook. Without a drop, the
    namespace and the translated server of the query's last hop."""
    upstream: tuple[bytes, int] | None
    """The server that was asked last on its behalf, where the cause is an upstream's."""

    def __str__(self) -> str:
        """In words."""
        if self.server is None:
            return f"{self.cause or self.status} of many other kinds: servers, places, codes"
        rcode = "" if self.rcode is None else f" ({rcode_to_text(self.rcode)})"
        upstream = f", upstream {endpoint_to_text(*self.upstream)}" if self.upstream else ""
        over = " over TCP" if self.protocol == TCP else ""
        return f"{self.cause or self.status}{rcode} at {endpoint_to_text(*self.server)}{over}{upstream}"


def kind_of(outcome: Outcome, verdict: Verdict) -> Kind:
    """The kind of failure that a session is."""
    cause = verdict.cause.code if verdict.cause else ""
    return Kind(
        status=outcome.status.value,
        cause=cause,
        protocol=outcome.session.key.protocol,
        server=outcome.server,
        rcode=outcome.rcode,
        extended=_extended_error(outcome),
        place=_place(outcome),
        upstream=_upstream(outcome.session) if cause.startswith("Upstream") else None,
    )


def _others(kind: Kind) -> Kind:
    """All kinds of its cause that are not told apart."""
    return Kind(kind.status, kind.cause, 0, None, None, None, (), None)


def _extended_error(outcome: Outcome) -> int | None:
    if outcome.reply is None or outcome.rcode is None or outcome.healthy:
        return None
    message = outcome.reply.message
    found = (data for code, data in options(message.payload, message.summary) if code == EXTENDED_ERROR)
    return next((int.from_bytes(data[:2], "big") for data in found), None)


def _place(outcome: Outcome) -> tuple[object, ...]:
    drops = (outcome.query_drop, outcome.reply_drop, outcome.upstream_drop)
    places = tuple((drop.leg, drop.hop.netns, *drop.why) for drop in drops if drop is not None)
    if places or not outcome.session.queries.transmissions:
        return places
    last = outcome.session.queries.transmissions[-1].hops[-1]
    detail = last.detail
    return last.netns, detail.daddr, detail.dport


def _upstream(session: Session) -> tuple[bytes, int] | None:
    asked = [
        exchange.queries.transmissions[0].hops[0].detail
        for exchange in session.exchanges
        if exchange.queries.transmissions
    ]
    return (asked[-1].daddr, asked[-1].dport) if asked else None


@dataclass(slots=True)
class Bucket:
    """Fills steadily up to its capacity; what is taken out may be more than is in it, and is missing then."""

    rate: float
    """A second."""
    capacity: float
    level: float
    filled: float
    """When it was filled last."""

    def at(self, now: float) -> float:
        """What is in it."""
        if now > self.filled:
            self.level = min(self.capacity, self.level + (now - self.filled) * self.rate)
            self.filled = now
        return self.level


class Ceiling:
    """What all failures together may cost, in lines and in bytes.

    Kinds that had a line lately and those that had none cannot take everything from each other: a storm of new kinds
    leaves the others half of what is theirs, and what floods leaves the new ones the reserve.
    """

    def __init__(self, lines_a_second: float, now: float) -> None:
        self._usual = _full(lines_a_second * (1 - RESERVED), now)
        self._reserve = _full(lines_a_second * RESERVED, now)
        self._bytes = _full(lines_a_second * LINE_BYTES, now)

    def admits(self, now: float, *, rare: bool) -> bool:
        """Whether there is room for a line; it is taken."""
        lines = self._reserve if rare and self._reserve.at(now) >= 1 else self._usual
        least = max(1.0, self._usual.capacity / 2) if rare and lines is self._usual else 1.0
        debt = self._bytes.capacity * RESERVED if rare else 0.0
        if lines.at(now) < least or self._bytes.at(now) <= -debt:
            return False
        lines.level -= 1
        return True

    def charge(self, line_bytes: int) -> None:
        """How long the line was: known when it is made."""
        self._bytes.level -= line_bytes


def _full(rate: float, now: float) -> Bucket:
    """A bucket that holds what comes in a second."""
    capacity = max(1.0, rate)
    return Bucket(rate, capacity, capacity, now)


class Held(NamedTuple):
    """Lines that were held back since it was asked last."""

    kind: Kind | None
    """None: of other kinds, beyond those that are named one by one."""
    lines: int

    def __str__(self) -> str:
        """In words."""
        if self.kind is None:
            return f"held back {self.lines:,} more lines of other failures"
        return f"held back {self.lines:,} more lines like this one: {self.kind}"


@dataclass(slots=True)
class _Known:
    """What is remembered of a kind."""

    bucket: Bucket
    seen: float
    printed: float = float("-inf")
    held: int = 0
    """Since its last line."""
    unsaid: int = 0
    """Since the last summary."""


class FailureLimit:
    """Decides which failing lookups get a line, before it is made."""

    def __init__(self, rates: FailureRates, max_kinds: int = MAX_KINDS) -> None:
        """Begin.

        Args:
            rates: What may be printed.
            max_kinds: How many kinds of each cause are told apart.
        """
        self.rates = rates
        self.alike = 0
        """Lines held back because of others of their kind."""
        self.beyond = 0
        """Lines held back because of the ceiling."""
        self._max_kinds = max_kinds
        self._known: dict[tuple[str, str], OrderedDict[Kind, _Known]] = {}
        """By status and cause, of which there are as many as the code knows; each from the one not seen for longest."""
        self._clients: OrderedDict[tuple[Kind, int], float] = OrderedDict()
        self._forgotten = 0
        """Held back, not said, and of what kind is forgotten."""
        self._ceiling: Ceiling | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is ever held back."""
        return self.rates == UNLIMITED

    def admits(self, kind: Kind, client: int | None, now: float) -> bool:
        """Whether this failure gets a line; if not, it is counted.

        Args:
            kind: What it is.
            client: The namespace of whom it happened to, on this node: each one gets its line a minute.
            now: Seconds that only grow.
        """
        kind, known = self._know(kind, now)
        rare = now - known.printed >= RARE_SECONDS
        within = self.rates.alike is None or known.bucket.at(now) >= 1
        if not within and not rare and not self._is_news(kind, client, now):
            self.alike += 1
        elif not self._has_room(now, rare=rare):
            self.beyond += 1
        else:
            known.printed = now
            known.bucket.level = max(0.0, known.bucket.level - 1)
            self._remember(kind, client, now)
            return True
        known.held += 1
        known.unsaid += 1
        return False

    def held_before(self, kind: Kind) -> int:
        """How many lines of this kind were held back since the last one of it: for the next line to tell, once."""
        kinds = self._known.get(kind[:2])
        known = (kinds.get(kind) or kinds.get(_others(kind))) if kinds else None
        if known is None:
            return 0
        held, known.held = known.held, 0
        return held

    def charge(self, line_bytes: int) -> None:
        """A line was made, and is so long."""
        if self._ceiling is not None:
            self._ceiling.charge(line_bytes)

    def summary(self) -> list[Held]:
        """What was held back since this was asked last, most of it first; nothing if nothing was."""
        every = [pair for kinds in self._known.values() for pair in kinds.items()]
        held = [Held(kind, allowance.unsaid) for kind, allowance in every if allowance.unsaid]
        held.sort(key=lambda chunk: chunk.lines, reverse=True)
        for _, known in every:
            known.unsaid = 0
        others = sum(chunk.lines for chunk in held[MAX_SAID:]) + self._forgotten
        self._forgotten = 0
        return [*held[:MAX_SAID], Held(None, others)] if others else held[:MAX_SAID]

    def _know(self, kind: Kind, now: float) -> tuple[Kind, _Known]:
        """The kind that a failure counts as, and what is known of it."""
        kinds = self._known.setdefault(kind[:2], OrderedDict())
        if kind not in kinds and len(kinds) >= self._max_kinds and not self._forgets(kinds, now):
            kind = _others(kind)
        known = kinds.get(kind)
        if known is None:
            known = kinds[kind] = _Known(Bucket(self.rates.alike or 0, BURST, BURST, now), now)
        known.seen = now
        kinds.move_to_end(kind)
        return kind, known

    def _forgets(self, kinds: OrderedDict[Kind, _Known], now: float) -> bool:
        """Make room, if there is a kind that was not seen lately."""
        oldest = next(iter(kinds))
        if now - kinds[oldest].seen < RARE_SECONDS:
            return False
        self._forgotten += kinds.pop(oldest).unsaid
        return True

    def _is_news(self, kind: Kind, client: int | None, now: float) -> bool:
        """Whether this client had no line of this kind lately."""
        if client is None:
            return False
        return now - self._clients.get((kind, client), float("-inf")) >= RARE_SECONDS

    def _remember(self, kind: Kind, client: int | None, now: float) -> None:
        if client is None:
            return
        self._clients[kind, client] = now
        self._clients.move_to_end((kind, client))
        if len(self._clients) > MAX_CLIENTS:
            self._clients.popitem(last=False)

    def _has_room(self, now: float, *, rare: bool) -> bool:
        if self.rates.together is None:
            return True
        if self._ceiling is None:
            self._ceiling = Ceiling(self.rates.together, now)
        return self._ceiling.admits(now, rare=rare)
