"""The programs that a node is made of, and where `make node` puts them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.lab.servers import PROGRAMS, find_program

OF_NODE = PROGRAMS.parent / "node"
"""Debian's containerd and CNI plugins, unpacked: their packages would start a service on this machine."""
CNI = OF_NODE / "cni"
KUBERNETES, KUBECTL, COREDNS = "kubernetes", "kubectl", "coredns-kubernetes"
BUILT = (KUBERNETES, KUBECTL, COREDNS)
UNPACKED = (
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "cni/bridge",
    "cni/host-local",
    "cni/loopback",
    "cni/portmap",
)
INSTALLED = ("runc", "buildah", "musl-gcc", "gcc", "openssl", "dnsmasq", "iptables", "nft", "conntrack")


def path_of(program: str) -> str:
    """Where one of BUILT or INSTALLED is."""
    found = find_program(program)
    assert found is not None, f"{program} is missing: `make node` provides it"
    return found


def missing() -> list[str]:
    """The programs that are not there."""
    return [*_not_found((*BUILT, *INSTALLED)), *(name for name in UNPACKED if not (OF_NODE / name).exists())]


def _not_found(programs: Iterable[str]) -> list[str]:
    return [program for program in programs if find_program(program) is None]
