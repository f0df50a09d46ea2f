"""The CronJob behind a Job, asked for once, over replayed answers of an API server."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.enrich.kube.jobs import CronJobs
from agent.enrich.kube.transport import Transport
from tests.unit.kube_replay import BOUND_SECONDS, JOB, QUICK, Answer, Replay, kubeconfig, recorded, replaying


@pytest.fixture
def server() -> Iterator[Replay]:
    with replaying() as replay:
        yield replay


def find_out(jobs: CronJobs, condition: Callable[[], object]) -> None:
    end = time.monotonic() + BOUND_SECONDS
    while not condition() and time.monotonic() < end:
        jobs.take_in()
        time.sleep(0.002)
    assert condition(), jobs.health


@pytest.fixture
def jobs(server: Replay, tmp_path: Path) -> Iterator[CronJobs]:
    asking = CronJobs(Transport(kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")), QUICK)
    asking.start()
    yield asking
    asking.stop(BOUND_SECONDS)


def test_the_cron_job_behind_a_job_is_asked_for_once(server: Replay, jobs: CronJobs):
    find_out(jobs, lambda: jobs.owner("shop", "backup-29384756"))
    assert jobs.owner("shop", "backup-29384756") == "CronJob/backup"
    (asked,) = server.requests
    assert "PartialObjectMetadata" in asked.headers["Accept"]


def test_a_job_that_is_gone_is_not_asked_for_again(server: Replay, jobs: CronJobs):
    gone = {"kind": "Status", "reason": "NotFound", "code": 404}
    server.lists[JOB].appendleft(Answer(json.dumps(gone).encode(), status=404))
    jobs.owner("shop", "backup-29384756")
    find_out(jobs, lambda: jobs.health.errors["NotFound"])
    assert jobs.owner("shop", "backup-29384756") is None
    assert len(server.requests) == 1


def test_without_the_right_to_ask_nobody_asks_again_soon(server: Replay, jobs: CronJobs):
    server.lists[JOB].appendleft(Answer(recorded("forbidden.json"), status=403))
    for _ in range(10):
        assert jobs.owner("shop", "backup-29384756") is None
    find_out(jobs, lambda: jobs.health.errors["Forbidden"])
    assert len(server.requests) == 1


def test_an_api_server_that_stumbles_is_asked_again_for_a_job(server: Replay, jobs: CronJobs):
    server.lists[JOB].appendleft(Answer(b"", status=503))
    find_out(jobs, lambda: jobs.owner("shop", "backup-29384756"))


def test_jobs_that_are_known_are_bounded(jobs: CronJobs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("agent.enrich.kube.jobs.MAX_KNOWN", 10)
    for number in range(50):
        jobs._keep(("shop", f"job-{number}"), None)
    assert len(jobs._owners) == 10
