"""`dnstrail trace`: the real command, at a terminal and in pipes, beside a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.cli import main
from agent.export.line import Line
from agent.readers.hub import Limits
from agent.trace_command import HEALTHY_A_SECOND
from tests.unit.agents import SECONDS, SocketAgent
from tests.unit.terminal import Terminal

ROOT = Path(__file__).parents[2]
KEPT = [
    msgspec.json.decode(line, type=Line)
    for line in (ROOT / "tests/fixtures/lines/node-a.jsonl").read_bytes().splitlines()
]
COMMAND = [sys.executable, "-m", "agent", "trace"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[SocketAgent]:
    with SocketAgent(tmp_path / "trace.sock") as agent:
        yield agent


def command(agent: SocketAgent, *options: str) -> list[str]:
    return [*COMMAND, "--trace-socket", agent.path, *options]


def plain(agent: SocketAgent, *options: str, **variables: str) -> subprocess.Popen[bytes]:
    """With pipes, and heard by the agent."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("DNSTRAIL_")}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    environment = own | {"PYTHONIOENCODING": "utf-8"} | variables
    before = len(agent.hub.readers)
    child = subprocess.Popen(command(agent, *options), stdin=subprocess.DEVNULL, env=environment, **pipes)
    agent.wait_for(before + 1)
    return child


def told(agent: SocketAgent, *options: str, lines: list[Line] = KEPT, **variables: str) -> tuple[list[str], str]:
    """What it prints of some lines, and says."""
    with plain(agent, "--count", str(len(lines)), *options, **variables) as child:
        for line in lines:
            agent.send(line)
        out, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, err
    return out.decode().splitlines(), err.decode()


def with_name(name: str, process: str = "dig") -> Line:
    line = msgspec.json.decode(msgspec.json.encode(KEPT[0]), type=Line)
    line.question.name = name
    line.client.process = process
    return line


# In a pipe.


def test_in_a_pipe_each_lookup_is_a_plain_row_that_is_not_cut(agent: SocketAgent):
    rows, err = told(agent)
    assert len(rows) == 1 + len(KEPT)
    assert rows[0].split() == ["TIME", "CLIENT", "TYPE", "NAME", "SERVER", "RESULT", "LATENCY", "HOPS"]
    assert rows[1].split() == [
        "05:41:14.352",
        "shop/cart-7d9f-x2x",
        "php-fpm",
        "A",
        "redis-master.default.svc.cluster.local.",
        "10.96.0.10→10.244.1.53",
        "PolicyDrop",
        "-",
        "3",
    ]
    assert "QueueOverflow NOERROR" in rows[4]
    assert "5.001s" in rows[4]
    assert "\x1b" not in "".join(rows)
    assert err == ""


def test_the_wide_form_has_the_way_of_each_message(agent: SocketAgent):
    rows, _ = told(agent, "-o", "wide", lines=KEPT[:1])
    assert rows[2].startswith("  query     client shop/cart-7d9f-x2x (eth0) ──► netns 4026531840")
    assert "──✗ dropped: NETFILTER_DROP in nft_do_chain" in rows[2]


def test_the_detailed_form_is_the_story_of_explain_and_every_hop(agent: SocketAgent):
    rows, _ = told(agent, "-o", "detail", lines=KEPT[:1])
    assert rows[0] == "PolicyDrop on node-a: 1 lookup failed"
    assert any(row.startswith("  What to do  ") for row in rows)
    hops = rows[rows.index("  Hops") + 1 : -1]
    assert len(hops) == len(KEPT[0].path)
    assert hops[-1].endswith("NETFILTER_DROP in nft_do_chain")


def test_json_is_the_session_line_of_run(agent: SocketAgent):
    rows, _ = told(agent, "-o", "json")
    assert [msgspec.json.decode(row, type=Line) for row in rows] == KEPT


def test_json_is_asked_for_with_messages_and_rows_without(agent: SocketAgent):
    wanted = []
    for form in ("json", "table"):
        with plain(agent, "-o", form) as child:
            wanted.append(agent.hub.readers[0].wanted.messages)
            child.terminate()
        agent.wait_for(0)
    assert wanted == [True, False]


