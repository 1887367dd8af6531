"""Shards of encoded pictures: WebDataset tars, also by address, and TFRecords; LMDB."""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import tarfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.formats_made import COUNT, NAMES, X, Y, check, classes, example, pixels, png, record
from undiffuse.data import DataConfig, batches, open_data
from undiffuse.data.formats.crc32c import crc32c
from undiffuse.data.formats.spans import expand_braces


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(chosen: range, **parts: object) -> dict[str, bytes]:
    """{name: bytes}; a part is a function from a number to bytes."""
    out = {}
    for i in chosen:
        out[f"s/{i:06d}.png"] = png(X[i])
        for ending, make in parts.items():
            out[f"s/{i:06d}.{ending}"] = make(i)  # type: ignore[operator]
    return out


def cls(i: int) -> bytes:
    return str(Y[i]).encode()


def test_webdataset_by_cls_and_by_json(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", samples(range(COUNT), cls=cls, txt=lambda i: b"a picture"))
    source = open_data(path)
    check(source)
    assert source.format == "WebDataset shards" and source.left_out == {"members .txt of the samples": COUNT}
    assert source.name(0) == "s/000000.png"
    path = tar(
        tmp_path / "b.tar", samples(range(COUNT), json=lambda i: json.dumps({"label": NAMES[Y[i]], "id": i}).encode())
    )
    source = open_data(path)
    assert classes(source) == [NAMES[y] for y in Y] and source.label_names == sorted(NAMES)
    assert any("not used: id" in note for note in source.notes)
    assert open_data(path, labels="id").label_names == [str(i) for i in range(COUNT)]
    with pytest.raises(ValueError, match="no label field 'colour'"):
        open_data(path, labels="colour")
    path = tar(tmp_path / "c.tar", samples(range(COUNT), json=lambda i: json.dumps(int(Y[i])).encode()))
    check(open_data(path))
    path = tar(tmp_path / "d.tar", samples(range(COUNT), txt=lambda i: NAMES[Y[i]].encode()))
    assert open_data(path).labels is None
    assert classes(open_data(path, labels="txt")) == [NAMES[y] for y in Y]


def test_webdataset_shards_in_a_folder_by_braces_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    for k in range(3):
        tar(tmp_path / "data" / f"x-train-{k:03d}.tar", samples(range(4 * k, 4 * k + 4), cls=cls))
        tar(tmp_path / "packed" / f"{k}.tar.gz", samples(range(4 * k, 4 * k + 4), cls=cls))
    tar(tmp_path / "data" / "x-val-000.tar", samples(range(2), cls=cls))
    source = open_data(tmp_path / "data")
    check(source)
    assert source.held_out == {"val": 2} and source.name(5) == "x-train-001.tar/s/000005.png"
    check(open_data(f"{tmp_path / 'data'}:val", label_names=source.label_names), X[:2], Y[:2])
    check(open_data(str(tmp_path / "data" / "x-train-{000..002}.tar")))
    with pytest.raises(FileNotFoundError, match="1 of 4 files"):
        open_data(str(tmp_path / "data" / "x-train-{000..003}.tar"))
    packed = open_data(tmp_path / "packed")
    check(packed)
    assert len(list((tmp_path / "cache" / "unpacked").iterdir())) == 3
    assert expand_braces("a-{08..11}-{x,y}.tar")[:3] == ["a-08-x.tar", "a-08-y.tar", "a-09-x.tar"]
    with pytest.raises(ValueError, match="expected a range"):
        expand_braces("a-{5..2}.tar")


def test_order_resumes_and_does_not_depend_on_workers(tmp_path: Path) -> None:
    for k in range(3):
        tar(tmp_path / f"{k}.tar", samples(range(4 * k, 4 * k + 4), cls=cls))
    dataset = DataConfig(path=str(tmp_path), size=8, seed=4).build()

    def first(start: int, count: int, workers: int) -> list[tuple[str, ...]]:
        stream = batches(dataset, start, 4, workers=workers)
        return [next(stream).names for _ in range(count)]

    whole = first(0, 6, 0)
    assert first(8, 4, 3) == whole[2:] and first(0, 6, 2) == whole
    assert sorted(name for names in whole[:3] for name in names) == [dataset.source.name(i) for i in range(COUNT)]
    copy = pickle.loads(pickle.dumps(dataset.source))
    assert np.array_equal(pixels(copy), X) and copy.fingerprint == dataset.source.fingerprint


def test_webdataset_names_what_it_leaves_out(tmp_path: Path) -> None:
    members = {**samples(range(3), cls=cls), "s/000099.cls": b"1", "README": b"x"}
    source = open_data(tar(tmp_path / "a.tar", members))
    assert len(source) == 3
    assert source.left_out == {"samples without a picture": 1, "members without a name or an ending": 1}
    with pytest.raises(ValueError, match="holds no images: 1 samples of .cls"):
        open_data(tar(tmp_path / "b.tar", {"0.cls": b"1"}))
    two = {"0.input.png": png(X[0]), "0.target.png": png(X[1])}
    assert np.array_equal(pixels(open_data(tar(tmp_path / "c.tar", two))), X[:1])
    with pytest.raises(ValueError, match="several pictures"):
        open_data(tar(tmp_path / "d.tar", {"0.a.png": png(X[0]), "0.b.png": png(X[1])}))
    (tmp_path / "e.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="cannot be read as a tar"):
        open_data(tmp_path / "e.tar")
    with pytest.raises(ValueError, match="no label .* for 1 of 3 images"):
        open_data(tar(tmp_path / "f.tar", {**samples(range(2), cls=cls), "s/000009.png": png(X[9])}))


def test_a_tar_of_folders_of_classes(tmp_path: Path) -> None:
    path = tar(tmp_path / "flowers.tgz", {f"top/{NAMES[Y[i]]}/{i}.png": png(X[i]) for i in range(COUNT)})
    source = open_data(path)
    assert source.label_names == sorted(NAMES) and np.array_equal(pixels(source), X)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        """Serves ranges, as storage does."""

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            span = self.headers.get("Range")
            content = (tmp_path / self.path.lstrip("/")).read_bytes()
            if not span:
                return super().do_GET()
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content) - 1), len(content) - 1)
            part = content[int(first) : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


def test_webdataset_by_address(tmp_path: Path, server: str) -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    for k in range(2):
        tar(tmp_path / f"x-{k}.tar", samples(range(6 * k, 6 * k + 6), cls=cls))
    source = open_data(f"{server}/x-{{0..1}}.tar")
    check(source)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda i: np.array_equal(np.asarray(source.image(i)), X[i]), list(range(COUNT)) * 2))
    for k in range(2):
        (tmp_path / f"y-{k}.tar.gz").write_bytes(gzip.compress((tmp_path / f"x-{k}.tar").read_bytes()))
    check(open_data(f"{server}/y-{{0..1}}.tar.gz"))  # unpacked into the cache folder
    with pytest.raises(FileNotFoundError, match="there is no file at http.*x-2.tar"):
        open_data(f"{server}/x-{{0..2}}.tar")
    with pytest.raises(ValueError, match="only WebDataset shards .* are read by their address"):
        open_data(f"{server}/x.npz")


