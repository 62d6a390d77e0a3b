"""Pictures that exist already -> a scene: pixels by brute force, intrinsics by geometry, and everything that must be refused."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.views import PosedConfig
from pipeline.core import cameras, images
from pipeline.core.errors import Skip
from pipeline.core.records import Item, Posed, Scene
from pipeline.worker import posed
from tests.importing import opencv

ITEM = Item("one", "zero123")
quick = settings(deadline=None, max_examples=60)


def cfg(**options: Any) -> PosedConfig:
    return PosedConfig(**options).resolved()


def saved(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int = 96, width: int = 128, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def poses(count: int) -> np.ndarray:
    return cameras.circle(count, 20.0, 2.0)


def views(*files: bytes, k: tuple[float, ...] = (120, 110, 64, 48), **more: Any) -> Posed:
    return Posed(list(files), poses(len(files)), np.tile(np.array(k, float), (len(files), 1)), **more)


def scene_of(made: Posed, **options: Any) -> Scene:
    return posed.to_scene(ITEM, made, cfg(**({"res": (64,)} | options)))


def pixels(scene: Scene, width: int, view: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(scene.by_width[width].jpegs[view]))).astype(int)


# ---- pixels


def brute(straight: np.ndarray, side: int, width: int) -> np.ndarray:
    """Centre crop, linear light, premultiplied, mean of blocks, over white: sRGB levels, not rounded."""
    top, left = (straight.shape[0] - side) // 2, (straight.shape[1] - side) // 2
    part = straight[top : top + side, left : left + side] / 255.0
    alpha = part[..., 3:] if part.shape[2] == 4 else np.ones_like(part[..., :1])
    light = np.where(part[..., :3] <= 0.04045, part[..., :3] / 12.92, ((part[..., :3] + 0.055) / 1.055) ** 2.4) * alpha
    block = side // width
    both = np.concatenate([light, alpha], -1).reshape(width, block, width, block, 4).mean((1, 3))
    rgb = both[..., :3] + 1 - both[..., 3:]
    return 255 * np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)


PLAIN = images.encode_jpeg(noise(64, 64), 80)
EXIF = Image.Exif()
EXIF[0x010E] = "taken at home"


def test_a_jpeg_that_nothing_changes_keeps_its_bytes() -> None:
    wide = images.encode_jpeg(noise(48, 64), 80)
    assert scene_of(views(PLAIN, k=(60, 60, 32, 32))).by_width[64].jpegs == [PLAIN]
    assert scene_of(views(wide, k=(60, 60, 32, 24)), crop="none").by_width[64].jpegs == [wide]
    both = scene_of(views(PLAIN, k=(60, 60, 32, 32)), res=(32, 64), quality=50).by_width
    assert both[64].jpegs == [PLAIN] and len(both[32].jpegs[0]) < len(PLAIN)


@pytest.mark.parametrize(
    "file",
    [
        saved(noise(64, 64), "JPEG", quality=90),
        saved(noise(64, 64), "JPEG", quality=90, subsampling=0, progressive=True),
        saved(noise(64, 64), "JPEG", quality=90, subsampling=0, exif=EXIF.tobytes()),
        saved(noise(64, 64), "JPEG", quality=90, subsampling=0, comment=b"taken at home"),
        saved(noise(64, 64), "JPEG", quality=90, subsampling=0, icc_profile=b"profile" * 40),
        saved(noise(64, 64)[..., 0], "JPEG", quality=90),
        PLAIN + b"more\xff\xd9",
        saved(noise(64, 64)),
    ],
    ids=["subsampled", "progressive", "exif", "comment", "profile", "grey", "tail", "png"],
)
def test_any_other_picture_is_encoded_anew(file: bytes) -> None:
    """Shards hold pictures without subsampling, and say nothing of where they were taken."""
    (stored,) = scene_of(views(file, k=(60, 60, 32, 32))).by_width[64].jpegs
    assert stored != file and images.is_plain_jpeg(stored) and b"home" not in stored and b"more" not in stored
    (bent,) = (
        scene_of(views(PLAIN, k=(60, 60, 32, 32), lenses=[cameras.Lens(radial=(0.01, 0.0, 0.0, 0.0))]))
        .by_width[64]
        .jpegs
    )
    assert bent != PLAIN


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_are_area_means_of_light_over(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        images, "encode_jpeg", lambda rgb, quality: images.encode_png(rgb)
    )  # what JPEG adds is not the question
    straight = noise(64, 96, channels)
    scene = scene_of(views(saved(straight)), res=(16, 32, 64))
    for width in (16, 32, 64):
        assert np.abs(pixels(scene, width) - brute(straight, 64, width)).max() < 0.55


def test_white_is_exact_where_nothing_is() -> None:
    straight = noise(128, 128, 4)  # whatever colour stands where alpha is 0
    straight[..., 3] = 0
    straight[48:80, 48:80] = [200, 30, 30, 255]
    scene = scene_of(views(saved(straight)), res=(32, 64), alpha=True)
    for width, at in ((32, 8), (64, 16)):
        rgb = pixels(scene, width)
        assert (rgb[:at] == 255).all() and (rgb[:, :at] == 255).all()
        alpha = np.asarray(Image.open(io.BytesIO(scene.by_width[width].layers["alpha"][0])))
        assert alpha.dtype == np.uint8
        assert (alpha[:at] == 0).all() and (alpha[width // 2] == 255).sum() == width // 4
    assert scene.meta["coverage"] == 0.0625


def test_without_transparency_there_is_no_alpha_and_coverage_is_not_claimed() -> None:
    """Of a scene with some transparency, pictures without any are covered wholly."""
    with pytest.raises(Skip, match="neither transparency nor a mask") as missing:
        scene_of(views(saved(noise())), alpha=True)
    assert missing.value.reason == "layer_missing"
    scene = scene_of(views(saved(noise())))
    assert "coverage" not in scene.meta and not scene.by_width[64].layers
    assert scene.meta["original_hw"] == [[96, 128]]
    mixed = scene_of(views(saved(noise()), saved(noise(channels=4))), alpha=True)
    assert (np.asarray(Image.open(io.BytesIO(mixed.by_width[64].layers["alpha"][0]))) == 255).all()


def test_columns_of_pictures_that_a_lens_bends_are_refused() -> None:
    bent = replace(
        views(saved(noise())), lenses=[opencv((0.1, *[0.0] * 7))], layer=lambda name, view: np.ones((96, 128))
    )
    with pytest.raises(Skip, match="undistort") as refused:
        scene_of(bent, depth=True)
    assert refused.value.reason == "unsupported_camera"


def webp(pixels: np.ndarray) -> bytes:
    return cv2.imencode(
        ".webp",
        pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., [2, 1, 0, 3]],
        [cv2.IMWRITE_WEBP_QUALITY, 101],
    )[1].tobytes()


def tiff(pixels: np.ndarray) -> bytes:
    order = [2, 1, 0, 3][: pixels.shape[2]] if pixels.ndim == 3 else None
    return cv2.imencode(".tiff", pixels[..., order] if order else pixels)[1].tobytes()


def avif(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="avif") as file:
        track = file.add_stream("libsvtav1", rate=1, options={"crf": "5"})
        track.height, track.width = pixels.shape[:2]
        track.pix_fmt = "yuv420p"
        file.mux([*track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")), *track.encode()])
    return stream.getvalue()


def test_tiff_and_avif() -> None:
    rgb, rgba = noise(66, 70), noise(66, 70, 4)
    grey = rgb[..., 0].copy()
    for data, right in [
        (tiff(rgb), rgb),
        (tiff(rgba), rgba),
        (tiff(grey), np.repeat(grey[..., None], 3, -1)),
        (tiff(rgb.astype(np.uint16) * 257), rgb),
        (tiff(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, -1)),
        (saved(rgb, "TIFF"), rgb),
    ]:
        assert images.size_of(data) == (66, 70)
        np.testing.assert_array_equal(images.decode_straight(data), right)
    flat = np.zeros((64, 96, 3), np.uint8)
    flat[:, :48], flat[:, 48:], flat[:20] = [200, 30, 30], [20, 90, 220], [40, 200, 60]
    data = avif(flat)
    assert images.size_of(data) == (64, 96)
    decoded = images.decode_straight(data).astype(int)
    for row, column in ((5, 5), (40, 20), (40, 80)):
        assert np.abs(decoded[row, column] - flat[row, column]).max() < 6
    broken = [data[:300], data[:60], data.replace(b"pixi", b"auxC"), data.replace(b"\0\0\0\x60", b"\0\0\0\x61")]
    broken += [tiff(rgb)[:500], tiff(rgb.astype(np.float32)), tiff(grey.astype(np.float32))]
    for bad in broken:
        with pytest.raises(OSError):
            images.decode_straight(bad)


def test_every_kind_of_picture() -> None:
    rgb, rgba = noise(40, 48), noise(40, 48, 4)
    grey = Image.fromarray(rgb).convert("L")
    for data, right in [
        (saved(rgb), rgb),
        (saved(rgba), rgba),
        (webp(rgb), rgb),
        (webp(rgba), rgba),
        (to_bytes(grey), np.asarray(grey.convert("RGB"))),
        (to_bytes(grey.convert("LA")), np.asarray(grey.convert("RGBA"))),
        (to_bytes(Image.fromarray(rgb).quantize(16)), np.asarray(Image.fromarray(rgb).quantize(16).convert("RGB"))),
        (to_bytes(Image.fromarray(rgb).convert("1")), np.asarray(Image.fromarray(rgb).convert("1").convert("RGB"))),
    ]:
        assert images.size_of(data) == (40, 48)
        decoded = images.decode_straight(data)
        if data[:4] == b"RIFF" and right.shape[2] == 4:  # it may drop what lies under alpha 0
            decoded, right = decoded[right[..., 3] > 0], right[right[..., 3] > 0]
        np.testing.assert_array_equal(decoded, right)
    cmyk = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(cmyk, "JPEG")
    assert images.decode_straight(cmyk.getvalue()).shape == (40, 48, 3)


def to_bytes(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_transparent_colours_of_a_palette_and_of_rgb() -> None:
    for image in (Image.fromarray(noise(40, 48)), Image.fromarray(noise(40, 48)).quantize(8)):
        stream = io.BytesIO()
        image.save(stream, "PNG", transparency=0 if image.mode == "P" else tuple(np.asarray(image)[0, 0].tolist()))
        decoded = images.decode_straight(stream.getvalue())
        assert decoded.shape == (40, 48, 4) and (decoded[..., 3] == 0).any() and (decoded[..., 3] == 255).any()


def test_grey_of_16_bits_is_the_grey_of_colours_of_16_bits() -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    colours = bytes(cv2.imencode(".png", np.repeat(grey[..., None], 3, -1))[1])
    decoded = images.decode_straight(to_bytes(Image.fromarray(grey)))
    np.testing.assert_array_equal(decoded, images.decode_straight(colours))
    assert decoded[0, 0, 0] == 0 and decoded[-1, -1, 0] == 255 and np.abs(decoded[..., 0] - grey / 257).max() < 1
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG", transparency=int(grey[3, 5]))
    alpha = images.decode_straight(stream.getvalue())[..., 3]
    assert np.argwhere(alpha == 0).tolist() == [[3, 5]]


def test_orientation_tags_are_ignored_as_everybody_who_computes_poses_does() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by 90 degrees
    assert images.decode_straight(saved(noise(40, 48), "JPEG", exif=tags)).shape == (40, 48, 3)


def test_pictures_that_are_none() -> None:
    huge = bytearray(saved(noise()))
    huge[16:24] = b"\0\0\xff\xff\0\0\xff\xff"  # of IHDR: 65535 x 65535 pixels
    good = saved(noise(), "JPEG")
    bad_webp = webp(noise())
    for data in [
        b"",
        b"<html>",
        good[: len(good) // 2],
        bytes(huge),
        b"GIF89a" + bytes(100),
        b"BM" + bytes(100),
    ]:
        with pytest.raises(OSError):
            images.decode_straight(data)
    for data in (bad_webp[:40], bad_webp[:20], bad_webp[:12] + b"XXXX" + bad_webp[16:]):
        with pytest.raises(OSError):
            images.decode_straight(data)
    with pytest.raises(Skip, match=r"broken_image: view 1"):
        scene_of(views(good, good[:100]))
    with pytest.raises(OSError, match="million"):
        images.decode_straight(good, max_pixels=1000)


def test_the_same_pictures_give_the_same_bytes() -> None:
    made = views(saved(noise(seed=1)), saved(noise(seed=2)))
    assert scene_of(made, res=(32, 64)).by_width[64].jpegs == scene_of(made, res=(64,)).by_width[64].jpegs


# ---- geometry


@quick
@given(
    st.integers(64, 300), st.integers(64, 300), st.sampled_from(["square", "none"]), st.sampled_from([(16,), (64, 33)])
)
def test_intrinsics_follow_crop_and_resizing(height: int, width: int, crop: str, res: tuple[int, ...]) -> None:
    """A point is where it was: its place in the old picture, through crop and scale, is its place by the new numbers."""
    k = (1.3 * width, 1.1 * width, 0.45 * width, 0.55 * height)
    scene = scene_of(views(saved(noise(height, width)), k=k), crop=crop, res=res)
    side = min(height, width)
    top, left = ((height - side) // 2, (width - side) // 2) if crop == "square" else (0, 0)
    whole = (side, side) if crop == "square" else (height, width)
    for out in res:
        stored = scene.by_width[out]
        assert stored.hw == (out, out) if crop == "square" else stored.hw == (round(height * out / width), out)
        x, y = 0.21, -0.13  # of a ray
        u, v = (k[0] * x + k[2] - left) * out / whole[1], (k[1] * y + k[3] - top) * stored.hw[0] / whole[0]
        fx, fy, cx, cy = stored.intrinsics[0].astype(float)
        assert (fx * x + cx, fy * y + cy) == pytest.approx((u, v), rel=1e-6, abs=1e-5)
        assert pixels(scene, out).shape == (*stored.hw, 3)


# ---- views


@quick
@given(st.integers(1, 400), st.integers(1, 400))
def test_views_are_spread_evenly(count: int, limit: int) -> None:
    chosen = cameras.spread(count, limit)
    assert len(chosen) == min(count, limit) and chosen[0] == 0 and chosen[-1] < count
    gaps = np.diff([*chosen, count])
    assert gaps.max() - gaps.min() <= 1 and gaps.min() >= 1
    assert [Fraction(int(i)) for i in chosen] == [Fraction(j * count // len(chosen)) for j in range(len(chosen))]
    np.testing.assert_array_equal(cameras.spread(count, None), np.arange(count))


def test_only_the_views_that_were_asked_for() -> None:
    made = views(*(saved(noise(seed=i)) for i in range(6)))
    scene, whole = scene_of(made, views=3), scene_of(made)
    assert scene.by_width[64].jpegs == [whole.by_width[64].jpegs[i] for i in (0, 2, 4)]
    np.testing.assert_array_equal(scene.c2w, whole.c2w[[0, 2, 4]])
    assert scene.c2w.dtype == scene.by_width[64].intrinsics.dtype == np.float32
    assert scene.meta["views_found"] == 6


def test_pictures_of_several_sizes() -> None:
    made = views(saved(noise(96, 128)), saved(noise(128, 96)), saved(noise(300, 200)))
    assert scene_of(made).by_width[64].hw == (64, 64)
    with pytest.raises(Skip, match="mixed_sizes"):
        scene_of(made, crop="none")
    assert scene_of(views(saved(noise(96, 128)), saved(noise(192, 256))), crop="none").by_width[64].hw == (48, 64)


def test_nothing_is_enlarged() -> None:
    assert scene_of(views(saved(noise(96, 128))), res=(96,)).by_width[96].hw == (96, 96)
    with pytest.raises(Skip, match=r"too_small.*96 pixels wide after the square crop.*97"):
        scene_of(views(saved(noise(96, 128))), res=(64, 97))
    with pytest.raises(Skip, match="too_small"):
        scene_of(views(saved(noise(96, 128))), res=(129,), crop="none")


# ---- what is refused


def spoilt(**changes: Any) -> Posed:
    return replace(views(saved(noise(seed=1)), saved(noise(seed=2))), **changes)


def skewed(matrix: np.ndarray) -> np.ndarray:
    c2w = poses(2)
    c2w[1, :3, :3] = c2w[1, :3, :3] @ matrix
    return c2w


def with_entry(row: int, column: int, value: float) -> np.ndarray:
    c2w = poses(2)
    c2w[1, row, column] = value
    return c2w


K = np.tile([120.0, 110, 64, 48], (2, 1))
REFUSED: dict[str, tuple[Posed, str]] = {
    "none": (Posed([], np.zeros((0, 4, 4)), np.zeros((0, 4))), "no_images"),
    "scaled": (spoilt(c2w=skewed(np.diag([1.01] * 3))), "bad_cameras"),
    "sheared": (spoilt(c2w=skewed(np.array([[1, 0.01, 0], [0, 1, 0], [0, 0, 1]]))), "bad_cameras"),
    "mirrored": (spoilt(c2w=skewed(np.diag([1.0, 1, -1]))), "bad_cameras"),
    "zero": (spoilt(c2w=np.zeros((2, 4, 4))), "bad_cameras"),
    "not finite": (spoilt(c2w=with_entry(0, 3, np.nan)), "bad_cameras"),
    "infinite": (spoilt(c2w=with_entry(0, 3, np.inf)), "bad_cameras"),
    "far away": (spoilt(c2w=with_entry(0, 3, 1e9)), "bad_cameras"),
    "last row": (spoilt(c2w=with_entry(3, 3, 2.0)), "bad_cameras"),
    "3x4": (spoilt(c2w=poses(2)[:, :3]), "bad_cameras"),
    "too few poses": (spoilt(c2w=poses(1)), "bad_cameras"),
    "too few intrinsics": (spoilt(fxfycxcy=K[:1]), "bad_cameras"),
    "negative focal": (spoilt(fxfycxcy=K * [-1, 1, 1, 1]), "bad_cameras"),
    "normalised": (spoilt(fxfycxcy=K / [128, 96, 128, 96]), "bad_cameras"),
    "endless focal": (spoilt(fxfycxcy=K * [1e4, 1, 1, 1]), "bad_cameras"),
    "no number": (spoilt(fxfycxcy=K * np.nan), "bad_cameras"),
    "principal point": (spoilt(fxfycxcy=K * [1, 1, 9, 1]), "bad_cameras"),
    "too few lenses": (spoilt(lenses=(cameras.PINHOLE,)), "bad_cameras"),
    "distortion nan": (spoilt(lenses=(cameras.PINHOLE, opencv([float("nan")] * 8))), "bad_distortion"),
    "white": (views(*[saved(np.full((96, 128, 3), 255, np.uint8))] * 3), "blank"),
    "black": (views(*[saved(np.zeros((96, 128, 3), np.uint8))] * 3), "black"),
    "empty": (views(*[saved(np.zeros((96, 128, 4), np.uint8))] * 3), "all_background"),
    "white on white": (views(*[saved(np.full((96, 128, 4), 255, np.uint8))] * 3), "blank"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    made, reason = REFUSED[case]
    with pytest.raises(Skip) as end:
        scene_of(made)
    assert end.value.reason == reason


def test_rotations_are_made_orthonormal() -> None:
    rough = spoilt(c2w=skewed(np.array([[1, 4e-4, 0], [0, 1, 2e-4], [0, 0, 1]])))
    rotation = scene_of(rough).c2w[:, :3, :3].astype(float)
    np.testing.assert_allclose(np.swapaxes(rotation, 1, 2) @ rotation, np.broadcast_to(np.eye(3), (2, 3, 3)), atol=2e-7)
    np.testing.assert_allclose(rotation, rough.c2w[:, :3, :3], atol=4e-4)
    exact = cameras.nearest_rigid(poses(5))
    np.testing.assert_allclose(exact, poses(5), atol=1e-15)
