"""Network namespaces of labs: named after their owner, entered, and removed even when the owner was killed.

A namespace's name carries the owner's pid and start time (`dnstrail-<pid>-<start>-<n>-client1`), so whether a lab is
still in use can be read from the name alone: no lock, no record that could be lost. Labs that share /run/netns must
share the pid namespace too, or they take each other for dead.
"""

import contextlib
import ctypes
import itertools
import os
import re
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from agent.capture.cgroup import cgroup2_root
from agent.lab.processes import EXIT_SECONDS, LabError, run

NAMES = Path("/run/netns")
DIRECTORIES = Path("/run/dnstrail-lab")
LAB_ID = re.compile(r"(dnstrail-(?P<pid>\d+)-(?P<start>\d+)-\d+)(-\w+)?")
CLONE_NEWNET = 0x40000000
SYSCTLS = Path("/proc/sys")

Result = TypeVar("Result")
_numbers = itertools.count(1)


def new_lab_id() -> str:
    """Return a name no other lab has, of this process or another."""
    pid = os.getpid()
    return f"dnstrail-{pid}-{_start_ticks(pid)}-{next(_numbers)}"


def path_of(name: str) -> Path:
    """Return the file that stands for a namespace."""
    return NAMES / name


def create(lab_id: str, names: Iterable[str]) -> Path:
    """Create namespaces and the directory for the lab's files, which is returned."""
    directory = DIRECTORIES / lab_id
    directory.mkdir(parents=True)
    run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))
    return directory


def remove(lab_id: str) -> None:
    """Remove all a lab consists of: processes, namespaces, cgroups, directory. What is missing already is no error."""
    names = [path.name for path in _namespaces() if _lab_of(path) == lab_id]
    _kill_inside(names)
    run(["ip", "-force", "-batch", "-"], stdin="".join(f"netns del {name}\n" for name in names), check=False)
    for path in _cgroups():
        if _lab_of(path) == lab_id:
            with contextlib.suppress(OSError):
                path.rmdir()
    shutil.rmtree(DIRECTORIES / lab_id, ignore_errors=True)
    if left := [name for name in names if path_of(name).exists()]:
        raise LabError(f"cannot delete the network namespaces {', '.join(left)}")


def sweep() -> list[str]:
    """Remove the labs whose owner is dead, and return their ids."""
    places = [*_namespaces(), *_cgroups(), *_entries(DIRECTORIES)]
    dead = sorted({lab for path in places if (lab := _lab_of(path)) and not _owner_alive(lab)})
    for lab in dead:
        remove(lab)
    return dead


def set_sysctls(name: str, values: Mapping[str, str]) -> None:
    """Write sysctls of one namespace.

    Raises:
        LabError: The kernel lacks one of them.
    """

    def write() -> None:
        for key, value in values.items():
            (SYSCTLS / key).write_text(value)

    try:
        call_inside(name, write)
    except OSError as error:
        raise LabError(f"cannot set the sysctl {error.filename} of a network namespace: {error.strerror}") from error


def call_inside(name: str, function: Callable[[], Result]) -> Result:
    """Call a function from a thread that has joined the namespace.

    A socket opened there stays in the namespace; a process started there would be killed when the thread ends.
    """

    def joined() -> Result:
        join(name)
        return function()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(joined).result()


def udp_socket(name: str, family: int) -> socket.socket:
    """Return a UDP socket that lives in the namespace."""
    return call_inside(name, lambda: socket.socket(family, socket.SOCK_DGRAM))


def join(name: str) -> None:
    """Let this thread join the namespace, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path_of(name).open("rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise LabError(f"cannot join the network namespace {name}: {os.strerror(ctypes.get_errno())}")


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _namespaces() -> list[Path]:
    return [path for path in _entries(NAMES) if _lab_of(path)]


def _cgroups() -> list[Path]:
    root = cgroup2_root()
    return sorted(root.glob("dnstrail-*")) if root else []


def _lab_of(path: Path) -> str | None:
    found = LAB_ID.fullmatch(path.name)
    return found[1] if found else None


def _owner_alive(lab_id: str) -> bool:
    found = LAB_ID.fullmatch(lab_id)
    return found is not None and _start_ticks(int(found["pid"])) == int(found["start"])


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None for a dead one or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


def _kill_inside(names: Iterable[str]) -> None:
    """Kill the processes that live in these namespaces, and wait until they are gone."""
    inodes = {inode for name in names if (inode := _inode(path_of(name)))}
    with contextlib.ExitStack() as stack:
        killed = [stack.enter_context(_descriptor(fd)) for fd in _pidfds_inside(inodes)]
        for fd in killed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        for fd in killed:
            _wait_for_exit(fd)


def _pidfds_inside(inodes: set[int]) -> Iterator[int]:
    """Yield a descriptor per process; checked after it was opened, so a reused pid cannot be hit."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _inode(process / "ns/net") not in inodes:
                continue
            fd = os.pidfd_open(int(process.name))
            if _inode(process / "ns/net") in inodes:
                yield fd
            else:
                os.close(fd)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


@contextlib.contextmanager
def _descriptor(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _wait_for_exit(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(EXIT_SECONDS * 1000):
        raise LabError("a process of the lab does not die")
