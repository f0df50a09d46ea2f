"""Every query of the documents, as its reader would run it, on the lines of a node that had every kind of trouble."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.lab import Lab, LabError, wait_until
from tests.kernel.conftest import Watch, end_all
from tests.kernel.incidents import CAUSES, INCIDENTS, UNFINISHED, name_of, unfinished
from tests.lab.servers import find_program

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/logs.md"
RUNBOOKS = ROOT / "docs/runbooks"
TIMEOUT_SECONDS = 1.5
LINES_SECONDS = 30.0
KUBECTL = """
kubectl() {
  case " $* " in
    *" get pods "*) echo pod/dnstrail-x2x7q ;;
    *" logs "*) cat "$LOG" ;;
    *) return 1 ;;
  esac
}
"""
"""There is no kubelet here that would keep a container's log: the agent's own output takes its place."""


class Expected(NamedTuple):
    """What must be in the answers to one question, and what must not."""

    jq: tuple[str, ...]
    logql: tuple[str, ...] = ()
    absent: str = name_of("fine")


ANSWERS = {
    "What went wrong just now?": Expected((*CAUSES, *CAUSES.values(), UNFINISHED), (*CAUSES, *CAUSES.values())),
    "Which causes, and how often?": Expected((r"3 StaleConntrackEntry\n",), (r'"StaleConntrackEntry".*"3"',)),
    "Why was this name lost, and what is there to do?": Expected(
        ("A netfilter rule .* dropped the query", "because: .*NETFILTER_DROP", "remedy: Look at the network policies"),
        ("A netfilter rule .* dropped the query",),
    ),
    "Where do packets die?": Expected((r"vethc2\tNETFILTER_DROP\tnft_do_chain\tFORWARD", "SOCKET_RCVBUFF")),
    "Which lookups were slow because a packet was lost?": Expected(
        (rf"1\.\d+\t2\tAAAA\t{name_of('pair')}\.\tPolicyDrop",), (name_of("pair"),), name_of("policy")
    ),
    "Who lost one of A and AAAA?": Expected(
        (rf"getent\tAAAA\t{name_of('pair')}\.\tPolicyDrop",), absent=name_of("policy")
    ),
    "Which lookups took longest, and where was the time spent?": Expected(
        (rf"^12\d\d\.\d+\t.*\t-\t.*late-1200\.{name_of('slow')}",), (r'"value":\[[\d.]+,"1\.\d+"\]',), name_of("full")
    ),
    "Which DNS server is silent or slow?": Expected(
        (r"10\.244\.2\.5[34]:53\t\d+\t\d+\t0\.0", r"10\.96\.0\.10\t1\t1\t-"), ('"cause":"ConntrackTableFull"',)
    ),
    "Which upstream fails?": Expected(
        (r"10\.244\.9\.9\tUDP\tNOERROR", r"1 10\.244\.9\.9\tUDP\tno reply"), ('"upstream":"10.244.9.9"',)
    ),
    "Who asks most, and how much of it is the search path?": Expected(
        (r"\d+\t4\t[1-4]\tgetent",), (r'"client":"10\.244\.1\.10".*"[1-4]"',)
    ),
    "What happened to everything that one client asked?": Expected(
        (rf"Succeeded\tNOERROR\tAAAA\t{name_of('pair')}\.\tPolicyDrop",), (name_of("pair"),), name_of("full")
    ),
    "Which way did one lookup go?": Expected(
        (r"^0\ttx\t\d+\teth0", r"drop\t\d+\tvethc2\t.*\t10\.244\.2\.5[34]:53\tNETFILTER_DROP"),
    ),
    "What was answered?": Expected((r"www\.upstream\.test\.\t\d+\tA\t192\.0\.2\.80\n",)),
    "Can these lines be trusted?": Expected((r"\t1\t\d+\n",), ('"1"',)),
}


DIAGNOSES = {
    "DNSQueriesLost": r"3 .*\tStaleConntrackEntry\t.*",
    "DNSQueriesLostOnNode": rf"{name_of('policy')}\.\tPolicyDrop\tdrop\t\d+\tvethc2\tNETFILTER_DROP",
    "DNSPairHalfLost": rf"PolicyDrop\tAAAA\t1\.\d+\t{name_of('pair')}\.\tgetent",
    "DNSServerErrors": rf"1 SERVFAIL\tServerError\tforward\t10\.244\.2\.53\t-\tservfail\.{name_of('error')}\.",
    "DNSLookupsSlow": rf"1\.2\d*\t1\t-\t1\.2\d*\t\t10\.244\.2\.53\tlate-1200\.{name_of('slow')}\.",
    "DNSServerNotAnswering": r"1 ServerNoReply\t10\.244\.2\.53\t\t1\n",
    "DNSUpstreamNotAnswering": r"1 10\.244\.9\.9\tUDP\tfalse\n",
    "ConntrackTableNearlyFull": rf"{name_of('full')}\.\t.*conntrack entries",
    "ConntrackDropping": rf"{name_of('full')}\.\tThe connection-tracking table of .* is full",
    "DNSReceiveBufferOverflow": r"\d 10\.244\.2\.53\t",
    "DNSStaleBackend": r"StaleConntrackEntry\t10\.244\.1\.10\t\d+\tAn old conntrack entry",
    "DnstrailCaptureLoss": rf"1 of \d+ lookups\n.*\t{UNFINISHED}\.",
}
"""What the command of each alert's runbook must find."""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of an agent that saw all of it: what it said of itself, and its lines."""
    folder = tmp_path_factory.mktemp("agent")
    with Lab("nftables", clients=2, servers=2) as lab:
        agent = Watch(folder, f"--timeout={TIMEOUT_SECONDS}")
        try:
            for incident in INCIDENTS:
                incident(lab)
            wait_until(lambda: not missing(agent, lab), "the sessions", seconds=LINES_SECONDS)
            with unfinished(lab):
                agent.stop()
        except LabError as error:
            raise AssertionError(f"{error}: {missing(agent, lab)}") from error
        finally:
            end_all([agent.process])
        path = folder / "log"
        ours = agent.lines(lab)
        every = agent.out.read_text().splitlines(keepends=True)
        lines = [text for text in every if "Kind" in (line := json.loads(text)) or line in ours]
        path.write_text(agent.diagnostics() + "".join(lines))
    return path


