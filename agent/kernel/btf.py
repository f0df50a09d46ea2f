"""BTF, the kernel's description of its own types: member offsets, enum values and tracepoint arguments.

The BPF program includes no kernel header and BCC has no CO-RE relocations, so every offset it uses is read here from
the running kernel at start-up: never from a table, never from a version number. Format: Documentation/bpf/btf.rst.

A file is a header, then type records of 3 or more u32 words, then NUL-ended names. Type ids count from 1; 0 is
``void``. A module's BTF is *split*: its ids and name offsets go on where those of vmlinux end.

Measured on Linux 6.18 (5.3 MiB, 126 610 types, one virtual CPU, Python 3.11): loading 25 to 55 ms, 6.3 MiB kept,
12 MiB at the peak; 40 members, enums and tracepoints with their sizes 28 ms, about 1 ms for each new name of a type.
"""

from __future__ import annotations

import struct
from array import array
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

KERNEL_BTF: Final = Path("/sys/kernel/btf")

_HEADER: Final = struct.Struct("=HBBIIIII")  # struct btf_header: magic, version, flags, hdr_len, then two (off, len)
_MAGIC: Final = 0xEB9F
_VERSION: Final = 1
_WORD: Final = 4
_MAX_DEPTH: Final = 32  # the kernel's own MAX_RESOLVE_DEPTH (kernel/bpf/btf.c)
_POINTER_BYTES: Final = struct.calcsize("P")  # BTF does not record it


class BtfError(Exception):
    """The type information is missing, corrupt, or does not hold what was asked for."""


class _Kind(IntEnum):
    """BTF_KIND_*: what a type record describes (include/uapi/linux/btf.h)."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_COMPOSITE: Final = frozenset({_Kind.STRUCT, _Kind.UNION})
_ENUMS: Final = frozenset({_Kind.ENUM, _Kind.ENUM64})
_TYPEDEF: Final = frozenset({_Kind.TYPEDEF})
_MODIFIERS: Final = frozenset({_Kind.TYPEDEF, _Kind.VOLATILE, _Kind.CONST, _Kind.RESTRICT, _Kind.TYPE_TAG})
_SIZED: Final = frozenset({_Kind.INT, _Kind.FLOAT}) | _COMPOSITE | _ENUMS

_TAIL_WORDS: Final = {_Kind.INT: 1, _Kind.ARRAY: 3, _Kind.VAR: 1, _Kind.DECL_TAG: 1}
_WORDS_PER_ENTRY: Final = {
    _Kind.STRUCT: 3,
    _Kind.UNION: 3,
    _Kind.ENUM: 2,
    _Kind.FUNC_PROTO: 2,
    _Kind.DATASEC: 3,
    _Kind.ENUM64: 3,
}


class _RecordWords(dict[int, int]):
    """Words of a type record by its ``info`` word, computed once per distinct value.

    vmlinux has 126 610 records but only some hundreds of distinct values: a look-up is a third of the arithmetic.
    """

    def __missing__(self, info: int) -> int:
        code = info >> 24 & 0x1F
        if not _Kind.INT <= code <= _Kind.ENUM64:
            raise BtfError(f"corrupt BTF, or newer than this program: unknown kind of type {code}")
        kind = _Kind(code)
        words = 3 + _TAIL_WORDS.get(kind, 0) + _WORDS_PER_ENTRY.get(kind, 0) * (info & 0xFFFF)
        self[info] = words
        return words


class _Member(NamedTuple):
    """One member of a struct or union; ``bits`` is its distance in bits from where the search began."""

    name_offset: int
    type_id: int
    bits: int
    bitfield_bits: int


class _Type(NamedTuple):
    """One type record; ``at`` is the index in ``words`` of what follows the three common words."""

    words: array[int]
    at: int
    info: int
    size_or_type: int

    @property
    def kind(self) -> int:
        return self.info >> 24 & 0x1F

    @property
    def entries(self) -> int:
        return self.info & 0xFFFF

    @property
    def kind_flag(self) -> bool:
        return bool(self.info >> 31)

    def members(self) -> Iterator[_Member]:
        """Yields the direct members of a struct or union; with ``kind_flag`` an offset's top byte is a width."""
        for at in range(self.at, self.at + 3 * self.entries, 3):
            name_offset, type_id, where = self.words[at : at + 3]
            if self.kind_flag:
                yield _Member(name_offset, type_id, where & 0xFFFFFF, where >> 24)
            else:
                yield _Member(name_offset, type_id, where, 0)

    def enumerators(self) -> Iterator[tuple[int, int]]:
        """Yields (name offset, value) of an enum; ``kind_flag`` says that the values are signed."""
        step = _WORDS_PER_ENTRY[_Kind(self.kind)]
        width = 32 * (step - 1)
        for at in range(self.at, self.at + step * self.entries, step):
            value = self.words[at + 1] | (self.words[at + 2] << 32 if step == _WORDS_PER_ENTRY[_Kind.ENUM64] else 0)
            negative = self.kind_flag and value >> (width - 1)
            yield self.words[at], value - (1 << width) if negative else value


