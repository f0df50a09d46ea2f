"""Order between this process's memory accesses, as the kernel's programs on other CPUs see them."""

from __future__ import annotations

import threading


class Fence:
    """Called, it keeps what follows behind what went before.

    A lock is released and taken: a store-release, then a load-acquire of the same word.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        """Let nothing that follows happen before what went before."""
        self._lock.release()
        self._lock.acquire()
