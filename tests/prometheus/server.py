"""A real Prometheus in the lab's node, where it scrapes a real agent. The machine's own network has no part in it."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from subprocess import Popen
from typing import Any

import yaml

from agent.lab import Lab, LabError, Pod, wait_until
from agent.lab.namespaces import call_inside
from agent.lab.processes import end
from tests.lab.servers import find_program

HOST, PORT = "127.0.0.1", 9090
SCRAPE_SECONDS = 1
START_SECONDS = 30.0
REQUEST_SECONDS = 20.0
NODE = "lab-node"
TABLE = "untracked"
HOOKS = ("prerouting", "output")
Series = tuple[dict[str, str], float]
History = tuple[dict[str, str], list[tuple[float, float]]]


class HttpClient(HTTPConnection):
    """Connects from inside a pod's network namespace."""

    def __init__(self, pod: Pod, host: str, port: int) -> None:
        super().__init__(host, port, timeout=REQUEST_SECONDS)
        self._pod = pod

    def connect(self) -> None:
        call_inside(self._pod.name, super().connect)


def fetch(pod: Pod, host: str, port: int, path: str) -> bytes:
    """A page, asked for from inside a pod.

    Raises:
        OSError: nobody answers there.
    """
    client = HttpClient(pod, host, port)
    try:
        client.request("GET", path)
        return client.getresponse().read()
    finally:
        client.close()


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    pod: Pod
    log: Path

    def query(self, expression: str, *, at: float | None = None) -> list[Series]:
        """The value of an expression now, or at a time: labels and number of each series.

        Raises:
            LabError: Prometheus says that this is no expression.
        """
        time_of = {} if at is None else {"time": f"{at:.3f}"}
        data = self._ask("query", {"query": expression, **time_of})
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def history(self, expression: str, start: float, end: float, step: float) -> list[History]:
        """The values of an expression over time: labels, and pairs of time and number."""
        span = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        data = self._ask("query_range", {"query": expression, **span})
        return [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in data["result"]]

    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {one["labels"]["alertname"] for one in self._ask("alerts", {})["alerts"] if one["state"] == "firing"}

    def fired(self, seconds: float) -> set[str]:
        """The names of those that fired at some time within the last seconds."""
        found = self.query(f'count_over_time(ALERTS{{alertstate="firing"}}[{int(seconds)}s])')
        return {labels["alertname"] for labels, _ in found}

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return fetch(self.pod, HOST, PORT, "/-/ready").startswith(b"Prometheus")
        except OSError:
            return False

    def _ask(self, what: str, parameters: Mapping[str, str]) -> Any:  # noqa: ANN401  as the API has it
        path = f"/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(fetch(self.pod, HOST, PORT, path))
        if answer["status"] != "success":
            raise LabError(f"{answer['error']}: {parameters}")
        return answer["data"]


@contextmanager
def untracked(pod: Pod, *ports: int) -> Iterator[None]:
    """Keep these TCP ports out of the pod's connection table while the block lasts.

    Each scrape is a connection of its own: a full table would keep Prometheus from the agent, and us from Prometheus.
    """
    numbers = ", ".join(map(str, ports))
    rules = f"tcp dport {{ {numbers} }} notrack; tcp sport {{ {numbers} }} notrack;"
    chains = "".join(f"chain {hook} {{ type filter hook {hook} priority raw; {rules} }}\n" for hook in HOOKS)
    pod.run(["nft", "-f", "-"], stdin=f"table inet {TABLE} {{\n{chains}}}\n")
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "inet", TABLE])


@contextmanager
def prometheus(lab: Lab, folder: Path, target: str, rules: str = "") -> Iterator[Prometheus]:
    """Run one in the lab's node while the block lasts.

    Args:
        lab: Of any kind.
        folder: For its files.
        target: Address and port of the agent's metrics, there.
        rules: The text of a rules file.
    """
    program = find_program("prometheus")
    assert program is not None, "prometheus is missing: `make prometheus` provides it"
    (folder / "rules.yaml").write_text(rules or "groups: []\n")
    (folder / "prometheus.yaml").write_text(configuration(target))
    log = folder / "prometheus.log"
    with log.open("w") as output:
        process = lab.node.popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={HOST}:{PORT}",
                "--log.level=warn",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        running = Prometheus(lab.node, log)
        wait_until(lambda: _started(process, running), "Prometheus to start", seconds=START_SECONDS)
        yield running
    finally:
        end(process)


def _started(process: Popen[str], running: Prometheus) -> bool:
    if process.poll() is not None:
        raise LabError(f"Prometheus ended: {running.log.read_text()}")
    return running.is_ready()


def configuration(target: str) -> str:
    """As for one node, in a hurry."""
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": "dnstrail", "static_configs": [{"targets": [target], "labels": {"node": NODE}}]}
            ],
        }
    )


def wait_slowly(condition: Callable[[], bool], what: str, *, seconds: float) -> None:
    """As `wait_until`, for what is too dear to be asked 500 times a second."""

    def asked_twice_a_second() -> bool:
        if condition():
            return True
        time.sleep(0.5)
        return False

    wait_until(asked_twice_a_second, what, seconds=seconds)
