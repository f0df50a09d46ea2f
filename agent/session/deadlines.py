"""When to look at an open session: says what is due, and decides nothing."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.session.model import Session, Settings


class Deadlines:
    """The times of open sessions; closed ones may come up, too."""

    def __init__(self, settings: Settings) -> None:
        self._lifetime_ns = settings.lifetime_ns
        self._first_look_ns = 2 * settings.linger_ns
        # Most sessions are answered before their first look and closed at it; the heap is for the others.
        self._first_looks: deque[tuple[int, Session]] = deque()
        self._later: list[tuple[int, int, Session]] = []
        self._sequence = count()

    def begin(self, session: Session, now_ns: int) -> None:
        """A session was opened."""
        self._first_looks.append((now_ns + self._first_look_ns, session))

    def again(self, session: Session) -> None:
        """Its time has not come: look again at its deadline."""
        heapq.heappush(self._later, (session.deadline_ns, next(self._sequence), session))

    def wait_until(self, session: Session, deadline_ns: int) -> None:
        """Set the deadline, as far as the lifetime of a session allows."""
        deadline_ns = min(deadline_ns, session.first_ns + self._lifetime_ns)
        # It may have been looked at already, and stand in the heap for a later time.
        too_late = session.first_ns + self._first_look_ns < deadline_ns < session.deadline_ns
        session.deadline_ns = deadline_ns
        if too_late:
            self.again(session)

    def next_due(self, now_ns: int) -> Session | None:
        """The next session to look at; None when none is due."""
        looks, later = self._first_looks, self._later
        if looks and looks[0][0] <= now_ns:
            return looks.popleft()[1]
        if later and later[0][0] <= now_ns:
            return heapq.heappop(later)[2]
        return None
