"""The laboratory of latents end to end: pictures, films, numbers and the page of a run that was trained a little."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from lvsm_train.config.train import ModelConfig  # noqa: E402
from lvsm_train.config.trained import OPERATIONS, WAYS, LatentConfig  # noqa: E402
from lvsm_train.data.batches import Data  # noqa: E402
from lvsm_train.latent import grids, latents, subjects, workbench  # noqa: E402
from lvsm_train.latent.explore import FINDINGS, explained, explore  # noqa: E402
from lvsm_train.latent.latent_page import Report  # noqa: E402
from lvsm_train.latent.operations import EDITS, MIXTURES  # noqa: E402
from lvsm_train.losses.metrics import Lpips  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.training.train import train_fn  # noqa: E402
from lvsm_train.weights.official import to_official  # noqa: E402
from lvsm_train.weights.trained import open_model  # noqa: E402
from pipeline.core import images  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests.conftest import lvsm_data_here  # noqa: E402
from tests.hub import Hub, known_alone  # noqa: E402
from tests.lvsm_train.training.test_train import config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub to its HTTP client
ENCDEC = ModelConfig(
    kind="encoder_decoder", dim=32, head_dim=16, layers=2, encoder_layers=1, latents=6, prope=True, init="width_aware"
)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_fn(config(data, out, model=ENCDEC, steps=8, eval_every=0, checkpoint_every=8, tensorboard=False))
    return out


def settings(run: Path, **more: Any) -> LatentConfig:
    usual = LatentConfig(run, views=2, frames=3, pca_objects=5, batch=4, lpips=False, device="cpu")
    return dataclasses.replace(usual, **more).resolved()


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    """All operations on two named objects, one of which was trained on."""
    return explore(settings(run, objects=("ball-4", "ball-1")))


def test_everything_that_is_told_of_is_there(report: Report, run: Path) -> None:
    assert report.out == run / "latent"
    assert len(report.notes) == 1 and "this model has learned next to nothing" in report.notes[0]  # in its eight steps
    assert (
        report.notes[0] in report.lines() and "has learned next to nothing" in (report.out / "index.html").read_text()
    )
    told = json.loads((report.out / "latent.json").read_text())
    assert [each["uid"] for each in told["objects"]] == ["ball-4", "ball-1"]
    assert told["facts"]["lpips"] is None and told["facts"]["latents"] == 6
    names = {study["name"] for study in told["studies"]}
    assert names >= {
        "reorder",
        "values",
        "rotate",
        "rotate-other",
        "noise",
        "noise-chosen",
        "fade",
        "remove",
        "add",
        "add-other",
    }
    assert names >= {
        "keep-random",
        "keep-strongest",
        "keep-weakest",
        "keep-norm",
        "duplicate",
        "swap",
        "swap-hungarian",
    }
    assert names >= {f"{name}-{path}" for name in ("slot", "hungarian", "transport") for path in ("linear", "slerp")}
    assert names >= {"union-linear", "sizes-slot", "sizes-hungarian", "sizes-transport", "sizes-union"}
    assert names >= {"pca-tokens-kept", "pca-tokens-walk", "pca-scenes-kept", "pca-scenes-walk"}
    for study in told["studies"]:
        rows = len(study["steps"]) + 1 + ("to_second" in study["steps"][0])
        height, width = images.size_of((report.out / study["picture"]).read_bytes())
        assert height >= rows * grids.LEAST and width > 2 * grids.LEAST
        for film in study.get("films", []):
            assert (report.out / film).read_bytes()[:12].find(b"ftyp" if film.endswith("mp4") else b"GIF89a") in (0, 4)
    assert sum(len(study.get("films", [])) for study in told["studies"]) == 2 * 11
    assert len(told["influence"][0]["rms_change"]) == 6 and len(told["pca"]["nearest"][0]["nearest"]) == 4


def test_what_is_true_by_construction_holds_and_is_measured(report: Report) -> None:
    promised = [law for law in report.laws if law.bound is not None]
    assert len(promised) == 7 + 2 * 4 and all(law.holds for law in promised)
    assert min(law.largest for law in report.laws if law.bound is None) > 1e-4
    studies = {study["name"]: study["steps"] for study in report.studies if study["objects"][0] == "ball-4"}
    assert all(step["largest_change"] <= 1e-5 for step in studies["reorder"])
    assert studies["add"][0]["largest_change"] == 0 and studies["add"][0]["psnr"] is None
    assert studies["swap"][-1]["to_second"]["largest_change"] <= 1e-5 < studies["swap"][-1]["largest_change"]
    for name in ("slot-slerp", "transport-linear", "union-linear", "sizes-hungarian"):
        assert studies[name][0]["largest_change"] == 0 == studies[name][-1]["to_second"]["largest_change"]
        assert studies[name][4]["largest_change"] > 1e-4


def test_the_page_holds_all_and_asks_for_nothing(report: Report) -> None:
    page = (report.out / "index.html").read_text()
    for title in ("True by construction", "Found", "Other values", "What each token is for", "Principal components"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:video/mp4") == 11 and "http://" not in page and "https://" not in page
    assert any(line.startswith("true by construction: 15 of 15 hold") for line in report.lines())


# ---- tensors


DOCS = (Path(__file__).parents[3] / "docs/latent.md").read_text(encoding="utf-8")
SIZES = {"N": 6, "dim": 32, "N dim": 6 * 32, "T": 2, "H": 32, "W": 32, "k": 6, "l": 6, "M": 3, "S": 5}
PAIRS = {"pairing": {"slot": 6, "hungarian": 6, "union": 12}, "sizes": {"slot": 6, "hungarian": 6, "union": 9}}


def tensors(report: Report) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(report.out / "latent.safetensors")
    return found


def test_the_docs_name_all_tensors_with_their_shapes(report: Report) -> None:
    """And they are read where there is no torch."""
    code = "import sys; from safetensors.numpy import load_file; made = load_file(sys.argv[1]); "
    code += (
        "print({name: (str(one.dtype), one.shape) for name, one in made.items()}); assert 'torch' not in sys.modules"
    )
    path = report.out / "latent.safetensors"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    found = ast.literal_eval(done.stdout)
    table = re.findall(r"^\| (`.*?`) \| (\(.*?) \|", DOCS.partition("### Tensors")[2], re.MULTILINE)
    assert len(table) > 15
    told = {}
    for names, shapes in table:
        each = re.findall(r"`(.*?)`", names)
        for name, shape in zip(each, re.findall(r"\((.*?)\)", shapes) * len(each), strict=False):
            for number in (1, 2) if name.startswith("object-") else (1,):
                for way in WAYS if "NAME" in name else ("",):
                    told[name.replace("object-1", f"object-{number}").replace("NAME", way)] = shape.split(", ")
    of_time = {name for name in told if name.startswith("instants/")}  # of models that know time: test_time.py
    assert of_time and told.keys() - of_time == found.keys()
    for name, (kind, shape) in found.items():
        counts = re.fullmatch(r"(influence|sizes)/(orbit/)?tokens|(pairing|sizes)/\w+/(first|second)", name)
        assert kind == ("int64" if counts else "float32"), name
        group, _, way = name.rpartition("/")[0].rpartition("/")
        known = SIZES | {"K": len(report.tensors[f"pca/{way}/share"]) if group == "pca" else 0}
        known |= {"P": PAIRS.get(group, {}).get(way, shape[0])}
        assert list(shape) == [known[one] if one in known else int(one) for one in told[name]], name


def test_tensors_are_what_the_numbers_and_pictures_are_of(report: Report, run: Path) -> None:
    found, told = tensors(report), json.loads((report.out / "latent.json").read_text())
    net = open_model(run, device="cpu").net
    for number, entry in enumerate(told["influence"], 1):
        mine = {name.partition("/")[2]: value for name, value in found.items() if name.startswith(f"object-{number}/")}
        assert np.allclose(mine["influence"], entry["rms_change"], atol=1e-6)
        assert np.allclose(mine["direction"].mean(1), 0, atol=1e-5) and np.allclose(
            (mine["direction"] ** 2).mean(1), 1, atol=0.1
        )
        tokens, frame, c2w, k = (torch.from_numpy(mine[name]) for name in ("tokens", "frame", "c2w", "fxfycxcy"))
        scene = latents.LatentScene(tokens, torch.ones(len(tokens)), frame)
        assert torch.equal(subjects.render(net, [scene], c2w, k, (32, 32))[0], torch.from_numpy(mine["render"]))
        if number == 1:  # the strongest token's map is of the change that its influence measures
            strongest = int(found["influence/tokens"][0])
            assert strongest == mine["influence"].mean(1).argmax()
            without = subjects.render(net, [scene.with_weight(torch.tensor([strongest]), 0.0)], c2w, k, (32, 32))[0]
            change = (without - torch.from_numpy(mine["render"])).abs().mean(1).numpy()
            assert np.allclose(found["influence/maps"][0], change, atol=1e-6)
    axes, share = found["pca/tokens/axes"], found["pca/tokens/share"]
    assert np.allclose(axes @ axes.T, np.eye(len(axes)), atol=1e-5)
    assert np.allclose(share, told["pca"]["tokens"]["share"], atol=1e-6) and (np.diff(share) <= 0).all()
    assert np.allclose(found["pca/scenes/coordinates"][:, :4], told["pca"]["scenes"]["coordinates"], atol=1e-5)
    own = found["object-1/direction"].ravel() - found["pca/scenes/mean"]
    assert np.allclose(found["pca/scenes/axes"] @ own, found["pca/scenes/coordinates"][0], atol=1e-4)
    first, second = (np.sort(found[f"pairing/hungarian/{end}"]) for end in ("first", "second"))
    assert first.tolist() == second.tolist() == [*range(6)]
    assert set(found["sizes/slot/second"].tolist()) == {-1, 0, 1, 2}
    with safe_open(report.out / "latent.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["about"])
    assert about == {"objects": ["ball-4", "ball-1"], "step": 8, "seed": 0, "pca_objects": told["pca"]["objects"]}


def test_the_docs_go_on_with_the_tensors(
    report: Report, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed one after the other, its lines render the object again, bit by bit."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/encdec").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```\n(.*?)```", DOCS.partition("### Tensors")[2].partition("## From Python")[0], re.DOTALL)
    made: dict[str, Any] = {}
    exec("".join(blocks), made)
    assert len(blocks) == 2 and made["moved"].shape == (6, 32)
    assert torch.equal(made["pictures"], torch.from_numpy(made["found"]["object-1/render"]))


@pytest.fixture
def passed_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The run's model wherever a model can be."""
    exported = tmp_path / "exported"
    assert lvsm_data_here("export", run, "--to", "safetensors", "--out", exported).returncode == 0
    with Hub(tmp_path / "hub", writers={"hf_me": "me"}) as hub, known_alone(hub, tmp_path, monkeypatch):
        shutil.copytree(exported, hub.root / "models/me/try")
        yield {
            "checkpoint": run / "checkpoints/step-00000008.pt",
            "exported": exported,
            "file": exported / "model.safetensors",
            "hub": Path("hf:me/try"),
        }


