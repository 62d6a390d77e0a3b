"""Licenses: what texts mean, what they mean for a set, and whom to name. Ledgers and shards are real, pictures are not."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import tracemalloc
import typing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import shared
from pipeline.core import licenses
from pipeline.core.errors import UserError
from pipeline.core.licenses import DERIVATIVES, FAMILIES, details, family, is_allowed, normalise, of_sketchfab, tally
from pipeline.core.records import Item, Outcome, Scene, Views
from pipeline.report import attribution
from pipeline.report.attribution import COLUMNS, account, card, findings, hub_license
from pipeline.report.status import read_status, status_text
from pipeline.storage.ledger import Ledger
from pipeline.storage.shards import shard_on_disk
from pipeline.storage.writer import ShardWriter
from tests.conftest import lvsm_data_here

NAMES = {  # text -> name, family
    # Objaverse 1.0, without what Sketchfab says of their version
    "by": ("CC-BY", "by"),
    "by-sa": ("CC-BY-SA", "by-sa"),
    "by-nc": ("CC-BY-NC", "by-nc"),
    "by-nc-sa": ("CC-BY-NC-SA", "by-nc-sa"),
    "by-nd": ("CC-BY-ND", "by-nd"),
    "by-nc-nd": ("CC-BY-NC-ND", "by-nc-nd"),
    "cc0": ("CC0-1.0", "cc0"),
    "st": ("Sketchfab Standard", "reserved"),
    "ed": ("Sketchfab Editorial", "reserved"),
    "free-st": ("Sketchfab Free Standard", "reserved"),
    "CC Attribution-NonCommercial-NoDerivs": ("CC-BY-NC-ND", "by-nc-nd"),
    # GitHub
    "MIT License": ("MIT", "open"),
    "The MIT License (MIT)": ("MIT", "open"),
    "Apache License 2.0": ("Apache-2.0", "open"),
    "Apache License, Version 2.0": ("Apache-2.0", "open"),
    "GNU General Public License v3.0": ("GPL-3.0", "copyleft"),
    "GNU Lesser General Public License v2.1": ("LGPL-2.1", "copyleft"),
    "GNU Affero General Public License v3.0": ("AGPL-3.0", "copyleft"),
    "GPLv2": ("GPL-2.0", "copyleft"),
    "gpl-3.0+": ("GPL-3.0-or-later", "copyleft"),
    "GPL-3.0-only": ("GPL-3.0-only", "copyleft"),
    'BSD 3-Clause "New" or "Revised" License': ("BSD-3-Clause", "open"),
    'BSD 2-Clause "Simplified" License': ("BSD-2-Clause", "open"),
    "BSD Zero Clause License": ("0BSD", "open"),
    "Creative Commons Zero v1.0 Universal": ("CC0-1.0", "cc0"),
    "Creative Commons Attribution 4.0 International": ("CC-BY-4.0", "by"),
    "Creative Commons Attribution Share Alike 4.0 International": ("CC-BY-SA-4.0", "by-sa"),
    "The Unlicense": ("Unlicense", "cc0"),
    "Mozilla Public License 2.0": ("MPL-2.0", "copyleft"),
    "Eclipse Public License 2.0": ("EPL-2.0", "copyleft"),
    "Do What The F*ck You Want To Public License": ("WTFPL", "open"),
    "zlib License": ("Zlib", "open"),
    "ISC License": ("ISC", "open"),
    "Other": ("unknown", "unknown"),
    "NOASSERTION": ("unknown", "unknown"),
    None: ("unknown", "unknown"),
    " \n": ("unknown", "unknown"),
    # Thingiverse
    "Creative Commons - Attribution": ("CC-BY", "by"),
    "Creative Commons - Attribution - Share Alike": ("CC-BY-SA", "by-sa"),
    "Creative Commons - Attribution - Non-Commercial": ("CC-BY-NC", "by-nc"),
    "Creative Commons - Attribution - No Derivatives": ("CC-BY-ND", "by-nd"),
    "Creative Commons - Attribution - Non-Commercial - Share Alike": ("CC-BY-NC-SA", "by-nc-sa"),
    "Creative Commons - Attribution - Non-Commercial - No Derivatives": ("CC-BY-NC-ND", "by-nc-nd"),
    "Creative Commons - Public Domain Dedication": ("CC0-1.0", "cc0"),
    "Public Domain": ("Public Domain", "cc0"),
    "GNU - GPL": ("GPL", "copyleft"),
    "GNU - LGPL": ("LGPL", "copyleft"),
    "BSD License": ("BSD", "open"),
    "All Rights Reserved": ("All Rights Reserved", "reserved"),
    "Attribution - Non-Commercial": ("CC-BY-NC", "by-nc"),
    # SPDX ids, links and other spellings
    "CC-BY-NC-4.0": ("CC-BY-NC-4.0", "by-nc"),
    "cc by-sa 3": ("CC-BY-SA-3.0", "by-sa"),
    "CC_BY_NC_ND_4.0": ("CC-BY-NC-ND-4.0", "by-nc-nd"),
    "CC BY‑NC 4.0": ("CC-BY-NC-4.0", "by-nc"),  # with a hyphen that does not break
    "CC-BY-ND-NC": ("CC-BY-NC-ND", "by-nc-nd"),
    "ccbyncsa": ("CC-BY-NC-SA", "by-nc-sa"),
    "CC-BY-3.0-US": ("CC-BY-3.0-US", "by"),
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": ("CC0-1.0", "cc0"),
    "http://creativecommons.org/licenses/by/4.0/": ("CC-BY-4.0", "by"),
    "https://creativecommons.org/licenses/by-nc-sa/3.0/us/deed.en": ("CC-BY-NC-SA-3.0-US", "by-nc-sa"),
    "https://creativecommons.org/publicdomain/zero/1.0/legalcode": ("CC0-1.0", "cc0"),
    "https://creativecommons.org/publicdomain/mark/1.0/": ("CC-PDM-1.0", "cc0"),
    "CC BY-ND 4.0 (https://creativecommons.org/licenses/by-nd/4.0/)": ("CC-BY-ND-4.0", "by-nd"),
    "https://www.apache.org/licenses/LICENSE-2.0.txt": ("Apache-2.0", "open"),
    "https://opensource.org/licenses/MIT": ("MIT", "open"),
    "https://www.gnu.org/licenses/gpl-3.0.en.html": ("GPL-3.0", "copyleft"),
    "https://spdx.org/licenses/CC-BY-NC-4.0.html": ("CC-BY-NC-4.0", "by-nc"),
}
DOUBTFUL = [
    "Creative Commons",
    "CC",
    "nc",
    "Zero",
    "license",
    "UNLICENSED",
    "CC BY-ND-SA",
    "CC BY 4.0 or CC BY-NC 4.0",
    "CC BY 3.0 / CC BY 4.0",
    "CC-BY-7.0",
    "CC0 with attribution",
    "CC BY 4.0, no AI training",
    "CC BY commercial",
    "CC BY 4.0 非商業",
    "CC BY 🄏",
    "CC BY 4.0 ≠",
    "MIT with Commons Clause",
    "MIT (non-commercial)",
    "MIT/GPL",
    "not MIT",
    "no attribution",
    "GPL-3.0 with an exception",
    "https://example.org/licenses/mit",
    "https://creativecommons.org/licenses/",
    "free for personal use",
    "<i>MIT</i>",
    "MIT " + "x" * 300,
]
WORDS = (
    "cc CC0 Creative Commons by Attribution sa ShareAlike Share Alike nc Non-Commercial nd No Derivatives zero public "
    "domain dedication mark 1.0 3.0 4.0 v4 us ( ) / - + , or and License MIT Apache 2.0 GPL GNU General Public BSD the no "
    "International standard all rights reserved unknown https://creativecommons.org/licenses/by-nc/4.0/"
).split()
sentences = st.lists(st.sampled_from(WORDS), max_size=8).flatmap(
    lambda words: st.sampled_from([" ", "-", " - "]).map(lambda joint: joint.join(words))
)


# ---- what a text means


@pytest.mark.parametrize(("text", "expected"), NAMES.items())
def test_texts_get_the_name_and_family_that_a_lawyer_would_give(text: str | None, expected: tuple[str, str]) -> None:
    assert (normalise(text), family(text), family(normalise(text))) == (*expected, expected[1])
    if text and text.strip():
        for other in (text.upper(), text.lower(), f"  {text} ", f"{text}."):
            assert (normalise(other), family(other)) == expected


@pytest.mark.parametrize("text", DOUBTFUL)
def test_what_is_doubtful_is_kept_and_counts_as_unknown(text: str) -> None:
    assert family(text) == "unknown"
    assert normalise(text) == (text if len(text) < 200 else text[:199] + "…")
    assert not is_allowed(text, DERIVATIVES)


def test_sketchfabs_names_are_of_version_4() -> None:
    assert [of_sketchfab(name) for name in ("by", "by-nc-sa", "cc0", "ed", None)] == [
        "CC-BY-4.0",
        "CC-BY-NC-SA-4.0",
        "CC0-1.0",
        "Sketchfab Editorial",
        "unknown",
    ]
    assert normalise("CC BY 3.0", cc="4.0") == "CC-BY-3.0"


@settings(deadline=None, max_examples=500)
@given(st.text(max_size=300) | sentences, st.sampled_from(["", "4.0"]))
def test_normalising_twice_changes_nothing(text: str, cc: str) -> None:
    name = normalise(text, cc)
    assert normalise(name) == normalise(name, cc="4.0" if cc else "") == name
    assert family(name) == family(text) and family(name) in FAMILIES
    assert 0 < len(name) <= 200 and name.encode().decode() == name and not re.search(r"[\x00-\x1f\x7f-\x9f]", name)


@settings(deadline=None, max_examples=500)
@given(sentences)
def test_no_condition_gets_lost(text: str) -> None:
    words = re.split(r"[^a-z0-9.]+", text.lower())
    facts = FAMILIES[family(text)]
    if {"nc", "non", "noncommercial"} & set(words):
        assert not facts.commercial
    if {"nd", "derivatives"} & set(words):
        assert family(text) not in DERIVATIVES
    if {"sa", "sharealike", "alike"} & set(words):
        assert facts.share_alike or family(text) == "unknown"
    if {"by", "attribution"} & set(words):
        assert facts.attribution or family(text) == "unknown"
    if "no" in words:
        assert family(text) not in DERIVATIVES
    if "or" in words:
        assert family(text) == "unknown"


def test_the_table_is_sound() -> None:
    assert () not in licenses._BY_WORDS  # else whatever has no words would be this license
    for found in licenses._BY_WORDS.values():
        assert normalise(found.name) == found.name and family(found.title) == found.family == family(found.name)
        assert details(found.name) == (found.title, found.url)
    assert set(typing.get_args(shared.LicenseFamily)) == {"any", *FAMILIES}


def test_families_allow_what_they_say() -> None:
    assert DERIVATIVES == ("cc0", "by", "by-sa", "by-nc", "by-nc-sa", "open", "copyleft")
    assert is_allowed("CC-BY-NC-4.0", DERIVATIVES) and not is_allowed("CC-BY-NC-4.0", ["by", "cc0"])
    assert not is_allowed("CC-BY-ND-4.0", DERIVATIVES) and is_allowed("CC-BY-ND-4.0", ["any"])
    assert is_allowed("whatever", ["unknown"]) and is_allowed(None, ["any"])
    for name, facts in FAMILIES.items():
        assert facts.commercial is not ("nc" in name.split("-") or name in ("reserved", "unknown"))
        assert facts.share_alike is ("sa" in name.split("-") or name == "copyleft")


def test_details_name_the_text() -> None:
    title = "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International"
    assert details("CC-BY-NC-SA-4.0") == (title, "https://creativecommons.org/licenses/by-nc-sa/4.0/")
    assert details("CC-BY-3.0-US")[1] == "https://creativecommons.org/licenses/by/3.0/us/"
    assert "4.0" not in "".join(details("CC-BY"))  # nobody said so
    assert details("MIT") == ("MIT License", "https://spdx.org/licenses/MIT.html")
    assert details("unknown") == ("unknown", "") and details("my own") == ("my own", "")
    assert details("https://example.org/terms")[1] == "https://example.org/terms"
    assert details("javascript:alert(1)")[1] == ""


def test_counts_of_several_spellings_are_added() -> None:
    assert list(tally({"cc-by 4.0": 1, "MIT": 3, "CC-BY-4.0": 4, "": 1, "Other": 1}).items()) == [
        ("CC-BY-4.0", 5),
        ("MIT", 3),
        ("unknown", 2),
    ]


# ---- what it means for a run

EVIL = '=HYPERLINK("http://evil","x")'
ITEMS = [
    Item("sf-1", "objaverse", "https://example.org/1.glb", "CC-BY-4.0", "0" * 64,
         {"title": "Chair, \"old\"\nü | <b>", "author": "Ann; Bob", "page": "https://example.org/1"}),
    Item("sf-2", "objaverse", "https://example.org/2.glb", "CC-BY-NC-4.0", "", {"title": EVIL, "author": "-Ann"}),
    Item("@at", "objaverse", "", "CC-BY-SA-4.0", "", {"title": "@SUM(A1)", "author": "\t+1", "page": "http://x"}),
    Item("a \"quoted\", uid\n2", "local", "/home/me/private.glb", "cc0"),
    Item("ü/ｆ", "local", "", "Our own | <terms>", "", {"title": "＝1+1", "author": "nobody"}),
    Item("nd", "objaverse", "", "CC-BY-ND-4.0"),
]  # fmt: skip
FAILED = [Item("bad-1", "objaverse", "", "CC-BY-4.0"), Item("bad-2", "objaverse", "", "Other")]


def scene(item: Item) -> Scene:
    c2w = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    return Scene(item, c2w, {16: Views([b"jpeg"] * 2, np.ones((2, 4), np.float32), (16, 16))}, {})


def make(out: Path, items: list[Item], failed: list[Item] = [], close: bool = True) -> ShardWriter:  # noqa: B006
    """A run's folder as the driver leaves it: journal first, then the ledger."""
    out.mkdir()
    writer = ShardWriter(out, (16,), (), {"config_hash": "0"}, 1e9)
    with Ledger(out / "ledger.sqlite") as ledger:
        for item in items:
            ledger.record(Outcome(item, scene(item)), writer.add(scene(item), "train", 0)[0])
        for item in failed:
            ledger.record(Outcome(item, None, "tiny"), None)
        if close and (shard := writer.close("train")):
            ledger.add_shard(shard)
    return writer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("licenses") / "run"
    make(out, ITEMS, FAILED)
    return out


