"""The frames of captures in the order of time, and a time that never goes back.

Each processor hands its frames over for itself, so those of one capture are a little out of order. Clocks are set,
and files are joined in any order: then the stamps step back or forth in the middle of a file, while the packets follow
one another as before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.capturefile.frames import Frame
    from agent.capturefile.inputs import Input

SETTLE_NS = 50_000_000
"""Frames of one capture may be out of order by so much."""
MAX_WAITING = 8192
"""Frames that wait for earlier ones, and their bytes."""
MAX_WAITING_BYTES = 16 << 20
FRAME_BYTES = 256
"""What a frame weighs beside its bytes."""
STEP_NS = 1_000_000_000
"""Steps back by less are taken for disorder: the frame is late, the clock was not set."""
LEAP_NS = 60_000_000_000
"""If a reply comes so long after its query, the clock was set in between: nothing answers so late."""
MAX_STEPS = 256
"""Steps that are remembered: sessions are told with the clock at their beginning."""
RECENT_STEPS = 4
"""Clocks that a stamp may belong to: a few stray frames do not move the time for good."""


class Waiting(NamedTuple):
    """A frame and where it comes from."""

    source: Input
    frame: Frame


class Clock:
    """Makes one time, which only goes forward, of stamps that step.

    A step back by more than disorder explains does not take the time back: the frame follows the one before. Stamps
    that fit an earlier clock again (one stray frame, files joined) are read by that clock.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self.steps = 0
        """How often the clock was set."""
        self.offset_ns = 0
        """What is added to a stamp now."""
        self._recent: deque[int] = deque([0], maxlen=RECENT_STEPS)
        self._since: list[int] = [0]
        self._offsets: list[int] = [0]

    def read(self, stamp_ns: int) -> int:
        """The time of a frame with this stamp, which comes next."""
        ahead = stamp_ns + self.offset_ns - self.now_ns
        if not -STEP_NS <= ahead <= STEP_NS and self.now_ns:
            ahead = self._follow(stamp_ns, ahead)
        if ahead > 0:
            self.now_ns += ahead
        return stamp_ns + self.offset_ns

    def _follow(self, stamp_ns: int, ahead: int) -> int:
        """Find the clock that the stamp fits best: one that leads back least, then one that leaps least."""
        best = min(
            (stamp_ns + offset - self.now_ns for offset in self._recent if stamp_ns + offset - self.now_ns >= -STEP_NS),
            key=abs,
            default=None,
        )
        if best is None:
            self.step_to(stamp_ns)
            return 0
        if best != ahead:
            self._set(best + self.now_ns - stamp_ns)
        return best

    def _set(self, offset_ns: int) -> None:
        self.offset_ns = offset_ns
        if offset_ns in self._recent:
            self._recent.remove(offset_ns)
        self._recent.append(offset_ns)
        if len(self._since) < MAX_STEPS:
            self._since.append(self.now_ns)
            self._offsets.append(offset_ns)
        else:
            self._since, self._offsets = [*self._since[1:], self.now_ns], [*self._offsets[1:], offset_ns]

    def leaps(self, stamp_ns: int) -> bool:
        """Whether this stamp leads further ahead than any reply comes."""
        return self.now_ns > 0 and min(stamp_ns + offset - self.now_ns for offset in self._recent) > LEAP_NS

    def step_to(self, stamp_ns: int) -> None:
        """The clock was set: this stamp belongs to the time that it is."""
        self.steps += 1
        self._set(self.now_ns - stamp_ns)

    @property
    def stepped(self) -> bool:
        """Whether stamps and times differ anywhere."""
        return len(self._offsets) > 1

    def stamp_offset(self, time_ns: int) -> int:
        """What is to be added to a time to get the stamp of that moment."""
        return -self._offsets[max(0, bisect_right(self._since, time_ns) - 1)]


def in_order(
    frames: Iterator[tuple[Input, Frame]], clock: Clock, is_awaited: Callable[[Frame], bool]
) -> Iterator[Waiting]:
    """The frames by time, each held back until no earlier one is to be expected.

    Bounded in frames and bytes: beyond that the oldest go on. Packets of our own recordings stay where they are,
    because later ones refer to what earlier ones say.

    Args:
        frames: as they stand in their files.
        clock: makes the time of their stamps; frames come out with that time.
        is_awaited: whether a frame answers something that was asked by the frames that have come out.
    """
    waiting: deque[Waiting] = deque()
    waiting_bytes = 0
    for source, frame in frames:
        if frame.ts_ns + clock.offset_ns - clock.now_ns > LEAP_NS and clock.leaps(frame.ts_ns):
            yield from waiting
            waiting.clear()
            waiting_bytes = 0
            if is_awaited(frame):
                clock.step_to(frame.ts_ns)
        time_ns = clock.read(frame.ts_ns)
        if clock.offset_ns:
            frame = frame._replace(ts_ns=time_ns)  # noqa: PLW2901  the same frame, in our time
        if not waiting or waiting[-1].frame.ts_ns <= time_ns:
            waiting.append(Waiting(source, frame))
        else:
            _put(waiting, Waiting(source, frame))
        waiting_bytes += len(frame.data) + FRAME_BYTES
        until_ns = clock.now_ns - SETTLE_NS
        while waiting and (
            waiting[0].frame.ts_ns <= until_ns or len(waiting) > MAX_WAITING or waiting_bytes > MAX_WAITING_BYTES
        ):
            first = waiting.popleft()
            waiting_bytes -= len(first.frame.data) + FRAME_BYTES
            yield first
    yield from waiting


def _put(waiting: deque[Waiting], late: Waiting) -> None:
    """Where it belongs, behind those of the same time."""
    at, time_ns = len(waiting), late.frame.ts_ns
    if not late.frame.comments:
        while at and waiting[at - 1].frame.ts_ns > time_ns:
            at -= 1
    waiting.insert(at, late)
