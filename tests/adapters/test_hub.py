"""Models on the Hub, against a local server that has the few routes huggingface_hub needs."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.adapters.test_diffusers_folders import holds, pipeline
from undiffuse.adapters import hub
from undiffuse.downloads import DownloadError
from undiffuse.models import load_diffusion

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Serves the files of a folder as the model someone/model; `got` are the files that were fetched."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.got = folder, []  # type: ignore[var-annotated]

    @property
    def files(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        if path.startswith("/api/models/someone/model/tree/"):
            self.json([self.entry(name) for name in self.server.files])
        elif path.startswith("/api/models/someone/model"):
            self.json({"id": "someone/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.server.files]})
        elif path.startswith("/someone/model/resolve/"):
            name = path.split("/", 5)[5]
            if name not in self.server.files:
                self.send_error(404)
                return
            content = (self.server.folder / name).read_bytes()
            if body:
                self.server.got.append(name)
            self.reply(content, "application/octet-stream", body)
        else:
            self.send_error(404)

    def entry(self, name: str) -> dict[str, object]:
        content = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def json(self, content: object) -> None:
        self.reply(json.dumps(content).encode(), "application/json", True)

    def reply(self, content: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")
    folder = pipeline(tmp_path / "model")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"never fetched")
    (folder / "README.md").write_text("never fetched")
    served = Server(folder)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{served.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    yield served
    served.shutdown()
    served.server_close()


def test_a_model_is_brought_here_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert holds("hf:someone/model")
    expected = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors"]  # fmt: skip
    assert sorted(server.got) == expected
    assert holds("hf:someone/model@main")
    assert load_diffusion("hf:someone/model@variance=fixed_large").process.variance == "fixed_large"
    assert sorted(server.got) == expected
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    assert holds("hf:someone/model")


def test_what_is_not_there_is_one_clear_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="cannot download hf:someone/other"):
        load_diffusion("hf:someone/other")
    monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
    with pytest.raises(DownloadError, match="cannot download hf:someone/else"):
        load_diffusion("hf:someone/else")


@pytest.mark.parametrize("name", ["hf:model", "hf:", "hf:a/b/c", "hf:/a"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="expected hf:OWNER/NAME"):
        hub.snapshot(name)


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadError, match=r'pip install "undiffuse\[hub\]"'):
        load_diffusion("hf:someone/model")


def test_files_that_are_wanted() -> None:
    stem = "diffusion_pytorch_model"
    assert hub.wanted([f"{stem}.bin", "config.json", "x.png"]) == ["config.json", f"{stem}.bin"]
    assert hub.wanted([f"unet/{stem}.fp16.safetensors"]) == [f"unet/{stem}.fp16.safetensors"]
    shards = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)] + [f"{stem}.safetensors.index.json"]
    assert set(hub.wanted([*shards, f"{stem}.bin", f"{stem}.non_ema.bin"])) == set(shards)
