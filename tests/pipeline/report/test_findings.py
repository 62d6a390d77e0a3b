"""Pages of findings: whole in themselves, escaped, and without a complaint from a browser."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from lvsm_train.media.films import write_film
from pipeline.core import images
from pipeline.report.charts import Plot, svg
from pipeline.report.findings import Figure, Section, Table, write_page
from tests.chromium import faults_of, tab
from tests.pipeline.report.test_page import EVIL, dom, needs_browser

LINES = {"model": [(1, 16.5), (2, 19.4), (8, 21.8)], EVIL: [(1, 12.0), (2, 13.0), (8, 15.7)]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    frames = [np.full((8, 8, 3), 80 * number, np.uint8) for number in range(3)]
    films = [write_film(folder / f"film{suffix}", frames, 5) for suffix in (".mp4", ".gif")]
    wide = Table([EVIL, *(f"column {number}" for number in range(30))], [[EVIL, *range(30)], ["b", *range(30)]])
    blocks = [Figure(images.encode_png(frames[1]), EVIL), *(Figure(path) for path in films), wide]
    plot = Plot(LINES, "inputs", "PSNR", EVIL)
    return write_page(
        folder / "new" / "index.html", EVIL, EVIL, [Section(EVIL, EVIL, blocks), Section("Two", "", [plot])]
    )


def test_it_holds_all_that_it_shows(page: Path) -> None:
    html = page.read_text()
    sources = re.findall(r'src="data:([a-z0-9/]+);base64,([^"]+)"', html)
    assert [kind for kind, _ in sources] == ["image/png", "video/mp4", "image/gif"]
    assert base64.b64decode(sources[1][1]) == (page.parents[1] / "film.mp4").read_bytes()
    assert images.size_of(base64.b64decode(sources[0][1])) == (8, 8)
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html.lower()
    assert html.count("<td>") == 60 and html.count("<h2>") == 2


@needs_browser
def test_a_browser_has_nothing_to_say(page: Path, tmp_path: Path) -> None:
    html, facts, console = dom(page, "", tmp_path)
    assert console == [] and facts == {}
    assert html.count("<svg") == 1 and html.count("<video") == 1 and html.count("<img") == 2
    assert faults_of(page, tmp_path) == []


@needs_browser
def test_two_plots_share_a_row_of_a_desktop(tmp_path: Path) -> None:
    plots = [Plot(LINES, "steps", name) for name in ("loss", "PSNR")]
    where = write_page(tmp_path / "two.html", "Two", "", [Section("Both", "", plots)])
    tops = "[...document.querySelectorAll('svg')].map(one => Math.round(one.getBoundingClientRect().top))"
    with tab(tmp_path) as one:
        one.open(where.as_uri())
        for width, rows in ((1280, 1), (2560, 1), (390, 2)):
            one.look(width)
            assert len(set(one.run(tops))) == rows
            assert one.run("document.documentElement.scrollWidth <= innerWidth")


def test_a_plot_stands_where_its_numbers_say() -> None:
    drawn = svg(Plot({"one": [(1, 10.0), (3, 20.0)], "two": [(2, 15.0)]}, "x", "y"))
    dots = [(float(x), float(y)) for x, y in re.findall(r"circle cx=([\d.]+) cy=([\d.]+)", drawn)]
    assert len(dots) == 3 and dots[0][0] < dots[2][0] < dots[1][0]
    assert dots[2] == pytest.approx(np.mean(dots[:2], 0), abs=0.1)
    ticks = [float(tick) for tick in re.findall(r"class=end[^>]*>([\d.]+)<", drawn)]
    assert ticks == sorted(ticks) and ticks[0] <= 10 and ticks[-1] >= 20
    assert "16.5" in svg(Plot({"flat": [(4, 16.5)]}, "x", "y"))  # one point has a place too


def test_names_of_lines_do_not_cover_each_other() -> None:
    drawn = svg(
        Plot({name: [(1, 1.0), (2, height)] for name, height in zip("abc", (2, 2.01, 9), strict=True)}, "x", "y")
    )
    heights = sorted(float(y) for y in re.findall(r"class=key x=[\d.]+ y=([\d.]+)", drawn))
    assert min(np.diff(heights)) >= 12


def test_what_is_no_figure(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    for source in (tmp_path / "picture.jpg", b""):
        with pytest.raises(ValueError, match="a PNG, a GIF or an MP4"):
            write_page(tmp_path / "index.html", "", "", [Section("", "", [Figure(source)])])
    with pytest.raises(ValueError, match="0 points"):
        svg(Plot({}, "x", "y"))
    assert not (tmp_path / "index.html").exists()
