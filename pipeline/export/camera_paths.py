"""Camera paths: around a point, or through the views of an object; how new each pose is beside the views that are there."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import math
from pathlib import Path

import numpy as np

from pipeline.config import rig
from pipeline.config.export import PathsConfig
from pipeline.core import cameras
from pipeline.core.cameras import BOUNDING_RADIUS
from pipeline.core.disk import replacing
from pipeline.core.errors import UserError
from pipeline.dataset.opened import Object
from pipeline.export.runs import intact, opened
from pipeline.report.charts import Plot
from pipeline.report.findings import Section, Table, write_page

LISSAJOUS = (3, 2)  # periods to the right and upwards


def write_paths(cfg: PathsConfig) -> list[str]:
    """Write rig.json, camera_path.json and, with --run, novelty.csv and index.html into cfg.out. Returns lines for the user.

    cfg: resolved. Raises UserError: no such object or views, a folder that cannot be written.
    """
    assert cfg.out is not None
    one, radius = _object(cfg)
    if one and cfg.kind == "views":
        c2w = through(one.c2w[list(cfg.views or range(len(one.c2w)))], cfg.frames, cfg.cycle)
    else:
        c2w = around(cfg, _distance(cfg, one))
    hw = cfg.height, cfg.width
    k = cameras.intrinsics(cfg.fov_x_deg, hw)
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:  # all of them take their names at the end, or none does
            place = functools.partial(_beside, files, cfg.out)
            place("rig.json").write_text(json.dumps(rig.ours(c2w, k, hw)))
            place("camera_path.json").write_text(json.dumps(rig.nerfstudio(c2w, k, hw, cfg.fps, cfg.cycle)))
            compared = _write_novelty(cfg, one, c2w, place("novelty.csv")) if one else []
    except OSError as error:
        raise UserError(f"{cfg.out} cannot be written: {error.strerror}", "give another --out, a folder") from None
    lines = [f"{len(c2w)} poses: {cfg.out}", "`render --poses` takes both; camera_path.json is for nerfstudio too"]
    return [*lines, *compared, *_too_near(c2w, radius)]


def _object(cfg: PathsConfig) -> tuple[Object | None, float | None]:
    """Object whose views a path goes through, or is compared with, and the radius of the sphere around the origin that it is in.

    None without --run; the radius also where it is not known.
    """
    if cfg.run is None:
        return None, None
    data = opened(cfg.run, cfg.res)
    if cfg.uid and cfg.uid not in data:
        raise UserError(
            f"{cfg.run} has no object {cfg.uid}", f"there are {len(data):,}: {', '.join(data.uids[:3])}, ..."
        )
    with intact(cfg.run, cfg.uid or "its first object"):
        one = data[cfg.uid or 0]
    if beyond := [view for view in cfg.views if view >= len(one.c2w)]:
        raise UserError(f"{one.uid} has no view {beyond[0]}", f"it has views 0 to {len(one.c2w) - 1}")
    if cfg.kind == "views" and len(one.c2w) < 2:
        raise UserError(f"{one.uid} has one view, and a path goes through two or more", "--kind orbit goes around it")
    return one, BOUNDING_RADIUS.get(str((data.facts.get("settings") or {}).get("normalize")))


def _too_near(c2w: np.ndarray, radius: float | None) -> list[str]:
    """Line that says how many poses lie in the sphere around an object, if any."""
    apart = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    if radius is None or not (inside := int((apart < radius).sum())):
        return []
    return [
        f"{inside} of {len(c2w)} poses are nearer to the origin than {radius:.3g}, the radius of the sphere around the object "
        f"(down to {apart.min():.2g}), and may look out of it: --views in an order around it, or --kind orbit"
    ]


# ---- paths


def around(cfg: PathsConfig, distance: float) -> np.ndarray:
    """c2w (F, 4, 4) of a path around cfg.target, all of which look at it, image up along world z.

    orbit: a turn at cfg.elevation_deg. spiral: cfg.turns of them, while the elevation goes to cfg.elevation_to_deg. circle,
    lissajous: within cfg.radius of the point at this distance, azimuth and elevation, in the plane that faces the target.
    """
    share = np.arange(cfg.frames) / (cfg.frames if cfg.cycle else max(1, cfg.frames - 1))
    azimuth, elevation = math.radians(cfg.azimuth_deg), math.radians(cfg.elevation_deg)
    target = np.array(cfg.target, np.float64)
    if cfg.kind in ("orbit", "spiral"):
        turns = cfg.turns if cfg.kind == "spiral" else 1.0
        last = math.radians(cfg.elevation_to_deg if cfg.kind == "spiral" else cfg.elevation_deg)
        towards = direction(azimuth + 2 * np.pi * turns * share, elevation + (last - elevation) * share)
        return cameras.look_at(target + distance * towards, target)
    middle = cameras.look_at(target + distance * direction(np.array(azimuth), np.array(elevation)), target)
    periods = (1, 1) if cfg.kind == "circle" else LISSAJOUS
    right, up = np.sin(2 * np.pi * periods[0] * share), np.cos(2 * np.pi * periods[1] * share)
    offset = cfg.radius * (right[:, None] * middle[:3, 0] - up[:, None] * middle[:3, 1])
    return cameras.look_at(middle[:3, 3] + offset, target)


def _distance(cfg: PathsConfig, one: Object | None) -> float:
    """Distance from the target: --distance, else of the object's cameras on average, else where objects fill a picture."""
    if cfg.distance is not None:
        return cfg.distance
    if one is not None:
        return float(np.linalg.norm(one.c2w[:, :3, 3] - np.array(cfg.target), axis=-1).mean())
    return 1.1 * cameras.fitting_distance(cfg.fov_x_deg, "sphere")


