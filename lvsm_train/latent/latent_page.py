"""Page of experiments on the latents: the findings, the pictures of every operation, and what is true by construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lvsm_train.latent.atlas import Finding
from lvsm_train.latent.laws import Law
from lvsm_train.latent.study import mean_of
from pipeline.report.charts import Plot
from pipeline.report.findings import Block, Figure, Section, Table, write_page

LAWS = """\
Attention sums over latents and their decoder has no code for a place, so that a scene is a set of tokens: reordering changes
nothing. The decoder takes each token's LayerNorm first, which removes its mean and its length: a factor above 0 changes nothing,
nor does a number added to all values, but for the 1e-5 that the norm adds to the variance. These are two numbers of each token
that no picture shows; only the direction counts.
.
A weight w enters every block as log w, added to a latent's scores: w = 0 is as if it were not there, and two halves are the
whole. So a scene of any number of tokens can go over into one of another number, and both ends are exact.
.
Changes are of values in [0, 1]. Where a bound is 0 no bit may change; 1e-5 is what float32 may do. The second
table has what must not be taken for neutral."""
PACE = """\
detour: how far pictures go from frame to frame, over the distance of the ends; 1 is the shortest way, a cross-fade's.
unevenness: the largest change between two frames over the mean one. cross-fade: PSNR of the middle to the mean of both ends; the
higher, the less the way is more than that. mean angle: between the directions of paired tokens."""


def write(report: Report, path: Path) -> Path:
    """Write the report as an HTML page to `path`."""
    facts = report.facts
    height, width = facts["height_width"]
    lead = (
        f"encoder_decoder{' with PRoPE' if facts['prope'] else ''}, step {facts['step']} of {facts['run']}: "
        f"{facts['latents']} tokens of {facts['dim']} numbers from {facts['inputs']} inputs of {width}x{height} pixels.\n"
        f"Edited tokens: {_numbers(facts['tokens'])}. All numbers: latent.json."
    )
    sections = [_objects(report), *_found(report)]
    shown = dict.fromkeys(entry["name"] for entry in report.studies)
    belongs = {study.name for finding in report.findings for study in finding.studies}
    keeps = [name for name in shown if name.startswith("keep-")]
    for name in shown:
        if name not in belongs:
            sections.append(_study(report, name, [_kept(report, keeps)] if keeps and name == keeps[-1] else []))
    for finding in report.findings:
        pictures = [Figure(report.out / f"{file}.png", caption) for file, (caption, _) in finding.pictures.items()]
        sections.append(Section(finding.title, finding.says, [*finding.blocks, *pictures]))
        sections += [_study(report, study.name) for study in finding.studies]
    return write_page(path, "The space of latents", lead, [*sections, _laws(report.laws)])


def _objects(report: Report) -> Section:
    rows = [
        [each["uid"], _db(each["to_target"]["psnr"]), _index(each["to_target"]["lpips"])] for each in report.objects
    ]
    text = ["How well the model renders these objects at all. Everything below is measured against these renders."]
    if apart := report.facts["frames_apart"]:
        text.append(
            "Tokens of a model with PRoPE say what the first input's camera sees. Where two objects are mixed, the second is "
            "turned with its camera until that stands where the first one's stands; up then differs by "
            f"{math.degrees(apart[0]):.1f} degrees, and where the origin is by {apart[1]:.3f}."
        )
    text += report.notes
    pictures = [Figure(report.out / each["picture"], each["uid"]) for each in report.objects]
    return Section("Objects", "\n".join(text), [Table(["to the targets", "PSNR, dB", "LPIPS"], rows), *pictures])


def _laws(laws: Sequence[Law]) -> Section:
    true = [
        [law.says, _small(law.largest), f"{law.bound:g}", "yes" if law.holds else "no"]
        for law in laws
        if law.bound is not None
    ]
    tables = [Table(["", "largest change", "bound", "holds"], true)]
    tables.append(
        Table(["not neutral", "largest change"], [[law.says, _small(law.largest)] for law in laws if law.bound is None])
    )
    return Section("True by construction", _paragraphs(LAWS), tables)


def _found(report: Report) -> list[Section]:
    """Section of the few numbers that say most, and of the ways between two objects; [] without either."""
    rows: list[list[str]] = []
    for name, label, value in (
        ("keep-random", "half of the tokens kept, at random", 0.5),
        ("keep-strongest", "half of the tokens kept, the strongest", 0.5),
        ("keep-weakest", "half of the tokens kept, the weakest", 0.5),
        ("noise", "10 % noise in all tokens", 0.1),
        ("rotate", "chosen tokens turned by 90 degrees", 90.0),
        ("pca-tokens-kept", "tokens rebuilt from 8 components", 8),
        ("pca-scenes-kept", "scene rebuilt from 8 components of other scenes", 8),
    ):
        steps = [step for entry in _named(report, name) for step in entry["steps"] if step["value"] == value]
        if steps:
            psnr, lpips = (mean_of([step[of] for step in steps]) for of in ("psnr", "lpips"))
            rows.append([label, _db(psnr), _index(lpips)])
    blocks: list[Block] = [Table(["to the unedited render", "PSNR, dB", "LPIPS"], rows)] if rows else []
    ways = [entry for entry in report.studies if "detour" in entry]
    if ways:
        blocks.append(_ways(ways))
    return [Section("Found", _paragraphs(PACE) if ways else "", blocks)] if blocks else []


def _ways(ways: Sequence[dict[str, Any]]) -> Table:
    header = ["way", "pairs", "mean angle", "detour", "unevenness", "cross-fade, dB"]
    rows = [
        [
            entry["title"].split(": ")[1] + (", other sizes" if entry["name"].startswith("sizes") else ""),
            entry["pairs"],
            f"{entry['mean_angle_deg']:.0f} degrees" if "mean_angle_deg" in entry else "",
            f"{entry['detour']:.2f}",
            f"{entry['unevenness']:.2f}",
            _db(entry.get("psnr_to_cross_fade")),
        ]
        for entry in ways
    ]
    return Table(header, rows)


def _study(report: Report, name: str, more: Sequence[Block] = ()) -> Section:
    """Section of the study `name`: pictures of the first object, numbers as means over objects, then the blocks of `more`."""
    every = _named(report, name)
    first = every[0]
    second = "to_second" in first["steps"][0]
    header = [
        _to(every, second),
        "PSNR, dB",
        "LPIPS",
        "largest change",
        *(["to the other, dB", "LPIPS"] if second else []),
    ]
    rows = []
    for number, step in enumerate(first["steps"]):
        same = [entry["steps"][number] for entry in every]
        numbers = [_db(mean_of([one["psnr"] for one in same])), _index(mean_of([one["lpips"] for one in same]))]
        numbers.append(_small(max(one["largest_change"] for one in same)))
        if second:
            numbers += [_db(step["to_second"]["psnr"]), _index(step["to_second"]["lpips"])]
        rows.append([step["label"], *numbers])
    blocks: list[Block] = [Figure(report.out / first["picture"], " to ".join(first["objects"]))]
    if "films" in first:
        film = report.out / first["films"][0]
        blocks.insert(0, Figure(film, f"{' to '.join(first['objects'])}, and back. As a GIF: {first['films'][1]}"))
    return Section(first["title"], report.says[name], [*blocks, Table(header, rows), *more])


def _to(every: Sequence[dict[str, Any]], second: bool) -> str:
    if second:
        return "to the first"
    return "to the unedited render" if len(every) == 1 else f"mean of {len(every)} objects"


def _kept(report: Report, names: Sequence[str]) -> Plot:
    series = {}
    for name in names:
        every = _named(report, name)
        points = [
            (100 * step["value"], mean_of([entry["steps"][number]["psnr"] for entry in every]))
            for number, step in enumerate(every[0]["steps"])
        ]
        series[name.removeprefix("keep-")] = [(x, y) for x, y in points if y is not None]
    return Plot(
        series, "% of the tokens kept", "PSNR to the unedited render, dB", "Which tokens are kept; mean over objects."
    )


def _named(report: Report, name: str) -> list[dict[str, Any]]:
    return [entry for entry in report.studies if entry["name"] == name]


def _paragraphs(text: str) -> str:
    """Join the lines of each paragraph; a line of one full stop separates paragraphs."""
    return "\n".join(each.replace("\n", " ") for each in text.split("\n.\n"))


def _numbers(tokens: Sequence[int]) -> str:
    shown = ", ".join(map(str, tokens[:16]))
    return shown if len(tokens) <= 16 else f"{shown}, ... ({len(tokens)})"


def _db(value: float | None) -> str:
    return "equal" if value is None else f"{value:.2f}"


def _index(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _small(value: float) -> str:
    return "0" if not value else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


@dataclass
class Report:
    """Results of the experiments. facts: about the run. objects: scores of each object's unedited rendering. studies: results of
    study.measure with their files. says: name of a study -> what was done. notes: lines that a user should read. tensors: of
    latent.safetensors."""

    out: Path
    facts: dict[str, Any]
    objects: list[dict[str, Any]] = field(default_factory=list)
    laws: list[Law] = field(default_factory=list)
    says: dict[str, str] = field(default_factory=dict)
    studies: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON values of latent.json: all numbers."""
        entry = {"facts": self.facts, "objects": self.objects, "by_construction": [law.as_json() for law in self.laws]}
        for finding in self.findings:
            entry |= finding.facts
        return entry | {"studies": self.studies, "notes": self.notes}

    def lines(self) -> list[str]:
        """Lines of text for the terminal: studies, laws that hold, notes."""
        promised = [law for law in self.laws if law.bound is not None]
        held = sum(law.largest <= law.bound for law in promised if law.bound is not None)
        worst = max(promised, key=lambda law: law.largest)
        made = [f"{len(self.studies)} studies of {', '.join(each['uid'] for each in self.objects)}"]
        found = f"the largest change is {worst.largest:.1e} ({worst.says})"
        return [*made, f"true by construction: {held} of {len(promised)} hold; {found}", *self.notes]
