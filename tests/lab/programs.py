"""BPF programs that say no, on links that the kernel removes with their descriptor, and filters of sockets.

They are assembled here: neither a compiler nor kernel headers are needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from agent.capture.cgroup import BPF_LINK_CREATE, cgroup2_root
from agent.kernel.program import BPF_PROG_LOAD
from agent.kernel.syscall import address_of, bpf
from agent.lab import namespaces
from agent.lab.faults import UnsupportedFaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.lab.faults import Direction, Hook, Message
    from agent.lab.node import Lab
    from agent.lab.pods import DnsServer, Pod

BPF_NETFILTER = 45
PROG_TYPE_NETFILTER = 32
NETFILTER_PRIORITY = 10
"""Behind the filter tables: two of one priority are refused where one is a program."""
UNUSED_LOAD_WORDS = (0,) * 11
"""Of union bpf_attr between the licence and the attach type: log, kernel version, flags, name, device."""
BEFORE = 1 << 3
"""BPF_F_BEFORE: with nothing named, before all others."""
XDP_FLAGS = {"generic": 1 << 1, "native": 1 << 2}
NF_INET_HOOKS: dict[Hook, int] = {"PREROUTING": 0, "INPUT": 1, "FORWARD": 2, "OUTPUT": 3, "POSTROUTING": 4}
INSTRUCTION_BYTES = 8
ETHERNET_HEADER = 14
UDP_HEADER = 8
PORT = 53
PIDFD_GETFD = 438
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
LOAD_BYTE, LOAD_HALF, LOAD_WORD, MOVE, ADD_VALUE, MOVE_VALUE = 0x71, 0x69, 0x61, 0xBF, 0x07, 0xB7
JUMP_IF_GREATER, JUMP_UNLESS_VALUE, EXIT = 0x2D, 0x55, 0x95

_numbers = itertools.count(1)


class ProgramKind(NamedTuple):
    """How one type of BPF program finds the packet, and says no."""

    number: int
    data: int
    """Where its context has the packet's beginning and, 4 bytes on, its end."""
    network_header: int
    """Where the packet has it."""
    no: int
    yes: int


XDP = ProgramKind(6, 0, ETHERNET_HEADER, no=1, yes=2)
TC = ProgramKind(3, 76, ETHERNET_HEADER, no=2, yes=0)
CGROUP_SKB = ProgramKind(8, 76, 0, no=0, yes=1)

ATTACH_TYPES: dict[tuple[ProgramKind, Direction], int] = {
    (XDP, "ingress"): 37,
    (TC, "ingress"): 46,
    (TC, "egress"): 47,
    (CGROUP_SKB, "ingress"): 0,
    (CGROUP_SKB, "egress"): 1,
}
"""enum bpf_attach_type."""


class Headers(NamedTuple):
    """What a UDP packet of one family looks like, without options."""

    first: int
    protocol_at: int
    size: int


IPV4, IPV6 = Headers(0x45, 9, 20), Headers(0x60, 6, 40)


@contextmanager
def xdp_drop(
    pod: Pod,
    device: str,
    message: Message = "query",
    *,
    mode: Literal["native", "generic"] = "native",
    ipv6: bool = False,
) -> Iterator[None]:
    """Drop DNS that arrives at a device by an XDP program.

    Raises:
        UnsupportedFaultError: The kernel or the device has no such mode.
    """
    with _at_device(pod, device, XDP, "ingress", _dns(XDP, message, ipv6=ipv6), flags=XDP_FLAGS[mode]):
        yield


@contextmanager
def tcx_drop(
    pod: Pod,
    device: str,
    direction: Direction,
    message: Message = "query",
    *,
    ipv6: bool = False,
    protocol: int = socket.IPPROTO_UDP,
    port: int = PORT,
    first: bool = False,
) -> Iterator[None]:
    """Drop DNS at a device by a tc program on a BPF link, without a qdisc, as Cilium attaches its own.

    Args:
        pod: Where.
        device: Which.
        direction: Of the packets there.
        message: What is dropped.
        ipv6: For which family.
        protocol: UDP's number or TCP's.
        port: The server's.
        first: Before the programs that are there already.

    Raises:
        UnsupportedFaultError: The kernel is older than 6.6.
    """
    code = _dns(TC, message, ipv6=ipv6, protocol=protocol, port=port)
    with _at_device(pod, device, TC, direction, code, flags=BEFORE if first else 0):
        yield


@contextmanager
def bpf_netfilter_drop(pod: Pod, hook: Hook, *, ipv6: bool = False) -> Iterator[None]:
    """Drop everything of one family in a netfilter hook by a BPF program.

    Raises:
        UnsupportedFaultError: The kernel has no such programs.
    """
    say_no = _instruction(MOVE_VALUE, imm=0) + _instruction(EXIT)
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with _loaded(PROG_TYPE_NETFILTER, BPF_NETFILTER, say_no) as program:
        words = (program, 0, BPF_NETFILTER, 0, family, NF_INET_HOOKS[hook], NETFILTER_PRIORITY)
        with _descriptor(namespaces.call_inside(pod.name, lambda: _bpf(BPF_LINK_CREATE, *words))):
            yield


