"""Attaching to the root of the cgroup v2 tree by BPF links, which the kernel removes when their last descriptor closes.

BCC only knows BPF_PROG_ATTACH, whose attachments outlive the process: so this makes the system call itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.kernel.syscall import bpf

BPF_LINK_CREATE = 28
ATTACH_TYPES = {"cgroup_ingress": 0, "cgroup_egress": 1}
"""enum bpf_attach_type: BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS."""


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
    cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return bpf(BPF_LINK_CREATE, prog_fd, cgroup, attach_type, 0)
    finally:
        os.close(cgroup)
