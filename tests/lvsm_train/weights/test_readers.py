"""Weights from untrusted files, well-formed, truncated and hostile; and from caches, servers and the Hub."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

torch = pytest.importorskip("torch")

import pipeline.download.fetch  # noqa: E402
from lvsm_train.losses import vgg  # noqa: E402
from lvsm_train.losses.loss import Loss, LossConfig  # noqa: E402
from lvsm_train.losses.vgg import CAFFE, TORCHVISION, Weights  # noqa: E402
from lvsm_train.weights import readers  # noqa: E402
from pipeline.core.errors import UserError  # noqa: E402
from pipeline.download.fetch import sha256_of  # noqa: E402
from tests.lvsm_train.losses.test_loss import random_convs  # noqa: E402

STANDS = [
    int(place) for place in "0 2 5 7 10 12 14 16 19 21 23 25 28 30 32 34".split()
]  # convolutions in torchvision's VGG-19


@pytest.fixture
def convs() -> vgg.Convs:
    return random_convs()


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, torch.Tensor]:
    """State dict with torchvision's names and a part of a classifier."""
    found: OrderedDict[str, torch.Tensor] = OrderedDict()
    for index, (kernel, bias) in zip(STANDS, random_convs(), strict=True):
        found |= {f"features.{index}.weight": kernel, f"features.{index}.bias": bias}
    return found | {"classifier.6.bias": torch.zeros(1000)}


def element(kind: int, data: bytes) -> bytes:
    """Element of a MATLAB 5 file."""
    if len(data) <= 4 and kind != 14:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(value: Any, name: str = "") -> bytes:
    def array(content: int, shape: tuple[int, ...], rest: bytes) -> bytes:
        dims = element(5, np.array(shape, "<i4").tobytes())
        return element(14, element(6, struct.pack("<II", content, 0)) + dims + element(1, name.encode()) + rest)

    if isinstance(value, dict):
        names = b"".join(key.encode().ljust(32, b"\0") for key in value)
        fields = b"".join(matrix(field) for field in value.values())
        return array(2, (1, 1), element(5, struct.pack("<i", 32)) + element(1, names) + fields)
    if isinstance(value, list):
        return array(1, (1, len(value)), b"".join(matrix(entry) for entry in value))
    if isinstance(value, str):
        return array(4, (1, len(value)), element(17, value.encode("utf-16-le")))
    if value is None:  # something of another program: an opaque object
        return element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"") + element(1, b"MCOS"))
    kind, content = {"f4": (7, 7), "f8": (9, 6), "u1": (2, 9)}[value.dtype.str[1:]]
    return array(content, value.shape, element(kind, value.tobytes(order="F")))


