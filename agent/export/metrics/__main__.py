"""The catalogue as a document: `python -m agent.export.metrics > docs/metrics.md`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.export.metrics.catalogue import LATENCY_BUCKETS, METRICS, SECTIONS, TURN_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.export.metrics.catalogue import Label, Metric

HEADER = f"""\
# Metrics

Generated from `agent/export/metrics/catalogue.py` by `python -m agent.export.metrics`: change it there.

`dnstrail run` serves them on `:9353/metrics` (`--metrics-address`). Where nothing else is said, all series are there
from the start, at 0. No label carries a name that was asked for, an address or a pod's name; namespaces and workloads
of clients only with `--metrics-by`. Beside these there are the `process_*` metrics of every Prometheus client.

Histograms of lookups have the buckets of CoreDNS, {LATENCY_BUCKETS[0]} s doubled up to {LATENCY_BUCKETS[-1]} s; that
of the loop has {", ".join(map(str, TURN_BUCKETS))} s.
"""


def document() -> str:
    """The text of docs/metrics.md."""
    sections = (part for name, metrics in SECTIONS.items() for part in _section(name, metrics))
    return HEADER + "".join(sections) + "".join(_labels())


def _section(name: str, metrics: tuple[Metric, ...]) -> Iterator[str]:
    conditions = {metric.when for metric in metrics}
    shared = conditions.pop() if len(conditions) == 1 else ""
    yield f"\n## {name}\n\n" + (f"Only when {shared}.\n\n" if shared else "")
    yield "| metric | kind | labels | meaning |\n|---|---|---|---|\n"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.label_names)
        when = f" Only when {metric.when}." if metric.when and not shared else ""
        yield _row(f"`{metric.name}`", metric.kind, labels, f"{metric.help}.{when}")


def _labels() -> Iterator[str]:
    yield "\n## Labels\n\n| label | of | values | meaning |\n|---|---|---|---|\n"
    for label in dict.fromkeys(label for metric in METRICS for label in metric.labels):
        users = [metric.name.removeprefix("dnstrail_") for metric in METRICS if label in metric.labels]
        yield _row(f"`{label.name}`", ", ".join(users), _values(label), label.meaning)


def _values(label: Label) -> str:
    return ", ".join(f"`{value}`" for value in label.values) or "as they occur"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    print(document(), end="")
