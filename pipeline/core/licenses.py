"""License names and what they allow: any source's spelling -> the name that shards store, and its family.

A text counts as recognised only where every word of it is understood, so that a condition nobody has heard of is never lost:
one word too many, and filters treat the whole text as unknown.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNKNOWN = "unknown"
ANY = "any"  # in place of a family: all families
MAX_CHARS = 200  # of an unrecognised text, which is kept; some sources give a whole license in place of its name


@dataclass(frozen=True)
class Facts:
    """Terms of a license family for redistributing derivatives, as renderings are.

    derivatives: allowed at all. commercial: commercial use allowed. share_alike: only under the original's license.
    attribution: the author or the copyright notice must be named.
    """

    says: str
    derivatives: bool
    commercial: bool
    share_alike: bool
    attribution: bool


FAMILIES = {
    "cc0": Facts("public domain, no conditions", True, True, False, False),
    "by": Facts("name the author", True, True, False, True),
    "by-sa": Facts("name the author, share alike", True, True, True, True),
    "by-nc": Facts("name the author, nothing commercial", True, False, False, True),
    "by-nc-sa": Facts("name the author, nothing commercial, share alike", True, False, True, True),
    "by-nd": Facts("name the author, no derivatives", False, True, False, True),
    "by-nc-nd": Facts("name the author, nothing commercial, no derivatives", False, False, False, True),
    "open": Facts("keep the copyright notice", True, True, False, True),
    "copyleft": Facts("keep the copyright notice, same license for what is made from it", True, True, True, True),
    "reserved": Facts("all rights reserved", False, False, False, False),
    UNKNOWN: Facts("nothing is known, so nothing is allowed", False, False, False, False),
}
DERIVATIVES = tuple(name for name, facts in FAMILIES.items() if facts.derivatives)


@dataclass(frozen=True)
class _License:
    name: str
    family: str
    title: str
    url: str


# family -> lines of: SPDX id | title | other spellings. Apache, BSD, MPL, EPL: texts without a version, no SPDX ids.
_TABLE = {
    "open": """
        MIT | MIT License | Expat | MIT X11
        MIT-0 | MIT No Attribution
        Apache-2.0 | Apache License 2.0 | ASL 2.0
        Apache | Apache License
        BSD-2-Clause | BSD 2-Clause "Simplified" License | Simplified BSD | FreeBSD
        BSD-2-Clause-Patent | BSD-2-Clause Plus Patent License
        BSD-3-Clause | BSD 3-Clause "New" or "Revised" License | New BSD | Modified BSD | Revised BSD
        BSD-3-Clause-Clear | BSD 3-Clause Clear License
        BSD-4-Clause | BSD 4-Clause "Original" or "Old" License | Original BSD
        0BSD | BSD Zero Clause License | Zero-Clause BSD
        BSD | BSD License
        ISC | ISC License
        Zlib | zlib License | zlib/libpng License
        BSL-1.0 | Boost Software License 1.0 | Boost
        AFL-3.0 | Academic Free License v3.0
        Artistic-2.0 | Artistic License 2.0
        BlueOak-1.0.0 | Blue Oak Model License 1.0.0
        CECILL-B | CeCILL-B Free Software License Agreement
        CERN-OHL-P-2.0 | CERN Open Hardware Licence Version 2 - Permissive
        ECL-2.0 | Educational Community License v2.0
        MulanPSL-2.0 | Mulan Permissive Software License, Version 2
        NCSA | University of Illinois/NCSA Open Source License
        ODC-By-1.0 | Open Data Commons Attribution License v1.0 | ODC-By
        PostgreSQL | PostgreSQL License
        UPL-1.0 | Universal Permissive License v1.0
        WTFPL | Do What The F*ck You Want To Public License | Do What The Fuck You Want To Public License""",
    "copyleft": """
        MPL-1.1 | Mozilla Public License 1.1
        MPL-2.0 | Mozilla Public License 2.0
        MPL | Mozilla Public License
        EPL-1.0 | Eclipse Public License 1.0
        EPL-2.0 | Eclipse Public License 2.0
        EPL | Eclipse Public License
        CDDL-1.0 | Common Development and Distribution License 1.0
        CECILL-2.1 | CeCILL Free Software License Agreement v2.1
        CERN-OHL-S-2.0 | CERN Open Hardware Licence Version 2 - Strongly Reciprocal
        CERN-OHL-W-2.0 | CERN Open Hardware Licence Version 2 - Weakly Reciprocal
        EUPL-1.1 | European Union Public License 1.1
        EUPL-1.2 | European Union Public License 1.2
        LPPL-1.3c | LaTeX Project Public License v1.3c
        MS-PL | Microsoft Public License
        MS-RL | Microsoft Reciprocal License
        ODbL-1.0 | Open Data Commons Open Database License v1.0 | ODbL
        OFL-1.1 | SIL Open Font License 1.1
        OSL-3.0 | Open Software License 3.0
        Vim | Vim License""",
    "cc0": """
        Unlicense | The Unlicense
        PDDL-1.0 | Open Data Commons Public Domain Dedication & License 1.0 | PDDL""",
    "reserved": """
        All Rights Reserved | All Rights Reserved
        Proprietary | Proprietary License
        Sketchfab Standard | Sketchfab Standard License | st | Standard
        Sketchfab Free Standard | Sketchfab Free Standard License | free-st | Free Standard
        Sketchfab Editorial | Sketchfab Editorial License | ed | Editorial""",
    UNKNOWN: """
        unknown | unknown | Other | None | null | nan | n/a | na | NOASSERTION | unspecified | not specified
        unknown | unknown | not recorded | not known | no license""",
}
_GNU = {  # short name -> title, versions
    "GPL": ("GNU General Public License", ("1.0", "2.0", "3.0")),
    "LGPL": ("GNU Lesser General Public License", ("2.0", "2.1", "3.0")),
    "AGPL": ("GNU Affero General Public License", ("1.0", "3.0")),
    "GFDL": ("GNU Free Documentation License", ("1.1", "1.2", "1.3")),
}

_LINK_END = r"(?:[?#]\S*)?(?=$|[\s)\],;])"
_LINKS = [  # a license's page -> the words for it
    (
        r"(?:https?://)?(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)(?:/([\d.]+))?"
        r"(?:/(?!deed|legalcode)([a-z]+))?(?:/(?:deed|legalcode)(?:\.[a-z_-]+)?)?/?",
        r" cc \1 \2 \3 ",
    ),
    (r"https?://(?:www\.)?apache\.org/licenses/license-([\d.]+\d)(?:\.html|\.txt)?", r" apache \1 "),
    (r"https?://(?:www\.)?mozilla\.org(?:/en-us)?/mpl/([\d.]+\d)/?", r" mpl \1 "),
    (
        r"https?://(?:www\.)?(?:spdx\.org/licenses|opensource\.org/licenses?|choosealicense\.com/licenses|"
        r"gnu\.org/licenses(?:/old-licenses)?)/([a-z0-9.+-]+?)(?:\.en)?(?:\.html|\.txt)?/?",
        r" \1 ",
    ),
]
_SPELLINGS = [  # pattern in the joined words -> the one spelling of its term
    (r"creative ?commons", "cc"),
    (r"\bnon ?commercial\b", "nc"),
    (r"\bno ?deriv(?:s|ates?|atives?)(?: works)?\b", "nd"),
    (r"\bshare ?alike\b", "sa"),
    (r"\bpublic ?domain\b", "pd"),
    (r"\bpdm\b", "pd mark"),
    (r"\bunited states\b", "us"),
    (r"\b(?:gnu )?(?:lesser|library) general public\b", "lgpl"),
    (r"\b(?:gnu )?affero general public\b", "agpl"),
    (r"\b(?:gnu )?general public\b", "gpl"),
    (r"\b(?:gnu )?free documentation\b", "gfdl"),
    (r"\bgnu (gpl|lgpl|agpl|gfdl)\b", r"\1"),
    (r"\bor any later\b", "or later"),
]
_GLUED = re.compile(r"\b(cc)?(by)(nc)?(sa|nd)?\b")
_SEPARATORS = set(" -_/.,:;()[]\"'+&*")
_NOISE = {"the", "license", "licence", "licensed", "under", "software"}

_CC_NOISE = _NOISE | {"cc", "international", "unported", "generic", "universal", "public", "deed", "and"}
_CC_VERSIONS = ("1.0", "2.0", "2.1", "2.5", "3.0", "4.0")
_CC_PORTS = set(  # countries of ported licenses, less the codes that are English words
    "ar at au az bg br ca ch cl cn co cr cz de dk ec ee eg es fi fr ge gr gt hk hr hu ie igo il jp kr lu mk mt mx nl nz "
    "pe ph pl pr pt ro rs scotland se sg si th tw uk us ve vn za".split()
)
_CC_TITLES = {"by": "Attribution", "nc": "NonCommercial", "nd": "NoDerivatives", "sa": "ShareAlike"}
_CC_SUFFIXES = {"1.0": " Generic", "2.0": " Generic", "2.5": " Generic", "3.0": " Unported", "4.0": " International"}


def normalise(text: str | None, cc: str = "") -> str:
    """License text -> the name that shards store: an SPDX id where there is one, "unknown" if empty, else one line.

    cc: version to assume for a Creative Commons license whose text gives none. Without `cc`, "by" becomes CC-BY, which says
    no more than the text.
    """
    tidy, found = _resolve(text, cc)
    return found.name if found else tidy


def of_sketchfab(text: str | None) -> str:
    """`normalise` for Sketchfab's names (by, cc0, ed, ...), whose Creative Commons licenses are version 4.0 by definition."""
    return normalise(text, cc="4.0")


