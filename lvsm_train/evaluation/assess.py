"""A trained model measured by a protocol, beside what needs no model, with controls and films: what `lvsm-data eval` does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lvsm_train.config.trained import EvalConfig, Split
from lvsm_train.data.batches import Batch, Data, not_white
from lvsm_train.data.index import read_index
from lvsm_train.data.samples import KINDS, Planner, Sample
from lvsm_train.device.devices import autocast
from lvsm_train.evaluation import eval_page, flight, instants, protocols, published_index, scores
from lvsm_train.evaluation.assessment import Assessment, Control, write_table
from lvsm_train.evaluation.protocols import PROTOCOLS
from lvsm_train.evaluation.stopwatch import Timed
from lvsm_train.losses.metrics import load_lpips
from lvsm_train.media.films import write_film
from lvsm_train.weights.trained import Trained, open_model
from pipeline.core import cameras
from pipeline.core.errors import UserError
from pipeline.formats.trajectories import evaluation_index

FPS = 24.0  # frame rate of films
TURN, SHIFT = (0.5, -0.3, 0.6, 0.4), (0.3, -0.5, 0.2)  # a quaternion; a translation in units of the world


def assess(cfg: EvalConfig) -> Assessment:
    """Evaluate the run `cfg.run`, and write objects.csv, summary.json, index.html and films into cfg.out or RUN/eval.

    cfg is resolved. Scores do not depend on a seed; only times differ between calls. Raises UserError: no such run or
    checkpoint, a protocol that does not suit the data, no objects with enough views, broken shards.
    """
    trained = open_model(cfg.run, cfg.step, cfg.device, cfg.preset)
    device = next(trained.net.parameters()).device
    own, patch = trained.data_config(cfg, batch=cfg.batch), trained.cfg.model.patch
    with contextlib.closing(Data(own, device=device, patch=patch, temporal=trained.cfg.model.temporal)) as data:
        trained.cfg.model.check_pictures(data.hw)
        fetched = Path(published_index.FILE) if cfg.protocol == published_index.PROTOCOL else None
        protocol = protocols.choose(cfg.protocol, cfg.index or fetched, data.planner.is_scene, _timed(trained, data))
        if protocol == published_index.PROTOCOL:
            cfg = dataclasses.replace(cfg, index=cfg.index or published_index.obtain())
        out = cfg.out or trained.results("eval") / (f"{protocol}-{trained.step:08d}" if trained.step else protocol)
        with torch.no_grad(), autocast(trained.cfg.precision, device):
            found = _measured(cfg, trained, protocol, data, out)
            write_table(out / "objects.csv", found.rows())
            (out / "summary.json").write_text(json.dumps(found.as_json(), indent=2, allow_nan=False))
            eval_page.write(found, functools.partial(_shown, trained, data), out / "index.html")
    return found


def _measured(cfg: EvalConfig, trained: Trained, protocol: str, data: Data, out: Path) -> Assessment:
    split, seen, said = _split(cfg, trained)
    if PROTOCOLS[protocol].indexed and split == "val":  # an index may name training objects too
        seen = {data.index.uids[number] for number in data.planner.train}
    samples = protocols.plan(protocol, data.planner, split, cfg.index)
    notes = [*trained.notes, *said, *(data.notes if split == "val" else not_white(data.index.paths))]
    notes += _lacking(cfg.index, len(samples)) if PROTOCOLS[protocol].indexed else []
    if trained_on := [sample for sample in samples if sample.uid in seen]:
        notes.append(f"{len(trained_on)} of {len(samples)} objects are left out: by their names, they were trained on")
        samples = [sample for sample in samples if sample.uid not in seen]
        if not samples:
            raise UserError(
                "the model was trained on all of these objects", "--split all measures on them all the same"
            )
    samples = samples[: cfg.objects]
    notes += _other_kinds(trained, samples)
    lpips, more = load_lpips(cfg.lpips, cfg.lpips_weights, data.device)
    notes += more
    timed = Timed(trained.net)
    found = scores.examine(timed, data.evaluation_batches(samples, cfg.batch), lpips, whole=True)
    facts = {
        "run": str(trained.run),
        "step": trained.step or None,  # of checkpoints of other programs it is not known
        "kind": trained.cfg.model.kind,
        "prope": trained.cfg.model.prope,
        "protocol": protocol,
        "says": PROTOCOLS[protocol].says,
        "data": [str(path) for path in data.cfg.data],
        "split": split,
        "objects": len(samples),
        "images": len(found.uids),
        "height_width": list(data.hw),
        "batch": min(cfg.batch, len(samples)),
        "device": str(data.device),
        "bf16": torch.is_autocast_enabled(data.device.type),
        "lpips": lpips.says if lpips else None,
    }
    made = Assessment(out, facts, samples, found, timed.laps, notes=notes)
    if moving := [sample for sample in samples if data.index.moves(sample.number)]:
        render = scores.render_of(trained.net)
        beside = scores.render_of(open_model(cfg.static, device=cfg.device).net) if cfg.static else None
        distances = instants.by_distance(render, data.evaluation_batches(moving, cfg.batch), beside)
        made = dataclasses.replace(made, distances=distances)
    if cfg.controls:
        made = _with_controls(made, trained, data, split)
    return _with_films(made, cfg, trained, data)


def _timed(trained: Trained, data: Data) -> bool:
    """True if the model knows time, and some of the objects move."""
    return trained.cfg.model.temporal and bool(data.index.time.any())


def _lacking(index: Path | None, found: int) -> list[str]:
    """A note if the shards have not all that an index names; else []."""
    assert index is not None
    named = len(evaluation_index(index))
    return [f"{found:,} of {named:,} entries of {index.name} are in the shards"] if found < named else []


def _other_kinds(trained: Trained, samples: Sequence[Sample]) -> list[str]:
    """A note if some of these samples are of a kind that the model was not trained on, as its card says; else []."""
    with contextlib.suppress(KeyError, TypeError):  # no card, or one of an earlier version
        known = trained.card["data"]["kinds"]
        strange = {KINDS[sample.is_scene] for sample in samples if not known[KINDS[sample.is_scene]]}
        return [f"the model was not trained on {kind}: its scores on them say little" for kind in sorted(strange)]
    return []


def _split(cfg: EvalConfig, trained: Trained) -> tuple[Split, set[str], list[str]]:
    """(split, seen, notes): the split to evaluate on, and the uids that the model was trained on, to be left out of other data.

    What a model that was passed on was trained on is not known: of its kind only objects for validation never train.
    """
    own = trained.cfg.data
    if not cfg.split and not own.data:
        if not trained.card:  # trained by other programs
            return "all", set(), []
        note = (
            "which objects it was trained on is not known here: those for validation are taken; --split all takes all"
        )
        return "val", set(), [note]
    if cfg.split or not cfg.data or set(cfg.data) & {path.absolute() for path in own.data}:
        return cfg.split or "val", set(), []
    try:
        index = read_index(own.data, own.res, 1)
    except UserError:  # the shards of the training data are gone by now
        return "all", set(), []
    return "all", {index.uids[number] for number in Planner(own, index).train}, []


# ---- controls, as functions from batch to batch: two must worsen a model that uses its inputs and cameras, one is neutral


def with_inputs_of(batch: Batch, other: Batch) -> Batch:
    """Replace the input pictures and cameras of `batch` by those of `other`, whose scenes are wrong but consistent; keep the
    targets and their cameras."""
    return dataclasses.replace(batch, image=other.image, c2w=other.c2w, fxfycxcy=other.fxfycxcy)


def shuffled_cameras(batch: Batch) -> Batch:
    """Give each target picture the camera of another target of its object. Cameras are rolled by half the targets, since
    neighbours in a clip look alike. Raises ValueError for fewer than two targets."""
    count = batch.target_image.shape[1]
    if count < 2:
        raise ValueError("one target has no other to take a camera from")
    return dataclasses.replace(
        batch,
        target_c2w=batch.target_c2w.roll(count // 2, 1),
        target_fxfycxcy=batch.target_fxfycxcy.roll(count // 2, 1),
    )


def moved_world(batch: Batch) -> Batch:
    """Turn the world with all cameras by TURN and move it by SHIFT. Pictures and relative poses (PRoPE) do not change."""
    frame = torch.eye(4, dtype=torch.float64)
    frame[:3, :3] = torch.from_numpy(cameras.rotation_of(np.array(TURN)))
    frame[:3, 3] = torch.tensor(SHIFT, dtype=torch.float64)
    frame = frame.to(batch.c2w.device)
    return dataclasses.replace(
        batch,
        c2w=(frame @ batch.c2w.double()).float(),
        target_c2w=(frame @ batch.target_c2w.double()).float(),
    )


def _with_controls(made: Assessment, trained: Trained, data: Data, split: Split) -> Assessment:
    size, render = data.cfg.batch, scores.render_of(trained.net)

    def batches(samples: Sequence[Sample]) -> Iterator[Batch]:
        return data.evaluation_batches(samples, size)

    def control(says: str, samples: Sequence[Sample], changed: Iterable[Batch], expected: str = "falls") -> Control:
        plain = made.images.only(sample.uid for sample in samples)
        return Control(says, plain.scores().psnr, scores.measure(render, changed).psnr, expected)

    found, notes = [], []
    try:
        others = protocols.partners(made.samples)
        pairs = zip(batches(made.samples), batches(others), strict=True)
        swapped = (with_inputs_of(one, other) for one, other in pairs)
        found.append(control("another object's inputs", made.samples, swapped))
    except UserError as error:
        notes.append(f"no control by another object's inputs: {error}")
    if several := [sample for sample in made.samples if len(sample.targets) > 1]:
        found.append(control("target cameras shuffled", several, map(shuffled_cameras, batches(several))))
    else:
        notes.append("no control by shuffled target cameras: objects have one target each")
    if timed := [sample for sample in several if trained.cfg.model.temporal and data.index.moves(sample.number)]:
        found.append(control("target times shuffled", timed, map(instants.shuffled_times, batches(timed))))
    moved = map(moved_world, batches(made.samples))
    stays = "stays" if trained.cfg.model.prope else "may fall"  # rays of the world change with it
    found.append(control("the world turned and moved", made.samples, moved, stays))
    plans = protocols.by_inputs(made.facts["protocol"], data.planner, split, made.samples)
    by_inputs = {count: scores.measure(render, batches(some)) for count, some in plans.items()}
    return dataclasses.replace(made, controls=found, by_inputs=by_inputs, notes=made.notes + notes)


# ---- films and pictures


def _with_films(made: Assessment, cfg: EvalConfig, trained: Trained, data: Data) -> Assessment:
    ranked = made.ranked()
    wanted = list(dict.fromkeys([ranked[len(ranked) // 2], ranked[-1], ranked[0]]))[: cfg.video]
    sample_of = {sample.uid: sample for sample in made.samples}
    films = {}
    for number, uid in enumerate(wanted, 1):
        batch = data.gather([sample_of[uid]])
        c2w, k = batch.c2w[0].cpu().numpy(), batch.fxfycxcy[0].cpu().numpy()
        is_scene = sample_of[uid].is_scene
        route = flight.between if is_scene else flight.orbit
        frames = list(flight.render_frames(trained.net, batch, *route(c2w, k, cfg.frames)))
        if is_scene:
            frames += frames[-2:0:-1]  # and back to the first camera, since players loop films
        films[uid] = write_film(made.out / f"film-{number}.mp4", frames, FPS)
    made = dataclasses.replace(made, films=films)
    moving = [uid for uid in ranked[len(ranked) // 2 :] if data.index.moves(sample_of[uid].number)]
    if not (moving and cfg.video and trained.cfg.model.temporal):
        return made
    return _with_time_films(made, cfg, trained, data, sample_of[moving[0]])


def _with_time_films(made: Assessment, cfg: EvalConfig, trained: Trained, data: Data, sample: Sample) -> Assessment:
    """Add films of an object through time: by a fixed camera, by a moving one while time stands, and by both."""
    batch = data.gather([sample])
    orbit = flight.orbit(batch.c2w[0].cpu().numpy(), batch.fxfycxcy[0].cpu().numpy(), cfg.frames)
    films = []
    for number, (says, c2w, k, time) in enumerate(instants.routes(batch, *orbit), 1):
        frames = list(flight.render_frames(trained.net, batch, c2w, k, time))
        films.append((f"{sample.uid}: {says}", write_film(made.out / f"time-{number}.mp4", frames, FPS)))
    return dataclasses.replace(made, time_films=films)


def _shown(trained: Trained, data: Data, sample: Sample) -> tuple[Batch, torch.Tensor]:
    batch = data.gather([sample])
    return batch, scores.render_of(trained.net)(batch).float().clamp(0, 1)
