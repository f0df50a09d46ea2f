"""README, glossary, decisions and the documents for contributors: what they name exists, and they keep their form."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
import yaml

from agent.explain.causes import CAUSES
from agent.explain.findings import NAMES
from agent.export.catalogue import fields
from agent.export.line import Line

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))
OWN_WORDS = (
    *(README, CONTRIBUTING, ROOT / "SECURITY.md"),
    *(
        DOCS / f"{name}.md"
        for name in ("costs", "design", "explain", "glossary", "install", "kernels", "limits", "logs", "page")
    ),
    *(DOCS / f"{name}.md" for name in ("kubectl", "security", "trace", "usage")),
    *sorted((DOCS / "runbooks").glob("*.md")),
    *sorted((DOCS / "decisions").glob("*.md")),
)
LINKING = (*OWN_WORDS, *(DOCS / f"{name}.md" for name in ("causes", "scenarios", "semantics", "verdicts")))
README_WORDS = 850
FIELDS = {name for name, _, _ in fields(Line)}
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^\s*(?:\d+\.|-)\s+(?:\*+[^*]+\*+ )?")
"""What an item of a list begins with: its number or dash, and the word that it is about."""
SENTENCE_END = re.compile(r"(?<![A-Z])(?<!e\.g)[.?!][)\"*]* (?=[A-Z`*\[(])")
VALUES = {"tx", "rx", "drop", "both", "client", "server", "transit", "high", "medium", "low"}
STATUSES = {"Succeeded", "Failed", "SampleLoss"}
COMMANDS = {"lsns -t net", "dnstrail explain"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    return CODE_BLOCK.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def exists_in_code(dotted: str) -> bool:
    """Whether a dotted name can be imported, its last parts being attributes or fields of a class."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part) and part not in getattr(found, "__annotations__", {}):
                return False
            found = getattr(found, part, None)
        return True
    return False


@pytest.mark.parametrize("path", LINKING, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(path: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", OWN_WORDS, ids=name_of)
def test_there_is_one_sentence_a_line(path: Path):
    lines = [line for line in prose(path).splitlines() if not line.startswith(("|", "#"))]
    assert [line for line in lines if SENTENCE_END.search(ITEM.sub("", line))] == []


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= README_WORDS


def test_the_readme_opens_with_a_lost_lookup_in_fields_that_the_line_has():
    (example,) = re.findall(r"^```json\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    line = json.loads(example)
    assert line["Status"] == "Failed"
    assert line["Cause"]["Code"] in CAUSES
    assert set(paths(line)) <= FIELDS


def paths(value: dict[str, object], prefix: str = "") -> list[str]:
    """Dotted names, as the field reference has them."""
    found = []
    for key, inner in value.items():
        found.append(prefix + key)
        if isinstance(inner, dict):
            found += paths(inner, f"{prefix}{key}.")
        elif isinstance(inner, list):
            for one in inner:
                found += paths(one, f"{prefix}{key}[].")
    return found


def test_tests_that_the_readme_names_exist():
    named = re.findall(r"\[`(test_\w+)`\]\((\S+?)\)", README.read_text())
    assert named
    for test, file in named:
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("span", sorted(set(re.findall(r"`([^`]+)`", (DOCS / "glossary.md").read_text()))))
def test_what_the_glossary_names_exists(span: str):
    known = FIELDS | CAUSES.keys() | set(NAMES) | VALUES | STATUSES | COMMANDS
    assert span in known or exists_in_code(span)


def test_every_word_of_the_glossary_says_where_it_lives():
    rows = [line for line in (DOCS / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    words = [row for row in rows if not row.startswith("| word ")]
    assert all("`" in row.rsplit("|", 2)[1] for row in words)
    names = [row.split("|")[1].strip() for row in words]
    assert len(names) == len(set(names))


def test_decisions_are_numbered_dated_and_listed():
    assert [int(path.stem[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    overview = (DOCS / "design.md").read_text()
    for path in DECISIONS:
        text = path.read_text()
        title = re.match(r"# (\d{4})\. (.+)\n\n\d{4}-\d{2}-\d{2} · (?:accepted|proposed|replaced by \d{4})", text)
        assert title, path.name
        assert title[1] == path.stem[:4]
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Options", "Choice", "Measurement"]
        assert f"| [{title[1]}](decisions/{path.name}) | {title[2]}" in overview


def test_the_layers_of_the_design_are_those_that_import_linter_enforces():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers" and "agent.cli" in one["layers"]]
    (drawn,) = re.findall(r"^```layers\n(.*?)^```$", (DOCS / "design.md").read_text(), re.MULTILINE | re.DOTALL)
    assert drawn.splitlines() == [layer.replace("agent.", "").replace(" | ", ", ") for layer in layers]


def test_files_that_contributors_are_sent_to_exist():
    for span in re.findall(r"`((?:agent|bpf|deploy|docs|tests)/[\w./]*)`", CONTRIBUTING.read_text()):
        assert (ROOT / span).exists(), span


@pytest.mark.parametrize("path", [README, CONTRIBUTING, DOCS / "usage.md"], ids=name_of)
def test_targets_of_make_that_are_named_exist(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    assert named
    assert set(named) <= targets


def test_pre_commit_runs_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands


def test_the_workflow_runs_what_continuous_integration_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["sudo .ci/run"]
    assert workflow["permissions"] == {"contents": "read"}


def test_the_forms_and_the_dev_container_can_be_read():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.y*ml"):
        assert yaml.safe_load(path.read_text())
    container = msgspec.json.decode((ROOT / ".devcontainer/devcontainer.json").read_bytes())
    assert "make setup-dev" in container["postCreateCommand"]
