"""Where the numbers come from: what the event loop counts, and what else can be asked at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent.enrich.kube.troubles import Watched
from agent.explain.incidents import Incidents
from agent.export.metrics.board import Board
from agent.export.metrics.kernel import KernelCounts
from agent.export.metrics.pulse import Pulse
from agent.export.metrics.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.capture.counters import Counters
    from agent.capture.losses import Losses
    from agent.enrich.kube.health import Failure
    from agent.export.metrics.clients import Clients
    from agent.session.table import SessionTable

NOT_ATTACHED = "the BPF programs are not attached yet"


class CaptureNumbers(Protocol):
    """What `agent.capture.live.Capture` tells of itself."""

    @property
    def losses(self) -> Losses:
        """Records that the capture lost."""

    @property
    def backlog_bytes(self) -> int:
        """How much of the ring waits to be read."""

    @property
    def ring_bytes(self) -> int:
        """Its size."""

    @property
    def programs(self) -> Mapping[str, int]:
        """Descriptors of the BPF programs, by what they are attached to."""

    @property
    def limits(self) -> list[str]:
        """What this kernel or process keeps it from seeing."""

    def counters(self) -> Counters:
        """What the program counted."""


class FailureNumbers(Protocol):
    """What `agent.export.failures.FailureLimit` tells of itself."""

    @property
    def held(self) -> int:
        """Lines that --failure-rate held back."""


class BudgetNumbers(Protocol):
    """What `agent.export.budget.Budget` tells of itself."""

    @property
    def refused(self) -> int:
        """Lines that --max-lines and --max-bytes held back."""


class LineNumbers(Protocol):
    """What `agent.export.printer.Printer` tells of itself."""

    @property
    def written(self) -> int:
        """Lines."""

    @property
    def suppressed(self) -> int:
        """Lines that --log-rate held back."""

    @property
    def incidents_written(self) -> int:
        """Lines of incidents."""

    @property
    def failures(self) -> FailureNumbers:
        """Those of lookups that failed."""

    @property
    def budget(self) -> BudgetNumbers:
        """What all lines share."""


class OutNumbers(Protocol):
    """What `agent.export.outlet.Outlet` tells of itself."""

    @property
    def lost(self) -> int:
        """Lines that nobody read in time, or that the system refused to write."""


class WatchNumbers(Watched, Protocol):
    """What `agent.enrich.kube.health.WatchHealth` tells of one watch."""

    @property
    def connected(self) -> bool:
        """Whether a watch is open."""

    @property
    def last_contact_seconds(self) -> float:
        """Unix time of the last bytes."""

    @property
    def lists(self) -> int:
        """How often everything was listed."""

    @property
    def watches(self) -> int:
        """How often a watch was opened."""

    @property
    def events(self) -> Mapping[str, int]:
        """By type."""

    @property
    def errors(self) -> Mapping[str, int]:
        """By one word."""

    @property
    def last_error(self) -> str | None:
        """In words; None when it was overcome."""

    @property
    def undecodable(self) -> int:
        """Objects."""

    @property
    def objects(self) -> int:
        """Known at present."""

    @property
    def left_out(self) -> int:
        """Objects beyond the bound."""


class EventNumbers(Protocol):
    """What `agent.enrich.kube.events.EventHealth` tells of writing Events."""

    @property
    def results(self) -> Mapping[str, int]:
        """What became of them."""

    @property
    def errors(self) -> Mapping[str, int]:
        """By one word."""

    @property
    def failure(self) -> Failure | None:
        """What keeps them from being written."""


class TellerNumbers(Protocol):
    """What `agent.export.event_teller.EventTeller` tells of itself."""

    @property
    def left_out(self) -> int:
        """Pods without an Event."""


class EventSources(NamedTuple):
    """Kubernetes Events, where they are asked for."""

    health: EventNumbers
    teller: TellerNumbers


class Agent(NamedTuple):
    """What there is once the agent captures. All of it may be read by any thread."""

    capture: CaptureNumbers
    table: SessionTable
    lines: LineNumbers
    out: OutNumbers
    watches: Callable[[], Iterable[WatchNumbers]] | None = None
    """How the watches of the Kubernetes API fare; None where there is none."""
    events: EventSources | None = None
    """None without `--events`."""


class Traffic:
    """What the HTTP server did."""

    def __init__(self) -> None:
        self.answered: dict[int, int] = {}
        """Requests by status."""
        self.refused = 0
        """Connections closed because there were too many."""

    def count(self, status: int) -> None:
        """One more answer."""
        self.answered[status] = self.answered.get(status, 0) + 1


class Sources:
    """All of it. The event loop counts, the HTTP server's thread asks."""

    def __init__(self, clients: Clients | None = None) -> None:
        """Begin with zeros.

        Args:
            clients: For numbers by namespace or workload.
        """
        self.clients = clients
        self.tally = Tally(clients)
        self.kernel = KernelCounts()
        self.pulse = Pulse()
        self.traffic = Traffic()
        self.incidents = Incidents()
        self.board = Board()
        """What the HTTP port says of them."""
        self.agent: Agent | None = None
        """None before everything is attached, and when it ends."""

    def waiting_for(self) -> list[str]:
        """Why the agent is not ready yet, a sentence each; nothing when it is."""
        agent = self.agent
        if agent is None:
            return [NOT_ATTACHED]
        watches = () if agent.watches is None else agent.watches()
        return [
            f"Kubernetes: {watche.name} have not been taken in yet"
            + (f" ({watche.last_error})" if watche.last_error else "")
            for watche in watches
            if watche.required and watche.wanted and not watche.synced
        ]
