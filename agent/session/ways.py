"""What is known of lookups by the way that they took, and how it is learned: one is concluded by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import is_loopback
from agent.hop.lookup import Kind
from agent.hop.record import DADDR
from agent.session.latency import Latency, latency_of
from agent.session.model import SECOND_NS
from agent.session.search_lists import Asked
from agent.session.table import SessionTable
from agent.wire.rcodes import ANSWERED, NOERROR, NXDOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.hop.lookup import LookupHead, Lookups
    from agent.session.node_state import Backend
    from agent.session.outcome import Outcome

RENEW_NS = 10 * SECOND_NS
"""How long a way is taken for granted: then one lookup that takes it is concluded again."""
MAX_WAYS = 16384
"""Beyond it all are forgotten, and those still in use are learned again."""
MAX_SEARCHED = 8192
"""Names that ended search lists; beyond it all are forgotten."""
RCODE = 0xF

Way = tuple[int, int]
"""Shape and kind of a lookup."""


class Exchange(NamedTuple):
    """A lookup, and the one by which its server asked another server for it; numbers of those taken."""

    lookup: int
    asked: int


@dataclass(slots=True, eq=False)
class Usual:
    """What is known of lookups that take one way."""

    way: Way
    label: Hashable | None
    """What they are counted as; None if there is something to tell of them."""
    backend: Backend | None
    asked: bytes
    """Address that they ask."""
    client: bytes
    """Address that they come from, and its namespace; these are part of the way."""
    home: int
    server: int
    """Namespace of the server; 0 if it is not on this node."""
    has_client: bool
    """Whether the client is on this node."""
    kind: Kind
    until_ns: int
    """When to conclude one again."""
    followed: Usual | None = None
    """Of a name that does not exist: what it is where its client goes on with a search list."""
    is_forwarded: bool = False
    """Whether its server asked another one, as one exchange shows."""
    is_exchange: bool = False
    """Whether it is such an exchange, and is counted with the lookup that it was asked for."""

    @property
    def may_count(self) -> bool:
        """Whether one may be counted, if nothing else is against it."""
        return self.label is not None or self.followed is not None

    @property
    def asked_as(self) -> Asked:
        """What it is to a search list."""
        return _asked(self.client, self.home, self.kind)


TOLD = Usual((0, 0), None, None, b"", b"", home=0, server=0, has_client=False, kind=Kind.of(0), until_ns=0)
"""Stands for what is handed over for reasons of its own."""


class Ways:
    """All ways that are known.

    Args:
        table: whose settings and knowledge of the node hold.
        label_of: what lookups with this outcome are counted as; None if there is something to tell of them.
    """

    def __init__(self, table: SessionTable, label_of: Callable[[Outcome], Hashable | None]) -> None:
        self._table = table
        self._label_of = label_of
        self._ways: dict[Way, Usual] = {}
        self._searched: dict[tuple[Way, int, bytes], tuple[Usual, int]] = {}
        """What the last lookup of a search list is, by its name and what was looked for; and until when."""
        self._together: dict[tuple[Way, Way], tuple[Usual, Usual]] = {}
        """What a lookup is that its server forwarded, and what the exchange is, by the ways of both."""

    def of(self, taken: Lookups) -> list[Usual]:
        """What is known of each, by the way that it took."""
        keys = list(zip(taken.words("shape"), taken.words("kind"), strict=True))
        self._forget_old(set(keys), taken)
        found = list(map(self._ways.get, keys))
        ways = [usual or TOLD for usual in found]
        if None in found:
            for index, usual in enumerate(found):
                if usual is None:
                    ways[index] = self._ways.get(keys[index]) or self._learn(taken, index)
        for index, unusual in enumerate(taken.halves("unusual")):
            if unusual:
                ways[index] = TOLD
        return ways

    def _learn(self, taken: Lookups, index: int) -> Usual:
        """Conclude a lookup by itself, as if there were no other, and remember what comes of it."""
        head = taken.head(index)
        kind = Kind.of(head.kind)
        if head.unusual or not head.reply_bytes:
            return TOLD
        outcome = self._conclude(taken, index, head) if kind.flags & RCODE in ANSWERED else None
        usual = Usual(
            way=(head.shape, head.kind),
            label=None if outcome is None else self._label_of(outcome),
            backend=None if outcome is None else outcome.backend,
            asked=next(taken.hops(index)).rest[DADDR],
            client=head.client,
            home=head.home,
            server=head.server,
            has_client=outcome is not None and outcome.client_netns is not None,
            kind=kind,
            until_ns=head.first_ns + RENEW_NS,
        )
        if outcome is not None and is_missing(kind):
            usual.followed = self._as_followed(usual, outcome)
        if len(self._ways) >= MAX_WAYS:
            self._ways.clear()
        self._ways[usual.way] = usual
        return usual

    def _as_followed(self, usual: Usual, outcome: Outcome) -> Usual | None:
        """What it is where its client goes on with a search list; None if there is something to tell of it."""
        outcome.session.search_list_followed = True
        label = self._label_of(outcome)
        return None if label is None else replace(usual, label=label)

    def together(self, taken: Lookups, pair: Exchange, alone: tuple[Usual, Usual]) -> tuple[Usual, Usual]:
        """What a lookup is that its server forwarded, and what the exchange is by which it did.

        Args:
            taken: some lookups.
            pair: which two of them.
            alone: what each of the two is by itself; both take known ways.
        """
        key = alone[0].way, alone[1].way
        found = self._together.get(key)
        # By then what each of them is by itself is learned again.
        if found is None or found[0].until_ns < min(usual.until_ns for usual in alone):
            if len(self._together) >= MAX_WAYS:
                self._together.clear()
            found = self._together[key] = self._learn_together(taken, pair, alone)
        return found

    def _learn_together(self, taken: Lookups, pair: Exchange, alone: tuple[Usual, Usual]) -> tuple[Usual, Usual]:
        """Conclude both together, as if there were no others, and remember what comes of it."""
        usual, exchange = alone
        until_ns = min(usual.until_ns, exchange.until_ns)
        outcome = self._conclude_together(taken, pair, exchange)
        if outcome is None:
            return replace(usual, label=None, followed=None, until_ns=until_ns), exchange
        together = replace(
            usual,
            label=self._label_of(outcome),
            backend=outcome.backend,
            until_ns=until_ns,
            followed=None,
            is_forwarded=True,
        )
        if is_missing(usual.kind):
            together.followed = self._as_followed(together, outcome)
        if exchange.server == 0:
            exchange = replace(exchange, is_exchange=True)
            if exchange.followed is not None:
                exchange.followed = replace(exchange.followed, is_exchange=True)
        return together, exchange

    def _conclude_together(self, taken: Lookups, pair: Exchange, exchange: Usual) -> Outcome | None:
        """What would become of both in a table of their own; None unless the one is the other's exchange."""
        heads = [taken.head(index) for index in pair]
        outcomes = self._outcomes(taken, pair, max(head.last_ns for head in heads))
        found = [outcome for outcome in outcomes if outcome.session.upstream]
        others = [outcome for outcome in outcomes if not outcome.session.upstream]
        if len(found) != 1 or not _stands_alone(found[0], heads[0].hops, exchanges=1) or not _is_timed(found[0], heads):
            return None
        # Only a server on this node makes the exchange a lookup of its own; by that it is known already.
        is_own = [self._label_of(outcome) == exchange.label for outcome in others]
        return found[0] if is_own == [True] * (exchange.server != 0) else None

    def label_of(self, taken: Lookups, index: int, prefix: bytes = b"") -> Hashable | None:
        """What a lookup is counted as, whatever its way is; None if there is something to tell of it.

        Args:
            taken: some lookups.
            index: which of them.
            prefix: what its client looked for with a search list.
        """
        outcome = self._conclude(taken, index, taken.head(index))
        if outcome is None:
            return None
        outcome.session.search_prefix = prefix
        return self._label_of(outcome)

    def _conclude(self, taken: Lookups, index: int, head: LookupHead) -> Outcome | None:
        """What would become of it in a table of its own; None if that is not one session without a doubt."""
        outcomes = self._outcomes(taken, (index,), head.last_ns)
        return outcomes[0] if len(outcomes) == 1 and _stands_alone(outcomes[0], head.hops) else None

    def _outcomes(self, taken: Lookups, indices: tuple[int, ...], last_ns: int) -> list[Outcome]:
        """What would become of these in a table of their own, long after the last of their hops."""
        table = SessionTable(self._table.settings, node_state=self._table.node_state)
        for hop in sorted(hop for index in indices for hop in taken.hops(index)):
            table.observe(hop)
        return list(table.expire(last_ns + 2 * table.settings.timeout_ns))

    def _forget_old(self, keys: set[Way], taken: Lookups) -> None:
        """Let what has been known for long be concluded anew."""
        now_ns = taken.words("first_ns")[0]
        for key in keys:
            usual = self._ways.get(key)
            if usual is not None and usual.until_ns < now_ns:
                del self._ways[key]

    def search_ended(self, taken: Lookups, index: int, usual: Usual, prefix: bytes) -> Usual:
        """What an answer is that ended a search list."""
        head = taken.head(index)
        key = usual.way, head.name, prefix
        found, until_ns = self._searched.get(key, (TOLD, 0))
        if until_ns < head.first_ns:
            label = self.label_of(taken, index, prefix)
            found = TOLD if label is None else replace(usual, label=label)
            if len(self._searched) > MAX_SEARCHED:
                self._searched.clear()
            self._searched[key] = found, head.first_ns + RENEW_NS
        return found


