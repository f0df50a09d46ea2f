"""Where lookups come from: the agent of this node, or an agent of one's own where none runs."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.export.line import Line
from agent.kept.lines import MAX_LINE_BYTES, read_line
from agent.process import log
from agent.readers.notices import Notice, is_notice, read_notice
from agent.readers.requests import write_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from agent.readers.requests import Wanted

READ_BYTES = 1 << 18
START_SECONDS = 60.0
"""For an agent of one's own to listen; before that it has read nothing but its options."""
LOOK_SECONDS = 0.02
STOP_SECONDS = 5.0
SEND_SECONDS = 5.0
OWN_VARIABLES = (
    *("OUTPUT", "DURATION", "NAME", "TYPE", "STATUS", "RCODE", "CAUSE", "NAMESPACE", "POD"),
    *("LOG", "LOG_RATE", "METRICS_ADDRESS", "TRACE_SOCKET"),
)
"""What the options of the commands that watch mean is nothing to an agent of one's own."""
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class SourceError(Exception):
    """There is nothing to read from, or not any more; the text says why, unless that was said already."""


class OwnAgent:
    """An agent that serves nobody else, and ends with this process.

    Args:
        is_quiet: what it says is kept from the terminal, and told if it fails.
    """

    def __init__(self, *, is_quiet: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dnstrail-")
        self.path = str(Path(self._folder.name) / "trace.sock")
        self._said = Path(self._folder.name) / "said"
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {f"DNSTRAIL_{own}" for own in OWN_VARIABLES}
        }
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "agent", "run", "--log=none", "--metrics-address=none"),
                    *("--trace-socket", self.path),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said if is_quiet else None,
                env=environment,
                process_group=0,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  there are no threads here
            )

    def connect(self) -> socket.socket:
        """The connection, as soon as it listens.

        Raises:
            SourceError: It ended before.
        """
        end = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                return _connect(self.path)
            time.sleep(LOOK_SECONDS)
        raise SourceError(self.why())

    def why(self) -> str:
        """Its last words; empty if the user has read them already."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        words = self._said.read_text(errors="backslashreplace").splitlines()
        return words[-1].removeprefix("dnstrail: ") if words else ""

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def _end_with_parent() -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(SEND_SECONDS)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


class Source:
    """A connection to an agent, to be used as a context.

    Raises:
        SourceError: There is nothing to read from.
    """

    def __init__(self, path: str, wanted: Wanted, *, is_quiet: bool) -> None:
        """Connect and ask.

        Args:
            path: of the agent's socket; empty to capture in any case.
            wanted: what to be sent.
            is_quiet: nothing may be said while it is open.
        """
        self._own: OwnAgent | None = None
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        found = _of_running_agent(path) if path else None
        if found is None:
            if path and not is_quiet:
                log(f"no agent listens at {path}: capturing by itself")
            self._own = OwnAgent(is_quiet=is_quiet)
        try:
            self._connection = found or self._own_connection()
            self.ask(wanted)
        except BaseException:
            self.close()
            raise

    @property
    def is_own(self) -> bool:
        """Whether the agent was started for this."""
        return self._own is not None

    def _own_connection(self) -> socket.socket:
        assert self._own is not None  # noqa: S101  the caller has seen to it
        return self._own.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def fileno(self) -> int:
        """To wait for."""
        return self._connection.fileno()

    def ask(self, wanted: Wanted) -> None:
        """Say what to be sent from now on. Why that is in vain, if it is, `receive` finds out."""
        with suppress(OSError):
            self._connection.sendall(write_request(wanted))

    def receive(self) -> Iterator[bytes]:
        """The lines that have come, without their line feeds, after waiting for some if need be.

        Raises:
            SourceError: There will be none any more.
        """
        try:
            data = self._connection.recv(READ_BYTES)
        except TimeoutError:
            return
        except OSError as error:
            raise self._ended() from error
        if not data:
            raise self._ended()
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield b"".join((*self._begun, line))
            self._begun, self._begun_bytes = [], 0
        self._begun.append(rest)
        self._begun_bytes += len(rest)
        if self._begun_bytes > MAX_LINE_BYTES:
            raise SourceError(f"the agent sent a line of more than {MAX_LINE_BYTES >> 20} MiB")

    def close(self) -> None:
        """Hang up; an agent of one's own ends."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()
        if self._own is not None:
            self._own.stop()
            self._own = None

    def _ended(self) -> SourceError:
        return SourceError("the agent has ended" if self._own is None else self._own.why())


def _of_running_agent(path: str) -> socket.socket | None:
    """A connection; None where no agent listens.

    Raises:
        SourceError: One may listen, but not to this user.
    """
    try:
        return _connect(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise SourceError(f"cannot read from the agent at {path}: only root may") from error
    except OSError as error:
        raise SourceError(f"cannot read from the agent at {path}: {error.strerror or error}") from error


def message(text: bytes) -> Line | Notice | None:
    """What a line of the socket says; None for what this version does not know."""
    if is_notice(text):
        try:
            return read_notice(text)
        except ValueError:  # a newer agent
            return None
    found = read_line(text)
    return found if isinstance(found, Line) else None
