"""Shapes of pictures, such as 16:9, and sizes of that shape with whole patches. Imports no torch: the command line reads this."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.core.errors import UserError

HW = tuple[int, int]  # (height, width) in pixels


def parsed(aspect: str, names: Sequence[str] = ()) -> tuple[float, float]:
    """(width, height) of a shape W:H. Raises UserError for what is none. names: what --aspect takes besides."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", aspect)
    width, height = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if not (0 < width < 1e4 and 0 < height < 1e4):
        raise UserError(f"--aspect {aspect} is no shape", ", ".join([*names, "W:H such as 16:9"]))
    return width, height


def whole_patches(side: float, patch: int) -> int:
    """Side in pixels, of the nearest number of whole patches, one at least."""
    return max(1, int(side / patch + 0.5)) * patch


def cropped_hw(shape: tuple[float, float], hw: HW, patch: int) -> HW:
    """Largest size of shape (width, height) that can be cropped out of pictures of size hw, in whole patches."""
    (width, height), (high, wide) = shape, hw

    def cropped(side: float, most: int) -> int:
        return min(most // patch * patch or most, whole_patches(side, patch))

    return cropped(min(high, wide * height / width), high), cropped(min(wide, high * width / height), wide)


def sizes(aspects: Sequence[str], hw: HW, patch: int) -> list[HW]:
    """Sizes of pictures of size hw that are cropped to each of `aspects`, in their order; [hw] without any."""
    return [cropped_hw(parsed(aspect), hw, patch) for aspect in aspects] or [hw]
