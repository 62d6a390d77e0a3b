"""The page of a run: what it says, that it escapes what others wrote, and that a real browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.report import page as report
from pipeline.report import tiles as report_tiles
from pipeline.report.charts import BINS, Clock, throughput
from pipeline.report.page import write_page
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import read_objects
from pipeline.storage.writer import ShardWriter
from tests.chromium import BROWSER, QUIET, faults_of, needs_browser

VIEWS = 3
EVIL = '</script><script>document.body.dataset.pwned=1</script><img src=x onerror="document.body.dataset.pwned=1">'
ODD = [EVIL, "folder one/a \"b\" 'c' & <d>.glb", "100%41 é #?", "<!--DATA-->"]
VOID = {"meta", "link", "input", "img", "br"}


def picture(seed: int, width: int) -> bytes:
    rng = np.random.default_rng(seed)
    return images.encode_jpeg(rng.integers(0, 256, (width, width, 3), np.uint8), 90)


def scene(uid: str, widths: tuple[int, ...] = (64,), views: int = VIEWS, license: str = "CC0-1.0") -> Scene:
    seed = sum(uid.encode())
    c2w = cameras.sample("shell", np.random.default_rng(seed), views)
    by_width = {
        width: Views(
            [picture(seed + view, width) for view in range(views)],
            np.tile(cameras.intrinsics(50, (width, width)), (views, 1)).astype(np.float32),
            (width, width),
        )
        for width in widths
    }
    facts = {"polygons": 12345, "note": "<b>fact</b>", "raw_bounds": [[-2, -1, -1], [2, 1, 1]]}
    facts["transform"] = (np.diag([0.25, 0.25, 0.25, 1])).tolist()
    return Scene(Item(uid, "local", license=license), c2w, by_width, facts)


class Maker:
    """Writes a run's folder as the driver does, without Blender."""

    def __init__(self, out: Path, widths: tuple[int, ...] = (64,), columns: tuple[str, ...] = ()) -> None:
        self.out = out
        out.mkdir(parents=True)
        settings = {"views": VIEWS, "samples": 7, "lights": "studio", "denoise": "on", "res": list(widths)}
        facts = {"config_hash": "c0ffee", "settings": settings, "source": "local", "versions": {"bpy": "4.5"}}
        self.writer = ShardWriter(out, widths, columns, facts, 1e9)
        self.ledger = Ledger(out / "ledger.sqlite")
        self.now = 1.7e9

    def end(self, outcome: Outcome, shard: str | None = None) -> None:
        self.ledger.record(outcome, shard)
        self.now += 10
        self.ledger.db.execute("UPDATE item SET finished = ? WHERE uid = ?", (self.now, outcome.item.uid))

    def deliver(self, made: Scene, split: str = "train", number: int = 0) -> None:
        name, _ = self.writer.add(made, split, number)
        self.end(Outcome(made.item, made), name)

    def fail(self, uid: str, reason: str, detail: str = "") -> None:
        self.end(Outcome(Item(uid, "local"), None, reason, detail, tries=2))

    def close(self, *splits: str) -> None:
        for split in splits:
            if shard := self.writer.close(split):
                self.ledger.add_shard(shard)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two widths, two train shards and a val shard, ten objects, 25 failures for two reasons."""
    maker = Maker(tmp_path_factory.mktemp("runs") / "a <run> & more", (64, 192))
    for i, uid in enumerate(ODD):
        maker.deliver(scene(uid, (64, 192), license="<i>MIT</i>" if i % 2 else "CC0-1.0"))
    maker.close("train")
    for i in range(4):
        spelling = "CC0-1.0" if i else "cc0"
        maker.deliver(scene(f"plain-{i}", (64, 192), license=spelling), number=1)
    for i in range(2):
        maker.deliver(scene(f"val-{i}", (64, 192)), "val")
    maker.close("train", "val")
    for i in range(24):
        maker.fail(f"late {i:02d}", "timeout", f"\x1b[31mafter\x1b[0m 600 s {EVIL}")
    maker.fail(EVIL + "failed", "empty")
    (maker.out / "status.json").write_text(json.dumps({"state": "finished", "n": 10, "updated": 1.7e9}))
    maker.ledger.db.close()
    return maker.out


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(run, tmp_path_factory.mktemp("page") / "new folder" / "index.html")


def data_of(path: Path) -> list[dict[str, Any]]:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert block
    objects: list[dict[str, Any]] = json.loads(block[1])["objects"]
    return objects


class Reader(HTMLParser):
    """Collects text and tags, and checks that tags nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text())
        assert not self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.text += data + " "