def test_every_filter_is_sent_to_the_agent(agent: SocketAgent):
    options = ["-n", "shop", "--pod", "cart-*", "--name", "*.local", "--type", "a", "--status", "Failed"]
    with plain(agent, *options, "--rcode", "SERVFAIL", "--cause", "PolicyDrop", "--slow", "100ms") as child:
        found = agent.hub.readers[0].wanted.filter
        child.terminate()
    assert found == (("*.local",), ("A",), ("Failed",), ("SERVFAIL",), ("PolicyDrop",), ("shop",), ("cart-*",), 0.1)


def test_rows_are_of_all_healthy_lookups_that_the_agent_allows_unless_fewer_are_asked_for(agent: SocketAgent):
    wanted = []
    for options in ((), ("--healthy-rate", "7")):
        with plain(agent, *options) as child:
            wanted.append(agent.hub.readers[0].wanted.healthy_a_second)
            child.terminate()
        agent.wait_for(0)
    assert wanted == [None, 7]


HOSTILE = "\x1b[2J\x9b31m\u202eevil\r\n\0" + "x" * 1000


@pytest.mark.parametrize("form", ["table", "wide", "detail", "json"])
def test_hostile_names_reach_nobody_raw(agent: SocketAgent, form: str):
    line = with_name(HOSTILE, HOSTILE)
    with plain(agent, "--count", "1", "-o", form) as child:
        agent.send(line)
        out, _ = child.communicate(timeout=SECONDS)
    assert b"evil" in out
    assert [char for char in out.decode() if not char.isprintable() and char != "\n"] == []
    if form == "json":
        assert json.loads(out)["Question"]["Name"] == HOSTILE


def test_bytes_that_are_no_text_and_lines_of_another_kind_do_no_harm(agent: SocketAgent):
    with plain(agent, "--count", "3") as child:
        for data in (b'{"Time":"\xff\xfe"}\n', b"garbage\n", b'{"Kind":"Tomorrow"}\n'):
            agent.hub.readers[0].put(data)
        agent.send(KEPT[0])
        out, err = child.communicate(timeout=SECONDS)
    assert b"PolicyDrop" in out
    assert b"Traceback" not in err


def test_an_encoding_without_boxes_gets_plain_arrows(agent: SocketAgent):
    rows, _ = told(agent, "-o", "wide", lines=KEPT[:1], PYTHONIOENCODING="ascii")
    assert "10.96.0.10>10.244.1.53" in rows[1]
    assert "--x dropped" in rows[2]


def test_colours_are_for_those_who_want_them(agent: SocketAgent):
    assert "\x1b[31mPolicyDrop" in told(agent, "--color", "always", lines=KEPT[:1])[0][1]
    assert "\x1b" not in told(agent, lines=KEPT[:1])[0][1]


def test_what_is_missing_is_said_on_stderr(agent: SocketAgent):
    with plain(agent) as child:
        agent.flush()
        child.stdout.readline()
        time.sleep(0.3)  # the first state is what losses are counted from; it has come
        for one in agent.hub.readers:
            one.passed_over, one.held, one.dropped = 4000, 3, 2
        agent.feed.flush(time.monotonic_ns() + 2_000_000_000)
        time.sleep(0.3)
        child.terminate()
        _, err = child.communicate(timeout=SECONDS)
    assert err == (
        b"dnstrail: not all lookups are shown: healthy ones only counted: 4,000, beyond the limit: 3, "
        b"dropped: reader too slow: 2\n"
    )


@pytest.mark.parametrize("idle", [True, False], ids=["nothing to write", "something to write"])
def test_a_reader_that_goes_away_ends_it_quietly(agent: SocketAgent, idle: bool):  # noqa: FBT001  a parameter of pytest
    with plain(agent) as child:
        child.stdout.readline()
        child.stdout.close()
        if not idle:
            agent.send(KEPT[0])
        assert child.wait(SECONDS) == 0
        assert child.stderr.read() == b""


def test_it_ends_quietly_with_whoever_holds_its_standard_input_if_that_is_asked_for(agent: SocketAgent):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(agent, "--end-with-stdin"), **pipes) as child:
        assert child.stdout.readline().startswith(b"TIME")
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(SECONDS) == 0
        assert child.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_when_it_is_told_to(agent: SocketAgent, number: signal.Signals):
    with plain(agent) as child:
        child.stdout.readline()
        child.send_signal(number)
        _, err = child.communicate(timeout=SECONDS)
    assert (child.returncode, err) == (0, b"")


def test_it_ends_after_its_duration(agent: SocketAgent):
    with plain(agent, "--duration", "0.3") as child:
        assert child.wait(SECONDS) == 0


def test_that_the_agent_has_ended_is_said(agent: SocketAgent):
    with plain(agent) as child:
        child.stdout.readline()
        agent.hub.stop()
        _, err = child.communicate(timeout=SECONDS)
    assert (child.returncode, err) == (1, b"dnstrail: the agent has ended\n")


def test_an_agent_that_refuses_is_quoted(tmp_path: Path):
    with SocketAgent(tmp_path / "trace.sock", Limits(readers=1)) as agent, plain(agent) as first:
        done = subprocess.run(command(agent), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        first.terminate()
        first.communicate(timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, b"dnstrail: the agent refuses: there are 1 readers already\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_else_than_root_is_told_that_only_root_may(agent: SocketAgent):
    for folder in Path(agent.path).parents:
        folder.chmod(folder.stat().st_mode | 0o001)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from agent.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "trace", "--trace-socket", agent.path],
        user=65534,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"dnstrail: cannot read from the agent at {agent.path}: only root may\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--slow", "soon"],
        ["--slow", "0"],
        ["--slow", "-1ms"],
        ["--count", "0"],
        ["-o", "xml"],
        ["--color", "red"],
        ["--trace-socket", "x" * 108],
        ["--trace-socket", "a\0b"],
        ["file"],
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["trace", *arguments])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err


# At a terminal.


def at_terminal(agent: SocketAgent, *options: str, columns: int = 120, rows: int = 24, **variables: str) -> Terminal:
    terminal = Terminal(command(agent, *options), columns, rows, **variables)
    agent.wait_for(1)
    terminal.until(lambda shown: shown[0].startswith("dnstrail trace"), "it is drawn")
    return terminal


