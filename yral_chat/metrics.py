"""What the service counts, for Prometheus. Labels have few values: no ids, no addresses, nothing that callers choose.

The processes of a service count together (metric_files.py), and any of them can answer /metrics for all.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from yral_chat import metric_files

logger = logging.getLogger(__name__)
MOST_MODELS = 20
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
UNMATCHED = "unmatched"  # the name in urls.py of the view for every address that there isn't
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SECONDS_OF_A_TURN = (0.25, 0.5, 1, 1.5, 2, 3, 5, 8, 12, 20, 30, 60, 120)

disable_created_metrics()  # type: ignore[no-untyped-call]
REQUESTS = Histogram(
    "yral_chat_http_request_duration_seconds",
    "Time to a request's answer, or to the headers of one that is streamed.",
    ["method", "route", "status"],
    buckets=SECONDS,
)
TURNS = Counter("yral_chat_turns", "Turns that ran here, by how they ended.", ["outcome", "model"])
FIRST_TOKEN = Histogram(
    "yral_chat_turn_first_token_seconds",
    "From the begin of a turn to the model's first token.",
    ["model"],
    buckets=SECONDS_OF_A_TURN,
)
REPLY = Histogram(
    "yral_chat_turn_reply_seconds",
    "From the begin of a turn to the end of its answer.",
    ["model"],
    buckets=SECONDS_OF_A_TURN,
)
MODEL_CALLS = Counter("yral_chat_model_calls", "Calls of a model, retries included.", ["kind", "model", "outcome"])
MODEL_ATTEMPTS = Counter("yral_chat_model_attempts", "Requests to a model's API.", ["model"])
TOKENS = Counter("yral_chat_model_tokens", "Tokens by the model's own count.", ["direction", "model"])
BREAKER = Gauge(
    "yral_chat_breaker_open_processes",
    "Processes whose circuit breaker of the model isn't closed.",
    ["model"],
    multiprocess_mode="livesum",
)
UPLOADS = Counter("yral_chat_uploads", "Uploads of pictures and sounds.", ["kind", "outcome"])
LIMITED = Counter("yral_chat_rate_limited", "Requests that a rate limit refused.", ["scope", "window"])
RUNNING = Gauge("yral_chat_turns_running", "Turns under way.", multiprocess_mode="livesum")
WAITING = Gauge("yral_chat_turns_waiting", "Requests that wait for their turn.", multiprocess_mode="livesum")
STREAMS = Gauge("yral_chat_streams_open", "Clients that follow a stream.", multiprocess_mode="livesum")
DATABASE_ERRORS = Counter("yral_chat_database_errors", "Statements that failed.", ["kind"])
DATABASE_CONNECTIONS = Counter("yral_chat_database_connections_opened", "Connections made to the database.")
POOL = Gauge(
    "yral_chat_database_pool_connections",
    "PostgreSQL connections in the processes' pools.",
    ["state"],
    multiprocess_mode="livesum",
)
POOL_WAITING = Gauge(
    "yral_chat_database_pool_waiting", "Threads that wait for a connection.", multiprocess_mode="livesum"
)

_requests: dict[tuple[str, str, int], Any] = {}
_models: set[str] = set()


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """`route` is the template. Looking a label up costs as much as the counting: so each is kept."""
    key = (method, route, status)
    child = _requests.get(key)
    if child is None:
        method = method if method in METHODS else "OTHER"
        child = REQUESTS.labels(method, route, str(status))
        if method != "OTHER":
            _requests[key] = child
    child.observe(seconds)


def model_label(name: str) -> str:
    """The model's name: those in the settings, and the first MOST_MODELS others that personas have."""
    if name in (settings.GEMINI_MODEL, settings.GEMINI_FALLBACK_MODEL) or name in _models:
        return name or "none"
    if len(_models) >= MOST_MODELS or len(name) > 100:
        return "other"
    _models.add(name)
    return name or "none"


def count_tokens(model: str, **by_direction: int) -> None:
    for direction, count in by_direction.items():
        if count:
            TOKENS.labels(direction, model_label(model)).inc(count)


# What is asked for now and then


class Publisher:
    """A thread of each process that serves: it sets the gauges which nothing else would, and looks after the files."""

    every = 5.0

    def __init__(self, publish: Callable[[], None]) -> None:
        self.publish = publish
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        metric_files.share()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(self.every):
            try:
                self.publish()
                metric_files.share()
            except Exception:
                logger.exception("Metrics couldn't be looked after; trying again")


def publish_pool(stats: dict[str, int]) -> None:
    """The numbers of psycopg's pool."""
    idle = stats.get("pool_available", 0)
    POOL.labels("idle").set(idle)
    POOL.labels("in_use").set(max(0, stats.get("pool_size", 0) - idle))
    POOL_WAITING.set(stats.get("requests_waiting", 0))


@dataclass(frozen=True, slots=True)
class Seen:
    """A gauge that is looked up when somebody asks: its values by their labels'."""

    name: str
    documentation: str
    labels: tuple[str, ...]
    values: Mapping[Any, float]


def exposition(now: Callable[[], Iterable[Seen]]) -> bytes:
    """The text of /metrics, for all processes; `now` adds what is only known by looking."""
    registry = CollectorRegistry()
    counted = metric_files.collected(_of_this_process) if settings.METRICS_ENABLED else ()
    registry.register(_Families([*_looked_up(now()), *counted]))
    return generate_latest(registry)


def _looked_up(seen: Iterable[Seen]) -> Iterator[Metric]:
    for gauge in seen:
        family = GaugeMetricFamily(gauge.name, gauge.documentation, labels=gauge.labels)
        for labels, value in gauge.values.items():
            family.add_metric(labels, value)
        yield family


def _of_this_process() -> list[Metric]:
    return [family for family in REGISTRY.collect() if family.name.startswith("yral_chat_")]


@dataclass(eq=False)
class _Families:
    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families
