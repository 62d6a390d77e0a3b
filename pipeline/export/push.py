"""Upload of a run to the Hugging Face Hub, which goes on where it was stopped.

Shards go in commits of some gigabytes, the card last. What stands there with the same bytes is not sent again; of a commit that
was not made, the Hub keeps the files that had come. huggingface_hub finds the token (HF_TOKEN, `hf auth login`) and the address.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.export import PushConfig
from pipeline.core.disk import is_full
from pipeline.core.errors import UserError
from pipeline.core.text import size
from pipeline.download.huggingface import identity
from pipeline.export import hub
from pipeline.storage.shards import is_shard

COMMIT_BYTES, COMMIT_FILES = 4e9, 50  # after which a commit is made: what a kill costs at most is the commit
MAIN = "main"
LOGIN = "`hf auth login`, or HF_TOKEN=... with a token that may write; https://huggingface.co/settings/tokens makes one"
AGAIN = "the same command goes on, and sends nothing again that stands there"


def push(cfg: PushConfig, run: Path) -> list[str]:
    """Upload a run that has ended. run: its folder on this machine. Returns lines for the user.

    Raises UserError: the run goes on or has objects in no shard, the repository holds other shards, or the Hub refuses.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    with tempfile.TemporaryDirectory(prefix="lvsm-data-push-") as made, _explained(cfg.repo):
        huggingface_hub.utils.validate_repo_id(cfg.repo)  # type: ignore[attr-defined]
        owner, _, name = cfg.repo.rpartition("/")
        repo = cfg.repo if owner else f"{api.whoami()['name']}/{name}"
        whole = hub.contents(run, Path(made), repo)
        files = whole.files
        branch = cfg.revision or MAIN
        api.create_repo(repo, repo_type="dataset", private=cfg.private or None, exist_ok=True)
        if cfg.private and not api.repo_info(repo, repo_type="dataset").private:
            raise UserError(
                f"{repo} is there already, and public", "another --repo; or make it private in its settings"
            )
        if branch != MAIN:
            api.create_branch(repo, branch=branch, repo_type="dataset", exist_ok=True)
        there = _standing(api, repo, branch)
        same = {path for path, file in files.items() if path in there and identity(file, there[path]) == there[path]}
        strange = {path for path in there if _is_shard(path)} - same
        if strange and not cfg.replace:
            raise UserError(
                f"{repo} holds shards that are not of {run}: {', '.join(sorted(strange)[:3])}"
                f"{', ...' if len(strange) > 3 else ''}",
                "another --repo; or --replace, which deletes them (the Hub's history keeps them)",
            )
        missing = {path: file for path, file in files.items() if path not in same}
        _upload(api, repo, branch, missing, [path for path in strange if path not in files])
        sent = sum(file.stat().st_size for file in missing.values())
    at = f"@{branch}" if branch != MAIN else ""
    return [
        *filter(None, [whole.told.fewer]),
        f"{len(missing)} files, {size(sent)} sent; {len(files) - len(missing)} stood there already",
        f"{api.endpoint}/datasets/{repo}" + (f"/tree/{branch}" if at else ""),
        f'load_dataset("{repo}"{f", revision={branch!r}" if at else ""}) and pipeline.open("hf:{repo}{at}") read it',
    ]


def _standing(api: Any, repo: str, branch: str) -> dict[str, str]:
    """Path -> SHA-256 (of large files) or Git's SHA-1 (of others), of all files in the repository."""
    tree = api.list_repo_tree(repo, recursive=True, revision=branch, repo_type="dataset")
    return {one.path: one.lfs.sha256 if one.lfs else one.blob_id for one in tree if hasattr(one, "blob_id")}


def _is_shard(path: str) -> bool:
    """True for the path of a shard in a dataset: 64/train-000000.parquet."""
    folder, _, name = path.rpartition("/")
    return folder.isdecimal() and is_shard(name)


def _upload(api: Any, repo: str, branch: str, files: Mapping[str, Path], strange: list[str]) -> None:
    """Commit files, some at a time; with the last ones go the strange."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    total, done = sum(file.stat().st_size for file in files.values()), 0
    batches = list(_batches(files)) or ([{}] if strange else [])
    for number, batch in enumerate(batches, 1):
        operations: list[Any] = [CommitOperationAdd(path, str(file)) for path, file in batch.items()]
        if number == len(batches):
            operations += [CommitOperationDelete(path) for path in strange]
        api.create_commit(
            repo,
            operations,
            commit_message=f"Upload by lvsm-data ({number} of {len(batches)})",
            repo_type="dataset",
            revision=branch,
        )
        done += sum(file.stat().st_size for file in batch.values())
        print(f"{repo}: commit {number} of {len(batches)}, {size(done)} of {size(total)}", file=sys.stderr, flush=True)


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
