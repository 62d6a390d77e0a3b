"""Figures of renders: labelled rows, heat maps, scatter plots of thumbnails. Small renders are enlarged, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from lvsm_train.evaluation.scores import enlarged, pixels
from pipeline.core import images

LEAST = 112  # least width of a view, pixels
GAP = 3
TEXT = 13  # height of a capital letter, pixels
INK, PAPER = (60, 60, 60), 255
HOT = (0.84, 0.12, 0.16)


def sheet(rows: Sequence[tuple[str, Tensor]], columns: Sequence[str] = (), least: int = LEAST) -> np.ndarray:
    """Rows (label, views (T, 3, H, W) in [0, 1]), labels at the left and column titles above -> (h, w, 3) uint8."""
    grid = images.contact_sheet([[enlarged(pixels(view), least) for view in views] for _, views in rows], GAP)
    height, width = enlarged(pixels(rows[0][1][0]), least).shape[:2]
    margin = max(_width(line) for label, _ in rows for line in label.split("\n")) + 14
    head = TEXT + 10 if columns else 0
    canvas = np.full((head + grid.shape[0], margin + grid.shape[1], 3), PAPER, np.uint8)
    canvas[head:, margin:] = grid
    for number, (label, views) in enumerate(rows):
        top, lines = head + number * (height + GAP), label.split("\n")
        canvas[top : top + height + GAP, margin + len(views) * (width + GAP) :] = PAPER  # beside shorter rows
        for place, line in enumerate(lines):
            _write(canvas, line, 2, top + height // 2 + TEXT // 2 + round((place - (len(lines) - 1) / 2) * 1.6 * TEXT))
    for number, column in enumerate(columns):
        _write(canvas, column, margin + number * (width + GAP) + 2, TEXT + 2)
    return canvas


def heat(values: Tensor, under: Tensor, top: float) -> Tensor:
    """Heat maps (T, 3, H, W) in [0, 1]: values (T, H, W), 0 to `top`, as red (square root) over pale grey views."""
    pale = 0.55 + 0.45 * under.mean(1, keepdim=True).expand_as(under)
    share = (values / max(top, 1e-9)).clamp(0, 1).sqrt()[:, None]
    return torch.lerp(pale, under.new_tensor(HOT)[:, None, None].expand_as(pale), share)


def matrix(values: Tensor, views: Tensor, labels: Sequence[str], least: int = 64, cell: int = 14) -> np.ndarray:
    """Values (K, T) as K rows of red cells (square root) below T views (T, 3, H, W) -> (h, w, 3) uint8."""
    top = sheet([("", views)], least=least)
    width = enlarged(pixels(views[0]), least).shape[1]
    margin = max(map(_width, labels)) + 14
    rows = np.full((len(labels) * cell, margin + top.shape[1] - 14, 3), PAPER, np.uint8)
    shares = (values / values.max().clamp(min=1e-9)).sqrt().cpu().numpy()
    for row, label in enumerate(labels):
        _write(rows, label, 2, row * cell + cell // 2 + 5)
        for column, share in enumerate(shares[row]):
            left = margin + column * (width + GAP)
            rows[row * cell : (row + 1) * cell - 1, left : left + width] = np.round(
                255 * ((1 - share) * 0.95 + share * np.array(HOT))
            )
    head = np.full((top.shape[0] + GAP, rows.shape[1], 3), PAPER, np.uint8)
    head[: top.shape[0], margin:] = top[:, 14:]
    return np.concatenate([head, rows])


def scatter(places: Tensor, views: Tensor, marked: int, size: int = 900) -> np.ndarray:
    """Thumbnails (S, 3, H, W) at places (S, 2), x right and y up, dotted lines at 0 -> (size, size, 3) uint8.

    The first `marked` thumbnails are framed, and on top.
    """
    canvas = np.full((size, size, 3), PAPER, np.uint8)
    thumbs = [enlarged(pixels(view), 64)[:96, :96] for view in views]
    height, width = thumbs[0].shape[:2]
    low, high = places.min(0).values, places.max(0).values
    share = (places - low) / (high - low).clamp(min=1e-9)
    middle = (-low / (high - low).clamp(min=1e-9)).clamp(0, 1)

    def corner(at: Tensor) -> tuple[int, int]:
        return int(4 + float(at[0]) * (size - width - 8)), int(4 + (1 - float(at[1])) * (size - height - 8))

    left, top = corner(middle)
    canvas[top + height // 2, ::6] = canvas[::6, left + width // 2] = 215
    for number in reversed(range(len(thumbs))):
        left, top = corner(share[number])
        part = canvas[top : top + height, left : left + width]
        np.minimum(part, thumbs[number], out=part)  # white backgrounds are transparent
        if number < marked:
            part[:] = thumbs[number]
            cv2.rectangle(canvas, (left - 2, top - 2), (left + width + 1, top + height + 1), (214, 31, 41), 2)
    return canvas


FONT, FINER = cv2.FONT_HERSHEY_SIMPLEX, 4  # OpenCV draws letters as lines: antialias by shrinking
SCALE, THICK = FINER * TEXT / 30, 5


def _width(text: str) -> int:
    return cv2.getTextSize(text, FONT, SCALE, THICK)[0][0] // FINER


def _write(canvas: np.ndarray, text: str, left: int, foot: int) -> None:
    """Draw text with its baseline at `foot`, clipped to the canvas."""
    width, height, below = _width(text) + 2, TEXT + 6, 4
    large = np.full(((height + below) * FINER, width * FINER, 3), PAPER, np.uint8)
    cv2.putText(large, text, (0, height * FINER), FONT, SCALE, INK, THICK, cv2.LINE_AA)
    small = cv2.resize(large, (width, height + below), interpolation=cv2.INTER_AREA)
    top = foot - height
    part = canvas[max(top, 0) : foot + below, left : left + width]
    np.minimum(part, small[max(-top, 0) :][: part.shape[0], : part.shape[1]], out=part)
