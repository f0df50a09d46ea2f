"""PromQL from the metric catalogue: a name, label or value that is not in it is an error, not an empty panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.export.metrics.catalogue import Kind

if TYPE_CHECKING:
    from agent.export.metrics.catalogue import Metric

OF_TARGETS = 'job=~"$job", instance=~"$instance"'
"""What the dashboard's variables choose."""
TARGET_LABELS = ("job", "instance", "node", "pod")
WINDOW = "$__rate_interval"
MULTIPLE = "|"


class UnknownSeriesError(ValueError):
    """The agent has no such series."""


def series(metric: Metric, part: str = "", **matchers: str) -> str:
    """A selector of the chosen targets' series.

    Args:
        metric: Of the catalogue.
        part: bucket, count or sum, of a histogram or summary.
        matchers: Label and value, or several values with `|` between them.

    Raises:
        UnknownSeriesError: The catalogue has no such label or value.
    """
    _check(metric, tuple(matchers))
    terms = [OF_TARGETS, *(_term(metric, name, value) for name, value in matchers.items())]
    return f"{metric.name}{f'_{part}' if part else ''}{{{', '.join(terms)}}}"


def per_second(metric: Metric, *by: str, part: str = "", **matchers: str) -> str:
    """How fast a counter grows, summed over all but these labels."""
    _check(metric, by)
    return f"sum{_by(by)} (rate({series(metric, part, **matchers)}[{WINDOW}]))"


def quantile(part: float, metric: Metric, *by: str, **matchers: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({part}, {per_second(metric, 'le', *by, part='bucket', **matchers)})"


def total(metric: Metric, *by: str, **matchers: str) -> str:
    """A gauge, summed over all but these labels."""
    _check(metric, by)
    return f"sum{_by(by)} ({series(metric, **matchers)})"


def largest(metric: Metric, *by: str, **matchers: str) -> str:
    """The largest value of a gauge."""
    _check(metric, by)
    return f"max{_by(by)} ({series(metric, **matchers)})"


def share(part: str, whole: str, over: str = "") -> str:
    """One expression as a share of another; `over` are labels that only the first one has."""
    link = f" ignoring ({over}) group_left ()" if over else ""
    return f"{part}\n/{link}\n{whole}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _check(metric: Metric, labels: tuple[str, ...]) -> None:
    le = ("le",) if metric.kind is Kind.HISTOGRAM else ()
    unknown = set(labels) - {*metric.label_names, *TARGET_LABELS, *le}
    if unknown:
        raise UnknownSeriesError(f"{metric.name} has no label {', '.join(sorted(unknown))}")


def _term(metric: Metric, name: str, value: str) -> str:
    known = next(label.values for label in metric.labels if label.name == name)
    values = value.split(MULTIPLE)
    if known and not set(values) <= set(known):
        raise UnknownSeriesError(f"{metric.name}{{{name}}} is never {value}")
    return f'{name}=~"{value}"' if len(values) > 1 else f'{name}="{value}"'
