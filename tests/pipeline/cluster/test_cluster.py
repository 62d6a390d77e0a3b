"""A Ray cluster of several nodes on this machine: nodes that die, that join, that fail, and those that are the trainer's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster import executors
from pipeline.cluster.nodes import Share
from pipeline.core.records import Item, Outcome
from tests import trees
from tests.conftest import COMMAND, lvsm_data
from tests.hub import Hub
from tests.pipeline.run.test_run import count_in_ledger, descendants, start, wait_for
from tests.pipeline.sources.test_sources import World
from tests.pipeline.storage.test_object_store import objects
from tests.warm import without_dashboard

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers need not find the tests
PORT = 6379  # of Ray; its provider of nodes that are processes knows no other
SMALL = ("--res", 32, "--views", 6, "--samples", 24, "--val-percent", 30)


@contextlib.contextmanager
def nodes() -> Iterator[Cluster]:
    """A head without room for workers. What a test starts of Ray in this process ends with it."""
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    with pytest.MonkeyPatch.context() as patch:
        without_dashboard(patch.setattr)
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with nodes() as made:
        yield made


def node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


class Toy:
    """Says where it was. Fails on the nodes that the file `bad` names, in a way that another node may not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wanted: list[str] = []

    def ahead(self, items: list[Item]) -> None:
        self.wanted = [item.uid for item in items]

    def __call__(self, item: Item) -> Outcome:
        assert item.uid in self.wanted
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{item.uid} {os.getpid()}\n")
        time.sleep(0.02)
        if node_id() in (self.folder / "bad").read_text():
            return Outcome(item, None, "crashed", "no memory in the GPU", worker=node_id(), passing=True)
        return Outcome(item, None, "done", f"{len(self.wanted)}", worker=node_id())

    def close(self) -> None:
        with (self.folder / "closed").open("a") as closed:
            closed.write(f"{os.getpid()}\n")


def test_a_node_dies_and_another_joins_while_objects_are_rendered(cluster: Cluster, tmp_path: Path) -> None:
    """Each object exactly once, and with the same pixels as without a cluster."""
    plain = lvsm_data("render", "--n", 14, *SMALL, "--executor", "inline", "--out", tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    first = cluster.add_node(num_cpus=1)
    second = cluster.add_node(num_cpus=1)
    run = start("render", "--n", 14, *SMALL, "--address", cluster.address, "--out", tmp_path / "run")
    wait_for(lambda: count_in_ledger(tmp_path / "run") >= 2)
    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: count_in_ledger(tmp_path / "run") >= 4)
    third = cluster.add_node(num_cpus=1)
    wait_for(lambda: count_in_ledger(tmp_path / "run") >= 6)
    cluster.remove_node(first, allow_graceful=False)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "requested 14: drawn 14 = delivered 14 + failed 0" in out
    lost = "is lost: what it was at is done elsewhere"
    assert 1 <= err.count(lost) <= 2 and lost in out  # of the second Ray may hear when all is done
    found = objects(tmp_path / "run")
    assert found == objects(tmp_path / "plain")
    assert Counter(map(len, found.values())) == {1: 14}
    assert third.node_id


