"""What the node's daemons are told: their options and their files, as far as they differ from what they assume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.credentials import ISSUER, key_of
from tests.node import machine
from tests.node.credentials import NodeCredentials
from tests.node.programs import CNI, path_of

PODS = "10.244.0.0/16"
PODS_OF_NODE = "10.244.0.0/24"
SERVICES = "10.96.0.0/16"
CLUSTER_DNS = "10.96.0.10"
API_PORT = 6443
ETCD = "http://127.0.0.1:2379"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
Options = Mapping[str, object]

CONTAINERD = """\
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:node"
  restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE nobody may lower it
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{directory}/cni"
"""


def containerd(directory: Path) -> Path:
    """Write what containerd reads, and the network plugins that it starts; return the former."""
    plugins = directory / "cni" / "10-bridge.conflist"
    plugins.parent.mkdir()
    plugins.write_text(json.dumps(_bridge()))
    path = directory / "containerd.toml"
    text = CONTAINERD.format(directory=directory, socket=CONTAINERD_SOCKET, runc=path_of("runc"), cni=CNI)
    path.write_text(text)
    return path


def _bridge() -> dict[str, object]:
    """Pods at a bridge with an address on the node, as kubenet and many tutorials have it."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": PODS_OF_NODE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/run/cni-ipam",
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def kubelet(directory: Path, credentials: NodeCredentials) -> Path:
    """Write what the kubelet reads."""
    return _written(
        directory / "kubelet.json",
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(credentials.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "clusterDNS": [CLUSTER_DNS],
            "clusterDomain": "cluster.local",
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "syncFrequency": "10s",
        },
    )


def kube_proxy(directory: Path, credentials: NodeCredentials, mode: str) -> Path:
    """Write what kube-proxy reads. It leaves alone the sysctls of conntrack that belong to the whole machine."""
    return _written(
        directory / f"kube-proxy-{mode}.json",
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "clusterCIDR": PODS,
            "clientConnection": {"kubeconfig": str(credentials.kubeconfig("proxy"))},
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "hostnameOverride": machine.NAME,
        },
    )


def etcd(directory: Path) -> Options:
    """Options of etcd. A crash of the machine ends the test anyway, so nothing needs to be synced."""
    return {
        "data-dir": directory / "etcd",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
        "listen-client-urls": ETCD,
        "advertise-client-urls": ETCD,
        "listen-peer-urls": "http://127.0.0.1:2380",
    }


def apiserver(credentials: NodeCredentials) -> Options:
    """Options of kube-apiserver."""
    return {
        "etcd-servers": ETCD,
        "advertise-address": machine.ADDRESS,
        "secure-port": API_PORT,
        "client-ca-file": credentials.ca,
        "tls-cert-file": credentials.serving,
        "tls-private-key-file": key_of(credentials.serving),
        "kubelet-client-certificate": credentials.to_kubelet,
        "kubelet-client-key": key_of(credentials.to_kubelet),
        "kubelet-preferred-address-types": "InternalIP",
        "service-cluster-ip-range": SERVICES,
        "allow-privileged": "true",
        "service-account-issuer": ISSUER,
        "service-account-key-file": credentials.token_public_key,
        "service-account-signing-key-file": credentials.token_key,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "shutdown-watch-termination-grace-period": "1s",  # by default watches may keep it from ending for a minute
    }


def controller_manager(credentials: NodeCredentials) -> Options:
    """Options of kube-controller-manager."""
    return {
        "kubeconfig": credentials.kubeconfig("controller-manager"),
        "use-service-account-credentials": "true",
        "service-account-private-key-file": credentials.token_key,
        "root-ca-file": credentials.ca,
        "allocate-node-cidrs": "true",
        "cluster-cidr": PODS,
        "service-cluster-ip-range": SERVICES,
        "leader-elect": "false",
    }


def _written(path: Path, content: Mapping[str, object]) -> Path:
    path.write_text(json.dumps(content))
    return path
