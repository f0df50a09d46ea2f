"""Where kprobes are allowed, a server that reads nothing is told from one that reads and stays silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from agent.capture.loader import PROBE_LOSS
from agent.lab import ANY_CLUSTER_NAME, Lab, stopped_server
from tests.kernel.conftest import Watch
from tests.lab.scripted import scripted

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def evidence(dnstrail: Watch, lab: Lab) -> str:
    (line,) = dnstrail.wait_for(lab, 1)
    assert line["Cause"]["Code"] == "ServerNoReply"
    return " ".join(line["Cause"]["Evidence"])


def need_kprobes(dnstrail: Watch) -> None:
    if PROBE_LOSS in dnstrail.diagnostics():
        pytest.skip("this kernel has no kprobes, or refuses them")


def test_a_stopped_server_has_not_read_the_query(lab: Lab, watch: Callable[..., Watch]):
    dnstrail = watch("--timeout", "1.5")
    need_kprobes(dnstrail)
    with stopped_server(lab):
        lab.clients[0].ask(f"stopped.{ANY_CLUSTER_NAME}")
        assert "no program has read it" in evidence(dnstrail, lab)


def test_a_silent_server_has_read_the_query(lab: Lab, watch: Callable[..., Watch]):
    dnstrail = watch("--timeout", "1.5")
    need_kprobes(dnstrail)
    with scripted(lab.servers[0], always="silent"):
        lab.clients[0].ask(f"silent.{ANY_CLUSTER_NAME}")
        assert "has read it" in evidence(dnstrail, lab)
