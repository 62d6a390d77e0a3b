"""A run's shards as a Python collection: `pipeline.open(folder)[uid]`. Needs neither torch nor OpenCV."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.config.shared import address_of
from pipeline.core import images
from pipeline.core.errors import UserError
from pipeline.core.records import HELD_OUT, item_rng
from pipeline.storage.object_store import Store, unreachable
from pipeline.storage.object_table import objects_at_end, objects_in, uids_in
from pipeline.storage.shards import Rows, facts_in, find_shards, is_shard, layer_of, open_shard, rows_of

OPEN_FILES = 16  # shards that each thread keeps open: their footers take longer to read than an object does
OPEN_GROUPS = 4000  # objects in these: the place of each takes 10 kB
PARSED_AT_ONCE = 4  # shards of this machine whose footers are read at the same time
FOOTERS_AT_ONCE = 16  # shards of an object store whose footers are read at the same time
Read = TypeVar("Read")
HINT = "`lvsm-data verify` says what is broken"


@dataclass(frozen=True, repr=False)
class Object(Rows):
    """One object of a run: V posed views. Pictures are decoded when they are asked for."""

    def __repr__(self) -> str:
        height, width = self.hw
        more = "".join(f", {name}" for name in self.layers)
        return f"Object({self.uid!r}: {len(self.jpegs)} views of {width}x{height} pixels, {self.projection}{more})"

    @property
    def images(self) -> np.ndarray:
        """All views, (V, H, W, 3) uint8 sRGB."""
        return self.some_images(range(len(self.jpegs)))

    def some_images(self, views: Iterable[int]) -> np.ndarray:
        """Views of these numbers, N of them: (N, H, W, 3) uint8 sRGB."""
        return np.stack([images.decode(self.jpegs[view]) for view in views])

    @property
    def trains(self) -> np.ndarray:
        """(V,) bool: False for views that their set keeps for validation or tests."""
        return ~np.isin(self.roles or [""] * len(self.jpegs), HELD_OUT)

    @property
    def fxfycxcy(self) -> np.ndarray:
        """Intrinsics (V, 4) float32 in pixels of the pictures. Raises AttributeError for orthographic views (`sxsycxcy`)."""
        return self._intrinsics("perspective", "fxfycxcy", "sxsycxcy")

    @property
    def sxsycxcy(self) -> np.ndarray:
        """Scales and centres (V, 4) float32 of orthographic views, in pixels (per world unit). AttributeError for others."""
        return self._intrinsics("ortho", "sxsycxcy", "fxfycxcy")

    def _intrinsics(self, projection: str, name: str, other: str) -> np.ndarray:
        if self.projection != projection:
            raise AttributeError(f"{self.uid} has {other}, no {name}: its views are {self.projection}")
        return self.intrinsics

    def layer(self, name: str) -> np.ndarray:
        """A companion of all views: depth (V, H, W) and normals (V, H, W, 3) float32; albedo (V, H, W, 3), alpha, roughness and
        metallic (V, H, W) uint8. docs/shard_format.md has the units. Raises KeyError for one that the run does not have."""
        if name not in self.layers:
            raise KeyError(f"{self.uid} has no {name}; it has {', '.join(self.layers) or 'no layers'}")
        return layer_of(name, self.layers[name], self.hw)


class Dataset(Sequence[Object]):
    """Objects of a run, by number or uid, each read from its shard when it is asked for.

    Threads and processes may share it: each has its own open files, and none travel to another process. uids: in order of the
    shards. facts: of the run (settings, seed, conventions). width: of the pictures, in pixels.
    """

    def __init__(
        self,
        run: Path | str,
        res: int | None = None,
        split: str | None = None,
        check: bool = False,
        listed: bool = False,
    ) -> None:
        """Read the footers of all shards. run: a folder of a run or of one resolution, or an address.

        res: width of the pictures; may be left out where there is one alone. split: "train" or "val" for these objects alone.
        check: compare what is read with its checksums, which takes as long again where pictures are small.
        listed: keep what `objects` says for the first time that it is asked.
        Raises UserError: no shards, no such resolution, a shard that cannot be read.
        """
        if split not in (None, "train", "val"):
            raise UserError(f"there is no split {split!r}", "train, val, or None for both")
        path, self.check, self.split = Path(run), check, split
        self.address = address_of(path)
        self._store = Store(self.address) if self.address else None
        self.width, names = self._shards(path, res)
        self.shards = [name for name in names if split is None or name.rpartition("/")[2].startswith(split)]
        self._here = _Here()

        first = self._of_each(self._facts_of, self.shards[:1])
        self.facts = first[0] if first else {}
        self._listed = self._of_each(self._objects_of) if listed else None
        uids = [known["uid"] for known in self._listed] if self._listed else self._of_each(self._uids_of)
        self.uids = list(itertools.chain.from_iterable(uids))
        counts = [len(some) for some in uids]
        self._first = np.cumsum([0, *counts])
        self._number = {uid: number for number, uid in enumerate(self.uids)}

    def _shards(self, path: Path, res: int | None) -> tuple[int, list[str]]:
        """(width, paths or names in the store) of the shards of one resolution."""
        if self._store is None:
            found = {width: [str(one) for one in paths] for width, paths in find_shards(path).items() if paths}
        else:
            widths = sorted(int(name) for name in self._store.folders() if name.isdecimal())
            found = {width: self._names(str(width)) for width in widths}
        if not found:
            raise UserError(f"{path} holds no finished shard", "give the --out of a run")
        if res is None and len(found) > 1:
            there = ", ".join(map(str, found))
            hint = f"choose one: --res {min(found)}, or res={min(found)} in Python"
            raise UserError(f"{path} has pictures of {there} pixels", hint)
        width = res or next(iter(found))
        if width not in found:
            raise UserError(f"{path} has no pictures of {width} pixels", f"it has {', '.join(map(str, found))}")
        return width, found[width]

    def _names(self, folder: str) -> list[str]:
        assert self._store is not None
        return [f"{folder}/{name}" for name in sorted(self._store.names(folder)) if is_shard(name)]

    def _objects_of(self, shard: str) -> dict[str, list[Any]]:
        return self._told(shard) or self._parsed(shard, objects_in)

    def _uids_of(self, shard: str) -> list[str]:
        return self._told(shard).get("uid") or self._parsed(shard, uids_in)

    def _facts_of(self, shard: str) -> dict[str, Any]:
        return self._parsed(shard, lambda file: facts_in(file.schema_arrow, "it"))

    def _told(self, shard: str) -> dict[str, list[Any]]:
        with self._store.open(shard) if self._store else Path(shard).open("rb") as file:
            return objects_at_end(file)

    def _parsed(self, shard: str, read: Callable[[Any], Read]) -> Read:
        with self._opened(shard) as file:
            return read(file)

    def _of_each(self, read: Callable[[str], Read], shards: Sequence[str] | None = None) -> list[Read]:
        """Apply `read` to these shards, or all, several at once. Raises UserError for one that cannot be read."""

        def of(shard: str) -> Read:
            try:
                return read(shard)
            except UserError as error:
                raise UserError(f"{shard}: {error}", error.hint) from None
            except (*unreachable(), ValueError) as error:  # type: ignore[misc]
                raise UserError(f"{shard} cannot be read: {error}", HINT) from None

        with ThreadPoolExecutor(FOOTERS_AT_ONCE if self.address else PARSED_AT_ONCE) as pool:
            return list(pool.map(of, self.shards if shards is None else shards))

    def _file(self, shard: str) -> Any:
        """The calling thread's open file of a shard."""
        files = self._here.files()
        if shard not in files:
            opened = self._opened(shard)
            groups = opened.num_row_groups + sum(file.num_row_groups for file in files.values())
            while files and (len(files) >= OPEN_FILES or groups > OPEN_GROUPS):
                _, closed = files.popitem(last=False)
                groups -= closed.num_row_groups
                closed.close()
            files[shard] = opened
        files.move_to_end(shard)
        return files[shard]

    def _opened(self, shard: str) -> Any:
        return open_shard(self._store.open(shard) if self._store else Path(shard), self.check)

    def __len__(self) -> int:
        return len(self.uids)

    def __contains__(self, uid: object) -> bool:
        return uid in self._number

    def __iter__(self) -> Iterator[Object]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, which: int | str) -> Object:  # type: ignore[override]
        """Object of a number or a uid. Raises IndexError, KeyError; UserError if its shard is damaged."""
        return Object(**vars(rows_of(self.table(which))))

    def table(self, which: int | str) -> Any:
        """Rows of an object as an Arrow table, with all columns. Raises like indexing."""
        shard, group = self._place(which)
        try:
            return self._file(shard).read_row_group(group, use_threads=False)
        except unreachable() as error:
            raise UserError(f"{shard}: {which} cannot be read: {error}", HINT) from None

    def bytes_of(self, which: int | str) -> int:
        """Bytes that an object takes in its shard. Raises like indexing."""
        shard, group = self._place(which)
        return sum(
            self._file(shard).metadata.row_group(group).column(at).total_compressed_size
            for at in range(self._file(shard).metadata.num_columns)
        )

    def _place(self, which: int | str) -> tuple[str, int]:
        """(shard, row group) of an object."""
        if isinstance(which, str):
            if which not in self._number:
                raise KeyError(f"{which} is not among {len(self):,} objects, the first of which is {self.uids[:1]}")
            which = self._number[which]
        if not -len(self) <= which < len(self):
            raise IndexError(f"there is no object {which} among {len(self):,}")
        number = which % len(self)  # negative numbers count from the end
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.shards[shard], number - int(self._first[shard])

    def shard_of(self, which: int | str) -> str:
        """Name of the shard that an object is in: train-000000. Raises like indexing."""
        return Path(self._place(which)[0]).stem

    def split_of(self, which: int | str) -> str:
        """Split that the run has put an object into: train or val. Raises like indexing."""
        return "val" if self.shard_of(which).startswith("val") else "train"

    def number(self, uid: str) -> int:
        """Number of an object. Raises KeyError."""
        return self._number[uid]

    def objects(self) -> dict[str, list[Any]]:
        """Read facts of all objects, without the objects: name -> a value of each in their order, None where one has none.

        uid, shard, row_group, split, views, source, license, caption, polygons, coverage, elevation_min, ...: see
        docs/shard_format.md. `pandas.DataFrame(data.objects())` is a table of them. Raises UserError for a damaged shard.
        """
        found: dict[str, list[Any]] = {}
        known, self._listed = self._listed or self._of_each(self._objects_of), None
        for shard, facts, (first, end) in zip(
            self.shards, known, itertools.pairwise(self._first.tolist()), strict=True
        ):
            count, name = end - first, Path(shard).stem
            if len(facts["uid"]) != count:
                raise UserError(f"{shard} is not what it was when it was opened", "open the run again")
            split = "val" if name.startswith("val") else "train"
            own = {"uid": facts["uid"], "shard": [name] * count, "row_group": [*range(count)], "split": [split] * count}
            for fact, values in (own | {fact: facts[fact] for fact in facts if fact not in own}).items():
                if fact not in found:
                    found[fact] = [None] * len(self.uids)
                found[fact][first:end] = values
        return found

    def views(self, count: int, seed: int = 0, layers: Sequence[str] = ()) -> Views:
        """Samples of `count` random views of each object, as dicts of arrays: what a DataLoader of PyTorch takes.

        Of objects opened with split="train", views that their set keeps for validation or tests are left out.
        """
        return Views(self, count, seed, tuple(layers))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_here": None, "_store": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._here, self._store = _Here(), Store(self.address) if self.address else None


