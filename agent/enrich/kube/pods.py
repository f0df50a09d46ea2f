"""Pods by UID and by address, some of them beyond their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.context.cluster import NodeLocal
from agent.enrich.kube.addresses import AddressBook

if TYPE_CHECKING:
    from agent.context.cluster import Pod
    from agent.enrich.kube.facts import PodFacts

MAX_DEPARTED = 4096
"""Deleted pods that are remembered; the oldest make room."""


class Pods:
    """An index of the pods of this node and, by address only, of those elsewhere."""

    def __init__(self) -> None:
        self._book = AddressBook()
        self._here: dict[str, PodFacts] = {}
        self._departed: dict[str, tuple[int, Pod]] = {}
        self._node_locals: dict[str, PodFacts] = {}

    def update_here(self, old: PodFacts | None, new: PodFacts | None, ts_ns: int) -> None:
        """Take note of a change of a pod on this node."""
        self._book.update(old, new, ts_ns)
        if old is not None:
            del self._here[old.key]
            self._node_locals.pop(old.key, None)
        if new is not None:
            self._here[new.key] = new
            if new.node_local is not None and new.finished_ns is None:
                self._node_locals[new.key] = new
        elif old is not None:
            self._departed[old.key] = ts_ns, old.pod

    def update_elsewhere(self, old: PodFacts | None, new: PodFacts | None, ts_ns: int) -> None:
        """Take note of a change of another node's pod."""
        self._book.update(old, new, ts_ns)

    def at(self, address: bytes, ts_ns: int) -> Pod | None:
        """The pod that had the address at that time."""
        facts = self._book.at(address, ts_ns)
        return facts.pod if facts else None

    def here(self) -> list[Pod]:
        """The pods of this node."""
        return [facts.pod for facts in self._here.values()]

    def by_uid(self, uid: str) -> Pod | None:
        """A pod of this node, also one that was deleted some minutes ago."""
        facts = self._here.get(uid)
        return facts.pod if facts else self._departed.get(uid, (0, None))[1]

    def node_local(self) -> NodeLocal | None:
        """NodeLocal DNSCache: the newest, while one replaces the other."""
        newest = max(self._node_locals.values(), key=lambda facts: facts.start_ns, default=None)
        return NodeLocal(newest.pod, newest.node_local or ()) if newest else None

    def forget(self, before_ns: int) -> None:
        """Drop what ended before that, and the oldest of what is too much."""
        self._book.forget(before_ns)
        while self._departed:
            uid, (ts_ns, _) = next(iter(self._departed.items()))
            if ts_ns >= before_ns and len(self._departed) <= MAX_DEPARTED:
                return
            del self._departed[uid]
