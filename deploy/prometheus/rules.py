"""Writes the alerts as Prometheus takes them: `python -m deploy.prometheus.rules`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from deploy.prometheus.alerts import GROUPS, WINDOW_SECONDS, Alert

HERE = Path(__file__).parent
RULES = HERE / "dnstrail.rules.yaml"
PROMETHEUS_RULE = HERE / "prometheusrule.yaml"
HEADER = "# Generated from deploy/prometheus/alerts.py by `python -m deploy.prometheus.rules`: change it there.\n"
WIDTH = 120
LABELS = {"app.kubernetes.io/name": "dnstrail", "app.kubernetes.io/component": "alerts"}


def duration(seconds: float) -> str:
    """As Prometheus writes it: 5m, 90s, 0s; never less than a second unless it is none."""
    whole = max(1, round(seconds)) if seconds else 0
    return f"{whole // 60}m" if whole and whole % 60 == 0 else f"{whole}s"


def groups(factor: float = 1.0) -> dict[str, Any]:
    """All alerts.

    Args:
        factor: stretches how long they look back and wait; nothing else changes.
    """
    return {
        "groups": [
            {"name": name, "rules": [_rule(alert, factor) for alert in alerts]} for name, alerts in GROUPS.items()
        ]
    }


def _rule(alert: Alert, factor: float) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression.replace("{window}", duration(WINDOW_SECONDS * factor)),
        "for": duration(alert.for_seconds * factor),
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": alert.runbook,
        },
    }


def prometheus_rule() -> dict[str, Any]:
    """The same as the resource of the Prometheus operator."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dnstrail", "namespace": "dnstrail", "labels": LABELS},
        "spec": groups(),
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # the package has no types
    """Expressions of several lines stay lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(content: dict[str, Any]) -> str:
    """The text of a file."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=WIDTH, allow_unicode=True)
    return HEADER + text


def files() -> dict[Path, str]:
    """What has to be in which file."""
    return {RULES: to_yaml(groups()), PROMETHEUS_RULE: to_yaml(prometheus_rule())}


def main() -> None:
    """Write the files, or one for a test run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factor", type=float, default=1.0, help="stretches windows and waits: 0.02 for a test run")
    parser.add_argument("--output", type=Path, help="one rules file, in place of the two of the project")
    options = parser.parse_args()
    written = {options.output: to_yaml(groups(options.factor))} if options.output else files()
    for path, text in written.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
