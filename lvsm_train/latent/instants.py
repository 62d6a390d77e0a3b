"""Latents over time: which tokens change between instants, and what tokens between those of two instants show."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from lvsm_train.data.samples import Sample
from lvsm_train.latent import grids, influence, latents
from lvsm_train.latent.atlas import SHADES, Finding
from lvsm_train.latent.latents import LatentScene
from lvsm_train.latent.subjects import Subject, gather
from lvsm_train.latent.workbench import Bench
from lvsm_train.losses.metrics import psnr
from pipeline.report.charts import Plot
from pipeline.report.findings import Table

MOST, SHOWN = 9, 4  # instants; tokens with a map
LEAST = 3  # instants
LACKS = f"it needs a model that knows time, and an object that the same cameras see at {LEAST} instants"


def through_time(bench: Bench) -> Finding | None:
    """The first object that cameras see at several instants, encoded at each of them from these cameras alone.

    None without such an object, or for a model that does not know time.
    """
    if not bench.trained.cfg.model.temporal:
        return None
    found = (
        (subject, seen)
        for subject, sample in zip(bench.subjects, bench.samples, strict=True)
        if (seen := _seen(bench, sample))
    )
    subject, seen = next(found, (None, []))
    if subject is None:
        return None
    number = bench.samples[bench.subjects.index(subject)].number
    samples = [Sample(subject.uid, number, tuple(views), (views[0],)) for views in seen]
    each = gather(bench.net, bench.data, samples)
    times = torch.cat([one.time for one in each])
    tokens = torch.stack([latents.direction(one.scene.tokens) for one in each])  # (K, N, dim)
    change = tokens.var(0, correction=0).mean(-1)
    share = float(
        change.sum() / tokens.flatten(0, 1).var(0, correction=0).sum().clamp(min=1e-12) * tokens.shape[-1] / len(change)
    )
    order = change.argsort(descending=True, stable=True)
    between = torch.stack([_between(bench, each, at) for at in range(len(each))])
    alone = torch.stack([_shown(bench, each[0].scene, one) for one in each])
    own = torch.stack([_shown(bench, one.scene, one) for one in each])
    truth = torch.cat([one.target for one in each])
    ways = {"encoded there": own, "between the first and the last": between, "the first alone": alone}
    scores = {name: psnr(made, truth) for name, made in ways.items()}
    columns = [f"time {float(time):.2f}" for time in times]
    rows = [[name, *(f"{float(value):.2f}" for value in values)] for name, values in scores.items()]
    facts = {
        "object": subject.uid,
        "times": times.tolist(),
        "change_of_tokens": [round(float(one), 6) for one in change],
        "share_of_variance": round(share, 4),
        "psnr": {name: [round(float(one), 3) for one in values] for name, values in scores.items()},
        "psnr_between": {name: round(float(values[1:-1].mean()), 3) for name, values in scores.items()},
    }
    plot = Plot(
        {"change over time": [(float(place), float(value)) for place, value in enumerate(change[order], 1)]},
        "tokens, from the one that changes most",
        "variance over time",
        f"Change over time is {share:.1%} of how tokens differ in all.",
    )
    pictures = {
        "instants": (
            "Rows: the truth, and what is rendered of each kind of tokens.",
            grids.sheet([("truth", truth), *ways.items()], columns),
        ),
        "instants-tokens": _maps(bench, subject, order[:SHOWN]),
    }
    says = (
        f"{subject.uid} is encoded at {len(each)} instants, from pictures of the same {len(seen[0])} cameras at each. "
        "Between: each token on the straight line from its place at the first instant to that at the last, shown at the time "
        "between."
    )
    table = Table(["PSNR, dB", *columns], rows)
    tensors = {"instants/times": times, "instants/directions": tokens, "instants/change": change}
    return Finding(
        "time", "What changes with time", says, pictures, [table, plot], {"instants": facts}, tensors=tensors
    )


def _seen(bench: Bench, sample: Sample) -> list[list[int]]:
    """Views of an object by instant, MOST at most, of cameras that see all of them; none for fewer than LEAST instants."""
    index = bench.data.index
    own = index.of(sample.number)
    time, c2w = index.time[own], index.c2w[own]
    times = np.unique(time)
    by_time = [np.flatnonzero(time == one) for one in times]
    count = min(map(len, by_time))
    same = all(len(views) == count and np.allclose(c2w[views], c2w[by_time[0]], atol=1e-5) for views in by_time)
    if len(times) < LEAST or not same:
        return []
    inputs = min(count, bench.trained.cfg.data.inputs)
    places = np.unique(np.linspace(0, len(times) - 1, MOST).round().astype(int))
    return [by_time[place][:inputs].tolist() for place in places]


def _shown(bench: Bench, scene: LatentScene, at: Subject) -> Tensor:
    """Render tokens by the camera and at the time of a subject's target: (3, H, W)."""
    return at.render(bench.net, scene)[0]


def _between(bench: Bench, each: list[Subject], at: int) -> Tensor:
    """Render tokens on the line from the first instant's to the last one's, at the time of one between."""
    first, last = each[0], each[-1]
    share = float((each[at].time[0] - first.time[0]) / (last.time[0] - first.time[0]))
    tokens = torch.lerp(first.scene.tokens, last.scene.tokens, share)
    return _shown(bench, dataclasses.replace(first.scene, tokens=tokens), each[at])


def _maps(bench: Bench, subject: Subject, order: Tensor) -> tuple[str, np.ndarray]:
    """Picture with its caption: where the object changes without each of the tokens that change most over time."""
    unedited = subject.render(bench.net)
    maps = influence.maps(bench.net, subject, order, bench.cfg.batch)
    top = float(maps.max())
    rows = [("unedited", unedited)]
    rows += [
        (f"token {token}", grids.heat(one, unedited, top)) for token, one in zip(order.tolist(), maps, strict=True)
    ]
    caption = f"Where pictures change without each of the tokens that change most; full red is {top:.3f}, {SHADES}."
    return caption, grids.sheet(rows)
