"""An HTTP server in a thread that fails, stalls, truncates and lies as it is told."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAGE = b"<html><body>please log in</body></html>"


class Server:
    """files: contents by path. orders: path -> how the next requests are answered, one word each; then properly.

    ok | status:503 | retry:429:SECONDS | reset | silent | stall | drip | truncate | short | longer | wrong | html | page
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.orders = dict(files), dict[str, list[str]]()
        self.requests: Counter[str] = Counter()
        self.let_go = threading.Event()  # ends what stalls, when the test ends
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def next_order(self, path: str) -> str:
        with self._lock:
            self.requests[path] += 1
            waiting = self.orders.get(path)
            return waiting.pop(0) if waiting else "ok"

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers as the server that owns it was told."""

    owner: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        order = self.owner.next_order(path)
        body = self.owner.files.get(path)
        if body is None:
            self.send_error(404)
        elif order.startswith(("status", "retry")):
            _, code, *wait = order.split(":")
            self.send_response(int(code))
            if wait:
                self.send_header("Retry-After", wait[0])
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            getattr(self, f"_{order}")(body)

    def _head(self, length: int | None, kind: str = "application/x-tar") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _ok(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body)

    def _reset(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: close sends a reset
        self.connection.close()

    def _silent(self, body: bytes) -> None:
        self.owner.let_go.wait()

    def _stall(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.owner.let_go.wait()

    def _drip(self, body: bytes) -> None:
        self._head(len(body))
        try:
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.owner.let_go.wait(0.05):
                    return
        except OSError:
            pass  # the client had enough

    def _truncate(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body[: len(body) // 3])

    def _short(self, body: bytes) -> None:
        self._head(None)
        self.wfile.write(body[:-1])

    def _longer(self, body: bytes) -> None:
        self._head(None)
        self.wfile.write(body + b"more")

    def _wrong(self, body: bytes) -> None:
        self._ok(bytes(byte ^ 1 for byte in body))

    def _html(self, body: bytes) -> None:
        self._head(len(PAGE), "text/html; charset=utf-8")
        self.wfile.write(PAGE)

    def _page(self, body: bytes) -> None:
        self._head(None, "text/html")
        self.wfile.write((PAGE * (len(body) // len(PAGE) + 1))[: len(body)])
