"""Hops in capture files: what the comment of each packet says, for people and for `dnstrail replay`.

A comment is a sentence, then one JSON object that begins with the key `dnstrail`, whose value is the version of this
format. The object has the fields of the record (`agent.hop.record`) that are not zero, except these:

- the time is the packet's, as wall clock; the bytes are the packet's, too;
- `drop`: reason, location and kernel stack by name, because numbers and addresses mean nothing on another machine;
- `local`: whether the destination address belonged to that network namespace;
- `lost`: records that the capture lost before this packet, and when;
- `mark`: the packet is none. `begin` stands at the start of each file, `end` at the end of the recording.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import msgspec

from agent.capturefile.rebuild import header_bytes
from agent.hop.drops import Kernel
from agent.hop.endpoint import V4_MAPPED, address_to_text
from agent.hop.record import (
    DETAIL,
    DROP,
    FRAGMENT,
    HEAD,
    STACK_FRAMES,
    TCP,
    UDP,
    Detail,
    Event,
    Head,
    Hop,
    name_text,
)
from agent.wire.packet import LinkType

if TYPE_CHECKING:
    from agent.capturefile.frames import Frame

VERSION = 1
KEY = '{"dnstrail":'
V4, V6 = 4, 6
ADDRESS_BYTES = 16
MAX_NAMES = 65536
"""Names of kernel functions, and of drop reasons, that a recording may bring: no kernel has as many in DNS's way."""
MAX_NAME = 128
NAME_STRIDE = 16
"""Distance of the addresses that stand for names, so that an address within a function names it too."""
EVENTS = {int(event): event.name.lower().replace("_", " ") for event in Event}

_NOT_STORED = frozenset({"ts_ns", "tail_bytes", "location", "reason", "stack_frames"})


_KEYS = {"message_id": "message"}
"""Keys that differ from their field's name: files outlive names."""


def _fields(part: type[NamedTuple]) -> list[tuple[str, str, str]]:
    """Key, struct format and C type of each field."""
    return [
        (_KEYS.get(name, name), *hint.__metadata__) for name, hint in get_type_hints(part, include_extras=True).items()
    ]


_HEAD = _fields(Head)
_DETAIL = _fields(Detail)
_HEAD_NUMBERS = [(at, name) for at, (name, _, _) in enumerate(_HEAD) if name not in _NOT_STORED]
_DETAIL_NUMBERS: list[tuple[int, str]] = [
    (at, name) for at, (name, form, _) in enumerate(_DETAIL) if len(form) == 1 and name not in _NOT_STORED
]
_ADDRESSES = [(at, name) for at, (name, form, ctype) in enumerate(_DETAIL) if len(form) > 1 and ctype == "__u8"]
_NAMES = [(at, name) for at, (name, form, ctype) in enumerate(_DETAIL) if len(form) > 1 and ctype == "char"]
_NO_ADDRESS = bytes(ADDRESS_BYTES)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Lost(NamedTuple):
    """Records lost by the capture, wall clock."""

    records: int
    start_ns: int
    end_ns: int


class Mark(NamedTuple):
    """A packet that is none."""

    kind: str
    """`begin` of a file, or `end` of the recording."""
    node: str = ""
    ports: tuple[int, ...] = ()
    first: bool = False
    """The recording begins with this file, and so did the capture."""


class Restored(NamedTuple):
    """What a packet of a recording says."""

    hop: Hop | None = None
    payload: bytes = b""
    """All bytes of its message that the file has; the hop has those that the kernel program sent with it."""
    local: bool | None = None
    lost: Lost | None = None
    mark: Mark | None = None


def comment_of(hop: Hop, detail: Detail, kernel: Kernel, *, local: bool | None = None, lost: Lost | None = None) -> str:
    """The comment of one hop's packet."""
    values: dict[str, object] = {"dnstrail": VERSION}
    values.update((name, hop[at]) for at, name in _HEAD_NUMBERS if hop[at])
    values.update((name, detail[at]) for at, name in _DETAIL_NUMBERS if detail[at])
    texts: tuple[Any, ...] = detail
    values.update((name, address_to_text(texts[at])) for at, name in _ADDRESSES if texts[at] != _NO_ADDRESS)
    values.update((name, _name(texts[at])) for at, name in _NAMES if texts[at][0])
    if hop.event == DROP:
        values["drop"] = _drop_of(hop, detail, kernel)
    if local is not None:
        values["local"] = local
    if lost is not None:
        values["lost"] = lost
    return f"{_sentence(hop, detail, kernel, lost)} {_encode(values).decode()}"


def mark_comment(mark: Mark, *, lost: Lost | None = None) -> str:
    """The comment of a packet that is none."""
    values: dict[str, object] = {"dnstrail": VERSION, "mark": mark.kind}
    values.update({name: value for name, value in mark._asdict().items() if value and name != "kind"})
    if lost is not None:
        values["lost"] = lost
    ports = f" of port {', '.join(map(str, mark.ports))}" if mark.ports else ""
    words = f"{mark.kind} of a recording by dnstrail{ports}{f' on {mark.node}' if mark.node else ''}{_loss_words(lost)}"
    return f"{words} {_encode(values).decode()}"


@lru_cache(maxsize=4096)
def _name(value: bytes) -> str:
    """A name field, each byte as one character: exact whatever it holds."""
    return value.rstrip(b"\0").decode("latin-1")


