"""Lookups like earlier ones, counted without a session each.

The program in the kernel joins the hops of a lookup and says which way it took (`LookupHead.shape`). A lookup that went
the way of an earlier one, with a reply of the same kind, has the outcome of that one, if nothing was to be told of it.
All others are handed over hop by hop. So are those that tell something of another: the other half of a pair, lookups
that may go on with a search list, and what a server asks and for whose sake, unless that is certain.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import compress
from operator import sub
from typing import TYPE_CHECKING, NamedTuple

from agent.hop.endpoint import is_loopback
from agent.hop.lookup import Kind
from agent.hop.record import DADDR, ORIGIN, RESPONSE, TCP
from agent.session.exchanges import ExchangeFinder
from agent.session.last_answers import WINDOW_NS
from agent.session.model import SECOND_NS
from agent.session.outcome import Told
from agent.session.related import AAAA, OTHER_HALF
from agent.session.search_lists import Searches, SearchLists, name_of
from agent.session.ways import RCODE, TOLD, Exchange, Usual, Ways, asked_by, is_answer, is_missing
from agent.wire.message import summarize
from agent.wire.rcodes import ANSWERED, NOERROR

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.hop.lookup import LookupHead, Lookups
    from agent.hop.record import Hop
    from agent.session.outcome import Outcome
    from agent.session.table import SessionTable

MAX_NAMES = 8192
"""Client and name of so many answers at least are remembered."""
AGAIN_NS = 200_000_000
"""So long a lookup that was handed over may get another query after its reply: as with search lists."""
DNS_HEADER, ID_BYTES, NO_RECORDS = 12, 2, bytes(2)
SERVICE_LABEL = b"\x03svc"
"""In wire format: it stands in the names of Services."""
OPT_BYTES = 11
"""Of an OPT record without options (RFC 6891 6.1.2)."""


class Sum(NamedTuple):
    """Lookups that were counted together."""

    label: Hashable
    lookups: int = 0
    pairs: int = 0
    """So many of them were the later half of a pair."""
    waited_ns: int = 0
    """All of them together."""
    exchanges: int = 0
    """For so many of them their server asked another server."""
    upstream_ns: int = 0
    """So long these took together."""


@dataclass(slots=True)
class Times:
    """How long each of some lookups took, in nanoseconds; the parts are known where the server is on this node."""

    lookup: list[int] = field(default_factory=list)
    way_there: list[int] = field(default_factory=list)
    server: list[int] = field(default_factory=list)
    way_back: list[int] = field(default_factory=list)
    upstream: list[int] = field(default_factory=list)


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
        self._serving = table.node_state.serving
        self._ways = Ways(table, label_of)
        self._search_lists = SearchLists(table.settings.linger_ns)
        self._missing: dict[int, int] = {}
        """Client and name: when it was told that there is no such name."""
        self._answered: dict[int, tuple[Usual, int]] = {}
        """Client and name: how it was answered, and when; `TOLD` for what the table knows."""
        self._answered_before: dict[int, tuple[Usual, int]] = {}
        self._exchanges = ExchangeFinder(self._serving)
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
        first = taken.words("first_ns")
        if first or hops:
            self._exchanges.forget_before(first[0] if first else hops[-1].ts_ns)
        if not first:
            return []
        ways = self._ways.of(taken)
        ways[: min(wanted, len(ways))] = [TOLD] * min(wanted, len(ways))
        exchanges = self._look_closer(ways, taken, ahead, seen_until_ns)
        halves = self._see_pairs(ways, taken, ahead)
        searches = self._see_search_lists(ways, taken, dict(halves))
        _tell_together(ways, [*halves, *searches.links, *exchanges], searches.onward)
        self._say_what_is_behind(searches, ways, taken)
        self._count_pairs(ways, halves)
        self._count_exchanges(ways, taken, exchanges)
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

    def _look_closer(self, ways: list[Usual], taken: Lookups, ahead: Lookups, seen_until_ns: int) -> list[Exchange]:
        """Set apart those of a usual way that may not be usual after all.

        Returns:
            Lookups for which their server asked another one, with what it asked.
        """
        known = set(ways)
        exchanges = self._see_exchanges(ways, known, (taken, ahead), seen_until_ns)
        if self._told:
            self._set_apart_asked_again(ways, taken)
        if self._missing or any(usual.followed for usual in known):
            self._set_apart_contradictory(ways, taken)
        if any(usual.kind.has_additional for usual in known):
            self._set_apart_options(ways, taken)
        if self._knows_services:
            self._set_apart_services(ways, taken)
        return exchanges

    def _see_exchanges(
        self, ways: list[Usual], known: set[Usual], lookups: tuple[Lookups, Lookups], seen_until_ns: int
    ) -> list[Exchange]:
        """Find what servers asked, and set apart where it is not sure for whose sake."""
        taken, ahead = lookups
        told, exchanges = set[int](), list[Exchange]()
        if any(usual.server for usual in known):
            told, exchanges = self._exchanges.find(ways, taken, ahead, seen_until_ns)
        for index in told:
            ways[index] = TOLD
        alone = list(ways)
        # A server's own lookups look the same as those of a client in its namespace.
        doubtful = {usual for usual in known if usual.may_count and usual.home in self._serving}
        if doubtful:
            owned = {asked for _, asked in exchanges}
            ways[:] = [TOLD if usual in doubtful and index not in owned else usual for index, usual in enumerate(ways)]
        # Oldest first: what a server asked may have been forwarded itself.
        for pair in exchanges:
            lookup, asked = pair
            if TOLD in (ways[lookup], ways[asked]):
                ways[lookup] = ways[asked] = TOLD
                continue
            ways[lookup], exchange = self._ways.together(taken, pair, (alone[lookup], alone[asked]))
            if exchange.is_exchange:
                ways[asked] = exchange
        return exchanges

    @staticmethod
    def _set_apart_options(ways: list[Usual], taken: Lookups) -> None:
        """Replies whose OPT record says something."""
        for index, usual in enumerate(ways):
            if usual.may_count and usual.kind.has_additional and not _has_plain_opt(taken.reply(index)):
                ways[index] = TOLD

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
            if usual.is_forwarded or usual.is_exchange:
                ways[index] = TOLD
                continue
            head, answer = taken.head(index), (query[ID_BYTES:], taken.reply(index)[ID_BYTES:])
            if self._answers.get(answer, 0) >= head.first_ns:
                continue
            if self._ways.label_of(taken, index) is None:
                ways[index] = TOLD
                continue
            if len(self._answers) > MAX_NAMES:
                self._answers.clear()
            self._answers[answer] = head.first_ns + SECOND_NS

    def _set_apart_contradictory(self, ways: list[Usual], taken: Lookups) -> None:
        """A name that was said not to exist, and now has an answer, or the other way round."""
        names, last = taken.words("name"), taken.words("last_ns")
        missing = {name for name, usual in zip(names, ways, strict=True) if usual.followed}
        both = missing.intersection(name for name, usual in zip(names, ways, strict=True) if not usual.followed)
        for index, (name, usual) in enumerate(zip(names, ways, strict=True)):
            if name in both or (usual.may_count and self._is_contradicted(name, usual, last[index])):
                ways[index] = TOLD

    def _is_contradicted(self, name: int, usual: Usual, now_ns: int) -> bool:
        """Whether this answer says the opposite of the one before."""
        if usual.followed is None:
            return now_ns - self._missing.get(name, -WINDOW_NS) < WINDOW_NS
        before = self._answered.get(name) or self._answered_before.get(name)
        return before is not None and not is_missing(before[0].kind) and now_ns - before[1] < WINDOW_NS

    def _note_hops(self, hops: list[Hop]) -> None:
        """Take note of what came one by one: whose lookups may belong to it, and what servers asked."""
        for hop in hops:
            if hop.flags & RESPONSE:
                if _says_nothing(hop):
                    address = hop.rest[DADDR]
                    for rdtype in OTHER_HALF:
                        who = address, hop.netns if is_loopback(address) else 0, rdtype
                        self._search_lists.expect(who, None, hop.ts_ns)
            elif hop.flags & ORIGIN:
                self._exchanges.note(hop)

    def _see_pairs(self, ways: list[Usual], taken: Lookups, ahead: Lookups) -> list[tuple[int, int]]:
        """Find pairs: where one half is handed over, so is the other.

        Returns:
            The earlier and the later half of each; both are here.
        """
        pairs = taken.words("pair")
        sockets = set(pairs)
        ahead_of_it = sockets.intersection(ahead.words("pair"))
        if self._parted and not self._parted.isdisjoint(sockets):
            for index, pair in enumerate(pairs):
                if pair in self._parted:
                    ways[index] = TOLD
        self._parted = ahead_of_it
        if len(sockets) == len(pairs) and not ahead_of_it:
            return []
        halves: list[tuple[int, int]] = []
        newest: dict[int, int] = {}
        kinds, ids = taken.words("kind"), taken.halves("id")
        rdtypes = {kind: Kind.of(kind).rdtype for kind in set(kinds)}
        for index, pair in enumerate(pairs):
            if pair in ahead_of_it:
                ways[index] = TOLD
            before = newest.get(pair)
            newest[pair] = index
            if before is not None and OTHER_HALF.get(rdtypes[kinds[before]]) == rdtypes[kinds[index]]:
                halves.append((before, index))
                if ids[before] == ids[index]:
                    ways[before] = ways[index] = TOLD
        return halves

    def _count_pairs(self, ways: list[Usual], halves: list[tuple[int, int]]) -> None:
        later = Counter(ways[index] for _, index in halves)
        self._sums += [
            Sum(usual.label, pairs=number)
            for usual, number in later.items()
            if usual.label is not None and not usual.is_exchange
        ]

    def _count_exchanges(self, ways: list[Usual], taken: Lookups, exchanges: list[Exchange]) -> None:
        """Count how long servers waited for those that they asked."""
        counted = [pair for pair in exchanges if ways[pair.lookup].label is not None]
        if not counted:
            return
        first, last = taken.words("first_ns"), taken.words("last_ns")
        waited: dict[Usual, list[int]] = {}
        for lookup, asked in counted:
            waited.setdefault(ways[lookup], []).append(last[asked] - first[asked])
            self._table.counts.upstream_exchanges += ways[asked].is_exchange
        for usual, times in waited.items():
            self._times.upstream += times
            self._sums.append(Sum(usual.label, exchanges=len(times), upstream_ns=sum(times)))

    def _see_search_lists(self, ways: list[Usual], taken: Lookups, halves: dict[int, int]) -> Searches:
        """Find out what is to be told of names without records, and of those that were asked for behind them."""
        kinds = set(taken.words("kind"))
        if not self._search_lists.is_expecting and all(is_answer(Kind.of(kind)) for kind in kinds):
            return Searches()
        roles = {usual: usual.asked_as for usual in set(ways)}
        asked = [roles[usual] if usual is not TOLD else asked_by(taken.head(index)) for index, usual in enumerate(ways)]
        found = self._search_lists.find(asked, taken)
        for index in found.told:
            ways[index] = TOLD
        for index in found.followed:
            ways[index] = ways[index].followed or ways[index]
        other_half = halves | {later: before for before, later in halves.items()}
        for index, step in found.steps.items():
            usual = ways[index]
            if usual.label is None or step.is_bare or is_missing(usual.kind):
                continue
            if usual.is_forwarded or usual.is_exchange:
                ways[index] = TOLD
            elif is_answer(usual.kind):
                ways[index] = self._ways.search_ended(taken, index, usual, step.prefix)
            elif index not in found.followed and not _is_half_of_answer(ways, index, other_half):
                ways[index] = TOLD
        return found

    def _say_what_is_behind(self, searches: Searches, ways: list[Usual], taken: Lookups) -> None:
        """What came, and may come, behind names without records that are handed over."""
        first, last = taken.words("first_ns"), taken.words("last_ns")
        for index in searches.apart:
            if ways[index].label is not None:
                self._table.note_asked(ways[index].asked_as.who, first[index])
        for who, index in searches.newest.items():
            if ways[index].label is None:
                self._search_lists.expect(who, name_of(taken, index), last[index])

    def _count(self, ways: list[Usual], taken: Lookups) -> None:
        """Count those that have nothing to tell."""
        counted = [usual.label is not None for usual in ways]
        if not any(counted):
            return
        self._table.counts.sessions += sum(counted)
        self._table.counts.hops += sum(compress(taken.halves("hops"), counted))
        counted = self._without_exchanges(ways, counted, taken)
        columns = {name: taken.words(name) for name in ("first_ns", "asked_ns", "replied_ns", "last_ns", "name")}
        if not all(counted):
            ways = list(compress(ways, counted))
            columns = {name: list(compress(values, counted)) for name, values in columns.items()}
        first, arrived, replied, last, names = columns.values()
        self._remember(names, ways, last)
        self._add_sums(ways, list(map(sub, last, first)), last[-1])
        self._add_times(ways, (first, arrived, replied, last))

    @staticmethod
    def _without_exchanges(ways: list[Usual], counted: list[bool], taken: Lookups) -> list[bool]:
        """Leave out what is counted with the lookups that it was asked for; but a server that answered has answered."""
        exchanges = [index for index, usual in enumerate(ways) if usual.is_exchange and counted[index]]
        if not exchanges:
            return counted
        last = taken.words("last_ns")
        lookups = list(counted)
        for index in exchanges:
            lookups[index] = False
            backend = ways[index].backend
            if backend is not None:
                backend.count(last[index], 1)
        return lookups

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
            self._sums.append(Sum(usual.label, number, waited_ns=sum(together)))

    def _remember(self, names: list[int], ways: list[Usual], last: list[int]) -> None:
        """How each name was answered last."""
        self._answered.update(zip(names, zip(ways, last, strict=True), strict=True))
        if any(is_missing(usual.kind) for usual in set(ways)):
            for name, usual, ts_ns in zip(names, ways, last, strict=True):
                if is_missing(usual.kind):
                    self._note_missing(name, ts_ns)
        if len(self._answered) > MAX_NAMES:
            self._answered_before, self._answered = self._answered, {}

    def _note_missing(self, name: int, ts_ns: int) -> None:
        if len(self._missing) > MAX_NAMES:
            self._missing.clear()
        self._missing[name] = ts_ns

    def _note_told(self, taken: Lookups, index: int) -> None:
        """Take note of a lookup that is handed over."""
        head = taken.head(index)
        kind = Kind.of(head.kind)
        self._note_number(head)
        lifetime_ns = self._table.settings.lifetime_ns
        self._exchanges.note_waiting(head.question, head.server, head.replied_ns or head.first_ns + lifetime_ns)
        if not head.reply_bytes or kind.flags & RCODE not in ANSWERED:
            return
        counted = self._answered.pop(head.name, None) or self._answered_before.pop(head.name, None)
        if is_missing(kind):
            self._note_missing(head.name, head.last_ns)
        else:
            self._answered[head.name] = TOLD, head.last_ns
        if counted is None or counted[0] is TOLD or is_missing(counted[0].kind) == is_missing(kind):
            return
        usual, ts_ns = counted
        question = summarize(taken.query(index)).question
        if question is not None:
            scope = head.home if is_loopback(head.client) else 0
            told = Told(usual.kind.rdtype, usual.kind.flags & RCODE, usual.asked, ts_ns)
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


def _tell_together(ways: list[Usual], links: list[tuple[int, int]], onward: list[tuple[int, int]]) -> None:
    """Hand over all that is linked with something that is handed over; of `onward` the second with the first."""
    if all(usual.label is not None for usual in ways):
        return
    linked: dict[int, list[int]] = {}
    for first, second in links:
        linked.setdefault(first, []).append(second)
        linked.setdefault(second, []).append(first)
    for first, second in onward:
        linked.setdefault(first, []).append(second)
    spreading = [index for index in linked if ways[index].label is None]
    while spreading:
        for other in linked.get(spreading.pop(), ()):
            if ways[other].label is not None:
                ways[other] = TOLD
                spreading.append(other)


def _is_half_of_answer(ways: list[Usual], index: int, other_half: dict[int, int]) -> bool:
    """Whether a name without such records has others, as far as its client asked for them by the same socket."""
    if index not in other_half:
        return ways[index].kind.rdtype == AAAA
    return is_answer(ways[other_half[index]].kind)


def _says_nothing(reply: Hop) -> bool:
    """Whether a reply that came as a record has no records for its client, as far as it can be read."""
    message = reply.payload(reply.detail)[2 if reply.protocol == TCP else 0 :]
    return len(message) >= DNS_HEADER and (message[3] & RCODE != NOERROR or message[6:8] == NO_RECORDS)


def _has_plain_opt(reply: bytes) -> bool:
    """Whether a reply ends with an OPT record that says nothing: no extended rcode, no options."""
    opt = reply[-OPT_BYTES:]
    return opt[:3] == b"\0\0)" and opt[5:7] == b"\0\0" and opt[9:] == b"\0\0"