def test_the_account_of_a_run(run: Path) -> None:
    found = account(run)
    assert found.delivered == dict.fromkeys(sorted(normalise(item.license) for item in ITEMS), 1)
    assert found.failed == {"CC-BY-4.0": 1, "unknown": 1}
    assert found.sources == {"objaverse": 4, "local": 2}
    assert found.total == 6
    assert found.unnamed == 1  # nd; the item in the public domain needs none
    assert attribution.families(found.delivered) == {
        "cc0": 1, "by": 1, "by-sa": 1, "by-nc": 1, "by-nd": 1, "unknown": 1
    }  # fmt: skip
    said = findings(found)
    assert said["commercial use"] == (
        "not allowed: forbidden by 1 object (CC-BY-NC-4.0 1); not known for 1 object (Our own | <terms> 1)"
    )
    assert said["passing on"] == "not as a whole: forbidden by 1 object (CC-BY-ND-4.0 1)"
    assert said["share alike"].startswith("asked for by 1 object (CC-BY-SA-4.0 1)")
    assert said["attribution"].startswith("needed for 4 objects (") and said["attribution"].endswith(
        "; of 1 no author is on record; not known for 1 object (Our own | <terms> 1)"
    )
    assert said["unknown"].startswith("1 object (Our own | <terms> 1)")