def missing(agent: Watch, lab: Lab) -> set[tuple[str, str]]:
    """Verdicts that are not there yet."""
    lines = [line for line in agent.lines(lab) if line["Question"] and line["Cause"]]
    return {(f"{name}.", cause) for name, cause in CAUSES.items()} - {
        (line["Question"]["Name"], line["Cause"]["Code"]) for line in lines
    }


def sections() -> dict[str, str]:
    """Those that answer a question by commands."""
    found = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return {title: text for title, text in found if "```" in text}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def shell(command: str, log: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", KUBECTL + command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={"PATH": "/usr/bin:/bin", "LOG": str(log), "LC_ALL": "C"},
    )
    assert (done.returncode, done.stderr) == (0, ""), f"{command}\n{done.stderr}"
    return done.stdout


def ask_loki(query: str, log: Path) -> str:
    program = find_program("logql")
    if program is None:
        pytest.skip("Loki's engine is missing: `make prometheus` builds it where Go is")
    done = subprocess.run([program, query], stdin=log.open(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{query}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("question", ANSWERS)
def test_jq_answers_the_question(log: Path, question: str):
    assert shutil.which("jq"), "install the Debian package jq"
    setup = blocks(PAGE.read_text(), "sh")[0]
    (command,) = blocks(sections()[question], "sh")
    answer = shell(setup + command, log)
    for pattern in ANSWERS[question].jq:
        assert re.search(pattern, answer, re.MULTILINE), f"{pattern}\n{answer}"
    assert ANSWERS[question].absent not in answer


@pytest.mark.parametrize("question", [question for question, answer in ANSWERS.items() if answer.logql])
def test_logql_answers_the_question(log: Path, question: str):
    (query,) = blocks(sections()[question], "logql")
    answer = ask_loki(query, log)
    for pattern in ANSWERS[question].logql:
        assert re.search(pattern, answer), f"{pattern}\n{answer}"
    assert "__error__" not in answer


def test_every_question_of_the_page_is_asked_here():
    assert list(sections()) == list(ANSWERS)
    with_logql = [question for question, text in sections().items() if blocks(text, "logql")]
    assert with_logql == [question for question, answer in ANSWERS.items() if answer.logql]


def test_one_node_can_be_asked_alone(log: Path):
    setup = blocks(PAGE.read_text(), "sh")[0]
    assert shell(f"{setup}\nsessions_of node-a --since=15m | wc -l", log) == shell(f"{setup}\nsessions | wc -l", log)


@pytest.mark.parametrize("alert", DIAGNOSES)
def test_the_command_of_a_runbook_finds_what_the_alert_is_about(log: Path, alert: str):
    (command,) = [block for block in blocks((RUNBOOKS / f"{alert}.md").read_text(), "sh") if "jq" in block]
    answer = shell(command, log)
    assert re.search(DIAGNOSES[alert], answer), answer
    assert name_of("fine") not in answer


def test_every_command_of_a_runbook_is_run_here():
    with_command = {path.stem for path in RUNBOOKS.glob("*.md") if "jq" in "".join(blocks(path.read_text(), "sh"))}
    assert with_command == set(DIAGNOSES)
