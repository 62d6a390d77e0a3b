"""When has a loss gone astray so far that training should go back?"""

from __future__ import annotations

import math
import statistics
from collections import deque

USUAL, RECENT = 200, 20  # steps: what is usual is told by the first so many of USUAL + RECENT, what is now by the last
MOST = 3  # times that a run goes back; who needs more has another problem


class Spikes:
    """Watches losses: a spike is a median of the last RECENT that is `above` times the median of the USUAL before them.

    A median, since one bad batch is none: it is clipped, or void, and over. Losses that are no numbers count as large ones.
    """

    def __init__(self, above: float) -> None:
        self.above = above
        self.losses: deque[float] = deque(maxlen=USUAL + RECENT)
        self.times = 0

    def seen(self, loss: float) -> bool:
        """Takes in the loss of a step; is it a spike now? Losses before one are forgotten, for what comes is not like them."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if not self.above or len(self.losses) < USUAL // 2 + RECENT:
            return False
        told = list(self.losses)
        found = statistics.median(told[-RECENT:]) > self.above * statistics.median(told[:-RECENT])
        if found:
            self.losses.clear()
            self.times += 1
        return found

    def state_dict(self) -> dict[str, float | list[float]]:
        """For a checkpoint."""
        return {"losses": list(self.losses), "times": self.times}

    def load_state_dict(self, state: dict[str, float | list[float]]) -> None:
        """Goes on from there."""
        assert isinstance(state["losses"], list) and isinstance(state["times"], int)
        self.losses = deque(state["losses"], self.losses.maxlen)
        self.times = state["times"]
