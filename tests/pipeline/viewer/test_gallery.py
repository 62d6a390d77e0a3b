"""`view --serve`: all objects of a run in a browser, filtered, sorted and opened; and nothing but them."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.core import cameras, images
from pipeline.core.errors import UserError
from pipeline.core.records import Item, Outcome, Scene, Views, item_rng
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import CAPTION, TIME
from pipeline.storage.writer import ShardWriter
from pipeline.viewer.catalog import read_catalog
from pipeline.viewer.gallery import Gallery, show
from pipeline.viewer.local_server import LocalServer, said
from tests.chromium import needs_browser, tab
from tests.conftest import lvsm_data_here

EVIL = """</script><img src=x onerror="document.body.dataset.pwned=1">'"""
OBJECTS, VIEWS = 40, 3
MOVES = 5  # number of the object whose views are of two times
LAYERS = ("alpha", "depth", "normals")


def scene(number: int) -> Scene:
    """An object of noise; every fourth has a hostile uid, the facts differ."""
    uid = f"object-{number:03d}" + (EVIL if number % 4 == 3 else "")
    rng = item_rng(0, uid, "test")
    by_width = {}
    for width in (64, 160):
        hw = (width * 3 // 4, width)
        jpegs = [images.encode_jpeg(rng.integers(0, 256, (*hw, 3), np.uint8), 90) for _ in range(VIEWS)]
        depth = np.where(rng.random(hw) < 0.5, np.inf, rng.uniform(1, 3, hw)).astype("<f4").tobytes()
        layers = {
            "alpha": [images.encode_png(rng.integers(0, 256, hw, np.uint8))] * VIEWS,
            "depth": [depth] * VIEWS,
            "normals": [rng.uniform(-1, 1, (*hw, 3)).astype("<f4").tobytes()] * VIEWS,
        }
        k = np.tile(cameras.intrinsics(50, hw), (VIEWS, 1)).astype(np.float32)
        by_width[width] = Views(jpegs, k, hw, layers)
    meta = {"coverage": number / 100, "textured": number % 2 == 0, "note": EVIL, "name": f"name {number}"}
    caption = {CAPTION: f"a chair of kind {number}"} if number != 7 else {}
    item = Item(uid, "local", license="CC0-1.0" if number % 5 else "CC-BY-4.0", extra=caption)
    times = [0.5, 0.0, 0.5] if number == MOVES else []
    return Scene(item, cameras.sample("shell", rng, VIEWS), by_width, meta, times=times)


def made(out: Path) -> Path:
    """A finished run: 30 objects to train on, 10 for validation, two that failed."""
    out.mkdir()
    facts = {"config_hash": "0123456789abcdef", "source": "local"}
    writer = ShardWriter(out, (64, 160), (*LAYERS, CAPTION, TIME), facts, 1e12)
    with Ledger(out / "ledger.sqlite") as ledger:
        for split, numbers in (("train", range(30)), ("val", range(30, OBJECTS))):
            for number in numbers:
                name, _ = writer.add(scene(number), split, 0)
                ledger.record(Outcome(scene(number).item, scene(number)), name)
            shard = writer.close(split)
            assert shard is not None
            ledger.add_shard(shard)
        ledger.record(Outcome(Item("lost", "local"), None, "tiny", f"it fills nothing {EVIL}"), None)
        ledger.record(Outcome(Item("gone", "local"), None, "missing_file"), None)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("gallery") / "run")


@pytest.fixture
def server(run: Path) -> Iterator[LocalServer]:
    gallery = Gallery(run)
    with LocalServer(0, gallery.answer) as served:
        served.begin()
        yield served
        served.shutdown()
    gallery.close()


