"""The image, built once from this checkout, and what the manifest grants its containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.lab import Lab
from agent.lab.namespaces import path_of
from tests.image import container, oci
from tests.image.container import Container, Ended
from tests.lab.servers import find_program

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """To build takes minutes: only who asks for these tests gets them."""
    if any(Path(argument.partition("::")[0]).resolve().is_relative_to(HERE) for argument in config.args):
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="it takes minutes: make test-image"))


@pytest.fixture(scope="session")
def image() -> oci.Image:
    return container.build()


@pytest.fixture(scope="session")
def granted() -> oci.Manifest:
    return container.manifest()


@pytest.fixture(scope="session")
def needs_profile() -> None:
    """RuntimeDefault is containerd's own code, which is written in Go."""
    if find_program(container.PROFILER) is None and find_program("go") is None:
        pytest.skip(f"neither {container.PROFILER} in .cache/bin nor Go to build it is here")


Start = Callable[..., Container]
Run = Callable[..., Ended]


@pytest.fixture
def prepare(needs_profile: None, image: oci.Image, granted: oci.Manifest, tmp_path: Path) -> Start:  # noqa: ARG001
    """Describe a container: the manifest's, or that of a changed manifest; more is as in `oci.config`."""

    def describe(*args: str, manifest: oci.Manifest = granted, **more: object) -> Container:
        profile = container.runtime_default(manifest.capabilities)
        config = oci.config(manifest, image, args=list(args) or None, seccomp=profile, **more)  # type: ignore[arg-type]
        return Container(config, tmp_path)

    return describe


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=2) as lab:
        yield lab


@pytest.fixture
def agent(prepare: Start, lab: Lab) -> Iterator[Container]:
    """The manifest's container on the lab's node."""
    every = {"DNSTRAIL_LOG_RATE": "1000000"}
    every |= dict.fromkeys(("DNSTRAIL_FAILURE_RATE", "DNSTRAIL_MAX_LINES", "DNSTRAIL_MAX_BYTES"), "unlimited")
    with prepare(environment=every, node_netns=path_of(lab.node.name)) as started:
        started.wait_ready()
        yield started


@pytest.fixture
def run(prepare: Start) -> Run:
    """Run such a container to its end."""

    def to_its_end(*args: str, **more: object) -> Ended:
        with prepare(*args, **more) as started:
            code = started.wait()
        return Ended(code, started.out.read_text(), started.err.read_text())

    return to_its_end
