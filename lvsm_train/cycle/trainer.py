"""`python -m lvsm_train.cycle.trainer RUN [NAME]`: a trainer of a cycle, started by its driver. Ends when the driver does.

NAME: of its folder within RUN, with its settings in train.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lvsm_train.config.train import TrainConfig
from lvsm_train.training.guards import when_starter_ends
from pipeline.core.disk import patiently
from pipeline.core.errors import FEWER_THAN_ASKED, UserError
from pipeline.cycle.protocol import TRAIN
from pipeline.storage.run_folder import locked

FORMER_S = 30.0  # for a former trainer to end


def main() -> int:
    """Train until the cycle has no more samples. Exit status as of `lvsm-data train`."""
    when_starter_ends(partial(os._exit, 1))
    folder = Path(sys.argv[1]) / (sys.argv[2] if len(sys.argv) > 2 else TRAIN)
    try:
        cfg = TrainConfig.from_json(json.loads((folder / "train.json").read_text()))
        with _alone(folder):
            from lvsm_train.training.launch import launch

            return 0 if launch(cfg).finished else FEWER_THAN_ASKED
    except UserError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the trainer's folder, waiting for the trainer of a killed driver to let go of it."""
    until = time.monotonic() + FORMER_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                patiently(lambda: stack.enter_context(locked(folder)), folder)
                break
            except UserError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield


if __name__ == "__main__":
    sys.exit(main())