def get(server: LocalServer, path: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, body, dict(reply.getheaders())


def number_of(server: LocalServer) -> int:
    gallery = server.answer.__self__  # type: ignore[attr-defined]
    assert isinstance(gallery, Gallery)
    return gallery.number


# ---- what a page asks for


def unpacked(data: bytes) -> dict[str, Any]:
    """Columns as the page reads them."""
    size = int.from_bytes(data[:4], "little")
    told = json.loads(data[4 : 4 + size])
    values = np.frombuffer(data, "<f4", offset=4 + size).reshape(-1, len(told["uid"]))
    names = [*told["numbers"], *told["words"]]
    assert len(values) == len(names) and size % 4 == 0
    of = dict(zip(names, values, strict=True))
    words = {name: {"names": known, "of": of[name]} for name, known in told["words"].items()}
    return told | {"numbers": {name: of[name] for name in told["numbers"]}, "words": words}


def test_columns_hold_each_object_once(run: Path, server: LocalServer) -> None:
    status, body, headers = get(server, f"/{number_of(server)}/columns")
    assert status == 200 and headers["Content-Encoding"] == "gzip"
    table = unpacked(gzip.decompress(body))
    data = pipeline.open(run, 160)
    assert table["uid"] == [*data.uids, "gone", "lost"] and table["delivered"] == OBJECTS

    def words(name: str) -> list[str]:
        return [table["words"][name]["names"][int(at)] for at in table["words"][name]["of"]]

    assert words("split") == ["train"] * 30 + ["val"] * 10 + ["", ""]
    assert words("reason") == [""] * OBJECTS + ["missing_file", "tiny"]
    assert words("license") == [data[uid].license for uid in data.uids] + ["unknown"] * 2
    assert words("textured") == [("yes", "no")[number % 2] for number in range(OBJECTS)] + ["", ""]
    captions = table["texts"]["caption"]
    assert (
        captions[7] == "" and captions[8] == "a chair of kind 8" and captions[-1] is None and words("note")[0] == EVIL
    )
    centres = np.stack([data[uid].c2w[:, :3, 3] for uid in data.uids]).astype(float)
    elevations = np.degrees(np.arcsin(centres[..., 2] / np.linalg.norm(centres, axis=-1)))
    assert np.allclose(table["numbers"]["elevation_max"][:OBJECTS], elevations.max(1), atol=0.06)
    assert np.allclose(table["numbers"]["distance_min"][:OBJECTS], np.linalg.norm(centres, axis=-1).min(1), atol=6e-4)
    coverage = [number / 100 for number in range(OBJECTS)]
    for name, values in (("views", [VIEWS] * OBJECTS), ("coverage", coverage)):
        assert np.array_equal(table["numbers"][name], np.array([*values, np.nan, np.nan], "f4"), equal_nan=True)
    assert table["detail"] == ["", f"it fills nothing {EVIL}"]


def test_an_object_comes_with_its_cameras_pictures_and_layers(run: Path, server: LocalServer) -> None:
    data, base = pipeline.open(run, 160), f"/{number_of(server)}"
    one = data[33]
    told = json.loads(get(server, f"{base}/object/33")[1])
    assert told["uid"] == one.uid and told["shard"] == "val-000000" and told["layers"] == list(LAYERS)
    assert np.allclose(np.array(told["c2w"]).reshape(-1, 3, 4), one.c2w[:, :3], atol=1e-4)
    for view in range(VIEWS):
        status, body, headers = get(server, f"{base}/view/33/{view}")
        assert (status, body, headers["Content-Type"]) == (200, one.jpegs[view], "image/jpeg")
    assert get(server, f"{base}/thumb/33")[1] == pipeline.open(run, 64)[one.uid].jpegs[0]
    alpha, depth, normals = (images.decode(get(server, f"{base}/layer/33/1/{name}")[1]) for name in LAYERS)
    assert np.array_equal(alpha, one.layer("alpha")[1])
    points = get(server, f"{base}/points/33")[1]
    xyz = np.frombuffer(points, "<f4", len(points) // 15 * 3).reshape(-1, 3)
    rgb = np.frombuffer(points, np.uint8, offset=xyz.nbytes).reshape(-1, 3)
    assert len(xyz) == len(rgb) == np.isfinite(one.layer("depth")).sum()  # fewer than are shown at most
    first = np.isfinite(one.layer("depth")[0])
    pixels, z = cameras.project(xyz[: first.sum()], one.c2w[0], one.fxfycxcy[0])
    rows, columns = np.nonzero(first)
    assert np.allclose(pixels, np.stack([columns, rows], -1) + 0.5, atol=1e-2)
    assert np.allclose(z, one.layer("depth")[0][first], atol=1e-4)
    assert np.array_equal(rgb[: first.sum()], one.images[0][first])
    there = np.isfinite(one.layer("depth")[1])
    assert (depth[~there] == 0).all() and (depth[there] >= 51).all()
    near, far = (pick(one.layer("depth")[1][there]) for pick in (np.argmin, np.argmax))
    assert depth[there][near] == 255 and depth[there][far] == 51  # what is near is bright
    assert np.abs(normals / 127.5 - 1 - one.layer("normals")[1]).max() < 0.005


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/{n}/object/40", 404),
        ("/{n}/object/999999999", 404),
        ("/{n}/view/0/3", 404),
        ("/{n}/view/0/-1", 404),
        ("/{n}/view/0", 404),
        ("/{n}/layer/0/0/albedo", 404),
        ("/{n}/layer/0/0/", 404),
        ("/{n}/columns/1", 404),
        ("/{n}/points/40", 404),
        ("/{n}/columns?x", 404),
        ("/{n}/../run.json", 404),
        ("/{n}/object/%2e%2e", 404),
        ("/ledger.sqlite", 404),
        ("/{m}/columns", 410),
    ],
)
def test_nothing_else_is_answered(path: str, status: int, server: LocalServer) -> None:
    number = number_of(server)
    found, body, _ = get(server, path.format(n=number, m=number + 1))
    assert found == status and body.count(b"\n") == 1


