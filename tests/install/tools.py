"""Runs helm and kubectl as users do; `make test-install` builds both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.servers import PROGRAMS, find_program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm"
COMPONENTS = ROOT / "deploy/kustomize"
SECONDS = 60
Objects = dict[str, dict[str, Any]]
"""Objects of the API by their kind; there is one of each."""


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of them, and skip the test where it is missing."""
    path = find_program(program)
    if path is None:
        pytest.skip(f"{program} is not in {PROGRAMS.name}: `make test-install` builds it where Go is")
    command = [path, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)


def output(program: str, *arguments: str | Path) -> str:
    """What it prints; it must succeed."""
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_kind(text: str) -> Objects:
    """The objects of a manifest."""
    objects = [found for found in yaml.safe_load_all(text) if found]
    kinds = {found["kind"]: found for found in objects}
    assert len(kinds) == len(objects)
    return kinds


def manifest() -> Objects:
    """What daemonset.yaml has."""
    return by_kind((ROOT / "daemonset.yaml").read_text())


def values() -> dict[str, int]:
    """The values that users set, by their path, each with its line in values.yaml, counted from 0."""
    text = (CHART / "values.yaml").read_text()
    return dict(_values_of(yaml.compose(text), text.splitlines()))


def _values_of(node: yaml.MappingNode, lines: list[str], prefix: str = "") -> Iterator[tuple[str, int]]:
    """A block whose first line is a comment is a group of values; anything else is a value."""
    for key, value in node.value:
        line = key.start_mark.line
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        if is_block and lines[line + 1].lstrip().startswith("#"):
            yield from _values_of(value, lines, f"{prefix}{key.value}.")
        else:
            yield prefix + key.value, line


def chart(*arguments: str, source: Path = CHART) -> Objects:
    """What the chart renders into the namespace of the manifest."""
    return by_kind(output("helm", "template", "dnstrail", source, "--namespace", "dnstrail", *arguments))


def kustomized(directory: Path, component: str, **more: str) -> Objects:
    """What a user's overlay with this component makes of the repository."""
    paths = {"resources": ROOT, "components": COMPONENTS / component}
    overlay = {key: [os.path.relpath(path, directory.resolve())] for key, path in paths.items()}
    (directory / "kustomization.yaml").write_text(json.dumps({**overlay, **more}))
    return by_kind(output("kubectl", "kustomize", directory))


def changes(before: object, after: object, path: str = "") -> dict[str, Any]:
    """What is not the same: the new value by its path, None where it is gone."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = {f"{path}.{key}": (before.get(key), after.get(key)) for key in before | after}
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = {f"{path}.{number}": pair for number, pair in enumerate(zip(before, after, strict=True))}
    else:
        return {} if before == after else {path.removeprefix("."): after}
    return {name: value for inner, pair in pairs.items() for name, value in changes(*pair, inner).items()}
