"""Start the ranks of a training run: this process (alone or one of torchrun's), new ones on this machine, or Ray Train's."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
from functools import partial
from typing import Any

import torch

from lvsm_train.config.train import TrainConfig
from lvsm_train.device.ranks import exit_now
from lvsm_train.evaluation.scores import Scores
from lvsm_train.training.guards import when_starter_ends
from lvsm_train.training.train import Result, train_fn
from pipeline.cluster.executors import connected
from pipeline.core.errors import UserError

RETRIES = 3  # restarts of all ranks after one died, each from the newest checkpoint
STOP_S = 600  # for ranks to write their last checkpoint
ENDED = "ended"  # a folder in OUT where ranks leave their result, or the UserError that they raised


def launch(cfg: TrainConfig) -> Result:
    """Run `train_fn` on the ranks that `cfg` (resolved) asks for; Ray workers must all see OUT and the data.

    Raises what train_fn raises, and UserError after RETRIES restarts.
    """
    if not (cfg.ray_workers or cfg.ranks > 1):
        return train_fn(cfg)
    shutil.rmtree(cfg.folder / ENDED, ignore_errors=True)
    if cfg.ray_workers:
        _on_ray(cfg)
    else:
        _on_this_machine(cfg)
    return _collect_result(cfg)


def _died(cause: str) -> UserError:
    return UserError(
        f"ranks died {RETRIES + 1} times; the last time: {cause}", "the same command goes on from the newest checkpoint"
    )


def _on_this_machine(cfg: TrainConfig) -> None:
    """Run cfg.ranks ranks as torchrun would. A signal to this process reaches all ranks."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"--ranks {cfg.ranks}, within torchrun, which has started some", "leave one of them out")
    gpus = torch.cuda.device_count()
    if cfg.ranks > gpus and (cfg.device.startswith("cuda") or (cfg.device == "auto" and gpus)):
        raise UserError(
            f"--ranks {cfg.ranks}, and this machine has {gpus} GPUs", f"--ranks {max(1, gpus)}, or --device cpu"
        )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // cfg.ranks))
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=cfg.ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        run_id=str(os.getpid()),
        max_restarts=RETRIES,
        shutdown_timeout=STOP_S,
    )
    try:
        elastic_launch(how, sys.executable)("-m", "lvsm_train.training.launch", json.dumps(cfg.as_json()))
    except SignalException:
        pass  # ranks were stopped, and have written a checkpoint
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _died(f"rank {rank} with status {failure.exitcode}") from None


def main() -> None:
    """Run one rank of `_on_this_machine`. Ends at once when the starter does: another run may train then."""
    when_starter_ends(partial(os._exit, 1), os.getppid())
    try:
        _worker({"cfg": json.loads(sys.argv[1])})
    except UserError:  # the starter reports the error
        exit_now(1)
    exit_now(0)


def _on_ray(cfg: TrainConfig) -> None:
    # Ray Train gives workers a minute to start: too short where a cluster starts machines, or a machine is busy
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    storage = cfg.folder / "ray"
    shutil.rmtree(storage, ignore_errors=True)  # else Ray resumes from its own state instead of our checkpoint
    with connected(cfg.address, cfg.ray_workers + 1, show_output=True) as ray:
        gpus = ray.cluster_resources().get("GPU", 0)
        on_gpu = cfg.device.startswith("cuda") or (cfg.device == "auto" and gpus > 0)
        if on_gpu and gpus < cfg.ray_workers:
            raise UserError(
                f"--ray-workers {cfg.ray_workers}, and Ray knows of {gpus:g} GPUs",
                f"--ray-workers {int(gpus)}, or --device cpu",
            )
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"cfg": cfg.as_json()},
            scaling_config=ScalingConfig(num_workers=cfg.ray_workers, use_gpu=on_gpu),
            run_config=RunConfig(
                name="train", storage_path=str(storage), failure_config=FailureConfig(max_failures=RETRIES)
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _died(str(error).strip().splitlines()[-1]) from None
    shutil.rmtree(storage, ignore_errors=True)


def _worker(given: dict[str, Any]) -> None:
    """Train as one rank, and leave result or refusal in OUT/ended. Ranks restarted after a refusal (UserError) end at once."""
    cfg = TrainConfig.from_json(given["cfg"])
    folder = cfg.folder / ENDED
    if any(folder.glob("refusal-*.json")):
        return
    try:
        result = train_fn(cfg)
    except UserError as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"refusal-{os.getpid()}.json").write_text(json.dumps([str(error), error.hint]))
        raise
    if result.is_main:
        scores = dataclasses.asdict(result.scores) if result.scores else None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps([result.step, result.finished, scores]))


def _collect_result(cfg: TrainConfig) -> Result:
    """Read and delete what ranks left in OUT/ended; nothing there means that they were stopped before the first step."""
    folder = cfg.folder / ENDED
    for path in sorted(folder.glob("refusal-*.json")):
        raise UserError(*json.loads(path.read_text()))
    path = folder / "result.json"
    step, finished, scores = json.loads(path.read_text()) if path.exists() else (0, False, None)
    shutil.rmtree(folder, ignore_errors=True)
    return Result(cfg.folder, step, finished, Scores(**scores) if scores else None)


if __name__ == "__main__":
    main()
