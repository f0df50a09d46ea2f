"""How many lines of failing lookups are printed: enough of every kind to know it, and not thousands a second.

A server that refuses everything makes one agent write 8 MiB a second, all of it the same news. So failures that are
the same problem for a person are thinned: the first ones are printed whole, then some. What is printed of all kinds
together has to fit into `agent.export.budget`, of which each kind gets a fair part. Nothing here does I/O or looks at a
clock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.incident_key import upstream_of
from agent.export.budget import SECOND, SHARES, Rank
from agent.hop.endpoint import endpoint_to_text
from agent.hop.record import TCP
from agent.wire.message import EXTENDED_ERROR, options
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from agent.explain.verdict import Verdict
    from agent.export.budget import Budget
    from agent.session.outcome import Outcome

BURST = 20
"""So many lines of a new kind are printed whole, however fast they come: they show whom it concerns, which names, which
way the packets went, and fit on a screen. At one a second afterwards, a kind takes an hour to fill the 10 MiB after
which the kubelet begins a new log file."""
RARE_SECONDS = 60.0
"""A kind, or a client of a kind, that had no line for so long gets one: minutes are what people count outages in."""
MAX_KINDS = 100
"""Told apart of each cause within a minute; beyond it they are one kind together. Somebody who asks every address there
is for a name, or a server with ever new codes, hides no failure that has another cause, and none that was known before.
1 KiB each."""
MAX_CLIENTS = 4096
"""Likewise, of clients and kinds. A node has 110 pods as a rule."""
PART = 1 - SHARES[Rank.INCIDENT] - SHARES[Rank.RARE] - SHARES[Rank.SUCCESS]
"""Of all lines, what failures may have that are not rare; kinds that want more lines than there are divide it."""
MAX_SAID = 5
"""Kinds that one summary names."""


class LineRates(NamedTuple):
    """What may be written a second; None: no limit."""

    alike: int | None = None
    """Lines of failures of one kind, after the first `BURST`."""
    lines: int | None = None
    """Lines of all kinds, of lookups that went well, and of incidents."""
    size: int | None = None
    """Bytes of all these."""


UNLIMITED = LineRates()


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
        upstream=upstream_of(outcome.session) if cause.startswith("Upstream") else None,
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
    second: int = 0
    taken: int = 0
    """Lines that it had in that second."""


@dataclass(slots=True)
class _Turns:
    """How many kinds want lines at present."""

    second: int = 0
    now: int = 0
    before: int = 0
    """In the second before."""

    def take(self, second: int) -> None:
        """One more kind wants a line in this second."""
        if second != self.second:
            self.before = self.now if second == self.second + 1 else 0
            self.second, self.now = second, 0
        self.now += 1

    @property
    def kinds(self) -> int:
        """The larger of this second's number and the last one's: this one may just have begun."""
        return max(1, self.now, self.before)


class FailureLimit:
    """Decides which failing lookups get a line, before it is made."""

    def __init__(self, alike: int | None, budget: Budget, max_kinds: int = MAX_KINDS) -> None:
        """Begin.

        Args:
            alike: Lines a second of one kind, after the first ones; None: no limit.
            budget: What all lines share.
            max_kinds: How many kinds of each cause are told apart.
        """
        self.held = 0
        """Lines held back because of others of their kind."""
        self._alike = alike
        self._budget = budget
        self._max_kinds = max_kinds
        self._known: dict[tuple[str, str], OrderedDict[Kind, _Known]] = {}
        """By status and cause, of which there are as many as the code knows; each from the one not seen for longest."""
        self._clients: OrderedDict[tuple[Kind, int], float] = OrderedDict()
        self._forgotten = 0
        """Held back, not said, and of what kind is forgotten."""
        self._turns = _Turns()

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing is ever held back."""
        return self._alike is None and self._budget.is_unlimited

    def admits(self, kind: Kind, client: int | None, now: float) -> Rank | None:
        """The rank of the line that this failure gets; None if it gets none, which is counted.

        Args:
            kind: What it is.
            client: The namespace of whom it happened to, on this node: each one gets its line a minute.
            now: Seconds that only grow.
        """
        kind, known = self._know(kind, now)
        rare = now - known.printed >= RARE_SECONDS
        rank = Rank.RARE if rare else Rank.FAILURE
        within = self._alike is None or known.bucket.at(now) >= 1
        if not within and not rare and not self._is_news(kind, client, now):
            self.held += 1
        elif self._has_its_part(known, now) and self._budget.has_room(rank, now):
            known.printed = now
            known.taken += 1
            known.bucket.level = max(0.0, known.bucket.level - 1)
            self._remember(kind, client, now)
            return rank
        known.held += 1
        known.unsaid += 1
        return None

    def hold(self, kind: Kind, told: int) -> None:
        """A line that was admitted was not written after all.

        Args:
            kind: What it is.
            told: Lines held back that it would have told, itself among them.
        """
        known = self._find(kind)
        if known is not None:
            known.held += told
            known.unsaid += 1

    def held_before(self, kind: Kind) -> int:
        """How many lines of this kind were held back since the last one of it: for the next line to tell, once."""
        known = self._find(kind)
        if known is None:
            return 0
        held, known.held = known.held, 0
        return held

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

    def _find(self, kind: Kind) -> _Known | None:
        kinds = self._known.get(kind[:2])
        return (kinds.get(kind) or kinds.get(_others(kind))) if kinds else None

    def _know(self, kind: Kind, now: float) -> tuple[Kind, _Known]:
        """The kind that a failure counts as, and what is known of it."""
        kinds = self._known.setdefault(kind[:2], OrderedDict())
        if kind not in kinds and len(kinds) >= self._max_kinds and not self._forgets(kinds, now):
            kind = _others(kind)
        known = kinds.get(kind)
        if known is None:
            known = kinds[kind] = _Known(Bucket(self._alike or 0, BURST, BURST, now), now)
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

    def _has_its_part(self, known: _Known, now: float) -> bool:
        """Whether a kind had less than its part of this second's lines. One that floods leaves the others theirs."""
        second = int(now / SECOND)
        if known.second != second:
            known.second, known.taken = second, 0
            self._turns.take(second)
        if self._budget.lines is None:
            return True
        part = self._budget.lines * PART // self._turns.kinds
        if known.taken < max(1, part):
            return True
        self._budget.refused += 1
        return False
