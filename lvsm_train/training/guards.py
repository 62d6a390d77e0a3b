"""Guards against processes that hang or outlive their starter, which would hold GPUs for ever, and against loss spikes."""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.core.errors import UserError

HUNG = 70  # exit status of a process that the watchdog ended
BASELINE, RECENT = 200, 20  # steps: the losses of the last RECENT are compared with those of the BASELINE before them
MAX_SKIPPED = 100  # steps in a row that may be skipped
MAX_SPIKES = 3  # spikes that a run may go back for; needing more means the settings are wrong


class Watchdog:
    """Context manager that ends the process, with the stacks of its threads, when `reset` is not called for `minutes`."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._until = time.monotonic() + 60 * minutes
        self._over = threading.Event()

    def __enter__(self) -> Watchdog:
        self.reset()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def reset(self) -> None:
        """Start the time anew: a step, an evaluation or a checkpoint has ended."""
        self._until = time.monotonic() + 60 * self.minutes
        # a timer in C as well, for a hang that holds the GIL, where the thread below cannot run
        faulthandler.dump_traceback_later(90 * self.minutes, exit=True, file=2)

    def _watch(self) -> None:
        while not self._over.wait(max(0.01, self._until - time.monotonic())):
            if time.monotonic() >= self._until:
                print(
                    f"error: no step, evaluation or checkpoint ended within {self.minutes:g} minutes (--hang-minutes)\n"
                    "hint: the same command goes on from the newest checkpoint; this is where the process stood:",
                    file=sys.__stderr__,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2)
                os._exit(HUNG)


def when_starter_ends(act: Callable[[], object], parent: int | None = None) -> None:
    """Call `act` from a daemon thread once process `parent` is no longer the parent, or without one, once stdin is closed."""

    def watch() -> None:
        while os.getppid() == parent if parent else os.read(0, 1):
            time.sleep(0.2 if parent else 0)
        act()

    threading.Thread(target=watch, daemon=True).start()


class SpikeGuard:
    """Finds loss spikes: the median of the last RECENT losses exceeds `factor` times the median of the BASELINE before them.

    Medians, since a single bad batch is no spike: its gradient is clipped or its step skipped. NaN counts as infinite.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.losses: deque[float] = deque(maxlen=BASELINE + RECENT)
        self.spikes = 0

    def observe(self, loss: float) -> bool:
        """Add the loss of a step. True if this completes a spike; older losses are then forgotten, as no baseline any more."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if not self.factor or len(self.losses) < BASELINE // 2 + RECENT:
            return False
        losses = list(self.losses)
        spike = statistics.median(losses[-RECENT:]) > self.factor * statistics.median(losses[:-RECENT])
        if spike:
            self.losses.clear()
            self.spikes += 1
        return spike

    def forget(self) -> None:
        """Start anew, where the loss changes by schedule."""
        self.losses.clear()

    def state_dict(self) -> dict[str, float | list[float]]:
        """Losses and the number of spikes, for a checkpoint."""
        return {"losses": list(self.losses), "times": self.spikes}

    def load_state_dict(self, state: dict[str, float | list[float]]) -> None:
        """Restore what `state_dict` gave."""
        assert isinstance(state["losses"], list) and isinstance(state["times"], int)
        self.losses = deque(state["losses"], self.losses.maxlen)
        self.spikes = state["times"]


class NormGuard:
    """Finds gradient norms above `factor` times the median of the last BASELINE norms, and runs that skip every step.

    Skipped norms count in the median too, so that a lasting change becomes usual. Norms lie on a device and are judged there,
    without a host sync.
    """

    def __init__(self, factor: float, device: torch.device | str = "cpu") -> None:
        self.factor = factor
        self.norms = torch.full((BASELINE,), math.inf, dtype=torch.float64, device=device)  # a ring
        self.places = torch.arange(BASELINE, device=device)
        self.known = torch.zeros(1, dtype=torch.int64, device=device)  # norms so far
        self.skipped = 0  # steps in a row

    def is_outlier(self, norm: Tensor, guarded: Tensor | bool = True) -> Tensor:
        """True, as a scalar tensor, if a step's norm is too large, of which RECENT at least must be known.

        guarded: False (or 0.0) to neither judge nor remember it.
        """
        norm = norm.double()
        watched = guarded.bool() if isinstance(guarded, Tensor) else torch.full_like(norm, guarded, dtype=torch.bool)
        count = self.known.clamp(max=len(self.norms))
        middle = torch.cat([(count - 1).clamp(min=0) // 2, count // 2]).clamp(max=len(self.norms) - 1)
        median = self.norms.sort().values.gather(0, middle).mean()
        outlier = watched & (count >= RECENT).squeeze() & ~(norm <= self.factor * median)
        kept = watched & torch.isfinite(norm)
        place = self.known % len(self.norms)
        self.norms.copy_(torch.where(kept & (self.places == place), norm, self.norms))
        self.known.add_(kept)
        return outlier if self.factor else torch.zeros_like(outlier)

    def count(self, skipped: bool, reason: str) -> None:
        """Count skipped steps in a row. Raises UserError at MAX_SKIPPED. reason: why the last one was skipped."""
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped >= MAX_SKIPPED:
            hint = "a lower --lr; --skip-above 0 skips no step for its norm"
            raise UserError(f"the last {self.skipped} steps were all skipped, and nothing is learned: {reason}", hint)

    def forget(self) -> None:
        """Start anew, where the loss changes by schedule."""
        self.norms.fill_(math.inf)
        self.known.zero_()

    def state_dict(self) -> dict[str, int | list[float]]:
        """Norms from the oldest on, and the number of skipped steps in a row, for a checkpoint."""
        known = int(self.known)
        norms = self.norms.roll(-known if known > len(self.norms) else 0).tolist()[:known]
        return {"norms": norms, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.forget()
        norms = state["norms"][-len(self.norms) :]
        self.norms[: len(norms)] = torch.tensor(norms, dtype=torch.float64)
        self.known.fill_(len(norms))
        self.skipped = state["skipped"]
