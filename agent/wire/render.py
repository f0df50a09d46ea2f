"""Full rendering of a message for people and JSON: every section and every record type, by dnspython.

Up to a hundred times slower than `agent.wire.message.summarize`: for the few messages that are shown. A message
that is malformed or cut is rendered as far as it goes, with a sentence on what is wrong with it.
"""

from __future__ import annotations

from functools import lru_cache

import dns.edns
import dns.exception
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.wire

from agent.wire.errors import CutError, WireError
from agent.wire.message import (
    OPT,
    RECORD_BYTES,
    Question,
    Summary,
    extended_rcode,
    name_to_text,
    read_name,
    read_record,
    summarize,
)

MAX_TEXT = 512 * 1024
"""Characters of record text of one message. The largest sensible message (4000 addresses) needs 400 000; compression
lets a hostile one ask for millions."""

_ITEM_TEXT = 50
"""Characters that a record or option costs beside its name and data: the keys, the type, the TTL."""

_FLAGS = (
    ("qr", 0x8000),
    ("aa", 0x0400),
    ("tc", 0x0200),
    ("rd", 0x0100),
    ("ra", 0x0080),
    ("ad", 0x0020),
    ("cd", 0x0010),
)
_OPCODES = {6: "DSO"}  # RFC 8490; dnspython 2.9 does not have it
_ID_BYTES = 2
_FLAGS_END = 4

# dnspython imports the module of a record type when it first meets it, and looks for one each time it meets a type that
# it does not know. Packets choose the types, so do all of it once, here: no packet makes the agent read files.
dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # dnspython has no annotations there

_KNOWN_TYPES = frozenset(map(int, dns.rdatatype.RdataType)) - {OPT}
# How to read the data of each class. In updates, NONE deletes a record of the zone's class, IN (RFC 2136 2.5.4).
# dnspython remembers each class and type it meets: unknown classes share one entry, so packets cannot fill memory.
_DATA_CLASSES = {1: 1, 3: 3, 4: 4, 254: 1}
_UNKNOWN_CLASS = 255
_KNOWN_OPTIONS = frozenset(map(int, dns.edns.OptionType))
_EMPTY_CLASSES = frozenset({254, 255})
"""NONE and ANY: updates have records without data in them (RFC 2136 2.4, 2.5)."""


class _Parser(dns.wire.Parser):
    """dnspython's cursor with our names: dnspython looks at a name's length last, which costs seconds if hostile."""

    def get_name(self, origin: dns.name.Name | None = None, decompress: bool = False) -> dns.name.Name:  # noqa: FBT001, FBT002  dnspython's way
        """Read a name inside record data.

        Raises:
            WireError: As `read_name`, or it is compressed where RFC 3597 4 forbids it.
            dns.exception.FormError: It does not end with the record data.
        """
        name, end = read_name(self.wire, self.current)
        if not decompress and end - self.current != len(name):
            raise WireError("a name that RFC 3597 does not allow to be compressed", self.current)
        self.seek(end)
        return dns.name.Name(_labels(name)) if origin is None else dns.name.Name(_labels(name)).relativize(origin)


def _labels(name: bytes) -> list[bytes]:
    """The labels of an uncompressed name, the empty one of the root included."""
    labels = []
    offset = 0
    while offset < len(name):
        labels.append(name[offset + 1 : offset + 1 + name[offset]])
        offset += 1 + name[offset]
    return labels


