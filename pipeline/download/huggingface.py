"""Files of Hugging Face dataset repositories: the only module of the pipeline that imports `huggingface_hub`.

The library handles addresses, tokens, mirrors (HF_ENDPOINT), the offline mode and the cache. Lists go through
`hf_hub_download`; payloads, of which there are millions, take the library's address, headers and connection but one
request each instead of two, as the Hub's rate limits count requests.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipeline.core.disk import replacing
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.core.paths import below
from pipeline.download.fetch import CONNECT_S, Fetcher, Passing, Wanted, failure_of
from pipeline.download.ranges import Remote

HOME = "https://huggingface.co"  # in manifests, whichever mirror is asked
FILE = re.compile(rf"{HOME}/datasets/([^/]*/[^/]*)/resolve/main/(.*)", re.DOTALL)
PATHS_PER_REQUEST = 500


def url_of(repo: str, path: str) -> str:
    """The canonical address of a dataset repository's file, as manifests have it."""
    return f"{HOME}/datasets/{repo}/resolve/main/{quote(path)}"


def parse(url: str) -> tuple[str, str] | None:
    """(repo, path) of an address that `url_of` writes; None for any other."""
    found = FILE.fullmatch(url)
    return (found[1], unquote(found[2])) if found else None


def list_file(net: Fetcher, repo: str, path: str, folder: Path) -> Path:
    """File with a list of objects from a dataset repository, kept at folder/path; fetched if missing or not whole.

    Raises UserError if the list cannot be fetched.
    """
    import huggingface_hub

    here = folder / path
    if here.is_file() and _whole(here):
        return here
    here.unlink(missing_ok=True)  # cut short by an earlier download that wrote it in place
    _session(net)

    def attempt() -> Path:
        with classified():
            return Path(huggingface_hub.hf_hub_download(repo, path, repo_type="dataset", local_dir=folder))

    try:
        return Path(net.tried(url_of(repo, path), attempt))
    except (Skip, Retry) as error:
        if error.reason == "offline":
            raise UserError(f"{path} of {repo} is not in {folder}", "unset HF_HUB_OFFLINE to fetch it") from None
        hint = "HF_ENDPOINT=URL asks a mirror, HF_TOKEN=... logs in; the same command goes on later"
        raise UserError(f"{url_of(repo, path)} cannot be had: {error.reason}: {error.detail}", hint) from None


def _whole(path: Path) -> bool:
    """True if the list can be read to its end. (The objaverse package keeps truncated lists, and fails on them for ever.)"""
    if path.suffix == ".parquet":
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4))
            return stream.read() == b"PAR1"
    if path.suffix != ".gz":
        return True
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True


def facts(net: Fetcher, repo: str, paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Path -> (bytes, sha256 or "") of those `paths` that the repository has. Raises UserError if the Hub does not answer."""
    import huggingface_hub

    _session(net)
    api = huggingface_hub.HfApi()
    found: dict[str, tuple[int, str]] = {}
    for start in range(0, len(paths), PATHS_PER_REQUEST):
        some = list(paths[start : start + PATHS_PER_REQUEST])

        def attempt(some: list[str] = some) -> list[Any]:
            with classified():
                return list(api.get_paths_info(repo, some, repo_type="dataset"))

        try:
            infos = net.tried(url_of(repo, ""), attempt)
        except (Skip, Retry) as error:
            raise UserError(f"{repo} does not say how large its files are: {error.detail}", "try again later") from None
        for info in infos:
            lfs = getattr(info, "lfs", None)
            found[info.path] = (getattr(info, "size", 0), lfs.sha256 if lfs else "")
    return found


def get(net: Fetcher, repo: str, path: str, to: Path, wanted: Wanted) -> Path:
    """Bring a dataset repository's file to `to`; unverified if from HF's cache. Raises as Fetcher.get, Retry("offline"), and
    Skip("escapes_folder").
    """
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    below(Path(), path)  # the library looks for it in folders of its own
    cached = huggingface_hub.try_to_load_from_cache(repo, path, repo_type="dataset")
    if isinstance(cached, str):
        blob = Path(cached).resolve()  # which a cache entry links to, named without suffix
        return _link_cached(blob, to, net, wanted)
    address = huggingface_hub.hf_hub_url(repo, path, repo_type="dataset")
    with classified():
        return net.get_with(_session(net), address, to, wanted, build_hf_headers())


def opened(net: Fetcher, repo: str, path: str) -> Remote:
    """Open a dataset repository's file for reading parts of it. Raises Skip, Retry, and NoRanges of a server without ranges."""
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    below(Path(), path)
    return Remote(net, huggingface_hub.hf_hub_url(repo, path, repo_type="dataset"), build_hf_headers())


def _link_cached(cached: Path, to: Path, net: Fetcher, wanted: Wanted) -> Path:
    """Give a cached file the further name `to`; copies only if the cache is on another disk."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(cached, to)
    except OSError:
        net.disk_budget.reserve(wanted.owner, cached.stat().st_size)
        with replacing(to) as part:
            shutil.copyfile(cached, part)
    return to


def _session(net: Fetcher) -> Any:
    """HTTP client of huggingface_hub, with time-outs; by default it would wait for ever."""
    import httpx2
    import huggingface_hub

    session = huggingface_hub.get_session()
    session.timeout = httpx2.Timeout(CONNECT_S, read=net.limits.stall_s, pool=None)
    return session


def identity(file: Path, like: str) -> str:
    """Hash of a file of the kind that `like` is: SHA-256, or Git's SHA-1 of a blob."""
    with file.open("rb") as stream:
        if len(like) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        data = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def classified() -> Iterator[None]:
    """Turn errors of huggingface_hub into Skip if permanent, Passing if they may pass, Retry if offline or already retried."""
    import httpx2
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except OfflineModeIsEnabled:
        raise Retry("offline", "HF_HUB_OFFLINE is set and the file is not on this machine") from None
    except LocalEntryNotFoundError as error:  # how hf_hub_download reports that it could not ask, or got no answer
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise failure_of(cause.response, str(cause).strip()) from None
        if cause is None or isinstance(cause, OfflineModeIsEnabled):
            raise Retry("offline", str(error)) from None
        raise Retry("connection", f"{cause or error}") from None  # the library has tried five times
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise Skip("forbidden", str(error).strip()) from None
    except EntryNotFoundError as error:
        raise Skip("missing", str(error).strip()) from None
    except HfHubHTTPError as error:
        raise failure_of(error.response, str(error).strip()) from None
    except httpx2.TransportError as error:
        raise Passing("connection", str(error)) from None
    except OSError as error:  # its consistency check: a download of another size than announced
        if "Consistency check failed" not in str(error):
            raise
        raise Passing("cut_off", str(error)) from None
