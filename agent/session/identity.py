"""Whose packet it is: the client before any translation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.session.model import Endpoint, Key
from agent.session.sighting import TCP, V4_MAPPED

if TYPE_CHECKING:
    from agent.session.sighting import Detail

LOOPBACK_V6 = bytes(15) + b"\x01"
LOOPBACK_V4 = V4_MAPPED + b"\x7f"
REPLY_CT_INFO = 3
"""enum ip_conntrack_info: from here on the packet goes in the reply direction."""


def connecting_key(client: Endpoint, scope: int) -> Key:
    """The key of a client's request for a TCP connection, which has no question yet."""
    return Key(client, TCP, 0, b"", 0, 0, scope)


def clients(detail: Detail, *, response: bool) -> tuple[Endpoint, Endpoint]:
    """The client before any translation, and as this packet spells it.

    The conntrack entry's original direction is the query's, unless the reply came first or was tracked alone.
    """
    spelled = Endpoint(detail.daddr, detail.dport) if response else Endpoint(detail.saddr, detail.sport)
    tracked = bool(detail.ct_original_sport) and (detail.ct_info >= REPLY_CT_INFO) == response
    return (Endpoint(detail.ct_original_saddr, detail.ct_original_sport) if tracked else spelled), spelled


def is_loopback(address: bytes) -> bool:
    """Whether every namespace has its own host of this address."""
    return address.startswith(LOOPBACK_V4) or address == LOOPBACK_V6
