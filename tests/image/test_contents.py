"""What is in the image, and what is not."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from agent import __version__
from deploy.prometheus import alerts
from tests.image import oci
from tests.image.conftest import Run
from tests.image.container import ROOT, STORE

ANNOTATION = "org.opencontainers.image."
LIMIT_BYTES = 300_000_000
FORBIDDEN = ("sh", "bash", "dash", "apt", "dpkg", "perl", "pip", "pip3", "gcc", "cc", "clang", "ld", "su", "mount")
HEADERS = ("usr/include", "usr/src", "lib/modules")
DOWNLOAD_SECONDS = 300
IMPORT_ALL = """
import importlib, pkgutil, agent
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import kubernetes, prometheus_client, pyroute2.netlink.nfnetlink.nfctsocket, bcc, dns.rdtypes.ANY
print("imported")
"""


def files(root: Path) -> Iterator[Path]:
    for folder, directories, names in os.walk(root):
        yield from (Path(folder, name) for name in (*directories, *names))


def size(paths: Iterator[Path]) -> int:
    return sum(path.lstat().st_size for path in paths if path.is_file() and not path.is_symlink())


def test_it_is_small(image: oci.Image):
    """Printed for the README: what makes it up."""
    library = next(image.root.glob("usr/lib/*-linux-gnu"))
    parts = {
        "all": size(files(image.root)),
        "LLVM and clang": size(p for name in ("LLVM", "clang-cpp") for p in library.glob(f"lib{name}*")),
        "Python packages and dnstrail": size(files(image.root / "usr/local")),
        "Python": size(files(image.root / "usr/lib/python3.13")) + size(iter([image.root / "usr/bin/python3.13"])),
    }
    print("\n".join(f"{name}: {size_bytes / 1e6:.0f} MB" for name, size_bytes in parts.items()))
    assert parts["all"] < LIMIT_BYTES
    assert parts["LLVM and clang"] > parts["all"] * 0.6, "the rest has grown"


def test_there_is_no_shell_no_package_manager_no_compiler_and_no_header(image: oci.Image):
    names = {path.name for path in files(image.root) if os.access(path, os.X_OK) and path.is_file()}
    assert not names.intersection(FORBIDDEN)
    assert {path.name for path in (image.root / "usr/bin").iterdir()} == {"python3", "python3.13"}
    assert [path.name for path in (image.root / "usr/local/bin").iterdir()] == ["dnstrail"]
    assert not any(list((image.root / place).glob("*")) for place in HEADERS)
    assert not any(path.suffix in (".h", ".a", ".o") for path in files(image.root) if "agent/_bpf" not in str(path))


def test_every_file_is_roots_and_only_root_may_write_it(image: oci.Image):
    for path in files(image.root):
        state = path.lstat()
        assert (state.st_uid, state.st_gid) == (0, 0), path
        if not stat.S_ISLNK(state.st_mode):
            assert not state.st_mode & (stat.S_ISUID | stat.S_ISGID), path
            sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
            assert sticky or not state.st_mode & 0o022, path


def test_every_library_that_a_program_needs_is_there(image: oci.Image):
    loader = next(path for path in (image.root / "usr").glob("lib*/**/ld-linux-*.so.*"))
    inside = f"/{loader.relative_to(image.root)}"
    checked = 0
    for path in files(image.root):
        if path.is_symlink() or not path.is_file() or path.open("rb").read(4) != b"\x7fELF":
            continue
        command = ["chroot", str(image.root), inside, "--list", f"/{path.relative_to(image.root)}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert "not found" not in done.stdout, f"{path}: {done.stdout}"
        assert "error while loading" not in done.stderr, f"{path}: {done.stderr}"
        checked += 1
    assert checked > 50


def test_every_module_can_be_imported_although_much_was_taken_out(run: Run):
    done = run("-c", IMPORT_ALL, entrypoint=["python3"])
    assert (done.out, done.code) == ("imported\n", 0), done.err


def test_everything_is_compiled_because_the_container_cannot_write_it(image: oci.Image):
    sources = [path for path in files(image.root) if path.suffix == ".py" and "_bpf" not in path.parts]
    missing = [path for path in sources if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))]
    assert not missing


def test_the_python_packages_are_those_of_the_lock_file(image: oci.Image):
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE))
    packages = next(image.root.glob("usr/local/lib/python3.*/dist-packages"))
    installed = [Distribution.at(path) for path in packages.glob("*.dist-info")]
    assert len(installed) > 10
    for one in installed:
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        assert name == "dnstrail" or locked[name] == one.version, name


def test_scanners_find_the_debian_packages_and_people_their_licences(image: oci.Image):
    status = {path.name: path.read_text() for path in (image.root / "var/lib/dpkg/status.d").iterdir()}
    assert "Version: 0.31" in status["libbpfcc"]
    for package in status:
        documents = image.root / "usr/share/doc" / package
        assert (documents / "copyright").exists() or documents.is_symlink(), package


def test_its_labels_say_what_it_is_and_of_which_commit(image: oci.Image):
    told = {name.removeprefix(ANNOTATION): text for name, text in image.labels.items() if name.startswith(ANNOTATION)}
    command = ["git", "-C", ROOT, "log", "-1", "--format=%H %cI"]
    revision, committed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert datetime.fromisoformat(told.pop("created")) == datetime.fromisoformat(committed)
    assert "DNS" in told.pop("description")
    assert told == {
        "title": "dnstrail",
        "version": __version__,
        "revision": revision,
        "source": alerts.RUNBOOKS.partition("/blob/")[0],
        "licenses": "Apache-2.0 AND GPL-2.0-only",
    }


def test_it_starts_dnstrail_run_and_has_a_place_to_write_without_a_disk(image: oci.Image):
    assert (image.entrypoint, image.command) == (["dnstrail"], ["run"])
    assert "TMPDIR=/dev/shm" in image.environment


@pytest.mark.timeout(DOWNLOAD_SECONDS)
def test_the_same_packages_are_to_be_had_for_arm64(tmp_path: Path):
    """Debian's as the build asks for them, and a wheel with a locked hash for each of Python's."""
    command = "apt-get update -qq && apt-get install -s --no-install-recommends -o Dir::State::status=/dev/null"
    architecture = "-o APT::Architecture=arm64 -o APT::Architectures=arm64"
    build = f"{command.replace('apt-get', f'apt-get {architecture}')} libc-bin python3-bpfcc"
    base = subprocess.run(
        [ROOT / "deploy/image/buildah", STORE, "from", "dnstrail-base"], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        apt = [ROOT / "deploy/image/buildah", STORE, "run", "--isolation", "chroot", base, "sh", "-c", build]
        done = subprocess.run(apt, capture_output=True, text=True, check=False, timeout=DOWNLOAD_SECONDS)
    finally:
        subprocess.run([ROOT / "deploy/image/buildah", STORE, "rm", base], capture_output=True, check=True)
    assert re.search(r"^Inst libbpfcc \(0\.31.*\[arm64\]", done.stdout, re.MULTILINE), done.stdout[-500:] + done.stderr
    wheels = ["--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_28_aarch64", "--python-version", "3.13"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--require-hashes"]
    subprocess.run(
        [*pip, *wheels, "--requirement", ROOT / "requirements/run.txt", "--dest", tmp_path],
        check=True,
        timeout=DOWNLOAD_SECONDS,
    )
    assert any("aarch64" in path.name for path in tmp_path.glob("msgspec-*"))
