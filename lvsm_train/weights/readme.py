"""README.md of a model that is passed on: what it is, how to use it, what it was trained on, licenses, scores, settings."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from pipeline.core.licenses import FAMILIES, family
from pipeline.report.attribution import Account, escaped, license_lines

TAGS = ("novel-view-synthesis", "multi-view", "lvsm")
SCORES = {  # name in the card -> (name for people, digits, unit)
    "psnr": ("PSNR", 2, " dB"),
    "foreground_psnr": ("PSNR on the object", 2, " dB"),
    "ssim": ("SSIM", 3, ""),
    "lpips": ("LPIPS", 3, ""),
    "nearest": ("PSNR of the nearest input", 2, " dB"),
}


def text(said: dict[str, Any], name: str) -> str:
    """Markdown of the card. said: content of config.json. name: of the repository or folder."""
    lines = [*_head(said), *_summary(said, name), *_use(name), *_data(said), *_scores(said), *_settings(said)]
    return "\n".join(lines)


def _licenses(said: dict[str, Any]) -> dict[str, int]:
    return dict(said["card"].get("data", {}).get("licenses") or {})


def _head(said: dict[str, Any]) -> list[str]:
    account = Account(Path(), _licenses(said), {}, {}, 0)
    return [
        "---",
        *(license_lines(account) if account.total else ["license: unknown"]),
        "library_name: lvsm-data",
        "pipeline_tag: image-to-3d",
        *("tags:", *(f"- {tag}" for tag in TAGS)),
        *("---", ""),
    ]


def _summary(said: dict[str, Any], name: str) -> list[str]:
    pictures, views, weights = said["pictures"], said["views"], said["weights"]
    inputs, targets = ("-".join(map(str, dict.fromkeys(views[what]))) for what in ("inputs", "targets"))
    model = said["settings"]["model"]
    layers = f"{model['layers']} layers of width {model['dim']}"
    if model["kind"] != "decoder_only":
        layers += f", {model['encoder_layers']} of them in the encoder"
    rows = {
        "model": f"{said['architecture']}; {layers}",
        "weights": f"{weights['numbers']:,} numbers, step {said['step']:,}{', averaged' if weights['averaged'] else ''}",
        "pictures": f"{' or '.join(_sizes(said))} pixels in patches of {pictures['patch']}",
        "a sample in training": f"{inputs} views shown, {targets} asked for",
        **{f"`{what}`": meaning for what, meaning in said["conventions"].items()},
    }
    return [
        f"# {escaped(name)}",
        "",
        "Renders new views of a scene out of a few posed pictures: an LVSM (arXiv 2410.17242), trained with lvsm-data.",
        "",
        *("| | |", "|---|---|", *(f"| {what} | {meaning} |" for what, meaning in rows.items()), ""),
    ]


def _sizes(said: dict[str, Any]) -> list[str]:
    """Sizes of the pictures of training, width first, each once."""
    one = said["pictures"]
    sizes = said["card"].get("data", {}).get("sizes") or [(one["height"], one["width"])]
    return list(dict.fromkeys(f"{width}x{height}" for height, width in sizes))


def _use(name: str) -> list[str]:
    place = f"hf:{name}" if "/" in name else name
    return [
        "## Use",
        "",
        "```",
        f"lvsm-data eval {shlex.quote(place)} --data SHARDS",
        f"lvsm-data synthesize {shlex.quote(place)} --input PHOTOS",
        f"lvsm-data train --start-from {shlex.quote(place)} --data SHARDS   # with the flags of its model, below",
        "```",
        "",
        "```python",
        "import lvsm_train",
        "",
        f"model = lvsm_train.load({json.dumps(place)})",
        "views = model.render(images, c2w, fxfycxcy, target_c2w, target_fxfycxcy)  # (N, H, W, 3) and cameras -> (F, H, W, 3)",
        "```",
        "",
    ]


def _data(said: dict[str, Any]) -> list[str]:
    data, training = said["card"].get("data"), said["card"].get("training")
    if not data or not training:
        return []
    licenses = _licenses(said)
    rows = [f"| {escaped(name)} | {count:,} | {FAMILIES[family(name)].says} |" for name, count in licenses.items()]
    findings = data.get("what_they_allow") or {}
    return [
        "## Trained on",
        "",
        f"{data['trained_on']:,} of {data['trained_on'] + data['held_out']:,} objects or clips, in {data['views']:,} views, for "
        f"{training['steps']:,} steps ({training['passes_over_the_data']:g} passes). The others were held out.",
        "",
        *(("| license of the pictures | objects | what it asks |", "|---|---|---|", *rows, "") if rows else ()),
        *(f"- {topic.capitalize()}: {escaped(str(said))}." for topic, said in findings.items()),
        "",
        "The license above is that of the pictures, not one that somebody chose for the weights.",
        "",
    ]


def _scores(said: dict[str, Any]) -> list[str]:
    scores = said["card"].get("held_out_objects") or {}
    rows = [
        f"| {name} | {scores[key]:.{digits}f}{unit} |"
        for key, (name, digits, unit) in SCORES.items()
        if isinstance(scores.get(key), int | float)
    ]
    if not rows:
        return []
    return [
        "## Scores",
        "",
        f"Means over {scores['targets']:,} views of objects that were held out:",
        "",
        *("| | |", "|---|---|", *rows, ""),
    ]


def _settings(said: dict[str, Any]) -> list[str]:
    shown = json.dumps(said["settings"], indent=1).replace("`", "\\u0060")
    return ["## Settings", "", "```json", shown, "```", ""]