@pytest.mark.parametrize(
    ("names", "commercial", "passing_on", "alike", "owed"),
    [
        (["CC0-1.0"], "allowed", "allowed", "not asked for", "not needed"),
        (["CC-BY-4.0", "MIT"], "allowed", "allowed", "not asked for", "needed for 2"),
        (["CC-BY-NC-SA-4.0"], "not allowed: forbidden by 1", "allowed", "asked for by 1", "needed for 1"),
        (["GPL-3.0", "CC0-1.0"], "allowed", "allowed", "asked for by 1 object (GPL-3.0 1)", "needed for 1"),
        (["unknown"], "not allowed: not known for 1", "not as a whole: not known for 1", "not known", "not known"),
        (
            ["MIT", "unknown"],
            "not allowed",
            "not as a whole",
            "not known for 1",
            "needed for 1 object (MIT 1); not known for 1",
        ),
        (["All Rights Reserved"], "not allowed: forb", "not as a whole: forb", "not asked for", "not needed"),
    ],
)
def test_what_licenses_mean_for_the_whole(
    names: list[str], commercial: str, passing_on: str, alike: str, owed: str
) -> None:
    said = findings(attribution.Account(Path("run"), tally(dict.fromkeys(names, 1)), {}, {}, 0))
    assert said["commercial use"].startswith(commercial) and said["passing on"].startswith(passing_on)
    assert said["share alike"].startswith(alike) and said["attribution"].startswith(owed)
    assert ("unknown" in said) is ("unknown" in names)


