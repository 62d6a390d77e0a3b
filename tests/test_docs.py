"""The README is run: every verb's example, every Python block, and its rooms against the folders."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.cli import VERBS
from tests import balls, foreign, trees, videos
from tests.conftest import lvsm_data, lvsm_data_here
from tests.hub import Hub
from tests.videos import VideoServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def example(verb: str) -> str:
    found = re.search(r"Example: (lvsm-data .*)", VERBS[verb].__doc__ or "")
    assert found, f"{verb} has no example in its help"
    return found[1]


SMALL_MODEL = "--model.dim 64 --model.layers 4 --model.encoder-layers 2"
LESS = {  # than the examples ask for: a later flag counts
    "render": "--n 3 --samples 4",
    "import": "--n 1 --executor inline",  # `render` starts a Ray
    "clip": "--n 2 --executor inline",
    "train": "--steps 2 --batch 2",
    "plan": f"--n 10 --pilot 4 --samples 4 --views 12 --executor inline {SMALL_MODEL}",
    "cycle": f"--n 8 --samples 4 --views 12 --passes 2 --executor inline {SMALL_MODEL}",
    "latent": "--frames 3 --views 2 --res 32",
    "manifest": "--n 5",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    trees.objaverse(folder)
    with Hub(folder, writers={"hf_me": "me"}) as hub:
        yield hub


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VideoServer, list[int]]]:
    """A server with one video, and when its frames are shown, in microseconds."""
    folder = tmp_path_factory.mktemp("films")
    times = videos.make_video(folder / "house.mp4", (videos.numbered(i, (480, 854)) for i in range(60)))
    with VideoServer(folder) as server:
        yield server, [int(time * 1_000_000) for time in times]


def run_example(verb: str, folder: Path, hub: Hub) -> subprocess.CompletedProcess[str]:
    """The example as it stands, but for fewer objects and a smaller model."""
    command = shlex.split(f"{example(verb)} {LESS.get(verb, '')}")[1:]
    offline = {"PIP_NO_INDEX": "1"}  # `eval` says then that it did not measure LPIPS
    return lvsm_data(*command, cwd=folder, env=hub.environment(folder) | offline)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, hub: Hub, films: tuple[VideoServer, list[int]]) -> Path:
    """A folder in which the example of `render` has been run, the one of `import` has pictures, that of `clip` cameras."""
    folder = tmp_path_factory.mktemp("readme")
    server, times = films
    poses, shares = videos.circle_w2c(20), np.array([0.9, 1.6, 0.5, 0.5])
    text = [videos.camera_file(f"{server.url}/house.mp4", times[at : at + 20], shares, poses) for at in (5, 30)]
    videos.pack_dataset(folder / "RealEstate10K.tar.gz", {"train": {"first": text[0], "second": text[1]}})
    eyes = balls.walk(3, (540, 600))  # as in tests/pipeline/sources/test_importers.py: drawn once
    foreign.nerfstudio(folder / "captures/balls", eyes)
    run = run_example("render", folder, hub)
    assert run.returncode == 0, run.stderr
    return folder


Ran = Callable[[str], "subprocess.CompletedProcess[str]"]
FIRST = {"eval": "train", "synthesize": "train", "audit": "cycle"}  # whose run an example takes up


@pytest.fixture(scope="module")
def ran(workplace: Path, hub: Hub) -> Ran:
    """Function that runs the example of a verb once, after those that it takes up, and returns how it ended."""

    @functools.cache
    def run(verb: str) -> subprocess.CompletedProcess[str]:
        if verb in FIRST:
            run(FIRST[verb])
        return run_example(verb, workplace, hub)

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_readme_with_its_example_and_in_its_help(verb: str) -> None:
    assert f"`{example(verb)}`" in README
    shown = lvsm_data_here(verb, "--help")
    assert shown.returncode == 0
    assert f"Example: {example(verb)}" in shown.stdout


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "render"])
def test_every_example_runs(verb: str, workplace: Path, ran: Ran) -> None:
    if verb == "latent":
        encoder_decoder(workplace)
    run = ran(verb)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()


def encoder_decoder(folder: Path) -> None:
    """A run of a tiny one in runs/encdec, for the example of `latent`."""
    command = "train --data data/try --kind encoder_decoder --dim 32 --layers 2 --encoder-layers 1 --latents 8 --out runs/encdec"
    run = lvsm_data(*command.split(), "--steps", 2, "--eval-every", 0, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr


RAY = """
import sys; sys.path.append(sys.argv[1]); from tests.warm import without_dashboard; without_dashboard()
ray.init(num_cpus=1, include_dashboard=False, address="local", log_to_driver=False, logging_level="ERROR")
"""
RAY_READS = """
import json
rows = ray.data.read_parquet("data/try/64").take_all()
print(json.dumps([[r["uid"], int(r["view"]), len(r["image"]["bytes"]), [float(v) for v in r["c2w"]]] for r in rows]))
"""


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.split()[1])
def test_every_python_block_runs(block: str, workplace: Path, ran: Ran) -> None:
    """The one of Ray in a small Ray, which then reads everything."""
    if "runs/try" in block:
        ran("train")
    first, rest = block.split("\n", 1)
    script = first + RAY + rest + RAY_READS if first == "import ray" else block
    run = subprocess.run(
        [sys.executable, "-c", script, ROOT], cwd=workplace, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stderr[-3000:]
    if script != block:
        table = [
            row for path in (workplace / "data/try/64").glob("*.parquet") for row in pq.read_table(path).to_pylist()
        ]
        expected = [[row["uid"], row["view"], len(row["image"]["bytes"]), row["c2w"]] for row in table]
        assert sorted(json.loads(run.stdout.splitlines()[-1])) == sorted(expected)


def test_the_file_tree_names_every_room() -> None:
    tree = README[README.rindex("## Files") :]
    assert len(tree.splitlines()) - 4 <= 15  # a heading, a blank line and two fences
    rooms = {
        path.parent.name for package in ("pipeline", "lvsm_train") for path in (ROOT / package).glob("*/__init__.py")
    }
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    named = set(re.findall(r"(\w+)/", tree))
    assert named >= rooms
    assert named <= rooms | folders, "a folder is in the tree, but not there"


def test_the_picture_of_the_rooms_is_true() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture, walks = page.split("**The rule:**")
    for package in ("pipeline", "lvsm_train"):
        for path in (ROOT / package).iterdir():
            if (path / "__init__.py").exists():
                assert re.search(rf"[│ ] {path.name} ", picture), path
    for name in re.findall(r"`((?:lvsm_train\.)?[a-z]+\.(?!jsonl)[a-z_]+)`", walks):
        module = name.replace(".", "/") + ".py"
        assert any((ROOT / package / module).exists() for package in ("", "pipeline", "lvsm_train")), name


def test_every_flag_of_render_has_help_and_local_links_exist() -> None:
    shown = lvsm_data_here("render", "--help").stdout
    for flag in (
        "--n",
        "--res",
        "--views",
        "--source",
        "--input",
        "--out",
        "--seed",
        "--workers",
        "--samples",
        "--engine",
    ):
        assert flag in shown
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in link or (ROOT / link).exists(), link
