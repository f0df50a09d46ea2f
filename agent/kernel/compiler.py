"""BCC, which compiles C to BPF and loads it.

BCC with its LLVM costs 72 MiB at import and 200 MiB and more while it compiles. This is the one module that imports it,
and only child processes ask for it, which take that with them when they exit.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from agent.kernel.errors import CaptureError

KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
"""The environment variable by which BCC finds other headers than those of the running kernel."""
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
    directory = source_directory()
    own = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)

    def included(found: re.Match[str]) -> str:
        return f'#line 1 "{found[1]}"\n{(directory / found[1]).read_text()}'

    return own.sub(included, (directory / "dnstrail.bpf.c").read_text())


def bcc_version() -> str:
    """The version of BCC, without importing it; empty if that is not known."""
    try:
        return metadata.version("bcc")
    except metadata.PackageNotFoundError:
        return ""