def test_header_adds_up_and_names_settings(page: Path, run: Path) -> None:
    text = Reader(page).text
    for expected in (
        run.name,
        "35 = 10 delivered + 25 failed",
        "10 of 10 requested",
        f"{10 * VIEWS} ",
        "64, 192 px",
        "in 6 files; 8 train + 2 val objects",
        "7 per pixel",
        "studio",
        "c0ffee",
        "bpy 4.5",
    ):
        assert expected in text, expected


def test_everything_foreign_is_escaped(page: Path) -> None:
    source = page.read_text()
    reader = Reader(page)
    assert source.count("<script") == source.count("</script>") == 2
    assert reader.tags.count("img") == 1 and "i" not in reader.tags  # the page's own, none of a uid's or a license's
    assert "onerror=" in reader.text and "<i>MIT</i>" in reader.text and "\x1b" not in source
    assert {tile["uid"] for tile in data_of(page)} >= set(ODD)


def test_failures_by_reason_with_limited_examples(page: Path) -> None:
    text = re.sub(r"\s+", " ", Reader(page).text)
    assert text.index("timeout 24") < text.index("empty 1 ")
    assert "examples: 20 of 24" in text and "late 19" in text and "late 20" not in text
    assert "after 600 s" in text and "2 tries" in text


def test_licenses_are_counted(page: Path) -> None:
    text = re.sub(r"\s+", " ", Reader(page).text)
    assert "CC0-1.0 8 80.0%" in text and "<i>MIT</i> 2 20.0%" in text and "cc0" not in text


def test_pictures_are_small_and_poses_are_those_of_the_shard(page: Path, run: Path) -> None:
    tiles = data_of(page)
    assert len(tiles) == 10 and {tile["shard"] for tile in tiles} == {"train-000000", "train-000001", "val-000000"}
    stored = next(iter(read_objects(run / "192" / "train-000000.parquet")))
    tile = next(tile for tile in tiles if tile["uid"] == stored.uid)
    np.testing.assert_allclose(np.reshape(tile["c2w"], (VIEWS, 3, 4)), stored.c2w[:, :3], atol=6e-5)
    np.testing.assert_allclose(tile["k"], stored.intrinsics[:1], atol=1e-3)
    assert tile["bounds"] == [[-0.5, -0.25, -0.25], [0.5, 0.25, 0.25]]
    assert ["polygons", "12,345"] in tile["facts"] and ["license", "CC0-1.0"] in tile["facts"]
    for tile in tiles:
        assert sorted(tile["jpegs"], key=int) == ["0", "1", "2"]
        for jpeg in tile["jpegs"].values():
            assert images.decode(base64.b64decode(jpeg)).shape == (128, 128, 3)


