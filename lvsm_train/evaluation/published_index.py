"""pixelSplat's evaluation index of RealEstate10K, which papers measure on, LVSM among them: fetched once, kept in the cache."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.core.budget import DiskBudget
from pipeline.core.errors import Retry, Skip, UserError
from pipeline.download.fetch import Fetcher, FetchLimits, sha256_of

PROTOCOL = "re10k"  # whose index it is
FILE = "evaluation_index_re10k.json"
URL = f"https://raw.githubusercontent.com/dcharatan/pixelsplat/2331f53458b8efa3975ec3cf1c2e54a6c69b5c9c/assets/{FILE}"
SHA256 = (
    "fbcff9b4b13139227d809af45b84bb5a7a9cdb1c7a55bced85b6c66556a219cc"  # 6,474 clips, 2 inputs and 3 targets of each
)
CACHE = Path("~/.cache/lvsm-data/indices")


def obtain() -> Path:
    """Path of the index with the right sha256, from the cache or fetched. Raises UserError."""
    path = CACHE.expanduser() / FILE
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    print(f"fetching {FILE} (0.5 MB) into {path.parent}, once", file=sys.stderr, flush=True)
    net = Fetcher(FetchLimits(), DiskBudget(path.parent, 1e8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return net.get(URL, path, owner=FILE, sha256=SHA256)
    except (Skip, Retry, OSError) as error:
        raise UserError(
            f"--protocol {PROTOCOL} needs --index FILE, and pixelSplat's cannot be fetched: {error}",
            f"get {URL} elsewhere and name it with --index",
        ) from None
    finally:
        net.close()
