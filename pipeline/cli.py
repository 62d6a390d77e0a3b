"""The verbs. Parses, calls, prints; no logic. Results on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from lvsm_train.config.presets import PRESETS
from lvsm_train.config.synthesis import SynthesisConfig
from lvsm_train.config.train import TrainConfig
from lvsm_train.config.trained import EvalConfig, LatentConfig
from pipeline.config.clip import ClipConfig
from pipeline.config.cycle import CYCLES, PLANS, Cycling, Planning, Shares, divide
from pipeline.config.export import MODEL, ExportConfig, PathsConfig, PushConfig
from pipeline.config.manifest import ManifestConfig
from pipeline.config.render import RenderConfig
from pipeline.config.run import RunConfig
from pipeline.config.shared import port_of
from pipeline.config.source_table import AUTO, CAPTURES, SOURCES
from pipeline.config.views import ImportConfig
from pipeline.core.errors import FEWER_THAN_ASKED, UserError
from pipeline.core.signals import INTERRUPTED, say_interrupted
from pipeline.core.text import plain, plain_output, shown

# errors of a machine that no code of ours mends -> what to do
REFUSALS = dict.fromkeys(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES),
    "make room, or name a folder that is yours; then give the same command again",
) | {
    errno.ENAMETOOLONG: "names have 255 bytes at most, and whole paths 4,095",
    errno.EISDIR: "a folder is where a file belongs: move it away",
}


def render(cfg: Annotated[RenderConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Render N objects from random camera poses into pose-labelled Parquet shards.

    The same command on the same folder goes on where it stopped. Exit status 0: N objects were delivered; 3: fewer.

    Example: lvsm-data render --n 20 --res 64 --out data/try
    """
    return _run(cfg.resolved())