@contextmanager
def cgroup(lab: Lab) -> Iterator[Path]:
    """Make a cgroup; what still runs in it at the end goes to the root's.

    Raises:
        UnsupportedFaultError: No cgroup v2 tree is mounted.
    """
    root = cgroup2_root()
    if root is None:
        raise UnsupportedFaultError("no cgroup v2 tree is mounted")
    directory = root / f"{lab.id}-{next(_numbers)}"
    directory.mkdir()
    try:
        yield directory
    finally:
        for process in (directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (root / "cgroup.procs").write_text(process)
        directory.rmdir()


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Let this process be in a cgroup: sockets opened and programs started meanwhile belong to it for good."""
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    before = f"{directory.parent}/{own.removeprefix('0::')}"
    (directory / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        Path(before, "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def served_from(directory: Path, server: DnsServer) -> Iterator[None]:
    """Run a DNS server in a cgroup."""
    _restart_in(directory, server)
    try:
        yield
    finally:
        server.kill()
        server.start()


def _restart_in(directory: Path, server: DnsServer) -> None:
    server.kill()
    with inside(directory):
        server.start()


@contextmanager
def cgroup_drop(
    directory: Path, direction: Direction, message: Message = "query", *, ipv6: bool = False
) -> Iterator[None]:
    """Drop DNS of a cgroup's sockets by a BPF program."""
    attach_type = ATTACH_TYPES[CGROUP_SKB, direction]
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    with (
        _descriptor(group),
        _loaded(CGROUP_SKB.number, attach_type, _dns(CGROUP_SKB, message, ipv6=ipv6)) as program,
        _descriptor(_bpf(BPF_LINK_CREATE, program, group, attach_type)),
    ):
        yield


@contextmanager
def filtered_socket(sock: socket.socket) -> Iterator[None]:
    """Let a socket take nothing, by a filter on it."""
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(instruction)))
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


@contextmanager
def listening_sockets(server: DnsServer) -> Iterator[list[socket.socket]]:
    """Take hold of a DNS server's own UDP sockets of port 53.

    Raises:
        UnsupportedFaultError: This process may not.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(one) for one in _sockets_of(server)]
        yield [one for one in sockets if one.type == socket.SOCK_DGRAM and one.getsockname()[1] == PORT]


def _sockets_of(server: DnsServer) -> Iterator[socket.socket]:
    if server.process is None:
        return
    pid = server.process.pid
    with _descriptor(os.pidfd_open(pid)) as pidfd:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if str(entry.readlink()).startswith("socket:"):
                yield socket.socket(fileno=_taken(pidfd, int(entry.name)))


def _taken(pidfd: int, number: int) -> int:
    """Return a descriptor of our own for one of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    taken = int(libc.syscall(PIDFD_GETFD, pidfd, number, 0))
    if taken < 0:
        raise UnsupportedFaultError(f"no descriptor of the server's: {os.strerror(ctypes.get_errno())}")
    return taken


@contextmanager
def _at_device(
    pod: Pod, device: str, kind: ProgramKind, direction: Direction, code: bytes, *, flags: int
) -> Iterator[None]:
    attach_type = ATTACH_TYPES[kind, direction]

    def attach(program: int) -> int:
        index = socket.if_nametoindex(device)
        return _bpf(BPF_LINK_CREATE, program, index, attach_type, flags)

    with (
        _loaded(kind.number, attach_type, code) as program,
        _descriptor(namespaces.call_inside(pod.name, lambda: attach(program))),
    ):
        yield


def _dns(
    kind: ProgramKind, message: Message, *, ipv6: bool, protocol: int = socket.IPPROTO_UDP, port: int = PORT
) -> bytes:
    """Assemble a program that says no to DNS of one protocol, family and direction, and yes to the rest."""
    headers = IPV6 if ipv6 else IPV4
    start = kind.network_header
    port_at = start + headers.size + (2 if message == "query" else 0)
    must_be = (
        (LOAD_BYTE, start, headers.first),
        (LOAD_BYTE, start + headers.protocol_at, protocol),
        (LOAD_HALF, port_at, socket.htons(port)),
    )
    tests = [
        (LOAD_WORD, 2, 1, kind.data, 0),
        (LOAD_WORD, 3, 1, kind.data + 4, 0),
        (MOVE, 4, 2, 0, 0),
        (ADD_VALUE, 4, 0, 0, start + headers.size + UDP_HEADER),
        (JUMP_IF_GREATER, 4, 3, None, 0),
    ]
    for load, offset, value in must_be:
        tests += [(load, 5, 2, offset, 0), (JUMP_UNLESS_VALUE, 5, 0, None, value)]
    no = _instruction(MOVE_VALUE, imm=kind.no) + _instruction(EXIT)
    yes = _instruction(MOVE_VALUE, imm=kind.yes) + _instruction(EXIT)
    to_yes = len(tests) + len(no) // INSTRUCTION_BYTES
    return (
        b"".join(
            _instruction(code, to, source, to_yes - at - 1 if offset is None else offset, value)
            for at, (code, to, source, offset, value) in enumerate(tests)
        )
        + no
        + yes
    )


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, offset, imm)


@contextmanager
def _loaded(number: int, attach_type: int, code: bytes) -> Iterator[int]:
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    pointers = [*address_of(instructions), *address_of(licence)]
    count = len(code) // INSTRUCTION_BYTES
    with _descriptor(_bpf(BPF_PROG_LOAD, number, count, *pointers, *UNUSED_LOAD_WORDS, attach_type)) as program:
        yield program


def _bpf(command: int, *words: int) -> int:
    try:
        return bpf(command, *words)
    except OSError as error:
        raise UnsupportedFaultError(f"this kernel refuses the BPF program: {error.strerror}") from error


@contextmanager
def _descriptor(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