_VOID: Final = _Type(array("I"), 0, 0, 0)


class Btf:
    """The types of one kernel, or of one of its modules on top of it.

    Every method raises BtfError, and nothing else, when the data are corrupt; every walk is bounded. Offsets and sizes
    are in bytes. Holds the type and name sections and 8 bytes a type.

    Args:
        types: the type section, u32 words.
        strings: the name section.
        base: the BTF whose ids and name offsets this one continues, None if it stands alone.
    """

    def __init__(self, types: array[int], strings: bytes, base: Btf | None = None) -> None:
        _check_strings(strings, split=base is not None)
        self._words = types
        self._strings = strings
        self._base = base
        self._first_id = base.type_count if base else 1
        self._first_string = base.string_bytes if base else 0
        self._starts = _index(types)
        # The name offset of each type as raw bytes: bytes.find is three times as fast as array.index.
        self._names = array("I", map(types.__getitem__, self._starts)).tobytes()
        self._ids_by_name: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: str | Path, base: Btf | None = None) -> Btf:
        """Reads a file such as ``/sys/kernel/btf/vmlinux``.

        It is read and not mapped: sysfs has let BTF be mapped only since Linux 6.16.

        Raises:
            BtfError: the file cannot be read or is not sound BTF; the message begins with its path.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes(), base)
        except OSError as error:
            raise BtfError(f"{path}: {error.strerror or error}") from error
        except BtfError as error:
            raise BtfError(f"{path}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes, base: Btf | None = None) -> Btf:
        """Parses BTF in this machine's byte order; ``base`` is vmlinux when the data are a module's split BTF.

        Raises:
            BtfError: the data are cut short, corrupt, or of the other byte order.
        """
        types_at, strings_at = _sections(data)
        types = array("I")
        types.frombytes(memoryview(data)[types_at])
        return cls(types, data[strings_at], base)

    @property
    def type_count(self) -> int:
        """Number of types, ``void`` and those of the base included: the first id of a split BTF on top."""
        return self._first_id + len(self._starts)

    @property
    def string_bytes(self) -> int:
        """Length in bytes of the name section, that of the base included."""
        return self._first_string + len(self._strings)

    def has_struct(self, name: str) -> bool:
        """Whether a struct or union of this name is defined, not only declared."""
        return bool(self._find(name, _COMPOSITE))

    def size(self, struct: str) -> int:
        """Size in bytes of a struct or union.

        Raises:
            BtfError: nothing of this name is defined.
        """
        return self._type(self._definitions(struct)[0]).size_or_type

    def offset(self, struct: str, path: str) -> int:
        """Byte offset of a member from the start of a struct or union.

        Args:
            struct: the name of the struct or union, without the keyword.
            path: member names joined by dots, as C would write them: members of anonymous structs and unions are
                named without a step. A pointer or an array ends a path.

        Raises:
            BtfError: no such struct or member, or the member is a bitfield, which has no byte offset.
        """
        return self._member(struct, path).bits // 8

    def member_size(self, struct: str, path: str) -> int:
        """Size in bytes of the member that ``offset`` finds by the same arguments; arrays count in full.

        Raises:
            BtfError: as ``offset``, or the member's type has no size.
        """
        return self._size_of(self._member(struct, path).type_id)

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of an enum, in the order of declaration.

        Before Linux 6.0 the sign of an enum was not recorded: its negative values then read as value + 2**32.

        Raises:
            BtfError: no enum of this name is defined.
        """
        for found in map(self._type, self._find(name, _ENUMS)):
            if found.entries:  # without any it is a forward declaration
                return {self._string(offset): value for offset, value in found.enumerators()}
        raise BtfError(f"this kernel has no enum {name}")

    def has_tracepoint(self, name: str) -> bool:
        """Whether the kernel has the raw tracepoint ``name``, such as ``kfree_skb``."""
        return self._tracepoint(name) is not None

    def function_id(self, name: str) -> int | None:
        """Id of the kernel's own function of this name, by which a program calls it (a kfunc); None without it."""
        return next(iter(self._find(name, (_Kind.FUNC,))), None)

    def tracepoint_args(self, name: str) -> int:
        """Number of arguments a program on the raw tracepoint ``name`` gets: ``ctx[0]`` to ``ctx[N - 1]``.

        The kernel declares ``typedef void (*btf_trace_NAME)(void *__data, ...)`` (include/trace/bpf_probe.h), whose
        first parameter programs do not see.

        Raises:
            BtfError: the kernel has no such tracepoint.
        """
        prototype = self._tracepoint(name)
        if prototype is None:
            raise BtfError(f"this kernel has no raw tracepoint {name}")
        return prototype.entries - 1

    def _tracepoint(self, name: str) -> _Type | None:
        for type_id in self._find(f"btf_trace_{name}", _TYPEDEF):
            pointer = self._type(self._strip(type_id))
            if pointer.kind == _Kind.PTR:
                prototype = self._type(self._strip(pointer.size_or_type))
                if prototype.kind == _Kind.FUNC_PROTO and prototype.entries:
                    return prototype
        return None

    def _member(self, struct: str, path: str) -> _Member:
        for type_id in self._definitions(struct):
            member = self._descend(type_id, path.split("."))
            if member is not None:
                self._refuse_bitfield(member, f"{struct}.{path}")
                return member
        raise BtfError(f"struct {struct} of this kernel has no member {path} (a pointer or an array ends a path)")

    def _descend(self, type_id: int, names: list[str]) -> _Member | None:
        """Follows member names inwards; the result's ``bits`` count from the start of ``type_id``."""
        member = _Member(0, type_id, 0, 0)
        for name in names:
            composite = self._composite(member.type_id)
            inner = None if composite is None else self._search(composite, name)
            if inner is None:
                return None
            member = inner._replace(bits=member.bits + inner.bits)
        return member

    def _search(self, composite: int, name: str) -> _Member | None:
        """Finds a member by name, direct members first, then level by level through the anonymous ones.

        No type is entered twice: a second visit could find nothing new, and corrupt data may hold a cycle.
        """
        wanted = _c_string(name)
        queue, seen = [(composite, 0)], {composite}
        for type_id, bits in queue:
            for member in self._type(type_id).members():
                if self._is_named(member.name_offset, wanted):
                    return member._replace(bits=bits + member.bits)
                inner = self._composite(member.type_id) if member.name_offset == 0 else None
                if inner is not None and inner not in seen:
                    seen.add(inner)
                    queue.append((inner, bits + member.bits))
        return None

    def _refuse_bitfield(self, member: _Member, name: str) -> None:
        """Raises for a bitfield in either notation: a width in the member, or an INT narrower than its storage."""
        target = self._type(self._strip(member.type_id))
        narrow = target.kind == _Kind.INT and target.words[target.at] & 0xFF != 8 * target.size_or_type
        if member.bitfield_bits or member.bits % 8 or narrow:
            raise BtfError(f"{name} is a bitfield: it has no byte offset")

    def _definitions(self, struct: str) -> list[int]:
        """Ids of the structs and unions of this name, those with members first."""
        ids = self._find(struct, _COMPOSITE)
        if ids:
            return sorted(ids, key=lambda type_id: self._type(type_id).entries == 0)
        if self._find(struct, {_Kind.FWD}):
            raise BtfError(f"struct {struct} is only declared here: its definition is in the BTF of a module")
        raise BtfError(f"this kernel has no struct {struct}")

    def _composite(self, type_id: int) -> int | None:
        """The struct or union behind typedefs and qualifiers, None if something else is there."""
        stripped = self._strip(type_id)
        return stripped if self._type(stripped).kind in _COMPOSITE else None

    def _strip(self, type_id: int) -> int:
        """Follows typedefs, qualifiers and tags to the type itself."""
        for _ in range(_MAX_DEPTH):
            found = self._type(type_id)
            if found.kind not in _MODIFIERS:
                return type_id
            type_id = found.size_or_type
        raise BtfError("corrupt BTF: a chain of typedefs does not end")

    def _size_of(self, type_id: int) -> int:
        count = 1
        for _ in range(_MAX_DEPTH):
            found = self._type(self._strip(type_id))
            if found.kind == _Kind.PTR:
                return count * _POINTER_BYTES
            if found.kind in _SIZED:
                return count * found.size_or_type
            if found.kind != _Kind.ARRAY:
                raise BtfError(f"a type of kind {found.kind} has no size")
            type_id, _, elements = found.words[found.at : found.at + 3]
            count *= elements
        raise BtfError("corrupt BTF: an array of arrays does not end")

    def _type(self, type_id: int) -> _Type:
        if self._base and type_id < self._first_id:
            return self._base._type(type_id)  # noqa: SLF001  the same class
        if type_id == 0:
            return _VOID
        if type_id >= self.type_count:
            raise BtfError(f"corrupt BTF: type {type_id} of {self.type_count}")
        start = self._starts[type_id - self._first_id]
        return _Type(self._words, start + 3, self._words[start + 1], self._words[start + 2])

    def _string(self, offset: int) -> str:
        if self._base and offset < self._first_string:
            return self._base._string(offset)  # noqa: SLF001  the same class
        begin = offset - self._first_string
        end = self._strings.find(b"\0", begin)
        if end < 0:
            raise BtfError(f"corrupt BTF: name offset {offset} of {self.string_bytes}")
        return self._strings[begin:end].decode("ascii", "backslashreplace")

    def _is_named(self, offset: int, wanted: bytes) -> bool:
        if self._base and offset < self._first_string:
            return self._base._is_named(offset, wanted)  # noqa: SLF001  the same class
        return self._strings.startswith(wanted, offset - self._first_string)

    def _find(self, name: str, kinds: Collection[int]) -> list[int]:
        """Ids of the types of this name and these kinds, a module's own before those of its base."""
        if name not in self._ids_by_name:
            self._ids_by_name[name] = list(self._named(name))
        return [type_id for type_id in self._ids_by_name[name] if self._type(type_id).kind in kinds]

    def _named(self, name: str) -> Iterator[int]:
        for offset in self._string_offsets(_c_string(name)):
            for at in _find_all(self._names, struct.pack("=I", offset)):
                if at % _WORD == 0:
                    yield self._first_id + at // _WORD
        if self._base:
            yield from self._base._named(name)  # noqa: SLF001  the same class

    def _string_offsets(self, wanted: bytes) -> Iterator[int]:
        """Yields the offsets of a whole name: a module's types may use names of its base."""
        if self._base:
            yield from self._base._string_offsets(wanted)  # noqa: SLF001  the same class
        if self._strings.startswith(wanted):  # only a split BTF begins with a name; others begin with NUL
            yield self._first_string
        for at in _find_all(self._strings, b"\0" + wanted):
            yield self._first_string + at + 1


