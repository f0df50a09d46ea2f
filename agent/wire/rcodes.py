"""Response codes that code has to know, by the IANA registry's names (RFC 1035 4.1.1, 2136, 6891, 7873)."""

from __future__ import annotations

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, YXRRSET, NXRRSET, NOTAUTH, NOTZONE = range(11)
BADVERS, BADCOOKIE = 16, 23

ANSWERED = frozenset({NOERROR, NXDOMAIN})
"""Every resolver takes a reply with one of these for the answer; with any other it may ask again or elsewhere."""