def test_only_what_is_shown_is_read(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counting(path: Path) -> Iterator[Any]:
        for rows in read_objects(path):
            read.append(path.stem)
            yield rows

    monkeypatch.setattr(report_tiles, "read_objects", counting)
    tiles = data_of(write_page(run, tmp_path / "p.html", objects=3))
    assert read == ["train-000000", "train-000001", "val-000000"] == [tile["shard"] for tile in tiles]


def test_of_many_objects_some_are_shown_that_stand_out(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run")
    coverage = [0.3 + 0.001 * number for number in range(40)]
    coverage[17], coverage[31] = 0.011, 0.912
    for number, share in enumerate(coverage):
        made = scene(f"o{number:02d}", views=1)
        made.meta.update(coverage=share, polygons=9 if number == 22 else 12345, black=0.0)
        maker.deliver(made, number=number // 20)
        if number % 20 == 19:
            maker.close("train")
    maker.ledger.db.close()
    page = write_page(maker.out, tmp_path / "p.html", objects=16)
    tiles = data_of(page)
    assert len({tile["uid"] for tile in tiles}) == 16
    said = {tile["why"]: tile["uid"] for tile in tiles if tile["why"]}
    assert said.pop("least coverage: 0.011") == "o17" and said.pop("most coverage: 0.912") == "o31"
    assert said.pop("least polygons: 9") == "o22" and list(said) == [
        "most polygons: 12,345"
    ]  # black is the same in all
    assert "16 of 40 objects" in Reader(page).text and "4 that stand out" in Reader(page).text
    whole = data_of(write_page(maker.out, tmp_path / "p.html", objects=40))
    assert len(whole) == 40 and not any(tile["why"] for tile in whole)


def test_captures_are_framed_by_what_their_cameras_look_at() -> None:
    around = cameras.sample("shell", np.random.default_rng(0), 9)
    assert report_tiles._focus(around) is None
    moved = around.copy()
    moved[:, :3, 3] = 20 * moved[:, :3, 3] + [300, -40, 5]
    assert np.allclose(report_tiles._focus(moved), [300, -40, 5], atol=1e-2)
    moved[3, 0, 0] = np.nan
    assert np.allclose(report_tiles._focus(moved), [300, -40, 5], atol=1e-2)
    assert report_tiles._focus(np.full((2, 4, 4), np.nan)) is None


def test_a_run_that_delivered_nothing_says_why(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run")
    maker.ledger.db.close()
    status = {"state": "refused", "why": "the list has no object whose license allows it"}
    (maker.out / "status.json").write_text(json.dumps(status))
    text = Reader(write_page(maker.out, tmp_path / "p.html")).text
    assert status["why"] in text and "No failures." not in text


def test_a_running_run_without_a_shard(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run")
    (maker.out / "run.json").write_text(json.dumps({"facts": {"source": "local", "settings": {"res": [64, 512]}}}))
    maker.deliver(scene("one"))
    maker.fail("two", "empty")
    page = write_page(maker.out, tmp_path / "p.html")  # the ledger and the journal are still open
    maker.ledger.db.close()
    maker.writer.close("train")
    text = Reader(page).text
    assert "= 1 delivered + 1 failed" in text and "64, 512 px" in text
    assert "journal of a shard that is not full: 1." in text and "No finished shard" in text
    assert data_of(page) == []


def test_shards_without_a_ledger(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "64", tmp_path / "only")
    page = write_page(tmp_path / "only", tmp_path / "p.html")
    text = Reader(page).text
    assert "No ledger" in text and "8 train + 2 val objects" in text and "64 px" in text and f"{10 * VIEWS} " in text
    source = page.read_text()
    assert "id=failures" not in source and "id=throughput" not in source and "Of the 10 objects" in source
    with (tmp_path / "only" / "train-000000.parquet").open("rb") as file:
        assert all(
            base64.b64decode(jpeg) in file.read() for jpeg in data_of(page)[0]["jpegs"].values() if not file.seek(0)
        )


def test_one_object_and_no_failures_and_a_deleted_shard(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run")
    maker.deliver(scene("gone"))
    maker.close("train")
    maker.ledger.db.execute("UPDATE shard SET state = 'deleted'")
    (maker.out / "64" / "train-000000.parquet").unlink()
    maker.deliver(scene("one"), number=1)
    maker.close("train")
    maker.ledger.db.execute("UPDATE item SET finished = 5")
    maker.ledger.db.close()
    page = write_page(maker.out, tmp_path / "p.html", objects=1)
    text = Reader(page).text
    assert "No failures." in text and "Too few objects" in text and "deleted after use: 1." in text
    assert [tile["uid"] for tile in data_of(page)] == ["one"]


def test_errors_name_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        write_page(tmp_path / "nowhere", tmp_path / "p.html")
    with pytest.raises(UserError, match="neither a run nor shards"):
        write_page(tmp_path, tmp_path / "p.html")
    with pytest.raises(UserError, match="shows nothing"):
        write_page(run, tmp_path / "p.html", objects=0)
    with pytest.raises(UserError, match="cannot be written"):
        write_page(run, tmp_path, objects=1)
    assert list(tmp_path.parent.glob("*.tmp")) == []
    (tmp_path / "ledger.sqlite").write_text("no database")
    with pytest.raises(UserError, match="cannot be read"):
        write_page(tmp_path, tmp_path / "p.html")


def test_thumbnails_keep_light_and_fit_the_budget() -> None:
    stripes = np.full((256, 256, 3), 64, np.uint8)
    stripes[:, ::2] = 192  # the mean light of the two is sRGB 146, not 128
    (small,) = report_tiles._thumbnails([images.encode_jpeg(stripes, 95)], 1e6, (256, 256))
    assert abs(images.decode(small).mean() - 146) < 3 and images.decode(small).shape == (128, 128, 3)
    noise = [picture(i, 128) for i in range(4)]
    assert report_tiles._thumbnails(noise, 1e6, (128, 128)) == noise
    budget = sum(map(len, noise)) / 5
    assert 0 < sum(map(len, report_tiles._thumbnails(noise, budget, (128, 128)))) <= budget
    assert report_tiles._thumbnails([b"\xff\xd8 broken"], 1e6, (256, 256)) == [b""]


def test_spread_is_even_and_holds_both_ends() -> None:
    assert report_tiles._spread(100, 3) == [0, 50, 99] or report_tiles._spread(100, 3) == [0, 49, 99]
    assert (
        report_tiles._spread(2, 64) == [0, 1] and report_tiles._spread(9, 1) == [0] and report_tiles._spread(0, 5) == []
    )


def test_throughput_leaves_pauses_out() -> None:
    first = [(1e9 + 10.0 * i, "delivered", 32) for i in range(11)]
    second = [(1e9 + 90_000 + 10.0 * i, "delivered" if i % 2 else "failed", 32) for i in range(11)]
    clock = Clock.of(first + second)
    assert clock.seconds == 200 and clock.pauses == [(100.0, 89_900.0)]
    assert clock.objects == 15 and clock.views == 15 * 32  # the first of each session has no measured time
    picture = throughput(first + second)
    assert "objects / hour" in picture and "working time (minutes)" in picture
    assert "360 objects/h delivered" in picture and "pause of 24:58:20" in picture
    assert "class=bad" in picture and "class=bad" not in throughput(first)


def test_throughput_of_many_objects_is_binned() -> None:
    rng = np.random.default_rng(0)
    times = 1.7e9 + np.cumsum(rng.exponential(4, 10_000))
    picture = throughput([(float(when), "delivered", 32) for when in times])
    assert 20 < picture.count("<rect") <= BINS and len(picture) < 40_000 and "working time (hours)" in picture
    assert throughput([]) == throughput([(1.0, "delivered", 1)]) != picture


def test_the_state_says_when_a_driver_died(run: Path) -> None:
    books = report._read_run(run).books
    assert books is not None
    books.status.update(state="running", updated=0)
    assert "interrupted" in report._state(books)


# ---- a real browser


def browse(url: str, tmp_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000"]
    return subprocess.run([*command, *flags, url], capture_output=True, text=True, timeout=300, check=True)


def dom(page: Path, fragment: str, tmp_path: Path) -> tuple[str, dict[str, str], list[str]]:
    """The page after its script ran: HTML, the facts that the script left on <body>, and what the console got.

    Opened anew where it had not ended: the browser's clock does not wait for pictures that are being decoded.
    """
    url = f"{page.as_uri()}#{urllib.parse.quote(fragment, safe='')}"
    for _ in range(4):
        done = browse(url, tmp_path, "--dump-dom", "--enable-logging=stderr", f"--log-net-log={tmp_path / 'net.json'}")
        body = re.search(r"<body([^>]*)>", done.stdout)
        assert body, done.stderr
        facts = dict(re.findall(r'data-(\w+)="([^"]*)"', body[1]))
        if "broken" in facts or "error" in facts or "facts.broken" not in done.stdout:  # or a page that counts none
            break
    return done.stdout, facts, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def asked_of_the_network(log: Path) -> set[str]:
    """URLs that the browser itself or the page went for, without file: and data:."""
    return {url for url in re.findall(r'"url":"([^"]+)"', log.read_text()) if not url.startswith(("file:", "data:"))}


@needs_browser
def test_browser_shows_tiles_views_and_cameras(page: Path, tmp_path: Path) -> None:
    html, facts, console = dom(page, EVIL, tmp_path)
    assert console == [] and "pwned" not in facts and "error" not in facts
    assert facts["tiles"] == "10" and html.count('class="tile"') == 10
    assert html.count('class="view"') == html.count('alt="view') - 1 == VIEWS  # one more beside the cameras
    assert facts["broken"] == "0" and facts["pictures"] == str(10 + VIEWS + 1)
    assert facts["frusta"] == facts["upright"] == str(VIEWS) and float(facts["aim"]) > 0.999
    assert faults_of(page, tmp_path) == []
    assert not {url for url in asked_of_the_network(tmp_path / "net.json") if "google" not in url}


@needs_browser
def test_browser_facts_tell_of_a_broken_picture_and_cameras_that_look_away(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run")
    bad = scene("bad")
    bad.by_width[64].jpegs[0] = b"\xff\xd8 no picture"
    away = bad.c2w @ np.diag([1, -1, -1, 1]).astype(np.float32)
    maker.deliver(Scene(bad.item, away, bad.by_width, bad.meta))
    maker.close("train")
    maker.ledger.db.close()
    _, facts, _ = dom(write_page(maker.out, tmp_path / "p.html"), "", tmp_path)
    assert facts["broken"] == "2" and float(facts["aim"]) < -0.999 and facts["upright"] == "0"


@needs_browser
def test_browser_draws_the_cameras(page: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.html"  # the plot, moved to the top of the window
    alone.write_text(page.read_text().replace("</head>", "<style>main > :not(#cameras) {display: none}</style></head>"))
    browse(alone.as_uri(), tmp_path, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1200,760")
    plot = images.decode((tmp_path / "shot.png").read_bytes())[160:700, 60:860, :3].astype(int)
    blue, red, orange = (np.abs(plot - colour).max(-1) < 12 for colour in ([37, 99, 168], [192, 57, 43], [180, 83, 26]))
    assert blue.sum() > 300 and red.sum() > 50 and orange.sum() > 50  # frusta and z, x, the chosen camera


POKE = """<script>
canvas.setPointerCapture = () => {};
const poke = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(kind, { pointerId: 1, clientX: x, clientY: y }));
paint();
const box = canvas.getBoundingClientRect(), [x, y] = frusta[2].flat.middle;
poke("pointermove", box.left + x, box.top + y);
facts.pointed = facts.chosen;
const before = { ...turn };
poke("pointerdown", 100, 100); poke("pointermove", 150, 80); poke("pointerup", 150, 80); poke("pointermove", 300, 300);
canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, cancelable: true }));
facts.turned = [turn.azimuth < before.azimuth, turn.elevation < before.elevation, turn.zoom > before.zoom];
el("which").value = "-1"; el("which").dispatchEvent(new Event("change")); paint();
facts.all = facts.frusta;
</script></body>"""


@needs_browser
def test_browser_points_turns_zooms_and_shows_all(page: Path, tmp_path: Path) -> None:
    poked = tmp_path / "poked.html"
    poked.write_text(page.read_text().replace("</body>", POKE))
    _, facts, console = dom(poked, "", tmp_path)
    assert console == [] and facts["pointed"] == "2" and facts["turned"] == "true,true,true"
    assert facts["all"] == str(10 * VIEWS)
