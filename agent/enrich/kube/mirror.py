"""What one watch has told so far, and the steps in which it tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


class Keyed(Protocol):
    """Facts of an object that can be told from the others'."""

    @property
    def key(self) -> Hashable:
        """What it is known by."""


Facts = TypeVar("Facts", bound=Keyed)

Selection = frozenset[str]
"""Names that a list is restricted to; what they are names of is the resource's to know."""
UNRESTRICTED: Selection = frozenset()


class Step(NamedTuple, Generic[Facts]):
    """What a watch hands over at once. A list comes in several steps, an event is one."""

    ts_ns: int
    """Wall clock, when it was received."""
    put: tuple[Facts, ...] = ()
    """They are there now, new or changed."""
    gone: tuple[Facts, ...] = ()
    """They are there no more."""
    restart: bool = False
    """A list begins with this."""
    complete: bool = False
    """The list ends with this: what was not in it is not there."""
    selection: Selection | None = None
    """What the list was restricted to; None when nothing is wanted."""


class Mirror(Generic[Facts]):
    """The objects of one watch, as they are known here. It tells of each change, one by one."""

    def __init__(self, changed: Callable[[Facts | None, Facts | None, int], None], limit: int) -> None:
        """Begin with nothing.

        Args:
            changed: Called with what was known, what is known now, and the time; None stands for nothing.
            limit: How many objects are kept; more are left out, and counted.
        """
        self.synced = False
        self.selection: Selection | None = None
        self.left_out = 0
        self._changed = changed
        self._limit = limit
        self._facts: dict[Hashable, Facts] = {}
        self._listed: set[Hashable] | None = None

    def __len__(self) -> int:
        return len(self._facts)

    def __iter__(self) -> Iterator[Facts]:
        return iter(self._facts.values())

    def get(self, key: Hashable) -> Facts | None:
        """The object of that key."""
        return self._facts.get(key)

    def apply(self, step: Step[Facts]) -> None:
        """Take in what the watch hands over."""
        if step.restart:
            self._listed = set()
            self.left_out = 0
        for facts in step.put:
            self._put(facts, step.ts_ns)
        for facts in step.gone:
            self._remove(facts.key, step.ts_ns)
        if step.complete:
            self._finish(step)

    def _put(self, facts: Facts, ts_ns: int) -> None:
        old = self._facts.get(facts.key)
        if old is None and len(self._facts) >= self._limit:
            self.left_out += 1
            return
        if self._listed is not None:
            self._listed.add(facts.key)
        if old != facts:
            self._facts[facts.key] = facts
            self._changed(old, facts, ts_ns)

    def _remove(self, key: Hashable, ts_ns: int) -> None:
        old = self._facts.pop(key, None)
        if old is not None:
            self._changed(old, None, ts_ns)

    def _finish(self, step: Step[Facts]) -> None:
        listed = self._listed or set()
        self._listed = None
        for key in [key for key in self._facts if key not in listed]:
            self._remove(key, step.ts_ns)
        self.selection = step.selection
        self.synced = step.selection is not None
