"""Choosing objects by name, score and license."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import sources
from pipeline.config.render import RenderConfig
from pipeline.config.views import ImportConfig
from pipeline.core.errors import UserError
from pipeline.core.records import Item
from pipeline.formats import tables
from pipeline.run.selection import Selection

PAGE = "https://sketchfab.com/3d-models/"


def named(path: Path, text: str) -> frozenset[str] | None:
    path.write_text(text, encoding="utf-8")
    return sources.asked_for(RenderConfig(source="objaverse", uids=path))


def test_lists_as_people_have_them(tmp_path: Path) -> None:
    assert named(tmp_path / "a.txt", "one\n two \n\n") == {"one", "two"}
    assert named(tmp_path / "b.txt", "\ufeffglbs/000-001/abc.glb\n") == {"glbs/000-001/abc.glb", "abc"}
    assert named(tmp_path / "c.csv", '3,000-001/abc\n4,"x, y"\n') == {"3", "4", "000-001/abc", "abc", "x, y"}
    assert named(tmp_path / "d.tsv", "a\tb\n") == {"a", "b"}
    assert named(tmp_path / "e.txt", f"{PAGE}abc, with a comma\n") == {f"{PAGE}abc, with a comma"}


def test_unusable_lists_say_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names nothing"):
        named(tmp_path / "empty.txt", "\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01" * 10)
    with pytest.raises(UserError, match="UTF-8"):
        sources.asked_for(RenderConfig(source="objaverse", uids=tmp_path / "binary.txt"))


def scores(path: Path, least: float, column: str | None = None) -> frozenset[str] | None:
    return sources.asked_for(RenderConfig(source="objaverse", scores=path, min_score=least, score_column=column))


def test_scores_by_any_key(tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text(
        f"sha256,file_identifier,aesthetic_score,other\naa,{PAGE}x,5.5,1\nbb,{PAGE}y,5.4,9\ncc,{PAGE}z,,9\n"
    )
    assert scores(table, 5.5) == {"aa", f"{PAGE}x"}
    assert scores(table, 9, "other") == {"bb", "cc", f"{PAGE}y", f"{PAGE}z"}
    pq.write_table(pa.table({"uid": ["a", "b"], "score": [1.0, None]}), tmp_path / "scores.parquet")
    assert scores(tmp_path / "scores.parquet", 0) == {"a"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uid,quality\na,1\n", "no column aesthetic_score or score"),
        ("name,score\na,1\n", "names no objects"),
        ("uid,score\na,good\n", "row 1 has no number but 'good'"),
    ],
)
def test_unusable_scores_say_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        scores(tmp_path / "scores.csv", 1)


def test_lists_and_scores_narrow_together(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\nb\n")
    (tmp_path / "scores.csv").write_text("uid,score\nb,2\nc,2\n")
    cfg = RenderConfig(source="objaverse", uids=tmp_path / "list.txt", scores=tmp_path / "scores.csv", min_score=1)
    chosen = Selection(cfg)
    assert [uid for uid in "abc" if chosen.takes(Item(uid, "objaverse", license="CC0-1.0"))] == ["b"]
    assert chosen.passed_over["not asked for"] == 2


def test_an_item_is_known_by_uid_sum_and_identifier(tmp_path: Path) -> None:
    item = Item("uid", "github", sha256="aa", license="MIT", extra={"id": "https://github.com/x"})
    for name in ("uid", "aa", "https://github.com/x"):
        (tmp_path / "list.txt").write_text(name)
        tables.names_in.cache_clear()
        assert Selection(RenderConfig(source="objaverse-xl", uids=tmp_path / "list.txt")).takes(item)


def test_licenses_by_default_and_by_wish() -> None:
    def taken(source: str, *families: str) -> list[str]:
        chosen = Selection(RenderConfig(source=source, license=families))  # type: ignore[arg-type]
        names = (
            "CC0-1.0",
            "CC-BY-4.0",
            "CC-BY-NC-4.0",
            "CC-BY-ND-4.0",
            "MIT",
            "GPL-3.0",
            "unknown",
            "All my own words",
        )
        return [name for name in names if chosen.takes(Item("u", source, license=name))]

    assert taken("objaverse") == ["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0", "MIT", "GPL-3.0"]
    assert taken("objaverse", "by") == ["CC-BY-4.0"]
    assert taken("objaverse", "unknown", "by-nd") == ["CC-BY-ND-4.0", "unknown", "All my own words"]
    assert len(taken("objaverse", "any")) == 8
    assert len(taken("local")) == 8  # a user's own files
    assert taken("local", "open") == ["MIT"]


def test_what_was_passed_over_is_told() -> None:
    chosen = Selection(RenderConfig(source="objaverse"))
    assert chosen.lines() == []
    for number in range(3):
        chosen.takes(Item(str(number), "objaverse", license="CC-BY-ND-4.0"))
    chosen.takes(Item("b", "github", url="https://x/a.blend", license="MIT"))
    first, second = chosen.lines()
    assert first == "passed over 3 for their license (CC-BY-ND-4.0 3); --license any takes them too"
    assert second.startswith("passed over 1 .blend files; --allow-blend")


def test_importing_chooses_by_name_alone(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a\n")
    chosen = Selection(ImportConfig(source="zero123", uids=tmp_path / "list.txt"))
    assert chosen.takes(Item("a", "zero123")) and not chosen.takes(Item("b", "zero123"))
