"""Programs the lab runs, and how it makes sure that none of them outlives it.

Every program starts under `setpriv --pdeathsig KILL`: the kernel itself ends it when the lab's process dies, however
that happens. The kernel ties this to the *thread* that started the program, so keep the thread that uses a lab alive
for as long as the lab.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from subprocess import DEVNULL, CompletedProcess, Popen
from typing import IO

PACKAGES = {
    "conntrack": "conntrack",
    "dig": "bind9-dnsutils",
    "dnsmasq": "dnsmasq-base",
    "getent": "libc-bin",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "tc": "iproute2",
    "unshare": "util-linux",
}
"""The Debian package of each program the lab needs."""

PATIENCE = float(os.environ.get("DNSTRAIL_LAB_PATIENCE", "1"))
"""How many times as long as usual programs may take: of machines that are emulated."""
EXIT_SECONDS = 5.0 * PATIENCE
POLL_SECONDS = 0.002


class LabError(Exception):
    """The lab cannot be built or used; the message says what to do about it."""


def require_root_and_tools() -> None:
    """Raise LabError unless this process is root and all programs are installed."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root: it creates network namespaces")
    for tool, package in PACKAGES.items():
        if shutil.which(tool) is None:
            raise LabError(f"the lab needs the program {tool}: install the Debian package {package}")


def run(
    argv: Sequence[str], *, check: bool = True, timeout: float = 10.0, stdin: str | None = None
) -> CompletedProcess[str]:
    """Run a program to its end and return its output.

    Args:
        argv: The program and its arguments.
        check: Raise when the exit status is not zero.
        timeout: Seconds the program may take.
        stdin: What the program reads; nothing by default.

    Raises:
        LabError: The program failed (with `check`) or took too long.
    """
    try:
        done = subprocess.run(
            _bound(argv), input=stdin or "", capture_output=True, text=True, check=False, timeout=timeout * PATIENCE
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"`{' '.join(argv)}` took longer than {timeout * PATIENCE} s") from late
    if check and done.returncode != 0:
        raise LabError(
            f"`{' '.join(argv)}` failed with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = EXIT_SECONDS) -> None:
    """Return as soon as the condition holds.

    Raises:
        LabError: It did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds} s in vain for {what}")
        time.sleep(POLL_SECONDS)


@dataclass
class Processes:
    """The background programs of one lab."""

    started: list[Popen[str]] = field(default_factory=list)

    def popen(
        self, argv: Sequence[str], *, stdout: int | IO[str] = DEVNULL, stderr: int | IO[str] = DEVNULL
    ) -> Popen[str]:
        """Start a program that ends with the lab at the latest; a session of its own keeps Ctrl-C from it."""
        process = Popen(_bound(argv), stdin=DEVNULL, stdout=stdout, stderr=stderr, text=True, start_new_session=True)
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs, and reap it."""
        for process in self.started:
            end(process)
        self.started.clear()


def end(process: Popen[str]) -> None:
    """Kill one process and reap it; its pipes are closed."""
    process.kill()
    process.wait(EXIT_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _bound(argv: Sequence[str]) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", *argv]
