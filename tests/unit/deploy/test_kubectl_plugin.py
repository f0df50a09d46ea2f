"""`kubectl dnstrail` where one node cannot show it: several nodes, and what may be missing. tests/node has the rest."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from agent import __version__
from agent.cli import build_parser
from agent.lab.processes import PATIENCE, wait_until
from tests.unit import made_lines
from tests.unit.terminal import Terminal

ROOT = Path(__file__).parents[3]
PLUGIN = ROOT / "deploy/kubectl/kubectl-dnstrail"
FAKE = Path(__file__).with_name("fake_kubectl.py")
SECONDS = 20.0 * PATIENCE
HEADING = "TIME         CLIENT\n"
FORBIDDEN = 'Error from server (Forbidden): pods is forbidden: User "ann" cannot list resource "pods"'


def pod(name: str, node: str, *, namespace: str = "dnstrail", agent: bool = True, **more: str) -> dict[str, Any]:
    own = {"name": name, "node": node, "namespace": namespace, "agent": agent, "port": "9353" if agent else ""}
    return {**own, "phase": "Running", "ending": "", **more}


TWO = [pod("dnstrail-a", "node-a"), pod("dnstrail-b", "node-b")]
CART = pod("cart-5-x", "node-b", namespace="shop", agent=False)


def incident(node: str, **more: object) -> str:
    line = {
        "Kind": "Incident",
        "Node": node,
        "State": "Opened",
        "Id": "1",
        "Code": "PolicyDrop",
        "Message": "A rule dropped the query.",
        "Client": {"Namespace": "shop", "Workload": "Deployment/cart", "Pod": None, "Address": None},
        "Server": {"Address": "10.96.0.10:53", "Service": "kube-system/kube-dns", "Pod": None},
        "Lookups": 12,
        "Clients": 1,
        "First": "2026-11-28T09:40:48.4Z",
        "Last": "2026-11-28T09:40:49.4Z",
        "SharePercent": 100.0,
    }
    return json.dumps(line | more, separators=(",", ":")) + "\n"


class Cluster:
    """What the fake kubectl tells of, and the plugin run with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        shutil.copy(FAKE, self.programs / "kubectl")
        (self.programs / "python3").symlink_to(sys.executable)
        self.told: dict[str, Any] = {"pods": TWO, "logs": {}, "exec": {}, "python": sys.executable, "page": False}

    def environment(self) -> dict[str, str]:
        (self.folder / "cluster").write_text(json.dumps(self.told))
        return {
            "PATH": str(self.programs),
            "FAKE_CLUSTER": str(self.folder / "cluster"),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, PLUGIN, *arguments],
            env=self.environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """Exit code, rows of stdout, stderr."""
        with self.start(*arguments) as process:
            out, said = process.communicate(timeout=SECONDS)
        return process.returncode, out.splitlines(), said

    def calls(self, command: str) -> list[list[str]]:
        notes = self.folder / "calls"
        calls = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        return [call for call in calls if command in call]

    def are_running(self, count: int) -> list[int]:
        """The processes of kubectl that stay, once there are so many."""
        notes = self.folder / "running"
        wait_until(lambda: notes.exists() and notes.read_text().count("\n") == count, "kubectl", seconds=SECONDS)
        return [int(line) for line in notes.read_text().splitlines()]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    loader = SourceFileLoader("kubectl_dnstrail", str(PLUGIN))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


def is_one_sentence(said: str) -> bool:
    return said.startswith("kubectl dnstrail: ") and said.count("\n") == 1


# --- What there is to choose ---


def test_of_several_nodes_one_has_to_be_chosen(cluster: Cluster):
    code, rows, said = cluster.run("trace")
    assert (code, rows) == (2, [])
    assert is_one_sentence(said)
    assert "2 nodes have an agent: choose by --pod POD (with -n NAMESPACE), --node NODE or --all-nodes" in said


