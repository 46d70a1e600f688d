"""What Prometheus may ask: counters, gauges and histograms of one app, and the middleware that counts requests."""

import json
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"  # stands for everything that a client makes up: a label has few values, whatever is asked
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16)  # clips
FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # 1 is as fast as speech

disable_created_metrics()  # they double every series and say when it began


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "stt_requests",
            "requests and WebSocket handshakes answered",
            ("method", "path", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "stt_request_seconds", "from a request's header to the end of its answer", ("path",), registry=registry,
            buckets=(*SECONDS, 120.0, 300.0, 600.0, 1800.0),
        )  # fmt: skip
        self.errors = Counter("stt_errors", "errors answered, by the code of their body", ("code",), registry=registry)
        self.in_flight = Gauge(
            "stt_in_flight", "uploads and live streams accepted and not yet ended", registry=registry
        )
        self.queue_seconds = Gauge("stt_queue_seconds", "audio that waits for the network", registry=registry)
        self.worker_restarts = Gauge("stt_worker_restarts", "batch workers that died", registry=registry)
        self.live_connections = Gauge("stt_live_connections", "open WebSockets", registry=registry)
        self.audio_seconds = Counter("stt_audio_seconds", "audio transcribed", registry=registry)
        self.real_time_factor = Histogram(
            "stt_real_time_factor", "time to an answer over its seconds of audio", registry=registry, buckets=FACTORS
        )
        self.batch_size = Histogram("stt_batch_size", "clips in a run of the network", registry=registry, buckets=SIZES)
        self.stage_seconds = Histogram(
            "stt_stage_seconds", "time of a batch in a stage", ("stage",), registry=registry, buckets=SECONDS
        )

    def batch(self, size: int, **stages: float) -> None:
        """A batch of so many clips has run, and was so many seconds in each stage."""
        self.batch_size.observe(size)
        for stage, seconds in stages.items():
            self.stage_seconds.labels(stage).observe(seconds)

    def error(self, code: str) -> None:
        """An error was answered, by this code, or ended a stream."""
        self.errors.labels(code).inc()

    def answer(self, duration: float, seconds: float) -> None:
        """So many seconds of audio were transcribed in so many seconds."""
        self.audio_seconds.inc(duration)
        self.real_time_factor.observe(seconds / duration)


class RequestMetrics:
    """Counts requests by route and status, errors by code, and open WebSockets. Plain ASGI."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        started, status, live = time.perf_counter(), 0, False
        path = _template(scope["app"].routes, scope)  # a mounted app changes the scope

        async def watching_send(message: Message) -> None:
            nonlocal status, live
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                case "websocket.accept":
                    status, live = 101, True
                    self.metrics.live_connections.inc()
                case "http.response.body" | "websocket.http.response.body" if status >= 400 and message.get("body"):
                    self._count_error(message["body"])
            await send(message)

        try:
            await self.app(scope, receive, watching_send)
        finally:
            method = scope.get("method", "GET")
            status = status or (499 if scope["type"] == "http" else 403)  # gone, or closed before it was accepted
            self.metrics.requests.labels(method if method in METHODS else OTHER, path, str(status)).inc()
            if live:
                self.metrics.live_connections.dec()
            else:
                self.metrics.request_seconds.labels(path).observe(time.perf_counter() - started)

    def _count_error(self, body: bytes) -> None:
        try:
            self.metrics.error(json.loads(body)["code"])
        except (ValueError, KeyError, TypeError):
            self.metrics.error(OTHER)


def _template(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """The path of the route that answers, such as ``/v1/models/{name:path}``, also if the request never got to it."""
    for route in routes:
        if route.matches(scope)[0] != Match.NONE:
            included = getattr(route, "original_router", None)  # recent FastAPI keeps included routers whole
            path = _template(included.routes, scope) if included else str(getattr(route, "path", OTHER))
            return OTHER if path == "/{path:path}" else path  # that takes handshakes for what there is not
    return OTHER