def test_the_table_reads_back_and_computes_nothing(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "ü.csv"
    account(run, path)
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.to_dict("records") == rows
    assert tuple(frame.columns) == COLUMNS
    uids = sorted((item.uid for item in ITEMS), key=str.encode)
    assert list(frame["uid"]) == [f"'{uid}" if uid.startswith("@") else uid for uid in uids]
    by_uid = {row["uid"]: row for row in rows}
    assert by_uid["sf-1"] == {
        "uid": "sf-1",
        "source": "objaverse",
        "title": 'Chair, "old" ü | <b>',
        "author": "Ann; Bob",
        "license": "CC-BY-4.0",
        "license_url": "https://creativecommons.org/licenses/by/4.0/",
        "page": "https://example.org/1",
        "url": "https://example.org/1.glb",
        "sha256": "0" * 64,
        "shard": "train-000000",
    }
    assert (by_uid["sf-2"]["title"], by_uid["sf-2"]["author"]) == (f"'{EVIL}", "'-Ann")
    assert (by_uid["'@at"]["title"], by_uid["'@at"]["author"]) == ("'@SUM(A1)", "'+1")
    assert by_uid["ü/ｆ"]["title"] == "'＝1+1"
    assert by_uid['a "quoted", uid\n2']["license"] == "CC0-1.0"
    assert "private" not in path.read_text()  # where a local file lies is nobody's business
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_table_is_streamed(tmp_path: Path) -> None:
    make(tmp_path / "run", [])
    count, credit = 20_000, json.dumps({"title": "a chair of some length " * 4, "author": "somebody"})
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        ledger.db.execute("BEGIN")
        ledger.db.executemany(
            "INSERT INTO item (uid, state, license, credit, finished) VALUES (?, 'delivered', 'CC-BY-4.0', ?, 0)",
            ((f"{i * 7919 % count:08d}", credit) for i in range(count)),
        )
        ledger.db.execute("COMMIT")
    tracemalloc.start()
    found = account(tmp_path / "run", tmp_path / "all.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.total == count and peak < 2e6
    assert list(pd.read_csv(tmp_path / "all.csv", dtype=str)["uid"]) == [f"{i:08d}" for i in range(count)]


def test_shards_may_be_gone_and_the_run_may_go_on(tmp_path: Path) -> None:
    writer = make(tmp_path / "run", ITEMS[:1])
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        ledger.db.execute("UPDATE shard SET state = 'deleted'")
        (tmp_path / "run" / "16" / "train-000000.parquet").unlink()
        ledger.record(Outcome(ITEMS[1], scene(ITEMS[1])), writer.add(scene(ITEMS[1]), "train", 1)[0])
        ledger.flush()
        found = account(tmp_path / "run", tmp_path / "out.csv")  # the driver's own connection is still open
        writer.close("train")
    assert found.delivered == {"CC-BY-4.0": 1, "CC-BY-NC-4.0": 1}
    assert list(pd.read_csv(tmp_path / "out.csv")["shard"]) == ["train-000000", "train-000001"]


def test_a_crash_between_journal_and_ledger_loses_no_license(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    writer = ShardWriter(out, (16,), (), {"config_hash": "0"}, 1e9)
    for item in ITEMS:
        writer.add(scene(item), "train", 0)
    writer.open["train-000000"].sink.close()  # kill -9 before any of their lines
    (recovered,) = ShardWriter(out, (16,), (), {"config_hash": "0"}, 1e9).recover()
    for shard in (recovered, shard_on_disk(out, (16,), "train-000000")):
        (out / "ledger.sqlite").unlink(missing_ok=True)
        with Ledger(out / "ledger.sqlite") as ledger:
            ledger.add_shard(shard)
        found = account(out, tmp_path / "out.csv")
        assert found.delivered == dict.fromkeys(sorted(normalise(item.license) for item in ITEMS), 1)
        assert (found.sources, found.unnamed) == ({"objaverse": 4, "local": 2}, 1)
        rows = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False).set_index("uid")
        assert tuple(rows.loc["sf-1", ["author", "sha256"]]) == ("Ann; Bob", "0" * 64)


# ---- the card


def test_the_card_of_a_mixed_set(run: Path, tmp_path: Path) -> None:
    found = account(run, tmp_path / "data" / "credits (all).csv")
    text = attribution.write_card(found, tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == text
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "other", "license_name": "per-object", "license_link": "data/credits (all).csv"
    }  # fmt: skip
    assert "| [Creative Commons Attribution 4.0 International (CC-BY-4.0)]" in body
    assert "(https://creativecommons.org/licenses/by/4.0/) | 1 | name the author |" in body
    assert "| Our own \\| &lt;terms&gt; | 1 | nothing is known, so nothing is allowed |" in body
    assert "| objaverse | 4 |" in body and "(data/credits%20%28all%29.csv)" in body
    for line in body.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
    assert "needed for 4 objects" in body and "<terms>" not in body


def test_the_card_of_a_set_of_one_license(tmp_path: Path) -> None:
    make(tmp_path / "run", [Item(f"p{i}", "procedural", license="CC0-1.0") for i in range(3)])
    text = card(account(tmp_path / "run"))
    assert yaml.safe_load(text.split("---\n")[1]) == {"license": "cc0-1.0"}
    assert "Commercial use: allowed by every license." in text and "--attribution attribution.csv" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CC-BY-4.0", "cc-by-4.0"),
        ("CC-BY", "cc"),
        ("CC-BY-3.0-US", "cc"),
        ("GPL-3.0-or-later", "gpl-3.0"),
        ("GFDL-1.3", "gfdl"),
        ("ODbL-1.0", "odbl"),
        ("BSD", "bsd"),
        ("BSD-4-Clause", "other"),
        ("Sketchfab Standard", "other"),
        ("our own", "unknown"),
    ],
)
def test_ids_of_the_hub(name: str, expected: str) -> None:
    assert hub_license({name: 3}) == expected
    assert hub_license({name: 3, "MIT": 1}) == "other"


