"""Compiled programs that are kept on disk, for an agent that starts again.

Only where CACHE_DIRECTORY names a directory, as systemd does (CacheDirectory= of systemd.exec(5)). What is there runs
in the kernel, so only what nobody but this user can have written is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

import msgspec

from agent.kernel.program import Image

VARIABLE = "CACHE_DIRECTORY"
MAX_BYTES = 16 << 20
KEPT = 4
"""Files; the oldest go."""
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def directory() -> Path | None:
    """Where programs are kept; None where they are not."""
    # systemd joins several by colons.
    first = os.environ.get(VARIABLE, "").partition(":")[0]
    return Path(first) if first else None


def key_of(*parts: object) -> str:
    """A name for what was compiled from these."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def read(key: str) -> Image | None:
    """What was kept; None without it, or if it cannot be trusted or read."""
    place = directory()
    if place is None or not _is_ours(place):
        return None
    try:
        descriptor = os.open(_path(place, key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not _is_safe(os.fstat(file.fileno())):
                return None
            return msgspec.msgpack.decode(file.read(MAX_BYTES), type=Image)
    except (OSError, msgspec.MsgspecError):
        return None


def write(key: str, image: Image) -> None:
    """Keep it, if that is wanted and possible: without it the next start takes longer, and nothing else."""
    place = directory()
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(place):
            return
        new = place / f".{key}.{os.getpid()}"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.msgpack.encode(image))
        new.replace(_path(place, key))
        for old in sorted(place.glob("*.bpf"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()


def _path(place: Path, key: str) -> Path:
    return place / f"{key}.bpf"


def _is_ours(place: Path) -> bool:
    try:
        return _is_safe(place.stat())
    except OSError:
        return False


def _is_safe(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS
