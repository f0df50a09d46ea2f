"""Extended DNS errors: what a server adds to a response code (RFC 8914), as words that are safe to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.wire.message import EXTENDED_ERROR, options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.wire.message import Summary

MAX_TEXT = 120
"""Characters of EXTRA-TEXT that are shown; RFC 8914 2 sets no bound."""
CODE_BYTES = 2
OPTION = EXTENDED_ERROR.to_bytes(2, "big")

NAMES = {
    0: "Other",
    1: "Unsupported DNSKEY Algorithm",
    2: "Unsupported DS Digest Type",
    3: "Stale Answer",
    4: "Forged Answer",
    5: "DNSSEC Indeterminate",
    6: "DNSSEC Bogus",
    7: "Signature Expired",
    8: "Signature Not Yet Valid",
    9: "DNSKEY Missing",
    10: "RRSIGs Missing",
    11: "No Zone Key Bit Set",
    12: "NSEC Missing",
    13: "Cached Error",
    14: "Not Ready",
    15: "Blocked",
    16: "Censored",
    17: "Filtered",
    18: "Prohibited",
    19: "Stale NXDOMAIN Answer",
    20: "Not Authoritative",
    21: "Not Supported",
    22: "No Reachable Authority",
    23: "Network Error",
    24: "Invalid Data",
    25: "Signature Expired before Valid",
    26: "Too Early",
    27: "Unsupported NSEC3 Iterations Value",
    28: "Unable to conform to policy",
    29: "Synthesized",
    30: "Invalid Query Type",
    31: "Rate Limited",
    32: "Over Quota",
}
"""IANA, Domain Name System (DNS) Parameters, Extended DNS Error Codes."""


class ExtendedError(NamedTuple):
    """One of them."""

    code: int
    text: str
    """EXTRA-TEXT: printable, without double quotes, cut at `MAX_TEXT`; empty where there is none."""

    @property
    def name(self) -> str:
        """As in the IANA registry; empty for a code that is not in it."""
        return NAMES.get(self.code, "")

    @property
    def words(self) -> str:
        """For evidence. What the server wrote itself stands between quotes."""
        known = f"{self.code} {self.name}".rstrip()
        return f'extended error {known}: "{self.text}"' if self.text else f"extended error {known}"


def extended_errors(wire: bytes, summary: Summary) -> Iterator[ExtendedError]:
    """Those of a reply, in their order. Never raises.

    Args:
        wire: the message.
        summary: what `agent.wire.message.summarize` said of it.
    """
    if not summary.arcount or OPTION not in wire:
        # Most replies have none: two comparisons instead of a walk over the records.
        return
    for code, data in options(wire, summary):
        if code == EXTENDED_ERROR and len(data) >= CODE_BYTES:
            yield ExtendedError(int.from_bytes(data[:CODE_BYTES], "big"), _safe(data[CODE_BYTES:]))


def _safe(raw: bytes) -> str:
    """EXTRA-TEXT is UTF-8, and may end with a null (RFC 8914 2): nothing of it may disturb a terminal or a line."""
    text = raw[: 4 * MAX_TEXT].rstrip(b"\0").decode("utf-8", "replace").replace('"', "'")
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
