"""HTTP server for the browser of this machine's user: it answers to its own name alone, to pages of its own, and only GET."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.core.errors import UserError

HOST = "127.0.0.1"
LONGEST = 2000  # characters of a path with its numbers
IDLE_S = 60.0  # that a connection may say nothing
WORD = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """What a browser gets. more: further headers."""

    body: bytes
    kind: str
    status: int = 200
    more: Mapping[str, str] = field(default_factory=dict)


def said(status: int, text: str) -> Answer:
    """Answer of a line of text."""
    return Answer(f"{text}\n".encode(), WORD, status)


class LocalServer(ThreadingHTTPServer):
    """Server at a port of this machine alone, 0 for one that is free. It listens at once, and answers from `begin` on.

    answer: function (path, query) -> Answer, called in any thread. Raises UserError where the port cannot be had.
    """

    request_queue_size = 128  # connections that wait to be taken: beyond these, browsers try again after seconds

    def __init__(self, port: int, answer: Callable[[str, str], Answer]) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise UserError(f"port {port} of {HOST} {why}", "--serve 0 for one that is free") from None
        self.answer = answer
        # what a browser says that was asked for this place: others who make a name of theirs point here are not answered
        self.hosts = {name + ("" if port == 80 else f":{self.server_port}") for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def begin(self) -> None:
        """Answer, in threads of their own, until `shutdown`."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that are gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Refuses what is none of a page's requests, and hands the others to the server's function."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    disable_nagle_algorithm = True  # else an answer waits 40 ms for the browser to confirm its head

    def do_GET(self) -> None:
        """Answer, or say in a line of text why not."""
        self._send(self._answered())

    def _answered(self) -> Answer:
        path, _, query = self.path.partition("?")
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            return said(421, f"this is {self.server.url}, and was asked for as another place")
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            return said(413, "requests have no body")
        if len(self.path) > LONGEST:
            return said(414, f"addresses have at most {LONGEST} characters")
        if path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            return said(403, "this is for the page of this place")
        return self.server.answer(path, query)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        usual = {
            "Content-Type": answer.kind,
            "Content-Length": str(len(answer.body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close" if answer.status in (413, 503) else "keep-alive",  # a body that follows is not read
        }
        for name, value in (usual | dict(answer.more)).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what was answered."""
