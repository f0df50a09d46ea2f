"""What the recordings of a replay say beside the hops: nodes, names, whose address was whose, known bytes."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar

from agent.capturefile.hop_comment import Names, restore
from agent.hop.record import DETAIL, UDP

if TYPE_CHECKING:
    from agent.capturefile.frames import Frame
    from agent.capturefile.hop_comment import Restored
    from agent.capturefile.inputs import Input
    from agent.hop.record import Hop

MAX_REMEMBERED = 65536
MAX_NODES = 4096
NETNS_BITS = 32

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recorded:
    """The memory of one replay, bounded."""

    def __init__(self) -> None:
        self.names = Names()
        self.node = ""
        """Name of the first node."""
        self._local: OrderedDict[tuple[int, bytes], bool] = OrderedDict()
        self._brought: OrderedDict[int, None] = OrderedDict()
        self._nodes: dict[str, int] = {}
        self._node_of: dict[Input, int] = {}

    def is_local(self, netns: int, address: bytes) -> bool | None:
        """Whether the namespace owned the address when it was recorded; None if nobody looked."""
        return self._local.get((netns, address))

    def read(self, source: Input, frame: Frame) -> Restored | None:
        """What a packet says if it is one of a recording."""
        if not frame.comments:
            return None
        found = restore(frame, self.names)
        if found is None:
            return None
        if found.mark is not None and found.mark.kind == "begin":
            self._node_of[source] = self._number_of(found.mark.node)
            self.node = self.node or found.mark.node
        if found.hop is not None:
            return found._replace(hop=self._told_apart(source, found, found.hop))
        return found

    def _number_of(self, node: str) -> int:
        if node not in self._nodes and len(self._nodes) >= MAX_NODES:
            return MAX_NODES
        return self._nodes.setdefault(node, len(self._nodes))

    def _told_apart(self, source: Input, found: Restored, seen: Hop) -> Hop:
        """The hop as the core shall see it.

        The host's namespace has the same number on every node, so those of a second node get a high bit.
        """
        node = self._node_of.get(source, 0)
        if node:
            seen = seen._replace(netns=seen.netns | node << NETNS_BITS)
        if found.local is not None:
            _remember(self._local, (seen.netns, seen.detail.daddr), found.local)
        return self._with_bytes(seen, found.payload) if seen.protocol == UDP and seen.message_id else seen

    def _with_bytes(self, seen: Hop, payload: bytes) -> Hop:
        """Bytes that came with an earlier hop are given with this one if that hop's file is gone."""
        detail = seen.detail
        if not detail.captured_bytes and payload and seen.message_id not in self._brought:
            fixed = detail._replace(captured_bytes=len(payload))
            rest = DETAIL.pack(*fixed) + seen.rest[DETAIL.size :] + payload
            seen = seen._replace(rest=rest, tail_bytes=len(rest) - DETAIL.size)
        elif not detail.captured_bytes:
            return seen
        _remember(self._brought, seen.message_id, None)
        return seen


def _remember(known: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    known[key] = value
    if len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