def test_the_agent_of_the_node_that_a_pod_runs_on_is_asked_for_that_pod(cluster: Cluster):
    cluster.told |= {"pods": [*TWO, CART], "exec": {"dnstrail-b": {"out": f"{HEADING}a row\n"}}}
    assert cluster.run("trace", "-n", "shop", "--pod", "cart-5-x", "--count", "1") == (
        0,
        [HEADING.rstrip(), "a row"],
        "",
    )
    (call,) = cluster.calls("exec")
    assert "dnstrail-b" in call
    assert {"--namespace=shop", "--pod=cart-5-x", "--count=1"} <= set(call[call.index("--") :])


def test_a_pattern_chooses_the_nodes_of_all_pods_that_match(cluster: Cluster):
    other = pod("cart-5-y", "node-a", namespace="shop", agent=False)
    cluster.told |= {"pods": [*TWO, CART, other], "exec": {name: {} for name in ("dnstrail-a", "dnstrail-b")}}
    assert cluster.run("trace", "-n", "shop", "--pod", "cart-*")[0] == 0
    assert len(cluster.calls("exec")) == 2


@pytest.mark.parametrize(
    ("told", "arguments", "code", "words"),
    [
        ({"pods": []}, ["check"], 1, "is dnstrail installed in this cluster?"),
        ({"pods": []}, ["check", "--agents-in", "dns"], 1, "no agent was found in namespace dns"),
        (
            {"pods": [*TWO, pod("dnstrail-c", "node-c", namespace="dns")]},
            ["check", "--all-nodes"],
            2,
            "dnstrail is installed 2 times, in the namespaces dns, dnstrail: choose one by --agents-in NAMESPACE",
        ),
        ({}, ["check", "--node", "node-c"], 1, "no agent runs on node-c; agents run on node-a, node-b"),
        ({}, ["trace", "--pod", "cart"], 1, "there is no pod cart in the namespace of this context"),
        (
            {"pods": [*TWO, CART | {"node": "node-c"}]},
            ["trace", "-n", "shop", "--pod", "cart-5-x"],
            1,
            "no agent runs on node-c, where pod cart-5-x runs",
        ),
        ({"pods": [*TWO, CART | {"node": ""}]}, ["trace", "-n", "shop", "--pod", "cart-5-x"], 1, "on any node yet"),
        ({"pods": [pod("dnstrail-a", "node-a", phase="Pending")]}, ["top"], 1, "not run: node-a (Pending)"),
        ({"pods": [pod("dnstrail-a", "node-a", ending="2026")]}, ["top"], 1, "the agents are about to end"),
        ({}, ["page", "--all-nodes"], 2, "the page is one of a node, and these are 2: choose by --node"),
        (
            {"pods": [pod(f"dnstrail-{number}", f"node-{number}") for number in range(21)]},
            ["trace", "--all-nodes"],
            2,
            "trace follows 20 nodes at most, and these are 21",
        ),
        ({"fails": {"get": FORBIDDEN}}, ["top"], 1, 'not allow you to do this: pods is forbidden: User "ann" cannot'),
        ({"fails": {"get": "error: You must be logged in to the server (Unauthorized)"}}, ["top"], 1, "log in to it"),
        (
            {"fails": {"get": "The connection to the server localhost:8080 was refused"}},
            ["top"],
            1,
            "the cluster cannot be reached: The connection to the server localhost:8080 was refused",
        ),
        (
            {"fails": {"get": "Error: unknown flag: --field-selector\nSee 'kubectl get --help' for usage."}},
            ["top"],
            1,
            "this kubectl is too old (unknown flag: --field-selector)",
        ),
        ({"fails": {"get": 'error: context "x" does not exist'}}, ["top"], 2, 'configuration: context "x" does not'),
        ({"fails": {"get": 'E1128 13:21:05 memcache.go:265] "dial tcp"\nerror: odd'}}, ["top"], 1, "dnstrail: odd\n"),
    ],
)
def test_what_stands_in_the_way_is_one_clear_sentence(
    cluster: Cluster, told: dict[str, Any], arguments: list[str], code: int, words: str
):
    cluster.told |= told
    found, rows, said = cluster.run(*arguments)
    assert (found, rows) == (code, [])
    assert is_one_sentence(said)
    assert words in said


