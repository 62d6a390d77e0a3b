"""Card of a dataset: the README.md that the Hugging Face Hub shows, whose head tells `datasets` which files belong together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pipeline.core.text import size
from pipeline.report.attribution import Account, escaped, license_lines, license_section, nouns
from pipeline.storage.shards import CONVENTION

TABLE, SHEET = "attribution.csv", "contact_sheet.jpg"  # beside the card
SPLITS = ("train", "val")
SIZES = {  # rows -> the Hub's word for fewer
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}
HUGE = "1B<n<10B"
GREY = "8-bit PNG, (height, width)"
COLUMNS = {  # name -> (what it holds, meaning)
    "uid": ("", "object; the views of one follow each other"),
    "view": ("", "number of the view, from 0"),
    "image": ("JPEG, (height, width, 3)", "sRGB, 4:4:4"),
    "image_sha": ("", "first 8 bytes of the SHA-256 of the JPEG, little-endian"),
    "c2w": ("4x4, row by row", "camera-to-world, OpenCV axes"),
    "fxfycxcy": ("4 numbers", "fx, fy, cx, cy in pixels of this picture"),
    "sxsycxcy": ("4 numbers", "of orthographic views: sx, sy in pixels per world unit, cx, cy in pixels"),
    "height": ("", "of this picture"),
    "width": ("", "of this picture"),
    "source": ("", "where the object is from"),
    "license": ("", "of the object, and so of its pictures"),
    "sha256": ("", "of the object's file, empty where it is not known"),
    "config_hash": ("", "changes with every setting that can change a pixel or a pose"),
    "meta": ("JSON", "facts about the object: whom to name, where it is from, what it has and lacks"),
    "alpha": (GREY, "share of the pixel that the object covers"),
    "depth": ("float32, little-endian, (height, width)", "along the camera's axis, infinite where nothing is"),
    "normals": ("float32, little-endian, (height, width, 3)", "world axes, 0 where nothing is"),
    "albedo": ("8-bit PNG, (height, width, 3)", "base colour of the materials, sRGB-encoded"),
    "roughness": (GREY, "255 is 1"),
    "metallic": (GREY, "255 is 1"),
    "frame": ("", "of clips: entry of the camera file, from 0; of objects that move: number of the instant, from 0"),
    "asked_us": ("", "of clips: time of the pose, microseconds"),
    "time_us": ("", "of clips: when the frame is shown, microseconds"),
    "role": ("", "train, val or test where the source splits the views of a scene, else empty"),
    "time": ("", "when the view was taken, in the unit of its set, null where it says nothing"),
    "caption": ("", "a text about the object, empty where there is none"),
}


@dataclass(frozen=True)
class Part:
    """A split of one resolution. views: number of views of each of its objects. bytes: of its shards."""

    views: list[int]
    bytes: int


@dataclass(frozen=True)
class Told:
    """All that a card says. name: of the dataset, as `load_dataset` takes it. parts: width -> split -> Part.

    columns: name -> type. facts: of the run, as shards have them. failed: reason -> objects that were tried and could not be had.
    asked: objects that the run was to deliver, None where that is not known.
    """

    name: str
    account: Account
    facts: dict[str, Any]
    columns: Mapping[str, str]
    parts: Mapping[int, Mapping[str, Part]]
    failed: Mapping[str, int]
    asked: int | None = None

    @property
    def fewer(self) -> str:
        """Sentence that says by how many objects the run has fewer than it was to deliver, empty if it has all."""
        short = (self.asked or 0) - len(self.views)
        return f"The run was to deliver {self.asked:,}, and ended {short:,} short." if short > 0 else ""

    @property
    def first(self) -> int:
        """Width that is loaded where none is asked for: the smallest."""
        return min(self.parts)

    @property
    def views(self) -> list[int]:
        """Number of views of each object."""
        return [count for part in self.parts[self.first].values() for count in part.views]


def text(told: Told) -> str:
    """Markdown of the card."""
    lines = [*_head(told), *_summary(told), *_loading(told), *_columns(told), *_statistics(told), *_settings(told)]
    return "\n".join([*lines, *license_section(told.account, TABLE)])


def _head(told: Told) -> list[str]:
    """Front matter: a configuration for each resolution, so that `load_dataset` gives each view once."""
    configs = []
    for width, parts in sorted(told.parts.items()):
        configs += [f'- config_name: "{width}"', *(["  default: true"] if width == told.first else []), "  data_files:"]
        for split in parts:
            configs += [f"  - split: {split}", f'    path: "{width}/{split}-*.parquet"']
    count = sum(told.views)
    return [
        "---",
        *license_lines(told.account, TABLE),
        f"pretty_name: {json.dumps(told.name)}",
        *("task_categories:", "- image-to-3d"),
        *("tags:", "- multi-view", "- novel-view-synthesis", "- camera-poses"),
        *("size_categories:", f"- {next((word for most, word in SIZES.items() if count < most), HUGE)}"),
        *("configs:", *configs, "---", ""),
    ]


def _summary(told: Told) -> list[str]:
    what = nouns(told.account)
    rows = [
        f"| `{width}` | {split} | {len(part.views):,} | {sum(part.views):,} | {size(part.bytes)} |"
        for width, parts in sorted(told.parts.items())
        for split, part in parts.items()
    ]
    also = f" All hold the same views; `{told.first}` is loaded where none is asked for." if len(told.parts) > 1 else ""
    return [
        f"# {escaped(told.name)}",
        "",
        f"{len(told.views):,} {what} in {sum(told.views):,} views with their cameras, for models that show a scene from new "
        "viewpoints. A row is a view: a JPEG, its pose, its intrinsics.",
        "",
        f"![The first views of some of the {what}, a row each]({SHEET})",
        "",
        *(f"| configuration | split | {what} | views | files |", "|---|---|---|---|---|", *rows, ""),
        f"A configuration is named after the width of its pictures.{also}",
        "",
    ]


def _loading(told: Told) -> list[str]:
    split, column = next(iter(told.parts[told.first])), "sxsycxcy" if "sxsycxcy" in told.columns else "fxfycxcy"
    address = f"hf:{told.name}" if "/" in told.name else told.name
    return [
        "## Loading",
        "",
        "```python",
        "import numpy as np",
        "from datasets import load_dataset",
        "",
        f'views = load_dataset({json.dumps(told.name)}, "{told.first}", split="{split}")',
        "one = views[0]",
        f'image, c2w, {column} = one["image"], np.reshape(one["c2w"], (4, 4)), one["{column}"]',
        "```",
        "",
        "By object with lvsm-data, which reads no more than what is asked for:",
        "",
        "```python",
        "import pipeline",
        "",
        f"data = pipeline.open({json.dumps(address)}, res={told.first})",
        "one = data[0]  # or data[uid]",
        f"one.images, one.c2w, one.{column}  # (V, H, W, 3) uint8, (V, 4, 4), (V, 4)",
        "```",
        "",
    ]


def _columns(told: Told) -> list[str]:
    rows = [f"| `{name}` | {kind} | {'; '.join(filter(None, COLUMNS[name]))} |" for name, kind in told.columns.items()]
    about = {name: told.facts.get(name) for name in ("world", "cameras", "background", "downsampling")}
    return [
        "## Columns",
        "",
        *("| column | type | meaning |", "|---|---|---|", *rows, ""),
        CONVENTION,
        "",
        *(f"- {name.capitalize()}: {escaped(str(value))}." for name, value in about.items() if value),
        "",
    ]


def _statistics(told: Told) -> list[str]:
    views, what = told.views, nouns(told.account)
    tried = len(views) + sum(told.failed.values())
    spread = f"{min(views)} to {max(views)}, in the median {statistics.median(views):g}"
    failed = [f"| {escaped(reason)} | {count:,} |" for reason, count in told.failed.items()]
    return [
        "## Statistics",
        "",
        f"- Views of each: {spread if min(views) < max(views) else views[0]}.",
        f"- Of {tried:,} {what} that were tried, {len(views):,} are here.",
        *([f"- {told.fewer}"] if told.fewer else []),
        "",
        *(("| left out, since | number |", "|---|---|", *failed, "") if failed else ()),
    ]


def _settings(told: Told) -> list[str]:
    """Settings as JSON. Of paths the last part alone: they are of the machine that made the run."""
    chosen = {name: told.facts.get(name) for name in ("source", "seed", "settings", "config_hash", "versions")}
    said = json.dumps(without_paths(chosen), indent=1).replace("`", "\\u0060")
    return ["## Settings", "", "```json", said, "```", ""]


def without_paths(value: Any) -> Any:
    """Copy of JSON values without None, and of absolute paths the last part alone."""
    if isinstance(value, dict):
        return {name: without_paths(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [without_paths(one) for one in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
