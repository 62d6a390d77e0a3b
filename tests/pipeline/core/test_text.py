"""What strangers wrote is shown, and nothing in it is obeyed: by a terminal, by rich, by a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.core.records import Item, Outcome
from pipeline.core.text import cell, plain
from pipeline.run.progress import panel
from pipeline.storage.ledger import Ledger
from tests.conftest import lvsm_data
from tests.warm import COMMAND

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "title, ended by ST": "\x1b]0;owned\x1b\\",
    "title, in eight bits": "\x9d0;owned\x9c",
    "clears the screen": "\x1b[2J\x1b[H",
    "moves back": "\r\x08\x08",
    "colour": "\x1b[31;1m",
    "device control": "\x1bPowned\x1b\\",
    "turns direction": "\u202egnp.exe",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_text_around_what_a_terminal_obeys_stays(kind: str) -> None:
    left = plain(f"before {HOSTILE[kind]}after")
    assert left.startswith("before ") and left.endswith("after") and "owned" not in left


@given(st.text())
@example("a\tb\nc")
@example("\x1b[")
@example("\x1b\x1b]0;x\x07\x07")
@example("\x1b\x1b[0m[31m")
def test_nothing_is_left_for_a_terminal(text: str) -> None:
    left = plain(text)
    assert not [one for one in left if unicodedata.category(one) == "Cc" and one not in "\t\n"]
    assert plain(left) == left
    assert all(one in text for one in left)


@given(st.text())
def test_text_of_letters_stays_as_it_is(text: str) -> None:
    kept = "".join(one for one in text if unicodedata.category(one) not in ("Cc", "Cf"))
    assert plain(kept) == kept


@given(st.text(), st.sampled_from("=+-@＝"))
def test_no_cell_is_computed(text: str, first: str) -> None:
    for made in (cell(first + text), cell("\x1b[0m" + first + text)):
        assert made.startswith("'")
    found = cell(text)
    assert not found.lstrip().startswith(("=", "+", "-", "@")) and found in (plain(text), f"'{plain(text)}")
    sink = io.StringIO()
    csv.writer(sink).writerow([cell(text)])
    assert "\x1b" not in sink.getvalue()


def test_every_verb_shows_hostile_names_without_obeying_them(tmp_path: Path) -> None:
    """In uids, licenses and details of a run, on a pipe; nor does its table of whom to name, nor the live panel."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for number, text in enumerate(HOSTILE.values()):
            uid = f"{text}object-{number}"
            item = Item(
                uid, f"local{text}", f"https://x/{text}", f"CC-BY-4.0{text}", credit={"author": f"{text}somebody"}
            )
            ledger.record(Outcome(item, None, "tiny", f"{text} seen"), None)
    table = tmp_path / "table.csv"
    for words in (("status",), ("verify",), ("licenses", "--attribution", table), ("audit",), ("view",)):
        ended = lvsm_data(words[0], tmp_path, *words[1:])
        said = ended.stdout + ended.stderr
        assert "Traceback" not in said and plain(said) == said, (words, said)
        if words == ("status",):
            assert "object-0: tiny" in said
    written = table.read_bytes().decode()
    assert plain(written.replace("\r\n", "\n")) == written.replace("\r\n", "\n")


def test_names_are_shown_where_only_ascii_can_be(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.record(Outcome(Item("f\xfcr", "local"), None, "tiny", ""), None)
    ascii_alone = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    ended = subprocess.run([COMMAND, "status", tmp_path], env=ascii_alone, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0 and "f\\xfcr: tiny" in ended.stdout, ended.stderr


def test_the_panel_shows_uids_as_they_are(tmp_path: Path) -> None:
    """[red] and [/] are no markup of rich, which would refuse the second."""
    worker = {"worker": 0, "done": 1, "uid": "\x1b]0;owned\x07[/red][bold]object", "views": 2, "seconds": 1.0}
    status = {"n": 2, "delivered": 1, "failed": 0, "reasons": {}, "downloads": {}, "uploads": {}, "views_per_s": 1.0}
    status |= {"objects_per_h": 1.0, "eta_s": None, "bytes_written": 0, "workers": [worker]}
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, width=100).print(panel(status))
    assert "[/red][bold]object" in screen.getvalue() and "\x1b]" not in screen.getvalue()
