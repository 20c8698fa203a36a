"""What a server counts, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The figures of one server.

    Args:
        counts: for each model, gives how many requests run and how many wait.
    """

    def __init__(self, counts: Mapping[str, Callable[[], tuple[int, int]]]):
        self._registry = CollectorRegistry()
        self._registry.register(_Gauges(counts))
        made = {"registry": self._registry, "labelnames": ("model",)}
        self._requests = Counter(
            "vadapter_requests",
            "Requests by model and HTTP status; 499 hung up.",
            ("model", "status"),
            registry=self._registry,
        )
        self._prompt = Counter("vadapter_prompt_tokens", "Tokens read, visual ones included.", **made)
        self._generated = Counter("vadapter_generated_tokens", "Tokens written.", **made)
        self._first = Histogram(
            "vadapter_first_token_seconds", "From the request's head to its first token.", buckets=_SECONDS, **made
        )
        self._whole = Histogram(
            "vadapter_request_seconds", "From the request's head to its end.", buckets=_SECONDS, **made
        )

    def ended(self, model: str, status: int, seconds: float) -> None:
        """Counts a request. `model` is one that is served, or "" where that is not known."""
        self._requests.labels(model, str(status)).inc()
        self._whole.labels(model).observe(seconds)

    def read(self, model: str, tokens: int) -> None:
        """Counts the tokens of a prompt."""
        self._prompt.labels(model).inc(tokens)

    def wrote(self, model: str, tokens: int) -> None:
        """Counts the tokens of a piece."""
        self._generated.labels(model).inc(tokens)

    def first(self, model: str, seconds: float) -> None:
        """Counts a first token."""
        self._first.labels(model).observe(seconds)

    def text(self) -> bytes:
        """Returns all figures as Prometheus reads them (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, counts: Mapping[str, Callable[[], tuple[int, int]]]):
        self._counts = counts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = {model: count() for model, count in self._counts.items()}
        for i, (name, what) in enumerate((("running", "are decoded"), ("waiting", "wait for a row"))):
            family = GaugeMetricFamily(f"vadapter_requests_{name}", f"Requests that {what}.", labels=["model"])
            for model, both in found.items():
                family.add_metric([model], both[i])
            yield family
