"""Replies that are recorded before their queries: clocks and processors disagree a little."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.hop.record import Hop
    from agent.session.model import Key

MAX_EARLY = 256
"""Keys of which replies are kept; the oldest make room."""
MAX_EARLY_HOPS = 8
SETTLE_NS = 50_000_000
"""How long a reply may stand before its query: processors hand over their packets each for itself."""


class EarlyReplies:
    """Keeps the hops of replies that fit no open lookup, for the query that may come right behind."""

    def __init__(self) -> None:
        self._hops: OrderedDict[Key, list[Hop]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._hops)

    def keep(self, key: Key, reply: Hop) -> bool:
        """Keep one hop; whether it is another message than the one before it, which a capture may show twice."""
        early = self._hops.setdefault(key, [])
        is_new = not (early and _is_again(early[-1], reply))
        if len(early) < MAX_EARLY_HOPS:
            early.append(reply)
        if len(self._hops) > MAX_EARLY:
            self._hops.popitem(last=False)
        return is_new

    def of(self, key: Key, ts_ns: int) -> Iterator[tuple[Hop, bool]]:
        """Give back what was kept for a query of that time; with each hop whether `keep` called it new."""
        before: Hop | None = None
        for reply in self._hops.pop(key, ()):
            if abs(ts_ns - reply.ts_ns) <= SETTLE_NS:
                yield reply, before is None or not _is_again(before, reply)
                before = reply


def _is_again(before: Hop, reply: Hop) -> bool:
    """The departure and the arrival that a capture file shows as one packet, a nanosecond apart."""
    return before.message_id == reply.message_id and reply.ts_ns - before.ts_ns <= 1
