"""Page on this machine that shows what a model makes of any camera: a small HTTP server for one user's browser."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import sys
import threading
import urllib.parse
from concurrent.futures import CancelledError
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lvsm_train.synthesis.live import Live, Wish
from lvsm_train.synthesis.routes import Viewpoint
from lvsm_train.synthesis.synthesize import device_name
from pipeline.core.errors import UserError
from pipeline.core.signals import first_interrupt
from pipeline.report import markup

HOST = "127.0.0.1"
LONGEST = 2000  # characters of a path with its numbers
IDLE_S = 60.0  # that a connection may say nothing
ANGLES = {
    "azimuth": 360.0,
    "elevation": 90.0,
    "roll": 360.0,
}  # bounds of a viewpoint, both ways; the others are lengths
NUMBERS = tuple(field.name for field in dataclasses.fields(Viewpoint))
WORD = "text/plain; charset=utf-8"


class Server(ThreadingHTTPServer):
    """Server at a port of this machine alone, 0 for one that is free. It listens at once, and answers from `serve` on.

    Raises UserError where the port cannot be had.
    """

    def __init__(self, port: int) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise UserError(f"port {port} of {HOST} {why}", "--serve 0 for one that is free") from None
        self.live: Live
        self.page = b""
        # what a browser says that was asked for this place: others who make a name of theirs point here are not answered
        self.hosts = {name + ("" if port == 80 else f":{self.server_port}") for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def serve(self, live: Live) -> None:
        """Show the page until Ctrl-C, or until `live.newest` is closed. Views are rendered in this thread."""
        self.live, self.page = live, page_of(live).encode(errors="replace")
        listener = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        with first_interrupt(live.newest.close):
            listener.start()
            try:
                live.work()
            finally:
                self.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that are gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


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
    if sorted(given) != sorted([*NUMBERS, "lens", "moving"]) or len(given) < len(pairs):
        raise ValueError(f"a view has {', '.join(NUMBERS)}, lens and moving, each once")
    numbers = {name: _number(name, given[name], ANGLES.get(name, live.farthest)) for name in NUMBERS}
    lens, moving = given["lens"], given["moving"]
    if lens not in map(str, range(len(live.lenses))):
        raise ValueError(f"lens is a number from 0 to {len(live.lenses) - 1}")
    if moving not in ("0", "1"):
        raise ValueError("moving is 0 or 1")
    return Wish(Viewpoint(**numbers), int(lens), moving == "1")


def _number(name: str, text: str, bound: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= bound:
        raise ValueError(f"{name} is a number from {-bound:g} to {bound:g}")
    return number


class _Handler(BaseHTTPRequestHandler):
    """Answers of the server: the page, and a view as JSON."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Answer, or say in a line of text why not."""
        path, _, query = self.path.partition("?")
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            self._say(421, f"this is {self.server.url}, and was asked for as another place")
        elif self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self._say(413, "requests have no body")
        elif len(self.path) > LONGEST:
            self._say(414, f"addresses have at most {LONGEST} characters")
        elif path == "/" and not query:
            self._answer(200, "text/html; charset=utf-8", self.server.page)
        elif path == "/view":
            self._view(query)
        else:
            self._say(404, "there are / and /view")

    def _view(self, query: str) -> None:
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            self._say(403, "views are for the page of this place")
            return
        try:
            wish = wish_of(query, self.server.live)
        except ValueError as error:
            self._say(400, str(error))
            return
        try:
            found = self.server.live.newest.ask(wish).result()
        except CancelledError:
            if self.server.live.newest.is_open:
                self._say(409, "a newer view was asked for")
            else:
                self._say(503, "the program has ended")
            return
        self._answer(200, "application/json", json.dumps(found).encode())

    def _say(self, status: int, text: str) -> None:
        self._answer(status, WORD, f"{text}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close" if status in (413, 503) else "keep-alive",  # a body that follows is not read
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what was answered."""
