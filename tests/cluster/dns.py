"""CoreDNS as a cluster runs it: its names come from the API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

from agent.lab.pods import Pod
from tests.cluster import manifests
from tests.cluster.control_plane import ControlPlane
from tests.cluster.relay import relay
from tests.lab.servers import serving

PROGRAM = "coredns-kubernetes"
RULES = (
    {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
)
"""What kubeadm's ClusterRole system:coredns allows."""
COREFILE = """
.:53 {{
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig} coredns
    pods {pods}
    fallthrough in-addr.arpa ip6.arpa
    ttl 30
  }}
  forward . {upstream}
  loadbalance
{more}
}}
"""
"""kubeadm's, without what would look for a node's own files and ports."""


@contextmanager
def cluster_dns(
    pod: Pod, control_plane: ControlPlane, upstream: str, *, pods: str = "insecure", more: str = ""
) -> Iterator[Popen[str]]:
    """Run CoreDNS with its `kubernetes` plugin in a pod of the lab while the block lasts; see `servers.serving`.

    It is the ServiceAccount kube-system/coredns, with the rights that it has in real clusters.

    Args:
        pod: Where it runs.
        control_plane: Whose names it serves.
        upstream: Whom it asks for other names.
        pods: What it says of pods' names: `insecure`, `verified` (as `autopath @kubernetes` needs) or `disabled`.
        more: More plugins, one a line.
    """
    control_plane.apply(manifests.account("kube-system", "coredns", RULES))
    kubeconfig = control_plane.write_kubeconfig("coredns", {"token": control_plane.token_for("kube-system", "coredns")})
    corefile = pod.directory / f"{pod.name}.corefile"
    corefile.write_text(COREFILE.format(kubeconfig=kubeconfig, upstream=upstream, pods=pods, more=more))
    with (
        relay(pod.name, control_plane.port),
        serving(pod, [PROGRAM, "-conf", str(corefile)]) as process,
    ):
        yield process
