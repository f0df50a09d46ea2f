"""Which sessions the user wants to see."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from agent.context.who import NOBODY
from agent.export.clock import SECOND_NS
from agent.session.outcome import Outcome, Status
from agent.wire.message import name_to_text
from agent.wire.render import rcode_to_text, rdtype_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.who import Who
    from agent.explain.verdict import Verdict
    from agent.export.line import Line
    from agent.session.model import Key


class Asked(NamedTuple):
    """What a lookup asked for, as text; the name in lower case, with its last dot."""

    type: str
    name: str


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
    slow_seconds: float | None = None
    """Only lookups that took at least so long, or got no reply."""

    @property
    def is_narrow(self) -> bool:
        """Whether it keeps anything out."""
        return self != Filter()

    def wants(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who] = lambda: NOBODY) -> bool:
        """Whether this session passes; `who` is asked only if it is needed."""
        key = outcome.session.key
        asked = None if outcome.session.connecting else self._asked(key)
        rcode = "" if outcome.rcode is None else rcode_to_text(outcome.rcode)
        cause = verdict.cause.code if verdict.cause else ""
        status = outcome.status.value
        if not (self._wants_time(_seconds(outcome.duration_ns)) and self._wants_lookup(status, asked, rcode, cause)):
            return False
        if not (self.namespaces or self.pods):
            return True
        pod = who().client
        return pod is not None and self._wants_client(pod.namespace, pod.name)

    def wants_line(self, line: Line) -> bool:
        """Whether a line that was read back passes."""
        question = line.question
        asked = None if question is None else Asked(question.type, question.name.lower())
        cause = line.cause.code if line.cause else ""
        took = line.duration_seconds
        if not (self._wants_time(took) and self._wants_lookup(line.status, asked, line.rcode or "", cause)):
            return False
        if not (self.namespaces or self.pods):
            return True
        namespace, pod = line.client.namespace, line.client.pod
        return namespace is not None and pod is not None and self._wants_client(namespace, pod)

    def _asked(self, key: Key) -> Asked:
        """As far as it is needed."""
        rdtype = rdtype_to_text(key.rdtype) if self.types else ""
        return Asked(rdtype, name_to_text(key.name) if self.names else "")

    def _wants_time(self, took: float | None) -> bool:
        """Whether so many seconds are enough; None: there was no reply."""
        return self.slow_seconds is None or took is None or took >= self.slow_seconds

    def _wants_lookup(self, status: str, asked: Asked | None, rcode: str, cause: str) -> bool:
        return (
            self._wants_question(asked)
            and _among(status, self.statuses)
            and _among(rcode, self.rcodes)
            and _among(cause, self.causes)
        )

    def _wants_question(self, asked: Asked | None) -> bool:
        if asked is None:
            return not (self.names or self.types)
        return _among(asked.type, self.types) and _matches(asked.name, self.names)

    def _wants_client(self, namespace: str, name: str) -> bool:
        named = not self.pods or any(fnmatchcase(name, pattern) for pattern in self.pods)
        return named and _among(namespace, self.namespaces)


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / SECOND_NS


def _among(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value.lower() in (reply.lower() for reply in wanted)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    if not patterns:
        return True
    return any(fnmatchcase(name, pattern.lower()) or fnmatchcase(name[:-1], pattern.lower()) for pattern in patterns)


def is_problem(outcome: Outcome, verdict: Verdict) -> bool:
    """Whether `--log problems` shows it: it did not succeed, or it lost an attempt on the way."""
    return outcome.status is not Status.SUCCEEDED or verdict.cause is not None


def is_line_of_problem(line: Line) -> bool:
    """The same of a line that was read back."""
    return line.status != Status.SUCCEEDED.value or line.cause is not None
