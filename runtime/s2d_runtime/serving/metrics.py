"""The metrics of the small HTTP server, in Prometheus's format."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from s2d_runtime.dispatcher import Answer, Dispatcher
from s2d_runtime.serving.drift import DriftCollector

# Buckets from the time of a tiny model's stage 1 to a time-out.
SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters and histograms of one server. Many threads may use them at once.

    The share of images per exit is `s2d_images_total` of a stage divided by that of all stages. `s2d_expected_exit_share` has
    the share at calibration, for the policy in use, so that a drift of the images is visible. `drift` has what a monitor finds.
    """

    def __init__(self, dispatcher: Dispatcher, *, name: str, audit: float) -> None:
        """Create the metrics, and have a monitor count the dispatcher's answers. audit: its `sample`."""
        policy = dispatcher.policy  # for requests without a budget of their own
        self._registry = own = CollectorRegistry()
        drift = DriftCollector()
        drift.watch(name, dispatcher, audit=audit)
        own.register(drift)
        self._requests = Counter("s2d_requests", "Requests by endpoint and status.", ["endpoint", "code"], registry=own)
        self._images = Counter("s2d_images", "Images by the stage that answered.", ["stage"], registry=own)
        expected = Gauge(
            "s2d_expected_exit_share", "Share of images per stage at calibration.", ["stage"], registry=own
        )
        self._request = Histogram(
            "s2d_request_seconds", "Inference requests, from the head to the answer.", buckets=SECONDS, registry=own
        )
        self._run = Histogram(
            "s2d_run_seconds",
            "Calls of the dispatcher, by the last stage run.",
            ["stage"],
            buckets=SECONDS,
            registry=own,
        )
        self.occupied = Gauge("s2d_requests_occupied", "Requests being read, waiting or running.", registry=own)
        for number, share in enumerate(policy.exit_share, start=1):
            self._images.labels(number)  # so that a stage that never answers shows as 0
            self._run.labels(number)
            expected.labels(number).set(share)
        self._stages = range(1, len(policy.exit_share) + 1)

    def count_request(self, endpoint: str, code: int) -> None:
        """Count a request that was answered with this status."""
        self._requests.labels(endpoint, code).inc()

    def count_answer(self, answer: Answer, *, run_s: float) -> None:
        """Count the images of an answer by stage. An empty batch is not counted."""
        stages = answer.stage.tolist()
        if stages:
            self._run.labels(max(stages)).observe(run_s)
        for number in self._stages:
            if count := stages.count(number):
                self._images.labels(number).inc(count)

    def observe_request(self, seconds: float) -> None:
        """Record the duration of an inference request, successful or not."""
        self._request.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
