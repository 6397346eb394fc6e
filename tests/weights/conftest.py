"""A small released file like the original's, and a server that publishes it."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from aa_flax import register_model
from aa_flax.models import registry
from aa_flax.models.densenet import DenseNet
from aa_flax.models.registry import ReleasedWeights
from aa_flax.weights import published
from benchmarks.reference import reference_model

NAME = "mobilenet_v2_lpf4"
TINY = "tiny_densenet_lpf4"  # a small model that is fast to build
register_model(
    "tiny_densenet", partial(DenseNet, (1, 1), growth_rate=4, num_init_features=8), replace=True
)


@pytest.fixture(scope="session")
def reference() -> torch.nn.Module:
    """Returns the original's smallest model, with random weights."""
    return reference_model(NAME)


@pytest.fixture(scope="session")
def released_folder(reference, tmp_path_factory) -> Path:
    """Writes a folder with one file in torch's legacy format, named by its hash."""
    folder = tmp_path_factory.mktemp("released")
    path = folder / "file.pth"
    content = {"state_dict": reference.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(folder / f"{NAME}_finetune-{digest[:8]}.pth")
    return folder


@pytest.fixture
def released(released_folder, monkeypatch) -> ReleasedWeights:
    """Makes that file the only one in the table."""
    (path,) = released_folder.iterdir()
    row = ReleasedWeights(NAME, "finetuned", path.name, path.stem[-8:], 3504872)
    monkeypatch.setattr(registry, "released_weights", lambda: (row,))
    return row


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Sets an empty cache folder, and no local folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AA_FLAX_WEIGHTS", raising=False)
    return tmp_path / "cache" / "aa_flax" / "weights"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; `fault` truncates the file, changes it, or drops the connection."""

    fault: str | None = None
    requests: list[str] = []  # noqa: RUF012 (shared by the handlers of one server)

    def do_GET(self):
        self.requests.append(self.path)
        if self.fault is None:
            super().do_GET()
            return
        body = Path(self.translate_path(self.path)).read_bytes()
        if self.fault == "dropped":
            self.connection.close()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        last = bytes([body[-1] ^ 1])
        self.wfile.write(body[:1000] if self.fault == "truncated" else body[:-1] + last)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(released_folder, monkeypatch) -> Iterator[Callable]:
    """Starts the server, and returns the list of requested paths."""
    servers = []

    def start(fault: str | None = None) -> list[str]:
        handler = type("H", (Handler,), {"fault": fault, "requests": []})
        factory = partial(handler, directory=released_folder)
        server = ThreadingHTTPServer(("127.0.0.1", 0), factory)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(published, "ADDRESSES", dict.fromkeys(published.ADDRESSES, address))
        return handler.requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