def mat_file(path: Path, variables: dict[str, Any], compressed: bool) -> Path:
    parts = [b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"]
    for name, value in variables.items():
        part = matrix(value, name)
        if compressed:
            part = struct.pack("<II", 15, len(part := zlib.compress(part, 0))) + part
        parts.append(part)
    path.write_bytes(b"".join(parts))
    return path


def matconvnet(convs: vgg.Convs, old: bool, mean: tuple[float, ...] = CAFFE.mean) -> dict[str, Any]:
    """Content of MatConvNet's file; older releases order fields differently, and have a mean per pixel."""
    layers: list[Any] = []
    for name, (kernel, bias) in zip(vgg.layer_names("vgg19"), convs, strict=True):
        weights = [kernel.permute(2, 3, 1, 0).numpy(), bias[None].numpy() if old else bias[:, None].numpy()]
        fields = {
            "name": name,
            "type": "conv",
            "weights": weights,
            "pad": np.ones((1, 4)),
            "precious": np.zeros((1, 1), "u1"),
        }
        layers += [dict(reversed(fields.items())) if old else fields, {"type": "relu", "name": f"relu{name[4:]}"}]
    layers.append({"name": "prob", "type": "softmax", "precious": None, "weights": []})
    average = np.broadcast_to(np.array(mean, "f4"), (5, 5, 3)) if old else np.array(mean, "f4").reshape(1, 1, 3)
    normalization = {"imageSize": np.array([[224.0, 224, 3]]), "averageImage": average, "interpolation": "bicubic"}
    return (
        {"normalization": normalization, "layers": layers}
        if old
        else {"layers": layers, "meta": {"normalization": normalization}}
    )


def assert_same(found: Weights, convs: vgg.Convs) -> None:
    assert found.net == "vgg19" and len(found.convs) == 16
    for ours, theirs in zip(found.convs, convs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("old", [False, True])
def test_matconvnets_file(convs: vgg.Convs, tmp_path: Path, old: bool) -> None:
    path = mat_file(tmp_path / "any name.mat", matconvnet(convs, old), compressed=not old)
    found = vgg.load(path)
    assert_same(found, convs)
    assert found.preprocessing is CAFFE
    assert f"sha256 {sha256_of(path)}" in found.says


def test_what_else_a_mat_file_can_hold(tmp_path: Path) -> None:
    held = {
        "text": "Plücker",
        "none": [],
        "number": np.array([[2.5]]),
        "deep": [{"a": [np.eye(3)], "b": None}, "x"],
        "e": "",
    }
    for compressed in (False, True):
        found = readers.read_mat(mat_file(tmp_path / "a.mat", held, compressed))
        assert found["text"] == "Plücker" and found["none"] == [] and found["e"] == "" and found["number"] == 2.5
        np.testing.assert_array_equal(found["deep"][0]["a"][0], np.eye(3))
        assert found["deep"][0]["b"] is None and found["deep"][1] == "x"


def test_mat_files_that_are_refused(convs: vgg.Convs, tmp_path: Path) -> None:
    few = [(kernel[:1, :1], bias[:1]) for kernel, bias in convs]
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "swapped": (matconvnet(few, False, CAFFE.mean[::-1]), "does not take off the mean"),
        "no mean": ({"layers": [], "meta": {}}, "does not take off the mean"),
        "shapes": (matconvnet(few, False), r"conv1_1 of vgg19 .* has shape \(1, 1, 3, 3\)"),
        "another": (matconvnet(few, False) | {"layers": [{"name": "fc6", "weights": []}]}, "no weights named conv1_1"),
    }
    for name, (variables, says) in cases.items():
        with pytest.raises(UserError, match=says):
            vgg.load(mat_file(tmp_path / f"{name}.mat", variables, compressed=True))


def test_damaged_mat_files(tmp_path: Path) -> None:
    for compressed in (False, True):
        path = mat_file(tmp_path / "whole.mat", {"a": {"b": np.eye(40)}}, compressed)
        whole = path.read_bytes()
        for size in (0, 100, 130, 140, 200, 400, len(whole) - 8):
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match="cannot be read"):
                readers.read_mat(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    with pytest.raises(UserError, match="-v7"):
        vgg.load(path)
    huge = element(5, np.array([1, 1 << 30], "<i4").tobytes())
    path.write_bytes(whole[:128] + element(14, element(6, struct.pack("<II", 1, 0)) + huge + element(1, b"a")))
    with pytest.raises(UserError, match="impossible shape"):
        readers.read_mat(path)


def safetensors_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [at, at := at + 4 * tensor.numel()],
        }
    text = json.dumps(header).encode()
    body = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_torchvisions_files(
    state: OrderedDict[str, torch.Tensor],
    convs: vgg.Convs,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "any name"
    if form == "safetensors":
        safetensors_file(path, state)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="nothing says which preprocessing"):
        vgg.load(path)  # Caffe's weights exist in this form as well
    name = "timm" if form == "safetensors" else "torchvision"
    monkeypatch.setitem(vgg.SOURCES, name, replace(vgg.SOURCES[name], sha256=sha256_of(path)))
    found = vgg.load(path)
    assert_same(found, convs)
    assert found.preprocessing is TORCHVISION


def test_a_file_of_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vgg11.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, path)
    monkeypatch.setitem(vgg.SOURCES, "torchvision", replace(vgg.SOURCES["torchvision"], sha256=sha256_of(path)))
    with pytest.raises(UserError, match=r"lacks features\.2\.weight"):
        vgg.load(path)


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_and_damaged_files_run_nothing(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "it"
    torch.save({"features.0.weight": Hostile()}, path, _use_new_zipfile_serialization=zipped)
    for read in (readers.read_torch, readers.read_safetensors, readers.read_mat):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)
    torch.save([1, 2], path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="cannot be read"):
        readers.read_torch(path)
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [300], "data_offsets": [0, 1200]},
        {"dtype": "F32", "shape": [2]},
        [],
    ],
)
def test_safetensors_that_lie(entry: Any, tmp_path: Path) -> None:
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "it").write_bytes(struct.pack("<Q", len(text)) + text + bytes(100))
    with pytest.raises(UserError, match="cannot be read"):
        readers.read_safetensors(tmp_path / "it")


@pytest.mark.parametrize("value", [Hostile(), {"a": Hostile()}, {"a": np.array([Hostile()], dtype=object)}])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.mkdir"):
        readers.read_pickled_arrays(pickle.dumps(value), "it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [[1], {"a": "text"}, {"a": np.zeros(2)}, {"a": {"b": np.zeros(1, object)}}])
def test_a_pickle_of_something_else_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="no array of float32"):
        readers.read_pickled_arrays(pickle.dumps(value), "it")


