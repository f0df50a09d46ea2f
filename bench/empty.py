"""Programs that do nothing, attached where the agent's are: what the kernel takes to call them."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from agent.capture import cgroup
from agent.kernel.offsets import TRACEPOINTS
from agent.kernel.program import CGROUP_SKB, INSTRUCTION, RAW_TRACEPOINT, ProgramSpec, load, open_raw_tracepoint
from agent.lab import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

MOVE_TO_R0, EXIT = 0xB7, 0x95
"""Opcodes: BPF_ALU64 | BPF_MOV | BPF_K, and BPF_JMP | BPF_EXIT."""
LET_PASS = 1
NOTHING = ProgramSpec(INSTRUCTION.pack(MOVE_TO_R0, 0, 0, LET_PASS) + INSTRUCTION.pack(EXIT, 0, 0, 0), [])


@contextmanager
def empty_programs() -> Iterator[None]:
    """As long as this lasts, each packet calls them.

    Raises:
        LabError: The kernel refuses them.
    """
    with ExitStack() as stack:
        try:
            _attach(stack)
        except OSError as error:
            raise LabError(f"empty programs: {error}") from error
        yield


def _attach(stack: ExitStack) -> None:
    def keep(fd: int) -> int:
        stack.callback(os.close, fd)
        return fd

    for name in TRACEPOINTS:
        keep(open_raw_tracepoint(name, keep(load(name, NOTHING, RAW_TRACEPOINT, {}))))
    root = cgroup.cgroup2_root()
    if root is not None:
        for name, attach_type in cgroup.ATTACH_TYPES.items():
            keep(cgroup.link(keep(load(name, NOTHING, CGROUP_SKB, {})), root, attach_type))