def test_without_kubectl_that_is_said(cluster: Cluster):
    environment = cluster.environment() | {"PATH": str(cluster.folder)}
    done = subprocess.run([sys.executable, PLUGIN, "top"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert is_one_sentence(done.stderr)
    assert "there is no kubectl in PATH" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["look"],
        ["explain", "--since", "a while"],
        ["trace", "--since", "10m"],
        ["trace", "--pod", "cart;reboot"],
        ["top", "-n", "--all"],
        ["check", "--node", "node-a", "--all-nodes"],
        ["page", "--port", "70000"],
        ["trace", "-o", "yaml"],
        ["trace", "--status", "Bad"],
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_asked(cluster: Cluster, arguments: list[str]):
    code, rows, said = cluster.run(*arguments)
    assert (code, rows) == (2, [])
    assert said.startswith("usage: kubectl dnstrail")
    assert ": error: " in said.splitlines()[-1]
    assert cluster.calls("get") == []


def test_who_may_not_list_all_namespaces_gets_the_agents_of_the_manifests_namespace(cluster: Cluster):
    cluster.told |= {"fails": {"get everywhere": FORBIDDEN}, "exec": {"dnstrail-a": {"out": "fine\n"}}}
    assert cluster.run("check", "--node", "node-a") == (0, ["fine"], "")


def test_options_of_kubectl_are_passed_on_and_no_value_is_taken_for_an_option(cluster: Cluster):
    cluster.told |= {"pods": TWO[:1], "exec": {"dnstrail-a": {}}}
    hostile = "$(touch x); --kubeconfig=/etc/passwd"
    assert cluster.run("trace", "--context=-x", "--as", "ann", f"--name={hostile}")[0] == 0
    (call,) = cluster.calls("exec")
    assert call[:2] == ["--context=-x", "--as=ann"]
    assert f"--name={hostile}" in call[call.index("--") :]


def test_agents_that_do_not_run_are_left_out_and_said(cluster: Cluster):
    cluster.told |= {
        "pods": [*TWO, pod("dnstrail-c", "node-c", phase="Pending")],
        "exec": {name: {"out": "fine\n"} for name in ("dnstrail-a", "dnstrail-b")},
    }
    code, rows, said = cluster.run("check", "--all-nodes")
    assert (code, sorted(rows)) == (0, ["node-a fine", "node-b fine"])
    assert said == "kubectl dnstrail: agents that do not run are left out: node-c (Pending)\n"


# --- What is shown ---


def test_rows_of_several_nodes_begin_with_the_node_under_one_heading(cluster: Cluster):
    cluster.told["exec"] = {f"dnstrail-{one}": {"out": f"{HEADING}row of {one}\n  more\n"} for one in "ab"}
    code, rows, said = cluster.run("trace", "--all-nodes", "-o", "wide", "--count", "1")
    assert (code, said) == (0, "")
    assert rows[0] == f"NODE   {HEADING.rstrip()}"
    assert sorted(rows[1:]) == ["node-a   more", "node-a row of a", "node-b   more", "node-b row of b"]


def test_lines_of_several_nodes_stay_json(cluster: Cluster):
    cluster.told["exec"] = {f"dnstrail-{one}": {"out": f'{{"Node":"node-{one}"}}\n'} for one in "ab"}
    _, rows, _ = cluster.run("trace", "--all-nodes", "-o", "json")
    assert sorted(json.loads(row)["Node"] for row in rows) == ["node-a", "node-b"]


def test_what_each_node_says_at_once_stays_together(cluster: Cluster):
    cluster.told["exec"] = {f"dnstrail-{one}": {"out": f"dnstrail top  {one}\n\nNo open incidents\n"} for one in "ab"}
    code, rows, _ = cluster.run("top", "--all-nodes")
    of_a, of_b = ([f"node-{one} dnstrail top  {one}", f"node-{one}", f"node-{one} No open incidents"] for one in "ab")
    assert code == 0
    assert rows in (of_a + of_b, of_b + of_a)


def test_a_node_that_cannot_capture_makes_check_fail(cluster: Cluster):
    cluster.told["exec"] = {"dnstrail-a": {"out": "fine\n"}, "dnstrail-b": {"out": "bad\n", "code": 1}}
    code, rows, said = cluster.run("check", "--all-nodes")
    assert (code, sorted(rows), said) == (1, ["node-a fine", "node-b bad"], "")


def test_a_pod_that_goes_away_is_said_once_and_the_others_go_on(cluster: Cluster):
    cluster.told["exec"] = {"dnstrail-a": {"code": 137}, "dnstrail-b": {"out": f"{HEADING}a row\n"}}
    code, rows, said = cluster.run("trace", "--all-nodes", "--count", "1")
    assert (code, rows[1:]) == (0, ["node-b a row"])
    assert is_one_sentence(said)
    assert "node-a: the agent's pod dnstrail-a has ended" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('error: unable to upgrade connection: container not found ("dnstrail")', "the agent's container does not run"),
        ('Error from server (Forbidden): pods "x" is forbidden: User "ann" cannot create', "does not allow you"),
        ('error: unable to upgrade connection: pods "x" is forbidden: User "ann" cannot', "does not allow you"),
        ('exec failed: exec: "dnstrail": executable file not found in $PATH', "has no program dnstrail"),
        ("dnstrail: error: argument COMMAND: invalid choice: 'trace' (choose from 'run')", "no command trace: upgrade"),
        ("dnstrail: the agent has ended", "the agent has ended"),
        ("usage: dnstrail trace [-h]\ndnstrail trace: error: argument --type: unknown", "argument --type: unknown"),
    ],
)
def test_what_fails_in_the_container_is_one_clear_sentence(cluster: Cluster, words: str, said: str):
    cluster.told |= {"pods": TWO[:1], "exec": {"dnstrail-a": {"err": f"{words}\n", "code": 1}}}
    code, rows, found = cluster.run("trace")
    assert (code, rows) == (1, [])
    assert is_one_sentence(found)
    assert said in found


