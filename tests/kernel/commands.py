"""`dnstrail check` and `dnstrail run` as commands that end, and what they said."""

import os
import subprocess
import sys
from subprocess import CompletedProcess

from agent.lab.processes import PATIENCE

CHECK = [sys.executable, "-m", "agent", "check"]
RUN = [sys.executable, "-m", "agent", "run", "--metrics-address=none", "--trace-socket=none", "--duration", "0.2"]
SECONDS = 60 * PATIENCE


def start(command: list[str], **environment: str) -> CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("DNSTRAIL_")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS, env={**settings, **environment}
    )


def refused(done: CompletedProcess[str]) -> str:
    """The sentence of a `run` that could not."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("dnstrail: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def found(done: CompletedProcess[str], code: int) -> dict[str, str]:
    """The rows of a `check` that ended so."""
    assert done.stderr == ""
    assert done.returncode == code
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "\033" not in done.stdout
    return rows(done.stdout)


def rows(table: str) -> dict[str, str]:
    """The rows of a `check`, each as its status, its feature and its sentence on one line, by feature."""
    found: list[list[str]] = []
    for line in table.partition("\n\n")[0].splitlines()[1:]:
        if line.startswith(" "):
            found[-1].append(line.strip())
        else:
            found.append([line])
    return {row[0][9:37].strip(): " ".join(row) for row in found}
