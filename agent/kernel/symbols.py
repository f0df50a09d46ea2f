"""The name of the kernel function an address lies in, from ``/proc/kallsyms``.

A drop's location and the frames of its kernel stack are bare addresses; the name is what the rules of ``explain``
and the reader of a report know them by. Source: kernel/kallsyms.c.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from itertools import islice
from operator import le
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

KALLSYMS: Final = Path("/proc/kallsyms")

_TEXT: Final = frozenset({b"T", b"t", b"W", b"w"})
_FIELDS: Final = 3  # address, type, name; a module's symbols have "[module]" as a fourth
_ADDRESS_END: Final = 1 << 64
# No C name has a dot: from the first one on, GCC and Clang say how they split or cloned the function (.isra.0, .cold,
# .llvm.123). A dot in front is part of the name, that of an assembler label.
_COMPILER_SUFFIX: Final = re.compile(r"(?<=.)\..*")


class KernelSymbols:
    """The kernel's text symbols, ordered by address.

    Takes 37 bytes a symbol: 8 of address, 4 of index, 25 of name on average. Measured on Linux 6.18 (122 079 symbols,
    one virtual CPU, Python 3.11): loaded in 70 to 95 ms, 24 of them the kernel's; 5 MiB more resident, 8 MiB at the
    peak; 1.4 us a name.

    Args:
        addresses: ascending; of equal ones the first in the kernel's order comes first.
        names_at: for each address, where its name begins in ``names``.
        names: the names, each ended by a newline.
    """

    def __init__(self, addresses: array[int], names_at: array[int], names: bytes) -> None:
        self._addresses = addresses
        self._names_at = names_at
        self._names = names

    @classmethod
    def load(cls, path: str | Path = KALLSYMS) -> KernelSymbols:
        """Reads the symbols of the kernel and its modules.

        Never fails: a file that cannot be read, or that shows zeros for want of CAP_SYSLOG or because of
        kernel.kptr_restrict, gives an object that is not ``available`` and names nothing.
        """
        try:
            with Path(path).open("rb") as lines:
                return cls(*_in_order(*_parse(lines)))
        except OSError:
            return cls(array("Q"), array("I"), b"")

    @property
    def available(self) -> bool:
        """Whether any address is known: False means that ``name`` always returns None."""
        return bool(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def name(self, address: int) -> str | None:
        """Name of the nearest text symbol at or before ``address``, without offset and compiler suffixes.

        Of several symbols at one address it is the first, as in the kernel's own messages. A return address may lie
        just behind its function when the call was the last instruction: the kernel's ``%pB`` then looks up address - 1.

        Returns:
            None for 0 and for addresses before the first or after the last symbol.
        """
        if not self._addresses or not self._addresses[0] <= address <= self._addresses[-1]:
            return None
        nearest = self._addresses[bisect_right(self._addresses, address) - 1]
        begin = self._names_at[bisect_left(self._addresses, nearest)]
        name = self._names[begin : self._names.index(b"\n", begin)].decode("ascii", "backslashreplace")
        return _COMPILER_SUFFIX.sub("", name)


def _parse(lines: Iterable[bytes]) -> tuple[array[int], array[int], bytes]:
    """Keeps the text symbols that have an address; lines of any other shape are passed over."""
    addresses, names_at, names = array("Q"), array("I"), bytearray()
    for line in lines:
        fields = line.split(None, _FIELDS)
        if len(fields) < _FIELDS or fields[1] not in _TEXT:
            continue
        address = _address(fields[0])
        if address:
            addresses.append(address)
            names_at.append(len(names))
            names += fields[2]
            names += b"\n"
    return addresses, names_at, bytes(names)


def _address(digits: bytes) -> int:
    """The address, 0 if it is hidden or not an address."""
    try:
        address = int(digits, 16)
    except ValueError:
        return 0
    return address if 0 < address < _ADDRESS_END else 0


def _in_order(addresses: array[int], names_at: array[int], names: bytes) -> tuple[array[int], array[int], bytes]:
    """Sorts by address and keeps the order of equals: modules follow the kernel in the order of their loading."""
    if all(map(le, addresses, islice(addresses, 1, None))):  # no module loaded: spare 4 MiB of indices
        return addresses, names_at, names
    order = sorted(range(len(addresses)), key=addresses.__getitem__)
    return (
        array("Q", map(addresses.__getitem__, order)),
        array("I", map(names_at.__getitem__, order)),
        names,
    )
