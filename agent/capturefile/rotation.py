"""A ring of files: a new one when the last is full, and the oldest removed when there are too many.

Files of an earlier recording of the same name count too, so that restarts do not fill the disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".pcapng"
DIGITS = 5
PRIVATE = 0o600


class FileRing:
    """Numbered files `NAME-00001.pcapng`, of which the newest `max_files` are kept."""

    def __init__(self, name: str, max_files: int) -> None:
        path = Path(name)
        self._folder = path.parent
        self._stem = path.name.removesuffix(SUFFIX)
        self._max_files = max_files
        self._pattern = re.compile(re.escape(self._stem) + rf"-(\d{{{DIGITS},}}){re.escape(SUFFIX)}")
        self._next = max((number for number, _ in self._existing()), default=0) + 1

    def open(self) -> tuple[Path, BinaryIO]:
        """Begin the next file; readable by its owner only, because names and addresses are in it.

        Raises:
            OSError: It cannot be made.
        """
        path = self._folder / f"{self._stem}-{self._next:0{DIGITS}d}{SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
        self._next += 1
        self._remove_old()
        return path, os.fdopen(fd, "wb", buffering=1 << 18)

    def _existing(self) -> Iterator[tuple[int, Path]]:
        for path in self._folder.iterdir():
            found = self._pattern.fullmatch(path.name)
            if found:
                yield int(found[1]), path

    def _remove_old(self) -> None:
        for _, path in sorted(self._existing())[: -self._max_files]:
            path.unlink(missing_ok=True)
