"""bpf(2) itself."""

from __future__ import annotations

import ctypes
import os
import platform

BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
BPF_MAP_LOOKUP_ELEM = 1
BPF_MAP_UPDATE_ELEM = 2
BPF_OBJ_GET_INFO_BY_FD = 15
ATTR_WORDS = 32


def bpf(command: int, *words: int) -> int:
    """Make the system call with these 32-bit words of union bpf_attr; what it returned.

    Raises:
        OSError: what the kernel says.
    """
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is not known")
    attributes = (ctypes.c_uint32 * ATTR_WORDS)(*words)
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, command, attributes, ctypes.sizeof(attributes))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)


def look_up(map_fd: int, key: int) -> int | None:
    """The 64-bit value of a 64-bit key; None if the map has none."""
    place, value = ctypes.c_uint64(key), ctypes.c_uint64()
    try:
        bpf(BPF_MAP_LOOKUP_ELEM, map_fd, 0, *address_of(place), *address_of(value))
    except FileNotFoundError:
        return None
    return value.value


def update(map_fd: int, key: bytes, value: bytes) -> None:
    """Put an element into a map, whatever is there.

    Raises:
        OSError: what the kernel says.
    """
    place, content = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    bpf(BPF_MAP_UPDATE_ELEM, map_fd, 0, *address_of(place), *address_of(content), 0, 0)


def btf_info(btf_fd: int, address: int, size: int) -> int:
    """Have the kernel copy the BTF behind this descriptor to an address with so much room; how large the BTF is.

    Raises:
        OSError: what the kernel says.
    """
    # struct bpf_btf_info: where to, how much, and the id that the BTF got
    info = (ctypes.c_uint32 * 4)(*_halves(address), size, 0)
    bpf(BPF_OBJ_GET_INFO_BY_FD, btf_fd, ctypes.sizeof(info), *address_of(info))
    return info[2]


def address_of(data: ctypes._CData) -> tuple[int, int]:
    """Where it is, as the two words of a pointer in union bpf_attr."""
    return _halves(ctypes.addressof(data))


def _halves(address: int) -> tuple[int, int]:
    return address & 0xFFFFFFFF, address >> 32
