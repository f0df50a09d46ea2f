"""BCC, which compiles C to BPF.

BCC with its LLVM costs 72 MiB at import and 200 MiB and more while it compiles. This is the one module that imports it,
and only child processes ask for it, which take that with them when they exit.
"""

from __future__ import annotations

import contextlib
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from agent.kernel.errors import CaptureError

KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
"""The environment variable by which BCC finds other headers than those of the running kernel."""
LIBRARIES = ("*/libbcc.so*", "*/libLLVM*.so*", "llvm-*/lib/libLLVM*.so*")
"""Where Debian has them."""
BCC_MISSING = (
    "the Python module bcc (BCC) is not there or is not BCC: install the Debian package python3-bpfcc and use the "
    "distribution's interpreter, /usr/bin/python3 (PyPI's project named bcc is something else)"
)


def bcc() -> Any:  # noqa: ANN401  BCC has no types
    """The module, imported now.

    Raises:
        CaptureError: it is missing, or something else goes by its name.
    """
    try:
        import bcc as module  # noqa: PLC0415  LLVM is loaded here, so only in a child

        module.BPF  # noqa: B018  what goes by this name may be another project
    except Exception as error:
        # Another project of that name, or BCC without its library, may raise anything.
        raise CaptureError(BCC_MISSING) from error
    return module


def source_directory() -> Path:
    """Where the C source is: `bpf/` of the checkout, or `_bpf/` inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(path for path in (package.parent / "bpf", package / "_bpf") if (path / "dnstrail.bpf.c").exists())


def program_source() -> str:
    """The C source of the program with its own headers put in: BCC rewrites nothing that it finds in a header."""
    directory, name = source_directory(), "dnstrail.bpf.c"
    own = re.compile(r'#include "(\w+\.h)"')
    lines = []
    for number, line in enumerate((directory / name).read_text().splitlines(), 1):
        found = own.fullmatch(line)
        if found is None:
            lines.append(line)
        else:
            lines += [f'#line 1 "{found[1]}"', (directory / found[1]).read_text(), f'#line {number + 1} "{name}"']
    return "\n".join(lines) + "\n"


def compiler_identity() -> list[str]:
    """What else the compiled program depends on: headers for BCC, and BCC and LLVM, without importing them."""
    headers = sorted(path for path in (source_directory() / "include").rglob("*") if path.is_file())
    libraries = sorted(path for pattern in LIBRARIES for path in Path("/usr/lib").glob(pattern))
    found = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in libraries]
    with contextlib.suppress(metadata.PackageNotFoundError):
        found.append(metadata.version("bcc"))
    return [*found, os.environ.get("ARCH", ""), *(path.read_text() for path in headers)]
