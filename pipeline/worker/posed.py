"""Views that exist already -> a Scene: each is decoded once, undistorted, put on white, cropped, resized, all in memory.

Light is averaged as in the renderer: straight alpha becomes premultiplied linear light, which is area-averaged and then
composited on white, so that a pixel is exactly (255, 255, 255) where nothing covers it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import sources
from pipeline.config.clip import ClipConfig
from pipeline.config.views import ImportConfig, PosedConfig
from pipeline.core import cameras, images
from pipeline.core.cameras import Lens
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed, Scene, Views, item_rng, timed
from pipeline.poses.capture import check_intrinsics
from pipeline.sources import posed_views
from pipeline.worker import quality, silhouettes

GRID = 65  # points along each side of the picture at which a distortion is tested
# least and greatest factor by which undistorting may change the focal length; a fisheye's middle keeps at least its scale
ZOOMS = {"none": (0.25, 4.0), "fov": (1.0, 4.0), "theta": (1.0, 4.0)}
FLAT_LEVELS = 8  # of 255: a picture with less contrast counts as blank
FACING_STEP = 7  # every which normal is looked at
LEAST_FACING = 0.7  # of a scene's normals must point towards the camera; of normals in axes of the camera, half do


class Importer:
    """Turns what a source loads (Posed or Clip) into scenes. encode: makes the scene of an item from what was loaded."""

    def __init__(self, cfg: ImportConfig | ClipConfig, encode: Callable[[Item, Any], Scene]) -> None:
        self.cfg, self.encode, self.source = cfg, encode, sources.load(cfg.source)

    def make(self, item: Item, bring: Callable[[Item], Path], timings: dict[str, float]) -> Scene:
        """Load the item's images and encode them, see `Maker`. Scenes to verify also get a camera verdict."""
        with timed(timings, "fetch"):
            path = bring(item)
            loaded = self._loaded(item, path)
        if isinstance(loaded, Scene):
            return loaded
        try:
            return self._scene(item, loaded, timings)
        except Skip as failure:
            if failure.reason not in posed_views.UNREADABLE or not isinstance(loaded, Posed):
                raise
        with timed(timings, "fetch"):
            loaded = self._whole(item, path, loaded)
        return self._scene(item, loaded, timings)

    def _scene(self, item: Item, loaded: Any, timings: dict[str, float]) -> Scene:
        """Encode what was loaded, without the views whose cameras contradict the others."""
        if not isinstance(loaded, Posed) or not (item.extra.get(silhouettes.TO_CHECK) or self._verifies(item)):
            with timed(timings, "encode"):
                return self.encode(item, loaded)
        with timed(timings, "verify"):
            verdict = silhouettes.check(loaded)
        kept = list(range(len(loaded.images)))
        wrong = verdict.wrong if verdict.says != "does_not_fit" else []
        if wrong:
            kept = [view for view in kept if view not in wrong]
            loaded = loaded.part(kept)
        with timed(timings, "encode"):
            scene = self.encode(item, loaded)
        if wrong:
            scene.meta["views_wrong"] = [verdict.views[view].name for view in wrong]
        stored = [kept[view] for view in cameras.spread(len(kept), self.cfg.scene.views)]
        scene.meta[silhouettes.VERDICT_KEY] = verdict
        scene.meta["cameras_fit"] = verdict.part(stored).score
        return scene

    def _whole(self, item: Item, path: Path, loaded: Posed) -> Posed:
        """Leave out the views whose picture cannot be read, or that lack what is asked for beside it."""
        assert isinstance(self.cfg, ImportConfig)
        if getattr(self.source, "LOADS_WHOLE", False):  # and takes others in their place
            return self._loaded(item, path, whole=True)
        return self._several(posed_views.whole(loaded, self.cfg.scene.layers))

    def _loaded(self, item: Item, path: Path, **how: bool) -> Any:
        return self._several(self.source.load(item, path, self.cfg, **how))

    def _several(self, loaded: Any) -> Any:
        """Return what was loaded. Raises Skip("single_view") for one view, unless one is asked for."""
        if isinstance(loaded, Posed) and len(loaded.images) == 1 and self.cfg.scene.views != 1:
            raise Skip("single_view", "one view, and a model learns from two or more; --views 1 takes it")
        return loaded

    def _verifies(self, item: Item) -> bool:
        """True if the scene's cameras are to be checked: a share of the items, chosen by the uid."""
        if not isinstance(self.cfg, ImportConfig) or not self.cfg.verify_cameras:
            return False
        return item_rng(0, item.uid, "verify").random() * 100 < self.cfg.verify_percent

    def close(self) -> None:
        """Nothing runs between two items."""


