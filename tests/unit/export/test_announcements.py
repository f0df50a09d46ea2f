"""What an operator reads on stderr of readiness and of the Kubernetes API: real connections, and time as wanted."""

import shutil
import socket
import ssl
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.enrich.kube.access import Access, InCluster, Kubeconfig
from agent.enrich.kube.errors import RefusedError
from agent.enrich.kube.events import EventHealth
from agent.enrich.kube.live import LiveCluster
from agent.enrich.kube.probe import may_write_events, reach
from agent.enrich.kube.troubles import event_words
from agent.export.announcements import LOOK_SECONDS, SETTLE_SECONDS, Announcements, Notice, StateAnnouncer
from agent.export.metrics.sources import NOT_ATTACHED, Agent, EventSources, Sources
from tests.cluster.credentials import key_of, make_certificate
from tests.unit.kube_replay import (
    BOUND_SECONDS,
    JOB,
    LISTS,
    QUICK,
    SERVICES,
    SLICES,
    STATEFUL_SETS,
    Answer,
    Replay,
    kubeconfig,
    recorded,
    replaying,
)

FORBIDDEN = Answer(recorded("forbidden.json"), status=403)
UNAUTHORIZED = Answer(b'{"kind":"Status","reason":"Unauthorized","message":"Unauthorized","code":401}', status=401)


@pytest.fixture
def server() -> Iterator[Replay]:
    with replaying() as replay:
        yield replay


class Operator:
    """Reads what the announcer says, as time passes."""

    def __init__(self, access: Access, timing=QUICK) -> None:
        self.cluster = LiveCluster(access, "node-a", timing=timing)
        sources = Sources()
        nothing = types.SimpleNamespace()
        sources.agent = Agent(nothing, nothing, nothing, nothing, lambda: self.cluster.health)  # type: ignore[arg-type]
        self.announcer = StateAnnouncer(sources)
        self.lines: list[str] = []
        self._now = 0.0

    def look(self, seconds: float = LOOK_SECONDS) -> None:
        """Let so much time pass, and read."""
        self._now += seconds
        self.cluster.poll()
        self.lines += self.announcer.lines(self._now)

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + BOUND_SECONDS
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}: {self.lines} {self.cluster.health}"
            time.sleep(0.002)
            self.look()

    def attempts(self, number: int) -> None:
        """Let it fail so often, with all that is said meanwhile."""
        self.until(lambda: max(one.errors.total() for one in self.cluster.health) >= number, "attempts")
        self.look()

    def of_kubernetes(self) -> list[str]:
        return [line for line in self.lines if line.startswith("Kubernetes: ")]


@contextmanager
def operator(access: Access, timing=QUICK) -> Iterator[Operator]:
    made = Operator(access, timing)
    made.cluster.start()
    try:
        yield made
    finally:
        made.cluster.stop()


def at(tmp_path: Path, server: Replay) -> Kubeconfig:
    return kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")


def assert_said_once(said: Operator, *words: str) -> None:
    """One line, however often it was tried, with these words in it."""
    said.attempts(12)
    (line,) = said.of_kubernetes()
    assert [word for word in words if word not in line] == [], line
    assert line.count("\n") == 0
    assert "The agent is not ready until this is over" in line
    assert "What to do: " in line


def test_an_api_server_that_cannot_be_reached_is_said_once(tmp_path: Path):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with operator(kubeconfig(tmp_path, url)) as said:
            assert_said_once(said, "the API server cannot be reached", f"{url}: Connection refused")


@pytest.mark.kernel  # it looks a name up, which tests that count lookups must not see
def test_a_name_that_is_not_known_is_said_once(tmp_path: Path):
    with operator(kubeconfig(tmp_path, "http://api.invalid:6443")) as said:
        said.attempts(3)
    (line,) = said.of_kubernetes()
    assert "http://api.invalid:6443: " in line
    assert "HTTPConnection" not in line


