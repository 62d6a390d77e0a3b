"""A run's metrics for Prometheus: Ray serves them at the metrics port of the driver's node, with `ray_` before each name.

A name that ends in _total counts this driver's session, so that a sum over drivers is right. All others are gauges of the run's
state, over all its sessions. Metrics of the machines come from Ray itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

Snapshot = Mapping[str, Any]
Values = Mapping[str, float]  # value of the metric's tag -> number; "" for a metric without a tag


@dataclass(frozen=True)
class Metric:
    """name: without Ray's prefix. read: `Progress.snapshot()` -> values, None if it has none. tag: label besides `run`."""

    name: str
    help: str
    read: Callable[[Snapshot], Values | None]
    tag: str = ""

    @property
    def counts(self) -> bool:
        """True for a counter, false for a gauge."""
        return self.name.endswith("_total")


def _at(*path: str) -> Callable[[Snapshot], Values | None]:
    def read(snapshot: Snapshot) -> Values | None:
        value: Any = snapshot
        for key in path:
            value = (value or {}).get(key)
        return None if value is None or not math.isfinite(value) else {"": value}

    return read


def _each(*path: str, **keys: str) -> Callable[[Snapshot], Values | None]:
    """Reader of several values. keys: value of the tag -> key below the path."""

    def read(snapshot: Snapshot) -> Values | None:
        values = {tag: _at(*path, key)(snapshot) for tag, key in keys.items()}
        return {tag: value[""] for tag, value in values.items() if value} or None

    return read


def _workers(snapshot: Snapshot) -> Values:
    busy = sum(bool(worker["uid"]) for worker in snapshot["workers"])
    return {"busy": busy, "idle": len(snapshot["workers"]) - busy}


METRICS = [
    Metric("lvsm_data_run_objects_requested", "Objects that the run is to deliver", _at("n")),
    Metric("lvsm_data_run_objects_delivered", "Objects in the run's shards", _at("delivered")),
    Metric("lvsm_data_run_objects_failed", "Objects that failed in this run", itemgetter("reasons"), "reason"),
    Metric("lvsm_data_run_left_seconds", "Until all objects are there, at the pace of the last minutes", _at("eta_s")),
    Metric("lvsm_data_delivered_objects_total", "Objects delivered", _at("delivered")),
    Metric("lvsm_data_failed_objects_total", "Objects that failed", itemgetter("reasons"), "reason"),
    Metric("lvsm_data_views_total", "Views of the objects delivered", _at("views")),
    Metric("lvsm_data_image_bytes_total", "Images of the objects delivered", _at("bytes_written")),
    Metric("lvsm_data_items_under_way", "Items that workers have", _at("under_way")),
    Metric("lvsm_data_workers", "Workers that have an item, and that wait for one", _workers, "state"),
    Metric("lvsm_data_worker_idle_seconds_total", "That workers waited for an item, all together", _at("idle_s")),
    Metric(
        "lvsm_data_downloads",
        "Files that are being fetched, and that wait for a worker",
        _each("downloads", under_way="under_way", ready="ready"),
        "state",
    ),
    Metric("lvsm_data_raw_bytes", "Disk that fetched files take, or have reserved", _at("downloads", "bytes")),
    Metric("lvsm_data_uploads_waiting", "Shards that wait for the object store", _at("uploads", "waiting")),
    Metric("lvsm_data_uploads_waiting_bytes", "Files of those shards", _at("uploads", "bytes")),
    Metric("lvsm_data_trainer_step", "Steps of the cycle's trainer", _at("cycle", "step")),
    Metric("lvsm_data_trainer_loss", "Loss of the last step", _at("cycle", "loss")),
    Metric(
        "lvsm_data_trainer_unseen_psnr_decibels",
        "PSNR on objects that do not train: of the model, and of the nearest view",
        _each("cycle", "unseen", model="psnr", nearest="nearest"),
        "of",
    ),
    Metric("lvsm_data_trainer_samples_total", "Samples trained on", _at("cycle", "samples")),
    Metric(
        "lvsm_data_trainer_seconds_total", "That the trainer ran, with its waiting", _at("cycle", "trainer_seconds")
    ),
    Metric("lvsm_data_trainer_waited_seconds_total", "That it waited for data", _at("cycle", "trainer_waited_s")),
    Metric("lvsm_data_rendering_blocked_seconds_total", "That rendering waited for disk", _at("cycle", "blocked_s")),
    Metric("lvsm_data_disk_used_bytes", "Disk that the cycle takes", _at("cycle", "disk_bytes")),
    Metric("lvsm_data_disk_budget_bytes", "Disk that the cycle may take", _at("cycle", "budget")),
    Metric("lvsm_data_deleted_shards_total", "Shards trained on and deleted", _at("cycle", "shards_deleted")),
]


class Metrics:
    """Hands snapshots of one run to Ray. Not thread-safe."""

    def __init__(self, run: str, begun: Snapshot) -> None:
        """run: value of the label `run`. begun: snapshot from before this session, where its counters start."""
        self.run = run
        self._seen = {metric.name: values for metric in METRICS if (values := metric.read(begun)) is not None}
        self._made: dict[str, Any] = {}

    def publish(self, snapshot: Snapshot) -> None:
        """Set the metrics that `snapshot` has values for (Ray drops a gauge that is not set again), if Ray is connected."""
        if "ray" not in sys.modules:
            return
        import ray  # waits where another thread is importing it

        if not ray.is_initialized():
            return
        for metric in METRICS:
            if (values := metric.read(snapshot)) is not None:
                self._record(metric, values)

    def _record(self, metric: Metric, values: Values) -> None:
        made = self._made.get(metric.name) or self._make(metric)
        before = self._seen.get(metric.name, values)  # not in `begun`: count from the first value
        for tag, value in values.items():
            tags = {metric.tag: tag} if metric.tag else None
            if not metric.counts:
                made.set(value, tags)
            elif (more := value - before.get(tag, 0.0)) > 0:
                made.inc(more, tags)
        self._seen[metric.name] = dict(values)

    def _make(self, metric: Metric) -> Any:
        from ray.util.metrics import Counter, Gauge

        keys = ("run", metric.tag) if metric.tag else ("run",)
        made = (Counter if metric.counts else Gauge)(metric.name, metric.help, keys).set_default_tags({"run": self.run})
        return self._made.setdefault(metric.name, made)
