"""The field catalogue as a document: `python -m agent.export.catalogue > docs/fields.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args, get_origin, get_type_hints

import msgspec

from agent.export.incident_line import IncidentLine
from agent.export.line import Line

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = """\
# Fields of the session line

Generated from `agent/export/line.py` by `python -m agent.export.catalogue`: change it there.
One JSON object a line, UTF-8, written once, when the session ends. What is not known is `null`.

"""
INCIDENT_HEADER = """
## Fields of the incident line

Generated from `agent/export/incident_line.py` likewise. One JSON object a line: [incidents](incidents.md) says when.

"""
TABLE = """\
| field | type | meaning |
|---|---|---|
"""
SCALARS = {str: "string", int: "integer", float: "number", type(None): "null"}


def fields(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, JSON type and meaning of every field, nested ones behind the object that holds them."""
    hints = get_type_hints(struct, include_extras=True)
    for name, encoded in zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True):
        kind, meaning = _unwrap(hints[name])
        inner = next((part for part in (kind, *get_args(kind)) if _is_struct(part)), None)
        yield prefix + encoded, _json_type(kind), meaning or ((inner.__doc__ or "") if inner else "")
        if inner is not None:
            yield from fields(inner, f"{prefix}{encoded}{'[]' if get_origin(kind) is list else ''}.")


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unwrap(hint: object) -> tuple[object, str]:
    """The plain type of an annotation and its description."""
    for meta in getattr(hint, "__metadata__", ()):
        return get_args(hint)[0], meta.description
    return hint, ""


def _json_type(kind: object) -> str:
    if get_origin(kind) is list:
        return f"array of {_json_type(get_args(kind)[0])}"
    if get_args(kind) and get_origin(kind) is not dict:
        return " or ".join(_json_type(part) for part in get_args(kind))
    return SCALARS.get(kind, "object") if isinstance(kind, type) else "object"


def document() -> str:
    """The text of docs/fields.md."""
    return HEADER + _table(Line) + INCIDENT_HEADER + _table(IncidentLine)


def _table(struct: type[msgspec.Struct]) -> str:
    return TABLE + "".join(f"| `{name}` | {kind} | {meaning} |\n" for name, kind, meaning in fields(struct))


if __name__ == "__main__":
    print(document(), end="")
