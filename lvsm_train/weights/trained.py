"""Loading of trained models, wherever they are: the one door for `eval`, `latent`, --start-from and Python."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvsm_train.config.places import on_hub
from lvsm_train.config.presets import PRESETS
from lvsm_train.config.train import DataConfig, ModelConfig, TrainConfig
from lvsm_train.config.trained import EvalConfig, LatentConfig
from lvsm_train.device.devices import device_of
from lvsm_train.models import lvsm
from lvsm_train.models.lvsm import LVSM
from lvsm_train.weights import checkpoint, hub, published
from lvsm_train.weights.official import config_of, from_official
from lvsm_train.weights.readers import read_safetensors, read_torch
from pipeline.core.errors import UserError
from pipeline.core.paths import file_stem
from pipeline.storage.train_run import CHECKPOINTS, COMMIT, CONFIG, WEIGHTS

AUX_HEADS = "aux."  # begins the names of weights that rendering does without
PLACES = "a run of `lvsm-data train`, an exported model, a .safetensors or .pt file, or hf:OWNER/NAME"


@dataclass(frozen=True)
class Trained:
    """A trained model. net: in eval mode, with the averaged weights if the run has them. cfg: the run's settings.

    step: 0 where it is not known. run: the folder, file or address that it is of. card: what it was trained on and how it scores
    (training/card.py), {} where nobody says. notes: for the user.
    """

    net: LVSM
    cfg: TrainConfig
    step: int
    run: Path
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def data_config(self, cfg: EvalConfig | LatentConfig, **more: Any) -> DataConfig:
        """Data settings of the run, with the folders and the width of `cfg` if given, and no cache: few objects are read.

        Raises UserError where neither says where data are: a model that was passed on does not.
        """
        own = self.cfg.data
        if not (data := cfg.data or own.data):
            raise UserError(
                f"{self.run} does not say where data are", "--data FOLDER, the --out of render, import or clip"
            )
        return dataclasses.replace(own, data=data, res=cfg.res or own.res, cache="none", **more)

    def results(self, verb: str) -> Path:
        """Default folder for the results of a verb: RUN/VERB of a run; of any other model VERB/NAME in the current folder."""
        return (
            self.run / verb if (self.run / CHECKPOINTS).is_dir() else Path(verb).absolute() / file_stem(self.run.name)
        )


def open_model(where: Path | str, step: int | None = None, device: str = "auto", preset: str | None = None) -> Trained:
    """Load a trained model, ready to render.

    where: folder of a run (its newest checkpoint, or that of `step`), RUN/checkpoints/step-N.pt, folder of an exported model or
    its model.safetensors, a checkpoint of the official LVSM (.pt, .safetensors), or hf:OWNER/NAME[@REVISION][/FILE] with one of
    the last two. preset: name of the preset (`config.presets`) that a checkpoint of the official LVSM is of, which nothing in it
    says; its widths and numbers of layers are read from the weights.

    Nothing in a file is executed. Raises UserError for what is not there or cannot be read, names, shapes, sizes or hashes that
    are wrong, and a preset that is missing, of another model, or not needed.
    """
    found = _find(where, step, device_of(device))
    if found.cfg is None:
        found = _official(found, preset)
    elif preset is not None:
        raise UserError(f"{where} says itself what it is, and --preset {preset} too", "leave --preset out")
    assert found.cfg is not None
    net = _built(found.weights, found.cfg.model, found.where).to(device_of(device))
    return Trained(net.eval().requires_grad_(False), found.cfg, found.step, found.where, found.card, found.notes)


def start_weights(net: LVSM, where: Path) -> str:
    """Load into a model the weights of another, from any place that `open_model` takes.

    Heads of --aux that are not there stay new, and those that the model has not are left; returned is a line that says so, or "".
    Raises UserError if they cannot be read, or are of another model.
    """
    own = {name: weight for name, weight in net.state_dict().items() if name.startswith(AUX_HEADS)}
    found = _find(where, None, torch.device("cpu"))
    try:
        weights = found.weights
        if found.cfg is None:
            weights = from_official(weights, dataclasses.replace(net.config, aux=())).state_dict()
        heads = {name for name in weights if name.startswith(AUX_HEADS)}
        kept = {name: weight for name, weight in weights.items() if name not in heads - own.keys()}
        net.load_state_dict(own | kept)
    except (ValueError, RuntimeError) as error:  # PyTorch's for wrong names and shapes
        said = " ".join(str(error).split("\n")[:2])
        raise UserError(f"--start-from {where}: {said}", "the model's flags must be those of these weights") from None
    told = {"new": own.keys() - heads, "left out": heads - own.keys()}
    said = "; ".join(f"its {_heads(names)} is {what}" for what, names in told.items() if names)
    return f"--start-from {where}: {said}" if said else ""


def _heads(names: Iterable[str]) -> str:
    """Heads that weights of these names belong to: aux.depth.norm.weight -> --aux depth."""
    return f"--aux {' '.join(sorted({name.split('.')[1] for name in names}))}"


@dataclass(frozen=True)
class _Found:
    """Weights by name, and what is known of them. cfg: None for a checkpoint of the official LVSM, whose names they then have."""

    weights: dict[str, Tensor]
    where: Path
    cfg: TrainConfig | None = None
    step: int = 0
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _find(where: Path | str, step: int | None, device: torch.device) -> _Found:
    """Read weights from any place. Raises UserError."""
    if not isinstance(where, str | Path):
        raise UserError(
            f"a model's place is a text or a path, and not of type {type(where).__name__}", f"give {PLACES}"
        )
    if not str(where).strip():
        raise UserError("a model's place is empty", f"give {PLACES}")
    try:
        return _read(where, step, device)
    except OSError as error:  # a name that is too long, a file that is not ours to read, a disk
        raise UserError(f"{where} cannot be read: {error.strerror or error}", f"give {PLACES}") from None


def _read(where: Path | str, step: int | None, device: torch.device) -> _Found:
    path = (
        hub.obtain(where) if on_hub(where) else Path(os.path.expanduser(where))
    )  # no error for homes that are not there
    of_run = COMMIT.fullmatch(path.with_suffix(".json").name) if path.parent.name == CHECKPOINTS else None
    if of_run and path.is_file():
        return _of_run(path.parent.parent, int(of_run[1]), device)
    if path.name == WEIGHTS and published.is_ours(path.parent):
        path = path.parent
    if path.is_dir() and not published.is_published(path):
        return _of_run(path, step, device)
    if step is not None:
        raise UserError(f"--step {step} is for the folder of a run, which {where} is not", "leave --step out")
    if path.is_dir():
        weights, said = published.read(path)
        return _Found(weights, Path(where), said.cfg, said.step, said.card)
    if not path.is_file():
        raise UserError(f"{where} is not there", f"give {PLACES}")
    return _Found(_file(path, where), Path(where))


def _of_run(run: Path, step: int | None, device: torch.device) -> _Found:
    loaded = checkpoint.load(run, step, str(device))
    if loaded is None:
        raise UserError(f"{run} has no checkpoint", "give the --out of lvsm-data train, after its first checkpoint")
    state, facts = loaded
    weights = state["average"]["weights"] if state["average"] else state["model"]
    return _Found(weights, run, TrainConfig.from_json(facts["config"]), int(facts["step"]), card_of(run))


def card_of(run: Path) -> dict[str, Any]:
    """Card of a run (training/card.py); {} where it has none, or none that can be read."""
    try:
        return dict(json.loads((run / "card.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _file(path: Path, where: Path | str) -> dict[str, Tensor]:
    """Weights, by official names, of a bare file."""
    read = read_safetensors if path.suffix == ".safetensors" else read_torch
    weights = read(path)
    if any(name.startswith("image_tokens.") for name in weights):
        raise UserError(
            f"{where} has weights of lvsm-data without what says of which model they are",
            f"give the folder of the run, or of the exported model, whose {CONFIG} says it",
        )
    return weights


def _official(found: _Found, preset: str | None) -> _Found:
    """Rename official weights to our names, with the settings of a preset for all that the weights do not say."""
    try:
        config = config_of(found.weights)
        weights = from_official(found.weights).state_dict()
    except ValueError as error:
        raise UserError(f"{found.where}: {error}", f"give {PLACES}") from None
    fits = [name for name, one in PRESETS.items() if name.startswith("official") and one.model.kind == config.kind]
    says = f"--preset {fits[0]} (or {', '.join(fits[1:])}) is for a {config.kind}"
    if preset is None:
        raise UserError(f"{found.where} does not say how it was trained", says)
    if preset not in PRESETS:
        raise UserError(f"--preset {preset} is no preset", says)
    if preset not in fits:
        raise UserError(
            f"{found.where} is a {config.kind}, and --preset {preset} is not of one by official names", says
        )
    known = PRESETS[preset]
    names = ("dim", "head_dim", "patch", "layers", *(("encoder_layers", "latents") * (config.kind != "decoder_only")))
    pairs = {name: (getattr(config, name), getattr(known.model, name)) for name in names}
    other = [f"{name} {ours}, there {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    notes = (f"{found.where} is not of the size of {preset}: {', '.join(other)}",) if other else ()
    return dataclasses.replace(found, weights=weights, cfg=dataclasses.replace(known, model=config), notes=notes)


def _built(weights: Mapping[str, Tensor], config: ModelConfig, where: Path | str) -> LVSM:
    """Model of these weights. Raises UserError for names and shapes that are not those of the config."""
    if config.layers > len(weights):  # before so many are made
        raise UserError(
            f"{where} has {len(weights)} weights, too few for {config.layers} layers", "look where it is from"
        )
    try:
        with torch.device("meta"):  # sizes cost nothing before they are compared
            net = lvsm.BY_KIND[config.kind](config)
    except (TypeError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{where}: there is no model of these settings: {said}", f"look at its {CONFIG}") from None
    own = {name: tuple(weight.shape) for name, weight in net.state_dict().items()}
    wrong = [f"{name} is missing" for name in sorted(own.keys() - weights.keys())]
    wrong += [f"{name} is of no such model" for name in sorted(weights.keys() - own.keys())]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, and {shape} is expected"
        for name, shape in own.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if wrong:
        also = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"{where}: {wrong[0]}{also}", "the weights and their config are not of one model: export it again"
        )
    net.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return net
