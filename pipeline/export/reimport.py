"""Shards that lvsm-data wrote: those of a run's folder, of an object store, or of a dataset on the Hugging Face Hub.

Pictures, poses and facts are taken as they stand, byte by byte, with the license, the credits and the source of each object. Of
another machine's shards, an object's rows are brought one by one: its row group alone is read.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.config.shared import address_of
from pipeline.config.views import ImportConfig
from pipeline.core import cameras
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.records import Fetched, Item, Scene, Views, item_rng, video_of
from pipeline.dataset.opened import Dataset
from pipeline.download.fetch import Fetcher
from pipeline.formats import bundles
from pipeline.sources import posed_views
from pipeline.storage.shards import CAPTION, LAYERS, Rows, read_objects, write_rows

SAYS = "shards of lvsm-data"
HOWTO = "--source shards --input RUN, or hf:OWNER/NAME, or s3://BUCKET/RUN"
BATCH = 1
WHITE = [255, 255, 255]
root_of = posed_views.root_of
# footers are read once in each process; what is damaged must not get checksums that say it is right
opened = functools.lru_cache(maxsize=8)(functools.partial(Dataset, check=True))


def remote(cfg: ImportConfig) -> bool:
    """True if shards stand on another machine."""
    return address_of(cfg.input) is not None


def items(cfg: ImportConfig, seed: int, net: Fetcher | None = None) -> Iterator[Item]:
    """One item per object, in an order that the seed gives. Licenses and credits come with the pictures.

    Raises UserError for widths, columns and shapes that the shards do not have, for clips and orthographic views, and for another
    background than the white that an import's shards state.
    """
    root = posed_views.input_of(cfg)
    data = [opened(str(root), width) for width in cfg.scene.res]
    extra = {"widths": list(cfg.scene.res)}
    found = (Item(data[0].uids[i], cfg.source, url=str(root), extra=extra) for i in _order(data[0], seed))
    if (behind := data[0].facts.get("background", WHITE)) != WHITE:
        raise UserError(f"{root} has another background than white: {behind}", "`train --data` reads it as it is")
    if data[0].uids:
        _check(data[0][0], cfg)
        _say_dropped(data[0][0], cfg)
    return bundles.never_empty(found, f"{root} holds no object", HOWTO)


def group(item: Item, cfg: ImportConfig) -> str:
    """Key of the items that train and val must not share: scenes of one video."""
    video = opened(item.url, item.extra["widths"][0])[item.uid].meta.get("video")
    return video_of(video) if video else item.uid


def _order(data: Dataset, seed: int) -> list[int]:
    return [int(i) for i in item_rng(seed, "shards", "order").permutation(len(data))]


def _check(one: Rows, cfg: ImportConfig) -> None:
    """Raise UserError where an object's rows cannot become what is asked for."""
    said = f"{cfg.input}: {one.uid}"
    if one.numbers:
        raise UserError(f"{said} is a clip, whose frame numbers `import` has no columns for", "`train --data` reads it")
    if one.projection != "perspective":
        raise UserError(f"{said} has orthographic views, `import` takes pinholes", "`pipeline.open` reads it")
    if cfg.scene.crop == "square" and one.hw[0] != one.hw[1]:
        raise UserError(f"{said} has pictures of {one.hw[1]}x{one.hw[0]} pixels", "--crop none takes them as they are")
    if lacking := [name for name in _asked(cfg) if name not in one.layers]:
        raise UserError(f"{said} has no {lacking[0]}", f"leave --{lacking[0]} out")


def _say_dropped(one: Rows, cfg: ImportConfig) -> None:
    """Tell the user of columns of the run that the command leaves out, and of the flags that keep them."""
    dropped = [name for name in LAYERS if name in one.layers and name not in _asked(cfg)]
    flags = [name for name in dropped if hasattr(cfg.scene, name)]
    if flags:
        kept_by = " ".join(f"--{name}" for name in flags)
        print(f"left out: {', '.join(flags)}, which {cfg.input} has; kept by {kept_by}", file=sys.stderr)
    if others := [name for name in dropped if name not in flags]:
        said = f"left out: {', '.join(others)}, which {cfg.input} has and `import` has no flags for"
        print(f"{said}; `pipeline.open` reads them where they are", file=sys.stderr)


def _asked(cfg: ImportConfig) -> list[str]:
    return [name for name in LAYERS if getattr(cfg.scene, name, False)]


def fetch_many(items: Sequence[Item], folder_of: Callable[[Item], Path], net: Fetcher) -> Iterator[Fetched]:
    """Bring the rows of objects, a file for each width, within the budget of disk."""
    for item in items:
        try:
            yield item, _brought(item, folder_of(item), net)
        except (Skip, Retry) as failure:
            yield item, failure


def _brought(item: Item, folder: Path, net: Fetcher) -> Path:
    for width in item.extra["widths"]:
        data = opened(item.url, width)
        path = folder / f"{width}.parquet"
        if path.is_file():  # of an earlier session
            continue
        try:
            net.disk_budget.reserve(item.uid, data.bytes_of(item.uid))
            write_rows(data.table(item.uid), path)
        except UserError as error:
            raise Retry("connection", str(error)) from None
        except KeyError:
            raise Skip("missing", f"no shard of {width} pixels has it") from None
    return folder


def load(item: Item, path: Path, cfg: ImportConfig) -> Scene:
    """Scene of an object as it stands in the shards, at most cfg.scene.views of its views.

    Raises Skip: missing (at one width), file_unreadable (damaged), layer_missing, mixed_sizes (another shape than --crop square
    leaves).
    """
    by_width = {width: _rows(item, path, width, cfg) for width in cfg.scene.res}
    first = next(iter(by_width.values()))
    chosen = cameras.spread(len(first.jpegs), cfg.scene.views)
    meta = dict(first.meta)
    credit, url = meta.pop("credit", {}), meta.pop("url", "")
    extra = item.extra | ({CAPTION: first.caption} if first.caption else {})
    own = Item(item.uid, first.source or item.source, url, first.license, first.sha256, credit, extra)
    views = {
        width: Views(
            [rows.jpegs[view] for view in chosen],
            rows.intrinsics[chosen],
            rows.hw,
            {name: [rows.layers[name][view] for view in chosen] for name in _asked(cfg)},
        )
        for width, rows in by_width.items()
    }
    roles = [first.roles[view] for view in chosen] if first.roles else []
    times = [first.times[view] for view in chosen] if first.times else []
    return Scene(cfg.grant(own), first.c2w[chosen], views, meta, roles=roles, times=times)


def _rows(item: Item, path: Path, width: int, cfg: ImportConfig) -> Rows:
    try:
        rows = next(read_objects(path / f"{width}.parquet")) if remote(cfg) else opened(item.url, width)[item.uid]
    except KeyError:
        raise Skip("missing", f"no shard of {width} pixels has it") from None
    except (UserError, OSError) as error:
        raise Skip("file_unreadable", str(error)) from None
    try:
        _check(rows, cfg)
    except UserError as error:
        raise Skip("not_expressible", f"{error}; {error.hint}") from None
    return rows
