"""A mock Hugging Face Hub with one repository `me/net`."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

constants = pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the files of one repository, and stores pushed ones."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (of the one server of a test)

    def do_HEAD(self):
        owner, name, _, revision, file = self.path.strip("/").split("/")
        data = self.files.get(file)
        known = (owner, name) == ("me", "net") and revision in ("main", "v1", COMMIT)
        if not known or data is None:
            self.send_response(404)
            code = "EntryNotFound" if known else "RepoNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def do_GET(self):
        if (data := self.do_HEAD()) is not None:
            self.wfile.write(data)

    def do_POST(self):
        body, action = self.rfile.read(int(self.headers["Content-Length"])), self.path.split("/")
        found: dict = {}
        if "validate-yaml" in action:
            found = {"errors": [], "warnings": []}
        elif "create" in action:
            found = {"url": f"{constants.ENDPOINT}/me/net", "name": "me/net"}
        elif "preupload" in action:
            known = {"uploadMode": "regular", "shouldIgnore": False}
            found = {
                "files": [{"path": file["path"], **known} for file in json.loads(body)["files"]]
            }
        elif "commit" in action:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    value = entry["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{constants.ENDPOINT}/me/net/commit/{COMMIT}"
            found = {"success": True, "commitOid": COMMIT, "commitUrl": url}
        data = json.dumps(found).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def serve(tmp_path, monkeypatch) -> Iterator[dict[str, bytes]]:
    """The files of the hub in `me/net`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(Hub, "files", {})
    yield Hub.files
    server.shutdown()
    server.server_close()
