"""The running kernel's types by its headers, for kernels without BTF.

Distributions have the headers of each kernel as a package, found by /lib/modules/RELEASE/build. BCC compiles a program
that does nothing but mention the types (bpf/headers.c), clang describes them as BTF, BCC hands that to the kernel, and
from the kernel it is read back: the form is that of a kernel that has BTF, so nothing else need know.

It is the work of a child, `python -m agent.kernel.headers`, which writes the BTF to its output. Measured with Debian's
headers of 6.1, 6.12 and 7.3 (BCC 0.26): 1.7 to 2.6 s and 219 to 251 MiB, which end with the child, before the real
program is compiled; 70 to 80 KiB of BTF, 1 065 to 1 166 types.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agent.kernel.btf import Btf, BtfError
from agent.kernel.compiler import KERNEL_SOURCE, bcc, source_directory
from agent.kernel.offsets import STRUCTS, TRACEPOINTS
from agent.kernel.syscall import btf_info

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES = Path("/lib/modules")
TIMEOUT_SECONDS = 100
"""Most of what the loader may take in all (loader.CHILD_TIMEOUT_SECONDS)."""
BTF_DESCRIPTOR = "anon_inode:btf"
BTF_BYTES = 16 << 20
"""BTF_MAX_SIZE of the kernel (include/uapi/linux/btf.h)."""
COMPLAINT_CHARACTERS = 300

FLAGS = [
    # the guards of BCC's own headers: see bpf/headers.c
    "-D_UAPI__LINUX_BPF_H__",
    "-D__BPF_HELPERS_H",
    # what kbuild gives the compiler and BCC does not
    "-DCC_USING_FENTRY",
    "-fms-extensions",
    # the kernel's headers are not ours to mend
    "-w",
]


def headers_directory(modules: Path = MODULES, release: str = "") -> Path:
    """Where the headers of the running kernel are, or of this release.

    Raises:
        BtfError: they are not installed; the message names the place and says what to do.
    """
    release = release or os.uname().release
    # Debian keeps what all builds have in common apart, as `source`.
    if not any((modules / release / part / "include/linux/kconfig.h").exists() for part in ("source", "build")):
        raise BtfError(
            f"{modules / release}/build is missing (Debian: install linux-headers-{release}; "
            "in a container, mount the host's /lib/modules and /usr/src)"
        )
    return modules / release / "build"


def load_headers() -> Btf:
    """The types of the running kernel by its headers; a structure that they only declare is as if a module had it.

    Raises:
        BtfError: there are no headers, they are of another kernel, or they do not compile; in the compiler's words.
    """
    directory = headers_directory()
    command = [sys.executable, "-P", "-m", "agent.kernel.headers"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise BtfError(f"{directory}: it took over {TIMEOUT_SECONDS} s to compile these headers") from error
    if done.returncode:
        raise BtfError(f"{directory}: {complaint(done.stderr.decode('utf-8', 'replace'))}")
    return Btf.from_bytes(done.stdout)


def complaint(words: str) -> str:
    """The compiler's first error among all its words, or else the last thing that was said."""
    lines = [line for line in words.splitlines() if line.strip()]
    errors = (line for line in lines if "error: " in line)
    return next(errors, lines[-1] if lines else "the compiler died without a word")[:COMPLAINT_CHARACTERS]


def c_source() -> str:
    """The program: what includes the headers, and one function for each type we want to know."""
    return (source_directory() / "headers.c").read_text() + "".join(_functions())


def _functions() -> Iterator[str]:
    for name in STRUCTS:
        # A plain pointer may be a member of another structure, and clang describes what those point at by name alone.
        yield f"int struct_{name}(const volatile struct {name} *type) {{ return 0; }}\n"
    for name in TRACEPOINTS:
        yield f"int tracepoint_{name}(btf_trace_{name} type) {{ return 0; }}\n"


def describe(source: str, flags: list[str]) -> bytes:
    """What clang says of the types of a C program, as this kernel took it; for a child process.

    Raises:
        BtfError: the kernel did not take it.
        Exception: it does not compile; the compiler has said why on file descriptor 2.
    """
    module = bcc()
    # What BCC handed to the kernel lives as long as this object.
    program = module.BPF(text=source, cflags=flags, debug=module.DEBUG_BTF)
    data = next(map(_read, _btf_descriptors()), None)
    del program
    if data is None:
        raise BtfError("this kernel did not take the types of its headers (without CAP_BPF, or older than this clang)")
    return data


def _btf_descriptors() -> Iterator[int]:
    """BCC does not tell its descriptor. To ask the kernel by the BTF's id instead takes CAP_SYS_ADMIN."""
    for path in Path("/proc/self/fd").iterdir():
        if path.is_symlink() and str(path.readlink()) == BTF_DESCRIPTOR:
            yield int(path.name)


def _read(fd: int) -> bytes:
    """The BTF behind a descriptor: struct bpf_btf_info is the address and the size of a buffer, and an id."""
    buffer = bytearray(BTF_BYTES)
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return bytes(buffer[: btf_info(fd, place, len(buffer))])


def _child() -> int:
    os.environ.pop(KERNEL_SOURCE, None)
    release = f'-DRUNNING_RELEASE="{os.uname().release}"'
    try:
        data = describe(c_source(), [*FLAGS, release])
    except Exception as error:  # noqa: BLE001  BCC raises bare Exception
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(_child())
