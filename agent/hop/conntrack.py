"""What the conntrack entry of a packet says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.hop.endpoint import Endpoint

if TYPE_CHECKING:
    from agent.hop.record import Detail

REPLY_CT_INFO = 3
"""enum ip_conntrack_info: from here on the packet goes in the reply direction."""


def clients(detail: Detail, *, response: bool) -> tuple[Endpoint, Endpoint]:
    """The client before any translation, and as this packet spells it.

    The conntrack entry's original direction is the query's, unless the reply came first or was tracked alone.
    """
    spelled = Endpoint(detail.daddr, detail.dport) if response else Endpoint(detail.saddr, detail.sport)
    tracked = bool(detail.ct_original_sport) and (detail.ct_info >= REPLY_CT_INFO) == response
    return (Endpoint(detail.ct_original_saddr, detail.ct_original_sport) if tracked else spelled), spelled
