"""Workbench of all operations on latents: a trained model, objects, chosen tokens, and random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvsm_train.config.trained import LatentConfig
from lvsm_train.data.batches import Data
from lvsm_train.data.samples import Sample
from lvsm_train.latent import influence
from lvsm_train.latent.latents import LatentScene
from lvsm_train.latent.study import Step, Study
from lvsm_train.latent.subjects import Subject, align_first_cameras, gather, pose_difference
from lvsm_train.models.lvsm import EncoderDecoder
from lvsm_train.weights.trained import Trained
from pipeline.core.errors import UserError

ONE_OF = 8  # one of so many tokens is edited, unless --tokens says which
Variant = tuple[str, float, LatentScene]  # label, strength, edited scene


@dataclass
class Bench:
    """Inputs of every operation. samples, subjects: the objects, whose first cameras are aligned if the model has prope
    (`subjects.align_first_cameras`)."""

    trained: Trained
    net: EncoderDecoder
    cfg: LatentConfig
    data: Data
    samples: list[Sample]
    subjects: list[Subject]
    _strengths: dict[str, Tensor] = field(default_factory=dict)

    def generator(self, purpose: str) -> torch.Generator:
        """Random generator of (seed, purpose), independent of other operations."""
        digest = hashlib.blake2b(f"{self.cfg.seed} {purpose}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def order(self, subject: Subject, purpose: str) -> Tensor:
        """Random order (N,) of a subject's tokens."""
        made = torch.randperm(len(subject.scene), generator=self.generator(f"{purpose} {subject.uid}"))
        return made.to(subject.scene.tokens.device)

    def strength(self, subject: Subject) -> Tensor:
        """`influence.strengths` (N, T) of a subject, cached."""
        if subject.uid not in self._strengths:
            self._strengths[subject.uid] = influence.strengths(self.net, subject, at_once=self.cfg.batch)
        return self._strengths[subject.uid]

    def strongest(self, subject: Subject) -> Tensor:
        """Order (N,) of a subject's tokens, the most influential first."""
        return self.strength(subject).mean(1).argsort(descending=True, stable=True)

    def chosen(self, subject: Subject) -> Tensor:
        """Tokens (k,) to edit: those of --tokens, else the most influential eighth. Raises UserError for tokens that do not
        exist."""
        count = len(subject.scene)
        if not self.cfg.tokens:
            return self.strongest(subject)[: max(1, count // ONE_OF)]
        return torch.tensor(token_numbers(self.cfg.tokens, count), device=subject.scene.tokens.device)

    def partner(self, subject: Subject) -> Subject | None:
        """Next object, whose tokens are mixed into this one's; None if there is only one."""
        uids = [one.uid for one in self.subjects]
        following = self.subjects[(uids.index(subject.uid) + 1) % len(uids)]
        return following if len(uids) > 1 else None

    def study(
        self,
        subject: Subject,
        name: str,
        title: str,
        says: str,
        variants: Iterable[Variant],
        base: LatentScene | None = None,
    ) -> Study:
        """Study of variants of a subject, against `base` (by default the subject's own scene)."""
        steps = [Step(label, value, subject.render(self.net, scene)) for label, value, scene in variants]
        return Study(name, title, says, (subject.uid,), subject.render(self.net, base), steps)

    def frame_difference(self) -> tuple[float, float] | None:
        """`subjects.pose_difference` of the first two scenes' frames; None without prope, or if there is only one object."""
        if not self.trained.cfg.model.prope or len(self.subjects) < 2:
            return None
        first, second = (one.scene.frame.double().cpu().numpy() for one in self.subjects[:2])
        return pose_difference(first, second)


def net_with_latents(trained: Trained) -> EncoderDecoder:
    """Network of a model that keeps latents of a scene. Raises UserError for another kind."""
    if isinstance(trained.net, EncoderDecoder):
        return trained.net
    raise UserError(
        f"{trained.run} is a {trained.cfg.model.kind} model, which keeps no latents of a scene",
        "train one that does: lvsm-data train --kind encoder_decoder --latents 64 --data FOLDER --out runs/encdec",
    )


def open_bench(trained: Trained, data: Data, cfg: LatentConfig) -> Bench:
    """Load and encode the objects that cfg names. Raises UserError if the model has no latents, objects or tokens do not
    exist, or pictures do not divide into patches."""
    net = net_with_latents(trained)
    trained.cfg.model.check_pictures(data.hw)
    token_numbers(cfg.tokens, trained.cfg.model.latents)
    samples = choose_samples(trained, data, cfg.objects, cfg.views)
    return Bench(trained, net, cfg, data, samples, gather(net, data, samples))


def choose_samples(trained: Trained, data: Data, uids: Sequence[str], views: int, count: int = 3) -> list[Sample]:
    """Samples of named objects, else of `count` validation objects, filled up to two with training objects; first cameras are
    aligned for models with prope. Raises UserError if there are none."""
    inputs = trained.cfg.data.inputs
    planner = data.planner
    samples = planner.named(uids, inputs, views) if uids else planner.evaluation("val", inputs, views, count)
    if not uids and len(samples) < 2:
        known = {sample.uid for sample in samples}
        others = [sample for sample in planner.evaluation("all", inputs, views) if sample.uid not in known]
        samples += others[: 2 - len(samples)]
    if not samples:
        raise UserError(f"no object has {inputs} views to show and one to ask for", "--data FOLDER names others")
    return _aligned(trained, data, samples)


def pca_samples(bench: Bench) -> list[Sample]:
    """Samples of the bench's objects and others, cfg.pca_objects in all, validation objects first; first cameras are aligned."""
    planner, inputs = bench.data.planner, bench.trained.cfg.data.inputs
    known = {sample.uid: sample for sample in bench.samples}
    every = planner.evaluation("val", inputs, bench.cfg.views) + planner.evaluation("all", inputs, bench.cfg.views)
    for sample in every:
        known.setdefault(sample.uid, sample)
    samples = list(known.values())[: max(bench.cfg.pca_objects, len(bench.samples))]
    return _aligned(bench.trained, bench.data, samples)


def _aligned(trained: Trained, data: Data, samples: list[Sample]) -> list[Sample]:
    is_scene = any(sample.is_scene for sample in samples)
    return align_first_cameras(data, samples) if trained.cfg.model.prope and not is_scene else samples


def token_numbers(ranges: Sequence[str], count: int) -> list[int]:
    """Parse numbers and ranges of tokens, such as "3" and "8:16" (without 16), below `count`, without duplicates. Raises
    UserError."""
    tokens: list[int] = []
    for each in ranges:
        start, colon, stop = each.partition(":")
        if not start.isdecimal() or (colon and not stop.isdecimal()):
            raise UserError(f"--tokens {each} is neither a number nor a range", "--tokens 3 8:16")
        numbers = range(int(start), int(stop) if colon else int(start) + 1)
        if not numbers or numbers[-1] >= count:
            raise UserError(f"--tokens {each}: a scene has tokens 0 to {count - 1}", f"--tokens 0:{min(8, count)}")
        tokens += numbers
    return list(dict.fromkeys(tokens))
