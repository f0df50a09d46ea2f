"""Lookups like earlier ones, counted without a session each.

The program in the kernel joins the hops of a lookup and says which way it took (`LookupHead.shape`). A lookup that went
the way of an earlier one, with a reply of the same kind, has the outcome of that one, if nothing was to be told of it.
All others are handed over hop by hop. So are those that tell something of another: the other half of a pair, lookups
that may go on with a search list, what a server asks, and what it was asked for meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import compress
from operator import sub
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import is_loopback
from agent.hop.lookup import Kind
from agent.hop.record import DADDR, ORIGIN, RESPONSE, TCP
from agent.session.last_answers import WINDOW_NS
from agent.session.model import SECOND_NS
from agent.session.outcome import REFRESH_NS, Told
from agent.session.related import OTHER_HALF
from agent.session.table import SessionTable
from agent.wire.message import summarize
from agent.wire.rcodes import NOERROR, NXDOMAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.hop.lookup import LookupHead, Lookups
    from agent.hop.record import Hop
    from agent.session.node_state import Backend
    from agent.session.outcome import Outcome

RENEW_NS = 10 * SECOND_NS
"""How long a way is taken for granted: then one lookup that takes it is concluded again."""
MAX_WAYS = 16384
"""Beyond it all are forgotten, and those still in use are learned again."""
MAX_NAMES = 8192
"""Client and name of so many answers at least are remembered."""
SEARCH_NS = 200_000_000
"""So long after a name without records a client may go on with the next one of its search list: Settings.linger_ns, and
as much for the client."""
AGAIN_NS = 200_000_000
"""So long a lookup that was handed over may get another query after its reply: as with search lists."""
RCODE = 0xF
DNS_HEADER, ID_BYTES, NO_RECORDS = 12, 2, bytes(2)
SERVICE_LABEL = b"\x03svc"
"""In wire format: it stands in the names of Services."""
OPT_BYTES = 11
"""Of an OPT record without options (RFC 6891 6.1.2)."""

Way = tuple[int, int]
"""Shape and kind of a lookup."""


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


TOLD = Usual((0, 0), None, None, b"", b"", home=0, server=0, has_client=False, kind=Kind.of(0), until_ns=0)
"""Stands for what is handed over for reasons of its own."""


class Sum(NamedTuple):
    """Lookups that were counted together."""

    label: Hashable
    lookups: int
    pairs: int
    """So many of them were the later half of a pair."""
    waited_ns: int
    """All of them together."""


@dataclass(slots=True)
class Times:
    """How long each of some lookups took, in nanoseconds; the parts are known where the server is on this node."""

    lookup: list[int] = field(default_factory=list)
    way_there: list[int] = field(default_factory=list)
    server: list[int] = field(default_factory=list)
    way_back: list[int] = field(default_factory=list)


class UsualLookups:
    """Tells lookups that have nothing to tell from all others, and counts them.

    It looks at many at once, and at one alone only where that may be of another kind.

    Args:
        table: takes the others.
        label_of: what lookups with this outcome are counted as; None if there is something to tell of them.
        knows_services: whether something may be told of the answers to Services' names, beside the way of a lookup.
    """

    def __init__(
        self, table: SessionTable, label_of: Callable[[Outcome], Hashable | None], *, knows_services: bool = False
    ) -> None:
        self._table = table
        self._knows_services = knows_services
        self._answers: dict[tuple[bytes, bytes], int] = {}
        """Queries for Services' names and answers, without ids, of which nothing is to be told; and until when."""
        self._label_of = label_of
        self._serving = table.node_state.serving
        self._ways: dict[Way, Usual] = {}
        self._searching: dict[tuple[bytes, int], int] = {}
        """Client and type: their next lookup may go on with a search list if it begins before."""
        self._missing: dict[int, int] = {}
        """Client and name: when it was told that there is no such name."""
        self._answered: dict[int, tuple[Usual, int]] = {}
        """Client and name: how it was answered, and when."""
        self._answered_before: dict[int, tuple[Usual, int]] = {}
        self._asked: dict[int, list[int]] = {}
        """Namespace of a server: when it asked something itself, by hops that came one by one."""
        self._told: dict[int, int] = {}
        """Numbers of lookups that were handed over: until when their clients may go on asking."""
        self._parted: set[int] = set()
        """Pairs of which one half was handed over before the other was decided on."""
        self._sums: list[Sum] = []
        self._times = Times()

    def sift(self, taken: Lookups, ahead: Lookups, hops: list[Hop], wanted: int, seen_until_ns: int) -> list[int]:
        """Count what is like earlier lookups.

        Args:
            taken: lookups that are over, oldest first.
            ahead: younger ones; it is too early for them, but not to see to whom of those taken they belong.
            hops: what came one by one meanwhile.
            wanted: so many of them are to be handed over in any case.
            seen_until_ns: all that began before is among what was taken, what is younger, and the hops.

        Returns:
            Which of those taken are to be handed over.
        """
        self._note_hops(hops)
        if not taken.count:
            return []
        ways = self._ways_of(taken)
        ways[: min(wanted, len(ways))] = [TOLD] * min(wanted, len(ways))
        self._look_closer(ways, taken, ahead, seen_until_ns)
        self._see_pairs(ways, taken, ahead)
        self._see_search_lists(ways, taken)
        self._count(ways, taken)
        told = [index for index, usual in enumerate(ways) if usual.label is None]
        for index in told:
            self._note_told(taken, index)
        return told

    def take_sums(self) -> tuple[list[Sum], Times]:
        """What was counted since this was asked last."""
        sums, times = self._sums, self._times
        if sums:
            self._sums, self._times = [], Times()
        return sums, times

    def _ways_of(self, taken: Lookups) -> list[Usual]:
        """What is known of each, by the way that it took."""
        keys = list(zip(taken.words("shape"), taken.words("kind"), strict=True))
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
        outcome = self._conclude(taken, index, head) if _is_answer(kind) else None
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
        if len(self._ways) >= MAX_WAYS:
            self._ways.clear()
        self._ways[usual.way] = usual
        return usual

    def _conclude(self, taken: Lookups, index: int, head: LookupHead) -> Outcome | None:
        """What would become of it in a table of its own; None if that is not one session without a doubt."""
        table = SessionTable(self._table.settings, node_state=self._table.node_state)
        for hop in taken.hops(index):
            table.observe(hop)
        outcomes = list(table.expire(head.last_ns + 2 * table.settings.timeout_ns))
        return outcomes[0] if len(outcomes) == 1 and _stands_alone(outcomes[0], head.hops) else None

    def _look_closer(self, ways: list[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int) -> None:
        """Set apart those of a usual way that may not be usual after all."""
        known = set(ways)
        first_ns = taken.words("first_ns")[0]
        self._forget_old(known, first_ns)
        # A server's own lookups look the same as those of a client in its namespace.
        doubtful = {usual for usual in known if usual.label is not None and usual.home in self._serving}
        if doubtful:
            ways[:] = [TOLD if usual in doubtful else usual for usual in ways]
        if self._told:
            self._set_apart_asked_again(ways, taken)
        if self._missing:
            self._set_apart_missing(ways, taken)
        if any(usual.kind.has_additional for usual in known):
            self._set_apart_options(ways, taken)
        if any(usual.server for usual in known):
            self._set_apart_forwarded(ways, taken, ahead, seen_until_ns)
        if self._knows_services:
            self._set_apart_services(ways, taken)

    @staticmethod
    def _set_apart_options(ways: list[Usual], taken: Lookups) -> None:
        """Replies whose OPT record says something."""
        for index, usual in enumerate(ways):
            if usual.label is not None and usual.kind.has_additional and not _has_plain_opt(taken.reply(index)):
                ways[index] = TOLD

    def _forget_old(self, known: set[Usual], now_ns: int) -> None:
        """Let what is known for long be concluded anew the next time."""
        for usual in known:
            if usual is not TOLD and usual.until_ns < now_ns:
                self._ways.pop(usual.way, None)

    def _set_apart_asked_again(self, ways: list[Usual], taken: Lookups) -> None:
        """The same query of the same socket as one that was handed over, and waits for its reply."""
        numbers = taken.words("number")
        if self._told.keys().isdisjoint(numbers):
            return
        for index, (number, first_ns) in enumerate(zip(numbers, taken.words("first_ns"), strict=True)):
            if self._told.get(number, 0) > first_ns:
                ways[index] = TOLD

    def _set_apart_services(self, ways: list[Usual], taken: Lookups) -> None:
        """Answers to Services' names are looked at: once a second, as long as they are the same."""
        for index, usual in enumerate(ways):
            if usual.label is None or SERVICE_LABEL not in (query := taken.query(index)).lower():
                continue
            head, answer = taken.head(index), (query[ID_BYTES:], taken.reply(index)[ID_BYTES:])
            if self._answers.get(answer, 0) >= head.first_ns:
                continue
            outcome = self._conclude(taken, index, head)
            if outcome is None or self._label_of(outcome) is None:
                ways[index] = TOLD
                continue
            if len(self._answers) > MAX_NAMES:
                self._answers.clear()
            self._answers[answer] = head.first_ns + SECOND_NS

    def _set_apart_missing(self, ways: list[Usual], taken: Lookups) -> None:
        """A name that was said not to exist, and now has an answer."""
        missing = self._missing
        for index, (name, last_ns) in enumerate(zip(taken.words("name"), taken.words("last_ns"), strict=True)):
            if name in missing and last_ns - missing[name] < WINDOW_NS:
                ways[index] = TOLD

    def _set_apart_forwarded(self, ways: list[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int) -> None:
        """Lookups between whose query and reply the server asked something, or just behind it to renew its cache."""
        asked = self._asked_by_servers(taken, ahead)
        replied = taken.words("replied_ns")
        if not asked and max(replied) <= seen_until_ns:
            return
        arrived = taken.words("asked_ns")
        for index, usual in enumerate(ways):
            if usual.label is None or not usual.server:
                continue
            times = asked.get(usual.server)
            until_ns = replied[index] + (REFRESH_NS if times else 0)
            if until_ns > seen_until_ns:
                ways[index] = TOLD
            elif times:
                after = bisect_left(times, arrived[index])
                if after < len(times) and times[after] <= until_ns:
                    ways[index] = TOLD

    def _asked_by_servers(self, taken: Lookups, ahead: Lookups) -> dict[int, list[int]]:
        """When each server asked something itself."""
        asked = {netns: list(times) for netns, times in self._asked.items()}
        for lookups in (taken, ahead):
            homes = lookups.halves("home")
            if self._serving.keys().isdisjoint(homes):
                continue
            for home, first_ns in zip(homes, lookups.words("first_ns"), strict=True):
                if home in self._serving:
                    asked.setdefault(home, []).append(first_ns)
        for times in asked.values():
            times.sort()
        return asked

    def _note_hops(self, hops: list[Hop]) -> None:
        """Take note of what came one by one: whose lookups may belong to it, and what servers asked."""
        if not hops:
            return
        for hop in hops:
            if hop.flags & RESPONSE:
                if _says_nothing(hop):
                    for rdtype in OTHER_HALF:
                        self._searching[hop.rest[DADDR], rdtype] = hop.ts_ns + SEARCH_NS
            elif hop.flags & ORIGIN and hop.netns in self._serving:
                self._asked.setdefault(hop.netns, []).append(hop.ts_ns)
        now_ns = hops[-1].ts_ns
        self._asked = {
            netns: kept
            for netns, times in self._asked.items()
            if (kept := [ts_ns for ts_ns in times if now_ns - ts_ns < SECOND_NS])
        }
        if len(self._searching) > MAX_NAMES:
            self._searching = {who: until for who, until in self._searching.items() if until > now_ns}

    def _see_pairs(self, ways: list[Usual], taken: Lookups, ahead: Lookups) -> None:
        """Find pairs: where one half is handed over, so is the other."""
        pairs = taken.words("pair")
        sockets = set(pairs)
        ahead_of_it = sockets.intersection(ahead.words("pair"))
        if self._parted and not self._parted.isdisjoint(sockets):
            for index, pair in enumerate(pairs):
                if pair in self._parted:
                    ways[index] = TOLD
        self._parted = ahead_of_it
        if len(sockets) == len(pairs) and not ahead_of_it:
            return
        halves: dict[int, int] = {}
        for index, pair in enumerate(pairs):
            if pair in ahead_of_it:
                ways[index] = TOLD
            before = halves.get(pair)
            halves[pair] = index
            if before is not None:
                self._see_pair(ways, taken, before, index)

    def _see_pair(self, ways: list[Usual], taken: Lookups, before: int, index: int) -> None:
        """Two lookups of one name from one socket."""
        one, other = taken.head(before), taken.head(index)
        if OTHER_HALF.get(Kind.of(one.kind).rdtype) != Kind.of(other.kind).rdtype:
            return
        if ways[index].label is None or ways[before].label is None or one.id == other.id:
            ways[index] = ways[before] = TOLD
        else:
            self._sums.append(Sum(ways[index].label, 0, 1, 0))

    def _see_search_lists(self, ways: list[Usual], taken: Lookups) -> None:
        """Of each client's lookups of one type the next one behind a name without records may be told with it."""
        searching = self._searching
        silent = {usual for usual in set(ways) if usual.label is None and not _is_answer(usual.kind)}
        if not searching and not silent:
            return
        for index, usual in enumerate(ways):
            who = usual.client, usual.kind.rdtype
            if usual is TOLD:
                head = taken.head(index)
                who = head.client, Kind.of(head.kind).rdtype
            until_ns = searching.pop(who, 0)
            if until_ns and usual.label is not None and until_ns > taken.head(index).first_ns:
                ways[index] = TOLD
            if usual in silent and (head := taken.head(index)).reply_bytes and not _is_answer(Kind.of(head.kind)):
                searching[who] = head.last_ns + SEARCH_NS

    def _count(self, ways: list[Usual], taken: Lookups) -> None:
        """Count those that have nothing to tell."""
        counted = [usual.label is not None for usual in ways]
        if not any(counted):
            return
        columns = {name: taken.words(name) for name in ("first_ns", "asked_ns", "replied_ns", "last_ns", "name")}
        hops = taken.halves("hops")
        if not all(counted):
            ways = list(compress(ways, counted))
            columns = {name: list(compress(values, counted)) for name, values in columns.items()}
            hops = list(compress(hops, counted))
        first, arrived, replied, last, names = columns.values()
        self._table.counts.sessions += len(ways)
        self._table.counts.hops += sum(hops)
        self._remember(names, ways, last)
        self._add_sums(ways, list(map(sub, last, first)), last[-1])
        self._add_times(ways, (first, arrived, replied, last))

    def _add_times(self, ways: list[Usual], stamps: tuple[list[int], ...]) -> None:
        """How long the parts took whose both ends are on this node."""
        times = self._times
        first, _, _, last = _of_those([usual.has_client for usual in ways], stamps)
        times.lookup += map(sub, last, first)
        _, arrived, replied, _ = _of_those([usual.server > 0 for usual in ways], stamps)
        times.server += map(sub, replied, arrived)
        first, arrived, replied, last = _of_those([usual.has_client and usual.server > 0 for usual in ways], stamps)
        times.way_there += map(sub, arrived, first)
        times.way_back += map(sub, last, replied)

    def _add_sums(self, ways: list[Usual], waited: list[int], last_ns: int) -> None:
        numbers = Counter(ways)
        for usual, number in numbers.items():
            if usual.backend is not None:
                usual.backend.count(last_ns, number)
            together = (
                waited if len(numbers) == 1 else [ns for ns, way in zip(waited, ways, strict=True) if way is usual]
            )
            self._sums.append(Sum(usual.label, number, 0, sum(together)))

    def _remember(self, names: list[int], ways: list[Usual], last: list[int]) -> None:
        """How each name was answered last."""
        self._answered.update(zip(names, zip(ways, last, strict=True), strict=True))
        if len(self._answered) > MAX_NAMES:
            self._answered_before, self._answered = self._answered, {}

    def _note_told(self, taken: Lookups, index: int) -> None:
        """Take note of a lookup that is handed over."""
        head = taken.head(index)
        kind = Kind.of(head.kind)
        self._note_number(head)
        if not head.reply_bytes or kind.flags & RCODE != NXDOMAIN:
            return
        if len(self._missing) > MAX_NAMES:
            self._missing.clear()
        self._missing[head.name] = head.last_ns
        answered = self._answered.pop(head.name, None) or self._answered_before.pop(head.name, None)
        if answered is not None and head.query_bytes:
            usual, ts_ns = answered
            question = summarize(taken.query(index)).question
            if question is not None:
                scope = head.home if is_loopback(head.client) else 0
                told = Told(usual.kind.rdtype, NOERROR, usual.asked, ts_ns)
                self._table.note_answer((head.client, scope, question.name, question.rdclass), told)

    def _note_number(self, head: LookupHead) -> None:
        """Its client may ask again: at once, and as long as there is no reply."""
        settings = self._table.settings
        until_ns = head.last_ns + AGAIN_NS if head.reply_bytes else head.first_ns + settings.lifetime_ns
        self._told.pop(head.number, None)
        self._told[head.number] = until_ns
        while self._told and (
            len(self._told) > settings.max_sessions or self._told[next(iter(self._told))] < head.first_ns
        ):
            del self._told[next(iter(self._told))]


def _of_those(wanted: list[bool], columns: tuple[list[int], ...]) -> tuple[list[int], ...]:
    return columns if all(wanted) else tuple(list(compress(values, wanted)) for values in columns)


def _is_answer(kind: Kind) -> bool:
    return kind.flags & RCODE == NOERROR and kind.has_answers


def _says_nothing(reply: Hop) -> bool:
    """Whether a reply that came as a record has no records for its client, as far as it can be read."""
    message = reply.payload(reply.detail)[2 if reply.protocol == TCP else 0 :]
    return len(message) >= DNS_HEADER and (message[3] & RCODE != NOERROR or message[6:8] == NO_RECORDS)


def _stands_alone(outcome: Outcome, hops: int) -> bool:
    """Whether nothing but the hops of one lookup made this outcome."""
    session = outcome.session
    transmissions = (*session.queries.transmissions, *session.replies.transmissions)
    return (
        len(session.queries.transmissions) == len(session.replies.transmissions) == 1
        and sum(len(transmission.hops) for transmission in transmissions) <= hops
        and not session.upstream
        and session.upstream_of is None
        and not session.errors
        and session.strays is None
        and not session.ambiguous
        and not session.search_prefix
        and outcome.contradicted is None
        and not outcome.lossy
    )


def _has_plain_opt(reply: bytes) -> bool:
    """Whether a reply ends with an OPT record that says nothing: no extended rcode, no options."""
    opt = reply[-OPT_BYTES:]
    return opt[:3] == b"\0\0)" and opt[5:7] == b"\0\0" and opt[9:] == b"\0\0"
