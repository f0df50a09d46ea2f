"""How the watches fare: plain numbers, for readiness and metrics."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agent.enrich.kube.errors import KubeError

GAP_SECONDS = 15.0
"""So long a watch may be between two connections, and what it told still counts as current."""


class Failure(NamedTuple):
    """What keeps a watch from its work."""

    reason: str
    """One word, as in `WatchHealth.errors`."""
    text: str
    """In words."""


@dataclass(slots=True)
class WatchHealth:
    """Of one watch. Its thread writes, except `synced`, `objects` and `left_out`; everybody may read."""

    name: str
    """Stable, for a label: `pods-here`, `services`, …"""
    required: bool
    """Whether the agent is not ready without it."""
    resource: str = ""
    """What the API calls the objects: `pods`, `services`, …; several watches may follow parts of the same."""
    wanted: bool = False
    """Whether it is needed at all at present."""
    synced: bool = False
    """Whether all that there was has been taken in, once at least."""
    connected: bool = False
    """Whether a watch is open, and has not been silent for too long. Between two watches it is not, for a moment."""
    last_contact_seconds: float = 0.0
    """Unix time of the last bytes from the API server; 0 before the first."""
    lists: int = 0
    """How often everything was asked for: again when the API server forgot too much (410), or others are wanted."""
    watches: int = 0
    """How often a watch was opened; every few minutes one ends as agreed."""
    silences: int = 0
    """How often a watch was opened anew because nothing came: now and then where nothing happens."""
    events: Counter[str] = field(default_factory=Counter)
    """By their type: ADDED, MODIFIED, DELETED, BOOKMARK."""
    errors: Counter[str] = field(default_factory=Counter)
    """By one word: Unreachable, Silent, Untrusted, Garbled, NotConfigured, or metav1.StatusReason: Forbidden …"""
    failure: Failure | None = None
    """The newest of them; None after it was overcome."""
    undecodable: int = 0
    """Objects that could not be read, and were left out."""
    objects: int = 0
    """Known at present."""
    left_out: int = 0
    """Not kept because there are too many."""

    @property
    def is_current(self) -> bool:
        """Whether the API server was heard of just now, so that what it did not tell is not there."""
        return self.synced and (self.connected or time.time() - self.last_contact_seconds < GAP_SECONDS)

    @property
    def last_error(self) -> str | None:
        """The newest error in words; None after it was overcome."""
        failure = self.failure
        return None if failure is None else failure.text

    def failed(self, error: KubeError) -> None:
        """It did not work."""
        self.errors[error.reason] += 1
        self.failure = Failure(error.reason, str(error))

    def heard(self) -> None:
        """Something came."""
        self.last_contact_seconds = time.time()
