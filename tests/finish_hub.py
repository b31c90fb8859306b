"""A stand-in for the Hub on this machine: the few lines of its protocol that `finish` uses."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """One repository, `tiny/moe`, whose card validation refuses the word `forbidden`."""

    folder: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        refused = b"forbidden" in self.rfile.read(length)
        self.requests.append(f"POST {self.path}")
        self.send(b"tags: not like this" if refused else b"{}", status=400 if refused else 200)

    def answer(self, body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        files = sorted(path.name for path in self.folder.iterdir())
        name = self.path.rsplit("/", 1)[-1]
        if self.path.startswith("/api/models/tiny/moe/tree/"):
            entries = [
                {"type": "file", "path": file, "size": 1, "oid": SHA, "lastCommit": None}
                for file in files
            ]
            self.send(json.dumps(entries).encode(), body)
        elif self.path.startswith("/api/models/tiny/moe"):
            siblings = [{"rfilename": file} for file in files]
            info = {"id": "tiny/moe", "sha": SHA, "siblings": siblings}
            self.send(json.dumps(info).encode(), body)
        elif self.path.startswith("/tiny/moe/resolve/") and name in files:
            self.send((self.folder / name).read_bytes(), body, etag=name)
        else:
            self.send(b"", body, status=404)

    def send(self, content: bytes, body: bool = True, etag: str = "", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", SHA)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as the repository `tiny/moe`; gives the address and the requests so far."""
    handler = type("Handler", (Hub,), {"folder": folder, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        server.server_close()
