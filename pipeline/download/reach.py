"""Which hosts answer, through which proxy and how fast: for `lvsm-data doctor --network`."""

from __future__ import annotations

import os
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.core.errors import Skip, UserError
from pipeline.download.fetch import CREDENTIALS, Passing, client, passing

ANSWER_S = 10.0  # for a connection and the first bytes
MEASURE_S, MEASURE_BYTES = 3.0, 4e6  # of a body, for the speed
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
HOSTS = {  # a page or a file of some size -> who asks this host
    f"{HUB}/datasets/allenai/objaverse/resolve/main/object-paths.json.gz": "Objaverse, Objaverse-XL, Objaverse-MIX, Cap3D",
    "https://github.com/robots.txt": "Objaverse-XL's files of Git repositories",
    "https://media.githubusercontent.com/": "Objaverse-XL's large files (Git LFS)",
    "https://www.thingiverse.com/robots.txt": "Objaverse-XL's part thingiverse",
    "https://3d-api.si.edu/": "Objaverse-XL's part smithsonian",
    "https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/share/aigc3d/gobjaverse_280k_index_to_objaverse.json": "G-Objaverse",
    "https://www.youtube.com/robots.txt": "clips of RealEstate10K and ACID",
}


@dataclass(frozen=True)
class Answer:
    """What came of asking a host. purpose: who asks it. proxy: the way, "" for none. error: why it did not answer, else "".

    seconds: until its answer began. bytes_per_s: None where too little came to tell.
    """

    url: str
    purpose: str
    proxy: str
    seconds: float = 0.0
    bytes_per_s: float | None = None
    error: str = ""

    @property
    def host(self) -> str:
        """Host, and the port where it is said."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


def answers(more: tuple[str, ...] = ()) -> list[Answer]:
    """Ask the hosts of all sources, or those of `more` (URLs), at once. Raises UserError for what is no URL or no proxy."""
    for url in more:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(f"--network {url} is no URL", "https://HOST/FILE, or --network alone")
    client(ANSWER_S).close()  # or each host would say what is wrong with the proxy
    asked = dict.fromkeys(more, "asked for") or HOSTS
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(_answer, asked.keys(), asked.values()))


def _answer(url: str, purpose: str) -> Answer:
    proxy = proxy_of(url)
    began = time.monotonic()
    try:
        with passing(url), closing(client(ANSWER_S)) as asking, asking.stream("GET", url) as response:
            seconds = time.monotonic() - began
            if response.status_code in (407, 502, 503, 504):
                return Answer(url, purpose, proxy, seconds, error=f"HTTP {response.status_code}")
            came, first = 0, time.monotonic()
            for block in response.iter_raw():
                came += len(block)
                if came >= MEASURE_BYTES or time.monotonic() - first > MEASURE_S:
                    break
            took = time.monotonic() - first
        speed = came / took if came > 100_000 and took > 0 else None
        return Answer(url, purpose, proxy, seconds, speed)
    except (Passing, Skip) as failure:
        said = str(failure).removeprefix(f"{url}: ")
        return Answer(url, purpose, proxy, time.monotonic() - began, error=said)


def proxy_of(url: str) -> str:
    """Proxy that the environment names for a URL, without its credentials; "" for none."""
    parts, named = urlsplit(url), urllib.request.getproxies()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return CREDENTIALS.sub("", named.get(parts.scheme) or named.get("all") or "")
