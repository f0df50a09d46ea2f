"""The kernel's log of lookups, as `bpf/lookup.h` fills it: hops in, lookups and the hops that stay out of them."""

import struct
import zlib
from dataclasses import dataclass, field

from agent.hop.lookup import (
    BODY_BYTES,
    HEAD_BYTES,
    LOOKUP_HEAD,
    LOOKUP_HOPS,
    QUERY_AT,
    QUERY_BYTES,
    RECORD_BYTES,
    REPLY_AT,
    REPLY_BYTES,
    LookupHead,
    Lookups,
)
from agent.hop.record import CONNTRACK, DETAIL, DROP, FRAGMENT, HEAD, ICMP, ORIGIN, RESPONSE, UDP, Detail, Hop
from agent.wire.message import summarize


def number(*parts: object) -> int:
    """Of anything; never 0."""
    text = repr(parts).encode()
    return zlib.crc32(text) << 32 | zlib.adler32(text) or 1


@dataclass
class Entry:
    """One lookup, before it is packed."""

    number: int
    head: dict[str, object]
    hops: list[bytes] = field(default_factory=list)
    query: bytes = b""
    reply: bytes = b""
    is_open: bool = True
    begins: tuple[int, int, int] = (0, 0, 0)


class Joiner:
    """Joins the hops of lookups; `put` says whether a hop became part of one."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.taken = 0
        self._known: dict[int, Entry] = {}
        self._contents: dict[int, bytes] = {}

    def put(self, hop: Hop) -> Hop | None:
        """Keep the hop with its lookup; otherwise it is returned, as a record of its own."""
        detail = hop.detail
        content = hop.payload(detail) or self._contents.get(hop.message_id, b"")
        if hop.protocol != UDP or not hop.message_id or hop.flags & (ICMP | FRAGMENT):
            return hop
        self._contents[hop.message_id] = content
        key = self._number(hop, detail, content)
        entry = self._known.get(key) or self._translated(hop, detail, content, key)
        if entry is not None and not entry.is_open:
            if hop.flags & RESPONSE or entry.begins != (hop.netns, hop.ifindex, hop.event):
                return self._whole(hop, content)._replace(late=1)
            entry = None
        if hop.event == DROP or hop.fragment or len(content) != detail.payload_bytes:
            if entry is not None:
                entry.head["unusual"] = 1
            return self._whole(hop, content)
        if entry is None:
            if hop.flags & RESPONSE:
                return self._whole(hop, content)
            entry = self._begin(hop, detail, content, key)
        if not self._keep(entry, hop, detail, content):
            entry.head["unusual"] = 1
            return self._whole(hop, content)
        return None

    def take(self, until_ns: int) -> Lookups:
        """Close those that began before."""
        count = sum(entry.head["first_ns"] < until_ns for entry in self.entries[self.taken :])
        taken = self.entries[self.taken : self.taken + count]
        for entry in taken:
            entry.is_open = False
        self.taken += count
        return self._packed(taken)

    def peek(self, until_ns: int) -> Lookups:
        """Those that are next, and began before."""
        return self._packed([entry for entry in self.entries[self.taken :] if entry.head["first_ns"] < until_ns])

    @staticmethod
    def _whole(hop: Hop, content: bytes) -> Hop:
        """A record brings its bytes unless user space has them; here it always does."""
        detail = hop.detail
        stack = hop.rest[DETAIL.size : len(hop.rest) - detail.captured_bytes]
        fields = detail._replace(captured_bytes=len(content))
        return hop._replace(tail_bytes=len(stack) + len(content), rest=DETAIL.pack(*fields) + stack + content)

    @staticmethod
    def _number(hop: Hop, detail: Detail, content: bytes, source: tuple[bytes, int] | None = None) -> int:
        client = (detail.daddr, detail.dport) if hop.flags & RESPONSE else (detail.saddr, detail.sport)
        summary = summarize(content)
        return number(source or client, summary.id, summary.question)

    def _translated(self, hop: Hop, detail: Detail, content: bytes, key: int) -> Entry | None:
        if not hop.flags & CONNTRACK or hop.flags & RESPONSE:
            return None
        original = detail.ct_original_saddr, detail.ct_original_sport
        entry = self._known.get(self._number(hop, detail, content, original))
        if entry is not None and entry.is_open:
            self._known[key] = entry
        return entry

    def _begin(self, hop: Hop, detail: Detail, content: bytes, key: int) -> Entry:
        summary = summarize(content)
        name = number(detail.saddr, summary.question.name)
        head = dict.fromkeys(LookupHead._fields, 0) | {
            "position": len(self.entries) + 1,
            "number": key,
            "first_ns": hop.ts_ns,
            "name": name,
            "pair": number(name, detail.sport),
            "question": number(summary.question),
            "id": summary.id,
            "kind": summary.question.rdtype << 16,
            "home": hop.netns,
            "client": detail.saddr,
        }
        entry = Entry(key, head, begins=(hop.netns, hop.ifindex, hop.event))
        self.entries.append(entry)
        self._known[key] = entry
        return entry

    def _keep(self, entry: Entry, hop: Hop, detail: Detail, content: bytes) -> bool:
        response = bool(hop.flags & RESPONSE)
        known = entry.reply if response else entry.query
        room = REPLY_BYTES if response else QUERY_BYTES
        if len(entry.hops) >= LOOKUP_HOPS or len(content) > room or (known and known != content):
            return False
        if response and not known:
            summary = summarize(content)
            (answers, _, additional) = struct.unpack_from("!3H", content, 6)
            entry.reply = content
            entry.head |= {
                "replied_ns": hop.ts_ns,
                "kind": summary.flags << 32 | summary.question.rdtype << 16 | 4 | (answers > 0) << 1 | (additional > 0),
            }
        elif not response:
            entry.query = content
        entry.hops.append(HEAD.pack(*hop[:5], 0, *hop[6:-1]) + DETAIL.pack(*detail._replace(captured_bytes=0)))
        server = detail.sport if response else detail.dport
        client = detail.dport if response else detail.sport
        place = hop.netns, hop.ifindex, hop.event, hop.flags, detail.socket_netns, detail.saddr, detail.daddr, server
        entry.head["shape"] = number(entry.head["shape"], place, self._entry_of(hop, detail, client))
        entry.head["last_ns"] = hop.ts_ns
        if not response:
            entry.head["asked_ns"] = hop.ts_ns
        elif hop.flags & ORIGIN:
            entry.head["server"] = hop.netns
        return True

    @staticmethod
    def _entry_of(hop: Hop, detail: Detail, client: int) -> object:
        if not hop.flags & CONNTRACK:
            return None
        ports = detail.ct_original_dport, detail.ct_reply_sport
        same = detail.ct_original_sport == client, detail.ct_reply_dport == client
        original, reply = detail[14:16], detail[16:18]
        return detail.ct_info, ports, same, original, reply

    @staticmethod
    def _packed(entries: list[Entry]) -> Lookups:
        heads, bodies = (bytearray(max(1, len(entries)) * size) for size in (HEAD_BYTES, BODY_BYTES))
        for index, entry in enumerate(entries):
            lengths = {"query_bytes": len(entry.query), "reply_bytes": len(entry.reply), "hops": len(entry.hops)}
            LOOKUP_HEAD.pack_into(heads, index * HEAD_BYTES, *LookupHead(**entry.head | lengths))
            at = index * BODY_BYTES
            for place, record in enumerate(entry.hops):
                start = at + place * RECORD_BYTES
                bodies[start : start + RECORD_BYTES] = record
            bodies[at + QUERY_AT : at + QUERY_AT + len(entry.query)] = entry.query
            bodies[at + REPLY_AT : at + REPLY_AT + len(entry.reply)] = entry.reply
        return Lookups(memoryview(heads), memoryview(bodies), 0, len(entries))
