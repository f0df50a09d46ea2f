"""The demo is the promise of the README: every fault is recognised, whatever makes the Service."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.demo import STEPS, render, rows
from agent.lab.processes import PATIENCE

pytestmark = pytest.mark.kernel

DEMO = [sys.executable, "-m", "agent", "demo"]
FAULTS = {
    "FAULT: a policy drops the query": ("Failed", "0/80", "PolicyDrop"),
    "FAULT: a policy drops the reply": ("Failed", "3/147", "PolicyDrop"),
    "FAULT: first query lost, C library asks again": ("Succeeded", None, "PolicyDrop"),
    "FAULT: nothing listens on the server's port": ("Failed", "0/80", "NoListener"),
    "FAULT: the server is stopped (SIGSTOP)": ("Failed", "1/17", "ServerNoReply"),
}


def labs() -> set[str]:
    return {path.name for path in Path("/run/netns").glob("dnstrail-*")}


@pytest.mark.parametrize("translation", ["iptables", pytest.param("nftables", marks=pytest.mark.slow)])
def test_every_fault_is_recognised(translation: str):
    began = time.monotonic()
    # Neither a filter nor a format that the user has set for `run` may change the demo.
    environment = {**os.environ, "DNSTRAIL_NAME": "nothing.example", "DNSTRAIL_OUTPUT": "table"}
    done = subprocess.run(
        [*DEMO, "--translation", translation],
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * PATIENCE,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 30 * PATIENCE
    rows = done.stdout.splitlines()
    for fault, (status, bits, code) in FAULTS.items():
        at = next(number for number, row in enumerate(rows) if row.startswith(fault))
        said = rows[at].removeprefix(fault).split()
        assert [said[0], said[2], said[3]] == [status, code, "yes"]
        assert bits in {None, said[1]}
        assert rows[at + 1].startswith("    ")
        assert rows[at + 1].endswith(".")
    sessions = sum(len(step.types) for step in STEPS)
    assert f"{sessions} of {sessions} as expected; {sessions} sessions" in done.stdout
    assert " 0 records lost" in done.stdout
    assert "dnstrail run -o table" in rows[-1]


def test_the_faults_of_this_test_are_those_of_the_demo():
    assert {step.done for step in STEPS if step.expected.cause} == set(FAULTS)
    questions = [(step.name, rdtype) for step in STEPS for rdtype in step.types]
    assert len(questions) == len(set(questions))


def test_a_missing_program_is_one_sentence():
    environment = {**os.environ, "PATH": "/nonexistent"}
    done = subprocess.run(DEMO, capture_output=True, text=True, check=False, timeout=60 * PATIENCE, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("dnstrail: the lab needs the program ")
    assert "install the Debian package" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_agent_that_cannot_start_is_one_sentence_and_leaves_no_lab(tmp_path: Path):
    (tmp_path / "bcc.py").write_text("x = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CACHE_DIRECTORY": ""}
    with subprocess.Popen(DEMO, stdout=-1, stderr=-1, text=True, env=environment) as demo:
        out, words = demo.communicate(timeout=60 * PATIENCE)
    assert demo.returncode == 1
    assert out == ""
    assert "install the Debian package python3-bpfcc" in words
    assert "Traceback" not in words
    assert not any(name.startswith(f"dnstrail-{demo.pid}-") for name in labs())


def test_a_step_of_which_nothing_was_said_is_shown_as_missed():
    row = rows([])[0]
    assert not row.recognised
    assert next(render(row)).endswith("MISSED")


def test_a_step_of_which_the_wrong_thing_was_said_is_shown_with_what_was_expected():
    question = {"Name": f"{STEPS[0].name}.", "Type": "A"}
    line = {"Question": question, "Status": "Failed", "BitMap": 1, "PathBitMap": 17, "Cause": None}
    row = rows([line])[0]
    assert not row.recognised
    said, expected = render(row)
    assert said.endswith(" NO")
    assert expected.strip().startswith("expected: Succeeded, PathBitMap 51")