def _drop_of(hop: Hop, detail: Detail, kernel: Kernel) -> dict[str, object]:
    """Why and where the packet was freed, by name; what has no name is null."""
    # As the core looks them up: return addresses lie behind their call.
    stack = [kernel.symbol(address - 1) for address in hop.stack]
    drop: dict[str, object] = {"reason": kernel.reasons.get(detail.reason), "location": kernel.symbol(detail.location)}
    return drop | ({"stack": stack} if stack else {})


def _sentence(hop: Hop, detail: Detail, kernel: Kernel, lost: Lost | None) -> str:
    words = EVENTS.get(hop.event, "seen")
    if hop.event == DROP:
        drop = kernel.describe(hop)
        words += f" {drop.reason or 'without a reason'} in {drop.location or 'an unnamed function'}"
        words += f" ({drop.hook})" if drop.hook else ""
    device = name_text(detail.ifname)
    words += f"{' at' if hop.event == DROP and device else ''} {device}".rstrip() + f" in netns {hop.netns}"
    if detail.tgid:
        words += f", {name_text(detail.comm)}[{detail.tgid}]"
    return _printable(words) + _loss_words(lost)


def _printable(words: str) -> str:
    """A process may give itself any name: no control characters in a comment."""
    if words.isprintable():
        return words
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in words)


def _loss_words(lost: Lost | None) -> str:
    return f"; {lost.records} records were lost before this" if lost else ""


class Names:
    """Names of a recording's drop reasons and kernel functions, and numbers that stand for them in hops."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    @property
    def kernel(self) -> Kernel:
        """What names them again."""
        return Kernel(self._names, lambda address: self._names.get(address // NAME_STRIDE))

    def reason(self, name: object) -> int:
        """The number of a drop reason; 0 for none."""
        text = str(name)[:MAX_NAME] if name else ""
        number = self._numbers.get(text, 0)
        if text and not number and len(self._names) < MAX_NAMES:
            number = self._numbers[text] = len(self._numbers) + 1
            self._names[number] = text
        return number

    def address(self, name: object) -> int:
        """The address of a kernel function; 0 for one that has no name."""
        return self.reason(name) * NAME_STRIDE


def restore(frame: Frame, names: Names) -> Restored | None:
    """What a packet says if it is one of a recording; None if it is any other, or if somebody tampered with it."""
    for comment in frame.comments:
        at = comment.rfind(KEY)
        if at < 0:
            continue
        try:
            return _restored(_decode(comment[at:]), frame, names)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error):
            continue
    return None


def _restored(values: dict[str, Any], frame: Frame, names: Names) -> Restored:
    if values["dnstrail"] != VERSION:
        raise ValueError("another version of the format")
    lost = Lost(*map(int, values["lost"])) if "lost" in values else None
    if "mark" in values:
        return Restored(lost=lost, mark=_mark(values))
    if frame.linktype != LinkType.RAW:
        raise ValueError("converted by another tool")
    hop, payload = _hop(values, frame, names)
    local = values.get("local")
    return Restored(hop, payload, local if isinstance(local, bool) else None, lost)


def _mark(values: dict[str, Any]) -> Mark:
    ports = tuple(map(int, values.get("ports", ())))
    return Mark(str(values["mark"]), str(values.get("node", ""))[:MAX_NAME], ports, bool(values.get("first")))


def _hop(values: dict[str, Any], frame: Frame, names: Names) -> tuple[Hop, bytes]:
    """The hop, and the bytes that the file has of its message.

    Packing checks that every number fits its field.
    """
    head = Head._make(values.get(name, 0) for name, _, _ in _HEAD)
    if head.event not in EVENTS or head.family not in (V4, V6) or head.protocol not in (UDP, TCP):
        raise ValueError("not a hop")
    payload = b"" if head.flags & FRAGMENT else frame.data[header_bytes(head.family, head.protocol) :]
    captured = payload[: values.get("captured_bytes", 0)]
    drop, tail = values.get("drop", {}), b""
    stack = [names.address(name) + 1 if name else 0 for name in drop.get("stack", ())]
    if head.event == DROP:
        tail = struct.pack(f"={STACK_FRAMES}Q", *stack, *[0] * (STACK_FRAMES - len(stack)))
    found = {
        "location": names.address(drop.get("location")),
        "reason": names.reason(drop.get("reason")),
        "stack_frames": len(stack),
        "captured_bytes": len(captured),
    }
    fixed = DETAIL.pack(*(_value(values | found, name, form) for name, form, _ in _DETAIL))
    tail += captured
    head = head._replace(ts_ns=frame.ts_ns, tail_bytes=len(tail))
    HEAD.pack(*head)
    return Hop(*head, rest=fixed + tail), payload


def _value(values: dict[str, Any], name: str, form: str) -> int | bytes:
    """A field of the detail, from its form in the object."""
    value: Any = values.get(name)
    if value is None:
        return 0 if len(form) == 1 else b""
    if len(form) == 1:
        return int(value)
    return _text_bytes(value, address=name.endswith("addr"))


@lru_cache(maxsize=65536)
def _text_bytes(text: str, *, address: bool) -> bytes:
    if not address:
        return text.encode("latin-1")
    packed = ip_address(text).packed
    return packed if len(packed) == ADDRESS_BYTES else V4_MAPPED + packed
