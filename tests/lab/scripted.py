"""A DNS server that does what the question's first label says: `size-4096.any.test` gets a reply of 4096 bytes.

    with scripted(lab.servers[0]):
        lab.clients[0].dig("truncated.mine.test")

What it understands:

    ok              one address, or one text
    size-N          a reply of exactly N bytes, whatever the client can take
    servfail refused nxdomain
    silent          nothing
    aaaa-silent     nothing to AAAA, `ok` to the rest
    once-lost       nothing to the first query for each name and type, `ok` to the next
    once-servfail   SERVFAIL to the first query for each name and type, `ok` to the next
    garbled         FORMERR by a header alone, which says that a question follows
    other-id        `ok`, with another transaction id
    other-question  `ok`, for another name
    elsewhere       over UDP: `ok`, from another of its addresses of that family
    late-N          over UDP: `ok`, N milliseconds later
    short-N         NXDOMAIN to a name of more than N labels, as a search list makes them, `ok` to others
    truncated       TC over UDP, `ok` over TCP
    badvers         the extended rcode BADVERS
    ede             SERVFAIL with an extended error (RFC 8914)
    held            over TCP: kept until a name that is not held comes, and sent behind that one's reply, newest first,
                    all in one segment
    split           over TCP: the first byte of the length in a segment of its own
    reset           over TCP: the connection is reset instead of a reply

EDNS is answered with EDNS: a cookie with a server cookie, a client subnet with its own scope.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import select
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, cast

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from agent.lab.processes import EXIT_SECONDS, LabError, end

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agent.lab.pods import DnsServer, Pod

READY = "ready\n"
PORT = 53
UDP_SIZE = 1232
SERVER_COOKIE = bytes(range(8))
EXTENDED_ERROR = dns.edns.EDEOption(dns.edns.EDECode.NETWORK_ERROR, "as the name asked for")
GARBLED = struct.pack("!5H", 0x8181, 1, 0, 0, 0)
UNUSABLE = frozenset({"garbled", "other-id", "other-question"})
OTHER_NAME = "other.example.net."
TTL = 30
A, AAAA = "192.0.2.1", "2001:db8::1"
RECORD_BYTES = 12
"""Of a record whose name is a pointer: name, type, class, TTL, length of the data."""
STRING_BYTES = 255
RCODES = {word: dns.rcode.from_text(word) for word in ("servfail", "refused", "nxdomain")}
NO_LINGER = struct.pack("ii", 1, 0)
"""struct linger: closing sends RST at once."""


@contextlib.contextmanager
def scripted(pod: Pod, *addresses: str, always: str = "", tcp: bool = True) -> Iterator[Popen[str]]:
    """Run the server in a pod while the block lasts, in place of the pod's own.

    Args:
        pod: Where it runs; a DnsServer's dnsmasq is killed, and started again afterwards.
        addresses: Where it listens; the pod's own two by default.
        always: Do as this word says, whatever the name says.
        tcp: Whether it answers over TCP too.
    """
    own = _own_server(pod)
    options = [f"--always={always}", *([] if tcp else ["--udp-only"])]
    if own is not None:
        own.kill()
    try:
        process = _start(pod, addresses or (pod.address, pod.address6), options)
        try:
            yield process
        finally:
            end(process)
    finally:
        if own is not None:
            own.start()


def _own_server(pod: Pod) -> DnsServer | None:
    from agent.lab.pods import DnsServer  # noqa: PLC0415  the server's own process has no use for it

    return pod if isinstance(pod, DnsServer) else None


def _start(pod: Pod, addresses: Sequence[str], options: Sequence[str]) -> Popen[str]:
    log = Path(f"{pod.directory}/{pod.name}-scripted.log")
    with log.open("w") as errors:
        argv = [sys.executable, "-m", __name__, *options, *addresses]
        process = pod.popen(argv, stdout=PIPE, stderr=errors)
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], EXIT_SECONDS)
    if not readable or process.stdout.readline() != READY:
        end(process)
        raise LabError(f"the scripted server in {pod.name} does not start: {log.read_text().strip()}")
    return process


@dataclass
class Script:
    """Makes replies."""

    always: str = ""
    sockets: list[asyncio.DatagramTransport] = field(default_factory=list)
    """Of UDP, in the order of the addresses."""
    lost: set[tuple[bytes, int]] = field(default_factory=set)

    def word(self, query: dns.message.Message) -> str:
        """What is asked for."""
        return self.always or query.question[0].name.labels[0].decode().lower()

    def late_seconds(self, query: dns.message.Message) -> float:
        """How long the reply is held back."""
        word = self.word(query)
        return int(word.removeprefix("late-")) / 1000 if word.startswith("late-") else 0.0

    def reply(self, query: dns.message.Message, *, tcp: bool) -> bytes | None:
        """The reply as bytes; None for none."""
        word = self.word(query)
        if word in UNUSABLE:
            return self._unusable(query, word)
        if self._is_silent(query, word):
            return None
        if word.startswith("size-"):
            return reply_of_size(query, int(word.removeprefix("size-")))
        reply = self._dressed(query)
        if word in RCODES:
            reply.set_rcode(RCODES[word])
        elif word == "once-servfail" and self._is_first(query):
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif word.startswith("short-") and _label_count(query) > int(word.removeprefix("short-")):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif word == "badvers":
            reply.use_edns(0, payload=UDP_SIZE)
            reply.set_rcode(dns.rcode.BADVERS)
        elif word == "ede":
            reply.use_edns(0, payload=UDP_SIZE, options=[EXTENDED_ERROR])
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif word == "truncated" and not tcp:
            reply.flags |= dns.flags.TC
        else:
            reply.answer = _answer(query)
        return reply.to_wire()

    def _is_silent(self, query: dns.message.Message, word: str) -> bool:
        if word == "aaaa-silent":
            return query.question[0].rdtype == dns.rdatatype.AAAA
        return word == "silent" or (word == "once-lost" and self._is_first(query))

    def _unusable(self, query: dns.message.Message, word: str) -> bytes:
        """A reply that no client takes."""
        if word == "garbled":
            return query.id.to_bytes(2) + GARBLED
        if word == "other-question":
            query = dns.message.make_query(OTHER_NAME, query.question[0].rdtype, id=query.id)
        reply = self._dressed(query)
        reply.id ^= word == "other-id"
        reply.answer = _answer(query)
        return reply.to_wire()

    def _is_first(self, query: dns.message.Message) -> bool:
        question = query.question[0]
        asked = (question.name.to_wire() or b"", int(question.rdtype))
        first = asked not in self.lost
        self.lost.add(asked)
        return first

    @staticmethod
    def _dressed(query: dns.message.Message) -> dns.message.Message:
        """A reply with the flags of a forwarded answer, and EDNS if the query has it."""
        reply = dns.message.make_response(query, recursion_available=True)
        if query.edns >= 0:
            options = [known for one in query.options if (known := _option(one))]
            reply.use_edns(0, query.ednsflags, payload=UDP_SIZE, options=options)
        return reply


def _label_count(query: dns.message.Message) -> int:
    """Without the root."""
    return len(query.question[0].name.labels) - 1


def _option(asked: dns.edns.Option) -> dns.edns.Option | None:
    """What an option is answered with; None for one that is not known here."""
    if isinstance(asked, dns.edns.CookieOption):
        return dns.edns.CookieOption(asked.client, SERVER_COOKIE)
    if isinstance(asked, dns.edns.ECSOption):
        return dns.edns.ECSOption(asked.address, asked.srclen, asked.srclen)
    return None


def _answer(query: dns.message.Message) -> list[dns.rrset.RRset]:
    question = query.question[0]
    data = {dns.rdatatype.A: A, dns.rdatatype.AAAA: AAAA, dns.rdatatype.TXT: '"as asked"'}.get(question.rdtype)
    return [dns.rrset.from_text(question.name, TTL, question.rdclass, question.rdtype, data)] if data else []


def reply_of_size(query: dns.message.Message, size: int) -> bytes:
    """A reply with one text record that makes it so many bytes long, no more and no less.

    Raises:
        LabError: The question alone is longer.
    """
    bare = dns.message.make_response(query, recursion_available=True)
    bare.use_edns(False)
    head = bytearray(bare.to_wire())
    data_bytes = size - len(head) - RECORD_BYTES
    if data_bytes < 1:
        raise LabError(f"a reply to this question has more than {size} bytes")
    head[6:8] = (1).to_bytes(2)
    fixed = struct.pack("!HHHIH", 0xC00C, dns.rdatatype.TXT, dns.rdataclass.IN, TTL, data_bytes)
    return bytes(head) + fixed + _strings(data_bytes)


def _strings(total: int) -> bytes:
    full, rest = divmod(total, STRING_BYTES + 1)
    strings = [bytes([STRING_BYTES]) + STRING_BYTES * b"x"] * full
    return b"".join([*strings, *([bytes([rest - 1]) + (rest - 1) * b"y"] if rest else [])])


@dataclass
class Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    script: Script
    transport: asyncio.DatagramTransport = field(init=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what replies are sent by."""
        self.transport = cast("asyncio.DatagramTransport", transport)
        self.script.sockets.append(self.transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer; what is no DNS query is none of ours."""
        with contextlib.suppress(dns.exception.DNSException):
            query = dns.message.from_wire(data)
            reply = self.script.reply(query, tcp=False)
            if reply is None:
                return
            late_seconds = self.script.late_seconds(query)
            sender = self._other() if self.script.word(query) == "elsewhere" else self.transport
            if late_seconds:
                asyncio.get_running_loop().call_later(late_seconds, sender.sendto, reply, addr)
            else:
                sender.sendto(reply, addr)

    def _other(self) -> asyncio.DatagramTransport:
        """Another socket of this one's family."""
        family = _family(self.transport)
        return next(one for one in self.script.sockets if one is not self.transport and _family(one) == family)


def _family(transport: asyncio.DatagramTransport) -> int:
    return int(transport.get_extra_info("socket").family)


async def serve_connection(script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the queries of one connection until the client closes it."""
    held: list[bytes] = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, dns.exception.DNSException):
        while True:
            size = int.from_bytes(await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(size))
            word = script.word(query)
            if word == "reset":
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
                break
            reply = script.reply(query, tcp=True)
            if reply is None:
                continue
            framed = len(reply).to_bytes(2) + reply
            if word == "held":
                held.append(framed)
                continue
            if word == "split":
                writer.write(framed[:1])
                framed = framed[1:]
            writer.write(framed + b"".join(reversed(held)))
            held.clear()
            await writer.drain()
    writer.close()


async def serve(addresses: Sequence[str], script: Script, *, tcp: bool = True) -> None:
    """Answer on these addresses, over UDP and TCP, for ever."""
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: Datagrams(script), local_addr=(address, PORT))
        if tcp:
            await asyncio.start_server(lambda r, w: serve_connection(script, r, w), address, PORT)
    sys.stdout.write(READY)
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    """Be the server."""
    parser = argparse.ArgumentParser(description="a DNS server that does what the question's first label says")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--always", default="")
    parser.add_argument("--udp-only", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.addresses, Script(options.always), tcp=not options.udp_only))


if __name__ == "__main__":
    main()
