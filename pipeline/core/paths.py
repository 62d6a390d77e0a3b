"""Paths made of strings that strangers wrote (uids, addresses, names in lists): nothing leaves the folder that it belongs to."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pipeline.core.errors import Skip

PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def below(folder: Path, name: str) -> Path:
    """Path `folder`/`name` of a relative name, which may have slashes. Looks at no disk: links are not followed.

    Raises Skip("escapes_folder") for a name that is empty, absolute, or has a NUL, a part "..", or a part that no file system
    takes (over 255 bytes).
    """
    parts = name.split("/")
    if "\0" in name or set(parts) <= {"", "."} or name.startswith("/") or ".." in parts:
        raise Skip("escapes_folder", f"{name[:80]!r} is no path below a folder")
    if max(len(part.encode(errors="surrogatepass")) for part in parts) > 255:
        raise Skip("escapes_folder", f"{name[:80]!r}... is longer than a file name can be")
    return folder / name


def file_stem(name: str) -> str:
    """Name for files and folders that shows which `name` it is: letters, digits, - and _ alone, with a hash where it differs."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    if plain == name:
        return name
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{plain or 'object'}-{digest}"


def own_folder(folder: Path, owner: str) -> Path:
    """Path of a folder for `owner` alone, directly in `folder`: its name if plain, else a hash of it."""
    if PLAIN.fullmatch(owner):
        return folder / owner
    return folder / hashlib.blake2b(owner.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def leaf(name: str) -> str:
    """File name that leads nowhere but into the folder that it is joined to: the last part of a path, with either slash.

    At most 60 characters; what no file's name needs and a reader could take for more is "_" ("missing" if nothing is left).
    """
    last = name.replace("\\", "/").rstrip("/ ").rpartition("/")[2]
    kept = "".join(letter if letter.isprintable() and letter not in "`@[]" else "_" for letter in last)[-60:]
    return kept if kept.strip(". ") else "missing"
