"""Files of lines: plain ones, those that gzip compressed, and standard input."""

from __future__ import annotations

import gzip
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from agent.capturefile.inputs import STDIN, InputError
from agent.kept.lines import MAX_LINE_BYTES

if TYPE_CHECKING:
    import io
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
"""What such files begin with (RFC 1952 2.3.1, RFC 8878 3.1.1)."""


class LineInput:
    """One opened file of lines."""

    def __init__(self, name: str, file: io.BufferedReader) -> None:
        self.is_stdin = name == STDIN
        self.title = "standard input" if self.is_stdin else name
        self.error = ""
        """What is wrong with it, once that was found out."""
        self._file = file

    def lines(self) -> Iterator[bytes]:
        """Its lines; what is wrong with it is kept as `error`, after all lines before that place.

        Of a line that is too long comes as much as shows that.
        """
        try:
            begin = self._file.peek(len(ZSTANDARD))
            if begin.startswith(ZSTANDARD):
                self.error = "is compressed by zstd, which dnstrail does not read: unpack it first (zstdcat)"
            elif begin.startswith(GZIP):
                yield from bounded_lines(cast("BinaryIO", gzip.GzipFile(fileobj=self._file)))
            else:
                yield from bounded_lines(self._file)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.error = "the compressed file is cut off or damaged"
        except OSError as error:
            self.error = f"cannot be read: {error.strerror}"


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, its beginning and nothing else."""
    while text := file.readline(MAX_LINE_BYTES + 1):
        yield text
        while len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
            text = file.readline(MAX_LINE_BYTES + 1)


class LineInputs:
    """Several files of lines, all of them open, to be used as a context.

    Raises:
        InputError: One of them cannot be opened.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.all: list[LineInput] = []
        with ExitStack() as stack:
            for name in names:
                self.all.append(LineInput(name, _open(name, stack)))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def _open(name: str, stack: ExitStack) -> io.BufferedReader:
    if name == STDIN:
        if sys.stdin is None:  # whoever started the process closed it
            raise InputError("cannot open standard input: it is closed")
        return cast("io.BufferedReader", sys.stdin.buffer)
    try:
        return stack.enter_context(Path(name).open("rb"))
    except OSError as error:
        raise InputError(f"cannot open {name}: {error.strerror}") from error
