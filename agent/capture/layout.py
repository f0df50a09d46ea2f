"""The record layout as C: generates `bpf/record.h`, and the assertions that make the compiler check Python's offsets.

Run `python -m agent.capture.layout > bpf/record.h` after a change of `agent.hop.record`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, get_type_hints

from agent.hop.lookup import (
    BODY_BYTES,
    CACHE_LINE_BYTES,
    HEAD_BYTES,
    LOOKUP_HOPS,
    QUERY_AT,
    QUERY_BYTES,
    RECORD_BYTES,
    REPLY_AT,
    REPLY_BYTES,
    LookupHead,
)
from agent.hop.record import STACK_FRAMES, Detail, Event, Flag, Head

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = """\
/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Generated from agent/hop/record.py by `python -m agent.capture.layout`: change it there. */
#ifndef DNSTRAIL_RECORD_H
#define DNSTRAIL_RECORD_H

"""


def fields(*parts: type) -> Iterator[tuple[str, str, int, int]]:
    """Name, C type, number of elements and offset in bytes of every field of these parts of one structure."""
    offset = 0
    for part in parts:
        for name, hint in get_type_hints(part, include_extras=True).items():
            form, ctype = hint.__metadata__
            count = int(form[:-1]) if len(form) > 1 else 1
            yield name, ctype, count, offset
            offset += struct.calcsize("=" + form)


RECORD = (Head, Detail)
BODY_MEMBERS = {"records": 0, "query": QUERY_AT, "reply": REPLY_AT}
"""Of struct body: offsets in bytes."""


def c_header() -> str:
    """The text of `bpf/record.h`."""
    record, lookup = _members(*RECORD), _members(LookupHead)
    events = "".join(f"#define EVENT_{event.name} {event.value}\n" for event in Event)
    flags = "".join(f"#define FLAG_{flag.name} {flag.value}\n" for flag in Flag)
    room = f"struct record records[LOOKUP_HOPS];\n\t__u8 query[{QUERY_BYTES}];\n\t__u8 reply[{REPLY_BYTES}];\n"
    return (
        f"{HEADER}{events}\n{flags}\n#define STACK_FRAMES {STACK_FRAMES}\n#define LOOKUP_HOPS {LOOKUP_HOPS}\n\n"
        f"struct record {{\n{record}}};\n\n"
        f"struct lookup {{\n{lookup}}} __attribute__((aligned({CACHE_LINE_BYTES})));\n\n"
        f"struct body {{\n\t{room}}};\n\n#endif\n"
    )


def _members(*parts: type) -> str:
    lines = (f"\t{ctype} {name}{f'[{count}]' if count > 1 else ''};\n" for name, ctype, count, _ in fields(*parts))
    return "".join(lines)


def c_assertions() -> str:
    """C that compiles only if the compiler lays the structures out as Python reads them."""
    lines = [
        *(_assertion("record", name, offset) for name, _, _, offset in fields(*RECORD)),
        *(_assertion("lookup", name, offset) for name, _, _, offset in fields(LookupHead)),
        *(_assertion("body", name, offset) for name, offset in BODY_MEMBERS.items()),
        f'_Static_assert(sizeof(struct record) == {RECORD_BYTES}, "size of struct record");',
        f'_Static_assert(sizeof(struct lookup) == {HEAD_BYTES}, "size of struct lookup");',
        f'_Static_assert(sizeof(struct body) == {BODY_BYTES}, "size of struct body");',
    ]
    return "\n".join(lines) + "\n"


def _assertion(structure: str, name: str, offset: int) -> str:
    return f'_Static_assert(__builtin_offsetof(struct {structure}, {name}) == {offset}, "{name}");'


if __name__ == "__main__":
    print(c_header(), end="")