def family(name: str | None) -> str:
    """The key of FAMILIES that a license belongs to; "unknown" for every text that is not recognised."""
    _, found = _resolve(name)
    return found.family if found else UNKNOWN


def is_allowed(name: str | None, families: Iterable[str]) -> bool:
    """True if the license `name` belongs to one of `families`; "any" in `families` allows every license."""
    wanted = set(families)
    return ANY in wanted or family(name) in wanted


def details(name: str | None) -> tuple[str, str]:
    """(title, address of the license text) for display. The address is "" where none is known."""
    tidy, found = _resolve(name)
    if found:
        return found.title, found.url
    return tidy, tidy if re.fullmatch(r"https?://\S+", tidy) else ""


def tally(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by license text -> counts by normalised name, most frequent first."""
    merged: Counter[str] = Counter()
    for text, count in counts.items():
        merged[normalise(text)] += count
    return dict(sorted(merged.items(), key=lambda pair: (-pair[1], pair[0])))


def _tidy(text: str | None) -> str:
    """`text` as one line without control characters, at most MAX_CHARS long, or "unknown" if empty. Idempotent."""
    if not isinstance(text, str):  # a missing value of a table is None or NaN
        return UNKNOWN
    shown = (char for char in text if unicodedata.category(char) != "Cf")  # Cf: only changes how other characters look
    line = "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in shown)
    line = " ".join(line.split())
    return (line if len(line) <= MAX_CHARS else line[: MAX_CHARS - 1].rstrip() + "…") or UNKNOWN


@functools.lru_cache(maxsize=4096)  # millions of objects share a handful of texts
def _resolve(text: str | None, cc: str = "") -> tuple[str, _License | None]:
    tidy = _tidy(text)
    return tidy, _recognise(tidy.rstrip(" .,;"), cc)


def _recognise(tidy: str, cc: str) -> _License | None:
    words = _words(tidy)
    found = _BY_WORDS.get(_key(words)) or _creative_commons(words, cc)
    twice = re.fullmatch(r"([^()]+)\(([^()]+)\)", tidy)  # e.g. "MIT License (MIT)"
    if found is None and twice:
        one, other = (_recognise(part.strip(), cc) for part in twice.groups())
        found = one if one == other else None
    return found


def _words(text: str) -> list[str]:
    """Lower-case words and numbers, with one spelling for each term. Empty if a character is no letter, digit or separator."""
    if text.endswith("…"):  # truncated by `_tidy`: conditions may be missing
        return []
    text = unicodedata.normalize("NFKC", text).lower()
    for link, words in _LINKS:
        text = re.sub(link + _LINK_END, words, text)
    if not all(char.isalnum() or char in _SEPARATORS or unicodedata.category(char) in ("Pd", "Zs") for char in text):
        return []
    text = re.sub(r"\bcc[ -]?0\b(?!\.\d)", " cc zero ", text.replace("_", " ").replace("+", " or later "))
    text = re.sub(r"(?<=[a-z])v(?=\d)|\bv(?:ersion)?\.? ?(?=\d)", " ", text)
    parts = re.findall(r"[^\W\d]+|\d+(?:\.\d+)*", text)
    joined = " ".join(f"{part}.0" if part.isdecimal() else part for part in parts)
    for spelling, term in _SPELLINGS:
        joined = re.sub(spelling, term, joined)
    return _GLUED.sub(lambda match: " ".join(filter(None, match.groups())), joined).split()


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in _NOISE)


def _creative_commons(words: list[str], default: str) -> _License | None:
    """License by its elements in any order: by, nc, nd, sa, or words of a public domain dedication. None if not recognised."""
    versions = sorted({word for word in words if word[0].isdigit()})
    version = versions[0] if versions else ""
    ports = {word for before, word in itertools.pairwise(words) if before in _CC_VERSIONS[:-1]} & _CC_PORTS
    said = {"by" if word == "attribution" else word for word in words} - _CC_NOISE - set(versions) - ports
    if not said or len(versions) > 1 or len(ports) > 1 or version not in ("", *_CC_VERSIONS):
        return None
    if said <= {"pd", "zero", "dedication", "mark"}:
        return None if ports or version not in ("", "1.0") else _public_domain(said, "cc" in words)
    elements = [element for element in _CC_TITLES if element in said]
    if "by" not in said or set(elements) != said or {"nd", "sa"} <= said:
        return None
    name, version, port = "-".join(elements), version or default, "".join(ports)
    title = f"Creative Commons {'-'.join(_CC_TITLES[element] for element in elements)}"
    if not version:
        url = "https://creativecommons.org/share-your-work/cclicenses/"
        return _License(f"CC-{name.upper()}", name, f"{title} (version not given)", url)
    title += f" {version}{f' {port.upper()}' if port else _CC_SUFFIXES.get(version, '')}"
    path = "by-nd-nc" if (name, version) == ("by-nc-nd", "1.0") else name  # address of by-nc-nd 1.0: another order
    url = f"https://creativecommons.org/licenses/{path}/{version}/{f'{port}/' if port else ''}"
    return _License(f"CC-{name.upper()}-{version}{f'-{port.upper()}' if port else ''}", name, title, url)


def _public_domain(said: set[str], by_cc: bool) -> _License | None:
    pages = "https://creativecommons.org/publicdomain"
    if by_cc and "mark" not in said and {"zero", "dedication"} & said and {"zero", "pd"} & said:
        return _License("CC0-1.0", "cc0", "Creative Commons Zero v1.0 Universal", f"{pages}/zero/1.0/")
    if "mark" in said and (by_cc or "pd" in said) and not {"zero", "dedication"} & said:
        return _License("CC-PDM-1.0", "cc0", "Creative Commons Public Domain Mark 1.0", f"{pages}/mark/1.0/")
    return _License("Public Domain", "cc0", "Public domain", "") if "pd" in said and "zero" not in said else None


def _by_words() -> dict[tuple[str, ...], _License]:
    """Key words of every spelling in _TABLE and _GNU -> its license."""
    found: dict[tuple[str, ...], _License] = {}
    for of, lines in _TABLE.items():
        for line in lines.strip().splitlines():
            name, title, *others = (part.strip() for part in line.split("|"))
            page = "https://sketchfab.com/licenses" if name.startswith("Sketchfab") else _spdx(name, of)
            for spelling in (name, title, *others):
                found.setdefault(_key(_words(spelling)), _License(name, of, title, page))
    for short, (title, versions) in _GNU.items():
        found[(short.lower(),)] = _License(short, "copyleft", title, "https://www.gnu.org/licenses/")
        for version in versions:
            for ending in ("", "only", "or later"):
                name = "-".join([short, version, *ending.split()])
                full = " ".join(filter(None, [title, f"v{version}", ending]))
                page = _spdx(name, "copyleft")
                found[(short.lower(), version, *ending.split())] = _License(name, "copyleft", full, page)
    return found


def _spdx(name: str, of: str) -> str:
    listed = of in ("open", "copyleft", "cc0") and name not in ("Apache", "BSD", "MPL", "EPL")
    return f"https://spdx.org/licenses/{name}.html" if listed else ""


_BY_WORDS = _by_words()
