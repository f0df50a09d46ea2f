"""Whether programs may read kernel memory by plain loads: bpf_rdonly_cast(), to any memory since Linux 6.17.

A feature is tried and never concluded from a version.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.kernel.program import CALL, INSTRUCTION, PSEUDO_KFUNC_CALL, RAW_TRACEPOINT, ProgramSpec, load

if TYPE_CHECKING:
    from agent.kernel.btf import Btf

FUNCTION = "bpf_rdonly_cast"
CALL_NUMBER = 0x7FFFFF00
"""Stands in the compiled program for the call: no helper has this number."""
MOVE_IMMEDIATE, LOAD_8_BYTES, EXIT = 0xB7, 0x79, 0x95
"""BPF_ALU64 | BPF_MOV | BPF_K; BPF_LDX | BPF_MEM | BPF_DW; BPF_JMP | BPF_EXIT."""


def cast_id(kernel: Btf) -> int | None:
    """BTF id of the function; None where the kernel lacks it, or casts to structures alone."""
    found = kernel.function_id(FUNCTION)
    return found if found is not None and _loads(found) else None


def _loads(function: int) -> bool:
    """Whether the verifier takes a program that casts an address to nothing in particular, and reads there."""
    code = b"".join(
        INSTRUCTION.pack(*instruction)
        for instruction in (
            (MOVE_IMMEDIATE, 1, 0, 0),
            (MOVE_IMMEDIATE, 2, 0, 0),
            (CALL, PSEUDO_KFUNC_CALL << 4, 0, function),
            (LOAD_8_BYTES, 0, 0, 0),
            (MOVE_IMMEDIATE, 0, 0, 0),
            (EXIT, 0, 0, 0),
        )
    )
    try:
        os.close(load("casts", ProgramSpec(code, []), RAW_TRACEPOINT, {}))
    except OSError:
        return False
    return True
