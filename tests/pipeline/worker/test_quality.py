"""Verdicts on pictures made by hand: each reason, a good object, and the thresholds from both sides."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.worker import quality
from pipeline.worker.quality import ViewStats

GOOD = ViewStats(coverage=0.2, touches_border=False, seen=0.2)


def view(
    rows: slice = slice(20, 44), columns: slice = slice(20, 44), colour: tuple[int, int, int] = (200, 40, 40)
) -> ViewStats:
    """A rectangle of one colour on 64 x 64 white."""
    rgb, alpha = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), np.float32)
    rgb[rows, columns], alpha[rows, columns] = colour, 1
    return quality.measure(rgb, alpha, alpha.size)


def reason(stats: list[ViewStats], framed: bool = True) -> str:
    found = quality.verdict(stats, framed)
    if found is None:
        return ""
    assert found[1]  # never without words
    return found[0]


EMPTY = view(slice(0, 0))
DOT = view(slice(30, 34), slice(30, 34))  # 16 of 4096 pixels: 0.4 %
LARGER_DOT = view(slice(30, 35), slice(30, 35))  # 25 of 4096 pixels: 0.6 %
WHITE = view(colour=(255, 255, 255))
BLACK = view(colour=(7, 0, 7))
CUT = view(slice(40, 64))


def test_measurements() -> None:
    assert view() == ViewStats(24 * 24 / 4096, False, 24 * 24 / 4096, 24 * 24, 1.0, 0.0, pytest.approx(0, abs=1e-4))
    assert ViewStats(0, False, 0) == EMPTY
    assert ViewStats(24 * 24 / 4096, False, 0, 24 * 24, 0.0, 0.0, pytest.approx(0, abs=1e-4)) == WHITE


def test_what_an_object_shows() -> None:
    """A square whose quarters are white, black, grey 100 and grey 200: contrast is their levels' standard deviation."""
    rgb, alpha = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), np.float32)
    alpha[16:48, 16:48] = 1
    for place, level in zip([(16, 16), (16, 32), (32, 16), (32, 32)], [255, 0, 100, 200], strict=True):
        rgb[place[0] : place[0] + 16, place[1] : place[1] + 16] = level
    shown = quality.measure(rgb, alpha, 4096)
    assert (shown.pixels, shown.visible, shown.black) == (1024, 0.75, 0.25)
    assert shown.contrast == pytest.approx(np.std([255, 0, 100, 200]), rel=1e-5)
    on_black = quality.measure(np.where(alpha[..., None] > 0, rgb, 0).astype(np.uint8), alpha, 4096, background=0)
    assert (on_black.seen, on_black.visible) == (768 / 4096, 0.75)
    behind = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert quality.measure(behind, np.zeros((64, 64)), 4096, behind).seen == 0
    facts = quality.facts([shown, EMPTY])  # shares are over pixels, so that a view without the object does not count
    assert facts == {"coverage": 0.125, "visible": 0.75, "black": 0.25, "contrast": round(shown.contrast / 2, 1)}


@pytest.mark.parametrize("edge", [(0, 9), (63, 9), (9, 0), (9, 63)])
def test_every_border_counts(edge: tuple[int, int]) -> None:
    alpha = np.zeros((64, 64))
    alpha[edge] = 1
    assert quality.measure(np.full((64, 64, 3), 255, np.uint8), alpha, 64 * 64).touches_border
    alpha[edge] = 0
    alpha[1:-1, 1:-1] = 1
    assert not quality.measure(np.full((64, 64, 3), 255, np.uint8), alpha, 64 * 64).touches_border


@pytest.mark.parametrize(("pixels", "covered"), [(64, 0.25), (256, 0.0625)])
def test_coverage_is_an_area_of_the_whole_image(pixels: int, covered: float) -> None:
    assert quality.measure(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 0.25), pixels).coverage == covered


