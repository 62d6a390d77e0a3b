"""How the processes of a training run come to be: this one alone, those that torchrun started, or Ray Train's."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from lvsm_train import checkpoint
from lvsm_train.config import TrainConfig
from lvsm_train.evaluate import Scores
from lvsm_train.train import Result, train_fn
from pipeline.executors import connected
from pipeline.scene import UserError

RETRIES = 3  # of a worker that dies, each from the newest checkpoint
REFUSALS = "refusals"  # a folder in OUT: what workers found wrong with their settings, which no retry would mend


def launch(cfg: TrainConfig) -> Result:
    """`train_fn` where it shall run. cfg is resolved.

    With ray_workers, OUT and the data must be where all workers see them. Raises what train_fn raises, and UserError where the
    workers died more often than RETRIES.
    """
    return _on_ray(cfg) if cfg.ray_workers else train_fn(cfg)


def _on_ray(cfg: TrainConfig) -> Result:
    # a cluster that has to start machines, or a machine that is busy, needs longer than the minute that Ray Train gives workers
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    assert cfg.out is not None
    storage = cfg.out / "ray"
    shutil.rmtree(cfg.out / REFUSALS, ignore_errors=True)
    shutil.rmtree(storage, ignore_errors=True)  # else Ray goes on with what it remembers, where ours is what counts
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
            raise UserError(
                f"the workers died {RETRIES + 1} times; the last time: {str(error).strip().splitlines()[-1]}",
                "the same command goes on from the newest checkpoint",
            ) from None
    shutil.rmtree(storage, ignore_errors=True)
    return _result(cfg)


def _worker(given: dict[str, Any]) -> None:
    """What each of Ray's workers does. Ray would start all anew for what a user did: then they find the refusal, and end."""
    cfg = TrainConfig.from_json(given["cfg"])
    assert cfg.out is not None
    folder = cfg.out / REFUSALS
    if folder.exists():
        return
    try:
        train_fn(cfg)
    except UserError as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{os.getpid()}.json").write_text(json.dumps([str(error), error.hint]))
        raise


def _result(cfg: TrainConfig) -> Result:
    """What the workers left in OUT."""
    assert cfg.out is not None
    for path in sorted((cfg.out / REFUSALS).glob("*.json")):
        raise UserError(*json.loads(path.read_text()))
    found = checkpoint.load(cfg.out)
    assert found is not None, "Ray Train ended well, and there is no checkpoint"
    step, told = int(found[1]["step"]), found[0]["scores"]
    return Result(cfg.out, step, step >= cfg.steps, Scores(**told) if told else None)