class _Here:
    """Open files of the calling thread in the calling process: a file that was open before a fork is left to the parent."""

    def __init__(self) -> None:
        self.own = threading.local()

    def files(self) -> OrderedDict[str, Any]:
        """Open files by name, the one used last at the end."""
        if getattr(self.own, "process", None) != os.getpid():
            self.own.process, self.own.kept = os.getpid(), OrderedDict()
        files: OrderedDict[str, Any] = self.own.kept
        return files


@dataclass(frozen=True)
class Views:
    """Random views of a data set's objects, a map-style data set for torch.utils.data.DataLoader.

    Which views an object shows depends on seed and uid alone: take another seed in each epoch. Objects with fewer than `count`
    views show some of them more than once.
    """

    data: Dataset
    count: int
    seed: int = 0
    layers: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Sample of an object: image (count, H, W, 3) uint8, c2w (count, 4, 4), fxfycxcy (count, 4), uid, and the layers."""
        one = self.data[number]
        order = item_rng(self.seed, one.uid, "views").permutation(len(one.jpegs))
        if self.data.split == "train":
            order = order[one.trains[order]]
            if not len(order):
                raise UserError(f"{one.uid} has no view that trains", "data[uid].roles says what its views are for")
        views = np.resize(order, self.count)
        sample = {
            "uid": one.uid,
            "image": one.some_images(views),
            "c2w": one.c2w[views],
            "fxfycxcy": one.fxfycxcy[views],
        }
        return sample | {name: one.layer(name)[views] for name in self.layers}
