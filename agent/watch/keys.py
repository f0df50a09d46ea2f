"""Keys of a terminal, from the bytes that it sends (ECMA-48, and what xterm and the Linux console do)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTER, ESCAPE, ERASE, ERASE_ALL = "enter", "escape", "erase", "erase all"
UP, DOWN, PAGE_UP, PAGE_DOWN, HOME, END = "up", "down", "page up", "page down", "home", "end"
REDRAW = "redraw"
SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])")
SEQUENCES = {
    b"\x1b[A": UP,
    b"\x1bOA": UP,
    b"\x1b[B": DOWN,
    b"\x1bOB": DOWN,
    b"\x1b[5~": PAGE_UP,
    b"\x1b[6~": PAGE_DOWN,
    b"\x1b[H": HOME,
    b"\x1bOH": HOME,
    b"\x1b[1~": HOME,
    b"\x1b[F": END,
    b"\x1bOF": END,
    b"\x1b[4~": END,
}
CONTROLS = {0x0D: ENTER, 0x0A: ENTER, 0x1B: ESCAPE, 0x7F: ERASE, 0x08: ERASE, 0x15: ERASE_ALL, 0x0C: REDRAW}


def keys(data: bytes) -> Iterator[str]:
    """Keys in the order in which they were pressed: names of this module, or characters. What is unknown is left out.

    Args:
        data: what one read brought; a sequence comes whole.
    """
    position = 0
    while position < len(data):
        found = SEQUENCE.match(data, position)
        if found:
            if found[0] in SEQUENCES:
                yield SEQUENCES[found[0]]
            position = found.end()
        elif data[position] in CONTROLS:
            yield CONTROLS[data[position]]
            position += 1
        else:
            end = next((at for at in range(position, len(data)) if data[at] in CONTROLS), len(data))
            yield from (char for char in data[position:end].decode(errors="ignore") if char.isprintable())
            position = end
