"""What keeps the agent from the Kubernetes API at the moment, in sentences for who reads its log at night.

Seven watches that cannot reach the API server are one trouble. What it refuses is a trouble for each kind of object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.enrich.kube.errors import KubeError
    from agent.enrich.kube.health import Failure


class Watched(Protocol):
    """What `agent.enrich.kube.health.WatchHealth` tells of one watch."""

    @property
    def name(self) -> str:
        """The watch."""

    @property
    def resource(self) -> str:
        """What it follows."""

    @property
    def required(self) -> bool:
        """Whether the agent is not ready without it."""

    @property
    def wanted(self) -> bool:
        """Whether it is needed at present."""

    @property
    def synced(self) -> bool:
        """Whether all that there was has been taken in."""

    @property
    def failure(self) -> Failure | None:
        """What keeps it from its work."""


FORBIDDEN = "Forbidden"


class Kind(NamedTuple):
    """One way to fail."""

    words: str
    advice: str


KINDS = {
    "Unreachable": Kind(
        "the API server cannot be reached",
        "see whether it runs and whether this node gets to it: routes, firewalls, kube-proxy",
    ),
    "Silent": Kind(
        "the API server does not answer in time",
        "see whether it is overloaded, or whether something on the way swallows packets (firewall, MTU)",
    ),
    "Untrusted": Kind(
        "no TLS connection with the API server",
        "see whether the CA belongs to this cluster, and whether the certificate is in date and made for that address",
    ),
    "NotConfigured": Kind(
        "the configuration cannot be used",
        "in a pod, see its ServiceAccount and automountServiceAccountToken; else the file given by --kubernetes",
    ),
    "Unauthorized": Kind(
        "the API server does not accept who the agent says it is",
        "see whether the ServiceAccount still exists and whether its token, or the kubeconfig's, is in date",
    ),
    FORBIDDEN: Kind(
        "the API server forbids to read",
        "see whether the ClusterRole dnstrail and its binding are as in daemonset.yaml",
    ),
    "Garbled": Kind("not understood is what the API server says of", "see what is between it and the agent"),
}
OTHER = Kind("the API server does not let the agent read", "see its own log")
"""Too many requests, an error of its own, and whatever else metav1.StatusReason knows."""
NO_EVENTS = "no Kubernetes Events are written"
"""What a failure to write one means."""
NOT_TAKEN = Kind("the API server does not take", "see its own log")
"""Too many requests, an error of its own, an admission controller that says no."""
FORBIDDEN_TO_WRITE = Kind(
    "the API server forbids to write",
    "see whether the ClusterRole dnstrail has the right that --events needs (docs/security.md)",
)
COMMON = frozenset({"Unreachable", "Silent", "Untrusted", "NotConfigured", "Unauthorized"})
"""Whoever asks, and whatever for. The others are followed by the kind of object."""
ROUTINE = frozenset({"Expired", "Gone"})
"""The API server has forgotten what happened since: everything is listed anew, and nothing is missing."""


class Trouble(NamedTuple):
    """One kind of failure that lasts."""

    title: str
    """What does not work."""
    details: str
    """What was seen, what it means for the agent, what to look at."""


def troubles(watches: Iterable[Watched]) -> dict[str, Trouble]:
    """What goes on at present, by a key that remains the same as long as it does."""
    wanted = [watch for watch in watches if watch.wanted]
    found: dict[str, Trouble] = {}
    for watch in wanted:
        failure = watch.failure
        if failure is None or failure.reason in ROUTINE:
            continue
        if failure.reason in COMMON:
            # The other watches have it too, if they have not noticed yet.
            found.setdefault(failure.reason, _trouble(failure, "", wanted))
        else:
            concerned = [other for other in wanted if other.resource == watch.resource]
            found.setdefault(f"{failure.reason} {watch.resource}", _trouble(failure, f" {watch.resource}", concerned))
    return found


def words_of(error: KubeError, resource: str) -> tuple[str, str]:
    """What failed when this kind of object was asked for, and what to look at: for who asks once."""
    kind = KINDS.get(error.reason, OTHER)
    return f"{kind.words}{'' if error.reason in COMMON else f' {resource}'}: {error}", kind.advice


def event_trouble(failure: Failure) -> Trouble:
    """What keeps Events from being written."""
    kind = _kind_of_writing(failure.reason)
    title = f"Kubernetes Events: {kind.words}{'' if failure.reason in COMMON else ' events'}"
    details = f"{failure.text}. Meanwhile {NO_EVENTS}; nothing else is missing. What to do: {kind.advice}."
    return Trouble(title, details)


def event_words(error: KubeError) -> tuple[str, str]:
    """What failed when an Event was written, and what to look at: for who asks once."""
    kind = _kind_of_writing(error.reason)
    return f"{kind.words}{'' if error.reason in COMMON else ' events'}: {error}", kind.advice


def _kind_of_writing(reason: str) -> Kind:
    return {FORBIDDEN: FORBIDDEN_TO_WRITE}.get(reason) or KINDS.get(reason, NOT_TAKEN)


def _trouble(failure: Failure, resource: str, concerned: list[Watched]) -> Trouble:
    kind = KINDS.get(failure.reason, OTHER)
    details = f"{failure.text}. {_consequence(concerned)}. What to do: {kind.advice}."
    return Trouble(f"Kubernetes: {kind.words}{resource}", details)


def _consequence(watches: list[Watched]) -> str:
    if any(watch.required and not watch.synced for watch in watches):
        return "The agent is not ready until this is over, and its lines lack names"
    if any(watch.required for watch in watches):
        return "The agent goes on with what it knew; names of what is new are missing"
    missing = ", ".join(watch.name for watch in watches)
    return f"The agent is ready and does without {missing}"
