"""Flags that several verbs share: which objects, how to fetch them, how to run. Mixed into the configs of the verbs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from pipeline.config.source_table import SOURCES, ObjectSource
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.records import Item

XlSource = Literal["github", "sketchfab", "smithsonian", "thingiverse"]
LicenseFamily = Literal[
    "any", "cc0", "by", "by-sa", "by-nc", "by-nc-sa", "by-nd", "by-nc-nd", "open", "copyleft", "reserved", "unknown"
]
Trait = Literal["textured", "colored", "animated"]
FACT_OF: dict[Trait, str] = {"textured": "textured", "colored": "has_vertex_colors", "animated": "animated"}
MIRROR = re.compile(r"(\w+://.*)=(\w+://.*)")  # URLs may contain "=" too; the separator is the one before a scheme
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")
ON_HUB = re.compile(r"hf:([\w.-]+/[\w.-]+(?:@[^/]+)?)")  # hf:OWNER/NAME@REVISION
HUB_SCHEME = "hf://datasets/"  # as huggingface_hub's file system has it
CREDITS = ("author", "title", "page")
DESKS = Path("~/.cache/lvsm-data/runs")


@dataclass(frozen=True)
class Listing:
    """Which objects, from where: what a source's `items` goes by."""

    source: ObjectSource = "procedural"
    """Where objects come from: procedural (embedded, unlimited), local (--input), objaverse, objaverse-xl. docs/sources.md."""
    input: Path | None = None
    """For --source local: a folder, or a manifest (.parquet, .csv, .jsonl with path, uid, license)."""
    manifest: Path | None = None
    """A list of objects with their URLs, as `lvsm-data manifest` writes it; stands in place of --source."""
    xl_sources: tuple[XlSource, ...] = ("github", "sketchfab", "smithsonian", "thingiverse")
    """The parts of Objaverse-XL to draw from."""
    lvis: tuple[str, ...] = ()
    """LVIS categories of Objaverse, for example chair mug."""
    uids: Path | None = None
    """Only the objects that this text file names: uids, sha256 sums or file identifiers, one per line or CSV field."""
    scores: Path | None = None
    """A table (.csv, .parquet) of scores by uid, sha256 or file identifier; objects that it lacks are left out."""
    min_score: float | None = None
    """The least score to take, for example 5.5."""
    score_column: str | None = None
    """Column of --scores. Default: aesthetic_score or score."""
    license: tuple[LicenseFamily, ...] = ()
    """Licenses to take. Default: all that allow passing on derivatives; any: whatever it is. docs/sources.md."""
    allow_blend: bool = False
    """Take .blend files too. They are opened with scripts off."""
    cache: Path = Path("~/.objaverse")
    """Where lists are kept, and files that are there already are used; the layout is the objaverse package's."""

    def listed(self) -> dict[str, Any]:
        """Return fields with defaults filled in and paths made absolute. UserError where flags contradict each other."""
        source = self.source
        if self.manifest is not None:
            if source not in (Listing.source, "manifest"):
                raise UserError("--manifest says itself where each object is", f"leave --source {source} out")
            source = "manifest"
        elif source == "manifest":
            raise UserError("--source manifest needs --manifest FILE", "`lvsm-data manifest` writes one")
        known = SOURCES[source]
        if known.input and self.input is None:
            raise UserError(f"--source {source} needs --input", known.input)
        if known.input is None and self.input is not None:
            hint = "add --source local for objects; pictures with cameras: --source auto of import and cycle"
            raise UserError(f"--input does not go with --source {source}", hint)
        if self.lvis and "lvis" not in known.flags:
            raise UserError("--lvis names categories of Objaverse", "add --source objaverse")
        if known.endless and (self.scores or self.license):
            raise UserError(f"--scores and --license choose from a list; {source} objects have none", "add --source")
        if (self.scores is None) != (self.min_score is None):
            raise UserError("--scores and --min-score go together", "--scores scores.csv --min-score 5.5")
        for name in ("manifest", "uids", "scores"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise UserError(f"--{name} {path} is no file")
        if not self.xl_sources:
            raise UserError("--xl-sources is empty", "for example --xl-sources github sketchfab")
        made: dict[str, Any] = {name: absolute(getattr(self, name)) for name in ("input", "manifest", "uids", "scores")}
        return made | {"source": source, "cache": self.cache.expanduser().absolute()}

    def listing_identity(self) -> dict[str, Any]:
        """JSON values, by flag, that decide which objects come in which order; flags left at their defaults stay out."""
        asked: dict[str, Any] = {"source": self.source, "input": str(self.input) if self.input else None}
        if "xl_sources" in SOURCES[self.source].flags:
            asked["xl_sources"] = sorted(self.xl_sources)
        for name in ("manifest", "lvis", "uids", "scores", "min_score", "score_column", "license"):
            if value := getattr(self, name):
                asked[name] = sorted(value) if isinstance(value, tuple) else value
        return dict(json.loads(json.dumps(asked, default=str)))


@dataclass(frozen=True)
class Fetching:
    """Limits of downloads: speed, size, disk. Never change what comes out."""

    downloads: int = 16
    """Downloads at once, which run ahead of the renderers."""
    per_host: int = 8
    """Connections to one host at once."""
    raw_gb: float = 8.0
    """Disk for downloaded files that were not rendered yet; reserved before a download starts."""
    max_file_mb: float = 1000.0
    """Larger files are left out, as too_large."""
    stall_s: float = 60.0
    """A connection that brings nothing for so long is given up, and tried again."""
    keep_raw: bool = False
    """Keep downloaded files, in --cache. Without it they go as soon as their shard has them."""
    mirror: tuple[str, ...] = ()
    """FROM=TO: fetch from another place what stands at a URL, for example https://host/=http://mirror/host/."""

    patient: ClassVar[bool] = False
    """True if the run waits while other programs fill the disk; False if the run ends then."""

    def check_fetching(self) -> None:
        """Raise UserError for impossible values of these flags."""
        if min(self.downloads, self.per_host, self.raw_gb, self.max_file_mb, self.stall_s) <= 0:
            raise UserError("--downloads, --per-host, --raw-gb, --max-file-mb and --stall-s must be positive")
        if self.max_file_mb / 1e3 > self.raw_gb:
            raise UserError(f"--max-file-mb {self.max_file_mb:g} does not fit into --raw-gb {self.raw_gb:g}")
        for rule in self.mirror:
            if not MIRROR.fullmatch(rule):
                raise UserError(f"--mirror {rule} is no FROM=TO of two URLs", "--mirror https://host/=http://mirror/")

    @property
    def mirrors(self) -> tuple[tuple[str, str], ...]:
        """Pairs (from, to) of --mirror."""
        return tuple((match[1], match[2]) for rule in self.mirror if (match := MIRROR.fullmatch(rule)))


@dataclass(frozen=True)
class Granting:
    """Terms of pictures that say none themselves. Mixed into the configs of verbs that take existing pictures."""

    license: str | None = None
    """License of what states none, for example CC-BY-4.0 or "CC0" for your own photographs. docs/sources.md."""
    credit: tuple[str, ...] = ()
    """Whom to name for it: an author, or author=..., title=..., page=..."""

    def granted(self) -> dict[str, Any]:
        """Return the fields with `license` as shards store it. UserError for a license that is not understood."""
        credited(self.credit)
        if self.license is None:
            return {}
        if licenses.family(self.license) == licenses.UNKNOWN:
            hint = 'your own pictures: --license CC-BY-4.0 --credit "Your Name", or --license CC0-1.0; docs/sources.md'
            raise UserError(f"--license {self.license} is not understood", hint)
        return {"license": licenses.normalise(self.license)}

    def grant(self, item: Item) -> Item:
        """Item with this license and credit where its source states none."""
        name = self.license if self.license and item.license == licenses.UNKNOWN else item.license
        return dataclasses.replace(item, license=name, credit=credited(self.credit) | item.credit)

    def grant_identity(self) -> dict[str, Any]:
        """JSON values of the flags that were given."""
        return {name: value for name in ("license", "credit") if (value := plain_value(getattr(self, name)))}


def plain_value(value: Any) -> Any:
    """Value as JSON reads it back: tuples become lists."""
    return list(value) if isinstance(value, tuple) else value


def credited(credit: tuple[str, ...]) -> dict[str, str]:
    """--credit as an Item holds it. UserError for a name that is none of CREDITS."""
    found: dict[str, str] = {}
    for one in credit:
        name, mark, value = one.partition("=")
        if mark and name.strip().lower() not in CREDITS:
            raise UserError(
                f"--credit {one} names no {' or '.join(CREDITS)}", '--credit author="Your Name" page=https://...'
            )
        found[name.strip().lower() if mark else "author"] = (value if mark else one).strip()
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Running:
    """A run: how many, to where, and by how many workers."""

    n: int = 100
    """Objects to deliver. Failures are replaced from the source until n good ones stand in the shards."""
    out: Path | None = None
    """Folder of the run, or s3://BUCKET/PATH, gs://..., file://...: docs/cluster.md. Default: data/SOURCE-RES. The same command
    on the same folder goes on where it stopped."""
    desk: Path | None = None
    """Where --out is an address: the folder of this machine for the ledger and shards that are not uploaded yet. Default: below
    ~/.cache/lvsm-data/runs."""
    store: Annotated[str | None, tyro.conf.Suppress] = None
    """The address that --out was; `out` is the desk then."""
    backup_s: float = 60.0
    """Where --out is an address: seconds between two copies of the ledger to it."""
    store_timeout: float = 600.0
    """Where --out is an address: seconds for which a store that does not answer is tried again, a minute of them before it has
    answered at all. Then the run ends; the same command goes on."""
    workers: int | None = None
    """Processes at once. Default: one per core, as far as the memory reaches; on a cluster also of nodes that join later."""
    threads: int = 1
    """CPU cores of each worker."""
    gpus: float = 0.0
    """Share of a GPU that each worker of a cluster is given: 0.25 puts four on one. 0: none is reserved."""
    memory_gb: float = 1.5
    """Memory that each worker of a cluster is given. 0: it is not counted."""
    address: str | None = None
    """Ray cluster to join (auto, or ray://HOST:10001). Default: a private Ray on this machine."""
    executor: Literal["ray", "inline"] = "ray"
    """inline works in this process, one object at a time, without Ray."""
    retry_failed: bool = False
    """Try again what failed in earlier sessions."""
    captions: Path | None = None
    """A table (.csv, .parquet, .jsonl) of texts by uid, sha256 or file identifier for a column `caption`, such as Cap3D's."""
    shard_mb: float = 64.0
    """Target size of a shard of the largest resolution."""
    val_percent: float = 1.0
    """Share of the objects, chosen by a hash of the uid, that goes to val-*.parquet."""

    def check_running(self) -> None:
        """Raise UserError for impossible values of these flags."""
        if self.n < 1:
            raise UserError(f"--n {self.n} asks for nothing", "for example --n 100")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} would never finish", "leave it out for one per core")
        if not 0 <= self.val_percent < 100:
            raise UserError(f"--val-percent {self.val_percent:g} leaves nothing to train on", "0 <= percent < 100")
        if self.threads < 1 or min(self.shard_mb, self.backup_s, self.store_timeout) <= 0:
            raise UserError("--threads, --shard-mb, --backup-s and --store-timeout must be positive")
        if self.captions is not None and not self.captions.is_file():
            raise UserError(f"--captions {self.captions} is no file", "a table with columns uid and caption")
        if self.gpus < 0 or self.memory_gb < 0:
            raise UserError("--gpus and --memory-gb must be 0 or more")
        if (address_of(self.out) or "").startswith(HUB_SCHEME):
            raise UserError(
                f"--out {self.out}: the Hub takes finished runs", "--out FOLDER, then `lvsm-data push FOLDER`"
            )
        if self.desk and not (self.store or address_of(self.out)):
            raise UserError("--desk goes with an --out that is an address", "--out s3://BUCKET/PATH")

    def placed(self, default: Path) -> dict[str, Any]:
        """Return `captions`, `out` (the run's folder here) and `store` (the address of its shards, if any). default: of --out."""
        captions, address = absolute(self.captions), self.store or address_of(self.out)
        if address is None:
            return {"captions": captions, "out": (self.out or default).absolute()}
        desk = self.desk.expanduser() if self.desk else desk_of(address)
        return {"captions": captions, "store": address, "out": desk.absolute()}

    def running_identity(self) -> dict[str, Any]:
        """JSON values of those of these flags that decide what shards hold, as far as they are given."""
        return {"captions": str(self.captions)} if self.captions else {}


