"""What each client was told of a name last: an answer that contradicts the one before shows that only side by side."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from agent.hop.record import DADDR
from agent.session.model import SECOND_NS
from agent.session.outcome import Told
from agent.wire.rcodes import ANSWERED

if TYPE_CHECKING:
    from agent.session.outcome import Outcome

MAX_ANSWERS = 8192
"""Clients and names that are remembered; beyond that the one that was asked about longest ago is forgotten."""
WINDOW_NS = 5 * SECOND_NS
"""A name may come into being, or go; within so short a time it hardly does just between two questions."""

Place = tuple[bytes, int, bytes, int]
"""Client's address and scope, name and class."""


class LastAnswers:
    """The newest answer for each client and name: one look for each lookup that ends well.

    Loopback addresses are many clients', one in each namespace, so the key's scope belongs to the client.
    """

    def __init__(self) -> None:
        self._told: OrderedDict[Place, Told] = OrderedDict()

    def note(self, place: Place, told: Told) -> None:
        """Take note of an answer that was given before those to come."""
        self._told[place] = told
        self._told.move_to_end(place)
        if len(self._told) > MAX_ANSWERS:
            self._told.popitem(last=False)

    def contradicted_by(self, outcome: Outcome) -> Told | None:
        """Take note of an answer; the one before it, if that says otherwise whether the name exists."""
        session, rcode = outcome.session, outcome.rcode
        queries = session.queries.transmissions
        if rcode not in ANSWERED or not outcome.delivered or not queries:
            return None
        key = session.key
        told = Told(key.rdtype, rcode, queries[0].hops[0].rest[DADDR], session.last_ns)
        place = key.client.address, key.scope, key.name, key.rdclass
        # Taken out and put in again: the order is that of the newest answers.
        before = self._told.pop(place, None)
        if before is None:
            self._told[place] = told
            if len(self._told) > MAX_ANSWERS:
                self._told.popitem(last=False)
            return None
        # Of lookups that are counted without a session the answer is known at once, of others only when they are over.
        is_newer = told.ts_ns >= before.ts_ns
        self._told[place] = told if is_newer else before
        return before if is_newer and before.rcode != rcode and told.ts_ns - before.ts_ns <= WINDOW_NS else None
