"""A running dnstrail for kernel tests, and its session lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.lab import Lab
from agent.lab.processes import PATIENCE

Line = dict[str, Any]
EVERY_FAILURE = ("--failure-rate=unlimited", "--max-lines=unlimited", "--max-bytes=unlimited")
"""What tests count is not held back."""
ALONE = ("--metrics-address=none", "--trace-socket=none")
"""Several run at once, and only one can have the port and the socket."""
DNSTRAIL = [sys.executable, "-m", "agent"]
READY_SECONDS = 20.0 * PATIENCE
LINE_SECONDS = 15.0 * PATIENCE


def whole_lines(text: str) -> list[Line]:
    """The session lines of an output, without one that is not complete yet."""
    return [line for line in every_line(text) if "Kind" not in line]


def every_line(text: str) -> list[Line]:
    """Those of incidents, too."""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Watch:
    """`dnstrail run` in the background, by itself or within another command; its lines, only those of one lab."""

    def __init__(self, folder: Path, *options: str, within: Sequence[str] = ()) -> None:
        self.out = folder / "lines"
        self.err = folder / "diagnostics"
        with self.out.open("w") as out, self.err.open("w") as err:
            command = [*within, *DNSTRAIL, "run", *ALONE, *EVERY_FAILURE, *options]
            self.process = subprocess.Popen(command, stdout=out, stderr=err)
        self._until(lambda: "ready in" in self.diagnostics(), READY_SECONDS, "it says that it watches")

    def diagnostics(self) -> str:
        """What it said on stderr."""
        return self.err.read_text()

    def lines(self, lab: Lab | None = None) -> list[Line]:
        """All complete session lines so far; with a lab, those that passed through its namespaces."""
        lines = whole_lines(self.out.read_text())
        if lab is None:
            return lines
        ids = {pod.netns_id for pod in (lab.node, *lab.clients, *lab.servers, lab.upstream)}
        return [line for line in lines if any(hop["Netns"] in ids for hop in line["Path"])]

    def wait_for(self, lab: Lab, count: int, seconds: float = LINE_SECONDS) -> list[Line]:
        """The lab's lines, once there are so many."""
        self._until(lambda: len(self.lines(lab)) >= count, seconds, f"{count} sessions")
        return self.lines(lab)

    def get(self, path: str) -> str:
        """A page of its port, which an option has to give it: see `ALONE`."""
        found = re.search(r"metrics and health at (\S+)", self.diagnostics())
        assert found
        with urllib.request.urlopen(f"http://{found[1]}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def stop(self) -> str:
        """End it as Kubernetes would; what it said."""
        self.process.terminate()
        self.process.wait(timeout=10)
        return self.diagnostics()

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"dnstrail ended: {self.diagnostics()}"
            assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}: {self.out.read_text()}"
            time.sleep(0.02)


def end_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill what a test left running."""
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watch]]:
    """Start a dnstrail with these options; ended with the test."""
    started: list[Watch] = []

    def start(*options: str, within: Sequence[str] = ()) -> Watch:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Watch(folder, *options, within=within))
        return started[-1]

    yield start
    end_all(one.process for one in started)
