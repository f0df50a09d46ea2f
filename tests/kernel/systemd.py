"""A systemd of its own: process 1 of new namespaces, with none of this machine's units, as long as a test needs it."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from agent.lab import wait_until
from agent.lab.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

PROJECT = Path(__file__).parents[2]
PROGRAM = Path("/lib/systemd/systemd")
UNIT = PROJECT / "deploy/systemd/dnstrail.service"
START_SECONDS = 20.0 * PATIENCE
TARGETS = ("basic", "shutdown", "sysinit", "umount")
"""What every unit depends on; empty here, so that nothing else starts."""
FOLDER = "/run/lab"
# There is no journal here; and process 1 makes a PID namespace, where a host has /proc of all its processes.
LAB_ONLY = f"""\
[Service]
StandardOutput=append:{FOLDER}/lines
StandardError=append:{FOLDER}/diagnostics
BindPaths=/run/proc:/proc
"""
# The cgroup where systemd starts is its root. /run and /tmp are new; the clone is where the unit says, and so says its
# Python environment.
BOOT = f"""\
set -e
for cgroup in $CGROUPS; do echo 0 >"$cgroup/cgroup.procs"; done
mount --make-rprivate /
mkdir -p "$FOLDER/mounts"
mount -t tmpfs tmpfs "$FOLDER/mounts"
mkdir "$FOLDER/mounts"/{{lab,proc,opt}}
mount --bind "$FOLDER" "$FOLDER/mounts/lab"
mount --rbind /proc "$FOLDER/mounts/proc"
mount --bind "$PROJECT" "$FOLDER/mounts/opt"
mount --no-mtab --move "$FOLDER/mounts" /run
mount -t tmpfs tmpfs /opt
mkdir /opt/dnstrail
mount --no-mtab --move /run/opt /opt/dnstrail
echo /opt/dnstrail >/run/where
mount --bind /run/where /opt/dnstrail/.venv/lib/python3*/site-packages/_editable_impl_dnstrail.pth
mount -t tmpfs tmpfs /etc/default
cp {FOLDER}/options /etc/default/dnstrail
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t proc proc /proc
export container=lab SYSTEMD_UNIT_PATH={FOLDER}/units
exec {PROGRAM} --system --unit=basic.target --log-target=null --show-status=no
"""


class Systemd:
    """It runs from now to `close`; units are dnstrail's alone.

    Args:
        folder: for `lines` and `diagnostics` of the service, and what else it needs.
        options: what is in /etc/default/dnstrail.
    """

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        self.lines = folder / "lines"
        self.diagnostics = folder / "diagnostics"
        self._write_units(folder, options)
        self._cgroups = cgroups(f"dnstrail-test-{os.getpid()}")
        environment = {
            "PATH": os.environ["PATH"],
            "FOLDER": str(folder),
            "PROJECT": str(PROJECT),
            "CGROUPS": " ".join(map(str, self._cgroups)),
        }
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--fork", "--kill-child"]
        self._unshare = subprocess.Popen([*command, "bash", "-c", BOOT], env=environment)

    def start(self) -> None:
        """Start the service."""
        wait_until(self._is_up, "systemd to be up", seconds=START_SECONDS)
        self.systemctl("start", "dnstrail")
        wait_until(self._says_how_it_went, "the service to be ready or to fail", seconds=START_SECONDS)
        assert self.is_ready(), f"{self.show('Result', 'ExecMainStatus')}: {self.words()}"

    def words(self) -> str:
        """What the service has said of itself."""
        return self.diagnostics.read_text() if self.diagnostics.exists() else ""

    def is_ready(self) -> bool:
        """Whether it watches."""
        return "ready in" in self.words()

    def _says_how_it_went(self) -> bool:
        return self.is_ready() or self.show("NRestarts") != {"NRestarts": "0"}

    @staticmethod
    def _write_units(folder: Path, options: Mapping[str, str]) -> None:
        units = folder / "units"
        (units / "dnstrail.service.d").mkdir(parents=True)
        (units / UNIT.name).write_text(UNIT.read_text())
        (units / "dnstrail.service.d/lab.conf").write_text(LAB_ONLY)
        for name in TARGETS:
            (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
        (folder / "options").write_text("".join(f"{name}={value}\n" for name, value in options.items()))

    @property
    def _init(self) -> int | None:
        return next(iter(children(self._unshare.pid)), None)

    def _is_up(self) -> bool:
        return self._init is not None and self.systemctl("is-active", "basic.target") == "active"

    def systemctl(self, *arguments: str) -> str:
        """What `systemctl` says to these arguments."""
        enter = ["nsenter", "--target", str(self._init), "--mount", "--pid", "--root"]
        return subprocess.run(
            [*enter, "systemctl", *arguments], capture_output=True, text=True, check=False, timeout=START_SECONDS
        ).stdout.strip()

    def show(self, *properties: str) -> dict[str, str]:
        """Properties of the service."""
        text = self.systemctl("show", "dnstrail", *(f"--property={name}" for name in properties))
        return dict(line.split("=", 1) for line in text.splitlines())

    def main_pid(self) -> int | None:
        """The service's process as this machine numbers it; None while it has none."""
        own = self.show("MainPID")["MainPID"]
        return next((pid for pid in children(self._init or 0) if status(pid)["NSpid"].split()[-1] == own), None)

    def close(self) -> None:
        """Everything in the namespace dies with its process 1."""
        self._unshare.kill()
        self._unshare.wait()
        for path in self._cgroups:
            wait_until(lambda path=path: removed(path), f"{path} to be empty", seconds=START_SECONDS)


def children(pid: int) -> list[int]:
    """Those that a process has started and not yet waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int) -> dict[str, str]:
    """The fields of proc_pid_status(5)."""
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def cgroups(name: str) -> list[Path]:
    """A new cgroup in each hierarchy that systemd uses: version 2, and its own of version 1 where that is mounted."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    used = {kind: Path(path) for _, path, kind, how, *_ in mounts if kind == "cgroup2" or "name=systemd" in how}
    made = [path / name for path in used.values()]  # a tree may be mounted in several places
    for path in made:
        path.mkdir()
    return made


def removed(path: Path) -> bool:
    """Whether a cgroup and those below it are gone, after this attempt."""
    folders = sorted((one for one in path.rglob("*") if one.is_dir()), key=lambda one: len(one.parts), reverse=True)
    with suppress(OSError):
        for one in (*folders, path):
            one.rmdir()
    return not path.exists()
