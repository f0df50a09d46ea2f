"""The file of the socket: made for its owner alone, taken over from an agent that is gone, left to one that lives."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT = "/run/dnstrail/trace.sock"
NOWHERE = "none"
MAX_PATH_BYTES = 107
"""sockaddr_un.sun_path without its end (unix(7))."""
OWNER_ONLY, FOLDER_OWNER_ONLY = 0o600, 0o700
BACKLOG = 8
ANSWER_SECONDS = 1.0


class PlaceError(Exception):
    """No socket can be had there; the text says why."""


class Place:
    """A socket that listens at a path, until it is closed.

    Raises:
        PlaceError: It cannot be had.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._open()
        except OSError as error:
            self.socket.close()
            raise PlaceError(error.strerror or str(error)) from error
        except PlaceError:
            self.socket.close()
            raise

    def _open(self) -> None:
        with suppress(FileExistsError):
            self.path.parent.mkdir(FOLDER_OWNER_ONLY)
        self.socket.setblocking(False)
        # Before it has a name, so that there is no moment at which others may connect (unix_bind_bsd()).
        os.fchmod(self.socket.fileno(), OWNER_ONLY)
        with _alone_in(self.path.parent):
            _clear(self.path)
            self.socket.bind(str(self.path))
            self._inode = self.path.lstat().st_ino
            self.socket.listen(BACKLOG)

    def close(self) -> None:
        """Listen no more; the file goes, unless it is another's by now. May be called twice."""
        if self.socket.fileno() < 0:
            return
        # As long as the socket is open, no other file can have its inode.
        with suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()
        self.socket.close()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Of two agents that start at the same moment, one alone looks at what is there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PlaceError("another program is about to use that folder") from None
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Make room where an agent left its file behind."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise PlaceError("there is a file that is no socket")
    if _is_alive(path):
        raise PlaceError("another dnstrail listens there")
    path.unlink()


def _is_alive(path: Path) -> bool:
    """Whether somebody listens; also if nobody has time to answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True
