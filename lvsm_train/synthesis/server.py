"""Page on this machine that shows what a model makes of any camera: a small HTTP server for one user's browser."""

from __future__ import annotations

import dataclasses
import json
import math
import urllib.parse
from concurrent.futures import CancelledError

from lvsm_train.synthesis.live import Live, Wish
from lvsm_train.synthesis.routes import Viewpoint
from lvsm_train.synthesis.synthesize import device_name
from pipeline.core.signals import first_interrupt
from pipeline.report import markup
from pipeline.viewer.local_server import Answer, LocalServer, said

# bounds of a viewpoint, both ways; the others are lengths
ANGLES = {"azimuth": 360.0, "elevation": 90.0, "roll": 360.0}
NUMBERS = tuple(field.name for field in dataclasses.fields(Viewpoint))


class Server(LocalServer):
    """Server of the page at a port of this machine, 0 for one that is free. Raises UserError where it cannot be had."""

    def __init__(self, port: int) -> None:
        super().__init__(port, self._answer)
        self.live: Live
        self.page = b""

    def serve(self, live: Live) -> None:
        """Show the page until Ctrl-C, or until `live.newest` is closed. Views are rendered in this thread."""
        self.live, self.page = live, page_of(live).encode(errors="replace")
        with first_interrupt(live.newest.close):
            self.begin()
            try:
                live.work()
            finally:
                self.shutdown()

    def _answer(self, path: str, query: str) -> Answer:
        """Answer with the page, or with a view as JSON."""
        if path == "/" and not query:
            return Answer(self.page, "text/html; charset=utf-8")
        return self._view(query) if path == "/view" else said(404, "there are / and /view")

    def _view(self, query: str) -> Answer:
        try:
            wish = wish_of(query, self.live)
        except ValueError as error:
            return said(400, str(error))
        try:
            found = self.live.newest.ask(wish).result()
        except CancelledError:
            if self.live.newest.is_open:
                return said(409, "a newer view was asked for")
            return said(503, "the program has ended")
        return Answer(json.dumps(found).encode(), "application/json")


def page_of(live: Live) -> str:
    """HTML of the page."""
    made, trained = live.seen.plan, live.seen.model.trained
    return str(
        markup.render(
            "live.html",
            title=f"Views of {made.album.name}",
            lead=f"Out of {len(made.inputs)} of {len(made.album)} photos, {made.choice}. Step {trained.step} of {trained.run}.",
            hw=made.hw,
            device=device_name(live.seen.model),
            warnings=made.warnings,
            photos=live.thumbnails(),
            data=live.page(),
        )
    )


def wish_of(query: str, live: Live) -> Wish:
    """Wish that the query of an address asks for. Raises ValueError, which says what is wrong, for any but the known numbers."""
    pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=20)
    given = dict(pairs)
    if sorted(given) != sorted([*NUMBERS, "lens"]) or len(given) < len(pairs):
        raise ValueError(f"a view has {', '.join(NUMBERS)} and lens, each once")
    numbers = {name: _number(name, given[name], ANGLES.get(name, live.farthest)) for name in NUMBERS}
    if (lens := given["lens"]) not in map(str, range(len(live.lenses))):
        raise ValueError(f"lens is a number from 0 to {len(live.lenses) - 1}")
    return Wish(Viewpoint(**numbers), int(lens))


def _number(name: str, text: str, bound: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= bound:
        raise ValueError(f"{name} is a number from {-bound:g} to {bound:g}")
    return number
