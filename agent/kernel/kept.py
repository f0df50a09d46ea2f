"""Compiled programs that are kept on disk, for an agent that starts again.

Only where CACHE_DIRECTORY names a directory, as systemd does (CacheDirectory= of systemd.exec(5)). What is there runs
in the kernel, so only what nobody but this user can have written is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import msgspec

from agent.kernel.program import Image

VARIABLE = "CACHE_DIRECTORY"
MAX_BYTES = 16 << 20
DIGEST_BYTES = 32
"""The file begins with the SHA-256 of the rest: a machine that lost its power may have half of it."""
UNFINISHED = ".unfinished-"
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
            content = file.read(MAX_BYTES)
        if hashlib.sha256(content[DIGEST_BYTES:]).digest() != content[:DIGEST_BYTES]:
            return None
        return msgspec.msgpack.decode(content[DIGEST_BYTES:], type=Image)
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
        content = msgspec.msgpack.encode(image)
        descriptor, name = tempfile.mkstemp(dir=place, prefix=UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            Path(name).replace(_path(place, key))
        finally:
            Path(name).unlink(missing_ok=True)
        _tidy(place)


def discard(key: str) -> None:
    """Throw away what was kept: the kernel does not take it."""
    place = directory()
    if place is not None:
        with contextlib.suppress(OSError):
            _path(place, key).unlink(missing_ok=True)


def _tidy(place: Path) -> None:
    old = sorted(place.glob("*.bpf"), key=lambda path: path.stat().st_mtime)[:-KEPT]
    for path in (*old, *place.glob(f"{UNFINISHED}*")):
        path.unlink(missing_ok=True)


def _path(place: Path, key: str) -> Path:
    return place / f"{key}.bpf"


def _is_ours(place: Path) -> bool:
    try:
        return _is_safe(place.stat())
    except OSError:
        return False


def _is_safe(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS
