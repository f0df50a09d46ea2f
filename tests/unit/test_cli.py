"""agent.cli: options and their variables, and what is said of wrong ones."""

import argparse
import re
import socket

import pytest

from agent import cli, run
from agent.cli import build_parser, main, ports, ring_size
from agent.export.failures import UNLIMITED
from agent.kernel.errors import CaptureError
from agent.readers.place import DEFAULT

WRONG = [
    ("ports", "0"),
    ("ports", "65536"),
    ("ports", "dns"),
    ("ports", ""),
    ("ports", "53,,54"),
    ("ports", ",".join(["53"] * 17)),
    ("output", "xml"),
    ("log", "some"),
    ("log-rate", "many"),
    ("log-rate", "-1"),
    ("failure-rate", "0"),
    ("failure-rate", "none"),
    ("max-lines", "-1"),
    ("max-lines", "none"),
    ("max-bytes", "4K"),
    ("max-bytes", "much"),
    ("duration", "0"),
    ("duration", "-1"),
    ("duration", "nan"),
    ("duration", "inf"),
    ("timeout", "soon"),
    ("timeout", "0"),
    ("ring-size", "3M"),
    ("ring-size", "2048"),
    ("ring-size", "M"),
    ("ring-size", "16X"),
    ("max-sessions", "0"),
    ("max-sessions", "-5"),
    ("max-sessions", "x"),
    ("type", "NOSUCHTYPE"),
    ("status", "failed?"),
    ("page", "yes"),
    ("trace-socket", "x" * 108),
]
RIGHT = [
    ("ports", "53,5353", (53, 5353)),
    ("output", "table", "table"),
    ("log", "problems", "problems"),
    ("log-rate", "7", 7),
    ("failure-rate", "7", 7),
    ("failure-rate", "unlimited", None),
    ("max-lines", "1000", 1000),
    ("max-lines", "unlimited", None),
    ("max-bytes", "4M", 4 << 20),
    ("max-bytes", "unlimited", None),
    ("duration", "1.5", 1.5),
    ("timeout", "30", 30.0),
    ("ring-size", "64k", 65536),
    ("max-sessions", "100", 100),
    ("node", "node-b", "node-b"),
    ("name", "*.local", ["*.local"]),
    ("type", "aaaa", ["AAAA"]),
    ("type", "TYPE65280", ["TYPE65280"]),
    ("status", "Failed", ["Failed"]),
    ("rcode", "SERVFAIL", ["SERVFAIL"]),
    ("cause", "LeftNode", ["LeftNode"]),
    ("page", "redacted", "redacted"),
    ("trace-socket", "/run/other.sock", "/run/other.sock"),
    ("trace-socket", "none", ""),
]


@pytest.fixture(autouse=True)
def no_variables_and_no_capture(monkeypatch):
    for command in cli.COMMANDS:
        monkeypatch.setitem(cli.COMMANDS, command, lambda _arguments: 0)
    for name, *_ in WRONG + RIGHT:
        monkeypatch.delenv(variable(name), raising=False)


def variable(name):
    return "DNSTRAIL_" + name.upper().replace("-", "_")


def parsed(*arguments: str):
    return vars(build_parser().parse_args(["run", *arguments]))


def refusal(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    return err


def test_without_a_command_it_is_a_usage_error(capsys):
    assert "COMMAND" in refusal([], capsys).splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run", "--nonsense"], ["run", "extra"], ["demo", "--translation", "x"]]
)
def test_unknown_words_are_usage_errors(arguments, capsys):
    assert "error: " in refusal(arguments, capsys).splitlines()[-1]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_in_one_sentence_that_names_the_option(name, value, capsys):
    err = refusal(["run", f"--{name}={value}"], capsys)
    assert f"--{name}" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value in WRONG if value])
def test_a_wrong_variable_is_refused_like_its_option(name, value, monkeypatch, capsys):
    monkeypatch.setenv(variable(name), value)
    err = refusal(["run"], capsys)
    last = err.splitlines()[-1]
    assert f"--{name}" in last or variable(name) in last
    assert "Traceback" not in err


@pytest.mark.parametrize(("name", "value", "result"), RIGHT)
def test_an_option_and_its_variable_mean_the_same(name, value, result, monkeypatch):
    field = name.replace("-", "_")
    by_option = parsed(f"--{name}", value)
    monkeypatch.setenv(variable(name), value)
    by_variable = parsed()
    assert by_option[field] == by_variable[field] == result
    assert by_option == by_variable


