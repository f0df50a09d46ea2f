"""Events are written by a thread of their own, over replayed answers of an API server: order, time and faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.enrich.kube import events as writing
from agent.enrich.kube.body import MERGE_PATCH
from agent.enrich.kube.events import CREATED, DROPPED, FAILED, GONE, UPDATED, Event, EventWriter
from agent.enrich.kube.transport import Transport
from tests.unit.kube_replay import BOUND_SECONDS, QUICK, Answer, Replay, kubeconfig, replaying

PLACE = "/api/v1/namespaces/shop/events"


def event(name: str = "dnstrail.1", count: int = 1, *, may_be_gone: bool = True) -> Event:
    body = {"metadata": {"name": name}, "message": f"{count} lookups", "count": count, "lastTimestamp": "now"}
    return Event("shop", name, body, may_be_gone=may_be_gone)


def refusal(code: int, reason: str, message: str = "no", **headers: str) -> Answer:
    body = {"kind": "Status", "reason": reason, "message": message, "code": code}
    return Answer(json.dumps(body).encode(), status=code, headers=headers)


FORBIDDEN = refusal(403, "Forbidden", "events is forbidden: User cannot create resource")


@pytest.fixture
def server() -> Iterator[Replay]:
    with replaying() as replay:
        yield replay


def writer_at(tmp_path: Path, port: int) -> EventWriter:
    return EventWriter(Transport(kubeconfig(tmp_path, f"http://127.0.0.1:{port}")), QUICK, seconds_between=0.001)


@pytest.fixture
def writer(server: Replay, tmp_path: Path) -> Iterator[EventWriter]:
    made = writer_at(tmp_path, server.server_port)
    made.start()
    yield made
    made.stop(BOUND_SECONDS)


def until(condition: Callable[[], object], what: object) -> None:
    end = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def write(writer: EventWriter, one: Event, result: str = "") -> None:
    """Hand it over and wait until something became of it."""
    before = writer.health.results.total()
    writer.offer(one)
    until(lambda: writer.health.results.total() > before, writer.health)
    assert not result or writer.health.results[result]


def requests(server: Replay) -> list[tuple[str, str]]:
    return [(one.method, one.path) for one in server.requests]


def test_an_event_is_made_once_and_then_updated(server: Replay, writer: EventWriter):
    write(writer, event(), CREATED)
    write(writer, event(count=2), UPDATED)
    made, updated = server.requests
    assert (made.method, made.path) == ("POST", PLACE)
    assert json.loads(made.body) == event().body
    assert (updated.method, updated.path) == ("PATCH", f"{PLACE}/dnstrail.1")
    assert updated.headers["Content-Type"] == MERGE_PATCH
    assert json.loads(updated.body) == {"message": "2 lookups", "count": 2, "lastTimestamp": "now"}


def test_one_that_the_api_server_has_forgotten_is_made_anew(server: Replay, writer: EventWriter):
    write(writer, event(), CREATED)
    server.writes["PATCH"].append(refusal(404, "NotFound"))
    write(writer, event(count=2))
    assert writer.health.results == {CREATED: 2}
    assert not writer.health.errors


def test_one_that_is_there_already_is_updated(server: Replay, writer: EventWriter):
    server.writes["POST"].append(refusal(409, "AlreadyExists"))
    write(writer, event(), UPDATED)
    assert requests(server) == [("POST", PLACE), ("PATCH", f"{PLACE}/dnstrail.1")]


@pytest.mark.parametrize(
    "answer",
    [refusal(404, "NotFound"), refusal(403, "Forbidden", "namespace shop is being terminated")],
    ids=["gone", "going"],
)
def test_a_namespace_that_was_deleted_is_no_error(server: Replay, writer: EventWriter, answer: Answer):
    server.writes["POST"].append(answer)
    write(writer, event(), GONE)
    assert not writer.health.errors
    assert writer.health.failure is None


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (FORBIDDEN, "Forbidden"),
        (refusal(422, "Invalid"), "Invalid"),
        (refusal(404, "NotFound"), "NotFound"),
    ],
)
def test_what_is_refused_for_good_is_counted_and_not_asked_again(
    server: Replay, writer: EventWriter, answer: Answer, word: str
):
    server.writes["POST"].append(answer)
    write(writer, event(may_be_gone=False), FAILED)
    assert writer.health.errors == {word: 1}
    assert writer.health.failure is not None
    assert len(server.requests) == 1
    write(writer, event("dnstrail.2"), CREATED)
    assert writer.health.failure is None


@pytest.mark.parametrize(
    "answer", [refusal(429, "TooManyRequests"), Answer(status=503), Answer(b"{", cut=True)], ids=["429", "503", "cut"]
)
def test_what_may_work_later_is_tried_again(server: Replay, writer: EventWriter, answer: Answer):
    server.writes["POST"].extend([answer, answer])
    write(writer, event(), CREATED)
    assert writer.health.errors.total() == 2
    assert writer.health.failure is None


def test_an_api_server_that_asks_for_patience_gets_it(server: Replay, writer: EventWriter):
    server.writes["POST"].append(refusal(429, "TooManyRequests", **{"Retry-After": "1"}))
    begun = time.monotonic()
    write(writer, event(), CREATED)
    assert time.monotonic() - begun >= 1


def test_an_api_server_that_is_gone_costs_nobody_time_and_loses_only_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writing, "MAX_WAITING", 8)
    writer = writer_at(tmp_path, 1)
    writer.start()
    begun = time.monotonic()
    for number in range(1000):
        writer.offer(event(f"dnstrail.{number}"))
    assert time.monotonic() - begun < 1
    assert len(writer._waiting) <= 8
    assert writer.health.results[DROPPED] >= 1000 - 8 - 1 - 8
    until(lambda: writer.health.results[FAILED], writer.health)
    assert writer.health.errors["Unreachable"] >= writing.TRIES
    writer.stop(BOUND_SECONDS)
    assert not writer._thread.is_alive()


def test_an_api_server_that_hangs_keeps_nobody_from_ending(server: Replay, writer: EventWriter):
    server.writes["POST"].append(Answer(ends=False))
    writer.offer(event())
    until(lambda: server.requests, "the request")
    begun = time.monotonic()
    for count in range(1000):
        writer.offer(event(count=count))
    writer.stop(0.01)
    assert time.monotonic() - begun < 1


def test_only_the_newest_of_what_waits_is_written(server: Replay, tmp_path: Path):
    writer = writer_at(tmp_path, server.server_port)
    for count in range(1, 100):
        writer.offer(event(count=count))
    writer.start()
    until(lambda: writer.health.results[CREATED], writer.health)
    writer.stop(BOUND_SECONDS)
    assert [json.loads(one.body)["count"] for one in server.requests] == [99]


def test_events_that_are_remembered_are_bounded(writer: EventWriter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "MAX_WRITTEN", 10)
    for number in range(50):
        writer._remember(f"dnstrail.{number}")
    assert len(writer._written) == 10
