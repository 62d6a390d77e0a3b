"""Models that are passed on: exported, pushed to a Hub on this machine, opened again; and what is damaged, strange or hostile."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

import lvsm_train  # noqa: E402
from lvsm_train.config.train import DataConfig, ModelConfig, OptimConfig  # noqa: E402
from lvsm_train.evaluation import published_index  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights import readme  # noqa: E402
from lvsm_train.weights.official import to_official  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.download.fetch import sha256_of  # noqa: E402
from tests import noise  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402
from tests.hub import Hub, known_alone  # noqa: E402
from tests.lvsm_train.training.test_engine import short  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its HTTP client

FILES = {"model.safetensors", "config.json", "README.md"}
DOCS = (Path(__file__).parents[3] / "docs/models.md").read_text(encoding="utf-8")
OFFICIAL = ModelConfig(kind="decoder_only", dim=32, head_dim=16, layers=2)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with averaged weights and two checkpoints, which has looked at objects that do not train."""
    out = tmp_path_factory.mktemp("published") / "run"
    train_fn(short(data, out, eval_every=4, wandb=None, address=None))
    return out


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    out = run.with_name("exported")
    done = lvsm_data_here("export", run, "--to", "safetensors", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "step 4" in done.stdout and "averaged" in done.stdout
    return out


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three clips of noise, all of them to train on, and an index of their frames."""
    folder = tmp_path_factory.mktemp("re10k")
    scenes = [noise.scene(f"clip{i}", (24,), 30, np.arange(0, 90, 3)) for i in range(3)]
    index = {f"clip{i}": {"context": [3, 60], "target": [9, 30, 51]} for i in (0, 2)}
    (folder / "index.json").write_text(json.dumps(index))
    return noise.write(folder / "clips", scenes)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(tmp_path / "hub", writers={"hf_me": "me"}) as served, known_alone(served, tmp_path, monkeypatch):
        yield served


def said(*arguments: object, status: int = 0) -> str:
    done = lvsm_data_here(*arguments)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def weights(where: Path | str, **more: Any) -> dict[str, Any]:
    return dict(open_model(where, device="cpu", **more).net.state_dict())


def equal(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


# ---- export


def test_commands_that_are_suggested_can_be_pasted(run: Path) -> None:
    """Also where a folder has a name that a shell would take apart."""
    out = run.with_name("my model; $(x)")
    done = lvsm_data_here("export", run, "--to", "safetensors", "--out", out)
    assert done.returncode == 0, done.stderr
    commands = done.stdout.split("`")[1::2]
    card = [line for line in (out / "README.md").read_text().splitlines() if line.startswith("lvsm-data ")]
    assert [shlex.split(line)[place] for line, place in zip(commands, (2, 2, 2, 2), strict=True)] == 4 * [str(out)]
    assert [shlex.split(line)[place] for line, place in zip(card, (2, 2, 3), strict=True)] == 3 * [out.name]
    assert [line.split()[1] for line in card] == ["eval", "synthesize", "train"]


def test_what_is_exported_comes_back_bit_by_bit(run: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    average = torch.load(run / "checkpoints/step-00000004.pt", weights_only=True)["average"]["weights"]
    found = open_model(exported, device="cpu")
    assert equal(dict(found.net.state_dict()), average) and (found.step, found.cfg.data.data) == (4, ())
    assert found.cfg.model == open_model(run, device="cpu").cfg.model
    assert equal(safetensors.torch.load_file(exported / "model.safetensors"), average)  # as others read it
    for place in (run, run / "checkpoints/step-00000004.pt", exported / "model.safetensors"):
        assert equal(weights(place), average)
    assert not equal(weights(run / "checkpoints/step-00000002.pt"), average)


def test_equal_models_make_equal_bytes_and_other_steps_others(run: Path, exported: Path, tmp_path: Path) -> None:
    said("export", run, "--out", tmp_path / "again")  # a training run needs no --to
    same = [(tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes() for name in sorted(FILES)]
    assert same == [False, True, True]  # README.md names its folder
    said("export", run, "--out", tmp_path / "before", "--step", 2)
    before = open_model(tmp_path / "before", device="cpu")
    assert before.step == 2 and equal(dict(before.net.state_dict()), weights(run, step=2))
    assert "held_out_objects" not in before.card  # scores are of step 4


def test_the_config_and_the_card_say_all_but_the_machine(run: Path, exported: Path, data: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["pictures"] == {"height": 32, "width": 32, "patch": 8}
    assert config["views"] == {"inputs": [2, 2], "targets": [2, 2]} and config["step"] == 4
    assert config["settings"]["model"]["dim"] == 32 and "OpenCV" in config["conventions"]["c2w"]
    assert config["weights"]["numbers"] == sum(value.numel() for value in weights(run).values())
    card = (exported / "README.md").read_text()
    assert "| pictures | 32x32 pixels in patches of 8 |" in card
    several = config | {
        "card": config["card"] | {"data": config["card"]["data"] | {"sizes": [[32, 32], [16, 32], [16, 32]]}}
    }
    assert "| pictures | 32x32 or 32x16 pixels in patches of 8 |" in readme.text(several, "try")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "unknown" and "novel-view-synthesis" in head["tags"]
    psnr = json.loads((run / "card.json").read_text())["held_out_objects"]["psnr"]
    assert f"| PSNR | {psnr:.2f} dB |" in card and "8 of 10 objects" in card
    for text in (card, json.dumps(config)):
        assert str(run.parent) not in text and str(data.parent) not in text and "/tmp" not in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--to", "nerfstudio"), "is a training run, which has no views"),
        (("--res", 64), "--res is for views"),
        (("--uid", "a"), "--uid is for views"),
        (("--step", 3), "has no checkpoint of step 3; it has 2, 4"),
    ],
)
def test_exports_that_make_no_sense(arguments: tuple[object, ...], error: str, run: Path, tmp_path: Path) -> None:
    assert error in said("export", run, "--out", tmp_path / "out", *arguments, status=2)
    assert not (tmp_path / "out").exists()


def test_a_run_of_shards_is_no_model(data: Path, tmp_path: Path) -> None:
    assert "is no training run" in said("export", data, "--to", "safetensors", "--out", tmp_path / "out", status=2)
    assert "--step names" in said("export", data, "--step", 2, "--out", tmp_path / "out", status=2)


# ---- what is damaged, strange or hostile


def spoil_weights(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["head.linear.weight"][0, 0] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})  # as long as before


def declare(folder: Path, tensors: dict[str, Any]) -> None:
    """Other weights, which config.json says rightly the size and the hash of."""
    file = folder / "model.safetensors"
    safetensors.torch.save_file(tensors, file)
    change(folder, weights={"bytes": file.stat().st_size, "sha256": sha256_of(file)})


def change(folder: Path, **parts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, value in parts.items():
        config[name] = config[name] | value if isinstance(value, dict) and value else value
    (folder / "config.json").write_text(json.dumps(config))


def renamed(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    declare(folder, {name.replace("head.linear", "head.lin"): value for name, value in tensors.items()})


def reshaped(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    declare(folder, tensors | {"head.linear.weight": tensors["head.linear.weight"][:5].clone()})


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (spoil_weights, "has the sha256"),
        (cut, "(1,000 bytes), and config.json says"),
        (renamed, "head.linear.weight is missing, and 1 more"),
        (reshaped, "head.linear.weight is (5, 32), and (192, 32) is expected"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: change(folder, library="transformers"), "is not of a model of lvsm-data"),
        (lambda folder: change(folder, version=2), "is of version 2"),
        (lambda folder: change(folder, settings={}), "is not whole"),
        (lambda folder: change(folder, weights=[]), "is not whole"),
        (lambda folder: change(folder, settings={"model": {"kind": "os.system"}}), "kind 'os.system' is unknown"),
        (lambda folder: change(folder, settings={"model": {"layers": 10**9}}), "too few for 1000000000 layers"),
        (lambda folder: change(folder, settings={"model": {"dim": "32"}}), "is not whole"),
        (lambda folder: change(folder, settings={"model": {"dim": 2**61}}), "overflowed"),
        (lambda folder: change(folder, settings={"model": {"dim": 2**20}}), "is missing, and"),
        (
            lambda folder: change(folder, settings={"model": {"dim": 32.0, "head_dim": 16}}),
            "no model of these settings",
        ),
        (lambda folder: change(folder, settings={"data": {"data": [], "inputs": 0}}), "must be positive"),
        (lambda folder: change(folder, settings={"data": {"data": [], "inputs": "many"}}), "is not whole"),
    ],
)
def test_what_is_wrong_with_an_exported_model_is_said(
    spoil: Callable[[Path], Any], error: str, exported: Path, tmp_path: Path
) -> None:
    folder = copy(exported, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError) as failure:
        open_model(folder, device="cpu")
    assert error in str(failure.value)


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_planted_pickle_does_nothing(
    exported: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ours, bare = hub.root / "models/me/ours", hub.root / "models/me/bare"
    copy(exported, ours)
    bare.mkdir(parents=True)
    for folder, names in ((ours, ("model.bin", "pytorch_model.pt")), (bare, ("model.pt",))):
        for name in names:
            (folder / name).write_bytes(pickle.dumps({"model": Hostile()}, 2))
    assert equal(weights("hf:me/ours"), weights(exported)) and equal(
        weights("hf:me/ours/model.safetensors"), weights(exported)
    )
    for place in ("hf:me/bare", "hf:me/ours/pytorch_model.pt", bare / "model.pt"):
        assert "cannot be read" in said("eval", place, "--preset", "official-dec", "--data", tmp_path, status=2)
    torch.save({"model": Hostile()}, bare / "model.pt")
    hub.new_commit("models/me/bare")
    assert "cannot be read" in said("eval", "hf:me/bare", "--preset", "official-dec", "--data", tmp_path, status=2)
    assert list((tmp_path / "here").iterdir()) == []  # no folder "owned"


# ---- the Hub


def test_pushed_and_opened_again(run: Path, exported: Path, hub: Hub, data: Path, tmp_path: Path) -> None:
    told = said("push", run, "--repo", "try", "--private")
    assert "3 files" in told and f"{hub.url}/me/try" in told and "models/me/try" in hub.private
    assert {path.name for path in (hub.root / "models/me/try").iterdir()} == FILES
    assert equal(weights("hf:me/try"), weights(run))
    brought = {name.strip("/"): count for name, count in hub.payloads().items()}
    assert brought == {f"models/me/try/{name}": 1 for name in FILES - {"README.md"}}
    assert equal(weights("hf:me/try@main"), weights(run)) and sum(hub.payloads().values()) == 2  # out of the cache
    # the same again sends nothing, an older step both files anew, another run nothing without --replace
    assert "0 files, 0 B sent; 3 stood there" in said("push", run, "--repo", "me/try")
    assert "3 files" in said("push", run, "--repo", "me/try", "--step", 2, "--revision", "early")
    assert open_model("hf:me/try@early", device="cpu").step == 2 and open_model("hf:me/try", device="cpu").step == 4
    said("push", exported, "--repo", "me/copied")
    assert equal(weights("hf:me/copied"), weights(run))
    other = tmp_path / "other"
    train_fn(short(data, other, steps=2, optim=OptimConfig(lr=1e-3)))
    assert "holds a model that is not of" in said("push", other, "--repo", "me/try", status=2)
    assert equal(weights("hf:me/try"), weights(run))
    said("push", other, "--repo", "me/try", "--replace")
    assert equal(weights("hf:me/try"), weights(other))


def test_an_upload_that_was_stopped_goes_on(run: Path, hub: Hub) -> None:
    fault = hub.fault("/commit/", "status", methods=("POST",), code=412)
    assert "another writer" in said("push", run, "--repo", "me/try", status=2)
    assert fault.hits and not list((hub.root / "models/me/try").iterdir())
    said("push", run, "--repo", "me/try")
    assert len(hub.matching("PUT")) == 1  # the weights, which came before the commit
    assert equal(weights("hf:me/try"), weights(run))


def test_training_starts_from_the_hub_and_goes_on_without_it(
    run: Path, hub: Hub, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said("push", run, "--repo", "me/try")
    none = OptimConfig(lr=1e-12, warmup=0)
    cfg = short(data, tmp_path / "on", steps=1, optim=none, start_from=Path("hf:me/try")).resolved()
    assert str(cfg.start_from) == "hf:me/try"
    train_fn(cfg)
    for name, value in weights(tmp_path / "on").items():
        torch.testing.assert_close(value, weights(run)[name], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    train_fn(short(data, tmp_path / "on", steps=2, optim=none, start_from=Path("hf:me/try")))
    with pytest.raises(UserError, match="is not on this machine"):
        train_fn(short(data, tmp_path / "new", steps=1, start_from=Path("hf:me/try")))


def test_what_was_fetched_is_there_without_the_hub(exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(exported, hub.root / "models/me/try")
    weights("hf:me/try")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert equal(weights("hf:me/try"), weights(exported))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert equal(weights("hf:me/try"), weights(exported))


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("hf:me", "is no address of a model"),
        ("hf:me/..", "is no address of a model"),
        ("hf:me/none", "Repository Not Found"),
        ("hf:me/try@gone", "cannot be had"),
        ("hf:me/try/other.pt", "there is no file other.pt"),
        ("hf:me/two", "holds 2 files of weights: a.pt, b.safetensors"),
        ("hf:me/card", "holds no weights"),
        ("hf:me/lies", "the sha256"),
        ("hf:me/strange", "is not of a model of lvsm-data"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, error: str, exported: Path, hub: Hub) -> None:
    models = hub.root / "models/me"
    for name in ("try", "lies", "strange"):
        copy(exported, models / name)
    spoil_weights(models / "lies")
    change(models / "strange", library="diffusers")
    for name, files in (("two", ("a.pt", "b.safetensors")), ("card", ("README.md",))):
        (models / name).mkdir()
        for file in files:
            (models / name / file).write_bytes(b"x")
    assert error in said("eval", address, "--data", exported, status=2)
    assert not [name for name in hub.payloads() if name.endswith("lies/model.safetensors")]  # it was not fetched


def test_a_file_that_came_damaged_is_not_kept(exported: Path, hub: Hub) -> None:
    copy(exported, hub.root / "models/me/try")
    hub.fault("model.safetensors", "wrong_bytes")
    with pytest.raises(UserError, match="is damaged"):
        open_model("hf:me/try", device="cpu")
    assert equal(weights("hf:me/try"), weights(exported))


# ---- eval


def test_an_exported_model_scores_as_its_run(run: Path, exported: Path, data: Path, tmp_path: Path) -> None:
    few = ("--no-lpips", "--video", 0)
    assert "does not say where data are" in said("eval", exported, *few, status=2)
    said("eval", run, *few, "--out", tmp_path / "run")
    told = said("eval", exported, "--data", data, *few, "--out", tmp_path / "exported")
    assert "those for validation are taken" in told
    means = [
        json.loads((tmp_path / name / "summary.json").read_text())["means_over_images"] for name in ("run", "exported")
    ]
    assert means[0] == means[1]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_of_the_official_lvsm(
    suffix: str, clips: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = lvsm.build(OFFICIAL, 5)
    file = hub.root / f"models/them/lvsm/scene{suffix}"
    file.parent.mkdir(parents=True)
    extra = {"loss_computer.vgg.weight": torch.zeros(3)}
    if suffix == ".pt":
        torch.save({"model": to_official(model) | extra, "param_update_step": 100}, file)
    else:
        safetensors.torch.save_file(to_official(model) | extra, file)
    few = ("--res", 24, "--no-lpips", "--video", 0, "--data", clips, "--protocol", "re10k")
    few = (*few, "--index", clips.parent / "index.json")
    found = {}
    for place in (file, "hf:them/lvsm", f"hf:them/lvsm/scene{suffix}"):
        told = said("eval", place, "--preset", "official-dec", *few)
        assert "2 objects, 6 images; means" in told and "left out" not in told
        assert "is not of the size of official-dec: dim 32, there 768" in told
        (summary,) = (tmp_path / "eval").rglob("summary.json")
        found[str(place)] = json.loads(summary.read_text())["means_over_images"]
        shutil.rmtree(tmp_path / "eval")
    assert len({json.dumps(means) for means in found.values()}) == 1
    assert equal(weights(file, preset="official-dec"), dict(model.state_dict()))
    for preset, error in (
        ((), "does not say how it was trained"),
        (("--preset", "official-encdec"), "is a decoder_only, and --preset official-encdec is not of one"),
    ):
        refused = said("eval", file, *preset, *few, status=2)
        assert error in refused and "--preset official-dec (or official-dec-objects)" in refused


def test_the_published_index_is_fetched_once(
    run: Path, clips: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(to_official(lvsm.build(OFFICIAL, 5)), tmp_path / "scene.pt")
    command = ["eval", tmp_path / "scene.pt", "--preset", "official-dec", "--data", clips, "--protocol", "re10k"]
    command += ["--res", 24, "--no-lpips", "--video", 0, "--out", tmp_path / "out"]
    served = hub.root / "www/evaluation_index_re10k.json"
    served.parent.mkdir(parents=True)
    served.write_bytes((clips.parent / "index.json").read_bytes() + b" ")
    monkeypatch.setattr(published_index, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(published_index, "URL", f"{hub.url}/{served.name}")
    refused = said(*command, status=2)  # another file than the one that is known
    assert "needs --index FILE" in refused and published_index.URL in refused
    monkeypatch.setattr(published_index, "SHA256", sha256_of(served))
    assert "2 objects, 6 images" in said(*command)
    hub.clear()
    assert "2 objects, 6 images" in said(*command) and not hub.requests
    gone = json.loads(served.read_text()) | {"elsewhere": {"context": [3, 60], "target": [9, 30, 51]}, "never": None}
    (tmp_path / "more.json").write_text(json.dumps(gone))
    assert "2 of 3 entries of more.json are in the shards" in said(*command, "--index", tmp_path / "more.json")


# torch, and what reading shards takes: no more has to be installed where a model is used
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in "av bpy h5py ot pandas py7zr ray safetensors scipy tensorboardX yt_dlp".split():
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""


def test_what_the_docs_say_runs(
    data: Path,
    clips: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, folder in (("try", data), ("re10k", clips)):
        (tmp_path / "data" / name).symlink_to(folder)
    size = ["--dim", 32, "--head-dim", 16, "--layers", 2, "--encoder-layers", 1, "--res", 32]
    train = [*size, "--steps", 1, "--batch", 2, "--eval-every", 0, "--no-tensorboard"]
    said("train", "--data", "data/try", *train, "--out", "runs/try")
    theirs = hub.root / "models/coast01/LVSM"
    theirs.mkdir(parents=True)
    for kind in ("decoder_only", "encoder_decoder"):
        model = lvsm.build(ModelConfig(kind=kind, dim=32, head_dim=16, layers=2, encoder_layers=1, latents=8), 5)
        torch.save({"model": to_official(model)}, theirs / f"scene_{kind}_256.pt")
    index = clips.parent / "index.json"
    monkeypatch.setattr(published_index, "CACHE", index.parent)
    monkeypatch.setattr(published_index, "FILE", index.name)
    monkeypatch.setattr(published_index, "SHA256", sha256_of(index))
    commands = [line.partition("#")[0] for line in DOCS.splitlines() if line.startswith("lvsm-data ")]
    assert len(commands) == 6
    for line in commands:
        _, verb, *words = line.split()
        less = {"train": train, "eval": ["--no-lpips", "--video", 0], "push": [], "export": []}[verb]
        said(verb, *words, *less, *(["--res", 24] if "re10k" in words else []))
    assert (tmp_path / "models/try/README.md").is_file() and (tmp_path / "runs/more/card.json").is_file()
    (block,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    command, env = [sys.executable, "-c", WITHOUT + block], hub.environment(tmp_path)
    made = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (made.stdout, made.stderr) == ("1 unidirectional 32\n", "")


def test_official_weights_beside_a_config_of_others(hub: Hub) -> None:
    model, folder = lvsm.build(OFFICIAL, 5), hub.root / "models/them/lvsm"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(to_official(model), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LVSM"]}')
    for place in (folder / "model.safetensors", "hf:them/lvsm/model.safetensors"):
        assert equal(weights(place, preset="official-dec"), dict(model.state_dict()))
    for whole in (folder, "hf:them/lvsm"):
        with pytest.raises(UserError, match="is not of a model of lvsm-data") as failure:
            open_model(whole, device="cpu", preset="official-dec")
        assert "name the file of weights itself, with --preset" in failure.value.hint


def test_a_disk_that_is_full(exported: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(exported, hub.root / "models/me/try")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(UserError, match="No space left"):
        open_model("hf:me/try", device="cpu")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (3, "not of type int"),
        (None, "not of type NoneType"),
        (["runs/try"], "not of type list"),
        ("", "is empty"),
        ("x" * 300, "File name too long"),
        ("~nobody-of-that-name/run", "is not there"),
    ],
    ids=["number", "none", "list", "empty", "long", "home"],
)
def test_what_names_no_model(place: Any, error: str) -> None:
    with pytest.raises(UserError, match=error) as failure:
        lvsm_train.load(place, device="cpu")
    assert "give a run of `lvsm-data train`" in failure.value.hint


@pytest.mark.parametrize(
    "content", [b"print('hello')\n", b"", b"\xff\xd8\xff\xe0 a photo", pickle.dumps({"model": Hostile()})]
)
def test_a_file_of_no_weights_is_said_in_a_sentence(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """Without what torch says of such files, which is how to execute what they hold."""
    (tmp_path / "file.py").write_bytes(content)
    with pytest.raises(UserError) as failure:
        lvsm_train.load(tmp_path / "file.py", device="cpu")
    said = f"{tmp_path}/file.py cannot be read (it is no file of torch.save, or one with more than tensors and plain values)"
    assert str(failure.value) == said
    assert capfd.readouterr() == ("", "") and not list(recwarn)
    (tmp_path / "checkpoints").mkdir()
    for name, text in (("step-00000005.pt", content), ("step-00000005.json", b"{}")):
        (tmp_path / "checkpoints" / name).write_bytes(text)
    with pytest.raises(UserError, match=r"step-00000005\.pt cannot be read: it is no file of torch\.save"):
        lvsm_train.load(tmp_path, device="cpu")


def test_checkpoints_that_are_not_whole_are_refused(run: Path, exported: Path, tmp_path: Path) -> None:
    whole = to_official(lvsm.build(OFFICIAL, 5))
    name = "transformer_blocks.1.attn.fc.weight"
    cases = {
        "missing": ({key: value for key, value in whole.items() if key != name}, f"first {name}"),
        "strange": (whole | {"pose_embedding.weight": torch.ones(3)}, "unexpected, first pose_embedding.weight"),
        "shape": (whole | {name: torch.ones(32, 31)}, "(32, 31)"),
        "nothing": ({}, "no weight begins with transformer_blocks."),
        "ours": (weights(run), "without what says of which model they are"),
        "list": ([1], "it holds a list, and no weights by their names"),
    }
    for case, (tensors, error) in cases.items():
        torch.save(tensors, tmp_path / f"{case}.pt")
        with pytest.raises(UserError) as failure:
            open_model(tmp_path / f"{case}.pt", device="cpu", preset="official-dec")
        assert error in str(failure.value), case
    for place, error in ((tmp_path / "none.pt", "is not there"), (tmp_path, "has no checkpoint")):
        with pytest.raises(UserError, match=error):
            open_model(place, device="cpu")
    for place in (run, exported):
        with pytest.raises(UserError, match="says itself what it is"):
            open_model(place, device="cpu", preset="official-dec")
    with pytest.raises(UserError, match="--step 2 is for the folder of a run"):
        open_model(exported, 2, "cpu")
    assert DataConfig(()).data == open_model(exported, device="cpu").cfg.data.data
