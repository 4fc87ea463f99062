"""A small server of the Hub's upload protocol: repositories, preupload, LFS objects, commits; over real HTTP."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_small"


@dataclass
class SmallHub:
    """What it holds: files by repository and path, and whether a repository is private."""

    url: str = ""
    refuse: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    summaries: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if "Transfer-Encoding" in self.headers:
            body = _chunks(self.rfile)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.hub.refuse and self.hub.refuse in self.path:
            return self.answer(403, {"error": "You don't have the rights to write."})
        return self.answer(200, self.handle_post(body))

    def handle_post(self, body: bytes) -> Any:
        if self.path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.files.setdefault(name, {})
            self.hub.private.setdefault(name, asked.get("visibility") == "private")
            return {"url": f"{self.hub.url}/{name}", "id": name}
        if "/preupload/" in self.path:
            return {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            return {"transfer": "basic", "objects": objects}
        assert "/commit/" in self.path, self.path
        return self.commit(self.path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def commit(self, name: str, body: bytes) -> Any:
        for line in body.decode().splitlines():
            item = json.loads(line)
            match item["key"]:
                case "header":
                    self.hub.summaries.append(item["value"]["summary"])
                case "file":
                    self.hub.files[name][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                case "lfsFile":
                    self.hub.files[name][item["value"]["path"]] = self.hub.objects[item["value"]["oid"]]
        return {"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.hub.url}/{name}/commit/c0ffee"}

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/lfs/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.answer(200, {})

    def answer(self, status: int, values: Any) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", values["error"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    """Serve on a free port of the loopback interface."""
    hub = SmallHub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    is_large = file["path"].endswith(".safetensors")
    return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}


def _chunks(stream: Any) -> bytes:
    content = b""
    while size := int(stream.readline().split(b";")[0], 16):
        content += stream.read(size)
        stream.readline()
    stream.readline()
    return content
