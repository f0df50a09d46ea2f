"""The DaemonSet's pod as an OCI runtime configuration: what a kubelet and a container runtime make of the manifest.

Every field of the manifest is either translated here or named as one that says nothing about privileges; another one is
an error, so that whatever the manifest comes to grant, a container of the tests is granted too, and nothing else is.
The rest is what containerd's CRI plugin gives to every container (internal/cri/server/podsandbox and container_create).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

POD_FIELDS = {
    # scheduling, credentials and life, which are not the container's own
    "automountServiceAccountToken",
    "containers",
    "dnsPolicy",
    "enableServiceLinks",
    "nodeSelector",
    "priorityClassName",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
    # translated by `config`
    "hostNetwork",
    "hostPID",
}
CONTAINER_FIELDS = {
    "name",
    "image",
    "ports",
    "startupProbe",
    "livenessProbe",
    "readinessProbe",
    "terminationMessagePolicy",
    # translated by `config`
    "args",
    "env",
    "envFrom",
    "resources",
    "securityContext",
    "volumeMounts",
}
SECURITY_FIELDS = {
    "runAsUser",
    "runAsGroup",
    "privileged",
    "allowPrivilegeEscalation",
    "readOnlyRootFilesystem",
    "seccompProfile",
    "appArmorProfile",
    "capabilities",
}
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108  a mount
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)
QUANTITIES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


class Manifest(NamedTuple):
    """The objects of daemonset.yaml that a container is made of."""

    pod: Json
    """`spec` of the DaemonSet's pods."""
    options: Mapping[str, str]
    """`data` of the ConfigMap."""

    @property
    def container(self) -> Json:
        """The one container."""
        (container,) = self.pod["containers"]
        return container

    @property
    def capabilities(self) -> list[str]:
        """What is granted, as the kernel spells it."""
        asked = self.container["securityContext"]["capabilities"]
        assert asked["drop"] == ["ALL"]
        return [f"CAP_{name}" for name in asked["add"]]


class Image(NamedTuple):
    """What a container is started from."""

    root: Path
    """The root file system, laid out."""
    entrypoint: list[str]
    command: list[str]
    environment: list[str]
    labels: Mapping[str, str]


def manifest_of(objects: Iterable[Json]) -> Manifest:
    """Pick the DaemonSet and its ConfigMap."""
    by_kind = {one["kind"]: one for one in objects}
    pod = by_kind["DaemonSet"]["spec"]["template"]["spec"]
    _known(pod, POD_FIELDS)
    (container,) = pod["containers"]
    _known(container, CONTAINER_FIELDS)
    _known(container["securityContext"], SECURITY_FIELDS)
    return Manifest(pod, by_kind["ConfigMap"]["data"])


def config(
    manifest: Manifest,
    image: Image,
    *,
    args: list[str] | None = None,
    entrypoint: list[str] | None = None,
    environment: Mapping[str, str] | None = None,
    seccomp: Json | None = None,
    mounts: Mapping[str, Path] | None = None,
    node_netns: Path | None = None,
) -> Json:
    """Return config.json of the OCI runtime specification.

    Args:
        manifest: What is granted.
        image: What is started.
        args: Instead of the manifest's.
        entrypoint: Instead of the image's, as with `kubectl exec`.
        environment: In addition: what a kubelet says of the cluster.
        seccomp: The runtime's default profile; none for `Unconfined`.
        mounts: Directories of this machine by their place, read-only: what a kubelet puts into each container.
        node_netns: The network namespace of the node, if the node is a lab's; this machine's own otherwise.
    """
    container = manifest.container
    security = container["securityContext"]
    assert not security["privileged"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    capabilities = manifest.capabilities
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": security["runAsUser"], "gid": security["runAsGroup"]},
            "args": [*(entrypoint or image.entrypoint), *(container["args"] if args is None else args)],
            "env": [*image.environment, *_environment(manifest, environment or {})],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not security["allowPrivilegeEscalation"],
        },
        "root": {"path": str(image.root), "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [*_mounts(manifest), *(_bind(place, path, ["ro"]) for place, path in (mounts or {}).items())],
        "linux": {
            "namespaces": _namespaces(manifest.pod, node_netns),
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            "resources": {"devices": [{"allow": False, "access": "rwm"}], **_resources(container["resources"])},
            **({"seccomp": seccomp} if seccomp else {}),
        },
    }


def _namespaces(pod: Json, node_netns: Path | None) -> list[Json]:
    """A pod in the node's network is in its UTS namespace too."""
    own = ["mount", "ipc"]
    if not pod.get("hostPID"):
        own.append("pid")
    if not pod.get("hostNetwork"):
        own += ["network", "uts"]
    of_node = [{"type": "network", "path": str(node_netns)}] if pod.get("hostNetwork") and node_netns else []
    return [*({"type": kind} for kind in own), *of_node]


def _mounts(manifest: Manifest) -> list[Json]:
    """What every container has, unless the manifest puts something in its place."""
    volumes = {volume["name"]: volume for volume in manifest.pod.get("volumes", ())}
    asked: dict[str, Json] = {}
    for mount in manifest.container.get("volumeMounts", ()):
        _known(mount, {"name", "mountPath", "readOnly"})
        asked[mount["mountPath"]] = _volume(volumes[mount["name"]], mount)
    usual = [
        {"destination": place, "type": kind, "source": source, "options": list(options)}
        for place, kind, source, options in MOUNTS
        if place not in asked
    ]
    return [*usual, *asked.values()]


def _volume(volume: Json, mount: Json) -> Json:
    _known(volume, {"name", "hostPath", "emptyDir"})
    if "emptyDir" in volume:
        _known(volume["emptyDir"], {"medium", "sizeLimit"})
        assert volume["emptyDir"]["medium"] == "Memory"
        options = ["nosuid", "nodev", "mode=777", f"size={quantity(volume['emptyDir']['sizeLimit'])}"]
        return {"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": options}
    path = Path(volume["hostPath"]["path"])
    assert volume["hostPath"]["type"] == "Directory"
    assert path.is_dir()
    return _bind(mount["mountPath"], path, ["ro"] if mount.get("readOnly") else ["rw"])


def _bind(place: str, path: Path, options: list[str]) -> Json:
    return {"destination": place, "type": "bind", "source": str(path), "options": ["rbind", "rprivate", *options]}


def _environment(manifest: Manifest, extra: Mapping[str, str]) -> list[str]:
    """The ConfigMap's variables, then the container's own; fields of the pod are those of `extra`."""
    container = manifest.container
    assert container["envFrom"] == [{"configMapRef": {"name": "dnstrail"}}]
    fields = [one["name"] for one in container["env"] if "fieldRef" in one["valueFrom"]]
    given = {**manifest.options, **dict.fromkeys(fields, "a-node"), **extra}
    return [f"{name}={value}" for name, value in given.items()]


def _resources(resources: Json) -> Json:
    """Limits alone are the kernel's business."""
    _known(resources, {"requests", "limits"})
    _known(resources["limits"], {"memory"})
    return {"memory": {"limit": quantity(resources["limits"]["memory"])}}


def quantity(text: str) -> int:
    """`512Mi` as bytes."""
    return int(text[:-2]) * QUANTITIES[text[-2:]]


def _known(given: Json, fields: set[str]) -> None:
    unknown = set(given) - fields
    assert not unknown, f"the manifest says {', '.join(sorted(unknown))}: translate that for the tests' containers too"
