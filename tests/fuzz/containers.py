"""Doors of data: arrays, archives, tables, pictures, and the files of other programs."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import random
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.damage import ODD_NUMBERS, damaged, odd, odd_json
from fuzz.own import Made, Silent, png

HONEST = np.arange(64, dtype=np.uint8).reshape(8, 8)


def pixels(path: Path) -> None:
    """Opens data and looks at the first pictures, as a training would."""
    from undiffuse.data import open_data

    source = open_data(path)
    for i in range(min(len(source), 3)):
        source.image(i)


@functools.cache
def _inspect() -> argparse.Namespace:
    """The options of `undiffuse inspect`, parsed once because that takes longer than most inputs."""
    from undiffuse.cli.parser import build_parser

    words = ["inspect", "x"]
    return build_parser(words).parse_args(words)


def inspected(path: Path) -> None:
    """`undiffuse inspect`: now and then with the whole command line, else what it calls."""
    from undiffuse.cli import inspect
    from undiffuse.cli import main as command

    if path.stat().st_size % 16:
        inspect.run(argparse.Namespace(**{**vars(_inspect()), "what": str(path)}))
        return
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        if command(["inspect", str(path)]):
            raise ValueError(said.getvalue())


class Containers:
    """Doors that read what users bring."""

    folder: Path
    file: Callable[[str, bytes], Path]

    table = b"file,label,more\n" + b"".join(f"a{k}.png,{k % 3},{k / 3}\n".encode() for k in range(6))

    def _npy(self, rng: random.Random) -> bytes:
        file = io.BytesIO()
        kind = rng.choice([np.uint8, np.float32, np.int64, np.bool_])
        shape = rng.choice([(4, 8, 8, 3), (4, 8, 8), (4,), (4, 3, 8, 8), (4, 192), (0,), (4, 8, 8, 1)])
        np.save(file, np.zeros(shape, kind))
        data = file.getvalue()
        if rng.random() < 0.4:
            header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, %d, 8, %d), }" % (
                rng.choice(ODD_NUMBERS), rng.choice([0, 8, 2**31]), rng.choice([1, 3, 2**20]),
            )  # fmt: skip
            header += b" " * (-(len(header) + 11) % 64) + b"\n"
            data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(rng.choice([0, 64, 768]))
        return damaged(rng, data) if rng.random() < 0.5 else data

    def on_npz(self, rng: random.Random) -> Made:
        from undiffuse.evaluation.summary import npz_statistics, read_reference
        from undiffuse.pictures.npz import load_npz

        usual = ["arr_0", "arr_1", "x_train", "y_train", "images", "labels", "label_names", "mu", "sigma"]
        names = rng.sample(usual, 2)
        data = self._zip(rng, {f"{name}.npy": self._npy(rng) for name in names})
        path = self.file("a.npz", data)
        door = rng.choice([pixels, load_npz, npz_statistics, read_reference, inspected])
        return data, lambda: door(path)

    def on_npy(self, rng: random.Random) -> Made:
        data = self._npy(rng)
        path = self.file("a.npy", data)
        return data, lambda: pixels(path)

    def _zip(self, rng: random.Random, members: dict[str, bytes], damage: float = 0.7) -> bytes:
        file = io.BytesIO()
        packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w", packing) as archive:
            warnings.simplefilter("ignore")
            for name, data in members.items():
                archive.writestr(name, data)
                if rng.random() < 0.1:
                    archive.writestr(name, data)
        return damaged(rng, file.getvalue()) if rng.random() < damage else file.getvalue()

    def _members(self, rng: random.Random) -> dict[str, bytes]:
        ending = rng.choice(["png", "bmp", "jpg", "PNG"])
        members = {f"{rng.choice('ab')}/a{k}.{ending}": png() for k in range(4)}
        if rng.random() < 0.5:
            members = {name: damaged(rng, data) for name, data in members.items()}
        if rng.random() < 0.5:
            tables, paths = (
                ["labels.csv", "metadata.jsonl", "dataset.json", "metadata.csv"],
                ["train/x.png", "../x.png", "/x", "é\0.png"],
            )
            name = rng.choice(tables + paths)
            members[name] = self._table(rng, name)
        return members

    def on_zip(self, rng: random.Random) -> Made:
        data = self._zip(rng, self._members(rng))
        path = self.file("a.zip", data)
        door = rng.choice([pixels, inspected])
        return data, lambda: door(path)

    def on_packed(self, rng: random.Random) -> Made:
        """A zip of honest pictures, damaged as a whole: what is read is what was packed."""
        data = self._zip(rng, {f"{k % 2}/a{k}.png": png() for k in range(4)}, damage=1.0)
        path = self.file("packed.zip", data)

        def call() -> None:
            from undiffuse.data import open_data

            source = open_data(path)
            for i in range(len(source)):
                picture = np.asarray(source.image(i))
                if picture.shape != HONEST.shape or not np.array_equal(picture, HONEST):
                    raise Silent("a damaged zip gave another picture")

        return data, call

    def on_tar(self, rng: random.Random) -> Made:
        file = io.BytesIO()
        form = rng.choice([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        label: Any = rng.choice([1, odd(rng, 1), odd(rng, {"a": [1, 2]})])
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for k, content in enumerate(self._members(rng).values()):
                about = json.dumps({"label": label}).encode("utf-8", "replace")
                for ending, part in (("png", content), ("cls", str(k % 2).encode()), ("json", about)):
                    name = f"{k:03d}.{ending}" if rng.random() < 0.9 else rng.choice(["../a.png", "/b.png", "é" * 40])
                    info = tarfile.TarInfo(name)
                    info.size = len(part)
                    archive.addfile(info, io.BytesIO(part))
        data = damaged(rng, file.getvalue()) if rng.random() < 0.7 else file.getvalue()
        path = self.file("a.tar", data)
        return data, lambda: pixels(path)

    def _table(self, rng: random.Random, name: str) -> bytes:
        if name.endswith("json"):
            return odd_json(rng, {"labels": [[f"a/a{k}.png", k] for k in range(4)]}, 0)
        if name.endswith("jsonl"):
            lines = (odd_json(rng, {"file_name": f"a/a{k}.png", "label": k % 2}, 0) for k in range(4))
            return b"\n".join(lines)
        return damaged(rng, self.table)

    def on_table(self, rng: random.Random) -> Made:
        from undiffuse.data.labelling import interpret
        from undiffuse.data.tables import TableSpec, read_table

        name = rng.choice(["x.csv", "x.tsv", "x.txt", "x.jsonl", "x.json"])
        data = self._table(rng, name)
        data = damaged(rng, data) if rng.random() < 0.3 else data
        names = [f"a{k}.png" for k in range(6)]
        spec = TableSpec(name, rng.choice([None, "file"]), rng.choice([(), ("label",), ("label", "more")]))
        return data, lambda: interpret(read_table(data, name), names, spec, lambda *_: None, set())

    def on_parquet(self, rng: random.Random) -> Made:
        import pyarrow
        import pyarrow.parquet

        picture = damaged(rng, png()) if rng.random() < 0.3 else png()
        column: Any = [{"bytes": picture, "path": "a.png"}] * 3
        kind = rng.random()
        if kind < 0.2:
            column = [picture, None, b""]
        elif kind < 0.3:
            column = [rng.choice([1, "x", [1.0]])] * 3
        content: dict[str, Any] = {"image": column, rng.choice(["label", "fine_label", "tags", "x"]): [0, 1, 2]}
        if rng.random() < 0.4:
            content["label"] = rng.choice([[None, 1, 2], ["a", "b", None], [[1], [], [0, 2]], [0.5, 1e308, -1.0]])
        table = pyarrow.table(content)
        if rng.random() < 0.5:
            about = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({b"huggingface": odd_json(rng, about)})
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
        path = self.file("a.parquet", file.getvalue())
        return file.getvalue(), lambda: pixels(path)

    def on_folder(self, rng: random.Random) -> Made:
        """A folder of pictures with a table, or with the files of a format that is a folder."""
        shutil.rmtree(self.folder / "photos", ignore_errors=True)
        data = b""
        for name, content in self._members(rng).items():
            plain = name.replace("..", "x").strip("/").replace("\0", "")
            data += self.file(f"photos/{plain.split('/')[-1]}", content).read_bytes()
        tables = ["state.json", "dataset_info.json", "labels.csv", "metadata.jsonl", "train.csv", "batches.meta"]
        name = rng.choice(tables)
        data += self.file(f"photos/{name}", self._table(rng, name)).read_bytes()
        path = self.folder / "photos"
        door = rng.choice([pixels, inspected])
        return data, lambda: door(path)

    def _formats(self) -> dict[str, bytes]:
        from support.formats_made import X, Y, cifar10, example, idx, record

        pictures = [png() for _ in range(3)]
        tiff, gif, npy = io.BytesIO(), io.BytesIO(), io.BytesIO()
        frames = [Image.fromarray(HONEST + k) for k in range(3)]
        frames[0].save(tiff, "TIFF", save_all=True, append_images=frames[1:])
        frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
        np.save(npy, X)
        return {
            "train-images-idx3-ubyte": idx(X[..., 0]),
            "data_batch_1.bin": cifar10(np.zeros((3, 32, 32, 3), np.uint8), Y[:3]),
            "a.tfrecord": b"".join(record(example(image__encoded=p, image__class__label=[1])) for p in pictures),
            "a.tif": tiff.getvalue(),
            "a.gif": gif.getvalue(),
            "a.png": png(),
            "a.dcm": bytes(128) + b"DICM" + bytes(64),
            "a.fits": b"SIMPLE  =                    T" + b" " * 2850,
            "a.nii": bytes([92, 1, 0, 0]) + bytes(400),
            "a.mat": b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM" + bytes(200),
        }

    def on_format(self, rng: random.Random) -> Made:
        if not hasattr(self, "_made"):
            self._made = self._formats()
        name = rng.choice(list(self._made))
        data = damaged(rng, self._made[name])
        path = self.file(f"formats/{name}", data)
        door = rng.choice([pixels, inspected])
        return data, lambda: self._then_remove(door, path)

    def _then_remove(self, door: Callable[[Path], None], path: Path) -> None:
        try:
            door(path)
        finally:
            path.unlink()

    def on_inspect(self, rng: random.Random) -> Made:
        """`inspect` of any content under any ending."""
        endings = ["png", "npz", "zip", "safetensors", "json", "jsonl", "pt", "pkl", "onnx", "tar", "csv", "bin", "h5",
                   "gif", "ckpt", "parquet", "mdb", "mat", "txt", "npy"]  # fmt: skip
        makers: list[Callable[[], bytes]] = [
            png, lambda: self._npy(rng), lambda: self._zip(rng, self._members(rng)), lambda: self.table,
            lambda: rng.randbytes(rng.choice([0, 1, 7, 8, 100, 4096])),
        ]  # fmt: skip
        content = rng.choice(makers)()
        data = damaged(rng, content) if rng.random() < 0.6 else content
        path = self.file(f"any.{rng.choice(endings)}", data)
        return data, lambda: self._then_remove(inspected, path)
