"""Models of the Hugging Face Hub: hf:OWNER/NAME[@REVISION][/FILE] to files on this machine, in the cache of huggingface_hub."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from lvsm_train.weights.published import is_ours, read_config
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.download.fetch import Passing
from pipeline.download.huggingface import classified, identity
from pipeline.storage.train_run import CONFIG, WEIGHTS

ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([^/@]+))?(?:/(.+))?")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")  # of files of weights
LOGIN = "HF_TOKEN=... logs in, HF_ENDPOINT=URL asks a mirror"


@dataclass(frozen=True)
class _Repo:
    """A repository. revision: None for its main branch. files: path -> (bytes, SHA-256 or Git's SHA-1), None if not known."""

    name: str
    revision: str | None
    files: dict[str, tuple[int, str]] | None


def obtain(where: Path | str) -> Path:
    """Bring a model of the Hub to this machine: the folder of an exported one, or the file of weights of another.

    What is there already is not fetched again, and is used where the Hub does not answer or HF_HUB_OFFLINE is set. A file has the
    size and the hash that the Hub says. Raises UserError: no such model, several files of weights, damaged on its way.
    """
    parsed = ADDRESS.fullmatch(str(where))
    if not parsed:
        raise UserError(
            f"{where} is no address of a model", "hf:OWNER/NAME, hf:OWNER/NAME@REVISION, or with /FILE after it"
        )
    name, revision, file = parsed.groups()
    repo = _asked(name, revision, str(where))
    if file == WEIGHTS and CONFIG in (repo.files or ()) and is_ours(_fetched(repo, CONFIG, str(where)).parent):
        file = None  # the config says what the weights are of
    if file is None and (repo.files is None or {CONFIG, WEIGHTS} <= repo.files.keys()):
        config = _fetched(repo, CONFIG, str(where))
        said = read_config(config)
        if repo.files and repo.files[WEIGHTS] != (said.bytes, said.sha256) and len(repo.files[WEIGHTS][1]) == 64:
            found, digest = repo.files[WEIGHTS]
            raise UserError(
                f"{where}: {WEIGHTS} has {found:,} bytes and the sha256 {digest}, and {CONFIG} says {said.bytes:,} and "
                f"{said.sha256}",
                "its owner has to upload it again",
            )
        _fetched(repo, WEIGHTS, str(where))
        return config.parent
    return _fetched(repo, file or _only_weights(repo, str(where)), str(where))


def _only_weights(repo: _Repo, where: str) -> str:
    assert repo.files is not None
    found = sorted(path for path in repo.files if path.endswith(SUFFIXES))
    if not found:
        raise UserError(f"{where} holds no weights", f"a repository with one of {', '.join(SUFFIXES)}")
    if len(found) > 1:
        some = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise UserError(f"{where} holds {len(found)} files of weights: {some}", f"name one: {where}/{found[0]}")
    return found[0]


def _asked(name: str, revision: str | None, where: str) -> _Repo:
    """Ask the Hub what a repository holds; without files where it does not answer."""
    import huggingface_hub

    try:
        with classified():
            info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True, timeout=30)
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(f"{where} is no address of a model: {str(error).splitlines()[0]}", "hf:OWNER/NAME") from None
    except Skip as error:
        said = " ".join(error.detail.split())[:200] or error.reason
        raise UserError(f"{where} cannot be had: {said}", f"look at the name; {LOGIN}") from None
    except (Retry, Passing) as error:
        if error.reason != "offline":
            print(f"{where}: the Hub does not answer ({error.reason}); looking into the cache", file=sys.stderr)
        return _Repo(name, revision, None)
    files = {
        one.rfilename: (one.size or 0, one.lfs.sha256 if one.lfs else one.blob_id or "") for one in info.siblings or []
    }
    return _Repo(name, revision, files)


def _fetched(repo: _Repo, file: str, where: str) -> Path:
    """A repository's file on this machine, of the size and with the hash that the Hub says."""
    import huggingface_hub

    if repo.files is None:
        cached = huggingface_hub.try_to_load_from_cache(repo.name, file, revision=repo.revision)
        if not isinstance(cached, str):
            raise UserError(
                f"{file} of {where} is not on this machine", f"unset HF_HUB_OFFLINE, look at the network; {LOGIN}"
            )
        return Path(cached)
    if file not in repo.files:
        raise UserError(f"{where}: there is no file {file}", f"there are {', '.join(sorted(repo.files)[:8]) or 'none'}")
    try:
        with classified():
            path = Path(huggingface_hub.hf_hub_download(repo.name, file, revision=repo.revision))
    except (Skip, Retry, Passing, OSError) as error:  # the last of a disk: full, or not ours to write
        raise UserError(
            f"{file} of {where} cannot be had: {error}", f"the same command goes on later; {LOGIN}"
        ) from None
    found, digest = repo.files[file]
    if path.stat().st_size != found or (digest and identity(path, digest) != digest):
        path.resolve().unlink(missing_ok=True)  # else the cache would keep it
        raise UserError(
            f"{file} of {where} is damaged: it has not the size and the hash that the Hub says", "try again"
        )
    return path
