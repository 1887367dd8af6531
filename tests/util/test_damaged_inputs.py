"""Inputs that fuzzing found to end in a traceback, a hang or a wrong result, each as small as possible."""

from __future__ import annotations

import io
import json
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from undiffuse import downloads
from undiffuse.adapters import pickled
from undiffuse.adapters.diffusers_unet import multipliers
from undiffuse.data import open_data
from undiffuse.data.decoding import read_header
from undiffuse.nets import UNetConfig
from undiffuse.nets.blocks import norm_groups
from undiffuse.reports import write_report
from undiffuse.util.limits import is_zip, open_npz, open_zip
from undiffuse.util.store import RowStore


@pytest.mark.parametrize("line", [b"5", b"0.5", b"true", b'"text"', b"null"])
def test_a_table_whose_first_line_is_no_object(tmp_path: Path, line: bytes) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"metadata\.jsonl|cannot be read"):
        open_data(tmp_path)


def test_networks_of_impossible_sizes() -> None:
    small = UNetConfig(image_size=8, model_channels=8, channel_mult=(1,), num_res_blocks=1)
    for change in ({"num_res_blocks": 2**63 - 1}, {"model_channels": 2**40}, {"in_channels": 2**31}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be 1 to "):
            UNetConfig(**{**vars(small), **change})
    for mult in (1e30, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="channel_mult|multiplier"):
            UNetConfig(**{**vars(small), "channel_mult": (mult,)})


def test_groups_of_any_number_of_channels() -> None:
    slow: Callable[[int], int] = lambda n: max(g for g in range(1, max(1, n // 4) + 1) if n % g == 0)  # noqa: E731
    assert all(norm_groups(n) == (32 if n % 32 == 0 else slow(n)) for n in range(1, 400))


def test_widths_that_are_no_multiples() -> None:
    assert multipliers((8, 16, 12)) == (1, 2, 1.5)
    with pytest.raises(ValueError, match="block_out_channels"):
        multipliers((2**62 + 1, 3**39))


@pytest.mark.parametrize(
    "damage", [lambda d: d.replace(b"PK\x01\x02\x14", b"PK\x01\x02\xff"), lambda d: d + b"PK\x06\x07"]
)
def test_zips_that_need_another_version(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "a.zip").write_bytes(damage(file.getvalue()).replace(b"\x14\x03\x14", b"\x14\x03\xff"))
    assert is_zip(tmp_path / "a.zip") in (True, False)
    with pytest.raises((zipfile.BadZipFile, ValueError)):
        with open_zip(tmp_path / "a.zip") as archive:
            archive.testzip()
        raise ValueError("it can be read after all")


def test_an_array_is_no_archive(tmp_path: Path) -> None:
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="holds a single array"):
        open_npz(tmp_path / "a.npz")


def test_a_pickle_that_says_it_is_longer_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"x.")
    with pytest.raises(pickled.Refused, match="damaged"):
        pickled.read(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": [1, "x" * 100_000]}, protocol=4))
    assert pickled.read(tmp_path / "b.pkl") == {"a": [1, "x" * 100_000]}


def test_a_picture_that_pillow_takes_for_an_attack() -> None:
    data = bytearray(b"GIF89a\x08\0\x08\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;")
    with pytest.raises(ValueError, match="header is too large"):
        read_header(io.BytesIO(bytes(data)), max_pixels=1 << 40)


def test_damaged_rows_are_measured_again(tmp_path: Path) -> None:
    file, settings = tmp_path / "rows.jsonl", {"seed": 1}
    store = RowStore(file, settings, "rows")
    for k in range(3):
        store.write({"images": [k], "total": [0.125 * k]})
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace("0.125", "0.135")
    file.write_text("\n".join(lines) + "\n")
    again = RowStore(file, settings, "rows")
    assert again.missing(3) == [1]
    assert [row["total"] for row in again.rows] == [[0.0], [0.25]]
    older = [json.dumps({k: v for k, v in json.loads(line).items() if k != "crc32"}) for line in lines]
    file.write_text("\n".join([*older, '{"images": "ab"}', "5", '{"images": [-1]}']) + "\n")
    assert RowStore(file, settings, "rows").missing(4) == [3]


def test_records_of_a_run_that_lack_something(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"train": {"batch": 4}}')
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "images": 8, "steps": 2}\n')
    with pytest.raises(ValueError, match="cannot be read, because its content has an unexpected form: it lacks"):
        write_report([tmp_path / "run"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_redirection_is_not_read_to_its_end(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/there":
                self.send_response(200)
                self.send_header("Content-Length", "3")
                self.end_headers()
                self.wfile.write(b"abc")
                return
            self.send_response(302)
            self.send_header("Location", "/there")
            self.send_header("Content-Length", "99999999999999999999")
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/here"
        sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert downloads.fetch(url, tmp_path / "a", sha256=sha, retries=0, timeout=5).read_bytes() == b"abc"
    finally:
        server.shutdown()
        server.server_close()