def test_an_api_server_that_is_silent_is_said_once(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as mute:
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{mute.getsockname()[1]}")
        with operator(access, QUICK._replace(read_seconds=0.1)) as said:
            said.attempts(3)
    (line,) = said.of_kubernetes()
    assert "accepts the connection and does not answer in time" in line


def test_credentials_that_are_refused_are_said_once(server: Replay, tmp_path: Path):
    for path in LISTS:
        server.lists[path][0] = UNAUTHORIZED
    with operator(at(tmp_path, server)) as said:
        assert_said_once(said, "does not accept who the agent says it is", "401 Unauthorized")


def test_what_is_forbidden_is_said_once_for_each_kind_of_object(server: Replay, tmp_path: Path):
    server.lists[SERVICES][0] = server.lists[STATEFUL_SETS][0] = server.lists[SLICES][0] = FORBIDDEN
    with operator(at(tmp_path, server)) as said:
        said.until(lambda: len(said.of_kubernetes()) >= 3, "all of them")
        said.attempts(12)
    lines = sorted(said.of_kubernetes())
    assert [line.partition(": 403")[0] for line in lines] == [
        "Kubernetes: the API server forbids to read endpointslices",
        "Kubernetes: the API server forbids to read services",
        "Kubernetes: the API server forbids to read statefulsets",
    ]
    assert "The agent is ready and does without statefulsets" in lines[2]
    assert "ClusterRole" in lines[1]


def test_a_configuration_that_cannot_be_used_is_said_once(tmp_path: Path):
    inside = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"}
    with operator(InCluster(tmp_path, inside)) as said:
        assert_said_once(
            said,
            "the configuration cannot be used",
            f"the ServiceAccount in {tmp_path}: ",
            "automountServiceAccountToken",
        )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_a_certificate_that_is_not_trusted_is_said_once(tmp_path: Path):
    own, other = tmp_path / "own.crt", tmp_path / "ca.crt"
    make_certificate(own, "/CN=kubernetes", ("basicConstraints=critical,CA:TRUE", "subjectAltName=IP:127.0.0.1"))
    make_certificate(other, "/CN=kubernetes", ("basicConstraints=critical,CA:TRUE",))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own, key_of(own))
    (tmp_path / "token").write_text("first")
    with replaying(tls) as server:
        where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
        with operator(InCluster(tmp_path, where)) as said:
            assert_said_once(said, "no TLS connection with the API server", f"(checked with {other})")


def test_the_end_is_said_and_that_the_agent_is_ready(server: Replay, tmp_path: Path):
    lists = {path: server.lists[path][0] for path in LISTS}
    for path in LISTS:
        server.lists[path][0] = UNAUTHORIZED
    with operator(at(tmp_path, server)) as said:
        said.attempts(3)
        for path, answer in lists.items():
            server.lists[path][0] = answer
        said.until(lambda: any(line.startswith("ready after ") for line in said.lines), "readiness")
        said.until(lambda: len(said.of_kubernetes()) == 2, "the end of the trouble")
        said.look(SETTLE_SECONDS * 10)
    first, last = said.of_kubernetes()
    assert first.startswith("Kubernetes: the API server does not accept who the agent says it is: 401")
    assert last.startswith("Kubernetes: the API server does not accept who the agent says it is: over after ")
    (waiting,) = [line for line in said.lines if line.startswith("not ready: ")]
    assert waiting.startswith("not ready: Kubernetes: pods-here have not been taken in yet")


def test_where_all_is_well_there_are_two_lines_and_no_more(server: Replay, tmp_path: Path):
    with operator(at(tmp_path, server)) as said:
        said.until(lambda: said.lines[-1:] and said.lines[-1].startswith("ready after "), "readiness")
        said.look(1000)
    assert len(said.lines) == 2


def test_programs_that_are_not_attached_are_a_reason():
    announcer = StateAnnouncer(Sources())
    assert announcer.lines(0.0) == [f"not ready: {NOT_ATTACHED}"]
    assert announcer.lines(0.5) == []


# Time


def test_what_lasts_is_said_when_it_begins_and_when_it_is_over():
    said = Announcements()
    assert said.update(10.0, {"a": Notice("a fails", "a: over")}) == ["a fails"]
    for second in range(11, 40):
        assert said.update(float(second), {"a": Notice(f"a fails, attempt {second}", "a: over")}) == []
    assert said.update(41.0, {}) == ["a: over after 31 s"]
    assert said.update(42.0, {}) == []