def test_crc32c_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720
    assert crc32c(b"\0" * 32) == 0x8A9136AA
    data = np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8).tobytes()
    state = 0xFFFFFFFF
    for byte in data:  # bit by bit
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    assert crc32c(data) == state ^ 0xFFFFFFFF


def write_records(path: Path, chosen: range, **more: object) -> Path:
    messages = [
        example(image__encoded=png(X[i]), image__class__label=int(Y[i]), **{k: f(i) for k, f in more.items()})  # type: ignore[operator]
        for i in chosen
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(map(record, messages))
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_tfrecord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    source = open_data(write_records(tmp_path / "a.tfrecord", range(COUNT)))
    check(source)
    assert source.format == "TFRecord" and "images from the feature image/encoded" in source.notes
    check(open_data(write_records(tmp_path / "b.tfrecords.gz", range(COUNT))))
    text = functools.partial(lambda i: NAMES[Y[i]].encode())
    source = open_data(write_records(tmp_path / "c.tfrecord", range(COUNT), image__class__text=text))
    check(source, names=NAMES)
    for k in range(2):
        write_records(tmp_path / "d" / f"x-train.tfrecord-0000{k}-of-00002", range(6 * k, 6 * k + 6))
    write_records(tmp_path / "d" / "x-test.tfrecord-00000-of-00001", range(3))
    (tmp_path / "d" / "label.labels.txt").write_text("\n".join(NAMES) + "\n")
    source = open_data(tmp_path / "d")
    check(source, names=NAMES)
    assert source.held_out == {"test": 3}


def test_tfrecord_of_raw_pixels(tmp_path: Path) -> None:
    planes = X.transpose(0, 3, 1, 2)
    messages = [example(shape=[3, 10, 14], data=planes[i].tobytes()) for i in range(COUNT)]
    (tmp_path / "x-r04.tfrecords").write_bytes(b"".join(map(record, messages)))
    (tmp_path / "x-r03.tfrecords").write_bytes(record(example(shape=[3, 5, 7], data=planes[0, :, ::2, ::2].tobytes())))
    source = open_data(tmp_path)
    check(source, labels=None)
    assert source.left_out == {"TFRecords of lower resolutions": 1}
    messages = [example(image_raw=X[i].tobytes(), height=10, width=14, depth=3, label=int(Y[i])) for i in range(COUNT)]
    (tmp_path / "b.tfrecord").write_bytes(b"".join(map(record, messages)))
    check(open_data(tmp_path / "b.tfrecord"))


@pytest.mark.parametrize("name", ["a.tfrec", "a.record", "train.tfrecord", "validation.tfr", "x-00000-of-00001"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zlib.compress])
def test_tfrecords_of_other_names_and_packings(tmp_path: Path, name: str, pack: Any) -> None:
    records = b"".join(record(example(image=png(x), label=int(y))) for x, y in zip(X, Y, strict=True))
    (tmp_path / name).write_bytes(pack(records))
    check(open_data(tmp_path))
    check(open_data(tmp_path / name))


def test_raw_squares_without_a_shape(tmp_path: Path) -> None:
    squares = np.ascontiguousarray(X[:, :, :10])
    records = b"".join(record(example(image_raw=x.tobytes(), label=int(y))) for x, y in zip(squares, Y, strict=True))
    (tmp_path / "a.tfrecord").write_bytes(records)
    source = open_data(tmp_path)
    check(source, squares)
    assert any("taken as squares of 10 pixels" in note for note in source.notes)


def test_damaged_tfrecords_are_refused(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecord", range(3))
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    with pytest.raises(ValueError, match="cut short"):
        open_data(path)
    path.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    with pytest.raises(ValueError, match="its checksum differs"):
        open_data(path)
    path.write_bytes(record(b"\xff\xff\xff"))
    with pytest.raises(ValueError, match="no tf.train.Example"):
        open_data(path)
    path.write_bytes(record(example(x=1)))
    with pytest.raises(ValueError, match="holds no images: 1 records with the features x"):
        open_data(path)


@pytest.mark.parametrize("folder", [True, False])
def test_lmdb(tmp_path: Path, folder: bool) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / ("bedroom_val_lmdb" if folder else "bedroom.lmdb")
    with lmdb.open(str(path), subdir=folder, map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for i in range(COUNT):
            from PIL import Image

            file = io.BytesIO()
            Image.fromarray(X[i]).save(file, "WEBP", lossless=True)
            writing.put(f"{i:040x}".encode(), file.getvalue())
        writing.put(b"zz-count", b"12")
    for lock in tmp_path.rglob("*lock*"):
        lock.unlink()
    if folder:
        path.chmod(0o555)
    source = open_data(path)
    check(source, labels=None)
    assert source.format == "LMDB" and source.left_out == {"values that are no images": 1}
    assert not list(tmp_path.rglob("*lock*"))  # read-only media stay as they are
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source))), X)
    path.chmod(0o755)


