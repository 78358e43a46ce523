"""The course design, to be compared with: HTTP, one global lock, one JSON file.

A dict behind a lock, and the whole of it written to the file at each change, without an
fsync. Nothing is done to slow it down: connections are kept alive and a reply is one
packet. Prints its port; ends when it is killed.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = Path("store.json")
store: dict[str, str] = {}
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """GET and PUT of /KEY."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with lock:
            value = store.get(self.path)
        body = (value or "").encode()
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        value = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with lock:
            store[self.path] = value
            with FILE.open("w") as file:
                json.dump(store, file)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
