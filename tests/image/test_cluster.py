"""The image as a pod of a cluster: a real API server, the manifest's account and rights, a lab for a node."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import yaml

from agent.enrich.kube.access import SERVICE_ACCOUNT
from agent.lab import Lab
from tests.cluster import manifests, servers
from tests.cluster.conftest import need
from tests.cluster.control_plane import ControlPlane
from tests.image.conftest import Start
from tests.image.container import ROOT
from tests.image.test_privileges import LINE_SECONDS, NAME, lines_of
from tests.image.test_probes import PROBE_SECONDS, status_here

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


@pytest.fixture
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    need(servers.PROGRAM)
    with ControlPlane(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_it_names_pods_workloads_and_services_by_what_its_account_may_read(
    control_plane: ControlPlane, prepare: Start, tmp_path: Path
):
    objects = list(yaml.safe_load_all((ROOT / "daemonset.yaml").read_text()))
    control_plane.apply(objects)
    credentials = control_plane.project_token(tmp_path / "account", "dnstrail", "dnstrail")
    environment = {
        "NODE_NAME": manifests.NODE,
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(control_plane.port),
        "DNSTRAIL_LOG_RATE": "1000000",
        "DNSTRAIL_FAILURE_RATE": "unlimited",
        "DNSTRAIL_MAX_LINES": "unlimited",
        "DNSTRAIL_MAX_BYTES": "unlimited",
    }
    with Lab() as lab:
        control_plane.apply(manifests.of_lab(lab))
        with prepare(environment=environment, mounts={str(SERVICE_ACCOUNT): credentials}) as agent:
            agent.wait_ready()
            # This machine is the node, not the lab's: the API server listens on its loopback address.
            agent.wait_until(lambda: status_here("/readyz") == HTTPStatus.OK, "it to be ready", PROBE_SECONDS)
            assert "status: NOERROR" in lab.clients[0].dig(NAME).stdout
            agent.wait_until(lambda: bool(lines_of(lab, agent)), "the line", LINE_SECONDS)
            (line,) = lines_of(lab, agent)
    client = {key: line["Client"][key] for key in ("Namespace", "Pod", "Workload")}
    assert client == {"Namespace": "shop", "Pod": "cart-1", "Workload": "Deployment/cart"}
    assert (line["Server"]["Service"], line["Server"]["Pod"]) == ("kube-system/kube-dns", "coredns-1")