def test_what_could_steer_a_terminal_is_escaped(cluster: Cluster):
    cluster.told |= {"pods": TWO[:1], "exec": {"dnstrail-a": {"out": "\x1b]0;x\x07 \x1b[31mred\x1b[0m\n"}}}
    assert cluster.run("trace")[1] == ["\\x1b]0;x\\x07 \\x1b[31mred\\x1b[0m"]
    assert cluster.run("trace", "--color", "always")[1] == ["\\x1b]0;x\\x07 \x1b[31mred\x1b[0m"]


def test_stories_are_told_by_an_agents_container_where_no_dnstrail_is_installed(cluster: Cluster):
    lines = b"\n".join(made_lines.lines()).decode() + "\n"
    cluster.told["logs"] = {"dnstrail-a": f"dnstrail: ready after 3 s\n{lines}{incident('node-a')}", "dnstrail-b": ""}
    code, rows, said = cluster.run("explain", "--all-nodes", "--cause", "PolicyDrop")
    assert (code, said) == (0, "")
    assert rows[0] == "PolicyDrop on node-a: 3 lookups failed"
    assert "--since=10m" in cluster.calls("logs")[0]
    (call,) = cluster.calls("exec")
    assert call[call.index("--") :] == ["--", "dnstrail", "explain", "--cause=PolicyDrop", "--color=never", "-"]


def test_an_installed_dnstrail_tells_them_without_asking_a_container(cluster: Cluster):
    own = cluster.programs / "dnstrail"
    own.write_text(f'#!/bin/sh\nexec {sys.executable} -m agent "$@"\n')
    own.chmod(0o755)
    cluster.told["logs"] = {one: b"\n".join(made_lines.lines()).decode() for one in ("dnstrail-a", "dnstrail-b")}
    code, rows, said = cluster.run("top", "--all-nodes", "--since", "1h", "--cause=PolicyDrop")
    assert (code, said) == (0, "")
    assert "6 lookups that did not go well in these lines; 0 went well" in rows
    assert cluster.calls("exec") == []


def test_an_installed_dnstrail_that_cannot_be_started_is_said(cluster: Cluster):
    own = cluster.programs / "dnstrail"
    own.write_text("#!/nowhere/python\n")
    own.chmod(0o755)
    code, rows, said = cluster.run("explain", "--all-nodes")
    assert (code, rows) == (1, [])
    assert said == f"kubectl dnstrail: {own} cannot be run: No such file or directory\n"


