"""A run's metrics in Prometheus, scraped from a real Ray; and a dashboard that asks for no other metrics."""

from __future__ import annotations

import itertools
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

from pipeline.cluster import executors
from pipeline.cluster.prometheus import METRICS, Metrics
from pipeline.core.records import Item, Outcome
from pipeline.cycle.supervisor import Supervisor
from pipeline.download.ahead import Downloads
from pipeline.run.progress import Progress
from pipeline.storage.ledger import Ledger
from pipeline.storage.train_run import LOG, TrainingLog
from pipeline.storage.uploads import Uploads
from tests import balls, foreign
from tests.conftest import lvsm_data

DASHBOARD = json.loads((Path(__file__).parents[3] / "deploy" / "grafana-dashboard.json").read_text())
VARIABLES = {"$run": "out", "$session": "session.*", "$window": "5m"}
GPU = {"ray_node_gpus_utilization", "ray_node_gram_used"}  # which Ray shows where there is one


@dataclass
class Sample:
    name: str
    kind: str
    labels: dict[str, str]
    value: float


@dataclass
class Head:
    """A Ray of one node."""

    cluster: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def scrape(self, prefix: str = "ray_") -> list[Sample]:
        node = self.cluster.head_node
        url = f"http://{node.node_ip_address}:{node.metrics_export_port}/metrics"
        families = list(text_string_to_metric_families(urllib.request.urlopen(url, timeout=5).read().decode()))
        samples = [
            Sample(one.name, family.type, one.labels, one.value) for family in families for one in family.samples
        ]
        return [sample for sample in samples if sample.name.startswith(prefix)]

    def values(self, run: str) -> dict[str, dict[str, list[float]]]:
        """Ours of one run: name -> value of the tag -> values of all drivers."""
        tags = {f"ray_{metric.name}": metric.tag for metric in METRICS}
        found: dict[str, dict[str, list[float]]] = {}
        for sample in self.scrape("ray_lvsm_data_"):
            if sample.labels["run"] == run:
                tag = sample.labels.get(tags[sample.name], "")
                found.setdefault(sample.name.removeprefix("ray_"), {}).setdefault(tag, []).append(sample.value)
        return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """In a folder of its own: what others on this machine call `auto` stays what it was."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        options = {"num_cpus": 2, "include_dashboard": False, "temp_dir": folder}
        cluster = Cluster(initialize_head=True, head_node_args=options)
        try:
            yield Head(cluster)
        finally:
            cluster.shutdown()


def full(folder: Path, told: list[dict[str, Any]]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Progress fed by real downloads, uploads and a cycle, about made-up facts. told: the cycle's facts."""
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": 0.25 / step, "seconds": 2.0, "waited_s": 0.5, "samples": 8} for step in (1, 2, 3)
    ]
    lines.append({"step": 3, "evaluation": {"psnr": 21.5, "nearest": 18.25}})
    (folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    ready: queue.Queue[int] = queue.Queue()
    ready.put(1)
    downloads = SimpleNamespace(results=ready, under_way=4, net=SimpleNamespace(disk_budget=SimpleNamespace(used=5000)))
    waiting = {"train-000000": SimpleNamespace(done=lambda: False), "train-000001": SimpleNamespace(done=lambda: True)}
    uploads = SimpleNamespace(waiting=waiting, out=folder, _names=lambda shard: [shard], _size=lambda path: 700)
    shares = SimpleNamespace(total=100.0)
    supervisor = SimpleNamespace(
        log=TrainingLog(folder).read(),
        meter=SimpleNamespace(used=lambda: 60, peak=80, shares=shares, blocked_s=1.0, blocked=False),
        deleted=2,
    )

    def cycle() -> dict[str, Any]:
        told.append(Supervisor.facts(supervisor))  # type: ignore[arg-type]
        supervisor.meter.blocked_s += 1.5
        supervisor.deleted += 1
        supervisor.log._take(lines[0])
        return told[-1]

    return {
        "downloads": lambda: Downloads.snapshot(downloads),  # type: ignore[arg-type]
        "uploads": lambda: Uploads.snapshot(uploads),  # type: ignore[arg-type]
        "cycle": cycle,
    }


# ---- what is scraped


def test_a_run_and_its_second_session_add_up_to_the_ledger(head: Head, tmp_path: Path) -> None:
    eyes = balls.walk(3, (40, 40))
    for name in ("a", "broken"):
        foreign.nerfstudio(tmp_path / "in" / name, eyes)
    shutil.rmtree(tmp_path / "in/broken/images")
    command = ["import", "--source", "nerfstudio", "--input", "in", "--n", 3, "--res", 16, "--no-verify-cameras"]
    for name, expect in (("b", 3), ("c", 0)):
        foreign.nerfstudio(tmp_path / "in" / name, eyes)
        done = lvsm_data(*command, "--address", head.address, "--out", "out", cwd=tmp_path, timeout=300)
        assert done.returncode == expect, done.stderr[-2000:]
        gauges = head.values("out")

    with Ledger(tmp_path / "out/ledger.sqlite") as ledger:
        counts, totals, reasons = ledger.counts(), ledger.totals(), ledger.reasons()
    assert counts == {"delivered": 3, "failed": 1} and reasons == {"image_missing": 1}
    found = head.values("out")
    summed = {name: {tag: sum(each) for tag, each in values.items()} for name, values in found.items()}
    assert summed["lvsm_data_delivered_objects_total"] == {"": 3}
    assert sorted(found["lvsm_data_delivered_objects_total"][""]) == [1, 2]  # each driver what it did
    assert summed["lvsm_data_failed_objects_total"] == reasons
    assert summed["lvsm_data_views_total"] == {"": totals["views"]}
    assert summed["lvsm_data_image_bytes_total"] == {"": totals["image_bytes"]}
    assert max(gauges["lvsm_data_run_objects_delivered"][""]) == 3  # the run, by whichever driver
    assert max(gauges["lvsm_data_run_objects_requested"][""]) == 3
    assert max(gauges["lvsm_data_run_objects_failed"]["image_missing"]) == 1
    assert gauges["lvsm_data_workers"].keys() == {"busy", "idle"}
    assert "lvsm_data_trainer_step" not in found and "lvsm_data_downloads" not in found  # it has none


def test_everything_that_progress_knows_is_shown(head: Head, tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    with executors.connected(head.address):
        with Progress(50, 4, 30, {"empty": 5}, tmp_path, **full(tmp_path, told)) as progress:
            progress.on_start(0, Item("a", "toy"))
            progress.on_start(1, Item("b", "toy"))
            progress.on_outcome(Outcome(Item("b", "toy"), None, "timeout"))
            until = time.monotonic() + 300
            while not told and time.monotonic() < until:
                time.sleep(0.1)
            progress.on_outcome(Outcome(Item("c", "toy"), None, "timeout"))
            progress.on_outcome(Outcome(Item("d", "toy"), None, "empty"))
        last = json.loads((tmp_path / "status.json").read_text())

    found = {name: {tag: one[0] for tag, one in each.items()} for name, each in head.values(tmp_path.name).items()}
    none_delivered = {"delivered_objects_total", "views_total", "image_bytes_total", "run_left_seconds"}
    assert found.keys() == {metric.name for metric in METRICS} - {f"lvsm_data_{name}" for name in none_delivered}
    right = {
        "run_objects_requested": {"": 50},
        "run_objects_delivered": {"": 30},
        "run_objects_failed": {"empty": 6, "timeout": 2},
        "failed_objects_total": {"empty": 1, "timeout": 2},  # not the five of before
        "items_under_way": {"": 1},
        "workers": {"busy": 1, "idle": 1},
        "worker_idle_seconds_total": {"": last["idle_s"]},
        "downloads": {"under_way": 3, "ready": 1},
        "raw_bytes": {"": 5000},
        "uploads_waiting": {"": 1},
        "uploads_waiting_bytes": {"": 700},
        "trainer_step": {"": 1},
        "trainer_loss": {"": 0.25},
        "trainer_unseen_psnr_decibels": {"model": 21.5, "nearest": 18.25},
        "disk_used_bytes": {"": 60},
        "disk_budget_bytes": {"": 100},
    }
    for metric, key in (  # a cycle's counts since the first look
        ("trainer_samples_total", "samples"),
        ("trainer_seconds_total", "trainer_seconds"),
        ("trainer_waited_seconds_total", "trainer_waited_s"),
        ("rendering_blocked_seconds_total", "blocked_s"),
        ("deleted_shards_total", "shards_deleted"),
    ):
        assert last["cycle"][key] > told[0][key]
        right[metric] = {"": last["cycle"][key] - told[0][key]}
    for name, values in right.items():
        assert found[f"lvsm_data_{name}"] == pytest.approx(values), name
    kinds = {sample.name: sample.kind for sample in head.scrape("ray_lvsm_data_")}
    assert {name: kind for name, kind in kinds.items() if (kind == "counter") != name.endswith("_total")} == {}


def test_without_ray_nothing_is_shown_and_ray_is_not_brought_in(tmp_path: Path) -> None:
    code = f"""import sys
from pathlib import Path
from pipeline.run.progress import Progress
with Progress(1, 2, 0, {{}}, Path({str(tmp_path)!r})): pass
assert "ray" not in sys.modules
import ray
Metrics = sys.modules["pipeline.cluster.prometheus"].Metrics
Metrics("run", {{"reasons": {{}}, "workers": []}}).publish({{}})
assert "ray.util.metrics" not in sys.modules or not ray.is_initialized()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "status.json").read_text())["delivered"] == 0


def test_workers_that_are_lost_or_gone_are_neither_busy_nor_idle(tmp_path: Path) -> None:
    now = 1_700_000_000.0
    progress = Progress(9, 2, 0, {}, tmp_path, clock=lambda: now)
    for slot, uid in ((0, "a"), (1, "b"), (2, "b")):  # worker 1 was lost, and its item is done again
        progress.on_start(slot, Item(uid, "toy"))
    assert [worker["worker"] for worker in progress.snapshot()["workers"]] == [0, 2]
    assert progress.snapshot()["under_way"] == 2
    progress.on_outcome(Outcome(Item("a", "toy"), None, "empty"))
    now += 0.25
    assert progress.snapshot()["idle_s"] == 0.25
    now += 0.5
    progress.on_start(0, Item("c", "toy"))
    now += 8
    assert progress.snapshot()["idle_s"] == 0.75
    assert [worker["seconds"] for worker in progress.snapshot()["workers"]] == [8, 8.8]
    progress.on_outcome(Outcome(Item("c", "toy"), None, "empty"))
    now += 1
    progress.on_rest()
    assert progress.snapshot()["workers"] == []
    now += 16
    assert progress.snapshot()["idle_s"] == 1.75


# ---- the dashboard


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    """Every query, with the variables filled in."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    assert not [expression for expression in found if "$" in expression]
    return found


@dataclass
class Asked:
    """One metric in a query: matchers (label, value, None for a pattern's), and labels that it is summed by."""

    name: str
    matchers: list[tuple[str, str | None]]
    by: set[str]


def asked(expression: str) -> list[Asked]:
    """Raises ValueError for what is no PromQL."""
    found: list[Asked] = []

    def selectors(expr: Any, by: set[str]) -> None:
        if isinstance(expr, promql_parser.AggregateExpr):
            selectors(expr.expr, by | set(expr.modifier.labels if expr.modifier else []))
        elif isinstance(expr, promql_parser.BinaryExpr):
            selectors(expr.lhs, by)
            selectors(expr.rhs, by)
        elif isinstance(expr, promql_parser.Call):
            for argument in expr.args:
                selectors(argument, by)
        elif isinstance(expr, promql_parser.ParenExpr):
            selectors(expr.expr, by)
        elif isinstance(expr, promql_parser.MatrixSelector):
            selectors(expr.vector_selector, by)
        elif isinstance(expr, promql_parser.VectorSelector):
            exact = promql_parser.MatchOp.Equal
            matchers = [(one.name, one.value if one.op == exact else None) for one in expr.matchers.matchers]
            found.append(Asked(expr.name, matchers, by))
        else:
            assert isinstance(expr, promql_parser.NumberLiteral), type(expr)

    selectors(promql_parser.parse(expression), set())
    return found


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(head: Head) -> None:
    wanted = [one for expression in expressions() for one in asked(expression)]
    ours = {f"ray_{metric.name}": {"run", metric.tag} for metric in METRICS}
    assert ours.keys() <= {one.name for one in wanted}  # and it shows them all
    shown: dict[str, dict[str, set[str]]] = {}
    until = time.monotonic() + 300  # a node's own figures come within some seconds
    rays = {one.name for one in wanted} - ours.keys() - GPU
    while not rays <= shown.keys() and time.monotonic() < until:
        for sample in head.scrape():
            for label, value in sample.labels.items():
                shown.setdefault(sample.name, {}).setdefault(label, set()).add(value)
        time.sleep(0.3)
    assert rays <= shown.keys()
    for one in wanted:
        if one.name in ours:
            assert {label for label, _ in one.matchers} | one.by <= ours[one.name], one
        elif one.name not in GPU:
            assert one.by <= shown[one.name].keys(), one
            for label, value in one.matchers:
                assert value is None or value in shown[one.name][label], one


def test_names_of_gpu_metrics_are_those_of_ray() -> None:
    from ray.dashboard.consts import GPU_TAG_KEYS
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    wanted = [one for expression in expressions() for one in asked(expression) if one.name in GPU]
    assert {one.name for one in wanted} == GPU
    for one in wanted:
        assert one.name.removeprefix("ray_") in METRICS_GAUGES
        assert one.by | {label for label, _ in one.matchers} <= set(GPU_TAG_KEYS)


def test_legends_name_labels_that_are_left() -> None:
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            left = set.intersection(*(one.by for one in asked(expression))) if asked(expression) else set()
            named = {part.split("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert named <= left, panel["title"]


def test_panels_are_described_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["w"] > 0 and at["h"] > 0 and at["x"] + at["w"] <= 24
        own = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not own & cells, panel["title"]
        cells |= own
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource"} | {name.removeprefix("$") for name in VARIABLES}
    for panel in panels():
        assert panel["description"] and panel["title"] and panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert {one["datasource"]["uid"] for one in [panel, *panel["targets"]]} == {"${datasource}"}
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_a_metric_is_named_as_prometheus_wants_it() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("lvsm_data_") and metric.help
        assert not metric.name.endswith(("_s", "_ms", "_mb", "_gb", "_count")), metric.name
    assert Metrics("run", {"reasons": {}, "workers": []}).run == "run"
