"""What is shipped for the Prometheus operator is what its API takes, to the last field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.lab import wait_until
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.rest import ApiError
from tests.lab.servers import PROGRAMS, find_program

ROOT = Path(__file__).parents[2]
DEFINITIONS = PROGRAMS.parent / "crds"
SHIPPED = ("podmonitor.yaml", "prometheusrule.yaml")
ESTABLISHED_SECONDS = 30.0
STRICT = "fieldValidation=Strict&dryRun=All"


def definitions() -> list[dict[str, Any]]:
    """The operator's own definitions of its kinds."""
    paths = sorted(DEFINITIONS.glob("*.yaml"))
    if not paths and find_program("go") is None:
        pytest.skip(f"neither the operator's definitions in {DEFINITIONS} nor Go to get them is here")
    assert len(paths) == len(SHIPPED), "the operator's definitions are missing: `make cluster` provides them"
    return [yaml.safe_load(path.read_text()) for path in paths]


@pytest.fixture
def operated(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A cluster that knows the operator's kinds."""
    wanted = definitions()
    control_plane.apply([manifests.namespace("dnstrail")])
    made = control_plane.apply(wanted)
    wait_until(
        lambda: all(is_established(control_plane.get(one)) for one in made), "the kinds", seconds=ESTABLISHED_SECONDS
    )
    yield control_plane
    for one in made:
        control_plane.delete(one)


def is_established(definition: dict[str, Any]) -> bool:
    # Both are null before the API server has looked at the definition.
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Established", "True") for one in conditions)


def offer(cluster: ControlPlane, manifest: dict[str, Any]) -> dict[str, Any]:
    return cluster.request("POST", f"{cluster.path_of(manifest, collection=True)}?{STRICT}", manifest)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_api_server_takes_it_to_the_last_field(operated: ControlPlane, name: str):
    manifest = yaml.safe_load((ROOT / "deploy/prometheus" / name).read_text())
    assert offer(operated, manifest)["metadata"]["name"] == "dnstrail"
    manifest["spec"]["noSuchField"] = True
    with pytest.raises(ApiError, match="unknown field"):
        offer(operated, manifest)
