"""Whether the Kubernetes API can be reached, and asked for what the agent needs: `dnstrail check` asks once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.enrich.kube import rbac
from agent.enrich.kube.errors import KubeError
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


def _ask(transport: Transport, rule: Rule, read_seconds: float) -> None:
    for verb in rule.verbs:
        if verb in QUESTIONS:
            with transport.get(path_of(rule), QUESTIONS[verb], read_seconds):
                pass  # it is allowed: what it says is of no interest
