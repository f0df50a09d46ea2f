"""One watched node for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.prometheus.node import Node, watched_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with watched_node(tmp_path_factory.mktemp("node")) as one:
        yield one