def load_kernel(module: str | None = None, root: Path = KERNEL_BTF) -> Btf:
    """Reads the types of the running kernel.

    Args:
        module: None for the kernel itself, or the name of a loaded module, whose types then come on top. To read
            several modules, load the kernel once and give it to ``Btf.from_file`` as their base.
        root: the directory of the BTF files.

    Raises:
        BtfError: a file is missing or corrupt; the message names it and says what to do.
    """
    kernel = _load(root / "vmlinux", "the kernel must be built with CONFIG_DEBUG_INFO_BTF=y and /sys be mounted")
    if module is None:
        return kernel
    advice = f"if {module} is built into the kernel its types are in vmlinux, else load the module; it must be built \
with CONFIG_DEBUG_INFO_BTF_MODULES=y"
    return _load(root / module, advice, kernel)


def _load(path: Path, advice: str, base: Btf | None = None) -> Btf:
    try:
        return Btf.from_file(path, base)
    except BtfError as error:
        raise BtfError(f"{error}: {advice}") from error


def _sections(data: bytes) -> tuple[slice, slice]:
    """Reads the header and returns where the type and the name section lie, both checked to be inside the data."""
    if len(data) < _HEADER.size:
        raise BtfError("corrupt BTF: shorter than its header")
    magic, version, _, header, types_at, types_len, strings_at, strings_len = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise BtfError(f"not BTF of this machine: magic {magic:#06x}, version {version}")
    types = slice(header + types_at, header + types_at + types_len)
    strings = slice(header + strings_at, header + strings_at + strings_len)
    if header < _HEADER.size or max(types.stop, strings.stop) > len(data):
        raise BtfError("corrupt BTF: cut short")
    if types_len % _WORD:
        raise BtfError("corrupt BTF: the type section is not made of whole words")
    return types, strings


