"""The processes that train one model together: none but this one, torchrun's, or Ray Train's."""

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

TRY = timedelta(seconds=3)  # for a connection, before the port is asked for again


@dataclass(frozen=True)
class Ranks:
    """rank: which of `world` processes this is. local: which of those on this machine, and so which GPU is its own."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this one speaks, measures and writes for all."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Of all ranks, the same on each; NaN where one has NaN."""
        if self.world > 1:
            distributed.all_reduce(values)
            values = values / self.world
        return values

    def meet(self, ready: bool, stop: bool, device: torch.device) -> tuple[bool, bool]:
        """(whether all are ready, whether one wants to stop): the same answer for each, when each has asked."""
        if self.world == 1:
            return ready, stop
        waiting, stops = self.mean(torch.tensor([float(not ready), float(stop)], device=device)).tolist()
        return waiting == 0, stops > 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()


@contextlib.contextmanager
def joined(minutes: float) -> Iterator[Ranks]:
    """Finds the others: those of a process group that stands (Ray Train), or of torchrun's environment.

    minutes: how long to wait for a rank that does not come; then PyTorch raises, and the launcher starts anew.
    """
    if distributed.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), local)
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    rank, timeout = int(os.environ["RANK"]), timedelta(minutes=minutes)
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


def leave(status: int) -> NoReturn:
    """Ends the process of a rank at once: PyTorch's own threads abort some that end as others do ("terminate called without an
    active exception"), and a launcher would take that for a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fresh_store(rank: int, timeout: timedelta) -> TCPStore:
    """Where ranks find each other: of the first rank, so that it ends with it.

    The one of torchrun stays when it starts ranks anew, and would tell them the addresses of dead ones (pytorch issue 135712).
    It is asked for the port alone; a dead one is noticed.
    """
    host, place = os.environ["MASTER_ADDR"], "lvsm_train/port"
    lasting = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        lasting.set(place, str(own.port))
        return own
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            found = TCPStore(host, int(lasting.get(place)), is_master=False, timeout=TRY)
            found.set_timeout(timeout)
            return found
        except DistError:
            if time.monotonic() > until:
                raise
