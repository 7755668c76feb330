"""Numbers for Prometheus, where its library is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What one process has answered. Each has its own numbers, in a registry of their own."""

    def __init__(self) -> None:
        try:
            import prometheus_client as client
        except ModuleNotFoundError:
            self._registry: Any = None
            return
        self._registry = client.CollectorRegistry()
        add = {"registry": self._registry}
        self._requests = client.Counter(
            "mm_hub_requests_total", "Answered requests", ["route", "method", "status"], **add
        )
        self._seconds = client.Histogram(
            "mm_hub_request_seconds", "From the request to the end of its answer", ["route"], **add
        )
        self._bytes = client.Counter(
            "mm_hub_sent_bytes_total", "Bytes of all bodies that were sent", ["route"], **add
        )
        self._in_flight = client.Gauge(
            "mm_hub_requests_in_flight", "Requests that are being answered", **add
        )

    @property
    def is_on(self) -> bool:
        """Whether anything is counted."""
        return self._registry is not None

    def note(self, route: str, method: str, status: int, sent: int, seconds: float) -> None:
        """A request was answered; status 0 where it was not."""
        if self._registry is None:
            return
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._bytes.labels(route).inc(sent)

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """While a request is answered."""
        if self._registry is None:
            yield
            return
        with self._in_flight.track_inprogress():
            yield

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