def _check_strings(strings: bytes, *, split: bool) -> None:
    """Name offset 0 is the empty name and every name ends in NUL; a split BTF has the empty name from its base."""
    if split and not strings:
        return
    if strings[-1:] != b"\0" or not (split or strings[0] == 0):
        raise BtfError("corrupt BTF: the name section does not begin and end in NUL")


def _index(words: array[int]) -> array[int]:
    """Returns the index of each type record in ``words``: records differ in length and nothing else lists them."""
    starts = array("I")
    append, lengths, end, at = starts.append, _RecordWords(), len(words), 0
    try:
        while at < end:
            append(at)
            at += lengths[words[at + 1]]
    except IndexError:
        at = end + 1
    if at != end:
        raise BtfError("corrupt BTF: the last type is cut short")
    return starts


def _find_all(haystack: bytes, needle: bytes) -> Iterator[int]:
    at = haystack.find(needle)
    while at >= 0:
        yield at
        at = haystack.find(needle, at + 1)


def _c_string(name: str) -> bytes:
    """The name as it stands in the name section.

    Raises:
        BtfError: the name is empty, which in BTF means "anonymous", or cannot be a C name.
    """
    if not name.isascii() or not name.isprintable() or not name:
        raise BtfError(f"not the name of a type or a member: {name!r}")
    return name.encode() + b"\0"
