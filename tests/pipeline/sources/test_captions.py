"""--captions: texts of a table become a column, by uid, sha256 or file identifier."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.formats import tables
from pipeline.run.selection import captioned
from tests.conftest import lvsm_data

TEXTS = {"a": 'A "red" chair, with\ntwo legs', "b": "ein Stuhl, grün", "c/d.glb": "x"}


def write(path: Path, names: bool) -> Path:
    pairs = [{"uid": uid, "caption": text, "more": 1} for uid, text in TEXTS.items()]
    if path.suffix == ".csv":
        quoted = ['{},"{}"'.format(uid, text.replace('"', '""')) for uid, text in TEXTS.items()]
        path.write_text("\n".join(["uid,caption"] * names + quoted), encoding="utf-8-sig" if names else "utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, pairs)))
    else:
        pq.write_table(pa.Table.from_pylist(pairs), path)
    return path


@pytest.mark.parametrize(("suffix", "names"), [(".csv", True), (".csv", False), (".jsonl", True), (".parquet", True)])
def test_tables_of_every_kind(tmp_path: Path, suffix: str, names: bool) -> None:
    assert tables.captions(write(tmp_path / f"t{suffix}", names)) == TEXTS


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("id,text,more\n1,2,3\n", "has no columns uid and caption"),
        ("", "has no columns uid and caption"),
        ("uid,caption\na,\n", "holds no caption"),
        ("\xff\xfe", "cannot be read"),
    ],
)
def test_what_is_no_table_of_captions(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "t.csv").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=error):
        tables.captions(tmp_path / "t.csv")


@given(st.sampled_from(["uid", "sha256", "id", "none"]))
def test_an_item_is_known_by_each_of_its_names(tmp_path_factory: pytest.TempPathFactory, which: str) -> None:
    table = tmp_path_factory.mktemp("captions") / "t.csv"
    table.write_text("key,a text\n")
    named = {"uid": "x", "sha256": "y", "id": "z"} | ({which: "key"} if which != "none" else {})
    item = Item(named["uid"], "s", sha256=named["sha256"], extra={"id": named["id"], "size": 3})
    (made,) = captioned(iter([item]), table)
    assert made.extra.get("caption", "") == ("a text" if which != "none" else "") and made.extra["size"] == 3


def test_a_run_with_captions(tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text('procedural-0-0000000,"A chair, red"\n')
    small = ("--n", 2, "--res", 16, "--views", 2, "--samples", 1, "--executor", "inline", "--val-percent", 0)
    command = ("render", *small, "--out", tmp_path / "run", "--captions", table)
    assert lvsm_data(*command).returncode == 0
    assert {one.uid: one.caption for one in pipeline.open(tmp_path / "run")} == {
        "procedural-0-0000000": "A chair, red",
        "procedural-0-0000001": "",
    }
    assert lvsm_data("verify", tmp_path / "run").returncode == 0
    other = lvsm_data("render", *small, "--out", tmp_path / "run")  # shards of one run have the same columns
    assert other.returncode == 2 and "captions" in other.stderr
