"""What the parser says about bytes that are not a DNS message."""

from __future__ import annotations


class WireError(ValueError):
    """The bytes break the message format (RFC 1035 4.1).

    Attributes:
        offset: Byte of the message, from 0, at which it went wrong.
    """

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(f"{what} at byte {offset}")
        self.offset = offset


class CutError(WireError):
    """The bytes end before the message does: cut by the sender, by the path, or by the capture's snap length."""
