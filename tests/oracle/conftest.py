"""Oracles: DNS servers that tell by dnstap what they did, and a dnstrail that watches them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.lab import Lab, Pod
from tests.kernel.conftest import Line, Watch
from tests.lab.servers import PROGRAMS, find_program

POLL_SECONDS = 0.3


@contextmanager
def watching(folder: Path, *options: str) -> Iterator[Watch]:
    """`dnstrail run` while the block lasts."""
    dnstrail = Watch(folder, "--log-rate", "100000", *options)
    try:
        yield dnstrail
    finally:
        dnstrail.process.kill()
        dnstrail.process.wait()


def lines_of(dnstrail: Watch, lab: Lab, client: Pod, count: int, seconds: float = 15.0) -> list[Line]:
    """A pod's lookups, once there are so many; after a while those there are, for the test to say what is missing."""

    def lines() -> list[Line]:
        return [line for line in dnstrail.lines(lab) if line["Client"]["Netns"] == client.netns_id]

    deadline = time.monotonic() + seconds
    while len(lines()) < count and time.monotonic() < deadline:
        assert dnstrail.process.poll() is None, dnstrail.diagnostics()
        time.sleep(POLL_SECONDS)
    return lines()


def need(*programs: str) -> None:
    """Fail where one of these is missing; but CoreDNS has to be built, so skip where Go is missing too."""
    missing = [program for program in programs if find_program(program) is None]
    if "coredns" in missing and find_program("go") is None:
        pytest.skip(f"neither CoreDNS in {PROGRAMS} nor Go to build it is here")
    if missing:
        pytest.fail(f"{' and '.join(missing)} missing: `make oracles` provides it")
