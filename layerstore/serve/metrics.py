"""What Prometheus may ask the service: calls by method and code, how long they took, and what is in the store.

    layerstore_snapshotter_calls_total{method,code}    layerstore_snapshotter_call_seconds{method}
    layerstore_snapshotter_calls_in_flight             layerstore_snapshots{kind}
    layerstore_snapshotter_layers_offered_total        layers that a client need not fetch or unpack, as they are here

Source: Prometheus, "Metric and label naming"; served by its own client library.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from layerstore.errors import InvalidArgument
from layerstore.snapshots import SnapshotKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.snapshots import Snapshots

__all__ = ["CallMetrics", "serve_metrics"]

# From a Stat (a fraction of a millisecond) to the commit of a layer of gigabytes.
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class CallMetrics:
    """Counts calls. Thread safety: all methods, from any thread."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "layerstore_snapshotter_calls",
            "Calls that were answered",
            ["method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "layerstore_snapshotter_call_seconds",
            "How long they took",
            ["method"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "layerstore_snapshotter_calls_in_flight",
            "Calls that are being answered",
            registry=self.registry,
        )
        self._offered = Counter(
            "layerstore_snapshotter_layers_offered",
            "Layers that a client need not fetch or unpack, as they are here",
            registry=self.registry,
        )
        self.registry.register(_Snapshots(snapshots))

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a call that is being answered."""
        with self._in_flight.track_inprogress():
            yield

    def count_offered(self) -> None:
        """Count a layer that a client need not unpack."""
        self._offered.inc()

    def observe(self, method: str, code: str, duration_s: float) -> None:
        """Count a call that was answered."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(duration_s)


class _Snapshots(Collector):
    """Counted when somebody asks."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[GaugeMetricFamily]:
        counts = dict.fromkeys(SnapshotKind, 0)
        for info in self._snapshots.walk():
            counts[info.kind] += 1
        family = GaugeMetricFamily("layerstore_snapshots", "Snapshots there are", labels=["kind"])
        for kind, count in counts.items():
            family.add_metric([kind], count)
        yield family


def serve_metrics(metrics: CallMetrics, address: str) -> Callable[[], None]:
    """Answer `GET /metrics` at HOST:PORT, in a thread; returns how to stop it.

    Raises: InvalidArgument: no such address. OSError: it is in use.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidArgument(f"{address!r} is no address for metrics; it is HOST:PORT")
    server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
