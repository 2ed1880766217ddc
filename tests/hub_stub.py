"""A server on this machine that speaks as much of the hub's API as an upload needs, and records
what it is sent."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

BIG_FILES = (".safetensors", ".onnx", ".bin", ".json", ".parquet")  # what the hub stores by LFS


class Request(NamedTuple):
    """A request as the server received it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Hub:
    """The state of the server. `existing` maps repositories to whether they are private."""

    def __init__(self) -> None:
        self.url = ""
        self.existing: dict[str, bool] = {}
        self.failing: dict[str, int] = {}  # part of a path -> status of the answer
        self.requests: list[Request] = []
        self.stored: dict[str, bytes] = {}  # LFS object -> content
        self.committed: dict[str, bytes] = {}  # path in the repository -> content

    def answer(self, request: Request) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        path = request.path
        for part, status in self.failing.items():
            if part in path:
                return status, {"error": f"no {part}, {request.headers.get('Authorization')}"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/repos/create":
            return self.create(json.loads(request.body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return 200, {"files": list(map(upload_mode, json.loads(request.body)["files"]))}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": list(map(self.lfs_action, json.loads(request.body)["objects"]))}
        if path.startswith("/storage/"):
            self.stored[path.removeprefix("/storage/")] = request.body
            return 200, {}
        if "/commit/" in path:
            self.commit(request.body)
            return 200, {"commitUrl": f"{self.url}/me/model/commit/0", "commitOid": "0" * 40}
        name = path.removeprefix("/api/models/")
        if name in self.existing:
            return 200, {"id": name, "private": self.existing[name]}
        return 404, {"error": "Repository not found"}

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Create a repository."""
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.url}/{name}"}
        if name in self.existing:
            return 409, url
        self.existing[name] = asked.get("visibility") == "private"
        return 200, url

    def lfs_action(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where to store a large file."""
        actions = {"upload": {"href": f"{self.url}/storage/{asked['oid']}"}}
        return asked | {"actions": actions}

    def commit(self, body: bytes) -> None:
        """Record the files of a commit."""
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.committed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.committed[value["path"]] = content


def upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    """How a file is to be sent."""
    mode = "lfs" if file["path"].endswith(BIG_FILES) else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = read_body(self)
            request = Request(self.command, self.path.split("?")[0], dict(self.headers), body)
            hub.requests.append(request)
            status, value = hub.answer(request)
            content = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_any  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def read_body(handler: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, sent as one piece or in chunks."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline(), 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)
