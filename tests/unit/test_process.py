"""Words on stderr never keep their writer, whoever should read them."""

import os
import subprocess
import sys
import time

import pytest

from agent.process import MAX_CHARACTERS, log, tell_kubelet, wants_colour

SAY = "from agent.process import log; log('one'); log('x' * 5000); log('two')"


def run(stderr: int) -> float:
    """Say something to that descriptor; how long that took, the interpreter's start included."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", SAY], stderr=stderr, check=True, timeout=30)
    return time.monotonic() - begun


def test_what_is_said_is_one_line_each_and_bounded():
    reader, writer = os.pipe()
    run(writer)
    os.close(writer)
    with os.fdopen(reader) as words:
        first, second, third = words.read().splitlines()
    assert (first, third) == ("dnstrail: one", "dnstrail: two")
    assert second.startswith("dnstrail: xxx")
    assert len(second) < 1100


def fill(writer: int) -> int:
    """Write until a pipe takes no more; how much that was."""
    os.set_blocking(writer, False)
    written = 0
    try:
        while True:
            written += os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return written


def test_nobody_who_reads_is_waited_for():
    reader, writer = os.pipe()
    usual = run(subprocess.DEVNULL)
    written = fill(writer)
    assert run(writer) < usual + 5
    assert len(os.read(reader, 2 * written)) == written, "nothing was added"
    os.close(reader)
    os.close(writer)


def test_a_reader_who_left_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    run(writer)
    os.close(writer)


STALL = "import time; from agent.process import arm_watchdog as end\nend(1)\ntime.sleep(20)"


def test_a_loop_that_stands_still_ends_the_process_and_says_where_it_stood():
    done = subprocess.run([sys.executable, "-c", STALL], capture_output=True, text=True, check=False, timeout=15)
    assert done.returncode == 1
    assert "line 3 in <module>" in done.stderr


def test_a_loop_that_stands_still_ends_the_process_although_nobody_reads():
    reader, writer = os.pipe()
    fill(writer)
    assert subprocess.run([sys.executable, "-c", STALL], stderr=writer, check=False, timeout=15).returncode == 1
    os.close(reader)
    os.close(writer)


def test_a_loop_that_goes_on_is_left_alone():
    again = "for _ in range(20): end(1); time.sleep(.1)"
    loop = f"import time; from agent.process import arm_watchdog as end\n{again}"
    assert subprocess.run([sys.executable, "-c", loop], check=False, timeout=15).returncode == 0


def test_it_can_be_captured(capsys: pytest.CaptureFixture[str]):
    log("hello")
    assert capsys.readouterr().err == "dnstrail: hello\n"


def test_the_kubelet_is_told_the_reason_in_its_file_and_nothing_older(tmp_path):
    place = tmp_path / "termination-log"
    place.write_text("something older, and longer than the reason")
    tell_kubelet("no BTF", str(place))
    assert place.read_text() == "no BTF"
    tell_kubelet("x" * 5000, str(place))
    assert len(place.read_text()) == MAX_CHARACTERS


def test_where_no_kubelet_made_a_file_none_is_made(tmp_path):
    tell_kubelet("no BTF", str(tmp_path / "termination-log"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "terminal", "wanted"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, False, False),
    ],
)
def test_colour_is_for_terminals_of_users_who_did_not_refuse_it(environment: dict[str, str], *, terminal: bool, wanted):
    assert wants_colour(environment, terminal=terminal) is wanted


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("choice", "wanted"), [("always", True), ("never", False)])
def test_what_the_user_says_of_colour_for_one_command_counts(choice: str, *, terminal: bool, wanted: bool):
    assert wants_colour({"NO_COLOR": "1", "TERM": "xterm"}, terminal=terminal, choice=choice) is wanted
    assert wants_colour({"TERM": "xterm"}, terminal=terminal, choice=choice) is wanted
