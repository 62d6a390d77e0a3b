"""torch's files without torch: against what the real torch.save writes, and against files made to run something."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import Skip
from pipeline.formats import pickles
from tests.conftest import put_anew

FORMATS = {"zip": True, "legacy": False}


def clip() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "url": "https://www.youtube.com/watch?v=ä",
        "timestamps": torch.arange(5) * 33366,
        "cameras": torch.rand((5, 18), generator=generator),
        "images": [torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator) for size in (1, 30_000, 0)],
        "key": "5aca87f95a9412c6",
    }


def saved(path: Path, value: Any, kind: str = "zip") -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=FORMATS[kind])
    return path


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, np.ndarray)
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_array_equal(ours, theirs.numpy())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("kind", FORMATS)
def test_chunks_read_as_torch_reads_them(tmp_path: Path, kind: str) -> None:
    chunk = [clip(), clip()]
    assert_same(pickles.read(saved(tmp_path / "000000.torch", chunk, kind)), chunk)


@pytest.mark.parametrize("kind", FORMATS)
def test_all_kinds_of_tensors(tmp_path: Path, kind: str) -> None:
    base = torch.arange(24).reshape(2, 3, 4)
    value = OrderedDict(
        transposed=base.permute(2, 0, 1),
        part=base[1, :, ::2],
        shared=(base, base[0]),
        scalar=torch.tensor(2.5, dtype=torch.float64),
        empty=torch.empty(0, 3),
        kinds=[torch.ones(3, dtype=kind) for kind in (torch.int8, torch.int16, torch.int32, torch.float16, torch.bool)],
        rest=(1, 2.5, None, True, "text", [b"bytes"], {"a": 1}),
    )
    ours = pickles.read(saved(tmp_path / "x.torch", value, kind))
    assert_same(ours, dict(value))


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_are_views_of_the_file(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "x.torch", [torch.zeros(1_000_000, dtype=torch.uint8)], kind)
    (array,) = pickles.read(path)
    assert not array.flags.owndata and not array.flags.writeable
    path.unlink()
    assert array.sum() == 0  # the file stays mapped


def test_a_compressed_file(tmp_path: Path) -> None:
    whole = saved(tmp_path / "x.torch", [clip()])
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "y.torch", "w", zipfile.ZIP_DEFLATED) as sink:
        for info in source.infolist():
            sink.writestr(info.filename, source.read(info))
    assert_same(pickles.read(tmp_path / "y.torch"), [clip()])


# ---- harm


class Harm:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def harmful(canary: Path) -> list[Any]:
    return [
        Harm(os.system, f"touch {canary}"),
        Harm(eval, f"open({str(canary)!r}, 'w')"),
        Harm(open, str(canary), "w"),
        Harm(getattr, "text", "upper"),
        [Harm(os.mkdir, str(canary))],
        {"key": Harm(exec, f"import os; os.mkdir({str(canary)!r})")},
    ]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("which", range(6))
def test_nothing_is_run(tmp_path: Path, kind: str, which: int) -> None:
    path = saved(tmp_path / "evil.torch", harmful(tmp_path / "canary")[which], kind)
    with pytest.raises(Skip) as end:
        pickles.read(path)
    assert end.value.reason == "unsafe_pickle"
    assert not (tmp_path / "canary").exists()


def in_zip(path: Path, text: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", text)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key[1:]}", data)
    return path


ALLOWED_CLASSES = ["torch._utils\n_rebuild_tensor_v2", "torch\nByteStorage", "collections\nOrderedDict"]


@pytest.mark.parametrize("name", ALLOWED_CLASSES)
@pytest.mark.parametrize("state", [{"__call__": 1}, {"_does": print}, {"dtype": "O"}, {"__class__": int}])
def test_what_is_allowed_cannot_be_bent(tmp_path: Path, name: str, state: dict[str, Any]) -> None:
    """The opcode BUILD sets attributes of whatever is on the stack."""
    plain = dict.fromkeys(state, 1)
    build = b"\x80\x02c" + name.encode() + b"\n" + b"N" + pickle.dumps(plain, 2)[2:-1] + b"\x86b."
    with pytest.raises(Skip):
        pickles.read(in_zip(tmp_path / "x.torch", build))
    assert_same(pickles.read(saved(tmp_path / "good.torch", [clip()])), [clip()])


def tensor(count: str, offset: str, size: str, stride: str) -> bytes:
    """A pickle of one tensor of bytes, by hand: what torch would never write."""
    text = (
        f"ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nByteStorage\nV0\nVcpu\nI{count}\ntQI{offset}\n({size}t({stride}t"
        "I00\nNt"
    )
    return text.encode() + b"R."


@pytest.mark.parametrize(
    ("count", "offset", "size", "stride"),
    [
        ("9", "0", "I9\n", "I1\n"),  # a storage of 8 bytes that claims 9
        ("-1", "0", "I1\n", "I1\n"),
        ("8", "0", "I9\n", "I1\n"),
        ("8", "1", "I8\n", "I1\n"),
        ("8", "-1", "I8\n", "I1\n"),
        ("8", "0", "I2\n", "I-4\n"),
        ("8", "0", "I2\n", "I8\n"),
        ("8", "0", "I-2\n", "I1\n"),
        ("8", "0", "I9223372036854775807\nI9223372036854775807\n", "I1\nI1\n"),
        ("8", "0", "I8\n", ""),
        ("99999999999999999999999", "0", "I8\n", "I1\n"),
    ],
)
def test_tensors_that_leave_their_storage(tmp_path: Path, count: str, offset: str, size: str, stride: str) -> None:
    good = pickles.read(in_zip(tmp_path / "good.torch", tensor("8", "0", "I8\n", "I1\n"), k0=b"12345678"))
    assert good.tobytes() == b"12345678"
    with pytest.raises(Skip) as end:
        pickles.read(in_zip(tmp_path / "x.torch", tensor(count, offset, size, stride), k0=b"12345678"))
    assert end.value.reason == "broken_torch_file"


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_off_or_damaged(tmp_path: Path, kind: str) -> None:
    whole = saved(tmp_path / "x.torch", [clip()], kind).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "y.torch"
    for length in [0, 1, 3, *range(4, len(whole), len(whole) // 40)]:
        put_anew(path, whole[:length])
        with pytest.raises(Skip):
            pickles.read(path)
    for at in [*range(0, min(len(whole), 1200), 3), *rng.integers(0, len(whole), 200)]:
        put_anew(path, whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
        try:
            pickles.read(path)
        except Skip as end:
            reason = end.reason
        else:
            continue
        assert reason in ("broken_torch_file", "unsafe_pickle")


def test_what_is_no_torch_file(tmp_path: Path) -> None:
    for data in (b"", b"<html>", pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(50)):
        (tmp_path / "x.torch").write_bytes(data)
        with pytest.raises(Skip, match="broken_torch_file"):
            pickles.read(tmp_path / "x.torch")
    with pytest.raises(Skip, match="missing"):
        pickles.read(tmp_path / "absent.torch")
