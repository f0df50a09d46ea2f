"""Incidents: many failing lookups told once.

Failures with the same cause, at the same place, for the same workload or of the same server are one incident
(`agent.explain.incident_key`). It opens when it is worth somebody's time, is told again while it goes on, and ends
when it has not happened for a while. Nothing here does I/O or looks at a clock: the caller brings the time.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from typing import TYPE_CHECKING, NamedTuple

from agent.explain.blamed import PLACES, side_of
from agent.explain.causes import Side
from agent.explain.incident_key import rest_of, subject_of, traits_of
from agent.explain.troubled_pods import TroubledPods
from agent.explain.verdict import HIGH, LOW, MEDIUM, Confidence
from agent.session.model import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from agent.context.who import Who
    from agent.explain.incident_key import Asked, Key, Party, Subject
    from agent.explain.troubled_pods import PodTrouble
    from agent.explain.verdict import Cause, Verdict
    from agent.hop.endpoint import Endpoint
    from agent.session.outcome import Outcome

SLOT_NS = 10 * SECOND_NS
"""Failures are counted by slots of time before an incident opens."""


class Threshold(NamedTuple):
    """What opens an incident: so many failing lookups within so many slots, the present one included."""

    lookups: int
    slots: int
    share: float
    """Of all lookups of this client, or of this server, in that time."""
    spread_ns: int = 0
    """From the first of them to the last at least."""


LOST_SHARE = 0.01
"""Below one lookup in a hundred a client notices nothing: it asks again. The alerts begin at the same share."""
THRESHOLDS = (
    Threshold(10, 2, LOST_SHARE),
    Threshold(5, 60, LOST_SHARE, spread_ns=60 * SECOND_NS),
    Threshold(300, 6, 0.0),
)
"""Ten within 10 to 20 s: a resolver gives up after two or three attempts, so more than one lookup failed for good.
Five within ten minutes and over more than one: a client that asks once a minute and is never answered, and no single
event such as the restart of a server. Five a second for a minute: so many are somebody's trouble even among a hundred
times as many that go well."""
WINDOW_NS = max(threshold.slots for threshold in THRESHOLDS) * SLOT_NS
"""What is older opens nothing any more."""
UPDATE_NS = 60 * SECOND_NS
"""An incident that goes on is told so often: as often as people look."""
QUIET_NS = 60 * SECOND_NS
"""While its client or server goes on asking or answering, an incident without a failure for so long is over."""
QUIET_GAPS = 5
"""One whose failures are far apart has to be quiet for so many of their gaps,"""
MAX_QUIET_NS = 300 * SECOND_NS
"""but not for longer than that."""
SILENCE_NS = 900 * SECOND_NS
"""Where nobody asks any more, nothing shows that it is over. After so long it is no news all the same."""
NAMES_NS = 10 * SECOND_NS
"""Names of the ends of lookups that are alike are looked up so often."""
MAX_APART = 50
"""Incidents of one cause that are told apart, those that have not opened among them. Others count as one together."""
MAX_CLIENTS = 128
"""Clients of one incident that are told apart: more than a node has pods, as a rule."""
MAX_COUNTED = 4096
"""Clients, and servers, whose lookups are counted."""
MAX_TRAITS = 2048
MAX_EXAMPLES = 3
"""One for each client: a person looks at one or two."""
MAX_RECENT = 20
"""Incidents that are over and still shown."""
EVERYTHING = ("node",)
"""All lookups of the node."""
SURE = {HIGH: 2, MEDIUM: 1, LOW: 0}


class State(StrEnum):
    """What there is to tell of an incident."""

    OPENED = "Opened"
    UPDATED = "Updated"
    ENDED = "Ended"


URGENCY = (State.OPENED, State.ENDED, State.UPDATED)
"""What is told first when not everything can be told at once."""


class Example(NamedTuple):
    """What leads to one session line of an incident."""

    time: str
    """As the line has it: the wall clock may be set, and the line is not changed."""
    client: str
    transaction_id: int | None
    name: str | None
    """As the line has it."""
    rdtype: str | None


class Account(NamedTuple):
    """An incident as it is at one moment."""

    identifier: str
    state: State
    key: Key
    cause: Cause
    """The latest."""
    confidence: Confidence
    """The lowest."""
    client: Party | None
    """None if there are several."""
    asked: Asked | None
    """Likewise."""
    lookups: int
    clients: int
    first_ns: int
    last_ns: int
    """First packets of the first and of the last failing lookup, in the time of the records."""
    share: float | None
    """Of the lookups of this client, of this server, or of the node, up to the last that failed; None where they could
    not all be counted."""
    held_back: int
    """Of its session lines."""
    examples: tuple[Example, ...]
    pods: tuple[PodTrouble, ...]
    """Pods of this node whose lookups they are, as far as they are known; none of those in the node's own network."""


