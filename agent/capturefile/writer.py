"""Writes hops to capture files that Wireshark reads, with everything that `dnstrail replay` needs."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from agent.capturefile.hop_comment import Lost, Mark, comment_of, mark_comment
from agent.capturefile.pcapng import MAX_INTERFACES, PcapngWriter
from agent.capturefile.rebuild import NO_MESSAGE, rebuild
from agent.hop.record import DROP, FRAGMENT, RESPONSE, RX, SOCKET_RX, SOCKET_TX, TCP, TX, name_text

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import BinaryIO

    from agent.capturefile.rotation import FileRing
    from agent.hop.drops import Kernel
    from agent.hop.record import Detail, Hop

MAX_KNOWN_BYTES = 8 << 20
"""Bytes of messages that are kept for their later hops."""
MAX_ADDRESSES = 65536
OUTBOUND = {TX: True, SOCKET_TX: True, RX: False, SOCKET_RX: False}
ARRIVALS = frozenset({RX, SOCKET_RX, DROP})


class Setting(NamedTuple):
    """What a recording is made with."""

    kernel: Kernel
    is_local: Callable[[int, bytes], bool | None]
    wall_offset_ns: int
    """One for the whole recording: the order of events is worth more than following steps of the clock."""
    node: str
    ports: tuple[int, ...]
    max_bytes: int


class KnownBytes:
    """The bytes of recent messages and segments: the kernel program sends them with the first hop alone."""

    def __init__(self, max_bytes: int = MAX_KNOWN_BYTES) -> None:
        self._left = max_bytes
        self._known: OrderedDict[Hashable, bytes] = OrderedDict()

    def of(self, hop: Hop, detail: Detail) -> bytes:
        """The bytes of this hop's message, its own or those of an earlier hop; empty if they are not known."""
        if hop.flags & FRAGMENT:
            return b""
        key = self._segment(hop, detail) if hop.protocol == TCP else hop.message_id
        own = hop.payload(detail)
        if not own or not key:
            return own or (self._known.get(key, b"") if key else b"")[: detail.payload_bytes]
        self._keep(key, own)
        return own

    @staticmethod
    def _segment(hop: Hop, detail: Detail) -> Hashable:
        """Equal for all hops of one segment, whatever the server's address."""
        response = bool(hop.flags & RESPONSE)
        client = (detail.daddr, detail.dport) if response else (detail.saddr, detail.sport)
        return client, response, hop.sequence, detail.payload_bytes

    def _keep(self, key: Hashable, raw: bytes) -> None:
        self._left += len(self._known.pop(key, b"")) - len(raw)
        self._known[key] = raw
        while self._left < 0:
            self._left += len(self._known.popitem(last=False)[1])


class Numbers:
    """Small numbers for the addresses of packets: enough to tell them apart, and nobody learns kernel addresses."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, int] = OrderedDict()
        self._next = 0

    def of(self, address: int) -> int:
        """Equal for equal addresses, as long as they are remembered; 0 for none."""
        number = self._known.get(address)
        if number is None and address:
            self._next += 1
            number = self._known[address] = self._next
            if len(self._known) > MAX_ADDRESSES:
                self._known.popitem(last=False)
        return number or 0


class Recorder:
    """One recording.

    Attributes:
        packets: how many were written.
        files: how many were begun.
    """

    def __init__(self, files: FileRing, setting: Setting, started_ns: int) -> None:
        self.packets = 0
        self.files = 0
        self._ring = files
        self._setting = setting
        self._bytes = KnownBytes()
        self._numbers = Numbers()
        self._lost: Lost | None = None
        self._file: BinaryIO
        self._writer: PcapngWriter
        self._interfaces: dict[tuple[int, bytes], int]
        self._begin(started_ns + setting.wall_offset_ns)

    def take(self, hop: Hop) -> None:
        """Write one hop."""
        setting, detail = self._setting, hop.detail
        ts_ns = hop.ts_ns + setting.wall_offset_ns
        if self._writer.size >= setting.max_bytes or len(self._interfaces) >= MAX_INTERFACES - 1:
            self._file.close()
            self._begin(ts_ns)
        local = setting.is_local(hop.netns, detail.daddr) if hop.event in ARRIVALS else None
        hop = hop._replace(skb=self._numbers.of(hop.skb))
        data, original = rebuild(hop, detail, self._bytes.of(hop, detail))
        self._writer.write(
            self._interface(hop.netns, detail.ifname),
            ts_ns,
            data,
            original_length=original,
            comment=comment_of(hop, detail, setting.kernel, local=local, lost=self._lost),
            outbound=OUTBOUND.get(hop.event),
        )
        self._lost = None
        self.packets += 1

    def lose(self, records: int, start_ns: int, end_ns: int) -> None:
        """Note that the capture lost records: said with the next packet."""
        offset = self._setting.wall_offset_ns
        before = self._lost or Lost(0, start_ns + offset, 0)
        self._lost = Lost(before.records + records, before.start_ns, end_ns + offset)

    def flush(self) -> None:
        """Let readers see what was written."""
        self._file.flush()

    def end(self, now_ns: int) -> None:
        """Say that the recording ends, which tells lookups that ended with it from those that got no reply."""
        self._mark(now_ns + self._setting.wall_offset_ns, Mark("end"))
        self._file.close()

    def _begin(self, ts_ns: int) -> None:
        _, self._file = self._ring.open()
        self._writer = PcapngWriter(self._file)
        self._writer.add_interface("dnstrail", description="remarks of the recording itself")
        self._interfaces = {}
        setting = self._setting
        self._mark(ts_ns, Mark("begin", setting.node, setting.ports, first=not self.files))
        self.files += 1

    def _mark(self, ts_ns: int, mark: Mark) -> None:
        self._writer.write(0, ts_ns, NO_MESSAGE, comment=mark_comment(mark, lost=self._lost))
        self._lost = None

    def _interface(self, netns: int, ifname: bytes) -> int:
        """The number of a device of a namespace in this file."""
        number = self._interfaces.get((netns, ifname))
        if number is None:
            name = name_text(ifname) or "no device"
            number = self._writer.add_interface(f"{name}@{netns}", description=f"{name} in network namespace {netns}")
            self._interfaces[netns, ifname] = number
        return number