@dataclass(frozen=True)
class _Undistorted:
    """map_x, map_y (H, W): for each new pixel its place in the old picture (OpenCV: pixel centres at whole numbers)."""

    map_x: np.ndarray
    map_y: np.ndarray
    fxfycxcy: np.ndarray

    def take(self, rgba: np.ndarray) -> np.ndarray:
        """Old picture (H, W, C) -> the new one, of equal size."""
        import cv2

        return cv2.remap(rgba, self.map_x, self.map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def to_scene(item: Item, posed: Posed, cfg: PosedConfig) -> Scene:
    """The scene that shards store: at most cfg.views of its views, at every width of cfg.res (cfg is resolved).

    Raises Skip: no_images, bad_cameras (not rigid, not finite, impossible intrinsics), bad_distortion, broken_image,
    too_small (pictures are never enlarged), mixed_sizes (different shapes, and crop none), all_background, tiny, blank,
    layer_missing (a column that is asked for, and the set lacks it here), normals_do_not_fit.
    """
    if not posed.images:
        raise Skip("no_images")
    c2w, fxfycxcy, lenses = _checked(posed)
    chosen = cameras.spread(len(posed.images), cfg.views)
    album = _Album(cfg)
    for view in map(int, chosen):
        try:
            straight = images.decode_straight(posed.images[view])
        except OSError as error:
            raise Skip("broken_image", f"{posed.name(view)}: {error}") from None
        layer, hw = posed.of(view), straight.shape[:2]
        beside = {kind: posed_views.beside(layer, kind, posed.name(view), hw) for kind in cfg.layers}
        album.add(posed.name(view), straight, fxfycxcy[view], lenses[view], beside, posed.images[view])
        if "normals" in beside:
            album.face(beside["normals"], c2w[view], fxfycxcy[view])
    meta = dict(posed.meta) | {"views_found": posed.meta.get("views_found", len(posed.images))}
    roles = [posed.roles[view] for view in chosen] if posed.roles else ()
    times = [posed.times[view] for view in chosen] if posed.times else ()
    return Scene(item, c2w[chosen].astype(np.float32), album.views(), meta | album.facts(), roles=roles, times=times)


def _checked(posed: Posed) -> tuple[np.ndarray, np.ndarray, Sequence[Lens]]:
    """c2w (V, 4, 4) and fxfycxcy (V, 4) in float64, and V lenses. Raises Skip: bad_cameras, bad_distortion."""
    count = len(posed.images)
    fxfycxcy = np.asarray(posed.fxfycxcy, np.float64)
    lenses = posed.lenses or [cameras.PINHOLE] * count
    c2w = rigid(posed.c2w, posed.name if len(posed.c2w) == count else "pose {}".format)
    if len(c2w) != count or fxfycxcy.shape != (count, 4) or len(lenses) != count:
        raise Skip(
            "bad_cameras", f"{len(c2w)} poses, {len(fxfycxcy)} intrinsics and {len(lenses)} lenses for {count} images"
        )
    if not np.isfinite(fxfycxcy).all() or (fxfycxcy[:, :2] <= 0).any():
        raise Skip("bad_cameras", "a focal length that is no positive number")
    if not all(np.isfinite(lens.numbers).all() for lens in lenses):
        raise Skip("bad_distortion", "coefficients that are no numbers")
    return c2w, fxfycxcy, lenses


def rigid(c2w: np.ndarray, name: Callable[[int], str] = "view {}".format) -> np.ndarray:
    """c2w (V, 4, 4) with exactly orthonormal rotations. name: names a view. Raises Skip("bad_cameras")."""
    try:
        return cameras.nearest_rigid(c2w, name=name)
    except ValueError as error:
        raise Skip("bad_cameras", str(error)) from None


class _Album:
    """Collects the views of one scene at all resolutions."""

    def __init__(self, cfg: PosedConfig) -> None:
        self.cfg = cfg
        self.jpegs: dict[int, list[bytes]] = {width: [] for width in cfg.res}
        self.layers: dict[int, dict[str, list[bytes]]] = {width: defaultdict(list) for width in cfg.res}
        self.intrinsics: dict[int, list[np.ndarray]] = {width: [] for width in cfg.res}
        self.hw: dict[int, tuple[int, int]] = {}
        self.stats: list[quality.ViewStats] = []
        self.contrast: list[int] = []
        self.sizes: set[tuple[int, int]] = set()
        self.zooms: set[float] = set()
        self.maps: dict[tuple[Any, ...], _Undistorted] = {}
        self.facing: list[float] = []
        self.transparent = False

    def add(
        self,
        view: str,
        straight: np.ndarray,
        fxfycxcy: np.ndarray,
        lens: Lens,
        beside: dict[str, np.ndarray],
        file: bytes,
    ) -> None:
        """Add a picture (H, W, 3 or 4) called `view`, decoded from `file`, with its intrinsics (4,), lens and other columns.

        Where nothing changes its pixels and the file is such a JPEG as shards hold, its bytes are kept. Raises Skip, see
        `to_scene`.
        """
        height, width = whole = straight.shape[:2]
        check_intrinsics(view, fxfycxcy, (height, width))
        self.sizes.add((height, width))
        self.transparent |= straight.shape[2] == 4
        square = self.cfg.crop == "square"
        if not lens.is_pinhole:
            if beside:
                raise Skip(
                    "unsupported_camera", f"{', '.join(beside)} of pictures that a lens bends: undistort them first"
                )
            rgba, fxfycxcy = self._undistort(images.premultiplied(straight), fxfycxcy, lens)
            rgba, fxfycxcy = crop_square(rgba, fxfycxcy) if square else (rgba, fxfycxcy)
        else:
            if square:
                beside = {name: crop_square(values, fxfycxcy)[0] for name, values in beside.items()}
                straight, fxfycxcy = crop_square(straight, fxfycxcy)
            rgba = images.premultiplied(straight)
        height, width = rgba.shape[:2]
        largest = max(self.cfg.res)
        if width < largest:
            crop = " after the square crop" if square else ""
            raise Skip("too_small", f"{view} is {width} pixels wide{crop}, --res asks for {largest}")
        for new_width in self.cfg.res:
            hw = (max(1, round(height * new_width / width)), new_width)
            if self.hw.setdefault(new_width, hw) != hw:
                raise Skip(
                    "mixed_sizes",
                    f"views of {self.hw[new_width]} and {hw} at one width; --crop square makes them equal",
                )
            keep = hw == whole and lens.is_pinhole and images.is_plain_jpeg(file)
            self._encode(new_width, images.resize_area(rgba, hw), new_width == largest, file if keep else None)
            for name, values in beside.items():
                self.layers[new_width][name].append(_encoded(name, values, rgba[..., 3:], hw))
            self.intrinsics[new_width].append(cameras.resize_intrinsics(fxfycxcy, (height, width), hw))

    def _encode(self, width: int, rgba: np.ndarray, measured: bool, file: bytes | None) -> None:
        rgb, alpha = images.srgb8(images.over(rgba)), np.clip(rgba[..., 3], 0, 1)
        self.jpegs[width].append(file or images.encode_jpeg(rgb, self.cfg.quality))
        if self.cfg.alpha:
            self.layers[width]["alpha"].append(images.encode_png(np.round(alpha * 255).astype(np.uint8)))
        if measured:
            self.stats.append(quality.measure(rgb, alpha, alpha.size))
            some = rgb[::3, ::3]
            self.contrast.append(max(int(np.ptp(some[..., channel])) for channel in range(3)))

    def _undistort(self, rgba: np.ndarray, fxfycxcy: np.ndarray, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
        key = (rgba.shape[:2], tuple(fxfycxcy), lens)
        if key not in self.maps:
            if len(self.maps) > 3:  # each view may have its own camera: keeping all maps would fill the memory
                self.maps.clear()
            self.maps[key] = undistortion(rgba.shape[:2], fxfycxcy, lens)
        made = self.maps[key]
        self.zooms.add(round(float(made.fxfycxcy[0] / fxfycxcy[0]), 4))
        return made.take(rgba), made.fxfycxcy

    def face(self, normals: np.ndarray, c2w: np.ndarray, fxfycxcy: np.ndarray) -> None:
        """Note the share of a view's normals (H, W, 3) that point towards its camera."""
        y, x = np.nonzero((normals**2).sum(-1) > 0.5)
        y, x = y[::FACING_STEP], x[::FACING_STEP]
        fx, fy, cx, cy = fxfycxcy
        rays = np.stack([(x + 0.5 - cx) / fx, (y + 0.5 - cy) / fy, np.ones(len(x))], -1) @ c2w[:3, :3].T
        if len(rays):
            self.facing.append(float(((rays * normals[y, x]).sum(-1) < 0).mean()))

    def views(self) -> dict[int, Views]:
        """Image width -> Views. Raises Skip: all_background, tiny, blank, layer_missing, normals_do_not_fit."""
        if bad := quality.verdict(self.stats, framed=False):
            raise Skip(*bad)
        if np.median(self.contrast) < FLAT_LEVELS:
            raise Skip("blank", f"median contrast {np.median(self.contrast):.0f} of 255 levels")
        if self.cfg.alpha and not self.transparent:
            raise Skip(
                "layer_missing",
                "alpha: there is neither transparency nor a mask; without --alpha pictures are taken as they are",
            )
        if self.facing and np.mean(self.facing) < LEAST_FACING:
            said = f"{np.mean(self.facing):.0%} of the normals point towards their cameras: they are not in axes of the world"
            raise Skip("normals_do_not_fit", f"{said}; without --normals the scene is taken")
        return {
            width: Views(jpegs, np.array(self.intrinsics[width], np.float32), self.hw[width], dict(self.layers[width]))
            for width, jpegs in self.jpegs.items()
        }

    def facts(self) -> dict[str, Any]:
        """original_hw: distinct input sizes. coverage: mean, if pictures have alpha. undistorted_zoom: focal length factors."""
        facts: dict[str, Any] = {"original_hw": [list(hw) for hw in sorted(self.sizes)][:8]}
        if self.transparent:
            facts["coverage"] = round(float(np.mean([view.coverage for view in self.stats])), 4)
        if self.zooms:
            facts["undistorted_zoom"] = sorted(self.zooms)[:8]
        return facts


def _encoded(name: str, values: np.ndarray, alpha: np.ndarray, hw: tuple[int, int]) -> bytes:
    """File of a column's values (H, W, ...) at size hw, as the renderer writes it: nearest pixels, of albedo means."""
    if name != "albedo":
        return images.resize_nearest(values, hw).astype("<f4").tobytes()
    weighted = np.concatenate([images.linear(values) * alpha, alpha], -1)
    return images.encode_png(images.srgb8(images.of_surfaces(images.resize_area(weighted, hw))))


def centre(hw: tuple[int, ...], shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, left), (height, width) of the largest centre crop of hw with the aspect ratio of `shape`, at whole pixels."""
    height = min(hw[0], round(hw[1] * shape[0] / shape[1]))
    width = min(hw[1], round(hw[0] * shape[1] / shape[0]))
    return ((hw[0] - height) // 2, (hw[1] - width) // 2), (height, width)


def crop_square(pixels: np.ndarray, fxfycxcy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre crop of (H, W, C) to (S, S, C), S = min(H, W), at whole pixels, and the matching fxfycxcy (4,)."""
    (top, left), (side, _) = centre(pixels.shape[:2], (1, 1))
    return pixels[top : top + side, left : left + side], np.asarray(fxfycxcy) - [0, 0, left, top]


def undistortion(hw: tuple[int, ...], fxfycxcy: np.ndarray, lens: Lens) -> _Undistorted:
    """Maps from a picture of size hw through a lens to a pinhole's picture of equal size and principal point.

    The focal lengths are scaled by the least factor at which every pixel's light comes from inside the old picture.
    Raises Skip("bad_distortion") if the model folds over itself or no factor within ZOOMS suffices.
    """
    low, high = ZOOMS[lens.bend]
    what = f"{lens.bend} {np.round(lens.numbers, 4).tolist()}"
    if not _covered(high, hw, fxfycxcy, lens):
        raise Skip("bad_distortion", f"no part of the picture is undistorted by {what}")
    if _covered(low, hw, fxfycxcy, lens):
        if lens.bend == "none":
            raise Skip("bad_distortion", f"{what} would make the picture {1 / low:.0f} times as wide")
        high = low
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if _covered(middle, hw, fxfycxcy, lens) else (middle, high)
    fx, fy, cx, cy = fxfycxcy
    new = np.array([fx * high, fy * high, cx, cy])
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    there = lens.distort(np.stack([(x - cx) / new[0], (y - cy) / new[1]], -1))
    map_x, map_y = fx * there[..., 0] + cx - 0.5, fy * there[..., 1] + cy - 0.5  # OpenCV: first pixel centre at 0
    return _Undistorted(map_x.astype(np.float32), map_y.astype(np.float32), new)


def _covered(zoom: float, hw: tuple[int, ...], fxfycxcy: np.ndarray, lens: Lens) -> bool:
    """True if at this zoom every pixel's light comes from inside the old picture, and the map folds nowhere."""
    fx, fy, cx, cy = fxfycxcy
    height, width = hw
    y, x = np.meshgrid(np.linspace(0.5, height - 0.5, GRID), np.linspace(0.5, width - 0.5, GRID), indexing="ij")
    there = lens.distort(np.stack([(x - cx) / (zoom * fx), (y - cy) / (zoom * fy)], -1))
    u, v = fx * there[..., 0] + cx, fy * there[..., 1] + cy
    if not (
        np.isfinite(there).all()
        and min(u.min() - 0.5, v.min() - 0.5, width - 0.5 - u.max(), height - 0.5 - v.max()) >= 0
    ):
        return False
    if lens.crop and np.hypot(u - width / 2, v - height / 2).max() > lens.crop * width:
        return False
    along_x, along_y = np.diff(there[:-1], axis=1), np.diff(there[:, :-1], axis=0)
    turned = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    return bool((turned > 0).all())
