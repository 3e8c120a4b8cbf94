"""One page, shown to this machine alone."""

from __future__ import annotations

import os
import re
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

_HOST = "127.0.0.1"


def serve(page: str, *, port: int = 0, open_browser: bool = True) -> None:
    """Serve a page, and open it in a browser, until Ctrl-C.

    Args:
        port: 0 for any that is free.

    Raises:
        ValueError: the port cannot be had.
    """
    with suppress(KeyboardInterrupt), served(page, port) as address:
        print(f"serving {address} (Ctrl-C to stop)", flush=True)
        if open_browser:
            webbrowser.open(address)
        threading.Event().wait()


@contextmanager
def served(page: str, port: int = 0) -> Iterator[str]:
    """Serve a page from a thread, yield its address, and close the socket in the end.

    Raises:
        ValueError: the port cannot be had.
    """
    try:
        server = _Server((_HOST, port), partial(_Handler, page.encode("utf-8")))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"expected a free port, got {port}: {reason}") from None
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    with server:
        thread.start()
        try:
            yield f"http://{_HOST}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingTCPServer):
    # A browser may hold a connection open and ask by another.
    daemon_threads = True
    # Elsewhere this lets a port be taken from whoever listens at it.
    allow_reuse_address = os.name == "posix"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that goes away in the middle is no error.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, page: bytes, *args: Any) -> None:
        self.page = page
        super().__init__(*args)

    def do_GET(self) -> None:
        hosts = self.headers.get_all("Host", [])
        # A name that leads here is another site's: its pages are not to read this one.
        if len(hosts) != 1 or not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", hosts[0], re.IGNORECASE):
            self._answer(403, b"expected 127.0.0.1 or localhost for a host\n", "text/plain")
        elif self.path.partition("?")[0] == "/":
            self._answer(200, self.page, "text/html")
        elif self.path == "/favicon.ico":
            self._answer(204)
        else:
            self._answer(404, b"there is one page, at /\n", "text/plain")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", kind: str = "") -> None:
        self.send_response(status)
        self.send_header("Cache-Control", "no-store")
        if kind:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
