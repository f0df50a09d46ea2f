"""A watch against a small HTTP server that replays, over real connections, what a real API server once answered.

The API server itself is in tests/cluster. This is about order, time and faults, which a real one cannot be told.
"""

import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from agent.enrich.kube import watch as watching
from agent.enrich.kube.access import Kubeconfig
from agent.enrich.kube.backoff import Backoff
from agent.enrich.kube.errors import GarbledError
from agent.enrich.kube.facts import PodFacts
from agent.enrich.kube.lines import lines
from agent.enrich.kube.mirror import UNRESTRICTED, Mirror
from agent.enrich.kube.resources import pods_elsewhere, pods_here, slices_of_servers
from agent.enrich.kube.transport import Transport
from agent.enrich.kube.watch import Timing, Watch
from tests.unit.kube_replay import (
    BOUND_SECONDS,
    EVENTS,
    PODS,
    QUICK,
    SLICES,
    Answer,
    Replay,
    kubeconfig,
    recorded,
    replaying,
)


@pytest.fixture
def server() -> Iterator[Replay]:
    with replaying() as replay:
        yield replay


class Follower:
    """A watch of the pods on node-a, and what it told."""

    def __init__(self, access: Kubeconfig, timing: Timing = QUICK, resource=None) -> None:
        self.transport = Transport(access)
        self.watch = Watch(resource or pods_here("node-a"), self.transport, timing)
        self.health = self.watch.health
        self.mirror: Mirror[PodFacts] = Mirror(lambda *_: None, 1000)

    def __enter__(self) -> Self:
        self.watch.start()
        self.watch.select(UNRESTRICTED)
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop(BOUND_SECONDS)
        assert not self.watch._thread.is_alive()

    @property
    def names(self) -> set[str]:
        return {facts.pod.name for facts in self.mirror}

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Take in what is handed over until the condition holds."""
        end = time.monotonic() + BOUND_SECONDS
        while time.monotonic() < end:
            while (step := self.watch.take()) is not None:
                self.mirror.apply(step)
            if condition():
                return
            time.sleep(0.002)
        pytest.fail(f"waited in vain for {what}: {self.health}")


@pytest.fixture
def follower(server: Replay, tmp_path: Path) -> Follower:
    return Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"))


def version_of(line: bytes) -> str:
    version: str = json.loads(line)["object"]["metadata"]["resourceVersion"]
    return version


def test_what_is_there_is_listed_and_then_watched_from_there(server: Replay, follower: Follower):
    with follower:
        follower.until(lambda: server.of(watch=True), "the watch")
    assert follower.names == {"cart-7d9f-x2x", "node-local-dns-abcde", "web-0", "bare", "backup-29384756-q9z"}
    assert follower.mirror.synced
    (listed,) = server.of(watch=False)
    assert listed.query == {"fieldSelector": "spec.nodeName=node-a", "limit": "500", "resourceVersion": "0"}
    assert listed.headers["Authorization"] == "Bearer first"
    assert listed.headers["User-Agent"].startswith("dnstrail/")
    (watched,) = server.of(watch=True)
    assert watched.query["resourceVersion"] == json.loads(recorded("pods.json"))["metadata"]["resourceVersion"]
    assert watched.query["allowWatchBookmarks"] == "true"
    assert 24 <= int(watched.query["timeoutSeconds"]) <= 36
    assert watched.query["fieldSelector"] == "spec.nodeName=node-a"


def test_events_are_told_as_they_come(server: Replay, follower: Follower):
    server.watches[PODS].append(Answer(b"\n".join(EVENTS[:2]) + b"\n", ends=False))
    with follower:
        follower.until(lambda: "cart-7d9f-y3y" in follower.names, "the new pod")
        assert follower.health.connected
        assert follower.health.is_current is False, "the agent's thread says when it is synced"
        follower.health.synced = True
        assert follower.health.is_current


def test_a_deleted_pod_is_gone(server: Replay, follower: Follower):
    server.watches[PODS].append(Answer(recorded("pods-watch.jsonl"), ends=False))
    with follower:
        follower.until(lambda: follower.health.events["DELETED"], "the deletion")
        follower.until(lambda: "cart-7d9f-y3y" not in follower.names, "the pod to go")
    assert follower.health.events["ADDED"] == 1


def test_a_watch_that_ends_goes_on_where_it_was(server: Replay, follower: Follower):
    server.watches[PODS].append(Answer(b"\n".join(EVENTS[:1]) + b"\n", pause_seconds=0.05))
    with follower:
        follower.until(lambda: len(server.of(watch=True)) == 2, "the next watch")
    assert server.of(watch=True)[1].query["resourceVersion"] == version_of(EVENTS[0])
    assert follower.health.lists == 1
    assert not follower.health.errors


def test_a_bookmark_moves_on_without_an_object(server: Replay, follower: Follower):
    bookmark = b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"4711"}}}\n'
    server.watches[PODS].append(Answer(bookmark, pause_seconds=0.05))
    with follower:
        follower.until(lambda: len(server.of(watch=True)) == 2, "the next watch")
    assert server.of(watch=True)[1].query["resourceVersion"] == "4711"
    assert len(follower.names) == 5


def test_a_list_comes_in_pages(server: Replay, tmp_path: Path):
    server.lists[PODS].clear()
    server.lists[PODS].extend((Answer(recorded("pods-page-1.json")), Answer(recorded("pods-page-2.json"))))
    access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    with Follower(access, resource=pods_elsewhere("node-z")) as follower:
        follower.until(lambda: follower.mirror.synced, "the list")
    first, second = server.of(watch=False)
    assert "resourceVersion" not in first.query, "the API server's cache ignores the limit"
    assert second.query["continue"] == json.loads(recorded("pods-page-1.json"))["metadata"]["continue"]
    assert second.query["fieldSelector"] == first.query["fieldSelector"]
    assert len(follower.names) == 9
    assert follower.health.lists == 1


@pytest.mark.parametrize("how", ["event", "status"])
def test_what_the_api_server_has_forgotten_is_listed_anew(server: Replay, follower: Follower, how: str):
    forgotten = {
        "event": Answer(recorded("gone-watch.jsonl")),
        "status": Answer(json.dumps(json.loads(recorded("gone-watch.jsonl"))["object"]).encode(), status=410),
    }
    server.watches[PODS].append(forgotten[how])
    server.lists[PODS].append(Answer(recorded("pods-page-2.json")))
    with follower:
        follower.until(lambda: follower.health.lists == 2, "the second list")
        follower.until(lambda: "node-local-dns-abcde" not in follower.names, "what the new list lacks to go")
        follower.until(lambda: len(server.of(watch=True)) == 2, "the next watch")
    assert follower.health.errors == {"Expired": 1}
    assert "bare" in follower.names
    assert "resourceVersion" not in server.of(watch=False)[1].query, "not what the cache had at some time"


def test_a_connection_that_breaks_is_opened_again_where_it_was(server: Replay, follower: Follower):
    server.watches[PODS].append(Answer(b"\n".join(EVENTS[:1]) + b"\n" + EVENTS[1][:100], cut=True))
    with follower:
        follower.until(lambda: len(server.of(watch=True)) == 2, "the next watch")
    assert server.of(watch=True)[1].query["resourceVersion"] == version_of(EVENTS[0])
    assert follower.health.errors == {"Unreachable": 1}
    assert follower.health.lists == 1


def test_a_watch_in_which_nothing_comes_does_not_hang(server: Replay, tmp_path: Path):
    access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    with Follower(access, QUICK._replace(silence_seconds=0.2)) as follower:
        follower.until(lambda: len(server.of(watch=True)) == 2, "the next watch")
    assert follower.health.silences
    assert follower.health.lists == 1
    assert not follower.health.errors


def test_a_server_that_accepts_and_says_nothing_does_not_hold_us(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{mute.getsockname()[1]}")
        with Follower(access, QUICK._replace(read_seconds=0.1)) as follower:
            follower.until(lambda: follower.health.errors["Silent"] >= 3, "it to be asked again and again")
    assert not follower.health.connected


def test_a_list_that_does_not_end_is_given_up(server: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "MAX_PAGE_BYTES", 1000)
    with Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")) as follower:
        follower.until(lambda: follower.health.errors["Garbled"], "it to be given up")
    assert "more than 1000 bytes" in (follower.health.last_error or "")


def test_a_server_that_is_not_there_is_asked_again_and_found(server: Replay, tmp_path: Path):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        access = kubeconfig(tmp_path, f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with Follower(access) as follower:
            follower.until(lambda: follower.health.errors["Unreachable"] >= 3, "some attempts")
            assert "refused" in (follower.health.last_error or "")
            follower.transport._access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
            follower.transport._client = None
            follower.until(lambda: follower.health.connected, "the server")
    assert follower.health.last_error is None
    assert follower.health.last_contact_seconds == pytest.approx(time.time(), abs=BOUND_SECONDS)


def test_what_is_forbidden_is_said_and_asked_for_again(server: Replay, follower: Follower):
    server.lists[PODS].appendleft(Answer(recorded("forbidden.json"), status=403))
    with follower:
        follower.until(lambda: follower.health.errors["Forbidden"], "the refusal")
        follower.until(lambda: follower.mirror.synced, "the list")
    assert follower.health.errors == {"Forbidden": 1}


def test_a_token_that_has_expired_is_read_anew(server: Replay, follower: Follower, tmp_path: Path):
    server.watches[PODS].append(Answer(recorded("unauthorized.json"), status=401))
    with follower:
        follower.until(lambda: follower.mirror.synced, "the list")
        (tmp_path / "token").write_text("second")
        follower.until(lambda: server.of(watch=True)[1:], "the next watch")
    assert [one.headers["Authorization"] for one in server.of(watch=True)] == ["Bearer first", "Bearer second"]
    assert follower.transport.renewals == 1
    assert follower.health.lists == 1


def test_a_configuration_that_is_missing_is_said_and_found_when_it_is_there(server: Replay, tmp_path: Path):
    access = Kubeconfig(tmp_path / "kubeconfig")
    with Follower(access) as follower:
        follower.until(lambda: follower.health.errors["NotConfigured"] >= 2, "the configuration to be missed")
        kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        follower.until(lambda: follower.mirror.synced, "the list")


def test_the_api_server_says_how_long_it_wants_to_be_left_alone(server: Replay, tmp_path: Path):
    busy = {"kind": "Status", "status": "Failure", "reason": "TooManyRequests", "code": 429}
    server.lists[PODS].appendleft(Answer(json.dumps(busy).encode(), status=429, headers={"Retry-After": "1"}))
    timing = QUICK._replace(longest_wait_seconds=5)
    begun = time.monotonic()
    with Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), timing) as follower:
        follower.until(lambda: follower.mirror.synced, "the list")
    assert time.monotonic() - begun >= 1


def test_what_is_no_answer_of_an_api_server_is_survived(server: Replay, follower: Follower):
    server.lists[PODS].extendleft(
        (
            Answer(b"<html>502 Bad Gateway</html>", status=502),
            Answer(b"<html>please log in</html>"),
            Answer(b'{"items": 7}'),
            Answer(b"", status=302, headers={"Location": "http://127.0.0.1:1/"}),
        )
    )
    server.watches[PODS].extend((Answer(b"garbage\n"), Answer(b'{"type":"ADDED"}\n'), Answer(b"\xff\xfe\n")))
    with follower:
        follower.until(lambda: len(server.of(watch=True)) >= 4 and follower.health.connected, "better answers")
    assert follower.health.errors["HTTP502"] == follower.health.errors["HTTP302"] == 1
    assert follower.health.errors["Garbled"] == 5


def test_a_strange_object_spoils_no_other(server: Replay, follower: Follower):
    page = json.loads(recorded("pods.json"))
    page["items"][1]["metadata"]["name"] = 7
    server.lists[PODS].appendleft(Answer(json.dumps(page).encode()))
    strange = b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"9999"},"spec":[]}}\n'
    server.watches[PODS].append(Answer(strange + EVENTS[0] + b"\n", ends=False))
    with follower:
        follower.until(lambda: "cart-7d9f-y3y" in follower.names, "the event after the strange one")
    assert follower.health.undecodable == 2
    assert len(follower.names) == 5


def test_a_watch_that_fails_again_and_again_is_started_from_a_list(server: Replay, follower: Follower):
    broken = {"kind": "Status", "reason": "InternalError", "code": 500}
    server.watches[PODS].extend(Answer(json.dumps(broken).encode(), status=500) for _ in range(3))
    with follower:
        follower.until(lambda: follower.health.lists == 2, "the list")
    assert follower.health.errors == {"InternalError": 3}


def test_a_watch_that_always_ends_at_once_is_not_asked_for_without_pause(server: Replay, tmp_path: Path):
    server.watches[PODS].extend(Answer() for _ in range(1000))
    timing = QUICK._replace(settled_seconds=5, first_wait_seconds=0.2, longest_wait_seconds=0.2)
    with Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}"), timing) as follower:
        follower.until(lambda: follower.health.errors["Unreachable"] >= 4, "some attempts")
    assert len(server.of(watch=True)) <= 6


def test_an_agent_that_does_not_take_what_is_handed_over_holds_the_watch_up(
    server: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watching, "MAX_STEPS", 3)
    server.watches[PODS].append(Answer((EVENTS[0] + b"\n") * 100, ends=False))
    with Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")) as follower:
        waited = threading.Event()
        end = time.monotonic() + BOUND_SECONDS
        while not follower.watch._steps.full() and time.monotonic() < end:
            waited.wait(0.01)
        waited.wait(0.2)
        assert follower.health.events.total() < 5
        follower.until(lambda: follower.health.events["ADDED"] == 100, "the rest")


def test_nothing_is_asked_until_something_is_wanted(server: Replay, tmp_path: Path):
    access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    follower = Follower(access, resource=slices_of_servers())
    follower.watch.start()
    follower.watch.stop(BOUND_SECONDS)
    assert not server.requests
    assert not follower.health.wanted


def test_another_selection_is_listed_at_once_although_a_watch_is_open(server: Replay, tmp_path: Path):
    access = kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    follower = Follower(access, resource=slices_of_servers())
    follower.watch.start()
    begun = time.monotonic()
    follower.watch.select(frozenset({"kube-dns"}))
    follower.until(lambda: server.of(watch=True, path=SLICES), "the watch")
    follower.watch.select(frozenset({"kube-dns", "unbound"}))
    follower.until(lambda: len(server.of(watch=True, path=SLICES)) == 2, "the other watch")
    assert follower.mirror.selection == {"kube-dns", "unbound"}
    follower.watch.select(None)
    follower.until(lambda: not follower.mirror.synced, "everything to be forgotten")
    follower.watch.stop(BOUND_SECONDS)
    assert time.monotonic() - begun < QUICK.silence_seconds
    first, second = server.of(watch=False, path=SLICES)
    assert first.query["labelSelector"] == "kubernetes.io/service-name in (kube-dns)"
    assert second.query["labelSelector"] == "kubernetes.io/service-name in (kube-dns,unbound)"
    assert len(follower.mirror) == 0
    assert not follower.health.errors


def test_too_many_names_for_a_selector_are_asked_for_without():
    selectors = slices_of_servers().selectors
    assert selectors(frozenset(f"dns-{number}" for number in range(1000))) == {
        "labelSelector": "kubernetes.io/service-name"
    }


def test_a_watch_is_ended_while_it_waits_for_the_next_attempt(tmp_path: Path):
    timing = QUICK._replace(first_wait_seconds=60, longest_wait_seconds=60)
    begun = time.monotonic()
    with Follower(kubeconfig(tmp_path, "http://127.0.0.1:1"), timing) as follower:
        follower.until(lambda: follower.health.errors, "the first failure")
    assert time.monotonic() - begun < BOUND_SECONDS


@pytest.mark.parametrize("fault", ["refused", "silent", "cut"])
def test_failures_leave_nothing_to_the_garbage_collector_which_rests(server: Replay, tmp_path: Path, fault: str):
    server.watches[PODS].extend(Answer(EVENTS[0][:100], cut=fault == "cut", ends=False) for _ in range(50))
    port = 1 if fault == "refused" else server.server_port
    timing = QUICK._replace(silence_seconds=0.02)
    with Follower(kubeconfig(tmp_path, f"http://127.0.0.1:{port}"), timing) as follower:
        follower.until(lambda: follower.health.errors or follower.health.silences, "the first failure")
        gc.collect()
        gc.disable()
        try:
            follower.until(lambda: follower.health.errors.total() + follower.health.silences > 10, "more failures")
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [one for one in gc.garbage if type(one).__module__.startswith(("urllib3", "http.client"))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left


def test_waits_grow_to_a_cap_and_differ():
    backoff = Backoff(0.5, 30)
    waits = [backoff.next_seconds() for _ in range(200)]
    for index, full in enumerate((0.5, 1, 2, 4, 8, 16, 30, 30)):
        assert full / 2 <= waits[index] <= full
    assert len(set(waits)) == len(waits)
    assert max(waits) <= 30
    backoff.reset()
    assert backoff.next_seconds() <= 0.5


def test_lines_are_told_as_soon_as_they_are_whole_and_a_rest_is_not():
    chunks = iter((b"a", b"b\nc\n\n", b"", b"d\ne"))
    assert list(lines(chunks, 100)) == [b"ab", b"c", b"d"]


def test_a_line_without_end_is_given_up():
    with pytest.raises(GarbledError):
        list(lines(iter([b"x" * 60, b"x" * 60]), 100))
