"""A file server on loopback that can be told to misbehave, and to speak the model hub's protocol."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Served:
    """What the server has and how it behaves; `log` collects (method, path, Range, Authorization)."""

    files: dict[str, bytes] = field(default_factory=dict)
    has_ranges: bool = True
    has_validator: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers is cut short (one popped for each GET)."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next GETs; 0 is the normal answer."""
    moved: dict[str, str] = field(default_factory=dict)
    """Where GETs of a path are redirected to."""
    claims_length: int | None = None
    slow_s: float = 0.0
    gated: bool = False
    hub: str = ""
    """Repository name: `/REPO/resolve/REV/FILE` answers as the hub does, redirecting to /cdn/FILE."""
    log: list[tuple[str, str, str, str]] = field(default_factory=list)
    address: str = ""

    def url(self, name: str) -> str:
        """Address of a file."""
        return f"{self.address}/{name}"

    def ranges(self) -> list[str]:
        """The Range headers of all GETs."""
        return [item[2] for item in self.log if item[0] == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        served = self.served
        path = urlsplit(self.path).path
        headers = self.headers
        served.log.append((self.command, path, headers.get("Range", ""), headers.get("Authorization", "")))
        status = served.statuses.pop(0) if has_body and served.statuses else 0
        if status:
            self._plain(status)
        elif has_body and path in served.moved:
            self._plain(302, {"Location": served.moved[path]})
        elif served.hub and path.startswith(f"/{served.hub}/resolve/"):
            self._resolve(path.rpartition("/")[2])
        elif served.hub and "/resolve/" in path:
            self._plain(404, {"X-Error-Code": "RepoNotFound"})
        else:
            data = served.files.get(path.rpartition("/")[2])
            self._plain(404) if data is None else self._file(data, has_body)

    def _resolve(self, name: str) -> None:
        data = self.served.files.get(name)
        if self.served.gated:
            self._plain(403, {"X-Error-Code": "GatedRepo"})
        elif data is None:
            self._plain(404, {"X-Error-Code": "EntryNotFound"})
        else:
            facts = {
                "X-Repo-Commit": "c" * 40,
                "X-Linked-Size": str(len(data)),
                "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Location": f"{self.served.address.replace('127.0.0.1', 'localhost')}/cdn/{name}?signed=1",
            }
            self._plain(302, facts)

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, data: bytes, has_body: bool) -> None:
        served = self.served
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        asked = self.headers.get("Range", "")
        start = 0
        if asked and served.has_ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self._plain(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        claimed = served.claims_length if served.claims_length is not None else len(body)
        self.send_header("Content-Length", str(claimed))
        if served.has_validator:
            self.send_header("ETag", tag)
        self.end_headers()
        if not has_body:
            return
        if served.cut_after:
            body = body[: served.cut_after.pop(0)]
            self.close_connection = True
        if claimed != len(body):
            self.close_connection = True
        try:
            if served.slow_s:
                for at in range(0, len(body), 4096):
                    self.wfile.write(body[at : at + 4096])
                    threading.Event().wait(served.slow_s)
            else:
                self.wfile.write(body)
        except OSError:
            # The client went away, as the test wants it to.
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Runs the server while the block lasts."""
    handler = type("Handler", (_Handler,), {"served": served})
    server = _Server(("127.0.0.1", 0), handler)
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
