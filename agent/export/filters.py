"""Which sessions the user wants to see."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from agent.context.who import NOBODY
from agent.session.outcome import Outcome, Status
from agent.wire.message import name_to_text
from agent.wire.render import rcode_to_text, rdtype_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.cluster import Pod
    from agent.context.who import Who
    from agent.explain.verdict import Verdict


class Filter(NamedTuple):
    """Every field narrows; an empty one lets all pass."""

    names: tuple[str, ...] = ()
    """Shell patterns, without case; the trailing dot may be left out."""
    types: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    rcodes: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Kubernetes namespaces of the client."""
    pods: tuple[str, ...] = ()
    """Shell patterns of the client's pod."""

    def wants(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who] = lambda: NOBODY) -> bool:
        """Whether this session passes; `who` is asked only if it is needed."""
        key = outcome.session.key
        if outcome.session.connecting and (self.names or self.types):
            return False
        rcode = "" if outcome.rcode is None else rcode_to_text(outcome.rcode)
        return (
            _among(outcome.status.value, self.statuses)
            and (not self.types or _among(rdtype_to_text(key.rdtype), self.types))
            and _among(rcode, self.rcodes)
            and _among(verdict.cause.code if verdict.cause else "", self.causes)
            and _matches(key.name, self.names)
            and (not (self.namespaces or self.pods) or self._wants_client(who().client))
        )

    def _wants_client(self, client: Pod | None) -> bool:
        if client is None:
            return False
        named = not self.pods or any(fnmatchcase(client.name, pattern) for pattern in self.pods)
        return named and _among(client.namespace, self.namespaces)


def _among(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value.lower() in (reply.lower() for reply in wanted)


def _matches(name: bytes, patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return True
    text = name_to_text(name)
    return any(fnmatchcase(text, pattern.lower()) or fnmatchcase(text[:-1], pattern.lower()) for pattern in patterns)


def is_problem(outcome: Outcome, verdict: Verdict) -> bool:
    """Whether `--log problems` shows it: it did not succeed, or it lost an attempt on the way."""
    return outcome.status is not Status.SUCCEEDED or verdict.cause is not None
