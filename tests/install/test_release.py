"""The shell steps of the release workflow, run as they are written; what needs a registry runs only there."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import __version__
from tests.install.tools import CHART, ROOT, changes, chart, run
from tests.lab.servers import PROGRAMS

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
STEPS = [one for job in JOBS.values() for one in job["steps"]]
IMAGE = "ghcr.io/someone/dnstrail"
ENVIRONMENT = {"REGISTRY": "ghcr.io", "GITHUB_REPOSITORY": "Someone/DNStrail", "GITHUB_REPOSITORY_OWNER": "Someone"}


def step(name: str) -> str:
    """The commands of the step whose name begins so."""
    (found,) = [one for one in STEPS if one.get("name", "").startswith(name)]
    return str(found["run"])


def run_step(name: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(name)]
    variables = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True, check=False)


def names(directory: Path, tag: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    output = directory / "output"
    output.touch()
    done = run_step("the tag", ROOT, GITHUB_REF_NAME=tag, GITHUB_OUTPUT=str(output))
    return done, dict(line.split("=", 1) for line in output.read_text().splitlines())


def test_a_tag_of_this_version_gives_the_names_of_what_is_pushed(tmp_path: Path):
    done, found = names(tmp_path, f"v{__version__}")
    assert done.returncode == 0, done.stderr
    assert found.pop("created")
    assert found == {"version": __version__, "image": IMAGE, "charts": "ghcr.io/someone/charts"}


def test_a_tag_of_another_version_is_refused(tmp_path: Path):
    done, found = names(tmp_path, "v99.0.0")
    assert done.returncode == 1
    assert "99.0.0" in done.stdout
    assert found == {}


def test_the_packed_chart_installs_the_image_of_the_release(tmp_path: Path):
    run("helm", "version")
    shutil.copytree(CHART, tmp_path / "deploy/helm")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/bin").symlink_to(PROGRAMS)
    done = run_step("pack the chart", tmp_path, IMAGE=IMAGE)
    assert done.returncode == 0, done.stderr
    (packed,) = (tmp_path / "dist").glob("*.tgz")
    where = "DaemonSet.spec.template.spec.containers.0.image"
    assert changes(chart(), chart(source=packed)) == {where: f"{IMAGE}:{__version__}"}


def test_krews_manifest_has_the_digest_of_the_packed_plugin_and_leads_to_it(tmp_path: Path):
    shutil.copytree(ROOT / "deploy/kubectl", tmp_path / "deploy/kubectl")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    variables = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "someone/dnstrail"}
    done = run_step("pack the plugin", tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    (platform,) = yaml.safe_load((tmp_path / "dnstrail.yaml").read_text())["spec"]["platforms"]
    packed = tmp_path / "kubectl-dnstrail.tar.gz"
    assert platform["sha256"] == hashlib.sha256(packed.read_bytes()).hexdigest()
    where = f"https://github.com/someone/dnstrail/releases/download/v{__version__}/{packed.name}"
    assert platform["uri"] == where
    with tarfile.open(packed) as tar:
        assert {file["from"] for file in platform["files"]} == set(tar.getnames())
        assert tar.getmember(platform["bin"]).mode & stat.S_IXOTH


def test_each_job_may_write_only_what_it_makes():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    granted = {
        name: {right for right, access in job["permissions"].items() if access == "write"} for name, job in JOBS.items()
    }
    assert granted == {"release": {"packages", "id-token"}, "plugin": {"contents"}}


@pytest.mark.parametrize("uses", sorted({one["uses"] for one in STEPS if "uses" in one}))
def test_every_action_is_of_one_release(uses: str):
    assert re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", uses)
