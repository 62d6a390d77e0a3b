"""What the tests' servers share: bounded in time, on loopback alone, and over when their test is."""

from __future__ import annotations

import contextlib
import http.server
import select
import socket
import socketserver
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


class SocksProxy:
    """SOCKS5 proxy (RFC 1928) on a free port of 127.0.0.1, to other ports of it, within a `with` block. asked: ports so far."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.errors: list[str] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._relay(self.request)

        self.server = BoundedServer(Handler, self.errors, threading.Event())  # type: ignore[arg-type]
        self.url = f"socks5h://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> SocksProxy:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stopping.set()
        self.server.stop()
        assert not self.errors

    def _relay(self, client: socket.socket) -> None:
        client.settimeout(60)
        _, count = client.recv(2)
        if 2 in client.recv(count):  # a name and a password (RFC 1929), any
            client.sendall(b"\x05\x02")
            client.recv(client.recv(2)[1])
            client.recv(client.recv(1)[0])
            client.sendall(b"\x01\x00")
        else:
            client.sendall(b"\x05\x00")
        kind = client.recv(4)[3]
        name = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
        port = int.from_bytes(client.recv(2), "big")
        assert name in ("127.0.0.1", "localhost"), name
        self.asked.append(port)
        with socket.create_connection(("127.0.0.1", port), 60) as server:
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            while ready := select.select([client, server], [], [], 60)[0]:
                for one in ready:
                    if not (block := one.recv(65536)):
                        return
                    (server if one is client else client).sendall(block)