def test_models_from_anywhere_give_the_same_tensors(
    run: Path, data: Path, passed_on: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    less = ["--objects", "ball-4", "--only", "influence", "reorder", "--views", 1, "--no-lpips", "--data", data]
    made = {}
    for name, place in {"run": run, **passed_on}.items():
        ended = lvsm_data_here("latent", place, *less, *(["--out", tmp_path / name] if name != "hub" else []))
        assert ended.returncode == 0, ended.stderr
        out = tmp_path / "here/latent/try" if name == "hub" else tmp_path / name
        made[name] = (out / "latent.safetensors").read_bytes()
    assert len(set(made.values())) == 1, made.keys()
    ended = lvsm_data_here("latent", passed_on["hub"], *less[:-2])
    assert ended.returncode == 2 and "--data FOLDER" in ended.stderr


def test_a_checkpoint_of_the_official_lvsm(data: Path, tmp_path: Path) -> None:
    model = lvsm.build(dataclasses.replace(ENCDEC, prope=False, head_dim=16, latents=8), 5)
    torch.save({"model": to_official(model)}, tmp_path / "scene.pt")
    less = {
        "preset": "official-encdec-objects",
        "objects": ("ball-4",),
        "only": ("influence",),
        "data": (data,),
        "res": 32,
    }
    found = tensors(explore(settings(tmp_path / "scene.pt", out=tmp_path / "out", **less)))
    assert found["object-1/tokens"].shape == (8, 32)


def test_what_a_model_has_learned_is_a_share_of_what_differs() -> None:
    target = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = target.mean((-2, -1), keepdim=True).expand_as(target)
    for share in (0.0, 0.5, 1.0):
        assert explained([grey.lerp(target, share)], [target]) == pytest.approx(1 - (1 - share) ** 2, abs=1e-5)
    assert explained([torch.zeros_like(target)], [target]) < 0


def test_frames_of_two_scenes_are_alike(run: Path) -> None:
    trained, cfg = open_model(run, device="cpu"), settings(run, objects=("ball-4", "ball-1"))
    loader = Data(trained.data_config(cfg))
    bench = workbench.open_bench(trained, loader, cfg)
    plain = loader.planner.named(cfg.objects, 3, 2)
    apart = bench.frame_difference()
    assert apart is not None
    poses = [loader.index.c2w[loader.index.of(sample.number)] for sample in plain]
    ways = [sum(workbench.pose_difference(pose, poses[0][plain[0].inputs[0]])) for pose in poses[1]]
    assert sum(apart) == pytest.approx(min(ways), abs=1e-5)
    for sample in bench.samples:
        assert len(sample.inputs) == 3 and len(sample.targets) == 2 and not set(sample.inputs) & set(sample.targets)
    loader.close()


def test_some_operations_on_one_object_and_chosen_tokens(run: Path, tmp_path: Path) -> None:
    cfg = settings(run, objects=("ball-9",), only=("values", "swap"), tokens=("1", "3:5"), out=tmp_path / "few")
    report = explore(cfg)
    assert report.facts["tokens"] == [1, 3, 4]
    assert {study["name"] for study in report.studies} == {"values"}
    assert "swap was left out: it needs two objects" in report.notes
    written = (report.out / "latent.safetensors").read_bytes()
    assert explore(cfg).as_json() == report.as_json()  # random numbers are the seed's
    assert (report.out / "latent.safetensors").read_bytes() == written
    assert {name.split("/")[0] for name in tensors(report)} == {"object-1"}
    other = explore(dataclasses.replace(cfg, only=("noise",), seed=1))
    assert other.as_json() != explore(dataclasses.replace(cfg, only=("noise",))).as_json()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"objects": ("nobody",)}, "no object nobody among 10"),
        ({"tokens": ("6",)}, "a scene has tokens 0 to 5"),
        ({"tokens": ("a:b",)}, "neither a number nor a range"),
        ({"objects": ("ball-1", "ball-1")}, "twice"),
        ({"frames": 2}, "--frames 2 is too small"),
        ({"data": (Path("/nowhere"),)}, "is no folder"),
        ({"step": 3}, "no checkpoint of step 3"),
        ({"lpips": True, "lpips_weights": Path("/nowhere.tar.gz")}, "is no file"),
    ],
)
def test_bad_input_is_named(more: dict[str, Any], error: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=error):
        explore(settings(run, out=tmp_path / "out", **more))


def test_other_models_are_refused(data: Path, tmp_path: Path) -> None:
    train_fn(config(data, tmp_path / "run", steps=1, eval_every=0, checkpoint_every=1, tensorboard=False))
    with pytest.raises(UserError, match="is a unidirectional model, which keeps no latents") as refused:
        explore(settings(tmp_path / "run", data=(tmp_path,)))  # no shards: not even looked at
    assert "--kind encoder_decoder" in str(refused.value.hint)


def test_lpips_that_cannot_be_had_is_a_note(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("pip cannot fetch it", "elsewhere")

    monkeypatch.setattr(Lpips, "load", refuse)
    cfg = settings(run, objects=("ball-4",), only=("reorder",), out=tmp_path, lpips=True)
    assert explore(cfg).notes[0] == "LPIPS was not measured: pip cannot fetch it"


def test_operations_are_all_known() -> None:
    assert set(OPERATIONS) == {*EDITS, *MIXTURES, *FINDINGS}
