"""A machine within this machine: namespaces of all kinds and cgroups of its own, and beside it the rest of the world.

Nothing routes out of its network, and nothing that it mounts, sets or starts is seen outside. Whoever kills its process
1 ends all of it: the kernel does that when the test's process dies, however that happens.

The BPF programs of an agent in it are this machine's, though, as are the numbers of processes that they record: an
agent in it also sees lookups made outside, and process numbers that mean nothing in there. On nodes of kind it is the
same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import IO, Self

from agent.lab import namespaces
from agent.lab.processes import LabError, Processes, run, wait_until

NAME = "node-1"
ADDRESS = "172.30.0.2"
WORLD_ADDRESS = "172.30.0.1"
WORLD_DOMAIN = "example.test"
"""The names that exist outside of the cluster."""
WORLD_WEB = "192.0.2.80"
"""What all of them are (RFC 5737)."""
INSIDE = Path(__file__).with_name("inside")
MOUNT_SECONDS = 20.0
GONE_SECONDS = 20.0
COMMAND_SECONDS = 60.0
JOIN = 'for one in $1; do echo $$ >"$one/cgroup.procs"; done; shift; exec "$@"'
"""A shell that enters cgroups and becomes a program."""


class Machine:
    """It; a context manager.

    Attributes:
        directory: Whatever is written on disk; the same path inside.
        processes: What ends with it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes = Processes()
        self._id = namespaces.new_lab_id()
        self._netns = f"{self._id}-node"
        self._world = f"{self._id}-world"
        self._cgroups = [mounted / self._id for mounted in cgroup_mounts()]
        self._outer: Popen[str] | None = None

    def __enter__(self) -> Self:
        namespaces.sweep()
        sweep_cgroups()
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._make_networks()
            self._make_cgroups()
            self._start()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def first_process(self) -> int:
        """Its process 1, by this machine's number."""
        assert self._outer is not None
        return child_of(self._outer.pid)

    def popen(self, argv: Sequence[str], output: IO[str]) -> Popen[str]:
        """Start a program in it, which ends with it; what is returned is the program's parent, `child_of` finds it."""
        bound = ["setpriv", "--pdeathsig", "KILL", *argv]
        return self.processes.popen([*self._entrance(), *bound], stdout=output, stderr=output)

    def run(
        self, *argv: str, stdin: str | None = None, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> CompletedProcess[str]:
        """Run a program in it to its end."""
        return run([*self._entrance(), *argv], stdin=stdin, check=check, timeout=seconds)

    def shake_hands(self, port: int, trust: ssl.SSLContext) -> None:
        """Make a TLS connection to the node from its own network, and end it."""
        reached = namespaces.call_inside(self._netns, lambda: socket.create_connection((ADDRESS, port)))
        with reached, trust.wrap_socket(reached, server_hostname=ADDRESS):
            pass

    def pids(self, program: str) -> list[int]:
        """The processes of that name, by this machine's numbers."""
        found = []
        for listed in self._cgroups[0].rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                found += [pid for pid in map(int, listed.read_text().split()) if _comm(pid) == program]
        return found

    def _entrance(self) -> list[str]:
        kinds = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        into = ["nsenter", "--target", str(self.first_process), *kinds]
        return ["sh", "-c", JOIN, "sh", " ".join(map(str, self._cgroups)), *into]

    def _make_networks(self) -> None:
        """A cable between the node and the world, where a name server knows a few names and denies all others."""
        namespaces.create(self._id, [self._netns, self._world])
        far = ["peer", "name", "eth0", "netns", self._world]
        run(["ip", "-n", self._netns, "link", "add", "eth0", "type", "veth", *far])
        for netns, address in ((self._netns, ADDRESS), (self._world, WORLD_ADDRESS)):
            run(["ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0"])
            for link in ("lo", "eth0"):
                run(["ip", "-n", netns, "link", "set", link, "up"])
        run(["ip", "-n", self._netns, "route", "add", "default", "via", WORLD_ADDRESS])
        self.processes.popen(
            [
                *("ip", "netns", "exec", self._world, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"),
                *("--no-resolv", "--no-hosts", "--user=root", "--pid-file=", "--bind-interfaces"),
                *(f"--listen-address={WORLD_ADDRESS}", f"--address=/{WORLD_DOMAIN}/{WORLD_WEB}", "--local=/#/"),
            ]
        )

    def _make_cgroups(self) -> None:
        for cgroup in self._cgroups:
            cgroup.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # a cpuset of version 1 begins without any
                if (cgroup / name).exists():
                    (cgroup / name).write_text((cgroup.parent / name).read_text())

    def _start(self) -> None:
        own = ("--mount", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--kill-child", "--mount-proc")
        arguments = [NAME, ADDRESS, WORLD_ADDRESS, str(self.directory)]
        into = ["nsenter", f"--net={namespaces.path_of(self._netns)}", "unshare", *own, "bash", str(INSIDE), *arguments]
        said = self.directory / "inside.log"
        with said.open("w") as output:
            self._outer = self.processes.popen(
                ["sh", "-c", JOIN, "sh", " ".join(map(str, self._cgroups)), *into], stdout=output, stderr=output
            )
        outer = self._outer

        def is_up() -> bool:
            if outer.poll() is not None:
                raise LabError(f"process 1 of the node ended: {said.read_text()[-1000:]}")
            return (self.directory / "up").exists()

        wait_until(is_up, "the node's mounts", seconds=MOUNT_SECONDS)

    def _end(self) -> None:
        """Kill process 1, and with it all; then remove what the kernel keeps."""
        if self._outer is not None and self._outer.poll() is None:
            with contextlib.suppress(LabError, ProcessLookupError):
                os.kill(self.first_process, signal.SIGKILL)
            self._outer.wait(GONE_SECONDS)
        self.processes.close()
        namespaces.remove(self._id)
        wait_until(self._are_removed, "the node's cgroups to be empty", seconds=GONE_SECONDS)

    def _are_removed(self) -> bool:
        return all(map(remove_cgroup, self._cgroups))


def cgroup_mounts() -> list[Path]:
    """Where this machine's cgroup hierarchies are mounted, each once."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2") and mount[3].startswith("rw")]


def sweep_cgroups() -> None:
    """Remove what a node left whose test was killed. Its processes ended with it."""
    for cgroup in (found for mounted in cgroup_mounts() for found in mounted.glob("dnstrail-*")):
        if namespaces.LAB_ID.fullmatch(cgroup.name) and not _is_in_use(cgroup.name):
            remove_cgroup(cgroup)


def remove_cgroup(cgroup: Path) -> bool:
    """Remove a cgroup and those below it; False while a process is left in one."""
    with contextlib.suppress(FileNotFoundError, OSError):
        for directory, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(directory)  # noqa: PTH106  what os.walk gave
    return not cgroup.exists()


def child_of(pid: int) -> int:
    """The process that this one started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if not children:
        raise LabError(f"process {pid} has no child")
    return int(children[0])


def _is_in_use(lab_id: str) -> bool:
    return namespaces._owner_alive(lab_id)


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