@pytest.mark.parametrize(("name", "value", "result"), RIGHT)
def test_the_command_line_wins_over_the_variable(name, value, result, monkeypatch):
    other = {
        "ports": "54",
        "log": "none",
        "output": "json",
        "status": "Succeeded",
        "type": "MX",
        "ring-size": "4096",
        "page": "names",
    }
    monkeypatch.setenv(variable(name), other.get(name, "3"))
    assert parsed(f"--{name}", value)[name.replace("-", "_")] == result


@pytest.mark.parametrize(("value", "redact"), [("true", True), ("True", True), ("false", False)])
def test_the_variable_of_a_flag_is_true_or_false(value, redact, monkeypatch):
    monkeypatch.setenv("DNSTRAIL_REDACT", value)
    assert parsed()["redact"] is redact
    assert parsed("--redact")["redact"] is True


@pytest.mark.parametrize("value", ["1", "names"])
def test_another_value_for_a_flag_is_refused(value, monkeypatch, capsys):
    monkeypatch.setenv("DNSTRAIL_REDACT", value)
    assert "DNSTRAIL_REDACT is true or false" in refusal(["run"], capsys).splitlines()[-1]


def test_a_wrong_variable_of_run_does_not_hinder_other_commands(monkeypatch):
    monkeypatch.setenv("DNSTRAIL_LOG", "some")
    assert build_parser().parse_args(["check"]).command == "check"


def variables_of(command: str) -> list[str]:
    """All that a command's help names."""
    text = cli.build_parser()._subparsers._group_actions[0].choices[command].format_help()
    return sorted(set(re.findall(r"\[(DNSTRAIL_[A-Z_]+)", "".join(text.split()))))


COMMAND_LINES = {
    **{command: [] for command in ("run", "check", "demo", "explain", "trace", "top")},
    "record": ["--write", "x"],
    "replay": ["x.pcap"],
}


@pytest.mark.parametrize("empty", ["", " ", "\n"], ids=["empty", "blank", "line feed"])
@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command in COMMAND_LINES for name in variables_of(command)]
)
def test_an_empty_variable_is_an_unset_one(command, name, empty, monkeypatch):
    arguments = [command, *COMMAND_LINES[command]]
    unset = build_parser().parse_args(arguments)
    monkeypatch.setenv(name, empty)
    assert build_parser().parse_args(arguments) == unset


def test_every_option_has_its_variable():
    choices = build_parser()._subparsers._group_actions[0].choices
    assert set(choices) == set(COMMAND_LINES)
    for command, parser in choices.items():
        options = {action.option_strings[-1] for action in parser._actions if action.option_strings} - {"--help"}
        assert {variable(option.removeprefix("--")) for option in options} == set(variables_of(command))


def test_an_empty_variable_does_not_stand_for_an_option_that_is_needed(monkeypatch, capsys):
    monkeypatch.setenv("DNSTRAIL_WRITE", "")
    assert "--write" in refusal(["record"], capsys)


def test_an_empty_name_of_the_node_is_none(monkeypatch):
    monkeypatch.setenv("NODE_NAME", "")
    assert parsed()["node"] == socket.gethostname()


def test_every_option_of_run_names_its_variable_in_the_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(f"[{variable(name)}]" in text.replace("\n", "") for name, *_ in RIGHT)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("dnstrail ")


def test_defaults_are_those_of_the_documentation():
    defaults = parsed()
    assert (defaults["ports"], defaults["output"], defaults["log"]) == ((53,), "json", "all")
    assert (defaults["timeout"], defaults["ring_size"], defaults["duration"]) == (10.0, 16 << 20, None)


def test_agent_and_readers_look_for_the_socket_at_one_place():
    assert cli.TRACE_SOCKET == DEFAULT
    found = {build_parser().parse_args([command]).trace_socket for command in ("run", "trace", "top")}
    assert found == {DEFAULT}


@pytest.mark.parametrize(("text", "value"), [("100ms", 0.1), ("1.5s", 1.5), ("2", 2.0)])
def test_a_time_has_a_unit_or_is_in_seconds(text, value):
    assert build_parser().parse_args(["trace", "--slow", text]).slow == pytest.approx(value)


def test_a_namespace_has_a_letter(monkeypatch):
    monkeypatch.setenv("DNSTRAIL_NAMESPACE", "other")
    assert build_parser().parse_args(["trace", "-n", "shop"]).namespace == ["shop"]
    assert build_parser().parse_args(["explain", "-n", "shop"]).namespace == ["shop"]