class _Reader:
    """Goes through the records of one message and remembers what it found wrong first."""

    def __init__(self, wire: bytes, offset: int) -> None:
        self.wire = wire
        self.offset = offset
        self.text_left = MAX_TEXT
        self.problem: str | None = None
        self.edns: dict[str, object] | None = None

    def note(self, what: str, offset: int) -> None:
        """Remember what is wrong, unless something was before: later problems tend to follow from the first."""
        if self.problem is None:
            self.problem = f"{what} at byte {offset}"

    def spend(self, *texts: str) -> None:
        """Count text against `MAX_TEXT`.

        Raises:
            WireError: It is used up.
        """
        self.text_left -= _ITEM_TEXT + sum(map(len, texts))
        if self.text_left < 0:
            raise WireError(f"the records need more than {MAX_TEXT} characters, the rest is left out", self.offset)

    def record(self, *, additional: bool) -> dict[str, object] | None:
        """Read one record; None if it was the message's OPT record, which is in `edns` then.

        Raises:
            WireError: It cannot be read, nor can what follows.
        """
        owner, fixed = read_name(self.wire, self.offset)
        start = fixed + RECORD_BYTES
        if start > len(self.wire):
            raise CutError("the message ends inside a record", len(self.wire))
        rdtype, rdclass, ttl, rdlength = read_record(self.wire, fixed)
        if rdtype == OPT and additional and self.edns is None:
            self._opt(owner, rdclass, ttl, start, start + rdlength)
            return None
        if start + rdlength > len(self.wire):
            raise CutError("the message ends inside record data", len(self.wire))
        self.offset = start + rdlength
        name, data = name_to_text(owner), self._data(rdtype, rdclass, start, rdlength)
        self.spend(name, data)
        return {
            "name": name,
            "type": rdtype_to_text(rdtype),
            "class": rdclass_to_text(rdclass),
            "ttl": ttl,
            "data": data,
        }

    def _data(self, rdtype: int, rdclass: int, start: int, rdlength: int) -> str:
        """Record data as in master files, or as RFC 3597 5 writes unknown data."""
        if not rdlength and rdclass in _EMPTY_CLASSES:
            return ""
        if rdtype == OPT:
            self.note("an OPT record that RFC 6891 6.1.1 does not allow", start)
        if rdtype in _KNOWN_TYPES:
            try:
                return _known_data(self.wire, rdtype, _DATA_CLASSES.get(rdclass, _UNKNOWN_CLASS), start, rdlength)
            except Exception:  # noqa: BLE001  whatever a library makes of hostile bytes, the next record may be well
                self.note(f"{rdtype_to_text(rdtype)} record data that cannot be read", start)
        return _unknown_data(self.wire[start : start + rdlength])

    def _opt(self, owner: bytes, udp_size: int, ttl: int, start: int, end: int) -> None:
        """The OPT record (RFC 6891 6.1.2, 6.1.3)."""
        options: list[dict[str, object]] = []
        self.edns = {
            "version": ttl >> 16 & 0xFF,
            "udp_size": udp_size,
            "do": ttl & 0x8000 != 0,
            "options": options,
        }
        if owner != b"\0":
            self.note("an OPT record whose name is not the root", self.offset)
        self.offset = start
        while self.offset < min(end, len(self.wire)):
            options.append(self._option(end))
        if end > len(self.wire):
            raise CutError("the message ends inside the OPT record", len(self.wire))

    def _option(self, end: int) -> dict[str, object]:
        """One EDNS option (RFC 6891 6.1.2)."""
        start = self.offset + 4
        code, length = (int.from_bytes(self.wire[at : at + 2], "big") for at in (self.offset, self.offset + 2))
        if start + length > len(self.wire) < end:
            raise CutError("the message ends inside an EDNS option", len(self.wire))
        if start + length > end:
            raise WireError("an EDNS option is longer than its OPT record", self.offset)
        self.offset = start + length
        name, data = _option_name(code), self._option_data(code, start, length)
        self.spend(data)
        return {"code": code, "name": name, "data": data}

    def _option_data(self, code: int, start: int, length: int) -> str:
        """An option's data as dnspython writes it, or in hexadecimal."""
        raw = self.wire[start : start + length]
        try:
            option = dns.edns.option_from_wire(dns.edns.OptionType.make(code), raw, 0, length)
            if not isinstance(option, dns.edns.GenericOption):
                return _printable(option.to_text().removeprefix(f"{_option_name(code)} "))
        except Exception:  # noqa: BLE001  as for record data
            self.note(f"EDNS option {_option_name(code) or code} that cannot be read", start)
        return raw.hex()


def _known_data(wire: bytes, rdtype: int, rdclass: int, start: int, rdlength: int) -> str:
    """Record data of a type that dnspython knows (it may raise anything)."""
    parser = _Parser(wire, start)
    with parser.restrict_to(rdlength):
        rdata = dns.rdata.from_wire_parser(
            dns.rdataclass.RdataClass.make(rdclass), dns.rdatatype.RdataType.make(rdtype), parser
        )
    if isinstance(rdata, dns.rdata.GenericRdata):
        return _unknown_data(rdata.data)
    return _printable(rdata.to_text())


def _unknown_data(raw: bytes) -> str:
    """Data of an unknown type, in the form of RFC 3597 5."""
    return rf"\# {len(raw)} {raw.hex()}".rstrip()


