"""The training loss against tensors of the official one, against a network written out in torch.nn, and as a term of training."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from lvsm_train.losses import vgg  # noqa: E402
from lvsm_train.losses.loss import TAPS, Loss, LossConfig, Perceptual  # noqa: E402
from lvsm_train.losses.vgg import CAFFE, TORCHVISION, Weights  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from tests.lvsm_train.losses.test_metrics import real_archive, waves  # noqa: E402

PARITY = Path(__file__).parents[4] / "shared" / "parity" / "perceptual_and_poses.pt"


@cache
def random_convs() -> vgg.Convs:
    """Random weights for VGG-19, as the parity file says that it made them."""
    rng, found = np.random.RandomState(0), []
    for layer in vgg.LAYERS["vgg19"]:
        out, into = layer.shape[:2]
        kernel = rng.standard_normal(layer.shape) * np.sqrt(2 / (9 * into))
        bias = rng.standard_normal(out) * 5
        found.append((torch.from_numpy(kernel.astype(np.float32)), torch.from_numpy(bias.astype(np.float32))))
    return found


@pytest.fixture
def convs() -> vgg.Convs:
    return random_convs()


def images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 3, size, size, generator=generator)


# Against others


@pytest.mark.skipif(not PARITY.exists(), reason="the parity file is not on this machine")
def test_parity(convs: vgg.Convs) -> None:
    fixture = torch.load(PARITY, weights_only=True)
    loss = Perceptual(Weights("vgg19", convs, CAFFE, "random"))
    render = fixture["img_a"].requires_grad_()
    value = loss(render, fixture["img_b"])
    value.backward()
    assert value.item() == pytest.approx(fixture["perceptual"], rel=1e-5)
    off = [((a - b).norm() / b.norm()).item() for a, b in zip(render.grad, fixture["grad_a"], strict=True)]
    assert off[0] < 1e-5
    assert off[1] < 1e-2  # one ReLU's input is 2e-5, less than what float32 leaves: whether it passes is chance
    features = loss.features(fixture["img_b"])
    assert [tuple(f.shape) for f in features] == fixture["feat_shapes"]
    assert [f.abs().mean().item() for f in features] == pytest.approx(fixture["feat_abs_mean"], rel=1e-5)


def written_out(convs: vgg.Convs) -> nn.Sequential:
    """VGG-19's first 32 layers, with average pooling, in torchvision's order."""
    layers: list[nn.Module] = []
    for count, width in ((2, 64), (2, 128), (4, 256), (4, 512), (2, 512)):
        for _ in range(count):
            kernel, bias = convs[sum(isinstance(layer, nn.Conv2d) for layer in layers)]
            conv = nn.Conv2d(kernel.shape[1], width, 3, padding=1)
            conv.weight.data, conv.bias.data = kernel, bias  # type: ignore[union-attr]
            layers += [conv, nn.ReLU()]
        layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("preprocessing", [CAFFE, TORCHVISION])
def test_a_network_written_out_says_the_same(convs: vgg.Convs, preprocessing: vgg.Preprocessing) -> None:
    net = written_out(convs)
    render, target = images()
    x = torch.cat([render, target])
    if preprocessing is CAFFE:
        x = 255 * x - torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)
    else:
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = (x[:2] - x[2:]).abs().mean()
    ends, divisors = (4, 9, 14, 23, 32), (2.6, 4.8, 3.7, 5.6, 1.5 / 10)
    with torch.no_grad():
        for start, end, divisor in zip((0, *ends), ends, divisors, strict=False):
            x = net[start:end](x)
            expected += (x[:2] - x[2:]).abs().mean() / divisor
    expected = expected / 255 if preprocessing is CAFFE else expected * 0.226
    found = Perceptual(Weights("vgg19", convs, preprocessing, "random"))(render, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_real_features_grow_with_damage() -> None:
    """VGG-16 for real: its terms weigh about as much as the pixels', as the divisors mean them to."""
    loss = Loss(LossConfig(mse=0, perceptual=1, vgg=real_archive(), lpips=1, lpips_weights=real_archive()))
    assert [line.split(",")[0].split(":")[0] for line in loss.says()] == ["perceptual loss", "LPIPS v0.1"]
    target = waves(32)
    blurred = [torch.nn.functional.avg_pool2d(target, k, 1, k // 2) for k in (1, 3, 7)]
    found = [loss(image, target, 0)[1] for image in blurred]
    for name in ("perceptual", "lpips"):
        assert found[0][name] == pytest.approx(0, abs=1e-6) and found[0][name] < found[1][name] < found[2][name]
    pixels = (blurred[2] - target).abs().mean()
    assert 3 * pixels < found[2]["perceptual"] < 30 * pixels


# The loss


def test_terms_weights_and_delay(convs: vgg.Convs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", convs, CAFFE, "random"))
    loss = Loss(LossConfig(mse=2, l1=3, perceptual=0.5, ssim=0.25, perceptual_from=10))
    render, target = images()
    total, terms = loss(render, target, 9)
    assert set(terms) == {"mse", "l1"}
    torch.testing.assert_close(terms["mse"], ((render - target) ** 2).mean())
    torch.testing.assert_close(total, 2 * terms["mse"] + 3 * (render - target).abs().mean())
    total, terms = loss(render, target, 10)
    assert set(terms) == {"mse", "l1", "perceptual", "ssim"}
    expected = 2 * terms["mse"] + 3 * terms["l1"] + 0.5 * terms["perceptual"] + 0.25 * terms["ssim"]
    torch.testing.assert_close(total, expected)
    assert 0 < terms["ssim"] < 2
    alone = Loss(LossConfig(mse=0, perceptual=1))
    torch.testing.assert_close(alone(render, target, 0)[0], terms["perceptual"])


def test_nothing_is_learned_or_stored_and_only_the_render_has_a_gradient(
    convs: vgg.Convs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", convs, CAFFE, "random"))
    loss = Loss(LossConfig())
    model = nn.Module()
    model.loss = loss
    model.train()
    assert not model.state_dict() and not list(model.parameters())
    assert len(list(loss.buffers())) == 2 * 14 + 2  # and `.to` moves these: nothing behind conv5_2 is kept
    assert {buffer.device.type for buffer in loss.to("meta").buffers()} == {"meta"}
    loss = Loss(LossConfig())
    render, target = (image.requires_grad_() for image in images(16))
    total, terms = loss(render, target, 0)
    total.backward()
    assert render.grad is not None and target.grad is None
    assert total.requires_grad and not any(term.requires_grad for term in terms.values())
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in loss.buffers())


def test_autocast_changes_nothing_and_bf16_little(convs: vgg.Convs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", convs, CAFFE, "random"))
    loss = Loss(LossConfig(ssim=1))
    render, target = images()
    exact, terms = loss(render, target, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(render, target, 0)[0] == exact
    half, rounded = Loss(LossConfig(ssim=1, vgg_bf16=True))(render, target, 0)
    assert half.dtype == torch.float32 and rounded["mse"] == terms["mse"] and rounded["ssim"] == terms["ssim"]
    torch.testing.assert_close(rounded["perceptual"], terms["perceptual"], rtol=0.01, atol=0)
    assert rounded["perceptual"] != terms["perceptual"]


def test_networks_are_rough_on_gpus_unless_somebody_says_otherwise(
    convs: vgg.Convs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", convs, CAFFE, "random"))
    for on_gpu in (False, True):
        monkeypatch.setattr("lvsm_train.losses.loss.has_bfloat16", lambda device, on_gpu=on_gpu: on_gpu)
        for said in (None, False, True):
            loss = Loss(LossConfig(vgg_bf16=said))
            assert loss.perceptual is not None
            rough = on_gpu if said is None else said
            assert (loss.perceptual.features.dtype == torch.bfloat16) is rough
            assert loss.says()[0].endswith("bfloat16") is rough


def test_operations_are_those_that_pytorch_counts(convs: vgg.Convs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "load", lambda *_: Weights("vgg19", convs, CAFFE, "random"))
    loss = Loss(LossConfig(perceptual_from=5))
    render, target = torch.rand(2, 3, 40, 24, requires_grad=True), torch.rand(2, 3, 40, 24)
    with FlopCounterMode(display=False) as counted:
        loss(render, target, 5)[0].backward()
    assert counted.get_total_flops() == loss.flops(2, (40, 24), 5) and loss.flops(2, (40, 24), 4) == 0
    assert Loss(LossConfig()).flops(512, (64, 64), 0) == pytest.approx(4.66e12, rel=0.01)  # of thesis64


def test_without_networks_no_weights_are_looked_for(tmp_path: Path) -> None:
    loss = Loss(LossConfig(perceptual=0, ssim=1), tmp_path)
    assert loss.says() == [] and not list(tmp_path.iterdir())
    assert set(loss(*images(), 0)[1]) == {"mse", "ssim"}


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (LossConfig(l1=-1), "--l1 -1"),
        (LossConfig(perceptual=float("nan")), "--perceptual nan"),
        (LossConfig(mse=0, perceptual=0), "0 at its first step"),
        (LossConfig(mse=0, perceptual_from=1), "0 at its first step"),
        (LossConfig(perceptual_from=-1), "is negative"),
        (LossConfig(vgg=Path("nowhere.mat")), "nowhere.mat is no file"),
    ],
)
def test_senseless_settings(cfg: LossConfig, says: str) -> None:
    with pytest.raises(UserError, match=says) as failure:
        Loss(cfg)
    assert failure.value.hint


def test_images_of_other_shapes(convs: vgg.Convs) -> None:
    loss = Loss(LossConfig(perceptual=0))
    with pytest.raises(ValueError, match=r"must be \(N, 3, H, W\)"):
        loss(torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), 0)
    with pytest.raises(ValueError, match="needs 16"):
        Perceptual(Weights("vgg19", convs, CAFFE, "random"))(*images(15))


def test_all_features_have_a_name() -> None:
    assert all(tap in vgg.layer_names(net) for tap in TAPS for net in ("vgg16", "vgg19"))
    assert [vgg.layer_names("vgg19").index(tap) for tap in TAPS] == [1, 3, 5, 9, 13]