def test_at_a_terminal_lookups_appear_while_they_happen(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        agent.send(KEPT[0])
        rows = terminal.until(lambda rows: "PolicyDrop" in rows[2], "the lookup is shown")
        assert rows[1].split()[:4] == ["TIME", "CLIENT", "TYPE", "NAME"]
        assert rows[-1].startswith("? keys  q end")
        rows = terminal.until(lambda rows: "node-a" in rows[0], "the state is shown")
        for line in KEPT[1:]:
            agent.send(line)
        terminal.until(lambda rows: "ServerError" in "".join(rows), "the others are shown")


def test_the_terminal_is_given_back_as_it_was(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        assert terminal.shown.modes == {"?1049": True, "?25": False, "?7": False}
        assert terminal.attributes() != terminal.before
        terminal.press("q")
        assert terminal.wait() == 0
        assert terminal.shown.modes == {"?1049": False, "?25": True, "?7": True}
        assert terminal.attributes() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_given_back_after_a_signal(agent: SocketAgent, number: signal.Signals):
    with at_terminal(agent) as terminal:
        terminal.process.send_signal(number)
        assert terminal.wait() == 0
        assert terminal.shown.modes["?1049"] is False
        assert terminal.attributes() == terminal.before


def test_the_terminal_is_given_back_when_the_agent_ends_and_that_is_said(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        agent.hub.stop()
        assert terminal.wait() == 1
        assert terminal.shown.modes["?1049"] is False
        assert terminal.raw.endswith(b"dnstrail: the agent has ended\r\n")


def test_enter_opens_the_chosen_lookup_as_explain_tells_it(agent: SocketAgent):
    with at_terminal(agent, rows=50) as terminal:
        for line in KEPT:
            agent.send(line)
        terminal.until(lambda rows: sum("shop/" in row for row in rows) == len(KEPT), "all are shown")
        terminal.press("g\r")
        rows = terminal.until(lambda rows: any("Hops" in row for row in rows), "it is open")
        assert rows[1] == "PolicyDrop on node-a: 1 lookup failed"
        assert any("──✗ dropped: NETFILTER_DROP" in row for row in rows)
        assert any(row.startswith("  What to do") for row in rows)
        terminal.press("q")
        terminal.until(lambda rows: sum("shop/" in row for row in rows) == len(KEPT), "the list is back")


def test_a_pause_keeps_the_picture_and_nothing_is_lost(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        terminal.press("p")
        terminal.until(lambda rows: "PAUSED" in rows[0], "it pauses")
        agent.send(KEPT[0])
        rows = terminal.until(lambda rows: "(1 more)" in rows[0], "the lookup is counted")
        assert "PolicyDrop" not in "".join(rows)
        terminal.press("p")
        terminal.until(lambda rows: "PolicyDrop" in rows[2], "it is shown")


def test_a_filter_that_is_typed_holds_in_the_agent_and_for_what_is_shown(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        for line in KEPT:
            agent.send(line)
        terminal.until(lambda rows: "ServerError" in "".join(rows), "all are shown")
        assert agent.hub.readers[0].wanted.healthy_a_second == HEALTHY_A_SECOND
        terminal.press("/cause:PolicyDrop slow:1s\r")
        agent.until(lambda: agent.hub.readers[0].wanted.filter.causes == ("PolicyDrop",), "the agent knows it")
        assert agent.hub.readers[0].wanted.filter.slow_seconds == 1.0
        assert agent.hub.readers[0].wanted.healthy_a_second is None
        rows = terminal.until(lambda rows: "only cause:PolicyDrop slow:1000ms" in rows[0], "it is shown")
        assert sum("shop/" in row for row in rows) == 3


def test_a_filter_that_is_none_is_refused_with_the_reason(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        terminal.press("/colour:red\r")
        terminal.until(lambda rows: "colour is none of name, type" in rows[-1], "the reason is shown")
        terminal.press("\x1b")
        terminal.until(lambda rows: rows[-1].startswith("? keys"), "the prompt is gone")


def test_the_ways_of_messages_can_be_shown_under_each_lookup(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        agent.send(KEPT[0])
        terminal.press("w")
        terminal.until(lambda rows: "query     client shop/cart" in rows[3], "the way is shown")


@pytest.mark.parametrize("size", [(80, 24), (60, 10), (40, 5), (200, 60), (10, 2), (1, 1)])
def test_it_fits_whatever_size_the_terminal_gets(agent: SocketAgent, size: tuple[int, int]):
    columns, rows = size
    with at_terminal(agent) as terminal:
        for line in KEPT * 5:
            agent.send(line)
        terminal.until(lambda shown: "ServerError" in "".join(shown), "lookups are shown")
        terminal.resize(columns, rows)
        terminal.until(lambda shown: terminal.shown.cleared and "".join(shown).strip(), "it is drawn anew")
        terminal.press("wg\r?")
        if columns >= 40:
            terminal.until(lambda shown: "Keys" in shown[1], "the last key was heard")
        terminal.press("qq")
        assert terminal.wait() == 0
        assert terminal.shown.most_column <= columns


def test_hostile_names_cannot_steer_the_screen(agent: SocketAgent):
    with at_terminal(agent, columns=200) as terminal:
        agent.send(with_name(HOSTILE, "\u65e5\u672c\u8a9e\u0301" * 5))
        terminal.until(lambda rows: "evil" in "".join(rows), "it is shown")
        terminal.press("\r")
        terminal.until(lambda rows: "1 lookup failed" in rows[1], "it is opened")


def test_colours_are_left_out_where_the_user_refuses_them(agent: SocketAgent):
    with at_terminal(agent, NO_COLOR="1") as terminal:
        agent.send(KEPT[0])
        rows = terminal.until(lambda rows: "PolicyDrop" in rows[2], "the lookup is shown")
        assert rows[2].startswith("> ")
        assert terminal.shown.colours == set()


def test_a_terminal_that_cannot_be_drawn_on_gets_rows(agent: SocketAgent):
    with Terminal(command(agent, "--count", "1"), TERM="dumb") as terminal:
        agent.wait_for(1)
        agent.send(KEPT[0])
        assert terminal.wait() == 0
        assert b"\x1b" not in terminal.raw
        assert b"PolicyDrop" in terminal.raw


def test_ctrl_z_gives_the_terminal_to_the_shell_until_it_goes_on(agent: SocketAgent):
    with at_terminal(agent) as terminal:
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.until(lambda _: terminal.shown.modes["?1049"] is False, "the screen is given back")
        end = time.monotonic() + SECONDS
        while Path(f"/proc/{terminal.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < end
            time.sleep(0.01)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.until(lambda rows: terminal.shown.modes["?1049"] and rows[0].startswith("dnstrail"), "it goes on")
        terminal.press("q")
        assert terminal.wait() == 0
