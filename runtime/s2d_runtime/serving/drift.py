"""What dispatchers' monitors count, as Prometheus metrics: for the small HTTP server, KServe and MLServer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from s2d_runtime.dispatcher import Dispatcher, Monitor, MonitorReport, Policy
from s2d_runtime.serving.options import AUDIT

MODEL, BUDGET, STAGE = "model", "budget", "stage"

Families = dict[str, CounterMetricFamily | GaugeMetricFamily]


class DriftCollector:
    """A collector for a prometheus_client registry: the state of monitors, read when the metrics are.

    There is one series for every policy that was used, by model and budget. The manifest's numbers stand beside the counts, so
    that alerts need nothing but the metrics.
    """

    def __init__(self) -> None:
        self._watched: dict[str, tuple[Monitor, dict[float, Policy]]] = {}

    def watch(self, model: str, dispatcher: Dispatcher, *, audit: float = AUDIT) -> None:
        """Have a monitor count the dispatcher's answers from now on. audit: its `sample`. Raises DispatcherError."""
        policies = {policy.budget: policy for policy in dispatcher.manifest.policies}
        self._watched[model] = dispatcher.monitor(sample=audit), policies

    def forget(self, model: str) -> None:
        """Leave a model out from now on."""
        self._watched.pop(model, None)

    def describe(self) -> list[Metric]:
        """Return the metrics without series, for the registry's check of names."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        families = _families()
        for model, (monitor, policies) in list(self._watched.items()):
            for report in monitor.report():
                _add(families, model, report, policies[report.budget])
        yield from families.values()


@cache
def process_wide() -> DriftCollector:
    """Return the collector in prometheus_client's own registry, which KServe and MLServer export."""
    collector = DriftCollector()
    REGISTRY.register(collector)
    return collector


def _add(families: Families, model: str, report: MonitorReport, policy: Policy) -> None:
    """Add the series of a report."""
    labels = [model, f"{report.budget:g}"]
    for number, (share, expected) in enumerate(zip(report.exit_share, policy.exit_share, strict=True), start=1):
        families["images"].add_metric([*labels, str(number)], round(share * report.images))
        families["expected_share"].add_metric([*labels, str(number)], expected)
    families["audited"].add_metric(labels, report.audited)
    families["disagreed"].add_metric(labels, round(report.audited * (report.disagreement or 0)))
    families["warnings"].add_metric(labels, len(report.warnings))
    if policy.disagreement is not None:
        families["expected_disagreement"].add_metric(labels, policy.disagreement)


def _families() -> Families:
    of_policy, of_stage = [MODEL, BUDGET], [MODEL, BUDGET, STAGE]
    return {
        "images": CounterMetricFamily("s2d_drift_images", "Images by the stage that answered.", labels=of_stage),
        "expected_share": GaugeMetricFamily(
            "s2d_drift_expected_exit_share", "Share of images per stage at calibration.", labels=of_stage
        ),
        "audited": CounterMetricFamily(
            "s2d_drift_audited_images", "Images that the last stage answered too.", labels=of_policy
        ),
        "disagreed": CounterMetricFamily(
            "s2d_drift_disagreed_images",
            "Audited images to which the last stage gave another answer.",
            labels=of_policy,
        ),
        "expected_disagreement": GaugeMetricFamily(
            "s2d_drift_expected_disagreement", "Disagreement with the last stage at calibration.", labels=of_policy
        ),
        "warnings": GaugeMetricFamily(
            "s2d_drift_warnings", "Kinds of drift that the monitor has found; 0 is as calibrated.", labels=of_policy
        ),
    }
