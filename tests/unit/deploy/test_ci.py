"""Continuous integration runs each lane for which there are programs and time, and names those that it leaves out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = ROOT / ".ci/run"
ALWAYS = ["test", "check", "test-slow"]
WITH_GO = ["test-prometheus", "test-install", "test-cluster", "test-image"]


class Machine:
    """A PATH on which `make` notes its target, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._targets = folder / "targets"
        self.install("bash", 'exec /bin/bash "$@"')
        self.install("dirname", 'exec /usr/bin/dirname "$@"')
        self.install("make", f'echo "$1" >>{self._targets}; [ "$1" != "$FAILING" ]')

    def install(self, program: str, text: str = "") -> None:
        path = self._folder / program
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def run(self, failing: str = "", seconds: int = 3600) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self._folder), "FAILING": failing, "CI_SECONDS": str(seconds)}
        return subprocess.run([RUN], env=environment, capture_output=True, text=True, check=False)

    @property
    def targets(self) -> list[str]:
        return self._targets.read_text().split()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_where_go_is_all_lanes_run(machine: Machine):
    machine.install("go")
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.targets == [*ALWAYS, *WITH_GO]


def test_without_go_each_lane_that_needs_it_is_named(machine: Machine):
    done = machine.run()
    assert done.returncode == 0
    assert machine.targets == ALWAYS
    assert done.stdout.splitlines() == [f"SKIPPED {lane}: Go is not installed" for lane in WITH_GO]


def test_a_lane_that_does_not_fit_any_more_is_not_begun_and_named(machine: Machine):
    machine.install("go")
    done = machine.run(seconds=450)
    assert done.returncode == 0
    assert machine.targets == [*ALWAYS, "test-prometheus", "test-install"]
    cluster, image = done.stdout.splitlines()
    assert cluster.startswith("SKIPPED test-cluster: it takes up to 800 s, and 4")
    assert cluster.endswith(" s of 450 s are left")
    assert image.startswith("SKIPPED test-image: it takes up to 600 s, and 4")


@pytest.mark.parametrize("failing", [*ALWAYS, *WITH_GO])
def test_what_fails_ends_it(machine: Machine, failing: str):
    machine.install("go")
    assert machine.run(failing).returncode != 0
    assert machine.targets[-1] == failing
