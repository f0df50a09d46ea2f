"""A control plane for each test: one process pair for all of them, without the objects of the test before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import dns, servers
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import Api
from tests.lab.servers import PROGRAMS, find_program

OF_TESTS = (
    ("v1", "Pod"),
    ("v1", "Node"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("apps/v1", "ReplicaSet"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("v1", "Event"),
)
"""What is deleted after each test; accounts, their rights and namespaces remain."""


def need(*programs: str) -> None:
    """Skip where one of these is missing: they take minutes to build, which `make test-cluster` does."""
    missing = [program for program in programs if find_program(program) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not in {PROGRAMS.name}: `make test-cluster` builds them where Go is")


@pytest.fixture(scope="session")
def _running_control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    need(servers.PROGRAM, dns.PROGRAM)
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def control_plane(_running_control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A control plane that runs, whatever the test before did to it, without that test's pods, nodes and Services."""
    yield _running_control_plane
    _running_control_plane.start()
    clear(_running_control_plane)


def clear(api: Api) -> None:
    """Delete what tests made, but not the Service `kubernetes` that every cluster has."""
    for api_version, kind in OF_TESTS:
        for one in api.list(api_version, kind)["items"]:
            if one["metadata"]["name"] != "kubernetes":
                api.delete({"apiVersion": api_version, "kind": kind, **one})
