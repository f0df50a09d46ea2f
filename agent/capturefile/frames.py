"""What the readers of capture files share: the frame, the error, and the file as a moving window."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FRAME_BYTES = 262144
"""What libpcap believes possible, too."""
MAX_TS_NS = 2**63 - 1
"""In the year 2262. No later time is believed, so that it fits the records made of it."""
SECOND_NS = 10**9

_CHUNK = 256 * 1024


class PcapError(ValueError):
    """The file is not a capture file that we read, or it is damaged or cut.

    Attributes:
        offset: Byte of the file, from 0, of the block or packet in question.
        what: A sentence without the offset.
    """

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"{what} (byte {offset} of the file)")
        self.offset = offset
        self.what = what


class Frame(NamedTuple):
    """One captured frame."""

    ts_ns: int
    """Nanoseconds since 1970, UTC, 0 to `MAX_TS_NS`; 0 if the file has no time for it (simple packet block)."""
    interface_id: int
    """Number of the interface in its section of a pcapng file; 0 in a pcap file."""
    interface_name: str
    """Empty if the file does not say."""
    linktype: int
    """A `LinkType`, if it is one that we can read."""
    data: bytes
    original_length: int
    """On the wire: more than `len(data)` if the capture cut it."""
    comments: tuple[str, ...]
    outbound: bool | None = None
    """Sent or received by that interface, if the file says so."""


class Source:
    """The file as a window that moves forward."""

    def __init__(self, file: BinaryIO) -> None:
        # read1 gives what is there: a live capture in a pipe must not wait until a chunk is full.
        self._read: Callable[[int], bytes | None] = getattr(file, "read1", file.read)
        self._start = 0
        self.window = b""
        self.at = 0
        """Where in the window reading goes on."""

    @property
    def offset(self) -> int:
        """Byte of the file where reading goes on."""
        return self._start + self.at

    def ahead(self) -> int:
        """How many bytes of the window are not read yet."""
        return len(self.window) - self.at

    def has(self, count: int) -> bool:
        """Whether so many bytes lie ahead in the window, after reading more if needed. It then begins at `at`."""
        lacking = count - self.ahead()
        if lacking <= 0:
            return True
        chunks = [self.window[self.at :]]
        while lacking > 0 and (chunk := self._read(max(lacking, _CHUNK))):
            chunks.append(chunk)
            lacking -= len(chunk)
        self._start += self.at
        self.window, self.at = b"".join(chunks), 0
        return lacking <= 0

    def need(self, count: int, where: str) -> None:
        """Raise the error of a cut file unless so many bytes lie ahead."""
        if not self.has(count):
            raise PcapError(self.offset, f"the file ends inside {where}: it was cut, or is still being written")
