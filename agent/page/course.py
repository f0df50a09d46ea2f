"""How an incident went on, as a few numbers over time, however long it lasts."""

from __future__ import annotations

from typing import NamedTuple

from agent.session.model import SECOND_NS

STEP_NS = 5 * SECOND_NS
"""The first width of a part."""
MAX_PARTS = 60
"""When there are more, two and two become one: five minutes in parts of 5 s, a day in parts of 43 minutes at most."""


class Parts(NamedTuple):
    """Lookups of parts of time of equal width."""

    lookups: list[float]
    """Of each, the oldest first."""
    step_ns: int
    """The width of one."""
    early: int
    """So many of the first ones are an average."""


class Course:
    """Lookups of one incident over time.

    Those before anybody followed it are spread evenly over the time that they took: when each was is not known.

    Args:
        first_ns: When its first lookup was.
        now_ns: The present.
        lookups: How many there were until now.
    """

    __slots__ = ("_begun_ns", "_seen", "parts")

    def __init__(self, first_ns: int, now_ns: int, lookups: int) -> None:
        self._begun_ns = min(first_ns, now_ns)
        step_ns = STEP_NS
        while (now_ns - self._begun_ns) // step_ns >= MAX_PARTS:
            step_ns *= 2
        number = (now_ns - self._begun_ns) // step_ns + 1
        self.parts = Parts([lookups / number] * number, step_ns, number)
        """Any thread may look."""
        self._seen = lookups

    def follow(self, now_ns: int, lookups: int) -> None:
        """Take note of how many there are by now; both only grow."""
        while (part := (now_ns - self._begun_ns) // self.parts.step_ns) >= MAX_PARTS:
            self.parts = _halved(self.parts)
        counted = self.parts.lookups
        counted += [0.0] * (part + 1 - len(counted))
        counted[part] += lookups - self._seen
        self._seen = lookups


def _halved(parts: Parts) -> Parts:
    even = parts.lookups + [0.0] * (len(parts.lookups) % 2)
    pairs = [earlier + later for earlier, later in zip(even[::2], even[1::2], strict=True)]
    return Parts(pairs, 2 * parts.step_ns, (parts.early + 1) // 2)
