"""Whether the Kubernetes API can be reached, and asked for what the agent needs: `dnstrail check` asks once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agent.enrich.kube import rbac
from agent.enrich.kube.body import JSON, MERGE_PATCH, Body
from agent.enrich.kube.errors import KubeError, RefusedError
from agent.enrich.kube.resources import path_of
from agent.enrich.kube.transport import Transport
from agent.enrich.kube.troubles import COMMON, words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.enrich.kube.access import Access
    from agent.enrich.kube.rbac import Rule

READ_SECONDS = 10.0
QUESTIONS: Mapping[str, Mapping[str, str]] = {
    "list": {"limit": "1"},
    "watch": {"watch": "1", "timeoutSeconds": "1"},
}
"""By verb. The others need the name of an object."""
DRY_RUN = {"dryRun": "All"}
PROBE: Mapping[str, Any] = {
    "apiVersion": "v1",
    "kind": "Event",
    "metadata": {"name": "dnstrail.check", "namespace": "default"},
    "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "dnstrail-check"},
    "type": "Normal",
    "reason": "Check",
    "source": {"component": "dnstrail"},
}
"""An Event that is never made."""
NOT_FOUND = 404


class Reached(NamedTuple):
    """What was found out."""

    failures: tuple[tuple[Rule, KubeError], ...] = ()
    """What may not be read, or the first thing that could not be asked for."""

    @property
    def is_enough(self) -> bool:
        """Whether the agent gets ready with it."""
        return not any(rule.required or error.reason in COMMON for rule, error in self.failures)

    @property
    def words(self) -> tuple[str, str]:
        """What does not work and why, and what to look at; empty when all is well."""
        said = [words_of(error, rule.resource) for rule, error in self.failures]
        return "; ".join(words for words, _ in said), said[0][1] if said else ""


def reach(access: Access, read_seconds: float = READ_SECONDS) -> Reached:
    """Ask for a little of everything."""
    transport = Transport(access)
    failures: list[tuple[Rule, KubeError]] = []
    for rule in rbac.RULES:
        try:
            _ask(transport, rule, read_seconds)
        except KubeError as error:
            failures.append((rule, error))
            if error.reason in COMMON:
                break  # for the others it would be the same
    return Reached(tuple(failures))


def may_write_events(access: Access, read_seconds: float = READ_SECONDS) -> KubeError | None:
    """Ask for an Event to be made and changed, without that being done (`dryRun`).

    Returns:
        What stands against it; None if nothing does.
    """
    transport, everywhere = Transport(access), path_of(rbac.EVENTS, PROBE["metadata"]["namespace"])
    requests = (
        ("POST", everywhere, Body(PROBE, JSON)),
        ("PATCH", f"{everywhere}/{PROBE['metadata']['name']}", Body({}, MERGE_PATCH)),
    )
    for method, path, body in requests:
        try:
            with transport.send(method, path, DRY_RUN, read_seconds, body):
                pass  # it is allowed
        except RefusedError as refusal:
            # That it is not there is said only to who may change it.
            if (method, refusal.code) != ("PATCH", NOT_FOUND):
                return refusal
        except KubeError as error:
            return error
    return None


def _ask(transport: Transport, rule: Rule, read_seconds: float) -> None:
    for verb in rule.verbs:
        if verb in QUESTIONS:
            with transport.get(path_of(rule), QUESTIONS[verb], read_seconds):
                pass  # it is allowed: what it says is of no interest
