"""Ranks: the processes that train one model together. A single process, or those of torchrun or Ray Train."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from torch import distributed
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from pipeline.core.errors import UserError

TRY = timedelta(seconds=3)  # timeout of a connection, before the port is looked up again


@dataclass(frozen=True)
class Ranks:
    """rank: number of this process among `world`. local: its number among those of this machine, which is also its GPU's."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """True for rank 0, which logs, evaluates and writes for all."""
        return self.rank == 0

    def all_reduce_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over ranks of `values`, equal on each rank; NaN where one rank has NaN."""
        if self.world > 1:
            distributed.all_reduce(values)
            values = values / self.world
        return values

    def agree(self, ready: bool, stop: bool, device: torch.device) -> tuple[bool, bool]:
        """(all ranks are ready, some rank wants to stop), equal on each rank. All ranks must call."""
        if self.world == 1:
            return ready, stop
        waiting, stops = self.all_reduce_mean(torch.tensor([float(not ready), float(stop)], device=device)).tolist()
        return waiting == 0, stops > 0

    def barrier(self) -> None:
        """Wait until all ranks have called."""
        if self.world > 1:
            distributed.barrier()


@contextlib.contextmanager
def process_group(minutes: float) -> Iterator[Ranks]:
    """Join the other ranks: through an existing process group (Ray Train), or one made from torchrun's environment.

    minutes: timeout for a missing rank; after that PyTorch raises, and the launcher restarts the ranks.
    """
    if distributed.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local)
        return
    world, rank = _ranks_of_environment()
    if world == 1:
        yield Ranks()
        return
    timeout = timedelta(minutes=minutes)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        distributed.init_process_group(
            backend, store=_fresh_store(rank, timeout), rank=rank, world_size=world, timeout=timeout
        )
    else:
        distributed.init_process_group(backend, timeout=timeout)
    try:
        yield Ranks(rank, world, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()


def _ranks_of_environment() -> tuple[int, int]:
    """(WORLD_SIZE, RANK); (1, 0) where nothing is set. Says for whom this process waits unless torchrun started it, since both
    may be left over. Raises UserError if a part is missing or no number."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return 1, 0
    hint = "unset WORLD_SIZE and RANK to train alone; torchrun or --ranks start several"
    for name in ("WORLD_SIZE", "RANK", "MASTER_PORT"):
        if not os.environ.get(name, "").isdecimal():
            raise UserError(f"WORLD_SIZE is {world}, and {name} is {os.environ.get(name, 'not set')}", hint)
    if "MASTER_ADDR" not in os.environ:
        raise UserError(f"WORLD_SIZE is {world}, and MASTER_ADDR is not set", hint)
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        said = f"rank {os.environ['RANK']} of {world} waits at {where} for the others, as RANK and WORLD_SIZE say"
        print(f"{said}; {hint}", file=sys.stderr, flush=True)
    return int(world), int(os.environ["RANK"])


def exit_now(status: int) -> NoReturn:
    """Exit without Python's shutdown, in which PyTorch's threads sometimes abort the process ("terminate called without an
    active exception"): a launcher would take that for a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fresh_store(rank: int, timeout: timedelta) -> TCPStore:
    """Rendezvous store of the first rank, which ends with it.

    torchrun's own store survives a restart of the ranks, and would give them the addresses of dead ranks (pytorch issue
    135712). It only passes on the port of the new store; a port of a dead rank is noticed.
    """
    host, name = os.environ["MASTER_ADDR"], "lvsm_train/port"
    lasting = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        lasting.set(name, str(own.port))
        return own
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            store = TCPStore(host, int(lasting.get(name)), is_master=False, timeout=TRY)
            store.set_timeout(timeout)
            return store
        except DistError:
            if time.monotonic() > until:
                raise
