"""Storage of finished files outside this machine: an object store, or a file system that many machines share.

Addresses are URIs: s3://BUCKET/PATH and gs://BUCKET/PATH (with pyarrow.fs; AWS_ENDPOINT_URL names any S3-compatible server),
file:///PATH, and all schemes that fsspec has a package for, hf://datasets/OWNER/NAME to read from. The libraries find credentials
in environment, files or machine.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline.config.shared import HUB_SCHEME
from pipeline.core.disk import replacing, retried
from pipeline.core.errors import UserError
from pipeline.core.text import duration_words

ASIDE = "uploading"  # folder of partial uploads, also those that killed processes left
GIVE_UP_S = 600.0  # seconds for which a failing operation is retried
FIRST_ANSWER_S = 60.0  # the same until the store has answered for the first time: nothing is lost yet
SILENCE_S = 5.0  # without a first answer, after which the user hears of it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
SAY_FROM_S = 2.0  # pause from which the user hears of it, once
HOPELESS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH",
    "No bucket",
    "PERMISSION_DENIED",
    "401 Client Error",
    "403 Client Error",
)
HINT = "look at the address and its credentials (AWS_ACCESS_KEY_ID, HF_TOKEN); the same command goes on, nothing finished is lost"
Made = TypeVar("Made")


class Store:
    """Files below an address, by name (with / between folders). A file is there as a whole or not at all.

    Failing operations are retried for `timeout_s` seconds, of which FIRST_ANSWER_S at most before the store has answered once,
    then raise UserError; errors listed in HOPELESS raise it at once.
    """

    def __init__(self, address: str, timeout_s: float = GIVE_UP_S) -> None:
        self.address, self.timeout_s, self._told, self._answered = address, timeout_s, False, False
        self.fs, self.root = self._patiently(lambda: _file_system(address))
        self._answered = False  # no store has been asked yet, but for the Hub

    def put(self, local: Path, name: str) -> None:
        """Copy the file `local` to `name`: first into the folder ASIDE, then moved once its size proves that it is whole."""
        aside = f"{self.root}/{ASIDE}/{name.replace('/', '-')}.{uuid.uuid4().hex[:8]}"

        def copied() -> None:
            self._make_folder(aside)
            fs.copy_files(str(local), aside, fs.LocalFileSystem(), self.fs)
            size = self.fs.get_file_info(aside).size
            if size != local.stat().st_size:
                raise OSError(f"{size} of {local.stat().st_size} bytes of {name} arrived")

        def published() -> None:
            self._make_folder(f"{self.root}/{name}")
            try:
                self.fs.move(aside, f"{self.root}/{name}")
            except FileNotFoundError:  # the last try succeeded, but its answer was lost
                if not self.has(name):
                    raise

        self._patiently(copied)
        self._patiently(published)

    def get(self, name: str, local: Path) -> bool:
        """Copy the file `name` to `local`, as a whole or not at all. False if the store has no such file."""

        def fetched() -> bool:
            info = self.fs.get_file_info(f"{self.root}/{name}")
            if info.type != fs.FileType.File:
                return False
            with replacing(local) as temporary:
                fs.copy_files(f"{self.root}/{name}", str(temporary), self.fs, fs.LocalFileSystem())
                if temporary.stat().st_size != info.size:
                    raise OSError(f"{temporary.stat().st_size} of {info.size} bytes of {name} came")
            return True

        local.parent.mkdir(parents=True, exist_ok=True)
        return self._patiently(fetched)

    def has(self, name: str) -> bool:
        """True if the store holds a file of that name."""
        info = self._patiently(lambda: self.fs.get_file_info(f"{self.root}/{name}"))
        return bool(info.type == fs.FileType.File)

    def names(self, folder: str = "") -> dict[str, int]:
        """File name -> bytes, of the files directly in `folder`."""
        selector = fs.FileSelector(f"{self.root}/{folder}".rstrip("/"), allow_not_found=True)
        found = self._patiently(lambda: self.fs.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.type == fs.FileType.File}

    def folders(self) -> list[str]:
        """Names of the top-level folders, sorted."""
        found = self._patiently(lambda: self.fs.get_file_info(fs.FileSelector(self.root, allow_not_found=True)))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)

    def open(self, name: str) -> Any:
        """Open a file for reading at random places, as pyarrow.parquet accepts."""
        return self._patiently(lambda: self.fs.open_input_file(f"{self.root}/{name}"))

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""

        def gone() -> None:
            if self.fs.get_file_info(f"{self.root}/{name}").type == fs.FileType.File:
                self.fs.delete_file(f"{self.root}/{name}")

        self._patiently(gone)

    def tidy(self) -> None:
        """Remove partial uploads that killed processes left. No other process may be uploading."""
        for name in self.names(ASIDE):
            self.delete(f"{ASIDE}/{name}")

    def _make_folder(self, path: str) -> None:
        """Create the parent folder of a file; not in object stores, which would hold an empty object instead."""
        if self.fs.type_name not in ("s3", "gcs"):
            self.fs.create_dir(str(Path(path).parent), recursive=True)

    def _patiently(self, act: Callable[[], Made]) -> Made:
        give_up_s = self.timeout_s if self._answered else min(self.timeout_s, FIRST_ANSWER_S)
        longest_s, until = FIRST_PAUSE_S, time.monotonic() + give_up_s

        def pause_s(error: OSError) -> float:
            nonlocal longest_s
            if any(word in str(error) for word in HOPELESS) or time.monotonic() > until:
                raise UserError(f"{self.address} cannot be used: {error}", HINT) from None
            pause, longest_s = longest_s, min(2 * longest_s, LONGEST_PAUSE_S)
            if pause >= SAY_FROM_S:  # uploads are told by their run
                self._tell(str(error), give_up_s)
            return pause * random.uniform(0.5, 1.5)  # clients that failed together shall not retry together

        def tried() -> Made:
            try:
                return act()
            except unreachable() as error:
                raise OSError(str(error)) from error

        silent = threading.Timer(SILENCE_S, self._tell, ("no answer yet", give_up_s))
        silent.daemon = True
        if not self._answered:
            silent.start()
        try:
            made = retried(tried, pause_s)
        finally:
            silent.cancel()
        self._answered = True
        return made

    def _tell(self, what: str, give_up_s: float) -> None:
        """Say once that the store does not answer, and for how long that is borne."""
        if not self._told:
            self._told = True
            said = f"{self.address}: {what}; trying for at most {duration_words(give_up_s)}"
            print(said, file=sys.stderr, flush=True)


def unreachable() -> tuple[type[Exception], ...]:
    """Exceptions by which a store says that it cannot be reached: OSError, and that of the Hub's client once it is loaded."""
    client = sys.modules.get("httpx2")
    return (OSError, client.TransportError) if client else (OSError,)


def _file_system(address: str) -> tuple[Any, str]:
    """File system of an address, and the path in it. Raises UserError if neither pyarrow nor fsspec knows the address."""
    if address.startswith(HUB_SCHEME):
        return _on_hub(address)
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(address)
        return found
    except pa.ArrowInvalid as error:
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as other:
            raise UserError(f"{address}: {error}; {other}", "for example --out s3://BUCKET/PATH") from None
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _on_hub(address: str) -> tuple[Any, str]:
    """Implement `_file_system` for a dataset of the Hub. Raises UserError if there is none, or the Hub does not answer."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
        system.resolve_path(path)
    except FileNotFoundError:
        raise UserError(
            f"{address} is not there, or hidden from you", "look at its name; HF_TOKEN=... logs in"
        ) from None
    except unreachable() as error:
        raise UserError(f"{address} cannot be reached: {error}", HINT) from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path