# ---- the command line, and status


def test_the_verb(run: Path, tmp_path: Path) -> None:
    table, paper = tmp_path / "out.csv", tmp_path / "card.md"
    done = lvsm_data_here("licenses", run, "--attribution", table, "--card", paper)
    assert done.returncode == 0, done.stderr
    assert f"{run}: 6 objects delivered, 2 failed" in done.stdout
    assert "delivered by family: cc0 1, by 1, by-sa 1, by-nc 1, by-nd 1, unknown 1" in done.stdout
    assert "failed by family: by 1, unknown 1" in done.stdout
    assert "commercial use: not allowed: forbidden by 1 object (CC-BY-NC-4.0 1)" in done.stdout
    assert paper.read_text(encoding="utf-8") in done.stdout and len(pd.read_csv(table)) == 6
    found = json.loads(lvsm_data_here("licenses", run, "--json").stdout)
    assert (found["delivered"], found["licenses"]["CC-BY-4.0"], found["families"]["by"]) == (6, 1, 1)
    assert found["failed"] == {"licenses": {"CC-BY-4.0": 1, "unknown": 1}, "families": {"by": 1, "unknown": 1}}
    assert (found["commercial_use_allowed"], found["derivatives_allowed"]) == (False, False)
    assert (found["attribution_needed"], found["author_not_on_record"], found["hub_license"]) == (4, 1, "other")


