"""The Helm chart's own files: one version, one manifest, and a sentence for every value."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from agent import __version__
from tests.install.tools import CHART, ROOT, values

LINES = (CHART / "values.yaml").read_text().splitlines()
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
SOURCES = {
    "daemonset.yaml": ROOT / "daemonset.yaml",
    "podmonitor.yaml": ROOT / "deploy/prometheus/podmonitor.yaml",
    "prometheusrule.yaml": ROOT / "deploy/prometheus/prometheusrule.yaml",
}


def accepted(schema: dict[str, Any]) -> Iterator[str]:
    """The values that the schema knows, by their path."""
    for name, inner in schema["properties"].items():
        found = SCHEMA["definitions"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner
        if "properties" in found:
            yield from (f"{name}.{rest}" for rest in accepted(found))
        else:
            yield name


@pytest.mark.parametrize(("name", "line"), values().items())
def test_every_value_has_one_comment(name: str, line: int):
    key = LINES[line]
    indent = key[: len(key) - len(key.lstrip())]
    assert re.match(rf"{indent}# [A-Z].+\.$", LINES[line - 1]), name
    assert not LINES[line - 2].startswith(f"{indent}#")


def test_the_schema_knows_exactly_the_values():
    assert set(accepted(SCHEMA)) == values().keys() | {"global"}


def test_chart_and_program_have_one_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_chart_has_no_manifest_of_its_own():
    assert {path.name: path.resolve() for path in (CHART / "files").iterdir()} == SOURCES
    assert all(path.is_symlink() for path in (CHART / "files").iterdir())