@pytest.mark.parametrize(("level", "visible"), [(247, 0), (246, 1)])
def test_one_channel_of_eight_levels_is_visible(level: int, visible: float) -> None:
    rgb = np.full((8, 8, 3), 255, np.uint8)
    rgb[..., 1] = level
    assert quality.measure(rgb, np.ones((8, 8)), 64).visible == visible


def test_a_good_object_has_no_verdict() -> None:
    assert quality.verdict([view(), view(slice(5, 60)), view(slice(30, 40))], framed=True) is None


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ([EMPTY] * 4, "all_background"),
        ([DOT] * 4, "tiny"),
        ([EMPTY, EMPTY, view()], "tiny"),  # most views show nothing
        ([WHITE] * 4, "blank"),
        ([WHITE, WHITE, view()], "blank"),
        ([BLACK] * 4, "black"),
        ([BLACK, BLACK, view()], ""),  # one view shows something
        ([CUT] * 4, "touches_border"),
        ([CUT, CUT, view()], "touches_border"),
    ],
)
def test_each_reason(stats: list[ViewStats], expected: str) -> None:
    assert reason(stats) == expected


def soft(colour: tuple[int, int, int], edge: int, inside: slice) -> ViewStats:
    """A rectangle with edges half of which is the white background, `edge` pixels wide."""
    rgb, alpha = np.full((64, 64, 3), 255, np.uint8), np.zeros((64, 64), np.float32)
    rows = slice(inside.start - edge, inside.stop + edge)
    rgb[rows, rows], alpha[rows, rows] = 186, 0.51
    rgb[inside, inside], alpha[inside, inside] = colour, 1
    return quality.measure(rgb, alpha, alpha.size)


def test_edges_do_not_hide_that_an_object_is_black() -> None:
    assert reason([soft((0, 0, 0), 3, slice(20, 30))] * 4) == "black"
    assert reason([soft((9, 0, 0), 3, slice(20, 30))] * 4) == ""
    assert reason([soft((0, 0, 0), 10, slice(30, 34))] * 4) == ""  # 16 of 576 pixels: the rest is the object, too
    assert quality.facts([soft((0, 0, 0), 10, slice(30, 34))])["black"] == pytest.approx(16 / 576, abs=1e-4)


def test_the_border_matters_only_to_framed_cameras() -> None:
    assert reason([CUT] * 4, framed=False) == ""
    assert reason([EMPTY] * 4, framed=False) == "all_background"
    assert reason([DOT] * 4, framed=False) == "tiny"
    assert reason([WHITE] * 4, framed=False) == "blank"


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ([LARGER_DOT] * 4, ""),
        ([DOT, LARGER_DOT, LARGER_DOT], ""),  # the median view is large enough
        ([DOT, DOT, LARGER_DOT], "tiny"),
        ([CUT, view()], ""),  # half of the views is not most of them
        ([CUT, CUT, view(), view(), view()], ""),
        ([EMPTY] * 3 + [view()] * 4, ""),
        ([ViewStats(quality.TINY_COVERAGE, False, 0.2)], ""),  # exactly at the threshold is enough
        ([ViewStats(np.nextafter(quality.TINY_COVERAGE, 0), False, 0.2)], "tiny"),
        ([ViewStats(0.2, False, quality.TINY_COVERAGE)], ""),
        ([ViewStats(0.2, False, np.nextafter(quality.TINY_COVERAGE, 0))], "blank"),
        ([ViewStats(1e-9, False, 0)], "tiny"),  # something is there, so not all_background
        ([ViewStats(0, False, 0.2)], "all_background"),
    ],
)
def test_thresholds_from_both_sides(stats: list[ViewStats], expected: str) -> None:
    assert reason(stats) == expected


def test_a_reason_names_the_way_out() -> None:
    for stats in ([WHITE], [BLACK]):
        verdict = quality.verdict(stats, framed=True, way_out="try --lights")
        assert verdict and verdict[1].endswith("; try --lights")


def test_one_view_is_enough_for_a_verdict() -> None:
    assert reason([GOOD]) == ""
    assert reason([ViewStats(0.2, True, 0.2)]) == "touches_border"
