"""Optimisers, schedule, void steps, the running average; and checkpoints that a crash cannot halve."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lvsm_train.config.schedule import Schedule, prolonged  # noqa: E402
from lvsm_train.config.train import ModelConfig, TrainConfig  # noqa: E402
from lvsm_train.models import lvsm  # noqa: E402
from lvsm_train.training.muon import Muon, batches, orthogonalized  # noqa: E402
from lvsm_train.training.optim import Average, OptimConfig, Optimizers  # noqa: E402
from lvsm_train.weights import checkpoint  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.storage.train_run import commits  # noqa: E402


class Blocks(nn.Module):
    """Named as the models name theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, 8, bias=False)
        self.mlp = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
        self.norm = nn.LayerNorm(8, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        for block in self.mlp:
            x = x + torch.tanh(block(self.norm(x)))
        return self.head(x)


def model(seed: int = 0) -> Blocks:
    torch.manual_seed(seed)
    return Blocks()


def backward(net: nn.Module, seed: int, scale: float = 1.0) -> float:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 6, generator=generator), torch.randn(16, 3, generator=generator)
    loss = scale * ((net(x) - y) ** 2).mean()
    loss.backward()
    return float(loss.detach())


def test_the_schedule_is_a_line_and_half_a_cosine() -> None:
    shares = [Schedule(20, 3, 0.0).share(step) for step in range(21)]
    assert shares[:4] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1]
    assert shares[20] == pytest.approx(0)
    for step in range(3, 20):  # as the published recipe's library has it
        assert shares[step] == pytest.approx(max(0.0, 0.5 * (1 + math.cos(math.pi * (step - 3) / 17))))
    assert Schedule(20, 3, 0.05).share(20) == pytest.approx(0.05)
    assert Schedule(10, 0, 0.0).share(0) == 1


def test_a_cooldown_is_a_line_from_a_constant() -> None:
    shares = [Schedule(20, 3, 0.1, cooldown=5).share(step) for step in range(22)]
    assert shares[:4] == [0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1] and set(shares[3:16]) == {1}
    assert shares[15:] == pytest.approx([1, 0.82, 0.64, 0.46, 0.28, 0.1, 0.1])


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 300), st.integers(0, 300), st.floats(0, 1))
def test_a_run_that_goes_on_keeps_its_past(steps: int, done: int, more: int, cooldown: int, final: float) -> None:
    """Whatever is asked for is refused, or changes no rate of the steps so far; a cooldown begins at the rate that it finds."""
    before = Schedule(steps, 10, final)
    done = min(done, steps)
    assume(not cooldown or 10 + cooldown <= more)  # as TrainConfig.resolved asks for
    cfg = TrainConfig(steps=more, optim=OptimConfig(warmup=10, final_lr=final, cooldown=cooldown))
    if (more < steps and not cooldown) or (cooldown and more - cooldown < done):
        with pytest.raises(UserError):
            prolonged(before, cfg, done)
        return
    now, said = prolonged(before, cfg, done)
    assert bool(said) == (now != before)
    if cooldown:
        assert now.falls_at >= done and now.share(more) == pytest.approx(min(final, now.stable))
        assert now.share(max(done, 10)) == pytest.approx(before.share(max(done, 10))) or done == more
    again, silent = prolonged(now, cfg, done)
    assert (again, silent) == (now, "")


def test_adamw_decays_matrices_and_no_norms() -> None:
    net = model()
    net.norm.weight.data.fill_(2.0)
    optimizers = Optimizers(net, OptimConfig(lr=0.1, weight_decay=0.5, warmup=0), steps=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0)
    for name, value in net.state_dict().items():
        expected = before[name] if "norm" in name else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(value, expected)