def test_lmdb_with_labels_and_of_caffe(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for i in range(COUNT):
            writing.put(f"image-{i:09d}".encode(), png(X[i]))
            writing.put(f"label-{i:09d}".encode(), str(Y[i]).encode())
    check(open_data(tmp_path / "a"))
    with lmdb.open(str(tmp_path / "b"), map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for i in range(COUNT):
            planes = X[i, :, :, ::-1].transpose(2, 0, 1).tobytes()
            head = bytes([0x08, 3, 0x10, 10, 0x18, 14, 0x22]) + bytes([len(planes) & 127 | 128, len(planes) >> 7])
            writing.put(f"{i:08d}".encode(), head + planes + bytes([0x28, int(Y[i])]))
    check(open_data(tmp_path / "b"))


def test_a_large_shard_is_indexed_and_changes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.data.formats import webdataset

    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(webdataset, "_INDEXED", 10)
    path = tar(tmp_path / "a.tar", samples(range(COUNT), cls=cls))
    check(open_data(path))
    opened = []
    monkeypatch.setattr(tarfile, "open", lambda *a, way=tarfile.open, **k: opened.append(1) or way(*a, **k))
    check(open_data(path))
    assert not opened
    tar(path, samples(range(6, COUNT), cls=cls))
    check(open_data(path), X[6:], Y[6:])
    assert opened


def test_a_tar_of_another_format_is_to_be_unpacked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images.*\.bin \(1\).*Unpack it first \(tar -xf"):
        open_data(tar(tmp_path / "cifar-10-binary.tar", {"cifar-10-batches-bin/data_batch_1.bin": b"x"}))
    with pytest.raises(ValueError, match="Unpack it first"):
        open_data(tar(tmp_path / "cifar-10-python.tar", {"cifar-10-batches-py/data_batch_1": b"\x80\x04"}))


@pytest.mark.parametrize("table", ["labels.csv", "metadata.jsonl", "dataset.json"])
def test_an_archive_of_a_folder_has_its_parts_and_tables(tmp_path: Path, table: str) -> None:
    def archive(name: str, members: dict[str, bytes]) -> Path:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return tmp_path / name

    parts = {f"x/{'train' if i < 8 else 'val'}/{NAMES[Y[i]]}/{i:02d}.png": png(X[i]) for i in range(COUNT)}
    source = open_data(archive("parts.tar", parts))
    check(source, X[:8], [NAMES[y] for y in Y[:8]])
    assert source.held_out == {"val": 4} and len(open_data(f"{tmp_path / 'parts.tar'}:val")) == 4
    pairs = [(f"{i:02d}.png", NAMES[Y[i]]) for i in range(COUNT)]
    text = {
        "labels.csv": "file,label\n" + "\n".join(map(",".join, pairs)),
        "metadata.jsonl": "\n".join(json.dumps({"file_name": name, "label": label}) for name, label in pairs),
        "dataset.json": json.dumps({"labels": pairs}),
    }[table]
    plain = {f"x/{i:02d}.png": png(X[i]) for i in range(COUNT)}
    source = open_data(archive("table.tar", {**plain, f"x/{table}": text.encode()}))
    assert classes(source) == [NAMES[y] for y in Y] and not source.left_out
    with pytest.raises(ValueError, match="no part 'val'"):
        open_data(f"{tmp_path / 'table.tar'}:val")


def test_members_called_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(COUNT):
            for name, content in ((f"s{i:03d}.image.png", png(X[i])), (f"s{i:03d}.label.txt", NAMES[Y[i]].encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = open_data(tmp_path / "a.tar")
    assert classes(source) == [NAMES[y] for y in Y] and not source.left_out


def test_lmdb_of_several_resolutions(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for i in range(COUNT):
            transaction.put(f"16-{i:05d}".encode(), png(X[i]))
            transaction.put(f"8-{i:05d}".encode(), png(X[i, ::2, ::2]))
    source = open_data(tmp_path / "a")
    check(source, X, None)
    assert source.left_out == {"copies of images at smaller sizes": COUNT}
