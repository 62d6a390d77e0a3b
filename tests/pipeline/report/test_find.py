"""The page's search field, in a real browser: objects by uid, source and caption."""

from __future__ import annotations

import html
from pathlib import Path

from pipeline.core.records import Item, Scene
from pipeline.report.page import write_page
from tests.pipeline.report.test_page import EVIL, Maker, data_of, dom, needs_browser, scene

FIND = """<script>
const shown = () => tiles.map((tile, i) => tile.hidden ? "" : i).join("");
const type = text => { el("find").value = text; el("find").dispatchEvent(new InputEvent("input")); return shown(); };
const press = key => el("find").dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
facts.typed = ["", "WOODEN chair", "chair", "objaverse plain", "<B>", "\\u00dcBER", "plain-2", "nothing like it"].map(type);
facts.none = el("found").textContent;
type("wooden"); press("Enter");
facts.entered = [open.index, open.panel.querySelector(".caption").textContent, el("found").textContent];
type("plain-2"); facts.closed = [open.panel.hidden, open.panel.checkVisibility()];
press("Escape"); facts.escaped = [shown(), open.panel.hidden, el("found").textContent];
facts.tab = [el("find").tabIndex, ...[".tile .caption", "#sheet b:not(.split)"].map(x => document.querySelectorAll(x).length)];
type("plain-2"); location.hash = "#plain-0"; openFragment(); facts.fragment = [shown(), open.index];
</script></body>"""


@needs_browser
def test_browser_finds_objects_by_uid_source_and_caption(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "run", columns=("caption",))
    texts = ("A wooden <b>chair</b>, with arms", "a chair" + EVIL, "", "über \u202ealles")
    for number, (text, source) in enumerate(zip(texts, ("local", "objaverse", "objaverse", "local"), strict=True)):
        one = scene(f"plain-{number}")
        item = Item(one.item.uid, source, license="CC0-1.0", extra={"caption": text})
        maker.deliver(Scene(item, one.c2w, one.by_width, one.meta))
    maker.close("train")
    maker.ledger.db.close()
    page = write_page(maker.out, tmp_path / "p.html")
    assert [(tile["caption"], tile["source"]) for tile in data_of(page)][:2] == [
        (texts[0], "local"),
        (texts[1], "objaverse"),
    ]
    typed = tmp_path / "typed.html"
    typed.write_text(page.read_text().replace("</body>", FIND))
    _, facts, console = dom(typed, "", tmp_path)
    assert console == [] and "pwned" not in facts and "error" not in facts
    assert facts["typed"] == "0123,0,01,12,0,3,2," and facts["none"] == "0 of 4 objects"
    assert html.unescape(facts["entered"]) == f"0,{texts[0]},1 of 4 objects"
    assert facts["closed"] == "true,false" and facts["escaped"] == "0123,false,"
    assert facts["tab"] == "0,3,0"  # reached by the keyboard; a caption's markup is text
    assert facts["fragment"] == "0123,0"