def test_muon_takes_the_matrices_of_the_blocks_alone() -> None:
    net = model()
    optimizers = Optimizers(net, OptimConfig(optimizer="muon"), steps=10)
    adamw, muon = optimizers.all
    assert isinstance(muon, Muon)
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {id(b.weight) for b in net.mlp}
    taken = [p for optimizer in optimizers.all for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, taken)) == sorted(map(id, net.parameters()))
    losses = [backward(net, 1)]
    for step in range(60):
        optimizers.step(step) if step else optimizers.zero_grad()
        losses.append(backward(net, 1))
    assert adamw.param_groups[0]["lr"] == muon.param_groups[0]["lr"]


def test_muon_goes_where_that_of_torch_goes() -> None:
    """Matrices of several shapes, in one batch per shape, against torch's, one by one in bfloat16; its state is read too."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 4), (4, 12), (8, 8), (12, 4), (8, 8)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    muon = Muon(ours, lr=0.02, weight_decay=0.1)
    for step in range(6):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        if step == 2:  # a weight that a step did not use stays
            ours[4].grad = theirs[4].grad = None
        muon.step()
        reference.step()
    for one, other, start in zip(ours, theirs, starts, strict=True):
        assert float((one - other).norm().detach()) < 0.02 * float((one - start).norm().detach())
        momenta = muon.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"]
        torch.testing.assert_close(*momenta)
    muon.load_state_dict(reference.state_dict())
    assert all(
        torch.equal(muon.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"])
        for one, other in zip(ours, theirs, strict=True)
    )


def test_orthogonalized_matrices_keep_their_singular_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """All singular values come near 1, of tall and of wide matrices; a batch holds what fits."""
    matrices = torch.randn(5, 24, 10, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    for some in (matrices, matrices.mT):
        result = orthogonalized(some)
        values = torch.linalg.svdvals(result)
        assert float(values.min()) > 0.6 and float(values.max()) < 1.3
        result = result if some is matrices else result.mT
        inner = u.mT @ result @ vh.mT  # diagonal, if vectors are kept
        assert float((inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-4
    weights = [nn.Parameter(matrix.clone()) for matrix in matrices]
    ways = []
    for entries in (1 << 26, 480, 1):
        monkeypatch.setattr("lvsm_train.training.muon.AT_ONCE", entries)
        ways.append([len(batch) for batch in batches(weights)])
    assert ways == [[5], [2, 2, 1], [1] * 5]


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"not a weight of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0)


def test_all_matrices_within_the_model_are_muons() -> None:
    """Those that make keys and values of the scene too; none between hidden states and pixels or slots."""
    cfg = ModelConfig(kind="unidirectional", dim=32, head_dim=16, layers=4, encoder_layers=2, init="width_aware")
    net = lvsm.build(cfg, 0)
    _, muon = Optimizers(net, OptimConfig(optimizer="muon"), steps=10).all
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    left = {name for name, p in net.named_parameters() if p.ndim == 2 and id(p) not in taken}
    assert left == {"image_tokens.linear.weight", "ray_tokens.linear.weight", "head.linear.weight"}


def test_a_state_of_other_groups_is_named() -> None:
    states = [Optimizers(model(), OptimConfig(optimizer=name), steps=10) for name in ("adamw", "muon")]  # type: ignore[arg-type]
    for one, other in (states, states[::-1]):
        with pytest.raises(UserError, match="shared the weights out in another way"):
            one.load_state_dict(other.state_dict())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(optimizer: str) -> None:
    net = model()
    optimizers = Optimizers(net, OptimConfig(optimizer=optimizer, lr=0.02, warmup=5), steps=200)  # type: ignore[arg-type]
    first = backward(net, 1)
    for step in range(200):
        optimizers.step(step)
        last = backward(net, 1)
    assert last < 0.6 * first


def test_a_step_with_too_large_a_norm_is_void_and_leaves_no_gradient() -> None:
    net = model()
    optimizers = Optimizers(net, OptimConfig(warmup=0), steps=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    backward(net, 1, scale=1e4)
    moved = optimizers.step(0)
    assert moved.void and moved.norm > 5
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    backward(net, 1)
    assert not optimizers.step(1).void


def test_a_gradient_that_is_no_number_counts_as_none() -> None:
    net = model()
    optimizers = Optimizers(net, OptimConfig(warmup=0), steps=10)
    backward(net, 1)
    net.head.weight.grad[0, 0] = float("nan")
    net.tokens.weight.grad[0, 0] = float("inf")
    assert not optimizers.step(0).void
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_the_average_follows_the_weights() -> None:
    net = model()
    average = Average(net, 0.9)
    for step in range(400):
        for parameter in net.parameters():
            parameter.data.fill_(float(step >= 100))
        average.update(net)
    assert all((value - 1).abs().max() < 1e-4 for value in average.weights.values())
    again = Average(model(3), 0.9)
    again.load_state_dict(average.state_dict())
    assert again.updates == 400
    assert all(torch.equal(value, average.weights[name]) for name, value in again.weights.items())


def test_state_goes_through_a_checkpoint_bit_by_bit(tmp_path: Path) -> None:
    nets = [model(), model()]
    all_optimizers = [Optimizers(net, OptimConfig(optimizer="muon", warmup=2), steps=20) for net in nets]
    for step in range(8):
        backward(nets[0], step)
        all_optimizers[0].step(step)
        if step == 3:
            state = {"model": nets[0].state_dict(), "optimizers": all_optimizers[0].state_dict()}
            checkpoint.save(tmp_path, 4, state, {"psnr": 1.0}, keep=2)
    state, facts = checkpoint.load(tmp_path)  # type: ignore[misc]
    assert facts == {"step": 4, "psnr": 1.0}
    nets[1].load_state_dict(state["model"])
    all_optimizers[1].load_state_dict(state["optimizers"])
    for step in range(4, 8):
        backward(nets[1], step)
        all_optimizers[1].step(step)
    for name, value in nets[0].state_dict().items():
        assert torch.equal(value, nets[1].state_dict()[name]), name


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)}, {"best": 20}, keep=1)
    assert commits(tmp_path) == [20, 40]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    state, _ = checkpoint.load(tmp_path, 20)  # type: ignore[misc]
    assert state["x"] == 20
    with pytest.raises(UserError, match="no checkpoint of step 30; it has 20, 40"):
        checkpoint.load(tmp_path, 30)
    assert checkpoint.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("part", ["pt", "json"])
def test_before_a_checkpoint_that_is_cut_the_one_before_is_used(tmp_path: Path, capfd: Any, part: str) -> None:
    for step in (5, 10):
        path = checkpoint.save(tmp_path, step, {"x": torch.full((1000,), step)}, {}, keep=2).with_suffix(f".{part}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    state, facts = checkpoint.load(tmp_path)  # type: ignore[misc]
    assert facts["step"] == 5 and state["x"][0] == 5
    said = capfd.readouterr().err
    assert "step-00000010.pt cannot be read" in said and "the one before is used, of step 5" in said
    with pytest.raises(UserError, match=r"step-00000010\.pt cannot be read"):
        checkpoint.load(tmp_path, 10)


def test_a_checkpoint_that_is_cut_is_named(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 5, {"x": torch.zeros(1000)}, {}, keep=1)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"step-00000005\.pt cannot be read"):
        checkpoint.load(tmp_path)


WRITER = """
import sys, torch
from pathlib import Path
from lvsm_train.weights import checkpoint
for step in range(1, 10**6):
    checkpoint.save(Path(sys.argv[1]), step, {"x": torch.full((200_000,), float(step))}, {"best": None}, keep=2)
"""


def test_kill_9_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        before = len(commits(tmp_path))
        while time.monotonic() < deadline and (commits(tmp_path)[-1:] or [0])[0] < 3:
            time.sleep(0.01)
        time.sleep(0.017 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state, facts = checkpoint.load(tmp_path)  # type: ignore[misc]
        assert (state["x"] == facts["step"]).all() and before >= 0
        for path in (tmp_path / "checkpoints").iterdir():
            path.unlink()
