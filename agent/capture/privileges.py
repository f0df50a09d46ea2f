"""What this process must be allowed to do. The one list: `check`, error messages, manifest and docs use it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agent.kernel.errors import CaptureError


class Capability(NamedTuple):
    """One Linux capability, what dnstrail needs it for and which kernel check asks."""

    name: str
    bit: int
    """include/uapi/linux/capability.h"""
    required: bool
    purpose: str
    kernel_check: str


CAPABILITIES = (
    Capability("CAP_BPF", 39, True, "create the maps and load the program", "kernel/bpf/syscall.c: bpf_prog_load()"),
    Capability(
        "CAP_PERFMON",
        38,
        True,
        "trace with raw tracepoints and read kernel memory",
        "kernel/bpf/syscall.c: is_perfmon_prog_type()",
    ),
    Capability(
        "CAP_NET_ADMIN",
        12,
        False,
        "attach to the sockets of the node: DNS over TCP, and datagrams in paged buffers",
        "kernel/bpf/syscall.c: bpf_prog_attach_check_attach_type()",
    ),
    Capability(
        "CAP_SYSLOG",
        34,
        False,
        "name the kernel function that dropped a packet",
        "kernel/ksyms_common.c: kallsyms_show_value()",
    ),
    Capability(
        "CAP_SYS_PTRACE",
        19,
        False,
        "find the processes and addresses of other namespaces",
        "fs/proc/namespaces.c: proc_ns_readlink()",
    ),
)
# Before CAP_BPF and CAP_PERFMON were split off (5.8) and still today this one stands for both.
CAP_SYS_ADMIN = 21


def effective(path: Path = Path("/proc/self/status")) -> int:
    """This process's effective capabilities as a bit mask."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def holds(capability: Capability, mask: int) -> bool:
    """Whether the mask grants it, by itself or through CAP_SYS_ADMIN where that implies it."""
    implied = capability.required and mask >> CAP_SYS_ADMIN & 1
    return bool(mask >> capability.bit & 1 or implied)


def named(name: str) -> Capability:
    """The capability of that name."""
    return next(capability for capability in CAPABILITIES if capability.name == name)


def missing(mask: int | None = None) -> list[str]:
    """Required capabilities that this process does not hold."""
    mask = effective() if mask is None else mask
    return [capability.name for capability in CAPABILITIES if capability.required and not holds(capability, mask)]


def sentence(names: list[str]) -> str:
    """What to tell the user about them."""
    return (
        f"this process lacks {' and '.join(names)}, without which the kernel refuses BPF tracing programs: "
        "run as root, or grant them (systemd: AmbientCapabilities=, Kubernetes: securityContext.capabilities.add)"
    )


def require() -> None:
    """Refuse early and clearly.

    Raises:
        CaptureError: naming the capabilities that are missing.
    """
    if names := missing():
        raise CaptureError(sentence(names))
