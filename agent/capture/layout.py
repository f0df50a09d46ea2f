"""The record layout as C: generates `bpf/record.h`, and the assertions that make the compiler check Python's offsets.

Run `python -m agent.capture.layout > bpf/record.h` after a change of `agent.hop.record`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, get_type_hints

from agent.hop.record import DETAIL, HEAD, STACK_FRAMES, Detail, Event, Flag, Head

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = """\
/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Generated from agent/hop/record.py by `python -m agent.capture.layout`: change it there. */
#ifndef DNSTRAIL_RECORD_H
#define DNSTRAIL_RECORD_H

"""


def fields() -> Iterator[tuple[str, str, int, int]]:
    """Name, C type, number of elements and offset in bytes of every field of the fixed part."""
    offset = 0
    for part in (Head, Detail):
        for name, hint in get_type_hints(part, include_extras=True).items():
            form, ctype = hint.__metadata__
            count = int(form[:-1]) if len(form) > 1 else 1
            yield name, ctype, count, offset
            offset += struct.calcsize("=" + form)


RECORD_BYTES = HEAD.size + DETAIL.size


def c_header() -> str:
    """The text of `bpf/record.h`."""
    members = "".join(f"\t{ctype} {name}{f'[{count}]' if count > 1 else ''};\n" for name, ctype, count, _ in fields())
    events = "".join(f"#define EVENT_{event.name} {event.value}\n" for event in Event)
    flags = "".join(f"#define FLAG_{flag.name} {flag.value}\n" for flag in Flag)
    return (
        f"{HEADER}{events}\n{flags}\n#define STACK_FRAMES {STACK_FRAMES}\n\nstruct record {{\n{members}}};\n\n#endif\n"
    )


def c_assertions() -> str:
    """C that compiles only if the compiler lays the record out as Python reads it."""
    lines = [
        f'_Static_assert(__builtin_offsetof(struct record, {name}) == {offset}, "{name}");'
        for name, _, _, offset in fields()
    ]
    lines.append(f'_Static_assert(sizeof(struct record) == {RECORD_BYTES}, "size of struct record");')
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(c_header(), end="")
