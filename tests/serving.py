"""What the tests' servers share: bounded in time, on loopback alone, and over when their test is."""

from __future__ import annotations

import contextlib
import http.server
import socket
import sys
import threading
import traceback
from typing import Any


class BoundedServer(http.server.ThreadingHTTPServer):
    """On a free port of 127.0.0.1, a thread per connection; `stop` ends them all. A connection in `resets` ends with a RST.

    errors: tracebacks of what a handler did not expect, unless the server is stopping.
    """

    request_queue_size = 128

    def __init__(
        self, handler: type[http.server.BaseHTTPRequestHandler], errors: list[str], stopping: threading.Event
    ) -> None:
        self.errors, self.stopping = errors, stopping
        self.lock = threading.Lock()
        self.connections: dict[socket.socket, threading.Thread] = {}
        self.resets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self.lock:
            self.connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self.connections.pop(request, None)
        if request in self.resets:  # no FIN before the RST
            self.resets.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError) and not self.stopping.is_set():
            self.errors.append(traceback.format_exc())

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        with self.lock:
            left = list(self.connections.items())
            for connection, _ in left:
                with contextlib.suppress(OSError):  # it may be gone
                    connection.shutdown(socket.SHUT_RDWR)
        for _, thread in left:
            thread.join(10)
