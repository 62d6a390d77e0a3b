"""What the end of an import and `status` say: views that were left out, cameras that cannot be told, and how a run ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.report.status import read_status
from pipeline.storage.ledger import Ledger
from pipeline.worker import silhouettes
from pipeline.worker.silhouettes import Verdict
from tests import balls, foreign
from tests.conftest import lvsm_data_here
from tests.importing import write_json


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    """Three captures of four views: whole; without two pictures; with a broken picture and a pose that is none."""
    for name in ("a", "b", "c"):
        foreign.nerfstudio(tmp_path / "in" / name, balls.walk(4, (90, 120)))
    for number in (1, 2):
        (tmp_path / f"in/b/images/frame_0000{number}.png").unlink()
    cut = tmp_path / "in/c/images/frame_00000.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    facts = foreign.read_json(tmp_path / "in/c/transforms.json")
    facts["frames"][3]["transform_matrix"][1][3] = float("inf")
    write_json(tmp_path / "in/c/transforms.json", facts)
    return tmp_path / "in"


def imported(captures: Path, *more: object, status: int = 3) -> str:
    out = captures.parent / "out"
    options = ("--input", captures, "--res", 32, "--executor", "inline", "--out", out)
    done = lvsm_data_here("import", *options, *more)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def status_of(captures: Path) -> tuple[dict[str, Any], str]:
    out = captures.parent / "out"
    return read_status(out), lvsm_data_here("status", out).stdout


def test_views_that_were_left_out_are_said_at_the_end_and_by_status(captures: Path) -> None:
    said = imported(captures, "--n", 5, "--no-verify-cameras")
    line = next(line for line in said.splitlines() if line.startswith("left out: "))
    assert line.startswith("left out: 4 views of 2 scenes (image_missing 2, bad_cameras 1, broken_image 1); b: ")
    assert "images/frame_00001.png is not there" in line and f"lvsm-data status {captures.parent / 'out'}" in line
    status, told = status_of(captures)
    assert status["state"] == "exhausted" and status["left_out"]["scenes"] == 2
    assert "left out: 4 views of 2 scenes" in told and "images/frame_00003.png has a pose that is no matrix" in told
    assert "the source has no more objects" in told and "goes on where it stopped" not in told
    foreign.nerfstudio(captures / "d", balls.walk(4, (90, 120)))
    again = imported(captures, "--n", 4, "--no-verify-cameras", status=0)  # what came since is taken
    assert "left out: 4 views of 2 scenes" in again and status_of(captures)[0]["state"] == "finished"


def test_a_run_without_a_scene_says_why_and_shows_nothing(captures: Path) -> None:
    for letter in "ac":
        shutil.rmtree(captures / letter)
    shutil.rmtree(captures / "b/images")
    said = imported(captures, "--n", 1)
    why = f"image_missing: b: 4 of 4 pictures are not there in {captures / 'b'} (the first: images/frame_00000.png is not there)"
    assert f"{why}; at least 50% must be\ndetails: lvsm-data status" in said and "look at them" not in said


def test_views_that_an_earlier_version_left_out_are_counted(captures: Path) -> None:
    imported(captures, "--n", 2, "--no-verify-cameras", status=0)
    with Ledger(captures.parent / "out/ledger.sqlite") as ledger:
        ledger.db.execute("UPDATE item SET facts = ?", (json.dumps({"views_missing": 7}),))
    assert "left out: 14 views of 2 scenes (image_missing 14)" in status_of(captures)[1]


def test_views_of_any_posed_source_are_counted_alike(tmp_path: Path) -> None:
    """At the end of the run and by `status`: those that lack what was asked for, and those whose cameras are wrong."""
    uids = [f"{digit}" * 32 for digit in "ab"]
    for uid in uids:
        files = foreign.gobjaverse_files(balls.circle(12, 1.38889, 96, 15.0))
        foreign.write_files(tmp_path / "in" / uid, files)
    cut = tmp_path / "in" / uids[0] / "00003/00003.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    other = tmp_path / "in" / uids[1] / "00005/00005.json"
    other.write_bytes((tmp_path / "in" / uids[1] / "00009/00009.json").read_bytes())
    said = imported(tmp_path / "in", "--source", "gobjaverse", "--n", 2, status=0)
    line = next(line for line in said.splitlines() if line.startswith("left out: "))
    status, told = status_of(tmp_path / "in")
    assert status["left_out"]["reasons"] == {"broken_image": 1, "views_wrong": 1} and status["left_out"]["scenes"] == 2
    for says in ("left out: 2 views of 2 scenes (broken_image 1, views_wrong 1)", "1 view left out: 00003.png: "):
        assert says in line and says in told
    assert "1 view left out: the camera of 00005.png contradicts the others" in told


def test_views_that_nothing_vouches_for_are_said_at_the_end_and_by_status(captures: Path) -> None:
    """Whatever their poses: the pictures of two scenes show too little to tell, as one view of the third does."""
    shutil.rmtree(captures / "c")
    eyes = balls.walk(7, (216, 240), step=0.2)
    room = foreign.nerfstudio(captures / "room", eyes, in_room=True)
    (room / "images/frame_00003.png").write_bytes(balls.photo(np.full((216, 240, 4), 0.5), "PNG"))
    facts = foreign.read_json(room / "transforms.json")
    facts["frames"][3]["transform_matrix"] = foreign.opengl_c2w(balls.walk(4, (90, 120))[2])
    write_json(room / "transforms.json", facts)
    said = imported(captures, "--n", 3, status=0)
    line = next(line for line in said.splitlines() if line.startswith("nothing vouches for "))
    says = "the cameras of 7 of 13 views of 3 scenes (too few matches with other views, and no silhouettes that tell)"
    assert says in line and "taken as they are; a: all views; more: lvsm-data status" in line
    status, told = status_of(captures)
    assert (status["untold"]["views"], status["untold"]["of"], status["untold"]["scenes"]) == (7, 13, 3)
    assert f"nothing vouches for {says}" in told and "  room: view 3 of 7\n" in told


def test_views_of_a_scene_that_moves_are_not_vouched_for(captures: Path) -> None:
    for letter in "bc":
        shutil.rmtree(captures / letter)
    facts = foreign.read_json(captures / "a/transforms.json")
    for place, frame in enumerate(facts["frames"]):
        frame["time"] = place / 4
    write_json(captures / "a/transforms.json", facts)
    (captures / "a/images/frame_00003.png").unlink()
    said = imported(captures, "--n", 1, status=0)
    assert "nothing vouches for the cameras of 3 of 3 views of 1 scene (" in said
    assert "left out: 1 view of 1 scene (image_missing 1); a: 1 view left out: images" in said


def test_a_run_that_is_refused_says_why(captures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silhouettes, "check", lambda loaded: Verdict("does_not_fit", apart=9.0, lines=0.1, matches=99))
    imported(captures, "--n", 3, status=2)
    status, told = status_of(captures)
    assert status["state"] == "refused" and "do not fit its pictures" in status["why"]
    assert "refused: the cameras of nerfstudio do not fit its pictures" in told and "hint: --no-verify-cameras" in told
    assert "the same command goes on" not in told
    imported(captures, "--n", 3, "--no-verify-cameras", status=0)
    assert status_of(captures)[0]["why"] == ""


def test_a_run_whose_source_cannot_be_listed_says_why(captures: Path) -> None:
    imported(captures, "--source", "colmap", status=2)
    assert "refused: " in status_of(captures)[1] and "holds no COLMAP models" in status_of(captures)[1]


def test_scenes_whose_cameras_cannot_be_told_are_named(captures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silhouettes, "check", lambda loaded: Verdict("undecided"))
    imported(captures, "--n", 3, status=0)
    status, told = status_of(captures)
    assert status["undecided"] == {"scenes": 3, "uids": ["a", "b", "c"]}
    assert "cameras of 3 scenes cannot be told by their pictures (undecided): a, b, c\n" in told
