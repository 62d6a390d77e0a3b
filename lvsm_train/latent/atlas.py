"""Analyses over tokens and objects: influence on pictures, principal components, nearest scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvsm_train.evaluation import flight
from lvsm_train.latent import grids, influence, latents
from lvsm_train.latent.influence import Components
from lvsm_train.latent.latents import LatentScene
from lvsm_train.latent.study import Study
from lvsm_train.latent.subjects import Subject, gather
from lvsm_train.latent.workbench import Bench, Variant, pca_samples
from pipeline.report.charts import Plot
from pipeline.report.findings import Table

SHOWN, LISTED, ORBIT = 6, 48, 12  # tokens with a map, tokens in a matrix, cameras in an orbit
AXES, NEAREST = 4, 5
SHADES = "half as red a quarter of it"


@dataclass(frozen=True)
class Finding:
    """Result of an analysis, besides studies. pictures: file name -> (caption, (h, w, 3) uint8). facts: entries of latent.json.
    tensors: of latent.safetensors."""

    name: str
    title: str
    says: str
    pictures: dict[str, tuple[str, np.ndarray]]
    blocks: list[Table | Plot]
    facts: dict[str, Any]
    studies: list[Study] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)


# ---- influence


def influences(bench: Bench) -> Finding:
    """Influence of each token on pictures: per pixel, per camera, and per token."""
    rows, entries, tensors = [], [], {}
    for number, subject in enumerate(bench.subjects, 1):
        tensors[f"object-{number}/influence"] = strength = bench.strength(subject)
        mean = strength.mean(1).sort(descending=True).values
        half = int((mean.cumsum(0) < mean.sum() / 2).sum()) + 1
        numbers = [float(mean[0]), float(mean.median()), float(mean[-1])]
        rows.append([subject.uid, *(f"{each:.4f}" for each in numbers), f"{half} of {len(mean)}"])
        entries.append({"object": subject.uid, "rms_change": _rounded(strength), "tokens_for_half": half})
    table = Table(["object", "strongest", "median", "weakest", "tokens for half of the sum"], rows)
    strongest, maps = bench.strongest(bench.subjects[0])[:SHOWN], "influence/maps"
    tensors["influence/tokens"] = strongest
    tensors[maps] = influence.maps(bench.net, bench.subjects[0], strongest, bench.cfg.batch)
    pictures = {"influence": _maps(bench, bench.subjects[0], strongest, tensors[maps])}
    blocks: list[Table | Plot] = [table]
    if not bench.samples[0].is_scene:
        pictures["influence-cameras"], plot, around = _around(bench, bench.subjects[0])
        tensors |= {f"influence/orbit/{name}": values for name, values in around.items()}
        blocks.append(plot)
    says = (
        "The weight of one token after the other goes to 0. Its influence on a picture is the root mean squared change of values "
        "in [0, 1]; the table has the mean over cameras."
    )
    title, facts = "What each token is for", {"influence": entries}
    return Finding("influence", title, says, pictures, blocks, facts, tensors=tensors)


def _maps(bench: Bench, subject: Subject, order: Tensor, maps: Tensor) -> tuple[str, np.ndarray]:
    unedited = subject.render(bench.net)
    top = float(maps.max())
    rows = [("unedited", unedited)]
    strength = bench.strength(subject).mean(1)
    for token, one in zip(order.tolist(), maps, strict=True):
        rows.append((f"token {token}\n{float(strength[token]):.4f}", grids.heat(one, unedited, top)))
    caption = (
        f"{subject.uid}: where pictures change without each of the strongest tokens; full red is {top:.3f}, {SHADES}."
    )
    return caption, grids.sheet(rows)


def _around(bench: Bench, subject: Subject) -> tuple[tuple[str, np.ndarray], Plot, dict[str, Tensor]]:
    """Picture with its caption, plot, and tensors of how much tokens change views of an orbit."""
    sample = bench.samples[0]
    views = bench.data.index.first[sample.number] + np.array(sample.inputs)
    index = bench.data.index
    circle = flight.orbit(index.c2w[views], index.fxfycxcy[views], ORBIT)
    c2w, k = (torch.from_numpy(each).to(subject.c2w) for each in circle)
    turning = dataclasses.replace(subject, c2w=c2w, fxfycxcy=k)
    order = bench.strongest(subject)[:LISTED]
    strength = influence.strengths(bench.net, turning, order, bench.cfg.batch)
    labels = [f"token {token}" for token in order.tolist()]
    picture = grids.matrix(strength, turning.render(bench.net), labels)
    most = float(strength.max())
    caption = (
        f"{subject.uid}: how much {len(labels)} tokens change views from around; full red is {most:.3f}, {SHADES}."
    )
    series = {
        label: [(360 / ORBIT * view, float(value)) for view, value in enumerate(row)]
        for label, row in zip(labels[:4], strength, strict=False)
    }
    plot = Plot(
        series, "degrees around the object", "root mean squared change", "The four strongest tokens over an orbit."
    )
    tensors = {"tokens": order, "change": strength, "c2w": c2w, "fxfycxcy": k}
    return (caption, picture), plot, tensors


# ---- principal components


def spectrum(bench: Bench) -> Finding | None:
    """Principal components of tokens, and of whole scenes, over many objects. None for fewer than three objects."""
    subjects = gather(bench.net, bench.data, pca_samples(bench))
    if len(subjects) < 3:
        return None
    first = bench.subjects[0]
    points = torch.stack([latents.direction(subject.scene.tokens) for subject in subjects])  # (S, N, dim)
    others = points[[subject.uid != first.uid for subject in subjects]]
    tokens, scenes = influence.principal(points.flatten(0, 1)), influence.principal(others.flatten(1))
    places = scenes.coordinates(points.flatten(1))
    views = torch.stack([subject.inputs[0] for subject in subjects])
    caption = f"{len(subjects)} objects by the first two components of their scenes. Framed: the objects of this page."
    pictures = {"pca-map": (caption, grids.scatter(_first_two(places), views, len(bench.subjects)))}
    pictures["pca-nearest"], near = _neighbours(bench, subjects, points.flatten(1))
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count <= max(len(tokens.share), len(scenes.share))]
    both = {"tokens": tokens, "scenes": scenes}
    rows = [[name, *(_variance_share(components, count) for count in counts)] for name, components in both.items()]
    table = Table(["variance in the first ... components", *map(str, counts)], rows)
    numbers = {
        "objects": [subject.uid for subject in subjects],
        "tokens": {"share": _rounded(tokens.share), "components_for_90_percent": tokens.needed(0.9)},
        "scenes": {"share": _rounded(scenes.share), "coordinates": _rounded(places[:, :AXES])},
        "nearest": near,
    }
    says = (
        f"All {len(points.flatten(0, 1))} tokens of {len(subjects)} objects as points, and each object but {first.uid} as one: "
        "its tokens' directions in the order of their slots."
    )
    tensors = {f"pca/{name}/{part}": values for name, found in both.items() for part, values in vars(found).items()}
    tensors["pca/scenes/coordinates"] = places
    studies = _studies(bench, tokens, scenes)
    return Finding("pca", "Principal components", says, pictures, [table], {"pca": numbers}, studies, tensors)


def _studies(bench: Bench, tokens: Components, scenes: Components) -> list[Study]:
    """Studies of the first object: rebuilt from few components of tokens or of other scenes, and moved along them."""
    first, scene, mean = bench.subjects[0], bench.subjects[0].scene, scenes.mean
    own = latents.direction(scene.tokens)
    kept = "Every token was replaced by the nearest point that the first components of all tokens reach."
    rebuilt = (
        f"{first.uid} as the nearest point that the first components of the other objects' scenes reach; 0: their mean."
    )
    moved = "All tokens were moved along one component of all tokens, by two standard deviations."
    walked = (
        "From the mean of the other objects' scenes, which is what is called unedited here, along their components."
    )
    by_tokens, by_scenes = _rebuilt(scene, tokens, own)[1:], _rebuilt(scene, scenes, own.flatten())
    along_tokens, along_scenes = _walk(scene, tokens, own), _walk(scene, scenes, mean)
    return [
        bench.study(first, "pca-tokens-kept", "Tokens rebuilt from few components", kept, by_tokens),
        bench.study(first, "pca-scenes-kept", "A scene rebuilt from other scenes", rebuilt, by_scenes),
        bench.study(first, "pca-tokens-walk", "Along the components of tokens", moved, along_tokens),
        bench.study(
            first, "pca-scenes-walk", "Along the components of scenes", walked, along_scenes, _with(scene, mean)
        ),
    ]


def _rebuilt(scene: LatentScene, components: Components, directions: Tensor) -> list[Variant]:
    """Variants with the first 0, 1, 2, 4, ... components of the scene's directions, as of `_with`."""
    own = components.coordinates(directions)
    counts = [0, *(2**power for power in range(len(components.share).bit_length()))]
    return [(f"{count} components", count, _with(scene, components.points(own[..., :count]))) for count in counts]