@pytest.mark.parametrize(("text", "data"), [("4096", 4096), ("512K", 512 << 10), ("16m", 16 << 20), ("1G", 1 << 30)])
def test_sizes_are_powers_of_two_with_a_unit(text, data):
    assert ring_size(text) == data


@pytest.mark.parametrize("text", ["", "K", "0", "-4096", "4095", "3K", "1T", "4096.0", "1e6"])
def test_other_sizes_are_refused(text):
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        ring_size(text)


def test_ports_are_numbers_separated_by_commas():
    assert ports("53") == (53,)
    assert ports("53,5353,65535") == (53, 5353, 65535)


def test_a_kernel_that_cannot_capture_ends_with_one_sentence_and_exit_code_1(monkeypatch, capsys):
    def refuse(_arguments: argparse.Namespace) -> int:
        raise CaptureError("this kernel has no BTF")

    monkeypatch.setitem(cli.COMMANDS, "run", refuse)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "dnstrail: this kernel has no BTF\n"


def test_replay_holds_no_line_back_unless_told_to():
    assert build_parser().parse_args(["replay", "x.pcap"]).log_rate is None
    assert build_parser().parse_args(["replay", "x.pcap", "-", "--log-rate", "5"]).log_rate == 5


@pytest.mark.parametrize("arguments", [["replay"], ["record"], ["record", "--write", "x", "--max-size", "1K"]])
def test_replay_and_record_need_to_know_their_files(arguments, capsys):
    assert "error: " in refusal(arguments, capsys)


def test_incidents_alone_can_be_asked_for_where_there_are_some(capsys):
    assert parsed("--log=incidents")["log"] == "incidents"
    with pytest.raises(SystemExit):
        build_parser().parse_args(["replay", "--log=incidents", "x.pcap"])
    assert "--log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--page=names", "--metrics-address=none"], "--page needs a port"),
        (["--page=redacted", "--metrics-address=192.0.2.1:9353"], "use :9353 or 127.0.0.1:9353"),
        (["--page=redacted", "--metrics-address=[2001:db8::1]:80"], "use :80 or 127.0.0.1:80"),
        (["--page=names", "--redact"], "use --page redacted"),
    ],
)
def test_a_page_that_nobody_could_see_or_that_shows_what_is_to_be_hidden_is_a_usage_error(
    arguments, words, monkeypatch, capsys
):
    monkeypatch.setitem(cli.COMMANDS, "run", cli.page_of)
    assert main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err


@pytest.mark.parametrize("where", [":9353", "127.0.0.1:9353", "127.0.0.2:1", "[::1]:9353", "0.0.0.0:9353", "[::]:9353"])
def test_a_page_is_served_where_loopback_is_among_the_addresses(where):
    arguments = build_parser().parse_args(["run", "--page=redacted", "--redact", f"--metrics-address={where}"])
    assert cli.page_of(arguments) == "redacted"


def test_there_is_no_page_unless_it_is_asked_for():
    assert cli.page_of(build_parser().parse_args(["run", "--metrics-address=none"])) == "none"


def test_failures_are_limited_live_and_never_in_replay():
    live = cli.line_options(build_parser().parse_args(["run"]))
    assert live.rates == (1, 100, 1 << 20)
    assert cli.line_options(build_parser().parse_args(["replay", "x.pcap"])).rates == UNLIMITED


def test_events_are_written_only_where_they_are_asked_for(monkeypatch):
    for command in ("run", "check"):
        assert not build_parser().parse_args([command]).events
        assert build_parser().parse_args([command, "--events"]).events
    monkeypatch.setenv("DNSTRAIL_EVENTS", "true")
    assert build_parser().parse_args(["run"]).events


@pytest.mark.parametrize("kubernetes", ["off", "auto"])
def test_events_without_a_cluster_are_said_to_be_none(kubernetes, monkeypatch, capsys):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    given = []
    monkeypatch.setattr(run, "run", given.append)
    cli.command_run(build_parser().parse_args(["run", "--events", f"--kubernetes={kubernetes}"]))
    assert given[0].events
    assert "no Kubernetes Events are written (--events)" in capsys.readouterr().err


def test_record_rotates_by_default():
    defaults = build_parser().parse_args(["record", "--write", "x"])
    assert (defaults.max_size, defaults.max_files, defaults.duration) == (20 << 20, 200, None)