def direction(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 3): azimuth from +x towards +y, elevation above the horizon, both in radians."""
    azimuth, elevation = np.broadcast_arrays(azimuth, elevation)
    return np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)


def through(keys: np.ndarray, frames: int, cycle: bool = False) -> np.ndarray:
    """c2w (frames, 4, 4) through keys (K, 4, 4), in their order and at even steps from key to key.

    Centres lie on a Catmull-Rom spline, rotations on great arcs of unit quaternions. cycle: and back to the first key. The first
    frame is the first key; without cycle the last one is the last.
    """
    keys = np.asarray(keys, np.float64)
    count = len(keys)
    if count == 1:
        return np.repeat(keys, frames, 0)
    spans = count if cycle else count - 1
    place = np.arange(frames) * spans / (frames if cycle else max(1, frames - 1))
    span = np.minimum(place.astype(int), spans - 1)
    t = (place - span)[:, None]

    def key(offset: int) -> np.ndarray:
        number = span + offset
        return number % count if cycle else np.clip(number, 0, count - 1)

    p0, p1, p2, p3 = (keys[key(offset), :3, 3] for offset in (-1, 0, 1, 2))
    centre = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    quaternions = cameras.quaternion_of(keys[:, :3, :3])
    made = np.tile(np.eye(4), (frames, 1, 1))
    made[:, :3, :3] = cameras.rotation_of(slerp(quaternions[key(0)], quaternions[key(1)], t[:, 0]))
    made[:, :3, 3] = centre
    return made


def slerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Unit quaternions (F, 4) at shares t (F,) of the shorter arcs from start (F, 4) to end (F, 4)."""
    cosine = (start * end).sum(-1)
    end = np.where(cosine[:, None] < 0, -end, end)
    angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
    near = angle < 1e-6
    sine = np.where(near, 1, np.sin(angle))
    a, b = np.where(near, 1 - t, np.sin((1 - t) * angle) / sine), np.where(near, t, np.sin(t * angle) / sine)
    return a[:, None] * start + b[:, None] * end


# ---- files


def novelty(c2w: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How new poses c2w (F, 4, 4) are beside known ones (V, 4, 4): (view, angle, distance), (F,) each.

    view: the known camera with the nearest centre. angle: between both optical axes, in degrees. distance: of their centres.
    """
    apart = np.linalg.norm(c2w[:, None, :3, 3] - known[None, :, :3, 3], axis=-1)
    view = apart.argmin(1)
    one, other = c2w[:, :3, 2], known[view, :3, 2]
    angle = np.arctan2(np.linalg.norm(np.cross(one, other), axis=-1), (one * other).sum(-1))  # exact for small ones too
    return view, np.degrees(angle), apart[np.arange(len(c2w)), view]


def _beside(files: contextlib.ExitStack, folder: Path, name: str) -> Path:
    """Path to write a file of a folder to, which takes its name when `files` ends, and goes if anything is raised."""
    return files.enter_context(replacing(folder / name))


def _write_novelty(cfg: PathsConfig, one: Object, c2w: np.ndarray, table: Path) -> list[str]:
    """Write the numbers into `table`, a CSV file, and index.html with its plots."""
    assert cfg.out is not None
    known = np.flatnonzero(one.trains if one.trains.any() else np.ones(len(one.c2w)))
    place, angle, distance = novelty(c2w, one.c2w[known])
    view = known[place]
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["frame", "nearest_view", "angle_deg", "distance"])
        for frame, values in enumerate(zip(view, angle, distance, strict=True)):
            rows.writerow([frame, values[0], f"{values[1]:.4f}", f"{values[2]:.6f}"])
    lines = {"angle, degrees": angle, "distance": distance}
    plots = [
        Plot({name: list(enumerate(map(float, values)))}, "frame", name, dots=False) for name, values in lines.items()
    ]
    summary = Table(
        ["", "median", "largest"],
        [[name, f"{np.median(values):.3g}", f"{values.max():.3g}"] for name, values in lines.items()],
    )
    text = (
        "Of each pose the view with the nearest centre, of those that train: the angle between both optical axes, and the "
        "distance of the centres in units of the world. Where both are small, a picture of the path is nearly one that is there."
    )
    title = f"Camera path: {cfg.kind}, {len(c2w)} frames"
    lead = f"Beside {len(known)} views of {one.uid}."
    page = write_page(cfg.out / "index.html", title, lead, [Section("Novelty", text, [summary, *plots])])
    return [
        f"at most {angle.max():.1f} degrees and {distance.max():.3g} from the nearest of {len(known)} views: {page}"
    ]
