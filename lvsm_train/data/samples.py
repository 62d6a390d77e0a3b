"""Samples of a training step or an evaluation: which views of which objects. No pixels here."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lvsm_train.config.train import DataConfig
from lvsm_train.data import view_sampling
from lvsm_train.data.index import Index
from pipeline.core.errors import UserError
from pipeline.core.records import item_rng
from pipeline.formats.trajectories import Example
from pipeline.storage.shards import split_of

KINDS = {True: "clips", False: "objects"}  # by `is_scene`
HELD_PERCENT = 5.0  # of the objects are for validation, without val-*.parquet files


@dataclass(frozen=True)
class Sample:
    """number: of the object in the index. inputs, targets: its views. angle: rotation of the world about z, in radians.
    is_scene: its poses are to be normalised.
    """

    uid: str
    number: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    angle: float = 0.0
    is_scene: bool = False


class Planner:
    """Chooses samples: for training by the seed, for evaluation independently of it.

    train, val: index numbers of training and of held-out objects. is_scene: (N,) True for those that follow the rule of scenes
    (a window of frames, normalised poses, no rotation): clips, whatever the settings are, and with cfg.scenes all but what is
    known to be an object. notes: for the user. choose: hold out some of the objects if no shard is for validation.
    """

    def __init__(self, cfg: DataConfig, index: Index, choose: bool = True) -> None:
        self.cfg, self.index = cfg, index
        rule = [view_sampling.is_scene(subject, cfg.scenes) for subject in index.subjects]
        self.is_scene = np.array(rule, bool)[index.path]
        self.notes = _kinds(cfg, self.is_scene)
        held = index.val.copy()
        if choose and not held.any():
            names = index.videos()
            held[:] = [split_of(name, HELD_PERCENT) == "val" for name in names]
            if not held.any() and len(set(names)) > 1:
                held[:] = np.array(names) == min(names, key=_hash)
            self.notes.append(f"no val-*.parquet: {held.sum()} of {len(held)} are held out, by a hash of their names")
        train = np.flatnonzero(~held)
        able = np.array([self._fits(number, cfg.inputs + cfg.targets) for number in train], bool)
        if not able.all():
            lacks = ("too few views", "no window of --gap-min to --gap-max frames with enough views")
            for is_scene, lack in enumerate(lacks):
                if out := int((~able & (self.is_scene[train] == is_scene)).sum()):
                    self.notes.append(f"{out} of {len(able)} do not train: {lack}")
        self.val, self.train = np.flatnonzero(held), train[able]

    def kinds(self) -> dict[str, int]:
        """Number of clips and of objects."""
        scenes = int(self.is_scene.sum())
        return {KINDS[True]: scenes, KINDS[False]: len(self.is_scene) - scenes}

    def _fits(self, number: int, views: int) -> bool:
        """True if an object has enough views to train on, or a clip a window with enough of them."""
        frame = self.index.frame[self.index.of(number)][self._able(number)]
        return view_sampling.fits(frame, views, self.cfg.held_views, self.cfg.gap if self.is_scene[number] else None)

    def _able(self, number: int) -> np.ndarray:
        """Views of an object that may train, ascending: all but those that their set keeps for validation or tests."""
        return self.index.trains[self.index.of(number)].nonzero()[0]

    def training(self, step: int, part: int, parts: int) -> list[Sample]:
        """Samples of part `part` of a step, which all ranks cut into `parts`; their union does not depend on `parts`.

        Raises UserError if there is nothing to train on.
        """
        cfg = self.cfg
        if not len(self.train):
            raise UserError("there is nothing to train on", "; ".join(self.notes))
        start = (step * parts + part) * cfg.batch
        numbers = [
            int(self.train[view_sampling.object_at(cfg.seed, position, len(self.train), cfg.samples_per_object)])
            for position in range(start, start + cfg.batch)
        ]
        return self.step_samples(step, start, numbers)

    def step_samples(self, step: int, start: int, numbers: Sequence[int]) -> list[Sample]:
        """Samples of these objects for a step. Views and rotations are drawn by positions `start`, `start` + 1, ..."""
        cfg = self.cfg
        inputs = view_sampling.view_count(cfg.seed, step, "inputs", cfg.least_inputs, cfg.inputs)
        targets = view_sampling.view_count(cfg.seed, step, "targets", cfg.least_targets, cfg.targets)
        return [self._entry(position, number, inputs, targets) for position, number in enumerate(numbers, start)]

    def _entry(self, position: int, number: int, inputs: int, targets: int) -> Sample:
        cfg = self.cfg
        rng = item_rng(cfg.seed, str(position), "views")
        able = self._able(number)
        if self.is_scene[number]:
            return self._clip(number, able, rng, inputs, targets, cfg.target_among_inputs)
        angle = 0.0
        if cfg.rotate:  # by a second generator, so that --no-rotate changes no views
            angle = 2 * np.pi * item_rng(cfg.seed, str(position), "turn").random()
        able = able[: len(able) - cfg.held_views]
        centres = self.index.c2w[self.index.of(number), :3, 3][able] if cfg.farthest_inputs else None
        shown, target = view_sampling.object_views(rng, len(able), inputs, targets, cfg.target_among_inputs, centres)
        return self._sample(number, able[shown], able[target], angle)

    def _clip(
        self, number: int, able: np.ndarray, rng: np.random.Generator, inputs: int, targets: int, among: bool
    ) -> Sample:
        frame = self.index.frame[self.index.of(number)]
        order = able[np.argsort(frame[able], kind="stable")]
        shown, target = view_sampling.clip_views(rng, frame[order], inputs, targets, self.cfg.gap, among)
        return self._sample(number, order[shown], order[target])

    def _sample(self, number: int, inputs: np.ndarray, targets: np.ndarray, angle: float = 0.0) -> Sample:
        views = tuple(inputs.tolist()), tuple(targets.tolist())
        return Sample(self.index.uids[number], number, *views, angle, bool(self.is_scene[number]))

    def evaluation(
        self,
        which: Literal["val", "held", "all"] = "val",
        inputs: int = 4,
        targets: int = 10,
        count: int | None = None,
        scenes: bool | None = None,
    ) -> list[Sample]:
        """Fixed samples for evaluation, independent of the seed and of how a model is trained.

        which: "val" takes held-out objects, "all" any; "held" takes training objects, with their held_views as targets.
        count: at most so many objects, chosen by a hash of their uid. scenes: of those with this `is_scene` alone, None: of all.
        Inputs are farthest points from a first view, of what moves in place and time, which the
        uid seeds, as it does the targets (fewer where an object has no more; of what moves first those at times that no input
        has) and a clip's window. Objects with too few views
        are left out. Raises UserError for "held" without held_views.
        """
        if which == "held" and not self.cfg.held_views:
            raise UserError("no views of training objects are held out", "--held-views 4")
        numbers = {"val": self.val, "held": self.train, "all": np.arange(len(self.index.uids))}[which].tolist()
        numbers = [number for number in numbers if scenes is None or self.is_scene[number] == scenes]
        numbers.sort(key=lambda number: _hash(self.index.uids[number]))
        found = (self._fixed(number, inputs, targets, which == "held") for number in numbers)
        return list(itertools.islice((sample for sample in found if sample), count))

    def named(self, uids: Sequence[str], inputs: int, targets: int) -> list[Sample]:
        """Samples of these objects as `evaluation` makes them, for training and held-out objects alike.

        Raises UserError for objects that do not exist or have too few views.
        """
        number_of = {uid: number for number, uid in enumerate(self.index.uids)}
        found = []
        for uid in uids:
            if uid not in number_of:
                some = [self.index.uids[number] for number in self.val[:3]] or self.index.uids[:3]
                raise UserError(f"there is no object {uid} among {len(number_of)}", f"there are {', '.join(some)}, ...")
            if (sample := self._fixed(number_of[uid], inputs, targets)) is None:
                raise UserError(f"{uid} has too few views for {inputs} inputs and a target", "choose another object")
            found.append(sample)
        return found

    def _fixed(self, number: int, inputs: int, targets: int, held: bool = False) -> Sample | None:
        """Sample of an object for evaluation; None: too few views. held: targets are its held_views, and inputs others."""
        own, rng = self.index.of(number), item_rng(0, self.index.uids[number], "evaluation")
        if self.is_scene[number]:
            fits = self._fits(number, inputs + targets)
            return self._clip(number, self._able(number), rng, inputs, targets, False) if fits else None
        views = self._able(number) if held else np.arange(self.index.views(number))
        seen, unseen = (views[: -self.cfg.held_views], views[-self.cfg.held_views :]) if held else (views, views)
        if len(seen) < inputs:
            return None
        places, time = self.index.c2w[own][:, :3, 3], self.index.time[own]
        places = view_sampling.in_place_and_time(places, time)
        shown = seen[view_sampling.farthest_points(places[seen], inputs, int(rng.integers(len(seen))))]
        asked = rng.permutation(np.setdiff1d(unseen, shown))
        # first at instants that no input shows
        asked = asked[np.argsort(np.isin(time[asked], time[shown]), kind="stable")] if time.any() else asked
        target = np.sort(asked[:targets])
        return self._sample(number, shown, target) if len(target) else None


def _kinds(cfg: DataConfig, is_scene: np.ndarray) -> list[str]:
    """Notes where the data are of another kind than the settings are for. Raises UserError for settings that they exclude."""
    scenes = int(is_scene.sum())
    if scenes and cfg.least_inputs < 2:
        raise UserError(f"{scenes} of {len(is_scene)} are clips, which need two inputs", "--inputs 2")
    if scenes and (cfg.farthest_inputs or cfg.held_views):
        said = f"{scenes} of {len(is_scene)} are clips, and --farthest-inputs and --held-views are for objects"
        raise UserError(said, "leave them out, or train on folders of objects alone")
    if scenes and not cfg.scenes:
        rule = "inputs enclose a window of --gap-min to --gap-max frames, poses are normalised, and no world is turned"
        return [f"{scenes} of {len(is_scene)} are clips, these settings are for objects; of clips {rule}"]
    if cfg.scenes and (objects := len(is_scene) - scenes):
        rule = "views are drawn from all of them, and poses are not normalised"
        return [f"{objects} of {len(is_scene)} are objects, these settings are for clips; of objects {rule}"]
    return []


def index_samples(index: Mapping[str, Example], shards: Index, is_scene: np.ndarray) -> list[Sample]:
    """Samples of an evaluation index, for those of its clips that the shards have with all frames it names.

    is_scene: (N,) as of Planner.

    Raises UserError if there are none.
    """
    number_of = {uid: number for number, uid in enumerate(shards.uids)}
    found = []
    for key, example in index.items():
        if (number := number_of.get(key)) is None:
            continue
        view_of = {int(frame): view for view, frame in enumerate(shards.frame[shards.of(number)])}
        if all(frame in view_of for frame in example.context + example.target):
            inputs, targets = (
                tuple(view_of[frame] for frame in frames) for frames in (example.context, example.target)
            )
            found.append(Sample(key, number, inputs, targets, is_scene=bool(is_scene[number])))
    if not found:
        raise UserError("the shards have none of the clips of the evaluation index with the frames that it names")
    return found


def equal_views(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """Split samples, in order, into lists of at most `size` with equal numbers of inputs and of targets."""
    for _, same in itertools.groupby(samples, lambda sample: (len(sample.inputs), len(sample.targets))):
        while some := list(itertools.islice(same, size)):
            yield some


def _hash(uid: str) -> bytes:
    return hashlib.blake2b(uid.encode(), digest_size=8).digest()