def test_many_clients_are_answered_at_once(server: LocalServer) -> None:
    number, asked = number_of(server), [0] * 64

    def ask(client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        for turn in range(12):
            which = (7 * client + turn) % OBJECTS
            what = ("thumb", "object", "points")[turn % 3] if which != MOVES else "object"  # no points of what moves
            connection.request("GET", f"/{number}/{what}/{which}")
            reply = connection.getresponse()
            asked[client] += reply.status == 200 and len(reply.read()) > 100
        connection.close()

    with ThreadPoolExecutor(64) as clients:
        list(clients.map(ask, range(64)))
    assert asked == [12] * 64


def test_new_objects_are_there_when_the_page_is_loaded_again(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    gallery = Gallery(run)
    before = gallery.number
    assert b"40 objects, 2 that failed" in gallery.answer("/", "").body and gallery.number == before
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger.record(Outcome(Item("more", "local"), None, "empty"), None)
    assert gallery.answer(f"/{before}/columns", "").status == 200
    assert b"40 objects, 3 that failed" in gallery.answer("/", "").body
    assert gallery.number == before + 1 and gallery.answer(f"/{before}/columns", "").status == 410
    (run / "160/train-000000.parquet").write_bytes(b"PAR1 no more")
    assert gallery.answer(f"/{gallery.number}/object/3", "").status == 500
    gallery.close()


def test_a_folder_of_shards_alone(run: Path) -> None:
    catalog = read_catalog(run / "64")
    whole, alone = read_catalog(run).columns(), catalog.columns()
    assert catalog.delivered == OBJECTS and alone["uid"] == whole["uid"][:OBJECTS]
    assert (
        alone["words"].keys() == whole["words"].keys() - {"reason"}
        and alone["numbers"].keys() == whole["numbers"].keys()
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "run")
    before = sorted(path.name for path in run.rglob("*"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whom root asks says yes to all
    gallery = Gallery(run)
    assert b"40 objects, 2 that failed" in gallery.answer("/", "").body
    assert unpacked(gzip.decompress(gallery.answer(f"/{gallery.number}/columns", "").body))["uid"][-2:] == [
        "gone",
        "lost",
    ]
    gallery.close()
    assert (
        sorted(path.name for path in run.rglob("*")) == before
    )  # no log beside the ledger, which could not be made there


def test_columns_of_a_run_without_failures(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    (run / "ledger.sqlite").unlink()
    with Ledger(run / "ledger.sqlite"):
        pass
    columns = read_catalog(run).columns()
    assert columns["delivered"] == OBJECTS and "split" in columns["words"]
    assert "reason" not in columns["words"].keys() | columns["texts"].keys() | columns["numbers"].keys()


def test_texts_of_too_many_words_to_choose_from(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.viewer.catalog.CHOICES", 10)
    columns = read_catalog(run).columns()
    assert columns["texts"]["name"][8] == "name 8" and columns["texts"]["name"][-1] is None
    assert {"split", "reason", "textured"} <= columns["words"].keys() and "name" not in columns["words"]


def test_what_cannot_be_shown_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_catalog(tmp_path)
    with LocalServer(0, lambda path, query: said(404, path)) as other, pytest.raises(UserError, match="is in use"):
        show(run, other.server_port)
    for flags in (["--out", tmp_path / "x.html"], ["--png", tmp_path / "x.png"], ["--serve", 70000], ["--serve", 1, 2]):
        done = lvsm_data_here("view", run, *(["--serve"] * ("--serve" not in flags)), *flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "--serve" in done.stderr


def test_the_command_ends_at_ctrl_c_and_writes_nothing(run: Path) -> None:
    before = {path.name for path in run.rglob("*")}
    command = [sys.executable, "-m", "pipeline", "view", str(run), "--serve", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert {path.name for path in run.rglob("*") if not path.name.endswith(("-shm", "-wal"))} <= before


# ---- in a browser


@needs_browser
def test_a_browser_filters_sorts_and_opens(server: LocalServer, tmp_path: Path) -> None:
    with tab(tmp_path, "--window-size=1280,900") as page:
        page.open(server.url)
        page.wait("document.body.dataset.ready")

        def found() -> int:
            return int(page.run("document.body.dataset.found"))

        def choose(select: str, value: object) -> Any:
            change = f"const one = document.querySelector({json.dumps(select)}); one.value = {json.dumps(str(value))}"
            return page.run(f"{{ {change}; one.dispatchEvent(new Event('change')) }}")

        first = "document.querySelector('#grid .tile').title"
        assert found() == OBJECTS + 2 and int(page.run("document.body.dataset.tiles")) <= OBJECTS + 2
        for width, scheme in ((390, "dark"), (2560, "light"), (1280, "dark")):
            page.look(width, scheme)
            assert page.faults() == [] and page.run("document.documentElement.scrollWidth <= innerWidth")
        # brush: the right half of the histogram of coverage
        box = "document.querySelector('[data-name=coverage] canvas').getBoundingClientRect()"
        x, y, wide = page.run(f"(b => [b.left, b.top + b.height / 2, b.width])({box})")
        page.drag((x + wide / 2, y), (x + 0.8 * wide, y), (x + wide - 1, y))
        assert found() == 20
        choose("#sort", "coverage")
        page.run("document.getElementById('turned').click()")
        assert page.run(first).startswith("object-039")
        choose("[data-name=split]", page.run("table.words.split.names.indexOf('val')"))
        assert found() == 10
        page.run("document.getElementById('clear').click()")
        page.run(
            "{ const f = document.getElementById('find'); f.value = 'FILLS nothing'; f.dispatchEvent(new Event('input')) }"
        )
        assert found() == 1 and page.run(first) == "lost"
        page.run("document.querySelector('#grid .tile').click()")
        assert page.run("document.getElementById('why').textContent") == f"tiny: it fills nothing {EVIL}"
        page.run("{ document.getElementById('close').click(); document.getElementById('clear').click() }")
        choose("#sort", "uid")
        page.run("document.getElementById('turned').click()")
        page.run(
            "{ const f = document.getElementById('find'); f.value = 'kind 12'; f.dispatchEvent(new Event('input')) }"
        )
        assert found() == 1 and page.run(first).startswith("object-012")
        page.run("document.getElementById('clear').click()")
        # the order of each column is that of a plain sort, whatever its signs, equal and missing values
        page.run(
            "table.numbers.made = Float32Array.from(table.uid, (_, row) => [NaN, -1.5, 2, -1e30, 0, 2, -0, 1e-40][row % 8])"
        )
        made = (
            "table.uid.map((_, row) => row).filter(row => !Number.isNaN(v[row])).sort((a, b) => v[a] - v[b] || a - b)"
        )
        for name in page.run("Object.keys(table.numbers)"):
            of = f"const v = table.numbers.{name}.map(one => one + 0), {{ order, known }} = orderOf({name!r})"  # -0 + 0 is 0
            told, plain = page.run(
                f"(() => {{ {of}; return [[...order.slice(0, known)].map(row => v[row]), {made}.map(row => v[row])] }})()"
            )
            assert told == plain, name
            assert page.run(f"new Set(orderOf({name!r}).order).size") == OBJECTS + 2, name
        # an object: pictures, points, a layer, arrow keys, a camera
        page.run("openAt(rows.findIndex(row => table.uid[row].startsWith('object-003')))")
        page.wait("document.querySelectorAll('#strip img').length === 3 && frusta.length === 3")
        page.wait(
            "[...document.querySelectorAll('#strip img')].every(image => image.complete && image.naturalWidth === 160)"
        )
        page.wait("Number(document.body.dataset.points) > 1000")
        page.run("{ delete document.body.dataset.points; document.getElementById('cloud').click() }")
        page.wait("!('points' in document.body.dataset)")
        choose("#layer", "depth")
        page.wait(
            "[...document.querySelectorAll('#strip img')].every(image => image.complete && image.naturalWidth === 160)"
        )
        assert page.faults() == []
        choose("#layer", "all, side by side")
        page.wait(f"document.querySelectorAll('#strip img').length === {VIEWS * (1 + len(LAYERS))}")
        told = page.run("[...document.querySelectorAll('#strip .layers:nth-child(2) img')].map(image => image.alt)")
        assert told == [f"view 1, {layer}" for layer in ("picture", *LAYERS)] and page.faults() == []
        page.run("document.querySelectorAll('#strip button')[4].click()")
        assert (
            page.run("[...document.querySelectorAll('#strip [aria-pressed=true]')].map(s => s.dataset.view).join('')")
            == "1111"
        )
        choose("#layer", "picture")
        assert page.run("document.querySelector('#strip [aria-pressed=true]').dataset.view") == "1"  # as before
        page.run("document.querySelectorAll('#strip button')[2].click()")
        assert page.run("document.body.dataset.chosen") == "2"
        assert page.run("document.querySelector('#strip [aria-pressed=true]').dataset.view") == "2"
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
        page.wait("document.body.dataset.object.startsWith('object-004')")
        page.run("navigator.clipboard.writeText = async text => { document.body.dataset.copied = text }")
        page.run("document.getElementById('copy').click()")
        page.wait("document.getElementById('copy').textContent === 'copied'")
        assert page.run("document.body.dataset.copied").startswith("object-004")
        page.wait("document.getElementById('copy').textContent === 'copy uid'")
        # one that moves: its views by time, in the page and among the cameras; arrow keys belong to the slider there
        assert page.run("document.getElementById('timed').hidden")
        page.run("openAt(rows.findIndex(row => table.uid[row].startsWith('object-005')))")
        page.wait("document.body.dataset.object.startsWith('object-005') && !document.getElementById('timed').hidden")
        page.wait("document.querySelectorAll('#strip img').length === 3 && document.getElementById('clouded').hidden")
        views = "[...document.querySelectorAll('#strip button')].map(shot => shot.dataset.view).join()"
        told = "document.getElementById('when').textContent"
        assert page.run(told) == "all 2" and page.run(views) == "0,1,2"
        page.run("document.getElementById('time').focus()")
        for known, some in (("0", "1"), ("0.5", "0,2")):
            page.call(
                "Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
            )
            page.wait(f"{told} === {known!r}")
            assert page.run(views) == some == page.run("frusta.map(frustum => frustum.view).join()")
            assert page.run("document.body.dataset.chosen") in some.split(",")
        assert page.faults() == [] and page.run("document.body.dataset.object").startswith("object-005")
        assert page.run("document.body.dataset.pwned || document.body.dataset.error || ''") == ""
        assert page.complaints == []


@needs_browser
def test_an_address_names_an_object(server: LocalServer, tmp_path: Path) -> None:
    with tab(tmp_path) as page:
        for end, uid in (
            ("object-004", "object-004"),
            ("object-00%34", "object-004"),
            ("nobody", None),
            ("%E0%A4%A", None),
        ):
            page.open("about:blank")
            page.open(f"{server.url}#{end}")
            page.wait("document.body.dataset.ready")
            assert page.run("document.body.dataset.object") == uid and page.complaints == []


@needs_browser
def test_of_many_objects_only_those_in_sight_have_pictures(server: LocalServer, tmp_path: Path) -> None:
    """100,000 rows, as the page gets them; pictures come for those that are scrolled to."""
    with tab(tmp_path, "--window-size=390,800") as page:
        page.open(server.url)
        page.wait("document.body.dataset.ready")
        words = "{ reason: { names: ['tiny'], of: of.map(() => 0) } }"
        columns = (
            f"uid: of.map(i => 'many-' + i), detail: Array(many).fill(''), words: {words}, numbers: {{}}, texts: {{}}"
        )
        many = f"const many = 100000, of = [...Array(many).keys()]; table = {{ {columns} }}"
        page.run(f"{{ {many}; texts.length = 0; spreads.length = 0; filter() }}")
        assert int(page.run("document.body.dataset.found")) == 100_000
        assert int(page.run("document.body.dataset.tiles")) < 40
        page.run("scrollTo(0, document.body.scrollHeight)")
        page.wait("[...document.querySelectorAll('#grid .tile')].some(tile => tile.title === 'many-99999')")
        assert int(page.run("document.querySelectorAll('#grid .tile').length")) < 40
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
