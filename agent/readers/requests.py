"""What a reader asks for: one JSON object on a line, which can be followed by others that replace it.

A field that is not known is refused, not left out: a filter that narrows nothing would show what was not asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from agent.export.filters import Filter, is_problem
from agent.session.outcome import Status
from agent.wire.rcodes import NOERROR
from agent.wire.render import rcode_to_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.context.who import Who
    from agent.explain.verdict import Verdict
    from agent.session.outcome import Outcome

MAX_REQUEST_BYTES = 64 << 10
MAX_WORDS = 64
"""Of one kind in a filter."""
MAX_WORD_CHARACTERS = 1100
"""A name has at most 1004 as text: 255 bytes, each of them escaped."""
Words = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=MAX_WORD_CHARACTERS)]], msgspec.Meta(max_length=MAX_WORDS)
]


class BadRequestError(Exception):
    """This is no request; the text says why."""


class Request(msgspec.Struct, rename="pascal", forbid_unknown_fields=True, omit_defaults=True):
    """The line of a reader."""

    names: Words = []
    types: Words = []
    statuses: Words = []
    rcodes: Words = []
    causes: Words = []
    namespaces: Words = []
    pods: Words = []
    slow_seconds: Annotated[float, msgspec.Meta(ge=0)] | None = None
    problems: bool = False
    messages: bool = False
    incidents: bool = False
    healthy_a_second: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Wanted(NamedTuple):
    """What a reader is sent."""

    filter: Filter = Filter()
    problems: bool = False
    """Only lookups that did not succeed, or lost an attempt on the way."""
    messages: bool = False
    """Lines with the field Messages: it costs the most."""
    incidents: bool = False
    """Once a second the open incidents, too."""
    healthy_a_second: int | None = None
    """So many lookups that succeeded at most; None for as many as the agent allows."""

    def wants(self, outcome: Outcome, verdict: Verdict, who: Callable[[], Who]) -> bool:
        """Whether this lookup is among those that the reader wants to see."""
        return not (self.problems and not is_problem(outcome, verdict)) and self.filter.wants(outcome, verdict, who)

    @property
    def wants_healthy(self) -> bool:
        """Whether a lookup that was answered without any trouble may be among them."""
        lookups = self.filter
        return (
            not (self.problems or lookups.causes)
            and _may_be(Status.SUCCEEDED.value, lookups.statuses)
            and _may_be(rcode_to_text(NOERROR), lookups.rcodes)
        )


def _may_be(value: str, wanted: tuple[str, ...]) -> bool:
    return not wanted or value.lower() in (word.lower() for word in wanted)


_DECODER = msgspec.json.Decoder(Request)


def read_request(text: bytes) -> Wanted:
    """The request on a line.

    Raises:
        BadRequestError: It is none.
    """
    try:
        request = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(str(error)) from None
    lookups = Filter(
        names=tuple(request.names),
        types=tuple(request.types),
        statuses=tuple(request.statuses),
        rcodes=tuple(request.rcodes),
        causes=tuple(request.causes),
        namespaces=tuple(request.namespaces),
        pods=tuple(request.pods),
        slow_seconds=request.slow_seconds,
    )
    return Wanted(lookups, request.problems, request.messages, request.incidents, request.healthy_a_second)


def write_request(wanted: Wanted) -> bytes:
    """The line that asks for this, with its line feed."""
    lookups = wanted.filter
    request = Request(
        names=list(lookups.names),
        types=list(lookups.types),
        statuses=list(lookups.statuses),
        rcodes=list(lookups.rcodes),
        causes=list(lookups.causes),
        namespaces=list(lookups.namespaces),
        pods=list(lookups.pods),
        slow_seconds=lookups.slow_seconds,
        problems=wanted.problems,
        messages=wanted.messages,
        incidents=wanted.incidents,
        healthy_a_second=wanted.healthy_a_second,
    )
    return msgspec.json.encode(request) + b"\n"
