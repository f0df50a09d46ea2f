"""The images that the node's pods are made of, as archives for `ctr image import`.

dnstrail's is the one that the project's own scripts build from this checkout. The others consist of one program each,
and of the libraries that it is linked to.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.image import container
from tests.node.programs import COREDNS, OF_NODE, path_of

ASK = Path(__file__).with_name("ask.c")
RUN_SECONDS = 120


class Image(NamedTuple):
    """An image of one layer."""

    name: str
    files: Iterable[tuple[Path, str]]
    """From where on this machine, and to where in the image."""
    entrypoint: Sequence[str]


def make_all(directory: Path) -> list[Path]:
    """Write the archives of all images that the node's pods use."""
    return [dnstrail(), *(_archive(image, directory) for image in _small(directory))]


def dnstrail() -> Path:
    """The image of this checkout, built if it changed; its archive is kept."""
    container.build()
    storage = str(container.STORE)
    buildah = [str(container.SCRIPTS / "buildah"), storage]
    number = _output([*buildah, "images", "--quiet", "--no-trunc", "dnstrail"]).strip().removeprefix("sha256:")
    archive = OF_NODE / f"dnstrail-{number}.tar"
    if not archive.exists():
        for old in OF_NODE.glob("dnstrail-*.tar"):
            old.unlink()
        unfinished = archive.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        name = f"docker.io/library/{_image_of_manifest()}"
        _output([*buildah, "push", "--quiet", "dnstrail", f"docker-archive:{unfinished}:{name}"])
        unfinished.rename(archive)
    return archive


def _image_of_manifest() -> str:
    image: str = container.manifest().container["image"]
    return image


def _small(directory: Path) -> list[Image]:
    """Programs that ask for names, by two C libraries; CoreDNS; and what keeps a pod's namespaces."""
    glibc, musl = directory / "ask-glibc", directory / "ask-musl"
    _output(["gcc", "-O2", "-o", str(glibc), str(ASK)])
    _output(["musl-gcc", "-O2", "-static", "-o", str(musl), str(ASK)])
    libraries = [(Path(found), found) for found in _libraries(glibc)]
    return [
        Image("ask-glibc:node", [(glibc, "/ask"), *libraries], ["/ask"]),
        Image("ask-musl:node", [(musl, "/ask")], ["/ask"]),
        Image("coredns:node", [(Path(path_of(COREDNS)), "/coredns")], ["/coredns"]),
        Image("pause:node", [(musl, "/pause")], ["/pause", "1000000", "localhost"]),
    ]


def _libraries(program: Path) -> list[str]:
    """What the dynamic linker loads, at the paths where it looks."""
    words = _output(["ldd", str(program)]).split()
    return [word for word in words if word.startswith("/")]


def _archive(image: Image, directory: Path) -> Path:
    """Write an archive as `docker save` does."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", dereference=True) as tar:
        for source, place in image.files:
            tar.add(source, arcname=place.lstrip("/"), filter=_owned_by_root)
    data = layer.getvalue()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(image.entrypoint), "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps(
        [{"Config": config_name, "RepoTags": [f"docker.io/library/{image.name}"], "Layers": ["layer.tar"]}]
    ).encode()
    path = directory / f"{image.name.replace(':', '-')}.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in ((config_name, config), ("layer.tar", data), ("manifest.json", manifest)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _output(argv: Sequence[str]) -> str:
    program = shutil.which(argv[0]) or argv[0]
    return subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=True, timeout=RUN_SECONDS).stdout
