"""Upload of a run, or of a trained model, to the Hugging Face Hub, which goes on where it was stopped.

Shards go in commits of some gigabytes, the card last. What stands there with the same bytes is not sent again; of a commit that
was not made, the Hub keeps the files that had come. huggingface_hub finds the token (HF_TOKEN, `hf auth login`) and the address.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.export import PushConfig
from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.text import size
from pipeline.download.huggingface import identity
from pipeline.export import hub
from pipeline.storage.shards import is_shard
from pipeline.storage.train_run import CONFIG

COMMIT_BYTES, COMMIT_FILES = 4e9, 50  # after which a commit is made: what a kill costs at most is the commit
MAIN = "main"
LOGIN = "`hf auth login`, or HF_TOKEN=... with a token that may write; https://huggingface.co/settings/tokens makes one"
AGAIN = "the same command goes on, and sends nothing again that stands there"


def push(cfg: PushConfig, run: Path) -> list[str]:
    """Upload a run that has ended. run: its folder on this machine. Returns lines for the user.

    Raises UserError: the run goes on or has objects in no shard, the repository holds other shards, or the Hub refuses.
    """
    with _ready(cfg) as (api, repo, made):
        whole = hub.contents(run, made, repo)
        target = _opened(api, repo, "dataset", cfg)
        same = target.same(whole.files)
        strange = {path for path in target.there if _is_shard(path)} - same
        if strange and not cfg.replace:
            raise UserError(
                f"{repo} holds shards that are not of {run}: {', '.join(sorted(strange)[:3])}"
                f"{', ...' if len(strange) > 3 else ''}",
                "another --repo; or --replace, which deletes them (the Hub's history keeps them)",
            )
        sent = target.send(whole.files, same, [path for path in strange if path not in whole.files])
    at = target.at
    return [
        *filter(None, [whole.told.fewer]),
        *sent,
        f'load_dataset("{repo}"{f", revision={target.branch!r}" if at else ""}) and pipeline.open("hf:{repo}{at}") read it',
    ]


def push_model(cfg: PushConfig, make: Callable[[Path, str], Mapping[str, Path]]) -> list[str]:
    """Upload a trained model. make: (an empty folder, name of the repository) -> path there -> file. Returns lines for the user.

    Raises UserError: the repository holds another model, or the Hub refuses.
    """
    with _ready(cfg) as (api, repo, made):
        files = make(made, repo)
        target = _opened(api, repo, "model", cfg)
        if CONFIG in target.there and not cfg.replace and _run_there(target, made) != _run_of(files[CONFIG]):
            raise UserError(
                f"{repo} holds a model that is not of {cfg.run}, by its {CONFIG}",
                "another --repo; or --replace, which puts this one in its place (the Hub's history keeps it)",
            )
        sent = target.send(files, target.same(files))
    return [*sent, f"hf:{repo}{target.at} stands for it in `eval`, `synthesize`, `latent` and `train --start-from`"]


def _run_there(target: _Target, folder: Path) -> str | None:
    import huggingface_hub

    found = huggingface_hub.hf_hub_download(target.repo, CONFIG, revision=target.branch, cache_dir=folder / "cache")
    return _run_of(Path(found))


def _run_of(config: Path) -> str | None:
    """Which training run the config.json of a model is of; None for one of other programs."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["run"])
    except (ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _ready(cfg: PushConfig) -> Iterator[tuple[Any, str, Path]]:
    """(API, whole name of the repository, empty folder). Errors inside come out as UserError."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with tempfile.TemporaryDirectory(prefix="lvsm-data-push-") as made, _explained(cfg.repo):
        huggingface_hub.utils.validate_repo_id(cfg.repo)  # type: ignore[attr-defined]
        owner, _, name = cfg.repo.rpartition("/")
        yield api, cfg.repo if owner else f"{api.whoami()['name']}/{name}", Path(made)


@dataclass(frozen=True)
class _Target:
    """A branch of a repository. kind: dataset or model. there: path -> SHA-256 (of large files) or Git's SHA-1 (of others)."""

    api: Any
    repo: str
    kind: str
    branch: str
    there: dict[str, str]

    @property
    def at(self) -> str:
        """Part of an address after the name: "" for the main branch."""
        return f"@{self.branch}" if self.branch != MAIN else ""

    def same(self, files: Mapping[str, Path]) -> set[str]:
        """Paths at which the same bytes stand already."""
        there = self.there
        return {path for path, file in files.items() if path in there and identity(file, there[path]) == there[path]}

    def send(self, files: Mapping[str, Path], same: set[str], strange: Sequence[str] = ()) -> list[str]:
        """Upload files but for the same, and delete the strange. Returns lines for the user."""
        missing = {path: file for path, file in files.items() if path not in same}
        _upload(self, missing, strange)
        sent = sum(file.stat().st_size for file in missing.values())
        folder = "datasets/" if self.kind == "dataset" else ""
        return [
            f"{len(missing)} files, {size(sent)} sent; {len(files) - len(missing)} stood there already",
            f"{self.api.endpoint}/{folder}{self.repo}" + (f"/tree/{self.branch}" if self.at else ""),
        ]


def _opened(api: Any, repo: str, kind: str, cfg: PushConfig) -> _Target:
    """Branch to upload to, made where it is not there."""
    branch = cfg.revision or MAIN
    api.create_repo(repo, repo_type=kind, private=cfg.private or None, exist_ok=True)
    if cfg.private and not api.repo_info(repo, repo_type=kind).private:
        raise UserError(f"{repo} is there already, and public", "another --repo; or make it private in its settings")
    if branch != MAIN:
        api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True)
    tree = api.list_repo_tree(repo, recursive=True, revision=branch, repo_type=kind)
    there = {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in tree if hasattr(one, "blob_id")}
    return _Target(api, repo, kind, branch, there)


