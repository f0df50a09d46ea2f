"""Where the types of the running kernel come from: its BTF, else its headers, else nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agent.kernel.btf import BtfError, load_kernel
from agent.kernel.headers import headers_directory, load_headers

if TYPE_CHECKING:
    from agent.kernel.btf import Btf


class KernelTypes(NamedTuple):
    """The types, and in words where they were found."""

    btf: Btf
    source: str
    built_in: bool
    """Whether they are the kernel's own BTF, which has the types of modules in other files."""


def kernel_types() -> KernelTypes:
    """The types of the running kernel. BTF takes 50 ms, the headers some seconds (see agent.kernel.headers).

    Raises:
        BtfError: there is neither BTF nor headers that compile; the message has both reasons.
    """
    try:
        return KernelTypes(load_kernel(), "BTF", built_in=True)
    except BtfError as no_btf:
        try:
            return KernelTypes(load_headers(), f"headers in {headers_directory()}", built_in=False)
        except BtfError as no_headers:
            raise BtfError(f"{no_btf}, or its headers be installed: {no_headers}") from no_headers