def import_views(cfg: Annotated[ImportConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Turn views that exist already, with their cameras, into the same shards.

    The same command on the same folder goes on where it stopped. Exit status 0: N scenes were delivered; 3: fewer.

    Example: lvsm-data import --source nerfstudio --input captures/ --n 10 --res 64 512
    """
    return _run(_recognised(cfg).resolved())


def _recognised(cfg: Any) -> Any:
    """Settings with the source that the input looks like, where it is to be recognised."""
    if cfg.source != AUTO or cfg.input is None:
        return cfg
    from pipeline.sources.captures import recognised

    source, says = recognised(cfg.input)
    print(says)
    return dataclasses.replace(cfg, source=source)


def clip(cfg: Annotated[ClipConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Fetch videos of RealEstate10K or ACID, take the frames that have poses, and write the same shards.

    The same command on the same folder goes on where it stopped. Exit status 0: N clips were delivered; 3: fewer. --report says
    which clips can be had, without fetching them.

    Example: lvsm-data clip --source realestate10k --cameras RealEstate10K.tar.gz --n 1000 --res 256
    """
    cfg = cfg.resolved()
    if cfg.report:
        from pipeline.run.yield_report import report

        print(*report(cfg).lines(), sep="\n")
        return 0
    if cfg.videos is None:
        print(
            f"disk beside the shards: at most {cfg.raw_gb:g} GB (--raw-gb) for videos and cuts that wait for a worker"
        )
    return _run(cfg)


def _run(cfg: RunConfig) -> int:
    from pipeline import sources
    from pipeline.run.driver import deliver

    assert cfg.out is not None
    others = f" (others: {sources.others(cfg.source)})" if isinstance(cfg, RenderConfig) else ""
    form = f"{cfg.source} " if cfg.source in CAPTURES else ""
    print(f"source: {form}{sources.load(cfg.source).SAYS}{others}")
    print(f"writing to {shown(cfg.out)}", flush=True)
    summary = deliver(cfg)
    print(*summary.lines(), sep="\n")
    return 0 if summary.complete else FEWER_THAN_ASKED


@contextlib.contextmanager
def _torch_needed() -> Iterator[None]:
    """Turn a failed import of torch and the like into a UserError that says how to install them."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"this needs torch and what belongs to it: {error}", "make setup-train") from None


def train(cfg: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Train an LVSM on shards, measure it on objects that do not train, and keep checkpoints.

    The same command on the same folder goes on where it stopped, bit by bit on a CPU with as many threads. --preset sets all
    defaults. Exit status 0: all steps were done; 3: stopped before.

    Example: lvsm-data train --data data/try --preset small --steps 50 --out runs/try
    """
    cfg = cfg.resolved()
    with _torch_needed():
        from lvsm_train.device.ranks import exit_now
        from lvsm_train.training.launch import launch

    result = launch(cfg)
    if result.is_main and result.scores:
        print(f"unseen objects: {result.scores.line()}")
    if result.is_main:
        print(
            f"{result.step} of {cfg.steps} steps in {shown(result.out)}; checkpoints, log.jsonl, strips and card.json are there"
        )
    status = 0 if result.finished else FEWER_THAN_ASKED
    return exit_now(status) if "TORCHELASTIC_RUN_ID" in os.environ else status


def _prepared(cfg: Any, trainers: list[TrainConfig]) -> tuple[Any, list[TrainConfig], Shares, Callable[..., str]]:
    """Resolve the settings of a cycle (AnyCycle or AnyPlan) and of its trainers, and divide its disk. The last: see Lacking."""
    from pipeline import sources

    with _torch_needed():
        from lvsm_train.cycle.lacking import lacking
        from lvsm_train.cycle.settings import checkpoint_bytes, on_cpu, settings

    trainers = [dataclasses.replace(train, address=train.address or cfg.address) for train in trainers]
    cfg = cfg.resolved().with_cores(any(on_cpu(train) for train in trainers))
    assert cfg.out is not None
    trained = [settings(train, cfg.out, cfg.scene, cfg.samples, number) for number, train in enumerate(trainers)]
    looks = sum(one.steps // one.eval_every for one in trained if one.eval_every)
    checkpoints, steps = sum(map(checkpoint_bytes, trained)), sum(one.steps for one in trained)
    shares = divide(cfg, cfg.budget(), checkpoints, steps, looks, sources.is_remote(cfg))
    return cfg.within(shares), trained, shares, lacking(trained, cfg.source)


def _trainers(cfg: Any, train: TrainConfig) -> list[TrainConfig]:
    """Settings of each trainer of a cycle: what the command line says of training, over the defaults of each preset."""
    if wrong := [name for name in cfg.train_config if name not in PRESETS]:
        raise UserError(f"--train-config {wrong[0]} is no preset", f"one of {', '.join(PRESETS)}")

    def parsed(
        cfg: Annotated[Cycling, tyro.conf.OmitArgPrefixes],
        train: Annotated[TrainConfig, tyro.conf.arg(name="train")],
    ) -> TrainConfig:
        return train

    others = (dataclasses.replace(PRESETS[name], tensorboard=False) for name in cfg.train_config[1:])
    with PATHS:
        over = [functools.partial(parsed, cfg=CYCLES[_kind()](), train=default) for default in others]
        return [train, *(tyro.cli(one, args=sys.argv[2:]) for one in over)]


def cycle(
    cfg: Annotated[Cycling, tyro.conf.OmitArgPrefixes],
    train: Annotated[TrainConfig, tyro.conf.arg(name="train")],
) -> int:
    """Render (or import, or clip), train and delete at once, on a disk that holds a part of the data.

    --source takes those of render, import and clip, with the flags of that verb: `lvsm-data cycle --source realestate10k --help`.

    A shard goes when it has been trained on --passes times and a checkpoint proves it. The same command on the same folder goes
    on where it stopped. --train-config sets the defaults of training. docs/cycle.md. Exit status 0: all was delivered and
    trained on; 3: less; 1: it does not add up.

    Example: lvsm-data cycle --n 100 --res 64 --views 16 --disk-budget 500MB --passes 8 --out cycles/try
    """
    from pipeline.cycle.driver import cycle as run
    from pipeline.plan.plan import compare, real_figures
    from pipeline.report.page import LivePage

    ready, trained, shares, lacks = _prepared(_recognised(cfg), _trainers(cfg, train))
    widths = [f"{one.data.res}" + (f" ({one.preset})" if trained[1:] else "") for one in trained]
    print(f"writing to {shown(ready.out)}; training at {' and '.join(widths)} pixels")
    print(shares.line() + ("" if ready.disk_budget else " (80 % of what is free; --disk-budget)"), flush=True)
    command = [sys.executable, "-m", "lvsm_train.cycle.trainer", str(ready.out)]
    ended = run(ready, shares, command, [one.as_json() for one in trained], LivePage, lacks)
    compared = compare(ready.out, real_figures(ready.out)) if ended.complete else []
    print(*ended.lines(compared), sep="\n")
    return ended.status


def plan(
    cfg: Annotated[Planning, tyro.conf.OmitArgPrefixes],
    train: Annotated[TrainConfig, tyro.conf.arg(name="train")],
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Say what a cycle with the same flags will take, before the work: hours, disk, downloads, steps, yield, licenses.

    Renders --pilot objects and takes steps on them, for real, in OUT/pilot, which goes again. Each figure comes with its
    range; OUT/plan.json keeps them, and `cycle` on the same folder compares at its end.

    Example: lvsm-data plan --n 100 --res 64 --views 16 --disk-budget 500MB --passes 8 --out cycles/try

    Args:
        cfg: What a cycle would do.
        train: How it would train.
        as_json: Print JSON for machines.
    """
    from pipeline.plan.plan import plan as make

    if cfg.train_config[1:]:
        raise UserError(
            "a plan measures one model", f"--train-config {cfg.train_config[0]}, then the others; add them up"
        )
    ready, (trained,), shares, lacks = _prepared(_recognised(cfg), _trainers(cfg, train))
    made = make(ready, shares, [sys.executable, "-m", "lvsm_train.cycle.throughput"], trained.as_json(), lacks)
    where = f"plan: {shown(ready.out)}/plan.json; `lvsm-data cycle` with the same flags goes by it"
    print(json.dumps(made.as_json(), indent=2) if as_json else "\n".join((shares.line(), *made.lines(), where)))
    return 0


def audit(run: tyro.conf.Positional[Path], /, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Count what a cycle requested, delivered, failed, trained on and deleted, and say whether it adds up. Also while it runs.

    Exit status 0: it adds up; 1: it does not.

    Example: lvsm-data audit cycles/try

    Args:
        run: Folder of the cycle (its --out).
        as_json: Print JSON for machines.
    """
    from pipeline.cycle.audit import audit as count

    found = count(run)
    print(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(found.lines()))
    return 1 if found.problems else 0


def evaluate_run(cfg: Annotated[EvalConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Measure a trained LVSM beside what needs no model, object by object, and show it on a page with films.

    Writes index.html, objects.csv, summary.json and films into RUN/eval, the same for every seed.

    Example: lvsm-data eval runs/try
    """
    cfg = cfg.resolved()
    with _torch_needed():
        from lvsm_train.evaluation.assess import assess

    found = assess(cfg)
    print(*found.lines(), sep="\n")
    print(f"page: {shown(found.out)}/index.html; objects.csv and summary.json are beside it")
    return 0


def synthesize(cfg: Annotated[SynthesisConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Render new views of your own photos, or of an object of a run, by a trained LVSM.

    Writes pictures, film.mp4, cameras.json and index.html into --out; with --serve, shows a page to turn it by hand.
    docs/synthesis.md.

    Example: lvsm-data synthesize runs/try --data data/try --poses orbit --out views/try
    """
    cfg = cfg.resolved()
    with _torch_needed():
        from lvsm_train.synthesis import server
        from lvsm_train.synthesis.live import Live
        from lvsm_train.synthesis.synthesize import read
        from lvsm_train.synthesis.synthesize import synthesize as render_views

    with contextlib.nullcontext() if cfg.port is None else server.Server(cfg.port) as page:
        seen = read(cfg, lambda warning: print(f"warning: {warning}", file=sys.stderr, flush=True))
        print(*seen.lines(), sep="\n")
        if cfg.out:
            made = render_views(cfg, seen)
            print(*made.lines(), sep="\n")
            print(f"page: {shown(made.out)}/index.html")
        if page:
            live = Live(seen)
            print(f"open {page.url} in a browser on this machine; Ctrl-C ends it", flush=True)
            page.serve(live)
            print(f"ended after {live.rendered:,} views")
    return 0


def latent(cfg: Annotated[LatentConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Edit, mix and measure the latent tokens of a trained encoder_decoder, and show what becomes of its pictures on a page.

    Writes index.html, latent.json, latent.safetensors, pictures and films into RUN/latent, the same for the same seed.
    docs/latent.md.

    Example: lvsm-data latent runs/encdec --frames 25
    """
    cfg = cfg.resolved()
    with _torch_needed():
        from lvsm_train.latent.explore import explore

    report = explore(cfg)
    print(*report.lines(), sep="\n")
    print(f"page: {shown(report.out)}/index.html; latent.json, latent.safetensors, pictures and films are beside it")
    return 0


def manifest(cfg: Annotated[ManifestConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Write a reproducible list of objects: uid, url, license, sha256, size, file type, whom to name.

    Example: lvsm-data manifest --source objaverse --n 1000 --seed 0 -o manifests/objaverse-1k.parquet
    """
    from pipeline.run.manifest import write_manifest

    print(*write_manifest(cfg.resolved()), sep="\n")
    return 0


def status(run: tyro.conf.Positional[Path], /, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> int:
    """Show how a run stands: running or finished, delivered, failed by reason, rates, workers; of training: steps, scores.

    Example: lvsm-data status data/try

    Args:
        run: Folder of a run or of a training run (its --out), or a run's address.
        as_json: Print JSON for machines.
    """
    from pipeline.dataset.copies import at_hand
    from pipeline.report import training
    from pipeline.report.status import read_status, status_text

    if training.is_training(run):
        found = training.status(training.read(run))
        print(json.dumps(found, indent=2) if as_json else training.status_text(found))
        return 0
    found = read_status(at_hand(run))
    print(json.dumps(found, indent=2) if as_json else status_text(found))
    return 0


def verify(folder: tyro.conf.Positional[Path], /, repair: bool = False) -> int:
    """Check every shard: schema, decodable JPEGs, rigid poses, no object twice, agreement with the ledger.

    Of a training run: checkpoints by their checksums, the log for gaps and doubles, pictures.

    Exit status 0: all is well; 1: it is not, or was not before --repair.

    Example: lvsm-data verify data/try

    Args:
        folder: Folder of a run, of a training run, or of one resolution's shards; or the address of a run, all of which is copied
            to this machine.
        repair: Set damaged shards aside and have the ledger forget their objects, so that the command that made the run makes
            them again.
    """
    from pipeline.dataset.copies import at_hand
    from pipeline.report import training
    from pipeline.report.verify import Report
    from pipeline.report.verify import repair as set_right
    from pipeline.report.verify import verify as check

    here = None if training.is_training(folder) else at_hand(folder, shards=None)
    if repair and here != folder:
        raise UserError(f"{folder} cannot be repaired here", "--repair is for the folder of a run on this machine")
    report = check(here) if here else training.verify(folder)
    for problem in report.problems:
        print(f"problem: {problem}")
    print(report.line())
    if repair and report.problems and isinstance(report, Report):
        print(*set_right(folder, report), sep="\n")
    return 1 if report.problems else 0


def view(
    folders: tyro.conf.Positional[tuple[Path, ...]],
    /,
    out: Path | None = None,
    objects: int = 64,
    png: Path | None = None,
    serve: tuple[int, ...] | None = None,
) -> int:
    """Write a self-contained HTML page: contact sheet to search, cameras in 3D, failures by reason, throughput.

    With --serve, show all objects on a page of this machine, to filter, sort and look at one by one.

    Of training runs, up to four: curves, scores beside the baselines, pictures over time, and settings that differ.

    Example: lvsm-data view data/try

    Args:
        folders: Folder of a run, or its address; or folders of training runs.
        out: The page. Default: FOLDER/index.html.
        objects: How many objects the contact sheet shows and searches.
        png: Write a picture instead of a page: a row of views per object.
        serve: Show all objects at http://127.0.0.1:PORT/ until Ctrl-C, and write nothing. Default port: 8764; 0: a free one.
    """
    from pipeline.dataset.copies import at_hand
    from pipeline.report import training
    from pipeline.report.page import write_page, write_sheet

    if not folders:
        raise UserError("view needs a folder", "lvsm-data view RUN, the --out of a run")
    if all(map(training.is_training, folders)):
        if serve is not None:
            raise UserError("--serve is for runs with shards", "lvsm-data view RUN writes the page of a training run")
        if png is not None:
            raise UserError("--png is for runs with shards", f"{folders[0] / 'strips'} has the pictures of training")
        print(f"page: {training.write_training_page(folders, out or folders[0] / 'index.html')}")
        return 0
    if len(folders) > 1:
        raise UserError(f"view shows one run at a time, not {len(folders)}", "several training runs can be compared")
    if serve is not None:
        from pipeline.viewer import gallery

        if out is not None or png is not None:
            raise UserError("--serve writes no page and no picture", "leave --out and --png out, or --serve")
        gallery.show(at_hand(folders[0], shards=None), port_of(serve, gallery.PORT))
        return 0
    folder = at_hand(folders[0], shards=1)
    if png is not None:
        print(f"picture: {write_sheet(folder, png, objects)}")
        return 0
    print(f"page: {write_page(folder, out or folder / 'index.html', objects)}")
    return 0


def export_run(cfg: Annotated[ExportConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Write a run's views in the format of another tool, with the bytes of the pictures as they are where it takes JPEG.

    Of a training run: its model, as safetensors with a config and a card beside it. docs/models.md.

    Example: lvsm-data export data/try --to nerfstudio --out exports/try

    """
    cfg = cfg.resolved()
    if cfg.to == MODEL:
        with _torch_needed():
            from lvsm_train.weights.publish import export as export_model

        print(*export_model(cfg), sep="\n")
        return 0
    from pipeline.export.exporter import export

    print(*export(cfg).lines(), sep="\n")
    return 0


def push(cfg: Annotated[PushConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Upload a run to the Hugging Face Hub, as far as it came: its shards, a card, a sample picture, the table of credits.

    The same command goes on where it stopped, and uploads nothing that stands there. HF_TOKEN, or `hf auth login`, says who you
    are. `export --to hf` writes the same to a folder, to look at. Of a training run: its model, as `export` writes it.

    Example: lvsm-data push data/try --repo me/try --private
    """
    from pipeline.report.training import is_model

    if is_model(cfg.run):
        with _torch_needed():
            from lvsm_train.weights.publish import push as push_model

        print(*push_model(cfg), sep="\n")
        return 0
    from pipeline.dataset.copies import at_hand
    from pipeline.export.push import push as upload

    print(*upload(cfg, at_hand(cfg.run, shards=None)), sep="\n")
    return 0


def paths(cfg: Annotated[PathsConfig, tyro.conf.OmitArgPrefixes]) -> int:
    """Make a camera path: around a point or through an object's views, as poses of ours and of nerfstudio.

    Example: lvsm-data paths --kind spiral --run data/try --out paths/spiral

    """
    from pipeline.export.camera_paths import write_paths

    print(*write_paths(cfg.resolved()), sep="\n")
    return 0


def licenses(
    run: tyro.conf.Positional[Path],
    /,
    attribution: Path | None = None,
    card: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Say which licenses the delivered objects have, what that allows for the whole, and whom to name.

    Prints a paragraph for a dataset card too. Works while the run goes on, and after its shards were deleted.

    Example: lvsm-data licenses data/try --attribution data/try/attribution.csv

    Args:
        run: Folder of the run (its --out), or its address.
        attribution: Write a CSV table with a line per delivered object: title, author, license, page, ...
        card: Write the paragraph to this Markdown file.
        as_json: Print JSON for machines.
    """
    from pipeline.dataset.copies import at_hand
    from pipeline.report.attribution import account, as_dict, as_text, write_card
    from pipeline.report.attribution import card as card_of

    found = account(at_hand(run), attribution)
    paragraph = write_card(found, card) if card else card_of(found) if found.total else ""
    print(json.dumps(as_dict(found), indent=2) if as_json else "\n\n".join(filter(None, [as_text(found), paragraph])))
    return 0


def doctor(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False, network: tuple[str, ...] | None = None) -> int:
    """Say what is installed, what works, and what to do about the rest.

    Exit status 0: everything that rendering needs is there; 1: something is missing.

    Example: lvsm-data doctor

    Args:
        as_json: Print JSON for machines.
        network: Ask also which hosts answer, through which proxy and how fast: those of all sources, or these URLs.
    """
    from pipeline.doctor import examine, lines

    checks = examine(network)
    print(json.dumps([check.__dict__ for check in checks], indent=2) if as_json else "\n".join(lines(checks)))
    return 1 if any(check.level == "problem" for check in checks) else 0


VERBS: dict[str, Callable[..., Any]] = {
    "render": render,
    "import": import_views,
    "clip": clip,
    "train": train,
    "plan": plan,
    "cycle": cycle,
    "audit": audit,
    "eval": evaluate_run,
    "synthesize": synthesize,
    "latent": latent,
    "manifest": manifest,
    "status": status,
    "verify": verify,
    "view": view,
    "export": export_run,
    "push": push,
    "paths": paths,
    "licenses": licenses,
    "doctor": doctor,
}


PATHS = tyro.constructors.ConstructorRegistry()


@PATHS.primitive_rule
def _paths(asked: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
    """Make paths of arguments as tyro does, but for empty ones, which as a Path would be the current folder."""
    if asked.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def _path(word: str) -> Path:
    if word.strip():
        try:
            Path(word).expanduser()
        except RuntimeError:
            raise UserError(f"{word}: nobody of that name has a home here", "~/ is yours; ./~ begins a name") from None
        return Path(word)
    named = [before for before, after in itertools.pairwise(sys.argv[1:]) if after == word and before[:1] == "-"]
    named += [each.rstrip("= ") for each in sys.argv[1:] if each[:1] == "-" and each.partition("=")[1:] == ("=", word)]
    hint = 'name a file or a folder; . is the current one, and an unset variable makes ""'
    raise UserError(f"{named[0] if named else 'a path'} is empty", hint)


def _value(flag: str) -> str:
    """Value of a flag on the command line, "" where it is missing."""
    arguments = sys.argv[1:]
    named = [after for each, after in itertools.pairwise(arguments) if each == flag]
    named += [each.partition("=")[2] for each in arguments if each.startswith(f"{flag}=")]
    return named[-1] if named else ""


def _preset(flag: str) -> TrainConfig:
    """Preset that `flag` names on the command line, for the defaults of training; "small" if the name is wrong or missing."""
    return PRESETS.get(_value(flag), PRESETS["small"])


def _kind() -> str:
    """Kind of the source that a cycle on the command line has; its flags are those of the verb of this kind."""
    source = _value("--source")
    if source == AUTO:
        return "posed"
    if source and source not in SOURCES and sys.argv[1] in ("cycle", "plan"):
        raise UserError(f"--source {source} is none of the sources", f"one of {', '.join(SOURCES)}")
    return SOURCES[source].kind if source in SOURCES else "object"


def _refused(what: str, hint: str) -> int:
    """Print what is wrong, and what to do. Returns the exit status."""
    print(f"error: {plain(what)}", file=sys.stderr)
    if hint:
        print(f"hint: {plain(hint)}", file=sys.stderr)
    return 2


def _printing_plainly(verb: Callable[..., int]) -> Callable[..., int]:
    """A verb whose output, unlike its help, holds nothing that a terminal obeys."""

    @functools.wraps(verb)
    def run(*arguments: Any, **named: Any) -> int:
        with plain_output():
            return verb(*arguments, **named)

    return run


def main() -> None:
    """Entry point of `lvsm-data`. Bad input ends with status 2 and two lines: what is wrong, and what to do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where they take ASCII alone, names come as \\xfc
    try:
        trained = dataclasses.replace(_preset("--train-config"), tensorboard=False)
        verbs = {name: _printing_plainly(verb) for name, verb in VERBS.items()}
        verbs |= {
            "train": functools.partial(verbs["train"], cfg=_preset("--preset")),
            "cycle": functools.partial(verbs["cycle"], cfg=CYCLES[_kind()](), train=trained),
            "plan": functools.partial(verbs["plan"], cfg=PLANS[_kind()](), train=trained),
        }
        with PATHS:
            code = tyro.extras.subcommand_cli_from_dict(
                verbs, prog="lvsm-data", description="From 3D objects to pose-labelled shards to a trained LVSM."
            )
    except UserError as error:
        code = _refused(str(error), error.hint)
    except BrokenPipeError:  # the reader of our output had enough, as with | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        code = _refused(f"{error.filename or 'a file'}: {error.strerror}", REFUSALS[error.errno])
    except KeyboardInterrupt:
        say_interrupted()
        code = INTERRUPTED
    sys.exit(code)
