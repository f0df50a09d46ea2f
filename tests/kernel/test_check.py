"""What `check` and `run` say on a machine or in a process that cannot capture: one sentence, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.kernel

CHECK = [sys.executable, "-m", "agent", "check"]
RUN = [sys.executable, "-m", "agent", "run", "--metrics-address=none", "--duration", "0.2"]
WITHOUT_BPF = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
WITHOUT_BTF = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh"]
CAPABILITIES = "this process lacks CAP_BPF and CAP_PERFMON"
NO_BTF = "/sys/kernel/btf/vmlinux: No such file or directory: the kernel must be built with CONFIG_DEBUG_INFO_BTF=y"
FAKES = {"foreign": "x = 1\n", "unimportable": "raise ImportError('x')\n", "library": "raise OSError('libbcc.so.0')\n"}


def start(command: list[str], **environment: str) -> CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("DNSTRAIL_")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**settings, **environment}
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
    """The rows of a `check`, each as its status, its feature and its sentence on one line, by feature."""
    assert done.stderr == ""
    assert done.returncode == code
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "\033" not in done.stdout
    rows: list[list[str]] = []
    for line in done.stdout.partition("\n\n")[0].splitlines()[1:]:
        if line.startswith(" "):
            rows[-1].append(line.strip())
        else:
            rows.append([line])
    return {row[0][9:37].strip(): " ".join(row) for row in rows}


@pytest.fixture
def as_nobody() -> list[str]:
    if start([*AS_NOBODY, sys.executable, "-c", "import agent.cli"]).returncode:
        pytest.skip("the user nobody may not read this checkout")
    return AS_NOBODY


@pytest.fixture(params=FAKES)
def fake_bcc(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").write_text(FAKES[request.param])
    return str(tmp_path)


def test_with_full_rights_capture_is_possible():
    done = start(CHECK)
    rows = found(done, 0)
    assert rows["load and attach"].startswith("ok ")
    assert "loaded and attached in" in rows["load and attach"]
    assert rows["privileges"].startswith("ok ")
    assert "Capture is possible here" in done.stdout
    assert not any(row.startswith(("missing", "unknown")) for row in rows.values())


def test_check_without_capabilities_names_them_once():
    done = start([*WITHOUT_BPF, *CHECK])
    rows = found(done, 1)
    assert rows["privileges"].startswith("missing")
    assert CAPABILITIES in rows["privileges"]
    assert "run as root, or grant them" in rows["privileges"]
    assert rows["load and attach"].endswith("see privileges")
    assert "Capture is impossible here" in done.stdout


def test_run_without_capabilities_names_them():
    assert CAPABILITIES in refused(start([*WITHOUT_BPF, *RUN]))


def test_check_as_nobody(as_nobody: list[str]):
    rows = found(start([*as_nobody, *CHECK]), 1)
    assert CAPABILITIES in rows["privileges"]
    assert rows["processes of the node"].startswith("limited")
    assert "CAP_SYS_PTRACE" in rows["processes of the node"]


def test_run_as_nobody(as_nobody: list[str]):
    assert CAPABILITIES in refused(start([*as_nobody, *RUN]))


def test_check_without_bcc(fake_bcc: str):
    rows = found(start(CHECK, PYTHONPATH=fake_bcc), 1)
    assert rows["python3-bpfcc"].startswith("missing")
    assert "install the Debian package python3-bpfcc" in rows["python3-bpfcc"]
    assert rows["load and attach"].startswith("missing")


def test_run_without_bcc(fake_bcc: str):
    assert "install the Debian package python3-bpfcc" in refused(start(RUN, PYTHONPATH=fake_bcc))


def test_check_without_btf():
    rows = found(start([*WITHOUT_BTF, *CHECK]), 1)
    assert rows["BTF of the kernel"].startswith("missing")
    assert NO_BTF in rows["BTF of the kernel"]
    assert rows["drop reasons"].startswith("unknown")
    assert rows["load and attach"].endswith("see BTF of the kernel")


def test_run_without_btf():
    assert NO_BTF in refused(start([*WITHOUT_BTF, *RUN]))


def test_a_reader_who_leaves_early_is_no_error():
    command = 'set -o pipefail; "$@" | true; exit "${PIPESTATUS[0]}"'
    done = start(["bash", "-c", command, "bash", *CHECK])
    assert (done.returncode, done.stderr) == (0, "")