def test_logs_without_lines_are_said_to_be_so(cluster: Cluster):
    cluster.told["logs"] = {"dnstrail-a": "", "dnstrail-b": "dnstrail: ready after 3 s\n"}
    for command in ("explain", "incidents"):
        code, _, said = cluster.run(command, "--all-nodes", "--since", "5m")
        assert code == 0
        assert "the agents' logs of the last 5m have no such lines" in said


def test_a_log_that_cannot_be_read_is_said_and_the_others_are_told(cluster: Cluster):
    cluster.told["logs"] = {"dnstrail-a": incident("node-a")}
    code, rows, said = cluster.run("incidents", "--all-nodes")
    assert (code, len(rows)) == (0, 2)
    assert is_one_sentence(said)
    assert 'node-b: it is gone: pods "dnstrail-b" not found' in said


def test_an_incident_is_shown_as_it_was_told_last_and_open_ones_come_first(cluster: Cluster):
    ended = incident("node-b", State="Ended", Lookups=900, Code="NoListener", Client=None, Server=None, Clients=7)
    cluster.told["logs"] = {
        "dnstrail-a": incident("node-a") + incident("node-a", State="Updated", Lookups=40) + '{"Kind":"Incident"\n',
        "dnstrail-b": ended,
    }
    _, rows, _ = cluster.run("incidents", "--all-nodes")
    assert [re.split(r"\s{2,}", row) for row in rows] == [
        ["NODE", "STATE", "CAUSE", "SINCE", "LAST", "LOOKUPS", "SHARE", "FOR", "AT", "WHAT"],
        [
            *("node-a", "open", "PolicyDrop", "09:40:48", "09:40:49", "40", "100%", "shop/Deployment/cart"),
            *("10.96.0.10:53 kube-system/kube-dns", "A rule dropped the query."),
        ],
        [
            *("node-b", "ended", "NoListener", "09:40:48", "09:40:49", "900", "100%", "7 clients", "several servers"),
            "A rule dropped the query.",
        ],
    ]
    _, rows, _ = cluster.run("incidents", "--all-nodes", "-o", "json")
    assert [json.loads(row)["Lookups"] for row in rows] == [40, 900]


def test_incidents_of_other_namespaces_are_left_out_and_hostile_ones_are_harmless(cluster: Cluster):
    hostile = incident(
        "node-a", Id="2", Code="\x1b]0;x\x07", Message=["\x1b"], Lookups="many", SharePercent={}, Server=7
    )
    others = incident("node-a", Id="3", Client={"Namespace": "other", "Workload": "Deployment/x"})
    cluster.told["logs"] = {"dnstrail-a": hostile + others, "dnstrail-b": ""}
    code, rows, said = cluster.run("incidents", "--all-nodes", "-n", "shop")
    assert (code, len(rows), said) == (0, 2, "")
    assert rows[1].isprintable()


@pytest.mark.parametrize(
    ("client", "namespace", "wanted", "kept"),
    [
        ({"Namespace": "shop", "Workload": "Deployment/cart"}, "shop", "cart-5474649cb5-vvs55", True),
        ({"Namespace": "shop", "Workload": "Deployment/cart"}, "shop", "cart-*", True),
        ({"Namespace": "shop", "Workload": "StatefulSet/db"}, "shop", "db-0", True),
        ({"Namespace": "shop", "Workload": "StatefulSet/db"}, "shop", "dbx-0", False),
        ({"Namespace": "shop", "Workload": "Deployment/cart"}, "other", None, False),
        ({"Namespace": "shop", "Workload": None, "Pod": "tcp"}, "shop", "tcp", True),
        ({"Namespace": "shop", "Workload": None, "Pod": "tcp"}, "shop", "udp", False),
        ({"Namespace": None, "Workload": None, "Address": "10.0.0.1"}, "shop", "tcp", True),
        (None, "shop", "tcp", True),
    ],
)
def test_an_incident_is_left_out_only_if_it_is_of_others(
    plugin: ModuleType, client: dict[str, Any] | None, namespace: str, wanted: str | None, *, kept: bool
):
    assert plugin.is_about({"Client": client}, namespace, wanted) is kept


