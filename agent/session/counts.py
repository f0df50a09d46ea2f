"""What the session table did, in numbers that only grow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agent.session.model import Background


@dataclass(slots=True)
class Counts:
    """What the table did, each a number that only grows."""

    hops: int = 0
    sessions: int = 0
    malformed: int = 0
    """Packets on a DNS port that no DNS message could be read from."""
    cut: int = 0
    """The same, because the capture has too few of their bytes."""
    questionless: Counter[int] = field(default_factory=Counter)
    """Messages without a question that belong to no lookup, by opcode: cookies (RFC 7873 5.4), stateful operations
    (RFC 8490), status."""
    unmatched: int = 0
    """Hops of a message whose bytes never arrived here."""
    benign_drops: int = 0
    stray_errors: int = 0
    """ICMP errors about packets of no open session."""
    fragments: int = 0
    """Hops of later IP fragments: their first ones tell the path."""
    late: int = 0
    """Messages of sessions that were closed already."""
    started_mid_lookup: int = 0
    """Replies to queries that were sent before the agent started."""
    unasked: int = 0
    """Replies to no query that was seen, from other ports than those of DNS."""
    recalled: int = 0
    """Replies that stood before their queries."""
    evicted: int = 0
    """Sessions closed before their time because there were too many."""
    overflowed: int = 0
    """Hops that a bound kept out of their session."""
    further: int = 0
    """Messages of answers of many messages (zone transfers) beyond those that a session keeps."""
    unused_connections: int = 0
    """TCP connections that came about and carried no message."""
    upstream_exchanges: int = 0
    """Lookups of servers on this node at servers beyond it, told as part of their clients' sessions."""
    background: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Background, 0))
    """Lookups that servers made for themselves, by kind."""
    background_unanswered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Background, 0))
    """Those of them without a reply."""

    @property
    def without_question(self) -> int:
        """All of `questionless`."""
        return self.questionless.total()