def _is_shard(path: str) -> bool:
    """True for the path of a shard in a dataset: 64/train-000000.parquet."""
    folder, _, name = path.rpartition("/")
    return folder.isdecimal() and is_shard(name)


def _upload(target: _Target, files: Mapping[str, Path], strange: Sequence[str]) -> None:
    """Commit files, some at a time; with the last ones go the strange."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    total, done = sum(file.stat().st_size for file in files.values()), 0
    batches = list(_batches(files)) or ([{}] if strange else [])
    for number, batch in enumerate(batches, 1):
        operations: list[Any] = [CommitOperationAdd(path, str(file)) for path, file in batch.items()]
        if number == len(batches):
            operations += [CommitOperationDelete(path) for path in strange]
        target.api.create_commit(
            target.repo,
            operations,
            commit_message=f"Upload by lvsm-data ({number} of {len(batches)})",
            repo_type=target.kind,
            revision=target.branch,
        )
        done += sum(file.stat().st_size for file in batch.values())
        said = f"{target.repo}: commit {number} of {len(batches)}, {size(done)} of {size(total)}"
        print(said, file=sys.stderr, flush=True)


def _batches(files: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Files in order, in lots of at most COMMIT_FILES and about COMMIT_BYTES."""
    batch: dict[str, Path] = {}
    for path, file in files.items():
        batch[path] = file
        if len(batch) >= COMMIT_FILES or sum(one.stat().st_size for one in batch.values()) >= COMMIT_BYTES:
            yield batch
            batch = {}
    if batch:
        yield batch


@contextlib.contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into UserError with the next step."""
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"--repo {repo!r} is no name: {str(error).splitlines()[0]}", "--repo OWNER/NAME") from None
    except LocalTokenNotFoundError:
        raise UserError("the Hugging Face Hub does not know who you are: there is no token", LOGIN) from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, and an upload needs the Hub", "unset HF_HUB_OFFLINE") from None
    except HfHubHTTPError as error:
        raise _refused(error, repo) from None
    except httpx2.TransportError as error:
        raise UserError(f"the Hugging Face Hub cannot be reached: {error}", f"look at the network; {AGAIN}") from None
    except (RuntimeError, ValueError) as error:  # how the library says that a large file did not arrive
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _refused(cause, repo) from None
        raise UserError(f"{repo}: {cause or error}", AGAIN) from None
    except OSError as error:  # of a disk: a shard that cannot be read, or the card that cannot be written
        if is_full(error):
            raise UserError(
                f"the disk of {tempfile.gettempdir()} is full", f"make room, or set TMPDIR; {AGAIN}"
            ) from error
        raise UserError(f"{repo}: {error}", AGAIN) from error


def _refused(error: Any, repo: str) -> UserError:
    """UserError for an answer of the Hub."""
    status = error.response.status_code if error.response is not None else 0
    said = (error.server_message or str(error)).strip().splitlines()[0]
    means, hint = {
        401: ("does not know who you are", LOGIN),
        402: ("has no room left for you", "look at your account's storage; " + AGAIN),
        403: (
            "does not let you write there",
            f"a token that may write, of somebody who may write to {repo}; --repo OWNER/NAME",
        ),
        404: ("has no such repository or branch, or hides it from you", f"look at --repo and --revision; {LOGIN}"),
        409: ("had another writer at the same time", AGAIN),
        412: ("had another writer at the same time", AGAIN),
        429: ("asks for a pause", f"wait some minutes; {AGAIN}"),
    }.get(status, ("failed", AGAIN))
    return UserError(f"{repo}: the Hugging Face Hub {means} ({status}: {said})", hint)