def _printable(text: str) -> str:
    """The text with everything that could disturb a terminal or a line (controls, direction marks) as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _option_name(code: int) -> str | None:
    """Mnemonic of an EDNS option, None if dnspython has none."""
    return dns.edns.OptionType(code).name.replace("_", "-") if code in _KNOWN_OPTIONS else None


def render(wire: bytes, *, length_bytes: int | None = None) -> dict[str, object]:
    """Everything a message says, as an object that goes straight into JSON.

    Never raises. Names keep the case they were sent in, TTLs are as on the wire, record data is as in master files, and
    every string is printable. The message's OPT record is in `edns`, every other record in its section.

    Args:
        wire: The message as captured.
        length_bytes: Bytes the message had when it was sent, if the capture may have cut it.

    Returns:
        The keys `id`, `opcode`, `rcode` (with EDNS's upper bits), `flags`, `question`, `answer`, `authority`,
        `additional` and `edns`. What is not there is None. If the message is malformed or cut, also `malformed`, which
        says what is wrong and where.
    """
    message, reader = _empty(wire), _Reader(wire, 0)
    cut = length_bytes is not None and length_bytes > len(wire)
    try:
        summary = summarize(wire)
        message |= _question_and_rcode(wire, summary)
        _read_sections(message, reader, summary)
    except WireError as error:
        # If the capture cut the message, then that it ends early is the capture's doing.
        if reader.problem is None and not (cut and isinstance(error, CutError)):
            reader.problem = str(error)
    message["edns"] = reader.edns
    problems = [reader.problem] if reader.problem else []
    if cut:
        problems.insert(0, f"the capture cut the message at {len(wire)} of {length_bytes} bytes")
    if problems:
        message["malformed"] = "; ".join(problems)
    return message


def _empty(wire: bytes) -> dict[str, object]:
    """The object with what the first bytes tell, even of half a header."""
    flags = int.from_bytes(wire[_ID_BYTES:_FLAGS_END], "big") if len(wire) >= _FLAGS_END else None
    return {
        "id": int.from_bytes(wire[:_ID_BYTES], "big") if len(wire) >= _ID_BYTES else None,
        "opcode": None if flags is None else opcode_to_text(flags >> 11 & 0xF),
        "rcode": None if flags is None else rcode_to_text(flags & 0xF),
        "flags": [] if flags is None else [name for name, bit in _FLAGS if flags & bit],
        "question": None,
        "answer": [],
        "authority": [],
        "additional": [],
        "edns": None,
    }


def _question_and_rcode(wire: bytes, summary: Summary) -> dict[str, object]:
    """The entries that the summary tells."""
    return {
        "rcode": rcode_to_text(extended_rcode(wire, summary)),
        "question": summary.question and question_to_object(summary.question),
    }


def question_to_object(question: Question) -> dict[str, object]:
    """A question as `render` has it, in the case it was sent in."""
    return {
        "name": name_to_text(question.original),
        "class": rdclass_to_text(question.rdclass),
        "type": rdtype_to_text(question.rdtype),
    }


def _read_sections(message: dict[str, object], reader: _Reader, summary: Summary) -> None:
    """Fill the three sections until the end or the first record that cannot be read (then it raises `WireError`)."""
    if summary.qdcount > 1:
        reader.note(f"{summary.qdcount} questions, of which the first is shown (RFC 9619),", 4)
    reader.offset = summary.end
    counts = {"answer": summary.ancount, "authority": summary.nscount, "additional": summary.arcount}
    for section, count in counts.items():
        records: list[dict[str, object]] = []
        message[section] = records
        for _ in range(count):
            record = reader.record(additional=section == "additional")
            if record is not None:
                records.append(record)
    if reader.offset < len(reader.wire):
        reader.note(f"{len(reader.wire) - reader.offset} bytes too many", reader.offset)


@lru_cache(maxsize=16)
def opcode_to_text(opcode: int) -> str:
    """Mnemonic of an opcode (0 to 15) as in the IANA registry, or its number."""
    return _OPCODES.get(opcode) or dns.opcode.Opcode.to_text(opcode)


@lru_cache(maxsize=4096)
def rcode_to_text(rcode: int) -> str:
    """Mnemonic of a response code (0 to 4095), such as NXDOMAIN or BADVERS, or its number.

    Raises:
        ValueError: The number is out of range.
    """
    return dns.rcode.Rcode.to_text(rcode)


@lru_cache(maxsize=4096)
def rdtype_to_text(rdtype: int) -> str:
    """Mnemonic of a record type (0 to 65535), or `TYPE` and its number (RFC 3597 5).

    Raises:
        ValueError: The number is out of range.
    """
    return dns.rdatatype.RdataType.to_text(rdtype)


@lru_cache(maxsize=4096)
def rdclass_to_text(rdclass: int) -> str:
    """Mnemonic of a class (0 to 65535), or `CLASS` and its number (RFC 3597 5).

    Raises:
        ValueError: The number is out of range.
    """
    return dns.rdataclass.RdataClass.to_text(rdclass)


@lru_cache(maxsize=4096)
def rdtype_from_text(text: str) -> int:
    """Number of a record type written as a mnemonic, in any case, or as `TYPE` and a number.

    Raises:
        ValueError: There is no such type; the message says what to write.
    """
    try:
        return int(dns.rdatatype.RdataType.from_text(text))
    except (dns.exception.DNSException, ValueError):
        raise ValueError(
            f"{text!r} is not a DNS record type: write a mnemonic such as AAAA, or TYPE and a number up to 65535"
        ) from None
