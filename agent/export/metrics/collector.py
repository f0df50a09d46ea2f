"""From plain numbers to Prometheus: one collector, which makes every sample anew when somebody scrapes.

It runs in the thread of the HTTP server, beside the event loop: it copies the counters, and takes no lock.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, generate_latest, openmetrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
