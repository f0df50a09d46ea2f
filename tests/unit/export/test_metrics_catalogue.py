"""agent.export.metrics.catalogue: names that Prometheus and its users expect, and values that are the code's own."""

import re
from pathlib import Path

import pytest

from agent.explain.causes import CAUSES
from agent.export.metrics import catalogue
from agent.export.metrics.__main__ import document
from agent.export.metrics.catalogue import BITMAPS, LEGS, METRICS, RCODES, Kind
from agent.export.metrics.losses import LABELS
from agent.session.outcome import MUST_HAVE_HAPPENED, Status
from agent.wire.render import rcode_to_text

ROOT = Path(__file__).parents[3]
TARGET_LABELS = {"namespace", "pod", "container", "node", "instance", "job", "endpoint", "service"}
CLASHING_LABELS = {"type", "region", "zone", "cluster", "az", "dc", "owner", "stage", "environment", "env"}
MAX_RCODE = 4095


def test_the_reference_is_current():
    assert (ROOT / "docs/metrics.md").read_text() == document(), "run: python -m agent.export.metrics > docs/metrics.md"


def test_every_metric_is_in_the_reference_once():
    names = re.findall(r"^\| `(dnstrail_\w+)` \|", document(), re.MULTILINE)
    assert sorted(names) == sorted(metric.name for metric in METRICS)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_rules_of_prometheus(metric):
    assert re.fullmatch(r"dnstrail(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created"))
    assert not re.search(r"_(ms|milliseconds|kb|percent)(_|$)", metric.name)
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert metric.help
    assert not metric.help.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_no_label_clashes_with_those_of_a_target(metric):
    assert not {*metric.label_names} & (TARGET_LABELS | CLASHING_LABELS)
    assert len({*metric.label_names}) == len(metric.labels)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_what_is_there_from_the_start_is_declared(metric):
    for values in metric.known:
        assert len(values) == len(metric.labels)
        for value, label in zip(values, metric.labels, strict=True):
            assert value in label.values
    assert metric.when or metric.known or metric is catalogue.BUILD_INFO


def test_every_cause_but_our_own_losses_is_a_loss_of_some_leg():
    assert CAUSES.keys() - LEGS.keys() == {"CaptureLoss"}
    assert {leg for legs in LEGS.values() for leg in legs} == set(LABELS.values())


def test_the_rcodes_are_all_those_that_have_a_name():
    named = [text for code in range(MAX_RCODE + 1) if not (text := rcode_to_text(code)).isdecimal()]
    assert list(RCODES) == named


def test_no_bitmap_lacks_a_message_that_must_have_been_there():
    assert set(BITMAPS) == set(catalogue.STATUSES) == {status.value for status in Status}
    possible = {
        mask for mask in range(16) if all(mask & proven or not mask & proof for proof, proven in MUST_HAVE_HAPPENED)
    }
    assert set(BITMAPS["SampleLoss"]) == set(BITMAPS["Failed"]) == possible
    assert set(BITMAPS["Succeeded"]) < possible


def test_latencies_can_be_laid_over_those_of_coredns():
    # plugin.TimeBuckets of CoreDNS: prometheus.ExponentialBuckets(0.00025, 2, 16)
    assert tuple(0.00025 * 2**power for power in range(16)) == catalogue.LATENCY_BUCKETS
