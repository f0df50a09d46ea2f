"""What an operator reads on stderr about the agent itself: a line when something begins to fail, one when it is over.

There is no line for each try in between. The pages of the HTTP port say the same, but whoever looks at a pod that is
not ready has `kubectl logs`, and no curl in the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agent.enrich.kube.troubles import event_trouble, troubles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent.export.metrics.sources import Sources

LOOK_SECONDS = 1.0
SETTLE_SECONDS = 10.0
"""A failure that is away for less was never away: an API server that accepts a watch and drops it at once."""
READY = "ready"
EVENTS = "events"


class Notice(NamedTuple):
    """What there is to say of something that lasts."""

    begun: str
    over: str
    """How long it lasted is added to it."""
    settle_seconds: float = 0.0
    """So long it has to be away before it is over."""


@dataclass(slots=True)
class _Going:
    notice: Notice
    since: float
    gone: float | None = None


class Announcements:
    """Turns what is there at the moment into what is worth a line. Pure: the caller brings the time, in seconds."""

    def __init__(self) -> None:
        self._going: dict[str, _Going] = {}

    def update(self, now: float, notices: Mapping[str, Notice]) -> list[str]:
        """The lines to be said now.

        Args:
            now: Only grows.
            notices: Everything that is there now, each by a key that remains the same as long as it does.
        """
        return [*self._over(now, notices), *self._begun(now, notices)]

    def _begun(self, now: float, notices: Mapping[str, Notice]) -> Iterator[str]:
        for key, notice in notices.items():
            going = self._going.setdefault(key, _Going(notice, now))
            going.gone = None
            if going.notice is notice:
                yield notice.begun

    def _over(self, now: float, notices: Mapping[str, Notice]) -> Iterator[str]:
        for key, going in list(self._going.items()):
            if key in notices:
                continue
            gone = going.gone = now if going.gone is None else going.gone
            if now - gone >= going.notice.settle_seconds:
                del self._going[key]
                yield f"{going.notice.over} after {gone - going.since:.0f} s"


class StateAnnouncer:
    """Looks at readiness and at the Kubernetes API, once a second at most."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._announcements = Announcements()
        self._looked = float("-inf")

    def lines(self, now: float) -> list[str]:
        """What is to be said now; `now` is in seconds, and only grows."""
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        return self._announcements.update(now, self._notices())

    def _notices(self) -> dict[str, Notice]:
        agent = self._sources.agent
        watches = () if agent is None or agent.watches is None else agent.watches()
        notices = {
            key: Notice(f"{trouble.title}: {trouble.details}", f"{trouble.title}: over", SETTLE_SECONDS)
            for key, trouble in troubles(watches).items()
        }
        failure = None if agent is None or agent.events is None else agent.events.health.failure
        if failure is not None:
            trouble = event_trouble(failure)
            notices[EVENTS] = Notice(f"{trouble.title}: {trouble.details}", f"{trouble.title}: over", SETTLE_SECONDS)
        missing = self._sources.waiting_for()
        if missing:
            notices[READY] = Notice(f"not ready: {'; '.join(missing)}", "ready")
        return notices
