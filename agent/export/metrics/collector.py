"""From plain numbers to Prometheus: one collector, which makes every sample anew when somebody scrapes.

It runs in the thread of the HTTP server, beside the event loop: it copies what is counted and takes no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from agent.export.metrics import catalogue
from agent.export.metrics.catalogue import CLIENT_WORKLOAD, METRICS, SECOND_NS, Kind
from agent.export.metrics.readings import everything

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

    from agent.export.metrics.catalogue import Metric
    from agent.export.metrics.clients import Clients
    from agent.export.metrics.histogram import Distribution
    from agent.export.metrics.sources import Sources
    from agent.export.metrics.tally import Values


class NodeCollector(Collector):
    """Everything in the catalogue, as families of samples."""

    def __init__(self, sources: Sources) -> None:
        """Look at these from now on."""
        self._sources = sources

    def collect(self) -> Iterator[Family]:
        """The families now, in the order of the catalogue; those without a series are left out."""
        readings = everything(self._sources)
        distributions = self._sources.tally.times()
        distributions[catalogue.TURN_SECONDS] = {(): self._sources.pulse.turns.now()}
        for metric in METRICS:
            if metric.kind is Kind.HISTOGRAM:
                yield _histogram(metric, distributions[metric])
            elif metric.kind is Kind.SUMMARY:
                yield from _durations(metric, self._sources.clients)
            elif values := dict.fromkeys(metric.known, 0) | readings.get(metric, {}):
                yield _plain(metric, values)


def _plain(metric: Metric, values: Values) -> Family:
    """A counter or a gauge."""
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(metric.name, metric.help, labels=_names(metric, len(next(iter(values)))))
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _names(metric: Metric, parts: int) -> tuple[str, ...]:
    """Label names. With --metrics-by namespace there is none for the workload."""
    names = metric.label_names
    return names if len(names) == parts else tuple(name for name in names if name != CLIENT_WORKLOAD.name)


def _histogram(metric: Metric, distributions: Mapping[tuple[str, ...], Distribution]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names)
    for labels, distribution in distributions.items():
        family.add_metric(labels, distribution.buckets, distribution.sum_seconds)
    return family


def _durations(metric: Metric, clients: Clients | None) -> Iterator[Family]:
    now = [] if clients is None else clients.now()
    if not now:
        return
    family = SummaryMetricFamily(metric.name, metric.help, labels=_names(metric, len(now[0][0])))
    for who, numbers in now:
        family.add_metric(who, numbers.answered, numbers.waited_ns / SECOND_NS)
    yield family
