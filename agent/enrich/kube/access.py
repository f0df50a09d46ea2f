"""How to get at the API server: from inside the cluster, by a kubeconfig, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.enrich.kube.errors import NotConfiguredError

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
TOKEN = "token"  # noqa: S105  a file name
CA = "ca.crt"
AUTO, OFF, IN_CLUSTER = "auto", "off", "in-cluster"


class InCluster(NamedTuple):
    """As the pod's ServiceAccount, whose token is renewed by the kubelet."""

    directory: Path = SERVICE_ACCOUNT
    """Holds `token` and `ca.crt`."""
    environment: Mapping[str, str] = os.environ
    """KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT say where the API server is."""

    def __str__(self) -> str:
        """In words."""
        return f"the ServiceAccount in {self.directory}"


class Kubeconfig(NamedTuple):
    """As a user of a kubeconfig file."""

    path: Path
    context: str | None = None
    """None for the file's current one."""

    def __str__(self) -> str:
        """In words."""
        return f"the kubeconfig {self.path}"


Access = InCluster | Kubeconfig


def access_by(asked: str, environment: Mapping[str, str] = os.environ) -> Access | None:
    """What the user asked for: `auto`, `off`, `in-cluster`, or the path of a kubeconfig; None for no Kubernetes.

    `auto` is the cluster if this is one of its pods and has a token, and else nothing: a kubeconfig that happens to lie
    about may be that of any cluster.

    Raises:
        NotConfiguredError: when it cannot be had.
    """
    if asked == OFF:
        return None
    if asked == AUTO:
        is_inside = bool(environment.get(HOST_VARIABLE)) and (SERVICE_ACCOUNT / TOKEN).is_file()
        return InCluster(environment=environment) if is_inside else None
    if asked == IN_CLUSTER:
        if not environment.get(HOST_VARIABLE):
            raise NotConfiguredError(f"this is no pod of a cluster: {HOST_VARIABLE} is not set")
        return InCluster(environment=environment)
    path = Path(asked).expanduser()
    if not path.is_file():
        raise NotConfiguredError(f"there is no kubeconfig {path}")
    return Kubeconfig(path)


def has_no_token(asked: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a pod of a cluster that was not given a token, so that `auto` does without the cluster."""
    return asked == AUTO and bool(environment.get(HOST_VARIABLE)) and not (SERVICE_ACCOUNT / TOKEN).is_file()


NO_TOKEN = f"the Kubernetes API is not asked: this is a pod of a cluster, and has no token in {SERVICE_ACCOUNT}"
