"""Containers of the image as the manifest asks for them, by runc: what containerd runs them with.

`python -m tests.image.container check` is `kubectl exec … dnstrail check` without a cluster; deploy/image/run does it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import yaml

from agent.lab.processes import LabError, wait_until
from tests.image import oci
from tests.lab.servers import find_program

ROOT = Path(__file__).parents[2]
STORE = (ROOT / ".cache/image").resolve()
SCRIPTS = ROOT / "deploy/image"
BASE = "localhost/dnstrail-base"
PROFILER = "runtime-default"
BUILD_SECONDS = 1500.0
START_SECONDS = 60.0
EXIT_SECONDS = 20.0
MEMORY = ("/sys/fs/cgroup/memory/{}/memory.max_usage_in_bytes", "/sys/fs/cgroup/{}/memory.peak")
"""Where the kernel says how much a container ever had at once: with cgroup v1, and with v2 from Linux 5.19 on."""

_numbers = itertools.count(1)


class Ended(NamedTuple):
    """What came of a container that ran to its end."""

    code: int
    out: str
    err: str


def build() -> oci.Image:
    """Build the image from this checkout, on a base of Debian's packages; return it laid out."""
    _script("base", str(STORE))
    _script("build", str(STORE), BASE)
    return built()


def built() -> oci.Image:
    """The image that was built last."""
    told = json.loads(_buildah("inspect", "--type", "image", "dnstrail"))["OCIv1"]["config"]
    assert told["User"] == "0:0"
    return oci.Image(STORE / "root", told["Entrypoint"], told["Cmd"], told["Env"], told["Labels"])


def manifest() -> oci.Manifest:
    """What daemonset.yaml grants."""
    return oci.manifest_of(yaml.safe_load_all((ROOT / "daemonset.yaml").read_text()))


def runtime_default(capabilities: Sequence[str]) -> oci.Json:
    """containerd's default seccomp profile for a container with these capabilities, from containerd's own code."""
    program = find_program(PROFILER)
    if program is None:
        raise LabError(f"the program {PROFILER} is missing: `make image` provides it")
    done = subprocess.run([program, *capabilities], capture_output=True, check=True, timeout=START_SECONDS)
    profile: oci.Json = json.loads(done.stdout)
    return profile


class Container:
    """One container; a context manager, which ends it."""

    def __init__(self, config: oci.Json, directory: Path) -> None:
        self.name = f"dnstrail-test-{os.getpid()}-{next(_numbers)}"
        self.out, self.err = directory / f"{self.name}.out", directory / f"{self.name}.err"
        self._bundle = directory / self.name
        self._bundle.mkdir()
        config["linux"]["cgroupsPath"] = f"/{self.name}"
        (self._bundle / "config.json").write_text(json.dumps(config, indent=1))
        self._state = directory / "runc"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.out.open("w") as out, self.err.open("w") as err:
            self.start(out, err)
        return self

    def __exit__(self, *_: object) -> None:
        self._runc("delete", "--force", self.name, check=False)
        if self._process is not None:
            self._process.wait(EXIT_SECONDS)

    def start(self, out: IO[Any] | None = None, err: IO[Any] | None = None) -> None:
        """Start it, in the foreground of a runc of its own."""
        pid_file = self._bundle / "pid"
        command = ["runc", "--root", str(self._state), "run", "--bundle", str(self._bundle)]
        self._process = subprocess.Popen(
            [*command, "--pid-file", str(pid_file), self.name], stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        wait_until(lambda: pid_file.exists() or self.has_ended, "the container to start", seconds=START_SECONDS)

    @property
    def has_ended(self) -> bool:
        """Whether its process has."""
        return self._process is not None and self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Its first process, in the machine's own numbers."""
        return int((self._bundle / "pid").read_text())

    def lines(self) -> list[dict[str, Any]]:
        """The session lines so far."""
        text = self.out.read_text()
        lines = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return [line for line in lines if "Kind" not in line]

    def wait_ready(self) -> None:
        """Return when the agent in it says that it watches."""
        self.wait_until(lambda: "ready in" in self.err.read_text(), "the agent to be ready", START_SECONDS)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """As `agent.lab.wait_until`, and in vain at once when it has ended."""

        def holds() -> bool:
            if self.has_ended:
                raise LabError(f"the container ended: {self.err.read_text()[-2000:]}")
            return condition()

        wait_until(holds, what, seconds=seconds)

    def kill(self, number: signal.Signals) -> None:
        """Send its first process a signal, as a kubelet does."""
        self._runc("kill", self.name, str(int(number)))

    def wait(self, seconds: float = EXIT_SECONDS) -> int:
        """Its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def execute(self, *command: str) -> Ended:
        """Run a command beside its process, as `kubectl exec` does."""
        argv = ["runc", "--root", str(self._state), "exec", self.name, *command]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=START_SECONDS)
        return Ended(done.returncode, done.stdout, done.stderr)

    def peak_bytes(self) -> int:
        """The most memory it ever had at once, with its share of the kernel's."""
        paths = [Path(place.format(self.name)) for place in MEMORY]
        return int(next(path for path in paths if path.exists()).read_text())

    def _runc(self, *arguments: str, check: bool = True) -> None:
        command = ["runc", "--root", str(self._state), *arguments]
        subprocess.run(command, capture_output=True, check=check, timeout=EXIT_SECONDS)


def run(config: oci.Json, directory: Path, seconds: float = START_SECONDS) -> Ended:
    """Run a container to its end."""
    with Container(config, directory) as container:
        code = container.wait(seconds)
    return Ended(code, container.out.read_text(), container.err.read_text())


def without(granted: oci.Manifest, capability: str) -> oci.Manifest:
    """The manifest, less one capability."""
    changed = json.loads(json.dumps(granted.pod))
    added = changed["containers"][0]["securityContext"]["capabilities"]["add"]
    added.remove(capability.removeprefix("CAP_"))
    return granted._replace(pod=changed)


def main(arguments: list[str]) -> int:
    """Run `dnstrail` with these arguments in a container of the image, as far as the manifest allows."""
    granted = manifest()
    seccomp = runtime_default(granted.capabilities)
    extra: Mapping[str, str] = {key: value for key, value in os.environ.items() if key.startswith("DNSTRAIL_")}
    config = oci.config(granted, built(), args=arguments or None, environment=extra, seccomp=seccomp)
    with tempfile.TemporaryDirectory() as directory:
        container = Container(config, Path(directory))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: container.kill(signal.Signals(received)))
        container.start()
        try:
            return container.wait(float("inf"))
        finally:
            container.__exit__()


def _buildah(*arguments: str) -> str:
    command = [str(SCRIPTS / "buildah"), str(STORE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=START_SECONDS).stdout


def _script(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments], capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
    )
    if done.returncode:
        raise LabError(f"deploy/image/{name}: {done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
