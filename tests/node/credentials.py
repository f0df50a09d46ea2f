"""What the parts of the node's cluster know each other by.

The certificates are of the form that clusters on EKS and MicroK8s have had: the CA does not say what it may be used
for, the API server's does not say who signed it. No Go program minds; Python 3.13, which the image has, does unless
told not to (VERIFY_X509_STRICT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.credentials import CLIENT_EXTENSIONS, SERVER_EXTENSIONS, Credentials, key_of, make_certificate
from tests.node import machine

BARE_CA = ("basicConstraints=critical,CA:TRUE",)
NOT_SAYING_BY_WHOM = "authorityKeyIdentifier=none"
SUBJECTS: Mapping[str, str] = {
    "admin": "/O=system:masters/CN=admin",
    "kubelet": f"/O=system:nodes/CN=system:node:{machine.NAME}",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}
"""Who asks the API server, by the name of the kubeconfig."""
URL = f"https://{machine.ADDRESS}:6443"


class NodeCredentials(Credentials):
    """The files of the node's cluster."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.to_kubelet = directory / "to-kubelet.crt"

    def make(self) -> None:
        """Write all files."""
        super().make()
        make_certificate(self.ca, "/CN=kubernetes", BARE_CA)
        extended_usage, names = SERVER_EXTENSIONS
        serves = (extended_usage, f"{names},IP:{machine.ADDRESS}", NOT_SAYING_BY_WHOM)
        make_certificate(self.serving, "/CN=kube-apiserver", serves, signed_by=self.ca)
        make_certificate(self.to_kubelet, "/O=system:masters/CN=kube-apiserver", CLIENT_EXTENSIONS, signed_by=self.ca)
        for name, subject in SUBJECTS.items():
            certificate = self.directory / f"{name}.crt"
            make_certificate(certificate, subject, CLIENT_EXTENSIONS, signed_by=self.ca)
            self.kubeconfig(name).write_text(json.dumps(self._kubeconfig(name, certificate)))

    def kubeconfig(self, name: str) -> Path:
        """How one of SUBJECTS asks the API server."""
        return self.directory / f"{name}.kubeconfig"

    def _kubeconfig(self, name: str, certificate: Path) -> dict[str, object]:
        user = {"client-certificate": str(certificate), "client-key": str(key_of(certificate))}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": {"server": URL, "certificate-authority": str(self.ca)}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "node", "context": {"cluster": "node", "user": name}}],
            "current-context": "node",
        }