class Counts:
    """How many lookups each of a bounded number of clients or servers made or got."""

    def __init__(self, most: int = MAX_COUNTED) -> None:
        """Begin.

        Args:
            most: So many are counted at once; one more, and the count of the oldest is lost.
        """
        self._counts: dict[Hashable, int] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, who: Hashable, number: int = 1) -> None:
        """Some more."""
        try:
            self._counts[who] += number
        except KeyError:
            if len(self._counts) >= self._most:
                del self._counts[next(iter(self._counts))]
            self._counts[who] = number

    def of(self, who: Hashable) -> int:
        """So many since its count began."""
        return self._counts.get(who, 0)


@dataclass(slots=True)
class _Slot:
    """Failures of one slot of time."""

    first_ns: int
    begun_ns: int
    whole: int
    """Lookups before."""
    lookups: int = 0
    pods: TroubledPods = field(default_factory=TroubledPods)


@dataclass(slots=True, eq=False)
class Incident:
    """One incident, or what may become one."""

    key: Key
    cause: Cause
    client: Party | None
    asked: Asked | None
    first_ns: int
    noted_ns: int
    """When it was last seen, by the caller's time; `last_ns` is when the lookup began."""
    last_ns: int = 0
    lookups: int = 0
    """Since it opened, and in the slots before."""
    confidence: Confidence = HIGH
    wholes: dict[Hashable, int] = field(default_factory=dict)
    """Whose lookups its failures are a share of, and how many each had before."""
    knows_whole: bool = True
    """Whether there was room for all of them."""
    base: int = 0
    clients: set[Hashable] = field(default_factory=set)
    slots: dict[int, _Slot] = field(default_factory=dict)
    opened: bool = False
    told_ns: int | None = None
    """When it was told last; None: not yet."""
    told_lookups: int = 0
    whole_at_last: int = 0
    held_back: int = 0
    is_wanted: bool = False
    """Whether a lookup of it passes the filters of whoever reads the lines."""
    examples: dict[str, Example] = field(default_factory=dict)
    """By client."""
    pods: TroubledPods = field(default_factory=TroubledPods)
    """Since it opened, and in the slots before."""

    @property
    def identifier(self) -> str:
        """The same for everything that is told of it, and for no other."""
        return blake2s(repr((self.key, self.first_ns)).encode(), digest_size=6).hexdigest()

    @property
    def wants_examples(self) -> bool:
        """Whether there is room for one more."""
        return len(self.examples) < MAX_EXAMPLES

    def show(self, example: Example) -> None:
        """Take note of a session line that was printed."""
        if self.wants_examples:
            self.examples.setdefault(example.client.rpartition(":")[0], example)