def _walk(scene: LatentScene, components: Components, start: Tensor) -> Iterator[Variant]:
    """Yield variants two standard deviations from `start` along each of the first AXES components, both ways."""
    for axis in range(min(AXES, len(components.share))):
        for step in (-2, 2):
            offset = step * components.spread[axis] * components.axes[axis]
            yield f"{axis + 1}: {step:+d} sd", float(step), _with(scene, start + offset)


def _with(scene: LatentScene, directions: Tensor) -> LatentScene:
    """Replace all tokens by `directions`, (N, dim) or (N * dim,)."""
    return dataclasses.replace(scene, tokens=directions.to(scene.tokens).view_as(scene.tokens))


def _neighbours(
    bench: Bench, subjects: list[Subject], points: Tensor
) -> tuple[tuple[str, np.ndarray], list[dict[str, Any]]]:
    """Nearest scenes of each object of the bench, by cosine of the differences from the mean scene."""
    centred = torch.nn.functional.normalize(points - points.mean(0), dim=1)
    cosine = centred @ centred.mT
    rows, entries = [], []
    for number, subject in enumerate(subjects[: len(bench.subjects)]):
        order = [other for other in cosine[number].argsort(descending=True).tolist() if other != number][:NEAREST]
        rows.append((subject.uid[:16], torch.stack([subjects[other].inputs[0] for other in (number, *order)])))
        near = [{"object": subjects[other].uid, "cosine": round(float(cosine[number, other]), 4)} for other in order]
        entries.append({"object": subject.uid, "nearest": near})
    columns = ["itself", *(f"nearest {place}" for place in range(1, len(rows[0][1])))]
    caption = "The objects of this page, each beside those whose scenes are nearest."
    return (caption, grids.sheet(rows, columns)), entries


def _first_two(places: Tensor) -> Tensor:
    return torch.nn.functional.pad(places, (0, max(0, 2 - places.shape[1])))[:, :2]


def _variance_share(components: Components, count: int) -> str:
    return f"{float(components.share[:count].sum()):.0%}" if count <= len(components.share) else ""


def _rounded(values: Tensor) -> list[Any]:
    return list(np.round(values.double().cpu().numpy(), 6).tolist())
