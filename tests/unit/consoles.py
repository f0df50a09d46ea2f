"""What documents show of commands.

`python -m tests.unit.consoles docs/explain.md` runs the commands of a page and renews what they print there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSOLE = re.compile(r"(?<=^```console\n)\$ ([^\n]+)\n(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
"""A block of its own, with one command."""
WIDTH = "100"


def output(command: str) -> str:
    """What a command prints on stdout, at the root of the repository and as wide as documents are."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DNSTRAIL_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = own | {"COLUMNS": WIDTH, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    ).stdout


def renewed(text: str) -> str:
    """The document with what its commands print now."""
    return CONSOLE.sub(lambda block: f"$ {block[1]}\n{output(block[1])}", text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        document = Path(name)
        document.write_text(renewed(document.read_text()))