class Incidents:
    """All incidents of a node."""

    def __init__(self, max_apart: int = MAX_APART) -> None:
        """Begin without any.

        Args:
            max_apart: How many of each cause are told apart.
        """
        self._max_apart = max_apart
        self._known: dict[str, OrderedDict[Key, Incident]] = {}
        """By cause, each from the one not seen for longest."""
        self._subjects: OrderedDict[Hashable, tuple[int, Subject]] = OrderedDict()
        self._by_client, self._by_server, self._in_all = Counts(), Counts(), Counts()
        self._open: dict[int, Incident] = {}
        self.opened: Counter[str] = Counter()
        """How many opened so far, by cause."""
        self.recent: deque[Account] = deque(maxlen=MAX_RECENT)
        """Those that ended last."""

    def note(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who], now_ns: int) -> Incident | None:
        """Take note of a lookup that is over.

        Args:
            outcome: Of any lookup: those that went well count, too.
            verdict: What is said of it.
            who: Asked only about failures, and not about each.
            now_ns: Only grows.

        Returns:
            The incident that it belongs to, whether that has opened or not; None where nobody is blamed for anything.
        """
        client = (outcome.client_netns, outcome.session.key.client.address)
        self._by_client.count(client)
        self._by_server.count(outcome.server)
        self._in_all.count(EVERYTHING)
        cause = verdict.cause
        if cause is None or side_of(cause) is Side.AGENT:
            return None
        subject = self._subject(outcome, cause, who, now_ns)
        incident = self._incident(subject, cause, outcome, now_ns)
        self._add(incident, subject, outcome, client, now_ns)
        if SURE[cause.confidence] < SURE[incident.confidence]:
            incident.confidence = cause.confidence
        incident.cause = cause
        if not incident.opened and self._is_due(incident, now_ns):
            self._begin(incident)
        return incident

    def count(self, client: tuple[int | None, bytes], server: Endpoint, lookups: int) -> None:
        """Count lookups that went well.

        Args:
            client: Its namespace, if it is on this node, and its address.
            server: That was asked.
            lookups: How many.
        """
        self._by_client.count(client, lookups)
        self._by_server.count(server, lookups)
        self._in_all.count(EVERYTHING, lookups)

    def due(self, now_ns: int, most: int | None = None) -> list[tuple[Incident, Account]]:
        """What has to be told now.

        Args:
            now_ns: Only grows.
            most: Not more than so many; the others remain due. None: all.
        """
        states = ((self._state(incident, now_ns), incident) for incident in list(self._open.values()))
        due = [(state, incident) for state, incident in states if state is not None]
        due.sort(key=lambda entry: URGENCY.index(entry[0]))
        return [(incident, self._tell(incident, state, now_ns)) for state, incident in due[:most]]

    def accounts(self) -> list[Account]:
        """All open incidents now, those with most lookups first."""
        going = (
            (incident, State.OPENED if incident.told_ns is None else State.UPDATED) for incident in self._open.values()
        )
        accounts = [self._account(incident, state) for incident, state in going]
        return sorted(accounts, key=lambda account: account.lookups, reverse=True)

    def open_by_cause(self) -> Counter[str]:
        """How many are open; any thread may ask."""
        return Counter(incident.key.cause for incident in list(self._open.values()))

    def _subject(self, outcome: Outcome, cause: Cause, who: Callable[[], Who], now_ns: int) -> Subject:
        """The same for lookups that are alike, without asking for their names each time."""
        traits = traits_of(outcome, cause)
        found = self._subjects.get(traits)
        if found is not None and now_ns - found[0] < NAMES_NS:
            return found[1]
        known = who()
        subject = subject_of(outcome, cause, known)
        if found is not None and found[1].key != subject.key:
            self._rename(found[1].key, subject.key)
        # The name of a new pod is asked for again by the next lookup.
        self._subjects[traits] = (now_ns - NAMES_NS if known.expected else now_ns), subject
        self._subjects.move_to_end(traits)
        if len(self._subjects) > MAX_TRAITS:
            self._subjects.popitem(last=False)
        return subject

    def _rename(self, old: Key, new: Key) -> None:
        """The name of a client became known after its first lookups: what is known of it remains."""
        kind = self._known.get(old.cause, OrderedDict())
        if old.client is None or old.client.address is None or old not in kind or new in kind:
            return
        incident = kind[new] = kind.pop(old)
        if not incident.opened:
            incident.key = new
            incident.client = new.client

    def _incident(self, subject: Subject, cause: Cause, outcome: Outcome, now_ns: int) -> Incident:
        key, kind = subject.key, self._known.setdefault(subject.key.cause, OrderedDict())
        if key not in kind and len(kind) >= self._max_apart and not self._forgets(kind, now_ns):
            key = rest_of(key)
        incident = kind.get(key)
        if incident is None or (not incident.opened and now_ns - incident.noted_ns >= WINDOW_NS):
            incident = Incident(key, cause, subject.client, subject.asked, outcome.session.first_ns, now_ns)
            kind[key] = incident
        kind.move_to_end(key)
        return incident

    def _forgets(self, kind: OrderedDict[Key, Incident], now_ns: int) -> bool:
        """Make room, if there is one that did not open and was not seen lately."""
        stale = (
            key for key, incident in kind.items() if not incident.opened and now_ns - incident.noted_ns >= WINDOW_NS
        )
        key = next(stale, None)
        return key is not None and kind.pop(key) is not None

    def _add(self, incident: Incident, subject: Subject, outcome: Outcome, client: Hashable, now_ns: int) -> None:
        self._follow(incident, outcome, client)
        if len(incident.clients) < MAX_CLIENTS:
            incident.clients.add(client)
        if len(incident.clients) > 1 and incident.client != subject.client:
            incident.client = None
        elif len(incident.clients) == 1:
            incident.client = subject.client
        incident.asked = incident.asked and incident.asked.common(subject.asked)
        incident.noted_ns, incident.last_ns = now_ns, max(incident.last_ns, outcome.session.first_ns)
        incident.whole_at_last = self._whole(incident)
        incident.lookups += 1
        if not incident.opened:
            self._fill(incident, subject, outcome, now_ns)
        elif subject.pod is not None:
            incident.pods.note(subject.pod, outcome.session.first_ns)

    def _follow(self, incident: Incident, outcome: Outcome, client: Hashable) -> None:
        """Remember whose lookups this failure is one of, and how many there were before."""
        counts, whose = self._counted(incident, outcome, client)
        if whose in incident.wholes:
            return
        if len(incident.wholes) < MAX_CLIENTS:
            incident.wholes[whose] = counts.of(whose) - 1
        else:
            incident.knows_whole = False

    def _counted(self, incident: Incident, outcome: Outcome, client: Hashable) -> tuple[Counts, Hashable]:
        side = incident.key.side
        if side is Side.CLIENT:
            return self._by_client, client
        return (self._in_all, EVERYTHING) if side in PLACES else (self._by_server, outcome.server)

    def _whole(self, incident: Incident) -> int:
        """How many lookups its clients made, or its servers got, since each was first seen in it."""
        side = incident.key.side
        counts = self._by_client if side is Side.CLIENT else self._in_all if side in PLACES else self._by_server
        return sum(counts.of(whose) - before for whose, before in incident.wholes.items())

    def _fill(self, incident: Incident, subject: Subject, outcome: Outcome, now_ns: int) -> None:
        """Count a failure in its slot, and forget slots that are too old."""
        number = now_ns // SLOT_NS
        for old in [slot_number for slot_number in incident.slots if (number - slot_number) * SLOT_NS >= WINDOW_NS]:
            incident.lookups -= incident.slots.pop(old).lookups
        first_ns = outcome.session.first_ns
        slot = incident.slots.setdefault(number, _Slot(first_ns, now_ns, incident.whole_at_last - 1))
        slot.lookups += 1
        if subject.pod is not None:
            slot.pods.note(subject.pod, first_ns)
        oldest = next(iter(incident.slots.values()))
        incident.first_ns, incident.base = oldest.first_ns, oldest.whole

    def _is_due(self, incident: Incident, now_ns: int) -> bool:
        return any(self._reaches(incident, threshold, now_ns) for threshold in THRESHOLDS)

    def _reaches(self, incident: Incident, threshold: Threshold, now_ns: int) -> bool:
        since = now_ns // SLOT_NS - threshold.slots
        slots = [slot for number, slot in incident.slots.items() if number > since]
        lookups = sum(slot.lookups for slot in slots)
        if lookups < threshold.lookups or now_ns - slots[0].begun_ns < threshold.spread_ns:
            return False
        return not incident.knows_whole or lookups >= threshold.share * (incident.whole_at_last - slots[0].whole)

    def _begin(self, incident: Incident) -> None:
        incident.opened = True
        for slot in incident.slots.values():
            incident.pods.take(slot.pods)
        incident.slots.clear()
        self._open[id(incident)] = incident
        self.opened[incident.key.cause] += 1

    def _state(self, incident: Incident, now_ns: int) -> State | None:
        """What is to be told of it, if anything."""
        if incident.told_ns is None:
            return State.OPENED
        if self._is_over(incident, now_ns):
            return State.ENDED
        is_news = incident.lookups > incident.told_lookups and now_ns - incident.told_ns >= UPDATE_NS
        return State.UPDATED if is_news else None

    def _is_over(self, incident: Incident, now_ns: int) -> bool:
        silent_ns = now_ns - incident.noted_ns
        if silent_ns < QUIET_NS:
            return False
        gap_ns = (incident.last_ns - incident.first_ns) // max(1, incident.lookups - 1)
        quiet_ns = min(MAX_QUIET_NS, max(QUIET_NS, QUIET_GAPS * gap_ns))
        goes_on = self._whole(incident) > incident.whole_at_last
        return silent_ns >= (quiet_ns if goes_on else SILENCE_NS)

    def _tell(self, incident: Incident, state: State, now_ns: int) -> Account:
        account = self._account(incident, state)
        incident.told_ns, incident.told_lookups = now_ns, incident.lookups
        if state is State.ENDED:
            del self._open[id(incident)]
            kind = self._known[incident.key.cause]
            for key in [key for key, known in kind.items() if known is incident]:
                del kind[key]
            self.recent.append(account)
        return account

    def _account(self, incident: Incident, state: State) -> Account:
        whole = incident.whole_at_last - incident.base
        return Account(
            identifier=incident.identifier,
            state=state,
            key=incident.key,
            cause=incident.cause,
            confidence=incident.confidence,
            client=incident.client,
            asked=incident.asked,
            lookups=incident.lookups,
            clients=len(incident.clients),
            first_ns=incident.first_ns,
            last_ns=incident.last_ns,
            share=incident.lookups / whole if incident.knows_whole and whole >= incident.lookups else None,
            held_back=incident.held_back,
            examples=tuple(incident.examples.values()),
            pods=incident.pods.all(),
        )