def test_what_comes_back_soon_was_never_away():
    said = Announcements()
    notice = Notice("a fails", "a: over", settle_seconds=10.0)
    assert said.update(0.0, {"a": notice}) == ["a fails"]
    for second in range(5, 100, 10):
        assert said.update(float(second), {}) == []
        assert said.update(second + 5.0, {"a": Notice("a fails", "a: over", 10.0)}) == []
    assert said.update(101.0, {}) == []
    assert said.update(111.0, {}) == ["a: over after 101 s"]


def test_what_begins_again_is_said_again():
    said = Announcements()
    notice = Notice("a fails", "a: over")
    assert [said.update(float(second), {"a": notice} if second % 2 else {}) for second in range(1, 4)] == [
        ["a fails"],
        ["a: over after 1 s"],
        ["a fails"],
    ]


# Events


def test_that_events_are_refused_is_said_once_and_that_it_is_over():
    health = EventHealth()
    sources, nothing = Sources(), types.SimpleNamespace()
    events = EventSources(health, nothing)  # type: ignore[arg-type]
    sources.agent = Agent(nothing, nothing, nothing, nothing, events=events)  # type: ignore[arg-type]
    announcer = StateAnnouncer(sources)
    assert announcer.lines(1.0) == []
    for _ in range(3):
        health.failed(RefusedError(403, "Forbidden", "events is forbidden"))
    (said,) = announcer.lines(2.0)
    assert said.startswith("Kubernetes Events: the API server forbids to write events: 403 Forbidden: ")
    assert "no Kubernetes Events are written; nothing else is missing" in said
    assert "docs/security.md" in said
    assert announcer.lines(3.0) == []
    health.succeeded("created")
    assert [line for now in range(4, 20) for line in announcer.lines(float(now))] == [
        "Kubernetes Events: the API server forbids to write events: over after 2 s"
    ]


# Asked once: `dnstrail check`


def test_a_check_asks_for_the_right_to_write_events_and_writes_none(server: Replay, tmp_path: Path):
    server.writes["PATCH"].append(Answer(b'{"kind":"Status","reason":"NotFound","code":404}', status=404))
    assert may_write_events(at(tmp_path, server)) is None
    assert [(one.method, one.query) for one in server.requests] == [
        ("POST", {"dryRun": "All"}),
        ("PATCH", {"dryRun": "All"}),
    ]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_check_says_that_events_may_not_be_written(server: Replay, tmp_path: Path, method: str):
    server.writes[method].append(FORBIDDEN)
    refusal = may_write_events(at(tmp_path, server))
    assert refusal is not None
    words, remedy = event_words(refusal)
    assert words.startswith("the API server forbids to write events: 403 Forbidden: ")
    assert "--events" in remedy


def test_a_check_asks_for_a_little_of_all_that_the_agent_needs(server: Replay, tmp_path: Path):
    reached = reach(at(tmp_path, server))
    assert (reached.failures, reached.words, reached.is_enough) == ((), ("", ""), True)
    asked = {(one.path, one.is_watch) for one in server.requests}
    assert asked == {(path, watch) for path in LISTS if path != JOB for watch in (False, True)}
    assert all(one.query.get("limit", "1") == "1" for one in server.requests)


@pytest.mark.parametrize(("path", "enough"), [(SERVICES, False), (STATEFUL_SETS, True)])
def test_a_check_says_what_is_forbidden(path: str, server: Replay, tmp_path: Path, *, enough: bool):
    server.lists[path][0] = FORBIDDEN
    reached = reach(at(tmp_path, server))
    assert reached.is_enough is enough
    words, remedy = reached.words
    assert words.startswith(f"the API server forbids to read {path.rpartition('/')[2]}: 403 Forbidden: ")
    assert "ClusterRole" in remedy


def test_a_check_says_why_nobody_answers(tmp_path: Path):
    reached = reach(kubeconfig(tmp_path, "http://127.0.0.1:1"))
    assert not reached.is_enough
    assert reached.words[0] == "the API server cannot be reached: http://127.0.0.1:1: Connection refused"
