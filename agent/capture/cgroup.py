"""Attaching to the root of the cgroup v2 tree by BPF links, which the kernel removes when their last descriptor closes.

BCC only knows BPF_PROG_ATTACH, whose attachments outlive the process: so this makes the system call itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

BPF_LINK_CREATE = 28
ATTACH_TYPES = {"cgroup_ingress": 0, "cgroup_egress": 1}
"""enum bpf_attach_type: BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS."""
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
ATTR_WORDS = 32


def cgroup2_root(mounts: Path = Path("/proc/self/mountinfo")) -> Path | None:
    """Where the cgroup v2 tree is mounted; None when it is not."""
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    return None


def link(prog_fd: int, directory: Path, attach_type: int) -> int:
    """Attach a cgroup_skb program (kernel 5.7 and newer); the link's descriptor.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN, EINVAL on kernels without links.
    """
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(f"the number of bpf(2) on {platform.machine()} is not known")
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        attributes = (ctypes.c_uint32 * ATTR_WORDS)(prog_fd, cgroup, attach_type, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.syscall(number, BPF_LINK_CREATE, attributes, ctypes.sizeof(attributes))
    finally:
        os.close(cgroup)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(directory))
    return int(fd)