def absolute(path: Path | None) -> Path | None:
    """Make a path absolute and expand ~; addresses (s3://...) and None are returned unchanged."""
    return path if path is None or address_of(path) else path.expanduser().absolute()


def address_of(path: Path | None) -> str | None:
    """Restore an address that Path has mangled: s3:/bucket/run -> s3://bucket/run; None for a path of this machine.

    hf:OWNER/NAME, a dataset of the Hugging Face Hub, is hf://datasets/OWNER/NAME.
    """
    if hosted := ON_HUB.fullmatch(str(path or "")):
        return HUB_SCHEME + hosted[1]
    found = ADDRESS.fullmatch(str(path or ""))
    if not found:
        return None
    slashes = ":///" if found[1] == "file" else "://"
    return f"{found[1]}{slashes}{found[2].rstrip('/')}"


def desk_of(address: str) -> Path:
    """Default folder on this machine for a run whose --out is an address."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", address.split("://", 1)[1]).strip("-")[-60:]
    return DESKS.expanduser() / f"{name}-{hashlib.blake2b(address.encode(), digest_size=4).hexdigest()}"


WORKER_MEMORY = 1.5e9  # bytes: peak of a Blender process with ordinary objects, and a margin


def default_workers(threads: int) -> int:
    """Number of workers: one per `threads` cores, fewer if free memory does not suffice."""
    cores = len(os.sched_getaffinity(0))
    import psutil  # here, since those who read shards need none

    by_memory = int(psutil.virtual_memory().available / WORKER_MEMORY)
    return max(1, min(cores // threads, by_memory))


LOOK = 6  # raised by every code change that alters pixels for equal settings


def folder_name(source: str, res: tuple[int, ...]) -> str:
    return f"{source}-{'-'.join(map(str, res))}"


def plain(scene: Any) -> dict[str, Any]:
    """Convert a scene's settings to what JSON reads back: tuples become lists."""
    return dict(json.loads(json.dumps(dataclasses.asdict(scene))))


def config_hash(scene: Any) -> str:
    """Hash (16 hex digits) of LOOK and all settings of a scene: of everything that can change a pixel or a pose.

    Settings at their default are left out, so that a setting which is added later does not end old runs.
    """
    defaults = plain(type(scene)())
    chosen = {name: value for name, value in plain(scene).items() if value != defaults[name]}
    canonical = json.dumps(chosen | {"look": LOOK}, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def port_of(given: tuple[int, ...], usual: int) -> int:
    """Port that --serve names, `usual` where it names none. Raises UserError for what is no port."""
    if len(given) > 1 or not all(0 <= port < 65536 for port in given):
        raise UserError(f"--serve {' '.join(map(str, given))} is no port", f"--serve {usual}, or 0 for a free one")
    return given[0] if given else usual
