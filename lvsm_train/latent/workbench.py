"""What all operations on latents work with: a trained model, objects, which tokens, and random numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lvsm_train.config.train import DataConfig
from lvsm_train.config.trained import LatentConfig
from lvsm_train.data.batches import Data
from lvsm_train.data.samples import Sample
from lvsm_train.latent import influence
from lvsm_train.latent.subjects import Subject, gather, stand_alike, standing_apart
from lvsm_train.models.lvsm import EncoderDecoder
from lvsm_train.weights.trained import Trained
from pipeline.core.errors import UserError

FEWEST = 8  # of N tokens are edited one in so many, unless the user says which


@dataclass
class Bench:
    """cfg: what the user asked for. data: where objects come from. subjects: the objects, in like frames where
    the model has prope, see `subjects.stand_alike`."""

    trained: Trained
    net: EncoderDecoder
    cfg: LatentConfig
    data: Data
    samples: list[Sample]
    subjects: list[Subject]
    _strengths: dict[str, Tensor] = field(default_factory=dict)

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers of their own for each purpose: the same whatever else was asked for."""
        digest = hashlib.blake2b(f"{self.cfg.seed} {purpose}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def order(self, subject: Subject, purpose: str) -> Tensor:
        """All tokens' numbers (N,) in a random order."""
        made = torch.randperm(len(subject.scene), generator=self.generator(f"{purpose} {subject.uid}"))
        return made.to(subject.scene.tokens.device)

    def strength(self, subject: Subject) -> Tensor:
        """(N, T), see influence.strengths. Measured when it is first asked for."""
        if subject.uid not in self._strengths:
            self._strengths[subject.uid] = influence.strengths(self.net, subject, at_once=self.cfg.batch)
        return self._strengths[subject.uid]

    def strongest(self, subject: Subject) -> Tensor:
        """All tokens' numbers (N,), the one without which pictures change most first."""
        return self.strength(subject).mean(1).argsort(descending=True, stable=True)

    def chosen(self, subject: Subject) -> Tensor:
        """The tokens (k,) that are edited: as the user said, else the most influential eighth. Raises UserError for tokens that
        there are not."""
        count = len(subject.scene)
        if not self.cfg.tokens:
            return self.strongest(subject)[: max(1, count // FEWEST)]
        return torch.tensor(token_numbers(self.cfg.tokens, count), device=subject.scene.tokens.device)

    def partner(self, subject: Subject) -> Subject | None:
        """The object whose tokens come into this one's: the next, None where there is one object alone."""
        uids = [one.uid for one in self.subjects]
        following = self.subjects[(uids.index(subject.uid) + 1) % len(uids)]
        return following if len(uids) > 1 else None

    def apart(self) -> tuple[float, float] | None:
        """How the frames of the first two scenes stand to each other, see subjects.standing_apart; None where that is nothing to
        the model, or there is one object alone."""
        if not self.trained.cfg.model.prope or len(self.subjects) < 2:
            return None
        first, second = (one.scene.frame.double().cpu().numpy() for one in self.subjects[:2])
        return standing_apart(first, second)


def open_bench(trained: Trained, data: Data, cfg: LatentConfig) -> Bench:
    """A bench with the objects that cfg names. Raises UserError: the model keeps no latents, objects that are not there, tokens
    that are not there, pictures that have no whole patches."""
    net = trained.net
    if not isinstance(net, EncoderDecoder):
        raise UserError(
            f"{trained.run} is a run of a {trained.cfg.model.kind} model, which keeps no latents of a scene",
            "train one that does: lvsm-data train --kind encoder_decoder --latents 64 --data FOLDER --out runs/encdec",
        )
    trained.check(data.hw)
    token_numbers(cfg.tokens, trained.cfg.model.latents)
    samples = choose(trained, data, cfg.objects, cfg.views)
    return Bench(trained, net, cfg, data, samples, gather(net, data, samples))


def choose(trained: Trained, data: Data, uids: Sequence[str], views: int, count: int = 3) -> list[Sample]:
    """Samples of named objects, else of so many that do not train, in like frames. Where fewer than two do not, one or two that
    do. Raises UserError where there are none."""
    inputs = trained.cfg.data.inputs
    planner = data.planner
    made = planner.named(uids, inputs, views) if uids else planner.evaluation("val", inputs, views, count)
    if not uids and len(made) < 2:
        known = {sample.uid for sample in made}
        made += [sample for sample in planner.evaluation("all", inputs, views) if sample.uid not in known][
            : 2 - len(made)
        ]
    if not made:
        raise UserError(f"no object has {inputs} views to show and one to ask for", "--data FOLDER names others")
    alike = trained.cfg.model.prope and not trained.cfg.data.scenes
    return stand_alike(data, made) if alike else made


def pool(bench: Bench) -> list[Sample]:
    """The bench's objects and others, cfg.pca_objects in all: those that do not train first. In frames like the first one's."""
    planner, inputs = bench.data.planner, bench.trained.cfg.data.inputs
    known = {sample.uid: sample for sample in bench.samples}
    every = planner.evaluation("val", inputs, bench.cfg.views) + planner.evaluation("all", inputs, bench.cfg.views)
    for sample in every:
        known.setdefault(sample.uid, sample)
    made = list(known.values())[: max(bench.cfg.pca_objects, len(bench.samples))]
    alike = bench.trained.cfg.model.prope and not bench.trained.cfg.data.scenes
    return stand_alike(bench.data, made) if alike else made


def data_config(trained: Trained, cfg: LatentConfig) -> DataConfig:
    """Where objects come from: as in training, but for what cfg says; read when they are asked for."""
    own = trained.cfg.data
    return replace(own, data=cfg.data or own.data, res=cfg.res or own.res, workers=0, cache="none")


def token_numbers(told: Sequence[str], count: int) -> list[int]:
    """Numbers and ranges, such as "3" and "8:16" (16 is not among them), of `count` tokens, each once. Raises UserError."""
    made: list[int] = []
    for each in told:
        start, colon, stop = each.partition(":")
        if not start.isdecimal() or (colon and not stop.isdecimal()):
            raise UserError(f"--tokens {each} is neither a number nor a range", "--tokens 3 8:16")
        numbers = range(int(start), int(stop) if colon else int(start) + 1)
        if not numbers or numbers[-1] >= count:
            raise UserError(f"--tokens {each}: a scene has tokens 0 to {count - 1}", f"--tokens 0:{min(8, count)}")
        made += numbers
    return list(dict.fromkeys(made))
