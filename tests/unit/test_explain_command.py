"""`dnstrail explain`: session lines from files and pipes, stories on stdout, everything else on stderr."""

from __future__ import annotations

import fcntl
import gzip
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from agent.cli import main

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"
KEPT = FIXTURES / "lines/node-a.jsonl"
CAPTURE = FIXTURES / "cases/28-refused-by-dnsmasq-itself.pcap"
COMMAND = [sys.executable, "-m", "agent", "explain"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("DNSTRAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def explain(capsys):
    def run(*arguments: str | Path, code: int = 0) -> tuple[list[str], list[str]]:
        assert main(["explain", *map(str, arguments)]) == code
        out, err = capsys.readouterr()
        return out.splitlines(), err.splitlines()

    return run


def piped(*arguments: str, content: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | variables
    return subprocess.run([*COMMAND, *arguments], input=content, capture_output=True, env=environment, check=True)


def test_a_file_is_told(explain):
    rows, err = explain(KEPT)
    assert [row for row in rows if row.startswith(("PolicyDrop", "ServerError", "QueueOverflow"))] == [
        "PolicyDrop on node-a: 3 lookups failed",
        "ServerError on node-a: 1 lookup failed",
        "QueueOverflow on node-a: 1 lookup succeeded, but not at once",
    ]
    assert rows[-1] == "3 problems in 5 lookups; 1 lookup without any."
    assert err == []


def test_standard_input_is_read_where_no_file_is_named(explain):
    done = piped(content=KEPT.read_bytes())
    assert done.stdout.decode().splitlines() == explain(KEPT)[0]
    assert done.stderr == b""


def test_what_replay_prints_can_be_told():
    lines = subprocess.run([*COMMAND[:-1], "replay", str(CAPTURE)], capture_output=True, check=True).stdout
    assert piped("-", content=lines).stdout.startswith(b"ServerError: 1 lookup failed\n")


def test_several_files_are_one_input(explain, tmp_path):
    packed = tmp_path / "old.jsonl.gz"
    packed.write_bytes(gzip.compress(KEPT.read_bytes()))
    assert explain(packed, KEPT)[0][-1] == "3 problems in 10 lookups; 2 lookups without any."


def test_what_kubectl_puts_around_the_lines_is_no_hindrance(explain, tmp_path):
    words = b"[pod/dnstrail-x2x7q/dnstrail] 2026-11-28T08:36:17.123456789Z "
    lines = [words + line for line in KEPT.read_bytes().splitlines(keepends=True)]
    file = tmp_path / "kubectl.log"
    file.write_bytes(words + b"dnstrail: 24 hooks attached\n" + b"".join(lines))
    rows, err = explain(file)
    assert rows == explain(KEPT)[0]
    assert err == [f"dnstrail: 1 line is no session line: 1 without JSON (first: line 1 of {file})"]


def test_filters_are_those_of_run_and_replay(explain):
    def titles(*options: str) -> list[str]:
        return [row.split(" ")[0] for row in explain(KEPT, *options)[0] if " on node-a: " in row]

    assert titles("--cause", "PolicyDrop") == ["PolicyDrop"]
    assert titles("--status", "Succeeded") == ["QueueOverflow"]
    assert titles("--pod", "till-*") == ["PolicyDrop", "ServerError"]
    assert titles("--namespace", "shop", "--name", "www.example.*") == ["ServerError", "QueueOverflow"]
    assert titles("--rcode", "SERVFAIL", "--type", "A") == ["ServerError"]
    assert explain(KEPT, "--cause", "PolicyDrop")[0][-1] == (
        "1 problem in 3 lookups; 0 lookups without any; 3 lookups left out by the filters."
    )


def test_healthy_lookups_are_told_with_all(explain):
    assert "No problem on node-a: 1 lookup succeeded" in explain(KEPT, "--all")[0]


def test_an_option_can_be_a_variable(explain, monkeypatch):
    monkeypatch.setenv("DNSTRAIL_CAUSE", "ServerError")
    monkeypatch.setenv("DNSTRAIL_COLOR", "always")
    assert explain(KEPT)[0][0] == "\033[31mServerError on node-a: 1 lookup failed\033[0m"


def test_an_empty_input_has_no_problems(explain, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    assert explain(empty) == (["No problems; 0 lookups without any."], [])


def test_a_file_that_cannot_be_opened_is_a_usage_error_and_nothing_is_told(explain, tmp_path):
    rows, err = explain(KEPT, tmp_path / "missing", code=2)
    assert rows == []
    assert err == [f"dnstrail: cannot open {tmp_path / 'missing'}: No such file or directory"]


def test_a_damaged_file_is_named_after_what_could_be_read(explain, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(KEPT.read_bytes())[:-20])
    rows, err = explain(cut, KEPT, code=1)
    assert rows[0] == "PolicyDrop on node-a: 6 lookups failed"
    assert rows[-1].startswith("3 problems in ")
    assert err[-1] == f"dnstrail: {cut}: the compressed file is cut off or damaged"


@pytest.mark.parametrize("arguments", [["--status", "failed?"], ["--color", "red"], ["--nonsense"]])
def test_a_wrong_option_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["explain", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


def test_a_reader_that_goes_away_is_no_error():
    pipeline = 'set -o pipefail; "$@" | true; echo "${PIPESTATUS[0]}"'
    command = ["bash", "-c", pipeline, "sh", *COMMAND, *[str(KEPT)] * 50, "--all"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert "Traceback" not in done.stderr


def test_an_encoding_without_boxes_gets_plain_arrows_and_escapes():
    line = KEPT.read_bytes().splitlines()[0].replace(b"php-fpm", "naïve".encode())
    done = piped(content=line, PYTHONIOENCODING="ascii")
    assert b" --x dropped: NETFILTER_DROP" in done.stdout
    assert rb"na\xefve in pod" in done.stdout


def test_a_line_cannot_steer_the_terminal():
    line = KEPT.read_bytes().splitlines()[0].replace(b"php-fpm", b"\\u001b[2Jevil\\u202e")
    done = piped(content=line)
    assert rb"\x1b[2Jevil\u202e in pod" in done.stdout
    assert b"\x1b" not in done.stdout


def test_rows_are_broken_where_the_width_is_known_and_nowhere_else():
    content = KEPT.read_bytes()
    broken = piped(content=content, COLUMNS="80").stdout.decode().splitlines()
    whole = piped(content=content).stdout.decode().splitlines()
    assert max(map(len, broken)) <= 80 < max(map(len, whole))
    assert " ".join(" ".join(broken).split()) == " ".join(" ".join(whole).split())


def at_terminal(**variables: str) -> bytes:
    """What a terminal shows."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"} | variables
    with subprocess.Popen([*COMMAND, str(KEPT)], stdin=subprocess.DEVNULL, stdout=follower, env=environment) as child:
        os.close(follower)
        shown = b""
        try:
            while part := os.read(leader, 65536):
                shown += part
        except OSError:
            pass  # how Linux says that nobody has the other end open any more
        os.close(leader)
    assert child.returncode == 0
    return shown


def test_a_terminal_gets_colours_unless_the_user_refuses_them():
    assert at_terminal().startswith(b"\x1b[31mPolicyDrop")
    assert b"\x1b" not in at_terminal(NO_COLOR="1")
    assert b"\x1b" not in at_terminal(DNSTRAIL_COLOR="never")


def test_ctrl_c_ends_the_input_and_what_was_read_is_told():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(COMMAND, **pipes) as child:
        child.stdin.write(KEPT.read_bytes())
        child.stdin.flush()
        deadline = time.monotonic() + 30
        while unread(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # it has taken the lines from the pipe, and is at work on them
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert out.startswith(b"PolicyDrop on node-a: 3 lookups failed\n")
    assert (child.returncode, err) == (130, b"")


def unread(child: subprocess.Popen[bytes]) -> int:
    """Bytes that wait in the pipe to its standard input."""
    return struct.unpack("i", fcntl.ioctl(child.stdin, termios.FIONREAD, bytes(4)))[0]
