"""What `check` and `run` say on a machine or in a process that cannot capture: one sentence, never a traceback."""

import sys
from pathlib import Path

import pytest

from tests.kernel.commands import CHECK, RUN, found, refused, start

pytestmark = pytest.mark.kernel

WITHOUT_BPF = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin"]
WITHOUT_SYMBOLS = ["setpriv", "--bounding-set=-syslog,-sys_admin"]
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
CAPABILITIES = "this process lacks CAP_BPF and CAP_PERFMON"
FAKES = {"foreign": "x = 1\n", "unimportable": "raise ImportError('x')\n", "library": "raise OSError('libbcc.so.0')\n"}


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


def test_where_the_addresses_of_kernel_symbols_are_hidden_everything_is_attached_all_the_same():
    """As without CAP_SYSLOG, so with kptr_restrict=2."""
    rows = found(start([*WITHOUT_SYMBOLS, *CHECK]), 0)
    assert rows["kernel symbols"].startswith("limited")
    assert rows["sockets of the node"].startswith("ok ")
    limits = rows["load and attach"].split("; limited: ")[1:]
    assert all(limit.startswith("no kprobes") for limit in limits), limits


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
    rows = found(start(CHECK, PYTHONPATH=fake_bcc, CACHE_DIRECTORY=""), 1)
    assert rows["python3-bpfcc"].startswith("missing")
    assert "install the Debian package python3-bpfcc" in rows["python3-bpfcc"]
    assert rows["load and attach"].startswith("missing")


def test_run_without_bcc(fake_bcc: str):
    assert "install the Debian package python3-bpfcc" in refused(start(RUN, PYTHONPATH=fake_bcc, CACHE_DIRECTORY=""))


def test_a_reader_who_leaves_early_is_no_error():
    command = 'set -o pipefail; "$@" | true; exit "${PIPESTATUS[0]}"'
    done = start(["bash", "-c", command, "bash", *CHECK])
    assert (done.returncode, done.stderr) == (0, "")