def test_a_node_that_keeps_failing_is_named_and_left_and_gpus_are_left_to_the_trainer(
    cluster: Cluster, tmp_path: Path
) -> None:
    good = cluster.add_node(num_cpus=2).node_id
    bad = cluster.add_node(num_cpus=2).node_id
    gpu = cluster.add_node(num_cpus=2, num_gpus=1).node_id
    (tmp_path / "bad").write_text(bad)
    said: list[str] = []

    def deliver(items: Iterable[Item], **options: Any) -> Iterator[Outcome]:
        share = Share(cpus=1, memory=1e8)
        make = partial(Toy, tmp_path)
        with executors.connected(cluster.address):
            yield from executors.on_ray(
                make,
                iter(items),
                lambda *_: None,
                workers=None,
                share=share,
                address=cluster.address,
                say=said.append,
                **options,
            )

    outcomes = list(deliver([Item(f"{number}", "toy") for number in range(80)], apart=True))
    assert Counter(outcome.item.uid for outcome in outcomes) == Counter(map(str, range(80)))
    assert {outcome.reason for outcome in outcomes} == {"done"}  # what failed there was done elsewhere
    assert {outcome.worker for outcome in outcomes} == {good}
    assert (
        len(said) == 1 and "gets no more work: 5 failures in a row, the last: crashed no memory in the GPU" in said[0]
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert 5 <= len(calls) - 80 <= 30  # failures there
    assert max(int(outcome.detail) for outcome in outcomes) > 2  # they were sent by the handful, and told early
    assert len((tmp_path / "closed").read_text().split()) >= 2

    # nobody's trainer: nodes with a GPU have cores too; and a share of a GPU is a place
    (tmp_path / "bad").write_text("")
    used: set[str] = set()
    deadline = time.monotonic() + 600

    def until_the_gpu_is_used() -> Iterator[Item]:  # a busy machine takes its time to start a worker there
        for number in itertools.count():
            if gpu in used or time.monotonic() > deadline:
                return
            yield Item(f"{number}", "toy")

    for outcome in deliver(until_the_gpu_is_used()):
        used.add(outcome.worker)
    assert gpu in used
    with executors.connected(cluster.address):
        nodes = executors.Nodes(ray, Share(cpus=1, gpus=0.5), None)
        assert nodes.look() == {gpu: 2}
        assert executors.Nodes(ray, Share(cpus=1, memory=1e15), None).look() == {}


def test_workers_fetch_for_themselves_each_object_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On their own disk, one ahead; the driver downloads lists alone. Files of one repository come by one checkout."""
    with Hub(tmp_path / "root") as hub:
        (tmp_path / "home").mkdir()
        world = World(tmp_path, hub)
        made = trees.objaverse(tmp_path / "root", count=8, chunks=2)
        for name, value in world.environment.items():
            monkeypatch.setenv(name, value)  # what a node's processes are started with
        with nodes() as cluster:
            cluster.add_node(num_cpus=2)
            taken = sorted(uid for uid in made.uids if made.licenses[uid] != "by-nd")
            hub.fault(taken[0], "status", times=None, code=404)
            size = ("--res", 32, "--views", 2, "--samples", 1, "--raw-gb", 1)
            flags = ("--address", cluster.address, "--out", "out")
            said = world.run("render", "--source", "objaverse", "--n", 20, *size, *flags, expect=3)
        assert world.ended() == dict.fromkeys(taken, "") | {taken[0]: "missing"}
        assert f"delivered {len(taken) - 1} + failed 1 (missing 1)" in said
        fetched = world.fetched()  # at the end an idle worker takes over what another one has fetched ahead
        assert max(fetched.values()) <= 2 and fetched.total() <= len(taken) - 1 + 2
        assert not list((tmp_path / "out" / "raw").glob("*"))


@pytest.mark.campaign
def test_a_cycle_renders_on_cpu_nodes_and_trains_on_the_others(cluster: Cluster, tmp_path: Path) -> None:
    """The trainer is Ray Train's. Renderers fill the nodes without a GPU, so that there is room for it on the other alone."""
    cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=2, num_gpus=1)
    small = ("--res", 32, "--views", 12, "--samples", 2, "--val-percent", 15, "--shard-objects", 2, "--window", 3)
    model = ("--model.dim", 64, "--model.layers", 4, "--model.encoder-layers", 2, "--passes", 2)
    train = ("--train.ray-workers", 1, "--train.device", "cpu", "--train.checkpoint-every", 4, "--train.eval-every", 0)
    where = ("--disk-budget", "300MB", "--address", cluster.address, "--out", tmp_path / "cycle")
    done = lvsm_data("cycle", "--n", 16, *small, *model, *train, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    audit = lvsm_data("audit", tmp_path / "cycle")
    assert audit.returncode == 0, audit.stdout


@contextlib.contextmanager
def autoscaling(folder: Path) -> Iterator[str]:
    """Ray's own autoscaler over nodes that are processes of this machine: at most two, of one CPU. Answers the address."""
    with contextlib.closing(socket.socket()) as free:
        if not free.connect_ex(("127.0.0.1", PORT)):
            pytest.skip(f"port {PORT} is taken, and Ray's provider of such nodes knows no other")
    kinds = {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    lists = "setup_commands initialization_commands head_setup_commands worker_setup_commands head_start_ray_commands"
    more = "worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
    settings = {
        "cluster_name": "here",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": kinds,
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.1,
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("auth", "file_mounts", "docker")},
        **{name: [] for name in f"{lists} {more}".split()},
    }
    (folder / "autoscaler.json").write_text(json.dumps(settings))
    command = [COMMAND.with_name("ray"), "start", "--head", "--block", f"--port={PORT}", "--num-cpus=0"]
    command += ["--include-dashboard=false", f"--autoscaling-config={folder / 'autoscaler.json'}"]
    env = os.environ | {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_for(lambda: "Next steps" in (folder / "log").read_text())
        yield f"127.0.0.1:{PORT}"
    finally:
        of_ours = descendants(head.pid)
        head.terminate()
        _, alive = psutil.wait_procs(of_ours, timeout=10)
        for process in alive:
            process.kill()
        head.wait(timeout=300)


@pytest.mark.campaign
def test_a_cluster_grows_and_shrinks_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("")
    with autoscaling(tmp_path) as address, executors.connected(address):
        assert sum("CPU" in node["Resources"] for node in ray.nodes()) == 0
        items = (Item(f"{number}", "toy") for number in range(200))
        outcomes = list(executors.on_ray(partial(Toy, tmp_path), items, lambda *_: None, workers=2, address=address))
        assert Counter(outcome.item.uid for outcome in outcomes) == Counter(map(str, range(200)))
        assert len({outcome.worker for outcome in outcomes}) == 2
        wait_for(lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources().get("CPU", 0))
