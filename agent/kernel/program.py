"""A compiled BPF program as data: what BCC made of the C source, without BCC.

BCC compiles for seconds and takes 200 MiB. What comes out depends on nothing but the source, its flags, the kernel and
BCC itself, so it can be kept on disk (`agent.kernel.kept`), and loaded from there in a fraction of the time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from agent.kernel.syscall import BPF_OBJ_GET_INFO_BY_FD, address_of, bpf

if TYPE_CHECKING:
    from collections.abc import Mapping

BPF_MAP_CREATE = 0
BPF_PROG_LOAD = 5
BPF_RAW_TRACEPOINT_OPEN = 17
KPROBE, CGROUP_SKB, RAW_TRACEPOINT = 2, 8, 17
"""enum bpf_prog_type."""
MAP_INFO = struct.Struct("=6I16s")
"""The beginning of struct bpf_map_info: type, id, key, value, entries, flags, name."""
INSTRUCTION = struct.Struct("=BBhi")
LOAD_64 = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: takes two instructions."""
PSEUDO_MAP_FD = 1
CALL = 0x85
"""BPF_JMP | BPF_CALL."""
PSEUDO_KFUNC_CALL = 2
NAME_BYTES = 16
LOG_BYTES = (1 << 20, 1 << 23, 1 << 26)
COMPLAINT_CHARACTERS = 1500


class MapSpec(msgspec.Struct, frozen=True):
    """A map to create."""

    name: str
    kind: int
    """enum bpf_map_type."""
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


class Reference(msgspec.Struct, frozen=True):
    """An instruction that names a map by its descriptor, which only the process that created it knows."""

    instruction: int
    map: str


class ProgramSpec(msgspec.Struct, frozen=True):
    """A program to load."""

    code: bytes
    references: list[Reference]


class Image(msgspec.Struct, frozen=True):
    """Everything that one C source was compiled to."""

    maps: list[MapSpec]
    programs: dict[str, ProgramSpec]
    """By the name of the C function."""


def image_of(
    compiled: Any,  # noqa: ANN401  BCC has no types
    maps: Mapping[str, int],
    functions: list[str],
    others: Mapping[int, MapSpec],
    kfuncs: Mapping[int, int],
) -> Image:
    """What BCC has compiled.

    Args:
        compiled: A `bcc.BPF`; what is made of it needs it no more.
        maps: Its maps: descriptors by name.
        functions: Those that are wanted.
        others: Maps that the source knows by these numbers, and BCC does not know.
        kfuncs: Functions of the kernel that the source calls by these numbers, by their ids in its BTF: the compiler
            knows helpers only.
    """
    known = {fd: _map_behind(fd, name) for name, fd in maps.items()} | dict(others)
    programs = {name: _program(with_kfuncs(compiled.dump_func(name), kfuncs), known) for name in functions}
    return Image(list(known.values()), programs)


def _map_behind(fd: int, name: str) -> MapSpec:
    info = ctypes.create_string_buffer(MAP_INFO.size)
    bpf(BPF_OBJ_GET_INFO_BY_FD, fd, MAP_INFO.size, *address_of(info))
    kind, _, key_bytes, value_bytes, entries, flags, _ = MAP_INFO.unpack(info.raw)
    return MapSpec(name, kind, key_bytes, value_bytes, entries, flags)


def _program(code: bytes, maps: Mapping[int, MapSpec]) -> ProgramSpec:
    references, skip = [], False
    for number, (opcode, registers, _, immediate) in enumerate(INSTRUCTION.iter_unpack(code)):
        if not skip and opcode == LOAD_64 and registers >> 4 == PSEUDO_MAP_FD:
            references.append(Reference(number, maps[immediate].name))
        skip = not skip and opcode == LOAD_64
    return ProgramSpec(code, references)


def with_kfuncs(code: bytes, kfuncs: Mapping[int, int]) -> bytes:
    """The program with the calls of these numbers turned into calls of the kernel's functions with these BTF ids."""
    changed = bytearray(code)
    for at, (opcode, registers, _, immediate) in enumerate(INSTRUCTION.iter_unpack(code)):
        if opcode == CALL and registers >> 4 == 0 and immediate in kfuncs:
            call = CALL, registers | PSEUDO_KFUNC_CALL << 4, 0, kfuncs[immediate]
            INSTRUCTION.pack_into(changed, at * INSTRUCTION.size, *call)
    return bytes(changed)


def create(spec: MapSpec) -> int:
    """Create a map; its descriptor.

    Raises:
        OSError: what the kernel says.
    """
    words = spec.kind, spec.key_bytes, spec.value_bytes, spec.entries, spec.flags, 0, 0
    try:
        return bpf(BPF_MAP_CREATE, *words, *_name(spec.name))
    except OSError as error:
        hint = "; before Linux 5.11 the limit of locked memory may be too low" if error.errno == errno.EPERM else ""
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} (map {spec.name}{hint})") from error


def load(name: str, spec: ProgramSpec, kind: int, maps: Mapping[str, int]) -> int:
    """Load a program; its descriptor.

    Args:
        name: Of the program, for people.
        spec: The program.
        kind: enum bpf_prog_type.
        maps: Descriptors by name.

    Raises:
        OSError: what the kernel says; behind the first line are the last words of the verifier.
    """
    code = bytearray(spec.code)
    for reference in spec.references:
        struct.pack_into("=i", code, reference.instruction * INSTRUCTION.size + 4, maps[reference.map])
    content, licence = (ctypes.c_char * len(code)).from_buffer(code), ctypes.create_string_buffer(b"GPL")
    head = kind, len(code) // INSTRUCTION.size, *address_of(content), *address_of(licence)
    try:
        return bpf(BPF_PROG_LOAD, *head, 0, 0, 0, 0, 0, 0, *_name(name))
    except OSError as error:
        words = _complaint(name, head)
        text = f"{os.strerror(error.errno or 0)} ({name})"
        raise OSError(error.errno, f"{text}\n{words}" if words else text) from error


def _complaint(name: str, head: tuple[int, ...]) -> str:
    """The last words of the verifier. Before 6.4 it stops to write when the log is full: then a larger one is tried."""
    for size in LOG_BYTES:
        log = ctypes.create_string_buffer(size)
        try:
            os.close(bpf(BPF_PROG_LOAD, *head, 1, size, *address_of(log), 0, 0, *_name(name)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                return log.value.decode("utf-8", "replace").strip()[-COMPLAINT_CHARACTERS:]
    return ""


def open_raw_tracepoint(tracepoint: str, program: int) -> int:
    """Attach a program to a tracepoint; the descriptor that keeps it attached.

    Raises:
        OSError: what the kernel says.
    """
    name = ctypes.create_string_buffer(tracepoint.encode())
    return bpf(BPF_RAW_TRACEPOINT_OPEN, *address_of(name), program)


def _name(name: str) -> tuple[int, ...]:
    return struct.unpack("=4I", name.encode()[: NAME_BYTES - 1].ljust(NAME_BYTES, b"\0"))
