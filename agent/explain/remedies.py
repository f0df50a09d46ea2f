"""What to do about an error, by what its server said of it: the extended error (RFC 8914) before the response code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.wire.rcodes import BADCOOKIE, BADVERS, FORMERR, NOTAUTH, NOTIMP, NOTZONE, NXRRSET, YXDOMAIN, YXRRSET

if TYPE_CHECKING:
    from agent.wire.extended_errors import ExtendedError

DNSSEC = frozenset({1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 25, 27})
"""Extended errors that say that an answer did not validate, or could not."""
_VALIDATION = (
    "Look at the DNSSEC of the zone: its keys, its signatures and the DS record of its parent (delv, or dig +cd, which "
    "asks for the answer without validation)."
)
_SIGNATURE_TIMES = "Whoever runs the zone must sign it again; a wrong clock of the validating server looks the same."
_POLICY = (
    "A list or rule of the server refuses this name or this client: if that is wrong, ask whoever runs the server."
)
_AUTHORITY = "Look at the network from the DNS server to the name servers of this zone, and at those name servers."
_STALE = "The answer is an old one from the cache: find out why the server cannot reach its upstreams."

BY_EXTENDED_ERROR: dict[int, str] = {
    **dict.fromkeys(DNSSEC, _VALIDATION),
    7: _SIGNATURE_TIMES,
    8: _SIGNATURE_TIMES,
    25: _SIGNATURE_TIMES,
    3: _STALE,
    19: _STALE,
    13: "The error is from the server's cache: look for the first failure of this name, some time earlier.",
    14: "The server had not loaded its data yet: wait, and send it queries only when it is ready.",
    **dict.fromkeys((4, 15, 16, 17, 18, 28), _POLICY),
    20: "The server does not serve this zone, and does not resolve other names for this client: ask another server.",
    21: "The server does not support this query: look at its record type, its opcode and its flags.",
    22: _AUTHORITY,
    23: _AUTHORITY,
    24: "The data that the server got for this name is not valid: look at the answers of the zone's name servers.",
    31: "The server limits the rate of queries: find the client that asks so often, or raise the limit.",
    32: "The client has used up its quota at this server: find what asks so often, or raise the quota.",
}

BETWEEN_NEIGHBOURS = {
    BADVERS: "The server does not know the EDNS version of the query: the client must ask again with version 0.",
    BADCOOKIE: "The client must ask again with the cookie from the reply. If it does not, it does not support "
    "cookies; if that fails too, it may be asking a pool of servers that do not share their secret.",
}
"""Response codes that exist between a server and its direct client alone, so that no server passes them on: BADVERS
(RFC 6891 6.1.3) and BADCOOKIE (RFC 7873 5.3)."""
_UPDATE = "The update's own conditions were not met, or it went to the wrong server: look at the client that sent it."
OF_CLIENTS = {
    FORMERR: "The server could not read the query: look at its EDNS options and flags, and at the server's log.",
    NOTIMP: "The server does not support this query: look at its type, its opcode and its flags.",
    **dict.fromkeys((YXDOMAIN, YXRRSET, NXRRSET, NOTZONE), _UPDATE),
    NOTAUTH: "The server does not serve this zone, or did not accept the client's key (TSIG): look at both.",
}
"""Errors that are about the query more than about the name."""
UNKNOWABLE = (
    "Look at the server's own log, or on its node, for this name and time: which servers it asked shows whose error "
    "it is."
)
REJECTED = (
    "The server did not accept what its upstream answered: look at its log; DNSSEC validation is the usual reason "
    "(dig +cd asks without it)."
)


def remedy(errors: list[ExtendedError], rcode: int, otherwise: str | None = None) -> str | None:
    """What to do about an error; None where nothing better is known than the cause's own remedy.

    Args:
        errors: extended errors of the reply.
        rcode: its response code.
        otherwise: what to do if neither says anything.
    """
    known = next((BY_EXTENDED_ERROR[error.code] for error in errors if error.code in BY_EXTENDED_ERROR), None)
    return known or BETWEEN_NEIGHBOURS.get(rcode) or otherwise
