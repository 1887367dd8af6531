#!/usr/bin/env bash
# A snapshot downloaded with allow_patterns is refused offline by snapshot_download, unless the patterns are given again.
# All files that were wanted are in the cache, and the same call without patterns and with local_files_only=True raises
# LocalEntryNotFoundError, naming files that were never wanted: the Hub's list of files is cached beside the snapshot.
# Seen with huggingface-hub 2.4.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface-hub==2.4.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import hashlib, json, os, tempfile, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"config.json": b"{}", "weights.bin": b"x" * 10, "README.md": b"# model"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def answer(self, body):
        path = self.path.split("?")[0]
        if "/tree/" in path:
            content = json.dumps([{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                                  for n, c in FILES.items()]).encode()
        elif path.startswith("/api/"):
            content = json.dumps({"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": n} for n in FILES]}).encode()
        else:
            content = FILES[path.rsplit("/", 1)[1]]
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if "/api/" in path else "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"' + hashlib.sha1(content).hexdigest() + '"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
import huggingface_hub
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
print("huggingface_hub", huggingface_hub.__version__)
with tempfile.TemporaryDirectory() as cache:
    folder = snapshot_download("a/b", allow_patterns=["config.json"], endpoint=url, cache_dir=cache)
    print("downloaded:", sorted(os.listdir(folder)))
    again = snapshot_download("a/b", allow_patterns=["config.json"], endpoint=url, cache_dir=cache, local_files_only=True)
    print("offline, with the patterns:", sorted(os.listdir(again)))
    try:
        snapshot_download("a/b", endpoint=url, cache_dir=cache, local_files_only=True)
        refused = ""
    except LocalEntryNotFoundError as error:
        refused = str(error)
    print("offline, without them:", refused[:160] or "given")
assert refused, "the behaviour has changed"
PYTHON