def test_bad_input_gets_two_lines_and_status_2(run: Path, tmp_path: Path) -> None:
    make(tmp_path / "empty", [])
    (tmp_path / "no database").mkdir()
    (tmp_path / "no database" / "ledger.sqlite").write_text("no database, but long enough to be one" * 100)
    (tmp_path / "file").write_text("")
    for arguments, says in [
        ((tmp_path,), "holds no run"),
        ((tmp_path / "no database",), "cannot be read"),
        ((run, "--attribution", tmp_path), "--attribution " + str(tmp_path) + " is a folder"),
        ((run, "--attribution", tmp_path / "file" / "out.csv"), "cannot be written"),
        ((run, "--card", tmp_path / "x", "--attribution", tmp_path / "x"), "--card and --attribution both name"),
        ((tmp_path / "empty", "--card", tmp_path / "card.md"), "delivered nothing yet"),
    ]:
        done = lvsm_data_here("licenses", *arguments)
        assert done.returncode == 2 and says in done.stderr, (arguments, done.stderr)
        assert done.stderr.startswith("error: ") and "hint: " in done.stderr
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "card.md").exists()
    nothing = lvsm_data_here("licenses", tmp_path / "empty")
    assert (nothing.returncode, nothing.stdout) == (0, f"{tmp_path / 'empty'}: 0 objects delivered, 0 failed\n")


def test_a_broken_write_leaves_the_old_table(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.csv").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attribution, "_write_table", full)
    with pytest.raises(UserError, match="No space left"):
        account(run, tmp_path / "out.csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv", "old")]


def test_status_counts_licenses(run: Path, tmp_path: Path) -> None:
    status = read_status(run)
    assert status["licenses"] == account(run).delivered and json.dumps(status)
    assert "licenses: CC-BY-4.0 1, CC-BY-NC-4.0 1, CC-BY-ND-4.0 1, CC-BY-SA-4.0 1, CC0-1.0 1, Our own" in (
        status_text(status)
    )
    make(tmp_path / "many", [dataclasses.replace(ITEMS[3], uid=f"{i}", license=f"own {i}") for i in range(9)])
    assert "own 5 1 and 3 more" in status_text(read_status(tmp_path / "many"))
    make(tmp_path / "none", [])
    assert "licenses:" not in status_text(read_status(tmp_path / "none"))