def is_answer(kind: Kind) -> bool:
    """Whether the name has records of this type."""
    return kind.flags & RCODE == NOERROR and kind.has_answers


def is_missing(kind: Kind) -> bool:
    """Whether there is no such name."""
    return kind.flags & RCODE == NXDOMAIN


def _asked(client: bytes, home: int, kind: Kind) -> Asked:
    scope = home if is_loopback(client) else 0
    is_empty = is_missing(kind) or (kind.flags & RCODE == NOERROR and kind.has_reply and not kind.has_answers)
    return Asked((client, scope, kind.rdtype), is_empty, is_empty and is_missing(kind))


def asked_by(head: LookupHead) -> Asked:
    """What a lookup is to a search list whose way tells nothing."""
    return _asked(head.client, head.home, Kind.of(head.kind))


def _stands_alone(outcome: Outcome, hops: int, exchanges: int = 0) -> bool:
    """Whether nothing but the hops of one lookup, and of so many exchanges with upstreams, made this outcome."""
    session = outcome.session
    transmissions = (*session.queries.transmissions, *session.replies.transmissions)
    return (
        len(session.queries.transmissions) == len(session.replies.transmissions) == 1
        and sum(len(transmission.hops) for transmission in transmissions) <= hops
        and len(session.upstream) == len(session.exchanges) == exchanges
        and session.upstream_of is None
        and not session.errors
        and session.strays is None
        and not session.ambiguous
        and not session.search_prefix
        and outcome.contradicted is None
        and not outcome.lossy
    )


def _is_timed(outcome: Outcome, heads: list[LookupHead]) -> bool:
    """Whether the heads of a lookup and of its exchange tell how long each part took."""
    head, exchange = heads
    here = outcome.client_netns is not None
    return latency_of(outcome) == Latency(
        head.asked_ns - head.first_ns if here else None,
        head.replied_ns - head.asked_ns,
        exchange.last_ns - exchange.first_ns,
        head.last_ns - head.replied_ns if here else None,
    )