def test_a_long_row_is_broken_and_goes_on_below_its_text(plugin: ModuleType):
    row = "  What happened  A netfilter rule in a network namespace dropped the query."
    assert plugin.folded(row, 50) == [
        "  What happened  A netfilter rule in a network",
        "                 namespace dropped the query.",
    ]
    assert plugin.folded(row, None) == [row]


# --- How it ends ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_it_ends_everything_that_it_started(cluster: Cluster, number: signal.Signals):
    cluster.told["exec"] = {name: {"stay": True} for name in ("dnstrail-a", "dnstrail-b")}
    with cluster.start("trace", "--all-nodes") as process:
        children = cluster.are_running(2)
        process.send_signal(number)
        assert process.wait(SECONDS) == 0
        assert process.communicate() == ("", "")
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_a_reader_that_goes_away_ends_it_quietly_even_if_nothing_is_shown(cluster: Cluster):
    cluster.told["exec"] = {name: {"stay": True} for name in ("dnstrail-a", "dnstrail-b")}
    with cluster.start("trace", "--all-nodes") as process:
        children = cluster.are_running(2)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ""
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_one_node_at_a_terminal_gets_a_terminal(cluster: Cluster):
    cluster.told |= {"pods": TWO[:1], "exec": {"dnstrail-a": {"out": "a screen\n"}}}
    with Terminal([sys.executable, str(PLUGIN), "trace"], **cluster.environment()) as terminal:
        assert terminal.wait(SECONDS) == 0
    assert terminal.shown.rows()[0] == "a screen"
    (call,) = cluster.calls("exec")
    assert {"--stdin", "--tty"} <= set(call[: call.index("--")])


def test_the_url_of_the_page_is_said_and_ctrl_c_ends_it(cluster: Cluster):
    cluster.told |= {"pods": TWO[:1], "page": True}
    with cluster.start("page") as process:
        assert process.stdout is not None
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", process.stdout.readline())
        children = cluster.are_running(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_where_the_page_is_off_the_option_that_is_missing_is_said(cluster: Cluster):
    cluster.told["pods"] = TWO[:1]
    began = time.monotonic()
    code, rows, said = cluster.run("page")
    assert (code, rows) == (1, [])
    assert is_one_sentence(said)
    assert "kubectl -n dnstrail set env daemonset/dnstrail DNSTRAIL_PAGE=redacted" in said
    assert time.monotonic() - began < SECONDS


# --- The files ---


def test_the_plugin_has_the_version_and_the_options_of_the_program(plugin: ModuleType):
    assert __version__ == plugin.VERSION
    (commands,) = [one.choices for one in build_parser()._actions if one.dest == "command"]
    assert commands
    for name, command in plugin.COMMANDS.items():
        known = (
            {spelling for one in commands[name]._actions for spelling in one.option_strings}
            if command.passed
            else set()
        )
        assert {f"--{option}" for option in command.passed} <= known


def test_the_plugin_is_one_file_of_python_3_9_with_nothing_but_the_standard_library():
    tree = ast.parse(PLUGIN.read_text(), feature_version=(3, 9))
    names = {one.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import) for one in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    assert os.access(PLUGIN, os.X_OK)


def test_krew_takes_the_manifest():
    manifest = yaml.safe_load((ROOT / "deploy/kubectl/dnstrail.yaml").read_text())
    assert manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert (manifest["kind"], manifest["metadata"]) == ("Plugin", {"name": "dnstrail"})
    spec = manifest["spec"]
    assert spec["version"] == f"v{__version__}"
    assert len(spec["shortDescription"]) <= 50
    for platform in spec["platforms"]:
        assert platform["uri"].endswith(f"/v{__version__}/kubectl-dnstrail.tar.gz")
        assert re.fullmatch(r"[0-9a-f]{64}", platform["sha256"])
        assert platform["bin"] == PLUGIN.name
        assert {one["key"] for one in platform["selector"]["matchExpressions"]} == {"os"}
        assert {one["from"] for one in platform["files"]} == {PLUGIN.name, "LICENSE"}
        assert all(one["to"] for one in platform["files"])
