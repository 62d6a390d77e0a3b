"""JavaScript runtimes, and the solver scripts that they run, with which yt-dlp answers YouTube's challenges.

Without both, YouTube still answers, but with few formats or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """Installed JavaScript runtime. name: as in yt-dlp's option `js_runtimes`. least: the oldest version that yt-dlp takes."""

    name: str
    version: str
    least: str
    supported: bool


@dataclass(frozen=True)
class Solver:
    """The package yt-dlp-ejs. installed: its version, "" if not installed. wanted: the version that fits yt-dlp."""

    installed: str
    wanted: str

    @property
    def fits(self) -> bool:
        return bool(self.installed) and self.installed.split(".")[:2] == self.wanted.split(".")[:2]  # yt-dlp's own rule


def js_runtimes() -> dict[str, str]:
    """Name -> version of the runtimes that yt-dlp can solve challenges with; empty without a solver that fits.

    yt-dlp uses deno alone unless its option `js_runtimes` names the others: `{name: {} for name in js_runtimes()}`.
    Imports yt-dlp, which takes a moment, and asks each program for its version.
    """
    return usable(found_runtimes(), solver())


def usable(found: Iterable[Runtime], solver: Solver) -> dict[str, str]:
    # a runtime without a solver is worse than none: yt-dlp then asks as clients whose challenges it cannot solve
    return {runtime.name: runtime.version for runtime in found if runtime.supported and solver.fits}


def found_runtimes() -> list[Runtime]:
    """Runtimes in the places where yt-dlp looks (beside Python, then on the PATH), including those too old for yt-dlp."""
    import yt_dlp  # noqa: F401, fills the registry
    from yt_dlp.globals import supported_js_runtimes

    found = []
    for name, kind in supported_js_runtimes.value.items():
        info = kind().info
        if info is not None:
            least = ".".join(map(str, getattr(kind, "MIN_SUPPORTED_VERSION", ())))
            found.append(Runtime(name, info.version, least, info.supported))
    return found


def solver() -> Solver:
    """Version of the installed solver, and the one that yt-dlp wants."""
    from yt_dlp.dependencies import yt_dlp_ejs
    from yt_dlp.extractor.youtube.jsc._builtin.vendor import VERSION

    return Solver("" if yt_dlp_ejs is None else yt_dlp_ejs.version, VERSION)
