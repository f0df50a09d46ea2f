"""Filters as a person types them at the screen: `name:*.local type:AAAA slow:100ms`; a bare word is a part of names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.export.filters import Filter
from agent.readers.requests import MAX_WORD_CHARACTERS
from agent.session.outcome import Status
from agent.wire.render import rdtype_from_text, rdtype_to_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEYS = {
    "name": "names",
    "type": "types",
    "status": "statuses",
    "rcode": "rcodes",
    "cause": "causes",
    "namespace": "namespaces",
    "pod": "pods",
}
"""What a person writes, and the field of the filter. Several words of one key are alternatives."""
SLOW = "slow"
SHORT = {"n": "namespace", "ns": "namespace"}
UNITS = {"ms": 0.001, "s": 1.0}


class WordsError(Exception):
    """These words are no filter; the text says which one, and why."""


def parse(text: str) -> Filter:
    """The filter that they mean.

    Raises:
        WordsError: They mean none.
    """
    found: dict[str, list[str]] = {}
    slow: float | None = None
    if len(text) > MAX_WORD_CHARACTERS:
        raise WordsError("that is too long")
    for word in text.split():
        key, _, value = word.partition(":") if ":" in word else ("name", "", f"*{word}*")
        key = SHORT.get(key, key)
        if not value:
            raise WordsError(f"{key}: lacks a value")
        if key == SLOW:
            slow = _seconds(value)
        elif key in KEYS:
            found.setdefault(KEYS[key], []).append(CHECKS.get(key, str)(value))
        else:
            raise WordsError(f"{key} is none of {', '.join((*KEYS, SLOW))}")
    return Filter(**{field: tuple(values) for field, values in found.items()}, slow_seconds=slow)


def _seconds(text: str) -> float:
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise WordsError(f"{text} is no time such as 100ms or 1.5s")
    return value


def _type(text: str) -> str:
    try:
        return rdtype_to_text(rdtype_from_text(text))
    except ValueError as error:
        raise WordsError(str(error)) from None


def _status(text: str) -> str:
    found = next((status.value for status in Status if status.value.lower() == text.lower()), None)
    if found is None:
        raise WordsError(f"{text} is none of {', '.join(status.value for status in Status)}")
    return found


CHECKS: dict[str, Callable[[str], str]] = {"type": _type, "status": _status}


def in_words(wanted: Filter) -> str:
    """The words that mean this filter."""
    return " ".join(_words(wanted))


def _words(wanted: Filter) -> Iterator[str]:
    for key, field in KEYS.items():
        for value in getattr(wanted, field):
            yield f"{key}:{value}"
    if wanted.slow_seconds is not None:
        yield f"{SLOW}:{wanted.slow_seconds * 1000:g}ms"
