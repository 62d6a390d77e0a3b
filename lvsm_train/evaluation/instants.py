"""What evaluation knows of time: a blend of neighbours, times shuffled, scores by the distance in time, films through time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lvsm_train.data.batches import Batch
from lvsm_train.evaluation.scores import Render, nearest, places_of
from lvsm_train.losses.metrics import psnr

BINS = 4  # of distances in time


@dataclass(frozen=True)
class Distance:
    """Targets whose time is at most `most` from the nearest input's, the whole time being 1, and farther than the row before.

    images: number of them. model, nearest, blend: mean PSNR in dB. static: that of another model, None without one.
    """

    most: float
    images: int
    model: float
    nearest: float
    blend: float
    static: float | None = None


def blend(batch: Batch) -> torch.Tensor:
    """Pictures (B, T, 3, H, W) in [0, 1]: for each target the nearest input at its time or before, and the nearest one after,
    blended linearly in time; where one is missing, the other alone. Near is as of `scores.nearest`."""
    later = batch.time[:, None] - batch.target_time[..., None]  # (B, T, V)
    apart = torch.cdist(places_of(batch, "target_"), places_of(batch))
    rows = torch.arange(len(later), device=later.device)[:, None]
    found = []
    for there in (later <= 0, later > 0):
        which = apart.masked_fill(~there, torch.inf).argmin(-1)
        gap = later.gather(-1, which[..., None])[..., 0].abs()
        found.append((batch.rgb[rows, which], torch.where(there.any(-1), gap, torch.inf)))
    (before, one), (after, other) = found
    share = torch.where(one.isinf(), 1.0, torch.where(other.isinf(), 0.0, one / (one + other).clamp(min=1e-9)))
    share = share[..., None, None, None]
    return before * (1 - share) + after * share


def shuffled_times(batch: Batch) -> Batch:
    """Give each target the time of another of its object, half of them further on. Raises ValueError for fewer than two."""
    count = batch.target_image.shape[1]
    if count < 2:
        raise ValueError("one target has no other to take a time from")
    order = batch.target_time.argsort(1)
    rolled = batch.target_time.gather(1, order).roll(count // 2, 1)
    return dataclasses.replace(batch, target_time=torch.empty_like(rolled).scatter(1, order, rolled))


def by_distance(render: Render, batches: Iterable[Batch], static: Render | None = None) -> list[Distance]:
    """Scores of all targets of objects that move by their distance in time to the nearest input, in up to BINS equal parts.

    static: another model to compare with.
    """
    found = []
    for batch in batches:
        apart = (batch.target_time[..., None] - batch.time[:, None]).abs().amin(-1).flatten()
        target = batch.target_rgb.flatten(0, 1)
        models = [one(batch).float().clamp(0, 1) for one in (render, static) if one]
        made = (models[0], nearest(batch), blend(batch), *models[1:])
        found.append(torch.stack([apart, *(psnr(one.flatten(0, 1), target) for one in made)], -1).cpu())
    values = torch.cat(found).double().numpy()
    values = values[np.isfinite(values).all(-1)]
    known = np.unique(values[:, 0].round(6))
    ends = known if len(known) <= BINS else np.quantile(known, np.linspace(0, 1, BINS + 1)[1:])
    rows, least = [], -1.0
    for end in ends.tolist():
        some = values[(values[:, 0] > least + 1e-6) & (values[:, 0] <= end + 1e-6)]
        if len(some):
            rows.append(Distance(round(end, 4), len(some), *(float(one) for one in some[:, 1:].mean(0))))
        least = end
    return rows


def routes(
    batch: Batch, c2w: np.ndarray, fxfycxcy: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Films of a batch of one object that moves: (what is seen, c2w (F, 4, 4), fxfycxcy (F, 4), time (F,)).

    c2w, fxfycxcy: a path of cameras of F frames.
    """
    count = len(c2w)
    forth = np.linspace(0, 1, count, dtype=np.float32)
    first = batch.c2w[0, :1].cpu().numpy(), batch.fxfycxcy[0, :1].cpu().numpy()
    yield "a fixed camera through time", first[0].repeat(count, 0), first[1].repeat(count, 0), forth
    yield "a moving camera while time stands", c2w, fxfycxcy, np.full(count, 0.5, np.float32)
    yield "a moving camera through time", c2w, fxfycxcy, forth
