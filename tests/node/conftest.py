"""One node for all tests: with CoreDNS, pods that ask, and dnstrail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node import images, programs
from tests.node.node import SHOP, Node

HERE = Path(__file__).parent
TEST_SECONDS = 300
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """To build takes minutes: only who asks for these tests gets them."""
    asked = any(Path(argument.partition("::")[0]).resolve().is_relative_to(HERE) for argument in config.args)
    for item in (item for item in items if item.path.is_relative_to(HERE)):
        item.add_marker(pytest.mark.kernel)
        item.add_marker(pytest.mark.timeout(TEST_SECONDS))  # the first one waits for the node
        if not asked:
            item.add_marker(pytest.mark.skip(reason="it takes minutes: make test-node"))


@pytest.fixture(scope="session")
def pod_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if os.geteuid() != 0:
        pytest.skip("a node needs root")
    if missing := programs.missing():
        pytest.skip(f"{', '.join(missing)} not found: `make test-node` builds or installs them where Go is")
    if UNIFIED.exists():
        pytest.skip("this machine has cgroup version 2 alone; the node was only tried with version 1 beside it")
    return images.make_all(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def node(pod_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with Node(tmp_path_factory.mktemp("node"), pod_images) as running:
        running.make_namespace(SHOP)
        running.apply("coredns.yaml", "shop.yaml")
        running.install()
        for workload, namespace in (("deployment/coredns", "kube-system"), ("deployment/cart", SHOP)):
            running.wait_rolled_out(workload, namespace)
        yield running