def test_pickled_arrays_arrive() -> None:
    arrays = {"net": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "bias": np.ones(1, np.float32)}
    for protocol in (3, 4):
        found = readers.read_pickled_arrays(pickle.dumps(arrays, protocol), "it")
        assert set(found) == {"net/kernel", "bias"}
        np.testing.assert_array_equal(found["net/kernel"].numpy(), arrays["net"]["kernel"])  # type: ignore[call-overload]
    cut = pickle.dumps(arrays)[:-20]
    with pytest.raises(UserError, match="cannot be read"):
        readers.read_pickled_arrays(cut, "it")


# Where they come from


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """(address, served folder, requested paths) of a local HTTP server."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder, asked
        running.shutdown()
        thread.join()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the caches of this machine, and do not retry."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(pipeline.download.fetch, "TRIES", 1)


@pytest.mark.usefixtures("alone")
def test_fetched_once_then_found(
    server: tuple[str, Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, folder, asked = server
    (folder / "copy.mat").write_bytes(b"weights")
    (folder / "damaged.mat").write_bytes(b"weight5")
    urls = (f"{address}/nowhere.mat", f"{address}/damaged.mat", f"{address}/copy.mat")
    source = replace(vgg.SOURCES["matconvnet"], sha256=sha256_of(folder / "copy.mat"), urls=urls)
    monkeypatch.setitem(vgg.SOURCES, "matconvnet", source)
    kept = tmp_path / "cache" / "weights" / "imagenet-vgg-verydeep-19.mat"
    assert vgg.obtain("matconvnet", tmp_path / "cache") == kept
    assert kept.read_bytes() == b"weights"
    assert "fetching imagenet-vgg-verydeep-19.mat (535 MB)" in capsys.readouterr().err
    assert asked == ["/nowhere.mat", "/damaged.mat", "/copy.mat"]
    assert vgg.obtain("matconvnet", tmp_path / "cache") == kept and len(asked) == 3
    kept.write_bytes(b"weigh")
    vgg.obtain("matconvnet", tmp_path / "cache")  # damaged since: fetched anew
    assert kept.read_bytes() == b"weights"


@pytest.mark.usefixtures("alone")
def test_of_many_ranks_one_fetches(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, asked = server
    (folder / "a.mat").write_bytes(b"weights")
    source = replace(vgg.SOURCES["matconvnet"], sha256=sha256_of(folder / "a.mat"), urls=(f"{address}/a.mat",))
    monkeypatch.setitem(vgg.SOURCES, "matconvnet", source)
    with ThreadPoolExecutor(8) as ranks:
        assert len(set(ranks.map(vgg.obtain, ["matconvnet"] * 8, [tmp_path] * 8))) == 1
    assert asked == ["/a.mat"]


@pytest.mark.usefixtures("alone")
def test_the_hub_is_asked_for_one_revision(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, asked = server
    repo, name, revision = vgg.SOURCES["timm"].hub or ("", "", "")
    path = folder / repo / "resolve" / revision / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    monkeypatch.setitem(vgg.SOURCES, "timm", replace(vgg.SOURCES["timm"], sha256=sha256_of(path)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        vgg.obtain("timm", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask = partial(huggingface_hub.hf_hub_url, endpoint=address)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", ask)
    assert vgg.obtain("timm", tmp_path).read_bytes() == b"weights"
    assert asked == [f"/{repo}/resolve/{revision}/{name}"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("torchvision", "torch/hub/checkpoints/vgg19-dcbb9e9d.pth"),
        ("timm", "hf/models--timm--vgg19.tv_in1k/snapshots/{revision}/model.safetensors"),
    ],
)
def test_other_programs_caches_are_used(name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = (vgg.SOURCES[name].hub or ("", "", ""))[2]
    path = tmp_path / place.format(revision=revision)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    monkeypatch.setitem(vgg.SOURCES, name, replace(vgg.SOURCES[name], sha256=sha256_of(path)))
    assert vgg.obtain(name, tmp_path / "cache") == path


@pytest.mark.usefixtures("alone")
def test_offline_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = replace(vgg.SOURCES["matconvnet"], urls=("http://127.0.0.1:9/imagenet-vgg-verydeep-19.mat",))
    monkeypatch.setitem(vgg.SOURCES, "matconvnet", nobody)
    with pytest.raises(UserError, match=r"needs imagenet-vgg-verydeep-19\.mat") as failure:
        Loss(LossConfig(), tmp_path)
    assert str(tmp_path / "weights") in str(failure.value) and "connection" in str(failure.value)
    assert "--perceptual 0" in failure.value.hint and "--vgg FILE" in failure.value.hint
